//! A wrapper that guards ranges.

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;

use super::{ReadStorage, Storage, StorageError, StorageErrorKind, StorageOperation, ZeroMode};

/// A call that would have changed a forbidden range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which call.
    pub operation: StorageOperation,
    /// The bytes that it would have changed, forbidden or not.
    pub range: Range<u64>,
}

/// Refuses every write, zero-write, discard and cut that touches a forbidden range, and remembers the attempt: a
/// caller may have reasons to ignore that a discard failed, the test that forbade the range has none.
///
/// ```
/// use qcowkit_core::storage::{ForbiddingStorage, MemoryStorage, Storage};
///
/// let disk = ForbiddingStorage::new(MemoryStorage::with_len(8192));
/// disk.forbid(4096..8192);
/// assert!(disk.write_at(0, &[1; 4096]).is_ok());
/// assert!(disk.discard(4000, 200).is_err());
/// assert_eq!(disk.violations().len(), 1);
/// ```
#[derive(Debug, Default)]
pub struct ForbiddingStorage<S> {
    inner: S,
    forbidden: RefCell<Vec<Range<u64>>>,
    violations: RefCell<Vec<Violation>>,
}

impl<S> ForbiddingStorage<S> {
    /// Wraps a store; nothing is forbidden yet.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, forbidden: RefCell::default(), violations: RefCell::default() }
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

    /// Forbids changes of these bytes. An empty range forbids nothing.
    pub fn forbid(&self, range: Range<u64>) {
        self.forbidden.borrow_mut().push(range);
    }

    /// Allows everything again. What was attempted stays known.
    pub fn permit_all(&self) {
        self.forbidden.borrow_mut().clear();
    }

    /// What was attempted so far.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.violations.borrow().clone()
    }

    fn admit(&self, operation: StorageOperation, offset: u64, length: u64) -> Result<&S, StorageError> {
        let range = offset..offset.saturating_add(length);
        let touches = |forbidden: &Range<u64>| range.start.max(forbidden.start) < range.end.min(forbidden.end);
        if self.forbidden.borrow().iter().any(touches) {
            self.violations.borrow_mut().push(Violation { operation, range });
            let kind = StorageErrorKind::Other(String::from("the range is forbidden"));
            return Err(StorageError::new(kind, operation.verb()).at(offset));
        }
        Ok(&self.inner)
    }
}

impl<S: ReadStorage> ReadStorage for ForbiddingStorage<S> {
    crate::forward_storage!(this => this.inner; len, read_at, capabilities, next_extent);
}

impl<S: Storage> Storage for ForbiddingStorage<S> {
    crate::forward_storage!(this => this.inner; allocate, barrier);

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        self.admit(StorageOperation::Write, offset, length)?.write_at(offset, from)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        self.admit(StorageOperation::WriteZeroes, offset, length)?.write_zeroes(offset, length, mode)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.admit(StorageOperation::Discard, offset, length)?.discard(offset, length)
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        let cut = self.inner.len()?.saturating_sub(length);
        self.admit(StorageOperation::SetLen, length, cut)?.set_len(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn forbidden_bytes_do_not_change() {
        let disk = ForbiddingStorage::new(MemoryStorage::from_bytes(&[3; 10_000]));
        disk.forbid(5000..5001);
        disk.forbid(7000..7000);
        disk.write_at(4990, &[1; 11]).unwrap_err();
        disk.write_zeroes(5000, 1, ZeroMode::KeepAllocated).unwrap_err();
        disk.discard(0, u64::MAX).unwrap_err();
        disk.set_len(5000).unwrap_err();
        let attempted: Vec<_> = disk.violations().into_iter().map(|violation| violation.operation).collect();
        use StorageOperation::*;
        assert_eq!(attempted, [Write, WriteZeroes, Discard, SetLen]);
        conformance::check_contents(&disk, &[3; 10_000]).unwrap();

        disk.write_at(4990, &[1; 10]).unwrap();
        disk.discard(5001, 3000).unwrap();
        disk.allocate(0, 10_000).unwrap();
        disk.set_len(5001).unwrap();
        assert_eq!(disk.violations().len(), 4);
        disk.permit_all();
        disk.set_len(0).unwrap();
    }

    #[test]
    fn keeps_every_promise() {
        conformance::check_all(|length| Ok(ForbiddingStorage::new(MemoryStorage::with_len(length)))).unwrap();
    }
}
