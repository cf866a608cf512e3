//! L2 entries: each must have a meaning, and lead to a cluster that is the guest's alone or counted as shared.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::erased;
use super::findings::{RepairAction, RepairFinding};
use super::tables::{Places, owner_name};
use super::workbench::{Stage, Workbench};
use crate::error::{Result, Structure};
use crate::format::{CompressedRange, EntryError, HostOffset, HostRef, L2Entry, L2Run, RawL2Entry, Subclusters};
use crate::operations::check::FindingKind;
use crate::operations::walk::{Fault, HostReference, L2Table, Source, Visitor, walk};
use crate::storage::ReadStorage;

/// Corrects the entries of all L2 tables; gives whether something was changed.
pub(super) fn repair_l2_entries<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<bool> {
    let area = bench.area()?;
    let places = Places::of(bench)?;
    let mut others = Others { bench, clusters_of_metadata: BTreeSet::new(), compressed: BTreeMap::new() };
    let overlay = bench.overlay;
    walk(erased(overlay), &area, &mut others)?;
    let Others { clusters_of_metadata: metadata, compressed, .. } = others;
    let before = bench.edits.len();
    let mut entries = L2Entries {
        has_backing: area.backing_file.is_some(),
        raw_data_file: area.header.autoclear.data_file_raw(),
        bench,
        places,
        metadata,
        copies: BTreeMap::new(),
        kept: compressed,
        kept_streams: BTreeMap::new(),
        zeros: None,
    };
    walk(erased(overlay), &area, &mut entries)?;
    Ok(entries.bench.edits.len() != before)
}

/// Offsets of L2 tables and of what bitmaps have; and of clusters with too many references, how many are from compressed
/// clusters, which stay where they are as long as a refcount can say their number.
struct Others<'b, 'a, S: ReadStorage> {
    bench: &'b Workbench<'a, S>,
    clusters_of_metadata: BTreeSet<u64>,
    compressed: BTreeMap<u64, u64>,
}

impl<S: ReadStorage> Visitor for Others<'_, '_, S> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        if reference.target == Structure::CompressedCluster {
            let first = self.bench.cluster(reference.host_offset);
            let last = self.bench.cluster(reference.host_offset.saturating_add(reference.length).saturating_sub(1));
            // A broken entry can claim many sectors, but never more than two clusters' worth.
            for cluster in first..=last.min(first.saturating_add(2)) {
                if self.bench.references(cluster) > self.bench.geometry.max_refcount() {
                    let count = self.compressed.entry(cluster).or_default();
                    *count = count.saturating_add(reference.uses.total());
                }
            }
        }
        if matches!(reference.target, Structure::L2Table | Structure::BitmapTable | Structure::BitmapData) {
            self.clusters_of_metadata.insert(reference.host_offset);
        }
        Ok(())
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        Ok(())
    }
}

struct L2Entries<'b, 'a, S: ReadStorage> {
    bench: &'b mut Workbench<'a, S>,
    places: Places,
    /// Offsets of L2 tables, bitmap tables and their data.
    metadata: BTreeSet<u64>,
    has_backing: bool,
    raw_data_file: bool,
    /// Copies of clusters that a guest cluster shared with metadata.
    copies: BTreeMap<u64, HostOffset>,
    /// References kept to clusters that have more than a refcount can say.
    kept: BTreeMap<u64, u64>,
    /// The same of compressed streams alone.
    kept_streams: BTreeMap<u64, u64>,
    /// A cluster of zeros, and how many references it may get yet.
    zeros: Option<(HostOffset, u64)>,
}

/// What becomes of an entry.
struct Verdict {
    new: L2Entry,
    kind: FindingKind,
    action: RepairAction,
    message: String,
}

