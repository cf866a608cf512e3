/**
 * What comes out: the values that the command line prints with `--output=json`, field by field. Offsets, lengths and
 * sizes are bytes. Fields of type {@link Int} are bigints from 2^53 on, which only broken images reach; `raw` fields are
 * bits of the file and always bigints.
 *
 * @module
 */

import type { Int, Structure } from "./types.js";

/** What an image says of itself, with the names of `qemu-img info --output=json`. */
export interface ImageInfo {
  "format": "qcow2";
  "virtual-size": number;
  "cluster-size": number;
  "dirty-flag": boolean;
  "encrypted"?: true;
  "backing-filename"?: string;
  "backing-filename-format"?: string;
  "snapshots"?: SnapshotInfo[];
  "format-specific": { "type": "qcow2"; "data": Qcow2Info };
}

/** What only qcow2 images have. */
export interface Qcow2Info {
  "compat": "0.10" | "1.1";
  "compression-type": string;
  "refcount-bits": number;
  "lazy-refcounts"?: boolean;
  "corrupt"?: boolean;
  "extended-l2"?: boolean;
  "data-file"?: string;
  "data-file-raw"?: boolean;
  "encrypt"?: {
    "format": "aes" | "luks";
    "cipher-alg"?: string;
    "cipher-mode"?: string;
    "ivgen-alg"?: string;
    "ivgen-hash-alg"?: string;
    "hash-alg"?: string;
    "detached-header"?: boolean;
    "uuid"?: string;
    "payload-offset"?: number;
    "master-key-iters"?: number;
    "slots"?: { "active": boolean; "key-offset": number; "iters"?: number; "stripes"?: number }[];
  };
  "bitmaps"?: BitmapInfo[];
}

/** An internal snapshot. */
export interface SnapshotInfo {
  "id": string;
  "name": string;
  "vm-state-size": number;
  "date-sec": number;
  "date-nsec": number;
  "vm-clock-sec": number;
  "vm-clock-nsec": number;
  "icount"?: number;
}

/** A row of `qcowkit snapshot --list`. */
export interface ListedSnapshot extends SnapshotInfo {
  /** Bytes of the disk when it was taken. */
  "disk-size": number;
}

/** A persistent bitmap, as `info` names it. */
export interface BitmapInfo {
  "name": string;
  "granularity": number;
  "flags": ("in-use" | "auto")[];
}

/** A row of `qcowkit bitmap --list`. */
export interface BitmapSummary {
  name: string;
  /** Guest bytes that one bit speaks for; 0 where the image says something impossible. */
  granularity: Int;
  /** It records changes of the disk. */
  enabled: boolean;
  /** It was not saved correctly, or somebody is changing it: it may be stale. */
  in_use: boolean;
  /** Why it cannot be used: it can only be removed. */
  problem: string | null;
  /** Guest bytes that are marked. */
  dirty_bytes: number | null;
}

/** A run of guest bytes of one state: a row of `map`, with the names of `qemu-img map --output=json`. */
export interface MapRun {
  start: number;
  length: number;
  /** The layer that decides; 0 is the image itself. */
  depth: number;
  /** That layer holds something for it. */
  present: boolean;
  /** Known to read as zeros. */
  zero: boolean;
  /** Reads from a file. */
  data: boolean;
  compressed: boolean;
  /** Where it begins in the file of its layer. */
  offset?: number;
}

/** Guest bytes by what the image itself (not its backing files) says of them. */
export interface StateBytes {
  data: number;
  compressed: number;
  /** Reads as zeros; host clusters are kept. */
  zero_retained: number;
  /** Reads as zeros; nothing is kept. */
  zero: number;
  /** Nothing is stored: the backing file is read, or zeros. */
  unallocated: number;
}

/** What discards did, or would do: the members of `qcowkit discard --output=json`, without the host's. */
export interface DiscardReport {
  dry_run: boolean;
  ranges: number;
  requested_bytes: number;
  before: StateBytes;
  after: StateBytes;
  /** Bytes of the file for which holes were asked of the host. */
  host_discards: number;
  /** Zeros written to the host instead. */
  host_zeroes: number;
  file_length_before: number;
  file_length_after: number;
}

/** What a byte of the file is there for. */
export type SpaceClass =
  | "header" | "l1_table" | "refcount_table" | "refcount_blocks" | "l2_tables" | "snapshot_metadata"
  | "bitmap_metadata" | "bitmap_data" | "encryption_header" | "live_data" | "compressed_data" | "compressed_slack"
  | "only_in_snapshots" | "zero_retained" | "leaked" | "free" | "beyond_last_used";

/** Bytes of the file: `bytes = held + holes + unknown`. What the host holds is unknown of a {@link ByteSource}. */
export interface SpaceBytes {
  bytes: number;
  held: number;
  holes: number;
  unknown: number;
}

