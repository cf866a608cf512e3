//! The host side, cluster by cluster: what lies where in the file, who owns it, and how often it is referred to.

use core::ops::Range;

use alloc::vec;
use alloc::vec::Vec;

use super::claims::{Claims, MAX_ANALYSIS_MAP_BYTES, Paged};
use super::ledger::SpaceClass;
use crate::error::{Result, Structure};
use crate::format::{EntryError, Geometry, HeaderArea, HostOffset, L2Entry, L2Run, Subclusters, read_refcount};
use crate::operations::walk::{
    BlockPlace, Fault, HostReference, L2Table, RefcountTable, Source, TableReader, Uses, Visitor, Walk,
};
use crate::storage::ReadStorage;

/// Which clusters [`clusters`] tells of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Host offsets; clusters that lie in it in part are told whole. Memory is taken for this range alone.
    pub range: Range<u64>,
    /// Tell of the external data file, which has this length in bytes, instead of the image file.
    pub data_file: Option<u64>,
}

impl Default for ClusterOptions {
    /// The whole image file.
    fn default() -> Self {
        Self { range: 0..u64::MAX, data_file: None }
    }
}

/// Clusters in a row that are alike: of one class, with one refcount and one number of references, and, where they
/// hold guest data, one behind the other in the guest too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClusterRun {
    /// First byte in the file; a multiple of the cluster size.
    pub host_offset: u64,
    /// Bytes; a multiple of the cluster size but at the end of the file.
    pub length: u64,
    /// What they are, by the first of the classes that apply (docs/analyze.md). Clusters with compressed data are
    /// [`SpaceClass::CompressedData`] as a whole, and clusters with extended L2 entries live as soon as one part is.
    pub class: SpaceClass,
    /// What they are for their owner; `None` where nothing refers to them.
    pub structure: Option<Structure>,
    /// The guest byte that the first byte stores, or that an L2 table begins with. Of a cluster with several
    /// compressed streams, or several owners: the first in the order of the walk, the active image before snapshots.
    pub guest_offset: Option<u64>,
    /// Their refcount; `None` where it cannot be read, and in a data file, which has none.
    pub refcount: Option<u64>,
    /// References that were found.
    pub references: u64,
    /// The active image is among the owners.
    pub active: bool,
    /// A snapshot is among the owners.
    pub in_snapshots: bool,
}

impl ClusterRun {
    /// Takes in `next`, if it goes on where this run ends, alike in all that is told.
    fn take_in(&mut self, next: &Self) -> bool {
        let follows = match (self.guest_offset, next.guest_offset) {
            (None, None) => true,
            // Streams of one cluster lie anywhere in the guest.
            (Some(_), Some(_)) if self.structure == Some(Structure::CompressedCluster) => true,
            (Some(guest), Some(next)) if self.structure == Some(Structure::DataCluster) => {
                guest.checked_add(self.length) == Some(next)
            }
            (Some(_) | None, _) => false,
        };
        let alike = (self.class, self.structure, self.refcount, self.references, self.active, self.in_snapshots)
            == (next.class, next.structure, next.refcount, next.references, next.active, next.in_snapshots);
        if !alike || !follows {
            return false;
        }
        self.length = self.length.saturating_add(next.length);
        true
    }
}

/// Tells `visit` every cluster of a range of the file, in its order, as few runs. `progress` is called with what is
/// done of a total.
///
/// Broken images are told as far as references can be followed. Clusters that several owners claim count all of them,
/// and are of the first class that applies.
///
/// # Limits
/// 24 bytes for each cluster of the range that something refers to (in pages of 4096), [`MAX_ANALYSIS_MAP_BYTES`] at
/// most: beyond that, ask for one range after the other.
///
/// # Errors
/// A header that [`HeaderArea::validate_for_check`] refuses; [`crate::ErrorKind::Limit`]; a storage that fails where
/// nothing can go on; what `visit` returns.
pub fn clusters<S: ReadStorage + ?Sized>(
    storage: &S,
    area: &HeaderArea,
    options: &ClusterOptions,
    visit: &mut dyn FnMut(ClusterRun) -> Result<()>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let walk = Walk::new(storage, area)?;
    let (geometry, file_length) = (*walk.geometry(), walk.file_length());
    let length = options.data_file.unwrap_or(file_length);
    let end = geometry.clusters_for(options.range.end.min(length));
    let first = geometry.host_cluster(HostOffset::new(options.range.start)).get().min(end);
    let mut owners = Owners {
        geometry,
        first,
        data_file: options.data_file.is_some(),
        cells: Paged::new(end.saturating_sub(first), MAX_ANALYSIS_MAP_BYTES)?,
        used_end: 0,
        progress,
    };
    walk.run(&mut owners)?;
    let mut refcounts = match walk.refcount_table() {
        Ok(table) if !owners.data_file => Refcounts::new(storage, file_length, &geometry, Some(table)),
        Ok(_) | Err(_) => Refcounts::new(storage, file_length, &geometry, None),
    };
    let used_end = owners.used_end.max(refcounts.used_end());
    let mut pending: Option<ClusterRun> = None;
    let mut cluster = first;
    while cluster < end {
        let (cell, alike) = owners.alike(cluster);
        // What lies behind the last used cluster is of another class.
        let alike = if cluster < used_end { alike.min(used_end.saturating_sub(cluster)) } else { alike };
        let (refcount, count) = refcounts.run(cluster, alike);
        let run = cell.run(&geometry, cluster, count, length, refcount, used_end);
        cluster = cluster.saturating_add(count);
        let goes_on = pending.as_mut().is_some_and(|before| before.take_in(&run));
        if !goes_on && let Some(done) = pending.replace(run) {
            visit(done)?;
        }
    }
    pending.map_or(Ok(()), visit)
}

