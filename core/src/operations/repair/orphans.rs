//! L2 tables that nothing leads to, found by their shape among what is leaked: they can be all that is left of a part of
//! the disk whose L1 entry was lost.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::erased;
use super::findings::{RepairAction, RepairFinding};
use super::shape::{shape, shape_of};
use super::workbench::{Stage, Workbench};
use crate::error::{Error, Result, Structure};
use crate::format::{Geometry, GuestOffset, HostCluster, HostOffset, HostRef, L1Entry, L2Entry, l2_runs};
use crate::image::read_header;
use crate::operations::check::{Counts, Examined, FindingKind, Recorded, Severity, examine};
use crate::storage::ReadStorage;

/// Tables that are shown.
pub const MAX_ORPHANS: usize = 1000;
/// Guest offsets that are shown for each.
const MAX_PLACES: usize = 8;
/// Bytes of leaked clusters that are looked at.
const MAX_BYTES: u64 = 4 << 30;

/// An L2 table that nothing leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OrphanedTable {
    /// First byte of the table in the file.
    pub host_offset: u64,
    /// Entries that say something.
    pub entries: u64,
    /// Of these, entries that lead to clusters that nothing else leads to.
    pub leaked_clusters: u64,
    /// How much it looks like a lost table, from 0 to 100.
    pub score: u8,
    /// The guest offset that it most likely began to map, where its place among its neighbours tells.
    pub likely_guest_offset: Option<u64>,
    /// Guest offsets at which the active L1 table has no table: where it can belong. The first few.
    pub possible_guest_offsets: Vec<u64>,
}

/// Looks for orphaned L2 tables among the leaked clusters of an image. Shows what it finds; nothing is changed.
///
/// # Errors
/// As [`check`](fn@crate::operations::check).
pub fn find_orphans<S: ReadStorage>(storage: &S) -> Result<Vec<OrphanedTable>> {
    let area = read_header(storage)?;
    let Examined { counts: Some(counts), report, .. } = examine(erased(storage), &area, &mut |_| ())? else {
        return Ok(Vec::new());
    };
    let file_length = storage.len()?;
    let geometry = area.validate_for_check(Some(file_length))?;
    if report.incomplete {
        return Ok(Vec::new());
    }
    let mut leaked = Vec::new();
    let most = usize::try_from(MAX_BYTES.wrapping_shr(geometry.cluster_bits())).unwrap_or(usize::MAX);
    counts.visit_unsound(counts.clusters(), |cluster, recorded, references| {
        if references == 0 && recorded != Recorded::Zero && leaked.len() < most {
            leaked.push(cluster);
        }
        Ok(())
    })?;
    let mut l1 = read_l1(storage, area.header.l1_table_offset, geometry.l1_entries())?;
    l1.iter_mut().filter(|raw| leads_nowhere(**raw, &geometry, file_length)).for_each(|raw| *raw = 0);
    let mut orphans = Vec::new();
    let mut bytes = vec![0u8; geometry.cluster_len()];
    for cluster in leaked {
        let host_offset = geometry.host_start(HostCluster::new(cluster)).get();
        if host_offset >= file_length || !looks_promising(storage, &geometry, file_length, host_offset)? {
            continue;
        }
        storage.read_at(host_offset, &mut bytes)?;
        if !shape(&bytes, &geometry, file_length).is_table() {
            continue;
        }
        if let Some(orphan) = judge(&bytes, &geometry, &counts, &l1, host_offset) {
            orphans.push(orphan);
        }
        if orphans.len() >= MAX_ORPHANS {
            break;
        }
    }
    Ok(orphans)
}

/// Most data can be told from a table by their first sector.
fn looks_promising(storage: &impl ReadStorage, geometry: &Geometry, length: u64, host_offset: u64) -> Result<bool> {
    let mut start = [0u8; 512];
    storage.read_at(host_offset, &mut start)?;
    let shape = shape(&start, geometry, length);
    Ok(shape.entries == 0 || shape.is_table())
}

