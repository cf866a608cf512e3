//! Tables in memory: L1, L2 slices, refcounts; allocation; what a discard decides; and the one order in which all of
//! it reaches storage.
//!
//! # Law 4
//! On storage, every refcount is at least the number of references, at every instant. So increments are stored at
//! once, decrements wait in quarantine until the removal of the reference is durable, and `Metadata::commit` is the
//! only place that writes what makes clusters reachable.

mod allocate;
mod commit;
pub mod decide;
mod expand;
mod extension;
mod guard;
mod header_area;
mod holes;
mod overlap;
mod reader;
pub(crate) mod rebuild;
mod refcounts;
mod slices;
mod snapshot_table;
mod sparse;
mod trees;

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    EntryError, Geometry, GuestCluster, HeaderArea, HostCluster, HostOffset, HostRef, L1Entry, L2Entry,
    MAX_REPEATED_L2_ENTRIES,
};
use crate::storage::{ReadStorage, Storage};

pub use allocate::AllocationPolicy;
pub(crate) use allocate::Run;
pub use commit::Epochs;
pub(crate) use commit::Quarantined;
pub use decide::{DiscardPolicy, DiscardType, Pass, RetainedOp, Unref};
pub(crate) use expand::Expansion;
pub(crate) use guard::Touch;
pub use overlap::OverlapChecks;
pub(crate) use reader::TableReader;
pub(crate) use snapshot_table::{joined, read_snapshot_table, visit_inactive_l1};
pub use snapshot_table::{read_snapshots, snapshot_places};
pub(crate) use sparse::is_hole;
pub(crate) use trees::ActiveTable;

use holes::Holes;
use refcounts::Refcounts;
use slices::SliceCache;

/// QEMU's default `l2-cache-size` on Linux.
const QEMU_L2_CACHE_BYTES: u64 = 32 << 20;

/// How the tables are kept in memory and how clusters are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataOptions {
    /// Bytes of one L2 slice, the unit in which tables are read and written; 512 up to the cluster size.
    pub slice_bytes: u64,
    /// Bytes of L2 slices kept in memory (QEMU: `l2-cache-size`). Dirty slices can exceed it until the next commit.
    pub cache_bytes: u64,
    /// Where new clusters are taken from.
    pub allocation: AllocationPolicy,
    /// Released clusters wait in quarantine for the next commit. When an allocation finds more bytes than this
    /// waiting, it commits first. 0 commits before every allocation that follows a release: clusters are reused as
    /// early as QEMU reuses them, at the price of two barriers.
    ///
    /// Free clusters are punched at the next flush, or once four times as many bytes wait for that.
    pub quarantine_bytes: u64,
    /// Whether clusters of tables that moved are punched (QEMU: `pass-discard-other`).
    pub pass_discard_other: bool,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            slice_bytes: 4096,
            cache_bytes: 32 << 20,
            allocation: AllocationPolicy::default(),
            quarantine_bytes: 16 << 20,
            pass_discard_other: false,
        }
    }
}

/// The metadata of one open image.
#[derive(Debug)]
pub(crate) struct Metadata {
    header: HeaderArea,
    geometry: Geometry,
    options: MetadataOptions,
    l1: Vec<u64>,
    l1_dirty: BTreeSet<u64>,
    slices: SliceCache,
    refcounts: Refcounts,
    /// L2 tables that nothing on storage points to yet: their slices are written before those of linked tables.
    unlinked_tables: BTreeSet<u64>,
    /// Clusters of the active L2 tables, once writing began.
    tables: guard::TableSet,
    /// Where the tables of snapshots are, once writing began.
    inactive: guard::Inactive,
    /// What is kept from being overwritten by mistake.
    overlap: OverlapChecks,
    quarantine: commit::Quarantine,
    holes: Holes,
    header_dirty: bool,
    /// Something was written since the last barrier.
    unsynced: bool,
    /// Why a barrier failed: nothing is written any more.
    poisoned: Option<String>,
    /// Where the next compressed cluster can begin within a cluster that is partly filled.
    free_byte: Option<HostOffset>,
    /// Bytes from here on were never written since the image was opened, and read as zeros.
    opened_length: u64,
}

