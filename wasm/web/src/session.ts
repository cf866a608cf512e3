/** The state of the page: one image with its reports, the place that all views look at, and the edits. */

import type {
  Analysis, CheckReport, HeaderReport, ImageInfo, ListedSnapshot, PartitionTable, Progress, QcowError, Reference, Region,
  RemoteImage, RemoteInput, RemoteQcowkit, Shown,
} from "qcowkit/client";
import { startEngine } from "./engine.ts";
import { hex, percent, reason } from "./format.ts";
import { guestRuns, hostRuns } from "./model.ts";
import type { Runs, Side } from "./model.ts";

/** Rows of a map that are held at a time: on the disk's side they come as text. */
const MAX_ROWS: Readonly<Record<Side, number>> = { host: 1 << 20, guest: 1 << 18 };

/** How long the worker may take to hear that it shall stop, in milliseconds. */
const PATIENCE = 3000;

const STOPPED = "You stopped it.";

/** Edits that can be undone. */
const MAX_UNDO = 100;

/** A report that is made when it is looked at. */
export type Lazy<T> =
  | { readonly state: "none" }
  | { readonly state: "loading"; readonly done: number }
  | { readonly state: "ready"; readonly value: T }
  | { readonly state: "failed"; readonly why: string };

export interface Reports {
  host: Runs;
  guest: Runs;
  analysis: Analysis;
  check: CheckReport;
  partitions: PartitionTable | null;
  regions: Shown<Region[]>;
  snapshots: ListedSnapshot[];
}

type ReportName = keyof Reports;

export interface Edit {
  readonly title: string;
  /** The state before it. */
  readonly checkpoint: number;
}

/** What is opened. */
export interface Input {
  readonly name: string;
  /** Where it lies among `files`; its name otherwise. */
  readonly path?: string;
  readonly input: RemoteInput;
  /** Files that it may name, by their paths. */
  readonly files?: Readonly<Record<string, Blob>>;
  readonly key?: string;
}

/** What is known of an open image as a whole. */
export interface Facts {
  readonly info: ImageInfo | undefined;
  readonly header: Shown<HeaderReport>;
  readonly problem: QcowError | undefined;
  readonly virtualSize: number;
  readonly clusterSize: number;
  readonly fileLength: number;
  readonly readOnly: boolean;
}

export type Pane = "map" | "structure" | "runs" | "check" | "partitions" | "layout" | "edit" | "lab";

export const PANES: readonly Pane[] = ["map", "structure", "runs", "check", "partitions", "layout", "edit", "lab"];

/** A place in the file or on the disk. */
export interface Place {
  readonly side: Side;
  readonly offset: number;
}

export interface Selection {
  readonly side: Side;
  readonly start: number;
  readonly end: number;
}

const NONE = { state: "none" } as const;

export class Session extends EventTarget {
  state: "empty" | "opening" | "open" | "failed" = "empty";
  /** The lab is shown although no image is open. */
  labOnly = false;
  failure: { title: string; why: string; code: string | undefined } | undefined;
  /** A message that stays until it is closed. */
  notice = "";
  opened: Input | undefined;
  image: RemoteImage | undefined;
  facts: Facts | undefined;
  reports: { [K in ReportName]: Lazy<Reports[K]> } = noReports();
  pane: Pane = "map";
  place: Place = { side: "host", offset: 0 };
  selection: Selection | undefined;
  edits: Edit[] = [];
  /** Whether the edits as they are were saved. */
  saved = true;
  /** What is under way, in words. */
  busy: string | undefined;
  /** Files that the image names and that were not given. */
  missing: readonly Reference[] = [];
  /** Where the parts of the maps begin that were looked at; the last one is shown. */
  parts: Readonly<Record<Side, readonly number[]>> = { host: [0], guest: [0] };
  /** Goes up with every change of the image. */
  revision = 0;
  #engine: RemoteQcowkit | undefined;
  #sealed = true;
  /** Goes up with every stop. */
  #stops = 0;

