/** The discard lab: what a workload does to an image under each policy. No guest data are stored or read. @module */

import { RawDisk, RawReplay, RawTrace } from "../pkg/qcowkit.js";
import { notReading, number, object, octets, refusal, text } from "./arguments.js";
import { Held } from "./held.js";
import { Image } from "./image.js";
import type {
  ChurnOptions, FrameOptions, LabConfig, LabFrame, LabReport, LabRun, LabSample, ReplayOptions, TraceFormat, TraceOperation,
  TraceSummary,
} from "./lab.types.js";
import { value } from "./values.js";

/** What a replay begins with: an empty disk of so many bytes, or the metadata of an image. */
export type LabDisk = { size: number } | Image;

/** What a guest did, in order. Holds memory until `close()`. */
export class Trace extends Held<RawTrace> {
  private constructor(raw: RawTrace) {
    super(raw);
  }

  /** Reads a trace; without `format`, its first line tells. */
  static parse(trace: string | Uint8Array, format?: TraceFormat): Trace {
    notReading();
    const bytes = typeof trace === "string" ? new TextEncoder().encode(trace) : octets(trace, "trace");
    return new Trace(RawTrace.parse(bytes, format === undefined ? format : text(format, "format")));
  }

  /** Makes up a workload like a virtual machine's: `qcowkit churn`. */
  static churn(options: ChurnOptions = {}): Trace {
    notReading();
    return new Trace(RawTrace.churn(options));
  }

  /** Operations. */
  get length(): number {
    return this.use((raw) => raw.length());
  }

  /** The first byte behind everything that the trace touches: the smallest disk that it fits on. */
  get end(): number {
    return this.use((raw) => raw.end());
  }

  summary(): TraceSummary {
    return value(this.use((raw) => raw.summary()));
  }

  /** Some of the operations. */
  operations(first: number, count: number): TraceOperation[] {
    return value(this.use((raw) => raw.operations(number(first, "first"), number(count, "count"))));
  }

  /** The trace as text. */
  text(format: "csv" | "qemu-io"): string {
    return this.use((raw) => raw.text(text(format, "format")));
  }
}

/** Replays a trace under several configurations: `qcowkit replay`. */
export function replay(trace: Trace, disk: LabDisk, options: ReplayOptions = {}): LabReport {
  using begin = diskOf(disk);
  return value(of(trace).use((raw) => raw.replay(begin, options)));
}

/** A replay that goes step by step, for animation. Holds memory until `close()`. */
export class Replay extends Held<RawReplay> {
  constructor(trace: Trace, disk: LabDisk, config: LabConfig = {}) {
    using begin = diskOf(disk);
    super(of(trace).use((raw) => RawReplay.begin(raw, begin, config)));
  }

  /** Operations of the trace that are done. */
  get done(): number {
    return this.use((raw) => raw.done());
  }

  /** Operations of the trace. */
  get length(): number {
    return this.use((raw) => raw.length());
  }

  /** Does up to `count` more operations; gives how many there were. */
  step(count: number): number {
    return this.use((raw) => raw.step(number(count, "count")));
  }

  /** The image as it is now. */
  sample(): LabSample {
    return value(this.use((raw) => raw.sample()));
  }

  /** The maps as they are now. */
  frame(options: FrameOptions = {}): LabFrame {
    return this.use((raw) => raw.frame(options)) as LabFrame;
  }

  /** Does what is left, and tells the whole; the replay is closed. */
  finish(): LabRun {
    return value(this.use((raw) => raw.finish()));
  }
}

function diskOf(disk: LabDisk): RawDisk {
  notReading();
  return disk instanceof Image ? disk.use((raw) => RawDisk.of(raw)) : RawDisk.empty(number(object(disk, "disk").size, "size"));
}

function of(trace: Trace): Trace {
  if (!(trace instanceof Trace)) {
    throw refusal("invalid_argument", "trace must be a Trace");
  }
  return trace;
}
