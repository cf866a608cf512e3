/** Two replays of one trace, frame by frame. */

import type { ChurnOptions, LabConfig, LabFrame, LabSample, RemoteImage, RemoteReplay, TraceSummary } from "qcowkit/client";
import { session } from "./session.ts";

/** Moments of a replay that are kept. */
export const FRAMES = 120;
/** Cells of a map. */
export const CELLS = 2400;
/** File beyond the disk's size that still has cells. */
const MARGIN = 1.1;

export interface LabInput {
  readonly churn: ChurnOptions | undefined;
  readonly trace: Uint8Array | undefined;
  /** Begin with the metadata of the open image. */
  readonly image: RemoteImage | undefined;
  readonly configs: readonly [LabConfig, LabConfig];
}

export interface Moment {
  readonly sample: LabSample;
  readonly frame: LabFrame;
}

export interface LabResult {
  summary: TraceSummary;
  size: number;
  cellBytes: number;
  /** For each of the two, the moments so far. */
  moments: [Moment[], Moment[]];
  operations: number;
  done: boolean;
}

/** Runs both; `tell` is called after each moment, and says whether to go on. */
export async function runLab(input: LabInput, tell: (result: LabResult) => boolean): Promise<void> {
  const { engine } = session;
  const trace = input.trace === undefined ? await engine.churn(input.churn ?? {}) : await engine.parseTrace(input.trace);
  const replays: RemoteReplay[] = [];
  try {
    const [summary, end, operations] = await Promise.all([trace.summary(), trace.end, trace.length]);
    const size = input.image === undefined ? Math.max(end, input.churn?.size ?? 0) : await input.image.virtualSize;
    const disk = input.image ?? { size };
    for (const config of input.configs) {
      replays.push(await engine.beginReplay(trace, disk, config));
    }
    const cellBytes = Math.max(1, Math.ceil((size * MARGIN) / CELLS));
    const result: LabResult = { summary, size, cellBytes, moments: [[], []], operations, done: false };
    const step = Math.max(1, Math.ceil(operations / FRAMES));
    for (let at = 0; ; at += step) {
      for (const [index, replay] of replays.entries()) {
        const frame = await replay.frame({ cells: CELLS, cell_bytes: cellBytes });
        // The end is that of the command line: everything is written out.
        const sample = at >= operations ? (await replay.finish()).end : await replay.sample();
        result.moments[index === 0 ? 0 : 1].push({ sample, frame });
      }
      result.done = at >= operations;
      if (!tell(result) || result.done) {
        return;
      }
      await Promise.all(replays.map((replay) => replay.step(step)));
    }
  } finally {
    await Promise.all([...replays, trace].map((held) => held.close()));
  }
}
