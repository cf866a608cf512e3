//! Refcounts in memory: the table, the blocks, and where free clusters are.
//!
//! Increments are stored at once; decrements come only through [`Refcounts::decrement`], which
//! [`super::Metadata::commit`] calls once the removed reference is durable (law 4). A block may therefore be written
//! to storage at any time.

mod links;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use super::sparse::is_hole;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    Geometry, HostCluster, HostOffset, MAX_HOST_OFFSET, decode_refcount_table_entry, encode_refcount_table_entry,
    read_refcount, write_refcount,
};
use crate::storage::{ReadStorage, Storage};

/// Clean blocks are dropped beyond this many bytes.
const CACHE_BYTES: u64 = 16 << 20;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: bool,
    /// Sequence of the last use, for eviction.
    used: u64,
}

/// What [`Refcounts::new_table`] replaced: the old table's place, to be released once the header points elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OldTable {
    pub(crate) first: HostCluster,
    pub(crate) clusters: u64,
}

/// The refcount table, the cached blocks and the search for free clusters.
#[derive(Debug)]
pub(crate) struct Refcounts {
    geometry: Geometry,
    table: Vec<u64>,
    table_offset: HostOffset,
    table_clusters: u64,
    blocks: BTreeMap<u64, Block>,
    /// Where the blocks are, by cluster, once writing began.
    block_clusters: BTreeSet<u64>,
    /// Table entries whose block is not yet linked on storage.
    unlinked: BTreeSet<u64>,
    /// The table moved: the header must be rewritten before new entries count.
    moved: Vec<OldTable>,
    /// QEMU's next-fit pointer: the search begins here; releases lower it.
    hint: u64,
    clock: u64,
    /// One more than the highest cluster that was ever taken since the image was opened.
    high_water: u64,
    /// Clusters the store can hold, where it cannot grow.
    bound: Option<u64>,
}

impl Refcounts {
    /// Reads the table. The place and size come from a validated header.
    pub(crate) fn load(
        storage: &impl ReadStorage,
        geometry: Geometry,
        table_offset: HostOffset,
        table_clusters: u64,
    ) -> Result<Self> {
        let bytes = table_clusters.saturating_mul(geometry.cluster_size());
        if bytes > crate::format::MAX_REFCOUNT_TABLE_BYTES.max(geometry.cluster_size()) {
            return Err(Error::new(ErrorKind::Limit("refcount table larger than 8 MiB".into()))
                .in_structure(Structure::RefcountTable));
        }
        let mut raw = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
        storage
            .read_at(table_offset.get(), &mut raw)
            .map_err(|e| Error::from(e).in_structure(Structure::RefcountTable))?;
        let mut table = vec![0u64; raw.len() / 8];
        BigEndian::read_u64_into(&raw, &mut table);
        let bound = if storage.capabilities().grows { None } else { Some(storage.len()? >> geometry.cluster_bits()) };
        Ok(Self { table, table_offset, table_clusters, bound, ..Self::without_table(geometry) })
    }

    /// Of an image that is not asked for refcounts.
    pub(crate) fn without_table(geometry: Geometry) -> Self {
        Self {
            geometry,
            table: Vec::new(),
            table_offset: HostOffset::default(),
            table_clusters: 0,
            blocks: BTreeMap::new(),
            block_clusters: BTreeSet::new(),
            unlinked: BTreeSet::new(),
            moved: Vec::new(),
            hint: 0,
            clock: 0,
            high_water: 0,
            bound: None,
        }
    }

    /// Where the table is: offset and clusters, for the header.
    pub(crate) fn table_place(&self) -> (HostOffset, u64) {
        (self.table_offset, self.table_clusters)
    }

    /// Notes where the blocks are; refuses a block that serves twice, since a change of one would change the other.
    /// Entries without meaning are refused when they are used.
    pub(crate) fn remember_blocks(&mut self) -> Result<()> {
        self.block_clusters.clear();
        for (index, &raw) in (0u64..).zip(&self.table) {
            let Ok(Some(offset)) = decode_refcount_table_entry(raw, &self.geometry) else { continue };
            if !self.block_clusters.insert(self.geometry.host_cluster(offset).get()) {
                return Err(Error::corrupt(Structure::RefcountTable, "two entries name the same refcount block")
                    .at_index(index)
                    .at_host(offset.get()));
            }
        }
        Ok(())
    }

