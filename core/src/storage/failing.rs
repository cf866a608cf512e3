//! A wrapper that fails on purpose.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::{
    Capabilities, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind,
    StorageOperation, ZeroMode,
};

/// Which calls a [`FailureRule`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureScope {
    /// Every call.
    Any,
    /// Every call of the write side.
    WriteSide,
    /// The calls of one kind.
    Only(StorageOperation),
}

impl FailureScope {
    fn holds(self, operation: StorageOperation) -> bool {
        match self {
            Self::Any => true,
            Self::WriteSide => operation.is_write_side(),
            Self::Only(only) => only == operation,
        }
    }
}

/// When to fail, and how.
///
/// ```
/// use qcowkit_core::storage::{FailureRule, FailureScope, StorageOperation};
///
/// // The third write fails, and everything that is written after it.
/// let rule = FailureRule::nth(FailureScope::WriteSide, 3).from_then_on();
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureRule {
    scope: FailureScope,
    nth: u64,
    from_then_on: bool,
    part: Part,
    kind: StorageErrorKind,
}

/// What a write that fails has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nothing,
    Half,
    Sectors,
}

impl Part {
    /// How many bytes of a write.
    fn of(self, offset: u64, length: usize) -> usize {
        let half = length / 2;
        match self {
            Self::Nothing => 0,
            Self::Half => half,
            Self::Sectors => {
                let end = offset.saturating_add(u64::try_from(half).unwrap_or(u64::MAX));
                let begun = end.checked_rem(512).unwrap_or(0);
                half.saturating_sub(usize::try_from(begun).unwrap_or(usize::MAX))
            }
        }
    }
}

impl FailureRule {
    /// The `nth` call of the scope fails, counted from 1, from when the rule is given.
    #[must_use]
    pub fn nth(scope: FailureScope, nth: u64) -> Self {
        let kind = StorageErrorKind::Other("failed on purpose".into());
        Self { scope, nth, from_then_on: false, part: Part::Nothing, kind }
    }

    /// The calls after it fail too.
    #[must_use]
    pub fn from_then_on(mut self) -> Self {
        self.from_then_on = true;
        self
    }

    /// A write that fails has written the first half of its bytes.
    #[must_use]
    pub fn half_written(mut self) -> Self {
        self.part = Part::Half;
        self
    }

    /// A write that fails has written half of its sectors of 512 bytes: nothing, where it lies in one. So do disks, and
    /// files on them.
    #[must_use]
    pub fn torn(mut self) -> Self {
        self.part = Part::Sectors;
        self
    }

    /// The error's kind.
    #[must_use]
    pub fn with_kind(mut self, kind: StorageErrorKind) -> Self {
        self.kind = kind;
        self
    }
}

/// Fails as its rules say, or for want of space, and passes everything else on.
///
/// ```
/// use qcowkit_core::storage::{FailingStorage, FailureRule, FailureScope, MemoryStorage, Storage, StorageOperation};
///
/// let disk = FailingStorage::new(MemoryStorage::new());
/// disk.fail(FailureRule::nth(FailureScope::Only(StorageOperation::Write), 2));
/// assert!(disk.write_at(0, b"first").is_ok());
/// assert!(disk.write_at(0, b"second").is_err());
/// assert!(disk.write_at(0, b"third").is_ok());
/// ```
#[derive(Debug, Default)]
pub struct FailingStorage<S> {
    inner: S,
    /// Rules with the number of calls they have seen.
    rules: RefCell<Vec<(FailureRule, u64)>>,
    /// The bytes that may still be allocated, when that is limited.
    space: Cell<Option<u64>>,
    failures: Cell<u64>,
}

