//! The space ledger: every byte of the file in exactly one class, and whether the host holds it.

use alloc::vec::Vec;

use super::layout::{DataRunCounter, DataRuns};
use crate::error::Result;
use crate::storage::{ReadStorage, StorageExtentKind};

/// What a byte of the file is there for. A byte that could be in several classes is in the first of them, in the
/// order of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SpaceClass {
    /// The header cluster: header, extensions, backing file name, padding.
    Header,
    /// The active L1 table, to the end of its last cluster.
    L1Table,
    /// The refcount table, to the end of its last cluster.
    RefcountTable,
    /// Refcount blocks.
    RefcountBlocks,
    /// L2 tables that the active L1 table leads to.
    L2Tables,
    /// The snapshot table, the snapshots' L1 tables, and L2 tables to which only these lead.
    SnapshotMetadata,
    /// The bitmap directory and bitmap tables.
    BitmapMetadata,
    /// Clusters of bitmap data.
    BitmapData,
    /// The LUKS header.
    EncryptionHeader,
    /// Uncompressed data of the disk as it is now.
    LiveData,
    /// Compressed data of the disk as it is now, up to the end of the last 512-byte sector of each stream.
    CompressedData,
    /// Bytes that no stream uses, in clusters that hold compressed data of the disk as it is now.
    CompressedSlack,
    /// Data that only snapshots use.
    OnlyInSnapshots,
    /// Space that is kept for clusters (or subclusters) which hold no data: they read as zeros, or from the backing
    /// file.
    ZeroRetained,
    /// Refcount above zero, but nothing refers to it.
    Leaked,
    /// Refcount zero and nothing refers to it, before the last cluster in use.
    Free,
    /// After the last cluster in use.
    BeyondLastUsed,
}

impl SpaceClass {
    /// Every class, in order.
    pub const ALL: [Self; 17] = [
        Self::Header,
        Self::L1Table,
        Self::RefcountTable,
        Self::RefcountBlocks,
        Self::L2Tables,
        Self::SnapshotMetadata,
        Self::BitmapMetadata,
        Self::BitmapData,
        Self::EncryptionHeader,
        Self::LiveData,
        Self::CompressedData,
        Self::CompressedSlack,
        Self::OnlyInSnapshots,
        Self::ZeroRetained,
        Self::Leaked,
        Self::Free,
        Self::BeyondLastUsed,
    ];

    /// The name for programs, as in JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "l1_table",
            Self::RefcountTable => "refcount_table",
            Self::RefcountBlocks => "refcount_blocks",
            Self::L2Tables => "l2_tables",
            Self::SnapshotMetadata => "snapshot_metadata",
            Self::BitmapMetadata => "bitmap_metadata",
            Self::BitmapData => "bitmap_data",
            Self::EncryptionHeader => "encryption_header",
            Self::LiveData => "live_data",
            Self::CompressedData => "compressed_data",
            Self::CompressedSlack => "compressed_slack",
            Self::OnlyInSnapshots => "only_in_snapshots",
            Self::ZeroRetained => "zero_retained",
            Self::Leaked => "leaked",
            Self::Free => "free",
            Self::BeyondLastUsed => "beyond_last_used",
        }
    }

    /// The name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "L1 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlocks => "refcount blocks",
            Self::L2Tables => "L2 tables",
            Self::SnapshotMetadata => "snapshot metadata",
            Self::BitmapMetadata => "bitmap metadata",
            Self::BitmapData => "bitmap data",
            Self::EncryptionHeader => "encryption header",
            Self::LiveData => "live data",
            Self::CompressedData => "compressed data",
            Self::CompressedSlack => "compressed slack",
            Self::OnlyInSnapshots => "only in snapshots",
            Self::ZeroRetained => "zero but retained",
            Self::Leaked => "leaked",
            Self::Free => "free inside the file",
            Self::BeyondLastUsed => "beyond the last used cluster",
        }
    }
}

/// Bytes of the file, and what the host does with them. All in bytes; `bytes = held + holes + unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpaceBytes {
    /// All of them.
    pub bytes: u64,
    /// Those for which the host has allocated space.
    pub held: u64,
    /// Those that are holes.
    pub holes: u64,
    /// Those of which the host cannot tell.
    pub unknown: u64,
}

impl SpaceBytes {
    pub(super) fn add(&mut self, kind: StorageExtentKind, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let part = match kind {
            StorageExtentKind::Data => &mut self.held,
            StorageExtentKind::Hole => &mut self.holes,
            StorageExtentKind::Unknown => &mut self.unknown,
        };
        *part = part.saturating_add(bytes);
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            held: self.held.saturating_add(other.held),
            holes: self.holes.saturating_add(other.holes),
            unknown: self.unknown.saturating_add(other.unknown),
        }
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LedgerLine {
    /// The class.
    pub class: SpaceClass,
    /// Its bytes.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub space: SpaceBytes,
}

/// Two structures that claim the same clusters: a corruption. The bytes are in the class of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Overlap {
    /// First byte in the file.
    pub host_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Who claims them, in the order of precedence.
    pub claimed_by: Vec<SpaceClass>,
}

