//! All arithmetic on cluster bits, made once from the validated header.

use super::{GuestCluster, GuestOffset, HostCluster, HostOffset};

/// The sizes that follow from the header, and the conversions between offsets, clusters and indices.
///
/// A value of this type is always sane: `cluster_bits` 9 to 21, `refcount_order` 0 to 6, so none of its shifts can
/// overflow. Rests on the sections "L1 and L2 tables" and "Host cluster management".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    version: u32,
    extended_l2: bool,
    data_file: bool,
    virtual_size: u64,
}

impl Geometry {
    /// Checks the parts and keeps them; `None` when one is out of range.
    #[must_use]
    pub fn new(
        version: u32,
        cluster_bits: u32,
        refcount_order: u32,
        extended_l2: bool,
        data_file: bool,
        virtual_size: u64,
    ) -> Option<Self> {
        let minimum = if extended_l2 { super::MIN_EXTENDED_L2_CLUSTER_BITS } else { super::MIN_CLUSTER_BITS };
        let sane = (minimum..=super::MAX_CLUSTER_BITS).contains(&cluster_bits)
            && refcount_order <= 6
            && (2..=3).contains(&version)
            && virtual_size <= super::MAX_VIRTUAL_SIZE;
        sane.then_some(Self { cluster_bits, refcount_order, version, extended_l2, data_file, virtual_size })
    }

    /// The same image with another virtual size; `None` beyond [`super::MAX_VIRTUAL_SIZE`].
    #[must_use]
    pub fn with_virtual_size(self, virtual_size: u64) -> Option<Self> {
        (virtual_size <= super::MAX_VIRTUAL_SIZE).then_some(Self { virtual_size, ..self })
    }

    /// log2 of the cluster size.
    #[must_use]
    pub fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// log2 of the width of a refcount in bits.
    #[must_use]
    pub fn refcount_order(&self) -> u32 {
        self.refcount_order
    }

    /// Format version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// L2 entries are 128 bits wide and clusters have 32 subclusters.
    #[must_use]
    pub fn extended_l2(&self) -> bool {
        self.extended_l2
    }

    /// Guest data lives in an external data file, at host offset = guest offset, without refcounts.
    #[must_use]
    pub fn data_file(&self) -> bool {
        self.data_file
    }

    /// Bytes of the virtual disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Bytes of a cluster, for slices.
    #[must_use]
    pub fn cluster_len(&self) -> usize {
        1usize.wrapping_shl(self.cluster_bits)
    }

    /// Parts of a cluster that have a state of their own: 32 with extended L2 entries, else 1.
    #[must_use]
    pub fn subclusters(&self) -> u32 {
        if self.extended_l2 { 32 } else { 1 }
    }

    /// Bytes of a subcluster; the cluster size without extended L2 entries.
    #[must_use]
    pub fn subcluster_size(&self) -> u64 {
        self.cluster_size().wrapping_shr(if self.extended_l2 { 5 } else { 0 })
    }

