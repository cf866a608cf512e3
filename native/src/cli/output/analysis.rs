//! What `analyze` prints for a person.

use std::io::{self, Write};

use qcowkit_core::operations::analyze::{Analysis, Distribution, Gain, GuestOrder, Layout, Ledger};

use super::table::{Align, Table};
use crate::cli::size::human;

/// The whole report.
///
/// # Errors
/// When the output fails.
pub(crate) fn print(out: &mut dyn Write, analysis: &Analysis) -> io::Result<()> {
    writeln!(
        out,
        "virtual size {}, clusters of {}, file of {}",
        human(analysis.virtual_size),
        human(analysis.cluster_size),
        human(analysis.ledger.file_length)
    )?;
    if analysis.faults > 0 {
        writeln!(out, "{} entries or tables are wrong: `qcowkit check` tells which", analysis.faults)?;
    }
    writeln!(out, "\nWhere the space went")?;
    ledger(out, &analysis.ledger)?;
    if let Some(data_file) = &analysis.data_file {
        writeln!(out, "\nIn the external data file")?;
        ledger(out, data_file)?;
    }
    writeln!(out, "\nWhat gives space back")?;
    reclaim(out, analysis)?;
    writeln!(out, "\nHow large the file can get")?;
    worst_case(out, analysis)?;
    writeln!(out, "\nHow the disk lies in the file")?;
    layout(out, &analysis.layout, analysis.cluster_size)
}

fn ledger(out: &mut dyn Write, ledger: &Ledger) -> io::Result<()> {
    let mut table = Table::new(&[
        ("class", Align::Left),
        ("bytes", Align::Right),
        ("", Align::Right),
        ("host holds", Align::Right),
        ("holes", Align::Right),
        ("share", Align::Right),
    ]);
    let total = ledger.total.bytes.max(1);
    let lines = ledger.classes.iter().map(|line| (line.class.title(), line.space));
    for (title, space) in lines.filter(|(_, space)| space.bytes > 0).chain([("all", ledger.total)]) {
        table.row(vec![
            title.to_owned(),
            space.bytes.to_string(),
            human(space.bytes),
            human(space.held),
            human(space.holes),
            format!("{:.1} %", space.bytes as f64 * 100.0 / total as f64),
        ]);
    }
    table.print(out, 2)?;
    if ledger.overlapping_bytes > 0 {
        writeln!(out, "  {} are claimed more than once", human(ledger.overlapping_bytes))?;
    }
    if ledger.referenced_but_free_bytes > 0 {
        writeln!(out, "  {} are in use but counted as free: danger", human(ledger.referenced_but_free_bytes))?;
    }
    if ledger.refcounts_may_be_wrong {
        writeln!(out, "  the image is marked dirty: refcounts, and so free and leaked space, may be wrong")?;
    }
    Ok(())
}

fn reclaim(out: &mut dyn Write, analysis: &Analysis) -> io::Result<()> {
    let ways = &analysis.reclaim;
    let mut table =
        Table::new(&[("way", Align::Left), ("host gets back", Align::Right), ("file shrinks by", Align::Right)]);
    let zero_filled = ways.zero_filled.unwrap_or_default();
    let rows: [(&str, Gain); 8] = [
        ("punch holes for free clusters", ways.punch_free),
        ("discard retained zero clusters", ways.discard_retained),
        ("cut off the end", ways.truncate_end),
        ("repair leaks", ways.repair_leaks),
        ("drop snapshots", ways.drop_snapshots),
        ("unmap clusters that hold only zeros", zero_filled),
        ("rewrite the image", ways.compact.gain),
        ("rewrite it without snapshots", ways.compact_without_snapshots.gain),
    ];
    for (way, gain) in rows {
        if gain.host_bytes > 0 || gain.file_bytes > 0 || gain.host_bytes_unknown > 0 {
            let unknown = if gain.host_bytes_unknown > 0 {
                format!(" (+ up to {})", human(gain.host_bytes_unknown))
            } else {
                String::new()
            };
            table.row(vec![way.to_owned(), human(gain.host_bytes) + &unknown, human(gain.file_bytes)]);
        }
    }
    if table.is_empty() { writeln!(out, "  nothing does") } else { table.print(out, 2) }
}

fn worst_case(out: &mut dyn Write, analysis: &Analysis) -> io::Result<()> {
    let worst = &analysis.worst_case;
    let percent = |bytes: u64| bytes as f64 * 100.0 / analysis.virtual_size.max(1) as f64;
    let mut table = Table::new(&[
        ("if the guest writes everything", Align::Left),
        ("file", Align::Right),
        ("of virtual size", Align::Right),
    ]);
    let mut row = |what: &str, bytes: u64| {
        table.row(vec![what.to_owned(), human(bytes), format!("{:.1} %", percent(bytes))]);
    };
    row("and freed clusters are used again", worst.fully_written);
    if worst.fully_written_without_snapshots != worst.fully_written {
        row("the same, snapshots deleted", worst.fully_written_without_snapshots);
    }
    row("and no gap is large enough to be used", worst.without_reuse);
    if let Some(data_file) = worst.data_file {
        row("the data file", data_file);
    }
    table.print(out, 2)
}

fn layout(out: &mut dyn Write, layout: &Layout, cluster_size: u64) -> io::Result<()> {
    let GuestOrder { clusters, discontinuities, backward, discontinuities_ppm, runs } = &layout.guest_order;
    writeln!(
        out,
        "  {clusters} clusters, {discontinuities} discontinuities ({:.2} %), {backward} of them backward",
        *discontinuities_ppm as f64 / 10_000.0
    )?;
    distribution(out, "runs", runs)?;
    if layout.compressed.clusters > 0 {
        let compressed = &layout.compressed;
        writeln!(
            out,
            "  {} compressed clusters in {} ({:.1} % of their size), {} discontinuities",
            compressed.clusters,
            human(compressed.stream_bytes),
            compressed.ratio_ppm as f64 / 10_000.0,
            compressed.discontinuities
        )?;
    }
    distribution(out, "free gaps", &layout.free.gaps)?;
    for bucket in &layout.free.histogram {
        writeln!(out, "    {:>8} and more: {} gaps, {}", human(bucket.from), bucket.count, human(bucket.bytes))?;
    }
    for small in layout.free.too_small_for.iter().filter(|small| small.bytes > 0 && small.request_size > cluster_size) {
        let share = small.ppm as f64 / 10_000.0;
        writeln!(out, "    too small for {:>8} in one piece: {share:.1} %", human(small.request_size))?;
    }
    if let Some(host) = &layout.host {
        writeln!(out, "  {} extents on the device, {} discontinuities", host.extents, host.discontinuities)?;
        distribution(out, "stretches on the device", &host.runs)?;
        if host.shared_bytes > 0 {
            writeln!(out, "  {} are shared with other files", human(host.shared_bytes))?;
        }
    }
    Ok(())
}

fn distribution(out: &mut dyn Write, what: &str, lengths: &Distribution) -> io::Result<()> {
    if lengths.count == 0 {
        return writeln!(out, "  {what}: none");
    }
    writeln!(
        out,
        "  {what}: {} of {} on average; 10 % up to {}, half up to {}, 90 % up to {}, longest {}",
        lengths.count,
        human(lengths.mean),
        human(lengths.p10),
        human(lengths.p50),
        human(lengths.p90),
        human(lengths.max)
    )
}
