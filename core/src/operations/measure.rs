//! How large the file of a new image becomes: a calculation, without I/O.
//!
//! With `c` bytes of a cluster, `e` of an L2 entry and `w` bits of a refcount, a disk of `v` bytes (rounded up to
//! clusters) takes, in clusters:
//!
//! | Part | Clusters |
//! |---|---|
//! | header | 1 |
//! | L2 tables, all of them | `l2 = ceil(v / c / (c / e))` |
//! | L1 table | `l1 = ceil(l2 / (c / 8))` |
//! | encryption header | `k = ceil(its bytes / c)` |
//! | data | `d` |
//! | refcount blocks | `b = ceil((1 + l2 + l1 + k + d + b + t) / (8 c / w))` |
//! | refcount table | `t = ceil(b / (c / 8))` |
//!
//! where `b` and `t` are the smallest numbers that satisfy both, since blocks and table count themselves. These are the
//! numbers of QEMU as long as the refcount table stays where it was made. One that has to grow (`t` larger than that of
//! the empty image) moves, to one of one and a half its size, and leaves its place behind. So, where QEMU's own files can
//! become larger than it said, `max(ceil(3 (t - 1) / 2), t + 1)` clusters are counted for the last table and `3 (t - 1)`
//! for those before it: the last of them was too small by a cluster at least, and each had two thirds of the next.
//!
//! *Fully allocated* has `d = v / c`. *Required* has as many refcount structures as that, but only the
//! data that there are; so it is enough wherever in the disk they lie. With a data file, `d` is 0: data lie elsewhere.
//!
//! A bitmap that is stored takes its data, one bit for each granule; its table, 8 bytes for each cluster of data; and an
//! entry of 24 bytes and its name in the directory, which all bitmaps share. What more refcounts that needs is counted
//! with it.

use crate::error::Result;
use crate::format::Geometry;
use crate::image::{CreateOptions, Preallocation};

/// Bytes of a directory entry without the name.
const BITMAP_ENTRY_BYTES: u64 = 24;

/// The sizes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub struct Measurement {
    /// Bytes that are enough for the data that there are.
    pub required: u64,
    /// Bytes that are enough when every cluster is written.
    pub fully_allocated: u64,
}

/// A bitmap to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapShape {
    /// Bytes of its name.
    pub name_bytes: u64,
    /// log2 of the guest bytes that one bit stands for.
    pub granularity_bits: u32,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    geometry: Geometry,
    preallocated: bool,
    data_elsewhere: bool,
    /// Clusters of the encryption header.
    crypto: u64,
}