impl<S: ReadStorage> L2Entries<'_, '_, S> {
    /// The first entry of a run with faults: these stand alone.
    fn judge_faulty(&mut self, table: &L2Table, run: &L2Run) -> Result<Verdict> {
        let geometry = self.bench.geometry;
        let guest = table.guest_offset(run.first, &geometry);
        let faults = run.faults;
        let first = faults.iter().next().unwrap_or(EntryError::ReservedBits);
        let kind = kind_of(first);
        let message = format!("{first}");
        let simple = |new| Verdict { new, kind, action: RepairAction::ClearBits, message: message.clone() };
        let L2Entry::Plain { host, parts } = run.entry else {
            if !faults.contains(EntryError::CompressedInDataFile) {
                return Ok(simple(run.entry));
            }
            if self.raw_data_file {
                return Ok(Verdict { action: RepairAction::AlignEntry, ..simple(self.in_data_file(guest, None)) });
            }
            let new = self.lost(Subclusters::all_allocated(&geometry), table.uses.total())?;
            return Ok(Verdict { action: RepairAction::ZeroEntry, ..simple(new) });
        };
        // What both bits claim is in the cluster, and may be the data that was written last.
        let parts = Subclusters { zero: parts.zero & !parts.allocated, ..parts };
        if faults.contains(EntryError::ZeroInVersion2) {
            let new = self.lost(Subclusters::all_zero(&geometry), table.uses.total())?;
            return Ok(Verdict { action: RepairAction::ZeroEntry, ..simple(new) });
        }
        let Some(host) = host else {
            let action = if parts.allocated == 0 { RepairAction::ClearBits } else { RepairAction::ZeroEntry };
            let new = self.lost(parts, table.uses.total())?;
            return Ok(Verdict { action, ..simple(new) });
        };
        if !faults.contains(EntryError::Unaligned) {
            return Ok(simple(L2Entry::Plain { host: Some(host), parts }));
        }
        if geometry.data_file() {
            let new = self.in_data_file(guest, Some(parts));
            return Ok(Verdict { action: RepairAction::AlignEntry, ..simple(new) });
        }
        self.judge_unaligned(table, host, parts)
    }

    /// The data begin where their cluster does, if nothing else claims that.
    fn judge_unaligned(&mut self, table: &L2Table, host: HostRef, parts: Subclusters) -> Result<Verdict> {
        let geometry = self.bench.geometry;
        let offset = host.offset.get();
        let start = geometry.align_down(offset);
        let cluster = self.bench.cluster(start);
        // The entry itself counts as a reference to the cluster in which it ends.
        let alone = self.bench.references(cluster) <= table.uses.total() && !self.is_metadata(start);
        let known = self.bench.in_use(cluster) || !self.bench.trust_refcounts;
        if alone && known && parts.allocated != 0 && start != 0 && start < self.bench.base_length {
            let host = HostRef { offset: HostOffset::new(start), copied: host.copied };
            return Ok(Verdict {
                new: L2Entry::Plain { host: Some(host), parts },
                kind: FindingKind::Unaligned,
                action: RepairAction::AlignEntry,
                message: format!("the host offset {offset:#x} is not aligned; nothing else is in its cluster"),
            });
        }
        Ok(Verdict {
            new: self.lost(parts, table.uses.total())?,
            kind: FindingKind::Unaligned,
            action: RepairAction::ZeroEntry,
            message: format!("the host offset {offset:#x} is not aligned, and its cluster has another use"),
        })
    }

