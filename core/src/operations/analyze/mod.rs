//! The space ledger and the layout: where the bytes of an image went, what giving space back would return, and how the
//! disk lies in the file.
//!
//! Definitions and formulas: docs/analyze.md. [`analyze`] looks at metadata alone, unless zeros are to be searched;
//! it shows broken images as far as references can be followed.
//!
//! # Limits
//! Memory: 2 bytes for each cluster of the file that something claims (in pages of 4096), 4 more for those with
//! subclusters of different states, and 16 bytes for each separate run of compressed data; at most
//! [`MAX_ANALYSIS_MAP_BYTES`] for each map. The file decides, not what the image claims.

mod claims;
mod clusters;
mod collect;
mod fill;
mod gains;
mod layout;
mod ledger;
mod ranges;
#[cfg(test)]
mod tests;

pub use claims::MAX_ANALYSIS_MAP_BYTES;
pub use clusters::{ClusterOptions, ClusterRun, clusters};
pub use gains::{Compacted, Gain, Reclaim, WorstCase};
pub use layout::{
    CompressedOrder, DataRuns, Distribution, FreeGaps, Gap, GapBucket, GuestOrder, HostExtent, HostLayout,
    MAX_LARGEST_GAPS, TooSmall,
};
pub use ledger::{Ledger, LedgerLine, MAX_OVERLAPS, Overlap, SpaceBytes, SpaceClass};
pub use ranges::MAX_ANALYSIS_RUNS;

use super::walk::Walk;
use crate::error::Result;
use crate::format::HeaderArea;
use crate::storage::ReadStorage;
use collect::Collector;

/// Request sizes for which the free space is looked at, unless others are asked for: 4 KiB to 64 MiB.
pub const REQUEST_SIZES: [u64; 9] =
    [4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 8 << 20, 64 << 20];

/// What to look at.
#[derive(Clone, Copy)]
pub struct AnalyzeOptions<'a> {
    /// Read the live data that the host holds, and look for clusters that hold nothing but zeros.
    pub scan_zeroes: bool,
    /// Sizes in bytes for [`FreeGaps::too_small_for`].
    pub request_sizes: &'a [u64],
    /// Bytes that the host has allocated for the file in all (`st_blocks`), where that is known.
    pub host_allocated: Option<u64>,
    /// The external data file, for a ledger of its own.
    pub data_file: Option<&'a dyn ReadStorage>,
}

impl Default for AnalyzeOptions<'_> {
    fn default() -> Self {
        Self { scan_zeroes: false, request_sizes: &REQUEST_SIZES, host_allocated: None, data_file: None }
    }
}

/// Where the bytes of an image went, and how they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Analysis {
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Every byte of the file in one class.
    pub ledger: Ledger,
    /// The same for the external data file, where one was given. Only live data, zero but retained, free (not mapped)
    /// and beyond the last used cluster occur.
    pub data_file: Option<Ledger>,
    /// What each way of giving space back would return.
    pub reclaim: Reclaim,
    /// How large the file can get.
    pub worst_case: WorstCase,
    /// How the disk lies in the file.
    pub layout: Layout,
    /// Clusters (subclusters, with extended L2 entries) of live data that hold nothing but zeros, where they were
    /// searched; never in encrypted images.
    pub zero_filled: Option<SpaceBytes>,
    /// Bytes at the ends of compressed streams that may be padding of their last sector, at most. Where a stream
    /// really ends is known only after unpacking it.
    pub compressed_padding_at_most: u64,
    /// Entries and tables that are wrong in themselves; `check` tells which.
    pub faults: u64,
}

/// How the disk lies in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Layout {
    /// Uncompressed clusters in the guest's order.
    pub guest_order: GuestOrder,
    /// Compressed clusters in the guest's order.
    pub compressed: CompressedOrder,
    /// Free space inside the file.
    pub free: FreeGaps,
    /// Data and holes of the file, as the storage tells them.
    pub file: DataRuns,
    /// Extents on the device below. Filled by the caller ([`HostLayout::of`]), where the file system tells.
    pub host: Option<HostLayout>,
}