  /** The worker; started when it is first needed, or before, so that its files are there when the network is not. */
  get engine(): RemoteQcowkit {
    return (this.#engine ??= this.#start());
  }

  #start(): RemoteQcowkit {
    const engine = startEngine(this.#sealed, () => {
      if (this.#engine !== engine) {
        return;
      }
      // The next call begins another one.
      this.#engine = undefined;
      if (this.state === "open") {
        this.image = undefined;
        this.fail(`${this.opened?.name ?? "The image"} was closed`, new Error("The worker that held it has failed."));
      }
    });
    return engine;
  }

  changed(): void {
    this.dispatchEvent(new Event("change"));
  }

  /** Says something to those who listen instead of looking. */
  say(text: string): void {
    this.dispatchEvent(new CustomEvent("say", { detail: text }));
  }

  get dirty(): boolean {
    return this.edits.length > 0 && !this.saved;
  }

  /** Asks before edits are lost. */
  mayLeave(): boolean {
    return !this.dirty || confirm("The edits are not saved. Lose them?");
  }

  /** A backing file is missing: of the disk only what the image itself holds is known. */
  get alone(): boolean {
    return this.missing.some((one) => one.role === "backing_file");
  }

  /** The file beside the image that holds the guest's data, if there is one. */
  get dataFile(): string | undefined {
    return this.facts?.info?.["format-specific"].data["data-file"];
  }

  /** What is under way that a person may want to end. */
  get work(): string | undefined {
    const loading = (Object.keys(this.reports) as ReportName[]).find((name) => this.reports[name].state === "loading");
    return this.busy ?? (loading === undefined ? undefined : WORK[loading]);
  }

  /** Opens an image in place of the one that is open. */
  async open(input: Input): Promise<void> {
    const foreign = isForeign(input.input);
    await this.close();
    if (foreign === this.#sealed) {
      this.#engine?.terminate();
      this.#engine = undefined;
      this.#sealed = !foreign;
    }
    this.state = "opening";
    this.opened = input;
    this.labOnly = false;
    this.busy = `Opening ${input.name}`;
    this.changed();
    const missing: Reference[] = [];
    try {
      this.image = await this.engine.open(input.input, {
        tolerant: true,
        identity: input.path ?? input.name,
        missing: (reference) => missing.push(reference),
        ...(input.files === undefined ? {} : { files: input.files }),
        ...(input.key === undefined ? {} : { key: input.key }),
      });
      await this.#look();
      this.missing = missing.filter((one, at) => missing.findIndex((other) => other.name === one.name && other.depth === one.depth) === at);
      this.state = "open";
      this.say(`${input.name} is open`);
    } catch (error) {
      this.fail(`${input.name} cannot be shown`, error);
    }
    this.busy = undefined;
    this.changed();
    void this.#readAll();
  }

  /** Opens an encrypted image with its password; with a wrong one it stays as it was, and that is told. */
  async unlock(key: string): Promise<void> {
    const { opened } = this;
    if (opened === undefined) {
      return;
    }
    const { key: _none, ...locked } = opened;
    const { pane, place } = this;
    await this.open({ ...locked, key });
    if (this.facts?.problem?.code === "wrong_key") {
      await this.open(locked);
      this.notice = "The password is wrong: it opens none of the image's keys.";
      this.say(this.notice);
    }
    this.goTo(place.side, place.offset, pane);
  }

  /** What is always in sight, one after the other, unless it is stopped. */
  async #readAll(): Promise<void> {
    const { revision } = this;
    const stops = this.#stops;
    for (const name of ["host", "analysis", "check"] as const) {
      if (revision === this.revision && stops === this.#stops) {
        await this.need(name);
      }
    }
  }

  /** Shows why there is no image. */
  fail(title: string, error: unknown): void {
    const code = error instanceof Error && "code" in error ? String(error.code) : undefined;
    this.failure = { title, why: isStopped(error) ? STOPPED : reason(error), code };
    this.state = "failed";
    this.busy = undefined;
    this.say(`${title}: ${this.failure.why}`);
    this.changed();
  }

  async close(): Promise<void> {
    const image = this.image;
    Object.assign(this, {
      state: "empty", failure: undefined, opened: undefined, image: undefined, facts: undefined, reports: noReports(),
      place: { side: "host", offset: 0 }, selection: undefined, edits: [], saved: true, notice: "", missing: [],
      parts: { host: [0], guest: [0] },
    });
    this.revision += 1;
    await image?.close().catch(() => undefined);
    this.changed();
  }

  /**
   * Ends what the worker is doing. The image stays open and its edits stay: only a worker that does not listen is ended,
   * and a person is asked first if that loses edits.
   */
  async stop(): Promise<void> {
    const engine = this.#engine;
    if (engine === undefined) {
      return;
    }
    this.#stops += 1;
    engine.stop();
    for (const name of Object.keys(this.reports) as ReportName[]) {
      if (this.reports[name].state === "none" && (name === "analysis" || name === "check")) {
        this.reports[name] = { state: "failed", why: STOPPED };
      }
    }
    this.say("Stopped");
    this.changed();
    // It answers in turn: when this is answered, everything before it has ended.
    let answered = false;
    const idle = engine.version().then(() => { answered = true; }, () => { answered = true; });
    await Promise.race([idle, new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
    if (!answered && this.#engine === engine && this.#mayEnd()) {
      this.#engine = undefined;
      this.image = undefined;
      const name = this.opened?.name ?? "The image";
      this.fail(`${name} was closed`, new Error("What was under way could not be stopped otherwise."));
      engine.terminate();
    }
  }

  #mayEnd(): boolean {
    return !this.dirty || confirm("The work that is under way cannot be stopped without closing the image. Close it, and lose the edits that are not saved?");
  }

  /** Opens again what was closed by itself. */
  async reopen(): Promise<void> {
    if (this.opened !== undefined) {
      await this.open(this.opened);
    }
  }

  /** Makes a report that failed once more. */
  async again(report: Lazy<unknown>): Promise<void> {
    const name = (Object.keys(this.reports) as ReportName[]).find((one) => this.reports[one] === report);
    if (name !== undefined) {
      this.reports[name] = NONE;
      await this.need(name);
    }
  }

  /** Shows the part of a map that begins at `start`: a map has as many runs as can be held. */
  turn(side: Side, start: number): void {
    const known = this.parts[side].filter((one) => one < start);
    this.parts = { ...this.parts, [side]: [...known, start] };
    this.reports[side] = NONE;
    this.changed();
    void this.need(side);
  }

  /** Reads what is known of the image as a whole. */
  async #look(): Promise<void> {
    const image = this.image;
    if (image === undefined) {
      return;
    }
    const [info, header, problem, virtualSize, clusterSize, fileLength, readOnly] = await Promise.all([
      image.info().catch(() => undefined), headerOf(image), image.problem, image.virtualSize, image.clusterSize,
      image.fileLength, image.readOnly,
    ]);
    this.facts = { info, header, problem, virtualSize, clusterSize, fileLength, readOnly };
  }

  /** Makes a report if it is not there. */
  async need<K extends ReportName>(name: K): Promise<Reports[K] | undefined> {
    const image = this.image;
    const now: Lazy<Reports[K]> = this.reports[name];
    if (image === undefined || now.state !== "none") {
      return now.state === "ready" ? now.value : undefined;
    }
    const revision = this.revision;
    const set = (next: Lazy<Reports[K]>): void => {
      if (revision === this.revision) {
        (this.reports as Record<K, Lazy<Reports[K]>>)[name] = next;
        this.changed();
      }
    };
    set({ state: "loading", done: 0 });
    try {
      const value = (await this.#make(name, image, seldom((done) => set({ state: "loading", done })))) as Reports[K];
      set({ state: "ready", value });
      return value;
    } catch (error) {
      set({ state: "failed", why: isStopped(error) ? STOPPED : reason(error) });
      return undefined;
    }
  }

  async #make(name: ReportName, image: RemoteImage, progress: (done: number) => void): Promise<Reports[ReportName]> {
    switch (name) {
      case "host":
        return hostRuns(await image.clusters({ host_offset: this.parts.host.at(-1) ?? 0, max_rows: MAX_ROWS.host, progress }));
      case "guest": {
        const offset = this.parts.guest.at(-1) ?? 0;
        const rows = await image.map({ offset, max_rows: MAX_ROWS.guest, local: this.alone });
        return guestRuns(rows, offset, this.facts?.clusterSize || 65536, this.facts?.virtualSize ?? 0, { alone: this.alone, apart: this.dataFile !== undefined });
      }
      case "analysis":
        return image.analyze({ progress });
      case "check":
        return image.check({ progress });
      case "partitions":
        return image.partitions();
      case "regions":
        return image.regions();
      case "snapshots":
        return image.snapshots();
    }
  }

  /** Changes the image; what went wrong goes back, and is told. */
  async edit(title: string, change: (image: RemoteImage, progress: Progress) => Promise<unknown>): Promise<boolean> {
    const image = this.image;
    if (image === undefined || this.busy !== undefined) {
      return false;
    }
    this.busy = title;
    this.changed();
    const progress = seldom((part) => {
      this.busy = `${title}, ${percent(part, 1)}`;
      this.changed();
    });
    let checkpoint: number | undefined;
    let done = false;
    try {
      checkpoint = await image.checkpoint();
      await change(image, progress);
      await image.flush();
      this.edits.push({ title, checkpoint });
      if (this.edits.length > MAX_UNDO) {
        const oldest = this.edits.shift();
        await image.dropCheckpoint(oldest?.checkpoint ?? checkpoint);
      }
      this.saved = false;
      this.say(`Done: ${title}`);
      this.notice = "";
      done = true;
    } catch (error) {
      if (checkpoint !== undefined) {
        await image.rollback(checkpoint).catch(() => undefined);
        await image.dropCheckpoint(checkpoint).catch(() => undefined);
      }
      if (this.image !== image) {
        return false;
      }
      this.notice = `${title}: ${isStopped(error) ? "stopped, and taken back" : reason(error)}`;
      this.say(`Not done: ${this.notice}`);
    }
    await this.#anew();
    return done;
  }

  async undo(): Promise<void> {
    const last = this.edits.at(-1);
    const image = this.image;
    if (last === undefined || image === undefined || this.busy !== undefined) {
      return;
    }
    this.busy = `Undoing: ${last.title}`;
    this.changed();
    try {
      await image.rollback(last.checkpoint);
      await image.dropCheckpoint(last.checkpoint);
      this.edits.pop();
      this.saved = this.edits.length === 0;
      this.say(`Undone: ${last.title}`);
    } catch (error) {
      this.notice = `Undo: ${reason(error)}`;
    }
    await this.#anew();
  }

  /** After a change: facts and reports are made again. */
  async #anew(): Promise<void> {
    const shown = (Object.keys(this.reports) as ReportName[]).filter((name) => this.reports[name].state !== "none");
    this.revision += 1;
    this.reports = noReports();
    await this.#look().catch((error: unknown) => this.fail("The image cannot be shown any more", error));
    const within = (starts: readonly number[], end = 0): number[] => starts.filter((start) => start === 0 || start < end);
    this.parts = { host: within(this.parts.host, this.facts?.fileLength), guest: within(this.parts.guest, this.facts?.virtualSize) };
    this.busy = undefined;
    this.changed();
    for (const name of shown) {
      await this.need(name);
    }
  }

  /** Looks at a place; the views follow. */
  goTo(side: Side, offset: number, pane?: Pane): void {
    const end = side === "host" ? this.facts?.fileLength : this.facts?.virtualSize;
    this.place = { side, offset: Math.max(0, Math.min(offset, Math.max(0, (end ?? 1) - 1))) };
    if (pane !== undefined && pane !== this.pane) {
      this.pane = pane;
      this.dispatchEvent(new Event("jump"));
    }
    this.#showPart(side);
    this.dispatchEvent(new Event("place"));
    this.changed();
  }

  /** Turns to the part of the map that holds the place. */
  #showPart(side: Side): void {
    const runs = this.reports[side];
    const { offset } = this.place;
    if (runs.state !== "ready" || (offset >= runs.value.first && (offset < runs.value.end || runs.value.next === undefined))) {
      return;
    }
    const unit = runs.value.unit;
    const known = this.parts[side].findLast((start) => start <= offset);
    this.turn(side, offset < runs.value.first && known !== undefined ? known : offset === runs.value.next ? offset : offset - (offset % unit));
  }

  select(selection: Selection | undefined): void {
    this.selection = selection;
    if (selection !== undefined) {
      this.say(`Selected ${hex(selection.start)} to ${hex(selection.end)} of the ${selection.side === "host" ? "file" : "disk"}`);
    }
    this.changed();
  }

  show(pane: Pane): void {
    this.pane = pane;
    this.changed();
  }
}

/** The header of an image, also of a broken one. */
export function headerOf(image: RemoteImage): Promise<Shown<HeaderReport>> {
  // What a name gives is lost on the way through the worker's types.
  return image.inspect("header") as Promise<Shown<HeaderReport>>;
}

function noReports(): Session["reports"] {
  return { host: NONE, guest: NONE, analysis: NONE, check: NONE, partitions: NONE, regions: NONE, snapshots: NONE };
}

/** Passes on a number now and then: the module tells far more than can be looked at. */
function seldom(tell: (part: number) => void): Progress {
  let last = performance.now();
  return (part) => {
    if (performance.now() - last >= 200) {
      last = performance.now();
      tell(part);
    }
  };
}

/** Whether work ended because a person stopped it. */
function isStopped(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

const WORK: Readonly<Record<ReportName, string>> = {
  host: "Reading the map of the file", guest: "Reading the map of the disk", analysis: "Reading the space ledger", check: "Checking",
  partitions: "Reading the partitions", regions: "Reading the structures", snapshots: "Reading the snapshots",
};

/** Whether an address is another server's. */
function isForeign(input: RemoteInput): boolean {
  return "url" in input && new URL(input.url, location.href).origin !== location.origin;
}

/** The session of this page. */
export const session = new Session();
