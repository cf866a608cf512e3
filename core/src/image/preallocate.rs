//! Mapping clusters before anything is written to them.

use alloc::vec;

use super::{Image, Preallocation};
use crate::error::{Error, Result};
use crate::format::{GuestCluster, GuestOffset, HostCluster, HostOffset, HostRef, L2Entry, Subclusters};
use crate::metadata::Run;
use crate::storage::{Storage, ZeroMode};

/// Which clusters get a place, and what they show then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Those that are unallocated; what showed there shows still.
    Unallocated,
    /// Also those that are zero without a place: all of them are to read as zeros.
    Zeros,
}

/// Clusters of one table that get one run of host bytes.
struct Found {
    /// Clusters looked at.
    count: u64,
    /// Whether they lack a place.
    missing: bool,
}

impl<S: Storage> Image<S> {
    /// Maps every unallocated cluster of a range to a new host cluster, or to its place in the data file. Durable on
    /// return.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn preallocate(&mut self, offset: u64, length: u64, mode: Preallocation) -> Result<()> {
        let end = self.guest_range(offset, length)?;
        if mode == Preallocation::Off {
            return Ok(());
        }
        self.begin_writing()?;
        let first = self.geometry().guest_cluster(GuestOffset::new(offset));
        self.map_clusters(first, end, mode, Over::Unallocated)?;
        self.flush()
    }

    /// Maps the clusters between two sizes of the disk, which read as zeros already and go on to. Nothing is committed.
    pub(super) fn preallocate_growth(&mut self, old: u64, size: u64, mode: Preallocation) -> Result<()> {
        if mode == Preallocation::Off {
            return Ok(());
        }
        // Where a backing file may show, the cluster in which the disk used to end is not all zeros.
        let first = match self.header().backing_file {
            Some(_) => GuestCluster::new(self.geometry().clusters_for(old)),
            None => self.geometry().guest_cluster(GuestOffset::new(old)),
        };
        self.map_clusters(first, size, mode, Over::Zeros)
    }

    fn map_clusters(&mut self, first: GuestCluster, end: u64, mode: Preallocation, over: Over) -> Result<()> {
        let geometry = *self.geometry();
        if mode == Preallocation::Full || geometry.version() < 3 {
            // Zeros of the guest's have to be written.
            self.refuse_locked()?;
        }
        let mut cluster = first;
        let last = GuestCluster::new(geometry.clusters_for(end));
        let mut goal = None;
        while cluster < last {
            let found = self.find_missing(cluster, last.distance_from(cluster), over)?;
            let count = if found.missing {
                let run = self.map_run(cluster, found.count, goal, mode, over)?;
                goal = Some(run.first.saturating_add(run.count));
                run.count
            } else {
                found.count.max(1)
            };
            cluster = cluster.saturating_add(count);
            if self.metadata.wants_commit() {
                self.commit()?;
            }
        }
        Ok(())
    }

    /// The clusters from `first` on, of one table, that all lack a place or all have one.
    fn find_missing(&mut self, first: GuestCluster, most: u64, over: Over) -> Result<Found> {
        let geometry = *self.geometry();
        self.metadata.writable_table(&self.storage, geometry.l1_index(first))?;
        let most = most.min(geometry.l2_entries().saturating_sub(geometry.l2_index(first)));
        let mut missing = None;
        let count = self.metadata.visit(&self.storage, first, most, |entry| {
            let lacks = match entry.unwrap_or(L2Entry::UNALLOCATED) {
                L2Entry::Plain { host: None, parts } => over == Over::Zeros || parts == Subclusters::NONE,
                L2Entry::Plain { host: Some(_), .. } | L2Entry::Compressed(_) => false,
            };
            *missing.get_or_insert(lacks) == lacks
        })?;
        Ok(Found { count, missing: missing == Some(true) })
    }

    /// Gives clusters a place, as many as lie in one run.
    fn map_run(
        &mut self,
        first: GuestCluster,
        count: u64,
        goal: Option<HostCluster>,
        mode: Preallocation,
        over: Over,
    ) -> Result<Run> {
        let geometry = *self.geometry();
        let run = if geometry.data_file() {
            Run { first: HostCluster::new(first.get()), count, fresh: false }
        } else {
            self.metadata.allocate(&self.storage, count, goal)?
        };
        // Before they are linked: whoever commits next would show what the clusters held before.
        if let Err(error) = self.reserve(run, first, mode) {
            if !geometry.data_file() {
                self.metadata.undo_allocation(&self.storage, run)?;
            }
            return Err(error);
        }
        self.mapping_due |= geometry.data_file();
        for n in 0..run.count {
            let offset = HostOffset::new(geometry.host_start(run.first.saturating_add(n)).get());
            let entry = self.placed_entry(HostRef { offset, copied: true }, mode, over);
            self.metadata.set_entry(&self.storage, first.saturating_add(n), entry)?;
        }
        Ok(run)
    }

    /// The entry of a cluster that has a place and no contents of its own.
    fn placed_entry(&self, host: HostRef, mode: Preallocation, over: Over) -> L2Entry {
        let geometry = self.geometry();
        // Without a backing file every cluster reads as zeros.
        let zero = over == Over::Zeros || self.header().backing_file.is_none();
        // Encrypted, the zeros of the file do not read as zeros, unless they were written as the guest's.
        let encrypted = self.encryption().is_some() && mode != Preallocation::Full;
        // Empty subclusters say it too.
        let empty = over == Over::Unallocated && geometry.extended_l2();
        let says_zero = self.header().backing_file.is_some() && over == Over::Zeros || encrypted && zero && !empty;
        if says_zero && geometry.version() >= 3 {
            return L2Entry::zero_allocated(host, geometry);
        }
        // With subclusters the cluster is there but nothing in it is, so that a backing file still shows.
        let parts = if geometry.extended_l2() { Subclusters::NONE } else { Subclusters::all_allocated(geometry) };
        L2Entry::Plain { host: Some(host), parts }
    }

    /// Makes new clusters read as zeros, reserved as `mode` says.
    fn reserve(&mut self, run: Run, first: GuestCluster, mode: Preallocation) -> Result<()> {
        let guest = self.geometry().guest_start(first).get();
        let start = self.geometry().host_start(run.first).get();
        let length = run.count.saturating_mul(self.geometry().cluster_size());
        // A data file ends where the disk does.
        let length = match self.geometry().data_file() {
            true => length.min(self.virtual_size().saturating_sub(start)),
            false => length,
        };
        self.note_data();
        if let Some(cipher) = self.cipher()
            && (mode == Preallocation::Full || self.geometry().version() < 3)
        {
            return self.write_encrypted_zeros(cipher, guest, HostOffset::new(start), length);
        }
        let storage = self.data_storage();
        match mode {
            Preallocation::Off => {}
            Preallocation::Metadata if run.fresh => {
                // An entry must not point beyond the end of the file, also not after a cut.
                let end = start.saturating_add(length);
                if storage.capabilities().grows && storage.len()? < end {
                    storage.set_len(end)?;
                }
            }
            Preallocation::Metadata => storage.write_zeroes(start, length, ZeroMode::MayUnmap)?,
            Preallocation::Falloc => {
                if !run.fresh {
                    storage.write_zeroes(start, length, ZeroMode::KeepAllocated)?;
                }
                storage.allocate(start, length)?;
            }
            Preallocation::Full => {
                let zeros = vec![0u8; 1 << 20];
                let mut at = start;
                let end = start.saturating_add(length);
                while at < end {
                    let piece = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(zeros.len());
                    storage.write_at(at, zeros.get(..piece).unwrap_or(&zeros)).map_err(Error::from)?;
                    at = at.saturating_add(u64::try_from(piece).unwrap_or(u64::MAX));
                }
            }
        }
        Ok(())
    }
}