/** The space ledger: every byte of the file in exactly one class. */
export interface Ledger {
  file_length: number;
  /** Every class, in order, those without bytes too. */
  classes: ({ class: SpaceClass } & SpaceBytes)[];
  total: SpaceBytes;
  held_outside_file: number | null;
  overlapping_bytes: number;
  overlaps: { host_offset: number; length: number; claimed_by: SpaceClass[] }[];
  referenced_but_free_bytes: number;
  references_beyond_end: number;
  refcounts_may_be_wrong: boolean;
  references_missing: boolean;
}

/** A distribution of lengths in bytes. */
export interface Distribution {
  count: number;
  bytes: number;
  mean: number;
  min: number;
  p10: number;
  p50: number;
  p90: number;
  p99: number;
  max: number;
  half_of_bytes_in: number;
}

/** Gaps of a size from `from` up to, not including, twice as much. */
export interface GapBucket {
  from: number;
  count: number;
  bytes: number;
}

/** What one way of giving space back returns. */
export interface Gain {
  host_bytes: number;
  host_bytes_unknown: number;
  file_bytes: number;
}

/** A file rewritten without what it does not need. */
export interface Compacted extends Gain {
  file_length: number;
}

/** How the disk lies in the file. */
export interface Layout {
  guest_order: {
    clusters: number;
    discontinuities: number;
    backward: number;
    discontinuities_ppm: number;
    runs: Distribution;
  };
  compressed: { clusters: number; stream_bytes: number; ratio_ppm: number; discontinuities: number };
  free: {
    gaps: Distribution;
    histogram: GapBucket[];
    too_small_for: { request_size: number; bytes: number; ppm: number }[];
    largest: { host_offset: number; length: number }[];
  };
  file: { data: Distribution; holes: Distribution };
  /** Only where a file system tells it; null here. */
  host: null;
}

/** Where the bytes of an image went: `qcowkit analyze --output=json`. Formulas: docs/analyze.md. */
export interface Analysis {
  virtual_size: number;
  cluster_size: number;
  ledger: Ledger;
  data_file: Ledger | null;
  reclaim: {
    punch_free: Gain;
    discard_retained: Gain;
    truncate_end: Gain;
    repair_leaks: Gain;
    drop_snapshots: Gain;
    zero_filled: Gain | null;
    compact: Compacted;
    compact_without_snapshots: Compacted;
  };
  worst_case: {
    fully_written: number;
    fully_written_without_snapshots: number;
    without_reuse: number;
    data_file: number | null;
  };
  layout: Layout;
  zero_filled: SpaceBytes | null;
  compressed_padding_at_most: number;
  faults: number;
}

/** What to do with an image from a stranger. */
export type Verdict = "safe" | "caution" | "danger";

/** A verdict on an image before anything else touches it: `qcowkit audit --output=json`. */
export interface Audit {
  verdict: Verdict;
  scope: "header" | "deep";
  format: string;
  version: number | null;
  virtual_size: Int | null;
  cluster_size: number | null;
  snapshots: number | null;
  file_length: number | null;
  references: {
    role: "backing_file" | "data_file";
    name: string;
    format: string | null;
    target: "below" | "outside" | "absolute" | "json" | "protocol" | "empty";
    protocol?: string;
  }[];
  findings: {
    verdict: Verdict;
    kind: string;
    structure: Structure | null;
    host_offset: Int | null;
    message: string;
  }[];
}

/** A value, or why there is none. */
export type Shown<T> = { value: T } | { error: string };

/** The header, field by field. */
export interface HeaderReport {
  file_length: number;
  fields: { name: string; offset: number; length: number; raw: bigint; meaning: string }[];
  features: { kind: "incompatible" | "compatible" | "autoclear"; bit: number; name: string; known: boolean }[];
  unknown_fields: number[];
  extensions: {
    offset: number;
    kind: number;
    name: string | null;
    length: number;
    meaning: string;
    malformed: boolean;
    data: number[];
  }[];
  backing_file: string | null;
  backing_format: string | null;
  data_file: string | null;
  damage: string | null;
  /** Why this image cannot be opened, if it cannot. */
  refusal: string | null;
}

/** Part of a table. */
export interface TableReport<T> {
  structure: Structure;
  host_offset: Int;
  /** Entries of the whole table. */
  total: number;
  entries: T[];
  /** Where to go on, if the list was cut or the table goes on. */
  next: number | null;
}

export interface L1Entry {
  index: number;
  raw: bigint;
  guest_offset: Int;
  l2_offset: Int | null;
  copied: boolean;
  faults: string[];
}

/** What an L2 entry says. */
export type L2Kind = "unallocated" | "zero_plain" | "zero_allocated" | "normal" | "mixed" | "compressed";

export interface L2Entry {
  index: number;
  guest_offset: Int;
  raw: bigint;
  /** The bits of the subcluster bitmap; with extended L2 entries. */
  raw_bitmap: bigint | null;
  kind: L2Kind;
  host_offset: Int | null;
  compressed_length: number | null;
  copied: boolean;
  allocated: number | null;
  zero: number | null;
  faults: string[];
}

export interface RefcountTableEntry {
  index: number;
  raw: bigint;
  block_offset: Int | null;
  host_offset: Int;
  faults: string[];
}