fn judge(bytes: &[u8], geometry: &Geometry, counts: &Counts, l1: &[u64], host_offset: u64) -> Option<OrphanedTable> {
    let (mut entries, mut leaked_clusters) = (0u64, 0u64);
    for run in l2_runs(bytes, geometry) {
        let (first, count) = match run.entry {
            L2Entry::Plain { host: Some(host), .. } => (host.offset, run.count),
            L2Entry::Compressed(range) => (range.offset, 1),
            L2Entry::Plain { host: None, parts } => {
                entries = entries.saturating_add(if parts.zero == 0 { 0 } else { run.count });
                continue;
            }
        };
        entries = entries.saturating_add(run.count);
        let first = geometry.host_cluster(first).get();
        let is_leaked = |cluster: &u64| {
            let recorded = !matches!(counts.recorded(*cluster), None | Some(Recorded::Zero));
            recorded && counts.references(*cluster) == 0
        };
        let here = (first..first.saturating_add(count)).filter(is_leaked).count();
        leaked_clusters = leaked_clusters.saturating_add(u64::try_from(here).unwrap_or(0));
    }
    if entries == 0 || leaked_clusters.saturating_mul(2) < entries {
        return None;
    }
    // A single entry that makes sense may be chance.
    let share = leaked_clusters.saturating_mul(100).checked_div(entries).unwrap_or(0);
    let score = if entries < 4 { share / 2 } else { share };
    let empty: Vec<u64> = (0u64..).zip(l1).filter(|(_, raw)| **raw == 0).map(|(index, _)| index).collect();
    let guest = |index: u64| geometry.guest_start(geometry.cluster_at(index, 0)).get();
    let between: Vec<u64> = empty.iter().copied().filter(|&index| is_between(l1, index, host_offset)).collect();
    let likely = match (empty.as_slice(), between.as_slice()) {
        ([only], _) | (_, [only]) => Some(guest(*only)),
        _ => None,
    };
    Some(OrphanedTable {
        host_offset,
        entries,
        leaked_clusters,
        score: u8::try_from(score.min(100)).unwrap_or(100),
        likely_guest_offset: likely,
        possible_guest_offsets: empty.into_iter().take(MAX_PLACES).map(guest).collect(),
    })
}

/// Whether a table lies between those of the neighbours of an empty L1 entry: disks are often written in their order.
fn is_between(l1: &[u64], index: u64, host_offset: u64) -> bool {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    let named = |raw: &&u64| **raw != 0;
    let before = l1.get(..at).unwrap_or_default().iter().rev().find(named).map(|&raw| L1Entry::offset_bits(raw));
    let after =
        l1.get(at.saturating_add(1)..).unwrap_or_default().iter().find(named).map(|&raw| L1Entry::offset_bits(raw));
    // Both neighbours, or one at the end of the disk.
    let neighbours = before.is_some() || after.is_some();
    neighbours && before.is_none_or(|before| before < host_offset) && after.is_none_or(|after| host_offset < after)
}

/// Whether an L1 entry names no table that can be there.
fn leads_nowhere(raw: u64, geometry: &Geometry, file_length: u64) -> bool {
    let offset = L1Entry::offset_bits(raw);
    offset == 0 || offset >= file_length || !geometry.is_aligned(offset)
}

fn read_l1(storage: &impl ReadStorage, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0u8; usize::try_from(entries.saturating_mul(8)).unwrap_or(0)];
    storage.read_at(offset, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// Puts an orphaned table back into the active L1 table.
///
/// # Errors
/// A place that is taken, or bytes that do not look like a table.
pub(super) fn relink<S: ReadStorage>(bench: &mut Workbench<'_, S>, table: u64, guest: u64) -> Result<()> {
    let geometry = bench.geometry;
    let area = bench.area()?;
    let index = geometry.l1_index(geometry.guest_cluster(GuestOffset::new(guest)));
    let begins = geometry.guest_start(geometry.cluster_at(index, 0)).get();
    if begins != guest || guest >= geometry.virtual_size() {
        let what = format!("an L2 table maps {} bytes; none begins at guest offset {guest:#x}", geometry.l2_coverage());
        return Err(Error::invalid(what));
    }
    if table == 0 || !geometry.is_aligned(table) || table >= bench.base_length {
        return Err(Error::invalid(format!("there is no cluster at host offset {table:#x}")));
    }
    if !shape_of(bench.overlay, &geometry, bench.base_length, table)?.is_table() {
        return Err(Error::invalid(format!("what lies at host offset {table:#x} does not look like an L2 table")));
    }
    let at = area.header.l1_table_offset.saturating_add(index.saturating_mul(8));
    let mut old = [0u8; 8];
    bench.overlay.read_at(at, &mut old)?;
    if !leads_nowhere(u64::from_be_bytes(old), &geometry, bench.base_length) {
        return Err(Error::invalid(format!("guest offset {guest:#x} has an L2 table already")));
    }
    let entry = HostRef { offset: HostOffset::new(table), copied: false };
    bench.edit(Stage::Tables, at, &L1Entry::Table(entry).encode().to_be_bytes())?;
    bench.add_references(bench.cluster(table), 1);
    bench.note(
        RepairFinding::new(FindingKind::OrphanedTable, Structure::L2Table, RepairAction::RelinkTable, "active")
            .with_severity(Severity::Leak)
            .at_host(table, geometry.cluster_size())
            .at_guest(guest, geometry.l2_coverage().min(geometry.virtual_size().saturating_sub(guest)))
            .saying("an orphaned L2 table"),
    );
    Ok(())
}
