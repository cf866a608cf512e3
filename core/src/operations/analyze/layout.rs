//! The layout: how far the order of the guest and the order of the host differ, and how free space is cut up.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::storage::StorageExtentKind;

/// Distribution of lengths in bytes. All values are 0 when `count` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// The sum of their lengths.
    pub bytes: u64,
    /// `bytes / count`, rounded down.
    pub mean: u64,
    /// The shortest.
    pub min: u64,
    /// 10th percentile (nearest rank).
    pub p10: u64,
    /// The median (nearest rank).
    pub p50: u64,
    /// 90th percentile (nearest rank).
    pub p90: u64,
    /// 99th percentile (nearest rank).
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// The largest length L such that at least half of the bytes are in runs of length L or more ("N50").
    pub half_of_bytes_in: u64,
}

/// Counts lengths: memory grows with the number of different lengths only.
#[derive(Debug, Default)]
pub(super) struct Lengths(BTreeMap<u64, u64>);

impl Lengths {
    pub(super) fn add(&mut self, length: u64) {
        if length > 0 {
            let count = self.0.entry(length).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Lengths and how often each occurs, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(length, count)| (*length, *count))
    }

    /// The distribution of the lengths, each times `unit` bytes.
    pub(super) fn distribution(&self, unit: u64) -> Distribution {
        let count = self.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        let length = self.iter().fold(0u64, |sum, (length, count)| sum.saturating_add(length.saturating_mul(count)));
        let bytes = length.saturating_mul(unit);
        let percentile = |p| self.percentile(count, p).saturating_mul(unit);
        Distribution {
            count,
            bytes,
            mean: bytes.checked_div(count).unwrap_or(0),
            min: self.iter().next().map_or(0, |(length, _)| length).saturating_mul(unit),
            p10: percentile(10),
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: self.iter().next_back().map_or(0, |(length, _)| length).saturating_mul(unit),
            half_of_bytes_in: self.half_of(length).saturating_mul(unit),
        }
    }

    /// The smallest length such that at least `percent` of all are not longer.
    fn percentile(&self, count: u64, percent: u64) -> u64 {
        let rank = u128::from(count).saturating_mul(u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0u128;
        let reached = self.iter().find(|(_, count)| {
            seen = seen.saturating_add(u128::from(*count));
            seen >= rank
        });
        reached.map_or(0, |(length, _)| length)
    }

    fn half_of(&self, total: u64) -> u64 {
        let mut seen = 0u64;
        let reached = self.iter().rev().find(|(length, count)| {
            seen = seen.saturating_add(length.saturating_mul(*count));
            seen >= total.div_ceil(2)
        });
        reached.map_or(0, |(length, _)| length)
    }
}

/// How the mapped, uncompressed clusters of the active disk lie in the file (or in the data file).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestOrder {
    /// Guest clusters that have a host cluster: with data, mixed, or zero but retained.
    pub clusters: u64,
    /// Places in the guest's order at which the next such guest cluster is not in the next host cluster; gaps of the
    /// guest between them do not matter.
    pub discontinuities: u64,
    /// Those of them that jump back in the file.
    pub backward: u64,
    /// `discontinuities / (clusters - 1)` in parts per million.
    pub discontinuities_ppm: u64,
    /// Runs: contiguous in the guest and in the file at once.
    pub runs: Distribution,
}

/// Compressed clusters, which lie one behind the other without alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CompressedOrder {
    /// Compressed clusters of the active disk.
    pub clusters: u64,
    /// Bytes that their entries give them, each up to the end of its last sector (so a sector may count twice).
    pub stream_bytes: u64,
    /// The same in parts per million of the guest bytes they hold.
    pub ratio_ppm: u64,
    /// Places in the guest's order at which the next stream does not begin within the last sector of the one before,
    /// nor right behind it.
    pub discontinuities: u64,
}

/// Follows the active disk in the guest's order.
#[derive(Debug, Default)]
pub(super) struct GuestWalk {
    order: GuestOrder,
    compressed: CompressedOrder,
    runs: Lengths,
    run: u64,
    /// Guest and host cluster that would continue the run.
    next: Option<(u64, u64)>,
    last_stream: Option<(u64, u64)>,
}