    /// The first cluster of a range that holds a refcount block.
    pub(crate) fn block_within(&self, first: u64, count: u64) -> Option<u64> {
        self.block_clusters.range(first..first.saturating_add(count)).next().copied()
    }

    /// The highest cluster that holds a refcount block.
    pub(crate) fn last_block(&self) -> Option<u64> {
        self.block_clusters.last().copied()
    }

    fn block_offset(&self, table_index: u64) -> Result<Option<HostOffset>> {
        let raw = usize::try_from(table_index).ok().and_then(|at| self.table.get(at)).copied().unwrap_or(0);
        decode_refcount_table_entry(raw, &self.geometry).map_err(|error| {
            Error::corrupt(Structure::RefcountTable, alloc::format!("{error}")).at_index(table_index).at_host(raw)
        })
    }

    /// The block behind a table entry, loaded if need be; `None` where there is none (all refcounts are 0).
    fn block(&mut self, storage: &impl ReadStorage, table_index: u64) -> Result<Option<&mut Block>> {
        self.find_block(storage, table_index, true)
    }

    /// As [`Refcounts::block`], for those who only look: `None` also for a block in a hole, whose refcounts are 0 too.
    fn used_block(&mut self, storage: &impl ReadStorage, table_index: u64) -> Result<Option<&mut Block>> {
        self.find_block(storage, table_index, false)
    }

    fn find_block(&mut self, storage: &impl ReadStorage, index: u64, holes: bool) -> Result<Option<&mut Block>> {
        self.clock = self.clock.saturating_add(1);
        let clock = self.clock;
        if !self.blocks.contains_key(&index) {
            let Some(offset) = self.block_offset(index)? else { return Ok(None) };
            if !holes && is_hole(storage, offset.get(), self.geometry.cluster_size()) {
                return Ok(None);
            }
            self.evict_clean();
            let mut bytes = vec![0u8; self.geometry.cluster_len()];
            storage
                .read_at(offset.get(), &mut bytes)
                .map_err(|e| Error::from(e).in_structure(Structure::RefcountBlock).at_index(index))?;
            self.blocks.insert(index, Block { bytes, dirty: false, used: clock });
        }
        let Some(block) = self.blocks.get_mut(&index) else { return Ok(None) };
        block.used = clock;
        Ok(Some(block))
    }

    /// Makes room by dropping the older half of the clean blocks: one scan for many loads.
    fn evict_clean(&mut self) {
        let limit = CACHE_BYTES.wrapping_shr(self.geometry.cluster_bits()).max(4);
        if u64::try_from(self.blocks.len()).unwrap_or(u64::MAX) < limit {
            return;
        }
        let mut uses: Vec<u64> = self.blocks.values().filter(|block| !block.dirty).map(|block| block.used).collect();
        let middle = uses.len() / 2;
        if middle < uses.len() {
            let (_, &mut oldest_kept, _) = uses.select_nth_unstable(middle);
            self.blocks.retain(|_, block| block.dirty || block.used > oldest_kept);
        }
    }

    /// The refcount of a cluster; 0 beyond the table.
    pub(crate) fn get(&mut self, storage: &impl ReadStorage, cluster: HostCluster) -> Result<u64> {
        let order = self.geometry.refcount_order();
        let index = self.geometry.refcount_block_index(cluster);
        let block = self.used_block(storage, self.geometry.refcount_table_index(cluster))?;
        Ok(block.and_then(|block| read_refcount(&block.bytes, index, order)).unwrap_or(0))
    }

    /// The refcounts of as many clusters from `first` on as `into` holds; 0 beyond the table.
    pub(super) fn get_many(&mut self, storage: &impl ReadStorage, first: HostCluster, into: &mut [u64]) -> Result<()> {
        let order = self.geometry.refcount_order();
        let mut rest = into;
        let mut cluster = first;
        while !rest.is_empty() {
            let within = self.geometry.refcount_block_index(cluster);
            let in_block = self.geometry.refcount_block_entries().saturating_sub(within);
            let here = usize::try_from(in_block).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at_mut(here);
            match self.used_block(storage, self.geometry.refcount_table_index(cluster))? {
                None => head.fill(0),
                Some(block) => {
                    for (index, value) in (within..).zip(head) {
                        *value = read_refcount(&block.bytes, index, order).unwrap_or(0);
                    }
                }
            }
            rest = tail;
            cluster = cluster.saturating_add(u64::try_from(here).unwrap_or(1));
        }
        Ok(())
    }

