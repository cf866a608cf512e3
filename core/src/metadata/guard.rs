//! Overlap checks: guest data, discards and new clusters are kept off the metadata of a broken image. One wrong entry, or
//! a refcount that calls a table free, must not cost the header.
//!
//! Every write goes to a place that was judged here first: where a guest cluster is written in place, where clusters are
//! allocated, where a table is changed. Which structures are checked is [`OverlapChecks`]. A detected overlap marks the
//! image corrupt, durably, and nothing is written any more: [`Metadata::forbid_overlap`]. References that are merely
//! dropped are refused without that: [`Metadata::refuse_metadata`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::snapshot_table::{places_of, read_snapshot_table, visit_inactive_l1};
use super::{Metadata, OverlapChecks};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{HostCluster, HostOffset, IncompatibleFeatures, L1Entry, Snapshot};
use crate::storage::{ReadStorage, Storage};

/// Where the header says its incompatible features.
const INCOMPATIBLE: u64 = 72;

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

/// Clusters of L2 tables: sorted as they were found, with what came and went since.
#[derive(Debug, Default)]
pub(super) struct TableSet {
    sorted: Vec<u64>,
    added: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

impl TableSet {
    fn new(tables: impl Iterator<Item = u64>) -> Self {
        let mut sorted: Vec<u64> = tables.collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self { sorted, ..Self::default() }
    }

    /// The first from `from` on, before `end`.
    fn first_within(&self, from: u64, end: u64) -> Option<u64> {
        let start = self.sorted.partition_point(|&table| table < from);
        let known = self.sorted.get(start..).unwrap_or_default().iter().take_while(|&&table| table < end);
        let known = known.copied().find(|table| !self.gone.contains(table));
        let added = if from < end { self.added.range(from..end).next().copied() } else { None };
        known.into_iter().chain(added).min()
    }

    fn insert(&mut self, table: u64) {
        if self.sorted.binary_search(&table).is_ok() {
            self.gone.remove(&table);
        } else {
            self.added.insert(table);
        }
    }

    fn remove(&mut self, table: u64) {
        if !self.added.remove(&table) && self.sorted.binary_search(&table).is_ok() {
            self.gone.insert(table);
        }
    }

    fn last(&self) -> Option<u64> {
        let known = self.sorted.iter().rev().copied().find(|table| !self.gone.contains(table));
        known.max(self.added.last().copied())
    }
}

/// Where the tables of snapshots are.
#[derive(Debug, Default)]
pub(super) struct Inactive {
    /// The header's words for the snapshot table when this was found: it holds as long as they are the same.
    table: (u64, u32),
    /// First cluster, and clusters with what they are; of several that begin at one place, the longest.
    places: BTreeMap<u64, (u64, Structure)>,
    /// The most clusters that one of them has.
    longest: u64,
    /// L2 tables, where these are checked.
    tables: TableSet,
}

/// Nothing in place of what makes no sense; a storage that fails is told.
fn sensible<T: Default>(read: Result<T>) -> Result<T> {
    match read {
        Err(error) if !matches!(error.kind(), ErrorKind::Storage(_)) => Ok(T::default()),
        other => other,
    }
}

impl Metadata {
    /// Remembers where the tables are; refuses an image in which they lie on each other. Before the first change.
    ///
    /// # Errors
    /// Such an image; a storage that fails: what snapshots have would not be protected.
    pub(crate) fn guard(&mut self, storage: &impl ReadStorage) -> Result<()> {
        self.guard_active()?;
        self.inactive = self.find_inactive(storage)?;
        Ok(())
    }

    /// The same when the snapshot table names other snapshots, in so many bytes. Their L2 tables were found before that,
    /// by [`Metadata::inactive_tables`] or [`Metadata::inactive_tables_with`]: so nothing is read that could fail now.
    pub(crate) fn guard_snapshots(&mut self, snapshots: &[Snapshot], bytes: u64, l2_tables: Vec<u64>) -> Result<()> {
        self.guard_active()?;
        self.inactive = self.inactive_of(snapshots, bytes, l2_tables);
        Ok(())
    }

    /// Whether it is known where the snapshots have their tables: not where an operation on snapshots stopped half-way.
    pub(crate) fn guards_snapshots(&self) -> bool {
        let header = &self.header.header;
        header.snapshot_count == 0 || self.inactive.table == (header.snapshots_offset, header.snapshot_count)
    }

    /// The same when the active tables have become others, and those of the snapshots are where they were.
    pub(crate) fn guard_active(&mut self) -> Result<()> {
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
        self.tables = TableSet::new(self.l1.iter().filter_map(|&raw| self.table_cluster(raw)));
        Ok(())
    }

