/** A table of any length: only the rows that are seen exist. Sortable, with the keyboard too. */

import { html, LitElement, nothing } from "lit";
import type { PropertyValues } from "lit";
import { customElement, property, state } from "lit/decorators.js";

const ROW = 26;
/** Browsers draw nothing beyond some 17 million pixels; longer tables scroll in proportion. */
const TALLEST = 12_000_000;

/** Rows in sight, whatever the layout says: a table must not draw all that it has. */
const MOST = 400;

export interface Column {
  readonly title: string;
  /** A width of CSS grid. */
  readonly width: string;
  readonly numeric?: boolean;
  readonly text: (row: number) => unknown;
  /** What to sort by; without it the column is not sorted. */
  readonly order?: (row: number) => number | string;
}

let tables = 0;

@customElement("qcow-table")
export class QcowTable extends LitElement {
  @property({ attribute: false }) columns: readonly Column[] = [];
  @property({ attribute: false }) rows = 0;
  /** Which rows are shown, by number; all of them without it. */
  @property({ attribute: false }) filter: ((row: number) => boolean) | undefined;
  /** Changes when the rows do. */
  @property({ attribute: false }) data: unknown;
  @property() label = "";
  /** The row that stands out. */
  @property({ attribute: false }) current = -1;
  @state() private sort: { column: number; down: boolean } | undefined;
  @state() private first = 0;
  @state() private height = 400;
  @state() private cursor = 0;
  #order: Uint32Array | undefined;
  #shown = 0;
  readonly #id = `table-${(tables += 1)}`;
  readonly #sizes = new ResizeObserver(() => {
    const head = this.querySelector<HTMLElement>(".table-head")?.offsetHeight ?? 0;
    this.height = Math.max(ROW, (this.#frame?.clientHeight ?? 400) - head);
  });

  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  /** What scrolls. */
  get #frame(): HTMLElement | null {
    return this.querySelector<HTMLElement>(".table");
  }

  get #total(): number {
    return Math.min(this.#shown * ROW, TALLEST);
  }

  get #visible(): number {
    return Math.min(Math.ceil(this.height / ROW), MOST);
  }

  protected override firstUpdated(): void {
    if (this.#frame !== null) {
      this.#sizes.observe(this.#frame);
    }
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#sizes.disconnect();
  }

  protected override willUpdate(changed: PropertyValues): void {
    if (changed.has("data") || changed.has("sort") || changed.has("rows") || changed.has("filter")) {
      this.#arrange();
    }
    if (changed.has("current") && this.current >= 0) {
      const place = this.#order === undefined ? this.current : this.#order.indexOf(this.current);
      if (place >= 0) {
        this.cursor = place;
        this.#reveal(place);
      }
    }
    this.cursor = Math.max(0, Math.min(this.cursor, this.#shown - 1));
  }

  #arrange(): void {
    const by = this.sort === undefined ? undefined : this.columns[this.sort.column]?.order;
    this.#order = undefined;
    this.#shown = this.rows;
    if (by === undefined && this.filter === undefined) {
      return;
    }
    let order = Uint32Array.from({ length: this.rows }, (_, row) => row);
    if (this.filter !== undefined) {
      order = order.filter(this.filter);
    }
    if (by !== undefined) {
      const turn = this.sort?.down === true ? -1 : 1;
      const keys = Array.from({ length: this.rows }, (_, row) => by(row));
      order.sort((a, b) => turn * compare(keys[a] ?? 0, keys[b] ?? 0) || a - b);
    }
    this.#order = order;
    this.#shown = order.length;
  }

  /** The rows in the order in which they are shown. */
  shownRows(): number[] {
    return Array.from({ length: this.#shown }, (_, place) => this.#rowAt(place));
  }

  #rowAt(place: number): number {
    return this.#order === undefined ? place : (this.#order[place] ?? 0);
  }

  protected override render(): unknown {
    const end = Math.min(this.#shown, this.first + this.#visible + 2);
    const places = Array.from({ length: Math.max(0, end - this.first) }, (_, index) => this.first + index);
    return html`
      <div role="grid" aria-label=${this.label} aria-rowcount=${this.#shown + 1} class="table"
        aria-colcount=${this.columns.length} tabindex="0" aria-activedescendant=${this.#shown > 0 ? `${this.#id}-${this.cursor}` : nothing}
        @keydown=${this.#key} @scroll=${this.#scrolled}>
        <div role="rowgroup" class="table-head"><div role="row" aria-rowindex="1" class="table-row">
          ${this.columns.map((column, index) => this.#head(column, index))}
        </div></div>
        <div role="rowgroup" class="table-body">
          <div class="table-space" role="presentation"></div>
          <div class="table-rows" role="presentation">
            ${places.map((place) => this.#row(place))}
          </div>
          ${this.#shown === 0 ? html`<div role="row" class="table-none"><div role="gridcell">Nothing here.</div></div>` : nothing}
        </div>
      </div>`;
  }

  #head(column: Column, index: number): unknown {
    const now = this.sort?.column === index ? (this.sort.down ? "descending" : "ascending") : "none";
    const mark = now === "none" ? "" : now === "ascending" ? " ▲" : " ▼";
    return html`<div role="columnheader" class=${column.numeric === true ? "numeric" : ""} aria-sort=${column.order === undefined ? nothing : now}>
      ${column.order === undefined ? column.title : html`<button type="button" class="plain" @click=${() => this.#sortBy(index)}>${column.title}<span aria-hidden="true">${mark}</span></button>`}
    </div>`;
  }

  #row(place: number): unknown {
    const row = this.#rowAt(place);
    return html`<div role="row" id="${this.#id}-${place}" aria-rowindex=${place + 2} aria-selected=${place === this.cursor ? "true" : "false"}
      class="table-row ${place === this.cursor ? "current" : ""}" @click=${() => this.#pick(place)} @dblclick=${() => this.#open(place)}>
      ${this.columns.map((column) => html`<div role="gridcell" class=${column.numeric === true ? "numeric" : ""}>${column.text(row)}</div>`)}
    </div>`;
  }

  protected override updated(): void {
    this.style.setProperty("--columns", this.columns.map((column) => column.width).join(" "));
    const space = this.querySelector<HTMLElement>(".table-space");
    const rows = this.querySelector<HTMLElement>(".table-rows");
    if (space !== null && rows !== null) {
      space.style.height = `${this.#total}px`;
      // In proportion or not, the first row is drawn where the view is.
      const exact = this.#shown * ROW <= TALLEST;
      rows.style.transform = `translateY(${exact ? this.first * ROW : (this.#frame?.scrollTop ?? 0)}px)`;
    }
  }

  readonly #scrolled = (): void => {
    const top = this.#frame?.scrollTop ?? 0;
    if (this.#shown * ROW <= TALLEST) {
      this.first = Math.floor(top / ROW);
    } else {
      const last = this.#shown - this.#visible + 1;
      this.first = Math.max(0, Math.min(last, Math.round((top / (TALLEST - this.height)) * last)));
    }
  };

  #reveal(place: number): void {
    const frame = this.#frame;
    if (frame === null) {
      return;
    }
    const full = Math.max(1, Math.floor(this.height / ROW));
    if (place < this.first || place >= this.first + full) {
      const want = place < this.first ? place : place - full + 1;
      const exact = this.#shown * ROW <= TALLEST;
      frame.scrollTop = exact ? want * ROW : (want / Math.max(1, this.#shown - full)) * (TALLEST - this.height);
      this.first = want;
    }
  }

  #sortBy(column: number): void {
    this.sort = this.sort?.column === column ? (this.sort.down ? undefined : { column, down: true }) : { column, down: false };
  }

  #pick(place: number): void {
    this.cursor = place;
    this.dispatchEvent(new CustomEvent("row-pick", { detail: this.#rowAt(place) }));
  }

  #open(place: number): void {
    this.dispatchEvent(new CustomEvent("row-open", { detail: this.#rowAt(place) }));
  }

  readonly #key = (event: KeyboardEvent): void => {
    if (event.target instanceof HTMLButtonElement || this.#shown === 0) {
      return;
    }
    const page = Math.max(1, this.#visible - 2);
    const steps: Record<string, number> = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -this.#shown, End: this.#shown };
    const step = steps[event.key];
    if (step !== undefined) {
      this.cursor = Math.max(0, Math.min(this.#shown - 1, this.cursor + step));
      this.#reveal(this.cursor);
      this.#pick(this.cursor);
    } else if (event.key === "Enter") {
      this.#open(this.cursor);
    } else {
      return;
    }
    event.preventDefault();
  };
}

function compare(a: number | string, b: number | string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

declare global {
  interface HTMLElementTagNameMap {
    "qcow-table": QcowTable;
  }
}
