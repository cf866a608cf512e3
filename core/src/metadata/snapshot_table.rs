//! The snapshot table (section "Snapshots"), read whole.

use alloc::format;
use alloc::vec::Vec;

use super::reader::TableReader;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    Geometry, Header, HostCluster, HostOffset, MAX_SNAPSHOT_EXTRA_DATA, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS,
    Snapshot,
};
use crate::storage::ReadStorage;

/// More than the longest entry, whose two names have 16-bit lengths and whose extra data are limited.
const WINDOW: usize = 256 << 10;
/// The first entries are often all.
const FIRST_WINDOW: usize = 4 << 10;

/// The snapshot table (section "Snapshots").
///
/// # Errors
/// More snapshots or bytes than the limits allow, an entry that does not parse, a storage that fails.
pub fn read_snapshots(header: &Header, storage: &(impl ReadStorage + ?Sized)) -> Result<Vec<Snapshot>> {
    Ok(read_snapshot_table(header, storage)?.0)
}

/// The entries of the snapshot table, and its length in bytes.
///
/// # Errors
/// As [`read_snapshots`].
pub(crate) fn read_snapshot_table<S: ReadStorage + ?Sized>(
    header: &Header,
    storage: &S,
) -> Result<(Vec<Snapshot>, u64)> {
    let limit = |what| Error::new(ErrorKind::Limit(what)).in_structure(Structure::SnapshotTable);
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(limit(format!("{} snapshots, at most {MAX_SNAPSHOTS} are allowed", header.snapshot_count)));
    }
    let start = header.snapshots_offset;
    let mut window = Window { reader: TableReader::new(storage, storage.len()?), bytes: Vec::new(), start: 0 };
    let mut position = start;
    let mut snapshots = Vec::new();
    for index in 0..header.snapshot_count {
        let here = |error: Error| error.in_structure(Structure::SnapshotTable).at_index(index.into());
        let fixed = window.at(position, 40).map_err(here)?;
        let length = Snapshot::entry_length(fixed).map_err(here)?;
        let extra = Snapshot::extra_data_length(fixed).map_err(here)?;
        if extra > MAX_SNAPSHOT_EXTRA_DATA {
            return Err(here(limit(format!("{extra} bytes of extra data in a snapshot"))).at_host(position));
        }
        let total = position.saturating_sub(start).saturating_add(length);
        if total > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(here(limit(format!("the entry is {length} bytes long, the table at least {total}"))));
        }
        let entry = window.at(position, length).map_err(here)?;
        let mut reader = crate::format::Reader::new(entry, Structure::SnapshotTable, position);
        snapshots.push(Snapshot::parse(&mut reader).map_err(here)?);
        position = position.saturating_add(length);
    }
    Ok((snapshots, position.saturating_sub(start)))
}

/// Where the snapshot table and the snapshots' L1 tables lie: (first cluster, clusters, what it is). For those who must
/// not write there. What is nowhere, or at an impossible place, is left out.
///
/// # Errors
/// As [`read_snapshots`].
pub fn snapshot_places(
    header: &Header,
    geometry: &Geometry,
    storage: &(impl ReadStorage + ?Sized),
) -> Result<Vec<(HostCluster, u64, Structure)>> {
    let (snapshots, length) = read_snapshot_table(header, storage)?;
    let table = (header.snapshots_offset, length, Structure::SnapshotTable);
    let l1_tables = snapshots
        .iter()
        .map(|snapshot| (snapshot.l1_table_offset, u64::from(snapshot.l1_size).saturating_mul(8), Structure::L1Table));
    let places = core::iter::once(table).chain(l1_tables);
    let possible = places.filter(|&(offset, bytes, _)| bytes > 0 && geometry.is_aligned(offset));
    Ok(possible
        .map(|(offset, bytes, what)| {
            (geometry.host_cluster(HostOffset::new(offset)), geometry.clusters_for(bytes), what)
        })
        .collect())
}

/// The part of the table that was read last.
struct Window<'a, S: ?Sized> {
    reader: TableReader<'a, S>,
    bytes: Vec<u8>,
    start: u64,
}

impl<S: ReadStorage + ?Sized> Window<'_, S> {
    /// `length` bytes from `position`; at most [`WINDOW`].
    fn at(&mut self, position: u64, length: u64) -> Result<&[u8]> {
        let length = usize::try_from(length).unwrap_or(WINDOW).min(WINDOW);
        let from = |start: u64| usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
        let end = from(self.start).saturating_add(length);
        if position < self.start || end > self.bytes.len() {
            let size = if self.bytes.is_empty() { FIRST_WINDOW.max(length) } else { WINDOW };
            self.bytes.clear();
            self.bytes.resize(size, 0);
            self.start = position;
            self.reader.read(position, &mut self.bytes)?;
        }
        let at = from(self.start);
        Ok(self.bytes.get(at..at.saturating_add(length)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn impossible_snapshot_tables_are_refused_before_memory_is_taken() {
        let mut header = Header::new(3, 16, 1 << 20);
        header.snapshot_count = MAX_SNAPSHOTS + 1;
        let refused = |header: &Header, bytes: &[u8]| {
            let error = read_snapshots(header, &MemoryStorage::from_bytes(bytes)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}");
            assert_eq!(error.site().structure, Some(Structure::SnapshotTable));
        };
        refused(&header, &[]);
        header.snapshot_count = 1;
        let mut entry = [0u8; Snapshot::FIXED_LENGTH];
        entry[36..].copy_from_slice(&u32::MAX.to_be_bytes());
        refused(&header, &entry);
    }
}
