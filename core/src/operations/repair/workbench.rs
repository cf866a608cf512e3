//! Where a repair is worked out: an overlay over the image that takes every change, and the list of these changes in the
//! order in which they may reach storage.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::findings::{Findings, RepairAction, RepairFinding};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Geometry, HeaderArea, HostCluster, HostOffset, MAX_REPAIR_BYTES, MAX_REPAIR_COPY_BYTES};
use crate::image::read_header;
use crate::operations::check::{Counts, Recorded};
use crate::storage::{OverlayStorage, ReadStorage, Storage, StorageError, StorageErrorKind};

/// What a change takes in memory besides its bytes.
const EDIT_OVERHEAD: u64 = 64;
/// Clusters that may be copied in a round because two structures use them.
const MAX_COPIES: u64 = 4096;
/// Changes that follow one another are made one up to this length: beyond, growing it would take as much memory again.
const MAX_EDIT_BYTES: usize = 1 << 20;

/// What a round may take of the limits of a plan: bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Of changes, with the copies.
    pub(super) edits: u64,
    /// Of copies.
    pub(super) copies: u64,
}

impl Budget {
    /// That of a plan.
    pub(super) const WHOLE: Self = Self { edits: MAX_REPAIR_BYTES, copies: MAX_REPAIR_COPY_BYTES };
}

/// When a change may be written: a barrier stands between two stages.
///
/// What lies in one cluster with something else moves to a place of its own before anything is changed there. The move is
/// a change one floor above: a header field for a table that the header names, an L1 entry for an L2 table, an L2 entry for
/// data. So the floors are changed from the top down, and none before the one above it is durable: a cluster is changed
/// only when nothing else reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    /// Into clusters that nothing refers to.
    Unreachable,
    /// Refcounts become higher; what makes the image trust less.
    Raise,
    /// The header names a new refcount structure.
    Switch,
    /// Header fields: where the tables are.
    Header,
    /// L1 entries.
    Tables,
    /// Entries of L2 tables and of bitmap tables.
    Entries,
    /// Refcounts become lower.
    Lower,
    /// COPIED flags are set.
    Copied,
    /// The image is declared sound.
    Seal,
}

impl Stage {
    pub(super) const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::Raise,
        Self::Switch,
        Self::Header,
        Self::Tables,
        Self::Entries,
        Self::Lower,
        Self::Copied,
        Self::Seal,
    ];
}

/// Bytes that are written at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) stage: Stage,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// What is known of the clusters while the repair is worked out.
pub(super) struct Workbench<'a, S: ReadStorage> {
    pub(super) overlay: &'a OverlayStorage<&'a S>,
    pub(super) geometry: Geometry,
    pub(super) findings: Findings,
    pub(super) edits: Vec<Edit>,
    /// What is left.
    pub(super) budget: Budget,
    /// Something was not copied that could have been.
    pub(super) copies_ended: bool,
    /// References and refcounts of the image as it was.
    pub(super) old: Counts,
    /// References after the changes so far, by the last walk.
    pub(super) current: Option<Counts>,
    /// References that changes made, beyond those that were there.
    pub(super) added: BTreeMap<u64, u64>,
    /// Clusters given out.
    pub(super) taken: BTreeSet<u64>,
    /// Clusters behind the end of the file that broken entries name: not to be given out while these are there.
    pub(super) avoid: BTreeSet<u64>,
    /// Free clusters inside the file are believed to be free.
    pub(super) trust_refcounts: bool,
    /// Bytes of the file as it was.
    pub(super) base_length: u64,
    cursor: u64,
    copies: u64,
}

impl<'a, S: ReadStorage> Workbench<'a, S> {
    pub(super) fn new(
        overlay: &'a OverlayStorage<&'a S>,
        geometry: Geometry,
        old: Counts,
        budget: Budget,
    ) -> Result<Self> {
        Ok(Self {
            overlay,
            geometry,
            findings: Findings::default(),
            edits: Vec::new(),
            budget,
            copies_ended: false,
            old,
            current: None,
            added: BTreeMap::new(),
            taken: BTreeSet::new(),
            avoid: BTreeSet::new(),
            trust_refcounts: true,
            base_length: overlay.base().len()?,
            cursor: 1,
            copies: 0,
        })
    }

    /// The header as it is now.
    pub(super) fn area(&self) -> Result<HeaderArea> {
        read_header(self.overlay)
    }