impl GuestWalk {
    /// Guest clusters in a row, in host clusters in a row.
    pub(super) fn mapped(&mut self, guest: u64, host: u64, count: u64) {
        self.order.clusters = self.order.clusters.saturating_add(count);
        let mut joined = false;
        if let Some((next_guest, next_host)) = self.next {
            joined = next_host == host && next_guest == guest;
            if next_host != host {
                self.order.discontinuities = self.order.discontinuities.saturating_add(1);
                if host < next_host {
                    self.order.backward = self.order.backward.saturating_add(1);
                }
            }
        }
        if !joined {
            self.runs.add(self.run);
            self.run = 0;
        }
        self.run = self.run.saturating_add(count);
        self.next = Some((guest.saturating_add(count), host.saturating_add(count)));
    }

    /// A compressed guest cluster.
    pub(super) fn compressed(&mut self, offset: u64, length: u64) {
        self.compressed.clusters = self.compressed.clusters.saturating_add(1);
        self.compressed.stream_bytes = self.compressed.stream_bytes.saturating_add(length);
        if self
            .last_stream
            .is_some_and(|(start, end)| offset <= start || offset > end || end.saturating_sub(offset) > 511)
        {
            self.compressed.discontinuities = self.compressed.discontinuities.saturating_add(1);
        }
        self.last_stream = Some((offset, offset.saturating_add(length)));
    }

    pub(super) fn finish(mut self, cluster_size: u64) -> (GuestOrder, CompressedOrder) {
        self.runs.add(self.run);
        self.order.runs = self.runs.distribution(cluster_size);
        self.order.discontinuities_ppm = ppm(self.order.discontinuities, self.order.clusters.saturating_sub(1));
        let guest_bytes = self.compressed.clusters.saturating_mul(cluster_size);
        self.compressed.ratio_ppm = ppm(self.compressed.stream_bytes, guest_bytes);
        (self.order, self.compressed)
    }
}

/// Gaps of a size from `from` up to, not including, twice as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GapBucket {
    /// Smallest size in bytes, a power of two.
    pub from: u64,
    /// Gaps.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// A gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gap {
    /// First byte in the file.
    pub host_offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Gaps that are listed one by one.
pub const MAX_LARGEST_GAPS: usize = 16;

/// Collects gaps, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct GapCounter {
    /// In clusters.
    lengths: Lengths,
    largest: Vec<Gap>,
}

impl GapCounter {
    /// A gap of `clusters`, which is `length` bytes long.
    pub(super) fn add(&mut self, host_offset: u64, clusters: u64, length: u64) {
        self.lengths.add(clusters);
        let at = self.largest.partition_point(|gap| gap.length >= length);
        if at < MAX_LARGEST_GAPS {
            self.largest.truncate(MAX_LARGEST_GAPS.saturating_sub(1));
            self.largest.insert(at, Gap { host_offset, length });
        }
    }
}

/// How much of the free space cannot take a request of a given size in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TooSmall {
    /// The size in bytes.
    pub request_size: u64,
    /// Free bytes in gaps smaller than that.
    pub bytes: u64,
    /// The same in parts per million of all free bytes.
    pub ppm: u64,
}

/// Free space inside the file: maximal runs of free clusters before the last cluster in use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FreeGaps {
    /// The lengths of the gaps.
    pub gaps: Distribution,
    /// Gaps by size, ascending; sizes that do not occur are left out.
    pub histogram: Vec<GapBucket>,
    /// What request sizes find too small.
    pub too_small_for: Vec<TooSmall>,
    /// The [`MAX_LARGEST_GAPS`] largest gaps, the largest first, equal ones in the order of the file.
    pub largest: Vec<Gap>,
}

