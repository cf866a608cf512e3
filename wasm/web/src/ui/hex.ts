/** `<qcow-hex>`: bytes of the file, with the fields that the parser finds in them in colours. */

import { html, nothing } from "lit";
import type { PropertyValues } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { Field } from "qcowkit/client";
import { bytes, hex, parseSize, reason } from "../format.ts";
import { runAt } from "../model.ts";
import { View } from "../view.ts";
import { structureAt } from "./structures.ts";

const LINE = 20;
/** Pixels that sixteen bytes need, with offset and text; narrower panes have eight in a line. */
const ROOM = 610;
/** Above and below the lines together. */
const PADDING = 12;

/** What the pane shows: bytes from `start` on, and the fields in them. */
interface Window {
  readonly start: number;
  readonly wide: number;
  readonly bytes: Uint8Array;
  readonly fields: readonly Field[];
  readonly fault: string;
}

@customElement("qcow-hex")
export class QcowHex extends View {
  @state() private window: Window | undefined;
  @state() private lines = 24;
  /** Bytes of a line. */
  @state() private wide = 16;
  @state() private top = 0;
  @state() private marked: { start: number; end: number } | undefined;
  @state() private wrong = "";
  #asked = "";
  readonly #sizes = new ResizeObserver(() => {
    const frame = this.querySelector(".hex-lines");
    this.lines = Math.max(8, Math.floor(((frame?.clientHeight ?? 480) - PADDING) / LINE));
    const wide = (frame?.clientWidth ?? ROOM) < ROOM ? 8 : 16;
    if (wide !== this.wide) {
      this.top = Math.floor((this.top * this.wide) / wide);
      this.wide = wide;
    }
  });

  protected override firstUpdated(): void {
    const frame = this.querySelector(".hex-lines");
    if (frame !== null) {
      this.#sizes.observe(frame);
    }
    this.session.addEventListener("place", this.#placed);
    this.#placed();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#sizes.disconnect();
    this.session.removeEventListener("place", this.#placed);
  }

  get #cursor(): number {
    return this.session.place.side === "host" ? this.session.place.offset : 0;
  }

  get #length(): number {
    return this.session.facts?.fileLength ?? 0;
  }

  readonly #placed = (): void => {
    const line = Math.floor(this.#cursor / this.wide);
    if (line < this.top || line >= this.top + this.lines) {
      this.top = Math.max(0, line - 2);
    }
    const field = this.#fieldAt(this.#cursor);
    this.marked = field === undefined ? undefined : { start: field.host_offset, end: field.host_offset + field.length };
    this.requestUpdate();
  };

  protected override willUpdate(_changed: PropertyValues): void {
    const last = Math.max(0, Math.ceil(this.#length / this.wide) - this.lines);
    this.top = Math.max(0, Math.min(this.top, last));
    void this.#read();
  }

  /** Reads what is to be shown, if it is not there. */
  async #read(): Promise<void> {
    const { image, revision } = this.session;
    const { wide } = this;
    const start = this.top * wide;
    const length = Math.min(this.lines * wide, this.#length - start);
    const key = `${revision} ${start} ${length} ${wide} ${this.session.reports.host.state}`;
    if (image === undefined || length <= 0 || key === this.#asked) {
      return;
    }
    this.#asked = key;
    try {
      const read = await image.hostBytes(start, length);
      const { fields, fault } = await this.#fields(start, length);
      if (key === this.#asked) {
        this.window = { start, wide, bytes: read, fields, fault };
        const field = this.#fieldAt(this.#cursor);
        this.marked = field === undefined ? this.marked : { start: field.host_offset, end: field.host_offset + field.length };
      }
    } catch (error) {
      this.window = { start, wide, bytes: new Uint8Array(), fields: [], fault: reason(error) };
    }
  }

  async #fields(start: number, length: number): Promise<{ fields: Field[]; fault: string }> {
    const { image } = this.session;
    const found: Field[] = [];
    let fault = "";
    for (const part of structureAt(this.session, start, length)) {
      const shown = await image?.fields(part.start, part.length, part.structure);
      if (shown !== undefined && "value" in shown) {
        found.push(...shown.value.fields);
      } else if (shown !== undefined) {
        fault = shown.error;
      }
    }
    return { fields: found, fault };
  }

  #fieldAt(offset: number): Field | undefined {
    return this.window?.fields.find((field) => field.host_offset <= offset && offset < field.host_offset + field.length);
  }

  protected override render(): unknown {
    const last = Math.max(0, Math.ceil(this.#length / this.wide) - this.lines);
    return html`
      <form class="hex-tools" @submit=${this.#go}>
        <label>Go to <input name="offset" size="14" placeholder="0x10000, 64K" autocomplete="off" aria-invalid=${this.wrong === "" ? "false" : "true"} aria-describedby="hex-wrong"></label>
        <button type="submit" class="small">Go</button>
        <button type="button" class="small" @click=${() => this.#page(-1)} aria-label="Page up">↑</button>
        <button type="button" class="small" @click=${() => this.#page(1)} aria-label="Page down">↓</button>
        <button type="button" class="small" @click=${this.#copy}>Copy as hex</button>
        <span id="hex-wrong" class="error-text">${this.wrong}</span>
      </form>
      <div class="hex-frame">
        <div class="hex-lines" tabindex="0" role="application" aria-roledescription="hex view"
          aria-label="Bytes of the file: arrow keys move, Page up and down turn pages, Enter follows a field"
          @keydown=${this.#key} @wheel=${{ handleEvent: this.#wheel, passive: false }}>
          ${this.#rows()}
        </div>
        <input class="hex-scroll" type="range" min="0" max=${last} .value=${String(this.top)} aria-label="Position in the file"
          aria-valuetext=${hex(this.top * this.wide)} @input=${(event: Event) => { this.top = Number((event.target as HTMLInputElement).value); }}>
      </div>
      ${this.#about()}`;
  }

  #rows(): unknown {
    const { window } = this;
    if (window === undefined) {
      return nothing;
    }
    const rows: unknown[] = [];
    for (let line = 0; line * window.wide < window.bytes.length; line += 1) {
      const at = window.start + line * window.wide;
      const part = window.bytes.subarray(line * window.wide, (line + 1) * window.wide);
      rows.push(html`<div class="hex-line"><span class="hex-offset">${at.toString(16).padStart(10, "0")}</span>
        <span class="hex-bytes">${[...part].map((byte, index) => this.#byte(byte, at + index))}</span>
        <span class="hex-text" aria-hidden="true">${[...part].map((byte) => (byte > 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("")}</span></div>`);
    }
    return rows;
  }

  #byte(value: number, at: number): unknown {
    const field = this.#fieldIndex(at);
    const tint = field < 0 ? "" : `f${field % 6}${this.window?.fields[field]?.fault === "" ? "" : " fault"}`;
    const marked = this.marked !== undefined && at >= this.marked.start && at < this.marked.end ? " marked" : "";
    const cursor = at === this.#cursor ? " cursor" : "";
    return html`<span class="hex-byte ${tint}${marked}${cursor}${value === 0 ? " zero" : ""}" @click=${() => this.session.goTo("host", at)}>${value.toString(16).padStart(2, "0")}</span>`;
  }

  #fieldIndex(at: number): number {
    return this.window?.fields.findIndex((field) => field.host_offset <= at && at < field.host_offset + field.length) ?? -1;
  }

  #about(): unknown {
    const field = this.#fieldAt(this.#cursor);
    const runs = this.session.reports.host.state === "ready" ? this.session.reports.host.value : undefined;
    const kind = runs?.describe(runAt(runs, this.#cursor)).kind ?? "";
    return html`<div class="hex-about" aria-live="polite">
      <span><code>${hex(this.#cursor)}</code> ${kind}</span>
      ${field === undefined ? html`<span class="muted">${this.window?.fault || "no field here"}</span>` : html`
        <span><strong>${field.name}</strong>, ${bytes(field.length)}${field.meaning === "" ? "" : `: ${field.meaning}`}</span>
        ${field.fault === "" ? nothing : html`<span class="error-text">${field.fault}</span>`}
        ${field.target === null ? nothing : html`<button type="button" class="link" @click=${() => this.#follow(field)}>Follow to ${hex(field.target.host_offset)}</button>`}`}
    </div>`;
  }

  #follow(field: Field): void {
    if (field.target !== null) {
      this.session.goTo("host", field.target.host_offset);
    }
  }

  readonly #go = (event: SubmitEvent): void => {
    event.preventDefault();
    const text = String(new FormData(event.target as HTMLFormElement).get("offset") ?? "");
    const offset = parseSize(text);
    this.wrong = offset === null ? "Not an offset." : offset >= this.#length ? `The file ends at ${hex(this.#length)}.` : "";
    if (offset !== null && this.wrong === "") {
      this.session.goTo("host", offset);
    }
  };

  #page(turn: number): void {
    this.top += turn * (this.lines - 1);
  }

  readonly #copy = async (): Promise<void> => {
    const { image } = this.session;
    const part = this.marked ?? { start: this.#cursor, end: Math.min(this.#cursor + this.wide, this.#length) };
    const read = await image?.hostBytes(part.start, Math.min(part.end - part.start, 65536));
    await navigator.clipboard.writeText([...(read ?? [])].map((byte) => byte.toString(16).padStart(2, "0")).join(" "));
    this.session.say(`Copied ${bytes(read?.length ?? 0)}`);
  };

  readonly #wheel = (event: WheelEvent): void => {
    event.preventDefault();
    this.top += Math.sign(event.deltaY) * Math.max(1, Math.round(Math.abs(event.deltaY) / LINE / 2));
  };

  readonly #key = (event: KeyboardEvent): void => {
    const page = (this.lines - 1) * this.wide;
    const steps: Record<string, number> = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.wide, ArrowDown: this.wide, PageUp: -page, PageDown: page,
    };
    const step = event.ctrlKey || event.metaKey || event.altKey ? undefined : steps[event.key];
    if (step !== undefined) {
      this.session.goTo("host", Math.max(0, Math.min(this.#length - 1, this.#cursor + step)));
    } else if (event.key === "Home" || event.key === "End") {
      const line = this.#cursor - (this.#cursor % this.wide);
      this.session.goTo("host", event.key === "Home" ? line : Math.min(line + this.wide - 1, this.#length - 1));
    } else if (event.key === "Enter") {
      const field = this.#fieldAt(this.#cursor);
      if (field !== undefined) {
        this.#follow(field);
      }
    } else {
      return;
    }
    event.preventDefault();
  };
}

declare global {
  interface HTMLElementTagNameMap {
    "qcow-hex": QcowHex;
  }
}
