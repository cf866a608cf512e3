//! A check, and a repair of it, as one report for programs.

use super::{OrphanedTable, RepairPlan};
use crate::operations::check::{CheckReport, Finding};

/// What `qcowkit check --output=json` prints: the members of `qemu-img check`, which leaves those out that are 0, and the
/// rest of the report under `qcowkit`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub struct CheckSummary<'a> {
    /// See [`CheckReport::image_end_offset`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub image_end_offset: u64,
    /// See [`CheckReport::compressed_clusters`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub compressed_clusters: u64,
    /// See [`CheckReport::total_clusters`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub total_clusters: u64,
    /// See [`CheckReport::corruptions`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub corruptions: u64,
    /// See [`CheckReport::leaks`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub leaks: u64,
    /// Leaks that a repair took away.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub leaks_fixed: u64,
    /// Corruptions that a repair took away.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub corruptions_fixed: u64,
    /// See [`CheckReport::allocated_clusters`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub allocated_clusters: u64,
    /// See [`CheckReport::fragmented_clusters`].
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_zero"))]
    pub fragmented_clusters: u64,
    /// See [`CheckReport::check_errors`].
    pub check_errors: u64,
    /// The name of the image.
    pub filename: &'a str,
    /// "qcow2".
    pub format: &'static str,
    /// What QEMU does not tell.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub qcowkit: Option<CheckDetails<'a>>,
}

/// What QEMU does not tell of a check.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckDetails<'a> {
    /// See [`CheckReport::warnings`].
    pub warnings: u64,
    /// See [`CheckReport::incomplete`].
    pub incomplete: bool,
    /// See [`CheckReport::findings`].
    pub findings: &'a [Finding],
    /// See [`CheckReport::findings_omitted`].
    pub findings_omitted: u64,
    /// L2 tables that nothing leads to.
    pub orphaned_tables: &'a [OrphanedTable],
    /// What a repair would do.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub repair_plan: Option<&'a RepairPlan>,
    /// What a repair did.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub repair: Option<&'a RepairPlan>,
}

/// What became of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairState {
    /// It is a plan.
    Planned,
    /// It was carried out; the report is of the image afterwards.
    Done,
}

impl<'a> CheckSummary<'a> {
    /// Of a check, and the repair that it belongs to.
    #[must_use]
    pub fn new(
        filename: &'a str,
        report: &'a CheckReport,
        orphans: &'a [OrphanedTable],
        repair: Option<(&'a RepairPlan, RepairState)>,
    ) -> Self {
        let in_state = |wanted| repair.filter(|(_, state)| *state == wanted).map(|(plan, _)| plan);
        let done = in_state(RepairState::Done);
        Self {
            image_end_offset: report.image_end_offset,
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            corruptions: report.corruptions,
            leaks: report.leaks,
            leaks_fixed: done.map_or(0, RepairPlan::leaks_fixed),
            corruptions_fixed: done.map_or(0, RepairPlan::corruptions_fixed),
            allocated_clusters: report.allocated_clusters,
            fragmented_clusters: report.fragmented_clusters,
            check_errors: report.check_errors,
            filename,
            format: "qcow2",
            qcowkit: Some(CheckDetails {
                warnings: report.warnings,
                incomplete: report.incomplete,
                findings: &report.findings,
                findings_omitted: report.findings_omitted,
                orphaned_tables: orphans,
                repair_plan: in_state(RepairState::Planned),
                repair: done,
            }),
        }
    }

    /// The same with QEMU's members alone.
    #[must_use]
    pub fn as_qemu(mut self) -> Self {
        self.qcowkit = None;
        self
    }
}

#[cfg(feature = "serde")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
