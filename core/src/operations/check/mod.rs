//! The check: are the refcounts what the references say, and is every entry sound?
//!
//! It finds what `qemu-img check` finds, with the same numbers. Where QEMU refuses to check at all (a bitmap that
//! breaks its rules, an unreadable snapshot table), the check reports a [`Severity::CheckError`] and does the rest.
//!
//! # Cost
//! Each table is read once. Memory: a byte for each cluster of the file that is in use (more where it has more than 62
//! references), the refcount table, and what the walk takes. See [`MAX_COUNTER_BYTES`] and
//! [`crate::operations::walk`](mod@crate::operations::walk) for the limits.

mod counts;
mod refcounts;
mod references;
mod report;

use alloc::collections::BTreeSet;

use crate::error::{Error, Result, Structure};
use crate::format::HeaderArea;
use crate::operations::walk::{RefcountTable, Walk};
use crate::storage::ReadStorage;

pub use counts::MAX_COUNTER_BYTES;
pub(in crate::operations) use counts::{Counts, Recorded};
use references::Checker;
pub use report::{CheckReport, Finding, FindingKind, MAX_FINDINGS, Severity};

/// Clusters of the largest file that can be checked: QEMU counts them in 31 bits.
pub const MAX_CHECKED_CLUSTERS: u64 = 0x7fff_ffff;

/// The share of the refcounts in the progress.
const REFCOUNTS_SHARE: f64 = 0.2;
/// Where the walk ends in the progress; comparing is the rest.
const WALK_END: f64 = 0.95;

/// Checks an image; `progress` is told the part that is done, from 0 to 1.
///
/// # Examples
/// ```
/// use qcowkit_core::image::{CreateOptions, Image};
/// use qcowkit_core::operations::{check, read_header};
/// use qcowkit_core::storage::MemoryStorage;
///
/// let mut image = Image::create(MemoryStorage::new(), 1 << 30, &CreateOptions::default())?;
/// image.write_at(0, b"data")?;
/// let storage = image.close()?;
///
/// let report = check(&storage, &read_header(&storage)?, &mut |_| ())?;
/// assert!(report.is_clean());
/// assert_eq!((report.allocated_clusters, report.total_clusters), (1, 16384));
/// # Ok::<(), qcowkit_core::Error>(())
/// ```
///
/// # Errors
/// What [`HeaderArea::validate_for_check`] refuses; a storage whose length or refcount table cannot be read. All else
/// is in the report.
pub fn check<S: ReadStorage + ?Sized>(
    storage: &S,
    area: &HeaderArea,
    progress: &mut dyn FnMut(f64),
) -> Result<CheckReport> {
    Ok(examine(storage, area, progress)?.report)
}

/// What a check knows when it is done.
pub(in crate::operations) struct Examined {
    pub(in crate::operations) report: CheckReport,
    /// `None` where the file is too large to be counted.
    pub(in crate::operations) counts: Option<Counts>,
    pub(in crate::operations) table: RefcountTable,
    /// Indices of refcount blocks that cannot be read.
    pub(in crate::operations) unreadable: BTreeSet<u64>,
}

/// As [`check`], and keeps what was counted: repair starts from it.
pub(in crate::operations) fn examine<S: ReadStorage + ?Sized>(
    storage: &S,
    area: &HeaderArea,
    progress: &mut dyn FnMut(f64),
) -> Result<Examined> {
    let walk = Walk::new(storage, area)?;
    let geometry = *walk.geometry();
    // QEMU counts in sectors: the virtual disk rounded down, the file rounded up.
    let total_clusters = geometry.clusters_for(geometry.virtual_size() & !511);
    let mut report = CheckReport { total_clusters, ..CheckReport::default() };
    let file_length = walk.file_length().saturating_add(511) & !511;
    if geometry.clusters_for(file_length) > MAX_CHECKED_CLUSTERS {
        let clusters = geometry.clusters_for(file_length);
        let what = alloc::format!("the file has {clusters} clusters, at most {MAX_CHECKED_CLUSTERS} can be checked");
        report.add_end(&Error::new(crate::ErrorKind::Limit(what)));
        let table = walk.refcount_table()?;
        return Ok(Examined { report, counts: None, table, unreadable: BTreeSet::new() });
    }
    let mut checker = Checker::new(storage, geometry, file_length, walk.refcount_table()?, report, progress)?;
    // Half of the references say nothing of refcounts: they are compared only after a whole walk.
    let outcome = checker.record_refcounts().and_then(|()| walk.run(&mut checker)).and_then(|()| checker.compare());
    if let Err(error) = outcome {
        checker.report.add_end(&error);
    }
    (checker.progress)(1.0);
    let Checker { report, counts, table, unreadable, .. } = checker;
    Ok(Examined { report, counts: Some(counts), table, unreadable })
}

impl CheckReport {
    /// What ended the check early.
    fn add_end(&mut self, error: &Error) {
        self.incomplete = true;
        self.add(Finding {
            severity: Severity::CheckError,
            kind: match error.kind() {
                crate::ErrorKind::Limit(_) => FindingKind::Limit,
                _ => FindingKind::Unreadable,
            },
            structure: error.site().structure.unwrap_or(Structure::Header),
            host_offset: error.site().host_offset,
            guest_offset: None,
            index: error.site().index,
            recorded: None,
            actual: None,
            count: 1,
            message: alloc::format!("the check ended early: {error}"),
        });
    }
}

/// `done` of `total` as a number from 0 to 1.
fn part(done: u64, total: u64) -> f64 {
    // In 32 bits, which convert to floating point without loss.
    let small = |number: u64| {
        f64::from(
            u32::try_from(number.wrapping_shr(total.checked_ilog2().unwrap_or(0).saturating_sub(31)))
                .unwrap_or(u32::MAX),
        )
    };
    if total == 0 { 1.0 } else { (small(done) / small(total)).min(1.0) }
}

#[cfg(test)]
mod tests;
