//! The snapshot table (section "Snapshots").

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, FaultKind, Source, TableReader, Uses, Visitor, Walk};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    Geometry, HeaderArea, MAX_SNAPSHOT_EXTRA_DATA, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, MAX_VIRTUAL_SIZE, Reader,
    Snapshot,
};
use crate::storage::ReadStorage;

/// More than the longest entry.
const WINDOW: usize = 256 << 10;
const FIRST_WINDOW: usize = 4 << 10;

/// Extra data that entries of version 3 must have: VM state size and virtual size.
const VERSION_3_EXTRA_DATA: usize = 16;

/// Reads the snapshot table: its entries and its length in bytes.
///
/// # Errors
/// When the table exceeds a limit of [`crate::format`] (count, bytes, extra data of an entry), is not aligned, or the
/// storage fails. Past the end of the file entries are zeros, as everything is.
pub fn read_snapshots<S: ReadStorage + ?Sized>(
    storage: &S,
    area: &HeaderArea,
    geometry: &Geometry,
) -> Result<(Vec<Snapshot>, u64)> {
    let (count, start) = (area.header.snapshot_count, area.header.snapshots_offset);
    if count > MAX_SNAPSHOTS {
        return Err(limit(format!("{count} snapshots, at most {MAX_SNAPSHOTS} are allowed")));
    }
    if !geometry.is_aligned(start) || start > MAX_VIRTUAL_SIZE {
        return Err(
            Error::corrupt(Structure::SnapshotTable, format!("its offset {start:#x} is invalid")).at_host(start)
        );
    }
    let mut window = Window { reader: TableReader::new(storage, storage.len()?), bytes: Vec::new(), start: 0 };
    let mut position = start;
    let mut snapshots = Vec::new();
    for index in 0..count {
        let fixed = window.at(position, 40)?;
        let length = Snapshot::entry_length(fixed)?;
        let extra = Snapshot::extra_data_length(fixed)?;
        if extra > MAX_SNAPSHOT_EXTRA_DATA {
            let what = format!("{extra} bytes of extra data in a snapshot");
            return Err(limit(what).at_index(index.into()).at_host(position));
        }
        let entry = window.at(position, length)?;
        let snapshot = Snapshot::parse(&mut Reader::new(entry, Structure::SnapshotTable, position));
        snapshots.push(snapshot.map_err(|error| error.at_index(index.into()))?);
        position = position.saturating_add(length);
        if position.saturating_sub(start) > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(limit(format!("the snapshot table has more than {MAX_SNAPSHOT_TABLE_BYTES} bytes")));
        }
    }
    Ok((snapshots, position.saturating_sub(start)))
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
            // The first entries are often all: do not read much for them.
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

fn limit(what: alloc::string::String) -> Error {
    Error::new(ErrorKind::Limit(what)).in_structure(Structure::SnapshotTable)
}

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    /// The table itself, and what is wrong in it; gives its entries.
    pub(super) fn visit_snapshot_table(&self, visitor: &mut impl Visitor) -> Result<Vec<Snapshot>> {
        let host_offset = self.area.header.snapshots_offset;
        let (snapshots, length) = match read_snapshots(self.storage, self.area, &self.geometry) {
            Ok(read) => read,
            Err(error) => {
                let kind = FaultKind::SnapshotTable(error);
                visitor.fault(&Fault { kind, source: Source::Header, host_offset, uses: Uses::ACTIVE })?;
                return Ok(Vec::new());
            }
        };
        if length > 0 {
            visitor.reference(&self.named_by(Source::Header, Structure::SnapshotTable, host_offset, length))?;
        }
        if self.geometry.data_file() && !snapshots.is_empty() {
            let kind = FaultKind::SnapshotsWithDataFile { count: u32::try_from(snapshots.len()).unwrap_or(u32::MAX) };
            visitor.fault(&Fault { kind, source: Source::Header, host_offset, uses: Uses::ACTIVE })?;
        }
        for (index, snapshot) in (0..).zip(&snapshots) {
            if self.geometry.version() >= 3 && snapshot.extra_data.len() < VERSION_3_EXTRA_DATA {
                let (kind, source) = (FaultKind::SnapshotIncomplete, Source::SnapshotTable { index });
                visitor.fault(&Fault { kind, source, host_offset, uses: Uses::SNAPSHOT })?;
            }
        }
        Ok(snapshots)
    }
}
