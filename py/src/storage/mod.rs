//! One kind of storage for everything that an image can lie in.

mod object;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::pybacked::PyBackedBytes;
use qcowkit::file::FileStorage;
use qcowkit_core::storage::{
    Capabilities, OverlayStorage, ReadOnly, ReadStorage, SliceStorage, Storage, StorageError, StorageExtent, ZeroMode,
};

use crate::calls;
pub(crate) use object::ObjectStorage;

/// What an image, a backing file or a data file lies in. A clone is another handle on the same.
#[derive(Clone)]
pub(crate) enum Store {
    /// A file or block device of this machine.
    File(FileStorage),
    /// Bytes that are there.
    Bytes(Arc<ReadOnly<SliceStorage<PyBackedBytes>>>),
    /// A file object of Python.
    Object(Arc<ObjectStorage>),
    /// Edits in memory, over what is only read.
    Scratch(Arc<Mutex<OverlayStorage<Store>>>),
}

impl Store {
    /// Bytes as they are.
    pub(crate) fn of_bytes(bytes: PyBackedBytes) -> Self {
        Self::Bytes(Arc::new(ReadOnly::new(SliceStorage::new(bytes))))
    }

    /// The same, edited in memory alone.
    ///
    /// # Errors
    /// When it cannot tell its length.
    pub(crate) fn scratch(self) -> Result<Self, StorageError> {
        Ok(Self::Scratch(Arc::new(Mutex::new(OverlayStorage::new(self)?))))
    }

    /// The file of this machine that it is, or that edits lie over.
    pub(crate) fn file(&self) -> Option<FileStorage> {
        match self {
            Self::File(file) => Some(file.clone()),
            Self::Bytes(_) | Self::Object(_) => None,
            Self::Scratch(overlay) => lock(overlay).base().file(),
        }
    }

    /// Whether threads that Python knows nothing of may read it, and gain by it: what a file object raises is kept for
    /// the thread that called, and edits are read by one at a time.
    pub(crate) fn is_readable_together(&self) -> bool {
        match self {
            Self::File(_) | Self::Bytes(_) => true,
            Self::Object(_) | Self::Scratch(_) => false,
        }
    }

    /// Whether what it holds stays the same as long as it is open: what was read before it was asked for is still right.
    pub(crate) fn is_still(&self) -> bool {
        match self {
            Self::File(file) => file.is_still(),
            Self::Bytes(_) => true,
            Self::Object(_) | Self::Scratch(_) => false,
        }
    }

    /// The edits, if it is edited in memory.
    pub(crate) fn overlay(&self) -> Option<MutexGuard<'_, OverlayStorage<Self>>> {
        match self {
            Self::Scratch(overlay) => Some(lock(overlay)),
            Self::File(_) | Self::Bytes(_) | Self::Object(_) => None,
        }
    }
}

/// Edits are whole calls: one that panicked has left what it left, as a failed write does.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same call of whatever it is.
macro_rules! each {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Self::File($inner) => $call,
            Self::Bytes($inner) => $call,
            Self::Object($inner) => $call,
            Self::Scratch(overlay) => {
                let $inner = &*lock(overlay);
                $call
            }
        }
    };
}

impl ReadStorage for Store {
    fn len(&self) -> Result<u64, StorageError> {
        each!(self, inner => inner.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        calls::checkpoint_of_read()?;
        each!(self, inner => inner.read_at(offset, into))
    }

    fn capabilities(&self) -> Capabilities {
        each!(self, inner => inner.capabilities())
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        each!(self, inner => inner.next_extent(offset))
    }
}

impl Storage for Store {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        each!(self, inner => inner.write_at(offset, from))
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        each!(self, inner => inner.write_zeroes(offset, length, mode))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        each!(self, inner => inner.discard(offset, length))
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        each!(self, inner => inner.set_len(length))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        each!(self, inner => inner.allocate(offset, length))
    }

    fn barrier(&self) -> Result<(), StorageError> {
        each!(self, inner => inner.barrier())
    }
}
