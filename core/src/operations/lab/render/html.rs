//! One page with everything in it: no scripts, nothing loaded.

use alloc::format;
use alloc::string::String;

use super::svg::{backup_chart, chart, style};
use super::text::ROWS;
use super::{Metric, bytes, escape};
use crate::operations::lab::LabReport;

const PAGE_STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}table{border-collapse:collapse}th,td{padding:.3em .8em;border-bottom:1px solid #ccc;\
text-align:right}td{white-space:nowrap}th:first-child,td:first-child{text-align:left}.plots{display:grid;gap:1.5em;\
grid-template-columns:repeat(auto-fit,minmax(420px,1fr))}.scroll{overflow-x:auto}\
@media (prefers-color-scheme: dark){body{color:#ddd;background:#161616}th,td{border-color:#444}}";

/// The report as one HTML page.
#[must_use]
pub fn html(report: &LabReport) -> String {
    let trace = &report.trace;
    let title = if trace.name.is_empty() { "qcowkit replay".into() } else { escape(&trace.name) };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
         <style>{PAGE_STYLE}{}</style></head>\n<body><h1>{title}</h1>\
         <p>{} operations on a disk of {}: {} writes of {} together, {} discards of {}, {} write-zeroes, {} flushes.</p>\n",
        style(),
        trace.operations,
        bytes(report.virtual_size),
        trace.writes,
        bytes(trace.written_bytes),
        trace.discards,
        bytes(trace.discarded_bytes),
        trace.write_zeroes,
        trace.flushes
    );
    if let Some(advice) = &report.advice {
        out.push_str(&format!("<h2>The numbers speak for: {}</h2><ul>", escape(&advice.best)));
        for reason in &advice.reasons {
            out.push_str(&format!("<li>{}</li>", escape(reason)));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("<h2>At the end</h2><div class=\"scroll\"><table><tr><th></th>");
    for run in &report.runs {
        out.push_str(&format!("<th>{}</th>", escape(&run.config.name)));
    }
    out.push_str("</tr>\n");
    for (title, show) in ROWS {
        out.push_str(&format!("<tr><td>{title}</td>"));
        for run in &report.runs {
            out.push_str(&format!("<td>{}</td>", show(run)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n<h2>Along the trace</h2><div class=\"plots\">\n");
    for metric in Metric::ALL {
        out.push_str(&format!("<div>{}</div>\n", chart(report, &metric).svg()));
    }
    if trace.marks > 0 {
        out.push_str(&format!("<div>{}</div>\n", backup_chart(report).svg()));
    }
    out.push_str("</div>\n<h2>Gaps of the free space at the end</h2><div class=\"scroll\"><table><tr><th>from</th>");
    for run in &report.runs {
        out.push_str(&format!("<th>{}</th>", escape(&run.config.name)));
    }
    out.push_str("</tr>\n");
    let mut sizes: alloc::vec::Vec<u64> =
        report.runs.iter().flat_map(|run| run.gaps.iter().map(|bucket| bucket.from)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        out.push_str(&format!("<tr><td>{}</td>", bytes(size)));
        for run in &report.runs {
            let bucket = run.gaps.iter().find(|bucket| bucket.from == size);
            let cell = bucket.map(|bucket| format!("{} ({})", bucket.count, bytes(bucket.bytes)));
            out.push_str(&format!("<td>{}</td>", cell.unwrap_or_default()));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div></body></html>\n");
    out
}
