//! Bitmaps that break their rules: QEMU does not even open an image that has one.

use alloc::format;
use alloc::vec::Vec;

use super::erased;
use super::findings::{RepairAction, RepairFinding};
use super::workbench::{Stage, Workbench};
use crate::error::{Result, Structure};
use crate::format::{AutoclearFeatures, BitmapEntry, BitmapFlags, HeaderArea};
use crate::operations::check::{FindingKind, Severity};
use crate::operations::read_bitmaps;
use crate::operations::walk::{Fault, FaultKind, HostReference, Source, Visitor, walk};
use crate::storage::ReadStorage;

const AUTOCLEAR: u64 = 88;
/// The kind of the extension, as it stands before its data.
const BITMAPS_EXTENSION: [u8; 4] = [0x23, 0x85, 0x28, 0x75];

/// Takes broken bitmaps out of the directory, and marks those whose contents are broken as not to be trusted.
pub(super) fn repair_bitmaps<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    let area = bench.area()?;
    let Some(extension) = area.consistent_bitmaps() else { return Ok(()) };
    let mut faults = Faults { bench, directory: None, dropped: Vec::new(), entries: Vec::new() };
    walk(erased(faults.bench.overlay), &area, &mut faults)?;
    let Faults { directory, mut dropped, entries, .. } = faults;
    if directory.is_none() {
        wrong_sizes(bench, &area, &mut dropped);
    }
    let finding = |action, owner: alloc::string::String| {
        RepairFinding::new(FindingKind::Bitmap, Structure::BitmapDirectory, action, owner)
            .at_host(extension.directory_offset, extension.directory_size)
            .with_severity(Severity::CheckError)
    };
    if let Some(message) = directory {
        bench.note(finding(RepairAction::DropBitmaps, "header".into()).saying(message));
        return forget_bitmaps(bench);
    }
    if dropped.is_empty() && entries.is_empty() {
        return Ok(());
    }
    let mut bitmaps = read_bitmaps(&area, bench.overlay)?;
    let tables: Vec<u64> = bitmaps.iter().map(|bitmap| bitmap.table_offset).collect();
    for (bitmap, index, message) in &entries {
        let at = usize::try_from(*bitmap).ok();
        let Some(table) = at.and_then(|at| tables.get(at)) else { continue };
        if dropped.iter().any(|(gone, _)| gone == bitmap) {
            continue;
        }
        bench.edit(Stage::Entries, table.saturating_add(index.saturating_mul(8)), &[0; 8])?;
        if let Some(entry) = at.and_then(|at| bitmaps.get_mut(at)) {
            entry.flags = entry.flags.with(BitmapFlags::IN_USE);
            let owner = format!("bitmap {bitmap} ({})", entry.name);
            bench.note(finding(RepairAction::DistrustBitmap, owner).saying(message.clone()));
        }
    }
    for (bitmap, message) in &dropped {
        let name = usize::try_from(*bitmap).ok().and_then(|at| bitmaps.get(at)).map(|entry| format!("{}", entry.name));
        let owner = format!("bitmap {bitmap} ({})", name.unwrap_or_default());
        bench.note(finding(RepairAction::DropBitmap, owner).saying(message.clone()));
    }
    let kept: Vec<BitmapEntry> = (0u64..)
        .zip(bitmaps)
        .filter(|(index, _)| !dropped.iter().any(|(gone, _)| gone == index))
        .map(|(_, entry)| entry)
        .collect();
    if kept.is_empty() {
        return forget_bitmaps(bench);
    }
    rewrite_directory(bench, &kept)
}

/// Tables of another length than the disk asks for: QEMU does not open an image with such a bitmap, unless the bitmap is
/// marked as in use.
fn wrong_sizes<S: ReadStorage>(
    bench: &Workbench<'_, S>,
    area: &HeaderArea,
    dropped: &mut Vec<(u64, alloc::string::String)>,
) {
    let geometry = bench.geometry;
    for (index, bitmap) in (0u64..).zip(read_bitmaps(area, bench.overlay).unwrap_or_default()) {
        let Some(granularity) = bitmap.granularity().filter(|&granularity| granularity > 0) else { continue };
        let bits = geometry.virtual_size().div_ceil(granularity);
        // Bits are stored in groups of 64.
        let needed = geometry.clusters_for(bits.div_ceil(64).saturating_mul(8));
        let in_use = bitmap.flags.contains(BitmapFlags::IN_USE);
        if !in_use && u64::from(bitmap.table_entries) != needed && dropped.iter().all(|(known, _)| *known != index) {
            let entries = bitmap.table_entries;
            dropped.push((index, format!("the bitmap's table has {entries} entries, the disk asks for {needed}")));
        }
    }
}