impl Measure {
    /// For a new image with these options and a disk of `size` bytes, whose encryption header has `crypto_bytes` (0 for
    /// none).
    ///
    /// # Errors
    /// As [`CreateOptions::validate`].
    pub fn new(options: &CreateOptions, size: u64, crypto_bytes: u64) -> Result<Self> {
        let geometry = options.validate(size)?;
        Ok(Self {
            geometry,
            preallocated: matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full),
            data_elsewhere: geometry.data_file(),
            crypto: geometry.clusters_for(crypto_bytes),
        })
    }

    /// A counter of the clusters that data touch.
    #[must_use]
    pub fn counter(&self) -> ClusterCounter {
        ClusterCounter { cluster_size: self.geometry.cluster_size(), counted_to: 0, clusters: 0 }
    }

    /// The sizes with `data_clusters` clusters of data.
    #[must_use]
    pub fn of(&self, data_clusters: u64) -> Measurement {
        let all = self.all_data();
        let data = if self.preallocated { all } else { data_clusters.min(all) };
        let tables = self.tables();
        let total = tables.saturating_add(all);
        let fully = total.saturating_add(self.refcounts(total));
        let bytes = |clusters: u64| clusters.saturating_mul(self.geometry.cluster_size());
        Measurement { required: bytes(fully.saturating_sub(all).saturating_add(data)), fully_allocated: bytes(fully) }
    }

    /// Bytes more for bitmaps.
    #[must_use]
    pub fn bitmaps(&self, bitmaps: &[BitmapShape]) -> u64 {
        if bitmaps.is_empty() {
            return 0;
        }
        let clusters = |bytes: u64| self.geometry.clusters_for(bytes);
        let (mut more, mut directory) = (0u64, 0u64);
        for bitmap in bitmaps {
            let granularity = 1u64.checked_shl(bitmap.granularity_bits).unwrap_or(u64::MAX);
            let bits = self.geometry.virtual_size().div_ceil(granularity);
            // Serialized in words of 64 bits.
            let data = clusters(bits.div_ceil(64).saturating_mul(8));
            more = more.saturating_add(data).saturating_add(clusters(data.saturating_mul(8)));
            let entry = BITMAP_ENTRY_BYTES.saturating_add(bitmap.name_bytes);
            directory = directory.saturating_add(entry.div_ceil(8).saturating_mul(8));
        }
        more = more.saturating_add(clusters(directory));
        let total = self.tables().saturating_add(self.all_data());
        let refcounts = self.refcounts(total.saturating_add(more)).saturating_sub(self.refcounts(total));
        more.saturating_add(refcounts).saturating_mul(self.geometry.cluster_size())
    }

    /// Clusters of data when all are written.
    fn all_data(&self) -> u64 {
        if self.data_elsewhere { 0 } else { self.geometry.guest_clusters() }
    }

    /// Clusters of everything but data and refcounts.
    fn tables(&self) -> u64 {
        let l2 = self.geometry.guest_clusters().div_ceil(self.geometry.l2_entries());
        let l1 = self.geometry.clusters_for(l2.saturating_mul(8));
        1u64.saturating_add(l2).saturating_add(l1).saturating_add(self.crypto)
    }

    /// Clusters of the refcount structures that count `clusters` others and themselves, with what tables leave behind.
    fn refcounts(&self, clusters: u64) -> u64 {
        let l1 = self.geometry.clusters_for(self.geometry.l1_entries().saturating_mul(8));
        let (_, first_table) = self.fixed_point(l1.saturating_add(1));
        let (blocks, table) = self.fixed_point(clusters);
        if table <= first_table {
            return blocks.saturating_add(table);
        }
        let mut behind = 0u64;
        loop {
            let (blocks, table) = self.fixed_point(clusters.saturating_add(behind));
            let before = table.saturating_sub(1);
            let last = before.saturating_mul(3).div_ceil(2).max(table.saturating_add(1));
            let more = last.saturating_sub(table).saturating_add(before.saturating_mul(3));
            if more <= behind {
                return blocks.saturating_add(table).saturating_add(behind);
            }
            behind = more;
        }
    }

    /// The fewest blocks, and clusters of the table, that count `clusters` others and themselves.
    fn fixed_point(&self, clusters: u64) -> (u64, u64) {
        let (mut blocks, mut table) = (0u64, 0u64);
        loop {
            let total = clusters.saturating_add(blocks).saturating_add(table);
            let needed = total.div_ceil(self.geometry.refcount_block_entries());
            let needed_table = self.geometry.clusters_for(needed.saturating_mul(8));
            // Each only grows, and a block counts more than itself.
            if (needed, needed_table) == (blocks, table) {
                return (blocks, table);
            }
            (blocks, table) = (needed, needed_table);
        }
    }
}

/// Counts clusters of the new image that runs of data touch; the runs come in the order of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterCounter {
    cluster_size: u64,
    /// Clusters below are counted.
    counted_to: u64,
    clusters: u64,
}

impl ClusterCounter {
    /// Counts a run of guest bytes.
    pub fn add(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let cluster_size = self.cluster_size.max(1);
        let first = offset.checked_div(cluster_size).unwrap_or(0).max(self.counted_to);
        let end = offset.saturating_add(length).div_ceil(cluster_size);
        self.clusters = self.clusters.saturating_add(end.saturating_sub(first));
        self.counted_to = self.counted_to.max(end);
    }

