//! Line charts.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Metric, Unit, escape};
use crate::operations::lab::LabReport;

const WIDTH: u64 = 640;
const HEIGHT: u64 = 240;
/// Room for the title, the numbers on the left, the numbers below.
const TOP: u64 = 30;
const LEFT: u64 = 76;
const BOTTOM: u64 = 24;
const RIGHT: u64 = 12;

/// Colours that people with any kind of colour vision can tell apart, for light and for dark.
const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9f4a"),
    ("#009e73", "#3fd6a5"),
    ("#cc79a7", "#e8a6cb"),
    ("#8a6d00", "#f0e442"),
    ("#555555", "#bbbbbb"),
    ("#7b3fb5", "#c39af0"),
    ("#a02020", "#ff8080"),
];

/// Lines over a common axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart<'a> {
    /// The title.
    pub title: &'a str,
    /// What the values are.
    pub unit: Unit,
    /// Names and points: how far along the trace, and the value.
    pub series: Vec<(&'a str, Vec<(u64, u64)>)>,
}

/// The style of all charts, for a page or a file of its own.
pub(super) fn style() -> String {
    let mut style = String::from(
        "svg.lab{font:12px system-ui,sans-serif;fill:#222}.lab .grid{stroke:#ccc}.lab polyline{fill:none;stroke-width:2}\
         .lab .key{stroke-width:4}",
    );
    let mut dark = String::from("svg.lab{fill:#ddd}.lab .grid{stroke:#444}");
    for (n, (light_colour, dark_colour)) in COLOURS.iter().enumerate() {
        style.push_str(&format!(".lab .c{n}{{stroke:{light_colour}}}"));
        dark.push_str(&format!(".lab .c{n}{{stroke:{dark_colour}}}"));
    }
    format!("{style}@media (prefers-color-scheme: dark){{{dark}}}")
}

/// A part of `length` pixels: `value` of `most`, in tenths.
fn scaled(value: u64, most: u64, length: u64) -> u64 {
    let tenths = u128::from(value).saturating_mul(u128::from(length).saturating_mul(10));
    u64::try_from(tenths.checked_div(most.max(1).into()).unwrap_or(0)).unwrap_or(0)
}

fn pixels(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

impl Chart<'_> {
    /// The chart as an SVG element, without its style: [`metric_svg`] makes a file of its own.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let last = points().map(|&(x, _)| x).max().unwrap_or(0).max(1);
        let most = points().map(|&(_, y)| y).max().unwrap_or(0).max(1);
        let (inner_width, inner_height) =
            (WIDTH.saturating_sub(LEFT).saturating_sub(RIGHT), HEIGHT.saturating_sub(TOP).saturating_sub(BOTTOM));
        let height = HEIGHT.saturating_add(u64::try_from(self.series.len()).unwrap_or(0).saturating_mul(18));
        let mut out = format!(
            "<svg class=\"lab\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\
             <title>{0}</title><text x=\"8\" y=\"18\" font-weight=\"600\">{0}</text>",
            escape(self.title)
        );
        for quarter in 0..=4u64 {
            let y = TOP.saturating_add(inner_height.saturating_mul(4u64.saturating_sub(quarter)) / 4);
            let value = u64::try_from(u128::from(most).saturating_mul(quarter.into()) / 4).unwrap_or(most);
            out.push_str(&format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                WIDTH.saturating_sub(RIGHT),
                LEFT.saturating_sub(6),
                y.saturating_add(4),
                self.unit.show(value)
            ));
        }
        out.push_str(&format!(
            "<text x=\"{LEFT}\" y=\"{0}\">0</text><text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">{last} operations</text>",
            HEIGHT.saturating_sub(6),
            WIDTH.saturating_sub(RIGHT)
        ));
        for (n, (name, points)) in self.series.iter().enumerate() {
            let colour = n.checked_rem(COLOURS.len()).unwrap_or(0);
            out.push_str(&format!("<polyline class=\"c{colour}\" points=\""));
            for &(x, y) in points {
                let right = scaled(x, last, inner_width).saturating_add(LEFT.saturating_mul(10));
                let down = TOP.saturating_add(inner_height).saturating_mul(10);
                let up = down.saturating_sub(scaled(y, most, inner_height));
                out.push_str(&format!("{},{} ", pixels(right), pixels(up)));
            }
            let row = u64::try_from(n).unwrap_or(0).saturating_mul(18).saturating_add(HEIGHT).saturating_add(8);
            let end = points.last().map_or(0, |&(_, y)| y);
            out.push_str(&format!(
                "\"/><line class=\"key c{colour}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{row}\" y2=\"{row}\"/>\
                 <text x=\"{}\" y=\"{}\">{}: {} at the end</text>",
                LEFT.saturating_add(24),
                LEFT.saturating_add(32),
                row.saturating_add(4),
                escape(name),
                self.unit.show(end)
            ));
        }
        out.push_str("</svg>");
        out
    }
}

/// The chart of one metric.
pub(super) fn chart<'a>(report: &'a LabReport, metric: &Metric) -> Chart<'a> {
    let series = report.runs.iter().map(|run| {
        (run.config.name.as_str(), run.samples.iter().map(|sample| (sample.operation, metric.of(sample))).collect())
    });
    Chart { title: metric.title, unit: metric.unit, series: series.collect() }
}

/// The chart of what incremental backups carry.
pub(super) fn backup_chart(report: &LabReport) -> Chart<'_> {
    let series = report.runs.iter().map(|run| {
        let later = run.backups.iter().skip(usize::from(run.backups.len() > 1));
        (run.config.name.as_str(), later.map(|backup| (backup.operation, backup.data_bytes)).collect())
    });
    Chart { title: "Data in each incremental backup", unit: Unit::Bytes, series: series.collect() }
}

/// A metric of all runs along the trace, as an SVG file of its own.
#[must_use]
pub fn metric_svg(report: &LabReport, metric: &Metric) -> String {
    let element = chart(report, metric).svg();
    let style = format!("<style>{}</style><title>", style());
    element.replacen("<title>", &style, 1)
}
