//! Files and block devices as storage.

#[cfg(debug_assertions)]
mod ordeal;
mod sys;

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcowkit_core::storage::{
    Capabilities, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind,
    StorageOperation, ZeroMode,
};

use crate::error::storage_error;
use crate::lock::LockRequest;

/// The largest offset that the operating system takes.
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();
/// The number that every system has for a directory where a file is wanted.
const EISDIR: i32 = 21;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// It must exist; writes are refused.
    Read,
    /// It must exist.
    Write,
    /// It is made when it does not exist. What it holds stays: take a lock before cutting it.
    Create,
    /// It must not exist.
    CreateNew,
}

impl FileAccess {
    fn options(self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(self != Self::Read);
        options.create(self == Self::Create).create_new(self == Self::CreateNew);
        options
    }
}

/// What a file is, whatever names lead to it: two paths with equal identities are the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdentity {
    /// The device that holds it.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

/// A regular file or a block device.
///
/// Calls are positional, so one `FileStorage` can be used by many threads. Holes are made with `fallocate` and found
/// with `SEEK_HOLE`, where the file system has them; where it has not, zeros are written and discards do nothing. A
/// barrier is `fdatasync`.
///
/// A file system may count space that is reserved but was never written as a hole.
///
/// Past the end of the file are zeros, but only where nothing was before: what another program has cut off is an error, and
/// a file of which that was found is not written any more. It is found by reads there, and by asking for the length, as
/// barriers do.
///
/// ```
/// use qcowkit::file::{FileAccess, FileStorage};
/// use qcowkit_core::storage::{ReadStorage, Storage};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("disk");
/// let disk = FileStorage::open(&path, FileAccess::CreateNew)?;
/// disk.write_at(1 << 30, b"a gigabyte away")?;
/// disk.barrier()?;
/// assert_eq!(disk.len()?, (1 << 30) + 15);
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
///
/// A clone is another handle on the same open file; the file is closed, and its locks end, with the last one.
#[derive(Clone)]
pub struct FileStorage {
    file: Arc<File>,
    path: Arc<Path>,
    read_only: bool,
    /// The length of a block device; `None` for a file.
    device_length: Option<u64>,
    capabilities: Capabilities,
    state: Arc<State>,
}

impl Drop for FileStorage {
    /// Gives the locks up by name. Closing would do the same, but for a process that is being started meanwhile: until it
    /// runs its own program it has a copy of every handle, and with it the locks.
    fn drop(&mut self) {
        if Arc::strong_count(&self.state) == 1 {
            let _ = self.lock(LockRequest::NONE);
        }
    }
}

/// What all handles on an open file share.
struct State {
    /// No other process changes the file: what was learned of holes stays true.
    exclusive: AtomicBool,
    /// Barriers wait for the disk.
    barriers: AtomicBool,
    /// The length that the file had, or was made to have, at least.
    length: AtomicU64,
    /// Somebody else has made it shorter.
    cut: AtomicBool,
    /// The number of changes made, by which an old extent is known.
    changes: AtomicU64,
    last_extent: Mutex<Option<CachedExtent>>,
    held_locks: Mutex<LockRequest>,
}

#[derive(Clone, Copy)]
struct CachedExtent {
    start: u64,
    end: u64,
    kind: StorageExtentKind,
    changes: u64,
}

