/** The file, cluster by cluster. @module */

/** A part of a file as edited. */
export interface Part {
  offset: number;
  length: number;
  source: "base" | "edits" | "zeros";
}

/** A run of host clusters (bytes, for compressed data) of one kind, refcount and owner. */
export interface ClusterRun {
  host_offset: number;
  length: number;
  kind: string;
  refcount: number;
  /** In words: `active`, `snapshot 0`, ... */
  owner: string;
  /** Where it begins in the virtual disk; only for guest data. */
  guest_offset: number | null;
}

/**
 * The same runs as columns of equal length, in the order of the file, without gaps. `kind` and `owner` are places in the
 * lists `kinds` and `owners`.
 */
export interface ClusterMap {
  readonly cluster_size: number;
  readonly file_length: number;
  readonly host_offset: Float64Array;
  readonly length: Float64Array;
  readonly kind: Uint8Array;
  readonly kinds: readonly string[];
  /** Refcount on record. */
  readonly refcount: Float64Array;
  readonly owner: Uint32Array;
  readonly owners: readonly string[];
  /** -1 where there is none. */
  readonly guest_offset: Float64Array;
}
