//! The order in which metadata reach storage (law 4): the one module that commits.
//!
//! 1. what nothing on storage points to yet: data (already written by the movers), new L2 tables, refcount blocks, a
//!    moved refcount table; then a barrier. When the refcounts grew: the table entries of new blocks, or the header's
//!    pointer to a moved table; then a barrier of its own, since a cluster must not become reachable before its
//!    refcount is.
//! 2. what makes it reachable: L2 entries, L1 entries, header fields; then a barrier.
//! 3. decrements; the clusters leave quarantine, except for those that somebody may be reading ([`Epochs`]). Where the
//!    last reference is gone, a hole is due: it is made at the next flush at the latest, unless the cluster serves again
//!    by then.
//!
//! A cut anywhere leaves refcounts that are too high (leaks), never too low.

use alloc::vec::Vec;

use super::Metadata;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::HostCluster;
use crate::storage::{ReadStorage, Storage, StorageError};

/// Holes wait until they are so many times the bytes that may wait in quarantine.
const HOLES_PER_QUARANTINE: u64 = 4;

/// Host clusters that each lose one reference at the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quarantined {
    pub(crate) first: HostCluster,
    pub(crate) count: u64,
    /// Punch a hole where the last reference goes.
    pub(crate) pass: bool,
}

/// When clusters were released, and which of them must stay as they are for now. The caller counts: it knows who moves
/// bytes meanwhile.
///
/// An epoch ends whenever somebody is told where bytes are ([`crate::image::Image::next_extent`],
/// [`crate::image::Image::prepare_write`]) and goes to move them without a lock. Until that is done, what is released in
/// later epochs may be just what is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// The epoch of everything that is released from now on; never falls.
    pub current: u64,
    /// Clusters released in later epochs than this one stay in quarantine: they are neither punched nor reused.
    pub settled: u64,
}

impl Default for Epochs {
    /// Nobody moves bytes behind the image's back.
    fn default() -> Self {
        Self { current: 0, settled: u64::MAX }
    }
}

/// What waits in quarantine.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    release: Quarantined,
    /// References that each of its clusters loses.
    references: u64,
    epoch: u64,
}

/// What waits in quarantine, in the order of the epochs.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    waiting: Vec<Waiting>,
    epochs: Epochs,
    /// Clusters that wait.
    clusters: u64,
    /// Releases so far.
    releases: u64,
    /// What the last commit had to leave: entries, clusters, and the settled epoch of that time.
    left: (usize, u64, u64),
}

impl Quarantine {
    fn add(&mut self, release: Quarantined, references: u64) {
        self.releases = self.releases.saturating_add(1);
        self.clusters = self.clusters.saturating_add(release.count);
        let epoch = self.epochs.current;
        match self.waiting.last_mut() {
            Some(last)
                if (last.epoch, last.references, last.release.pass) == (epoch, references, release.pass)
                    && last.release.first.saturating_add(last.release.count) == release.first =>
            {
                last.release.count = last.release.count.saturating_add(release.count);
            }
            Some(_) | None => self.waiting.push(Waiting { release, references, epoch }),
        }
    }

    /// Takes out what nobody can be reading any more.
    fn take_settled(&mut self) -> Vec<Waiting> {
        let settled = self.epochs.settled;
        let end = self.waiting.partition_point(|waiting| waiting.epoch <= settled);
        let kept = self.waiting.split_off(end);
        self.clusters = kept.iter().fold(0, |sum, waiting| sum.saturating_add(waiting.release.count));
        self.left = (kept.len(), self.clusters, settled);
        core::mem::replace(&mut self.waiting, kept)
    }

    /// What a commit would probably free: entries and clusters. What the last one had to leave, the next would too,
    /// until somebody is done.
    fn ripe(&self) -> (usize, u64) {
        let (entries, clusters, settled) = self.left;
        if settled == self.epochs.settled {
            (self.waiting.len().saturating_sub(entries), self.clusters.saturating_sub(clusters))
        } else {
            (self.waiting.len(), self.clusters)
        }
    }

