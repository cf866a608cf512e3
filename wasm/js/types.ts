/**
 * What goes in: sources, options, errors. What comes out is in `reports.ts`.
 *
 * Plain data, options and reports alike, have the `snake_case` names of the command line's JSON; methods are
 * `camelCase`. Offsets and lengths are bytes, as `number`; arguments that are no integers from 0 to 2^53 are refused
 * with code `limit` or `invalid_argument`. An option that is not known is refused, never ignored.
 *
 * @module
 */

/**
 * What went wrong; the names are the same in Rust and Python, but for two: `closed`, and `not_loaded`, when the module or a
 * part of it is not there and cannot be loaded. The call can be repeated.
 */
export type ErrorCode =
  | "storage" | "not_qcow2" | "corrupt" | "unsupported" | "encrypted" | "wrong_key" | "denied"
  | "invalid_argument" | "out_of_range" | "read_only" | "locked" | "limit" | "no_space" | "codec" | "poisoned" | "closed" | "not_loaded";

/** What is thrown: an `Error` that says what and where. What does not apply is undefined. */
export interface QcowError extends Error {
  readonly name: "QcowError";
  readonly code: ErrorCode;
  /** The structure of the format, such as "l1_table". */
  readonly structure?: Structure;
  /** Byte position in the image file; a bigint from 2^53 on, which only broken images reach. */
  readonly host_offset?: Int;
  /** Byte position in the virtual disk; likewise. */
  readonly guest_offset?: Int;
  /** The entry within the structure; likewise. */
  readonly index?: Int;
  /** Distance from the top of the backing chain. */
  readonly depth?: number;
  /** What a {@link ByteSource} threw, where that was the reason (code `storage`); why a part is not there (`not_loaded`). */
  readonly cause?: unknown;
}

/** An integer that a broken image can make huge: a `number` below 2^53, where that is exact, a `bigint` from there on. */
export type Int = number | bigint;

/** A structure of the format, as errors and reports name it. */
export type Structure =
  | "header" | "header_extension" | "l1_table" | "l2_table" | "refcount_table" | "refcount_block" | "data_cluster"
  | "compressed_cluster" | "snapshot_table" | "bitmap_directory" | "bitmap_table" | "bitmap_data" | "crypto_header"
  | "backing_file" | "data_file";

/**
 * Bytes that are read where they are: a file, private storage, a URL. Synchronous, so it lives in a worker (or in Node).
 *
 * The bytes must not change while an image is open on them. What is written to `into` after `readAt` has returned is lost,
 * and calls into qcowkit out of `readAt` are refused with code `locked`.
 */
export interface ByteSource {
  /** Length in bytes. */
  readonly size: number;
  /**
   * Fills `into` with the bytes from `offset`, all of which lie within `size`. Gives the number of bytes that were read;
   * fewer than `into.length` is an error (the file was cut off). May throw: the exception is the `cause` of the error.
   */
  readAt(offset: number, into: Uint8Array): number;
  /**
   * Whether reads are slow enough for a read-ahead cache in front of them (4 MiB at most). Default: true.
   */
  readonly cached?: boolean;
  /** Gives back what the source holds, if anything. Called by whoever made it, never by an image. */
  close?(): void;
}

/** Where an image is: its bytes, which are copied, or a source, which is read piece by piece. */
export type ImageInput = Uint8Array | ArrayBuffer | ByteSource;

/** A file that an image names; the name is untrusted. */
export interface Reference {
  readonly role: "backing_file" | "data_file";
  /** As it stands in the image; empty for a data file without a name. */
  readonly name: string;
  /** The format that the image claims for it, if it does. */
  readonly format: string | null;
  /** How deep in the chain the image lies that names it; 0 is the top. */
  readonly depth: number;
  /** The `identity` of the image that names it, for names relative to its place. */
  readonly from: string | null;
}

/** What a resolver found. */
export interface Layer {
  readonly input: ImageInput;
  /** Default: what the first bytes say is never asked; a backing file without `format` here or in the image is refused. */
  readonly format?: "qcow2" | "raw";
  /** What tells this file from every other: a chain that meets one twice is refused. */
  readonly identity?: string;
}

/**
 * Finds the files that an image names. Called while the image is opened; `undefined` refuses (code `denied`). Without a
 * resolver everything is refused: nothing that an image names is opened by itself.
 */
