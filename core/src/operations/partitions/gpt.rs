//! The GUID partition table (UEFI specification, section 5.3).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use bytemuck::try_pod_read_unaligned;
use gpt_disk_types::{BlockSize, GptHeader, GptPartitionEntry, GptPartitionEntryArray, Guid, LbaRangeInclusive};

use super::{Disk, MAX_ENTRY_ARRAY_BYTES, MAX_PARTITIONS, Partition, PartitionScheme, PartitionTable, names};
use crate::error::Result;

/// Sizes of blocks in which tables count.
const BLOCK_SIZES: [BlockSize; 2] = [BlockSize::BS_512, BlockSize::BS_4096];
/// The part of a header that is defined.
const HEADER_BYTES: u64 = 92;

/// A header that can be believed, and where it was.
struct Found {
    header: GptHeader,
    entries: Vec<u8>,
    block_size: BlockSize,
}

/// The table of a disk whose first block says that there is one: the one at the beginning, or else the copy at the end.
/// With it, or instead of it: what is wrong.
pub(super) fn table(disk: &mut Disk<'_>) -> Result<(Option<PartitionTable>, Vec<String>)> {
    let mut faults = Vec::new();
    for block_size in BLOCK_SIZES {
        match header(disk, block_size.to_u64(), block_size)? {
            Ok(found) => return Ok((Some(read(disk, &found, faults)), Vec::new())),
            Err(Some(fault)) => faults.push(format!("GPT at the beginning of the disk: {fault}")),
            Err(None) => {}
        }
    }
    for block_size in BLOCK_SIZES {
        let blocks = disk.length.checked_div(block_size.to_u64()).unwrap_or(0);
        let last = blocks.saturating_sub(1).saturating_mul(block_size.to_u64());
        match header(disk, last, block_size)? {
            Ok(found) => {
                if faults.is_empty() {
                    faults.push("the GPT at the beginning of the disk is missing".to_string());
                }
                faults.push("read from the copy at the end of the disk".to_string());
                return Ok((Some(read(disk, &found, faults)), Vec::new()));
            }
            Err(Some(fault)) => faults.push(format!("GPT at the end of the disk: {fault}")),
            Err(None) => {}
        }
    }
    if faults.is_empty() {
        faults.push("the first block speaks of a GPT, and there is none".to_string());
    }
    Ok((None, faults))
}

/// The table of a disk that has lost its first block.
pub(super) fn without_protection(disk: &mut Disk<'_>) -> Result<Option<PartitionTable>> {
    let (table, _) = table(disk)?;
    Ok(table.map(|mut table| {
        table.faults.push("the protective record in the first block is missing".to_string());
        table
    }))
}

/// The header at `offset`; `Err` without words where there is none, and with words where it cannot be believed.
fn header(disk: &mut Disk<'_>, offset: u64, block_size: BlockSize) -> Result<Result<Found, Option<&'static str>>> {
    let Some(bytes) = disk.bytes(offset, HEADER_BYTES)? else { return Ok(Err(None)) };
    let Ok(header) = try_pod_read_unaligned::<GptHeader>(&bytes) else { return Ok(Err(None)) };
    if !header.is_signature_valid() {
        return Ok(Err(None));
    }
    // Sections 5.3.2 and 5.3.3; the defined fields alone are summed, as longer headers do not exist yet.
    if u64::from(header.header_size.to_u32()) != HEADER_BYTES {
        return Ok(Err(Some("the header has an unknown size")));
    }
    if header.calculate_header_crc32() != header.header_crc32 {
        return Ok(Err(Some("the checksum of the header is wrong")));
    }
    let Ok(layout) = header.get_partition_entry_array_layout() else {
        return Ok(Err(Some("the size of its entries is no power of two from 128 on")));
    };
    let bytes = layout.num_bytes_rounded_to_block(block_size).filter(|&bytes| bytes <= MAX_ENTRY_ARRAY_BYTES);
    let Some(bytes) = bytes else { return Ok(Err(Some("the array of entries is too large"))) };
    let start = layout.start_lba.to_u64().checked_mul(block_size.to_u64());
    let entries = start.map(|start| disk.bytes(start, bytes)).transpose()?.flatten();
    let Some(mut entries) = entries else { return Ok(Err(Some("the array of entries is beyond the end of the disk"))) };
    let Ok(array) = GptPartitionEntryArray::new(layout, block_size, &mut entries) else {
        return Ok(Err(Some("the array of entries is too large")));
    };
    if array.calculate_crc32() != header.partition_entry_array_crc32 {
        return Ok(Err(Some("the checksum of the entries is wrong")));
    }
    Ok(Ok(Found { header, entries, block_size }))
}

fn read(disk: &Disk<'_>, found: &Found, mut faults: Vec<String>) -> PartitionTable {
    let size = usize::try_from(found.header.size_of_partition_entry.to_u32()).unwrap_or(usize::MAX);
    let count = usize::try_from(found.header.number_of_partition_entries.to_u32()).unwrap_or(usize::MAX);
    let mut partitions = Vec::new();
    for (number, bytes) in (1u32..).zip(found.entries.chunks_exact(size.max(1)).take(count)) {
        let entry = bytes.get(..size_of::<GptPartitionEntry>()).map(try_pod_read_unaligned::<GptPartitionEntry>);
        let Some(Ok(entry)) = entry else { break };
        if !entry.is_used() {
            continue;
        }
        if partitions.len() >= MAX_PARTITIONS {
            faults.push(format!("more than {MAX_PARTITIONS} partitions"));
            break;
        }
        match entry.lba_range() {
            Some(range) => partitions.push(partition(number, &entry, range, found.block_size, disk.length)),
            None => faults.push(format!("partition {number} ends before it begins")),
        }
    }
    PartitionTable {
        scheme: PartitionScheme::Gpt,
        block_size: found.block_size.to_u32(),
        disk_id: guid(found.header.disk_guid),
        faults,
        partitions,
    }
}

fn partition(
    number: u32,
    entry: &GptPartitionEntry,
    range: LbaRangeInclusive,
    block_size: BlockSize,
    length: u64,
) -> Partition {
    let start = range.start().to_u64().saturating_mul(block_size.to_u64());
    let size = range.num_blocks().saturating_mul(block_size.to_u64());
    let (name, kind, attributes) = (entry.name, entry.partition_type_guid, entry.attributes);
    let name: String = name.chars().collect();
    Partition {
        number,
        start,
        size,
        type_id: kind.0.to_string(),
        type_name: names::gpt(kind.0).map(ToString::to_string),
        name: (!name.is_empty()).then_some(name),
        id: guid(entry.unique_partition_guid),
        bootable: attributes.legacy_bios_bootable(),
        beyond_end: start.saturating_add(size) > length,
    }
}

fn guid(guid: Guid) -> Option<String> {
    (guid != Guid::ZERO).then(|| guid.to_string())
}
