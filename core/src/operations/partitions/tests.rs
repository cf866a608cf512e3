//! Tables by hand: sound, broken and hostile ones.

use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use gpt_disk_types::{
    BlockSize, GptHeader, GptHeaderRevision, GptHeaderSignature, GptPartitionEntry, GptPartitionEntryArray,
    GptPartitionType, Guid, LbaLe,
};

use super::*;

const BLOCK: usize = 512;

fn read(disk: &[u8]) -> Option<PartitionTable> {
    partitions(disk.len() as u64, &mut |offset, buffer| {
        let at = offset as usize;
        buffer.copy_from_slice(&disk[at..at + buffer.len()]);
        Ok(())
    })
    .unwrap()
}

/// Writes an entry of a boot record: flag, type, first block, blocks.
fn entry(disk: &mut [u8], record: usize, index: usize, what: (u8, u8, u32, u32)) {
    let at = record * BLOCK + 446 + index * 16;
    disk[at] = what.0;
    disk[at + 4] = what.1;
    disk[at + 8..at + 12].copy_from_slice(&what.2.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&what.3.to_le_bytes());
    disk[record * BLOCK + 510..record * BLOCK + 512].copy_from_slice(&[0x55, 0xAA]);
}

fn places(table: &PartitionTable) -> Vec<(u32, u64, u64, &str)> {
    table
        .partitions
        .iter()
        .map(|found| (found.number, found.start / 512, found.size / 512, found.type_id.as_str()))
        .collect()
}

fn faults(table: &PartitionTable) -> String {
    table.faults.join("; ")
}

