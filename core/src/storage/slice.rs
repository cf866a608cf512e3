//! Sources that cannot be written.

use super::{
    Capabilities, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind,
    StorageOperation, ZeroMode,
};

/// The read side over bytes in memory: `&[u8]`, `Vec<u8>`, `Arc<[u8]>` or anything else that shows a slice.
///
/// ```
/// use qcowkit_core::storage::{ReadStorage, SliceStorage};
///
/// let source = SliceStorage::new(b"QFI\xfb");
/// let mut bytes = [1; 6];
/// source.read_at(1, &mut bytes)?;
/// assert_eq!(&bytes, b"FI\xfb\0\0\0");
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SliceStorage<B>(B);

impl<B: AsRef<[u8]>> SliceStorage<B> {
    /// A source over `bytes`.
    #[must_use]
    pub fn new(bytes: B) -> Self {
        Self(bytes)
    }

    /// The bytes, given back.
    #[must_use]
    pub fn into_inner(self) -> B {
        self.0
    }

    fn length(&self) -> u64 {
        u64::try_from(self.0.as_ref().len()).unwrap_or(u64::MAX)
    }
}

impl<B: AsRef<[u8]>> ReadStorage for SliceStorage<B> {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.length())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = self.0.as_ref().get(start..).unwrap_or_default();
        let (part, past_end) = into.split_at_mut(source.len().min(into.len()));
        part.copy_from_slice(source.get(..part.len()).unwrap_or_default());
        past_end.fill(0);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: true, grows: false, ..Capabilities::default() }
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        let length = self.length().saturating_sub(offset);
        let kind = if length > 0 { StorageExtentKind::Data } else { StorageExtentKind::Hole };
        Ok(StorageExtent { kind, length })
    }
}

/// Gives a read-only source the write side, which refuses everything with [`StorageErrorKind::ReadOnly`]. A barrier
/// succeeds: nothing was written.
///
/// ```
/// use qcowkit_core::storage::{ReadOnly, SliceStorage, Storage, StorageErrorKind};
///
/// let store = ReadOnly::new(SliceStorage::new([0; 512]));
/// assert_eq!(store.write_at(0, b"x").unwrap_err().kind, StorageErrorKind::ReadOnly);
/// assert!(store.barrier().is_ok());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOnly<R>(R);

impl<R> ReadOnly<R> {
    /// Wraps a source.
    #[must_use]
    pub fn new(source: R) -> Self {
        Self(source)
    }

    /// The source.
    #[must_use]
    pub fn inner(&self) -> &R {
        &self.0
    }

    /// The source, given back.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.0
    }
}

impl<R: ReadStorage> ReadStorage for ReadOnly<R> {
    crate::forward_storage!(this => this.0; len, read_at, next_extent);

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: true, grows: false, ..self.0.capabilities() }
    }
}

impl<R: ReadStorage> Storage for ReadOnly<R> {
    fn write_at(&self, offset: u64, _from: &[u8]) -> Result<(), StorageError> {
        Err(refusal(StorageOperation::Write, offset))
    }

    fn write_zeroes(&self, offset: u64, _length: u64, _mode: ZeroMode) -> Result<(), StorageError> {
        Err(refusal(StorageOperation::WriteZeroes, offset))
    }

    fn discard(&self, offset: u64, _length: u64) -> Result<(), StorageError> {
        Err(refusal(StorageOperation::Discard, offset))
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        Err(refusal(StorageOperation::SetLen, length))
    }

    fn allocate(&self, offset: u64, _length: u64) -> Result<(), StorageError> {
        Err(refusal(StorageOperation::Allocate, offset))
    }

    fn barrier(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

fn refusal(operation: StorageOperation, offset: u64) -> StorageError {
    StorageError::new(StorageErrorKind::ReadOnly, operation.verb()).at(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};
    use alloc::sync::Arc;

    #[test]
    fn a_slice_keeps_the_promises_of_the_read_side() {
        let bytes: Arc<[u8]> = (0..=255).cycle().take(10_000).collect();
        conformance::check_contents(&SliceStorage::new(Arc::clone(&bytes)), &bytes).unwrap();
        conformance::check_contents(&SliceStorage::new(&bytes[..0]), &[]).unwrap();
    }

    #[test]
    fn every_change_is_refused() {
        let store = ReadOnly::new(MemoryStorage::from_bytes(&[9; 5000]));
        assert!(store.capabilities().read_only && !store.capabilities().grows);
        for refused in [
            store.write_at(0, &[]),
            store.write_zeroes(0, 1, ZeroMode::MayUnmap),
            store.discard(0, 1),
            store.set_len(5000),
            store.allocate(0, 1),
        ] {
            assert_eq!(refused.unwrap_err().kind, StorageErrorKind::ReadOnly);
        }
        conformance::check_contents(&store, &[9; 5000]).unwrap();
    }
}
