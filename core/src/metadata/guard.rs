//! Keeps guest data, discards and new clusters off the metadata of a broken image: one wrong entry, or a refcount that
//! calls a table free, must not cost the header.
//!
//! Known places are the header, the active L1 table, the refcount table and its blocks, and the active L2 tables.
//! Finding every overlap is the work of a check, not of each write.

use alloc::collections::BTreeSet;

use super::Metadata;
use crate::error::{Error, Result, Structure};
use crate::format::{HostCluster, HostOffset, L1Entry};

/// L1 tables up to this many entries have the clusters of their L2 tables remembered; of longer ones, those in the cache
/// are protected.
const REMEMBERED_TABLES: u64 = 1 << 16;

/// What a broken image would have us do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    /// A guest cluster lies there.
    GuestData,
    /// It is marked as free.
    Allocation,
    /// An L1 entry names it as an L2 table.
    Table,
}

impl Metadata {
    /// Remembers where the tables are; refuses an image in which they lie on each other. Before the first change.
    pub(crate) fn guard(&mut self) -> Result<()> {
        let fixed = self.fixed_places();
        for (n, &(first, count, structure)) in fixed.iter().enumerate() {
            for &(other_first, other_count, other) in fixed.iter().skip(n.saturating_add(1)) {
                if overlap(first, count, other_first, other_count) {
                    let what = alloc::format!("the {other} lies on the {structure}");
                    return Err(Error::corrupt(other, what).at_host(self.start(other_first)));
                }
            }
        }
        self.refcounts.remember_blocks()?;
        for (first, count, structure) in fixed {
            if let Some(block) = self.refcounts.block_within(first, count) {
                let what = alloc::format!("a refcount block lies on the {structure}");
                return Err(Error::corrupt(Structure::RefcountBlock, what).at_host(self.start(block)));
            }
        }
        let few = self.l1_len() <= REMEMBERED_TABLES;
        self.tables = few.then(|| {
            let decoded = self.l1.iter().filter_map(|&raw| L1Entry::decode(raw, &self.geometry).ok()?.table());
            decoded.map(|table| self.geometry.host_cluster(table.offset).get()).collect::<BTreeSet<u64>>()
        });
        Ok(())
    }

    /// Refuses clusters that hold metadata.
    pub(crate) fn refuse_metadata(&self, first: HostCluster, count: u64, touch: Touch) -> Result<()> {
        let (from, end) = (first.get(), first.get().saturating_add(count));
        let fixed = self.fixed_places().into_iter().find(|&(start, length, _)| overlap(from, count, start, length));
        let found = match fixed {
            Some((start, _, structure)) => Some((start.max(from), structure)),
            None => self.refcounts.block_within(from, count).map(|block| (block, Structure::RefcountBlock)),
        };
        let table = || match &self.tables {
            Some(tables) => tables.range(from..end).next().copied(),
            None => self.slices.any_within(self.start(from), self.start(end)).then_some(from),
        };
        let found = match found {
            None if touch != Touch::Table => table().map(|table| (table, Structure::L2Table)),
            known => known,
        };
        let Some((cluster, structure)) = found else { return Ok(()) };
        let what = match touch {
            Touch::GuestData => "a guest cluster lies on it: repair the image first",
            Touch::Allocation => "its clusters are marked as free: repair the refcounts first",
            Touch::Table => "an L1 entry names it as its L2 table: repair the image first",
        };
        Err(Error::corrupt(structure, what).at_host(self.start(cluster)))
    }

    /// The cluster behind the last one that is known to hold metadata.
    pub(super) fn end_of_tables(&self) -> HostCluster {
        let fixed = self.fixed_places().into_iter().map(|(first, count, _)| first.saturating_add(count));
        let behind = |cluster: u64| cluster.saturating_add(1);
        let table = self.tables.as_ref().and_then(|tables| tables.last().copied()).map(behind);
        let ends = fixed.chain(table).chain(self.refcounts.last_block().map(behind));
        HostCluster::new(ends.max().unwrap_or(1))
    }

    /// An L2 table was linked or dropped.
    pub(super) fn remember_table(&mut self, table: HostOffset, linked: bool) {
        let cluster = self.geometry.host_cluster(table).get();
        if let Some(tables) = &mut self.tables {
            if linked {
                tables.insert(cluster)
            } else {
                tables.remove(&cluster)
            };
        }
    }

    /// First cluster, clusters and name of what has one place.
    fn fixed_places(&self) -> [(u64, u64, Structure); 3] {
        let cluster = |offset: u64| self.geometry.host_cluster(HostOffset::new(offset)).get();
        let l1_clusters = self.geometry.clusters_for(self.l1_len().saturating_mul(8));
        let (refcount_table, refcount_table_clusters) = self.refcounts.table_place();
        [
            (0, 1, Structure::Header),
            (cluster(self.header.header.l1_table_offset), l1_clusters, Structure::L1Table),
            (cluster(refcount_table.get()), refcount_table_clusters, Structure::RefcountTable),
        ]
    }

    fn start(&self, cluster: u64) -> u64 {
        self.geometry.host_start(HostCluster::new(cluster)).get()
    }
}

fn overlap(a: u64, a_count: u64, b: u64, b_count: u64) -> bool {
    a < b.saturating_add(b_count) && b < a.saturating_add(a_count)
}
