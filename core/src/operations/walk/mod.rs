//! The walk: every reference of every structure to a range of the file, once.
//!
//! [`walk`] follows the header, its extensions, the refcount table, the active L1 table, the snapshots and the bitmaps
//! down to the last cluster, and shows what it meets to a [`Visitor`]. Nothing is refused: what is wrong becomes a
//! [`Fault`], and the walk goes on as far as references can be followed.
//!
//! # Order
//! Header and encryption header; the active L1 table and its entries; the snapshot table; the snapshots' L1 tables and
//! their entries; the L2 tables, in guest order, first the active ones; the bitmaps; the refcount table and, last,
//! the refcount blocks.
//!
//! # Each table once
//! Snapshots share L2 tables with each other and with the active L1 table. Such a table is read and shown once, with
//! the number of ways that lead to it ([`Uses`]); so a hundred snapshots cost little more than none, and an L1 table
//! whose entries all name the same L2 table costs no more than one entry.
//!
//! # Limits
//! Memory: one L2 table or a megabyte, 24 bytes for each L2 table, and the snapshot table and the bitmap directory,
//! which have limits of their own. Time: every table is read once. What may be read again in other ways (parts of L1
//! tables that overlap, L2 tables that are not aligned, bitmap tables) is read until [`MAX_REPEATED_TABLE_BYTES`] are
//! spent, then the walk fails with [`crate::ErrorKind::Limit`]. Holes are not read.

mod bitmaps;
mod guest;
mod refcounts;
mod snapshots;

use crate::error::{Error, Result, Structure};
use crate::format::{EntryError, Geometry, HeaderArea, L2Entry, L2Run, RawL2Entry};
use crate::storage::ReadStorage;

pub(super) use crate::metadata::TableReader;
pub use refcounts::{BlockPlace, RefcountTable};

/// Bytes of tables that may be read through more than one way; see the module's documentation.
pub const MAX_REPEATED_TABLE_BYTES: u64 = 1 << 30;

/// What meets the walk. Errors end it.
pub trait Visitor {
    /// Something refers to a range of the file.
    ///
    /// # Errors
    /// Ends the walk.
    fn reference(&mut self, reference: &HostReference) -> Result<()>;

    /// Something is wrong; the walk goes on behind it.
    ///
    /// # Errors
    /// Ends the walk.
    fn fault(&mut self, fault: &Fault) -> Result<()>;

    /// The entries of this L2 table follow.
    ///
    /// # Errors
    /// Ends the walk.
    fn l2_table(&mut self, table: &L2Table) -> Result<()> {
        let _ = table;
        Ok(())
    }

    /// A run of entries of `table`, mapped or not, before the reference that it makes, if any.
    ///
    /// # Errors
    /// Ends the walk.
    fn l2_run(&mut self, table: &L2Table, run: &L2Run) -> Result<()> {
        let _ = (table, run);
        Ok(())
    }

    /// So many of so many L2 tables are done.
    ///
    /// # Errors
    /// Ends the walk.
    fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        let _ = (done, total);
        Ok(())
    }
}

/// A reference to a range of the file (or of the data file, where `target` is [`Structure::DataFile`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostReference {
    /// What lies in the range.
    pub target: Structure,
    /// First byte. Unaligned where an entry is broken, and for compressed clusters.
    pub host_offset: u64,
    /// Bytes of one range. Tables end where their last entry ends, not at a cluster boundary.
    pub length: u64,
    /// Ranges of that length in a row: more than 1 only for runs of data clusters.
    pub count: u64,
    /// What refers to it; for a run, its first entry.
    pub source: Source,
    /// How many ways lead to it.
    pub uses: Uses,
}

/// How many ways lead to something: references are counted as often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uses {
    /// From the active image (all but snapshots).
    pub active: u32,
    /// From snapshots.
    pub snapshots: u32,
}