/// The space ledger of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ledger {
    /// Length of the file in bytes: the sum of `bytes` over all classes.
    pub file_length: u64,
    /// Every class, in order, those without bytes too.
    pub classes: Vec<LedgerLine>,
    /// The sum of all classes.
    pub total: SpaceBytes,
    /// Bytes of the host's allocation that belong to no byte of the file (space reserved beyond its end, the file
    /// system's own tables), where the caller told how much the host has allocated in all.
    pub held_outside_file: Option<u64>,
    /// Bytes claimed by structures that contradict each other.
    pub overlapping_bytes: u64,
    /// The first [`MAX_OVERLAPS`] such places.
    pub overlaps: Vec<Overlap>,
    /// Bytes that something refers to although their refcount is zero: a corruption, they may be overwritten.
    pub referenced_but_free_bytes: u64,
    /// References to clusters at or beyond the end of the file; they read as zeros.
    pub references_beyond_end: u64,
    /// The dirty bit is set, or refcounts cannot be read: `leaked` and `free` may be wrong until they are rebuilt.
    pub refcounts_may_be_wrong: bool,
    /// Tables could not be read or followed: what only they refer to counts as leaked or free.
    pub references_missing: bool,
}

/// Overlaps that are listed one by one.
pub const MAX_OVERLAPS: usize = 100;

impl Ledger {
    /// The bytes of one class.
    #[must_use]
    pub fn of(&self, class: SpaceClass) -> SpaceBytes {
        let line = self.classes.iter().find(|line| line.class == class);
        line.map(|line| line.space).unwrap_or_default()
    }
}

/// Fills the lines with segments that come in the order of the file.
pub(super) struct Lines<'a, S: ?Sized> {
    host: HostCursor<'a, S>,
    lines: Vec<LedgerLine>,
    runs: DataRunCounter,
    at: u64,
}

impl<'a, S: ReadStorage + ?Sized> Lines<'a, S> {
    pub(super) fn new(storage: &'a S, file_length: u64) -> Self {
        let lines = SpaceClass::ALL.map(|class| LedgerLine { class, space: SpaceBytes::default() }).to_vec();
        Self { host: HostCursor::new(storage, file_length), lines, runs: DataRunCounter::default(), at: 0 }
    }

    /// The next byte that belongs to no class yet.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Gives the bytes from [`Lines::at`] to `end` to a class.
    pub(super) fn add(&mut self, class: SpaceClass, end: u64) -> Result<SpaceBytes> {
        let (from, end) = (self.at, end.min(self.host.length));
        self.at = self.at.max(end);
        let (mut space, runs) = (SpaceBytes::default(), &mut self.runs);
        self.host.each(from, end, |kind, _, bytes| {
            space.add(kind, bytes);
            runs.add(kind, bytes);
        })?;
        if let Some(line) = self.lines.iter_mut().find(|line| line.class == class) {
            line.space = line.space.plus(space);
        }
        Ok(space)
    }

    pub(super) fn finish(self) -> (Vec<LedgerLine>, DataRuns) {
        (self.lines, self.runs.finish())
    }
}

/// Asks the host about ascending offsets, once for each of its extents.
pub(super) struct HostCursor<'a, S: ?Sized> {
    storage: &'a S,
    length: u64,
    kind: StorageExtentKind,
    start: u64,
    end: u64,
}

impl<'a, S: ReadStorage + ?Sized> HostCursor<'a, S> {
    pub(super) fn new(storage: &'a S, length: u64) -> Self {
        Self { storage, length, kind: StorageExtentKind::Unknown, start: 0, end: 0 }
    }

    /// Calls `sink` with kind, offset and length of each part of the range, in order.
    pub(super) fn each(&mut self, from: u64, to: u64, mut sink: impl FnMut(StorageExtentKind, u64, u64)) -> Result<()> {
        let mut at = from;
        while at < to {
            if at < self.start || at >= self.end {
                let extent = self.storage.next_extent(at)?;
                // A store that shrank meanwhile has holes there; one that says nothing must not stop the walk.
                let length = if extent.length == 0 { self.length.saturating_sub(at).max(1) } else { extent.length };
                (self.kind, self.start, self.end) = (extent.kind, at, at.saturating_add(length));
            }
            let end = self.end.min(to);
            sink(self.kind, at, end.saturating_sub(at));
            at = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, Storage};

    #[cfg(feature = "serde")]
    #[test]
    fn names_for_programs_are_those_of_json() {
        for class in SpaceClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.code());
        }
    }

    #[test]
    fn lines_add_up_and_know_holes() {
        let storage = MemoryStorage::with_len(64 << 10);
        storage.write_at(8192, &[1; 4096]).unwrap();
        let mut lines = Lines::new(&storage, 64 << 10);
        lines.add(SpaceClass::Header, 10_000).unwrap();
        lines.add(SpaceClass::LiveData, 20_000).unwrap();
        lines.add(SpaceClass::Free, 1 << 20).unwrap();
        let ledger = Ledger { classes: lines.finish().0, ..Ledger::default() };
        let (header, live) = (ledger.of(SpaceClass::Header), ledger.of(SpaceClass::LiveData));
        assert_eq!((header.bytes, header.held, header.holes), (10_000, 1808, 8192));
        assert_eq!((live.bytes, live.held), (10_000, 2288));
        assert_eq!(ledger.of(SpaceClass::Free).bytes, (64 << 10) - 20_000);
    }
}
