/** The discard lab: one workload under two policies, side by side, as a film. */

import { html, nothing, svg } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { LabConfig, LabSample } from "qcowkit/client";
import { bytes, count, parseSize, plural, reason } from "../format.ts";
import { HOST_KINDS } from "../kinds.ts";
import { runLab } from "../lab-run.ts";
import type { LabInput, LabResult, Moment } from "../lab-run.ts";
import { Palette } from "../map/paint.ts";
import { View } from "../view.ts";
import "../ui/swatch.ts";
import { FollowsTheme } from "../ui/theme.ts";

const COLUMNS = 80;
const CELL = 6;
/** Moments a second. */
const SPEED = 12;

const LAB_KINDS = ["data", "retained", "tables", "free"].flatMap((key) => HOST_KINDS.filter((kind) => kind.key === key));
const KIND_NAMES = ["Live data", "Kept without data", "Metadata", "Free"];

interface Metric {
  readonly key: keyof LabSample;
  readonly title: string;
  readonly text: (value: number) => string;
}

const METRICS: readonly Metric[] = [
  { key: "discontinuities", title: "Discontinuities", text: count },
  { key: "file_length", title: "Length of the file", text: bytes },
  { key: "host_bytes", title: "Space on the host", text: bytes },
  { key: "free_bytes", title: "Free inside the file", text: bytes },
  { key: "metadata_writes", title: "Metadata writes", text: count },
];

const POLICIES = ["ignore", "unmap", "no-unref"] as const;
const ALLOCATORS = ["qemu", "fill-holes", "near"] as const;

@customElement("pane-lab")
export class LabPane extends View {
  @state() private result: LabResult | undefined;
  @state() private at = 0;
  @state() private playing = false;
  @state() private running = false;
  @state() private why = "";
  @state() private metric: Metric = METRICS[0] as Metric;
  @state() private side: "host" | "guest" = "host";
  @state() private source: "churn" | "trace" = "churn";
  @state() private begin: "empty" | "image" = "empty";
  #generation = 0;
  #last = 0;
  readonly #still = matchMedia("(prefers-reduced-motion: reduce)");
  readonly #stillness = (): void => this.requestUpdate();

  constructor() {
    super();
    new FollowsTheme(this);
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#still.addEventListener("change", this.#stillness);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#still.removeEventListener("change", this.#stillness);
    this.playing = false;
    this.#generation += 1;
  }