impl FileStorage {
    /// Opens a file or block device by name.
    ///
    /// # Errors
    /// When the system refuses, or the name is of a directory, a pipe, a socket or a character device.
    pub fn open(path: impl AsRef<Path>, access: FileAccess) -> Result<Self, StorageError> {
        let path = path.as_ref();
        let fail = |error: io::Error| storage_error(&error, "open", None);
        // Asked before opening, which can have effects on what is no file: a tape is wound, a pipe's other end wakes up.
        let mut device = false;
        match std::fs::metadata(path) {
            Ok(metadata) => {
                refuse_other_kinds(&metadata)?;
                device = sys::is_block_device(&metadata);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let mut options = access.options();
        let mut opened = if device {
            options.open(path)
        } else {
            // Should the name stand for a pipe by now, this does not wait for its other end.
            sys::without_waiting(&mut options).open(path)
        };
        if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            // Somebody has a lease on the file, and gives it up for whoever waits.
            opened = access.options().open(path);
        }
        Self::from_file(opened.map_err(fail)?, path, access != FileAccess::Read)
    }

    /// Takes a file that is open already, for reading and, when `writable`, for writing. The path is for messages.
    ///
    /// # Errors
    /// When the system refuses, or it is neither a regular file nor a block device.
    pub fn from_file(file: File, path: impl Into<PathBuf>, writable: bool) -> Result<Self, StorageError> {
        let fail = |error: io::Error| storage_error(&error, "open", None);
        let metadata = file.metadata().map_err(fail)?;
        refuse_other_kinds(&metadata)?;
        let device_length =
            if sys::is_block_device(&metadata) { Some(sys::device_length(&file).map_err(fail)?) } else { None };
        let capabilities = Capabilities {
            read_only: !writable,
            grows: writable && device_length.is_none(),
            block_device: device_length.is_some(),
            request_alignment: 1,
            discard_alignment: sys::block_bytes(&metadata),
            holes_read_zero: device_length.is_none() && sys::punches_holes(&file),
        };
        Ok(Self {
            file: Arc::new(file),
            path: path.into().into(),
            read_only: !writable,
            device_length,
            capabilities,
            state: Arc::new(State {
                exclusive: AtomicBool::new(false),
                barriers: AtomicBool::new(true),
                length: AtomicU64::new(metadata.len()),
                cut: AtomicBool::new(false),
                changes: AtomicU64::new(0),
                last_extent: Mutex::new(None),
                held_locks: Mutex::default(),
            }),
        })
    }

    /// The name that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the file is, to find loops in backing chains; `None` where the system has no such thing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn identity(&self) -> Result<Option<FileIdentity>, StorageError> {
        Ok(sys::identity(&self.metadata()?))
    }

    /// Where the open file is, with links resolved: that very file, whatever its name has come to stand for since. On other
    /// systems than Linux, where the name leads now, if that is this file.
    ///
    /// # Errors
    /// When the system refuses, or the name leads to another file by now.
    pub fn real_path(&self) -> Result<PathBuf, StorageError> {
        let fail = |error: io::Error| storage_error(&error, "open", None);
        if let Some(path) = sys::path_of(&self.file) {
            return Ok(path);
        }
        let path = self.path.canonicalize().map_err(fail)?;
        // Without a last look at links: there is none in a name that was resolved.
        if sys::identity(&path.symlink_metadata().map_err(fail)?) == self.identity()? {
            return Ok(path);
        }
        Err(StorageError::new(StorageErrorKind::Other("the name leads to another file by now".to_owned()), "open"))
    }

