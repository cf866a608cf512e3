//! Repair: a plan first, then the plan is carried out.
//!
//! [`plan`] works the whole repair out over an overlay, which leaves the image alone, and proves it there: the report
//! that the image will have afterwards is part of the plan. [`apply`] writes the changes in stages with a barrier behind
//! each, so that a cut at any moment leaves an image that is no worse than before (law 4): what can be read stays
//! readable, and refcounts never fall below the references.
//!
//! # What is never done
//! Nothing that can be read is dropped. An entry loses its target only where a read of it fails or gives zeros already
//! (beyond the end of the file), and then it reads as zeros, not as what a backing file had there once. A cluster with
//! two uses gets a higher refcount, or a copy where one of the uses is a table.
//!
//! # Rounds
//! Where structures lie on each other, what is done to the one is done to the other, and putting one right can show what
//! is wrong with the other. The plan therefore goes on over what it has changed until there is nothing left to do
//! ([`MAX_ROUNDS`] at most), and is carried out round by round: one call is enough. Only what a plan may hold in memory
//! ends it earlier ([`RepairPlan::limit`]); then it is carried out, and another goes on.
//!
//! # Refcounts
//! Where their structures are sound, single refcounts are corrected in place. Else all are written anew into free
//! clusters: inside the file where it cannot grow (a block device), and where there is no free cluster the plan says so
//! and nothing is changed.

mod bitmaps;
mod entries;
mod findings;
mod header;
mod orphans;
mod rounds;
mod settle;
mod shape;
mod snapshots;
mod summary;
mod tables;
mod undo;
mod workbench;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{HostCluster, IncompatibleFeatures};
use crate::image::read_header;
use crate::operations::check::{CheckReport, Counts, Examined, FindingKind, Severity, check, examine};
use crate::operations::walk::{Fault, HostReference, Visitor, walk};
use crate::storage::{OverlayStorage, ReadStorage, Storage};

pub use findings::{MAX_REPAIR_FINDINGS, RepairAction, RepairFinding};
pub use orphans::{MAX_ORPHANS, OrphanedTable, find_orphans};
pub use rounds::{MAX_ROUNDS, RepairLimit, plan};
pub use summary::{CheckDetails, CheckSummary, RepairState};
pub use undo::UndoLog;

use settle::Change;
use workbench::{Budget, Edit, Stage, Workbench};

/// Where the header says its incompatible features.
const INCOMPATIBLE: u64 = 72;
/// Where it says the place of the refcount table.
const REFCOUNT_TABLE: u64 = 48;
/// Clusters behind the end of the file that are watched for entries that lead there.
const NEAR_CLUSTERS: u64 = 1 << 20;
/// Passes over the tables within a round: what one puts right can show what is wrong behind it, an L2 table that was found
/// again, say.
const PASSES: u32 = 4;

/// How much is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum RepairLevel {
    /// Leaked clusters alone: refcounts are lowered.
    Leaks,
    /// Everything.
    All,
}

/// What a repair does, and what the image will be afterwards.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RepairPlan {
    /// How much was asked for.
    pub level: RepairLevel,
    /// Each thing that is wrong, and what is done about it.
    pub findings: Vec<RepairFinding>,
    /// Findings beyond [`MAX_REPAIR_FINDINGS`].
    pub findings_omitted: u64,
    /// L2 tables that nothing leads to, among what is leaked: the repair frees them.
    pub orphans: Vec<OrphanedTable>,
    /// The check of the image as it is; `None` where it is too broken to be checked.
    pub before: Option<CheckReport>,
    /// The check of the image as it will be.
    pub after: CheckReport,
    /// Bytes of the file as it is, and as it will be.
    pub length_before: u64,
    /// See `length_before`.
    pub length_after: u64,
    /// Bytes that will be written.
    pub bytes_to_write: u64,
    /// The changes of each round, in the order in which they are made.
    #[cfg_attr(feature = "serde", serde(skip))]
    rounds: Vec<Vec<Edit>>,
    /// Clusters that become free: first byte and bytes.
    #[cfg_attr(feature = "serde", serde(skip))]
    freed: Vec<(u64, u64)>,
    /// What is left for more rounds.
    #[cfg_attr(feature = "serde", serde(skip))]
    budget: Budget,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    limit: Option<RepairLimit>,
}

