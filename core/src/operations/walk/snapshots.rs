//! The snapshot table (section "Snapshots").

use alloc::format;
use alloc::vec::Vec;

use super::{Fault, FaultKind, Source, Uses, Visitor, Walk};
use crate::error::{Error, Result, Structure};
use crate::format::{MAX_VIRTUAL_SIZE, Snapshot};
use crate::metadata::read_snapshot_table;
use crate::storage::ReadStorage;

/// Extra data that entries of version 3 must have: VM state size and virtual size.
const VERSION_3_EXTRA_DATA: usize = 16;

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    /// The table itself, and what is wrong in it; gives its entries.
    pub(super) fn visit_snapshot_table(&self, visitor: &mut impl Visitor) -> Result<Vec<Snapshot>> {
        let host_offset = self.area.header.snapshots_offset;
        let aligned = self.geometry.is_aligned(host_offset) && host_offset <= MAX_VIRTUAL_SIZE;
        let read = if aligned {
            read_snapshot_table(&self.area.header, self.storage)
        } else {
            let what = format!("its offset {host_offset:#x} is invalid");
            Err(Error::corrupt(Structure::SnapshotTable, what).at_host(host_offset))
        };
        let (snapshots, length) = match read {
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
