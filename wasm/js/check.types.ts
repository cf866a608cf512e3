/** What a check finds and a repair does. @module */

import type { Int, Structure } from "./types.js";

/** How bad a finding is. */
export type Severity = "corruption" | "leak" | "check_error" | "warning";

/** What is wrong. */
export type FindingKind =
  | "refcount_too_high" | "refcount_too_low" | "refcount_overflow" | "refcount_unreadable" | "copied_flag"
  | "reserved_bits" | "unaligned" | "beyond_end_of_file" | "refcount_block_outside" | "refcount_block_shared"
  | "compressed_copied" | "compressed_bitmap" | "compressed_in_data_file" | "subcluster_conflict"
  | "subcluster_without_cluster" | "zero_in_version2" | "zero_in_extended" | "data_file_offset"
  | "snapshot_incomplete" | "snapshot_l1_table" | "snapshots_with_data_file" | "snapshot_table" | "bitmap"
  | "unreadable" | "limit" | "overlap" | "header_field" | "mark" | "orphaned_table";

/** One thing that is wrong, or several of a kind in a row. */
export interface Finding {
  severity: Severity;
  kind: FindingKind;
  structure: Structure;
  /** The cluster, or where a broken entry leads. */
  host_offset: Int | null;
  guest_offset: Int | null;
  index: Int | null;
  /** What the image says: a refcount, or the bits of an entry. */
  recorded: Int | null;
  /** What is so: the number of references, or the refcount. */
  actual: Int | null;
  /** How many it stands for in the counter of its severity. */
  count: number;
  message: string;
}

/** What a check found; the counters are those of `qemu-img check`. */
export interface CheckReport {
  corruptions: number;
  leaks: number;
  check_errors: number;
  warnings: number;
  /** References are missing because something could not be read: leaks are not reported then. */
  incomplete: boolean;
  image_end_offset: Int;
  total_clusters: number;
  allocated_clusters: number;
  fragmented_clusters: number;
  compressed_clusters: number;
  /** The first 1000. */
  findings: Finding[];
  findings_omitted: number;
}

/** What a repair does about a finding. */
export type RepairAction =
  | "lower_refcount" | "raise_refcount" | "rebuild_refcounts" | "set_copied" | "clear_copied" | "clear_bits"
  | "align_entry" | "drop_entry" | "zero_entry" | "shorten_compressed" | "copy_cluster" | "rewrite_snapshot_table"
  | "drop_snapshot" | "drop_bitmap" | "drop_bitmaps" | "distrust_bitmap" | "correct_header" | "move_l1_table"
  | "relink_table" | "clear_mark" | "none";

/** One thing that is wrong, and what is done about it. */
export interface RepairFinding {
  severity: Severity;
  kind: FindingKind;
  structure: Structure;
  host_offset: Int | null;
  host_length: Int;
  guest_offset: Int | null;
  guest_length: Int;
  /** `header`, `active`, `snapshot 0`, `bitmap 1`, `refcounts`. */
  owner: string;
  action: RepairAction;
  message: string;
}

/** An L2 table that nothing leads to. */
export interface OrphanedTable {
  host_offset: number;
  entries: number;
  leaked_clusters: number;
  /** How much it looks like a lost table, 0 to 100. */
  score: number;
  likely_guest_offset: number | null;
  possible_guest_offsets: number[];
}

/** What a repair does, and what the image will be afterwards. */
export interface RepairPlan {
  level: "leaks" | "all";
  findings: RepairFinding[];
  findings_omitted: number;
  orphans: OrphanedTable[];
  /** The check of the image as it is; null where it is too broken to be checked. */
  before: CheckReport | null;
  after: CheckReport;
  length_before: number;
  length_after: number;
  bytes_to_write: number;
  /** What ended the plan before all was done that can be, to bound memory: another repair goes on. */
  limit?: "copies" | "changes" | "rounds";
}
