//! The calls of a store, as wrappers name them.

use core::fmt;

/// A call of [`ReadStorage`](super::ReadStorage) or [`Storage`](super::Storage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum StorageOperation {
    /// `len`.
    Len,
    /// `read_at`.
    Read,
    /// `next_extent`.
    NextExtent,
    /// `write_at`.
    Write,
    /// `write_zeroes`.
    WriteZeroes,
    /// `discard`.
    Discard,
    /// `set_len`.
    SetLen,
    /// `allocate`.
    Allocate,
    /// `barrier`.
    Barrier,
}

impl StorageOperation {
    /// Every operation.
    pub const ALL: [Self; 9] = [
        Self::Len,
        Self::Read,
        Self::NextExtent,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::SetLen,
        Self::Allocate,
        Self::Barrier,
    ];

    /// Whether the call belongs to the write side.
    #[must_use]
    pub fn is_write_side(self) -> bool {
        !matches!(self, Self::Len | Self::Read | Self::NextExtent)
    }

    /// The verb that errors use.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Len => "find the length",
            Self::Read => "read",
            Self::NextExtent => "find the next extent",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Discard => "discard",
            Self::SetLen => "set the length",
            Self::Allocate => "allocate",
            Self::Barrier => "flush",
        }
    }
}

impl fmt::Display for StorageOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())
    }
}