impl<S> FailingStorage<S> {
    /// Wraps a store; nothing fails yet.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, rules: RefCell::default(), space: Cell::default(), failures: Cell::default() }
    }

    /// The store below, which does not fail.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The store below, given back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Adds a rule.
    pub fn fail(&self, rule: FailureRule) {
        self.rules.borrow_mut().push((rule, 0));
    }

    /// From now on only so many more bytes can be allocated, in units of 4 KiB; then what needs more fails with
    /// [`StorageErrorKind::NoSpace`] and changes nothing. Discards, unmapped zeros and cuts give space back. Needs a
    /// store whose extents tell data from holes.
    pub fn limit_space(&self, bytes: u64) {
        self.space.set(Some(bytes));
    }

    /// Drops all rules and limits.
    pub fn heal(&self) {
        self.rules.borrow_mut().clear();
        self.space.set(None);
    }

    /// How often it has failed on purpose.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Counts the call; the rule that fails it, if one does.
    fn strike(&self, operation: StorageOperation) -> Option<FailureRule> {
        let mut struck = None;
        for (rule, seen) in self.rules.borrow_mut().iter_mut().filter(|(rule, _)| rule.scope.holds(operation)) {
            *seen = seen.saturating_add(1);
            if *seen == rule.nth || (rule.from_then_on && *seen > rule.nth) {
                struck = Some(rule.clone());
            }
        }
        struck
    }

    fn admit(&self, operation: StorageOperation, offset: Option<u64>) -> Result<&S, StorageError> {
        match self.strike(operation) {
            Some(rule) => Err(self.failure(rule.kind, operation, offset)),
            None => Ok(&self.inner),
        }
    }

    fn failure(&self, kind: StorageErrorKind, operation: StorageOperation, offset: Option<u64>) -> StorageError {
        self.failures.set(self.failures.get().saturating_add(1));
        let error = StorageError::new(kind, operation.verb());
        match offset {
            Some(offset) => error.at(offset),
            None => error,
        }
    }
}

impl<S: Storage> FailingStorage<S> {
    /// Does a call that may allocate or free space in a range, within the limit of space.
    fn within_space(
        &self,
        operation: StorageOperation,
        range: (u64, u64),
        allocates: bool,
        call: impl FnOnce(&S) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let Some(space) = self.space.get() else { return call(&self.inner) };
        let before = self.unallocated(range)?;
        if allocates && before > space {
            return Err(self.failure(StorageErrorKind::NoSpace, operation, Some(range.0)));
        }
        call(&self.inner)?;
        let after = self.unallocated(range)?;
        self.space.set(Some(space.saturating_add(after).saturating_sub(before)));
        Ok(())
    }

    /// The bytes of the 4 KiB units which the range touches that are not allocated; past the end, all of them.
    fn unallocated(&self, (offset, length): (u64, u64)) -> Result<u64, StorageError> {
        const UNIT: u64 = 4096;
        let end = offset.saturating_add(length).div_ceil(UNIT).saturating_mul(UNIT);
        let mut at = (offset / UNIT).saturating_mul(UNIT);
        // The last unit of the store is allocated as a whole, though the extents stop at the end.
        let store_end = self.inner.len()?.div_ceil(UNIT).saturating_mul(UNIT);
        let mut holes = 0_u64;
        while at < end {
            let extent = self.inner.next_extent(at)?;
            let mut until = at.saturating_add(extent.length);
            if extent.length == 0 {
                until = end;
            } else if until.div_ceil(UNIT).saturating_mul(UNIT) == store_end {
                until = store_end;
            }
            let until = until.min(end);
            if extent.kind == StorageExtentKind::Hole {
                holes = holes.saturating_add(until.saturating_sub(at));
            }
            at = until;
        }
        Ok(holes)
    }
}

impl<S: ReadStorage> ReadStorage for FailingStorage<S> {
    fn len(&self) -> Result<u64, StorageError> {
        self.admit(StorageOperation::Len, None)?.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.admit(StorageOperation::Read, Some(offset))?.read_at(offset, into)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        self.admit(StorageOperation::NextExtent, Some(offset))?.next_extent(offset)
    }
}

