//! The error of a store.

use alloc::string::String;
use core::fmt;

/// Why a store failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// The store is read-only.
    ReadOnly,
    /// No space is left.
    NoSpace,
    /// The range is not inside what the store can hold.
    OutOfBounds,
    /// The store cannot do this at all.
    Unsupported,
    /// The operating system's error number and its text.
    Os {
        /// `errno`.
        code: i32,
        /// The system's words.
        message: String,
    },
    /// Anything else.
    Other(String),
}

/// A store's failure: why, in which call, where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageError {
    /// Why.
    pub kind: StorageErrorKind,
    /// The call, as a verb: "read", "write", "flush", ...
    pub operation: &'static str,
    /// The byte offset of the call, where it has one.
    pub offset: Option<u64>,
}

impl StorageError {
    /// A failure of `operation`.
    #[must_use]
    pub fn new(kind: StorageErrorKind, operation: &'static str) -> Self {
        Self { kind, operation, offset: None }
    }

    /// Adds the byte offset.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.operation)?;
        match &self.kind {
            StorageErrorKind::ReadOnly => f.write_str("the storage is read-only"),
            StorageErrorKind::NoSpace => f.write_str("no space left"),
            StorageErrorKind::OutOfBounds => f.write_str("beyond what the storage can hold"),
            StorageErrorKind::Unsupported => f.write_str("the storage does not support it"),
            StorageErrorKind::Os { message, .. } | StorageErrorKind::Other(message) => f.write_str(message),
        }
    }
}

impl core::error::Error for StorageError {}
