//! A complete new refcount structure: table and blocks for given refcounts, of any width, in clusters that nothing on
//! storage uses.
//!
//! Nothing refers to the new structure until the header names it, with place, size and width in one write of one
//! sector. Before that write every refcount is as it was, after it every refcount is as given: there is no state between,
//! and a cut leaves nothing behind but bytes in free clusters (law 4). The clusters of the old structure have refcount 0
//! in the new one.
//!
//! Two use it: a change of the refcount width, with refcounts from the old structure, and the repair, with refcounts
//! from a walk of the image.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::Metadata;
use super::refcounts::Refcounts;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    Geometry, Header, HostCluster, HostOffset, MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, encode_refcount_table_entry,
    write_refcount,
};
use crate::storage::{ReadStorage, Storage};

/// Refcounts that are asked for at once.
const CHUNK: usize = 4096;

/// What the new structure is to say. Clusters count from the start of the file.
pub(crate) trait RefcountSource {
    /// The first cluster from `from` on whose refcount may differ from 0; `None` where all are 0 from there on.
    ///
    /// # Errors
    /// When it cannot be told.
    fn next_used(&mut self, from: u64) -> Result<Option<u64>>;

    /// The refcounts of `into.len()` clusters from `first` on, without those of the old and the new structure.
    ///
    /// # Errors
    /// When they cannot be told.
    fn refcounts(&mut self, first: u64, into: &mut [u64]) -> Result<()>;

    /// Whether a cluster with refcount 0 must not be overwritten all the same: it holds what is still needed until
    /// the switch, such as the old structure.
    fn is_reserved(&self, cluster: u64) -> bool;
}

/// The places of a new structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewRefcounts {
    geometry: Geometry,
    table_first: u64,
    table_clusters: u64,
    /// The cluster of each block, by its index in the table.
    blocks: BTreeMap<u64, u64>,
    /// The clusters of the blocks.
    taken: BTreeSet<u64>,
}

impl NewRefcounts {
    /// Finds room for a structure that says what `source` says, with the refcount width of `geometry`. `bound`: clusters
    /// that the storage holds, where it cannot grow. Nothing is written.
    ///
    /// # Errors
    /// A refcount that the width does not hold; no room; what the source says.
    pub(crate) fn lay_out(geometry: Geometry, source: &mut impl RefcountSource, bound: Option<u64>) -> Result<Self> {
        let mut needed = Self::blocks_needed(&geometry, source)?;
        let mut new =
            Self { geometry, table_first: 0, table_clusters: 0, blocks: BTreeMap::new(), taken: BTreeSet::new() };
        let mut search = Search::new(bound);
        loop {
            // A block lies in a cluster that a block must count, too.
            while let Some(index) = needed.pop_first() {
                if new.blocks.contains_key(&index) {
                    continue;
                }
                let place = search.next_free(source, &new)?;
                new.blocks.insert(index, place);
                new.taken.insert(place);
                needed.insert(geometry.refcount_table_index(HostCluster::new(place)));
            }
            let entries = new.blocks.last_key_value().map_or(0, |(&last, _)| last.saturating_add(1));
            let clusters = geometry.clusters_for(entries.saturating_mul(8)).max(1);
            if clusters <= new.table_clusters {
                return Ok(new);
            }
            if clusters.saturating_mul(geometry.cluster_size()) > MAX_REFCOUNT_TABLE_BYTES.max(geometry.cluster_size())
            {
                return Err(Error::new(ErrorKind::Limit("refcount table larger than 8 MiB".into()))
                    .in_structure(Structure::RefcountTable));
            }
            new.table_clusters = 0;
            new.table_first = search.free_run(source, &new, clusters)?;
            new.table_clusters = clusters;
            let last = new.table_first.saturating_add(clusters).saturating_sub(1);
            let index = |cluster| geometry.refcount_table_index(HostCluster::new(cluster));
            needed.extend(index(new.table_first)..=index(last));
        }
    }

