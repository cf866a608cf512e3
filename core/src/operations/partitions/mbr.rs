//! The master boot record, and the chain of records that name logical partitions.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use bytemuck::try_pod_read_unaligned;
use gpt_disk_types::{MasterBootRecord, MbrPartitionRecord};

use super::{Disk, MAX_PARTITIONS, Partition, PartitionScheme, PartitionTable, names};
use crate::error::Result;

/// Bytes of a block, for all who use such tables; and of a record.
const BLOCK: u64 = 512;
/// The type of the one partition that protects a GPT.
const PROTECTIVE: u8 = 0xEE;
/// Types of partitions that hold logical ones.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// A record at the beginning of a block.
pub(super) struct Record(MasterBootRecord);

/// The record at `offset`; `None` where there is none.
pub(super) fn record(disk: &mut Disk<'_>, offset: u64) -> Result<Option<Record>> {
    let Some(bytes) = disk.bytes(offset, BLOCK)? else { return Ok(None) };
    let record = try_pod_read_unaligned::<MasterBootRecord>(&bytes).ok();
    Ok(record.filter(|record| record.signature == [0x55, 0xAA]).map(Record))
}

impl Record {
    /// Whether it stands there so that nobody takes the disk with its GPT for an empty one.
    pub(super) fn protects_gpt(&self) -> bool {
        self.0.partitions.iter().any(|entry| entry.os_indicator == PROTECTIVE)
    }

    /// Whether it is the boot sector of a file system on a disk without partitions: those end like a record. Their
    /// entries are code or text, or empty behind the jump that such a sector begins with.
    pub(super) fn is_file_system(&self) -> bool {
        let entries = &self.0.partitions;
        let jump = matches!(self.0.boot_strap_code, [0xEB, _, 0x90, ..] | [0xE9, ..]);
        entries.iter().any(|entry| entry.boot_indicator & 0x7F != 0)
            || jump && entries.iter().all(|entry| !is_used(entry))
    }
}

/// The table that a record begins.
pub(super) fn table(disk: &mut Disk<'_>, record: &Record) -> Result<PartitionTable> {
    let id = u32::from_le_bytes(record.0.unique_mbr_disk_signature);
    let mut table = PartitionTable {
        scheme: PartitionScheme::Mbr,
        block_size: 512,
        disk_id: (id != 0).then(|| format!("{id:08x}")),
        faults: Vec::new(),
        partitions: Vec::new(),
    };
    let mut extended = Vec::new();
    for (number, entry) in (1u32..).zip(&record.0.partitions) {
        if !is_used(entry) {
            continue;
        }
        table.partitions.push(partition(number, 0, entry, disk.length));
        if EXTENDED.contains(&entry.os_indicator) {
            extended.push(u64::from(entry.starting_lba.to_u32()).saturating_mul(BLOCK));
        }
    }
    let mut number = FIRST_LOGICAL;
    for start in extended {
        logical(disk, start, &mut number, &mut table)?;
    }
    Ok(table)
}

/// The logical partitions in an extended one. Each record names one partition, from its own place, and the next record,
/// from the place of the first.
fn logical(disk: &mut Disk<'_>, extended: u64, number: &mut u32, table: &mut PartitionTable) -> Result<()> {
    let mut at = extended;
    loop {
        // A chain that comes back to itself ends here too.
        if table.partitions.len() >= MAX_PARTITIONS {
            table.faults.push(format!("more than {MAX_PARTITIONS} partitions, or a chain of records without an end"));
            return Ok(());
        }
        let Some(record) = record(disk, at)? else {
            table.faults.push(format!("the chain of logical partitions leads to {at:#x}, where no record is"));
            return Ok(());
        };
        let [entry, next, ..] = &record.0.partitions;
        if is_used(entry) && !EXTENDED.contains(&entry.os_indicator) {
            table.partitions.push(partition(*number, at, entry, disk.length));
            *number = number.saturating_add(1);
        }
        if !is_used(next) || !EXTENDED.contains(&next.os_indicator) {
            return Ok(());
        }
        let before = at;
        at = extended.saturating_add(u64::from(next.starting_lba.to_u32()).saturating_mul(BLOCK));
        if at <= before {
            table.faults.push(format!("the chain of logical partitions goes back to {at:#x}"));
            return Ok(());
        }
    }
}

fn is_used(entry: &MbrPartitionRecord) -> bool {
    entry.os_indicator != 0 && entry.size_in_lba.to_u32() != 0
}

fn partition(number: u32, base: u64, entry: &MbrPartitionRecord, length: u64) -> Partition {
    let start = base.saturating_add(u64::from(entry.starting_lba.to_u32()).saturating_mul(BLOCK));
    let size = u64::from(entry.size_in_lba.to_u32()).saturating_mul(BLOCK);
    Partition {
        number,
        start,
        size,
        type_id: format!("{:02x}", entry.os_indicator),
        type_name: names::mbr(entry.os_indicator).map(ToString::to_string),
        name: None,
        id: None,
        bootable: entry.boot_indicator == 0x80,
        beyond_end: start.saturating_add(size) > length,
    }
}