    /// An entry without faults that leads where it must not. `None` where it may stay.
    fn judge_place(&mut self, table: &L2Table, index: u64, entry: L2Entry, raw: RawL2Entry) -> Result<Option<Verdict>> {
        let geometry = self.bench.geometry;
        let guest = table.guest_offset(index, &geometry);
        let length = self.bench.base_length;
        let (host, parts) = match entry {
            L2Entry::Compressed(range) => return self.judge_compressed(table, range),
            L2Entry::Plain { host: Some(host), parts } if !geometry.data_file() => (host, parts),
            L2Entry::Plain { host: Some(host), parts } if self.raw_data_file && host.offset.get() != guest => {
                return Ok(Some(Verdict {
                    new: self.in_data_file(guest, Some(parts)),
                    kind: FindingKind::DataFileOffset,
                    action: RepairAction::AlignEntry,
                    message: format!("{}", EntryError::DataFileOffset),
                }));
            }
            L2Entry::Plain { .. } => return Ok(None),
        };
        let offset = host.offset.get();
        let cluster = self.bench.cluster(offset);
        if offset >= length && !self.bench.taken.contains(&cluster) {
            return Ok(Some(Verdict {
                new: self.lost(parts, table.uses.total())?,
                kind: FindingKind::BeyondEndOfFile,
                action: RepairAction::ZeroEntry,
                message: format!("the data at {offset:#x} lie beyond the end of the file and read as zeros"),
            }));
        }
        let uses = table.uses.total();
        let on_metadata = self.is_metadata(offset);
        // A copy would have as many again where the table itself has more than can be said.
        let too_many = uses <= geometry.max_refcount() && self.bench.references(cluster) > geometry.max_refcount() && {
            let kept = self.kept.entry(cluster).or_default();
            *kept = kept.saturating_add(uses);
            *kept > geometry.max_refcount()
        };
        if !on_metadata && !too_many {
            return Ok(None);
        }
        let shared = self.copies.get(&cluster).copied().filter(|_| !too_many);
        let copy = match shared {
            Some(place) if self.bench.room_for(place, uses) => Some(place),
            _ => self.bench.copy(offset)?,
        };
        let Some(place) = copy else {
            let what = format!("the cluster at {offset:#x} has two uses, and there is no room for a copy");
            let finding = self.finding(table, raw, FindingKind::Overlap, RepairAction::None);
            self.bench.give_up_on(finding.saying(what));
            return Ok(None);
        };
        self.copies.insert(cluster, place);
        self.bench.add_references(self.bench.cluster(place.get()), uses);
        let (kind, what) = if on_metadata {
            (FindingKind::Overlap, "the image keeps tables in it")
        } else {
            (FindingKind::RefcountOverflow, "it has more references than a refcount can say")
        };
        Ok(Some(Verdict {
            new: L2Entry::Plain { host: Some(HostRef { offset: place, copied: false }), parts },
            kind,
            action: RepairAction::CopyCluster,
            message: format!("the cluster at {offset:#x} is not the guest's alone: {what}"),
        }))
    }

    /// A compressed cluster may say more sectors than it has, so one that reaches over the end can be sound.
    fn judge_compressed(&mut self, table: &L2Table, range: CompressedRange) -> Result<Option<Verdict>> {
        let geometry = self.bench.geometry;
        let length = self.bench.base_length.saturating_add(511) & !511;
        let offset = range.offset.get();
        if offset < geometry.cluster_size() {
            return Ok(Some(Verdict {
                new: self.lost(Subclusters::all_allocated(&geometry), table.uses.total())?,
                kind: FindingKind::Overlap,
                action: RepairAction::ZeroEntry,
                message: format!("the compressed cluster at {offset:#x} lies on the header"),
            }));
        }
        // A copy that an earlier round made.
        if self.bench.taken.contains(&self.bench.cluster(offset)) {
            return Ok(None);
        }
        let end = offset.saturating_add(range.length);
        // Where a refcount is missing behind the end of the file, the sectors there were never written.
        let last = self.bench.cluster(end.saturating_sub(1));
        let reaches_out = last >= self.bench.base_clusters() && !self.bench.in_use(last);
        if offset < length && end < length.saturating_add(geometry.cluster_size()) && !reaches_out {
            return self.judge_streams(range, table.uses.total());
        }
        let kind = FindingKind::BeyondEndOfFile;
        let shorter = length.checked_sub(offset).filter(|&left| left > 0);
        let shorter = shorter.and_then(|left| CompressedRange::fits(range.offset, left, &geometry));
        Ok(Some(match shorter {
            Some(range) => Verdict {
                new: L2Entry::Compressed(range),
                kind,
                action: RepairAction::ShortenCompressed,
                message: format!("the compressed cluster at {offset:#x} reaches beyond the end of the file"),
            },
            None => Verdict {
                new: self.lost(Subclusters::all_allocated(&geometry), table.uses.total())?,
                kind,
                action: RepairAction::ZeroEntry,
                message: format!("the compressed cluster at {offset:#x} lies beyond the end of the file"),
            },
        }))
    }

