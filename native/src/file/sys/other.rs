//! Windows, and whatever else the standard library knows: no holes, and zeros are written.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::PathBuf;

use super::Found;
use crate::file::FileIdentity;

#[cfg(windows)]
pub(in crate::file) fn read_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, offset)
}

#[cfg(windows)]
pub(in crate::file) fn write_all_at(file: &File, from: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < from.len() {
        match std::os::windows::fs::FileExt::seek_write(file, &from[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(not(windows))]
pub(in crate::file) fn read_at(_file: &File, _into: &mut [u8], _offset: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(windows))]
pub(in crate::file) fn write_all_at(_file: &File, _from: &[u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::file) fn is_block_device(_metadata: &Metadata) -> bool {
    false
}

pub(in crate::file) fn device_length(_file: &File) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::file) fn identity(_metadata: &Metadata) -> Option<FileIdentity> {
    None
}

pub(in crate::file) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

pub(in crate::file) fn path_of(_file: &File) -> Option<PathBuf> {
    None
}

/// Without a better answer, everything is allocated.
pub(in crate::file) fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.len()
}

pub(in crate::file) fn block_bytes(_metadata: &Metadata) -> u32 {
    4096
}

pub(in crate::file) fn punch(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

pub(in crate::file) fn zero_range(_file: &File, _offset: u64, _length: u64) -> io::Result<bool> {
    Ok(false)
}

pub(in crate::file) fn punches_holes(_file: &File) -> bool {
    false
}

pub(in crate::file) fn allocate(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(in crate::file) fn next_data(_file: &File, _offset: u64) -> io::Result<Found> {
    Ok(Found::CannotTell)
}

pub(in crate::file) fn next_hole(_file: &File, _offset: u64) -> io::Result<Found> {
    Ok(Found::CannotTell)
}

pub(in crate::file) fn copy_range(
    _source: &File,
    _from: u64,
    _target: &File,
    _to: u64,
    _length: u64,
) -> io::Result<bool> {
    Ok(false)
}
