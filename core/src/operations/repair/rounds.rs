//! Round after round, until another would find nothing to do.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::findings::{MAX_REPAIR_FINDINGS, RepairAction, RepairFinding};
use super::workbench::Budget;
use super::{RepairLevel, RepairOptions, RepairPlan, erased, outcome_is_sound, plan_once};
use crate::error::{ErrorKind, Result};
use crate::format::{HostOffset, MAX_REPAIR_BYTES, MAX_REPAIR_COPY_BYTES};
use crate::image::read_header;
use crate::operations::check::{CheckReport, FindingKind, Severity, examine};
use crate::storage::{OverlayStorage, ReadStorage, Storage};

/// Rounds of a repair. Images whose tables lie on each other take up to five.
pub const MAX_ROUNDS: usize = 8;

/// What ends a plan although more could be done: what it holds is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum RepairLimit {
    /// [`MAX_REPAIR_COPY_BYTES`].
    Copies,
    /// [`MAX_REPAIR_BYTES`].
    Changes,
    /// [`MAX_ROUNDS`].
    Rounds,
}

impl fmt::Display for RepairLimit {
    /// What it says, and its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes >> 20;
        match self {
            Self::Copies => write!(
                f,
                "{} MiB of copies of clusters with two uses (MAX_REPAIR_COPY_BYTES)",
                mebibytes(MAX_REPAIR_COPY_BYTES)
            ),
            Self::Changes => write!(f, "{} MiB of changes (MAX_REPAIR_BYTES)", mebibytes(MAX_REPAIR_BYTES)),
            Self::Rounds => write!(f, "{MAX_ROUNDS} rounds (MAX_ROUNDS)"),
        }
    }
}

impl RepairPlan {
    /// Gives up the memory that the changes take, once they are carried out. What was done can still be told.
    pub fn forget_changes(&mut self) {
        self.rounds.iter_mut().for_each(|round| *round = Vec::new());
        self.freed = Vec::new();
    }

    /// Makes one plan of this one and of the one that went on with what it left, both carried out: for telling what was
    /// done. The changes themselves are forgotten.
    pub fn join_carried_out(&mut self, next: Self) {
        join(self, next);
        self.forget_changes();
    }
}