    /// What snapshots have. A table that makes no sense protects nothing: a check tells of it.
    fn find_inactive(&self, storage: &impl ReadStorage) -> Result<Inactive> {
        let header = &self.header.header;
        let wanted = OverlapChecks::SNAPSHOT_TABLE.with(OverlapChecks::INACTIVE_L1).with(OverlapChecks::INACTIVE_L2);
        if header.snapshot_count == 0 || self.overlap.without(wanted) == self.overlap {
            return Ok(self.inactive_of(&[], 0, Vec::new()));
        }
        let (snapshots, bytes) = sensible(read_snapshot_table(header, storage))?;
        Ok(self.inactive_of(&snapshots, bytes, self.inactive_tables(storage, &snapshots)?))
    }

    fn inactive_of(&self, snapshots: &[Snapshot], bytes: u64, l2_tables: Vec<u64>) -> Inactive {
        let header = &self.header.header;
        let table = (header.snapshots_offset, header.snapshot_count);
        let tables = TableSet::new(l2_tables.into_iter());
        let mut found = Inactive { table, places: BTreeMap::new(), longest: 0, tables };
        for (first, count, structure) in places_of(header, snapshots, bytes, &self.geometry) {
            let place = found.places.entry(first.get()).or_insert((count, structure));
            place.0 = place.0.max(count);
            found.longest = found.longest.max(count);
        }
        found
    }

    /// The clusters of the L2 tables that snapshots name; none where these are not checked.
    ///
    /// # Errors
    /// A storage that fails.
    pub(crate) fn inactive_tables(&self, storage: &impl ReadStorage, snapshots: &[Snapshot]) -> Result<Vec<u64>> {
        let mut tables = BTreeSet::new();
        if self.overlap.contains(OverlapChecks::INACTIVE_L2) {
            let read = visit_inactive_l1(snapshots, &self.geometry, storage, &mut |_, raw| {
                tables.extend(self.table_cluster(raw));
                Ok(())
            });
            sensible(read)?;
        }
        Ok(tables.into_iter().collect())
    }

    /// The same for the snapshots that there are and one more, of this L1 table.
    pub(crate) fn inactive_tables_with(&self, l1: &[u64]) -> Vec<u64> {
        if !self.overlap.contains(OverlapChecks::INACTIVE_L2) {
            return Vec::new();
        }
        let more = l1.iter().filter_map(|&raw| self.table_cluster(raw));
        self.inactive.tables.sorted.iter().copied().chain(more).collect()
    }

    fn table_cluster(&self, raw: u64) -> Option<u64> {
        let table = L1Entry::decode(raw, &self.geometry).ok()?.table()?;
        Some(self.geometry.host_cluster(table.offset).get())
    }

    /// Refuses clusters that hold tables of the active image.
    pub(crate) fn refuse_metadata(&self, first: HostCluster, count: u64, touch: Touch) -> Result<()> {
        match self.metadata_within(first.get(), count, touch) {
            None => Ok(()),
            Some((cluster, structure)) => Err(self.overlap_error(cluster, structure, touch)),
        }
    }

    fn overlap_error(&self, cluster: u64, structure: Structure, touch: Touch) -> Error {
        let what = match touch {
            Touch::GuestData => "a guest cluster lies on it: repair the image first",
            Touch::Allocation => "its clusters are marked as free: repair the refcounts first",
            Touch::Table => "an L1 entry names it as its L2 table: repair the image first",
        };
        Error::corrupt(structure, what).at_host(self.start(cluster))
    }

    /// Refuses to write to clusters that hold metadata: marks the image corrupt, durably, and writes nothing more.
    /// Version 2 has no such mark.
    pub(crate) fn forbid_overlap(
        &mut self,
        storage: &impl Storage,
        first: HostCluster,
        count: u64,
        touch: Touch,
    ) -> Result<()> {
        let active = self.metadata_within(first.get(), count, touch);
        let found = active.or_else(|| self.rare_within(first.get(), count, touch));
        let Some((cluster, structure)) = found else { return Ok(()) };
        let error = self.overlap_error(cluster, structure, touch);
        // Where the header is gone there is nothing to mark: a file that somebody else cut would only become another one.
        let header_is_there = storage.len().is_ok_and(|length| length >= INCOMPATIBLE.saturating_add(8));
        let header = &mut self.header.header;
        if header.version >= 3 && header_is_there {
            header.incompatible = header.incompatible.with(IncompatibleFeatures::CORRUPT);
            let bits = header.incompatible.bits().to_be_bytes();
            storage.write_at(INCOMPATIBLE, &bits)?;
            storage.barrier()?;
        }
        let why = alloc::format!("the image is corrupt, and a write on its metadata was prevented: {error}");
        self.poisoned = Some(why);
        Err(error)
    }

