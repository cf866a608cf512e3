/** The partitions of the disk. */

import { html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import type { PartitionReport } from "qcowkit/client";
import { bytes, hex } from "../format.ts";
import { View, whenReady } from "../view.ts";

@customElement("pane-partitions")
export class PartitionsPane extends View {
  protected override willUpdate(): void {
    void this.session.need("partitions");
  }

  protected override render(): unknown {
    return html`<div class="scroll-pane">${whenReady(this.session.reports.partitions, "partition table", (report) => this.#report(report))}</div>`;
  }

  #report(report: PartitionReport): unknown {
    return html`<h2>${report.scheme === null ? "No partition table" : `${report.scheme.toUpperCase()} partition table`}</h2>
      ${report.scheme === null ? html`<p>The first sectors of the disk hold neither an MBR nor a GPT: a file system may begin at byte 0, or the disk is empty.</p>` : nothing}
      ${report.problems.map((problem) => html`<p class="message error">${problem}</p>`)}
      ${report.partitions.length === 0 ? nothing : this.#table(report)}`;
  }

  #table(report: PartitionReport): unknown {
    const size = this.session.facts?.virtualSize || 1;
    return html`
      <svg class="strip" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label="Partitions by their place on the disk">
        <rect class="strip-ground" width="1000" height="26"></rect>
        ${report.partitions.map((part, index) => svg`<rect class="strip-${index % 6}" x=${(1000 * part.offset) / size} y="3" height="20" width=${Math.max(2, (1000 * part.length) / size)}><title>${part.number}: ${part.kind}</title></rect>`)}
      </svg>
      <table class="data"><caption class="sr">Partitions</caption>
        <thead><tr><th scope="col">Number</th><th scope="col">Kind</th><th scope="col">Name</th><th scope="col" class="numeric">Offset</th><th scope="col" class="numeric">Length</th><th scope="col">Show</th></tr></thead>
        <tbody>${report.partitions.map((part) => html`<tr>
          <td>${part.number}</td><td>${part.kind}</td><td>${part.name ?? ""}</td>
          <td class="numeric"><code>${hex(part.offset)}</code></td><td class="numeric">${bytes(part.length)}</td>
          <td><button type="button" class="link" @click=${() => {
            this.session.select({ side: "guest", start: part.offset, end: part.offset + part.length });
            this.session.goTo("guest", part.offset, "map");
          }}>on the map</button></td></tr>`)}</tbody></table>`;
  }
}
