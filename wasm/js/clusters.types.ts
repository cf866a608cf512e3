/** The file, cluster by cluster. @module */

import type { SpaceClass } from "./reports.js";
import type { Int, Structure } from "./types.js";

/** A part of a file as edited. */
export interface Part {
  offset: number;
  length: number;
  source: "base" | "edits" | "zeros";
}

/**
 * Clusters in a row that are alike: of one class, with one refcount and one number of references, and, where they hold
 * guest data, one behind the other in the guest too.
 */
export interface ClusterRun {
  /** First byte in the file. */
  host_offset: number;
  /** Bytes; a multiple of the cluster size but at the end of the file. */
  length: number;
  class: SpaceClass;
  /** What they are for their owner; null where nothing refers to them. */
  structure: Structure | null;
  /** The guest byte that the first byte stores, or that an L2 table begins with. */
  guest_offset: Int | null;
  /** Null where it cannot be read, and in a data file. */
  refcount: Int | null;
  /** References that were found. */
  references: number;
  /** The active image is among the owners. */
  active: boolean;
  /** A snapshot is among the owners. */
  in_snapshots: boolean;
}

/**
 * The same runs as columns of equal length, in the order of the file, without gaps. `class` and `structure` are places in
 * the lists `classes` and `structures`.
 */
export interface ClusterMap {
  readonly cluster_size: number;
  /** Bytes of the file. */
  readonly file_length: number;
  readonly host_offset: Float64Array;
  readonly length: Float64Array;
  readonly class: Uint8Array;
  readonly classes: readonly SpaceClass[];
  /** 255 where nothing refers to them. */
  readonly structure: Uint8Array;
  readonly structures: readonly Structure[];
  /** -1 where there is none. */
  readonly guest_offset: Float64Array;
  /** -1 where it cannot be read. */
  readonly refcount: Float64Array;
  readonly references: Float64Array;
  /** Bit 0: the active image is among the owners. Bit 1: a snapshot is. */
  readonly owners: Uint8Array;
  /** Where to go on, if the file has more runs than {@link Limits.max_rows}; null at the end. */
  readonly next: number | null;
}
