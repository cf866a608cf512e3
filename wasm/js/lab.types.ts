/** The discard lab: configurations in, reports out. The names are those of `qcowkit replay --output=json`. @module */

import type { GapBucket } from "./reports.js";

/** Parameters of a workload like a virtual machine's; the same parameters give the same trace everywhere. */
export interface ChurnOptions {
  /** Bytes of the disk. Default: 64 GiB. */
  size?: number;
  /** Default: 200,000. */
  operations?: number;
  seed?: number;
  /** How full the file system is kept, 1 to 99; default 90. */
  fill_percent?: number;
  file_median?: number;
  file_sigma_percent?: number;
  file_max?: number;
  rewrite_percent?: number;
  zero_percent?: number;
  block?: number;
  request_max?: number;
  /** When discards are sent: never, online, or all that is free after each so many operations (the default: 20,000). */
  trim?: "never" | "online" | { every: number };
  trim_min?: number;
  flush_every?: number;
  mark_every?: number;
}

/** In which form a trace is written. */
export type TraceFormat = "qemu-io" | "fio" | "blkparse" | "csv";

/** One thing that a guest asked of its disk. */
export type TraceOperation =
  | { write: { offset: number; length: number; zeros: boolean } }
  | { write_zeroes: { offset: number; length: number; unmap: boolean } }
  | { discard: { offset: number; length: number } }
  | "flush"
  | { mark: string };

/** How an image is made and opened for one replay; what is left out is QEMU's default with `discard=unmap`. */
export interface LabConfig {
  /** Begins with everything that a policy of the three says: `ignore`, `unmap` (default) or `no-unref`. */
  base?: "ignore" | "unmap" | "no-unref";
  /** What it is called in reports; made from what differs from the defaults if it is left out. */
  name?: string;
  discard?: boolean;
  policy?: {
    unref?: "always" | "retain_unshared" | "retain_qemu";
    pass?: { request?: boolean; snapshot?: boolean; other?: boolean };
    retained_op?: "punch" | "zero_range" | "none";
  };
  detect_zeroes?: "off" | "on" | "unmap";
  cluster_size?: number;
  extended_l2?: boolean;
  preallocation?: "off" | "metadata" | "falloc" | "full";
  allocation?: "qemu" | "fill-holes" | "near";
  quarantine_bytes?: number;
}

/** A configuration as a report tells it: everything filled in. */
export type RanConfig = Required<Omit<LabConfig, "base" | "policy">> & {
  policy: {
    unref: "always" | "retain_unshared" | "retain_qemu";
    pass: { request: boolean; snapshot: boolean; other: boolean };
    retained_op: "punch" | "zero_range" | "none";
  };
};

/** An image at one moment. */
export interface LabSample {
  /** Operations replayed so far. */
  operation: number;
  file_length: number;
  /** The same as a share of the virtual size, in parts per million. */
  file_ppm: number;
  host_bytes: number;
  live_bytes: number;
  retained_bytes: number;
  free_bytes: number;
  gaps: number;
  largest_gap: number;
  allocated_clusters: number;
  discontinuities: number;
  runs: number;
  metadata_writes: number;
  metadata_bytes: number;
  barriers: number;
  host_discards: number;
  host_discarded_bytes: number;
}

/** An incremental backup by dirty bitmap: what changed since the mark before. */
export interface LabBackup {
  name: string;
  operation: number;
  data_bytes: number;
  zero_bytes: number;
  discarded_bytes: number;
}

/** One replay. */
export interface LabRun {
  config: RanConfig;
  samples: LabSample[];
  end: LabSample;
  peak_file_length: number;
  gaps: GapBucket[];
  backups: LabBackup[];
}

/** The size of a trace. */
export interface TraceSummary {
  name: string;
  operations: number;
  ignored: number;
  writes: number;
  written_bytes: number;
  write_zeroes: number;
  discards: number;
  discarded_bytes: number;
  flushes: number;
  marks: number;
}

/** Several replays of one trace. */
export interface LabReport {
  trace: TraceSummary;
  virtual_size: number;
  runs: LabRun[];
  advice: { best: string; reasons: string[]; ranking: { name: string; score_ppm: number }[] } | null;
}

/** How {@link replay} is run. */
export interface ReplayOptions {
  /** Default: `ignore`, `unmap` and `no-unref`. */
  configs?: LabConfig[];
  /** Samples along the trace; besides them, the beginning and the end are sampled. Default: 60. */
  samples?: number;
  /** Also tell which configuration the numbers speak for. */
  advise?: boolean;
  /** For titles. */
  name?: string;
  /** Told the configuration's number and the operations that are done. */
  progress?: (config: number, operations: number) => void;
}

/**
 * The maps of a replay at one moment, for drawing: four bytes a cell, how much of it is live data, retained (mapped
 * without data), metadata, and free, as shares of 255. What is missing to 255 lies behind the end, or is not mapped.
 */
export interface LabFrame {
  /** Bytes of the file, or of the disk, that one cell stands for. */
  cell_bytes: number;
  file_length: number;
  /** By place in the file, up to its end. */
  host: Uint8Array;
  /** By place in the disk: live data and retained; the rest has no cluster. */
  guest: Uint8Array;
}

/** How {@link Replay.frame} divides file and disk. */
export interface FrameOptions {
  /** Cells of each map at most; default 4096, at most 65,536. */
  cells?: number;
  /** Bytes of a cell, rounded up to whole clusters; default: so that the disk fits the cells. */
  cell_bytes?: number;
}
