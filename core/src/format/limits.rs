//! Named limits: what an image says is checked against these before anything is allocated.

/// Smallest cluster: 512 bytes (section "Header", `cluster_bits`).
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster that QEMU opens: 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Extended L2 entries need clusters of 16 KiB or more, so that a subcluster has at least 512 bytes.
pub const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;
/// Header extensions in one image. Six kinds are known, and no program writes more than a few; a header cluster of 2 MiB
/// would have room for 262,144.
pub const MAX_HEADER_EXTENSIONS: usize = 1024;
/// Entries of a feature name table that is understood: there are 192 bits to name.
pub const MAX_FEATURE_NAMES: usize = 1024;
/// Bytes of the largest L1 table that QEMU opens (32 MiB).
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Entries of L2 tables that an L1 table leads to once more than once. Each table has an L1 entry of its own, so a file of
/// a few clusters could otherwise claim 2^42 mapped clusters, and whoever goes through the disk would never end. Those
/// that a damaged table may repeat are far fewer.
pub const MAX_REPEATED_L2_ENTRIES: u64 = 1 << 27;
/// Bytes of the largest refcount table that QEMU opens (8 MiB).
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Snapshots in one image (QEMU's limit).
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// Bytes of the largest snapshot table (64 MiB: 1 KiB for each of the snapshots allowed).
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Bytes of extra data of one snapshot (QEMU's limit).
pub const MAX_SNAPSHOT_EXTRA_DATA: u32 = 1024;
/// Persistent bitmaps in one image (QEMU's limit).
pub const MAX_BITMAPS: u32 = 65_535;
/// Bytes of the largest bitmap directory (QEMU's limit: 64 MiB).
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = 64 << 20;
/// Entries of the largest bitmap table (QEMU's limit).
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 0x800_0000;
/// Bytes of bitmap data that one bitmap may have (QEMU's limit).
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// Bytes of the longest bitmap name (QEMU's limit).
pub const MAX_BITMAP_NAME: usize = 1023;
/// One bit of a bitmap speaks for at least 512 bytes (QEMU's limit).
pub const MIN_BITMAP_GRANULARITY_BITS: u8 = 9;
/// One bit of a bitmap speaks for at most 2 GiB (QEMU's limit).
pub const MAX_BITMAP_GRANULARITY_BITS: u8 = 31;
/// Bytes that a plan of a repair may change in all its rounds, with the copies that it makes and with what the list of
/// changes takes. A repair that needs more in its first round is refused; what later rounds would need is left to another
/// repair. They are held in memory until they are written: in the list, and once more in an overlay, there in pages of
/// 4 KiB with what lies beside them.
pub const MAX_REPAIR_BYTES: u64 = 1 << 30;
/// Bytes of clusters that a plan of a repair may give to copies of what has two uses, in all its rounds. They are held twice
/// (see [`MAX_REPAIR_BYTES`]). What is left is told; another repair goes on with it.
pub const MAX_REPAIR_COPY_BYTES: u64 = 256 << 20;
/// Layers in one backing chain, a defence against endless chains.
pub const MAX_CHAIN_DEPTH: u32 = 200;
/// Bytes of the longest backing file name (section "Header").
pub const MAX_BACKING_NAME: u32 = 1023;
/// Host offsets are 56 bits wide in every table entry.
pub const MAX_HOST_OFFSET: u64 = 1 << 56;
/// Largest virtual disk: what signed 64-bit offsets of QEMU's block layer hold, rounded down to a sector.
pub const MAX_VIRTUAL_SIZE: u64 = 0x7fff_ffff_ffff_fe00;