impl Uses {
    /// One way, from the active image.
    pub const ACTIVE: Self = Self { active: 1, snapshots: 0 };
    /// One way, from a snapshot.
    pub const SNAPSHOT: Self = Self { active: 0, snapshots: 1 };

    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        u64::from(self.active).saturating_add(self.snapshots.into())
    }

    fn add(self, other: Self) -> Self {
        Self {
            active: self.active.saturating_add(other.active),
            snapshots: self.snapshots.saturating_add(other.snapshots),
        }
    }
}

/// Which L1 table; ordered with the active one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum L1Owner {
    /// The one that the header names.
    Active,
    /// That of the snapshot with this index in the snapshot table.
    Snapshot(u32),
}

impl L1Owner {
    /// One way through this L1 table.
    #[must_use]
    pub fn uses(self) -> Uses {
        match self {
            Self::Active => Uses::ACTIVE,
            Self::Snapshot(_) => Uses::SNAPSHOT,
        }
    }
}

/// What refers to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The header (also: to itself).
    Header,
    /// A header extension.
    HeaderExtension,
    /// An entry of the refcount table.
    RefcountTable {
        /// Its index.
        index: u64,
        /// Its bits.
        raw: u64,
    },
    /// An entry of the snapshot table.
    SnapshotTable {
        /// Its index.
        index: u64,
    },
    /// An entry of an L1 table.
    L1(L1Slot),
    /// An entry of an L2 table.
    L2(L2Slot),
    /// An entry of the bitmap directory.
    BitmapDirectory {
        /// Its index.
        index: u64,
    },
    /// An entry of a bitmap table.
    BitmapTable {
        /// Index of the bitmap in the directory.
        bitmap: u64,
        /// Index of the entry.
        index: u64,
        /// Its bits.
        raw: u64,
    },
}

/// An entry of an L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Slot {
    /// Which table; the first, where several snapshots name the same.
    pub owner: L1Owner,
    /// Index of the entry.
    pub index: u64,
    /// Its bits.
    pub raw: u64,
}

/// An entry of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Slot {
    /// The table.
    pub table: L2Table,
    /// Index of the entry.
    pub index: u64,
    /// Its bits.
    pub raw: RawL2Entry,
    /// What it says, or would say without its faults.
    pub entry: L2Entry,
}

/// An L2 table that the walk goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Table {
    /// First byte.
    pub host_offset: u64,
    /// Which L1 table leads to it; the first of several.
    pub owner: L1Owner,
    /// The entry of that L1 table.
    pub l1_index: u64,
    /// How many L1 entries lead to it.
    pub uses: Uses,
}

impl L2Table {
    /// The guest offset of an entry, by the first way that leads here; saturates.
    #[must_use]
    pub fn guest_offset(&self, index: u64, geometry: &Geometry) -> u64 {
        geometry.guest_start(geometry.cluster_at(self.l1_index, index)).get()
    }
}

/// Something wrong that the walk met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// In what.
    pub source: Source,
    /// Where it is, or where it leads: the host offset that the message is about.
    pub host_offset: u64,
    /// How many ways lead to it.
    pub uses: Uses,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// An entry has no meaning. Its reference, if it makes one, is shown all the same.
    Entry(EntryError),
    /// A table could not be read; the references behind it are missing.
    Unreadable(Error),
    /// The snapshot table cannot be followed; the references behind it are missing.
    SnapshotTable(Error),
    /// A snapshot lacks the extra data that version 3 demands.
    SnapshotIncomplete,
    /// A snapshot's L1 table is not aligned; it is left out.
    SnapshotL1Unaligned,
    /// A snapshot's L1 table is larger than allowed; it is left out.
    SnapshotL1TooLarge {
        /// Its entries.
        entries: u32,
    },
    /// Snapshots in an image with an external data file.
    SnapshotsWithDataFile {
        /// How many.
        count: u32,
    },
    /// The bitmap directory, or a bitmap, cannot be followed; the references behind it are missing.
    Bitmap(Error),
}

