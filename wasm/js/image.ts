/** An open image. @module */

import { RawImage } from "../pkg/qcowkit.js";
import { inputOf, notReading, number, object, octets, text, time, withLayers } from "./arguments.js";
import { Held } from "./held.js";
import type { CheckReport, RepairPlan } from "./check.types.js";
import type { ClusterMap, ClusterRun, Part } from "./clusters.types.js";
import type { PartitionTable } from "./partitions.types.js";
import type {
  Analysis, Audit, BitmapSummary, DiscardReport, EntryRange, FieldList, HostReport, ImageInfo, Inspected, InspectName,
  LayerPath, ListedSnapshot, MapRun, Region, Shown,
} from "./reports.js";
import type {
  CreateOptions, DiscardPolicy, GuestRange, ImageInput, OpenOptions, Progress, QcowError, Structure,
} from "./types.js";
import { mapRuns, value } from "./values.js";

/** A state of the edits, to go back to. A plain number, so that it can cross to another thread. */
export type Checkpoint = number;

/**
 * An open image: a disk with the guest's bytes, and a file with its structures. Edits are kept in memory; the input never
 * changes. Calls are synchronous.
 *
 * It holds memory until {@link Image.close}, which is also `free()` and the end of a `using` block:
 *
 * ```ts
 * using image = Image.create(2 ** 40);
 * image.write(123_456, new TextEncoder().encode("hello"));
 * image.discard(0, 65536, { unref: "retain_unshared" });
 * console.log(image.check().corruptions, image.save().length);
 * ```
 *
 * Every method can throw a {@link QcowError}; after closing, with code `closed`.
 */
export class Image extends Held<RawImage> {
  private constructor(raw: RawImage) {
    super(raw);
  }

  /** Makes an image in memory, sparse: memory goes with what is written, not with `size`, the bytes of the disk. */
  static create(size: number, options: CreateOptions = {}): Image {
    notReading();
    return new Image(RawImage.create(number(size, "size"), withLayers(options)));
  }

  /** Opens an image: bytes are copied, a source is read as needed, metadata first. */
  static open(input: ImageInput, options: OpenOptions = {}): Image {
    notReading();
    return new Image(RawImage.open(inputOf(input), withLayers(options)));
  }

  /**
   * A verdict on the image as it lies there, before it is opened: `qcowkit audit`. `deep` goes through all metadata.
   */
  static audit(input: ImageInput, options: { deep?: boolean; max_virtual_size?: number } = {}): Audit {
    using image = Image.open(input, { tolerant: true, read_only: true });
    return image.audit(options);
  }

  // ---- what it is

  /** Bytes of the virtual disk; 0 where `problem` is set. */
  get virtualSize(): number {
    return this.use((raw) => raw.virtual_size());
  }

  /** Bytes of a cluster; 0 where `problem` is set. */
  get clusterSize(): number {
    return this.use((raw) => raw.cluster_size());
  }

  /** Bytes of the image file as edited. */
  get fileLength(): number {
    return this.use((raw) => raw.file_length());
  }

  /** Whether edits are refused. */
  get readOnly(): boolean {
    return this.use((raw) => raw.read_only());
  }

  /** Why it cannot be opened as a disk; only ever set with the option `tolerant`. A repair can take it away. */
  get problem(): QcowError | undefined {
    return this.use((raw) => raw.problem());
  }

  /** Bytes of memory that edits take. */
  get editBytes(): number {
    return this.use((raw) => raw.edit_bytes());
  }

  get closed(): boolean {
    return this.use((raw) => raw.closed());
  }

  /** What the image says of itself, with the names of `qemu-img info --output=json`. */
  info(): ImageInfo {
    return value(this.use((raw) => raw.info()));
  }

  // ---- guest bytes