#[test]
fn primary_and_logical_partitions() {
    let mut disk = vec![0; 2048 * BLOCK];
    disk[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
    entry(&mut disk, 0, 0, (0x80, 0x83, 8, 100));
    entry(&mut disk, 0, 2, (0, 0x05, 200, 400));
    entry(&mut disk, 200, 0, (0, 0x82, 4, 50));
    entry(&mut disk, 200, 1, (0, 0x05, 100, 60));
    entry(&mut disk, 300, 0, (0, 0x8e, 8, 3000));
    let table = read(&disk).unwrap();
    assert_eq!(table.scheme, PartitionScheme::Mbr);
    assert_eq!(table.disk_id.as_deref(), Some("1234abcd"));
    let expected = [(1, 8, 100, "83"), (3, 200, 400, "05"), (5, 204, 50, "82"), (6, 308, 3000, "8e")];
    assert_eq!(places(&table), expected);
    assert_eq!(table.faults, Vec::<String>::new());
    assert_eq!(table.partitions.iter().map(|found| found.bootable).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(table.partitions.iter().map(|found| found.beyond_end).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn chains_that_loop_or_lead_nowhere_end_with_words() {
    let mut disk = vec![0; 64 * BLOCK];
    entry(&mut disk, 0, 0, (0, 0x0f, 8, 40));
    entry(&mut disk, 8, 0, (0, 0x83, 1, 4));
    entry(&mut disk, 8, 1, (0, 0x05, 0, 4));
    let table = read(&disk).unwrap();
    assert_eq!(places(&table).len(), 2);
    assert!(faults(&table).contains("goes back to 0x1000"), "{}", faults(&table));
    entry(&mut disk, 8, 1, (0, 0x05, 20, 4));
    assert!(faults(&read(&disk).unwrap()).contains("leads to 0x3800"));
    // Beyond the end of the disk.
    entry(&mut disk, 8, 1, (0, 0x05, u32::MAX, 4));
    assert!(faults(&read(&disk).unwrap()).contains("where no record is"));
}

#[test]
fn a_long_chain_is_told_to_the_limit() {
    let mut disk = vec![0; 4096 * BLOCK];
    entry(&mut disk, 0, 0, (0, 0x05, 1, 4000));
    for record in 1..3000 {
        entry(&mut disk, record, 0, (0, 0x83, 1, 1));
        entry(&mut disk, record, 1, (0, 0x05, record as u32, 2));
    }
    let table = read(&disk).unwrap();
    assert_eq!(table.partitions.len(), MAX_PARTITIONS);
    assert!(faults(&table).contains("more than 1024"));
}

#[test]
fn disks_without_a_table() {
    assert_eq!(read(&[]), None);
    assert_eq!(read(&[0; 511]), None);
    assert_eq!(read(&vec![0; 1 << 20]), None);
    // FAT and NTFS: a jump, and code or nothing where entries would be.
    let mut disk = vec![0; 1 << 20];
    disk[..3].copy_from_slice(&[0xEB, 0x3C, 0x90]);
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(read(&disk), None);
    disk[446] = b'M';
    disk[..3].copy_from_slice(&[0; 3]);
    assert_eq!(read(&disk), None);
    // An empty table is one.
    disk[446] = 0;
    assert_eq!(read(&disk).unwrap().partitions, []);
}

/// A disk of 256 blocks with a GPT: the table in front, and its copy at the end.
fn gpt(block_size: usize, entries: &[GptPartitionEntry]) -> Vec<u8> {
    let blocks = 256;
    let mut disk = vec![0; blocks * block_size];
    entry(&mut disk, 0, 0, (0, 0xEE, 1, u32::MAX));
    let mut array = vec![0; 16384];
    for (place, entry) in array.chunks_exact_mut(128).zip(entries) {
        place.copy_from_slice(bytemuck::bytes_of(entry));
    }
    let last = blocks - 1;
    for (header_at, array_at) in [(1, 2), (last, last - 16384 / block_size)] {
        disk[array_at * block_size..][..array.len()].copy_from_slice(&array);
        let mut header = GptHeader {
            signature: GptHeaderSignature::EFI_COMPATIBLE_PARTITION_TABLE_HEADER,
            revision: GptHeaderRevision::VERSION_1_0,
            my_lba: LbaLe::from_u64(header_at as u64),
            disk_guid: "11111111-2222-3333-4444-555555555555".parse().unwrap(),
            partition_entry_lba: LbaLe::from_u64(array_at as u64),
            number_of_partition_entries: gpt_disk_types::U32Le::from_u32(128),
            ..GptHeader::default()
        };
        let size = if block_size == 512 { BlockSize::BS_512 } else { BlockSize::BS_4096 };
        let layout = header.get_partition_entry_array_layout().unwrap();
        header.partition_entry_array_crc32 =
            GptPartitionEntryArray::new(layout, size, &mut array.clone()).unwrap().calculate_crc32();
        header.update_header_crc32();
        disk[header_at * block_size..][..92].copy_from_slice(bytemuck::bytes_of(&header));
    }
    disk
}

fn linux(first: u64, last: u64, name: &str) -> GptPartitionEntry {
    GptPartitionEntry {
        partition_type_guid: GptPartitionType("0fc63daf-8483-4772-8e79-3d69d8477de4".parse().unwrap()),
        unique_partition_guid: "00000000-0000-0000-0000-000000000007".parse().unwrap(),
        starting_lba: LbaLe::from_u64(first),
        ending_lba: LbaLe::from_u64(last),
        name: name.parse().unwrap(),
        ..GptPartitionEntry::default()
    }
}

#[test]
fn guid_partition_tables_of_both_block_sizes() {
    for block_size in [512, 4096] {
        let entries = [linux(64, 99, "root"), GptPartitionEntry::default(), linux(100, 1000, "")];
        let table = read(&gpt(block_size, &entries)).unwrap();
        assert_eq!((table.scheme, table.block_size as usize), (PartitionScheme::Gpt, block_size));
        assert_eq!(table.disk_id.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
        assert_eq!(table.faults, Vec::<String>::new());
        let [root, other] = table.partitions.as_slice() else { panic!("{table:?}") };
        let size = block_size as u64;
        assert_eq!((root.number, root.start, root.size), (1, 64 * size, 36 * size));
        assert_eq!((root.name.as_deref(), root.type_name.as_deref()), (Some("root"), Some("Linux file system")));
        assert_eq!(root.id.as_deref(), Some("00000000-0000-0000-0000-000000000007"));
        assert_eq!((other.number, other.name.as_deref(), other.beyond_end), (3, None, true));
    }
}

#[test]
fn a_broken_table_is_read_from_its_copy() {
    let sound = gpt(512, &[linux(64, 99, "root")]);
    // Signature, checksum of the header, entries, and the record in the first block.
    for (place, words) in [
        (512, "the GPT at the beginning of the disk is missing; read from the copy"),
        (512 + 40, "checksum of the header is wrong; read from the copy"),
        (1024, "checksum of the entries is wrong; read from the copy"),
        (510, "the protective record in the first block is missing"),
    ] {
        let mut disk = sound.clone();
        disk[place] ^= 0xFF;
        let table = read(&disk).unwrap();
        assert_eq!(table.partitions.len(), 1, "{place}");
        assert!(faults(&table).contains(words), "{place}: {}", faults(&table));
    }
    let mut disk = sound;
    let last = 255 * 512;
    disk[512] = 0;
    disk[last + 16] ^= 1;
    let table = read(&disk).unwrap();
    assert_eq!((table.scheme, places(&table)), (PartitionScheme::Mbr, vec![(1, 1, u64::from(u32::MAX), "ee")]));
    assert!(faults(&table).contains("GPT at the end of the disk: the checksum"), "{}", faults(&table));
}

#[test]
fn hostile_headers_cost_nothing() {
    type Change = fn(&mut GptHeader);
    let changes: [(Change, &str); 5] = [
        (|header| header.number_of_partition_entries.set(u32::MAX), "too large"),
        (|header| header.size_of_partition_entry.set(0), "power of two"),
        (|header| header.size_of_partition_entry.set(1 << 31), "too large"),
        (|header| header.partition_entry_lba = LbaLe::from_u64(u64::MAX), "beyond the end"),
        (|header| header.header_size.set(4096), "unknown size"),
    ];
    for (change, words) in changes {
        let mut disk = gpt(512, &[linux(64, 99, "root")]);
        for at in [512, 255 * 512] {
            let mut header: GptHeader = bytemuck::pod_read_unaligned(&disk[at..at + 92]);
            change(&mut header);
            header.update_header_crc32();
            disk[at..at + 92].copy_from_slice(bytemuck::bytes_of(&header));
        }
        let table = read(&disk).unwrap();
        assert!(faults(&table).contains(words), "{words}: {}", faults(&table));
    }
    let mut disk = gpt(512, &[linux(99, 64, "backwards"), linux(u64::MAX - 1, u64::MAX, "far")]);
    let table = read(&disk).unwrap();
    assert!(faults(&table).contains("partition 1 ends before it begins"));
    assert_eq!(table.partitions.iter().map(|found| found.beyond_end).collect::<Vec<_>>(), [true]);
    disk.truncate(600);
    assert_eq!(read(&disk).map(|table| table.faults.len()), Some(1));
    assert_eq!(Guid::ZERO.to_string(), "00000000-0000-0000-0000-000000000000");
}
