//! The FIEMAP call (`linux/fiemap.h`).
//!
//! The only unsafe code is the `ioctl`, whose argument rustix does not know.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;

use qcowkit_core::storage::StorageError;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::{HostExtent, Pending};
use crate::error::storage_error;

/// Extents asked for at a time: 14 KiB.
const BATCH: usize = 256;

/// `struct fiemap`, without the extents that follow it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// The argument of the call: 32 bytes, then as many extents as it says there is room for.
#[repr(C)]
struct Argument {
    request: Request,
    extents: [Extent; BATCH],
}

/// The size encoded in the number is that of the request alone, though the kernel writes the extents too.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<Request>(b'f', 11);

const FLAG_SYNC: u32 = 1;
const LAST: u32 = 0x1;
const UNKNOWN: u32 = 0x2;
const DELAYED: u32 = 0x4;
const ENCODED: u32 = 0x8;
const INLINE: u32 = 0x200;
const TAIL: u32 = 0x400;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

pub(super) struct Walk<'a> {
    file: &'a File,
    argument: Box<Argument>,
    /// The next extent in the batch.
    next: usize,
    /// There is no batch after this one.
    finished: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn start(file: &'a File, pending: Pending) -> Result<Option<Self>, StorageError> {
        let flags = if pending == Pending::WriteOut { FLAG_SYNC } else { 0 };
        let request = Request { flags, ..Request::default() };
        let argument = Box::new(Argument { request, extents: [Extent::default(); BATCH] });
        let mut walk = Self { file, argument, next: 0, finished: false };
        match walk.ask(0) {
            Ok(()) => Ok(Some(walk)),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::BADR) => Ok(None),
            Err(error) => Err(fault(error, 0)),
        }
    }

    pub(super) fn next(&mut self) -> Option<Result<HostExtent, StorageError>> {
        if self.next >= self.batch().len() {
            if self.finished {
                return None;
            }
            let start = self.argument.request.start;
            let after = self.batch().last().map_or(start, |last| last.logical.saturating_add(last.length));
            // An answer that leads nowhere would be asked for again and again.
            if after <= start {
                return None;
            }
            if let Err(error) = self.ask(after) {
                self.finished = true;
                return Some(Err(fault(error, after)));
            }
        }
        let extent = *self.batch().get(self.next)?;
        self.next += 1;
        Some(Ok(translate(&extent)))
    }

    /// The extents of the last answer.
    fn batch(&self) -> &[Extent] {
        let count = usize::try_from(self.argument.request.mapped_extents).unwrap_or(BATCH);
        &self.argument.extents[..count.min(BATCH)]
    }

    fn ask(&mut self, start: u64) -> Result<(), Errno> {
        let request = &mut self.argument.request;
        request.start = start;
        request.length = u64::MAX - start;
        request.mapped_extents = 0;
        request.extent_count = BATCH as u32;
        self.next = 0;
        rustix::io::retry_on_intr(|| {
            // SAFETY: FS_IOC_FIEMAP takes a pointer to a `struct fiemap` which the kernel reads, and to which it
            // writes the answer and at most `extent_count` extents behind it. `Argument` has that layout (repr(C),
            // integers only, checked by a test) and room for BATCH extents, all of them initialised; any bits that
            // the kernel writes are values of these types. It is borrowed exclusively for the call, and the kernel
            // keeps no pointer. The opcode is the one of this call, and `Updater` passes the pointer unchanged.
            unsafe { ioctl(self.file, Updater::<FS_IOC_FIEMAP, Argument>::new(&mut self.argument)) }
        })?;
        self.finished = self.batch().last().is_none_or(|last| last.flags & LAST != 0);
        Ok(())
    }
}

impl fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("file", self.file).field("finished", &self.finished).finish()
    }
}

fn translate(extent: &Extent) -> HostExtent {
    let has = |flag: u32| extent.flags & flag != 0;
    HostExtent {
        offset: extent.logical,
        length: extent.length,
        physical_offset: (!has(UNKNOWN | DELAYED | INLINE)).then_some(extent.physical),
        unwritten: has(UNWRITTEN),
        shared: has(SHARED),
        delayed: has(DELAYED),
        encoded: has(ENCODED),
        inline: has(INLINE | TAIL),
    }
}

fn fault(error: Errno, offset: u64) -> StorageError {
    storage_error(&io::Error::from(error), "list host extents", Some(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Request>(), size_of::<Extent>()), (32, 56));
        assert_eq!(std::mem::offset_of!(Argument, extents), 32);
        assert_eq!(std::mem::offset_of!(Extent, flags), 40);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!(FS_IOC_FIEMAP, 0xc020_660b);
    }
}
