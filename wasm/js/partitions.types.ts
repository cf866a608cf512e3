/** Partitions of a disk. @module */

/** A partition. */
export interface Partition {
  /** As Linux counts: from 1, and logical partitions from 5. */
  number: number;
  /** Guest offset of its first byte. */
  start: number;
  size: number;
  /** Its type: a GUID in small letters, or two hexadecimal digits. */
  type: string;
  /** What the type is called, where that is known. */
  type_name: string | null;
  /** Its label; GPT alone. */
  name: string | null;
  /** Its own GUID; GPT alone. */
  id: string | null;
  bootable: boolean;
  /** It reaches beyond the end of the disk. */
  beyond_end: boolean;
}

/** The partition table of a disk. */
export interface PartitionTable {
  scheme: "mbr" | "gpt";
  /** Bytes of the blocks that it counts in. */
  block_size: number;
  disk_id: string | null;
  /** What is wrong with it; empty for a sound table. */
  faults: string[];
  /** In the order of the table; logical partitions behind the primary ones. */
  partitions: Partition[];
}
