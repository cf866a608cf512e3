//! What `inspect` prints for a person.

use std::io::{self, Write};

use qcowkit_core::operations::inspect::{
    BitmapReport, BitmapTableEntryReport, GuestPath, HeaderReport, HostReport, L1EntryReport, L2EntryReport, LayerPath,
    RefcountRun, RefcountTableEntryReport, Resolution, Shown, SnapshotReport, TableReport,
};

use super::table::{Align, Table};
use crate::cli::size::human;
use crate::cli::terminal::one_line;
use crate::cli::verbs::inspect::{GuestWay, Inspection};

/// Everything that was asked for.
///
/// # Errors
/// When the output fails.
pub(crate) fn print(out: &mut dyn Write, inspection: &Inspection) -> io::Result<()> {
    if let Some(report) = &inspection.header {
        section(out, "Header", report, header)?;
    }
    for report in &inspection.l1 {
        section(out, "L1 table", report, l1)?;
    }
    for report in &inspection.l2 {
        section(out, "L2 table", report, l2)?;
    }
    if let Some(report) = &inspection.refcount_table {
        section(out, "Refcount table", report, refcount_table)?;
    }
    for report in &inspection.refcount_blocks {
        section(out, "Refcount block", report, refcount_block)?;
    }
    if let Some(report) = &inspection.snapshots {
        section(out, "Snapshots", report, |out, snapshots| self::snapshots(out, snapshots))?;
    }
    if let Some(report) = &inspection.bitmaps {
        section(out, "Bitmaps", report, |out, bitmaps| self::bitmaps(out, bitmaps))?;
    }
    for report in &inspection.bitmap_tables {
        section(out, "Bitmap table", report, bitmap_table)?;
    }
    for way in &inspection.guest {
        guest(out, way)?;
    }
    for report in &inspection.host {
        section(out, "Host offset", report, host)?;
    }
    Ok(())
}

/// A heading, and what there is to show or why there is nothing.
fn section<T>(
    out: &mut dyn Write,
    title: &str,
    shown: &Shown<T>,
    print: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
) -> io::Result<()> {
    writeln!(out, "{title}")?;
    match shown {
        Shown::Value(value) => print(out, value),
        Shown::Error(error) => writeln!(out, "  cannot be read: {}", told(error)),
    }
}

/// What may hold words of the image's own stays on its line.
fn told(text: &impl ToString) -> String {
    one_line(&text.to_string(), true).into_owned()
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

fn optional(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), hex)
}

fn faults(faults: &[String]) -> String {
    faults.join("; ")
}

fn header(out: &mut dyn Write, report: &HeaderReport) -> io::Result<()> {
    let mut table = Table::new(&[
        ("offset", Align::Right),
        ("field", Align::Left),
        ("value", Align::Right),
        ("meaning", Align::Left),
    ]);
    for field in &report.fields {
        table.row(vec![field.offset.to_string(), field.name.to_owned(), hex(field.raw), field.meaning.clone()]);
    }
    table.print(out, 2)?;
    for bit in &report.features {
        let known = if bit.known { "" } else { " (not known to this version)" };
        let kind = format!("{:?}", bit.kind).to_lowercase();
        writeln!(out, "  {kind} feature bit {}: {}{known}", bit.bit, told(&bit.name))?;
    }
    for extension in &report.extensions {
        let name = extension.name.unwrap_or("unknown extension");
        let malformed = if extension.malformed { " (malformed)" } else { "" };
        let (offset, kind, length) = (extension.offset, extension.kind, extension.length);
        writeln!(out, "  extension {kind:#010x} at {offset:#x}, {length} bytes: {name}{malformed}")?;
        if !extension.meaning.is_empty() {
            writeln!(out, "    {}", told(&extension.meaning))?;
        }
    }
    for (what, name) in [("backing file", &report.backing_file), ("data file", &report.data_file)] {
        if let Some(name) = name {
            writeln!(out, "  {what}: {name:?}")?;
        }
    }
    if let Some(damage) = &report.damage {
        writeln!(out, "  damaged: {}", told(damage))?;
    }
    if let Some(refusal) = &report.refusal {
        writeln!(out, "  this image cannot be opened: {}", told(refusal))?;
    }
    Ok(())
}

/// A column of a table of entries.
struct Column<T> {
    title: &'static str,
    align: Align,
    cell: fn(&T) -> String,
}

/// A column of numbers.
fn right<T>(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { title, align: Align::Right, cell }
}

/// A column of words.
fn left<T>(title: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { title, align: Align::Left, cell }
}

/// The heading and end that all tables share.
fn table<T>(out: &mut dyn Write, report: &TableReport<T>, columns: &[Column<T>]) -> io::Result<()> {
    writeln!(out, "  at host offset {:#x}, {} entries; empty ones are left out", report.host_offset, report.total)?;
    let mut table = Table::new(&columns.iter().map(|column| (column.title, column.align)).collect::<Vec<_>>());
    report.entries.iter().for_each(|entry| table.row(columns.iter().map(|column| (column.cell)(entry)).collect()));
    if !table.is_empty() {
        table.print(out, 2)?;
    }
    match report.next {
        Some(next) => writeln!(out, "  ... goes on at entry {next}"),
        None => Ok(()),
    }
}