    /// The indices of the blocks that have something to say; refuses what the width does not hold.
    fn blocks_needed(geometry: &Geometry, source: &mut impl RefcountSource) -> Result<BTreeSet<u64>> {
        let most = geometry.max_refcount();
        let mut needed = BTreeSet::new();
        let mut chunk = vec![0u64; CHUNK];
        let mut at = 0u64;
        while let Some(first) = source.next_used(at)? {
            source.refcounts(first, &mut chunk)?;
            for (cluster, &refcount) in (first..).zip(&chunk) {
                if refcount > most {
                    let bits = 1u32.wrapping_shl(geometry.refcount_order());
                    let start = geometry.host_start(HostCluster::new(cluster));
                    let what = alloc::format!(
                        "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {:#x} has a refcount \
                         of {refcount}",
                        start.get()
                    );
                    return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::RefcountBlock));
                }
                if refcount > 0 {
                    needed.insert(geometry.refcount_table_index(HostCluster::new(cluster)));
                }
            }
            at = first.saturating_add(u64::try_from(CHUNK).unwrap_or(1));
        }
        Ok(needed)
    }

    /// Writes blocks and table, without a barrier. `progress` is told how many blocks are written, of how many.
    ///
    /// # Errors
    /// When the storage fails, or the source.
    pub(crate) fn write(
        &self,
        storage: &impl Storage,
        source: &mut impl RefcountSource,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let geometry = &self.geometry;
        let total = u64::try_from(self.blocks.len()).unwrap_or(u64::MAX);
        let mut bytes = vec![0u8; geometry.cluster_len()];
        for (done, (&index, &place)) in (0u64..).zip(&self.blocks) {
            progress(done, total);
            self.fill_block(index, source, &mut bytes)?;
            storage
                .write_at(geometry.host_start(HostCluster::new(place)).get(), &bytes)
                .map_err(|e| Error::from(e).in_structure(Structure::RefcountBlock).at_index(index))?;
        }
        let table_bytes = self.table_clusters.saturating_mul(geometry.cluster_size());
        let mut table = Vec::with_capacity(usize::try_from(table_bytes).unwrap_or(0));
        for index in 0..table_bytes / 8 {
            let place = self.blocks.get(&index).map(|&place| geometry.host_start(HostCluster::new(place)));
            table.extend(encode_refcount_table_entry(place).to_be_bytes());
        }
        let (offset, _) = self.table_place();
        storage.write_at(offset.get(), &table).map_err(|e| Error::from(e).in_structure(Structure::RefcountTable))?;
        progress(total, total);
        Ok(())
    }

    fn fill_block(&self, index: u64, source: &mut impl RefcountSource, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        let entries = self.geometry.refcount_block_entries();
        let first = index.saturating_mul(entries);
        let mut chunk = [0u64; CHUNK];
        let mut done = 0u64;
        while done < entries {
            let length = usize::try_from(entries.saturating_sub(done)).unwrap_or(CHUNK).min(CHUNK);
            let Some(chunk) = chunk.get_mut(..length) else { break };
            source.refcounts(first.saturating_add(done), chunk)?;
            for (n, &refcount) in (done..).zip(chunk.iter()) {
                let own = u64::from(self.is_taken(first.saturating_add(n)));
                let value = refcount.saturating_add(own);
                if value > 0 && write_refcount(bytes, n, self.geometry.refcount_order(), value).is_none() {
                    return Err(Error::new(ErrorKind::Limit("refcount would exceed its width".into()))
                        .in_structure(Structure::RefcountBlock)
                        .at_index(index));
                }
            }
            done = done.saturating_add(u64::try_from(length).unwrap_or(1));
        }
        Ok(())
    }

    /// Where the table lies, and its clusters.
    pub(crate) fn table_place(&self) -> (HostOffset, u64) {
        (self.geometry.host_start(HostCluster::new(self.table_first)), self.table_clusters)
    }

    /// Makes a header name the structure. The three fields lie in the first sector.
    pub(crate) fn name_in(&self, header: &mut Header) {
        let (offset, clusters) = self.table_place();
        header.refcount_table_offset = offset.get();
        header.refcount_table_clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        header.refcount_order = self.geometry.refcount_order();
    }

    /// Whether a cluster belongs to the structure.
    pub(crate) fn is_taken(&self, cluster: u64) -> bool {
        let table_end = self.table_first.saturating_add(self.table_clusters);
        (self.table_first..table_end).contains(&cluster) || self.taken.contains(&cluster)
    }
}

