//! Header fields that can be put right: the place of the refcount table (refcounts can be written anew), the length of
//! the active L1 table, the bitmaps extension.

use alloc::format;
use alloc::vec;

use super::findings::{RepairAction, RepairFinding};
use super::workbench::{Stage, Workbench};
use crate::error::{Error, Result, Structure};
use crate::format::{AutoclearFeatures, Geometry, HeaderArea};
use crate::image::read_header;
use crate::operations::check::FindingKind;
use crate::storage::{OverlayStorage, ReadStorage, Storage};

/// Number of L1 entries (4 bytes); the place of the table (8) follows.
const L1_SIZE: u64 = 36;
const REFCOUNT_TABLE: u64 = 48;
const REFCOUNT_CLUSTERS: u64 = 56;
const AUTOCLEAR: u64 = 88;

/// A header change that must be noted once the workbench stands.
pub(super) struct EarlyFix {
    pub(super) at: u64,
    pub(super) bytes: [u8; 8],
    pub(super) length: usize,
    pub(super) finding: RepairFinding,
}

/// Corrects in `overlay` what keeps a header from being understood at all. Gives the area, its geometry, the changes to
/// be made, and whether the refcount table is lost.
///
/// # Errors
/// What cannot be corrected, as [`HeaderArea::validate_for_check`] says it.
pub(super) fn make_readable<S: ReadStorage>(
    overlay: &OverlayStorage<&S>,
) -> Result<(HeaderArea, Geometry, vec::Vec<EarlyFix>, bool)> {
    let mut fixes = vec::Vec::new();
    let mut lost = false;
    let length = overlay.len()?;
    // Each fix takes one reason away; more than these there are not.
    for _ in 0..4 {
        let area = read_header(overlay)?;
        let error = match area.validate_for_check(Some(length)) {
            Ok(geometry) => return Ok((area, geometry, fixes, lost)),
            Err(error) => error,
        };
        let Some((at, bytes, size, message)) = early_fix(&area, &error) else { return Err(error) };
        overlay.write_at(at, bytes.get(..size).unwrap_or_default())?;
        lost |= at == REFCOUNT_TABLE;
        let (structure, action) = match at {
            AUTOCLEAR => (Structure::HeaderExtension, RepairAction::DropBitmaps),
            _ => (Structure::Header, RepairAction::CorrectHeader),
        };
        let finding = RepairFinding::new(FindingKind::HeaderField, structure, action, "header")
            .at_host(at, u64::try_from(size).unwrap_or(0))
            .saying(format!("{message}: {error}"));
        if at == REFCOUNT_TABLE {
            // The pointer is written with the new refcounts.
            overlay.write_at(REFCOUNT_CLUSTERS, &[0; 4])?;
        }
        fixes.push(EarlyFix { at, bytes, length: size, finding });
    }
    let area = read_header(overlay)?;
    let geometry = area.validate_for_check(Some(length))?;
    Ok((area, geometry, fixes, lost))
}

fn early_fix(area: &HeaderArea, error: &Error) -> Option<(u64, [u8; 8], usize, &'static str)> {
    let header = &area.header;
    match (error.site().structure, error.site().host_offset) {
        (Some(Structure::Header), Some(REFCOUNT_TABLE)) => {
            Some((REFCOUNT_TABLE, [0; 8], 8, "the refcount table is not where the header says"))
        }
        (Some(Structure::Header), Some(L1_SIZE)) => {
            let bits = header.cluster_bits;
            let geometry = Geometry::new(
                header.version,
                bits,
                header.refcount_order,
                header.incompatible.extended_l2(),
                header.incompatible.data_file(),
                header.virtual_size,
            )?;
            let needed = u32::try_from(geometry.l1_entries()).ok()?;
            let mut bytes = [0; 8];
            bytes.get_mut(..4)?.copy_from_slice(&needed.to_be_bytes());
            Some((L1_SIZE, bytes, 4, "the header says too few L1 entries"))
        }
        (Some(Structure::HeaderExtension), _) if header.autoclear.bitmaps() => {
            let without = header.autoclear.without(AutoclearFeatures::BITMAPS);
            Some((AUTOCLEAR, without.bits().to_be_bytes(), 8, "the bitmaps cannot be found"))
        }
        _ => None,
    }
}

/// The active L1 table must lie in the file, away from the header, and be no longer than makes sense.
pub(super) fn repair_l1_place<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    let area = bench.area()?;
    let geometry = bench.geometry;
    let (offset, entries) = (area.header.l1_table_offset, u64::from(area.header.l1_size));
    let needed = geometry.l1_entries();
    if entries == 0 {
        return Ok(());
    }
    let finding = |action| RepairFinding::new(FindingKind::HeaderField, Structure::L1Table, action, "header");
    if entries > needed && tail_is_wrong(bench, offset, needed, entries) {
        let size = u32::try_from(needed).unwrap_or(u32::MAX);
        bench.edit(Stage::Header, L1_SIZE, &size.to_be_bytes())?;
        bench.note(finding(RepairAction::CorrectHeader).at_host(L1_SIZE, 4).saying(format!(
            "the L1 table has {entries} entries, {needed} are needed, and the others are not its own"
        )));
    }
    let bytes = needed.max(1).saturating_mul(8);
    let lost = offset == 0 || offset >= bench.base_length;
    let length = bench.base_length.saturating_add(511) & !511;
    let cut = offset.saturating_add(bytes) >= length.saturating_add(geometry.cluster_size());
    let clusters = bench.cluster(offset)..=bench.cluster(offset.saturating_add(bytes).saturating_sub(1));
    // What else lies in its clusters would be changed with it.
    let shared = !lost && clusters.into_iter().any(|cluster| bench.old.references(cluster) > 1);
    if needed == 0 || !(lost || cut || shared) {
        return Ok(());
    }
    let mut table = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
    if offset != 0 {
        // Past the end of the file it reads as zeros.
        bench.overlay.read_at(offset, &mut table)?;
    }
    let place = bench.write_new(&table)?;
    let mut field = [0u8; 12];
    let (size, at) = field.split_at_mut(4);
    size.copy_from_slice(&u32::try_from(needed).unwrap_or(u32::MAX).to_be_bytes());
    at.copy_from_slice(&place.get().to_be_bytes());
    bench.edit(Stage::Header, L1_SIZE, &field)?;
    bench.note(finding(RepairAction::MoveL1Table).at_host(offset, bytes).at_guest(0, geometry.virtual_size()).saying(
        if shared {
            "something else lies in the clusters of the active L1 table"
        } else {
            "the active L1 table does not lie in the file: what it led to cannot be read"
        },
    ));
    Ok(())
}

/// Entries beyond the virtual disk lie on something else, or beyond the end of the file.
fn tail_is_wrong<S: ReadStorage>(bench: &Workbench<'_, S>, offset: u64, needed: u64, entries: u64) -> bool {
    let end = offset.saturating_add(entries.saturating_mul(8));
    if end >= bench.base_length.saturating_add(bench.geometry.cluster_size()) {
        return true;
    }
    let used_end = offset.saturating_add(needed.saturating_mul(8));
    let first = bench.geometry.clusters_for(used_end);
    let last = bench.geometry.clusters_for(end);
    (first..last).any(|cluster| bench.old.references(cluster) != 1)
}
