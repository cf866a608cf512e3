//! Refcounts become what the references say: in place where their structures are sound, else written anew.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::findings::{RepairAction, RepairFinding};
use super::workbench::{Stage, StageWriter, Workbench};
use crate::error::{Result, Structure};
use crate::format::{Geometry, HostCluster, counted, decode_refcount_table_entry, read_refcount, write_refcount};
use crate::metadata::is_hole;
use crate::metadata::rebuild::{NewRefcounts, RefcountSource};
use crate::operations::check::{Counts, Examined, FindingKind, Severity};
use crate::operations::walk::{BlockPlace, RefcountTable};
use crate::storage::ReadStorage;

/// Where the header says place and clusters of the refcount table.
const REFCOUNT_TABLE: u64 = 48;

/// Whether refcounts can be corrected where they are: every block that is needed is there, alone in its cluster.
pub(super) fn structures_are_sound<S: ReadStorage>(
    bench: &Workbench<'_, S>,
    counts: &Counts,
    table: &RefcountTable,
    unreadable: &BTreeSet<u64>,
) -> Result<bool> {
    let geometry = bench.geometry;
    let area = bench.area()?;
    let (place, clusters) = (area.header.refcount_table_offset, u64::from(area.header.refcount_table_clusters));
    if clusters == 0 || place == 0 || !unreadable.is_empty() {
        return Ok(false);
    }
    let first = bench.cluster(place);
    let alone = |cluster| counts.references(cluster) == 1;
    if !(first..first.saturating_add(clusters)).all(alone) {
        return Ok(false);
    }
    let sound = table.entries().iter().all(|&raw| match decode_refcount_table_entry(raw, &geometry) {
        Ok(None) => true,
        Ok(Some(block)) => is_own_block(bench, counts, block.get()),
        Err(_) => false,
    });
    if !sound {
        return Ok(false);
    }
    let mut missing = false;
    counts.visit_unsound(counts.clusters(), |cluster, _, references| {
        let index = geometry.refcount_table_index(HostCluster::new(cluster));
        missing |= references > 0 && table.block(index) == BlockPlace::None;
        Ok(())
    })?;
    Ok(!missing)
}

/// A refcount block that lies in the file and is nothing else, nor was before: a table that is moved away from it is
/// still read there while refcounts are raised.
fn is_own_block<S: ReadStorage>(bench: &Workbench<'_, S>, counts: &Counts, place: u64) -> bool {
    let geometry = bench.geometry;
    let cluster = bench.cluster(place);
    let inside = place.saturating_add(geometry.cluster_size()) <= geometry.align_up(bench.base_length);
    let own = bench.taken.contains(&cluster) || (inside && bench.old.references(cluster) <= 1);
    own && counts.references(cluster) == 1
}

/// What new refcounts have to say: what there was and what there will be, without the old structure once it is named no
/// more. Too high ones are lowered at last.
struct Wanted<'b, 'a, S: ReadStorage> {
    bench: &'b Workbench<'a, S>,
    counts: &'b Counts,
    clusters: u64,
}

impl<S: ReadStorage> Wanted<'_, '_, S> {
    fn value(&self, cluster: u64) -> u64 {
        let added = self.bench.added.get(&cluster).copied().unwrap_or(0);
        let before = self.bench.old.references(cluster).saturating_add(added);
        self.counts.references(cluster).max(before).min(self.bench.geometry.max_refcount())
    }
}

impl<S: ReadStorage> RefcountSource for Wanted<'_, '_, S> {
    fn next_used(&mut self, from: u64) -> Result<Option<u64>> {
        Ok((from..self.clusters).find(|&cluster| self.value(cluster) > 0))
    }

    fn refcounts(&mut self, first: u64, into: &mut [u64]) -> Result<()> {
        for (cluster, slot) in (first..).zip(into) {
            *slot = self.value(cluster);
        }
        Ok(())
    }

    fn is_reserved(&self, cluster: u64) -> bool {
        self.bench.is_reserved(cluster)
    }
}