/// The search for free clusters, from the start of the file: gaps are used before the file grows.
struct Search {
    bound: Option<u64>,
    /// Everything below is in use, for single clusters.
    cursor: u64,
    chunk: Vec<u64>,
    chunk_first: u64,
}

impl Search {
    fn new(bound: Option<u64>) -> Self {
        // Cluster 0 holds the header.
        Self { bound, cursor: 1, chunk: Vec::new(), chunk_first: 0 }
    }

    fn is_free(&mut self, source: &mut impl RefcountSource, new: &NewRefcounts, cluster: u64) -> Result<bool> {
        let behind = self.bound.is_some_and(|bound| cluster >= bound);
        let start = cluster.saturating_mul(new.geometry.cluster_size());
        if behind || start.saturating_add(new.geometry.cluster_size()) > MAX_HOST_OFFSET {
            return Err(Error::new(ErrorKind::NoSpace("no room for new refcount structures".into()))
                .in_structure(Structure::RefcountBlock)
                .at_host(start));
        }
        let within = cluster.checked_sub(self.chunk_first).and_then(|n| usize::try_from(n).ok());
        let known = within.and_then(|n| self.chunk.get(n)).copied();
        let refcount = match known {
            Some(refcount) => refcount,
            None => {
                self.chunk.resize(CHUNK, 0);
                self.chunk_first = cluster;
                source.refcounts(cluster, &mut self.chunk)?;
                self.chunk.first().copied().unwrap_or(0)
            }
        };
        Ok(refcount == 0 && !source.is_reserved(cluster) && !new.is_taken(cluster))
    }

    fn next_free(&mut self, source: &mut impl RefcountSource, new: &NewRefcounts) -> Result<u64> {
        while !self.is_free(source, new, self.cursor)? {
            self.cursor = self.cursor.saturating_add(1);
        }
        Ok(self.cursor)
    }

    /// The first run of `count` free clusters.
    fn free_run(&mut self, source: &mut impl RefcountSource, new: &NewRefcounts, count: u64) -> Result<u64> {
        let mut first = 1u64;
        let mut length = 0u64;
        while length < count {
            let here = first.saturating_add(length);
            if self.is_free(source, new, here)? {
                length = length.saturating_add(1);
            } else {
                first = here.saturating_add(1);
                length = 0;
            }
        }
        Ok(first)
    }
}

/// The refcounts as they are, without those of their own table and blocks.
struct Current<'a, S> {
    storage: &'a S,
    refcounts: &'a mut Refcounts,
    own: BTreeSet<u64>,
}