    /// The first cluster from `from` on that has a refcount block, unless the block lies in a hole.
    pub(super) fn next_block(&mut self, storage: &impl ReadStorage, from: u64) -> Result<Option<u64>> {
        let first = self.geometry.refcount_table_index(HostCluster::new(from));
        for index in first..u64::try_from(self.table.len()).unwrap_or(u64::MAX) {
            if self.used_block(storage, index)?.is_some() {
                let start = index.saturating_mul(self.geometry.refcount_block_entries());
                return Ok(Some(start.max(from)));
            }
        }
        Ok(None)
    }

    /// The first of `count` clusters from `first` on whose refcount `wanted` accepts: how many come before it, and that
    /// refcount.
    pub(crate) fn find(
        &mut self,
        storage: &impl ReadStorage,
        first: HostCluster,
        count: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<Option<(u64, u64)>> {
        let order = self.geometry.refcount_order();
        let mut done = 0u64;
        while done < count {
            let cluster = first.saturating_add(done);
            let within = self.geometry.refcount_block_index(cluster);
            let here = count.saturating_sub(done).min(self.geometry.refcount_block_entries().saturating_sub(within));
            let block = self.used_block(storage, self.geometry.refcount_table_index(cluster))?;
            let refcount = |n: u64| {
                let index = within.saturating_add(n);
                block.as_ref().and_then(|block| read_refcount(&block.bytes, index, order)).unwrap_or(0)
            };
            let found = (0..here).map(|n| (n, refcount(n))).find(|&(_, refcount)| wanted(refcount));
            if let Some((n, refcount)) = found {
                return Ok(Some((done.saturating_add(n), refcount)));
            }
            done = done.saturating_add(here);
        }
        Ok(None)
    }

    /// The clusters of the table and of all blocks.
    pub(super) fn own_clusters(&self) -> BTreeSet<u64> {
        let first = self.geometry.host_cluster(self.table_offset).get();
        let table = first..first.saturating_add(self.table_clusters);
        self.block_clusters.iter().copied().chain(table).collect()
    }

    /// The cluster behind the last one below `clusters` whose refcount is not 0. Missing blocks are passed over whole: a
    /// file can be long and hold nothing.
    pub(crate) fn end_of_use(&mut self, storage: &impl ReadStorage, clusters: u64) -> Result<HostCluster> {
        let (order, entries) = (self.geometry.refcount_order(), self.geometry.refcount_block_entries());
        let blocks = clusters.div_ceil(entries.max(1)).min(u64::try_from(self.table.len()).unwrap_or(u64::MAX));
        for table_index in (0..blocks).rev() {
            let Some(block) = self.used_block(storage, table_index)? else { continue };
            let first = table_index.saturating_mul(entries);
            let inside = clusters.saturating_sub(first).min(entries);
            let used = (0..inside).rev().find(|&n| read_refcount(&block.bytes, n, order).is_some_and(|r| r > 0));
            if let Some(last) = used {
                return Ok(HostCluster::new(first.saturating_add(last).saturating_add(1)));
            }
        }
        Ok(HostCluster::new(0))
    }

    /// Adds one reference to each cluster of the range, making blocks where there are none.
    pub(crate) fn increment(&mut self, storage: &impl Storage, first: HostCluster, count: u64) -> Result<()> {
        self.increment_by(storage, first, count, 1)
    }

    /// As [`Refcounts::increment`], `more` references at once. All or nothing.
    pub(crate) fn increment_by(
        &mut self,
        storage: &impl Storage,
        first: HostCluster,
        count: u64,
        more: u64,
    ) -> Result<()> {
        self.cover(storage, first, count)?;
        self.high_water = self.high_water.max(first.get().saturating_add(count));
        let (order, most) = (self.geometry.refcount_order(), self.geometry.max_refcount());
        let mut done = 0u64;
        while done < count {
            let cluster = first.saturating_add(done);
            let within = self.geometry.refcount_block_index(cluster);
            let here = count.saturating_sub(done).min(self.geometry.refcount_block_entries().saturating_sub(within));
            let Some(block) = self.block(storage, self.geometry.refcount_table_index(cluster))? else {
                return Err(self.missing_block(cluster));
            };
            block.dirty = true;
            let full = (0..here).find(|&n| {
                let index = within.saturating_add(n);
                let value = read_refcount(&block.bytes, index, order).unwrap_or(most);
                let sum = value.checked_add(more).filter(|&sum| sum <= most);
                sum.and_then(|sum| write_refcount(&mut block.bytes, index, order, sum)).is_none()
            });
            if let Some(full) = full {
                self.decrement_by(storage, first, done.saturating_add(full), more, &mut Vec::new())?;
                return Err(Error::new(ErrorKind::Limit("refcount would exceed its width".into()))
                    .in_structure(Structure::RefcountBlock)
                    .at_host(self.geometry.host_start(cluster.saturating_add(full)).get()));
            }
            done = done.saturating_add(here);
        }
        Ok(())
    }

    /// Takes one reference from each cluster of the range; adds the clusters that are free now to `freed`, also when it
    /// fails.
    ///
    /// Only for references that are gone from storage, or never were there. A refcount that is 0 already stays so;
    /// the error comes after the whole range is done. Where a block cannot be read, the rest of the range leaks.
    pub(crate) fn decrement(
        &mut self,
        storage: &impl ReadStorage,
        first: HostCluster,
        count: u64,
        freed: &mut Vec<HostCluster>,
    ) -> Result<()> {
        self.decrement_by(storage, first, count, 1, freed)
    }

    /// As [`Refcounts::decrement`], `references` at once. A refcount that is lower becomes 0, and is an error.
    pub(crate) fn decrement_by(
        &mut self,
        storage: &impl ReadStorage,
        first: HostCluster,
        count: u64,
        references: u64,
        freed: &mut Vec<HostCluster>,
    ) -> Result<()> {
        let mut underflow = None;
        for n in 0..count {
            let cluster = first.saturating_add(n);
            let refcount = self.get(storage, cluster)?;
            if refcount < references {
                underflow.get_or_insert(cluster);
                if refcount == 0 {
                    continue;
                }
            }
            let less = refcount.saturating_sub(references);
            self.set(storage, cluster, less)?;
            if less == 0 {
                self.hint = self.hint.min(cluster.get());
                freed.push(cluster);
            }
        }
        match underflow {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(Structure::RefcountBlock, "refcount would fall below zero")
                .at_host(self.geometry.host_start(cluster).get())),
        }
    }