/// Analyzes an image. `progress` is called with what is done of a total, on one scale for the whole call.
///
/// # Errors
/// A header that [`HeaderArea::validate_for_check`] refuses; [`crate::ErrorKind::Limit`] (see the module's
/// documentation and [`walk`](mod@super::walk)); a storage that fails where nothing can go on.
pub fn analyze<S: ReadStorage + ?Sized>(
    storage: &S,
    area: &HeaderArea,
    options: &AnalyzeOptions<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Analysis> {
    let walk = Walk::new(storage, area)?;
    let (geometry, file_length) = (*walk.geometry(), walk.file_length());
    let data_file = options.data_file.filter(|_| geometry.data_file());
    let data_length = data_file.map(|file| file.len()).transpose()?.unwrap_or(0);
    let scan = options.scan_zeroes && area.header.crypt_method == 0;

    let scale = Scale { scan, data_file: data_file.is_some() };
    let mut walking = |done, total| scale.report(Phase::Walk, done, total, progress);
    let mut collector = Collector::new(geometry, file_length, data_length, &mut walking)?;
    walk.run(&mut collector)?;
    let all_counted = match walk.refcount_table() {
        Ok(table) => collector.count(storage, file_length, &table)?,
        Err(_) => false,
    };
    let mut notes = collector.finish();

    let mut filling = |done, total| scale.report(Phase::Image, done, total, progress);
    let filled = fill::image(storage, file_length, &mut notes, scan && !geometry.data_file(), &mut filling)?;
    let mut ledger = filled.ledger;
    ledger.refcounts_may_be_wrong = !all_counted || area.header.incompatible.dirty();
    ledger.held_outside_file = options.host_allocated.map(|all| all.saturating_sub(ledger.total.held));
    let (mut zero_filled, mut data_ledger) = (filled.zero_filled, None);
    if let Some(file) = data_file {
        let mut filling = |done, total| scale.report(Phase::DataFile, done, total, progress);
        let filled = fill::data_file(file, data_length, &notes, scan, &mut filling)?;
        (zero_filled, data_ledger) = (filled.zero_filled, Some(filled.ledger));
    }
    progress(Scale::TOTAL, Scale::TOTAL);

    let cluster_size = geometry.cluster_size();
    let counts = notes.counts;
    let mut reclaim = Reclaim::new(&ledger, &counts, &geometry);
    reclaim.zero_filled = zero_filled.map(Gain::in_place);
    let (guest_order, compressed) = notes.guest.finish(cluster_size);
    Ok(Analysis {
        virtual_size: geometry.virtual_size(),
        cluster_size,
        reclaim,
        worst_case: WorstCase::new(file_length, &counts, &geometry),
        layout: Layout {
            guest_order,
            compressed,
            free: FreeGaps::new(filled.gaps, cluster_size, options.request_sizes),
            file: filled.runs,
            host: None,
        },
        ledger,
        data_file: data_ledger,
        zero_filled,
        compressed_padding_at_most: notes.streams.last_sectors(),
        faults: notes.faults,
    })
}

/// The steps of an analysis.
#[derive(Clone, Copy)]
enum Phase {
    Walk,
    Image,
    DataFile,
}

/// One scale of progress for steps that count different things.
#[derive(Clone, Copy)]
struct Scale {
    scan: bool,
    data_file: bool,
}

impl Scale {
    const TOTAL: u64 = 10_000;

    fn report(self, phase: Phase, done: u64, total: u64, progress: &mut dyn FnMut(u64, u64)) {
        // Reading data takes most of the time, where it is asked for; with a data file, all data are there.
        let walked = if self.scan { 1_000 } else { 8_000 };
        let image = if self.data_file { walked } else { Self::TOTAL };
        let (from, to) = match phase {
            Phase::Walk => (0, walked),
            Phase::Image => (walked, image),
            Phase::DataFile => (image, Self::TOTAL),
        };
        let part = u128::from(to.saturating_sub(from)).saturating_mul(u128::from(done.min(total)));
        let part = part.checked_div(u128::from(total)).unwrap_or(0);
        progress(u64::try_from(part).unwrap_or(0).saturating_add(from), Self::TOTAL);
    }
}