/// How a plan is made.
#[derive(Debug, Clone, Default)]
pub struct RepairOptions {
    /// Orphaned L2 tables that are put back: host offset of the table, guest offset that it begins to map.
    pub relink: Vec<(u64, u64)>,
}

impl RepairPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }

    /// The limit that ended the plan before all was done that can be. Once it is carried out, another repair goes on.
    #[must_use]
    pub fn limit(&self) -> Option<RepairLimit> {
        self.limit
    }

    /// Rounds in which it is carried out: more than one where structures lie on each other. 0 where there is nothing to do.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// All changes, in the order in which they are made.
    fn edits(&self) -> impl Iterator<Item = &Edit> {
        self.rounds.iter().flatten()
    }

    /// Leaks that the repair takes away.
    #[must_use]
    pub fn leaks_fixed(&self) -> u64 {
        self.before.as_ref().map_or(0, |before| before.leaks.saturating_sub(self.after.leaks))
    }

    /// Corruptions that the repair takes away.
    #[must_use]
    pub fn corruptions_fixed(&self) -> u64 {
        self.before.as_ref().map_or(0, |before| before.corruptions.saturating_sub(self.after.corruptions))
    }
}

/// Any storage as one type: the walks through an image are long, and there is no gain in having them for each type anew.
fn erased<S: ReadStorage>(storage: &S) -> &dyn ReadStorage {
    storage
}

/// Works one round out. What is left of it undone is not among its findings.
fn plan_once(
    storage: &&dyn ReadStorage,
    level: RepairLevel,
    options: &RepairOptions,
    budget: Budget,
    progress: &mut dyn FnMut(f64),
) -> Result<RepairPlan> {
    let overlay = OverlayStorage::new(storage)?;
    let length_before = overlay.len()?;
    if level == RepairLevel::Leaks {
        return plan_leaks(storage, &overlay, budget, progress);
    }
    let before =
        read_header(storage).and_then(|area| check(erased(storage), &area, &mut |part| progress(part * 0.2))).ok();
    let (area, geometry, early, table_lost) = header::make_readable(&overlay)?;
    let examined = examine(erased(&overlay), &area, &mut |part| progress(0.2 + part * 0.1))?;
    let Examined { counts, table, unreadable, .. } = examined;
    let counts = counts.ok_or_else(too_many_clusters)?;
    let mut bench = Workbench::new(&overlay, geometry, counts, budget)?;
    bench.trust_refcounts = !table_lost && settle::structures_are_sound(&bench, &bench.old, &table, &unreadable)?;
    for fix in early {
        if fix.at != REFCOUNT_TABLE {
            bench.edit(Stage::Header, fix.at, fix.bytes.get(..fix.length).unwrap_or_default())?;
        }
        bench.note(fix.finding);
    }
    bench.avoid = beyond(&overlay, &bench)?;
    let freed = work(&mut bench, options, progress)?;
    let after = check(erased(&overlay), &bench.area()?, &mut |part| progress(0.9 + part * 0.1))?;
    seal(&mut bench, &after)?;
    let leaks = before.as_ref().is_some_and(|before| before.leaks > 0);
    let orphans = if leaks { find_orphans(storage).unwrap_or_default() } else { Vec::new() };
    finish(bench, Outcome { level, before, after, orphans, freed, length_before })
}

/// All that is put right, one after the other; gives the clusters that become free.
fn work<S: ReadStorage>(
    bench: &mut Workbench<'_, S>,
    options: &RepairOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<Vec<(u64, u64)>> {
    snapshots::repair_snapshots(bench)?;
    header::repair_l1_place(bench)?;
    bitmaps::repair_bitmaps(bench)?;
    for &(table, guest) in &options.relink {
        orphans::relink(bench, table, guest)?;
    }
    progress(0.35);
    for _ in 0..PASSES {
        recount(bench)?;
        let tables = tables::repair_l1_entries(bench)?;
        if tables {
            recount(bench)?;
        }
        let entries = entries::repair_l2_entries(bench)?;
        progress(0.6);
        if !tables && !entries {
            break;
        }
    }
    let mut examined = examine(erased(bench.overlay), &bench.area()?, &mut |_| ())?;
    let counts = examined.counts.as_ref().ok_or_else(too_many_clusters)?;
    if !settle::structures_are_sound(bench, counts, &examined.table, &examined.unreadable)? {
        settle::rebuild(bench, &examined)?;
        examined = examine(erased(bench.overlay), &bench.area()?, &mut |_| ())?;
    }
    progress(0.75);
    let freed = settle::settle(bench, &examined, Change::Both)?;
    bench.current = examined.counts;
    entries::repair_copied(bench)?;
    Ok(freed)
}

fn recount<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    bench.current = examine(erased(bench.overlay), &bench.area()?, &mut |_| ())?.counts;
    Ok(())
}

