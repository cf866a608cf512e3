/** The map with its legend, and what is known of the place under the cursor. */

import { html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { GuestPath, HostReport, LayerPath, Shown } from "qcowkit/client";
import { bytes, count, hex, percent, plural, reason, words } from "../format.ts";
import "../map/qcow-map.ts";
import type { MapPlace, MapSelect } from "../map/qcow-map.ts";
import { runAt, sums } from "../model.ts";
import type { Runs, Side } from "../model.ts";
import { partsLine } from "../ui/parts.ts";
import { View, whenReady } from "../view.ts";
import "../ui/swatch.ts";

/** What a layer has to say of a byte. */
const HOLDS: Readonly<Record<LayerPath["resolution"]["kind"], string>> = {
  data: "holds data", data_file: "holds data in the data file", compressed: "holds packed data", zero: "holds zeros", unallocated: "holds nothing",
  beyond_end: "ends before this byte", broken: "cannot be read here",
};

@customElement("pane-map")
export class MapPane extends View {
  @state() private side: Side = "host";
  @state() private way: { offset: number; layers: Shown<LayerPath>[] } | undefined;
  @state() private owner: { offset: number; report: Shown<HostReport> } | { offset: number; why: string } | undefined;
  readonly #placed = (): void => {
    this.side = this.session.place.side;
    void this.#look();
  };

  override connectedCallback(): void {
    super.connectedCallback();
    this.side = this.session.place.side;
    this.session.addEventListener("place", this.#placed);
    void this.session.need(this.side);
    void this.#look();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("place", this.#placed);
  }

  protected override willUpdate(): void {
    void this.session.need(this.side);
  }

  /** Follows the tables for a place of the disk. */
  async #look(): Promise<void> {
    const { place, image } = this.session;
    if (place.side !== "guest" || image === undefined) {
      this.way = undefined;
      return;
    }
    const layers = await image.inspectGuest(place.offset).catch(() => undefined);
    if (layers !== undefined && this.session.place === place) {
      this.way = { offset: place.offset, layers };
    }
  }

  #turn(side: Side): void {
    this.side = side;
    const { place } = this.session;
    if (place.side !== side) {
      const runs = place.side === "host" ? this.session.reports.host : this.session.reports.guest;
      const run = runs.state === "ready" ? runAt(runs.value, place.offset) : undefined;
      const across = runs.state === "ready" && run !== undefined ? runs.value.across(run) : undefined;
      const into = runs.state === "ready" && run !== undefined ? place.offset - (runs.value.offset[run] ?? 0) : 0;
      this.session.goTo(side, across === undefined ? 0 : across + into);
    }
  }

  protected override render(): unknown {
    const report = this.side === "host" ? this.session.reports.host : this.session.reports.guest;
    return html`<div class="map-pane">
      <section class="map-main" aria-label="Map">
        <div class="segmented" role="group" aria-label="Side">
          <button type="button" aria-pressed=${this.side === "host"} @click=${() => this.#turn("host")}>File <span class="muted">host</span></button>
          <button type="button" aria-pressed=${this.side === "guest"} @click=${() => this.#turn("guest")}>Disk <span class="muted">guest</span></button>
        </div>
        ${whenReady(report, this.side === "host" ? "map of the file" : "map of the disk", (runs) => this.#map(runs))}
      </section>
      <aside class="details" aria-label="Details">${report.state === "ready" ? this.#details(report.value) : nothing}</aside>
    </div>`;
  }

  #map(runs: Runs): unknown {
    const { place, selection } = this.session;
    return html`
      <qcow-map .runs=${runs} .place=${place.side === runs.side ? Math.max(place.offset, runs.first) : runs.first}
        .selection=${selection?.side === runs.side ? selection : undefined}
        label=${runs.side === "host" ? "Map of the file" : "Map of the disk"}
        @map-place=${(event: MapPlace) => this.session.goTo(runs.side, event.detail.offset)}
        @map-say=${(event: CustomEvent<string>) => this.session.say(event.detail)}
        @map-select=${(event: MapSelect) => this.session.select(event.detail === null ? undefined : { side: runs.side, ...event.detail })}
        @map-open=${(event: MapPlace) => this.#open(runs, event.detail.offset)}></qcow-map>
      ${partsLine(runs)}
      ${this.#legend(runs)}`;
  }

  #legend(runs: Runs): unknown {
    const found = sums(runs);
    return html`<table class="legend"><caption class="sr">Kinds of clusters</caption>
      <thead class="sr"><tr><th>Kind</th><th>Bytes</th><th>Share</th><th>Runs</th></tr></thead>
      <tbody>${runs.kinds.map((kind, index) => {
        const all = found.bytes[index] ?? 0;
        return html`<tr class=${all === 0 ? "none" : ""} data-kind=${kind.key} data-bytes=${all} title=${kind.help}>
          <th scope="row"><qcow-swatch .kind=${kind}></qcow-swatch> ${kind.title}</th>
          <td class="numeric">${bytes(all)}</td><td class="numeric">${percent(all, runs.total)}</td>
          <td class="numeric muted">${plural(found.runs[index] ?? 0, "run")}</td></tr>`;
      })}</tbody></table>
      ${runs.side === "host" ? html`<p class="muted">Whole clusters, by what they hold. The bar at the top tells how much of each is used.</p>` : nothing}`;
  }

  #open(runs: Runs, offset: number): void {
    if (runs.side === "host") {
      this.session.goTo("host", offset, "structure");
      return;
    }
    const run = runAt(runs, offset);
    const across = runs.across(run);
    if (across !== undefined) {
      this.session.goTo("host", across + offset - (runs.offset[run] ?? 0), "structure");
    }
  }

  #details(runs: Runs): unknown {
    const { place, selection } = this.session;
    const run = runAt(runs, place.offset);
    const about = runs.describe(run);
    const [start, length] = [runs.offset[run] ?? 0, runs.length[run] ?? 0];
    const across = runs.across(run);
    const row = (name: string, value: unknown) => html`<dt>${name}</dt><dd>${value}</dd>`;
    return html`
      <h2>${runs.side === "host" ? "Place in the file" : "Place on the disk"}</h2>
      <dl class="facts">
        ${row("Offset", html`<code>${hex(place.offset)}</code> <span class="muted">${count(place.offset)}</span>`)}
        ${row("Cluster", count(Math.floor(place.offset / runs.unit)))}
        ${row("Kind", about.kind)}
        ${row("Run", html`<code>${hex(start)}</code>, ${bytes(length)}`)}
        ${about.refcount === "" ? nothing : row("Refcount", about.refcount)}
        ${about.owner === "" ? nothing : row(runs.side === "host" ? "Owner" : "From", about.owner)}
        ${across === undefined ? nothing : row(runs.side === "host" ? "Guest" : "File", html`<button type="button" class="link"
          @click=${() => this.session.goTo(runs.side === "host" ? "guest" : "host", across + place.offset - start)}>${hex(across + place.offset - start)}</button>`)}
      </dl>
      <div class="buttons">
        ${runs.side === "guest" && across === undefined ? nothing : html`<button type="button" @click=${() => this.#open(runs, place.offset)}>Show bytes</button>`}
        ${runs.side === "host" ? html`<button type="button" @click=${() => void this.#whose(place.offset)}>Who owns it?</button>` : nothing}
        <button type="button" @click=${() => this.session.select({ side: runs.side, start, end: start + length })}>Select the run</button>
      </div>
      ${this.#owners(place.offset)}
      ${this.way?.offset === place.offset && runs.side === "guest" ? this.#path(this.way.layers) : nothing}
      <h2>Selection</h2>
      ${selection === undefined ? html`<p class="muted">Drag on the map, or hold Shift with the arrow keys.</p>` : html`
        <p><code>${hex(selection.start)}</code> to <code>${hex(selection.end)}</code>, ${bytes(selection.end - selection.start)} of the ${selection.side === "host" ? "file" : "disk"}</p>
        <div class="buttons">
          <button type="button" class="primary" @click=${() => this.session.show("edit")}>Edit…</button>
          <button type="button" @click=${() => this.session.select(undefined)}>Clear</button>
        </div>`}`;
  }

  async #whose(offset: number): Promise<void> {
    const { image } = this.session;
    try {
      const report = await image?.inspectHost(offset);
      this.owner = report === undefined ? undefined : { offset, report };
    } catch (error) {
      this.owner = { offset, why: reason(error) };
    }
  }

  #owners(offset: number): unknown {
    const { owner } = this;
    if (owner === undefined || owner.offset !== offset) {
      return nothing;
    }
    const why = "why" in owner ? owner.why : "error" in owner.report ? owner.report.error : undefined;
    if (why !== undefined || !("report" in owner) || "error" in owner.report) {
      return html`<p class="error-text">${why}</p>`;
    }
    const { owners, references } = owner.report.value;
    if ("error" in owners) {
      return html`<p class="error-text">${owners.error}</p>`;
    }
    return html`<h3>${plural(references, "reference")}</h3>
      <ul class="plain-list">${owners.value.map((one) => html`<li><strong>${words(one.structure)}</strong>${one.source === one.structure ? nothing : html` by ${one.source}`}${one.guest_offset === null ? nothing : html`, guest <code>${hex(one.guest_offset)}</code>`}</li>`)}</ul>
      ${owners.value.length === 0 ? html`<p class="muted">Nothing refers to it.</p>` : nothing}`;
  }

  #path(layers: readonly Shown<LayerPath>[]): unknown {
    return html`<h3>The way of this byte</h3>
      <ol class="way">${layers.map((layer) => "error" in layer ? html`<li class="error-text">${layer.error}</li>` : html`<li>
        <strong>${layer.value.depth === 0 ? "This image" : `Layer ${layer.value.depth}`}</strong> <span class="muted">${layer.value.format}, ${bytes(layer.value.virtual_size)}</span>
        ${layer.value.entries === null ? nothing : this.#entries(layer.value.entries, layer.value.depth)}
        <div>${HOLDS[layer.value.resolution.kind]}${"host_offset" in layer.value.resolution ? html` at <code>${hex(layer.value.resolution.host_offset)}</code>` : nothing}</div>
      </li>`)}</ol>`;
  }

  #entries(path: GuestPath, depth: number): unknown {
    // Only the bytes of this image's file are shown: tables of the layers below lie in other files.
    const link = (at: number | bigint) => depth > 0 ? html`<code>${hex(at)}</code>` : html`<button type="button" class="link" @click=${() => this.session.goTo("host", Number(at), "structure")}>${hex(at)}</button>`;
    return html`<div>L1 entry at ${link(path.l1_entry_offset)}</div>
      ${path.l2_entry_offset === null ? nothing : html`<div>L2 entry at ${link(path.l2_entry_offset)}${path.l2 !== null && "value" in path.l2 ? html`: ${words(path.l2.value.kind)}${path.l2.value.copied ? ", COPIED" : ""}` : nothing}</div>`}
      ${path.host_refcount !== null && "value" in path.host_refcount ? html`<div>refcount ${path.host_refcount.value}</div>` : nothing}`;
  }
}
