//! How large an increment is going to be.

use crate::format::Geometry;

/// Forecasts for three ways to make an increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Forecast {
    /// Bytes of a cluster of the qcow2 increment.
    pub cluster_size: u64,
    /// Everything that changed is copied, also what reads as zeros: what a program does that knows the bitmap alone.
    pub all_dirty: IncrementSize,
    /// What the mapping says is zero is noted, not copied.
    pub without_known_zeros: IncrementSize,
    /// Zeros among the data, and data that are as before, are left out too; only where data were read.
    pub without_zeros_and_equal: Option<IncrementSize>,
}

/// The size of an increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct IncrementSize {
    /// Bytes of a raw increment: the changed data, one range behind the other.
    pub raw_bytes: u64,
    /// Bytes of the file of a qcow2 increment: an overlay with the clusters that hold changed data, whole.
    pub qcow2_bytes: u64,
    /// Of these, clusters with data.
    pub data_clusters: u64,
    /// Of these, clusters with tables: header, L1 and L2 tables, refcounts.
    pub metadata_clusters: u64,
    /// Clusters that are only noted as zeros, and take no space of their own.
    pub zero_clusters: u64,
}

/// Counts clusters of an increment; ranges come in ascending order.
#[derive(Debug)]
pub(super) struct Counter {
    cluster_size: u64,
    bytes: u64,
    data: u64,
    zero: u64,
    tables: u64,
    /// One more than the last cluster with data, of any kind, and than the last table.
    data_end: u64,
    any_end: u64,
    table_end: u64,
}

impl Counter {
    pub(super) fn new(cluster_size: u64) -> Self {
        Self { cluster_size, bytes: 0, data: 0, zero: 0, tables: 0, data_end: 0, any_end: 0, table_end: 0 }
    }

    /// Data that are copied.
    pub(super) fn data(&mut self, start: u64, length: u64) {
        self.bytes = self.bytes.saturating_add(length);
        let (first, end) = self.clusters(start, length);
        // A cluster that was only zeros so far holds data now.
        if first < self.any_end && first >= self.data_end {
            self.zero = self.zero.saturating_sub(1);
        }
        self.data = self.data.saturating_add(end.saturating_sub(first.max(self.data_end)));
        self.data_end = self.data_end.max(end);
        self.any_end = self.any_end.max(end);
        self.count_tables(first, end);
    }

    /// Zeros that are noted.
    pub(super) fn zeros(&mut self, start: u64, length: u64) {
        let (first, end) = self.clusters(start, length);
        self.zero = self.zero.saturating_add(end.saturating_sub(first.max(self.any_end)));
        self.any_end = self.any_end.max(end);
        self.count_tables(first, end);
    }

    fn clusters(&self, start: u64, length: u64) -> (u64, u64) {
        let first = start.checked_div(self.cluster_size).unwrap_or(0);
        (first, start.saturating_add(length).div_ceil(self.cluster_size.max(1)))
    }

    fn count_tables(&mut self, first: u64, end: u64) {
        let per_table = (self.cluster_size / 8).max(1);
        let first = first.checked_div(per_table).unwrap_or(0).max(self.table_end);
        let end = end.div_ceil(per_table);
        self.tables = self.tables.saturating_add(end.saturating_sub(first));
        self.table_end = self.table_end.max(end);
    }

    /// The size of an overlay for a disk of `virtual_size` bytes.
    pub(super) fn size(&self, virtual_size: u64) -> IncrementSize {
        let bits = self.cluster_size.trailing_zeros();
        let l1 = Geometry::new(3, bits, 4, false, false, virtual_size)
            .map_or(0, |geometry| geometry.clusters_for(geometry.l1_entries().saturating_mul(8)));
        let fixed = self.tables.saturating_add(l1).saturating_add(1);
        let per_block = (self.cluster_size / 2).max(1);
        let (mut blocks, mut table) = (1u64, 1u64);
        // Refcounts count themselves too; each round only adds.
        for _ in 0..8 {
            let clusters = self.data.saturating_add(fixed).saturating_add(blocks).saturating_add(table);
            blocks = clusters.div_ceil(per_block);
            table = blocks.saturating_mul(8).div_ceil(self.cluster_size.max(1));
        }
        let metadata_clusters = fixed.saturating_add(blocks).saturating_add(table);
        let clusters = self.data.saturating_add(metadata_clusters);
        IncrementSize {
            raw_bytes: self.bytes,
            qcow2_bytes: clusters.saturating_mul(self.cluster_size),
            data_clusters: self.data,
            metadata_clusters,
            zero_clusters: self.zero,
        }
    }
}
