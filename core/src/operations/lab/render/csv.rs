//! Reports for spreadsheets.

use alloc::format;
use alloc::string::String;

use crate::operations::lab::{LabReport, Sample};

/// A column: its name, and the number in it.
type Column = (&'static str, fn(&Sample) -> u64);

/// Columns of [`samples_csv`] after the name of the configuration.
const COLUMNS: [Column; 17] = [
    ("operation", |s| s.operation),
    ("file_length", |s| s.file_length),
    ("file_ppm", |s| s.file_ppm),
    ("host_bytes", |s| s.host_bytes),
    ("live_bytes", |s| s.live_bytes),
    ("retained_bytes", |s| s.retained_bytes),
    ("free_bytes", |s| s.free_bytes),
    ("gaps", |s| s.gaps),
    ("largest_gap", |s| s.largest_gap),
    ("allocated_clusters", |s| s.allocated_clusters),
    ("discontinuities", |s| s.discontinuities),
    ("runs", |s| s.runs),
    ("metadata_writes", |s| s.metadata_writes),
    ("metadata_bytes", |s| s.metadata_bytes),
    ("barriers", |s| s.barriers),
    ("host_discards", |s| s.host_discards),
    ("host_discarded_bytes", |s| s.host_discarded_bytes),
];

/// A name as one field: commas and line ends would make two of it.
fn field(name: &str) -> String {
    name.replace([',', '\n', '\r', '"'], ";")
}

/// One line for each sample: configuration, then every number of [`Sample`].
#[must_use]
pub fn samples_csv(report: &LabReport) -> String {
    let mut out = String::from("config");
    for (name, _) in COLUMNS {
        out.push(',');
        out.push_str(name);
    }
    out.push('\n');
    for run in &report.runs {
        for sample in &run.samples {
            out.push_str(&field(&run.config.name));
            for (_, read) in COLUMNS {
                out.push_str(&format!(",{}", read(sample)));
            }
            out.push('\n');
        }
    }
    out
}

/// One line for each backup.
#[must_use]
pub fn backups_csv(report: &LabReport) -> String {
    let mut out = String::from("config,mark,operation,data_bytes,zero_bytes,discarded_bytes\n");
    for run in &report.runs {
        for backup in &run.backups {
            out.push_str(&format!(
                "{},{},{},{},{},{}\n",
                field(&run.config.name),
                field(&backup.name),
                backup.operation,
                backup.data_bytes,
                backup.zero_bytes,
                backup.discarded_bytes
            ));
        }
    }
    out
}
