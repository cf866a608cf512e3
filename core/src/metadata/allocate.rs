//! Where new clusters come from.

use alloc::vec::Vec;

use super::Metadata;
use super::guard::Touch;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{CompressedRange, HostCluster, HostOffset};
use crate::storage::Storage;

/// How free host clusters are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum AllocationPolicy {
    /// As QEMU does: one contiguous run for the whole request, searched from the last allocation on (next fit; a
    /// release moves the search back). Free gaps that are too small stay free.
    #[default]
    Qemu,
    /// The lowest free clusters, in as many pieces as it takes: the file grows last, at the price of contiguity.
    FillHoles,
    /// Behind the host cluster of the preceding guest cluster where that is free, else as [`AllocationPolicy::Qemu`].
    Near,
}

/// Host clusters just allocated, each with refcount 1, reachable from nowhere yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: HostCluster,
    pub(crate) count: u64,
    /// The bytes were never written and read as zeros.
    pub(crate) fresh: bool,
}

impl Metadata {
    /// Allocates up to `want` clusters in one run, at least one. `goal` is the cluster that would continue what the
    /// guest has before.
    pub(crate) fn allocate(&mut self, storage: &impl Storage, want: u64, goal: Option<HostCluster>) -> Result<Run> {
        self.make_room(storage)?;
        match self.take(storage, want, goal) {
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace(_)) && !self.quarantine.is_empty() => {
                // What waits in quarantine may be just what is missing.
                self.commit(storage)?;
                self.take(storage, want, goal)
            }
            other => other,
        }
    }

    /// Allocates exactly `count` clusters in one run, for tables.
    pub(crate) fn allocate_exact(&mut self, storage: &impl Storage, count: u64) -> Result<Run> {
        self.make_room(storage)?;
        let first = self.refcounts.find_next_fit(storage, count)?;
        self.occupy(storage, first, count)
    }

    /// Commits when too much waits in quarantine, so that the file does not grow for want of patience.
    ///
    /// Not with a data file: its data would have to be durable first, and only tables are allocated here.
    fn make_room(&mut self, storage: &impl Storage) -> Result<()> {
        self.refuse_poisoned()?;
        if self.geometry.data_file() {
            return Ok(());
        }
        let waiting = self.quarantined_bytes();
        if waiting > self.options.quarantine_bytes {
            self.commit(storage)?;
        }
        Ok(())
    }

    fn take(&mut self, storage: &impl Storage, want: u64, goal: Option<HostCluster>) -> Result<Run> {
        if self.options.allocation != AllocationPolicy::FillHoles
            && let Some(goal) = goal
        {
            let free = self.refcounts.free_length(storage, goal, want)?;
            if free > 0 && self.refcounts.fits(goal, free) {
                return self.occupy(storage, goal, free);
            }
        }
        let (first, count) = match self.options.allocation {
            AllocationPolicy::Qemu | AllocationPolicy::Near => (self.refcounts.find_next_fit(storage, want)?, want),
            AllocationPolicy::FillHoles => self.refcounts.find_lowest(storage, want)?,
        };
        self.occupy(storage, first, count)
    }

    fn occupy(&mut self, storage: &impl Storage, first: HostCluster, count: u64) -> Result<Run> {
        self.forbid_overlap(storage, first, count, Touch::Allocation)?;
        let start = self.geometry.host_start(first).get();
        let used_up_to = self.geometry.host_start(HostCluster::new(self.refcounts.high_water())).get();
        let fresh = start >= self.opened_length && start >= used_up_to;
        self.refcounts.increment(storage, first, count)?;
        self.holes.remove(first, count);
        Ok(Run { first, count, fresh })
    }

    /// Takes back an allocation that was never linked.
    pub(crate) fn undo_allocation(&mut self, storage: &impl Storage, run: Run) -> Result<()> {
        self.refcounts.decrement(storage, run.first, run.count, &mut Vec::new())
    }

    /// Allocates room for `length` bytes of compressed data, packed behind the last where that fits.
    pub(crate) fn allocate_compressed(&mut self, storage: &impl Storage, length: u64) -> Result<CompressedRange> {
        let cluster_size = self.geometry.cluster_size();
        if let Some(free) = self.free_byte {
            let current = self.geometry.host_cluster(free);
            let room = cluster_size.saturating_sub(self.geometry.in_cluster(free.get()));
            let refcount = self.refcounts.get(storage, current)?;
            if refcount == 0 || refcount >= self.geometry.max_refcount() {
                self.free_byte = None;
            } else if length <= room {
                self.refcounts.increment(storage, current, 1)?;
                return self.place_compressed(free, length);
            }
        }
        let run = self.allocate(storage, 1, None)?;
        let start = self.geometry.host_start(run.first);
        if let Some(free) = self.free_byte
            && self.geometry.host_cluster(free).saturating_add(1) == run.first
        {
            self.refcounts.increment(storage, self.geometry.host_cluster(free), 1)?;
            return self.place_compressed(free, length);
        }
        self.place_compressed(start, length)
    }

    fn place_compressed(&mut self, offset: HostOffset, length: u64) -> Result<CompressedRange> {
        let end = offset.saturating_add(length);
        self.free_byte = (!self.geometry.is_aligned(end.get())).then_some(end);
        CompressedRange::fits(offset, length, &self.geometry).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace("compressed data lie beyond what an entry can say".into()))
                .at_host(offset.get())
        })
    }

    /// Host clusters that a compressed range touches.
    pub(crate) fn compressed_clusters(&self, range: CompressedRange) -> (HostCluster, u64) {
        let first = self.geometry.host_cluster(range.offset);
        let last_byte = range.offset.saturating_add(range.length.saturating_sub(1));
        let last = self.geometry.host_cluster(last_byte);
        (first, last.distance_from(first).saturating_add(1))
    }

    /// Forgets the half-filled cluster when it is among those that have become free.
    pub(super) fn forget_free_byte(&mut self, first: HostCluster, count: u64) {
        if let Some(free) = self.free_byte {
            let cluster = self.geometry.host_cluster(free);
            if first <= cluster && cluster < first.saturating_add(count) {
                self.free_byte = None;
            }
        }
    }

    /// Takes back room for compressed data that was never linked.
    pub(crate) fn undo_compressed(&mut self, storage: &impl Storage, range: CompressedRange) -> Result<()> {
        let (first, count) = self.compressed_clusters(range);
        // What was packed before it in the same cluster keeps its place; only new data begin elsewhere.
        self.forget_free_byte(first, count);
        self.refcounts.decrement(storage, first, count, &mut Vec::new())
    }
}