    fn missing_block(&self, cluster: HostCluster) -> Error {
        Error::corrupt(Structure::RefcountBlock, "no refcount block for a cluster in use")
            .at_host(self.geometry.host_start(cluster).get())
    }

    fn set(&mut self, storage: &impl ReadStorage, cluster: HostCluster, value: u64) -> Result<()> {
        let order = self.geometry.refcount_order();
        let index = self.geometry.refcount_block_index(cluster);
        let stored = self.block(storage, self.geometry.refcount_table_index(cluster))?.and_then(|block| {
            block.dirty = true;
            write_refcount(&mut block.bytes, index, order, value)
        });
        stored.ok_or_else(|| self.missing_block(cluster))
    }

    /// Makes sure that every cluster of the range has a refcount block.
    fn cover(&mut self, storage: &impl Storage, first: HostCluster, count: u64) -> Result<()> {
        let last = first.saturating_add(count.saturating_sub(1));
        let (from, to) = (self.geometry.refcount_table_index(first), self.geometry.refcount_table_index(last));
        for table_index in from..=to {
            if self.block_offset(table_index)?.is_none() {
                self.new_block(storage, table_index, last)?;
            }
        }
        Ok(())
    }

    /// Makes the block for one table entry. `taken` is the last cluster that the caller is about to use.
    fn new_block(&mut self, storage: &impl Storage, table_index: u64, taken: HostCluster) -> Result<()> {
        if table_index >= u64::try_from(self.table.len()).unwrap_or(0) {
            self.new_table(storage, table_index, taken)?;
        }
        if self.block_offset(table_index)?.is_some() {
            // Making a larger table can have made this block too.
            return Ok(());
        }
        // Beyond what the caller takes: its clusters have no refcount yet, so a search from the hint would find them.
        let place = self.free_run_after(storage, taken, 1)?;
        let offset = self.geometry.host_start(place);
        let slot = usize::try_from(table_index).ok().and_then(|at| self.table.get_mut(at));
        *slot.ok_or_else(|| Error::new(ErrorKind::NoSpace("refcount table is full".into())))? =
            encode_refcount_table_entry(Some(offset));
        self.unlinked.insert(table_index);
        self.block_clusters.insert(place.get());
        self.clock = self.clock.saturating_add(1);
        let bytes = vec![0u8; self.geometry.cluster_len()];
        self.blocks.insert(table_index, Block { bytes, dirty: true, used: self.clock });
        // The block's own refcount; its block may be itself, an existing one, or a new one again.
        if self.block_offset(self.geometry.refcount_table_index(place))?.is_none() {
            self.new_block(storage, self.geometry.refcount_table_index(place), place)?;
        }
        self.high_water = self.high_water.max(place.get().saturating_add(1));
        self.set(storage, place, 1)
    }