  protected override render(): unknown {
    return html`<div class="scroll-pane lab-pane">
      <h2>Discard lab</h2>
      <p class="muted">One workload, two policies. No guest data are stored: the engine decides where they would go, as for a real image.</p>
      <form class="lab-form" @submit=${this.#run}>${this.#workload()}${this.#policy("A", "unmap")}${this.#policy("B", "no-unref")}
        <div class="buttons"><button type="submit" class="primary" ?disabled=${this.running}>Run</button>
          ${this.running ? html`<button type="button" @click=${() => { this.#generation += 1; this.running = false; }}>Stop</button>` : nothing}</div>
      </form>
      ${this.why === "" ? nothing : html`<p class="message error" role="alert">${this.why}</p>`}
      ${this.result === undefined ? html`<p class="empty-state">Run it to see both files fill, empty and fragment, operation by operation.</p>` : this.#film(this.result)}
    </div>`;
  }

  #workload(): unknown {
    return html`<fieldset><legend>Workload</legend>
      <label><span>From</span> <select name="source" @change=${(event: Event) => { this.source = (event.target as HTMLSelectElement).value as "churn"; }}>
        <option value="churn">made up: files written, rewritten, deleted</option><option value="trace">a trace file</option></select></label>
      ${this.source === "trace" ? html`<label><span>Trace</span> <input type="file" name="trace" required> <span class="muted">qemu-io, fio, blkparse or CSV</span></label>` : html`
        <label><span>Disk</span> <input name="size" size="6" value="2G" required></label>
        <label><span>Operations</span> <input name="operations" size="7" value="20000" required></label>
        <label><span>Full to</span> <input name="fill" size="3" value="70" required> %</label>
        <label><span>Trim</span> <select name="trim"><option value="2000">every 2000 operations</option><option value="online">at once</option><option value="never">never</option></select></label>
        <label><span>Seed</span> <input name="seed" size="4" value="1" required></label>`}
      <label><span>Begin with</span> <select name="begin" @change=${(event: Event) => { this.begin = (event.target as HTMLSelectElement).value as "empty"; }}><option value="empty">an empty disk</option>${this.session.image === undefined ? nothing : html`<option value="image">the open image</option>`}</select></label>
    </fieldset>`;
  }

  #policy(name: "A" | "B", chosen: string): unknown {
    return html`<fieldset class="policy-${name.toLowerCase()}"><legend>Policy ${name}</legend>
      <label><span>Discards</span> <select name="policy-${name}">${POLICIES.map((policy) => html`<option ?selected=${policy === chosen}>${policy}</option>`)}</select></label>
      <label><span>Allocator</span> <select name="allocator-${name}">${ALLOCATORS.map((one) => html`<option value=${one}>${one.replace("-", " ")}</option>`)}</select></label>
      ${this.begin === "image" && this.session.image !== undefined ? html`<p class="muted">Clusters as the image has them.</p>` : html`<label><span>Clusters</span> <select name="cluster-${name}">${[16, 64, 128, 512, 2048].map((size) => html`<option value=${size * 1024} ?selected=${size === 64}>${bytes(size * 1024)}</option>`)}</select></label>
      <label class="check"><input type="checkbox" name="sub-${name}"> subclusters</label>`}
    </fieldset>`;
  }

  readonly #run = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const generation = (this.#generation += 1);
    const form = new FormData(event.target as HTMLFormElement);
    this.why = "";
    this.result = undefined;
    this.at = 0;
    this.running = true;
    this.playing = !this.#still.matches;
    this.#last = 0;
    if (this.playing) {
      requestAnimationFrame(this.#tick);
    }
    try {
      const input = await read(form, this.source, this.session.image);
      await runLab(input, (result) => {
        const goes = generation === this.#generation;
        if (goes) {
          this.result = result;
          this.requestUpdate();
        }
        return goes;
      });
      this.session.say("The replay is done.");
    } catch (error) {
      this.why = reason(error);
    }
    if (generation === this.#generation) {
      this.running = false;
    }
  };

  readonly #tick = (now: number): void => {
    if (!this.playing || !this.isConnected) {
      return;
    }
    if (now - this.#last >= 1000 / SPEED) {
      this.#last = now;
      const end = (this.result?.moments[1].length ?? 0) - 1;
      if (this.at < end) {
        this.at += 1;
      } else if (this.result?.done === true) {
        this.playing = false;
      }
    }
    requestAnimationFrame(this.#tick);
  };

  #play(): void {
    if (this.result !== undefined && this.at >= this.result.moments[1].length - 1) {
      this.at = 0;
    }
    this.playing = !this.playing;
    if (this.playing) {
      requestAnimationFrame(this.#tick);
    }
  }

  #film(result: LabResult): unknown {
    const last = Math.max(0, result.moments[1].length - 1);
    const at = Math.min(this.at, last);
    const [a, b] = [result.moments[0][at], result.moments[1][at]];
    const step = (by: number): void => {
      this.playing = false;
      this.at = Math.max(0, Math.min(last, at + by));
    };
    return html`
      <p class="muted">${plural(result.summary.operations, "operation")} on ${bytes(result.size)}: ${plural(result.summary.writes, "write")} of ${bytes(result.summary.written_bytes)},
        ${plural(result.summary.discards, "discard")} of ${bytes(result.summary.discarded_bytes)}.${result.done ? nothing : ` Replayed so far: ${count(a?.sample.operation ?? 0)}.`}</p>
      <div class="player">
        ${this.#still.matches ? nothing : html`<button type="button" @click=${() => this.#play()}>${this.playing ? "Pause" : "Play"}</button>`}
        <button type="button" aria-label="Step back" @click=${() => step(-1)}>◂</button>
        <button type="button" aria-label="Step forward" @click=${() => step(1)}>▸</button>
        <input type="range" min="0" max=${last} .value=${String(at)} aria-label="Moment" aria-valuetext="operation ${a?.sample.operation ?? 0}"
          @input=${(event: Event) => { this.playing = false; this.at = Number((event.target as HTMLInputElement).value); }}>
        <span class="muted operation">operation ${count(a?.sample.operation ?? 0)}</span>
        <div class="segmented" role="group" aria-label="Side"><button type="button" aria-pressed=${this.side === "host"} @click=${() => { this.side = "host"; }}>File</button><button type="button" aria-pressed=${this.side === "guest"} @click=${() => { this.side = "guest"; }}>Disk</button></div>
      </div>
      <div class="lab-maps">${this.#map("A", a)}${this.#map("B", b)}</div>
      <ul class="lab-legend">${LAB_KINDS.map((kind, index) => html`<li><qcow-swatch .kind=${kind}></qcow-swatch> ${KIND_NAMES[index]}</li>`)}<li class="muted">1 cell = ${bytes(a?.frame.cell_bytes ?? result.cellBytes)}</li></ul>
      ${this.#curves(result, at)}
      ${a === undefined || b === undefined ? nothing : this.#numbers(a.sample, b.sample)}`;
  }

  #map(name: "A" | "B", moment: Moment | undefined): unknown {
    return html`<figure class="policy-${name.toLowerCase()}"><figcaption><strong>Policy ${name}</strong> <span>${moment === undefined ? "" : `${bytes(moment.sample.file_length)} file, ${bytes(moment.sample.host_bytes)} on the host`}</span></figcaption>
      <canvas class="lab-map" data-map=${name} role="img" aria-label="Map of policy ${name}; the table below has the numbers"></canvas></figure>`;
  }

  protected override updated(): void {
    const { result } = this;
    if (result === undefined) {
      return;
    }
    const at = Math.min(this.at, result.moments[1].length - 1);
    this.#paint("A", result.moments[0][at]);
    this.#paint("B", result.moments[1][at]);
  }

  #paint(name: string, moment: Moment | undefined): void {
    const canvas = this.querySelector<HTMLCanvasElement>(`canvas[data-map=${name}]`);
    const draw = canvas?.getContext("2d");
    if (canvas === null || !draw || moment === undefined || this.result === undefined) {
      return;
    }
    const scale = devicePixelRatio || 1;
    const rows = Math.ceil((this.result.size * 1.1) / this.result.cellBytes / COLUMNS);
    canvas.width = COLUMNS * CELL * scale;
    canvas.height = rows * CELL * scale;
    draw.scale(scale, scale);
    const palette = new Palette(draw, canvas, LAB_KINDS, scale);
    const cells = this.side === "host" ? moment.frame.host : moment.frame.guest;
    for (let cell = 0; cell * 4 < cells.length && cell < rows * COLUMNS; cell += 1) {
      const [x, side] = [(cell % COLUMNS) * CELL, CELL - 1];
      let y = Math.floor(cell / COLUMNS) * CELL;
      for (let kind = 0; kind < 4; kind += 1) {
        const share = (cells[cell * 4 + kind] ?? 0) / 255;
        const high = Math.round(share * side * 4) / 4;
        draw.fillStyle = palette.fills[kind] ?? palette.ground;
        draw.fillRect(x, y, side, high);
        y += high;
      }
    }
  }

  #curves(result: LabResult, at: number): unknown {
    const read = (moment: Moment): number => moment.sample[this.metric.key];
    const most = Math.max(1, ...result.moments.flatMap((moments) => moments.map(read)));
    const total = Math.max(1, result.operations);
    const x = (moment: Moment): number => (1000 * Math.min(moment.sample.operation, total)) / total;
    const line = (moments: readonly Moment[]): string => moments.map((moment) => `${x(moment).toFixed(1)},${(196 - (190 * read(moment)) / most).toFixed(1)}`).join(" ");
    const here = result.moments[0][at];
    return html`<div class="curves">
      <label>Curve <select @change=${(event: Event) => { this.metric = METRICS[Number((event.target as HTMLSelectElement).value)] ?? this.metric; }}>${METRICS.map((metric, index) => html`<option value=${index} ?selected=${metric === this.metric}>${metric.title}</option>`)}</select></label>
      <span class="muted">up to ${this.metric.text(most)}</span>
      <span class="key"><svg viewBox="0 0 30 10" aria-hidden="true"><line class="curve-a" x1="0" x2="30" y1="5" y2="5"></line></svg> A</span>
      <span class="key"><svg viewBox="0 0 30 10" aria-hidden="true"><line class="curve-b" x1="0" x2="30" y1="5" y2="5"></line></svg> B</span>
      <svg class="curve" viewBox="0 0 1000 200" preserveAspectRatio="none" role="img" aria-label="${this.metric.title} over the operations of the trace">
        <line class="grid" x1="0" x2="1000" y1="6" y2="6"></line><line class="grid" x1="0" x2="1000" y1="101" y2="101"></line><line class="grid" x1="0" x2="1000" y1="196" y2="196"></line>
        ${svg`<polyline class="curve-a" points=${line(result.moments[0])}></polyline><polyline class="curve-b" points=${line(result.moments[1])}></polyline>`}
        ${here === undefined ? nothing : svg`<line class="head" x1=${x(here)} x2=${x(here)} y1="0" y2="200"></line>`}
      </svg></div>`;
  }

  #numbers(a: LabSample, b: LabSample): unknown {
    const rows: [string, keyof LabSample, (value: number) => string][] = [
      ["Length of the file", "file_length", bytes], ["Space on the host", "host_bytes", bytes], ["Live data", "live_bytes", bytes],
      ["Kept without data", "retained_bytes", bytes], ["Free inside the file", "free_bytes", bytes], ["Gaps", "gaps", count],
      ["Largest gap", "largest_gap", bytes], ["Discontinuities", "discontinuities", count], ["Runs", "runs", count],
      ["Metadata writes", "metadata_writes", count], ["Barriers", "barriers", count], ["Discards sent to the host", "host_discards", count],
      ["Bytes discarded on the host", "host_discarded_bytes", bytes],
    ];
    return html`<table class="data lab-numbers"><caption class="sr">Both images at this moment</caption>
      <thead><tr><th scope="col">At this moment</th><th scope="col" class="numeric">A</th><th scope="col" class="numeric">B</th></tr></thead>
      <tbody>${rows.map(([title, key, text]) => html`<tr><th scope="row">${title}</th><td class="numeric">${text(a[key])}</td><td class="numeric">${text(b[key])}</td></tr>`)}</tbody></table>`;
  }
}

/** What the form says. */
async function read(form: FormData, source: "churn" | "trace", image: LabInput["image"]): Promise<LabInput> {
  const config = (name: "A" | "B"): LabConfig => ({
    base: String(form.get(`policy-${name}`)) as (typeof POLICIES)[number],
    allocation: String(form.get(`allocator-${name}`)) as (typeof ALLOCATORS)[number],
    // Without them: those of the image that it begins with.
    ...(form.has(`cluster-${name}`) ? { cluster_size: Number(form.get(`cluster-${name}`)), extended_l2: form.has(`sub-${name}`) } : {}),
  });
  const configs = [config("A"), config("B")] as const;
  const begin = form.get("begin") === "image" ? image : undefined;
  if (source === "trace") {
    const file = form.get("trace");
    if (!(file instanceof File)) {
      throw new Error("choose a trace");
    }
    return { churn: undefined, trace: new Uint8Array(await file.arrayBuffer()), image: begin, configs };
  }
  const size = begin === undefined ? parseSize(String(form.get("size"))) : await begin.virtualSize;
  const number = (name: string, least: number, most: number): number => {
    const value = Number(form.get(name));
    if (!Number.isInteger(value) || value < least || value > most) {
      throw new Error(`${name}: a number from ${least} to ${most}`);
    }
    return value;
  };
  if (size === null || size > 2 ** 42) {
    throw new Error("the disk: a size of at most 4 TiB, such as 2G");
  }
  const trim = String(form.get("trim"));
  return {
    churn: {
      size,
      operations: number("operations", 1, 1_000_000),
      fill_percent: number("fill", 1, 99),
      seed: number("seed", 0, 2 ** 31),
      trim: trim === "never" || trim === "online" ? trim : { every: Number(trim) },
    },
    trace: undefined,
    image: begin,
    configs,
  };
}
