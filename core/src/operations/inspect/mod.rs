//! Every structure of an image, shown as it is: never refuses a broken image, never trusts one.
//!
//! An [`Inspector`] works on the bytes alone, without opening the image. What cannot be told becomes
//! [`Shown::Error`], and everything else is shown all the same. Lists are cut at [`MAX_INSPECTED_ENTRIES`], and say
//! where to go on. Only [`Inspector::host`] goes through the whole image.

mod entry_fields;
mod fields;
mod guest;
mod header;
mod host;
mod tables;
#[cfg(test)]
mod tests;

pub use fields::{ByteField, FieldList, Region};
pub use guest::{GuestPath, InspectedLayer, LayerPath, Resolution, inspect_guest};
pub use header::{ExtensionReport, FeatureBit, HeaderReport};
pub use host::{HostReport, MAX_OWNERS, Owner};
pub use tables::{
    BitmapReport, BitmapTableEntryReport, BitmapTableState, L1EntryReport, L2EntryReport, RefcountRun,
    RefcountTableEntryReport, SnapshotReport, TableReport, TableSource,
};

use alloc::string::{String, ToString};

use super::read_header;
use super::walk::TableReader;
use crate::error::{Error, Result, Structure};
use crate::format::{Geometry, HeaderArea};
use crate::storage::ReadStorage;

/// Entries that one call lists at most.
pub const MAX_INSPECTED_ENTRIES: u64 = 65_536;

/// A value, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Shown<T> {
    /// The value.
    Value(T),
    /// Why there is none.
    Error(String),
}

impl<T> Shown<T> {
    /// The value, if there is one.
    #[must_use]
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Error(_) => None,
        }
    }

    /// Why there is no value.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Error(error) => Some(error),
        }
    }
}

impl<T> From<Result<T>> for Shown<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(value) => Self::Value(value),
            Err(error) => Self::Error(error.to_string()),
        }
    }
}

/// Which entries of a table to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRange {
    /// Index of the first.
    pub first: u64,
    /// How many; at most [`MAX_INSPECTED_ENTRIES`] are listed.
    pub count: u64,
    /// Leave out entries that are 0.
    pub skip_empty: bool,
}

impl Default for EntryRange {
    /// From the beginning, as many as one call lists, without empty ones.
    fn default() -> Self {
        Self { first: 0, count: MAX_INSPECTED_ENTRIES, skip_empty: true }
    }
}

impl EntryRange {
    /// One entry, also if it is empty.
    #[must_use]
    pub fn one(index: u64) -> Self {
        Self { first: index, count: 1, skip_empty: false }
    }

    /// First and end, within a table of `total` entries and the limit.
    fn within(self, total: u64) -> (u64, u64) {
        let first = self.first.min(total);
        (first, first.saturating_add(self.count.min(MAX_INSPECTED_ENTRIES)).min(total))
    }
}

/// Shows the structures of an image.
#[derive(Debug)]
pub struct Inspector<'a, S: ?Sized> {
    storage: &'a S,
    file_length: u64,
    area: Result<HeaderArea>,
    geometry: Option<Geometry>,
}

impl<'a, S: ReadStorage + ?Sized> Inspector<'a, S> {
    /// Looks at the header. A header that cannot be read is no error here: it is what the reports then say.
    #[must_use]
    pub fn new(storage: &'a S) -> Self {
        let area = read_header(storage);
        let geometry = area.as_ref().ok().and_then(|area| {
            let header = &area.header;
            let (extended, data_file) = (header.incompatible.extended_l2(), header.incompatible.data_file());
            let (bits, order) = (header.cluster_bits, header.refcount_order);
            Geometry::new(header.version, bits, order, extended, data_file, header.virtual_size)
        });
        Self { storage, file_length: storage.len().unwrap_or(0), area, geometry }
    }

    /// Header, extensions and names, where they can be read.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn header_area(&self) -> Result<&HeaderArea> {
        self.area.as_ref().map_err(Clone::clone)
    }

    /// The sizes of the image. They only need version, cluster size, refcount width and virtual size to be possible.
    ///
    /// # Errors
    /// When one of these is not; the header cannot be read.
    pub fn geometry(&self) -> Result<&Geometry> {
        let area = self.header_area()?;
        self.geometry.as_ref().ok_or_else(|| {
            let refused = area.validate_for_check(Some(self.file_length)).err();
            refused.unwrap_or_else(|| Error::corrupt(Structure::Header, "its sizes are out of range"))
        })
    }

    fn reader(&self) -> TableReader<'a, S> {
        TableReader::new(self.storage, self.file_length)
    }

    /// Eight bytes of a table; zeros past the end of the file.
    fn word(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.reader().read(offset, &mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}