    /// Bytes of one L2 entry.
    #[must_use]
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of one L2 table.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        1u64.wrapping_shl(self.l2_bits())
    }

    /// Guest bytes that one L2 table maps.
    #[must_use]
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries().saturating_mul(self.cluster_size())
    }

    /// L1 entries that the virtual size needs.
    #[must_use]
    pub fn l1_entries(&self) -> u64 {
        self.virtual_size.div_ceil(self.l2_coverage().max(1))
    }

    /// Guest clusters, the last maybe partial.
    #[must_use]
    pub fn guest_clusters(&self) -> u64 {
        self.virtual_size.div_ceil(self.cluster_size())
    }

    /// Refcounts in one refcount block.
    #[must_use]
    pub fn refcount_block_entries(&self) -> u64 {
        1u64.wrapping_shl(self.refcount_block_bits())
    }

    /// Largest refcount that fits.
    #[must_use]
    pub fn max_refcount(&self) -> u64 {
        super::max_refcount(self.refcount_order)
    }

    /// Clusters that `bytes` need.
    #[must_use]
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// `bytes` rounded down to a cluster boundary.
    #[must_use]
    pub fn align_down(&self, bytes: u64) -> u64 {
        bytes & !self.cluster_mask()
    }

    /// `bytes` rounded up to a cluster boundary, or the largest aligned value.
    #[must_use]
    pub fn align_up(&self, bytes: u64) -> u64 {
        self.align_down(bytes.saturating_add(self.cluster_mask()))
    }

    /// Whether `bytes` is a multiple of the cluster size.
    #[must_use]
    pub fn is_aligned(&self, bytes: u64) -> bool {
        bytes & self.cluster_mask() == 0
    }

    /// Position within the cluster.
    #[must_use]
    pub fn in_cluster(&self, bytes: u64) -> u64 {
        bytes & self.cluster_mask()
    }

    /// The guest cluster that holds a byte.
    #[must_use]
    pub fn guest_cluster(&self, offset: GuestOffset) -> GuestCluster {
        GuestCluster::new(offset.get().wrapping_shr(self.cluster_bits))
    }

    /// The first byte of a guest cluster; saturates beyond 64 bits.
    #[must_use]
    pub fn guest_start(&self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset::new(cluster.get().saturating_mul(self.cluster_size()))
    }

    /// The host cluster that holds a byte.
    #[must_use]
    pub fn host_cluster(&self, offset: HostOffset) -> HostCluster {
        HostCluster::new(offset.get().wrapping_shr(self.cluster_bits))
    }

    /// The first byte of a host cluster; saturates beyond 64 bits.
    #[must_use]
    pub fn host_start(&self, cluster: HostCluster) -> HostOffset {
        HostOffset::new(cluster.get().saturating_mul(self.cluster_size()))
    }

    /// The L1 entry that leads to a guest cluster.
    #[must_use]
    pub fn l1_index(&self, cluster: GuestCluster) -> u64 {
        cluster.get().wrapping_shr(self.l2_bits())
    }

    /// The entry of a guest cluster within its L2 table.
    #[must_use]
    pub fn l2_index(&self, cluster: GuestCluster) -> u64 {
        cluster.get() & self.l2_entries().wrapping_sub(1)
    }

    /// The guest cluster of an L2 entry; saturates.
    #[must_use]
    pub fn cluster_at(&self, l1_index: u64, l2_index: u64) -> GuestCluster {
        GuestCluster::new(l1_index.saturating_mul(self.l2_entries()).saturating_add(l2_index))
    }

    /// The refcount table entry that leads to a host cluster's refcount.
    #[must_use]
    pub fn refcount_table_index(&self, cluster: HostCluster) -> u64 {
        cluster.get().wrapping_shr(self.refcount_block_bits())
    }

    /// The refcount of a host cluster within its block.
    #[must_use]
    pub fn refcount_block_index(&self, cluster: HostCluster) -> u64 {
        cluster.get() & self.refcount_block_entries().wrapping_sub(1)
    }

    /// log2 of the entries of an L2 table.
    fn l2_bits(&self) -> u32 {
        self.cluster_bits.saturating_sub(if self.extended_l2 { 4 } else { 3 })
    }

    /// log2 of the refcounts in a block.
    fn refcount_block_bits(&self) -> u32 {
        self.cluster_bits.saturating_add(3).saturating_sub(self.refcount_order)
    }

    fn cluster_mask(&self) -> u64 {
        self.cluster_size().wrapping_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_geometry_divides_without_rest() {
        for bits in 9..=21 {
            for order in 0..=6 {
                for extended in [false, true] {
                    let Some(geometry) = Geometry::new(3, bits, order, extended, false, 1 << 40) else {
                        assert!(extended && bits < 14);
                        continue;
                    };
                    assert_eq!(geometry.cluster_size(), 1 << bits);
                    assert_eq!(geometry.l2_entries() * geometry.l2_entry_size(), geometry.cluster_size());
                    assert_eq!(geometry.refcount_block_entries() << order, geometry.cluster_size() * 8);
                    let cluster = GuestCluster::new(123_456);
                    let (l1, l2) = (geometry.l1_index(cluster), geometry.l2_index(cluster));
                    assert_eq!(geometry.cluster_at(l1, l2), cluster);
                    assert_eq!(geometry.guest_cluster(geometry.guest_start(cluster)), cluster);
                }
            }
        }
    }

    #[test]
    fn out_of_range_parts_are_refused() {
        assert!(Geometry::new(3, 8, 4, false, false, 0).is_none());
        assert!(Geometry::new(3, 22, 4, false, false, 0).is_none());
        assert!(Geometry::new(3, 16, 7, false, false, 0).is_none());
        assert!(Geometry::new(1, 16, 4, false, false, 0).is_none());
        assert!(Geometry::new(3, 16, 4, false, false, u64::MAX).is_none());
        assert!(Geometry::new(3, 13, 4, true, false, 0).is_none());
    }
}