export type Resolver = (reference: Reference) => Layer | undefined;

/** Under which rules discards and zeros are carried out: QEMU's run-time options. The defaults are QEMU's with `discard=unmap`. */
export interface DiscardPolicy {
  /** `discard=unmap` (true, the default) or `discard=ignore`. */
  readonly discard?: boolean;
  /** `always`: off. `retain_unshared`: `discard-no-unref=on`. `retain_qemu`: as QEMU keeps it, shared clusters too. */
  readonly unref?: "always" | "retain_unshared" | "retain_qemu";
  /** What is done with the host space of a cluster that is kept. Default: `punch`. */
  readonly retained_op?: "punch" | "zero_range" | "none";
  /** `pass-discard-request`; default true. */
  readonly pass_discard_request?: boolean;
  /** `pass-discard-snapshot`; default true. */
  readonly pass_discard_snapshot?: boolean;
  /** `pass-discard-other`; default false. */
  readonly pass_discard_other?: boolean;
}

/** How an image is opened. */
export interface OpenOptions extends DiscardPolicy {
  /** Edits are refused. Default: false. (The input is never changed, either way: edits are kept in memory.) */
  readonly read_only?: boolean;
  /**
   * Opens what cannot be opened as a disk too: `problem` says why, calls for guest data throw it, and everything that
   * looks at the file (check, repair, inspect, audit, ...) works as far as the file lets it. Default: false.
   */
  readonly tolerant?: boolean;
  /** Finds backing and data files. */
  readonly resolver?: Resolver;
  /**
   * Leaves out the files that the resolver does not find: reads that would need one fail. Default: false; true with
   * `tolerant`.
   */
  readonly ignore_missing_files?: boolean;
  /** What tells the image from others, for {@link Reference.from} and to find chains that lead back. */
  readonly identity?: string;
  /** The password of encrypted images, as text (UTF-8) or bytes; tried on every encrypted layer. */
  readonly key?: string | Uint8Array;
  /** The most rounds of key derivation that an image may ask for: each costs time. Default: 20,000,000. */
  readonly max_key_iterations?: number;
  /** Zeros in writes: written (`off`, default), made write-zeroes (`on`), made write-zeroes that may unmap. */
  readonly detect_zeroes?: "off" | "on" | "unmap";
  /** Where new clusters are taken from. Default: `qemu`. */
  readonly allocation?: "qemu" | "fill-holes" | "near";
  /** How many bytes of memory edits may take; a write beyond that fails with code `no_space`. Default: 1 GiB. */
  readonly max_edit_bytes?: number;
}

/** What a new image is like. The defaults are QEMU's. */
export interface CreateOptions extends OpenOptions {
  /** "0.10" (version 2) or "1.1" (version 3, the default). */
  readonly compat?: "0.10" | "1.1";
  /** A power of two from 512 to 2 MiB; default 65536. */
  readonly cluster_size?: number;
  /** 1, 2, 4, 8, 16 (default), 32 or 64. */
  readonly refcount_bits?: number;
  readonly extended_l2?: boolean;
  readonly lazy_refcounts?: boolean;
  readonly compression_type?: "zlib" | "zstd";
  /** Stored as given; what it names is found by `resolver` when the image is read. */
  readonly backing_file?: string;
  readonly backing_format?: "qcow2" | "raw";
  readonly preallocation?: "off" | "metadata" | "falloc" | "full";
}

/** A part of the virtual disk. */
export interface GuestRange {
  readonly offset: number;
  readonly length: number;
}

/** Told how far a long call is, from 0 to 1. May throw to end the call: the exception comes out of it. */
export type Progress = (done: number) => void;

/** Limits that the module sets beyond those of the format; every refusal names its limit. */
export interface Limits {
  /** The largest integer that every `number` up to it holds exactly, 2^53 - 1: larger offsets and sizes are refused. */
  readonly max_offset: number;
  /** The most bytes that one `read` returns. */
  readonly max_read_bytes: number;
  /** The most bytes that `save` returns; larger images are saved by {@link Image.patch}. */
  readonly max_save_bytes: number;
  /** The most rows that one call for runs, map or ranges lists. */
  readonly max_rows: number;
  /** The longest trace, in operations. */
  readonly max_trace_operations: number;
  /** The most bytes that the read-ahead cache of a source holds. */
  readonly read_ahead_bytes: number;
}
