//! Tables, entry by entry.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::{EntryRange, Inspector, Shown};
use crate::error::{Error, Result, Structure};
use crate::format::{
    BitmapEntry, BitmapTableEntry, EntryError, Geometry, HostCluster, L1Entry, L2Entry, L2Kind, RawL2Entry, Snapshot,
    decode_refcount_table_entry, read_refcount, refcount_table_offset_bits,
};
use crate::operations::walk::L1Owner;
use crate::operations::{read_bitmaps, read_snapshots};
use crate::storage::ReadStorage;

/// Part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TableReport<T> {
    /// What it is.
    pub structure: Structure,
    /// Its first byte in the file.
    pub host_offset: u64,
    /// Entries of the whole table.
    pub total: u64,
    /// The entries asked for.
    pub entries: Vec<T>,
    /// Where to go on, if the list was cut or the table goes on.
    pub next: Option<u64>,
}

/// Where to find an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableSource {
    /// By an entry of an L1 table.
    L1 {
        /// Which L1 table.
        owner: L1Owner,
        /// Index of the entry.
        index: u64,
    },
    /// By its place in the file, whoever names it or none. Guest offsets count from 0 then.
    Host(u64),
}

/// An L1 entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct L1EntryReport {
    /// Its index.
    pub index: u64,
    /// Its bits.
    pub raw: u64,
    /// The first guest byte that it speaks for.
    pub guest_offset: u64,
    /// The L2 table, if there is one.
    pub l2_offset: Option<u64>,
    /// The COPIED flag.
    pub copied: bool,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// An L2 entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct L2EntryReport {
    /// Its index.
    pub index: u64,
    /// The first guest byte that it speaks for.
    pub guest_offset: u64,
    /// Its bits.
    pub raw: u64,
    /// The bits of the subcluster bitmap; with extended L2 entries.
    pub raw_bitmap: Option<u64>,
    /// What kind of cluster it says.
    pub kind: L2Kind,
    /// The host cluster, or the first byte of the compressed data; in the data file, where there is one.
    pub host_offset: Option<u64>,
    /// Bytes of compressed data, to the end of the last sector.
    pub compressed_length: Option<u64>,
    /// The COPIED flag.
    pub copied: bool,
    /// Subclusters that are allocated, bit by bit; with extended L2 entries.
    pub allocated: Option<u32>,
    /// Subclusters that read as zeros, bit by bit; with extended L2 entries.
    pub zero: Option<u32>,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// An entry of the refcount table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RefcountTableEntryReport {
    /// Its index.
    pub index: u64,
    /// Its bits.
    pub raw: u64,
    /// The refcount block, if there is one.
    pub block_offset: Option<u64>,
    /// The first byte of the file whose refcount the block holds.
    pub host_offset: u64,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// Clusters in a row with one refcount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RefcountRun {
    /// Index of the first in the block.
    pub index: u64,
    /// First byte of the first cluster.
    pub host_offset: u64,
    /// Clusters.
    pub clusters: u64,
    /// Their refcount.
    pub refcount: u64,
}

/// An entry of the snapshot table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotReport {
    /// Its index.
    pub index: u64,
    /// The entry.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub entry: Snapshot,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// Bytes of the virtual disk when it was taken, if it says so.
    pub virtual_size: Option<u64>,
    /// Extra data beyond what this version knows.
    pub unknown_extra_data: Vec<u8>,
}

/// An entry of the bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BitmapReport {
    /// Its index.
    pub index: u64,
    /// The entry.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub entry: BitmapEntry,
    /// Guest bytes that one bit speaks for.
    pub granularity: Option<u64>,
}

/// What an entry of a bitmap table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum BitmapTableState {
    /// All bits are clear.
    AllZeros,
    /// All bits are set.
    AllOnes,
    /// The bits are in a cluster.
    Stored,
}

