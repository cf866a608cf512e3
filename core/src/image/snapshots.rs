//! Internal snapshots: list, create, apply, delete (section "Snapshots").
//!
//! # Order
//! Law 4 and its rule for COPIED, step by step, each durable before the next:
//!
//! | create | apply | delete |
//! |---|---|---|
//! | flags cleared in the active tables | flags cleared in the snapshot's tables | |
//! | everything in the active tree counted once more | everything in the snapshot's tree counted once more | |
//! | L1 copy and new snapshot table written | L1 copy written | new snapshot table written |
//! | the header names the new table | the header names the copy, and the size | the header names the new table |
//! | the old table released | the old tree released | the old table and the snapshot's tree released |
//! | | flags set where one reference is left | flags set where one reference is left |
//!
//! So a cut leaves the state before or the state after, and leaks at most.

mod table;

use alloc::vec;
use alloc::vec::Vec;

use super::Image;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{Geometry, HeaderArea, HostOffset, MAX_L1_BYTES, MAX_VIRTUAL_SIZE, Snapshot};
use crate::metadata::{
    ActiveTable, DiscardType, Quarantined, Run, Touch, read_l1, read_snapshot_table, read_snapshots, refuse_repeats,
};
use crate::storage::{ReadStorage, Storage};

pub use table::{NewSnapshot, SnapshotSelector};

/// The snapshot table as it is on storage.
struct Table {
    snapshots: Vec<Snapshot>,
    offset: HostOffset,
    length: u64,
}

