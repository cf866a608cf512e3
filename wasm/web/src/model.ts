/** What the maps and tables are made from: runs as columns. */

import type { ClusterMap, MapRun, Structure } from "qcowkit/client";
import { GUEST_KINDS, HOST_KINDS, kindOfClass, TITLES } from "./kinds.ts";
import type { Kind } from "./kinds.ts";
import { bytes, hex, words } from "./format.ts";

export type Side = "host" | "guest";

/** Runs in order and without gaps: all of the file or the disk, or as many as can be held. */
export interface Runs {
  readonly side: Side;
  /** The first byte. */
  readonly first: number;
  /** The byte behind the last run. */
  readonly end: number;
  /** Bytes of the runs. */
  readonly total: number;
  /** Bytes of a cluster. */
  readonly unit: number;
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** Places in `kinds`. */
  readonly kind: Uint8Array;
  readonly kinds: readonly Kind[];
  /** Where the next part begins, if there are more runs. */
  readonly next: number | undefined;
  /** Everything about a run, in words. */
  readonly describe: (run: number) => RunWords;
  /** What a run of the file is for its owner. */
  readonly structure?: (run: number) => Structure | undefined;
  /** Where a run is on the other side, if it is there. */
  readonly across: (run: number) => number | undefined;
}

/** A run in words. */
export interface RunWords {
  readonly kind: string;
  readonly refcount: string;
  readonly owner: string;
  readonly place: string;
}

/** The run that holds a byte, or the last one. */
export function runAt(runs: Runs, offset: number): number {
  let [low, high] = [0, runs.offset.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((runs.offset[middle] ?? 0) <= offset) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

interface Sums {
  readonly bytes: number[];
  readonly runs: number[];
}

const known = new WeakMap<Runs, Sums>();

/** Bytes and runs of each kind; counted once. */
export function sums(runs: Runs): Sums {
  const before = known.get(runs);
  if (before !== undefined) {
    return before;
  }
  const found = { bytes: runs.kinds.map(() => 0), runs: runs.kinds.map(() => 0) };
  for (let run = 0; run < runs.kind.length; run += 1) {
    const kind = runs.kind[run] ?? 0;
    found.bytes[kind] = (found.bytes[kind] ?? 0) + (runs.length[run] ?? 0);
    found.runs[kind] = (found.runs[kind] ?? 0) + 1;
  }
  known.set(runs, found);
  return found;
}

/** The file. */
export function hostRuns(page: ClusterMap): Runs {
  const { host_offset: offset, length } = page;
  const groups = page.classes.map(kindOfClass);
  const kind = Uint8Array.from(page.class, (place) => groups[place] ?? 0);
  const describe = (place: number): RunWords => {
    const name = page.classes[page.class[place] ?? 0];
    const structure = page.structures[page.structure[place] ?? 255];
    const guest = page.guest_offset[place] ?? -1;
    const refcount = page.refcount[place] ?? -1;
    const owners = page.owners[place] ?? 0;
    const references = page.references[place] ?? 0;
    const who = [...(owners & 1 ? ["disk"] : []), ...(owners & 2 ? ["snapshots"] : [])].join(" and ");
    const what = structure === undefined ? "nobody" : words(structure);
    return {
      kind: name === undefined ? "" : TITLES[name],
      refcount: refcount < 0 ? "cannot be read" : String(refcount),
      owner: structure === undefined ? what : `${what}${who === "" ? "" : ` of the ${who}`}${references > 1 ? `, ${references} references` : ""}`,
      place: guest < 0 ? "" : hex(guest),
    };
  };
  const structure = (place: number): Structure | undefined => page.structures[page.structure[place] ?? 255];
  const across = (place: number): number | undefined => {
    const guest = page.guest_offset[place] ?? -1;
    return guest < 0 ? undefined : guest;
  };
  const first = offset[0] ?? 0;
  const end = page.next ?? Math.max(first, page.file_length);
  return {
    side: "host", first, end, total: end - first, unit: page.cluster_size, offset, length, kind, kinds: HOST_KINDS,
    next: page.next ?? undefined, describe, structure, across,
  };
}

/** The disk from `first` on. `rows` are those of `qemu-img map`, or of the image alone if its backing file is missing. */
export function guestRuns(rows: readonly MapRun[], first: number, unit: number, size: number, { alone, apart }: { alone: boolean; apart: boolean }): Runs {
  const column = (read: (row: MapRun) => number) => Float64Array.from(rows, read);
  const last = rows.at(-1);
  const end = last === undefined ? first : last.start + last.length;
  const describe = (run: number): RunWords => {
    const row = rows[run];
    return row === undefined ? { kind: "", refcount: "", owner: "", place: "" } : {
      kind: GUEST_KINDS[guestKind(row, alone)]?.title ?? "",
      refcount: "",
      owner: row.depth > 0 ? `layer ${row.depth} below` : row.present ? "this image" : alone ? "a file that is missing" : "nobody",
      place: row.offset === undefined ? "" : `${hex(row.offset)}${apart && row.depth === 0 ? " (data file)" : ""}`,
    };
  };
  return {
    side: "guest",
    first,
    end,
    total: end - first,
    unit,
    offset: column((row) => row.start),
    length: column((row) => row.length),
    kind: Uint8Array.from(rows, (row) => guestKind(row, alone)),
    kinds: GUEST_KINDS,
    next: end < size ? end : undefined,
    describe,
    // What lies in another file has no place in this one.
    across: (run) => (rows[run]?.depth === 0 && !apart ? rows[run]?.offset : undefined),
  };
}

function guestKind(row: MapRun, alone: boolean): number {
  if (row.present ? row.depth > 0 : alone) {
    return 2;
  }
  if (row.data) {
    return row.compressed ? 1 : 0;
  }
  return row.present ? (row.offset === undefined ? 4 : 3) : 5;
}

/** One line about a place, for hovering and for the live region. */
export function sentence(runs: Runs, offset: number): string {
  const run = runAt(runs, offset);
  const about = runs.describe(run);
  const place = about.place === "" ? "" : runs.side === "host" ? `, guest ${about.place}` : `, in the file at ${about.place}`;
  const refcount = about.refcount === "" ? "" : `, refcount ${about.refcount}`;
  const owner = about.owner === "" ? "" : `, owner: ${about.owner}`;
  return `${hex(offset)}: ${about.kind}, run of ${bytes(runs.length[run] ?? 0)}${refcount}${owner}${place}`;
}
