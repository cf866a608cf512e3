//! `info` for a person, line by line as qemu-img prints it.

use std::io::{self, Write};

use qcowkit_core::operations::info::SnapshotInfo;

use super::super::json::Json;
use super::super::size::human;
use super::super::terminal::one_line;
use crate::info::{FileImageInfo, FileInfo};

/// A qcow2 image. Names stay on their lines if the program is `own`, and are as qemu-img prints them otherwise.
pub(crate) fn image(out: &mut dyn Write, info: &FileImageInfo, own: bool) -> io::Result<()> {
    let facts = &info.image;
    let line = |name| one_line(name, own);
    head(out, &line(&info.filename), facts.format, facts.virtual_size, info.actual_size)?;
    if facts.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    writeln!(out, "cluster_size: {}", facts.cluster_size)?;
    if facts.dirty_flag {
        writeln!(out, "cleanly shut down: no")?;
    }
    if let Some(name) = &facts.backing_filename {
        write!(out, "backing file: {}", line(name))?;
        match &info.full_backing_filename {
            Some(full) if full != name => writeln!(out, " (actual path: {})", line(full))?,
            Some(_) => writeln!(out)?,
            None => writeln!(out, " (cannot determine actual path)")?,
        }
        if let Some(format) = &facts.backing_filename_format {
            writeln!(out, "backing file format: {}", line(format))?;
        }
    }
    if !facts.snapshots.is_empty() {
        writeln!(out, "Snapshot list:")?;
        snapshots(out, &facts.snapshots, own)?;
    }
    writeln!(out, "Format specific information:")?;
    specific(out, &Json::of(&facts.format_specific.data)?, 1, own)?;
    for child in &info.children {
        file_child(out, child.name, &child.info, own)?;
    }
    Ok(())
}

/// A raw file.
pub(crate) fn raw(out: &mut dyn Write, file: &FileInfo, own: bool) -> io::Result<()> {
    head(out, &one_line(&file.filename, own), "raw", file.virtual_size, file.actual_size)?;
    file_child(out, "file", file, own)
}

fn head(out: &mut dyn Write, name: &str, format: &str, virtual_size: u64, actual_size: u64) -> io::Result<()> {
    writeln!(out, "image: {name}")?;
    writeln!(out, "file format: {format}")?;
    writeln!(out, "virtual size: {} ({virtual_size} bytes)", human(virtual_size))?;
    writeln!(out, "disk size: {}", human(actual_size))
}

fn file_child(out: &mut dyn Write, role: &str, file: &FileInfo, own: bool) -> io::Result<()> {
    writeln!(out, "Child node '/{role}':")?;
    writeln!(out, "    filename: {}", one_line(&file.filename, own))?;
    writeln!(out, "    protocol type: {}", file.format)?;
    writeln!(out, "    file length: {} ({} bytes)", human(file.virtual_size), file.virtual_size)?;
    writeln!(out, "    disk size: {}", human(file.actual_size))
}

/// Members of an object, one a line, their names with spaces for dashes.
pub(crate) fn specific(out: &mut dyn Write, value: &Json, depth: usize, own: bool) -> io::Result<()> {
    let Json::Object(members) = value else { return Ok(()) };
    for (name, value) in members {
        write!(out, "{:1$}{2}:", "", depth * 4, name.replace('-', " "))?;
        after_colon(out, value, depth, own)?;
    }
    Ok(())
}

fn after_colon(out: &mut dyn Write, value: &Json, depth: usize, own: bool) -> io::Result<()> {
    match value {
        Json::Null => writeln!(out),
        Json::Bool(value) => writeln!(out, " {value}"),
        Json::Number(value) => writeln!(out, " {value}"),
        Json::String(value) => writeln!(out, " {}", one_line(value, own)),
        Json::Object(_) => {
            writeln!(out)?;
            specific(out, value, depth + 1, own)
        }
        Json::List(items) => {
            writeln!(out)?;
            for (index, item) in items.iter().enumerate() {
                write!(out, "{:1$}[{index}]:", "", (depth + 1) * 4)?;
                after_colon(out, item, depth + 1, own)?;
            }
            Ok(())
        }
    }
}

/// The table of snapshots.
pub(crate) fn snapshots(out: &mut dyn Write, snapshots: &[SnapshotInfo], own: bool) -> io::Result<()> {
    let row = |out: &mut dyn Write, cells: [&str; 6]| {
        let [id, tag, size, date, clock, icount] = cells;
        writeln!(out, "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}")
    };
    row(out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
    for snapshot in snapshots {
        let seconds = snapshot.vm_clock_sec;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            snapshot.vm_clock_nsec / 1_000_000
        );
        let icount = snapshot.icount.map_or_else(|| "--".to_owned(), |count| count.to_string());
        let date = super::super::clock::local_time(snapshot.date_sec.into());
        let (id, name) = (one_line(&snapshot.id, own), one_line(&snapshot.name, own));
        row(out, [&id, &name, &human(snapshot.vm_state_size), &date, &clock, &icount])?;
    }
    Ok(())
}