/// An entry of a bitmap table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BitmapTableEntryReport {
    /// Its index.
    pub index: u64,
    /// Its bits.
    pub raw: u64,
    /// What it says; nothing, where it has no meaning.
    pub state: Option<BitmapTableState>,
    /// The cluster of bitmap data.
    pub host_offset: Option<u64>,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

impl<S: ReadStorage + ?Sized> Inspector<'_, S> {
    /// Entries of an L1 table.
    #[must_use]
    pub fn l1(&self, owner: L1Owner, range: EntryRange) -> Shown<TableReport<L1EntryReport>> {
        self.l1_report(owner, range).into()
    }

    pub(super) fn l1_report(&self, owner: L1Owner, range: EntryRange) -> Result<TableReport<L1EntryReport>> {
        let geometry = *self.geometry()?;
        let (offset, total) = self.l1_place(owner)?;
        self.table(Structure::L1Table, offset, total, range, |index, [raw]: [u64; 1]| l1_entry(index, raw, &geometry))
    }

    /// Offset and entries of an L1 table.
    pub(super) fn l1_place(&self, owner: L1Owner) -> Result<(u64, u64)> {
        let area = self.header_area()?;
        match owner {
            L1Owner::Active => Ok((area.header.l1_table_offset, area.header.l1_size.into())),
            L1Owner::Snapshot(index) => {
                let snapshots = self.snapshot_entries()?;
                let missing = || Error::invalid(alloc::format!("there is no snapshot with index {index}"));
                let found = usize::try_from(index).ok().and_then(|index| snapshots.get(index)).ok_or_else(missing)?;
                Ok((found.l1_table_offset, found.l1_size.into()))
            }
        }
    }

    /// Entries of an L2 table.
    #[must_use]
    pub fn l2(&self, source: TableSource, range: EntryRange) -> Shown<TableReport<L2EntryReport>> {
        self.l2_report(source, range).into()
    }

    pub(super) fn l2_report(&self, source: TableSource, range: EntryRange) -> Result<TableReport<L2EntryReport>> {
        let geometry = *self.geometry()?;
        let (offset, l1_index) = match source {
            TableSource::Host(offset) => (offset, 0),
            TableSource::L1 { owner, index } => {
                let entry = self.l1_report(owner, EntryRange::one(index))?.entries.into_iter().next();
                let beyond = || Error::invalid(alloc::format!("the L1 table has no entry {index}"));
                let offset = entry.ok_or_else(beyond)?.l2_offset;
                let none = || Error::invalid(alloc::format!("L1 entry {index} names no L2 table"));
                (offset.ok_or_else(none)?, index)
            }
        };
        let total = geometry.l2_entries();
        let entry = |index, raw| l2_entry(l1_index, index, raw, &geometry);
        let structure = Structure::L2Table;
        if geometry.extended_l2() {
            self.table(structure, offset, total, range, |index, [descriptor, bitmap]: [u64; 2]| {
                entry(index, RawL2Entry { descriptor, bitmap })
            })
        } else {
            self.table(structure, offset, total, range, |index, [descriptor]: [u64; 1]| {
                entry(index, RawL2Entry { descriptor, bitmap: 0 })
            })
        }
    }

    /// Entries of the refcount table.
    #[must_use]
    pub fn refcount_table(&self, range: EntryRange) -> Shown<TableReport<RefcountTableEntryReport>> {
        self.refcount_table_report(range).into()
    }

    pub(super) fn refcount_table_report(&self, range: EntryRange) -> Result<TableReport<RefcountTableEntryReport>> {
        let geometry = *self.geometry()?;
        let header = &self.header_area()?.header;
        let total = u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size()) / 8;
        let (structure, offset) = (Structure::RefcountTable, header.refcount_table_offset);
        self.table(structure, offset, total, range, |index, [raw]: [u64; 1]| {
            let first = HostCluster::new(index.saturating_mul(geometry.refcount_block_entries()));
            let offset = refcount_table_offset_bits(raw);
            RefcountTableEntryReport {
                index,
                raw,
                block_offset: (offset != 0).then_some(offset),
                host_offset: geometry.host_start(first).get(),
                faults: decode_refcount_table_entry(raw, &geometry).err().iter().map(ToString::to_string).collect(),
            }
        })
    }

    /// The refcounts of one block, as runs; `skip_empty` leaves out those of 0.
    #[must_use]
    pub fn refcount_block(&self, index: u64, range: EntryRange) -> Shown<TableReport<RefcountRun>> {
        self.refcount_block_report(index, range).into()
    }

    fn refcount_block_report(&self, index: u64, range: EntryRange) -> Result<TableReport<RefcountRun>> {
        let geometry = *self.geometry()?;
        let entry = self.refcount_table_report(EntryRange::one(index))?.entries.into_iter().next();
        let beyond = || Error::invalid(alloc::format!("the refcount table has no entry {index}"));
        let none = || Error::invalid(alloc::format!("refcount table entry {index} names no block"));
        let offset = entry.ok_or_else(beyond)?.block_offset.ok_or_else(none)?;
        let mut block = vec![0u8; geometry.cluster_len()];
        self.reader().read(offset, &mut block)?;
        let total = geometry.refcount_block_entries();
        let (first, end) = range.within(total);
        let start = HostCluster::new(index.saturating_mul(total));
        let mut entries: Vec<RefcountRun> = Vec::new();
        for at in first..end {
            let refcount = read_refcount(&block, at, geometry.refcount_order()).unwrap_or(0);
            match entries.last_mut() {
                Some(run) if run.refcount == refcount && run.index.saturating_add(run.clusters) == at => {
                    run.clusters = run.clusters.saturating_add(1);
                }
                Some(_) | None if refcount == 0 && range.skip_empty => {}
                Some(_) | None => {
                    let host_offset = geometry.host_start(start.saturating_add(at)).get();
                    entries.push(RefcountRun { index: at, host_offset, clusters: 1, refcount });
                }
            }
        }
        let next = (end < total).then_some(end);
        Ok(TableReport { structure: Structure::RefcountBlock, host_offset: offset, total, entries, next })
    }

    /// The snapshot table.
    #[must_use]
    pub fn snapshots(&self) -> Shown<Vec<SnapshotReport>> {
        let report = |(index, entry): (u64, Snapshot)| SnapshotReport {
            index,
            vm_state_size: entry.vm_state_size(),
            virtual_size: entry.virtual_size(),
            unknown_extra_data: entry.unknown_extra_data().to_vec(),
            entry,
        };
        self.snapshot_entries().map(|entries| (0..).zip(entries).map(report).collect()).into()
    }

    pub(super) fn snapshot_entries(&self) -> Result<Vec<Snapshot>> {
        read_snapshots(&self.header_area()?.header, self.storage)
    }

    /// The bitmap directory; empty without one that is consistent.
    #[must_use]
    pub fn bitmaps(&self) -> Shown<Vec<BitmapReport>> {
        let report = |(index, entry): (u64, BitmapEntry)| {
            let granularity = entry.granularity();
            BitmapReport { index, entry, granularity }
        };
        self.bitmap_entries().map(|entries| (0..).zip(entries).map(report).collect()).into()
    }

    pub(super) fn bitmap_entries(&self) -> Result<Vec<BitmapEntry>> {
        read_bitmaps(self.header_area()?, self.storage)
    }

    /// Entries of the table of one bitmap.
    #[must_use]
    pub fn bitmap_table(&self, bitmap: u64, range: EntryRange) -> Shown<TableReport<BitmapTableEntryReport>> {
        self.bitmap_table_report(bitmap, range).into()
    }

    pub(super) fn bitmap_table_report(
        &self,
        bitmap: u64,
        range: EntryRange,
    ) -> Result<TableReport<BitmapTableEntryReport>> {
        let geometry = *self.geometry()?;
        let entries = self.bitmap_entries()?;
        let missing = || Error::invalid(alloc::format!("there is no bitmap with index {bitmap}"));
        let entry = usize::try_from(bitmap).ok().and_then(|index| entries.get(index)).ok_or_else(missing)?;
        let (offset, total) = (entry.table_offset, entry.table_entries.into());
        self.table(Structure::BitmapTable, offset, total, range, |index, [raw]: [u64; 1]| {
            let decoded = BitmapTableEntry::decode(raw, &geometry);
            let offset = BitmapTableEntry::offset_bits(raw);
            BitmapTableEntryReport {
                index,
                raw,
                state: decoded.ok().map(|entry| match entry {
                    BitmapTableEntry::AllZeros => BitmapTableState::AllZeros,
                    BitmapTableEntry::AllOnes => BitmapTableState::AllOnes,
                    BitmapTableEntry::Cluster(_) => BitmapTableState::Stored,
                }),
                host_offset: (offset != 0).then_some(offset),
                faults: decoded.err().iter().map(ToString::to_string).collect(),
            }
        })
    }

    /// Reads a part of a table of entries of `WORDS` times eight bytes.
    fn table<T, const WORDS: usize>(
        &self,
        structure: Structure,
        host_offset: u64,
        total: u64,
        range: EntryRange,
        mut report: impl FnMut(u64, [u64; WORDS]) -> T,
    ) -> Result<TableReport<T>> {
        let (first, end) = range.within(total);
        let width = u64::try_from(WORDS).unwrap_or(1).saturating_mul(8);
        let length = usize::try_from(end.saturating_sub(first).saturating_mul(width)).unwrap_or(0);
        let mut bytes = vec![0u8; length];
        let at = host_offset.saturating_add(first.saturating_mul(width));
        let mut entries = Vec::new();
        if length > 0 {
            self.reader().read(at, &mut bytes).map_err(|error| error.in_structure(structure))?;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let (words, _) = words.as_chunks::<WORDS>();
        for (index, words) in (first..).zip(words) {
            let words = words.map(u64::from_be_bytes);
            if !range.skip_empty || words != [0; WORDS] {
                entries.push(report(index, words));
            }
        }
        Ok(TableReport { structure, host_offset, total, entries, next: (end < total).then_some(end) })
    }
}

