//! The partition table of a guest disk: MBR with logical partitions, or GPT.
//!
//! The disk is read through a function, so that it may be an image, a chain of images, a snapshot or a raw file. Any
//! bytes are an input: at most [`MAX_PARTITIONS`] partitions and [`MAX_ENTRY_ARRAY_BYTES`] of table are looked at.
//!
//! ```
//! use qcowkit_core::operations::partitions;
//!
//! let mut disk = vec![0; 1 << 20];
//! disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 64, 0, 0, 0, 0, 4, 0, 0]);
//! disk[510..512].copy_from_slice(&[0x55, 0xAA]);
//! let table = partitions(disk.len() as u64, &mut |offset, buffer| {
//!     buffer.copy_from_slice(&disk[offset as usize..][..buffer.len()]);
//!     Ok(())
//! })?;
//! let first = &table.unwrap().partitions[0];
//! assert_eq!((first.start, first.size, first.type_name.as_deref()), (32768, 524288, Some("Linux")));
//! # Ok::<(), qcowkit_core::Error>(())
//! ```

mod gpt;
mod mbr;
mod names;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::Result;

/// Partitions that are told of at most; a table may name more, and says so in [`PartitionTable::faults`].
pub const MAX_PARTITIONS: usize = 1024;

/// Bytes of a GPT's array of entries that are read at most. The array of nearly every disk has 16 KiB.
pub const MAX_ENTRY_ARRAY_BYTES: u64 = 1 << 20;

/// Which kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PartitionScheme {
    /// A master boot record, with logical partitions in extended ones.
    Mbr,
    /// A GUID partition table (UEFI specification, section 5.3).
    Gpt,
}

/// The partition table of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PartitionTable {
    /// Its kind.
    pub scheme: PartitionScheme,
    /// Bytes of the blocks that it counts in.
    pub block_size: u32,
    /// The disk's identifier: a GUID, or the eight hexadecimal digits of an MBR; `None` where it is zero.
    pub disk_id: Option<String>,
    /// What is wrong with it, in words; empty for a sound table.
    pub faults: Vec<String>,
    /// In the order of the table; logical partitions behind the primary ones.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Partition {
    /// Its number, as Linux counts: from 1, and logical partitions from 5.
    pub number: u32,
    /// Guest offset of its first byte.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
    /// Its type: a GUID in small letters, or two hexadecimal digits.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub type_id: String,
    /// What the type is called, where that is known.
    pub type_name: Option<String>,
    /// Its label; GPT alone.
    pub name: Option<String>,
    /// Its own GUID; GPT alone.
    pub id: Option<String>,
    /// It is marked as the one to boot from.
    pub bootable: bool,
    /// It reaches beyond the end of the disk.
    pub beyond_end: bool,
}

/// Reads the partition table of a disk of `length` bytes. `read` fills a buffer from a guest offset; it is asked for
/// bytes within the disk alone. `None` where the disk has no table: an empty disk, or a file system without one.
///
/// # Errors
/// What `read` returns. A broken table is no error: see [`PartitionTable::faults`].
pub fn partitions(length: u64, read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Option<PartitionTable>> {
    let mut disk = Disk { length, read };
    let Some(record) = mbr::record(&mut disk, 0)? else { return gpt::without_protection(&mut disk) };
    if record.protects_gpt() {
        let (table, faults) = gpt::table(&mut disk)?;
        if table.is_some() {
            return Ok(table);
        }
        // What is left is the record that protected it.
        let mut table = mbr::table(&mut disk, &record)?;
        table.faults.extend(faults);
        return Ok(Some(table));
    }
    if record.is_file_system() {
        return Ok(None);
    }
    mbr::table(&mut disk, &record).map(Some)
}

/// The disk, and what lies within it.
struct Disk<'a> {
    length: u64,
    read: &'a mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
}

impl Disk<'_> {
    /// `count` bytes at `offset`; `None` where they are not all within the disk.
    fn bytes(&mut self, offset: u64, count: u64) -> Result<Option<Vec<u8>>> {
        let inside = offset.checked_add(count).is_some_and(|end| end <= self.length);
        let (true, Ok(count)) = (inside, usize::try_from(count)) else { return Ok(None) };
        let mut bytes = vec![0; count];
        (self.read)(offset, &mut bytes)?;
        Ok(Some(bytes))
    }
}
