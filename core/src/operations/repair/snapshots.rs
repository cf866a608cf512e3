//! The snapshot table: each entry must parse, say what its version demands, and lead to an L1 table.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::findings::{RepairAction, RepairFinding};
use super::shape::shape_of;
use super::workbench::{Stage, Workbench};
use crate::error::{Result, Structure};
use crate::format::{
    HeaderArea, MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA_DATA, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, MAX_VIRTUAL_SIZE,
    Reader, Snapshot, counted,
};
use crate::operations::check::{Counts, FindingKind};
use crate::storage::ReadStorage;

/// Extra data that entries of version 3 must have.
const VERSION_3_EXTRA_DATA: usize = 16;
/// Where the header says count and place.
const SNAPSHOT_FIELDS: u64 = 60;
/// Longest ID and name that are taken for such when entries are looked for.
const PLAUSIBLE_NAME: usize = 1024;

/// Writes the snapshot table anew where something in it is wrong.
pub(super) fn repair_snapshots<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    let area = bench.area()?;
    let header = &area.header;
    let (count, place) = (header.snapshot_count, header.snapshots_offset);
    if count == 0 {
        if bench.geometry.is_aligned(place) && place <= MAX_VIRTUAL_SIZE {
            return Ok(());
        }
        bench.note(
            RepairFinding::new(FindingKind::SnapshotTable, Structure::Header, RepairAction::CorrectHeader, "header")
                .at_host(SNAPSHOT_FIELDS, 12)
                .saying(format!("there are no snapshots, but their table is said to be at {place:#x}")),
        );
        return name_table(bench, 0, 0);
    }
    let Some((mut snapshots, changed)) = find_table(bench, &area)? else {
        bench.note(
            RepairFinding::new(
                FindingKind::SnapshotTable,
                Structure::SnapshotTable,
                RepairAction::DropSnapshot,
                "header",
            )
            .at_host(place, 0)
            .saying(format!("there is no snapshot table at {place:#x}: its {count} snapshots are lost")),
        );
        return name_table(bench, 0, 0);
    };
    let mut places = Places::default();
    for snapshot in &snapshots {
        let named = &mut places.entry(snapshot.l1_table_offset).or_default().named;
        *named = named.saturating_add(1);
    }
    let before = snapshots.clone();
    let mut kept = Vec::with_capacity(snapshots.len());
    for (index, snapshot) in (0u32..).zip(snapshots.drain(..)) {
        if let Some(snapshot) = repair_entry(bench, &area, index, snapshot, &mut places)? {
            kept.push(snapshot);
        }
    }
    if kept == before && !changed && u32::try_from(kept.len()).unwrap_or(u32::MAX) == count {
        return Ok(());
    }
    if kept.is_empty() {
        return name_table(bench, 0, 0);
    }
    let mut bytes = Vec::new();
    for snapshot in &kept {
        snapshot.emit(&mut bytes)?;
    }
    let new = bench.write_new(&bytes)?.get();
    bench.note(
        RepairFinding::new(
            FindingKind::SnapshotTable,
            Structure::SnapshotTable,
            RepairAction::RewriteSnapshotTable,
            "header",
        )
        .at_host(place, u64::try_from(bytes.len()).unwrap_or(0))
        .saying(format!(
            "the snapshot table at {place:#x} is written anew, with {}",
            counted(u64::try_from(kept.len()).unwrap_or(u64::MAX), "snapshot")
        )),
    );
    name_table(bench, u32::try_from(kept.len()).unwrap_or(u32::MAX), new)
}

/// The L1 tables that snapshots name, by their places.
type Places = BTreeMap<u64, Place>;

/// Where the L1 tables of one or more snapshots begin.
#[derive(Default)]
struct Place {
    /// Snapshots that name it.
    named: u64,
    /// Clusters up to here have no other use: what was looked at for one snapshot is not for the next.
    own_until: u64,
    /// Where the table of the last of them that had to move is now, and its entries: the others still have it in common.
    moved: Option<(u64, u32)>,
}

impl Place {
    /// Whether one of the clusters from the place on has another use too.
    fn is_shared(&mut self, clusters: Range<u64>, counts: &Counts) -> bool {
        let from = clusters.start.max(self.own_until);
        let shared = (from..clusters.end).find(|&cluster| counts.references(cluster) > self.named);
        self.own_until = self.own_until.max(shared.unwrap_or(clusters.end));
        shared.is_some()
    }
}

fn name_table<S: ReadStorage>(bench: &mut Workbench<'_, S>, count: u32, place: u64) -> Result<()> {
    let mut field = Vec::with_capacity(12);
    field.extend(count.to_be_bytes());
    field.extend(place.to_be_bytes());
    bench.edit(Stage::Header, SNAPSHOT_FIELDS, &field)
}