    /// Changes bytes, and notes the change.
    pub(super) fn edit(&mut self, stage: Stage, at: u64, bytes: &[u8]) -> Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.budget.edits = self.budget.edits.checked_sub(length).ok_or_else(too_much)?;
        self.overlay.write_at(at, bytes)?;
        match self.edits.last_mut() {
            Some(last)
                if last.stage == stage
                    && last.bytes.len().saturating_add(bytes.len()) <= MAX_EDIT_BYTES
                    && last.at.checked_add(u64::try_from(last.bytes.len()).unwrap_or(u64::MAX)) == Some(at) =>
            {
                last.bytes.extend_from_slice(bytes);
            }
            Some(_) | None => {
                self.budget.edits = self.budget.edits.saturating_sub(EDIT_OVERHEAD);
                self.edits.push(Edit { stage, at, bytes: bytes.to_vec() });
            }
        }
        Ok(())
    }

    /// Notes what was found, and what is done about it.
    pub(super) fn note(&mut self, finding: RepairFinding) {
        self.findings.add(finding);
    }

    /// A change made that many references to a cluster.
    pub(super) fn add_references(&mut self, cluster: u64, count: u64) {
        let slot = self.added.entry(cluster).or_default();
        *slot = slot.saturating_add(count);
    }

    /// Whether a copy that was made here can have so many references more.
    pub(super) fn room_for(&self, copy: HostOffset, uses: u64) -> bool {
        let has = self.added.get(&self.cluster(copy.get())).copied().unwrap_or(0);
        has.saturating_add(uses) <= self.geometry.max_refcount()
    }

    /// The references to a cluster, by the last walk.
    pub(super) fn references(&self, cluster: u64) -> u64 {
        self.current.as_ref().unwrap_or(&self.old).references(cluster)
    }

    /// The recorded refcount is not 0.
    pub(super) fn in_use(&self, cluster: u64) -> bool {
        !matches!(self.old.recorded(cluster), None | Some(Recorded::Zero))
    }

    fn is_unused(&self, cluster: u64) -> bool {
        self.references(cluster) == 0
            && self.old.references(cluster) == 0
            && !self.added.contains_key(&cluster)
            && !self.taken.contains(&cluster)
    }

    fn is_free(&self, cluster: u64) -> bool {
        self.is_unused(cluster) && !self.in_use(cluster)
    }

    /// Clusters of the file as it was; the last may be cut short.
    pub(super) fn base_clusters(&self) -> u64 {
        self.geometry.clusters_for(self.base_length)
    }

    fn grows(&self) -> bool {
        let capabilities = self.overlay.base().capabilities();
        // A file that is open for a plan alone is not written now, but would grow.
        capabilities.grows || (capabilities.read_only && !capabilities.block_device)
    }

    /// Whole clusters, where the store cannot grow.
    pub(super) fn bound(&self) -> Option<u64> {
        (!self.grows()).then(|| self.base_length.wrapping_shr(self.geometry.cluster_bits()))
    }

    /// Whether new structures may not lie in a cluster.
    pub(super) fn is_reserved(&self, cluster: u64) -> bool {
        if cluster >= self.base_clusters() {
            return self.avoid.contains(&cluster) || self.taken.contains(&cluster);
        }
        match (self.grows(), self.trust_refcounts) {
            // Leaked clusters may be all that is left of something: they come last.
            (true, true) => !self.is_free(cluster),
            (true, false) => true,
            (false, _) => !self.is_unused(cluster),
        }
    }

    /// The first of `count` clusters in a row that nothing uses; they are given out.
    ///
    /// # Errors
    /// No room.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u64> {
        let end = self.bound();
        if count == 1 {
            while self.is_reserved(self.cursor) && end.is_none_or(|end| self.cursor < end) {
                self.cursor = self.cursor.saturating_add(1);
            }
        }
        let mut first = if count == 1 { self.cursor } else { 1 };
        let mut length = 0u64;
        while length < count {
            let here = first.saturating_add(length);
            if end.is_some_and(|end| here >= end) {
                return Err(Error::new(ErrorKind::NoSpace(alloc::format!(
                    "the repair needs {count} free cluster(s) in a row, and there are none within the size of the device"
                ))));
            }
            if self.is_reserved(here) {
                first = here.saturating_add(1);
                length = 0;
            } else {
                length = length.saturating_add(1);
            }
        }
        self.taken.extend(first..first.saturating_add(count));
        Ok(first)
    }

    /// Writes bytes into clusters of their own; gives their place. Each gets one reference.
    ///
    /// # Errors
    /// No room.
    pub(super) fn write_new(&mut self, bytes: &[u8]) -> Result<HostOffset> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let count = self.geometry.clusters_for(length).max(1);
        let first = self.allocate(count)?;
        let place = self.geometry.host_start(HostCluster::new(first));
        let mut whole = bytes.to_vec();
        whole.resize(usize::try_from(count).unwrap_or(1).saturating_mul(self.geometry.cluster_len()), 0);
        self.edit(Stage::Unreachable, place.get(), &whole)?;
        (first..first.saturating_add(count)).for_each(|cluster| self.add_references(cluster, 1));
        Ok(place)
    }

    /// Copies a cluster to one that nothing uses; gives its place, to which references must be added. `None` where
    /// copies have become too many, or there is no room.
    ///
    /// # Errors
    /// When the storage fails.
    pub(super) fn copy(&mut self, host_offset: u64) -> Result<Option<HostOffset>> {
        self.copy_bytes(host_offset, self.geometry.cluster_size())
    }

    /// As [`Self::copy`], for a compressed stream: as many clusters in a row as it needs.
    pub(super) fn copy_bytes(&mut self, host_offset: u64, length: u64) -> Result<Option<HostOffset>> {
        let clusters = self.geometry.clusters_for(length);
        let left = self.budget.copies.checked_sub(clusters.saturating_mul(self.geometry.cluster_size()));
        let Some(left) = left.filter(|_| self.copies < MAX_COPIES) else {
            self.copies_ended = true;
            return Ok(None);
        };
        let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(0)];
        self.overlay.read_at(host_offset, &mut bytes)?;
        let first = match self.allocate(clusters) {
            Ok(first) => first,
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.copies = self.copies.saturating_add(1);
        self.budget.copies = left;
        let place = self.geometry.host_start(HostCluster::new(first));
        self.edit(Stage::Unreachable, place.get(), &bytes)?;
        Ok(Some(place))
    }

    /// Something that cannot be repaired.
    pub(super) fn give_up_on(&mut self, finding: RepairFinding) {
        self.note(RepairFinding { action: RepairAction::None, ..finding });
    }

    pub(super) fn cluster(&self, host_offset: u64) -> u64 {
        self.geometry.host_cluster(HostOffset::new(host_offset)).get()
    }
}