/// Lowers refcounts, and touches nothing else; COPIED flags only where the image is sound then.
fn plan_leaks<S: ReadStorage>(
    storage: &S,
    overlay: &OverlayStorage<&S>,
    budget: Budget,
    progress: &mut dyn FnMut(f64),
) -> Result<RepairPlan> {
    let length_before = overlay.len()?;
    let area = read_header(storage)?;
    let examined = examine(erased(overlay), &area, &mut |part| progress(part * 0.5))?;
    let geometry = area.validate_for_check(Some(length_before))?;
    let mut bench = Workbench::new(overlay, geometry, Counts::new(0)?, budget)?;
    let freed = settle::settle(&mut bench, &examined, Change::Lower)?;
    let Examined { report: before, counts, .. } = examined;
    bench.current = counts;
    let (mark, edits, kept) = (overlay.mark(), bench.edits.len(), bench.findings.kept.len());
    let mut after = check(erased(overlay), &area, &mut |part| progress(0.5 + part * 0.25))?;
    if after.corruptions > 0 && after.check_errors == 0 {
        entries::repair_copied(&mut bench)?;
        let with_flags = check(erased(overlay), &area, &mut |part| progress(0.75 + part * 0.25))?;
        if with_flags.is_clean() {
            after = with_flags;
        } else {
            overlay.restore(&mark);
            bench.edits.truncate(edits);
            bench.findings.kept.truncate(kept);
        }
    }
    seal(&mut bench, &after)?;
    let orphans = if before.leaks > 0 { find_orphans(storage).unwrap_or_default() } else { Vec::new() };
    let level = RepairLevel::Leaks;
    finish(bench, Outcome { level, before: Some(before), after, orphans, freed, length_before })
}

/// An image without errors is neither dirty nor corrupt.
fn seal<S: ReadStorage>(bench: &mut Workbench<'_, S>, after: &CheckReport) -> Result<()> {
    let area = bench.area()?;
    let marks = IncompatibleFeatures::DIRTY.with(IncompatibleFeatures::CORRUPT);
    let bits = area.header.incompatible;
    if area.header.version < 3 || bits.without(marks) == bits || !outcome_is_sound(after) {
        return Ok(());
    }
    bench.edit(Stage::Seal, INCOMPATIBLE, &bits.without(marks).bits().to_be_bytes())?;
    let words = match (bits.dirty(), bits.corrupt()) {
        (true, true) => "dirty and corrupt",
        (true, false) => "dirty",
        (false, _) => "corrupt",
    };
    bench.note(
        RepairFinding::new(FindingKind::Mark, Structure::Header, RepairAction::ClearMark, "header")
            .with_severity(Severity::Warning)
            .at_host(INCOMPATIBLE, 8)
            .saying(alloc::format!("the image is marked {words}")),
    );
    Ok(())
}

struct Outcome {
    level: RepairLevel,
    before: Option<CheckReport>,
    after: CheckReport,
    orphans: Vec<OrphanedTable>,
    freed: Vec<(u64, u64)>,
    length_before: u64,
}

fn finish<S: ReadStorage>(bench: Workbench<'_, S>, outcome: Outcome) -> Result<RepairPlan> {
    let Outcome { level, before, after, orphans, freed, length_before } = outcome;
    let size = bench.geometry.cluster_size();
    let bytes = |(first, count): (u64, u64)| {
        (bench.geometry.host_start(HostCluster::new(first)).get(), count.saturating_mul(size))
    };
    // Where errors are left, what nothing leads to may be a part of what cannot be followed.
    let sound = outcome_is_sound(&after);
    let freed = freed.into_iter().map(bytes).filter(|_| sound).collect();
    let mut edits = bench.edits;
    // Stable: within a stage the order is that in which they were made.
    edits.sort_by_key(|edit| edit.stage);
    let lengths = edits.iter().map(|edit| u64::try_from(edit.bytes.len()).unwrap_or(u64::MAX));
    Ok(RepairPlan {
        level,
        findings: bench.findings.kept,
        findings_omitted: bench.findings.omitted,
        orphans,
        before,
        after,
        length_before,
        length_after: bench.overlay.len()?,
        bytes_to_write: lengths.fold(0, u64::saturating_add),
        rounds: if edits.is_empty() { Vec::new() } else { alloc::vec![edits] },
        freed,
        budget: bench.budget,
        limit: bench.copies_ended.then_some(RepairLimit::Copies),
    })
}