/// Writes table and blocks anew into free clusters, and makes the header name them.
///
/// # Errors
/// No room.
pub(super) fn rebuild<S: ReadStorage>(bench: &mut Workbench<'_, S>, examined: &Examined) -> Result<()> {
    let Some(counts) = &examined.counts else { return Ok(()) };
    let geometry = bench.geometry;
    let taken = bench.taken.last().map_or(0, |last| last.saturating_add(1));
    let clusters = counts.clusters().max(bench.old.clusters()).max(taken);
    let (place, writes) = {
        let mut source = Wanted { bench, counts, clusters };
        let new = NewRefcounts::lay_out(geometry, &mut source, bench.bound())?;
        let target = StageWriter::new(bench);
        let written = new.write(&target, &mut source, &mut |_, _| ());
        (new.table_place(), target.into_writes(written)?)
    };
    for (at, bytes) in writes {
        let first = bench.cluster(at);
        let count = geometry.clusters_for(u64::try_from(bytes.len()).unwrap_or(0));
        bench.taken.extend(first..first.saturating_add(count));
        bench.edit(Stage::Unreachable, at, &bytes)?;
    }
    let (offset, table_clusters) = place;
    let mut field = Vec::with_capacity(12);
    field.extend(offset.get().to_be_bytes());
    field.extend(u32::try_from(table_clusters).unwrap_or(u32::MAX).to_be_bytes());
    bench.edit(Stage::Switch, REFCOUNT_TABLE, &field)?;
    bench.note(
        RepairFinding::new(
            FindingKind::RefcountBlockShared,
            Structure::RefcountTable,
            RepairAction::RebuildRefcounts,
            "refcounts",
        )
        .at_host(offset.get(), table_clusters.saturating_mul(geometry.cluster_size()))
        .saying(format!(
            "the refcount structures cannot be corrected in place: they are written anew at {:#x}",
            offset.get()
        )),
    );
    Ok(())
}

/// Which refcounts may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Too high ones alone.
    Lower,
    /// All.
    Both,
}

/// One cluster whose refcount is not what it should be.
struct Wrong {
    cluster: u64,
    references: u64,
}

/// Corrects refcounts in place. Gives the clusters that become free, as first cluster and count.
pub(super) fn settle<S: ReadStorage>(
    bench: &mut Workbench<'_, S>,
    examined: &Examined,
    change: Change,
) -> Result<Vec<(u64, u64)>> {
    let Some(counts) = &examined.counts else { return Ok(Vec::new()) };
    let geometry = bench.geometry;
    let mut by_block: BTreeMap<u64, Vec<Wrong>> = BTreeMap::new();
    counts.visit_unsound(counts.clusters(), |cluster, _, references| {
        let index = geometry.refcount_table_index(HostCluster::new(cluster));
        if !examined.unreadable.contains(&index) {
            by_block.entry(index).or_default().push(Wrong { cluster, references });
        }
        Ok(())
    })?;
    let may_lower = !examined.report.incomplete;
    let mut freed: Vec<(u64, u64)> = Vec::new();
    let mut runs = Runs::default();
    for (index, wrong) in by_block {
        let BlockPlace::At(place) = examined.table.block(index) else { continue };
        if !is_own_block(bench, counts, place.get()) {
            continue;
        }
        let mut bytes = vec![0u8; geometry.cluster_len()];
        bench.overlay.read_at(place.get(), &mut bytes)?;
        let mut raised = bytes.clone();
        let mut lowered = bytes.clone();
        for Wrong { cluster, references } in wrong {
            let at = geometry.refcount_block_index(HostCluster::new(cluster));
            let order = geometry.refcount_order();
            let recorded = read_refcount(&bytes, at, order).unwrap_or(0);
            let wanted = references.min(geometry.max_refcount());
            let added = bench.added.get(&cluster).copied().unwrap_or(0);
            let meanwhile = bench.old.references(cluster).saturating_add(added).min(geometry.max_refcount());
            if recorded < wanted && change == Change::Both {
                let _ = write_refcount(&mut raised, at, order, wanted.max(meanwhile));
                let _ = write_refcount(&mut lowered, at, order, wanted);
            } else if recorded > wanted && may_lower {
                let _ = write_refcount(&mut lowered, at, order, wanted);
                if wanted == 0 && cluster < bench.base_clusters() {
                    match freed.last_mut() {
                        Some((first, count)) if first.saturating_add(*count) == cluster => {
                            *count = count.saturating_add(1);
                        }
                        _ => freed.push((cluster, 1)),
                    }
                }
            } else {
                continue;
            }
            runs.push(bench, cluster, recorded, references);
        }
        edit_differences(bench, Stage::Raise, place.get(), &bytes, &raised)?;
        edit_differences(bench, Stage::Lower, place.get(), &raised, &lowered)?;
    }
    runs.flush(bench);
    if change == Change::Both && may_lower {
        clear_behind(bench, examined, counts)?;
    }
    Ok(freed)
}

