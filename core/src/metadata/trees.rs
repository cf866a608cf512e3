//! Whole trees of tables: what a snapshot shares and gives back, and which COPIED flags are right afterwards.
//!
//! A tree is an L1 table with everything that it leads to. Another L1 table that names the same L2 tables gives every
//! table *and* every cluster behind it one more reference (section "Snapshots"), so sharing and releasing go through
//! all entries, table by table; memory is bounded by one L2 table and one batch of runs.
//!
//! # COPIED
//! The flag says "refcount is one", so it must be gone from storage before the second reference is there, and must not
//! come back before the last but one is gone: [`Metadata::share_tree`] commits the cleared flags before it counts, and
//! [`Metadata::mark_exclusive`] sets flags only by refcounts that no quarantine is going to change; the commit then
//! writes refcount blocks before entries.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::guard::Touch;
use super::{Metadata, Quarantined};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{HostCluster, HostOffset, HostRef, L1Entry, L2Entry};
use crate::storage::{ReadStorage, Storage};

/// Runs that wait to be counted before they are.
const BATCH_RUNS: usize = 65_536;

/// Entries of an L2 table that go on like the first.
#[derive(Debug, Clone, Copy)]
struct TableRun {
    index: u64,
    entry: L2Entry,
    count: u64,
}

/// Host clusters that get one more reference each.
type Batch = Vec<(HostCluster, u64)>;

impl Metadata {
    /// The active L1 table as it stands in memory.
    pub(crate) fn l1(&self) -> &[u64] {
        &self.l1
    }

    /// Refuses a tree whose clusters cannot all have one more reference: a refcount as high as its width allows, and what
    /// [`Metadata::refuse_unsound`] refuses. Changes nothing.
    pub(crate) fn refuse_unshareable(&mut self, storage: &impl ReadStorage, l1: &[u64]) -> Result<()> {
        self.inspect_tree(storage, l1, self.geometry.max_refcount())
    }

    /// Refuses a tree that cannot be gone through, or whose clusters cannot be given back: a refcount that is 0 already, an
    /// entry without meaning or one that leads to metadata, a table that is named twice. Changes nothing.
    pub(crate) fn refuse_unsound(&mut self, storage: &impl ReadStorage, l1: &[u64]) -> Result<()> {
        self.inspect_tree(storage, l1, u64::MAX)
    }

