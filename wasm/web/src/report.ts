/** The report: one HTML file without scripts. Every text of the image is escaped. */

import { bytes, count, hex, listed, percent, plural, words } from "./format.ts";
import { HOST_KINDS, kindOfClass, TITLES } from "./kinds.ts";
import { sums } from "./model.ts";
import type { Lazy, Session } from "./session.ts";

const STYLE = `:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #8884;vertical-align:top}th.n,td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{display:flex;height:1.6rem;border-radius:4px;overflow:hidden;margin:.5rem 0}.bar i{display:block;min-width:1px}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.5em;border-radius:2px}
code{font-family:ui-monospace,monospace}small{opacity:.75}`;

const COLORS: Readonly<Record<string, string>> = {
  header: "#4f46e5", tables: "#0369a1", refcounts: "#7e22ce", bitmaps: "#a16207", data: "#15803d", compressed: "#84801a",
  snapshots: "#be185d", retained: "#86b99a", leaked: "#dc2626", free: "#c4c4cc",
};

export function reportHtml(session: Session): string {
  const name = session.opened?.name ?? "image";
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(name)} – qcowkit report</title><style>${STYLE}</style></head><body><main>
<h1>${escape(name)}</h1>
<p><small>Made by the qcowkit inspector on ${new Date().toISOString().slice(0, 10)}${session.edits.length > 0 ? `, with ${plural(session.edits.length, "edit")} in memory` : ""}.</small></p>
${facts(session)}${editsOf(session)}${ledgerOf(session)}${checkOf(session)}${layoutOf(session)}${partitionsOf(session)}${headerOf(session)}
</main></body></html>
`;
}

function escape(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);
}

function ready<T>(report: Lazy<T>): T | undefined {
  return report.state === "ready" ? report.value : undefined;
}

/** A name with the colour that it has in the bar. */
class Key {
  constructor(readonly color: string, readonly title: string) {}
}

function table(heads: readonly string[], rows: readonly (readonly unknown[])[], numeric: readonly number[] = []): string {
  const text = (cell: unknown): string => (cell instanceof Key ? `<i class="key" style="background:${cell.color}"></i>${escape(cell.title)}` : escape(cell));
  const cells = (row: readonly unknown[], tag: string): string => row.map((cell, index) => `<${tag}${numeric.includes(index) ? ' class="n"' : ""}>${text(cell)}</${tag}>`).join("");
  return `<table><thead><tr>${cells(heads, "th")}</tr></thead><tbody>${rows.map((row) => `<tr>${cells(row, "td")}</tr>`).join("")}</tbody></table>`;
}

function facts({ facts: found }: Session): string {
  if (found === undefined) {
    return "";
  }
  const info = found.info;
  const features = "value" in found.header ? found.header.value.features.map((feature) => feature.name).join(", ") : "";
  return table(["What", "Value"], [
    ["Disk", `${bytes(found.virtualSize)} (${count(found.virtualSize)} bytes)`],
    ["File", `${bytes(found.fileLength)} (${count(found.fileLength)} bytes)`],
    ["Cluster", bytes(found.clusterSize)],
    ["Version", info?.["format-specific"].data.compat ?? "–"],
    ["Features", features || "none"],
    ["Backing file", info?.["backing-filename"] ?? "none"],
    ["Snapshots", listed(info?.snapshots?.map((one) => one.name) ?? ["none"], 200)],
    ...(found.problem === undefined ? [] : [["Cannot be opened", found.problem.message]]),
  ]);
}

/** What was done to the file since it was opened. */
function editsOf({ edits }: Session): string {
  return edits.length === 0 ? "" : `<h2>Edits</h2><ol>${edits.map(({ title }) => `<li>${escape(title)}</li>`).join("")}</ol>`;
}

function ledgerOf(session: Session): string {
  const analysis = ready(session.reports.analysis);
  if (analysis === undefined) {
    return "";
  }
  const { ledger } = analysis;
  const lines = ledger.classes.filter((line) => line.bytes > 0);
  const color = (name: (typeof lines)[number]["class"]): string => COLORS[HOST_KINDS[kindOfClass(name)]?.key ?? "free"] ?? "#888";
  const bar = lines.map((line) => `<i title="${escape(TITLES[line.class])}" style="background:${color(line.class)};width:${(100 * line.bytes) / Math.max(1, ledger.file_length)}%"></i>`).join("");
  const rows = lines.map((line) => [new Key(color(line.class), TITLES[line.class]), bytes(line.bytes), count(line.bytes), percent(line.bytes, ledger.file_length)]);
  const host = ready(session.reports.host);
  const found = host === undefined ? undefined : sums(host);
  const runs = found === undefined || host === undefined ? "" : `<p><small>${host.first > 0 || host.next !== undefined ? `From ${hex(host.first)} to ${hex(host.end)}: ` : ""}${plural(host.offset.length, "run")} of clusters.</small></p>`;
  return `<h2>Space</h2><div class="bar">${bar}</div>${table(["Class", "Size", "Bytes", "Share"], rows, [1, 2, 3])}${runs}`;
}

function checkOf(session: Session): string {
  const check = ready(session.reports.check);
  if (check === undefined) {
    return "";
  }
  const rows = check.findings.map((finding) => [words(finding.severity), finding.message, finding.host_offset === null ? "" : hex(finding.host_offset), finding.guest_offset === null ? "" : hex(finding.guest_offset)]);
  return `<h2>Health</h2><p>${plural(check.corruptions, "corruption")}, ${plural(check.leaks, "leaked cluster")}, ${count(check.check_errors)} not checked, ${plural(check.warnings, "warning")}.