impl FaultKind {
    /// Whether references are missing because of it: then "no reference" means nothing.
    #[must_use]
    pub fn hides_references(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::SnapshotTable(_) | Self::Bitmap(_))
    }
}

/// An image to walk through: its bytes, its header and what follows from them.
#[derive(Debug)]
pub struct Walk<'a, S: ?Sized> {
    storage: &'a S,
    area: &'a HeaderArea,
    geometry: Geometry,
    file_length: u64,
}

impl<'a, S: ReadStorage + ?Sized> Walk<'a, S> {
    /// Takes an image whose header can be trusted as far as [`HeaderArea::validate_for_check`] goes.
    ///
    /// # Errors
    /// As [`HeaderArea::validate_for_check`]; a storage that fails.
    pub fn new(storage: &'a S, area: &'a HeaderArea) -> Result<Self> {
        let file_length = storage.len()?;
        let geometry = area.validate_for_check(Some(file_length))?;
        Ok(Self { storage, area, geometry, file_length })
    }

    /// The sizes of the image.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The header area.
    #[must_use]
    pub fn header_area(&self) -> &'a HeaderArea {
        self.area
    }

    /// Bytes of the file.
    #[must_use]
    pub fn file_length(&self) -> u64 {
        self.file_length
    }

    /// Reads the refcount table.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn refcount_table(&self) -> Result<RefcountTable> {
        RefcountTable::read(self.storage, self.area, &self.geometry, self.file_length)
    }

    /// Shows everything to `visitor`.
    ///
    /// # Errors
    /// What the visitor returns; [`crate::ErrorKind::Limit`] (see the module's documentation); a storage that fails
    /// where nothing can go on.
    pub fn run(&self, visitor: &mut impl Visitor) -> Result<()> {
        let mut budget = Budget(MAX_REPEATED_TABLE_BYTES);
        self.visit_header(visitor)?;
        let tables = self.visit_l1_tables(visitor, &mut budget)?;
        self.visit_l2_tables(&tables, visitor, &mut budget)?;
        drop(tables);
        self.visit_bitmaps(visitor, &mut budget)?;
        self.visit_refcount_table(visitor)
    }

    fn visit_header(&self, visitor: &mut impl Visitor) -> Result<()> {
        let header = self.named_by(Source::Header, Structure::Header, 0, self.geometry.cluster_size());
        visitor.reference(&header)?;
        if let Some((offset, length)) = self.area.crypto_header() {
            visitor.reference(&self.named_by(Source::HeaderExtension, Structure::CryptoHeader, offset, length))?;
        }
        Ok(())
    }

    /// A reference that belongs to the active image, not to a snapshot.
    fn named_by(&self, source: Source, target: Structure, host_offset: u64, length: u64) -> HostReference {
        HostReference { target, host_offset, length, count: 1, source, uses: Uses::ACTIVE }
    }

    fn reader(&self) -> TableReader<'a, S> {
        TableReader::new(self.storage, self.file_length)
    }
}

/// Walks through an image: [`Walk::new`] and [`Walk::run`].
///
/// # Errors
/// As these two.
pub fn walk<S: ReadStorage + ?Sized>(storage: &S, area: &HeaderArea, visitor: &mut impl Visitor) -> Result<()> {
    Walk::new(storage, area)?.run(visitor)
}

/// What is left of [`MAX_REPEATED_TABLE_BYTES`].
#[derive(Debug)]
struct Budget(u64);

impl Budget {
    fn spend(&mut self, bytes: u64, structure: Structure) -> Result<()> {
        match self.0.checked_sub(bytes) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(Error::new(crate::ErrorKind::Limit(alloc::format!(
                "tables that several others name have more than {MAX_REPEATED_TABLE_BYTES} bytes together"
            )))
            .in_structure(structure)),
        }
    }
}

#[cfg(test)]
mod tests;