    /// Goes through a tree before anything changes; `most` is the highest refcount that is let pass.
    fn inspect_tree(&mut self, storage: &impl ReadStorage, l1: &[u64], most: u64) -> Result<()> {
        self.refuse_repeated(l1)?;
        // Of clusters that hold several compressed ones, and are so full that it matters: references to come.
        let mut packed: BTreeMap<u64, u64> = BTreeMap::new();
        for (l1_index, &raw) in (0u64..).zip(l1) {
            let Some(table) = self.table_behind(l1_index, raw)? else { continue };
            let cluster = self.geometry.host_cluster(table.offset);
            self.refuse_metadata(cluster, 1, Touch::Table)?;
            self.refuse_refcounts(storage, cluster, 1, most)?;
            for run in self.table_runs(storage, l1_index, table.offset)? {
                let Some((first, count)) = self.references(&run) else { continue };
                self.refuse_metadata(first, count, Touch::GuestData)?;
                self.refuse_refcounts(storage, first, count, most)?;
                if matches!(run.entry, L2Entry::Compressed(_)) && most < u64::MAX {
                    self.count_packed(storage, first, count, &mut packed)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses an L1 table that names an L2 table twice: a small file could ask for endless work so.
    fn refuse_repeated(&self, l1: &[u64]) -> Result<()> {
        let mut tables: Vec<(u64, u64)> = Vec::new();
        for (l1_index, &raw) in (0u64..).zip(l1) {
            if let Some(table) = self.table_behind(l1_index, raw)? {
                tables.push((table.offset.get(), l1_index));
            }
        }
        tables.sort_unstable();
        let repeated = tables.iter().zip(tables.iter().skip(1)).find(|(one, next)| one.0 == next.0);
        match repeated {
            None => Ok(()),
            Some((_, &(offset, l1_index))) => {
                Err(Error::corrupt(Structure::L1Table, "two entries name the same L2 table")
                    .at_index(l1_index)
                    .at_host(offset))
            }
        }
    }

    /// Refuses a run in which a refcount is 0 or cannot grow.
    fn refuse_refcounts(
        &mut self,
        storage: &impl ReadStorage,
        first: HostCluster,
        count: u64,
        most: u64,
    ) -> Result<()> {
        match self.refcounts.find(storage, first, count, |refcount| refcount == 0 || refcount >= most)? {
            None => Ok(()),
            Some((at, 0)) => Err(Error::corrupt(Structure::RefcountBlock, "a cluster in use has refcount 0")
                .at_host(self.geometry.host_start(first.saturating_add(at)).get())),
            Some((at, _)) => Err(self.too_narrow(first.saturating_add(at))),
        }
    }

    fn too_narrow(&self, cluster: HostCluster) -> Error {
        let bits = 1u32.wrapping_shl(self.geometry.refcount_order());
        let what = alloc::format!(
            "a cluster has as many references as refcounts of {bits} bits can count; images with wider refcounts can \
             have more snapshots"
        );
        Error::new(ErrorKind::Limit(what))
            .in_structure(Structure::RefcountBlock)
            .at_host(self.geometry.host_start(cluster).get())
    }

    /// A cluster gets as many references as compressed clusters lie in it.
    fn count_packed(
        &mut self,
        storage: &impl ReadStorage,
        first: HostCluster,
        count: u64,
        packed: &mut BTreeMap<u64, u64>,
    ) -> Result<()> {
        let most = self.geometry.max_refcount();
        for n in 0..count {
            let cluster = first.saturating_add(n);
            let refcount = self.refcounts.get(storage, cluster)?;
            // A tree has no more references to a cluster than are counted, so at most the refcount doubles.
            if refcount.saturating_mul(2) > most {
                let more = packed.entry(cluster.get()).or_default();
                *more = more.saturating_add(1);
                if refcount.saturating_add(*more) > most {
                    return Err(self.too_narrow(cluster));
                }
            }
        }
        Ok(())
    }

    /// Gives everything in a tree one more reference, for an L1 table that is going to name it too. Nothing may wait in
    /// quarantine. With `active`, the tree is that of the active L1 table, whose own flags are cleared.
    ///
    /// Nothing is left counted when it fails; flags may be missing then.
    pub(crate) fn share_tree(&mut self, storage: &impl Storage, l1: &[u64], active: bool) -> Result<()> {
        let mut batch = Batch::new();
        let mut counted = 0usize;
        let mut done = Ok(());
        for (n, &raw) in l1.iter().enumerate() {
            let l1_index = u64::try_from(n).unwrap_or(u64::MAX);
            done = self.clear_copied(storage, l1_index, raw, active, &mut batch);
            if done.is_ok() && (batch.len() >= BATCH_RUNS || self.slices.is_crowded()) {
                done = self.count_batch(storage, &mut batch);
                if done.is_ok() {
                    counted = n.saturating_add(1);
                }
            }
            if done.is_err() {
                break;
            }
        }
        let done = done.and_then(|()| self.count_batch(storage, &mut batch));
        if done.is_err() {
            self.unshare_tree(storage, l1.get(..counted).unwrap_or_default());
        }
        done
    }

    /// Clears the COPIED flags of one table and notes what it refers to.
    fn clear_copied(
        &mut self,
        storage: &impl ReadStorage,
        l1_index: u64,
        raw: u64,
        active: bool,
        batch: &mut Batch,
    ) -> Result<()> {
        let Some(table) = self.table_behind(l1_index, raw)? else { return Ok(()) };
        if active && table.copied {
            self.set_l1_copied(l1_index, table.offset, false);
        }
        for run in self.table_runs(storage, l1_index, table.offset)? {
            if run.entry.host().is_some_and(|host| host.copied) {
                self.set_run_copied(storage, table.offset, run, 0..run.count, false)?;
            }
            if let Some((first, count)) = self.references(&run) {
                match batch.last_mut() {
                    Some((last, length)) if last.saturating_add(*length) == first => {
                        *length = length.saturating_add(count);
                    }
                    Some(_) | None => batch.push((first, count)),
                }
            }
        }
        batch.push((self.geometry.host_cluster(table.offset), 1));
        Ok(())
    }

    /// Makes the cleared flags durable, and only then counts. All of a batch or nothing of it.
    fn count_batch(&mut self, storage: &impl Storage, batch: &mut Batch) -> Result<()> {
        self.commit(storage)?;
        for (n, &(first, count)) in batch.iter().enumerate() {
            if let Err(error) = self.refcounts.increment(storage, first, count) {
                for &(first, count) in batch.get(..n).unwrap_or_default() {
                    // Where this fails, the storage fails; what stays counted is a leak.
                    let _ = self.refcounts.decrement(storage, first, count, &mut Vec::new());
                }
                return Err(error);
            }
        }
        batch.clear();
        // Allowed at any time; the blocks need not stay in memory.
        self.unsynced |= self.refcounts.write_blocks(storage)?;
        Ok(())
    }

    /// Takes back what [`Metadata::share_tree`] counted, for a table that was never published. What cannot be read any
    /// more leaks.
    pub(crate) fn unshare_tree(&mut self, storage: &impl ReadStorage, l1: &[u64]) {
        for (l1_index, &raw) in (0u64..).zip(l1) {
            let Ok(Some(table)) = self.table_behind(l1_index, raw) else { continue };
            let Ok(runs) = self.table_runs(storage, l1_index, table.offset) else { continue };
            let own = (self.geometry.host_cluster(table.offset), 1);
            let named: Batch = runs.iter().filter_map(|run| self.references(run)).chain([own]).collect();
            for (first, count) in named {
                let _ = self.refcounts.decrement(storage, first, count, &mut Vec::new());
            }
        }
    }

    /// Takes one reference from everything in a tree that nothing on storage names any more, and commits. What cannot
    /// be read leaks; the first error is told when all else is done.
    pub(crate) fn release_tree(&mut self, storage: &impl Storage, l1: &[u64], pass: bool) -> Result<()> {
        let mut result = Ok(());
        for (l1_index, &raw) in (0u64..).zip(l1) {
            let released = self.release_table(storage, l1_index, raw, pass);
            result = result.and(released);
            if self.quarantine.len() >= BATCH_RUNS {
                self.commit(storage)?;
            }
        }
        self.commit(storage)?;
        result
    }

    fn release_table(&mut self, storage: &impl ReadStorage, l1_index: u64, raw: u64, pass: bool) -> Result<()> {
        let Some(table) = self.table_behind(l1_index, raw)? else { return Ok(()) };
        let own = self.geometry.host_cluster(table.offset);
        self.refuse_metadata(own, 1, Touch::Table)?;
        let mut result = Ok(());
        for run in self.table_runs(storage, l1_index, table.offset)? {
            if let Some((first, count)) = self.references(&run) {
                let sound = self.refuse_metadata(first, count, Touch::GuestData);
                let released = sound.and_then(|()| self.release(storage, Quarantined { first, count, pass }));
                result = result.and(released);
            }
        }
        result.and(self.release(storage, Quarantined { first: own, count: 1, pass }))
    }

    /// Sets the COPIED flag in the active tables wherever the refcount is one. Commits before, so that no refcount is
    /// going to change, and after.
    pub(crate) fn mark_exclusive(&mut self, storage: &impl Storage) -> Result<()> {
        self.commit(storage)?;
        for l1_index in 0..self.l1_len() {
            let Some(table) = self.l2_table(l1_index)? else { continue };
            // A table with two owners leads to nothing that has one.
            if self.refcounts.get(storage, self.geometry.host_cluster(table.offset))? != 1 {
                continue;
            }
            if !table.copied {
                self.set_l1_copied(l1_index, table.offset, true);
            }
            for run in self.table_runs(storage, l1_index, table.offset)? {
                self.mark_run(storage, table.offset, run)?;
            }
            if self.slices.is_crowded() || self.l1_dirty.len() >= BATCH_RUNS {
                self.commit(storage)?;
            }
        }
        self.commit(storage)
    }

    fn mark_run(&mut self, storage: &impl ReadStorage, table: HostOffset, run: TableRun) -> Result<()> {
        let Some(host) = run.entry.host().filter(|host| !host.copied) else { return Ok(()) };
        let first = self.geometry.host_cluster(host.offset);
        let mut at = 0u64;
        while at < run.count {
            let rest = run.count.saturating_sub(at);
            let found = self.refcounts.find(storage, first.saturating_add(at), rest, |refcount| refcount == 1)?;
            let Some((skip, _)) = found else { return Ok(()) };
            let from = at.saturating_add(skip);
            let rest = run.count.saturating_sub(from);
            let other = self.refcounts.find(storage, first.saturating_add(from), rest, |refcount| refcount != 1)?;
            let to = from.saturating_add(other.map_or(rest, |(length, _)| length));
            self.set_run_copied(storage, table, run, from..to, true)?;
            at = to;
        }
        Ok(())
    }

    /// Sets or clears the flag in a part of a run.
    fn set_run_copied(
        &mut self,
        storage: &impl ReadStorage,
        table: HostOffset,
        run: TableRun,
        part: core::ops::Range<u64>,
        copied: bool,
    ) -> Result<()> {
        for n in part {
            let entry = run.entry.further(n.saturating_mul(self.geometry.cluster_size())).with_copied(copied);
            let (slot, within) = self.slices.load(storage, table, run.index.saturating_add(n))?;
            self.slices.set_entry(slot, within, entry.encode(&self.geometry));
        }
        Ok(())
    }

    fn set_l1_copied(&mut self, l1_index: u64, offset: HostOffset, copied: bool) {
        if let Some(slot) = usize::try_from(l1_index).ok().and_then(|at| self.l1.get_mut(at)) {
            *slot = L1Entry::Table(HostRef { offset, copied }).encode();
            self.l1_dirty.insert(l1_index);
        }
    }

    /// The runs of a whole L2 table, whoever owns it.
    fn table_runs(&mut self, storage: &impl ReadStorage, l1_index: u64, table: HostOffset) -> Result<Vec<TableRun>> {
        let mut runs = Vec::new();
        let mut index = 0u64;
        let first = self.geometry.cluster_at(l1_index, 0);
        self.visit_table_runs(storage, table, first, self.geometry.l2_entries(), |entry, count| {
            if *entry != L2Entry::UNALLOCATED {
                runs.push(TableRun { index, entry: *entry, count });
            }
            index = index.saturating_add(count);
            true
        })?;
        Ok(runs)
    }

    /// The host clusters that a run refers to. (Runs of compressed clusters have one entry.)
    fn references(&self, run: &TableRun) -> Option<(HostCluster, u64)> {
        match run.entry {
            L2Entry::Compressed(range) => Some(self.compressed_clusters(range)),
            L2Entry::Plain { host: Some(host), .. } if !self.geometry.data_file() => {
                Some((self.geometry.host_cluster(host.offset), run.count))
            }
            L2Entry::Plain { .. } => None,
        }
    }

    /// The same entries without COPIED flags.
    pub(crate) fn without_copied(&self, l1: &[u64]) -> Result<Vec<u64>> {
        let plain = |(l1_index, &raw): (u64, &u64)| {
            let table = self.table_behind(l1_index, raw)?;
            let entry = table.map(|table| L1Entry::Table(HostRef { copied: false, ..table }));
            Ok(entry.unwrap_or(L1Entry::Unallocated).encode())
        };
        (0u64..).zip(l1).map(plain).collect()
    }

    /// Takes another L1 table, which stands at `offset`, and the virtual size that goes with it, all to be published by
    /// the next commit; gives the ones before. Nothing may wait to be written.
    pub(crate) fn switch_l1(&mut self, new: ActiveTable) -> Result<ActiveTable> {
        let old = ActiveTable {
            offset: HostOffset::new(self.header.header.l1_table_offset),
            virtual_size: self.geometry.virtual_size(),
            l1: core::mem::take(&mut self.l1),
        };
        if let Err(error) = self.set_virtual_size(new.virtual_size) {
            self.l1 = old.l1;
            return Err(error);
        }
        self.l1 = new.l1;
        self.l1_dirty.clear();
        let (l1_size, virtual_size) = (u32::try_from(self.l1.len()).unwrap_or(u32::MAX), new.virtual_size);
        let header = &mut self.header_mut().header;
        header.l1_table_offset = new.offset.get();
        header.l1_size = l1_size;
        header.virtual_size = virtual_size;
        Ok(old)
    }

    /// Writes bytes into clusters that nothing names yet.
    pub(crate) fn write_unnamed(
        &mut self,
        storage: &impl Storage,
        offset: HostOffset,
        bytes: &[u8],
        what: Structure,
    ) -> Result<()> {
        self.unsynced = true;
        storage.write_at(offset.get(), bytes).map_err(|e| Error::from(e).in_structure(what))
    }

    /// Empties the active L1 table from an index on; gives the entries that stood there.
    pub(crate) fn cut_l1(&mut self, from: u64) -> Vec<u64> {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.l1.len());
        let (_, tail) = self.l1.split_at_mut(from);
        let cut = tail.to_vec();
        tail.fill(L1Entry::Unallocated.encode());
        let used = (0usize..).zip(&cut).filter(|(_, raw)| **raw != 0).map(|(n, _)| from.saturating_add(n));
        self.l1_dirty.extend(used.filter_map(|n| u64::try_from(n).ok()));
        cut
    }
}

/// An L1 table in the part of the active one.
#[derive(Debug)]
pub(crate) struct ActiveTable {
    pub(crate) offset: HostOffset,
    pub(crate) l1: Vec<u64>,
    pub(crate) virtual_size: u64,
}