    /// Moves the table to a larger place, so that `table_index` has an entry.
    fn new_table(&mut self, storage: &impl Storage, table_index: u64, taken: HostCluster) -> Result<()> {
        let per_cluster = self.geometry.cluster_size() / 8;
        let needed =
            table_index.saturating_add(2).max(u64::try_from(self.table.len()).unwrap_or(0).saturating_mul(3) / 2);
        let clusters = needed.div_ceil(per_cluster.max(1));
        let limit = crate::format::MAX_REFCOUNT_TABLE_BYTES.max(self.geometry.cluster_size());
        if clusters.saturating_mul(self.geometry.cluster_size()) > limit {
            return Err(Error::new(ErrorKind::NoSpace("the refcount table has reached its largest size".into()))
                .in_structure(Structure::RefcountTable));
        }
        let first = self.free_run_after(storage, taken, clusters)?;
        self.moved
            .push(OldTable { first: self.geometry.host_cluster(self.table_offset), clusters: self.table_clusters });
        self.table_offset = self.geometry.host_start(first);
        self.table_clusters = clusters;
        let entries = clusters.saturating_mul(per_cluster);
        self.table.resize(usize::try_from(entries).unwrap_or(usize::MAX).max(self.table.len()), 0);
        self.increment(storage, first, clusters)
    }

    /// The first run of free clusters behind the hint that does not touch what the caller is about to take.
    fn free_run_after(&mut self, storage: &impl Storage, taken: HostCluster, count: u64) -> Result<HostCluster> {
        let start = self.hint.max(taken.get().saturating_add(1));
        self.search(storage, start, count)
    }

    /// The first `count` free clusters in a row from `start` on.
    fn search(&mut self, storage: &impl Storage, start: u64, count: u64) -> Result<HostCluster> {
        let mut first = start;
        loop {
            let free = self.free_length(storage, HostCluster::new(first), count)?;
            if free >= count {
                return self.within_bounds(HostCluster::new(first), count);
            }
            first = self.next_free(storage, first.saturating_add(free))?;
            self.within_bounds(HostCluster::new(first), count)?;
        }
    }

    fn within_bounds(&self, first: HostCluster, count: u64) -> Result<HostCluster> {
        let end = first.saturating_add(count);
        let outside = self.bound.is_some_and(|bound| end.get() > bound);
        if outside || self.geometry.host_start(end).get() > MAX_HOST_OFFSET {
            return Err(Error::new(ErrorKind::NoSpace("the image file cannot grow any more".into()))
                .at_host(self.geometry.host_start(first).get()));
        }
        Ok(first)
    }

    /// The last index that can have a block, in the table or waiting to get into it.
    fn last_index(&self) -> u64 {
        let waiting = self.blocks.last_key_value().map_or(0, |(&index, _)| index);
        waiting.max(u64::try_from(self.table.len()).unwrap_or(u64::MAX))
    }