impl Metadata {
    /// Reads the L1 table and the refcount table of a validated header.
    pub(crate) fn load(
        storage: &impl ReadStorage,
        header: HeaderArea,
        geometry: Geometry,
        options: MetadataOptions,
    ) -> Result<Self> {
        let l1 = read_l1(storage, header.header.l1_table_offset, header.header.l1_size)?;
        refuse_repeats(&l1, &geometry)?;
        let refcounts = Refcounts::load(
            storage,
            geometry,
            HostOffset::new(header.header.refcount_table_offset),
            u64::from(header.header.refcount_table_clusters),
        )?;
        let grows = storage.capabilities().grows;
        Ok(Self {
            slices: SliceCache::new(&geometry, options.slice_bytes, options.cache_bytes),
            l1,
            refcounts,
            opened_length: if grows { storage.len()? } else { u64::MAX },
            ..Self::bare(header, geometry, options)
        })
    }

    /// The same without any table: for handles that only move bytes.
    pub(crate) fn without_tables(&self) -> Self {
        Self {
            opened_length: self.opened_length,
            ..Self::bare(self.header.clone(), self.geometry, self.options.clone())
        }
    }

    /// Knows the header and nothing else.
    fn bare(header: HeaderArea, geometry: Geometry, options: MetadataOptions) -> Self {
        Self {
            slices: SliceCache::new(&geometry, options.slice_bytes, 0),
            header,
            geometry,
            options,
            l1: Vec::new(),
            l1_dirty: BTreeSet::new(),
            refcounts: Refcounts::without_table(geometry),
            unlinked_tables: BTreeSet::new(),
            tables: guard::TableSet::default(),
            inactive: guard::Inactive::default(),
            overlap: OverlapChecks::default(),
            quarantine: commit::Quarantine::default(),
            holes: Holes::default(),
            header_dirty: false,
            unsynced: false,
            poisoned: None,
            free_byte: None,
            opened_length: u64::MAX,
        }
    }

    /// What is kept from being overwritten by mistake, from the next [`Metadata::guard`] on.
    pub(crate) fn set_overlap_checks(&mut self, checks: OverlapChecks) {
        self.overlap = checks;
    }

    /// Whether clusters of tables that moved are punched from now on.
    pub(crate) fn set_pass_discard_other(&mut self, pass: bool) {
        self.options.pass_discard_other = pass;
    }

    /// The header and what follows it.
    pub(crate) fn header(&self) -> &HeaderArea {
        &self.header
    }

