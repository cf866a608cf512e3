//! Data that lie in holes of their file: zeros, as who copies or compares them need not find out by reading.

use super::{Content, Extent, Image};
use crate::storage::{Storage, StorageExtentKind};

/// Shorter holes among data are read: to ask for each takes as long, and copies would come out in smaller parts.
const LEAST_HOLE: u64 = 1 << 20;

impl<S: Storage> Image<S> {
    /// An extent that [`Image::next_extent`] gave, as far as it is either data or a large hole (1 MiB or more) of the file
    /// that holds them: data end where such a hole begins, and what begins in one is [`Content::Zero`], in whole clusters of
    /// the guest. Entries may map terabytes that were never written. All other extents, and data that are encrypted, stay
    /// what they are.
    #[must_use]
    pub fn without_holes(&self, extent: Extent) -> Extent {
        let Content::Data { host_offset } = extent.content else { return extent };
        // Where the data cannot be had, or are not the guest's, the reader is told why.
        let Ok(source) = self.data_at_depth(extent.depth) else { return extent };
        let size = self.geometry().cluster_size();
        let within = extent.guest_offset & size.saturating_sub(1);
        let mut done = 0u64;
        while done < extent.length {
            let Ok(found) = source.next_extent(host_offset.get().saturating_add(done)) else { return extent };
            let left = extent.length.saturating_sub(done);
            // Past the end there is nothing any more.
            let length = if found.length == 0 { left } else { found.length.min(left) };
            let large = found.length == 0 || found.length >= LEAST_HOLE;
            if found.kind == StorageExtentKind::Hole && large {
                let end =
                    if length == left { extent.length } else { round_down(within, done.saturating_add(length), size) };
                let start = if done == 0 { 0 } else { round_up(within, done, size) };
                if start == 0 && end > 0 {
                    let content = Content::Zero { host_offset: Some(host_offset) };
                    return Extent { length: end, content, ..extent };
                }
                if start > 0 && start < end {
                    return Extent { length: start, ..extent };
                }
            }
            done = done.saturating_add(length);
        }
        extent
    }
}

/// The first end of a cluster at or behind `at`, where both are counted from a place `within` a cluster.
fn round_up(within: u64, at: u64, size: u64) -> u64 {
    within.saturating_add(at).checked_next_multiple_of(size).unwrap_or(u64::MAX).saturating_sub(within)
}

/// The last one at or before it.
fn round_down(within: u64, at: u64, size: u64) -> u64 {
    let end = within.saturating_add(at);
    end.saturating_sub(end.checked_rem(size).unwrap_or(0)).saturating_sub(within)
}
