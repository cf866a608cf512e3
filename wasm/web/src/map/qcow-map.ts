/** `<qcow-map>`: runs as a grid of cells. Everything that it shows is in the table of runs too. */

import { html, LitElement, nothing } from "lit";
import type { PropertyValues } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import { bytes, hex } from "../format.ts";
import { runAt, sentence } from "../model.ts";
import type { Runs } from "../model.ts";
import { FollowsTheme } from "../ui/theme.ts";
import { fit, makeGrid, shares, zoom } from "./grid.ts";
import type { Grid } from "./grid.ts";
import { Palette } from "./paint.ts";

const MINIMAP = 28;

/** What a map tells: the place, or the part that was chosen. */
export type MapPlace = CustomEvent<{ offset: number }>;
export type MapSelect = CustomEvent<{ start: number; end: number } | null>;

@customElement("qcow-map")
export class QcowMap extends LitElement {
  @property({ attribute: false }) runs: Runs | undefined;
  @property({ attribute: false }) place = 0;
  @property({ attribute: false }) selection: { start: number; end: number } | undefined;
  @property() label = "Map";
  @state() private view = { perCell: 1, size: 9 };
  @state() private top = 0;
  @state() private hover: { offset: number; x: number; y: number } | undefined;
  #anchor: number | undefined;
  #dragging = false;
  #fitted = false;
  #width = 0;
  #height = 0;
  readonly #sizes = new ResizeObserver(() => this.#resized());

