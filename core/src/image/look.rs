//! A look at tables in memory for operations that count, without a walk through the storage.

use super::Image;
use crate::error::Result;
use crate::format::{GuestCluster, HostCluster, HostOffset, L2Entry};
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// The entries of this layer, as [`crate::metadata::Metadata::visit_runs`] shows them: from `first` on, within one L2
    /// table, runs that go on told at once; `None` stands for all entries of a missing table.
    pub(crate) fn visit_entry_runs(
        &mut self,
        first: GuestCluster,
        count: u64,
        mut visit: impl FnMut(Option<L2Entry>, u64) -> bool,
    ) -> Result<()> {
        self.metadata.visit_runs(&self.storage, first, count, |entry, count| visit(entry.copied(), count))
    }

    /// The entry of one guest cluster in this layer.
    pub(crate) fn entry(&mut self, cluster: GuestCluster) -> Result<L2Entry> {
        self.metadata.entry(&self.storage, cluster)
    }

    /// Calls `visit` with each maximal run of host clusters before `end` that are all free or all in use: first
    /// cluster, clusters, free. What waits in quarantine is in use.
    pub(crate) fn visit_host_runs(&mut self, end: u64, mut visit: impl FnMut(u64, u64, bool)) -> Result<()> {
        let mut at = 0u64;
        while at < end {
            let free = self.metadata.free_length(&self.storage, HostCluster::new(at), end.saturating_sub(at))?;
            if free > 0 {
                visit(at, free, true);
            }
            let first_used = at.saturating_add(free);
            let next = self.metadata.next_free(&self.storage, HostCluster::new(first_used))?.min(end);
            if next > first_used {
                visit(first_used, next.saturating_sub(first_used), false);
            }
            at = next.max(first_used).max(at.saturating_add(1));
        }
        Ok(())
    }

    /// Makes sure that a guest cluster's L2 table exists.
    pub(crate) fn make_table(&mut self, cluster: GuestCluster) -> Result<()> {
        self.begin_writing()?;
        let l1_index = self.geometry().l1_index(cluster);
        self.metadata.writable_table(&self.storage, l1_index)
    }

    /// The storage that holds guest data: the data file if there is one.
    pub(crate) fn guest_storage(&self) -> &S {
        self.data_file.as_ref().unwrap_or(&self.storage)
    }
}

impl super::WritePlan {
    /// Every range of the image file or data file that [`Image::write_planned`] writes: the data and what is filled in
    /// around them.
    pub(crate) fn host_ranges(&self) -> impl Iterator<Item = (HostOffset, u64)> + '_ {
        self.pieces.iter().flat_map(|piece| {
            let fills = piece.fills.iter().map(|fill| (fill.host_offset, fill.length));
            core::iter::once((piece.host_offset, piece.length)).chain(fills)
        })
    }
}