impl<S: Storage> Image<S> {
    /// The snapshots of the image, in the order of the snapshot table.
    ///
    /// # Errors
    /// A table beyond its limits, or one that cannot be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        read_snapshots(&self.header().header, &self.storage)
    }

    /// Takes a snapshot of the disk as the guest sees it now; gives its entry, with the ID that it got. Durable on
    /// return; after a cut before that, the snapshot is there or not.
    ///
    /// What lies beyond the end of the disk, VM state, goes with the snapshot; of one that has a VM state size it is
    /// dropped from the active disk, as QEMU does.
    ///
    /// # Errors
    /// Before anything changed: refcounts too narrow for one more reference ([`ErrorKind::Limit`]), an external data
    /// file ([`ErrorKind::Unsupported`]), too many snapshots, a name that is too long, a planned write under way,
    /// damaged tables. Otherwise as [`Image::write_at`].
    pub fn create_snapshot(&mut self, new: &NewSnapshot) -> Result<Snapshot> {
        self.begin_snapshots()?;
        let mut table = self.snapshot_table()?;
        let geometry = *self.geometry();
        let l1_size = self.metadata.l1().len();
        let mut snapshot = table::entry(new, &table.snapshots, l1_size, geometry.virtual_size())?;
        table.snapshots.push(snapshot.clone());
        table::emit(&table.snapshots, &geometry)?;
        self.commit()?;
        let tree = self.active_tree(l1_size);
        self.metadata.refuse_unshareable(&self.storage, &tree)?;
        let inactive = self.metadata.inactive_tables_with(&tree);

        let l1_bytes = u64::try_from(l1_size).unwrap_or(u64::MAX).saturating_mul(8);
        let copy = self.allocate_table(l1_bytes)?;
        snapshot.l1_table_offset = self.offset_of(copy);
        if let Some(last) = table.snapshots.last_mut() {
            last.l1_table_offset = snapshot.l1_table_offset;
        }
        if let Err(error) = self.metadata.share_tree(&self.storage, &tree, true) {
            self.take_back(copy, None);
            return Err(error);
        }
        let bytes = match self.publish_created(&table, copy, l1_size) {
            Ok(bytes) => bytes,
            Err(failed) => {
                if failed.reverted {
                    self.take_back(copy, Some(&tree));
                }
                return Err(failed.error);
            }
        };
        self.metadata.guard_snapshots(&table.snapshots, bytes, inactive)?;
        if new.vm_state_size > 0 {
            self.drop_vm_state()?;
        }
        self.flush()?;
        Ok(snapshot)
    }

    /// Makes the disk what it was when a snapshot was taken, its size too; the snapshot stays. What the disk held is
    /// gone, unless another snapshot has it. Durable on return; after a cut before that, the disk is the old or the new.
    ///
    /// # Errors
    /// Before anything changed: no such snapshot, persistent bitmaps (which would have to record the change), and
    /// otherwise as [`Image::create_snapshot`].
    pub fn apply_snapshot(&mut self, selector: &SnapshotSelector) -> Result<()> {
        self.begin_snapshots()?;
        if self.header().consistent_bitmaps().is_some() {
            return Err(Error::unsupported(
                "applying a snapshot to an image with persistent bitmaps, which would not record the change",
            ));
        }
        let snapshot = selector.find_in(self.snapshots()?)?;
        let tree = snapshot_l1(&snapshot, self.geometry(), &self.storage)?;
        let size = snapshot.virtual_size().unwrap_or(self.virtual_size());
        let sized = self.geometry().with_virtual_size(size);
        let sized = sized.ok_or_else(|| Error::corrupt(Structure::SnapshotTable, "the disk size is beyond 2^63"))?;
        self.commit()?;
        self.metadata.refuse_unshareable(&self.storage, &tree)?;
        let present = self.metadata.l1().to_vec();
        self.metadata.refuse_unsound(&self.storage, &present)?;

        let mut l1: Vec<u64> = self.metadata.without_copied(&tree)?;
        let entries = usize::try_from(sized.l1_entries()).unwrap_or(usize::MAX).max(1);
        if entries.saturating_mul(8) > usize::try_from(MAX_L1_BYTES).unwrap_or(usize::MAX) {
            return Err(Error::new(ErrorKind::Limit("L1 table larger than 32 MiB".into())));
        }
        l1.resize(entries.max(l1.len()), 0);
        let run = self.allocate_table(bytes_of(&l1))?;
        let new = ActiveTable { offset: HostOffset::new(self.offset_of(run)), l1, virtual_size: size };
        if let Err(error) = self.metadata.share_tree(&self.storage, &tree, false) {
            self.take_back(run, None);
            return Err(error);
        }
        let old = match self.publish_applied(new) {
            Ok(old) => old,
            Err(failed) => {
                if failed.reverted {
                    self.take_back(run, Some(&tree));
                }
                return Err(failed.error);
            }
        };
        self.unpacked = None;
        // The tables of the old tree are none of ours any more: at once, whatever fails from here on.
        self.metadata.guard_active()?;
        let pass = self.options.policy.passes(DiscardType::Snapshot);
        let released = self.metadata.release_tree(&self.storage, &old.l1, pass);
        let l1_released = self.release_table(old.offset, bytes_of(&old.l1), pass);
        self.metadata.mark_exclusive(&self.storage)?;
        self.flush()?;
        released.and(l1_released)
    }

    /// Deletes a snapshot, and gives back the space that nothing else uses. Durable on return; after a cut before that,
    /// the snapshot is there or not, and some of its space can be leaked.
    ///
    /// # Errors
    /// Before anything changed: no such snapshot, a damaged L1 table, an external data file, a planned write under way.
    /// Otherwise as [`Image::write_at`].
    pub fn delete_snapshot(&mut self, selector: &SnapshotSelector) -> Result<()> {
        self.begin_snapshots()?;
        let mut table = self.snapshot_table()?;
        let index = selector.position(&table.snapshots)?;
        let snapshot = table.snapshots.remove(index);
        let tree = snapshot_l1(&snapshot, self.geometry(), &self.storage)?;
        self.commit()?;
        self.metadata.refuse_unsound(&self.storage, &tree)?;
        self.refuse_metadata_at(snapshot.l1_table_offset, bytes_of(&tree))?;
        let inactive = self.metadata.inactive_tables(&self.storage, &table.snapshots)?;
        let bytes = self.publish_table(&table).map_err(|failed| failed.error)?;
        self.metadata.guard_snapshots(&table.snapshots, bytes, inactive)?;
        let pass = self.options.policy.passes(DiscardType::Snapshot);
        let released = self.metadata.release_tree(&self.storage, &tree, pass);
        let l1_released = self.release_table(HostOffset::new(snapshot.l1_table_offset), bytes_of(&tree), pass);
        self.unpacked = None;
        self.metadata.mark_exclusive(&self.storage)?;
        self.flush()?;
        released.and(l1_released)
    }

    /// What must hold before snapshots change. No key is needed, and bitmaps stay right.
    fn begin_snapshots(&mut self) -> Result<()> {
        if self.geometry().data_file() {
            return Err(Error::unsupported("internal snapshots of an image with an external data file"));
        }
        if self.open_plans > 0 {
            return Err(Error::invalid("a planned write is under way: commit or abort it before changing snapshots"));
        }
        self.begin_changing()
    }

    fn snapshot_table(&self) -> Result<Table> {
        let header = &self.header().header;
        let (snapshots, length) = read_snapshot_table(header, &self.storage)?;
        self.refuse_metadata_at(header.snapshots_offset, length)?;
        Ok(Table { snapshots, offset: HostOffset::new(header.snapshots_offset), length })
    }

    /// The first entries of the active L1 table.
    fn active_tree(&self, entries: usize) -> Vec<u64> {
        self.metadata.l1().get(..entries).unwrap_or_default().to_vec()
    }

    fn publish_created(&mut self, table: &Table, copy: Option<Run>, l1_size: usize) -> Result<u64, Unpublished> {
        let bytes: Vec<u8> = self.active_tree(l1_size).into_iter().flat_map(u64::to_be_bytes).collect();
        self.write_table(copy, bytes, Structure::L1Table).map_err(Unpublished::never_named)?;
        self.publish_table(table)
    }

    /// Makes the header name a new snapshot table in place of the one at `table.offset`, which is released. Gives the bytes
    /// of the new one.
    fn publish_table(&mut self, table: &Table) -> Result<u64, Unpublished> {
        let bytes = table::emit(&table.snapshots, self.geometry()).map_err(Unpublished::never_named)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let run = self.allocate_table(length).map_err(Unpublished::never_named)?;
        if let Err(error) = self.write_table(run, bytes, Structure::SnapshotTable) {
            self.give_up(run);
            return Err(Unpublished::never_named(error));
        }
        let before = self.header().header.clone();
        let offset = self.offset_of(run);
        let header = &mut self.metadata.header_mut().header;
        header.snapshots_offset = offset;
        header.snapshot_count = u32::try_from(table.snapshots.len()).unwrap_or(u32::MAX);
        if let Err(error) = self.commit() {
            let header = &mut self.metadata.header_mut().header;
            (header.snapshots_offset, header.snapshot_count) = (before.snapshots_offset, before.snapshot_count);
            let reverted = self.commit().is_ok();
            if reverted {
                self.give_up(run);
            }
            return Err(Unpublished { error, reverted });
        }
        let pass = self.options.policy.passes(DiscardType::Snapshot);
        let released = self.release_table(table.offset, table.length, pass);
        released.map(|()| length).map_err(|error| Unpublished { error, reverted: false })
    }

    /// Makes the header name another active L1 table; gives the one before.
    fn publish_applied(&mut self, new: ActiveTable) -> Result<ActiveTable, Unpublished> {
        let bytes: Vec<u8> = new.l1.iter().copied().flat_map(u64::to_be_bytes).collect();
        let offset = new.offset;
        let bytes = whole_sectors(bytes);
        let written = self.metadata.write_unnamed(&self.storage, offset, &bytes, Structure::L1Table);
        let old = written.and_then(|()| self.metadata.switch_l1(new)).map_err(Unpublished::never_named)?;
        match self.commit() {
            Ok(()) => Ok(old),
            Err(error) => {
                let reverted = self.metadata.switch_l1(old).is_ok() && self.commit().is_ok();
                Err(Unpublished { error, reverted })
            }
        }
    }

    /// Drops what the active L1 table has beyond the disk's own entries: the VM state. As in QEMU, no holes are made.
    fn drop_vm_state(&mut self) -> Result<()> {
        // VM state begins where the disk's own tables end.
        let own = self.geometry().l1_entries();
        let state = self.metadata.cut_l1(own);
        if state.iter().all(|&raw| raw == 0) {
            return Ok(());
        }
        self.commit()?;
        let pass = self.options.policy.passes(DiscardType::Never);
        let mut tree = vec![0; usize::try_from(own).unwrap_or(usize::MAX).min(self.metadata.l1().len())];
        tree.extend(state);
        self.metadata.release_tree(&self.storage, &tree, pass)
    }

    fn allocate_table(&mut self, bytes: u64) -> Result<Option<Run>> {
        match self.geometry().clusters_for(bytes) {
            0 => Ok(None),
            clusters => self.metadata.allocate_exact(&self.storage, clusters).map(Some),
        }
    }

    fn offset_of(&self, run: Option<Run>) -> u64 {
        run.map_or(0, |run| self.geometry().host_start(run.first).get())
    }

    fn write_table(&mut self, run: Option<Run>, bytes: Vec<u8>, what: Structure) -> Result<()> {
        if run.is_none() {
            return Ok(());
        }
        let (offset, bytes) = (HostOffset::new(self.offset_of(run)), whole_sectors(bytes));
        self.metadata.write_unnamed(&self.storage, offset, &bytes, what)
    }

    fn release_table(&mut self, offset: HostOffset, bytes: u64, pass: bool) -> Result<()> {
        let (first, count) = (self.geometry().host_cluster(offset), self.geometry().clusters_for(bytes));
        if count == 0 {
            return Ok(());
        }
        self.metadata.refuse_metadata(first, count, Touch::GuestData)?;
        self.metadata.release(&self.storage, Quarantined { first, count, pass })?;
        self.commit()
    }

    /// Refuses a table that lies on the active tables.
    fn refuse_metadata_at(&self, offset: u64, bytes: u64) -> Result<()> {
        let first = self.geometry().host_cluster(HostOffset::new(offset));
        let count = self.geometry().clusters_for(bytes);
        if count == 0 { Ok(()) } else { self.metadata.refuse_metadata(first, count, Touch::GuestData) }
    }

    /// Gives back what was allocated for a table that the header does not name; where that fails, it leaks.
    fn give_up(&mut self, run: Option<Run>) {
        if let Some(run) = run {
            let _ = self.metadata.undo_allocation(&self.storage, run);
        }
    }

    /// Makes an L1 table that was never named, and the tree that was counted for it, as if they had never been: as far
    /// as the storage goes along, the rest leaks.
    fn take_back(&mut self, run: Option<Run>, tree: Option<&[u64]>) {
        if let Some(tree) = tree {
            self.metadata.unshare_tree(&self.storage, tree);
        }
        self.give_up(run);
        // Only a flag that is missing could be left, which costs a copy and nothing else.
        let _ = self.metadata.mark_exclusive(&self.storage);
    }
}