  constructor() {
    super();
    new FollowsTheme(this);
  }

  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#sizes.disconnect();
  }

  protected override firstUpdated(): void {
    this.#sizes.observe(this.#frame);
  }

  get #frame(): HTMLElement {
    return this.querySelector<HTMLElement>(".map-frame") ?? this;
  }

  #resized(): void {
    const { clientWidth, clientHeight } = this.#frame;
    if (clientWidth === this.#width && clientHeight === this.#height) {
      return;
    }
    [this.#width, this.#height] = [clientWidth, clientHeight];
    this.#fitted ||= false;
    this.requestUpdate();
  }

  get #grid(): Grid | undefined {
    const width = this.#width - MINIMAP - 8;
    return this.runs === undefined || width <= 0 ? undefined : makeGrid(this.runs, width, this.view.perCell, this.view.size);
  }

  /** Cells count from where the runs begin. */
  #cellOf(offset: number, grid: Grid): number {
    return Math.floor((offset - (this.runs?.first ?? 0)) / grid.bytes);
  }

  #offsetOf(cell: number, grid: Grid): number {
    return (this.runs?.first ?? 0) + cell * grid.bytes;
  }

  get #shownRows(): number {
    return Math.max(1, Math.floor(this.#height / this.view.size));
  }

  protected override willUpdate(changed: PropertyValues<this>): void {
    const before = changed.get("runs") as Runs | undefined;
    if (this.runs !== undefined && this.#width > 0 && this.#height > 0 && (!this.#fitted || (changed.has("runs") && before?.side !== this.runs.side))) {
      this.view = fit(this.runs, this.#width - MINIMAP - 8, this.#height);
      this.#fitted = true;
    }
    const grid = this.#grid;
    if (grid !== undefined) {
      if (changed.has("place") && this.runs !== undefined) {
        const row = Math.floor(this.#cellOf(this.place, grid) / grid.columns);
        this.top = Math.min(row, Math.max(this.top, row - this.#shownRows + 1));
      }
      this.top = Math.max(0, Math.min(this.top, grid.rows - this.#shownRows));
    }
  }

  protected override render(): unknown {
    const { runs } = this;
    const grid = this.#grid;
    const scale = runs === undefined || grid === undefined ? "" : `1 cell = ${grid.perCell === 1 ? "1 cluster" : `${grid.perCell} clusters`}, ${bytes(grid.bytes)}`;
    return html`
      <div class="map-tools">
        <div class="buttons" role="group" aria-label="Zoom">
          <button type="button" class="small" aria-label="Zoom in" title="Zoom in (+)" @click=${() => this.#zoom(true)}>+</button>
          <button type="button" class="small" aria-label="Zoom out" title="Zoom out (-)" @click=${() => this.#zoom(false)}>−</button>
          <button type="button" class="small" title="Show everything (0)" @click=${() => this.#fit()}>Fit</button>
        </div>
        <span class="muted map-scale">${scale}</span>
      </div>
      <div class="map-frame" tabindex="0" role="application" aria-roledescription="cluster map"
        aria-label="${this.label}: arrow keys move, Shift with arrow keys selects, plus and minus zoom, Enter opens the bytes"
        @keydown=${this.#key} @pointerdown=${this.#down} @pointermove=${this.#move} @pointerup=${this.#up}
        @pointerleave=${() => { this.hover = undefined; }} @wheel=${{ handleEvent: this.#wheel, passive: false }}
        @dblclick=${() => this.#open()}>
        <canvas class="map-cells" aria-hidden="true"></canvas>
        <canvas class="map-marks" aria-hidden="true"></canvas>
        <canvas class="map-mini" aria-hidden="true"></canvas>
        ${this.hover === undefined || runs === undefined ? nothing : this.#tip(runs, this.hover)}
      </div>`;
  }

  #tip(runs: Runs, at: { offset: number; x: number; y: number }): unknown {
    const run = runAt(runs, at.offset);
    const about = runs.describe(run);
    const row = (name: string, value: string) => value === "" ? nothing : html`<dt>${name}</dt><dd>${value}</dd>`;
    return html`<div class="map-tip" data-tip-at="${at.x},${at.y}">
      <strong>${about.kind}</strong>
      <dl>
        ${row("Offset", hex(at.offset))}
        ${row("Run", `${hex(runs.offset[run] ?? 0)}, ${bytes(runs.length[run] ?? 0)}`)}
        ${row("Refcount", about.refcount)}
        ${row("Owner", about.owner)}
        ${row(runs.side === "host" ? "Guest" : "In the file", about.place)}
      </dl></div>`;
  }

  protected override updated(): void {
    this.#paint();
    const tip = this.querySelector<HTMLElement>(".map-tip");
    if (tip !== null && this.hover !== undefined) {
      const { x, y } = this.hover;
      tip.style.left = `${Math.max(0, Math.min(x + 14, this.#width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${y + 18 + tip.offsetHeight > this.#height ? Math.max(0, y - tip.offsetHeight - 8) : y + 18}px`;
    }
  }

  #canvas(name: string, width: number, height: number): [CanvasRenderingContext2D, number] | undefined {
    const canvas = this.querySelector<HTMLCanvasElement>(name);
    const scale = devicePixelRatio || 1;
    const context = canvas?.getContext("2d");
    if (canvas === null || !context || width <= 0 || height <= 0) {
      return undefined;
    }
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== wide || canvas.height !== high) {
      [canvas.width, canvas.height] = [wide, high];
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    return [context, scale];
  }

  #paint(): void {
    const { runs } = this;
    const grid = this.#grid;
    if (runs === undefined || grid === undefined) {
      return;
    }
    const width = this.#width - MINIMAP - 8;
    const cells = this.#canvas(".map-cells", width, this.#height);
    const marks = this.#canvas(".map-marks", width, this.#height);
    const mini = this.#canvas(".map-mini", MINIMAP, this.#height);
    if (cells === undefined || marks === undefined || mini === undefined) {
      return;
    }
    const palette = new Palette(cells[0], this, runs.kinds, cells[1]);
    this.#paintCells(cells[0], palette, runs, grid);
    this.#paintMarks(marks[0], palette, runs, grid);
    this.#paintMini(mini[0], palette, runs, grid);
  }

  #paintCells(draw: CanvasRenderingContext2D, palette: Palette, runs: Runs, grid: Grid): void {
    const first = this.top * grid.columns;
    const end = Math.min(grid.cells, first + (this.#shownRows + 1) * grid.columns);
    const held = shares(runs, grid.bytes, first, end);
    const kinds = runs.kinds.length;
    const side = grid.size - 1;
    for (let cell = first; cell < end; cell += 1) {
      const x = ((cell - first) % grid.columns) * grid.size;
      let y = Math.floor((cell - first) / grid.columns) * grid.size;
      const row = held.subarray((cell - first) * kinds, (cell - first + 1) * kinds);
      const all = row.reduce((sum, part) => sum + part, 0) || 1;
      let rest = side;
      row.forEach((part, kind) => {
        if (part > 0 && rest > 0) {
          const high = part === all ? side : Math.min(rest, Math.max(1, Math.round((part / all) * side)));
          draw.fillStyle = palette.fills[kind] ?? palette.ground;
          draw.fillRect(x, y, side, high);
          y += high;
          rest -= high;
        }
      });
    }
  }

  #paintMarks(draw: CanvasRenderingContext2D, palette: Palette, runs: Runs, grid: Grid): void {
    const { size } = grid;
    const box = (cell: number): [number, number] => [(cell % grid.columns) * size, (Math.floor(cell / grid.columns) - this.top) * size];
    if (this.selection !== undefined) {
      const [from, to] = [this.#cellOf(this.selection.start, grid), this.#cellOf(this.selection.end - 1, grid) + 1];
      const [first, end] = [Math.max(from, this.top * grid.columns), Math.min(to, (this.top + this.#shownRows + 1) * grid.columns, grid.cells)];
      draw.fillStyle = palette.select;
      for (let cell = first; cell < end; cell += 1) {
        const [x, y] = box(cell);
        // Thin enough for what lies below it to be told by its pattern.
        draw.globalAlpha = 0.3;
        draw.fillRect(x - 0.5, y - 0.5, size, size);
        draw.globalAlpha = 1;
        draw.fillRect(x - 0.5, y + size - 2, size, 1.5);
      }
    }
    const [x, y] = box(Math.max(0, Math.min(this.#cellOf(Math.min(this.place, runs.end - 1), grid), grid.cells - 1)));
    draw.lineWidth = 2;
    draw.strokeStyle = palette.ground;
    draw.strokeRect(x - 2.5, y - 2.5, size + 4, size + 4);
    draw.strokeStyle = palette.ink;
    draw.strokeRect(x - 1, y - 1, size + 1, size + 1);
  }

  #paintMini(draw: CanvasRenderingContext2D, palette: Palette, runs: Runs, grid: Grid): void {
    const lines = Math.max(1, Math.floor(this.#height / 2));
    const held = shares(runs, Math.max(1, runs.total / lines), 0, lines);
    const kinds = runs.kinds.length;
    for (let line = 0; line < lines; line += 1) {
      const row = held.subarray(line * kinds, (line + 1) * kinds);
      const all = row.reduce((sum, part) => sum + part, 0) || 1;
      let x = 0;
      row.forEach((part, kind) => {
        const wide = (part / all) * MINIMAP;
        draw.fillStyle = palette.fills[kind] ?? palette.ground;
        draw.fillRect(x, line * 2, wide, 2);
        x += wide;
      });
    }
    const from = (this.top / Math.max(1, grid.rows)) * this.#height;
    const high = Math.min(1, this.#shownRows / Math.max(1, grid.rows)) * this.#height;
    draw.strokeStyle = palette.ink;
    draw.lineWidth = 2;
    draw.strokeRect(1, from + 1, MINIMAP - 2, Math.max(6, high - 2));
  }

  // ---- pointer and keys

  #cellAt(event: MouseEvent): { offset: number; x: number; y: number; mini: boolean } | undefined {
    const grid = this.#grid;
    if (grid === undefined || this.runs === undefined) {
      return undefined;
    }
    const box = this.#frame.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - this.#frame.clientLeft, event.clientY - box.top - this.#frame.clientTop];
    if (x > this.#width - MINIMAP - 2) {
      return { offset: this.runs.first + Math.floor((y / this.#height) * this.runs.total), x, y, mini: true };
    }
    const column = Math.min(grid.columns - 1, Math.max(0, Math.floor(x / grid.size)));
    const cell = (this.top + Math.max(0, Math.floor(y / grid.size))) * grid.columns + column;
    return cell >= grid.cells ? undefined : { offset: this.#offsetOf(cell, grid), x, y, mini: false };
  }

  readonly #down = (event: PointerEvent): void => {
    const at = this.#cellAt(event);
    if (at === undefined || event.button !== 0) {
      return;
    }
    this.#frame.setPointerCapture(event.pointerId);
    if (at.mini) {
      this.#tell(at.offset);
      return;
    }
    this.#dragging = true;
    if (!event.shiftKey || this.#anchor === undefined) {
      this.#anchor = at.offset;
      this.#choose(null);
    } else {
      this.#extend(at.offset);
    }
    this.#tell(at.offset);
  };

  readonly #move = (event: PointerEvent): void => {
    const at = this.#cellAt(event);
    this.hover = at === undefined || at.mini ? undefined : at;
    if (at !== undefined && this.#dragging && this.#anchor !== undefined && at.offset !== this.place) {
      this.#extend(at.offset);
      this.#tell(at.offset);
    } else if (at?.mini === true && event.buttons === 1) {
      this.#tell(at.offset);
    }
  };

  readonly #up = (): void => {
    this.#dragging = false;
  };

  readonly #wheel = (event: WheelEvent): void => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.#zoom(event.deltaY < 0);
      return;
    }
    const rows = Math.sign(event.deltaY) * Math.max(1, Math.round(Math.abs(event.deltaY) / this.view.size / 2));
    const top = Math.max(0, Math.min(this.top + rows, (this.#grid?.rows ?? 0) - this.#shownRows));
    // Where the map ends, the page goes on.
    if (top !== this.top) {
      event.preventDefault();
      this.top = top;
    }
  };

  readonly #key = (event: KeyboardEvent): void => {
    const grid = this.#grid;
    const { runs } = this;
    if (grid === undefined || runs === undefined || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const page = this.#shownRows * grid.columns;
    const steps: Record<string, number> = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns, PageUp: -page, PageDown: page,
      Home: -grid.cells, End: grid.cells,
    };
    const step = steps[event.key];
    if (step !== undefined) {
      const cell = this.#cellOf(this.place, grid);
      const next = this.#offsetOf(Math.max(0, Math.min(grid.cells - 1, cell + step)), grid);
      if (event.shiftKey) {
        this.#anchor ??= this.#offsetOf(cell, grid);
        this.#extend(next);
      } else {
        this.#anchor = undefined;
      }
      // What is selected is told instead of what lies at its end.
      this.#tell(next, !event.shiftKey);
    } else if (event.key === "+" || event.key === "=") {
      this.#zoom(true);
    } else if (event.key === "-") {
      this.#zoom(false);
    } else if (event.key === "0") {
      this.#fit();
    } else if (event.key === "Enter") {
      this.#open();
    } else if (event.key === "Escape") {
      this.#anchor = undefined;
      this.#choose(null);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };

  #tell(offset: number, aloud = true): void {
    this.dispatchEvent(new CustomEvent("map-place", { detail: { offset } }) satisfies MapPlace);
    if (aloud && this.runs !== undefined) {
      this.dispatchEvent(new CustomEvent("map-say", { detail: sentence(this.runs, offset) }));
    }
  }

  #extend(to: number): void {
    const grid = this.#grid;
    const from = this.#anchor ?? to;
    if (grid !== undefined && this.runs !== undefined) {
      this.#choose({ start: Math.min(from, to), end: Math.min(Math.max(from, to) + grid.bytes, this.runs.end) });
    }
  }

  #choose(detail: { start: number; end: number } | null): void {
    this.dispatchEvent(new CustomEvent("map-select", { detail }) satisfies MapSelect);
  }

  #open(): void {
    this.dispatchEvent(new CustomEvent("map-open", { detail: { offset: this.place } }));
  }

  #zoom(closer: boolean): void {
    if (this.runs !== undefined) {
      const most = 2 ** Math.ceil(Math.log2(Math.max(1, this.runs.total / this.runs.unit)));
      this.view = zoom(this.view, closer, most);
      const grid = this.#grid;
      if (grid !== undefined) {
        this.top = Math.floor(this.#cellOf(this.place, grid) / grid.columns) - Math.floor(this.#shownRows / 2);
      }
    }
  }

  #fit(): void {
    if (this.runs !== undefined) {
      this.view = fit(this.runs, this.#width - MINIMAP - 8, this.#height);
    }
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "qcow-map": QcowMap;
  }
}
