//! An internal snapshot made by hand: every cluster gets one more reference, COPIED goes, the L1 table is copied.

use super::walk::{COMPRESSED, COPIED, Fields, OFFSET, be64, compressed_range};

/// Adds a snapshot to an image that has none. False when the refcount blocks have no room for its tables.
///
/// # Panics
/// When a cluster in use has no refcount block.
pub fn make_snapshot(bytes: &mut Vec<u8>) -> bool {
    let fields = Fields::read(bytes);
    let cluster = fields.cluster();
    let l1_clusters = (fields.l1_size * 8).div_ceil(cluster).max(1);
    let Some(l1_copy) = free_run(bytes, &fields, l1_clusters) else { return false };
    for n in 0..l1_clusters {
        increment(bytes, &fields, l1_copy + n);
    }
    let Some(table) = free_run(bytes, &fields, 1) else { return false };
    increment(bytes, &fields, table);
    let end = ((table.max(l1_copy + l1_clusters) + 1) * cluster) as usize;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    for index in 0..fields.l1_size {
        let at = fields.l1_offset + index * 8;
        let l2 = be64(bytes, at) & OFFSET;
        if l2 != 0 {
            put64(bytes, at, l2);
            increment(bytes, &fields, l2 / cluster);
            share_table(bytes, &fields, l2);
        }
        let entry = be64(bytes, at);
        put64(bytes, l1_copy * cluster + index * 8, entry);
    }
    write_table(bytes, &fields, table * cluster, l1_copy * cluster);
    true
}

/// The same image with the snapshot's L1 table and size in the header: what the snapshot shows.
#[must_use]
pub fn view_of_snapshot(bytes: &[u8]) -> Option<Vec<u8>> {
    let fields = Fields::read(bytes);
    if fields.snapshots == 0 {
        return None;
    }
    let at = fields.snapshots_offset as usize;
    let mut view = bytes.to_vec();
    view[40..48].copy_from_slice(&bytes[at..at + 8]);
    view[36..40].copy_from_slice(&bytes[at + 8..at + 12]);
    view[24..32].copy_from_slice(&bytes[at + 48..at + 56]);
    Some(view)
}

fn share_table(bytes: &mut [u8], fields: &Fields, table: u64) {
    for n in 0..fields.cluster() / fields.entry_bytes() {
        let at = table + n * fields.entry_bytes();
        let entry = be64(bytes, at);
        let (start, end) = if entry & COMPRESSED != 0 {
            compressed_range(entry, fields.cluster_bits)
        } else if entry & OFFSET != 0 {
            put64(bytes, at, entry & !COPIED);
            (entry & OFFSET, (entry & OFFSET) + 1)
        } else {
            continue;
        };
        for cluster in start / fields.cluster()..=(end - 1) / fields.cluster() {
            increment(bytes, fields, cluster);
        }
    }
}

/// Section "Snapshots": one entry, 16 bytes of extra data (VM state size, disk size), id and name of one letter.
fn write_table(bytes: &mut [u8], fields: &Fields, table: u64, l1: u64) {
    put64(bytes, table, l1);
    put64(bytes, table + 8, fields.l1_size << 32 | 1 << 16 | 1);
    put64(bytes, table + 32, 16);
    put64(bytes, table + 40, 0);
    put64(bytes, table + 48, fields.size);
    bytes[(table + 56) as usize..(table + 58) as usize].copy_from_slice(b"1s");
    bytes[60..64].copy_from_slice(&1u32.to_be_bytes());
    put64(bytes, 64, table);
}

fn put64(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the refcount of a cluster is; widths of 8 bits and more.
fn place(bytes: &[u8], fields: &Fields, cluster: u64) -> Option<(u64, u64)> {
    assert!(fields.refcount_order >= 3, "shared clusters need refcounts of some width");
    let index = cluster / fields.per_block();
    if index >= fields.refcount_table_clusters * fields.cluster() / 8 {
        return None;
    }
    let block = be64(bytes, fields.refcount_table + index * 8);
    let width = 1 << (fields.refcount_order - 3);
    (block != 0).then_some((block + cluster % fields.per_block() * width, width))
}

fn refcount(bytes: &[u8], fields: &Fields, cluster: u64) -> Option<u64> {
    let (at, width) = place(bytes, fields, cluster)?;
    Some(be64(bytes, at) >> (64 - width * 8))
}

fn increment(bytes: &mut [u8], fields: &Fields, cluster: u64) {
    let (at, width) = place(bytes, fields, cluster).expect("a cluster in use has a refcount block");
    let value = (be64(bytes, at) >> (64 - width * 8)) + 1;
    bytes[at as usize..(at + width) as usize].copy_from_slice(&value.to_be_bytes()[(8 - width) as usize..]);
}

fn free_run(bytes: &[u8], fields: &Fields, count: u64) -> Option<u64> {
    let limit = fields.refcount_table_clusters * fields.cluster() / 8 * fields.per_block();
    let limit = limit.min(bytes.len() as u64 / fields.cluster() + 64);
    (1..limit).find(|first| (*first..first + count).all(|c| refcount(bytes, fields, c) == Some(0)))
}
