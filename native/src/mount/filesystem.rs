//! What the kernel asks, and the answers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use qcowkit_core::image::{Content, Extent};
use qcowkit_core::storage::StorageErrorKind;
use qcowkit_core::{Error, ErrorKind, Result};

use super::{MountRequest, Slot};
use crate::shared::SharedDisk;

/// How long the kernel may believe what it was told of the file.
const TTL: Duration = Duration::from_secs(1);

/// Longest write; larger ones bring nothing and hold a range for longer.
const MAX_WRITE: u32 = 1 << 20;

/// The disk in a directory; in place of a file it is the root.
const DISK_IN_DIRECTORY: INodeNo = INodeNo(2);

/// Where the disk is.
#[derive(Debug)]
pub(super) enum Place {
    /// In place of a file.
    Root,
    /// In a directory, with this name.
    In(OsString),
}

/// A file system with one file.
pub(super) struct Export {
    disk: Slot,
    size: u64,
    place: Place,
    writable: bool,
    allow_other: bool,
    owner: (u32, u32),
    made: SystemTime,
    changed: Mutex<SystemTime>,
    failed: Box<dyn Fn(&Error) + Send + Sync>,
}

impl Export {
    pub(super) fn new(
        disk: Slot,
        size: u64,
        place: Place,
        request: &MountRequest,
        failed: Box<dyn Fn(&Error) + Send + Sync>,
    ) -> Self {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let (writable, allow_other) = (request.writable, request.allow_other);
        let made = SystemTime::now();
        Self { disk, size, place, writable, allow_other, owner, made, changed: Mutex::new(made), failed }
    }

    /// Does something with the disk, and makes an error number of what goes wrong.
    fn with<T>(&self, action: impl FnOnce(&SharedDisk) -> Result<T>) -> Result<T, Errno> {
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        let Some(disk) = disk.as_ref() else { return Err(Errno::ENOTCONN) };
        action(disk).map_err(|error| {
            (self.failed)(&error);
            errno(&error)
        })
    }

    fn change(&self, action: impl FnOnce(&SharedDisk) -> Result<()>) -> Result<(), Errno> {
        if !self.writable {
            return Err(Errno::EROFS);
        }
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
        self.with(action)
    }

    fn disk_node(&self) -> INodeNo {
        match self.place {
            Place::Root => INodeNo::ROOT,
            Place::In(_) => DISK_IN_DIRECTORY,
        }
    }

    fn disk_attributes(&self) -> FileAttr {
        let held = self.with(SharedDisk::allocated_bytes).unwrap_or(0);
        let mode = match (self.writable, self.allow_other) {
            (true, false) => 0o600,
            (true, true) => 0o644,
            (false, false) => 0o400,
            (false, true) => 0o444,
        };
        let changed = *self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        FileAttr {
            size: self.size,
            blocks: held.div_ceil(512),
            mtime: changed,
            ctime: changed,
            ..self.attributes(self.disk_node(), FileType::RegularFile, mode)
        }
    }

    fn root_attributes(&self) -> FileAttr {
        match self.place {
            Place::Root => self.disk_attributes(),
            Place::In(_) => {
                let mode = if self.allow_other { 0o555 } else { 0o500 };
                FileAttr { nlink: 2, ..self.attributes(INodeNo::ROOT, FileType::Directory, mode) }
            }
        }
    }

