/** Which structures lie in a part of the file, as the map of clusters tells. */

import type { Structure } from "qcowkit/client";
import { runAt } from "../model.ts";
import type { Session } from "../session.ts";

export interface StructurePart {
  readonly start: number;
  readonly length: number;
  readonly structure: Structure;
}

/** Parts of `start .. start + length` with the structure that each belongs to. */
export function structureAt(session: Session, start: number, length: number): StructurePart[] {
  const parts: StructurePart[] = [];
  const host = session.reports.host;
  if (host.state !== "ready") {
    return start === 0 ? [{ start, length, structure: "header" }] : parts;
  }
  const runs = host.value;
  const end = start + length;
  for (let run = runAt(runs, start); run < runs.offset.length; run += 1) {
    const from = Math.max(start, runs.offset[run] ?? 0);
    const to = Math.min(end, (runs.offset[run] ?? 0) + (runs.length[run] ?? 0));
    if (from >= end) {
      break;
    }
    const structure = runs.structure?.(run);
    if (structure === undefined || to <= from) {
      continue;
    }
    // A view of one cluster at a time: a table's entries count from its own beginning.
    for (let at = from; at < to;) {
      const next = Math.min(to, (Math.floor(at / runs.unit) + 1) * runs.unit);
      parts.push({ start: at, length: next - at, structure });
      at = next;
    }
  }
  return parts;
}