/// The entries of the table, and whether they are other than the header and their lengths say.
fn find_table<S: ReadStorage>(bench: &Workbench<'_, S>, area: &HeaderArea) -> Result<Option<(Vec<Snapshot>, bool)>> {
    let place = area.header.snapshots_offset;
    let start = bench.geometry.align_down(place);
    if start == 0 || start >= bench.base_length {
        return Ok(None);
    }
    let (snapshots, changed) = parse(bench, start, area.header.snapshot_count)?;
    let plausible = snapshots.first().is_some_and(|first| {
        first.l1_table_offset != 0 && u64::from(first.l1_size).saturating_mul(8) <= bench.base_length || start == place
    });
    Ok((plausible && !snapshots.is_empty()).then_some((snapshots, changed || start != place)))
}

/// Reads entries as far as there are any. Where the length of an entry cannot be right, the one is taken with which the
/// entries behind it make sense.
fn parse<S: ReadStorage>(bench: &Workbench<'_, S>, start: u64, count: u32) -> Result<(Vec<Snapshot>, bool)> {
    let length = bench.base_length.saturating_sub(start).min(MAX_SNAPSHOT_TABLE_BYTES);
    let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(0)];
    bench.overlay.read_at(start, &mut bytes)?;
    // The last entry may lack its padding at the end of the file.
    bytes.resize(bytes.len().saturating_add(8), 0);
    let mut snapshots = Vec::new();
    let mut changed = count > MAX_SNAPSHOTS;
    let mut rest = bytes.as_slice();
    for index in 0..count.min(MAX_SNAPSHOTS) {
        let Some(fixed) = rest.get(..Snapshot::FIXED_LENGTH) else { break };
        if fixed.iter().all(|&byte| byte == 0) {
            break;
        }
        let last = index.saturating_add(1) >= count;
        let stated = Snapshot::extra_data_length(fixed)?;
        let Some(extra) = extra_length(bench, rest, stated, last) else { break };
        changed |= extra != stated;
        let Some((snapshot, used)) = parse_entry(rest, extra) else { break };
        let truncated = snapshot.extra_data.len() < usize::try_from(extra).unwrap_or(0);
        changed |= truncated;
        snapshots.push(snapshot);
        rest = rest.get(used..).unwrap_or_default();
    }
    changed |= u32::try_from(snapshots.len()).unwrap_or(u32::MAX) != count;
    Ok((snapshots, changed))
}

/// The length of an entry's extra data: what it says, unless that makes no sense and another length does.
fn extra_length<S: ReadStorage>(bench: &Workbench<'_, S>, entry: &[u8], stated: u32, last: bool) -> Option<u32> {
    let sound = |extra: u32| {
        let Some((snapshot, used)) = parse_entry(entry, extra) else { return false };
        let named = is_text(snapshot.id.as_bytes()) && is_text(snapshot.name.as_bytes());
        let next = entry.get(used..).unwrap_or_default();
        let end = next.get(..Snapshot::FIXED_LENGTH).is_none_or(|fixed| fixed.iter().all(|&byte| byte == 0));
        named && (if last { true } else { is_plausible(bench, next) || end })
    };
    if sound(stated) {
        return Some(stated);
    }
    let common = [24, 16, 0].into_iter();
    let others = (0..=MAX_SNAPSHOT_EXTRA_DATA).step_by(8);
    common.chain(others).find(|&extra| sound(extra)).or_else(|| parse_entry(entry, stated).map(|_| stated))
}

/// Whether an entry may begin here.
fn is_plausible<S: ReadStorage>(bench: &Workbench<'_, S>, entry: &[u8]) -> bool {
    let Some((snapshot, _)) = Snapshot::extra_data_length(entry).ok().and_then(|extra| parse_entry(entry, extra))
    else {
        return false;
    };
    let l1 = snapshot.l1_table_offset;
    bench.geometry.is_aligned(l1) && l1 != 0 && l1 < bench.base_length && is_text(snapshot.id.as_bytes())
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.len() <= PLAUSIBLE_NAME && core::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(char::is_control))
}

/// An entry whose extra data have this length; too long ones are cut. Gives the bytes it takes.
fn parse_entry(bytes: &[u8], extra: u32) -> Option<(Snapshot, usize)> {
    let fixed = bytes.get(..36)?;
    let kept = extra.min(MAX_SNAPSHOT_EXTRA_DATA);
    let skipped = usize::try_from(extra.saturating_sub(kept)).ok()?;
    let body = Snapshot::FIXED_LENGTH.checked_add(usize::try_from(kept).ok()?)?;
    let lengths = usize::from(u16::from_be_bytes(bytes.get(12..14)?.try_into().ok()?))
        .checked_add(usize::from(u16::from_be_bytes(bytes.get(14..16)?.try_into().ok()?)))?;
    let names = body.checked_add(skipped)?;
    let mut entry = Vec::new();
    entry.extend_from_slice(fixed);
    entry.extend(kept.to_be_bytes());
    entry.extend_from_slice(bytes.get(Snapshot::FIXED_LENGTH..body)?);
    entry.extend_from_slice(bytes.get(names..names.checked_add(lengths)?)?);
    let snapshot = Snapshot::parse(&mut Reader::new(&entry, Structure::SnapshotTable, 0)).ok()?;
    let used = names.checked_add(lengths)?;
    Some((snapshot, used.checked_add(used.wrapping_neg() & 7)?))
}