    /// The first cluster of a range that holds a table of the active image, of a class that is checked.
    fn metadata_within(&self, from: u64, count: u64, touch: Touch) -> Option<(u64, Structure)> {
        let end = from.saturating_add(count);
        let checks = |class| self.overlap.contains(class);
        let fixed = self.fixed_places().into_iter().zip(FIXED_CLASSES);
        let mut fixed = fixed.filter(|(_, class)| checks(*class)).map(|(place, _)| place);
        if let Some((start, _, structure)) = fixed.find(|&(start, length, _)| overlap(from, count, start, length)) {
            return Some((start.max(from), structure));
        }
        if checks(OverlapChecks::REFCOUNT_BLOCK)
            && let Some(block) = self.refcounts.block_within(from, count)
        {
            return Some((block, Structure::RefcountBlock));
        }
        if touch != Touch::Table
            && checks(OverlapChecks::ACTIVE_L2)
            && let Some(table) = self.tables.first_within(from, end)
        {
            return Some((table, Structure::L2Table));
        }
        None
    }

    /// What most images do not have.
    fn rare_within(&self, from: u64, count: u64, touch: Touch) -> Option<(u64, Structure)> {
        let end = from.saturating_add(count);
        let extension = |offset: u64, bytes: u64| {
            let first = self.geometry.host_cluster(HostOffset::new(offset)).get();
            let clusters = self.geometry.clusters_for(bytes);
            overlap(from, count, first, clusters).then_some(first.max(from))
        };
        if self.overlap.contains(OverlapChecks::BITMAP_DIRECTORY)
            && let Some(bitmaps) = self.header.consistent_bitmaps()
            && let Some(cluster) = extension(bitmaps.directory_offset, bitmaps.directory_size)
        {
            return Some((cluster, Structure::BitmapDirectory));
        }
        if self.overlap.contains(OverlapChecks::MAIN_HEADER)
            && let Some((offset, length)) = self.header.crypto_header()
            && let Some(cluster) = extension(offset, length)
        {
            return Some((cluster, Structure::CryptoHeader));
        }
        let header = &self.header.header;
        let inactive = &self.inactive;
        if header.snapshot_count == 0 || !self.guards_snapshots() {
            return None;
        }
        // What begins further below ends before the range.
        let below = from.saturating_sub(inactive.longest);
        let place = inactive.places.range(below..end.max(below)).find(|&(&start, &(length, structure))| {
            let class = match structure {
                Structure::SnapshotTable => OverlapChecks::SNAPSHOT_TABLE,
                _ => OverlapChecks::INACTIVE_L1,
            };
            self.overlap.contains(class) && overlap(from, count, start, length)
        });
        if let Some((&start, &(_, structure))) = place {
            return Some((start.max(from), structure));
        }
        let table = if touch == Touch::Table { None } else { inactive.tables.first_within(from, end) };
        table.map(|table| (table, Structure::L2Table))
    }

    /// The cluster behind the last one that is known to hold metadata.
    pub(super) fn end_of_tables(&self) -> HostCluster {
        let fixed = self.fixed_places().into_iter().map(|(first, count, _)| first.saturating_add(count));
        let behind = |cluster: u64| cluster.saturating_add(1);
        let table = self.tables.last().map(behind);
        let ends = fixed.chain(table).chain(self.refcounts.last_block().map(behind));
        HostCluster::new(ends.max().unwrap_or(1))
    }

    /// An L2 table was linked or dropped.
    pub(super) fn remember_table(&mut self, table: HostOffset, linked: bool) {
        let cluster = self.geometry.host_cluster(table).get();
        if linked {
            self.tables.insert(cluster);
        } else {
            self.tables.remove(cluster);
        }
    }

    /// First cluster, clusters and name of what has one place; their classes are [`FIXED_CLASSES`].
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

const FIXED_CLASSES: [OverlapChecks; 3] =
    [OverlapChecks::MAIN_HEADER, OverlapChecks::ACTIVE_L1, OverlapChecks::REFCOUNT_TABLE];

fn overlap(a: u64, a_count: u64, b: u64, b_count: u64) -> bool {
    a < b.saturating_add(b_count) && b < a.saturating_add(a_count)
}
