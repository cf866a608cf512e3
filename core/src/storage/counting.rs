//! A wrapper that counts.

use core::cell::Cell;

use super::{Capabilities, ReadStorage, Storage, StorageError, StorageExtent, StorageOperation, ZeroMode};

/// Calls of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CallCount {
    /// How often it was called, failures included.
    pub calls: u64,
    /// The bytes that the calls asked for; 0 for calls without a range.
    pub bytes: u64,
}

/// Calls of every kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CallCounts {
    /// `len`.
    pub len: CallCount,
    /// `read_at`.
    pub read: CallCount,
    /// `next_extent`.
    pub next_extent: CallCount,
    /// `write_at`.
    pub write: CallCount,
    /// `write_zeroes`.
    pub write_zeroes: CallCount,
    /// `discard`.
    pub discard: CallCount,
    /// `set_len`.
    pub set_len: CallCount,
    /// `allocate`.
    pub allocate: CallCount,
    /// `barrier`.
    pub barrier: CallCount,
}

impl CallCounts {
    /// The count of one operation.
    #[must_use]
    pub fn of(&self, operation: StorageOperation) -> CallCount {
        let mut copy = *self;
        *copy.of_mut(operation)
    }

    fn of_mut(&mut self, operation: StorageOperation) -> &mut CallCount {
        match operation {
            StorageOperation::Len => &mut self.len,
            StorageOperation::Read => &mut self.read,
            StorageOperation::NextExtent => &mut self.next_extent,
            StorageOperation::Write => &mut self.write,
            StorageOperation::WriteZeroes => &mut self.write_zeroes,
            StorageOperation::Discard => &mut self.discard,
            StorageOperation::SetLen => &mut self.set_len,
            StorageOperation::Allocate => &mut self.allocate,
            StorageOperation::Barrier => &mut self.barrier,
        }
    }
}

/// Passes everything on and counts calls and bytes.
///
/// ```
/// use qcowkit_core::storage::{CountingStorage, MemoryStorage, Storage};
///
/// let disk = CountingStorage::new(MemoryStorage::new());
/// disk.write_at(0, &[1; 512])?;
/// disk.barrier()?;
/// assert_eq!(disk.counts().write.bytes, 512);
/// assert_eq!(disk.counts().barrier.calls, 1);
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
#[derive(Debug, Default)]
pub struct CountingStorage<S> {
    inner: S,
    counts: Cell<CallCounts>,
}

impl<S> CountingStorage<S> {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, counts: Cell::default() }
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The store below, given back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The counts since the beginning or the last [`reset`](Self::reset).
    #[must_use]
    pub fn counts(&self) -> CallCounts {
        self.counts.get()
    }

    /// Begins again at 0 and gives the counts so far.
    pub fn reset(&self) -> CallCounts {
        self.counts.take()
    }

    fn count(&self, operation: StorageOperation, bytes: u64) -> &S {
        let mut counts = self.counts.get();
        let count = counts.of_mut(operation);
        count.calls = count.calls.saturating_add(1);
        count.bytes = count.bytes.saturating_add(bytes);
        self.counts.set(counts);
        &self.inner
    }
}

impl<S: ReadStorage> ReadStorage for CountingStorage<S> {
    fn len(&self) -> Result<u64, StorageError> {
        self.count(StorageOperation::Len, 0).len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.count(StorageOperation::Read, to_u64(into.len())).read_at(offset, into)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        self.count(StorageOperation::NextExtent, 0).next_extent(offset)
    }
}

impl<S: Storage> Storage for CountingStorage<S> {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.count(StorageOperation::Write, to_u64(from.len())).write_at(offset, from)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        self.count(StorageOperation::WriteZeroes, length).write_zeroes(offset, length, mode)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.count(StorageOperation::Discard, length).discard(offset, length)
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.count(StorageOperation::SetLen, 0).set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.count(StorageOperation::Allocate, length).allocate(offset, length)
    }

    fn barrier(&self) -> Result<(), StorageError> {
        self.count(StorageOperation::Barrier, 0).barrier()
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn every_call_is_counted_once() {
        let disk = CountingStorage::new(MemoryStorage::new());
        disk.len().unwrap();
        disk.read_at(0, &mut [0; 2]).unwrap();
        disk.next_extent(0).unwrap();
        disk.write_at(0, &[1; 3]).unwrap();
        disk.write_zeroes(0, 5, ZeroMode::MayUnmap).unwrap();
        disk.discard(0, 7).unwrap();
        disk.set_len(11).unwrap();
        disk.allocate(0, 13).unwrap();
        disk.barrier().unwrap();
        disk.write_at(u64::MAX, &[1; 100]).unwrap_err();
        let bytes = StorageOperation::ALL.map(|operation| disk.counts().of(operation).bytes);
        assert_eq!(bytes, [0, 2, 0, 103, 5, 7, 0, 13, 0]);
        let calls = StorageOperation::ALL.map(|operation| disk.reset().of(operation).calls);
        assert_eq!(calls[0], 1);
        assert_eq!(disk.counts(), CallCounts::default());
    }

    #[test]
    fn keeps_every_promise() {
        conformance::check_all(|length| Ok(CountingStorage::new(MemoryStorage::with_len(length)))).unwrap();
    }
}