/// The new directory lies elsewhere. Until header and directory fit again, bitmaps are not to be trusted.
fn rewrite_directory<S: ReadStorage>(bench: &mut Workbench<'_, S>, kept: &[BitmapEntry]) -> Result<()> {
    let Some(at) = extension_place(bench)? else { return forget_bitmaps(bench) };
    let mut bytes = Vec::new();
    for entry in kept {
        entry.emit(&mut bytes)?;
    }
    let place = bench.write_new(&bytes)?.get();
    let autoclear = bench.area()?.header.autoclear;
    bench.edit(Stage::Raise, AUTOCLEAR, &autoclear.without(AutoclearFeatures::BITMAPS).bits().to_be_bytes())?;
    let mut data = Vec::with_capacity(24);
    data.extend(u32::try_from(kept.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend([0; 4]);
    data.extend(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
    data.extend(place.to_be_bytes());
    bench.edit(Stage::Header, at.saturating_add(8), &data)?;
    bench.edit(Stage::Lower, AUTOCLEAR, &autoclear.bits().to_be_bytes())
}

/// Without its autoclear bit the extension means nothing; where it is the last one, it ends the extensions instead.
pub(super) fn forget_bitmaps<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    let area = bench.area()?;
    let without = area.header.autoclear.without(AutoclearFeatures::BITMAPS);
    bench.edit(Stage::Raise, AUTOCLEAR, &without.bits().to_be_bytes())?;
    let last = area.extensions.last().is_some_and(|last| last.kind() == u32::from_be_bytes(BITMAPS_EXTENSION));
    if last && let Some(at) = extension_place(bench)? {
        bench.edit(Stage::Header, at, &[0; 4])?;
    }
    Ok(())
}

/// Where the extension that counts stands: the last of its kind.
fn extension_place<S: ReadStorage>(bench: &Workbench<'_, S>) -> Result<Option<u64>> {
    let area = bench.area()?;
    let mut at = u64::from(area.header.header_length);
    let mut found = None;
    for extension in &area.extensions {
        if extension.kind() == u32::from_be_bytes(BITMAPS_EXTENSION) {
            found = Some(at);
        }
        let length = u64::try_from(extension.data().len()).unwrap_or(0);
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(8));
    }
    Ok(found)
}

struct Faults<'b, 'a, S: ReadStorage> {
    bench: &'b mut Workbench<'a, S>,
    /// Why the directory cannot be read.
    directory: Option<alloc::string::String>,
    /// Bitmaps whose entry is wrong.
    dropped: Vec<(u64, alloc::string::String)>,
    /// Entries of bitmap tables that are wrong: bitmap, index.
    entries: Vec<(u64, u64, alloc::string::String)>,
}

impl<S: ReadStorage> Faults<'_, '_, S> {
    fn wrong(&mut self, source: &Source, message: alloc::string::String) {
        match source {
            Source::BitmapTable { bitmap, index, .. } => self.entries.push((*bitmap, *index, message)),
            Source::BitmapDirectory { index } => {
                if self.dropped.iter().all(|(known, _)| known != index) {
                    self.dropped.push((*index, message));
                }
            }
            _ => self.directory = Some(message),
        }
    }
}

impl<S: ReadStorage> Visitor for Faults<'_, '_, S> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        let (offset, length) = (reference.host_offset, reference.length);
        let bitmaps = [Structure::BitmapDirectory, Structure::BitmapTable, Structure::BitmapData];
        if !bitmaps.contains(&reference.target) || length == 0 {
            return Ok(());
        }
        let size = self.bench.geometry.cluster_size();
        let beyond = offset.saturating_add(length) >= self.bench.base_length.saturating_add(size);
        let first = self.bench.cluster(offset);
        let last = self.bench.cluster(offset.saturating_add(length).saturating_sub(1));
        // Bitmaps share nothing: what else is there would be changed with them.
        // The directory itself stays: what lies on it by mistake moves.
        let shared = !beyond
            && reference.target != Structure::BitmapDirectory
            && (first..=last).any(|cluster| self.bench.old.references(cluster) > 1);
        if beyond || shared {
            let why = if beyond { "lies beyond the end of the file" } else { "lies in a cluster of another use" };
            self.wrong(&reference.source, format!("the {} at {offset:#x} {why}", reference.target));
        }
        Ok(())
    }

    fn fault(&mut self, fault: &Fault) -> Result<()> {
        let message = match &fault.kind {
            FaultKind::Bitmap(error) => format!("{error}"),
            FaultKind::Entry(error) if matches!(fault.source, Source::BitmapTable { .. }) => format!("{error}"),
            _ => return Ok(()),
        };
        self.wrong(&fault.source, message);
        Ok(())
    }
}