/// Something that the header was to name, and does not.
struct Unpublished {
    error: Error,
    /// Storage certainly names what it named before, so that the new may be given back.
    reverted: bool,
}

impl Unpublished {
    fn never_named(error: Error) -> Self {
        Self { error, reverted: true }
    }
}

/// The header and the sizes of a view of a snapshot: the image as if the snapshot's L1 table were the active one. The disk
/// has the size that it had then.
pub(super) fn view<S: ReadStorage>(
    mut area: HeaderArea,
    geometry: &Geometry,
    selector: &SnapshotSelector,
    storage: &S,
) -> Result<(HeaderArea, Geometry)> {
    if geometry.data_file() {
        return Err(Error::unsupported("a view of a snapshot of an image with an external data file"));
    }
    let snapshot = selector.find_in(read_snapshots(&area.header, storage)?)?;
    refuse_misplaced(&snapshot, geometry)?;
    let size = snapshot.virtual_size().unwrap_or(geometry.virtual_size());
    let corrupt = || Error::corrupt(Structure::SnapshotTable, "the snapshot's disk size is beyond 2^63");
    let sized = geometry.with_virtual_size(size).ok_or_else(corrupt)?;
    area.header.l1_table_offset = snapshot.l1_table_offset;
    area.header.l1_size = snapshot.l1_size;
    area.header.virtual_size = size;
    Ok((area, sized))
}

