//! Where the file system keeps a file: host extents by FIEMAP (Linux).

use serde::Serialize;

use qcowkit_core::storage::StorageError;

use crate::file::FileStorage;

/// A run of bytes of a file that is contiguous on the device below. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HostExtent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is. The last extent may reach past the end of the file.
    pub length: u64,
    /// Where it begins on the device, if it has such a place and the file system tells it.
    pub physical_offset: Option<u64>,
    /// Space is reserved but was never written: it reads as zeros.
    pub unwritten: bool,
    /// The blocks belong to other files too (a reflink copy or a file system snapshot).
    pub shared: bool,
    /// The file system has not chosen a place yet: the data waits in memory.
    pub delayed: bool,
    /// The bytes on the device are not these bytes: compressed or encrypted.
    pub encoded: bool,
    /// It is stored among the file system's metadata, or packed together with others, not in blocks of its own.
    pub inline: bool,
}

/// What to do about data that the file system has not yet written out, and so has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Report it as delayed.
    Report,
    /// Have it written out first.
    WriteOut,
}

/// The extents of a file in order; gaps between them are holes. Holds a few hundred at a time, however many there
/// are.
#[derive(Debug)]
pub struct HostExtents<'a> {
    #[cfg(target_os = "linux")]
    walk: fiemap::Walk<'a>,
    #[cfg(not(target_os = "linux"))]
    never: (std::convert::Infallible, std::marker::PhantomData<&'a FileStorage>),
}

impl<'a> HostExtents<'a> {
    /// The extents of a file; `None` when the file system does not tell.
    ///
    /// # Errors
    /// When the system fails.
    #[cfg(target_os = "linux")]
    pub fn of(storage: &'a FileStorage, pending: Pending) -> Result<Option<Self>, StorageError> {
        Ok(fiemap::Walk::start(storage.file(), pending)?.map(|walk| Self { walk }))
    }

    /// The extents of a file; `None` since this system does not tell.
    ///
    /// # Errors
    /// None.
    #[cfg(not(target_os = "linux"))]
    pub fn of(_storage: &'a FileStorage, _pending: Pending) -> Result<Option<Self>, StorageError> {
        Ok(None)
    }
}

impl Iterator for HostExtents<'_> {
    type Item = Result<HostExtent, StorageError>;

    #[cfg(target_os = "linux")]
    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next()
    }

    #[cfg(not(target_os = "linux"))]
    fn next(&mut self) -> Option<Self::Item> {
        match self.never.0 {}
    }
}

#[cfg(target_os = "linux")]
mod fiemap;
