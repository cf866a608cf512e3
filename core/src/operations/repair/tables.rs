//! L1 entries: what they lead to must be an L2 table.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::erased;
use super::findings::{RepairAction, RepairFinding};
use super::shape::shape_of;
use super::workbench::{Stage, Workbench};
use crate::error::{Result, Structure};
use crate::format::{HostOffset, HostRef, L1Entry};
use crate::metadata::joined;
use crate::operations::check::FindingKind;
use crate::operations::read_snapshots;
use crate::operations::walk::{Fault, HostReference, L1Owner, L1Slot, Source, Uses, Visitor, walk};
use crate::storage::ReadStorage;

/// Corrects the entries of all L1 tables; gives whether something was changed.
pub(super) fn repair_l1_entries<S: ReadStorage>(bench: &mut Workbench<'_, S>) -> Result<bool> {
    let area = bench.area()?;
    let places = Places::of(bench)?;
    let before = bench.edits.len();
    let mut collected = Collected::default();
    walk(erased(bench.overlay), &area, &mut collected)?;
    let (kept, copies) = (BTreeMap::new(), BTreeMap::new());
    let mut entries = L1Entries { bench, places, table_uses: collected.table_uses, kept, copies };
    for (slot, uses) in collected.entries {
        entries.repair(&slot, uses)?;
    }
    Ok(entries.bench.edits.len() != before)
}

/// The L1 entries, and how often each cluster is named as an L2 table.
#[derive(Default)]
struct Collected {
    entries: Vec<(L1Slot, Uses)>,
    table_uses: BTreeMap<u64, u64>,
}

impl Visitor for Collected {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        if let Source::L1(slot) = &reference.source {
            self.entries.push((*slot, reference.uses));
            let uses = self.table_uses.entry(reference.host_offset).or_default();
            *uses = uses.saturating_add(reference.uses.total());
        }
        Ok(())
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        Ok(())
    }
}

/// Where L1 tables are, and what no L2 table can lie on.
pub(super) struct Places {
    active: u64,
    snapshots: Vec<u64>,
    /// First cluster and clusters of what has one place and cannot be moved by a rebuild of the refcounts; without
    /// `inactive`.
    fixed: Vec<(u64, u64, Structure)>,
    /// The same of the snapshots' L1 tables. In order, apart from each other: there can be many, and all in one place.
    inactive: Vec<(u64, u64)>,
    /// The clusters of the refcount structures.
    refcounts: BTreeSet<u64>,
}

impl Places {
    pub(super) fn of<S: ReadStorage>(bench: &Workbench<'_, S>) -> Result<Self> {
        let area = bench.area()?;
        let geometry = bench.geometry;
        let header = &area.header;
        let snapshots = read_snapshots(header, bench.overlay).unwrap_or_default();
        let range = |offset: u64, bytes: u64, structure| {
            let first = bench.cluster(offset);
            let last = bench.cluster(offset.saturating_add(bytes).saturating_sub(1));
            (first, last.saturating_sub(first).saturating_add(1), structure)
        };
        let mut fixed = alloc::vec![(0, 1, Structure::Header)];
        let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
        if l1_bytes > 0 {
            fixed.push(range(header.l1_table_offset, l1_bytes, Structure::L1Table));
        }
        if header.snapshot_count > 0 {
            fixed.push(range(header.snapshots_offset, 1, Structure::SnapshotTable));
        }
        if let Some((offset, length)) = area.crypto_header() {
            fixed.push(range(offset, length.max(1), Structure::CryptoHeader));
        }
        if let Some(bitmaps) = area.consistent_bitmaps() {
            fixed.push(range(bitmaps.directory_offset, bitmaps.directory_size.max(1), Structure::BitmapDirectory));
        }
        let inactive = snapshots.iter().filter(|snapshot| snapshot.l1_size > 0).map(|snapshot| {
            let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
            let (first, count, _) = range(snapshot.l1_table_offset, bytes, Structure::L1Table);
            (first, first.saturating_add(count))
        });
        let inactive = joined(inactive.collect());
        let mut refcounts = BTreeSet::new();
        let table_first = bench.cluster(header.refcount_table_offset);
        refcounts.extend(table_first..table_first.saturating_add(header.refcount_table_clusters.into()));
        if let Ok(table) = crate::operations::walk::Walk::new(erased(bench.overlay), &area)?.refcount_table() {
            let blocks = (0..).zip(table.entries()).filter_map(|(index, _)| match table.block(index) {
                crate::operations::walk::BlockPlace::At(offset) => Some(geometry.host_cluster(offset).get()),
                _ => None,
            });
            refcounts.extend(blocks);
        }
        let active = header.l1_table_offset;
        let snapshots = snapshots.into_iter().map(|snapshot| snapshot.l1_table_offset).collect();
        Ok(Self { active, snapshots, fixed, inactive, refcounts })
    }

