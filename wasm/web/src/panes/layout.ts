/** The numbers of the layout, each with its formula. */

import { html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import type { Analysis, Distribution, Gain } from "qcowkit/client";
import { bytes, count, hex, json } from "../format.ts";
import { download, renamed } from "../ui/download.ts";
import { View, whenReady } from "../view.ts";

type Row = readonly [name: string, value: unknown, formula: string];

@customElement("pane-layout")
export class LayoutPane extends View {
  protected override willUpdate(): void {
    void this.session.need("analysis");
  }

  protected override render(): unknown {
    return html`<div class="scroll-pane">${whenReady(this.session.reports.analysis, "layout", (analysis) => this.#report(analysis))}</div>`;
  }

  #report(analysis: Analysis): unknown {
    const { guest_order: order, compressed, free, file } = analysis.layout;
    const ppm = (parts: number): string => `${(parts / 10_000).toFixed(parts < 10_000 ? 2 : 1)} %`;
    return html`
      ${this.#table("The disk in the file", [
        ["Mapped clusters", count(order.clusters), "guest clusters with a host cluster, compressed ones apart: h(1) … h(n)"],
        ["Discontinuities", count(order.discontinuities), "number of i with h(i+1) ≠ h(i) + 1"],
        ["Backward", count(order.backward), "those with h(i+1) ≤ h(i)"],
        ["Fragmentation", ppm(order.discontinuities_ppm), "discontinuities / (n − 1)"],
        ["Compressed clusters", count(compressed.clusters), "entries that name packed data"],
        ["Packed to", compressed.clusters === 0 ? "–" : ppm(compressed.ratio_ppm), "bytes of the streams / bytes of their clusters"],
      ])}
      ${this.#distributions([
        ["Runs", order.runs, "contiguous on the disk and in the file at once"],
        ["Free gaps", free.gaps, "maximal runs of free clusters before the last one in use"],
        ["Data of the file", file.data, "as the storage tells it"],
        ["Holes of the file", file.holes, "as the storage tells it"],
      ])}
      ${this.#gaps(analysis)}
      ${this.#gains(analysis)}
      ${this.#table("How large the file can get", [
        ["Fully written", bytes(analysis.worst_case.fully_written), "max(length now, R′(own + snapshots) × cluster size)"],
        ["… without snapshots", bytes(analysis.worst_case.fully_written_without_snapshots), "max(length now, R′(own) × cluster size)"],
        ["Written once, nothing reused", bytes(analysis.worst_case.without_reuse), "R′(clusters now + clusters to be added) × cluster size"],
        ...(analysis.worst_case.data_file === null ? [] : [["External data file", bytes(analysis.worst_case.data_file), "virtual size"] as const]),
      ])}
      <p class="muted">R′(n): n clusters with the refcount structures for them. Every definition is in docs/analyze.md of the project.</p>
      <div class="buttons"><button type="button" class="small" @click=${() => download(renamed(this.session.opened?.name ?? "image", "-analysis.json"), json(analysis), "application/json")}>JSON</button></div>`;
  }

  #table(title: string, rows: readonly Row[]): unknown {
    return html`<section><h2>${title}</h2><div class="wide" tabindex="0" role="group" aria-label=${title}><table class="data formulas"><caption class="sr">${title}</caption>
      <thead class="sr"><tr><th scope="col">Number</th><th scope="col">Value</th><th scope="col">Formula</th></tr></thead>
      <tbody>${rows.map(([name, value, formula]) => html`<tr><th scope="row">${name}</th><td class="numeric">${value}</td><td class="formula">${formula}</td></tr>`)}</tbody></table></div></section>`;
  }

  #distributions(rows: readonly (readonly [string, Distribution, string])[]): unknown {
    const heads = ["Count", "Mean", "p10", "Median", "p90", "Largest", "Half of bytes in"];
    return html`<section><h2>Lengths</h2><div class="wide" tabindex="0" role="group" aria-label="Lengths"><table class="data"><caption class="sr">Distributions of lengths</caption>
      <thead><tr><th scope="col">Of</th>${heads.map((head) => html`<th scope="col" class="numeric">${head}</th>`)}<th scope="col">What</th></tr></thead>
      <tbody>${rows.map(([name, found, what]) => html`<tr><th scope="row">${name}</th>
        <td class="numeric">${count(found.count)}</td>
        ${[found.mean, found.p10, found.p50, found.p90, found.max, found.half_of_bytes_in].map((value) => html`<td class="numeric">${found.count === 0 ? "–" : bytes(value)}</td>`)}
        <td class="formula">${what}</td></tr>`)}</tbody></table></div></section>`;
  }

  #gaps(analysis: Analysis): unknown {
    const { histogram, largest, too_small_for } = analysis.layout.free;
    if (histogram.length === 0) {
      return html`<section><h2>Free space</h2><p class="muted">No gaps inside the file.</p></section>`;
    }
    const most = Math.max(...histogram.map((bucket) => bucket.bytes));
    const bar = (part: number): unknown => svg`<rect x="40" width="60" y=${100 - (100 * part) / most} height=${Math.max(2, (100 * part) / most)}></rect>`;
    return html`<section><h2>Free space by size of the gap</h2>
      <div class="wide" tabindex="0" role="group" aria-label="Gaps by size"><table class="data gaps"><caption class="sr">Gaps by size</caption>
        <thead><tr><th scope="col">Gaps of</th>${histogram.map((bucket) => html`<th scope="col" class="numeric">${bytes(bucket.from)}+</th>`)}</tr></thead>
        <tbody><tr class="bars" aria-hidden="true"><td></td>${histogram.map((bucket) => html`<td><svg class="histogram" viewBox="0 0 100 100" preserveAspectRatio="none">${bar(bucket.bytes)}</svg></td>`)}</tr>
        <tr><th scope="row">Bytes</th>${histogram.map((bucket) => html`<td class="numeric">${bytes(bucket.bytes)}</td>`)}</tr>
        <tr><th scope="row">Count</th>${histogram.map((bucket) => html`<td class="numeric">${count(bucket.count)}</td>`)}</tr></tbody></table>
      <table class="data"><caption class="sr">Free bytes that a request cannot use</caption>
        <thead><tr><th scope="col">Too small for</th>${too_small_for.map((one) => html`<th scope="col" class="numeric">${bytes(one.request_size)}</th>`)}</tr></thead>
        <tbody><tr><th scope="row">Free bytes</th>${too_small_for.map((one) => html`<td class="numeric">${bytes(one.bytes)}</td>`)}</tr></tbody></table></div>
      ${largest.length === 0 ? nothing : html`<p>Largest: ${largest.slice(0, 6).map((gap, index) => html`${index > 0 ? ", " : nothing}<button type="button" class="link"
        @click=${() => this.session.goTo("host", gap.host_offset, "map")}>${bytes(gap.length)} at ${hex(gap.host_offset)}</button>`)}</p>`}</section>`;
  }

  #gains(analysis: Analysis): unknown {
    const { reclaim } = analysis;
    // What a browser's file is on its host is not known: the bytes are those of the file.
    const held = (gain: Gain): string => bytes(gain.host_bytes + gain.host_bytes_unknown);
    const shorter = (gain: Gain): string => (gain.file_bytes === 0 ? "" : `, file ${bytes(gain.file_bytes)} shorter`);
    const row = (name: string, gain: Gain, formula: string): Row => [name, `${held(gain)}${shorter(gain)}`, formula];
    return this.#table("What can be given back", [
      row("Punch free clusters", reclaim.punch_free, "bytes of free"),
      row("Discard what is kept", reclaim.discard_retained, "bytes of zero but kept"),
      row("Cut off the end", reclaim.truncate_end, "bytes behind the last used cluster"),
      row("Repair leaks", reclaim.repair_leaks, "bytes of leaked"),
      row("Delete snapshots", reclaim.drop_snapshots, "bytes only in snapshots + snapshot metadata"),
      row("Rewrite compactly", reclaim.compact, `everything that a rewritten image of ${bytes(reclaim.compact.file_length)} would not have`),
      row("… without snapshots", reclaim.compact_without_snapshots, `the same, ${bytes(reclaim.compact_without_snapshots.file_length)}`),
    ]);
  }
}
