/** Values that cross from the module: JSON text, with integers that a `number` cannot hold as objects of one key. @module */

import type { MapRun } from "./reports.js";

/** The key that no report has. */
const INTEGER = "$int";

/** What a text of the module says. A `!` in front tells that there are bigints in it. */
export function value<T>(text: string): T {
  return (text.startsWith("!") ? JSON.parse(text.slice(1), revive) : JSON.parse(text)) as T;
}

function revive(_key: string, found: unknown): unknown {
  return typeof found === "object" && found !== null && INTEGER in found
    ? BigInt((found as { [INTEGER]: string })[INTEGER])
    : found;
}

/** The runs of a map, which come as four numbers each: start, length, offset (-1: none), 16 times the depth and four flags. */
export function mapRuns(numbers: Float64Array): MapRun[] {
  const runs: MapRun[] = [];
  for (let at = 0; at < numbers.length; at += 4) {
    const [start, length, offset, rest] = [numbers[at]!, numbers[at + 1]!, numbers[at + 2]!, numbers[at + 3]!];
    const run: MapRun = {
      start,
      length,
      depth: Math.floor(rest / 16),
      present: (rest & 1) !== 0,
      zero: (rest & 2) !== 0,
      data: (rest & 4) !== 0,
      compressed: (rest & 8) !== 0,
    };
    if (offset >= 0) {
      run.offset = offset;
    }
    runs.push(run);
  }
  return runs;
}