    /// What has its only place in a cluster.
    pub(super) fn fixed_at(&self, cluster: u64) -> Option<Structure> {
        let inside =
            |&&(first, count, _): &&(u64, u64, Structure)| first <= cluster && cluster < first.saturating_add(count);
        let fixed = self.fixed.iter().find(inside).map(|&(_, _, structure)| structure);
        fixed.or_else(|| self.any_inactive(&(cluster..cluster.saturating_add(1))).then_some(Structure::L1Table))
    }

    /// Whether a range of clusters touches a fixed place.
    pub(super) fn any_within(&self, clusters: core::ops::Range<u64>) -> bool {
        self.fixed.iter().any(|&(first, count, _)| first < clusters.end && clusters.start < first.saturating_add(count))
            || self.any_inactive(&clusters)
    }

    fn any_inactive(&self, clusters: &core::ops::Range<u64>) -> bool {
        let behind = self.inactive.partition_point(|&(_, end)| end <= clusters.start);
        self.inactive.get(behind).is_some_and(|&(first, _)| first < clusters.end)
    }

    pub(super) fn is_refcounts(&self, cluster: u64) -> bool {
        self.refcounts.contains(&cluster)
    }

    /// Where an L1 entry stands.
    pub(super) fn l1_entry(&self, owner: L1Owner, index: u64) -> Option<u64> {
        let table = match owner {
            L1Owner::Active => self.active,
            L1Owner::Snapshot(snapshot) => {
                usize::try_from(snapshot).ok().and_then(|snapshot| self.snapshots.get(snapshot)).copied()?
            }
        };
        index.checked_mul(8).and_then(|bytes| table.checked_add(bytes))
    }
}

/// An owner as findings name it.
pub(super) fn owner_name(owner: L1Owner) -> String {
    match owner {
        L1Owner::Active => String::from("active"),
        L1Owner::Snapshot(index) => format!("snapshot {index}"),
    }
}

struct L1Entries<'b, 'a, S: ReadStorage> {
    bench: &'b mut Workbench<'a, S>,
    places: Places,
    /// How often each offset is named as an L2 table.
    table_uses: BTreeMap<u64, u64>,
    /// References kept to tables that have more than a refcount can say.
    kept: BTreeMap<u64, u64>,
    /// The last copy of each of these, by its cluster.
    copies: BTreeMap<u64, HostOffset>,
}

/// What becomes of an entry.
struct Verdict {
    new: Option<HostRef>,
    kind: FindingKind,
    action: RepairAction,
    message: String,
}

impl<S: ReadStorage> L1Entries<'_, '_, S> {
    fn judge(&mut self, slot: &L1Slot, uses: Uses) -> Result<Option<Verdict>> {
        let geometry = self.bench.geometry;
        let offset = L1Entry::offset_bits(slot.raw);
        let copied = L1Entry::copied_bit(slot.raw);
        let here = HostRef { offset: HostOffset::new(offset), copied };
        let drop =
            |kind, message: String| Ok(Some(Verdict { new: None, kind, action: RepairAction::DropEntry, message }));
        if offset == 0 {
            let what = format!("the entry {:#x} names no table", slot.raw);
            return Ok(Some(Verdict {
                new: None,
                kind: FindingKind::ReservedBits,
                action: RepairAction::ClearBits,
                message: what,
            }));
        }
        if offset >= self.bench.base_length && !self.bench.taken.contains(&self.bench.cluster(offset)) {
            let what =
                format!("the L2 table at {offset:#x} lies beyond the end of the file: all its entries read as 0");
            return drop(FindingKind::BeyondEndOfFile, what);
        }
        if !geometry.is_aligned(offset) {
            return self.judge_unaligned(offset, copied, uses).map(Some);
        }
        let cluster = self.bench.cluster(offset);
        let fixed = self.places.fixed_at(cluster);
        let on = fixed.or_else(|| self.places.is_refcounts(cluster).then_some(Structure::RefcountBlock));
        if let Some(structure) = on {
            // Which of the two was meant to be there, only the bytes can tell: a header that names a wrong place must not
            // cost a table.
            let shape = shape_of(self.bench.overlay, &geometry, self.bench.overlay.len()?, offset)?;
            if cluster == 0 || !shape.may_be_table() {
                let what =
                    format!("the L2 table at {offset:#x} lies on the {structure}, and does not look like a table");
                return drop(FindingKind::Overlap, what);
            }
        }
        let as_table = self.table_uses.get(&offset).copied().unwrap_or(0);
        if self.bench.references(cluster) > as_table && !self.bench.taken.contains(&cluster) {
            return self.judge_shared(offset, uses);
        }
        // A copy would not help where more snapshots than a refcount can say share the entry itself.
        if self.bench.references(cluster) > geometry.max_refcount() && uses.total() <= geometry.max_refcount() {
            let kept = self.kept.entry(cluster).or_default();
            *kept = kept.saturating_add(uses.total());
            if *kept > geometry.max_refcount()
                && let Some(place) = self.copy_for(cluster, offset, uses.total())?
            {
                return Ok(Some(Verdict {
                    new: Some(HostRef { offset: place, copied: false }),
                    kind: FindingKind::RefcountOverflow,
                    action: RepairAction::CopyCluster,
                    message: format!("the L2 table at {offset:#x} has more references than a refcount can say"),
                }));
            }
        }
        if L1Entry::has_reserved_bits(slot.raw) {
            return Ok(Some(Verdict {
                new: Some(here),
                kind: FindingKind::ReservedBits,
                action: RepairAction::ClearBits,
                message: format!("reserved bits are set in the entry {:#x}", slot.raw),
            }));
        }
        Ok(None)
    }