/// One entry as it should be; `None` where nothing of the snapshot can be read.
fn repair_entry<S: ReadStorage>(
    bench: &mut Workbench<'_, S>,
    area: &HeaderArea,
    index: u32,
    mut snapshot: Snapshot,
    places: &mut Places,
) -> Result<Option<Snapshot>> {
    let geometry = bench.geometry;
    let owner = format!("snapshot {index}");
    let finding = |kind, action, message: String| {
        RepairFinding::new(kind, Structure::SnapshotTable, action, owner.clone())
            .at_host(area.header.snapshots_offset, 0)
            .saying(message)
    };
    if geometry.version() >= 3 && snapshot.extra_data.len() < VERSION_3_EXTRA_DATA {
        let size = snapshot.vm_state_size();
        snapshot.extra_data = Snapshot::extra_data_for(size, geometry.virtual_size(), None);
        let what = String::from("the snapshot's extra data are incomplete: it gets the virtual size of now");
        bench.note(finding(FindingKind::SnapshotIncomplete, RepairAction::RewriteSnapshotTable, what));
    }
    let (place, entries) = (snapshot.l1_table_offset, u64::from(snapshot.l1_size));
    if entries == 0 {
        if !geometry.is_aligned(place) {
            snapshot.l1_table_offset = geometry.align_down(place);
            let what = format!("its L1 table offset {place:#x} is not aligned; the table has no entries");
            bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::AlignEntry, what));
        }
        return Ok(Some(snapshot));
    }
    let coverage = geometry.l2_coverage().max(1);
    let size = snapshot.virtual_size().unwrap_or_else(|| geometry.virtual_size());
    let needed = size.div_ceil(coverage).saturating_add(snapshot.vm_state_size().div_ceil(coverage));
    let reach = bench.base_length.saturating_add(geometry.cluster_size());
    let fits = |entries: u64| place.saturating_add(entries.saturating_mul(8)) < reach;
    if entries.saturating_mul(8) > MAX_L1_BYTES || (entries > needed && !fits(entries)) {
        snapshot.l1_size = u32::try_from(needed.min(entries)).unwrap_or(u32::MAX);
        let what = format!("its L1 table has {entries} entries, {needed} are needed");
        bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::RewriteSnapshotTable, what));
    }
    let start = geometry.align_down(place);
    let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
    if start != place {
        let looks = start != 0
            && start < bench.base_length
            && bench.references(bench.cluster(start)) == 0
            && shape_of(bench.overlay, &geometry, bench.base_length, start)?.is_table();
        if !looks {
            let what = format!("its L1 table offset {place:#x} is not aligned, and no table begins in its cluster");
            bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::DropSnapshot, what));
            return Ok(None);
        }
        snapshot.l1_table_offset = start;
        let what = format!("its L1 table offset {place:#x} is not aligned; at {start:#x} there is a table");
        bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::AlignEntry, what));
        return Ok(Some(snapshot));
    }
    if bytes > MAX_L1_BYTES || start == 0 {
        let what = format!("its L1 table at {place:#x} does not lie in the file: nothing of it can be read");
        bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::DropSnapshot, what));
        return Ok(None);
    }
    // Snapshots may have one L1 table in common; anything else in its clusters would be changed with it.
    let end = bench.cluster(start.saturating_add(bytes).saturating_sub(1)).saturating_add(1);
    let shared = places.entry(place).or_default().is_shared(bench.cluster(start)..end, &bench.old);
    if shared || !fits(u64::from(snapshot.l1_size)) || start >= bench.base_length {
        snapshot.l1_table_offset = move_table(bench, &snapshot, places)?;
        let what = format!("its L1 table at {place:#x} is not its own, or ends beyond the end of the file");
        bench.note(finding(FindingKind::SnapshotL1Table, RepairAction::MoveL1Table, what));
    }
    Ok(Some(snapshot))
}

/// Gives an L1 table clusters of its own, and the same to all snapshots that have it in common; gives its place.
fn move_table<S: ReadStorage>(bench: &mut Workbench<'_, S>, snapshot: &Snapshot, places: &mut Places) -> Result<u64> {
    let (place, bytes) = (snapshot.l1_table_offset, u64::from(snapshot.l1_size).saturating_mul(8));
    let known = places.entry(place).or_default();
    if let Some((moved, size)) = known.moved
        && size == snapshot.l1_size
    {
        for cluster in bench.cluster(moved)..=bench.cluster(moved.saturating_add(bytes).saturating_sub(1)) {
            bench.add_references(cluster, 1);
        }
        return Ok(moved);
    }
    // Past the end of the file it reads as zeros.
    let mut table = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
    bench.overlay.read_at(place, &mut table)?;
    let moved = bench.write_new(&table)?.get();
    known.moved = Some((moved, snapshot.l1_size));
    Ok(moved)
}