impl<S: ReadStorage> RefcountSource for Current<'_, S> {
    fn next_used(&mut self, from: u64) -> Result<Option<u64>> {
        self.refcounts.next_block(self.storage, from)
    }

    fn refcounts(&mut self, first: u64, into: &mut [u64]) -> Result<()> {
        self.refcounts.get_many(self.storage, HostCluster::new(first), into)?;
        let end = first.saturating_add(u64::try_from(into.len()).unwrap_or(0));
        for &own in self.own.range(first..end) {
            let slot = own.checked_sub(first).and_then(|n| usize::try_from(n).ok()).and_then(|n| into.get_mut(n));
            if let Some(slot) = slot {
                *slot = slot.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn is_reserved(&self, cluster: u64) -> bool {
        self.own.contains(&cluster)
    }
}

impl Metadata {
    /// Refuses refcounts that do not fit `1 << order` bits. Nothing is changed.
    pub(crate) fn refuse_refcounts_beyond(&mut self, storage: &impl ReadStorage, order: u32) -> Result<()> {
        let geometry = self.with_refcount_order(order)?;
        let mut source = Current { storage, refcounts: &mut self.refcounts, own: BTreeSet::new() };
        NewRefcounts::blocks_needed(&geometry, &mut source).map(drop)
    }

    fn with_refcount_order(&self, order: u32) -> Result<Geometry> {
        let g = &self.geometry;
        Geometry::new(g.version(), g.cluster_bits(), order, g.extended_l2(), g.data_file(), g.virtual_size())
            .ok_or_else(|| Error::invalid("refcounts wider than 64 bits"))
    }

    /// Gives refcounts another width, `1 << order` bits. Durable on return; what the old structure held is free then.
    ///
    /// The image must be of version 3 and have been prepared for writing.
    ///
    /// # Errors
    /// A refcount that does not fit, no room: nothing is changed then. A storage that fails: when it is unknown whether
    /// the switch reached it, nothing more is written.
    pub(crate) fn change_refcount_width(
        &mut self,
        storage: &impl Storage,
        order: u32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.flush(storage)?;
        let geometry = self.with_refcount_order(order)?;
        let capabilities = storage.capabilities();
        let length = storage.len()?;
        let bound = (!capabilities.grows).then(|| length.wrapping_shr(geometry.cluster_bits()));
        let own = self.refcounts.own_clusters();
        let mut source = Current { storage, refcounts: &mut self.refcounts, own: own.clone() };
        let new = NewRefcounts::lay_out(geometry, &mut source, bound)?;
        let written = new.write(storage, &mut source, progress);
        self.unsynced = true;
        if capabilities.grows {
            // Free clusters behind the old end may hold bytes now: they do not read as zeros any more.
            self.opened_length = self.opened_length.max(storage.len().unwrap_or(u64::MAX));
        }
        if let Err(error) = written {
            if capabilities.grows {
                let _ = storage.set_len(length);
            }
            return Err(error);
        }
        self.barrier(storage)?;
        new.name_in(&mut self.header.header);
        storage.write_at(0, &self.header.header.emit()).map_err(|error| self.poison(&error))?;
        self.unsynced = true;
        self.barrier(storage)?;
        self.geometry = geometry;
        let (offset, clusters) = new.table_place();
        self.refcounts = Refcounts::load(storage, geometry, offset, clusters).map_err(|error| self.give_up(&error))?;
        self.refcounts.remember_blocks().map_err(|error| self.give_up(&error))?;
        if self.options.pass_discard_other {
            for cluster in own {
                // Advisory: the space is free inside the image in any case.
                let _ = storage.discard(geometry.host_start(HostCluster::new(cluster)).get(), geometry.cluster_size());
            }
        }
        Ok(())
    }

    /// The header has changed, and memory cannot follow: nothing is written any more.
    fn give_up(&mut self, error: &Error) -> Error {
        let why = alloc::format!("{error}");
        self.poisoned = Some(why.clone());
        ErrorKind::Poisoned(why).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::read_refcount;
    use crate::storage::MemoryStorage;
    use std::string::ToString;

    /// Refcounts by cluster, and clusters that must be left alone.
    struct Given(Vec<u64>, BTreeSet<u64>);

    impl RefcountSource for Given {
        fn next_used(&mut self, from: u64) -> Result<Option<u64>> {
            let at = usize::try_from(from).unwrap_or(usize::MAX);
            Ok((from..).zip(self.0.get(at..).unwrap_or_default()).find(|(_, r)| **r > 0).map(|(cluster, _)| cluster))
        }

        fn refcounts(&mut self, first: u64, into: &mut [u64]) -> Result<()> {
            for (cluster, value) in (first..).zip(into) {
                *value = usize::try_from(cluster).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0);
            }
            Ok(())
        }

        fn is_reserved(&self, cluster: u64) -> bool {
            self.1.contains(&cluster)
        }
    }

    /// Every refcount of the structure that was written.
    fn all(storage: &MemoryStorage, new: &NewRefcounts, clusters: u64) -> Vec<u64> {
        let geometry = new.geometry;
        let (offset, table_clusters) = new.table_place();
        let mut refcounts = Refcounts::load(storage, geometry, offset, table_clusters).unwrap();
        (0..clusters).map(|cluster| refcounts.get(storage, HostCluster::new(cluster)).unwrap()).collect()
    }

    #[test]
    fn the_structure_counts_itself_and_what_is_given() {
        for order in 0..=6 {
            let geometry = Geometry::new(3, 9, order, false, false, 1 << 20).unwrap();
            for used in [1u64, 60, 600, 5000, 40_000] {
                // Some gaps, of which some are not to be touched; then everything is in use.
                let given: Vec<u64> = (0..used).map(|n| u64::from(n % 50 != 3)).collect();
                let reserved: BTreeSet<u64> = (0..used).filter(|n| n % 100 == 3).collect();
                let mut source = Given(given.clone(), reserved.clone());
                let new = NewRefcounts::lay_out(geometry, &mut source, None).unwrap();
                let storage = MemoryStorage::new();
                let mut told = Vec::new();
                new.write(&storage, &mut source, &mut |done, total| told.push((done, total))).unwrap();
                assert_eq!(told.last().unwrap().0, told.last().unwrap().1);
                let (offset, table_clusters) = new.table_place();
                let first = geometry.host_cluster(offset).get();
                let mut own: BTreeSet<u64> = new.blocks.values().copied().collect();
                assert!(own.iter().all(|block| !(first..first + table_clusters).contains(block)));
                own.extend(first..first + table_clusters);
                assert!(own.is_disjoint(&reserved));
                let end = used.max(*own.last().unwrap() + 1);
                for (cluster, refcount) in (0u64..).zip(all(&storage, &new, end + 100)) {
                    let expected = given.get(cluster as usize).copied().unwrap_or(0);
                    assert!(expected == 0 || !own.contains(&cluster), "{order}, {used}: {cluster:#x}");
                    assert_eq!(refcount, expected + u64::from(own.contains(&cluster)), "{order}, {used}: {cluster:#x}");
                }
                let mut header = Header::new(3, 9, 1 << 20);
                new.name_in(&mut header);
                assert_eq!((header.refcount_table_offset, header.refcount_order), (offset.get(), order));
            }
        }
    }

    #[test]
    fn a_device_bounds_it_and_gaps_are_enough() {
        let geometry = Geometry::new(3, 9, 4, false, false, 1 << 20).unwrap();
        let given: Vec<u64> = (0..256).map(|n| u64::from(n != 7 && n != 100)).collect();
        let mut source = Given(given, BTreeSet::new());
        let new = NewRefcounts::lay_out(geometry, &mut source, Some(256)).unwrap();
        assert_eq!((new.table_first, new.blocks.clone()), (100, BTreeMap::from([(0, 7)])));
        source.0[7] = 1;
        let error = NewRefcounts::lay_out(geometry, &mut source, Some(256)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoSpace(_)), "{error}");
        source.0[9] = 0x1_0000;
        let error = NewRefcounts::lay_out(geometry, &mut source, None).unwrap_err();
        assert!(error.to_string().contains("offset 0x1200 has a refcount of 65536"), "{error}");
    }

    #[test]
    fn a_block_far_away_costs_no_blocks_between() {
        let geometry = Geometry::new(3, 9, 4, false, false, 1 << 20).unwrap();
        let mut given = vec![0u64; 10_000];
        (given[0], given[9_999]) = (1, 3);
        let mut source = Given(given, BTreeSet::new());
        let new = NewRefcounts::lay_out(geometry, &mut source, None).unwrap();
        assert_eq!(new.blocks.keys().copied().collect::<Vec<_>>(), [0, 39]);
        let storage = MemoryStorage::new();
        new.write(&storage, &mut source, &mut |_, _| ()).unwrap();
        let mut block = vec![0u8; 512];
        storage.read_at(new.blocks[&39] * 512, &mut block).unwrap();
        assert_eq!(read_refcount(&block, 9_999 % 256, 4), Some(3));
    }
}