    /// The bytes that the file system has allocated for the file, what `du` says; a block device has its length.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn allocated_bytes(&self) -> Result<u64, StorageError> {
        match self.device_length {
            Some(length) => Ok(length),
            None => Ok(sys::allocated_bytes(&self.metadata()?)),
        }
    }

    /// Whether barriers wait for the disk, as they do at first. Without, a power cut can damage all of the file: for
    /// files that are worth nothing until they are complete (QEMU: `cache=unsafe`).
    pub fn set_barriers(&self, wait: bool) {
        self.state.barriers.store(wait, Ordering::Release);
    }

    /// Cuts a file to no bytes, so that it can be written anew; a device stays as it is.
    ///
    /// ext4 takes a file that is cut and then written for one that replaces another, and writes all of it to the disk
    /// when it is closed, which takes as long as a flush that nobody asked for. Closed once while it is empty, the file is
    /// an ordinary one again (as QEMU's are, which are opened anew after they were made).
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn clear(&self) -> Result<(), StorageError> {
        if self.device_length.is_some() || self.len()? == 0 {
            return Ok(());
        }
        self.set_len(0)?;
        drop(File::open(&self.path));
        Ok(())
    }

    /// Has the system copy bytes from another file: file systems that can share blocks do that. False where it cannot;
    /// part of the range may be overwritten then.
    ///
    /// # Errors
    /// As [`Storage::write_at`].
    pub fn copy_from(&self, source: &Self, from: u64, to: u64, length: u64) -> Result<bool, StorageError> {
        self.admit(StorageOperation::Write, to, length)?;
        #[cfg(debug_assertions)]
        ordeal::call(|| drop(sys::copy_range(source.file(), from, self.file(), to, length / 2)));
        let copied = sys::copy_range(source.file(), from, self.file(), to, length);
        self.changed(StorageOperation::Write, to, copied.as_ref().map(drop).map_err(|error| error.kind().into()))?;
        // As far as it came: the rest will be written.
        if matches!(copied, Ok(true)) {
            self.reaches(to.saturating_add(length));
        }
        copied.map_err(|error| storage_error(&error, StorageOperation::Write.verb(), Some(to)))
    }

    /// The image locks held on the file.
    pub(crate) fn held_locks(&self) -> MutexGuard<'_, LockRequest> {
        self.state.held_locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing changes the file as long as it is open so: this handle only reads, and a lock keeps out all others
    /// that ask for one.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.read_only && self.state.exclusive.load(Ordering::Acquire)
    }

    /// Says that no other process changes the file, so that what is known of its holes may be kept.
    pub(crate) fn set_exclusive(&self, exclusive: bool) {
        self.state.exclusive.store(exclusive, Ordering::Release);
    }

    fn metadata(&self) -> Result<Metadata, StorageError> {
        self.file.metadata().map_err(|error| storage_error(&error, StorageOperation::Len.verb(), None))
    }

    /// The file is at least this long now.
    fn reaches(&self, end: u64) {
        if self.state.length.load(Ordering::Relaxed) < end {
            self.state.length.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// The length of a file, unless somebody else has made it shorter.
    fn checked_length(&self, operation: StorageOperation) -> Result<u64, StorageError> {
        // Twice: another thread may make it shorter and longer again in between.
        for _ in 0..2 {
            let known = self.state.length.load(Ordering::Acquire);
            let length = self.file.metadata().map_err(|error| storage_error(&error, operation.verb(), None))?.len();
            if length >= known.min(self.state.length.load(Ordering::Acquire)) {
                return Ok(length);
            }
        }
        self.state.cut.store(true, Ordering::Release);
        Err(self.cut_short(operation))
    }

    fn cut_short(&self, operation: StorageOperation) -> StorageError {
        let was = self.state.length.load(Ordering::Acquire);
        let what = format!("another program has made the file shorter than the {was} bytes that it had");
        StorageError::new(StorageErrorKind::Other(what), operation.verb())
    }

    /// Refuses what cannot be, and gives the end of the range.
    fn admit(&self, operation: StorageOperation, offset: u64, length: u64) -> Result<u64, StorageError> {
        let refuse = |kind| Err(StorageError::new(kind, operation.verb()).at(offset));
        if self.read_only {
            return refuse(StorageErrorKind::ReadOnly);
        }
        if self.state.cut.load(Ordering::Acquire) {
            return Err(self.cut_short(operation).at(offset));
        }
        let limit = self.device_length.unwrap_or(MAX_OFFSET);
        let Some(end) = offset.checked_add(length).filter(|end| *end <= limit) else {
            return refuse(StorageErrorKind::OutOfBounds);
        };
        #[cfg(debug_assertions)]
        if operation != StorageOperation::Write {
            ordeal::call(|| ());
        }
        Ok(end)
    }

    /// Ends a call that changed something, or tried to.
    fn changed(&self, operation: StorageOperation, offset: u64, done: io::Result<()>) -> Result<(), StorageError> {
        self.state.changes.fetch_add(1, Ordering::AcqRel);
        done.map_err(|error| storage_error(&error, operation.verb(), Some(offset)))
    }

    /// Makes zeros in a range that is not empty.
    fn zero(&self, offset: u64, end: u64, mode: ZeroMode) -> io::Result<()> {
        let length = end - offset;
        match mode {
            ZeroMode::MayUnmap => {
                let old_end = match self.device_length {
                    Some(length) => length,
                    None => self.file.metadata()?.len(),
                };
                if end > old_end {
                    // A written byte moves the end and, unlike a new length that is set, never moves it back when
                    // another thread has just written behind it. The hole swallows its block again.
                    sys::write_all_at(&self.file, &[0], end - 1)?;
                }
                if sys::punch(&self.file, offset, length)? {
                    return Ok(());
                }
                let inside = end.min(old_end);
                if offset < inside { write_zeros(&self.file, offset, inside) } else { Ok(()) }
            }
            ZeroMode::KeepAllocated => {
                if sys::zero_range(&self.file, offset, length)? {
                    return Ok(());
                }
                write_zeros(&self.file, offset, end)
            }
        }
    }

    /// Asks the system for the extent at `offset`, and its end: that of the file where there is nothing more.
    fn seek_extent(&self, offset: u64) -> io::Result<(StorageExtentKind, u64)> {
        if let Some(length) = self.device_length {
            return Ok((StorageExtentKind::Unknown, length));
        }
        let file_end = || Ok::<_, io::Error>(self.file.metadata()?.len());
        // Behind a hole there are data.
        let data = if self.hole_ends_at(offset) { sys::Found::At(offset) } else { sys::next_data(&self.file, offset)? };
        Ok(match data {
            sys::Found::At(data) if data > offset => (StorageExtentKind::Hole, data),
            sys::Found::At(_) => match sys::next_hole(&self.file, offset)? {
                sys::Found::At(hole) if hole > offset => (StorageExtentKind::Data, hole),
                // The file changed between the two questions.
                _ => (StorageExtentKind::Unknown, file_end()?),
            },
            sys::Found::Nothing => (StorageExtentKind::Hole, file_end()?),
            sys::Found::CannotTell => (StorageExtentKind::Unknown, file_end()?),
        })
    }

    /// Whether the last extent was a hole up to here, within the file. Should that be stale, the bytes are read.
    fn hole_ends_at(&self, offset: u64) -> bool {
        let last = *self.state.last_extent.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| {
            let unchanged = last.changes == self.state.changes.load(Ordering::Acquire);
            unchanged && last.kind == StorageExtentKind::Hole && last.end == offset
        })
    }

    fn cached_extent(&self, offset: u64) -> Option<StorageExtent> {
        let cached = (*self.state.last_extent.lock().unwrap_or_else(PoisonError::into_inner))?;
        let holds = cached.start <= offset
            && offset < cached.end
            && cached.changes == self.state.changes.load(Ordering::Acquire)
            // Stale data is read and shows what is there. A stale hole would hide it.
            && (cached.kind != StorageExtentKind::Hole || self.state.exclusive.load(Ordering::Acquire));
        holds.then(|| StorageExtent { kind: cached.kind, length: cached.end - offset })
    }
}