/** Clusters in a row with one refcount. */
export interface RefcountRun {
  index: number;
  host_offset: Int;
  clusters: number;
  refcount: Int;
}

export interface SnapshotEntry {
  index: number;
  l1_table_offset: Int;
  l1_size: number;
  date_seconds: number;
  date_nanoseconds: number;
  vm_clock_nanoseconds: Int;
  vm_state_size_32: number;
  extra_data: number[];
  id: string;
  name: string;
  vm_state_size: Int;
  virtual_size: Int | null;
  unknown_extra_data: number[];
}

export interface BitmapEntry {
  index: number;
  table_offset: Int;
  table_entries: number;
  flags: number;
  kind: number;
  granularity_bits: number;
  extra_data: number[];
  name: string;
  granularity: Int | null;
}

export interface BitmapTableEntry {
  index: number;
  raw: bigint;
  state: "all_zeros" | "all_ones" | "stored" | null;
  host_offset: Int | null;
  faults: string[];
}

/** Where the way of a guest offset ends, in one layer. */
export type Resolution =
  | { kind: "data" | "data_file"; host_offset: Int }
  | { kind: "compressed"; host_offset: Int; length: number; in_cluster: number }
  | { kind: "zero" | "unallocated" | "beyond_end" | "broken" };

/** The entries on the way of a guest offset in one qcow2 image. */
export interface GuestPath {
  guest_cluster: Int;
  in_cluster: number;
  l1_entry_offset: Int;
  l1: Shown<L1Entry>;
  l2_table_refcount: Shown<Int> | null;
  l2_entry_offset: Int | null;
  l2: Shown<L2Entry> | null;
  subcluster: number | null;
  host_refcount: Shown<Int> | null;
}

/** The way of a guest offset through one layer. */
export interface LayerPath {
  depth: number;
  format: "qcow2" | "raw";
  virtual_size: Int;
  entries: GuestPath | null;
  resolution: Resolution;
}

/** What is known of one byte of the file. */
export interface HostReport {
  host_offset: number;
  host_cluster: number;
  cluster_offset: number;
  beyond_end: boolean;
  host: Shown<"data" | "hole" | "unknown">;
  refcount: Shown<Int>;
  owners: Shown<HostOwner[]>;
  references: number;
  faults: number;
}

/** Something that refers to a cluster. */
export interface HostOwner {
  structure: Structure;
  host_offset: number;
  length: number;
  /** What refers to it, in words. */
  source: string;
  guest_offset: number | null;
  active_uses: number;
  snapshot_uses: number;
  contains_offset: boolean;
}

/** A structure for {@link Image.inspect}, in the words of `qcowkit inspect --show`. */
export type InspectName =
  | "header" | "l1" | `l1:${number}` | `l2:${number}` | `l2:@${number}` | "refcount-table" | `refcount-block:${number}`
  | "snapshots" | "bitmaps" | `bitmap-table:${number}`;

/** Which entries of a table to list; at most 65,536 at once. */
export interface EntryRange {
  first?: number;
  count?: number;
  /** Leave out entries that are 0. Default: true. */
  skip_empty?: boolean;
}

/** What {@link Image.inspect} gives for each structure. */
export type Inspected<N extends InspectName> = N extends "header" ? HeaderReport
  : N extends "l1" | `l1:${number}` ? TableReport<L1Entry>
  : N extends `l2:${string}` ? TableReport<L2Entry>
  : N extends "refcount-table" ? TableReport<RefcountTableEntry>
  : N extends `refcount-block:${number}` ? TableReport<RefcountRun>
  : N extends "snapshots" ? SnapshotEntry[]
  : N extends "bitmaps" ? BitmapEntry[]
  : N extends `bitmap-table:${number}` ? TableReport<BitmapTableEntry>
  : never;

/** A part of the file that is one structure. */
export interface Region {
  structure: Structure;
  /** What to call it. */
  name: string;
  host_offset: number;
  length: number;
  /** The guest byte that its beginning speaks for, or holds. */
  guest_offset: number | null;
  /** Its bytes can be shown field by field: {@link Image.fields}. */
  has_fields: boolean;
}

/** A field of a structure, with the bytes of the file that hold it: what the hex pane colours. */
export interface Field {
  /** First byte in the file. */
  host_offset: number;
  length: number;
  /** The structure that it is part of. */
  structure: Structure;
  /** The name in the specification, or the place in the table: `l1_table_offset`, `[5]`, `snapshot 0: name`, ... */
  name: string;
  /** The bytes as a number, where they are one (at most 8 bytes); null for texts and data. */
  raw: bigint | null;
  /** What it says, in words; empty where it says nothing more. */
  meaning: string;
  /** What is wrong with it; empty where nothing is. */
  fault: string;
  /** Where it leads, if that is within the file. */
  target: Region | null;
}

/** Fields in the order of the file. */
export interface FieldList {
  fields: Field[];
  /** Byte of the file to go on from, if the list was cut. */
  next: number | null;
}