/// An entry as it stands in the file.
fn raw(entry: u64) -> String {
    format!("{entry:#018x}")
}

fn yes_no(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}

fn l1(out: &mut dyn Write, report: &TableReport<L1EntryReport>) -> io::Result<()> {
    let columns: [Column<L1EntryReport>; 6] = [
        right("index", |entry| entry.index.to_string()),
        right("entry", |entry| raw(entry.raw)),
        right("guest offset", |entry| hex(entry.guest_offset)),
        right("L2 table", |entry| optional(entry.l2_offset)),
        left("COPIED", |entry| yes_no(entry.copied)),
        left("faults", |entry| faults(&entry.faults)),
    ];
    table(out, report, &columns)
}

fn l2(out: &mut dyn Write, report: &TableReport<L2EntryReport>) -> io::Result<()> {
    let columns: [Column<L2EntryReport>; 8] = [
        right("index", |entry| entry.index.to_string()),
        right("entry", |entry| raw(entry.raw)),
        right("guest offset", |entry| hex(entry.guest_offset)),
        left("kind", |entry| entry.kind.to_string()),
        right("host offset", l2_place),
        left("COPIED", |entry| yes_no(entry.copied)),
        left("subclusters", subclusters),
        left("faults", |entry| faults(&entry.faults)),
    ];
    table(out, report, &columns)
}

fn l2_place(entry: &L2EntryReport) -> String {
    match (entry.host_offset, entry.compressed_length) {
        (Some(offset), Some(length)) => format!("{offset:#x}+{length}"),
        (offset, _) => optional(offset),
    }
}

/// One character a subcluster: `#` data, `0` zeros, `.` neither.
fn subclusters(entry: &L2EntryReport) -> String {
    let (Some(allocated), Some(zero)) = (entry.allocated, entry.zero) else { return String::new() };
    let part = |n: u32| match (allocated >> n & 1, zero >> n & 1) {
        (1, 1) => '!',
        (1, _) => '#',
        (_, 1) => '0',
        _ => '.',
    };
    (0..32).map(part).collect()
}

fn refcount_table(out: &mut dyn Write, report: &TableReport<RefcountTableEntryReport>) -> io::Result<()> {
    let columns: [Column<RefcountTableEntryReport>; 5] = [
        right("index", |entry| entry.index.to_string()),
        right("entry", |entry| raw(entry.raw)),
        right("first host offset", |entry| hex(entry.host_offset)),
        right("block", |entry| optional(entry.block_offset)),
        left("faults", |entry| faults(&entry.faults)),
    ];
    table(out, report, &columns)
}

fn refcount_block(out: &mut dyn Write, report: &TableReport<RefcountRun>) -> io::Result<()> {
    let columns: [Column<RefcountRun>; 4] = [
        right("index", |run| run.index.to_string()),
        right("host offset", |run| hex(run.host_offset)),
        right("clusters", |run| run.clusters.to_string()),
        right("refcount", |run| run.refcount.to_string()),
    ];
    table(out, report, &columns)
}

fn bitmap_table(out: &mut dyn Write, report: &TableReport<BitmapTableEntryReport>) -> io::Result<()> {
    let columns: [Column<BitmapTableEntryReport>; 5] = [
        right("index", |entry| entry.index.to_string()),
        right("entry", |entry| raw(entry.raw)),
        left("state", |entry| entry.state.map_or_else(|| "-".to_owned(), |state| format!("{state:?}"))),
        right("host offset", |entry| optional(entry.host_offset)),
        left("faults", |entry| faults(&entry.faults)),
    ];
    table(out, report, &columns)
}

fn snapshots(out: &mut dyn Write, reports: &[SnapshotReport]) -> io::Result<()> {
    if reports.is_empty() {
        return writeln!(out, "  none");
    }
    for report in reports {
        let entry = &report.entry;
        writeln!(
            out,
            "  {}: id {}, name {:?}, L1 table at {:#x} with {} entries, VM state {}, virtual size {}",
            report.index,
            told(&entry.id),
            entry.name.to_string_lossy(),
            entry.l1_table_offset,
            entry.l1_size,
            human(report.vm_state_size),
            report.virtual_size.map_or_else(|| "not recorded".to_owned(), human)
        )?;
    }
    Ok(())
}

fn bitmaps(out: &mut dyn Write, reports: &[BitmapReport]) -> io::Result<()> {
    if reports.is_empty() {
        return writeln!(out, "  none");
    }
    for report in reports {
        let entry = &report.entry;
        writeln!(
            out,
            "  {}: name {:?}, table at {:#x} with {} entries, granularity {}, flags {:#x}",
            report.index,
            entry.name.to_string_lossy(),
            entry.table_offset,
            entry.table_entries,
            report.granularity.map_or_else(|| "out of range".to_owned(), human),
            entry.flags.bits()
        )?;
    }
    Ok(())
}

