//! Reports as text, CSV, SVG and HTML: functions from values to strings.

mod csv;
mod html;
mod svg;
mod text;

use alloc::format;
use alloc::string::String;

use super::{LabRun, Sample};

pub use csv::{backups_csv, samples_csv};
pub use html::html;
pub use svg::{Chart, metric_svg};
pub use text::text;

/// What is plotted along the trace.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name for programs, as in [`Sample`].
    pub key: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// What its values are.
    pub unit: Unit,
    read: fn(&Sample) -> u64,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Parts per million, shown as percent.
    Ppm,
    /// Things.
    Count,
}

macro_rules! metric {
    ($key:ident, $title:literal, $unit:ident) => {
        Metric { key: stringify!($key), title: $title, unit: Unit::$unit, read: |sample| sample.$key }
    };
}

impl Metric {
    /// All of them, the most telling first.
    pub const ALL: [Self; 11] = [
        metric!(file_ppm, "Length of the file, of the virtual disk", Ppm),
        metric!(host_bytes, "Space on the host", Bytes),
        metric!(live_bytes, "Live data", Bytes),
        metric!(retained_bytes, "Retained: mapped, without data", Bytes),
        metric!(free_bytes, "Free inside the file", Bytes),
        metric!(gaps, "Gaps of the free space", Count),
        metric!(largest_gap, "Largest gap", Bytes),
        metric!(discontinuities, "Discontinuities", Count),
        metric!(runs, "Runs contiguous in guest and file", Count),
        metric!(metadata_writes, "Writes of metadata", Count),
        metric!(barriers, "Barriers", Count),
    ];

    /// Its value in a sample.
    #[must_use]
    pub fn of(&self, sample: &Sample) -> u64 {
        (self.read)(sample)
    }
}

impl Unit {
    /// A value for people: `1.5 GiB`, `99.7 %`, `1234`.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        match self {
            Self::Bytes => bytes(value),
            Self::Ppm => {
                let tenths = value.saturating_add(500) / 1000;
                format!("{}.{} %", tenths / 10, tenths % 10)
            }
            Self::Count => format!("{value}"),
        }
    }
}

/// Bytes with one decimal place in the largest fitting unit.
fn bytes(value: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = value.checked_ilog2().unwrap_or(0) / 10;
    let unit = usize::try_from(power).ok().and_then(|at| UNITS.get(at)).copied().unwrap_or("EiB");
    if power == 0 {
        return format!("{value} {unit}");
    }
    let scale = 1u128.wrapping_shl(power.saturating_mul(10));
    let tenths = u128::from(value).saturating_mul(10).saturating_add(scale / 2).checked_div(scale).unwrap_or(0);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// The bytes that all incremental backups of a run carry together.
pub(super) fn backup_bytes(run: &LabRun) -> u64 {
    // The first one holds everything written since the beginning: it stands for the full backup.
    let later = run.backups.iter().skip(usize::from(run.backups.len() > 1));
    later.fold(0, |sum, backup| sum.saturating_add(backup.data_bytes))
}

/// Text that may stand in markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::lab::*;

    fn report() -> LabReport {
        let churn =
            Churn { size: 64 << 20, operations: 2000, trim: Trim::Every(300), mark_every: 500, ..Churn::default() };
        let disk = LabDisk::Empty { size: 64 << 20 };
        let configs = LabConfig::three_policies();
        let mut report =
            run_lab(&churn.trace().unwrap(), &disk, &configs, &LabOptions { samples: 10 }, &mut |_, _| {}).unwrap();
        report.trace.name = "a <b> & \"c\"".into();
        report.advice = Some(advise(&report));
        report
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!((bytes(1 << 40), bytes(u64::MAX)), ("1.0 TiB".into(), "16.0 EiB".into()));
        assert_eq!((Unit::Ppm.show(1_104_499), Unit::Count.show(7)), ("110.4 %".into(), "7".into()));
    }

    #[test]
    fn every_form_holds_every_run() {
        let report = report();
        let page = html(&report);
        assert!(page.starts_with("<!doctype html>") && page.contains("</html>"));
        assert!(page.contains("a &lt;b&gt; &amp; &quot;c&quot;") && !page.contains("<b>") && !page.contains("<script"));
        assert!(page.contains("prefers-color-scheme: dark"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        let text = text(&report);
        for run in &report.runs {
            assert!(page.contains(&run.config.name) && text.contains(&run.config.name));
        }
        let samples = samples_csv(&report);
        let rows: usize = report.runs.iter().map(|run| run.samples.len()).sum();
        assert_eq!(samples.lines().count(), rows + 1);
        let columns = samples.lines().next().unwrap().split(',').count();
        assert!(samples.lines().all(|line| line.split(',').count() == columns));
        assert_eq!(
            backups_csv(&report).lines().count(),
            report.runs.iter().map(|run| run.backups.len()).sum::<usize>() + 1
        );
        for metric in Metric::ALL {
            let svg = metric_svg(&report, &metric);
            assert_eq!(svg.matches("<polyline").count(), 3, "{}", metric.key);
        }
        assert!(!report.advice.unwrap().reasons.is_empty());
    }
}