impl fmt::Debug for FileStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStorage").field("path", &self.path).field("capabilities", &self.capabilities).finish()
    }
}

impl ReadStorage for FileStorage {
    fn len(&self) -> Result<u64, StorageError> {
        match self.device_length {
            Some(length) => Ok(length),
            None => self.checked_length(StorageOperation::Len),
        }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            // Past the largest offset there is nothing, but asking there is an error.
            let room = usize::try_from(MAX_OFFSET.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            if room == 0 {
                rest.fill(0);
                break;
            }
            match sys::read_at(&self.file, &mut rest[..room], at) {
                Ok(0) => {
                    // Past the end, unless the file went on here.
                    if self.device_length.is_none() && at < self.state.length.load(Ordering::Acquire) {
                        self.checked_length(StorageOperation::Read).map_err(|error| error.at(at))?;
                    }
                    rest.fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(storage_error(&error, StorageOperation::Read.verb(), Some(at))),
            }
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        if let Some(extent) = self.cached_extent(offset) {
            return Ok(extent);
        }
        let changes = self.state.changes.load(Ordering::Acquire);
        let (kind, end) = self
            .seek_extent(offset)
            .map_err(|error| storage_error(&error, StorageOperation::NextExtent.verb(), Some(offset)))?;
        if offset >= end {
            if self.device_length.is_none() && offset < self.state.length.load(Ordering::Acquire) {
                self.checked_length(StorageOperation::NextExtent).map_err(|error| error.at(offset))?;
            }
            return Ok(StorageExtent { kind: StorageExtentKind::Hole, length: 0 });
        }
        *self.state.last_extent.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(CachedExtent { start: offset, end, kind, changes });
        Ok(StorageExtent { kind, length: end - offset })
    }
}

impl Storage for FileStorage {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.admit(StorageOperation::Write, offset, from.len() as u64)?;
        #[cfg(debug_assertions)]
        ordeal::call(|| drop(sys::write_all_at(&self.file, &from[..ordeal::half(offset, from.len())], offset)));
        self.changed(StorageOperation::Write, offset, sys::write_all_at(&self.file, from, offset))?;
        // Nothing, written past the end, does not make a file longer.
        if !from.is_empty() {
            self.reaches(offset.saturating_add(from.len() as u64));
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let end = self.admit(StorageOperation::WriteZeroes, offset, length)?;
        if length == 0 {
            return Ok(());
        }
        self.changed(StorageOperation::WriteZeroes, offset, self.zero(offset, end, mode))?;
        self.reaches(end);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        // To the end of the last block: a hole that stops at the end of the file would leave that block.
        let asked = offset.saturating_add(length).min(MAX_OFFSET);
        let block = u64::from(self.capabilities.discard_alignment);
        let end = match self.device_length {
            Some(length) => asked.min(length),
            None if asked.is_multiple_of(block) => asked,
            None => asked.min(self.len()?.checked_next_multiple_of(block).unwrap_or(MAX_OFFSET)),
        };
        if offset >= end {
            return if self.read_only { self.admit(StorageOperation::Discard, offset, 0).map(drop) } else { Ok(()) };
        }
        self.admit(StorageOperation::Discard, offset, end - offset)?;
        self.changed(StorageOperation::Discard, offset, sys::punch(&self.file, offset, end - offset).map(drop))
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.admit(StorageOperation::SetLen, length, 0)?;
        match self.device_length {
            Some(own) if own == length => Ok(()),
            Some(_) => {
                Err(StorageError::new(StorageErrorKind::OutOfBounds, StorageOperation::SetLen.verb()).at(length))
            }
            // Cutting a file where it ends already is not nothing: see `clear`.
            None if self.len()? == length => Ok(()),
            None => {
                // A thread that reads meanwhile finds the end that is going to be.
                let before = self.state.length.fetch_min(length, Ordering::AcqRel);
                let done = self.changed(StorageOperation::SetLen, length, self.file.set_len(length));
                self.reaches(if done.is_ok() { length } else { before });
                done
            }
        }
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.admit(StorageOperation::Allocate, offset, length)?;
        if length == 0 || self.device_length.is_some() {
            return Ok(());
        }
        self.changed(StorageOperation::Allocate, offset, sys::allocate(&self.file, offset, length))?;
        self.reaches(offset.saturating_add(length));
        Ok(())
    }

    fn barrier(&self) -> Result<(), StorageError> {
        if self.read_only || !self.state.barriers.load(Ordering::Acquire) {
            return Ok(());
        }
        self.len()?;
        self.file.sync_data().map_err(|error| storage_error(&error, StorageOperation::Barrier.verb(), None))
    }
}

fn refuse_other_kinds(metadata: &Metadata) -> Result<(), StorageError> {
    if metadata.is_file() || sys::is_block_device(metadata) {
        return Ok(());
    }
    let kind = match metadata.is_dir() {
        true => StorageErrorKind::Os { code: EISDIR, message: "is a directory".to_owned() },
        false => StorageErrorKind::Other("is neither a regular file nor a block device".to_owned()),
    };
    Err(StorageError::new(kind, "open"))
}

/// Writes zeros where the system cannot make them.
fn write_zeros(file: &File, offset: u64, end: u64) -> io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let longest = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
    let zeros = vec![0; longest];
    let mut at = offset;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(longest).min(longest);
        sys::write_all_at(file, &zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}
