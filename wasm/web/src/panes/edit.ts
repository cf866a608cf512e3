/** Edits: what a discard would do under each policy, bytes, snapshots; all of it in memory, and to be undone. */

import { html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { DiscardPolicy, DiscardReport, GuestRange, StateBytes } from "qcowkit/client";
import { bytes, count, hex, parseSize, plural, reason, words } from "../format.ts";
import { runAt } from "../model.ts";
import { View } from "../view.ts";

interface Policy {
  readonly key: string;
  readonly title: string;
  readonly help: string;
  readonly options: DiscardPolicy;
}

const POLICIES: readonly Policy[] = [
  { key: "ignore", title: "ignore", help: "discard=ignore: the image never hears of it", options: { discard: false } },
  { key: "unmap", title: "unmap", help: "discard=unmap: clusters are given back", options: { discard: true, unref: "always" } },
  { key: "no-unref", title: "no-unref", help: "discard-no-unref=on: clusters keep their place and become holes; shared ones are given back", options: { discard: true, unref: "retain_unshared" } },
  { key: "no-unref-qemu", title: "no-unref as QEMU", help: "as QEMU 10 does it: shared clusters are kept too", options: { discard: true, unref: "retain_qemu" } },
];

const STATES: readonly (keyof StateBytes)[] = ["data", "compressed", "zero_retained", "zero", "unallocated"];

/** Guest ranges of a selection of the file at most. */
const MAX_RANGES = 10_000;

/** Snapshots that are listed at first, and that each "more" adds: there may be 65,535. */
const ROWS = 100;

type Planned = { report: DiscardReport } | { why: string };

@customElement("pane-edit")
export class EditPane extends View {
  @state() private plans: readonly Planned[] | undefined;
  @state() private wrong = "";
  @state() private fillWith: "text" | "hex" | "repeat" = "text";
  @state() private rows = ROWS;
  #asked = "";

  protected override willUpdate(): void {
    void this.session.need("snapshots");
    if (this.session.selection?.side === "host") {
      void this.session.need("host");
    }
    const { selection, revision, image } = this.session;
    const key = `${revision} ${selection?.side} ${selection?.start} ${selection?.end} ${this.session.reports.host.state}`;
    if (key !== this.#asked && image !== undefined) {
      this.#asked = key;
      void this.#plan(key);
    }
  }

  /** The selection as parts of the disk, and why there may be more of them than these. */
  #chosen(): { ranges: GuestRange[]; short: string } {
    const { selection, reports } = this.session;
    if (selection === undefined) {
      return { ranges: [], short: "" };
    }
    if (selection.side === "guest") {
      return { ranges: [{ offset: selection.start, length: selection.end - selection.start }], short: "" };
    }
    if (reports.host.state !== "ready") {
      return { ranges: [], short: "" };
    }
    const runs = reports.host.value;
    const ranges: GuestRange[] = [];
    const beyond = selection.start < runs.first || (selection.end > runs.end && runs.next !== undefined);
    for (let run = runAt(runs, selection.start); run < runs.offset.length && ranges.length < MAX_RANGES; run += 1) {
      const at = runs.offset[run] ?? 0;
      const [from, to] = [Math.max(at, selection.start), Math.min(at + (runs.length[run] ?? 0), selection.end)];
      const guest = runs.across(run);
      if (from >= selection.end) {
        break;
      }
      if (guest !== undefined && to > from && runs.structure?.(run) === "data_cluster") {
        ranges.push({ offset: guest + from - at, length: to - from });
      }
    }
    return {
      ranges,
      short: ranges.length >= MAX_RANGES ? `Only the first ${count(MAX_RANGES)} ranges of the selection are taken.`
        : beyond ? "The selection reaches beyond the part of the map that is shown: only what lies in this part is taken." : "",
    };
  }

  #ranges(): GuestRange[] {
    return this.#chosen().ranges;
  }

  async #plan(key: string): Promise<void> {
    const { image } = this.session;
    const ranges = this.#ranges();
    if (image === undefined || ranges.length === 0) {
      this.plans = undefined;
      return;
    }
    const plans: Planned[] = [];
    for (const policy of POLICIES) {
      plans.push(await image.planDiscard(ranges, policy.options).then((report) => ({ report }), (error: unknown) => ({ why: reason(error) })));
    }
    if (key === this.#asked) {
      this.plans = plans;
    }
  }

  protected override render(): unknown {
    const { facts, busy } = this.session;
    const ready = busy === undefined && facts?.readOnly === false && facts.problem === undefined;
    return html`<div class="scroll-pane edit-pane">
      ${facts?.problem === undefined ? nothing : html`<p class="message error">The disk cannot be edited: ${facts.problem.message}. ${facts.problem.code === "corrupt" ? "A repair may help (Check)." : nothing}</p>`}
      ${this.session.dataFile === undefined ? nothing : html`<p class="message">The guest's data are in a file of their own, “${this.session.dataFile}”. Save both, the image and the data file: neither holds the edits alone, and patches are those of the image.</p>`}
      <div class="columns">
        <div>${this.#selection(ready)}${this.#discard(ready)}${this.#write(ready)}</div>
        <div>${this.#journal(busy === undefined)}${this.#snapshots(ready)}${this.#resize(ready)}</div>
      </div>
    </div>`;
  }

  #selection(ready: boolean): unknown {
    const { selection } = this.session;
    const side = selection?.side ?? "guest";
    return html`<section><h2>Selection</h2>
      <form class="line" @submit=${this.#select}>
        <label>of the <select name="side"><option value="guest" ?selected=${side === "guest"}>disk</option><option value="host" ?selected=${side === "host"}>file</option></select></label>
        <label>from <input name="start" size="12" required .value=${selection === undefined ? "" : hex(selection.start)} placeholder="0x0, 64K"></label>
        <label>length <input name="length" size="10" required .value=${selection === undefined ? "" : String(selection.end - selection.start)} placeholder="1M"></label>
        <button type="submit">Select</button>
        <button type="button" ?disabled=${!ready} @click=${() => this.session.select({ side: "guest", start: 0, end: this.session.facts?.virtualSize ?? 0 })}>Whole disk</button>
      </form>
      ${this.wrong === "" ? nothing : html`<p class="error-text" role="alert">${this.wrong}</p>`}</section>`;
  }

  readonly #select = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = new FormData(event.target as HTMLFormElement);
    const side = form.get("side") === "host" ? "host" : "guest";
    const [start, length] = [parseSize(String(form.get("start"))), parseSize(String(form.get("length")))];
    const end = (side === "host" ? this.session.facts?.fileLength : this.session.facts?.virtualSize) ?? 0;
    if (start === null || length === null || length === 0) {
      this.wrong = "Offset and length are numbers such as 4096, 0x1000, 64K or 1.5G.";
    } else if (start + length > end) {
      this.wrong = `The ${side === "host" ? "file" : "disk"} ends at ${hex(end)}.`;
    } else {
      this.wrong = "";
      this.session.select({ side, start, end: start + length });
    }
  };

  #discard(ready: boolean): unknown {
    const { plans } = this;
    const { ranges, short } = this.#chosen();
    const all = ranges.reduce((sum, range) => sum + range.length, 0);
    if (ranges.length === 0) {
      return html`<section><h2>Discard</h2><p class="muted">${this.session.selection === undefined
        ? "Select a part of the disk, here or on the map, to see what each policy would do with it."
        : "No guest data lie in the selected part of the file."}</p></section>`;
    }
    const cell = (plan: Planned | undefined, read: (report: DiscardReport) => unknown) => html`<td class="numeric">${plan === undefined ? "…" : "why" in plan ? "–" : read(plan.report)}</td>`;
    const change = (report: DiscardReport, name: keyof StateBytes): unknown => {
      const [before, after] = [report.before[name], report.after[name]];
      return before === after ? html`<span class="muted">${bytes(after)}</span>` : html`${bytes(after)} <span class=${after > before ? "up" : "down"}>${after > before ? "+" : "−"}${bytes(Math.abs(after - before))}</span>`;
    };
    return html`<section><h2>Discard ${bytes(all)}${ranges.length > 1 ? ` in ${plural(ranges.length, "range")}` : ""}</h2>
      ${short === "" ? nothing : html`<p class="message">${short}</p>`}
      <p class="muted">What would become of the selected bytes under each policy. Whole clusters only, as everywhere.</p>
      <div class="wide" tabindex="0" role="group" aria-label="Plans by policy"><table class="data plans"><caption class="sr">Plans by policy</caption>
        <thead><tr><th scope="col">Afterwards</th>${POLICIES.map((policy) => html`<th scope="col" class="numeric" title=${policy.help}>${policy.title}</th>`)}</tr></thead>
        <tbody>
          ${STATES.map((name) => html`<tr><th scope="row">${words(name)}</th>${POLICIES.map((_, index) => cell(plans?.[index], (report) => change(report, name)))}</tr>`)}
          <tr><th scope="row">holes asked of the host</th>${POLICIES.map((_, index) => cell(plans?.[index], (report) => bytes(report.host_discards)))}</tr>
          <tr><th scope="row">file length</th>${POLICIES.map((_, index) => cell(plans?.[index], (report) => bytes(report.file_length_after)))}</tr>
          <tr><td></td>${POLICIES.map((policy, index) => {
            const plan = plans?.[index];
            return html`<td class="numeric">${plan !== undefined && "why" in plan ? html`<span class="error-text">${plan.why}</span>` : html`<button type="button" class=${policy.key === "unmap" ? "primary" : ""} aria-label="Apply discard under ${policy.title}"
              ?disabled=${!ready || plan === undefined || policy.key === "ignore"} @click=${() => void this.#apply(policy, ranges, all)}>Apply</button>`}</td>`;
          })}</tr>
        </tbody></table></div></section>`;
  }

  async #apply(policy: Policy, ranges: GuestRange[], all: number): Promise<void> {
    await this.session.edit(`discard of ${bytes(all)}, ${policy.title}`, (image) => image.discard(ranges, policy.options));
  }

  #write(ready: boolean): unknown {
    const { selection } = this.session;
    const at = selection?.side === "guest" ? hex(selection.start) : "";
    return html`<section><h2>Write</h2>
      <form class="stack" @submit=${this.#store}>
        <div class="line"><label>at guest offset <input name="offset" size="12" required .value=${at} placeholder="0x0"></label>
          <label>as <select name="form" @change=${(event: Event) => { this.fillWith = (event.target as HTMLSelectElement).value as "text"; }}>
            <option value="text">text</option><option value="hex">hex bytes</option><option value="repeat">a byte, repeated</option></select></label>
          ${this.fillWith === "repeat" ? html`<label>length <input name="length" size="8" value=${selection === undefined ? "64K" : String(selection.end - selection.start)}></label>` : nothing}</div>
        <label class="grow">${this.fillWith === "text" ? "Text" : this.fillWith === "hex" ? "Bytes in hex" : "Byte in hex"} <input name="data" required placeholder=${this.fillWith === "text" ? "hello" : this.fillWith === "hex" ? "de ad be ef" : "5a"}></label>
        <div class="buttons"><button type="submit" ?disabled=${!ready}>Write</button>
          <button type="button" ?disabled=${!ready || selection === undefined} @click=${() => void this.#zero(true)}>Zero the selection</button>
          <button type="button" ?disabled=${!ready || selection === undefined} @click=${() => void this.#zero(false)}>… and keep its clusters</button></div>
      </form></section>`;
  }

  readonly #store = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = new FormData(event.target as HTMLFormElement);
    const offset = parseSize(String(form.get("offset")));
    const data = content(this.fillWith, String(form.get("data")), parseSize(String(form.get("length") ?? "0")) ?? 0);
    if (offset === null || typeof data === "string") {
      this.wrong = offset === null ? "The offset is not a number." : (data as string);
      return;
    }
    this.wrong = "";
    if (await this.session.edit(`write of ${bytes(data.length)} at ${hex(offset)}`, (image) => image.write(offset, data))) {
      this.session.goTo("guest", offset);
    }
  };

  async #zero(unmap: boolean): Promise<void> {
    const ranges = this.#ranges();
    const all = ranges.reduce((sum, range) => sum + range.length, 0);
    await this.session.edit(`zeros over ${bytes(all)}${unmap ? "" : ", clusters kept"}`, async (image) => {
      for (const { offset, length } of ranges) {
        await image.writeZeroes(offset, length, { unmap });
      }
    });
  }

  #journal(ready: boolean): unknown {
    const { edits } = this.session;
    return html`<section><h2>Edits</h2>
      ${edits.length === 0 ? html`<p class="muted">None yet. Edits stay in memory; the file is never changed.</p>` : html`
        <ol class="journal">${edits.map((edit) => html`<li>${edit.title}</li>`)}</ol>
        <div class="buttons"><button type="button" ?disabled=${!ready} @click=${() => void this.session.undo()}>Undo ${edits.at(-1)?.title ?? ""}</button></div>`}</section>`;
  }

  #snapshots(ready: boolean): unknown {
    const { snapshots } = this.session.reports;
    const list = snapshots.state === "ready" ? snapshots.value : [];
    return html`<section><h2>Snapshots</h2>
      ${snapshots.state === "failed" ? html`<p class="error-text">${snapshots.why}</p>` : nothing}
      ${list.length === 0 ? html`<p class="muted">No internal snapshots.</p>` : html`<table class="data"><caption class="sr">Snapshots</caption>
        <thead><tr><th scope="col">ID</th><th scope="col">Name</th><th scope="col">Taken</th><th scope="col" class="numeric">VM state</th><th scope="col">Do</th></tr></thead>
        <tbody>${list.slice(0, this.rows).map((one) => html`<tr><td>${one.id}</td><td>${one.name}</td><td>${new Date(one["date-sec"] * 1000).toISOString().slice(0, 16).replace("T", " ")}</td><td class="numeric">${bytes(one["vm-state-size"])}</td>
          <td><button type="button" class="link" ?disabled=${!ready} @click=${() => void this.session.edit(`return to snapshot ${one.name}`, (image) => image.applySnapshot(one.id))}>apply</button>
          <button type="button" class="link" ?disabled=${!ready} @click=${() => void this.session.edit(`deletion of snapshot ${one.name}`, (image) => image.deleteSnapshot(one.id))}>delete</button></td></tr>`)}</tbody></table>
        ${list.length > this.rows ? html`<div class="line"><span class="muted">${plural(list.length - this.rows, "snapshot")} more.</span>
          <button type="button" class="small" @click=${() => { this.rows += ROWS; }}>Show more</button></div>` : nothing}`}
      <form class="line" @submit=${this.#take}><label>Name <input name="name" size="16" required></label><button type="submit" ?disabled=${!ready}>Take a snapshot</button></form></section>`;
  }

  readonly #take = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = event.target as HTMLFormElement;
    const name = String(new FormData(form).get("name"));
    if (await this.session.edit(`snapshot ${name}`, (image) => image.createSnapshot(name))) {
      form.reset();
    }
  };

  #resize(ready: boolean): unknown {
    return html`<section><h2>Size of the disk</h2>
      <form class="line" @submit=${this.#size}><label>Bytes <input name="size" size="12" required .value=${String(this.session.facts?.virtualSize ?? "")}></label>
      <label class="check"><input type="checkbox" name="shrink"> may lose its end</label><button type="submit" ?disabled=${!ready}>Resize</button></form></section>`;
  }

  readonly #size = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const form = new FormData(event.target as HTMLFormElement);
    const size = parseSize(String(form.get("size")));
    this.wrong = size === null ? "The size is not a number." : "";
    if (size !== null) {
      await this.session.edit(`resize to ${bytes(size)}`, (image) => image.resize(size, { shrink: form.has("shrink") }));
    }
  };
}

/** The bytes that a form describes, or what is wrong with it. */
function content(form: "text" | "hex" | "repeat", text: string, length: number): Uint8Array | string {
  if (form === "text") {
    return new TextEncoder().encode(text);
  }
  const digits = text.replace(/0x|[\s,]/g, "");
  if (!/^([0-9a-f]{2})+$/i.test(digits)) {
    return "Hex bytes are pairs of digits, such as de ad be ef.";
  }
  const found = Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
  if (form === "hex") {
    return found;
  }
  if (length === 0 || length > 256 * 1024 * 1024) {
    return "The length is from 1 byte to 256 MiB.";
  }
  return new Uint8Array(length).fill(found[0] ?? 0);
}