fn outcome_is_sound(after: &CheckReport) -> bool {
    after.corruptions == 0 && after.check_errors == 0
}

/// Carries a plan out. The storage must be the one that the plan was made for, unchanged since. With `punch`, the space
/// of clusters that become free is given back, as QEMU does, if the image is sound then; their contents are gone.
///
/// # Errors
/// A storage that has another length than the plan knows, or that fails: the image is then no worse than it was, and can
/// be repaired again.
pub fn apply<S: Storage>(plan: &RepairPlan, storage: &S, punch: bool) -> Result<()> {
    if storage.len()? != plan.length_before {
        return Err(Error::invalid("the image is not the one that the repair was planned for"));
    }
    for (round, stage) in plan.rounds.iter().flat_map(|round| Stage::ALL.map(|stage| (round, stage))) {
        let mut wrote = false;
        for edit in round.iter().filter(|edit| edit.stage == stage) {
            storage.write_at(edit.at, &edit.bytes)?;
            wrote = true;
        }
        if wrote {
            storage.barrier()?;
        }
    }
    if punch {
        for &(offset, length) in &plan.freed {
            // Advisory: the clusters are free in any case.
            let _ = storage.discard(offset, length);
        }
    }
    Ok(())
}

/// Clusters right behind the end of the file that broken entries name: what would be written there would be read
/// through them.
fn beyond<S: ReadStorage>(overlay: &OverlayStorage<&S>, bench: &Workbench<'_, S>) -> Result<BTreeSet<u64>> {
    struct Beyond {
        geometry: crate::format::Geometry,
        from: u64,
        found: BTreeSet<u64>,
    }
    impl Visitor for Beyond {
        fn reference(&mut self, reference: &HostReference) -> Result<()> {
            let cluster = |at| self.geometry.host_cluster(crate::format::HostOffset::new(at)).get();
            let length = reference
                .length
                .saturating_add(reference.count.saturating_sub(1).saturating_mul(self.geometry.cluster_size()));
            let first = cluster(reference.host_offset).max(self.from);
            let last = cluster(reference.host_offset.saturating_add(length.saturating_sub(1)));
            let until = last.min(self.from.saturating_add(NEAR_CLUSTERS));
            if first <= until && reference.target != Structure::DataFile {
                self.found.extend(first..=until);
            }
            Ok(())
        }

        fn fault(&mut self, _: &Fault) -> Result<()> {
            Ok(())
        }
    }
    let mut beyond = Beyond { geometry: bench.geometry, from: bench.base_clusters(), found: BTreeSet::new() };
    walk(erased(overlay), &bench.area()?, &mut beyond)?;
    Ok(beyond.found)
}

fn too_many_clusters() -> Error {
    Error::new(ErrorKind::Limit("the file has more clusters than can be checked".into()))
}

/// Repairs an image that is marked dirty, as QEMU does when it opens one for writing: with lazy refcounts, refcounts
/// lag behind after a crash. `None` where the image is not dirty, or is marked corrupt: that is not repaired unasked.
/// To be called before the image is opened for writing.
///
/// # Errors
/// As [`plan`] and [`apply`]; an image that would not be sound afterwards, of which nothing is changed then.
pub fn repair_dirty<S: Storage>(storage: &S) -> Result<Option<RepairPlan>> {
    let obstacles = read_header(storage)?.write_obstacles();
    if !obstacles.dirty || obstacles.corrupt {
        return Ok(None);
    }
    let planned = plan(storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ())?;
    if !outcome_is_sound(&planned.after) {
        let what = alloc::format!(
            "the image is marked dirty, and a repair would leave {} errors",
            planned.after.corruptions.saturating_add(planned.after.check_errors)
        );
        return Err(Error::corrupt(Structure::Header, what));
    }
    apply(&planned, storage, false)?;
    Ok(Some(planned))
}