    /// Entries that a commit would take out.
    pub(super) fn len(&self) -> usize {
        self.ripe().0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Metadata {
    /// See [`Epochs`].
    pub(crate) fn set_epochs(&mut self, epochs: Epochs) {
        let current = epochs.current.max(self.quarantine.epochs.current);
        self.quarantine.epochs = Epochs { current, ..epochs };
    }

    /// How often clusters were released since the image was opened.
    pub(crate) fn releases(&self) -> u64 {
        self.quarantine.releases
    }

    /// Bytes that a commit would take out of quarantine.
    pub(super) fn quarantined_bytes(&self) -> u64 {
        self.quarantine.ripe().1.saturating_mul(self.geometry.cluster_size())
    }

    /// Whether a commit would do nothing.
    pub(crate) fn is_settled(&self) -> bool {
        !self.links_wait() && !self.refcounts.has_unlinked() && self.quarantine.is_empty()
    }

    /// Whether guest data, or anything else, wait for a barrier.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// The caller has taken it on to wait for the barrier that is due.
    pub(crate) fn note_barrier(&mut self) {
        self.unsynced = false;
    }

    /// Whether a commit would write what makes something reachable.
    fn links_wait(&self) -> bool {
        self.header_dirty || !self.l1_dirty.is_empty() || self.slices.dirty_count() > 0
    }

    /// Puts clusters into quarantine: their reference is gone from memory, and will be from storage.
    ///
    /// # Errors
    /// When a refcount is 0 already: the image is corrupt, and nothing was changed here.
    pub(crate) fn release(&mut self, storage: &impl ReadStorage, release: Quarantined) -> Result<()> {
        self.refuse_unreferenced(storage, release)?;
        self.release_sound(release);
        Ok(())
    }

    /// What [`Metadata::release`] asks before it does anything: for those who still have to take the reference out of
    /// memory, which can fail too.
    pub(crate) fn refuse_unreferenced(&mut self, storage: &impl ReadStorage, release: Quarantined) -> Result<()> {
        self.refuse_fewer(storage, release, 1)
    }

    /// Refuses clusters with fewer references than they are about to lose.
    pub(super) fn refuse_fewer(
        &mut self,
        storage: &impl ReadStorage,
        release: Quarantined,
        references: u64,
    ) -> Result<()> {
        let found = self.refcounts.find(storage, release.first, release.count, |refcount| refcount < references)?;
        let Some((at, refcount)) = found else { return Ok(()) };
        let what = match references {
            1 => "a cluster in use has refcount 0".into(),
            _ => alloc::format!("a cluster with {references} references has refcount {refcount}"),
        };
        let host = self.geometry.host_start(release.first.saturating_add(at)).get();
        Err(Error::corrupt(Structure::RefcountBlock, what).at_host(host))
    }

    /// What [`Metadata::refuse_unreferenced`] did not refuse.
    pub(crate) fn release_sound(&mut self, release: Quarantined) {
        self.release_often(release, 1);
    }

    /// What [`Metadata::refuse_fewer`] did not refuse: each cluster loses so many references at once.
    pub(super) fn release_often(&mut self, release: Quarantined, references: u64) {
        self.quarantine.add(release, references);
    }

    /// Whether an operation should commit before it makes more dirty.
    pub(crate) fn wants_commit(&self) -> bool {
        self.slices.is_crowded() || self.quarantine.len() > 65_536
    }

    /// Refuses everything after a failed barrier.
    pub(crate) fn refuse_poisoned(&self) -> Result<()> {
        match &self.poisoned {
            None => Ok(()),
            Some(why) => Err(ErrorKind::Poisoned(why.clone()).into()),
        }
    }

    /// From now on nothing is written any more: what reached the disk is unknown.
    pub(crate) fn poison(&mut self, error: &StorageError) -> Error {
        let why = alloc::format!("{error}");
        self.poisoned = Some(why.clone());
        ErrorKind::Poisoned(why).into()
    }

    /// Where it stands why nothing is written any more, for those who change what the tables do not know of.
    #[cfg(feature = "crypto-aes")]
    pub(crate) fn poison_mark(&mut self) -> &mut Option<alloc::string::String> {
        &mut self.poisoned
    }

    /// Whether header fields wait for a commit.
    pub(crate) fn header_waits(&self) -> bool {
        self.header_dirty
    }

    /// Makes everything durable that was asked so far. No barrier when nothing changed, one when only data were
    /// written in place, two when entries changed, three when the refcount structures grew as well.
    pub(crate) fn flush(&mut self, storage: &impl Storage) -> Result<()> {
        self.commit(storage)?;
        if self.unsynced {
            self.barrier(storage)?;
        }
        // Decrements: a promise is not owed for them, but other readers should not find leaks.
        self.refcounts.write_blocks(storage)?;
        self.punch_holes(storage);
        Ok(())
    }

    /// Writes what is dirty, in order, and empties the quarantine as far as [`Epochs`] allow it.
    pub(crate) fn commit(&mut self, storage: &impl Storage) -> Result<()> {
        self.refuse_poisoned()?;
        // A file that somebody else has cut short tells so here, also where nothing waits to be written: nothing is written
        // into what is left of it.
        storage.len()?;
        if self.is_settled() {
            return Ok(());
        }
        self.write_unreachable(storage)?;
        if self.unsynced {
            self.barrier(storage)?;
        }
        self.link_refcounts(storage)?;
        self.write_links(storage)?;
        if self.unsynced {
            self.barrier(storage)?;
        }
        self.unlinked_tables.clear();
        self.empty_quarantine(storage)
    }

    /// Slices of tables that nothing points to, refcount blocks, a moved refcount table.
    pub(super) fn write_unreachable(&mut self, storage: &impl Storage) -> Result<()> {
        self.slices_before_l1(storage)?;
        if self.refcounts.write_blocks(storage)? || self.refcounts.table_moved() {
            self.unsynced = true;
        }
        self.refcounts.write_moved_table(storage)
    }

    /// Writes the dirty slices of L2 tables that no L1 entry on storage names.
    pub(super) fn slices_before_l1(&mut self, storage: &impl Storage) -> Result<()> {
        if self.unlinked_tables.is_empty() {
            return Ok(());
        }
        let (tables, geometry, unsynced) = (&self.unlinked_tables, &self.geometry, &mut self.unsynced);
        self.slices.write_dirty(
            |slice| tables.contains(&geometry.align_down(slice.get())),
            |slice, bytes| {
                *unsynced = true;
                storage.write_at(slice.get(), bytes).map_err(|e| Error::from(e).in_structure(Structure::L2Table))
            },
        )
    }

    /// Makes new refcount blocks, or a moved table, count. Costs a barrier, and only when refcounts grew.
    pub(super) fn link_refcounts(&mut self, storage: &impl Storage) -> Result<()> {
        if !self.refcounts.has_unlinked() {
            return Ok(());
        }
        for (n, sector) in self.refcounts.unlinked_sectors().into_iter().enumerate() {
            if n > 0 {
                self.barrier(storage)?;
            }
            self.refcounts.link_blocks(storage, sector)?;
        }
        if self.refcounts.table_moved() {
            let (offset, clusters) = self.refcounts.table_place();
            self.header.header.refcount_table_offset = offset.get();
            self.header.header.refcount_table_clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
            self.write_table_pointer(storage)?;
        }
        self.barrier(storage)?;
        for old in self.refcounts.linked() {
            let pass = self.options.pass_discard_other;
            self.release(storage, Quarantined { first: old.first, count: old.clusters, pass })?;
        }
        Ok(())
    }

    /// The header's place and size of the refcount table alone (bytes 48 to 59, one sector): other changed fields may
    /// name what is not durable yet.
    fn write_table_pointer(&self, storage: &impl Storage) -> Result<()> {
        let header = &self.header.header;
        let mut field = Vec::with_capacity(12);
        field.extend_from_slice(&header.refcount_table_offset.to_be_bytes());
        field.extend_from_slice(&header.refcount_table_clusters.to_be_bytes());
        storage.write_at(48, &field).map_err(|e| Error::from(e).in_structure(Structure::Header))
    }

    /// L2 entries, L1 entries, header fields.
    fn write_links(&mut self, storage: &impl Storage) -> Result<()> {
        let unsynced = &mut self.unsynced;
        self.slices.write_dirty(
            |_| true,
            |slice, bytes| {
                *unsynced = true;
                storage.write_at(slice.get(), bytes).map_err(|e| Error::from(e).in_structure(Structure::L2Table))
            },
        )?;
        self.write_l1_entries(storage)?;
        if self.header_dirty {
            storage
                .write_at(0, &self.header.header.emit())
                .map_err(|e| Error::from(e).in_structure(Structure::Header))?;
            self.header_dirty = false;
            self.unsynced = true;
        }
        Ok(())
    }

    fn write_l1_entries(&mut self, storage: &impl Storage) -> Result<()> {
        let table = self.header.header.l1_table_offset;
        let mut dirty = self.l1_dirty.iter().copied().peekable();
        while let Some(first) = dirty.next() {
            // Neighbours go out in one write.
            let mut end = first.saturating_add(1);
            while dirty.next_if_eq(&end).is_some() {
                end = end.saturating_add(1);
            }
            let range = usize::try_from(first).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
            let bytes: Vec<u8> = self.l1.get(range).unwrap_or(&[]).iter().flat_map(|e| e.to_be_bytes()).collect();
            storage
                .write_at(table.saturating_add(first.saturating_mul(8)), &bytes)
                .map_err(|e| Error::from(e).in_structure(Structure::L1Table).at_index(first))?;
            self.unsynced = true;
        }
        self.l1_dirty.clear();
        Ok(())
    }

    /// Decrements, holes, and the end of quarantine. Everything that named these clusters is gone from storage; those
    /// that somebody may still be reading stay.
    fn empty_quarantine(&mut self, storage: &impl Storage) -> Result<()> {
        let mut all_freed: Vec<(HostCluster, bool)> = Vec::new();
        let mut result = Ok(());
        for Waiting { release, references, .. } in self.quarantine.take_settled() {
            let mut freed = Vec::new();
            let (first, count) = (release.first, release.count);
            if let Err(error) = self.refcounts.decrement_by(storage, first, count, references, &mut freed) {
                result = Err(error);
            }
            all_freed.extend(freed.into_iter().map(|cluster| (cluster, release.pass)));
        }
        // In the order of the file, so that neighbours become one hole whatever the order of their release.
        all_freed.sort_unstable();
        for run in all_freed.chunk_by(|a, b| a.0.saturating_add(1) == b.0 && a.1 == b.1) {
            let Some(&(first, pass)) = run.first() else { continue };
            let start = self.geometry.host_start(first);
            let count = u64::try_from(run.len()).unwrap_or(0);
            let length = count.saturating_mul(self.geometry.cluster_size());
            self.forget_free_byte(first, count);
            self.slices.forget(start, length);
            if pass {
                self.holes.add(first, count);
            }
        }
        let waiting = self.holes.clusters().saturating_mul(self.geometry.cluster_size());
        if waiting > self.options.quarantine_bytes.saturating_mul(HOLES_PER_QUARANTINE) {
            self.punch_holes(storage);
        }
        result
    }

    /// Makes the holes that are due. What was taken again meanwhile, for whatever, has a refcount and is left out.
    ///
    /// Advisory: space that stays allocated is not an error of the guest's.
    fn punch_holes(&mut self, storage: &impl Storage) {
        for (first, count) in self.holes.take() {
            let end = first.saturating_add(count);
            let mut at = first;
            while at < end {
                let Ok(free) = self.refcounts.free_length(storage, at, end.distance_from(at)) else { break };
                if free > 0 {
                    let length = free.saturating_mul(self.geometry.cluster_size());
                    let _ = storage.discard(self.geometry.host_start(at).get(), length);
                }
                let Ok(next) = self.refcounts.next_free(storage, at.saturating_add(free).get()) else { break };
                at = HostCluster::new(next);
            }
        }
    }

    pub(crate) fn barrier(&mut self, storage: &impl Storage) -> Result<()> {
        // After a failed flush nobody knows what reached the disk: kernels drop the dirty pages.
        storage.barrier().map_err(|error| self.poison(&error))?;
        self.unsynced = false;
        Ok(())
    }
}
