//! What file and disk look like in the middle of a replay, cell by cell: for maps that move.

use alloc::vec;
use alloc::vec::Vec;

use super::Replay;
use crate::error::{Error, Result};
use crate::format::{Geometry, GuestCluster, L2Entry};
use crate::storage::ReadStorage;

/// Cells that a picture has at most.
pub const MAX_PICTURE_CELLS: u64 = 1 << 16;

/// File and disk of a replay, in cells of equal size.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Picture {
    /// Bytes of the file, or of the disk, that one cell stands for.
    pub cell_bytes: u64,
    /// Bytes of the file.
    pub file_length: u64,
    /// For each cell up to the end of the file: how much of it is data, retained without data, metadata (and what only
    /// snapshots use), and free, as shares of 255. What is missing to 255 lies behind the end of the file.
    pub host: Vec<[u8; 4]>,
    /// The same for each cell of the disk: data and retained; the rest has no host cluster.
    pub guest: Vec<[u8; 4]>,
}

const DATA: usize = 0;
const RETAINED: usize = 1;
const OTHER: usize = 2;
const FREE: usize = 3;

impl Replay {
    /// File and disk as they are now. `cell_bytes` is rounded up to whole clusters; both are shown as far as `cells`
    /// reach.
    /// Goes through the whole mapping.
    ///
    /// # Errors
    /// More than [`MAX_PICTURE_CELLS`], or cells of no size; an image that is corrupt.
    pub fn picture(&mut self, cells: u64, cell_bytes: u64) -> Result<Picture> {
        if cells > MAX_PICTURE_CELLS || cell_bytes == 0 {
            return Err(Error::invalid("a picture has at most 65536 cells, of at least a byte"));
        }
        let geometry = *self.image.geometry();
        let file_length = self.image.storage().len()?;
        let end = geometry.clusters_for(file_length);
        let per_cell = geometry.clusters_for(cell_bytes).max(1);
        let mut file = Canvas::new(cells.min(end.div_ceil(per_cell)), per_cell, &geometry);
        let guest_clusters = geometry.guest_clusters();
        let mut disk = Canvas::new(cells.min(guest_clusters.div_ceil(per_cell)), per_cell, &geometry);
        let whole = u64::from(geometry.subclusters());
        self.image.visit_host_runs(end, |first, count, free| {
            file.add(first, count, if free { FREE } else { OTHER }, whole);
        })?;
        let mut guest = 0u64;
        // One call goes to the end of an L2 table at most.
        while guest < guest_clusters {
            let (first_guest, rest) = (guest, guest_clusters.saturating_sub(guest));
            self.image.visit_entry_runs(GuestCluster::new(guest), rest, |entry, count| {
                if let Some(L2Entry::Plain { host: Some(host), parts }) = entry {
                    let first = geometry.host_cluster(host.offset).get();
                    let data = u64::from(parts.allocated.count_ones()).min(whole);
                    disk.add(guest, count, DATA, data);
                    disk.add(guest, count, RETAINED, whole.saturating_sub(data));
                    // In the data file, places are those of the guest.
                    if !geometry.data_file() {
                        file.add(first, count, DATA, data);
                        file.add(first, count, RETAINED, whole.saturating_sub(data));
                        file.remove(first, count, OTHER, whole);
                    }
                }
                guest = guest.saturating_add(count);
                true
            })?;
            if guest == first_guest {
                break;
            }
        }
        let cell_bytes = per_cell.saturating_mul(geometry.cluster_size());
        Ok(Picture { cell_bytes, file_length, host: file.shares(), guest: disk.shares() })
    }
}

/// Parts of clusters (subclusters, or whole clusters) counted by cell and kind.
struct Canvas {
    cells: Vec<[u64; 4]>,
    per_cell: u64,
    /// Parts of one cell.
    parts: u64,
}

impl Canvas {
    fn new(cells: u64, per_cell: u64, geometry: &Geometry) -> Self {
        let parts = per_cell.saturating_mul(geometry.subclusters().into()).max(1);
        Self { cells: vec![[0; 4]; usize::try_from(cells).unwrap_or(0)], per_cell, parts }
    }

    fn add(&mut self, first: u64, count: u64, kind: usize, parts: u64) {
        self.each(first, count, kind, |sum, clusters| sum.saturating_add(clusters.saturating_mul(parts)));
    }

    fn remove(&mut self, first: u64, count: u64, kind: usize, parts: u64) {
        self.each(first, count, kind, |sum, clusters| sum.saturating_sub(clusters.saturating_mul(parts)));
    }

    fn each(&mut self, first: u64, count: u64, kind: usize, change: impl Fn(u64, u64) -> u64) {
        let (mut at, end) = (first, first.saturating_add(count));
        while at < end {
            let cell = at.checked_div(self.per_cell).unwrap_or(0);
            let next = cell.saturating_add(1).saturating_mul(self.per_cell).min(end).max(at.saturating_add(1));
            let sum = usize::try_from(cell).ok().and_then(|cell| self.cells.get_mut(cell));
            let Some(sum) = sum.and_then(|cell| cell.get_mut(kind)) else { return };
            *sum = change(*sum, next.saturating_sub(at));
            at = next;
        }
    }

    fn shares(&self) -> Vec<[u8; 4]> {
        let share = |parts: u64| {
            let scaled = parts.min(self.parts).saturating_mul(255).checked_div(self.parts).unwrap_or(0);
            u8::try_from(scaled).unwrap_or(u8::MAX)
        };
        self.cells.iter().map(|cell| cell.map(share)).collect()
    }
}