    /// A stream in clusters that hold more streams than a refcount can say is moved into clusters of its own.
    fn judge_streams(&mut self, range: CompressedRange, uses: u64) -> Result<Option<Verdict>> {
        let geometry = self.bench.geometry;
        let offset = range.offset.get();
        let last = self.bench.cluster(offset.saturating_add(range.length.saturating_sub(1)));
        let most = geometry.max_refcount();
        let mut too_many = false;
        for cluster in self.bench.cluster(offset)..=last {
            if self.bench.references(cluster) > most {
                let kept = self.kept_streams.entry(cluster).or_default();
                *kept = kept.saturating_add(uses);
                too_many |= *kept > most;
            }
        }
        // Copies of what a shared table names would have too many references again: the table is copied first.
        if !too_many || uses > most {
            return Ok(None);
        }
        let place = self.bench.copy_bytes(offset, range.length)?;
        let Some(new) = place.and_then(|place| CompressedRange::fits(place, range.length, &geometry)) else {
            return Ok(None);
        };
        let first = self.bench.cluster(new.offset.get());
        for cluster in first..=self.bench.cluster(new.offset.get().saturating_add(new.length.saturating_sub(1))) {
            self.bench.add_references(cluster, uses);
        }
        Ok(Some(Verdict {
            new: L2Entry::Compressed(new),
            kind: FindingKind::RefcountOverflow,
            action: RepairAction::CopyCluster,
            message: format!(
                "the compressed cluster at {offset:#x} shares its host cluster with more others than a refcount can say"
            ),
        }))
    }

    /// Tables that stay where they are lie there. Refcounts do not: they are written anew elsewhere.
    fn is_metadata(&self, offset: u64) -> bool {
        let cluster = self.bench.cluster(offset);
        self.places.fixed_at(cluster).is_some() || self.metadata.contains(&self.bench.geometry.align_down(offset))
    }

    fn in_data_file(&self, guest: u64, parts: Option<Subclusters>) -> L2Entry {
        let host = Some(HostRef { offset: HostOffset::new(guest), copied: true });
        L2Entry::Plain { host, parts: parts.unwrap_or_else(|| Subclusters::all_allocated(&self.bench.geometry)) }
    }

    /// An entry whose cluster is lost: what was in it reads as zeros, never as the backing file's old data.
    fn lost(&mut self, parts: Subclusters, uses: u64) -> Result<L2Entry> {
        let geometry = self.bench.geometry;
        let parts = Subclusters { allocated: 0, zero: parts.zero | parts.allocated };
        if geometry.version() >= 3 || parts.zero == 0 {
            return Ok(L2Entry::Plain { host: None, parts });
        }
        if !self.has_backing {
            return Ok(L2Entry::UNALLOCATED);
        }
        // Version 2 has no zero flag: a cluster of zeros.
        let place = match self.zeros {
            Some((place, left)) if left >= uses => place,
            _ => {
                let empty = alloc::vec![0u8; geometry.cluster_len()];
                let cluster = self.bench.allocate(1)?;
                let place = geometry.host_start(crate::format::HostCluster::new(cluster));
                self.bench.edit(Stage::Unreachable, place.get(), &empty)?;
                self.zeros = Some((place, geometry.max_refcount()));
                place
            }
        };
        if let Some((_, left)) = &mut self.zeros {
            *left = left.saturating_sub(uses);
        }
        self.bench.add_references(self.bench.cluster(place.get()), uses);
        Ok(L2Entry::normal(HostRef { offset: place, copied: false }, &geometry))
    }

    fn finding(&self, table: &L2Table, raw: RawL2Entry, kind: FindingKind, action: RepairAction) -> RepairFinding {
        let geometry = self.bench.geometry;
        let offset = match L2Entry::examine(raw, &geometry).0 {
            L2Entry::Plain { host, .. } => host.map(|host| host.offset.get()),
            L2Entry::Compressed(range) => Some(range.offset.get()),
        };
        let finding = RepairFinding::new(kind, Structure::L2Table, action, owner_name(table.owner));
        match offset {
            Some(offset) => finding.at_host(offset, geometry.cluster_size()),
            None => finding.at_host(table.host_offset, geometry.l2_entry_size()),
        }
    }

