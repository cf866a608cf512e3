//! Reports for a terminal.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Unit, backup_bytes, bytes};
use crate::operations::lab::{LabReport, LabRun};

/// A number of a run for people.
type Show = fn(&LabRun) -> String;

/// The rows of the table at the end.
pub(super) const ROWS: [(&str, Show); 13] = [
    ("file", |run| bytes(run.end.file_length)),
    ("of the disk", |run| Unit::Ppm.show(run.end.file_ppm)),
    ("longest file", |run| bytes(run.peak_file_length)),
    ("on the host", |run| bytes(run.end.host_bytes)),
    ("live data", |run| bytes(run.end.live_bytes)),
    ("retained", |run| bytes(run.end.retained_bytes)),
    ("free inside", |run| bytes(run.end.free_bytes)),
    ("gaps", |run| run.end.gaps.to_string()),
    ("discontinuities", |run| run.end.discontinuities.to_string()),
    ("runs", |run| run.end.runs.to_string()),
    ("metadata writes", |run| run.end.metadata_writes.to_string()),
    ("barriers", |run| run.end.barriers.to_string()),
    ("backups", |run| bytes(backup_bytes(run))),
];

/// The report as text: a chart of the file's length, a table of the end, the advice.
#[must_use]
pub fn text(report: &LabReport) -> String {
    let trace = &report.trace;
    let mut out = format!(
        "{} operations on a disk of {}: {} writes ({}), {} discards ({}), {} write-zeroes, {} flushes\n\n",
        trace.operations,
        bytes(report.virtual_size),
        trace.writes,
        bytes(trace.written_bytes),
        trace.discards,
        bytes(trace.discarded_bytes),
        trace.write_zeroes,
        trace.flushes
    );
    let width = report.runs.iter().map(|run| run.config.name.chars().count()).max().unwrap_or(0);
    let most = report.runs.iter().map(|run| run.peak_file_length).max().unwrap_or(0);
    out.push_str(&format!("Length of the file along the trace; full height is {}\n", bytes(most)));
    for run in &report.runs {
        let lengths: Vec<u64> = run.samples.iter().map(|sample| sample.file_length).collect();
        let (name, line) = (&run.config.name, sparkline(&lengths, most));
        out.push_str(&format!("  {name:width$}  {line}  {}\n", Unit::Ppm.show(run.end.file_ppm)));
    }
    out.push('\n');
    for chunk in report.runs.chunks(5) {
        table(chunk, &mut out);
        out.push('\n');
    }
    if let Some(advice) = &report.advice {
        out.push_str(&format!("The numbers speak for: {}\n", advice.best));
        for reason in &advice.reasons {
            out.push_str(&format!("  - {reason}\n"));
        }
    }
    out
}

/// Runs side by side, as many as fit a terminal.
fn table(runs: &[LabRun], out: &mut String) {
    let widths: Vec<usize> = runs.iter().map(|run| run.config.name.chars().count().max(12)).collect();
    out.push_str(&format!("{:16}", ""));
    for (run, width) in runs.iter().zip(&widths) {
        out.push_str(&format!("  {:>1$}", run.config.name, *width));
    }
    out.push('\n');
    for (title, show) in ROWS {
        out.push_str(&format!("{title:16}"));
        for (run, width) in runs.iter().zip(&widths) {
            out.push_str(&format!("  {:>1$}", show(run), *width));
        }
        out.push('\n');
    }
}

/// One block for each value, as high as the value is of `most`.
fn sparkline(values: &[u64], most: u64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |&value: &u64| {
        let eighths = u128::from(value).saturating_mul(8).div_ceil(u128::from(most.max(1))).clamp(1, 8);
        let at = usize::try_from(eighths.saturating_sub(1)).unwrap_or(0);
        BLOCKS.get(at).copied().unwrap_or(' ')
    };
    values.iter().map(block).collect()
}
