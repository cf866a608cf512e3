//! What the mapping of an image looks like, kept up to date operation by operation: the entries of a range are counted
//! out before it changes and counted in afterwards, so that a disk of any size costs what its changes cost.

use super::bits::Bits;
use crate::error::Result;
use crate::format::{Geometry, GuestCluster, L2Entry};
use crate::image::Image;
use crate::storage::Storage;

/// Sums over all entries of the active L2 tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes of data that the guest can read.
    pub(super) live: u64,
    /// Bytes of host clusters that are mapped but hold nothing that the guest can read.
    pub(super) retained: u64,
    /// Entries with a host cluster, or compressed.
    pub(super) allocated: u64,
    /// As `qemu-img check` counts them: entries whose host cluster does not follow that of the entry with a host cluster
    /// before them in the same L2 table; and all compressed ones.
    pub(super) fragmented: u64,
    /// Runs, within L2 tables, that are contiguous in the guest and in the file at once.
    pub(super) runs: u64,
}

/// The counts of an image, and which entries have a host cluster.
#[derive(Debug)]
pub(super) struct Census {
    geometry: Geometry,
    counts: Counts,
    mapped: Bits,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// An entry with a host cluster: guest cluster and host cluster.
type Place = (u64, u64);

impl Census {
    /// Counts a whole image.
    pub(super) fn take<S: Storage>(image: &mut Image<S>) -> Result<Self> {
        let geometry = *image.geometry();
        let mut census = Self { geometry, counts: Counts::default(), mapped: Bits::new(geometry.guest_clusters()) };
        census.count(image, 0, geometry.guest_clusters(), Direction::In)?;
        Ok(census)
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Before the entries of `first..end` change.
    pub(super) fn leave<S: Storage>(&mut self, image: &mut Image<S>, first: u64, end: u64) -> Result<()> {
        self.count(image, first, end, Direction::Out)
    }

    /// After the entries of `first..end` changed.
    pub(super) fn enter<S: Storage>(&mut self, image: &mut Image<S>, first: u64, end: u64) -> Result<()> {
        self.count(image, first, end, Direction::In)
    }

    fn count<S: Storage>(&mut self, image: &mut Image<S>, first: u64, end: u64, direction: Direction) -> Result<()> {
        let mut at = first;
        let end = end.min(self.geometry.guest_clusters());
        while at < end {
            let table = self.geometry.l1_index(GuestCluster::new(at));
            let table_start = self.geometry.cluster_at(table, 0).get();
            let table_end = self.geometry.cluster_at(table.saturating_add(1), 0).get();
            let here = table_end.min(end);
            self.count_in_table(image, table_start..table_end, at..here, direction)?;
            at = here.max(at.saturating_add(1));
        }
        Ok(())
    }

    fn count_in_table<S: Storage>(
        &mut self,
        image: &mut Image<S>,
        table: core::ops::Range<u64>,
        range: core::ops::Range<u64>,
        direction: Direction,
    ) -> Result<()> {
        let geometry = self.geometry;
        let place = |image: &mut Image<S>, cluster: Option<u64>| -> Result<Option<Place>> {
            let Some(cluster) = cluster else { return Ok(None) };
            let host = image.entry(GuestCluster::new(cluster))?.host();
            Ok(host.map(|host| (cluster, geometry.host_cluster(host.offset).get())))
        };
        let mut before = place(image, self.mapped.previous(table.start, range.start))?;
        let mut sum = Counts::default();
        let mut cluster = range.start;
        let mapped = &mut self.mapped;
        image.visit_entry_runs(
            GuestCluster::new(range.start),
            range.end.saturating_sub(range.start),
            |entry, count| {
                // A missing table has no entries, and never had any.
                let Some(entry) = entry else { return true };
                let host = entry.host().map(|host| geometry.host_cluster(host.offset).get());
                if direction == Direction::In {
                    mapped.set_range(cluster, cluster.saturating_add(count), host.is_some());
                }
                sum.add(entry, count, &geometry);
                if let Some(host) = host {
                    // Within the run each cluster follows the one before.
                    sum.join(before, (cluster, host));
                    let more = count.saturating_sub(1);
                    before = Some((cluster.saturating_add(more), host.saturating_add(more)));
                }
                cluster = cluster.saturating_add(count);
                true
            },
        )?;
        if let Some(behind) = place(image, self.mapped.next(range.end, table.end))? {
            sum.join(before, behind);
        }
        self.counts.apply(&sum, direction);
        Ok(())
    }
}

impl Counts {
    /// Counts `count` entries like this one.
    fn add(&mut self, entry: L2Entry, count: u64, geometry: &Geometry) {
        match entry {
            L2Entry::Compressed(range) => {
                self.live = self.live.saturating_add(range.length);
                self.allocated = self.allocated.saturating_add(1);
                self.fragmented = self.fragmented.saturating_add(1);
                self.runs = self.runs.saturating_add(1);
            }
            L2Entry::Plain { host: None, .. } => {}
            L2Entry::Plain { host: Some(_), parts } => {
                let live = u64::from(parts.allocated.count_ones()).saturating_mul(geometry.subcluster_size());
                let retained = geometry.cluster_size().saturating_sub(live);
                self.live = self.live.saturating_add(live.saturating_mul(count));
                self.retained = self.retained.saturating_add(retained.saturating_mul(count));
                self.allocated = self.allocated.saturating_add(count);
            }
        }
    }

    /// Counts how `here` follows the entry with a host cluster before it in the table.
    fn join(&mut self, before: Option<Place>, here: Place) {
        let next_host = before.map(|(_, host)| host.saturating_add(1));
        let follows = next_host == Some(here.1);
        let adjacent = before.is_some_and(|(guest, _)| guest.saturating_add(1) == here.0);
        if before.is_some() && !follows {
            self.fragmented = self.fragmented.saturating_add(1);
        }
        if !(follows && adjacent) {
            self.runs = self.runs.saturating_add(1);
        }
    }

    fn apply(&mut self, sum: &Self, direction: Direction) {
        let combine = |mine: &mut u64, theirs: u64| {
            *mine = match direction {
                Direction::In => mine.saturating_add(theirs),
                Direction::Out => mine.saturating_sub(theirs),
            };
        };
        combine(&mut self.live, sum.live);
        combine(&mut self.retained, sum.retained);
        combine(&mut self.allocated, sum.allocated);
        combine(&mut self.fragmented, sum.fragmented);
        combine(&mut self.runs, sum.runs);
    }
}