/// What is known of one cluster; the default where nothing refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cell {
    /// The guest offset and one; 0 without.
    guest_and_one: u64,
    references: u32,
    claims: Claims,
    structure: Option<Structure>,
    active: bool,
    in_snapshots: bool,
}

impl Cell {
    fn run(
        &self,
        geometry: &Geometry,
        cluster: u64,
        count: u64,
        file_length: u64,
        refcount: Option<u64>,
        used_end: u64,
    ) -> ClusterRun {
        let size = geometry.cluster_size();
        let host_offset = cluster.saturating_mul(size);
        let end = cluster.saturating_add(count).saturating_mul(size).min(file_length);
        let unowned = match refcount {
            Some(1..) => SpaceClass::Leaked,
            Some(0) | None if cluster < used_end => SpaceClass::Free,
            Some(0) | None => SpaceClass::BeyondLastUsed,
        };
        ClusterRun {
            host_offset,
            length: end.saturating_sub(host_offset),
            class: self.claims.class().unwrap_or(unowned),
            structure: self.structure,
            guest_offset: self.guest_and_one.checked_sub(1),
            refcount,
            references: self.references.into(),
            active: self.active,
            in_snapshots: self.in_snapshots,
        }
    }

    /// Another owner of the cluster.
    fn own(&mut self, structure: Structure, claims: Claims, guest: Option<u64>, uses: Uses) {
        let before = self.claims.rank();
        let uses_total = u32::try_from(uses.total()).unwrap_or(u32::MAX);
        self.references = self.references.saturating_add(uses_total);
        self.claims = self.claims.with(claims);
        self.active |= uses.active > 0;
        self.in_snapshots |= uses.snapshots > 0;
        if self.structure.is_none() || claims.rank() < before {
            self.structure = Some(structure);
            self.guest_and_one = guest.map_or(0, |guest| guest.saturating_add(1));
        }
    }
}

/// Meets the walk and notes the owners of clusters within the range.
struct Owners<'p> {
    geometry: Geometry,
    /// First cluster of the range.
    first: u64,
    data_file: bool,
    cells: Paged<Cell>,
    /// The cluster after the last that something refers to, in the whole file.
    used_end: u64,
    progress: &'p mut dyn FnMut(u64, u64),
}

impl Owners<'_> {
    /// What is known of a cluster, and how many from it on are known to be the same without looking at each.
    fn alike(&self, cluster: u64) -> (Cell, u64) {
        let at = cluster.saturating_sub(self.first);
        match self.cells.at(at) {
            cell if cell == Cell::default() => (cell, self.cells.run(at).1),
            cell => (cell, 1),
        }
    }

    /// Clusters in a row have one more owner; `guest` tells the guest offset of each.
    fn own(
        &mut self,
        clusters: Range<u64>,
        (structure, claims): (Structure, Claims),
        uses: Uses,
        guest: impl Fn(u64) -> Option<u64>,
    ) -> Result<()> {
        self.used_end = self.used_end.max(clusters.end);
        let window_end = self.first.saturating_add(self.cells.clusters());
        for cluster in clusters.start.max(self.first)..clusters.end.min(window_end) {
            if let Some(cell) = self.cells.at_mut(cluster.saturating_sub(self.first))? {
                cell.own(structure, claims, guest(cluster), uses);
            }
        }
        Ok(())
    }

    /// The clusters that the bytes of a table or of a compressed stream lie in: one guest offset for all of them.
    fn own_bytes(
        &mut self,
        offset: u64,
        length: u64,
        what: (Structure, Claims),
        uses: Uses,
        guest: Option<u64>,
    ) -> Result<()> {
        let Some(more) = length.checked_sub(1) else { return Ok(()) };
        let first = self.geometry.host_cluster(HostOffset::new(offset)).get();
        let last = self.geometry.host_cluster(HostOffset::new(offset.saturating_add(more))).get();
        self.own(first..last.saturating_add(1), what, uses, |_| guest)
    }
}