/// Works out how an image is repaired: all of it, so that another repair finds nothing to do. Changes nothing. `progress`
/// is told the part that is done, from 0 to 1.
///
/// # Errors
/// What makes the header impossible to understand; no room for what has to be written anew; a storage that fails.
pub fn plan<S: ReadStorage>(
    storage: &S,
    level: RepairLevel,
    options: &RepairOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<RepairPlan> {
    let storage = erased(storage);
    let mut whole = plan_once(&storage, level, options, Budget::WHOLE, progress)?;
    let mut all_freed = core::mem::take(&mut whole.freed);
    if may_show_more(&whole) {
        let overlay = OverlayStorage::new(storage)?;
        write_round(&whole, &overlay)?;
        let mut done = false;
        while whole.rounds.len() < MAX_ROUNDS {
            let Some(mut next) = another(&overlay, level, &mut whole)? else {
                done = true;
                break;
            };
            write_round(&next, &overlay)?;
            done = !may_show_more(&next);
            all_freed.append(&mut next.freed);
            join(&mut whole, next);
            if done {
                break;
            }
        }
        if !done {
            whole.limit = whole.limit.or(Some(RepairLimit::Rounds));
        }
        if whole.rounds.len() > 1 {
            all_freed = if outcome_is_sound(&whole.after) { still_free(&overlay, &all_freed)? } else { Vec::new() };
        }
    }
    if outcome_is_sound(&whole.after) {
        whole.limit = None;
    }
    whole.freed = all_freed;
    add_leftovers(&mut whole);
    Ok(whole)
}

/// Whether what was done can have changed more than it was meant to. Refcounts, flags and marks alone, in an image that is
/// sound then, cannot.
fn may_show_more(plan: &RepairPlan) -> bool {
    let harmless = |finding: &RepairFinding| {
        use FindingKind::{CopiedFlag, Mark, RefcountTooHigh, RefcountTooLow};
        matches!(finding.kind, CopiedFlag | Mark | RefcountTooHigh | RefcountTooLow)
    };
    let all_harmless = plan.after.is_clean() && plan.findings.iter().all(harmless);
    !plan.is_empty() && !all_harmless
}

/// The next round; none where there is nothing to do, nothing that would make it better, or too much, which is noted.
fn another(
    overlay: &OverlayStorage<&dyn ReadStorage>,
    level: RepairLevel,
    whole: &mut RepairPlan,
) -> Result<Option<RepairPlan>> {
    let next = match plan_once(&erased(overlay), level, &RepairOptions::default(), whole.budget, &mut |_| ()) {
        Ok(next) => next,
        Err(error) if matches!(error.kind(), ErrorKind::Limit(_)) => {
            whole.limit = Some(RepairLimit::Changes);
            return Ok(None);
        }
        // What was worked out so far stands by itself.
        Err(error) if !matches!(error.kind(), ErrorKind::Storage(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let errors = |report: &CheckReport| report.corruptions.saturating_add(report.check_errors);
    let worse = errors(&next.after) > errors(&whole.after);
    Ok((!next.is_empty() && !worse).then_some(next))
}

fn write_round(plan: &RepairPlan, overlay: &OverlayStorage<&dyn ReadStorage>) -> Result<()> {
    plan.edits().try_for_each(|edit| overlay.write_at(edit.at, &edit.bytes).map_err(Into::into))
}

/// Makes one plan of two, of which the second begins where the first ends.
fn join(whole: &mut RepairPlan, next: RepairPlan) {
    // What could not be done then is done now, or found again.
    whole.findings.retain(|finding| finding.action != RepairAction::None);
    whole.findings_omitted = whole.findings_omitted.saturating_add(next.findings_omitted);
    next.findings.into_iter().for_each(|finding| add(whole, finding));
    whole.after = next.after;
    whole.budget = next.budget;
    whole.limit = next.limit;
    whole.length_after = next.length_after;
    whole.bytes_to_write = whole.bytes_to_write.saturating_add(next.bytes_to_write);
    whole.rounds.extend(next.rounds);
}

fn add(whole: &mut RepairPlan, finding: RepairFinding) {
    if whole.findings.len() < MAX_REPAIR_FINDINGS {
        whole.findings.push(finding);
    } else {
        whole.findings_omitted = whole.findings_omitted.saturating_add(1);
    }
}

/// What no round could put right.
fn add_leftovers(whole: &mut RepairPlan) {
    let left = whole.after.findings.iter().filter(|left| left.severity != Severity::Warning);
    let left: Vec<RepairFinding> = left
        .map(|left| RepairFinding {
            severity: left.severity,
            kind: left.kind,
            structure: left.structure,
            host_offset: left.host_offset,
            host_length: 0,
            guest_offset: left.guest_offset,
            guest_length: 0,
            owner: String::new(),
            action: RepairAction::None,
            message: left.message.clone(),
        })
        .collect();
    left.into_iter().for_each(|finding| add(whole, finding));
}

/// Of the clusters that some round has freed, those that no later one has given out again: first byte and bytes.
fn still_free(overlay: &OverlayStorage<&dyn ReadStorage>, freed: &[(u64, u64)]) -> Result<Vec<(u64, u64)>> {
    let area = read_header(overlay)?;
    let geometry = area.validate_for_check(None)?;
    let Some(counts) = examine(erased(overlay), &area, &mut |_| ())?.counts else { return Ok(Vec::new()) };
    let size = geometry.cluster_size();
    let mut clusters: Vec<u64> = Vec::new();
    for &(offset, length) in freed {
        let first = geometry.host_cluster(HostOffset::new(offset)).get();
        let all = first..first.saturating_add(geometry.clusters_for(length));
        clusters.extend(all.filter(|&cluster| counts.references(cluster) == 0));
    }
    clusters.sort_unstable();
    clusters.dedup();
    let mut free: Vec<(u64, u64)> = Vec::new();
    for cluster in clusters {
        let at = cluster.saturating_mul(size);
        match free.last_mut() {
            Some((offset, length)) if offset.saturating_add(*length) == at => *length = length.saturating_add(size),
            _ => free.push((at, size)),
        }
    }
    Ok(free)
}