impl FreeGaps {
    pub(super) fn new(counter: GapCounter, cluster_size: u64, request_sizes: &[u64]) -> Self {
        let GapCounter { lengths, largest } = counter;
        let gaps = lengths.distribution(cluster_size);
        let mut histogram: Vec<GapBucket> = Vec::new();
        for (length, count) in lengths.iter() {
            let size = length.saturating_mul(cluster_size);
            let from = 1u64.checked_shl(size.checked_ilog2().unwrap_or(0)).unwrap_or(0);
            let bytes = size.saturating_mul(count);
            match histogram.last_mut().filter(|bucket| bucket.from == from) {
                Some(bucket) => {
                    bucket.count = bucket.count.saturating_add(count);
                    bucket.bytes = bucket.bytes.saturating_add(bytes);
                }
                None => histogram.push(GapBucket { from, count, bytes }),
            }
        }
        let too_small = |&request_size: &u64| {
            let small = lengths.iter().map(|(length, count)| (length.saturating_mul(cluster_size), count));
            let small = small.take_while(|(size, _)| *size < request_size);
            let bytes = small.fold(0u64, |sum, (size, count)| sum.saturating_add(size.saturating_mul(count)));
            TooSmall { request_size, bytes, ppm: ppm(bytes, gaps.bytes) }
        };
        Self { gaps, histogram, too_small_for: request_sizes.iter().map(too_small).collect(), largest }
    }
}

/// A run of bytes of the file that is contiguous on the device below, as the file system tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostExtent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte on the device, where it has a place there.
    pub physical_offset: Option<u64>,
    /// Space that is reserved but was never written.
    pub unwritten: bool,
    /// The space belongs to other files too.
    pub shared: bool,
}

/// How the file lies on the device below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostLayout {
    /// Extents as the file system counts them.
    pub extents: u64,
    /// Places in the order of the file at which the next extent does not follow the one before on the device, or its
    /// place is not known.
    pub discontinuities: u64,
    /// Stretches of the file that are contiguous on the device; holes of the file end none.
    pub runs: Distribution,
    /// Bytes reserved but never written.
    pub unwritten_bytes: u64,
    /// Bytes whose space belongs to other files too: giving them back frees nothing.
    pub shared_bytes: u64,
}

impl HostLayout {
    /// Counts extents, which come in the order of the file.
    pub fn of(extents: impl IntoIterator<Item = HostExtent>) -> Self {
        let (mut layout, mut lengths) = (Self::default(), Lengths::default());
        let (mut run, mut next_physical) = (0u64, None);
        for extent in extents {
            layout.extents = layout.extents.saturating_add(1);
            if next_physical.is_some() && next_physical == extent.physical_offset {
                run = run.saturating_add(extent.length);
            } else {
                if layout.extents > 1 {
                    layout.discontinuities = layout.discontinuities.saturating_add(1);
                }
                lengths.add(run);
                run = extent.length;
            }
            next_physical = extent.physical_offset.and_then(|at| at.checked_add(extent.length));
            for (wanted, bytes) in
                [(extent.unwritten, &mut layout.unwritten_bytes), (extent.shared, &mut layout.shared_bytes)]
            {
                *bytes = bytes.saturating_add(if wanted { extent.length } else { 0 });
            }
        }
        lengths.add(run);
        layout.runs = lengths.distribution(1);
        layout
    }
}

/// What the store itself tells: data and holes in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DataRuns {
    /// Lengths of runs of data between holes.
    pub data: Distribution,
    /// Lengths of holes.
    pub holes: Distribution,
}

/// Joins parts of the file that come in order into runs of data and holes.
#[derive(Debug, Default)]
pub(super) struct DataRunCounter {
    data: Lengths,
    holes: Lengths,
    run: Option<(StorageExtentKind, u64)>,
}

impl DataRunCounter {
    pub(super) fn add(&mut self, kind: StorageExtentKind, bytes: u64) {
        match &mut self.run {
            Some((before, run)) if *before == kind => *run = run.saturating_add(bytes),
            Some(_) | None => {
                self.end();
                self.run = Some((kind, bytes));
            }
        }
    }

    pub(super) fn finish(mut self) -> DataRuns {
        self.end();
        DataRuns { data: self.data.distribution(1), holes: self.holes.distribution(1) }
    }

    fn end(&mut self) {
        match self.run {
            Some((StorageExtentKind::Data, length)) => self.data.add(length),
            Some((StorageExtentKind::Hole, length)) => self.holes.add(length),
            Some((StorageExtentKind::Unknown, _)) | None => {}
        }
    }
}

/// `part / whole` in parts per million, rounded down; 0 of nothing.
pub(super) fn ppm(part: u64, whole: u64) -> u64 {
    let share = u128::from(part).saturating_mul(1_000_000).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX)
}