/// The L1 table of a snapshot.
fn snapshot_l1<S: ReadStorage>(snapshot: &Snapshot, geometry: &Geometry, storage: &S) -> Result<Vec<u64>> {
    refuse_misplaced(snapshot, geometry)?;
    let l1 = read_l1(storage, snapshot.l1_table_offset, snapshot.l1_size)?;
    refuse_repeats(&l1, geometry)?;
    Ok(l1)
}

/// Refuses an L1 table that cannot be one. (How long it may be is checked where it is read.)
fn refuse_misplaced(snapshot: &Snapshot, geometry: &Geometry) -> Result<()> {
    let (offset, bytes) = (snapshot.l1_table_offset, u64::from(snapshot.l1_size).saturating_mul(8));
    if geometry.is_aligned(offset) && offset.saturating_add(bytes) <= MAX_VIRTUAL_SIZE {
        return Ok(());
    }
    let what = alloc::format!("the L1 table of the snapshot '{}' is at an impossible place", snapshot.name);
    Err(Error::corrupt(Structure::SnapshotTable, what).at_host(offset))
}

/// With zeros up to the end of the last sector. The rest of the last cluster is not touched: in a new one it takes no
/// space on the host.
fn whole_sectors(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Bytes of an L1 table.
fn bytes_of(l1: &[u64]) -> u64 {
    u64::try_from(l1.len()).unwrap_or(u64::MAX).saturating_mul(8)
}
