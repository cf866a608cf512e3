//! Tables that lie in holes: what they say is known without reading them.
//!
//! A file can be terabytes long and hold next to nothing. An L1 table of 32 MiB may name four million L2 tables of 2 MiB
//! there, and a refcount table a million blocks. All of them are zeros, and say nothing; who goes through them all must not
//! read them.

use super::Metadata;
use crate::format::HostOffset;
use crate::storage::{ReadStorage, StorageExtentKind};

/// Whether the storage knows that a range has no data, or lies past its end. One that fails does not know: who reads there is
/// told why.
pub(crate) fn is_hole(storage: &(impl ReadStorage + ?Sized), offset: u64, length: u64) -> bool {
    let end = offset.saturating_add(length);
    let mut at = offset;
    while at < end {
        match storage.next_extent(at) {
            Ok(extent) if extent.kind == StorageExtentKind::Hole => {
                if extent.length == 0 {
                    return true;
                }
                at = at.saturating_add(extent.length);
            }
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

impl Metadata {
    /// Whether every entry of an L2 table is unallocated, as far as that is known without reading it: it lies in a hole, and
    /// no entry waits to be written.
    pub(crate) fn says_nothing(&self, storage: &(impl ReadStorage + ?Sized), table: HostOffset) -> bool {
        !self.slices.has_dirty(table) && is_hole(storage, table.get(), self.geometry.cluster_size())
    }
}