    fn carry_out(&mut self, table: &L2Table, index: u64, raw: RawL2Entry, verdict: Verdict) -> Result<()> {
        let geometry = self.bench.geometry;
        let size = geometry.l2_entry_size();
        let at = table.host_offset.saturating_add(index.saturating_mul(size));
        let new = verdict.new.encode(&geometry);
        let mut bytes = Vec::with_capacity(16);
        bytes.extend(new.descriptor.to_be_bytes());
        if geometry.extended_l2() {
            bytes.extend(new.bitmap.to_be_bytes());
        }
        self.bench.edit(Stage::Entries, at, &bytes)?;
        let guest = table.guest_offset(index, &geometry);
        let length = geometry.cluster_size().min(geometry.virtual_size().saturating_sub(guest));
        let finding = self.finding(table, raw, verdict.kind, verdict.action).at_guest(guest, length);
        let bits = raw.descriptor;
        self.bench.note(finding.saying(format!("{}: L2 entry {index} ({bits:#x})", verdict.message)));
        Ok(())
    }
}

impl<S: ReadStorage> Visitor for L2Entries<'_, '_, S> {
    fn reference(&mut self, _: &HostReference) -> Result<()> {
        Ok(())
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        Ok(())
    }

    fn l2_run(&mut self, table: &L2Table, run: &L2Run) -> Result<()> {
        let geometry = self.bench.geometry;
        if !is_own_table(self.bench, table) {
            return Ok(());
        }
        if !run.faults.is_empty() {
            let verdict = self.judge_faulty(table, run)?;
            // What is sound now may still lead where it must not: unaligned ones were judged with their place.
            let verdict = match self.judge_place(table, run.first, verdict.new, run.raw)? {
                Some(place) if !run.faults.contains(EntryError::Unaligned) => place,
                _ => verdict,
            };
            return self.carry_out(table, run.first, run.raw, verdict);
        }
        if matches!(run.entry, L2Entry::Plain { host: None, .. }) || self.is_plainly_sound(run) {
            return Ok(());
        }
        for n in 0..run.count {
            let raw = L2Entry::advanced(run.raw, n, &geometry);
            let raw = if n == 0 { run.raw } else { raw };
            let entry = L2Entry::examine(raw, &geometry).0;
            let index = run.first.saturating_add(n);
            if let Some(verdict) = self.judge_place(table, index, entry, raw)? {
                self.carry_out(table, index, raw, verdict)?;
            }
        }
        Ok(())
    }
}

impl<S: ReadStorage> L2Entries<'_, '_, S> {
    /// The run lies within the file and touches nothing but guest data: what nearly all do.
    fn is_plainly_sound(&self, run: &L2Run) -> bool {
        let geometry = self.bench.geometry;
        let L2Entry::Plain { host: Some(host), .. } = run.entry else { return false };
        if geometry.data_file() {
            return !self.raw_data_file;
        }
        let start = host.offset.get();
        let end = start.saturating_add(run.count.saturating_mul(geometry.cluster_size()));
        if end > self.bench.base_length.saturating_add(geometry.cluster_size()).saturating_sub(1) {
            return false;
        }
        let first = self.bench.cluster(start);
        let clusters = first..first.saturating_add(run.count);
        self.metadata.range(start..end).next().is_none()
            && !self.places.any_within(clusters.clone())
            && (geometry.max_refcount() > 1 << 14
                || clusters.into_iter().all(|c| self.bench.references(c) <= geometry.max_refcount()))
    }
}

fn kind_of(error: EntryError) -> FindingKind {
    match error {
        EntryError::ReservedBits => FindingKind::ReservedBits,
        EntryError::Unaligned => FindingKind::Unaligned,
        EntryError::ZeroInVersion2 => FindingKind::ZeroInVersion2,
        EntryError::SubclusterConflict => FindingKind::SubclusterConflict,
        EntryError::SubclusterWithoutCluster => FindingKind::SubclusterWithoutCluster,
        EntryError::CompressedInDataFile => FindingKind::CompressedInDataFile,
        EntryError::DataFileOffset => FindingKind::DataFileOffset,
        EntryError::CompressedCopied => FindingKind::CompressedCopied,
        EntryError::CompressedBitmap => FindingKind::CompressedBitmap,
        EntryError::ZeroInExtended => FindingKind::ZeroInExtended,
    }
}