pub(super) fn l1_entry(index: u64, raw: u64, geometry: &Geometry) -> L1EntryReport {
    let offset = L1Entry::offset_bits(raw);
    let faults = [
        L1Entry::has_reserved_bits(raw).then_some(EntryError::ReservedBits),
        (!geometry.is_aligned(offset)).then_some(EntryError::Unaligned),
    ];
    L1EntryReport {
        index,
        raw,
        guest_offset: index.saturating_mul(geometry.l2_coverage()),
        l2_offset: (offset != 0).then_some(offset),
        copied: L1Entry::copied_bit(raw),
        faults: faults.iter().flatten().map(ToString::to_string).collect(),
    }
}

pub(super) fn l2_entry(l1_index: u64, index: u64, raw: RawL2Entry, geometry: &Geometry) -> L2EntryReport {
    let (entry, mut faults) = L2Entry::examine(raw, geometry);
    let guest_offset = geometry.guest_start(geometry.cluster_at(l1_index, index)).get();
    let (host_offset, compressed_length, parts) = match entry {
        L2Entry::Plain { host, parts } => (host.map(|host| host.offset.get()), None, Some(parts)),
        L2Entry::Compressed(range) => (Some(range.offset.get()), Some(range.length), None),
    };
    if geometry.data_file() && compressed_length.is_none() && host_offset.is_some_and(|host| host != guest_offset) {
        faults = faults.with(EntryError::DataFileOffset);
    }
    let parts = parts.filter(|_| geometry.extended_l2());
    L2EntryReport {
        index,
        guest_offset,
        raw: raw.descriptor,
        raw_bitmap: geometry.extended_l2().then_some(raw.bitmap),
        kind: entry.kind(geometry),
        host_offset,
        compressed_length,
        copied: L2Entry::copied_bit(raw),
        allocated: parts.map(|parts| parts.allocated),
        zero: parts.map(|parts| parts.zero),
        faults: faults.iter().map(|fault| fault.to_string()).collect(),
    }
}
