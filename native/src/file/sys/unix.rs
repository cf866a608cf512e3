//! Linux; and what other systems of this family share with it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;

use rustix::io::Errno;

use super::Found;
use crate::file::FileIdentity;

pub(in crate::file) fn read_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(into, offset)
}

pub(in crate::file) fn write_all_at(file: &File, from: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(from, offset)
}

pub(in crate::file) fn is_block_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_block_device()
}

pub(in crate::file) fn device_length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

pub(in crate::file) fn identity(metadata: &Metadata) -> Option<FileIdentity> {
    // A block device is the device, whichever node names it.
    let (device, inode) =
        if is_block_device(metadata) { (metadata.rdev(), u64::MAX) } else { (metadata.dev(), metadata.ino()) };
    Some(FileIdentity { device, inode })
}

/// Opens that would wait do not. Of files it changes nothing.
pub(in crate::file) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
}

/// The name of an open file, as the system knows it now.
#[cfg(target_os = "linux")]
pub(in crate::file) fn path_of(file: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn path_of(_file: &File) -> Option<PathBuf> {
    None
}

pub(in crate::file) fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// The unit in which the file system allocates.
pub(in crate::file) fn block_bytes(metadata: &Metadata) -> u32 {
    u32::try_from(metadata.blksize()).unwrap_or(4096).max(1)
}

/// Makes a hole within the file; false when the file system has none.
#[cfg(target_os = "linux")]
pub(in crate::file) fn punch(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    use rustix::fs::FallocateFlags;
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
}

/// Makes zeros that stay allocated, growing the file; false when the file system cannot.
#[cfg(target_os = "linux")]
pub(in crate::file) fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    fallocate(file, rustix::fs::FallocateFlags::ZERO_RANGE, offset, length)
}

#[cfg(target_os = "linux")]
fn fallocate(file: &File, flags: rustix::fs::FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, length)) {
        Ok(()) => Ok(true),
        // A device takes whole blocks only, and says EINVAL to others.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the file lies on a file system that is known to make holes. Trying it would change the file's times.
#[cfg(target_os = "linux")]
pub(in crate::file) fn punches_holes(file: &File) -> bool {
    // From linux/magic.h: ext2 to ext4, XFS, btrfs, tmpfs, F2FS, and bcachefs.
    const KNOWN: [u64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0xca45_1a4e];
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    rustix::fs::fstatfs(file).is_ok_and(|known| KNOWN.contains(&(u64::from(known.f_type as u32))))
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn punch(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn zero_range(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn punches_holes(_file: &File) -> bool {
    false
}

/// Reserves space, growing the file.
#[cfg(target_os = "linux")]
pub(in crate::file) fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, length)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
        done => Ok(done?),
    }
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn allocate(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Copies within the system; false when it cannot, or the source ends before.
#[cfg(target_os = "linux")]
pub(in crate::file) fn copy_range(
    source: &File,
    mut from: u64,
    target: &File,
    mut to: u64,
    length: u64,
) -> io::Result<bool> {
    let end = to.saturating_add(length);
    while to < end {
        let rest = usize::try_from(end - to).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), rest) {
            Ok(0) => return Ok(false),
            // Both offsets have moved.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(error.into()),
            // Different file systems, a device, an old kernel; or an error of reading, which reading will tell of.
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
pub(in crate::file) fn copy_range(
    _source: &File,
    _from: u64,
    _target: &File,
    _to: u64,
    _length: u64,
) -> io::Result<bool> {
    Ok(false)
}

/// The next data at or after `offset`.
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub(in crate::file) fn next_data(file: &File, offset: u64) -> io::Result<Found> {
    seek(file, rustix::fs::SeekFrom::Data(offset))
}

/// The next hole at or after `offset`, the end of the file at the latest.
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub(in crate::file) fn next_hole(file: &File, offset: u64) -> io::Result<Found> {
    seek(file, rustix::fs::SeekFrom::Hole(offset))
}

/// Moves the file's position, which nothing here uses.
#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
fn seek(file: &File, to: rustix::fs::SeekFrom) -> io::Result<Found> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Found::At(at)),
        Err(Errno::NXIO) => Ok(Found::Nothing),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(Found::CannotTell),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
pub(in crate::file) fn next_data(_file: &File, _offset: u64) -> io::Result<Found> {
    Ok(Found::CannotTell)
}

#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
pub(in crate::file) fn next_hole(_file: &File, _offset: u64) -> io::Result<Found> {
    Ok(Found::CannotTell)
}

#[cfg(test)]
mod tests {
    use crate::file::{FileAccess, FileStorage};

    /// What has become a pipe after it was looked at is refused, and its other end is not waited for.
    #[test]
    fn pipes_are_refused_also_late() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(FileStorage::open(&fifo, FileAccess::Read).is_err());
        let file = super::without_waiting(super::OpenOptions::new().read(true)).open(&fifo).unwrap();
        assert!(FileStorage::from_file(file, &fifo, false).is_err());
    }
}