/// A repair that would hold more in memory than it may.
fn too_much() -> Error {
    let what = alloc::format!("the repair would have to change more than {MAX_REPAIR_BYTES} bytes of metadata");
    Error::new(ErrorKind::Limit(what))
}

/// A store that takes writes as edits of one stage: for structures that others write. It fails where they become more than
/// can be edits.
pub(super) struct StageWriter<'a, S: ReadStorage> {
    overlay: &'a OverlayStorage<&'a S>,
    writes: RefCell<Vec<(u64, Vec<u8>)>>,
    left: Cell<Option<u64>>,
}

impl<'a, S: ReadStorage> StageWriter<'a, S> {
    pub(super) fn new(bench: &Workbench<'a, S>) -> Self {
        let left = Cell::new(Some(bench.budget.edits));
        Self { overlay: bench.overlay, writes: RefCell::new(Vec::new()), left }
    }

    /// What was written; `done`: how the writing ended.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] where it was too much; how the writing ended.
    pub(super) fn into_writes(self, done: Result<()>) -> Result<Vec<(u64, Vec<u8>)>> {
        if self.left.get().is_none() {
            return Err(too_much());
        }
        done.map(|()| self.writes.into_inner())
    }

    fn take(&self, offset: u64, length: u64, bytes: impl FnOnce() -> Vec<u8>) -> Result<(), StorageError> {
        let left = self.left.get().and_then(|left| left.checked_sub(length));
        self.left.set(left);
        if left.is_none() {
            return Err(StorageError::new(StorageErrorKind::NoSpace, "write").at(offset));
        }
        self.writes.borrow_mut().push((offset, bytes()));
        Ok(())
    }
}

impl<S: ReadStorage> ReadStorage for StageWriter<'_, S> {
    crate::forward_storage!(this => this.overlay; len, read_at, capabilities, next_extent);
}

impl<S: ReadStorage> Storage for StageWriter<'_, S> {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.take(offset, u64::try_from(from.len()).unwrap_or(u64::MAX), || from.to_vec())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _: crate::storage::ZeroMode) -> Result<(), StorageError> {
        self.take(offset, length, || vec![0; usize::try_from(length).unwrap_or(0)])
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), StorageError> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> Result<(), StorageError> {
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> Result<(), StorageError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
