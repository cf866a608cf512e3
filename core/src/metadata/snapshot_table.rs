//! The snapshot table (section "Snapshots"), read whole.

use alloc::format;
use alloc::vec::Vec;

use super::reader::TableReader;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    Geometry, Header, HostCluster, HostOffset, MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA_DATA, MAX_SNAPSHOT_TABLE_BYTES,
    MAX_SNAPSHOTS, Snapshot,
};
use crate::storage::ReadStorage;

/// More than the longest entry, whose two names have 16-bit lengths and whose extra data are limited.
const WINDOW: usize = 256 << 10;
/// The first entries are often all.
const FIRST_WINDOW: usize = 4 << 10;
/// Bytes of L1 tables that are read at once.
const L1_PIECE: usize = 1 << 20;

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
    Ok(places_of(header, &snapshots, length, geometry))
}

/// The same of a table of `length` bytes that is known.
pub(super) fn places_of(
    header: &Header,
    snapshots: &[Snapshot],
    length: u64,
    geometry: &Geometry,
) -> Vec<(HostCluster, u64, Structure)> {
    let table = (header.snapshots_offset, length, Structure::SnapshotTable);
    let l1_tables = snapshots
        .iter()
        .map(|snapshot| (snapshot.l1_table_offset, u64::from(snapshot.l1_size).saturating_mul(8), Structure::L1Table));
    let places = core::iter::once(table).chain(l1_tables);
    let possible = places.filter(|&(offset, bytes, _)| bytes > 0 && geometry.is_aligned(offset));
    let place =
        |(offset, bytes, what)| (geometry.host_cluster(HostOffset::new(offset)), geometry.clusters_for(bytes), what);
    possible.map(place).collect()
}

/// Shows the entries of the L1 tables that snapshots name: where each stands, and its bits. Snapshots can be many and have
/// their tables in common, so each place of the file is read and shown once, and holes are not read. Tables that are not
/// aligned are left out; what lies past the end of the file is zeros, which are not shown.
///
/// # Errors
/// What `visit` returns; a table that is larger than allowed; a storage that fails.
pub(crate) fn visit_inactive_l1(
    snapshots: &[Snapshot],
    geometry: &Geometry,
    storage: &(impl ReadStorage + ?Sized),
    visit: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let length = storage.len()?;
    let mut ranges = Vec::new();
    for snapshot in snapshots {
        let (start, bytes) = (snapshot.l1_table_offset, u64::from(snapshot.l1_size).saturating_mul(8));
        if bytes > MAX_L1_BYTES {
            let what = format!("the L1 table of the snapshot '{}' is larger than 32 MiB", snapshot.name);
            return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::L1Table).at_host(start));
        }
        if geometry.is_aligned(start) && start < length {
            ranges.push((start, start.saturating_add(bytes).min(length.saturating_add(7) & !7)));
        }
    }
    let mut reader = TableReader::new(storage, length);
    let mut buffer = alloc::vec![0u8; L1_PIECE];
    for (mut at, end) in joined(ranges) {
        while at < end {
            let size = usize::try_from(end.saturating_sub(at)).unwrap_or(L1_PIECE).min(L1_PIECE);
            let piece = buffer.get_mut(..size).unwrap_or_default();
            if reader.read(at, piece).map_err(|error| error.in_structure(Structure::L1Table))? {
                let (entries, _) = piece.as_chunks::<8>();
                for (place, raw) in (at..).step_by(8).zip(entries).filter(|(_, raw)| **raw != [0; 8]) {
                    visit(place, u64::from_be_bytes(*raw))?;
                }
            }
            at = at.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        }
    }
    Ok(())
}

/// Ranges in order, those that overlap or touch made one: start and end. Empty ones are left out.
pub(crate) fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    ranges.dedup_by(|(start, end), (_, last)| {
        let touches = *start <= *last;
        if touches {
            *last = (*last).max(*end);
        }
        touches
    });
    ranges
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
    fn ranges_are_joined_where_they_touch() {
        let ranges = [(7, 9), (1, 3), (5, 5), (3, 4), (1, 2), (8, 8), (2, 3)];
        assert_eq!(joined(ranges.to_vec()), [(1, 4), (7, 9)]);
        assert!(joined(Vec::new()).is_empty());
    }

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
