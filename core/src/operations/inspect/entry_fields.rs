//! Entries of tables as fields of bytes.

use alloc::format;
use alloc::string::String;

use super::fields::{ByteField, Region};
use super::{BitmapTableEntryReport, BitmapTableState, L1EntryReport, L2EntryReport, RefcountTableEntryReport};
use crate::error::Structure;
use crate::format::{Geometry, L2Kind};

/// The region, if it begins within the file; cut to the file.
pub(super) fn inside(mut region: Region, file_length: u64) -> Option<Region> {
    region.length = region.length.min(file_length.checked_sub(region.host_offset)?);
    (region.length > 0).then_some(region)
}

const EMPTY: &str = "empty";

fn copied(flag: bool) -> &'static str {
    if flag { ", COPIED" } else { "" }
}

pub(super) fn l1_field(
    entry: &L1EntryReport,
    at: &dyn Fn(u64) -> u64,
    geometry: &Geometry,
    file_length: u64,
) -> ByteField {
    let table = |offset: u64| {
        let name = format!("L2 table of guest {:#x}", entry.guest_offset);
        let region = Region::new(Structure::L2Table, name, offset, geometry.cluster_size());
        inside(region.of_guest(Some(entry.guest_offset)), file_length)
    };
    let meaning = match entry.l2_offset {
        Some(offset) => format!("L2 table at {offset:#x}{}", copied(entry.copied)),
        None => EMPTY.into(),
    };
    ByteField {
        host_offset: at(entry.index),
        length: 8,
        structure: Structure::L1Table,
        name: format!("[{}]", entry.index),
        raw: Some(entry.raw),
        meaning: format!("guest {:#x}: {meaning}", entry.guest_offset),
        fault: entry.faults.join("; "),
        target: entry.l2_offset.and_then(table),
    }
}

/// `guest_known`: the entry's guest offset is true, not counted from 0.
pub(super) fn l2_field(
    entry: &L2EntryReport,
    at: &dyn Fn(u64) -> u64,
    guest_known: bool,
    geometry: &Geometry,
    file_length: u64,
) -> ByteField {
    let kind = match entry.kind {
        L2Kind::Unallocated => "unallocated",
        L2Kind::ZeroPlain => "zero",
        L2Kind::ZeroAllocated => "zero, cluster kept",
        L2Kind::Normal => "data",
        L2Kind::Mixed => "subclusters differ",
        L2Kind::Compressed => "compressed",
    };
    let guest = guest_known.then_some(entry.guest_offset);
    let target = entry.host_offset.filter(|_| !geometry.data_file()).and_then(|offset| {
        let (structure, length) = match entry.compressed_length {
            Some(length) => (Structure::CompressedCluster, length),
            None => (Structure::DataCluster, geometry.cluster_size()),
        };
        let title = guest.map_or_else(|| String::from("guest data"), |guest| format!("data of guest {guest:#x}"));
        inside(Region::new(structure, title, offset, length).of_guest(guest), file_length)
    });
    let whose = guest.map_or_else(String::new, |guest| format!("guest {guest:#x}: "));
    let place = match (entry.host_offset, entry.compressed_length) {
        (Some(offset), Some(length)) => format!(" in {length} bytes at {offset:#x}"),
        (Some(offset), None) => format!(" at {offset:#x}"),
        (None, _) => String::new(),
    };
    let parts = match (entry.allocated, entry.zero) {
        (Some(allocated), Some(zero)) => format!(", allocated {allocated:#010x}, zero {zero:#010x}"),
        _ => String::new(),
    };
    ByteField {
        host_offset: at(entry.index),
        length: geometry.l2_entry_size(),
        structure: Structure::L2Table,
        name: format!("[{}]", entry.index),
        raw: entry.raw_bitmap.is_none().then_some(entry.raw),
        meaning: format!("{whose}{kind}{place}{}{parts}", copied(entry.copied)),
        fault: entry.faults.join("; "),
        target,
    }
}

pub(super) fn refcount_table_field(
    entry: &RefcountTableEntryReport,
    at: &dyn Fn(u64) -> u64,
    geometry: &Geometry,
    file_length: u64,
) -> ByteField {
    let block = |offset: u64| {
        let name = format!("refcounts from {:#x}", entry.host_offset);
        inside(Region::new(Structure::RefcountBlock, name, offset, geometry.cluster_size()), file_length)
    };
    let meaning = match entry.block_offset {
        Some(offset) => format!("block at {offset:#x} for the file from {:#x}", entry.host_offset),
        None => EMPTY.into(),
    };
    ByteField {
        host_offset: at(entry.index),
        length: 8,
        structure: Structure::RefcountTable,
        name: format!("[{}]", entry.index),
        raw: Some(entry.raw),
        meaning,
        fault: entry.faults.join("; "),
        target: entry.block_offset.and_then(block),
    }
}

pub(super) fn bitmap_table_field(
    entry: &BitmapTableEntryReport,
    at: &dyn Fn(u64) -> u64,
    geometry: &Geometry,
    file_length: u64,
) -> ByteField {
    let meaning = match (entry.state, entry.host_offset) {
        (Some(BitmapTableState::AllZeros), _) => "all bits clear".into(),
        (Some(BitmapTableState::AllOnes), _) => "all bits set".into(),
        (Some(BitmapTableState::Stored), Some(offset)) => format!("bits at {offset:#x}"),
        (Some(BitmapTableState::Stored), None) | (None, _) => "without meaning".into(),
    };
    let stored = entry.host_offset.filter(|_| entry.state == Some(BitmapTableState::Stored));
    let data = |offset| Region::new(Structure::BitmapData, "bits of the bitmap", offset, geometry.cluster_size());
    ByteField {
        host_offset: at(entry.index),
        length: 8,
        structure: Structure::BitmapTable,
        name: format!("[{}]", entry.index),
        raw: Some(entry.raw),
        meaning,
        fault: entry.faults.join("; "),
        target: stored.and_then(|offset| inside(data(offset), file_length)),
    }
}
