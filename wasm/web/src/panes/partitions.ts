/** The partitions of the disk. */

import { html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import type { PartitionTable } from "qcowkit/client";
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

  #report(report: PartitionTable | null): unknown {
    if (report === null) {
      return html`<h2>No partition table</h2><p>The first sectors of the disk hold neither an MBR nor a GPT: a file system may begin at byte 0, or the disk is empty.</p>`;
    }
    return html`<h2>${report.scheme.toUpperCase()} partition table</h2>
      <p class="muted">Blocks of ${bytes(report.block_size)}${report.disk_id === null ? nothing : html`, disk <code>${report.disk_id}</code>`}</p>
      ${report.faults.map((fault) => html`<p class="message error">${fault}</p>`)}
      ${report.partitions.length === 0 ? html`<p class="muted">It is empty.</p>` : this.#table(report)}`;
  }

  #table(report: PartitionTable): unknown {
    const size = this.session.facts?.virtualSize || 1;
    return html`
      <svg class="strip" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label="Partitions by their place on the disk">
        <rect class="strip-ground" width="1000" height="26"></rect>
        ${report.partitions.map((part, index) => svg`<rect class="strip-${index % 6}" x=${(1000 * part.start) / size} y="3" height="20" width=${Math.max(2, (1000 * part.size) / size)}><title>${part.number}: ${part.type_name ?? part.type}</title></rect>`)}
      </svg>
      <div class="wide" tabindex="0" role="group" aria-label="Partitions"><table class="data"><caption class="sr">Partitions</caption>
        <thead><tr><th scope="col">Number</th><th scope="col">Kind</th><th scope="col">Name</th><th scope="col" class="numeric">Offset</th><th scope="col" class="numeric">Length</th><th scope="col">Show</th></tr></thead>
        <tbody>${report.partitions.map((part) => html`<tr>
          <td>${part.number}${part.bootable ? html` <span class="muted">boot</span>` : nothing}</td><td title=${part.type}>${part.type_name ?? part.type}${part.beyond_end ? html` <span class="error-text">beyond the end</span>` : nothing}</td><td>${part.name ?? ""}</td>
          <td class="numeric"><code>${hex(part.start)}</code></td><td class="numeric">${bytes(part.size)}</td>
          <td><button type="button" class="link" @click=${() => {
            this.session.select({ side: "guest", start: part.start, end: part.start + part.size });
            this.session.goTo("guest", part.start, "map");
          }}>on the map</button></td></tr>`)}</tbody></table></div>`;
  }
}