    /// A copy of a table that has more references than a refcount can say: as many entries as can be counted have the same.
    fn copy_for(&mut self, cluster: u64, offset: u64, uses: u64) -> Result<Option<HostOffset>> {
        let known = self.copies.get(&cluster).copied();
        let place = match known.filter(|&place| self.bench.room_for(place, uses)) {
            Some(place) => place,
            None => {
                let Some(place) = self.bench.copy(offset)? else { return Ok(None) };
                self.copies.insert(cluster, place);
                place
            }
        };
        self.bench.add_references(self.bench.cluster(place.get()), uses);
        Ok(Some(place))
    }

    /// Something else lies in the cluster too. What is put right in the table must not change that.
    fn judge_shared(&mut self, offset: u64, uses: Uses) -> Result<Option<Verdict>> {
        let shape = shape_of(self.bench.overlay, &self.bench.geometry, self.bench.overlay.len()?, offset)?;
        let kind = FindingKind::Overlap;
        if shape.valid == 0 {
            let message = format!("the L2 table at {offset:#x} lies in a cluster of another use, and is no table");
            return Ok(Some(Verdict { new: None, kind, action: RepairAction::DropEntry, message }));
        }
        let Some(place) = self.bench.copy(offset)? else { return Ok(None) };
        self.bench.add_references(self.bench.cluster(place.get()), uses.total());
        Ok(Some(Verdict {
            new: Some(HostRef { offset: place, copied: false }),
            kind,
            action: RepairAction::CopyCluster,
            message: format!("the L2 table at {offset:#x} lies in a cluster of another use"),
        }))
    }

    /// The table begins where its cluster does, if nothing else claims that.
    fn judge_unaligned(&mut self, offset: u64, copied: bool, uses: Uses) -> Result<Verdict> {
        let geometry = self.bench.geometry;
        let start = geometry.align_down(offset);
        let cluster = self.bench.cluster(start);
        // The entry itself counts as a reference to the cluster in which it ends.
        let alone = self.bench.references(cluster) <= uses.total() && self.places.fixed_at(cluster).is_none();
        let looks = shape_of(self.bench.overlay, &geometry, self.bench.overlay.len()?, start)?.is_table();
        if alone && looks && start != 0 && !self.places.is_refcounts(cluster) {
            return Ok(Verdict {
                new: Some(HostRef { offset: HostOffset::new(start), copied }),
                kind: FindingKind::Unaligned,
                action: RepairAction::AlignEntry,
                message: format!("the L2 table offset {offset:#x} is not aligned; at {start:#x} there is a table"),
            });
        }
        Ok(Verdict {
            new: None,
            kind: FindingKind::Unaligned,
            action: RepairAction::DropEntry,
            message: format!("the L2 table offset {offset:#x} is not aligned, and no table begins in its cluster"),
        })
    }
}

impl<S: ReadStorage> L1Entries<'_, '_, S> {
    fn repair(&mut self, slot: &L1Slot, uses: Uses) -> Result<()> {
        let Some(verdict) = self.judge(slot, uses)? else { return Ok(()) };
        let Some(at) = self.places.l1_entry(slot.owner, slot.index) else { return Ok(()) };
        let geometry = self.bench.geometry;
        let raw = verdict.new.map_or(L1Entry::Unallocated, L1Entry::Table).encode();
        self.bench.edit(Stage::Tables, at, &raw.to_be_bytes())?;
        let guest = geometry.guest_start(geometry.cluster_at(slot.index, 0)).get();
        let length = geometry.l2_coverage().min(geometry.virtual_size().saturating_sub(guest));
        self.bench.note(
            RepairFinding::new(verdict.kind, Structure::L1Table, verdict.action, owner_name(slot.owner))
                .at_host(L1Entry::offset_bits(slot.raw), geometry.cluster_size())
                .at_guest(guest, length)
                .saying(format!("{}: L1 entry {}", verdict.message, slot.index)),
        );
        Ok(())
    }
}
