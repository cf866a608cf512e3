/** Partitions of a disk. @module */

/** A partition. */
export interface Partition {
  /** 1 and up, as systems number them. */
  number: number;
  offset: number;
  length: number;
  /** In words, where the type is known: `Linux filesystem`, ... */
  kind: string;
  name: string | null;
}

/** The partition table of a disk; `scheme` is null where there is none. */
export interface PartitionReport {
  scheme: "mbr" | "gpt" | null;
  partitions: Partition[];
  problems: string[];
}