fn guest(out: &mut dyn Write, way: &GuestWay) -> io::Result<()> {
    writeln!(out, "Guest offset {:#x}", way.guest_offset)?;
    for layer in &way.layers {
        match layer {
            Shown::Error(error) => writeln!(out, "  this layer cannot be read: {}", told(error))?,
            Shown::Value(path) => guest_layer(out, path)?,
        }
    }
    match &way.chain_ends {
        Some(why) => writeln!(out, "  the layer below was not opened: {}", told(why)),
        None => Ok(()),
    }
}

fn guest_layer(out: &mut dyn Write, path: &LayerPath) -> io::Result<()> {
    let format = format!("{:?}", path.format).to_lowercase();
    writeln!(out, "  layer {}, {format}, virtual size {}", path.depth, human(path.virtual_size))?;
    if let Some(entries) = &path.entries {
        guest_entries(out, entries)?;
    }
    match path.resolution {
        Resolution::Data { host_offset } => writeln!(out, "    -> data at host offset {host_offset:#x}"),
        Resolution::DataFile { host_offset } => writeln!(out, "    -> data at {host_offset:#x} in the data file"),
        Resolution::Compressed { host_offset, length, in_cluster } => writeln!(
            out,
            "    -> byte {in_cluster:#x} of the cluster compressed at host offset {host_offset:#x}, {length} bytes"
        ),
        Resolution::Zero => writeln!(out, "    -> reads as zero"),
        Resolution::Unallocated => writeln!(out, "    -> not allocated here"),
        Resolution::BeyondEnd => writeln!(out, "    -> beyond the end of this layer: reads as zero"),
        Resolution::Broken => writeln!(out, "    -> broken: cannot be read"),
    }
}

fn guest_entries(out: &mut dyn Write, path: &GuestPath) -> io::Result<()> {
    writeln!(out, "    guest cluster {:#x}, byte {:#x} of it", path.guest_cluster, path.in_cluster)?;
    match &path.l1 {
        Shown::Error(error) => writeln!(out, "    L1 entry at {:#x}: {}", path.l1_entry_offset, told(error))?,
        Shown::Value(l1) => {
            let table = l1.l2_offset.map_or_else(|| "no L2 table".to_owned(), |at| format!("L2 table at {at:#x}"));
            let refcount = refcount(path.l2_table_refcount.as_ref());
            writeln!(
                out,
                "    L1 entry {} at {:#x}: {:#018x}, {table}{refcount}{}",
                l1.index,
                path.l1_entry_offset,
                l1.raw,
                fault_words(&l1.faults)
            )?;
        }
    }
    let Some(l2) = &path.l2 else { return Ok(()) };
    let at = optional(path.l2_entry_offset);
    match l2 {
        Shown::Error(error) => writeln!(out, "    L2 entry at {at}: {}", told(error)),
        Shown::Value(l2) => {
            let host = l2.host_offset.map_or_else(String::new, |host| format!(", host offset {host:#x}"));
            let refcount = refcount(path.host_refcount.as_ref());
            writeln!(
                out,
                "    L2 entry {} at {at}: {:#018x}, {}{host}{refcount}{}",
                l2.index,
                l2.raw,
                l2.kind,
                fault_words(&l2.faults)
            )?;
            match path.subcluster {
                Some(part) => writeln!(out, "    subclusters {}, this is number {part}", subclusters(l2)),
                None => Ok(()),
            }
        }
    }
}

fn refcount(shown: Option<&Shown<u64>>) -> String {
    match shown {
        None => String::new(),
        Some(Shown::Value(count)) => format!(", refcount {count}"),
        Some(Shown::Error(error)) => format!(", refcount unknown ({error})"),
    }
}

fn fault_words(faults: &[String]) -> String {
    if faults.is_empty() { String::new() } else { format!("; WRONG: {}", faults.join("; ")) }
}

fn host(out: &mut dyn Write, report: &HostReport) -> io::Result<()> {
    let end = if report.beyond_end { ", beyond the end of the file" } else { "" };
    writeln!(
        out,
        "  {:#x} is in host cluster {:#x}, which begins at {:#x}{end}",
        report.host_offset, report.host_cluster, report.cluster_offset
    )?;
    writeln!(out, "  refcount {}, {} references", shown(&report.refcount), report.references)?;
    match &report.owners {
        Shown::Error(error) => writeln!(out, "  owners unknown: {}", told(error))?,
        Shown::Value(owners) if owners.is_empty() => writeln!(out, "  nothing refers to it")?,
        Shown::Value(owners) => {
            for owner in owners {
                let guest = owner.guest_offset.map_or_else(String::new, |at| format!(", guest offset {at:#x}"));
                let beside = if owner.contains_offset { "" } else { " (shares the cluster only)" };
                writeln!(
                    out,
                    "  {} at {:#x}, {}{guest}{beside}",
                    owner.structure,
                    owner.host_offset,
                    told(&owner.source)
                )?;
            }
        }
    }
    if report.faults > 0 {
        writeln!(out, "  {} faults were met on the way: owners may be missing", report.faults)?;
    }
    Ok(())
}

fn shown(value: &Shown<u64>) -> String {
    match value {
        Shown::Value(value) => value.to_string(),
        Shown::Error(error) => format!("unknown ({})", told(error)),
    }
}