    fn attributes(&self, ino: INodeNo, kind: FileType, perm: u16) -> FileAttr {
        FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn node(&self, ino: INodeNo) -> Option<FileAttr> {
        match ino {
            _ if ino == self.disk_node() => Some(self.disk_attributes()),
            INodeNo::ROOT => Some(self.root_attributes()),
            _ => None,
        }
    }

    /// The first byte from `offset` on that is data, or a hole, whichever is asked for.
    fn seek(&self, offset: u64, data: bool) -> Result<u64, Errno> {
        let mut at = offset;
        while at < self.size {
            let extent: Extent = self.with(|disk| disk.next_extent(at, self.size - at))?;
            let hole = matches!(extent.content, Content::Zero { .. } | Content::Unallocated);
            if hole != data {
                return Ok(at);
            }
            at += extent.length.max(1);
        }
        // The end counts as a hole.
        if data || offset >= self.size { Err(Errno::ENXIO) } else { Ok(self.size) }
    }

    /// A range cut to the disk.
    fn inside(&self, offset: u64, length: u64) -> u64 {
        self.size.saturating_sub(offset).min(length)
    }
}

/// The system's number for what went wrong.
fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NoSpace(_) => Errno::ENOSPC,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::OutOfRange | ErrorKind::InvalidArgument(_) => Errno::EINVAL,
        ErrorKind::Denied(_) | ErrorKind::Encrypted(_) => Errno::EACCES,
        ErrorKind::Storage(storage) => match &storage.kind {
            StorageErrorKind::NoSpace => Errno::ENOSPC,
            StorageErrorKind::ReadOnly => Errno::EROFS,
            StorageErrorKind::Os { code, .. } => Errno::from_i32(*code),
            _ => Errno::EIO,
        },
        _ => Errno::EIO,
    }
}

impl Filesystem for Export {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(64);
        // Requests of one file side by side, also without the page cache.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match &self.place {
            Place::In(own) if parent == INodeNo::ROOT && own == name => {
                reply.entry(&TTL, &self.disk_attributes(), Generation(0));
            }
            Place::In(_) | Place::Root => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A disk has its size. Times are ours to tell.
        let refused = mode.is_some() || uid.is_some() || gid.is_some() || size.is_some_and(|size| size != self.size);
        match self.node(ino) {
            Some(attributes) if !refused => reply.attr(&TTL, &attributes),
            Some(_) => reply.error(Errno::EPERM),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if ino != self.disk_node() {
            return reply.error(Errno::EISDIR);
        }
        let flags = if self.writable {
            // Without the page cache each request comes as it was made, and those of several users side by side.
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        } else {
            // Nothing changes: what the kernel has read stays true.
            FopenFlags::FOPEN_KEEP_CACHE
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; self.inside(offset, size.into()) as usize];
        match self.with(|disk| if bytes.is_empty() { Ok(()) } else { disk.read_at(offset, &mut bytes) }) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // As a device: what does not fit is not written, and where nothing fits there is no space.
        let length = self.inside(offset, data.len() as u64) as usize;
        if length == 0 && !data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        let durable = flags.0 & libc::O_DSYNC != 0;
        let written = self.change(|disk| {
            disk.write_at(offset, &data[..length])?;
            if durable { disk.flush() } else { Ok(()) }
        });
        match written {
            Ok(()) => reply.written(length as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing a file promises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, if self.writable { self.with(SharedDisk::flush) } else { Ok(()) });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let inside = self.inside(offset, length);
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0 || inside == length;
        let done = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // Loop devices ask so for discards, and for zeros that may unmap: it must read as zeros afterwards.
            libc::FALLOC_FL_PUNCH_HOLE => self.change(|disk| disk.punch(offset, inside)),
            libc::FALLOC_FL_ZERO_RANGE if keeps_size => self.change(|disk| disk.write_zeroes(offset, inside, false)),
            libc::FALLOC_FL_ZERO_RANGE => Err(Errno::ENOSPC),
            _ => Err(Errno::EOPNOTSUPP),
        };
        answer(reply, done);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => self.seek(offset, true),
            (Ok(offset), libc::SEEK_HOLE) => self.seek(offset, false),
            _ => Err(Errno::EINVAL),
        };
        match found {
            Ok(at) => reply.offset(at as i64),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Place::In(name) = &self.place else { return reply.error(Errno::ENOTDIR) };
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, OsStr::new(".")),
            (INodeNo::ROOT, FileType::Directory, OsStr::new("..")),
            (DISK_IN_DIRECTORY, FileType::RegularFile, name),
        ];
        for (next, (ino, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Loop devices take the block size as the unit in which discards pay.
        let unit = self.with(|disk| Ok(disk.cluster_size().unwrap_or(4096))).unwrap_or(4096);
        reply.statfs(self.size.div_ceil(unit), 0, 0, 1, 0, unit as u32, 255, unit as u32);
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}