  /** Reads guest bytes, at most {@link Limits.max_read_bytes} at once. */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    return this.use((raw) => raw.read(number(offset, "offset"), number(length, "length"))) as Uint8Array<ArrayBuffer>;
  }

  /** Writes guest bytes. */
  write(offset: number, bytes: Uint8Array): void {
    this.use((raw) => raw.write(number(offset, "offset"), octets(bytes, "bytes")));
  }

  /** Makes guest bytes read as zeros; `unmap` (default true) lets their space go, as the policy says. */
  writeZeroes(offset: number, length: number, options: { unmap?: boolean } = {}): void {
    this.use((raw) => raw.write_zeroes(number(offset, "offset"), number(length, "length"), options));
  }

  /**
   * Discards guest ranges, and tells what became of them. Without `policy`, under the options that the image was opened
   * with; with it, under these and, for what it leaves out, QEMU's defaults.
   */
  discard(ranges: GuestRange | readonly GuestRange[], policy?: DiscardPolicy): DiscardReport {
    return value(this.use((raw) => raw.discard(columns(ranges), policy, false)));
  }

  /** As {@link Image.discard}, for show: tells what it would do, and changes nothing. */
  planDiscard(ranges: GuestRange | readonly GuestRange[], policy?: DiscardPolicy): DiscardReport {
    return value(this.use((raw) => raw.discard(columns(ranges), policy, true)));
  }

  /** Changes the size of the disk. Making it smaller loses what lies behind its new end, and needs `shrink`. */
  resize(
    size: number,
    options: { shrink?: boolean; preallocation?: "off" | "metadata" | "falloc" | "full" } = {},
  ): void {
    this.use((raw) => raw.resize(number(size, "size"), options));
  }

  /** Stores everything in the file as edited: what `save`, `patch` and the file's reports do by themselves. */
  flush(): void {
    this.use((raw) => raw.flush());
  }

  // ---- where things are

  /**
   * The disk in runs of one state, through the backing chain: `qemu-img map`. More than {@link Limits.max_rows} rows are
   * refused; with the option `max_rows`, the first so many are given, and the next call goes on where they end.
   * `local` asks this image alone, whose backing file may be missing: what it leaves to that is not `present`.
   */
  map(options: { offset?: number; length?: number; max_rows?: number; local?: boolean } = {}): MapRun[] {
    return mapRuns(this.use((raw) => raw.map(options)));
  }

  /**
   * The file in runs of clusters that are alike, as columns for drawing; `max_rows` at most, and never more than
   * {@link Limits.max_rows}. `next` tells where the next call goes on.
   */
  clusters(options: { host_offset?: number; length?: number; max_rows?: number; progress?: Progress } = {}): ClusterMap {
    return this.use((raw) => raw.clusters(options)) as ClusterMap;
  }

  /** The same as rows. */
  clusterRuns(options: { host_offset?: number; length?: number } = {}): ClusterRun[] {
    return value(this.use((raw) => raw.cluster_runs(options)));
  }

  /** Where the space went, and how the disk lies in the file: `qcowkit analyze`. */
  analyze(options: { scan_zeroes?: boolean; request_sizes?: number[]; progress?: Progress } = {}): Analysis {
    return value(this.use((raw) => raw.analyze(options)));
  }

  /** The partition table of the disk; null where it has none. */
  partitions(): PartitionTable | null {
    return value(this.use((raw) => raw.partitions()));
  }

  // ---- structures

  /** A structure of the file, also of a broken one: `qcowkit inspect --show`. */
  inspect<N extends InspectName>(name: N, range: EntryRange = {}): Shown<Inspected<N>> {
    return value(this.use((raw) => raw.inspect(text(name, "name"), range)));
  }

  /** Every table entry on the way of a guest offset, through the backing chain. */
  inspectGuest(offset: number): Shown<LayerPath>[] {
    return value(this.use((raw) => raw.inspect_guest(number(offset, "offset"))));
  }

  /** Who owns a byte of the file. Goes through the whole image. */
  inspectHost(offset: number): Shown<HostReport> {
    return value(this.use((raw) => raw.inspect_host(number(offset, "offset"))));
  }

  /** The structures that the header leads to: the roots of a tree of which {@link Image.fields} gives the branches. */
  regions(): Shown<Region[]> {
    return value(this.use((raw) => raw.regions()));
  }

  /**
   * The fields of a structure with their bytes, for a hex pane: those that touch `length` bytes from `host_offset` of the
   * file, in order. `structure` says what lies there, as {@link Image.regions}, {@link Image.clusters} and the targets of
   * fields tell it. `skip_empty` (default false) leaves out entries of tables that are 0. Guest data have no fields.
   */
  fields(
    host_offset: number,
    length: number,
    structure: Structure,
    options: { skip_empty?: boolean } = {},
  ): Shown<FieldList> {
    return value(this.use((raw) => raw.fields(number(host_offset, "host_offset"), number(length, "length"), text(structure, "structure"), options)));
  }

  /** Bytes of the file as edited. */
  hostBytes(offset: number, length: number): Uint8Array<ArrayBuffer> {
    return this.use((raw) => raw.host_bytes(number(offset, "offset"), number(length, "length"))) as Uint8Array<ArrayBuffer>;
  }

  // ---- health

  /** Compares references and refcounts: `qemu-img check`. */
  check(options: { progress?: Progress } = {}): CheckReport {
    return value(this.use((raw) => raw.check(options)));
  }

  /** What a repair would do. `relink` puts orphaned L2 tables back: host offset of the table, guest offset it begins at. */
  planRepair(options: RepairOptions = {}): RepairPlan {
    return value(this.use((raw) => raw.repair(options, true)));
  }

  /** Repairs, and gives the plan that was carried out. */
  repair(options: RepairOptions = {}): RepairPlan {
    return value(this.use((raw) => raw.repair(options, false)));
  }

  /** A verdict on the image as edited: `qcowkit audit`. */
  audit(options: { deep?: boolean; max_virtual_size?: number; progress?: Progress } = {}): Audit {
    return value(this.use((raw) => raw.audit(options)));
  }

  // ---- snapshots and bitmaps

  /** The internal snapshots: `qcowkit snapshot --list`. */
  snapshots(): ListedSnapshot[] {
    return value(this.use((raw) => raw.snapshots()));
  }

  /** Takes a snapshot; gives its ID. `date` is when it says that it was taken: now. */
  createSnapshot(name: string, options: { date?: Date } = {}): string {
    return this.use((raw) => raw.create_snapshot(text(name, "name"), time(object(options, "options").date ?? new Date(), "date")));
  }

  /** Makes the disk what it was when the snapshot was taken. */
  applySnapshot(idOrName: string): void {
    this.use((raw) => raw.apply_snapshot(text(idOrName, "idOrName")));
  }

  deleteSnapshot(idOrName: string): void {
    this.use((raw) => raw.delete_snapshot(text(idOrName, "idOrName")));
  }

  /** The disk as it was when the snapshot was taken: another image, read-only, of the file as it is now. */
  openSnapshot(idOrName: string): Image {
    return new Image(this.use((raw) => raw.open_snapshot(text(idOrName, "idOrName"))));
  }

  /** The persistent dirty bitmaps: `qcowkit bitmap --list`. */
  bitmaps(): BitmapSummary[] {
    return value(this.use((raw) => raw.bitmaps()));
  }

  /** Adds a bitmap that records from now on. */
  addBitmap(name: string, options: { granularity?: number } = {}): void {
    this.use((raw) => raw.add_bitmap(text(name, "name"), options));
  }

  removeBitmap(name: string): void {
    this.use((raw) => raw.remove_bitmap(text(name, "name")));
  }

  /** Guest ranges that a bitmap marks. */
  bitmapRanges(name: string): GuestRange[] {
    return value(this.use((raw) => raw.bitmap_ranges(text(name, "name"))));
  }

  // ---- edits

  /** The edits as they are now. Memory is shared with them, so a checkpoint is cheap. */
  checkpoint(): Checkpoint {
    return this.use((raw) => raw.checkpoint());
  }

  /** Goes back to a checkpoint, or forward to a later one. */
  rollback(checkpoint: Checkpoint): void {
    this.use((raw) => raw.rollback(number(checkpoint, "checkpoint")));
  }

  /** Forgets a checkpoint; its memory goes when nothing else needs it. */
  dropCheckpoint(checkpoint: Checkpoint): void {
    this.use((raw) => raw.drop_checkpoint(number(checkpoint, "checkpoint")));
  }

  /**
   * The bytes of the file as edited, at most {@link Limits.max_save_bytes}. Holes are zeros. An external data file is a
   * file of its own: {@link Image.saveDataFile}.
   */
  save(): Uint8Array<ArrayBuffer> {
    return this.use((raw) => raw.save()) as Uint8Array<ArrayBuffer>;
  }

  /** The bytes of the image's external data file as edited, at most {@link Limits.max_save_bytes}. */
  saveDataFile(): Uint8Array<ArrayBuffer> {
    return this.use((raw) => raw.save_data_file()) as Uint8Array<ArrayBuffer>;
  }

  /**
   * The file as edited in parts, in order and without gaps: `base` bytes are those of the input at the same offset,
   * `edits` are read by {@link Image.hostBytes}, `zeros` are zeros. For files that are composed without copying:
   * {@link composeBlob}.
   */
  parts(): Part[] {
    return value(this.use((raw) => raw.parts()));
  }

  /** The parts that differ from the input. The length may differ too: {@link Image.fileLength}. */
  patch(): Part[] {
    return value(this.use((raw) => raw.patch()));
  }
}

/** How a repair is planned. */
export interface RepairOptions {
  /** `all` (default), or leaked clusters alone. */
  level?: "leaks" | "all";
  relink?: { host_offset: number; guest_offset: number }[];
  progress?: Progress;
}

/** Offsets and lengths in turn. */
function columns(ranges: GuestRange | readonly GuestRange[]): Float64Array {
  const list: readonly GuestRange[] = Array.isArray(ranges) ? ranges : [ranges as GuestRange];
  return Float64Array.from(list.flatMap((range) => {
    const { offset, length } = object(range, "a range");
    return [number(offset, "offset"), number(length, "length")];
  }));
}
