/** The arithmetic of the map: which bytes a cell stands for, where it is drawn, what it holds. */

import { runAt } from "../model.ts";
import type { Runs } from "../model.ts";

/** Sizes of a cell on the screen, in pixels. */
const SIZES = [9, 12, 16, 22, 30, 44, 64] as const;
const SMALLEST = SIZES[0];

export interface Grid {
  /** Clusters of a cell. */
  readonly perCell: number;
  /** Bytes of a cell. */
  readonly bytes: number;
  /** Pixels of a cell with its gap. */
  readonly size: number;
  readonly columns: number;
  readonly rows: number;
  readonly cells: number;
}

export function makeGrid(runs: Runs, width: number, perCell: number, size: number): Grid {
  const bytes = runs.unit * perCell;
  const columns = Math.max(8, Math.floor(width / size));
  const cells = Math.max(1, Math.ceil(runs.total / bytes));
  return { perCell, bytes, size, columns, rows: Math.ceil(cells / columns), cells };
}

/** Shows everything, in cells as large as they can be. */
export function fit(runs: Runs, width: number, height: number): { perCell: number; size: number } {
  const clusters = Math.max(1, Math.ceil(runs.total / runs.unit));
  const places = (size: number): number => Math.max(8, Math.floor(width / size)) * Math.max(1, Math.floor(height / size));
  for (const size of SIZES.toReversed()) {
    if (places(size) >= clusters) {
      return { perCell: 1, size };
    }
  }
  let perCell = 1;
  while (places(SMALLEST) * perCell < clusters) {
    perCell *= 2;
  }
  return { perCell, size: SMALLEST };
}

/** One step closer or farther. */
export function zoom(now: { perCell: number; size: number }, closer: boolean, most: number): { perCell: number; size: number } {
  const place = SIZES.findIndex((size) => size >= now.size);
  if (closer) {
    return now.perCell > 1 ? { ...now, perCell: now.perCell / 2 } : { perCell: 1, size: SIZES[Math.min(place + 1, SIZES.length - 1)] ?? now.size };
  }
  return place > 0 ? { perCell: 1, size: SIZES[place - 1] ?? now.size } : { ...now, perCell: Math.min(now.perCell * 2, most) };
}

/** Bytes of each kind in cells `first .. end`, from where the runs begin: a row of numbers for each cell. */
export function shares(runs: Runs, bytes: number, first: number, end: number): Float64Array {
  const kinds = runs.kinds.length;
  const found = new Float64Array(Math.max(0, end - first) * kinds);
  const origin = runs.first;
  let run = runAt(runs, origin + first * bytes);
  for (; run < runs.offset.length; run += 1) {
    const from = (runs.offset[run] ?? 0) - origin;
    let at = Math.max(from, first * bytes);
    const stop = Math.min(from + (runs.length[run] ?? 0), end * bytes);
    if (at >= end * bytes) {
      break;
    }
    const kind = runs.kind[run] ?? 0;
    while (at < stop) {
      // Cells of the minimap are no whole numbers: a bound may fall in the cell before it.
      const below = Math.floor(at / bytes);
      const cell = (below + 1) * bytes <= at ? below + 1 : below;
      const next = Math.min((cell + 1) * bytes, stop);
      const place = (cell - first) * kinds + kind;
      found[place] = (found[place] ?? 0) + next - at;
      at = next;
    }
  }
  return found;
}