/// Refcounts of clusters behind the end of the file, which nothing refers to: a check does not see them before the file
/// grows over them.
fn clear_behind<S: ReadStorage>(bench: &mut Workbench<'_, S>, examined: &Examined, counts: &Counts) -> Result<()> {
    let geometry = bench.geometry;
    let per_block = geometry.refcount_block_entries();
    let end = bench.geometry.clusters_for(bench.overlay.len()?);
    let first_block = end.checked_div(per_block).unwrap_or(0);
    for index in first_block..u64::try_from(examined.table.entries().len()).unwrap_or(0) {
        let BlockPlace::At(place) = examined.table.block(index) else { continue };
        let zeros = is_hole(&bench.overlay, place.get(), geometry.cluster_size());
        if zeros || !is_own_block(bench, counts, place.get()) {
            continue;
        }
        let mut bytes = vec![0u8; geometry.cluster_len()];
        bench.overlay.read_at(place.get(), &mut bytes)?;
        let mut cleared = bytes.clone();
        let first = index.saturating_mul(per_block);
        for at in end.saturating_sub(first)..per_block {
            // An entry that reads as zeros may keep a cluster there.
            if counts.references(first.saturating_add(at)) > 0 {
                continue;
            }
            let _ = write_refcount(&mut cleared, at, geometry.refcount_order(), 0);
        }
        edit_differences(bench, Stage::Lower, place.get(), &bytes, &cleared)?;
    }
    Ok(())
}

/// Writes the parts of a block that differ, in pieces of 512 bytes, which storage writes whole or not at all.
fn edit_differences<S: ReadStorage>(
    bench: &mut Workbench<'_, S>,
    stage: Stage,
    at: u64,
    old: &[u8],
    new: &[u8],
) -> Result<()> {
    for (n, (old, new)) in (0u64..).zip(old.chunks(512).zip(new.chunks(512))) {
        if old != new {
            bench.edit(stage, at.saturating_add(n.saturating_mul(512)), new)?;
        }
    }
    Ok(())
}

/// Clusters in a row with the same numbers become one finding.
#[derive(Default)]
struct Runs {
    first: u64,
    count: u64,
    recorded: u64,
    references: u64,
}

impl Runs {
    fn push<S: ReadStorage>(&mut self, bench: &mut Workbench<'_, S>, cluster: u64, recorded: u64, references: u64) {
        let follows = self.first.saturating_add(self.count) == cluster;
        if self.count > 0 && follows && (self.recorded, self.references) == (recorded, references) {
            self.count = self.count.saturating_add(1);
            return;
        }
        self.flush(bench);
        *self = Self { first: cluster, count: 1, recorded, references };
    }

    fn flush<S: ReadStorage>(&mut self, bench: &mut Workbench<'_, S>) {
        let Self { first, count, recorded, references } = *self;
        if count == 0 {
            return;
        }
        self.count = 0;
        let geometry: Geometry = bench.geometry;
        let (kind, action, severity) = if recorded > references {
            (FindingKind::RefcountTooHigh, RepairAction::LowerRefcount, Severity::Leak)
        } else {
            (FindingKind::RefcountTooLow, RepairAction::RaiseRefcount, Severity::Corruption)
        };
        let start = geometry.host_start(HostCluster::new(first)).get();
        let words = if count == 1 {
            format!("cluster {first} has")
        } else {
            format!("{count} clusters from cluster {first} on have")
        };
        bench.note(
            RepairFinding::new(kind, Structure::RefcountBlock, action, "refcounts")
                .with_severity(severity)
                .at_host(start, count.saturating_mul(geometry.cluster_size()))
                .saying(format!("{words} refcount {recorded}, but {}", counted(references, "reference"))),
        );
    }
}