    /// How many clusters from `first` on are free, counted up to `most`.
    pub(crate) fn free_length(&mut self, storage: &impl Storage, first: HostCluster, most: u64) -> Result<u64> {
        let mut length = 0u64;
        while length < most {
            let cluster = first.saturating_add(length);
            let within = self.geometry.refcount_block_index(cluster);
            let rest = self.geometry.refcount_block_entries().saturating_sub(within);
            let order = self.geometry.refcount_order();
            let index = self.geometry.refcount_table_index(cluster);
            if index > self.last_index() {
                // However long the file says it is: nothing is counted behind the table.
                return Ok(most);
            }
            let free = match self.used_block(storage, index)? {
                None => rest,
                Some(block) => run_of(&block.bytes, within, order, rest.min(most.saturating_sub(length)), true),
            };
            length = length.saturating_add(free);
            if free < rest {
                break;
            }
        }
        Ok(length.min(most))
    }

    /// The first free cluster at or after `from`.
    pub(super) fn next_free(&mut self, storage: &impl Storage, from: u64) -> Result<u64> {
        let mut cluster = HostCluster::new(from);
        loop {
            let within = self.geometry.refcount_block_index(cluster);
            let rest = self.geometry.refcount_block_entries().saturating_sub(within);
            let order = self.geometry.refcount_order();
            let used = match self.used_block(storage, self.geometry.refcount_table_index(cluster))? {
                None => 0,
                Some(block) => run_of(&block.bytes, within, order, rest, false),
            };
            cluster = cluster.saturating_add(used);
            if used < rest {
                return Ok(cluster.get());
            }
        }
    }

    /// QEMU's search: `count` clusters in one run, from the hint on; the hint moves behind them.
    pub(crate) fn find_next_fit(&mut self, storage: &impl Storage, count: u64) -> Result<HostCluster> {
        let first = self.search(storage, self.hint, count)?;
        self.hint = first.get().saturating_add(count);
        Ok(first)
    }

    /// The lowest free clusters, at most `most` of them: small gaps are used before the file grows.
    pub(crate) fn find_lowest(&mut self, storage: &impl Storage, most: u64) -> Result<(HostCluster, u64)> {
        let first = self.next_free(storage, self.hint)?;
        // Everything below is in use: the hint may rest on the first free cluster.
        let count = self.free_length(storage, HostCluster::new(first), most)?;
        self.hint = first.saturating_add(count);
        Ok((self.within_bounds(HostCluster::new(first), 1)?, count))
    }

    /// Whether a run fits where the store ends.
    pub(crate) fn fits(&self, first: HostCluster, count: u64) -> bool {
        self.within_bounds(first, count).is_ok()
    }

    /// One more than the highest cluster that was ever taken since the image was opened.
    pub(crate) fn high_water(&self) -> u64 {
        self.high_water
    }

    /// How often a block was asked for.
    #[cfg(test)]
    pub(super) fn lookups(&self) -> u64 {
        self.clock
    }

    /// Whether new blocks or a new table wait to be linked.
    pub(crate) fn has_unlinked(&self) -> bool {
        !self.unlinked.is_empty() || !self.moved.is_empty()
    }

    /// Whether the header must point to a new table.
    pub(crate) fn table_moved(&self) -> bool {
        !self.moved.is_empty()
    }
}

/// Length of the run of free (or used) refcounts from `index` on, at most `most`.
fn run_of(block: &[u8], index: u64, order: u32, most: u64, free: bool) -> u64 {
    if order == 4 {
        // The usual width, without the bit arithmetic.
        let first = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(2);
        let entries = block.get(first..).unwrap_or(&[]).chunks_exact(2);
        let run =
            entries.take_while(|entry| (**entry == [0, 0]) == free).take(usize::try_from(most).unwrap_or(usize::MAX));
        return u64::try_from(run.count()).unwrap_or(u64::MAX);
    }
    let run = (0..most)
        .take_while(|&n| read_refcount(block, index.saturating_add(n), order).is_some_and(|r| (r == 0) == free));
    u64::try_from(run.count()).unwrap_or(u64::MAX)
}
