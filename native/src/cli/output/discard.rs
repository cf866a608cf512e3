//! `discard` for a person.

use std::io::{self, Write};

use super::super::size::human;
use super::table::{Align, Table};
use qcowkit_core::operations::trim::DiscardReport;

/// What was done, or would be.
pub(crate) fn print(report: &DiscardReport, out: &mut dyn Write) -> io::Result<()> {
    let trim = &report.trim;
    let would = if report.dry_run { "would discard" } else { "discarded" };
    let ranges = if trim.ranges == 1 { "1 range".into() } else { format!("{} ranges", trim.ranges) };
    writeln!(out, "{}: {would} {ranges}, {} in all", report.filename, human(trim.requested_bytes))?;
    let (before, after) = (trim.before, trim.after);
    let states = [
        ("data", before.data, after.data),
        ("compressed", before.compressed, after.compressed),
        ("zero, space kept", before.zero_retained, after.zero_retained),
        ("zero, nothing kept", before.zero, after.zero),
        ("not allocated", before.unallocated, after.unallocated),
    ];
    let mut table = Table::new(&[("", Align::Left), ("before", Align::Right), ("after", Align::Right)]);
    let size = |bytes: u64| if bytes == 0 { "-".into() } else { human(bytes) };
    for (name, before, after) in states.into_iter().filter(|(_, before, after)| before + after > 0) {
        table.row(vec![name.into(), size(before), size(after)]);
    }
    table.print(out, 2)?;
    let verb = if report.dry_run { "would be punched" } else { "punched" };
    if trim.host_discards > 0 {
        writeln!(out, "  holes {verb} in the file: {}", human(trim.host_discards))?;
    } else {
        writeln!(out, "  no holes {verb} in the file")?;
    }
    if trim.host_zeroes > 0 {
        writeln!(out, "  zeros written in the file: {}", human(trim.host_zeroes))?;
    }
    match (report.host_bytes_before, report.host_bytes_after) {
        (Some(before), Some(after)) => {
            writeln!(out, "  the host held {} for the file, and holds {} now", human(before), human(after))
        }
        (Some(before), None) => {
            writeln!(out, "  the host holds {} for the file; nothing was changed (dry run)", human(before))
        }
        (None, _) => Ok(()),
    }
}