impl Visitor for Owners<'_> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        // What L2 entries name comes with the runs.
        let Some(claims) = Claims::of_metadata(reference.target, reference.uses) else { return Ok(()) };
        if self.data_file {
            return Ok(());
        }
        let guest = match reference.source {
            Source::L1(slot) => Some(slot.index.saturating_mul(self.geometry.l2_coverage())),
            _ => None,
        };
        self.own_bytes(reference.host_offset, reference.length, (reference.target, claims), reference.uses, guest)
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        Ok(())
    }

    fn l2_run(&mut self, table: &L2Table, run: &L2Run) -> Result<()> {
        let guest = table.guest_offset(run.first, &self.geometry);
        match run.entry {
            L2Entry::Plain { host: None, .. } => Ok(()),
            L2Entry::Plain { host: Some(host), parts } => {
                if self.geometry.data_file() != self.data_file {
                    return Ok(());
                }
                let first = self.geometry.host_cluster(host.offset).get();
                let live = parts.allocated & Subclusters::full_mask(&self.geometry) != 0;
                let claims = Claims::of_data(if live { Claims::LIVE } else { Claims::MAPPED }, table.uses);
                let size = self.geometry.cluster_size();
                let guest =
                    |cluster: u64| Some(guest.saturating_add(cluster.saturating_sub(first).saturating_mul(size)));
                let clusters = first..first.saturating_add(run.count);
                self.own(clusters, (Structure::DataCluster, claims), table.uses, guest)
            }
            // Such entries refer to nothing; see the walk.
            L2Entry::Compressed(_)
                if run.faults.contains(EntryError::CompressedInDataFile)
                    || run.faults.contains(EntryError::CompressedBitmap) =>
            {
                Ok(())
            }
            L2Entry::Compressed(range) => {
                let what = (Structure::CompressedCluster, Claims::of_compressed(table.uses));
                self.own_bytes(range.offset.get(), range.length, what, table.uses, Some(guest))
            }
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}

/// Refcounts in the order of the file, one block in memory.
struct Refcounts<'a, S: ?Sized> {
    reader: TableReader<'a, S>,
    table: Option<RefcountTable>,
    per_block: u64,
    order: u32,
    /// The block in `bytes`, and whether it could be read.
    loaded: Option<(u64, Loaded)>,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Zeros,
    Bytes,
    Unreadable,
}

impl<'a, S: ReadStorage + ?Sized> Refcounts<'a, S> {
    fn new(storage: &'a S, file_length: u64, geometry: &Geometry, table: Option<RefcountTable>) -> Self {
        Self {
            reader: TableReader::new(storage, file_length),
            table,
            per_block: geometry.refcount_block_entries(),
            order: geometry.refcount_order(),
            loaded: None,
            bytes: vec![0; geometry.cluster_len()],
        }
    }

    /// The refcount of a cluster, and how many of at most `limit` from it on have the same.
    fn run(&mut self, cluster: u64, limit: u64) -> (Option<u64>, u64) {
        let Some(block) = cluster.checked_div(self.per_block).filter(|_| self.table.is_some()) else {
            return (None, limit.max(1));
        };
        let index = cluster.saturating_sub(block.saturating_mul(self.per_block));
        let rest = self.per_block.saturating_sub(index).min(limit).max(1);
        match self.load(block) {
            Loaded::Zeros => (Some(0), rest),
            Loaded::Unreadable => (None, rest),
            Loaded::Bytes => {
                let value = self.value(index);
                let mut count = 1u64;
                while count < rest && self.value(index.saturating_add(count)) == value {
                    count = count.saturating_add(1);
                }
                (Some(value), count)
            }
        }
    }

    /// The cluster after the last whose refcount is not 0.
    fn used_end(&mut self) -> u64 {
        let blocks = self.table.as_ref().map_or(0, |table| u64::try_from(table.entries().len()).unwrap_or(u64::MAX));
        for block in (0..blocks).rev() {
            if self.load(block) != Loaded::Bytes {
                continue;
            }
            if let Some(last) = (0..self.per_block).rev().find(|&index| self.value(index) != 0) {
                return block.saturating_mul(self.per_block).saturating_add(last).saturating_add(1);
            }
        }
        0
    }

    fn value(&self, index: u64) -> u64 {
        read_refcount(&self.bytes, index, self.order).unwrap_or(0)
    }

    fn load(&mut self, block: u64) -> Loaded {
        if let Some((held, loaded)) = self.loaded
            && held == block
        {
            return loaded;
        }
        let place = self.table.as_ref().map_or(BlockPlace::None, |table| table.block(block));
        let loaded = match place {
            BlockPlace::None => Loaded::Zeros,
            BlockPlace::Unaligned(_) => Loaded::Unreadable,
            BlockPlace::At(offset) => match self.reader.read(offset.get(), &mut self.bytes) {
                Ok(true) => Loaded::Bytes,
                Ok(false) => Loaded::Zeros,
                Err(_) => Loaded::Unreadable,
            },
        };
        self.loaded = Some((block, loaded));
        loaded
    }
}
