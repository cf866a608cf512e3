//! Tables without the zero flag, which version 2 does not have: every entry that says "zero" gets another that reads
//! the same.
//!
//! An L2 table is changed in place, also where snapshots share it: to all of them it says the same before and after. So
//! each table is visited once, and `uses`, its refcount, is the number of references that go with one entry.

use alloc::collections::BTreeSet;

use super::{Metadata, Quarantined, Touch};
use crate::error::{Error, Result, Structure};
use crate::format::{HostCluster, HostOffset, HostRef, L1Entry, L2Entry, Subclusters};
use crate::storage::{ReadStorage, Storage, StorageExtentKind, ZeroMode};

/// What the tables are rewritten for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expansion {
    /// What is unallocated shows the backing file.
    pub(crate) has_backing: bool,
    /// Zeros on storage do not read as zeros.
    pub(crate) encrypted: bool,
}

impl Metadata {
    /// The L2 tables behind the entries of an L1 table, added to `tables`.
    pub(crate) fn collect_tables(&self, l1: &[u64], tables: &mut BTreeSet<u64>) -> Result<()> {
        for (index, &raw) in (0u64..).zip(l1) {
            let entry = L1Entry::decode(raw, &self.geometry)
                .map_err(|e| Error::corrupt(Structure::L1Table, alloc::format!("{e}")).at_index(index))?;
            tables.extend(entry.table().map(|table| table.offset.get()));
        }
        Ok(())
    }

    /// The entries of the active L1 table.
    pub(crate) fn active_l1(&self) -> &[u64] {
        &self.l1
    }

    /// Replaces the zero entries of one table; `active`: the active L1 table names it. What waits is left to the next commit; until then both entries of a
    /// cluster read as zeros.
    ///
    /// # Errors
    /// Entries that make no sense, an encrypted image in which zeros would have to be written, no space, a storage that
    /// fails. The image is right then, and has less zero entries than before.
    pub(crate) fn expand_zero_entries(
        &mut self,
        storage: &impl Storage,
        table: HostOffset,
        active: bool,
        expansion: Expansion,
    ) -> Result<()> {
        self.forbid_overlap(storage, self.geometry.host_cluster(table), 1, Touch::Table)?;
        let uses = self.refcounts.get(storage, self.geometry.host_cluster(table))?;
        if uses == 0 {
            return Err(
                Error::corrupt(Structure::RefcountBlock, "an L2 table in use has refcount 0").at_host(table.get())
            );
        }
        if self.says_nothing(storage, table) {
            return Ok(());
        }
        for index in 0..self.geometry.l2_entries() {
            let (slot, within) = self.slices.load(storage, table, index)?;
            let raw = self.slices.entry(slot, within);
            if raw.descriptor == 0 {
                continue;
            }
            let at = |e: Error| e.in_structure(Structure::L2Table).at_index(index);
            let entry = L2Entry::decode(raw, &self.geometry)
                .map_err(|e| at(Error::corrupt(Structure::L2Table, alloc::format!("{e}")).at_host(table.get())))?;
            let L2Entry::Plain { host, parts } = entry else { continue };
            if parts.zero == 0 {
                continue;
            }
            let copied = active && uses == 1;
            let new = match host {
                Some(host) => self.expand_allocated(storage, host, uses, copied, expansion),
                None => self.expand_plain(storage, uses, copied, expansion),
            };
            let new = new.map_err(at)?;
            let (slot, within) = self.slices.load(storage, table, index)?;
            self.slices.set_entry(slot, within, new.encode(&self.geometry));
            if self.wants_commit() {
                self.commit(storage)?;
            }
        }
        Ok(())
    }

    /// For an entry without a cluster: none, where that reads as zeros; else a new cluster of zeros.
    fn expand_plain(
        &mut self,
        storage: &impl Storage,
        uses: u64,
        copied: bool,
        expansion: Expansion,
    ) -> Result<L2Entry> {
        if !expansion.has_backing {
            return Ok(L2Entry::UNALLOCATED);
        }
        if expansion.encrypted {
            return Err(Error::unsupported("writing zeros over the backing file of an encrypted image"));
        }
        let run = self.allocate_exact(storage, 1)?;
        let start = self.geometry.host_start(run.first);
        let zeroed = storage
            .write_zeroes(start.get(), self.geometry.cluster_size(), ZeroMode::MayUnmap)
            .map_err(|e| Error::from(e).at_host(start.get()));
        self.unsynced = true;
        let made = zeroed.and_then(|()| self.refcounts.increment_by(storage, run.first, 1, uses.saturating_sub(1)));
        if let Err(error) = made {
            self.undo_allocation(storage, run)?;
            return Err(error);
        }
        Ok(self.full(HostRef { offset: start, copied }))
    }

    /// For an entry that keeps a cluster: zeros are written there, if nobody else uses it.
    fn expand_allocated(
        &mut self,
        storage: &impl Storage,
        host: HostRef,
        uses: u64,
        copied: bool,
        expansion: Expansion,
    ) -> Result<L2Entry> {
        let cluster = self.geometry.host_cluster(host.offset);
        self.forbid_overlap(storage, cluster, 1, Touch::GuestData)?;
        if self.refcounts.get(storage, cluster)? == uses && !expansion.encrypted {
            self.zero_unless_hole(storage, cluster)?;
            return Ok(self.full(HostRef { offset: host.offset, copied }));
        }
        // A snapshot may read data there.
        let old = Quarantined { first: cluster, count: 1, pass: self.options.pass_discard_other };
        self.refuse_fewer(storage, old, uses)?;
        let new = self.expand_plain(storage, uses, copied, expansion)?;
        self.release_often(old, uses);
        Ok(new)
    }

    /// A hole is zeros already, and stays one.
    fn zero_unless_hole(&mut self, storage: &impl Storage, cluster: HostCluster) -> Result<()> {
        let (start, length) = (self.geometry.host_start(cluster).get(), self.geometry.cluster_size());
        let found = ReadStorage::next_extent(storage, start)?;
        if found.kind == StorageExtentKind::Hole && (found.length >= length || found.length == 0) {
            return Ok(());
        }
        storage.write_zeroes(start, length, ZeroMode::KeepAllocated).map_err(|e| Error::from(e).at_host(start))?;
        self.unsynced = true;
        Ok(())
    }

    fn full(&self, host: HostRef) -> L2Entry {
        L2Entry::Plain { host: Some(host), parts: Subclusters::all_allocated(&self.geometry) }
    }
}