impl<S: Storage> Storage for FailingStorage<S> {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let operation = StorageOperation::Write;
        if let Some(rule) = self.strike(operation) {
            let written = rule.part.of(offset, from.len());
            if written > 0 {
                self.inner.write_at(offset, from.split_at(written).0)?;
            }
            return Err(self.failure(rule.kind, operation, Some(offset)));
        }
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        self.within_space(operation, (offset, length), true, |inner| inner.write_at(offset, from))
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let operation = StorageOperation::WriteZeroes;
        self.admit(operation, Some(offset))?;
        let allocates = mode == ZeroMode::KeepAllocated;
        self.within_space(operation, (offset, length), allocates, |inner| inner.write_zeroes(offset, length, mode))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let operation = StorageOperation::Discard;
        self.admit(operation, Some(offset))?;
        let inside = length.min(self.inner.len()?.saturating_sub(offset));
        self.within_space(operation, (offset, inside), false, |inner| inner.discard(offset, length))
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        let operation = StorageOperation::SetLen;
        self.admit(operation, Some(length))?;
        let cut = self.inner.len()?.saturating_sub(length);
        self.within_space(operation, (length, cut), false, |inner| inner.set_len(length))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let operation = StorageOperation::Allocate;
        self.admit(operation, Some(offset))?;
        self.within_space(operation, (offset, length), true, |inner| inner.allocate(offset, length))
    }

    fn barrier(&self) -> Result<(), StorageError> {
        self.admit(StorageOperation::Barrier, None)?.barrier()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn keeps_every_promise_while_nothing_fails() {
        conformance::check_all(|length| Ok(FailingStorage::new(MemoryStorage::with_len(length)))).unwrap();
        conformance::check_all(|length| {
            let disk = FailingStorage::new(MemoryStorage::with_len(length));
            disk.limit_space(1 << 30);
            Ok(disk)
        })
        .unwrap();
    }

    #[test]
    fn rules_count_what_they_are_about() {
        let disk = FailingStorage::new(MemoryStorage::new());
        disk.fail(FailureRule::nth(FailureScope::Only(StorageOperation::Barrier), 2));
        disk.fail(FailureRule::nth(FailureScope::WriteSide, 4).from_then_on().with_kind(StorageErrorKind::ReadOnly));
        disk.write_at(0, b"a").unwrap();
        disk.barrier().unwrap();
        disk.len().unwrap();
        assert_eq!(disk.barrier().unwrap_err().kind, StorageErrorKind::Other("failed on purpose".into()));
        assert_eq!(disk.barrier().unwrap_err().kind, StorageErrorKind::ReadOnly);
        assert_eq!(disk.discard(0, 1).unwrap_err().kind, StorageErrorKind::ReadOnly);
        disk.read_at(0, &mut [0]).unwrap();
        assert_eq!(disk.failures(), 3);
        disk.heal();
        disk.write_at(0, b"b").unwrap();
    }

    #[test]
    fn each_operation_can_fail() {
        let disk = FailingStorage::new(MemoryStorage::with_len(10));
        disk.fail(FailureRule::nth(FailureScope::Any, 1).from_then_on());
        assert!(disk.len().is_err() && disk.read_at(0, &mut []).is_err() && disk.next_extent(0).is_err());
        assert!(disk.write_at(0, b"x").is_err() && disk.write_zeroes(0, 1, ZeroMode::MayUnmap).is_err());
        assert!(disk.discard(0, 1).is_err() && disk.set_len(3).is_err() && disk.allocate(0, 99).is_err());
        assert!(disk.barrier().is_err());
        conformance::check_contents(disk.inner(), &[0; 10]).unwrap();
    }

    #[test]
    fn half_a_write() {
        let disk = FailingStorage::new(MemoryStorage::new());
        disk.fail(FailureRule::nth(FailureScope::Any, 1).half_written());
        disk.write_at(0, b"abcd").unwrap_err();
        assert_eq!(disk.inner().to_vec().unwrap(), b"ab");
    }

    #[test]
    fn half_of_the_sectors() {
        for (offset, length, written) in [(0, 512, 0), (0, 1024, 512), (500, 20, 0), (500, 40, 12), (100, 3000, 1436)] {
            let disk = FailingStorage::new(MemoryStorage::new());
            disk.fail(FailureRule::nth(FailureScope::Any, 1).torn());
            disk.write_at(offset, &alloc::vec![7; length]).unwrap_err();
            let left = if written == 0 { 0 } else { offset + written };
            assert_eq!(disk.inner().len().unwrap(), left, "{length} bytes at {offset}");
        }
    }

    #[test]
    fn space_runs_out_and_comes_back() {
        let disk = FailingStorage::new(MemoryStorage::new());
        disk.limit_space(3 * 4096);
        disk.write_at(100, &[1; 5000]).unwrap();
        disk.write_at(200, &[2; 7000]).unwrap();
        disk.write_zeroes(0, 1 << 40, ZeroMode::MayUnmap).unwrap();
        disk.write_at(0, &[3; 3 * 4096]).unwrap();
        for refused in [
            disk.write_at(3 * 4096, &[4]),
            disk.allocate(0, 3 * 4096 + 1),
            disk.write_zeroes(1 << 30, 1, ZeroMode::KeepAllocated),
        ] {
            assert_eq!(refused.unwrap_err().kind, StorageErrorKind::NoSpace);
        }
        assert_eq!(disk.inner().allocated_bytes(), 3 * 4096);
        disk.discard(0, 4096).unwrap();
        disk.allocate(1 << 30, 1).unwrap();
        disk.set_len(1).unwrap();
        disk.write_at(0, &[5; 3 * 4096]).unwrap();
        disk.write_at(3 * 4096, &[6]).unwrap_err();
    }
}
