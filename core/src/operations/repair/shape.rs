//! Whether bytes look like a table: repair has to tell a table from what lies in its place by mistake.

use alloc::vec;

use crate::error::Result;
use crate::format::{Geometry, L2Entry, l2_runs};
use crate::storage::ReadStorage;

/// What a cluster would say if it were an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shape {
    /// Entries that say anything.
    pub(super) entries: u64,
    /// Of these, entries that can be meant: no faults, and within the file.
    pub(super) valid: u64,
}

impl Shape {
    /// Half of what it says makes sense. Enough where the other thing that it can be is refcounts: those are written anew
    /// from the references, and a table that was dropped is lost.
    pub(super) fn may_be_table(self) -> bool {
        self.entries > 0 && self.valid.saturating_mul(2) >= self.entries
    }

    /// Nearly every entry makes sense, and there is at least one.
    pub(super) fn is_table(self) -> bool {
        self.entries > 0 && self.valid.saturating_mul(10) >= self.entries.saturating_mul(9)
    }
}

/// Looks at the cluster at an offset.
///
/// # Errors
/// When the storage fails.
pub(super) fn shape_of(
    storage: &impl ReadStorage,
    geometry: &Geometry,
    file_length: u64,
    host_offset: u64,
) -> Result<Shape> {
    let mut bytes = vec![0u8; geometry.cluster_len()];
    storage.read_at(host_offset, &mut bytes)?;
    Ok(shape(&bytes, geometry, file_length))
}

/// Looks at the bytes of a cluster.
pub(super) fn shape(bytes: &[u8], geometry: &Geometry, file_length: u64) -> Shape {
    let mut shape = Shape::default();
    for run in l2_runs(bytes, geometry) {
        let within = match run.entry {
            // A host cluster is never the header's.
            L2Entry::Plain { host: Some(host), .. } => {
                let offset = host.offset.get();
                let room = geometry.clusters_for(file_length.saturating_sub(offset));
                if offset == 0 && !geometry.data_file() { 0 } else { room }
            }
            L2Entry::Plain { host: None, parts } => {
                if parts.zero == 0 && run.faults.is_empty() {
                    continue;
                }
                u64::MAX
            }
            L2Entry::Compressed(range) => {
                let end = range.offset.get().saturating_add(range.length);
                u64::from(range.offset.get() >= geometry.cluster_size() && end <= geometry.align_up(file_length))
            }
        };
        shape.entries = shape.entries.saturating_add(run.count);
        if run.faults.is_empty() {
            let within = if geometry.data_file() { run.count } else { within.min(run.count) };
            shape.valid = shape.valid.saturating_add(within);
        }
    }
    shape
}
