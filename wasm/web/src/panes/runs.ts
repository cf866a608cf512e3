/** Every run of the map as a row: what the map shows, for eyes that do not see it and for other programs. */

import { html, nothing } from "lit";
import { customElement, query, state } from "lit/decorators.js";
import { bytes, hex, json, plural, reason } from "../format.ts";
import { runAt } from "../model.ts";
import type { Runs, Side } from "../model.ts";
import { csv, download, renamed } from "../ui/download.ts";
import { partsLine } from "../ui/parts.ts";
import "../ui/table.ts";
import type { Column, QcowTable } from "../ui/table.ts";
import { View, whenReady } from "../view.ts";

type What = Side | "gaps";

@customElement("pane-runs")
export class RunsPane extends View {
  @state() private what: What = "host";
  @state() private kind = -1;
  @query("qcow-table") private table!: QcowTable;

  override connectedCallback(): void {
    super.connectedCallback();
    this.what = this.session.place.side;
  }

  get #side(): Side {
    return this.what === "guest" ? "guest" : "host";
  }

  protected override willUpdate(): void {
    void this.session.need(this.#side);
  }

  protected override render(): unknown {
    const report = this.#side === "host" ? this.session.reports.host : this.session.reports.guest;
    const choice = (what: What, title: string, about: string) => html`<button type="button" aria-pressed=${this.what === what}
      @click=${() => { this.what = what; this.kind = -1; }}>${title} <span class="muted">${about}</span></button>`;
    return html`<div class="tall-pane">
      <div class="tools">
        <div class="segmented" role="group" aria-label="Rows">${choice("host", "File", "host runs")}${choice("guest", "Disk", "guest runs")}${choice("gaps", "Gaps", "free space")}</div>
        ${report.state === "ready" && this.what !== "gaps" ? this.#kinds(report.value) : nothing}
        <span class="spring"></span>
        <button type="button" class="small" @click=${() => this.#export("csv")}>CSV</button>
        <button type="button" class="small" @click=${() => void this.#export("json")}>JSON</button>
      </div>
      ${whenReady(report, "runs", (runs) => this.#table(runs))}
    </div>`;
  }

  #kinds(runs: Runs): unknown {
    return html`<label>Kind <select @change=${(event: Event) => { this.kind = Number((event.target as HTMLSelectElement).value); }}>
      <option value="-1" ?selected=${this.kind < 0}>all</option>
      ${runs.kinds.map((kind, index) => html`<option value=${index} ?selected=${this.kind === index}>${kind.title}</option>`)}</select></label>`;
  }

  #table(runs: Runs): unknown {
    const at = (row: number): number => runs.offset[row] ?? 0;
    const length = (row: number): number => runs.length[row] ?? 0;
    const columns: Column[] = [
      { title: "Offset", width: "minmax(7rem, 1fr)", text: (row) => html`<code>${hex(at(row))}</code>`, order: at, numeric: true },
      { title: "Length", width: "minmax(5rem, .8fr)", text: (row) => bytes(length(row)), order: length, numeric: true },
      { title: "Kind", width: "minmax(8rem, 1.4fr)", text: (row) => runs.describe(row).kind, order: (row) => runs.describe(row).kind },
      ...(runs.side === "host" ? [
        { title: "Refcount", width: "minmax(4.5rem, .6fr)", text: (row: number) => runs.describe(row).refcount, order: (row: number) => Number(runs.describe(row).refcount) || 0, numeric: true },
      ] : []),
      { title: runs.side === "host" ? "Owner" : "From", width: "minmax(9rem, 3fr)", text: (row) => runs.describe(row).owner, order: (row) => runs.describe(row).owner },
      { title: runs.side === "host" ? "Guest offset" : "File offset", width: "minmax(7rem, 1fr)", text: (row) => html`<code>${runs.describe(row).place}</code>`, order: (row) => runs.across(row) ?? -1, numeric: true },
    ];
    const free = runs.kinds.findIndex((kind) => kind.key === "free");
    const only = this.what === "gaps" ? free : this.kind;
    const { place } = this.session;
    return html`<qcow-table label=${this.what === "gaps" ? "Gaps: free runs of the file" : this.what === "host" ? "Runs of the file" : "Runs of the disk"}
      .columns=${columns} .rows=${runs.offset.length} .data=${`${this.session.revision} ${this.what} ${only} ${runs.first}`}
      .filter=${only < 0 ? undefined : (row: number) => runs.kind[row] === only}
      .current=${place.side === runs.side ? runAt(runs, place.offset) : -1}
      @row-pick=${(event: CustomEvent<number>) => this.#pick(runs, event.detail)}
      @row-open=${(event: CustomEvent<number>) => this.session.goTo(runs.side, at(event.detail), "map")}></qcow-table>
      ${partsLine(runs)}
      <p class="muted under">${plural(runs.offset.length, "run")}${runs.first === 0 && runs.next === undefined ? " in all" : " in this part"}. Enter or a double click shows a run on the map.</p>`;
  }

  #pick(runs: Runs, row: number): void {
    const offset = runs.offset[row] ?? 0;
    if (runAt(runs, this.session.place.offset) !== row || this.session.place.side !== runs.side) {
      this.session.goTo(runs.side, offset);
    }
  }

  /** CSV is what is shown; JSON is what the command line prints. Of a map in parts, both are of this part. */
  async #export(format: "csv" | "json"): Promise<void> {
    const report = this.#side === "host" ? this.session.reports.host : this.session.reports.guest;
    const { image } = this.session;
    const name = this.session.opened?.name ?? "image";
    if (report.state !== "ready" || image === undefined) {
      return;
    }
    const runs = report.value;
    const part = runs.first === 0 && runs.next === undefined ? this.what : `${this.what}-from-${hex(runs.first)}`;
    try {
      if (format === "csv") {
        const rows = this.table.shownRows().map((row) => {
          const about = runs.describe(row);
          return [runs.offset[row] ?? 0, runs.length[row] ?? 0, about.kind, about.refcount, about.owner, runs.across(row) ?? null];
        });
        const across = runs.side === "host" ? "guest_offset" : "host_offset";
        download(renamed(name, `-${part}.csv`), csv(["offset", "length", "kind", "refcount", "owner", across], rows), "text/csv");
      } else {
        const rows = this.what === "guest" ? await image.map({ offset: runs.first, length: runs.total, local: this.session.alone })
          : await image.clusterRuns({ host_offset: runs.first, length: runs.total });
        const chosen = this.what === "gaps" ? (rows as { class?: string }[]).filter((row) => row.class === "free" || row.class === "beyond_last_used") : rows;
        download(renamed(name, `-${part}.json`), json(chosen), "application/json");
      }
    } catch (error) {
      this.session.notice = `Export: ${reason(error)}`;
      this.session.changed();
    }
  }
}