    /// The header, to be changed; the next commit writes its fields.
    pub(crate) fn header_mut(&mut self) -> &mut HeaderArea {
        self.header_dirty = true;
        &mut self.header
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The most clusters that one allocation covers; steps begin at multiples of it.
    ///
    /// QEMU allocates for one of its own L2 slices at a time: a whole table where all tables fit its cache of 32 MiB,
    /// else 4 KiB of one (`docs/qcow2-cache.txt`). Layouts would differ from QEMU's if this did.
    pub(crate) fn entries_per_step(&self) -> u64 {
        let tables = self.geometry.guest_clusters().saturating_mul(self.geometry.l2_entry_size());
        let slice = if tables <= QEMU_L2_CACHE_BYTES { self.geometry.cluster_size() } else { 4096 };
        let slice = slice.min(self.geometry.cluster_size());
        slice.checked_div(self.geometry.l2_entry_size()).unwrap_or(1).max(1)
    }

    pub(crate) fn l1_len(&self) -> u64 {
        u64::try_from(self.l1.len()).unwrap_or(u64::MAX)
    }

    /// Guest data went to storage: the next flush owes a barrier.
    pub(crate) fn note_write(&mut self) {
        self.unsynced = true;
    }

    /// The L2 table behind an L1 entry.
    pub(crate) fn l2_table(&self, l1_index: u64) -> Result<Option<HostRef>> {
        let raw = usize::try_from(l1_index).ok().and_then(|at| self.l1.get(at)).copied().unwrap_or(0);
        self.table_behind(l1_index, raw)
    }

    /// The L2 table that an entry of any L1 table names.
    pub(super) fn table_behind(&self, l1_index: u64, raw: u64) -> Result<Option<HostRef>> {
        let entry = L1Entry::decode(raw, &self.geometry)
            .map_err(|e| Error::corrupt(Structure::L1Table, alloc::format!("{e}")).at_index(l1_index))?;
        Ok(entry.table())
    }

    /// The entry of a guest cluster.
    pub(crate) fn entry(&mut self, storage: &impl ReadStorage, cluster: GuestCluster) -> Result<L2Entry> {
        let Some(table) = self.l2_table(self.geometry.l1_index(cluster))? else {
            return Ok(L2Entry::UNALLOCATED);
        };
        let (slot, within) = self.slices.load(storage, table.offset, self.geometry.l2_index(cluster))?;
        self.decode(self.slices.entry(slot, within), cluster, table.offset)
    }

    // Called for each of millions of entries: not inlined, what it gives goes through memory in parts of several sizes, which
    // takes as long as all the rest.
    #[inline(always)]
    fn decode(&self, raw: crate::format::RawL2Entry, cluster: GuestCluster, table: HostOffset) -> Result<L2Entry> {
        match L2Entry::decode(raw, &self.geometry) {
            Ok(entry) if !self.geometry.data_file() => Ok(entry),
            Ok(entry) => match entry.host() {
                Some(host) if host.offset.get() != self.geometry.guest_start(cluster).get() => {
                    Err(self.refused(EntryError::DataFileOffset, cluster, table))
                }
                Some(_) | None => Ok(entry),
            },
            Err(error) => Err(self.refused(error, cluster, table)),
        }
    }

    /// An entry of an L2 table that has no meaning. Apart from [`Metadata::decode`], which is called for each entry.
    #[cold]
    fn refused(&self, why: EntryError, cluster: GuestCluster, table: HostOffset) -> Error {
        let index = self.geometry.l2_index(cluster);
        Error::corrupt(Structure::L2Table, alloc::format!("{why}"))
            .at_index(index)
            .at_host(table.get().saturating_add(index.saturating_mul(self.geometry.l2_entry_size())))
            .at_guest(self.geometry.guest_start(cluster).get())
    }

    /// Calls `visit` with the entries of `count` guest clusters from `first` on, as long as it answers true, but not
    /// beyond the end of the L2 table: `None` stands for all entries of a missing table. Gives the clusters visited.
    pub(crate) fn visit(
        &mut self,
        storage: &impl ReadStorage,
        first: GuestCluster,
        count: u64,
        mut visit: impl FnMut(Option<L2Entry>) -> bool,
    ) -> Result<u64> {
        let in_table = self.geometry.l2_entries().saturating_sub(self.geometry.l2_index(first));
        let count = count.min(in_table);
        let Some(table) = self.l2_table(self.geometry.l1_index(first))? else {
            return Ok(if visit(None) { count } else { 0 });
        };
        let per_slice = self.slices.entries_per_slice();
        let mut done = 0u64;
        while done < count {
            let cluster = first.saturating_add(done);
            let (slot, within) = self.slices.load(storage, table.offset, self.geometry.l2_index(cluster))?;
            let here = count.saturating_sub(done).min(per_slice.saturating_sub(within));
            for n in 0..here {
                let raw = self.slices.entry(slot, within.saturating_add(n));
                let entry = self.decode(raw, cluster.saturating_add(n), table.offset)?;
                if !visit(Some(entry)) {
                    return Ok(done.saturating_add(n));
                }
            }
            done = done.saturating_add(here);
        }
        Ok(count)
    }

    /// As [`Metadata::visit`], but clusters that go on like the one before are told at once: `visit` gets the first
    /// entry and the number of clusters for which it stands. All of them are mapped to one run of host clusters, or none
    /// to any; behind the L1 table there is nothing, up to `count`. Reading a whole disk's mapping takes a fraction of the
    /// time so.
    pub(crate) fn visit_runs(
        &mut self,
        storage: &impl ReadStorage,
        first: GuestCluster,
        count: u64,
        mut visit: impl FnMut(Option<&L2Entry>, u64) -> bool,
    ) -> Result<()> {
        let l1_index = self.geometry.l1_index(first);
        // A snapshot may claim a disk that is far larger than what its L1 table maps.
        let (table, count) = if l1_index < self.l1_len() {
            let in_table = self.geometry.l2_entries().saturating_sub(self.geometry.l2_index(first));
            (self.l2_table(l1_index)?, count.min(in_table))
        } else {
            (None, count)
        };
        let Some(table) = table else {
            visit(None, count);
            return Ok(());
        };
        self.visit_table_runs(storage, table.offset, first, count, |entry, run| visit(Some(entry), run))
    }

    /// As [`Metadata::visit_runs`], of the L2 table at `table`, be it the active one or not; `count` clusters from
    /// `first` on lie within it.
    fn visit_table_runs(
        &mut self,
        storage: &impl ReadStorage,
        table: HostOffset,
        first: GuestCluster,
        count: u64,
        mut visit: impl FnMut(&L2Entry, u64) -> bool,
    ) -> Result<()> {
        let per_slice = self.slices.entries_per_slice();
        // Worth a question only where it can save reading several slices.
        let long = count > per_slice && !self.slices.has(table, self.geometry.l2_index(first));
        if long && self.says_nothing(storage, table) {
            visit(&L2Entry::UNALLOCATED, count);
            return Ok(());
        }
        let mut done = 0u64;
        while done < count {
            let cluster = first.saturating_add(done);
            let (slot, within) = self.slices.load(storage, table, self.geometry.l2_index(cluster))?;
            let here = count.saturating_sub(done).min(per_slice.saturating_sub(within)).max(1);
            let entries = self.slices.entries(slot);
            let mut seen = 0u64;
            while seen < here {
                let at = within.saturating_add(seen);
                let entry = self.decode(entries.entry(at), cluster.saturating_add(seen), table)?;
                let run = match entry {
                    L2Entry::Plain { host, .. } if !self.geometry.extended_l2() => {
                        let step = if host.is_some() { self.geometry.cluster_size() } else { 0 };
                        entries.run_length(at, here.saturating_sub(seen), step)
                    }
                    L2Entry::Plain { .. } | L2Entry::Compressed(_) => 1,
                };
                if !visit(&entry, run) {
                    return Ok(());
                }
                seen = seen.saturating_add(run);
            }
            done = done.saturating_add(seen);
        }
        Ok(())
    }

    /// Replaces the entry of a guest cluster whose L2 table is writable (see [`Metadata::writable_table`]).
    pub(crate) fn set_entry(
        &mut self,
        storage: &impl ReadStorage,
        cluster: GuestCluster,
        entry: L2Entry,
    ) -> Result<()> {
        let Some(table) = self.l2_table(self.geometry.l1_index(cluster))? else {
            return Err(Error::corrupt(Structure::L1Table, "no L2 table to change an entry in"));
        };
        let (slot, within) = self.slices.load(storage, table.offset, self.geometry.l2_index(cluster))?;
        self.slices.set_entry(slot, within, entry.encode(&self.geometry));
        Ok(())
    }

    /// Makes sure that the L2 table behind an L1 entry exists and is this image's alone, so that it can be written in
    /// place: a missing one is made, a shared one is copied.
    pub(crate) fn writable_table(&mut self, storage: &impl Storage, l1_index: u64) -> Result<()> {
        let old = self.l2_table(l1_index)?;
        if let Some(table) = old {
            self.forbid_overlap(storage, self.geometry.host_cluster(table.offset), 1, Touch::Table)?;
        }
        if old.is_some_and(|table| table.copied) {
            return Ok(());
        }
        if l1_index >= self.l1_len() {
            return Err(Error::new(ErrorKind::OutOfRange).in_structure(Structure::L1Table).at_index(l1_index));
        }
        let run = self.allocate_exact(storage, 1)?;
        let offset = self.geometry.host_start(run.first);
        let mut bytes = vec![0u8; self.geometry.cluster_len()];
        let filled = match old {
            Some(old) => storage.read_at(old.offset.get(), &mut bytes),
            None => Ok(()),
        }
        .and_then(|()| storage.write_at(offset.get(), &bytes));
        if let Err(error) = filled {
            self.undo_allocation(storage, run)?;
            return Err(Error::from(error).in_structure(Structure::L2Table));
        }
        self.unsynced = true;
        if let Some(old) = old {
            let first = self.geometry.host_cluster(old.offset);
            let release = Quarantined { first, count: 1, pass: self.options.pass_discard_other };
            if let Err(error) = self.release(storage, release) {
                self.undo_allocation(storage, run)?;
                return Err(error);
            }
            self.remember_table(old.offset, false);
        }
        self.remember_table(offset, true);
        self.slices.forget(offset, self.geometry.cluster_size());
        if old.is_none() {
            self.slices.add_blank(offset);
        }
        self.unlinked_tables.insert(offset.get());
        if let Some(slot) = usize::try_from(l1_index).ok().and_then(|at| self.l1.get_mut(at)) {
            *slot = L1Entry::Table(HostRef { offset, copied: true }).encode();
        }
        self.l1_dirty.insert(l1_index);
        Ok(())
    }

    /// The refcount on record for a host cluster; quarantined references still count.
    pub(crate) fn refcount(&mut self, storage: &impl ReadStorage, cluster: HostCluster) -> Result<u64> {
        self.refcounts.get(storage, cluster)
    }

    /// How often refcounts were looked up or changed, block by block.
    #[cfg(test)]
    pub(crate) fn refcount_lookups(&self) -> u64 {
        self.refcounts.lookups()
    }

    /// Counts references that nobody makes.
    #[cfg(test)]
    pub(crate) fn raise_refcount(&mut self, storage: &impl Storage, cluster: HostCluster, more: u64) -> Result<()> {
        self.refcounts.increment_by(storage, cluster, 1, more)
    }

    /// How many clusters from `first` on are free, counted up to `most`.
    pub(crate) fn free_length(&mut self, storage: &impl Storage, first: HostCluster, most: u64) -> Result<u64> {
        self.refcounts.free_length(storage, first, most)
    }

    /// The first free cluster at or after `from`.
    pub(crate) fn next_free(&mut self, storage: &impl Storage, from: HostCluster) -> Result<u64> {
        self.refcounts.next_free(storage, from.get())
    }

    /// The cluster behind the last one that is in use, of the first `clusters` of the file. Refcounts that call tables
    /// free are not believed.
    pub(crate) fn end_of_use(&mut self, storage: &impl ReadStorage, clusters: u64) -> Result<HostCluster> {
        Ok(self.refcounts.end_of_use(storage, clusters)?.max(self.end_of_tables()))
    }

    /// Gives the active L1 table `entries` entries: a longer one moves to a new place, a shorter one stays.
    ///
    /// The caller has made the entries beyond a shorter end unallocated, and commits right after.
    pub(crate) fn resize_l1(&mut self, storage: &impl Storage, entries: u64) -> Result<()> {
        let old_entries = self.l1_len();
        if entries.saturating_mul(8) > crate::format::MAX_L1_BYTES {
            return Err(Error::new(ErrorKind::Limit("L1 table larger than 32 MiB".into())));
        }
        if entries <= old_entries {
            return Ok(());
        }
        let clusters = self.geometry.clusters_for(entries.saturating_mul(8));
        let run = self.allocate_exact(storage, clusters)?;
        let offset = self.geometry.host_start(run.first);
        let mut longer = self.l1.clone();
        longer.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
        if let Err(error) = self.write_new_l1(storage, offset, clusters, &longer) {
            self.undo_allocation(storage, run)?;
            return Err(error);
        }
        self.l1 = longer;
        self.l1_dirty.clear();
        let header = &mut self.header_mut().header;
        header.l1_table_offset = offset.get();
        header.l1_size = u32::try_from(entries).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Writes a longer L1 table to its new place and releases the old one; changes nothing when it fails.
    fn write_new_l1(&mut self, storage: &impl Storage, offset: HostOffset, clusters: u64, l1: &[u64]) -> Result<()> {
        let mut bytes = vec![0u8; usize::try_from(clusters).unwrap_or(0).saturating_mul(self.geometry.cluster_len())];
        let table_bytes = l1.len().saturating_mul(8).min(bytes.len());
        let (head, _) = bytes.split_at_mut(table_bytes);
        BigEndian::write_u64_into(l1, head);
        // Entries that wait for a commit go into the new place whole; the tables they name are written before it counts.
        self.slices_before_l1(storage)?;
        storage.write_at(offset.get(), &bytes).map_err(|e| Error::from(e).in_structure(Structure::L1Table))?;
        self.unsynced = true;
        let old = Quarantined {
            first: self.geometry.host_cluster(HostOffset::new(self.header.header.l1_table_offset)),
            count: self.geometry.clusters_for(self.l1_len().saturating_mul(8)),
            pass: self.options.pass_discard_other,
        };
        if old.count > 0 { self.release(storage, old) } else { Ok(()) }
    }

    /// Takes the L2 table out of an L1 entry and releases it; its clusters have been released before.
    pub(crate) fn drop_table(&mut self, storage: &impl Storage, l1_index: u64, pass: bool) -> Result<()> {
        let Some(table) = self.l2_table(l1_index)? else { return Ok(()) };
        self.refuse_metadata(self.geometry.host_cluster(table.offset), 1, Touch::Table)?;
        self.remember_table(table.offset, false);
        if let Some(slot) = usize::try_from(l1_index).ok().and_then(|at| self.l1.get_mut(at)) {
            *slot = L1Entry::Unallocated.encode();
        }
        self.l1_dirty.insert(l1_index);
        self.release(storage, Quarantined { first: self.geometry.host_cluster(table.offset), count: 1, pass })
    }

    /// Another virtual size in all arithmetic; the header keeps the old one until [`Metadata::publish_size`].
    pub(crate) fn set_virtual_size(&mut self, size: u64) -> Result<()> {
        self.geometry = self
            .geometry
            .with_virtual_size(size)
            .ok_or_else(|| Error::new(ErrorKind::Limit("virtual size beyond 2^63 bytes".into())))?;
        Ok(())
    }

    /// The next commit writes the virtual size into the header.
    pub(crate) fn publish_size(&mut self) {
        self.header_mut().header.virtual_size = self.geometry.virtual_size();
    }
}

/// Refuses a table that names few L2 tables very often: see [`MAX_REPEATED_L2_ENTRIES`].
pub(crate) fn refuse_repeats(l1: &[u64], geometry: &Geometry) -> Result<()> {
    let entries = |tables: usize| u64::try_from(tables).unwrap_or(u64::MAX).saturating_mul(geometry.l2_entries());
    let table = |&raw: &u64| L1Entry::decode(raw, geometry).ok().and_then(|entry| entry.table());
    // Below the limit if all were the same: nothing to be sorted, as for any disk of an ordinary size.
    if entries(l1.iter().filter(|&&raw| raw != 0).count()) <= MAX_REPEATED_L2_ENTRIES {
        return Ok(());
    }
    let mut tables: Vec<HostOffset> = l1.iter().filter_map(table).map(|table| table.offset).collect();
    tables.sort_unstable();
    let all = tables.len();
    tables.dedup();
    let repeated = all.saturating_sub(tables.len());
    if entries(repeated) > MAX_REPEATED_L2_ENTRIES {
        let what = alloc::format!("{repeated} L1 entries lead to L2 tables that others lead to already");
        return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::L1Table));
    }
    Ok(())
}

pub(crate) fn read_l1(storage: &(impl ReadStorage + ?Sized), offset: u64, entries: u32) -> Result<Vec<u64>> {
    let entries = usize::try_from(entries).unwrap_or(usize::MAX);
    let length = entries.saturating_mul(8);
    if u64::try_from(length).unwrap_or(u64::MAX) > crate::format::MAX_L1_BYTES {
        return Err(Error::new(ErrorKind::Limit("L1 table larger than 32 MiB".into())).in_structure(Structure::L1Table));
    }
    let mut bytes = vec![0u8; length];
    storage.read_at(offset, &mut bytes).map_err(|e| Error::from(e).in_structure(Structure::L1Table))?;
    let mut l1 = vec![0u64; entries];
    BigEndian::read_u64_into(&bytes, &mut l1);
    Ok(l1)
}