${count(check.allocated_clusters)} of ${count(check.total_clusters)} clusters allocated, ${count(check.fragmented_clusters)} fragmented, ${count(check.compressed_clusters)} compressed.</p>
${rows.length === 0 ? "" : table(["Severity", "What", "File", "Disk"], rows)}${check.findings_omitted > 0 ? `<p>${count(check.findings_omitted)} more.</p>` : ""}`;
}

function layoutOf(session: Session): string {
  const analysis = ready(session.reports.analysis);
  if (analysis === undefined) {
    return "";
  }
  const { guest_order: order, free } = analysis.layout;
  return `<h2>Layout</h2>${table(["Number", "Value"], [
    ["Discontinuities", `${count(order.discontinuities)} of ${count(order.clusters)} mapped clusters`],
    ["Runs", `${count(order.runs.count)}, mean ${bytes(order.runs.mean)}, median ${bytes(order.runs.p50)}`],
    ["Free gaps", `${count(free.gaps.count)}, ${bytes(free.gaps.bytes)}, largest ${bytes(free.gaps.max)}`],
    ["A compact copy", bytes(analysis.reclaim.compact.file_length)],
    ["Fully written", bytes(analysis.worst_case.fully_written)],
  ])}`;
}

function partitionsOf(session: Session): string {
  const report = ready(session.reports.partitions);
  return report === undefined || report === null ? ""
    : `<h2>Partitions (${escape(report.scheme.toUpperCase())})</h2>${table(["Number", "Kind", "Name", "Offset", "Length"], report.partitions.map((part) => [part.number, part.type_name ?? part.type, part.name ?? "", hex(part.start), bytes(part.size)]), [3, 4])}`;
}

function headerOf({ facts: found }: Session): string {
  if (found === undefined || "error" in found.header) {
    return found === undefined ? "" : `<h2>Header</h2><p>${escape((found.header as { error: string }).error)}</p>`;
  }
  const { fields, extensions } = found.header.value;
  return `<h2>Header</h2>${table(["Field", "Offset", "Value", "Meaning"], fields.map((field) => [field.name, field.offset, hex(field.raw), field.meaning]), [1, 2])}
${extensions.length === 0 ? "" : `<h2>Extensions</h2>${table(["Name", "Offset", "Bytes", "Meaning"], extensions.map((one) => [one.name ?? hex(one.kind), one.offset, one.length, one.meaning]), [1, 2])}`}`;
}