    /// The clusters so far.
    #[must_use]
    pub fn clusters(&self) -> u64 {
        self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(change: impl FnOnce(&mut CreateOptions)) -> CreateOptions {
        let mut options = CreateOptions::default();
        change(&mut options);
        options
    }

    /// What qemu-img 10.0.2 says: size, options, required, fully allocated.
    #[test]
    fn the_numbers_are_qemus() {
        let none = CreateOptions::default();
        let cases = [
            (1 << 30, none.clone(), 393_216, 1_074_135_040),
            (0, none.clone(), 196_608, 196_608),
            (1024, none.clone(), 327_680, 393_216),
            (1 << 40, none.clone(), 168_034_304, 1_099_679_662_080),
            (10 << 30, none, 1_900_544, 10_739_318_784),
            (10 << 30, options(|o| o.cluster_size = 2 << 20), 10_485_760, 10_747_904_000),
            (10 << 30, options(|o| o.refcount_bits = 1), 1_572_864, 10_738_991_104),
            (10 << 30, options(|o| o.extended_l2 = true), 3_211_264, 10_740_629_504),
            (10 << 30, options(|o| (o.cluster_size, o.extended_l2) = (16384, true)), 11_862_016, 10_749_280_256),
            (10 << 30, options(|o| o.version = 2), 1_900_544, 10_739_318_784),
            (10 << 30, options(|o| o.preallocation = Preallocation::Metadata), 1_900_544, 10_739_318_784),
            (10 << 30, options(|o| o.preallocation = Preallocation::Falloc), 10_739_318_784, 10_739_318_784),
        ];
        for (size, options, required, fully_allocated) in cases {
            let measured = Measure::new(&options, size, 0).unwrap().of(0);
            assert_eq!(measured, Measurement { required, fully_allocated }, "{size}, {options:?}");
        }
        // A table that moves leaves its place behind.
        for (size, options, required, fully) in [
            (1 << 50, CreateOptions::default(), 171_825_102_848, 1_126_071_731_945_472),
            (10 << 30, options(|o| o.cluster_size = 512), 213_841_408, 10_951_259_648),
            (10 << 30, options(|o| (o.cluster_size, o.refcount_bits) = (4096, 64)), 42_119_168, 10_779_537_408),
        ] {
            let more = Measure::new(&options, size, 0).unwrap().of(0);
            assert!(more.required > required && more.required < required + required / 50, "{size}: {more:?}");
            assert!(more.fully_allocated > fully && more.fully_allocated < fully + fully / 50, "{size}: {more:?}");
        }
        // LUKS with AES-256 in XTS mode: 2,068,480 bytes in front.
        let sealed = Measure::new(&CreateOptions::default(), 1 << 30, 2_068_480).unwrap().of(0);
        assert_eq!((sealed.required, sealed.fully_allocated), (2_490_368, 1_076_232_192));
        let too_large = Measure::new(&options(|o| o.cluster_size = 512), 64 << 40, 0);
        assert!(too_large.is_err());
    }

    #[test]
    fn a_cluster_is_counted_once_however_many_runs_touch_it() {
        let measure = Measure::new(&CreateOptions::default(), 1 << 30, 0).unwrap();
        let mut counter = measure.counter();
        for (offset, length, clusters) in
            [(0, 0, 0), (10, 10, 1), (30, 65_506, 1), (65_536, 1, 2), (70_000, 131_072, 4)]
        {
            counter.add(offset, length);
            assert_eq!(counter.clusters(), clusters, "{offset}");
        }
        assert_eq!(measure.of(4).required, 393_216 + (4 << 16));
    }

    #[test]
    fn bitmaps_take_data_table_and_directory() {
        let measure = Measure::new(&CreateOptions::default(), 100 << 20, 0).unwrap();
        let bitmap = |granularity_bits| BitmapShape { name_bytes: 2, granularity_bits };
        assert_eq!(measure.bitmaps(&[]), 0);
        assert_eq!(measure.bitmaps(&[bitmap(16), bitmap(12)]), 327_680);
        // Enough bitmaps to need one more block of refcounts.
        let small = Measure::new(&options(|o| (o.cluster_size, o.refcount_bits) = (512, 64)), 10 << 20, 0).unwrap();
        let bare = 20 * 2 + 2;
        assert!(small.bitmaps(&[bitmap(12); 20]) > bare * 512);
    }
}