/// Whether nothing else lies in a table's cluster. There can be no room to move it; then it stays as it is, since each
/// change would change the other thing too. What is left undone is told with all else that the check finds afterwards.
fn is_own_table<S: ReadStorage>(bench: &Workbench<'_, S>, table: &L2Table) -> bool {
    bench.references(bench.cluster(table.host_offset)) <= table.uses.total()
}

/// The flags of entries, once refcounts are what they will be.
pub(super) fn repair_copied<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<()> {
    let area = bench.area()?;
    let places = Places::of(bench)?;
    let overlay = bench.overlay;
    let mut flags = CopiedFlags { bench, places };
    walk(erased(overlay), &area, &mut flags)
}

struct CopiedFlags<'b, 'a, S: ReadStorage> {
    bench: &'b mut Workbench<'a, S>,
    places: Places,
}

impl<S: ReadStorage> CopiedFlags<'_, '_, S> {
    fn is_sole(&self, cluster: u64) -> bool {
        self.bench.current.as_ref().is_some_and(|counts| counts.references(cluster) == 1)
    }

    fn note(&mut self, set: bool, structure: Structure, owner: String, host: u64, guest: (u64, u64)) {
        let action = if set { RepairAction::SetCopied } else { RepairAction::ClearCopied };
        let state = if set { "clear, but the cluster has one reference" } else { "set, but the cluster has several" };
        self.bench.note(
            RepairFinding::new(FindingKind::CopiedFlag, structure, action, owner)
                .at_host(host, self.bench.geometry.cluster_size())
                .at_guest(guest.0, guest.1)
                .saying(format!("the COPIED flag is {state}")),
        );
    }
}

impl<S: ReadStorage> Visitor for CopiedFlags<'_, '_, S> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        let geometry = self.bench.geometry;
        let stage = |set, floor| if set { Stage::Copied } else { floor };
        match &reference.source {
            Source::L1(slot) if slot.owner == crate::operations::walk::L1Owner::Active => {
                let offset = reference.host_offset;
                let sole = self.is_sole(self.bench.cluster(offset));
                let set = crate::format::L1Entry::copied_bit(slot.raw);
                let Some(at) = self.places.l1_entry(slot.owner, slot.index) else { return Ok(()) };
                if set == sole || offset == 0 {
                    return Ok(());
                }
                let entry = HostRef { offset: HostOffset::new(offset), copied: sole };
                let raw = crate::format::L1Entry::Table(entry).encode();
                self.bench.edit(stage(sole, Stage::Tables), at, &raw.to_be_bytes())?;
                let guest = geometry.guest_start(geometry.cluster_at(slot.index, 0)).get();
                let length = geometry.l2_coverage().min(geometry.virtual_size().saturating_sub(guest));
                self.note(sole, Structure::L1Table, owner_name(slot.owner), offset, (guest, length));
            }
            Source::L2(slot) if slot.table.uses.active > 0 && is_own_table(self.bench, &slot.table) => {
                let L2Entry::Plain { host: Some(host), .. } = slot.entry else { return Ok(()) };
                let in_data_file = reference.target == Structure::DataFile;
                let first = self.bench.cluster(host.offset.get());
                for n in 0..reference.count {
                    let sole = in_data_file || self.is_sole(first.saturating_add(n));
                    if sole == host.copied {
                        continue;
                    }
                    let raw = if n == 0 { slot.raw } else { L2Entry::advanced(slot.raw, n, &geometry) };
                    let entry = L2Entry::examine(raw, &geometry).0.with_copied(sole).encode(&geometry);
                    let index = slot.index.saturating_add(n);
                    let at = slot.table.host_offset.saturating_add(index.saturating_mul(geometry.l2_entry_size()));
                    self.bench.edit(stage(sole, Stage::Entries), at, &entry.descriptor.to_be_bytes())?;
                    let guest = slot.table.guest_offset(index, &geometry);
                    let length = geometry.cluster_size().min(geometry.virtual_size().saturating_sub(guest));
                    let offset = host.offset.get().saturating_add(n.saturating_mul(geometry.cluster_size()));
                    self.note(sole, Structure::L2Table, owner_name(slot.table.owner), offset, (guest, length));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        Ok(())
    }
}
