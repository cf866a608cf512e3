//! The floor that carries bytes: two small traits, stores, and wrappers around any store.
//!
//! # Contract
//! Calls are synchronous, positional, take `&self` and are complete: they transfer everything or fail. Reads past the
//! end give zeros. What was written is read back at once, also before a [`Storage::barrier`]. Opening names, locking
//! and alignment are not this floor's job.
//!
//! # Stores
//! | store | what it is for |
//! |---|---|
//! | [`MemoryStorage`] | sparse, of any length; pages of one byte take no memory, so huge disks can be simulated |
//! | [`SliceStorage`] | the read side over bytes that are there |
//!
//! # Wrappers
//! | wrapper | what it adds |
//! |---|---|
//! | [`ReadOnly`] | a write side that refuses |
//! | [`OverlayStorage`] | edits in memory over a base that is only read: dry runs, undo, saving a patch |
//! | [`CountingStorage`] | calls and bytes of each kind |
//! | [`RecordingStorage`] | a log of all changes and barriers, to replay any part of it: power cuts |
//! | [`FailingStorage`] | failures by rule, and a limit of space |
//! | [`ForbiddingStorage`] | ranges that may not be changed |
//!
//! The feature `conformance` adds the suite of tests that every store passes, for stores elsewhere.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod counting;
mod error;
mod failing;
mod forbidding;
mod forward;
mod memory;
mod operation;
mod overlay;
mod recording;
mod slice;

pub use counting::{CallCount, CallCounts, CountingStorage};
pub use error::{StorageError, StorageErrorKind};
pub use failing::{FailingStorage, FailureRule, FailureScope};
pub use forbidding::{ForbiddingStorage, Violation};
pub use memory::MemoryStorage;
pub use operation::StorageOperation;
pub use overlay::{OverlayMark, OverlayPart, OverlaySource, OverlayStorage};
pub use recording::{RecordingStorage, StorageEvent, epochs, replay};
pub use slice::{ReadOnly, SliceStorage};

/// What a store can do. Alignments are in bytes and 1 where there is no constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Capabilities {
    /// Writes are refused.
    pub read_only: bool,
    /// Writing past the end makes the store longer; false for a block device.
    pub grows: bool,
    /// A block device: its length is what it is.
    pub block_device: bool,
    /// Offsets and lengths of reads and writes must be multiples of this.
    pub request_alignment: u32,
    /// Discards smaller than this, or not aligned to it, may do nothing.
    pub discard_alignment: u32,
    /// A discarded range reads as zeros afterwards.
    pub holes_read_zero: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            read_only: false,
            grows: true,
            block_device: false,
            request_alignment: 1,
            discard_alignment: 1,
            holes_read_zero: true,
        }
    }
}

/// What the store knows of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum StorageExtentKind {
    /// Space is allocated.
    Data,
    /// Reads as zeros, and nothing is allocated as far as the store can tell: file systems count space that is
    /// reserved but was never written as a hole.
    Hole,
    /// The store cannot tell.
    Unknown,
}

/// A maximal run of one kind, beginning at the offset that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageExtent {
    /// What the run is.
    pub kind: StorageExtentKind,
    /// Its length in bytes from the offset asked for; never 0 before the end.
    pub length: u64,
}

/// How [`Storage::write_zeroes`] may make zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroMode {
    /// The space may be given back.
    MayUnmap,
    /// The space stays (or becomes) allocated.
    KeepAllocated,
}

/// The read side: enough for a source that cannot be written.
pub trait ReadStorage {
    /// The length in bytes.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn len(&self) -> Result<u64, StorageError>;

    /// Fills `into` with the bytes from `offset`; past the end they are zeros.
    ///
    /// # Errors
    /// When the store fails; `into` is then unspecified.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError>;

    /// What the store can do. Constant over its life.
    fn capabilities(&self) -> Capabilities;

    /// The run of one kind that begins at `offset`. At or past the end it is a hole of length 0.
    ///
    /// # Errors
    /// When the store fails; one that cannot tell answers [`StorageExtentKind::Unknown`].
    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError>;

    /// Whether the length is 0.
    ///
    /// # Errors
    /// As [`ReadStorage::len`].
    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }
}

/// The write side.
pub trait Storage: ReadStorage {
    /// Writes all of `from` at `offset`, growing the store if it can.
    ///
    /// # Errors
    /// When the store refuses or fails; the range is then unspecified.
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError>;

    /// Makes `length` bytes from `offset` read as zeros, growing the store if it reaches past the end.
    ///
    /// # Errors
    /// When the store refuses or fails.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError>;

    /// Tells the store that the contents of the range are needed no more. Advisory: it may do nothing. Never changes
    /// the length.
    ///
    /// # Errors
    /// When the store refuses or fails in earnest; "cannot" is `Ok`.
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError>;

    /// Sets the length; new bytes read as zeros.
    ///
    /// # Errors
    /// When the store refuses or fails; a block device refuses other lengths than its own.
    fn set_len(&self, length: u64) -> Result<(), StorageError>;

    /// Reserves space for the range without changing what it reads as; grows the store.
    ///
    /// # Errors
    /// When the store refuses, fails or cannot reserve.
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError>;

    /// Everything written before is durable before anything written after.
    ///
    /// # Errors
    /// When the store fails; what was written since the last barrier is then unsure.
    fn barrier(&self) -> Result<(), StorageError>;
}

/// The end of a range, refused when it is past the largest offset.
fn end_of(offset: u64, length: u64, operation: &'static str) -> Result<u64, StorageError> {
    offset.checked_add(length).ok_or_else(|| StorageError::new(StorageErrorKind::OutOfBounds, operation).at(offset))
}
