/** What the maps show: kinds, each with a colour (a custom property of the style sheet) and a pattern. */

import type { SpaceClass } from "qcowkit/client";

export type Pattern = "solid" | "vertical" | "horizontal" | "dots" | "diagonal" | "cross" | "sparse" | "checker" | "empty" | "back";

export interface Kind {
  readonly key: string;
  readonly title: string;
  readonly help: string;
  /** Custom property that holds the colour. */
  readonly color: string;
  readonly pattern: Pattern;
}

/** Kinds of the file. The order is that of the map's cells, from the top. */
export const HOST_KINDS: readonly Kind[] = [
  { key: "header", title: "Header", help: "The header cluster with extensions and names, and the encryption header.", color: "--k-header", pattern: "solid" },
  { key: "tables", title: "L1 and L2 tables", help: "They say where each cluster of the disk lies in the file.", color: "--k-tables", pattern: "vertical" },
  { key: "refcounts", title: "Refcounts", help: "Refcount table and blocks: how many users each cluster of the file has.", color: "--k-refcounts", pattern: "horizontal" },
  { key: "bitmaps", title: "Bitmaps", help: "Persistent dirty bitmaps, for incremental backups: directory, tables and bits.", color: "--k-bitmaps", pattern: "dots" },
  { key: "data", title: "Live data", help: "Uncompressed data of the disk as it is now.", color: "--k-data", pattern: "solid" },
  { key: "compressed", title: "Compressed", help: "Compressed data of the disk as it is now, and bytes between the streams.", color: "--k-compressed", pattern: "diagonal" },
  { key: "snapshots", title: "Only in snapshots", help: "Data and tables that only internal snapshots use.", color: "--k-snapshots", pattern: "cross" },
  { key: "retained", title: "Zero but kept", help: "Clusters that read as zeros and keep their space.", color: "--k-retained", pattern: "sparse" },
  { key: "leaked", title: "Leaked", help: "A refcount above zero, but nothing refers to it: lost space.", color: "--k-leaked", pattern: "checker" },
  { key: "free", title: "Free", help: "Free clusters inside the file, and what lies behind the last one in use.", color: "--k-free", pattern: "empty" },
];

const GROUP: Readonly<Record<SpaceClass, number>> = {
  header: 0,
  encryption_header: 0,
  l1_table: 1,
  l2_tables: 1,
  refcount_table: 2,
  refcount_blocks: 2,
  bitmap_metadata: 3,
  bitmap_data: 3,
  live_data: 4,
  compressed_data: 5,
  compressed_slack: 5,
  snapshot_metadata: 6,
  only_in_snapshots: 6,
  zero_retained: 7,
  leaked: 8,
  free: 9,
  beyond_last_used: 9,
};

/** The kind of a class of the space ledger. */
export function kindOfClass(name: SpaceClass): number {
  return GROUP[name];
}

/** Kinds of the disk. */
export const GUEST_KINDS: readonly Kind[] = [
  { key: "data", title: "Data", help: "Stored in this image.", color: "--k-data", pattern: "solid" },
  { key: "compressed", title: "Compressed", help: "Stored in this image, packed.", color: "--k-compressed", pattern: "diagonal" },
  { key: "backing", title: "From a backing file", help: "A layer below decides.", color: "--k-tables", pattern: "back" },
  { key: "retained", title: "Zero but kept", help: "Reads as zeros; its space in the file is kept.", color: "--k-retained", pattern: "sparse" },
  { key: "zero", title: "Zero", help: "Marked as zeros, without space in the file.", color: "--k-zero", pattern: "dots" },
  { key: "unallocated", title: "Unallocated", help: "Nothing is stored: it reads as zeros.", color: "--k-free", pattern: "empty" },
];

export const TITLES: Readonly<Record<SpaceClass, string>> = {
  header: "Header",
  l1_table: "L1 table",
  refcount_table: "Refcount table",
  refcount_blocks: "Refcount blocks",
  l2_tables: "L2 tables",
  snapshot_metadata: "Snapshot metadata",
  bitmap_metadata: "Bitmap metadata",
  bitmap_data: "Bitmap data",
  encryption_header: "Encryption header",
  live_data: "Live data",
  compressed_data: "Compressed data",
  compressed_slack: "Compressed slack",
  only_in_snapshots: "Only in snapshots",
  zero_retained: "Zero but kept",
  leaked: "Leaked",
  free: "Free inside the file",
  beyond_last_used: "Behind the last used cluster",
};
