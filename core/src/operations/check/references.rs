//! What the walk shows, counted and judged.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};

use super::counts::{Counts, Recorded};
use super::{CheckReport, Finding, FindingKind, REFCOUNTS_SHARE, Severity, WALK_END};
use crate::error::{Result, Structure};
use crate::format::{EntryError, Geometry, HostCluster, HostOffset, L1Entry, L2Entry};
use crate::operations::walk::{
    Fault, FaultKind, HostReference, L1Owner, L1Slot, L2Slot, L2Table, RefcountTable, Source, Visitor,
};
use crate::storage::ReadStorage;

/// The state of a check.
pub(super) struct Checker<'a, S: ?Sized> {
    pub(super) storage: &'a S,
    pub(super) geometry: Geometry,
    /// Rounded up to sectors, as QEMU counts.
    pub(super) file_length: u64,
    /// Clusters of the file; one more as soon as something refers to the cluster behind its end.
    pub(super) clusters: u64,
    pub(super) counts: Counts,
    pub(super) table: RefcountTable,
    /// Indices of refcount blocks that cannot be read.
    pub(super) unreadable: BTreeSet<u64>,
    pub(super) report: CheckReport,
    pub(super) progress: &'a mut dyn FnMut(f64),
    /// The L2 table that the walk is in.
    current: Current,
}

#[derive(Debug, Default)]
struct Current {
    /// Where the next cluster would lie if the guest's data were in a row; 0 before the first.
    next: u64,
    /// How often the COPIED flags of its entries are judged: as many times as the active L1 table leads to it.
    copied_uses: u64,
}

impl<'a, S: ReadStorage + ?Sized> Checker<'a, S> {
    pub(super) fn new(
        storage: &'a S,
        geometry: Geometry,
        file_length: u64,
        table: RefcountTable,
        report: CheckReport,
        progress: &'a mut dyn FnMut(f64),
    ) -> Result<Self> {
        let clusters = geometry.clusters_for(file_length);
        Ok(Self {
            storage,
            geometry,
            file_length,
            clusters,
            counts: Counts::new(clusters.saturating_add(1))?,
            table,
            unreadable: BTreeSet::new(),
            report,
            progress,
            current: Current::default(),
        })
    }

    /// Counts the clusters of the ranges. The last cluster of the file may be cut short, so a range may reach less
    /// than a cluster beyond the end; one that reaches further is not counted at all.
    fn count(&mut self, reference: &HostReference) -> Result<()> {
        if reference.length == 0 {
            return Ok(());
        }
        let weight = reference.uses.total();
        let size = self.geometry.cluster_size();
        let reach = self.file_length.saturating_add(size);
        // Of a run, those that end before `reach`; each has one cluster, so they begin before the end of the file.
        let fits = if reference.count == 1 {
            u64::from(reference.host_offset.checked_add(reference.length).is_some_and(|end| end < reach))
        } else {
            let room = self.file_length.saturating_sub(reference.host_offset);
            self.geometry.clusters_for(room).min(reference.count)
        };
        if fits > 0 {
            let bytes = reference.length.saturating_add(fits.saturating_sub(1).saturating_mul(size));
            let first = self.cluster(reference.host_offset);
            let last = self.cluster(reference.host_offset.saturating_add(bytes).saturating_sub(1));
            self.counts.add(first, last.saturating_sub(first).saturating_add(1), weight)?;
            self.clusters = self.clusters.max(last.saturating_add(1));
        }
        for index in fits..reference.count {
            let host_offset = reference.host_offset.saturating_add(index.saturating_mul(size));
            self.beyond(reference, index, host_offset);
        }
        Ok(())
    }

    fn beyond(&mut self, reference: &HostReference, index: u64, host_offset: u64) {
        let (target, length) = (reference.target, reference.length);
        let source = reference.source.plus(index, &self.geometry);
        self.find(Severity::Corruption, FindingKind::BeyondEndOfFile, &source, reference.uses.total(), |finding| {
            finding.structure = target;
            finding.host_offset = Some(host_offset);
            finding.message = format!(
                "{target} beyond the end of the file: offset {host_offset:#x}, {length} bytes: {}",
                describe(&source)
            );
        });
    }

    /// How QEMU measures fragmentation: within each L2 table, allocated clusters should follow on each other.
    fn measure(&mut self, reference: &HostReference, slot: &L2Slot) {
        let active = u64::from(slot.table.uses.active);
        let clusters = reference.count.saturating_mul(active);
        let report = &mut self.report;
        report.allocated_clusters = report.allocated_clusters.saturating_add(clusters);
        if reference.target == Structure::CompressedCluster {
            report.compressed_clusters = report.compressed_clusters.saturating_add(clusters);
            report.fragmented_clusters = report.fragmented_clusters.saturating_add(clusters);
            return;
        }
        if self.current.next != 0 && reference.host_offset != self.current.next {
            report.fragmented_clusters = report.fragmented_clusters.saturating_add(active);
        }
        let length = reference.count.saturating_mul(self.geometry.cluster_size());
        self.current.next = reference.host_offset.saturating_add(length);
    }

    /// The COPIED flag says that the refcount is exactly 1; true of the active tables alone.
    fn judge_copied(&mut self, reference: &HostReference, slot: &L2Slot) {
        let L2Entry::Plain { host: Some(host), .. } = slot.entry else { return };
        if self.current.copied_uses == 0 {
            return;
        }
        let in_data_file = reference.target == Structure::DataFile;
        let first = self.cluster(reference.host_offset);
        let sound = if in_data_file {
            host.copied
        } else {
            self.unreadable.is_empty() && self.counts.all_recorded(first, reference.count, host.copied)
        };
        if sound {
            return;
        }
        for index in 0..reference.count {
            let cluster = first.saturating_add(index);
            let one = if in_data_file { Some(true) } else { self.refcount_is_one(cluster) };
            if one.is_some_and(|one| one != host.copied) {
                let uses = self.current.copied_uses;
                let source = reference.source.plus(index, &self.geometry);
                let actual = if in_data_file { Some(1) } else { self.refcount_to_show(cluster) };
                self.copied_finding(&source, cluster, actual, host.copied, uses);
            }
        }
    }

    fn judge_copied_table(&mut self, reference: &HostReference, slot: &L1Slot) {
        if slot.owner != L1Owner::Active || reference.host_offset == 0 {
            return;
        }
        let cluster = self.cluster(reference.host_offset);
        let copied = L1Entry::copied_bit(slot.raw);
        if self.refcount_is_one(cluster).is_some_and(|one| one != copied) {
            let actual = self.refcount_to_show(cluster);
            self.copied_finding(&reference.source, cluster, actual, copied, 1);
        }
    }

    fn copied_finding(&mut self, source: &Source, cluster: u64, actual: Option<u64>, copied: bool, count: u64) {
        let host_offset = self.geometry.host_start(HostCluster::new(cluster)).get();
        self.find(Severity::Corruption, FindingKind::CopiedFlag, source, count, |finding| {
            let state = if copied { "set" } else { "clear" };
            finding.host_offset = Some(host_offset);
            finding.actual = actual;
            finding.message = format!(
                "the COPIED flag is {state}, but the refcount is {}: {}",
                actual.map_or_else(|| String::from("another"), |refcount| refcount.to_string()),
                describe(source)
            );
        });
    }

    fn refcount_block(&mut self, reference: &HostReference) -> Result<()> {
        let cluster = self.cluster(reference.host_offset);
        if cluster >= self.clusters {
            self.find(Severity::Corruption, FindingKind::RefcountBlockOutside, &reference.source, 1, |finding| {
                finding.host_offset = Some(reference.host_offset);
                finding.message = format!("{} leads outside the file", describe(&reference.source));
            });
            return Ok(());
        }
        self.count(reference)?;
        let references = self.counts.references(cluster).min(self.geometry.max_refcount());
        if references != 1 {
            self.find(Severity::Corruption, FindingKind::RefcountBlockShared, &reference.source, 1, |finding| {
                finding.host_offset = Some(reference.host_offset);
                finding.actual = Some(references);
                finding.message =
                    format!("a refcount block has {references} references: {}", describe(&reference.source));
            });
        }
        Ok(())
    }

    fn entry_fault(&mut self, error: EntryError, fault: &Fault) {
        let (severity, kind) = match error {
            EntryError::ReservedBits => (Severity::Corruption, FindingKind::ReservedBits),
            EntryError::Unaligned => (Severity::Corruption, FindingKind::Unaligned),
            EntryError::SubclusterConflict => (Severity::Corruption, FindingKind::SubclusterConflict),
            EntryError::SubclusterWithoutCluster => (Severity::Corruption, FindingKind::SubclusterWithoutCluster),
            EntryError::CompressedInDataFile => (Severity::Corruption, FindingKind::CompressedInDataFile),
            EntryError::CompressedCopied => (Severity::Corruption, FindingKind::CompressedCopied),
            // In an image with data file the entry is wrong as a whole already.
            EntryError::CompressedBitmap if self.geometry.data_file() => {
                (Severity::Warning, FindingKind::CompressedBitmap)
            }
            EntryError::CompressedBitmap => (Severity::Corruption, FindingKind::CompressedBitmap),
            EntryError::DataFileOffset => (Severity::Warning, FindingKind::DataFileOffset),
            EntryError::ZeroInVersion2 => (Severity::Warning, FindingKind::ZeroInVersion2),
            EntryError::ZeroInExtended => (Severity::Warning, FindingKind::ZeroInExtended),
        };
        // QEMU does not open an image with such a bitmap.
        let in_bitmap = matches!(fault.source, Source::BitmapTable { .. });
        self.report.incomplete |= in_bitmap;
        let severity = if in_bitmap { Severity::CheckError } else { severity };
        self.find(severity, kind, &fault.source, fault.uses.total(), |finding| {
            finding.host_offset = Some(fault.host_offset);
            finding.message = format!("{error}: {}", describe(&fault.source));
        });
    }

    /// Adds a finding; its details are made only where it is kept.
    pub(super) fn find(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        source: &Source,
        count: u64,
        details: impl FnOnce(&mut Finding),
    ) {
        let place = Place::of(source, &self.geometry);
        let mut finding = Finding {
            severity,
            kind,
            structure: place.structure,
            host_offset: None,
            guest_offset: place.guest_offset,
            index: place.index,
            recorded: place.raw,
            actual: None,
            count,
            message: String::new(),
        };
        if self.report.has_room() {
            details(&mut finding);
        }
        self.report.add(finding);
    }

    /// Whether the recorded refcount is exactly 1; `None` where it cannot be read.
    fn refcount_is_one(&self, cluster: u64) -> Option<bool> {
        match self.counts.recorded(cluster) {
            Some(Recorded::One) => Some(true),
            Some(Recorded::More) => Some(false),
            Some(Recorded::Zero) => {
                let block = self.geometry.refcount_table_index(HostCluster::new(cluster));
                (!self.unreadable.contains(&block)).then_some(false)
            }
            None => self.refcount(cluster).ok().map(|refcount| refcount == 1),
        }
    }

    /// The refcount for a finding; not read where none is kept any more.
    fn refcount_to_show(&self, cluster: u64) -> Option<u64> {
        self.report.has_room().then(|| self.refcount(cluster).ok()).flatten()
    }

    fn refcount(&self, cluster: u64) -> Result<u64> {
        self.table.refcount(self.storage, HostCluster::new(cluster))
    }

    fn cluster(&self, host_offset: u64) -> u64 {
        self.geometry.host_cluster(HostOffset::new(host_offset)).get()
    }
}

impl<S: ReadStorage + ?Sized> Visitor for Checker<'_, S> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        match &reference.source {
            Source::RefcountTable { .. } => return self.refcount_block(reference),
            Source::L2(slot) => {
                self.measure(reference, slot);
                self.judge_copied(reference, slot);
            }
            Source::L1(slot) => self.judge_copied_table(reference, slot),
            Source::Header
            | Source::HeaderExtension
            | Source::SnapshotTable { .. }
            | Source::BitmapDirectory { .. }
            | Source::BitmapTable { .. } => {}
        }
        if reference.target == Structure::DataFile { Ok(()) } else { self.count(reference) }
    }

    fn fault(&mut self, fault: &Fault) -> Result<()> {
        self.report.incomplete |= fault.kind.hides_references();
        let (severity, kind, message) = match &fault.kind {
            FaultKind::Entry(error) => {
                self.entry_fault(*error, fault);
                return Ok(());
            }
            FaultKind::Unreadable(error) => (Severity::CheckError, FindingKind::Unreadable, error.to_string()),
            FaultKind::SnapshotTable(error) => (Severity::CheckError, FindingKind::SnapshotTable, error.to_string()),
            FaultKind::Bitmap(error) => (Severity::CheckError, FindingKind::Bitmap, error.to_string()),
            FaultKind::SnapshotIncomplete => (
                Severity::Corruption,
                FindingKind::SnapshotIncomplete,
                String::from("the snapshot's extra data are incomplete"),
            ),
            FaultKind::SnapshotL1Unaligned => (
                Severity::Corruption,
                FindingKind::SnapshotL1Table,
                String::from("the snapshot's L1 table is not aligned"),
            ),
            FaultKind::SnapshotL1TooLarge { entries } => (
                Severity::Corruption,
                FindingKind::SnapshotL1Table,
                format!("the snapshot's L1 table has {entries} entries"),
            ),
            FaultKind::SnapshotsWithDataFile { count } => {
                let what = format!("{count} snapshots in an image with an external data file");
                (Severity::Corruption, FindingKind::SnapshotsWithDataFile, what)
            }
        };
        self.find(severity, kind, &fault.source, fault.uses.total(), |finding| {
            finding.host_offset = Some(fault.host_offset);
            finding.message = format!("{message}: {}", describe(&fault.source));
        });
        Ok(())
    }

    fn l2_table(&mut self, table: &L2Table) -> Result<()> {
        let readable = table.host_offset != 0 && self.refcount_is_one(self.cluster(table.host_offset)).is_some();
        let copied_uses = if readable { table.uses.active.into() } else { 0 };
        self.current = Current { next: 0, copied_uses };
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        (self.progress)(REFCOUNTS_SHARE + (WALK_END - REFCOUNTS_SHARE) * super::part(done, total));
        Ok(())
    }
}

impl Source {
    /// The source of the reference that many clusters further in a run.
    fn plus(&self, clusters: u64, geometry: &Geometry) -> Self {
        match self {
            Self::L2(slot) => {
                let entry = L2Entry::advanced(slot.raw, clusters, geometry);
                Self::L2(L2Slot { index: slot.index.saturating_add(clusters), raw: entry, ..*slot })
            }
            _ => *self,
        }
    }
}

/// What of a source goes into a finding.
struct Place {
    structure: Structure,
    guest_offset: Option<u64>,
    index: Option<u64>,
    raw: Option<u64>,
}

impl Place {
    fn of(source: &Source, geometry: &Geometry) -> Self {
        let place = |structure, index, raw| Self { structure, guest_offset: None, index, raw };
        match source {
            Source::Header => place(Structure::Header, None, None),
            Source::HeaderExtension => place(Structure::HeaderExtension, None, None),
            Source::RefcountTable { index, raw } => place(Structure::RefcountTable, Some(*index), Some(*raw)),
            Source::SnapshotTable { index } => place(Structure::SnapshotTable, Some(*index), None),
            Source::L1(slot) => Self {
                guest_offset: Some(geometry.guest_start(geometry.cluster_at(slot.index, 0)).get()),
                ..place(Structure::L1Table, Some(slot.index), Some(slot.raw))
            },
            Source::L2(slot) => Self {
                guest_offset: Some(slot.table.guest_offset(slot.index, geometry)),
                ..place(Structure::L2Table, Some(slot.index), Some(slot.raw.descriptor))
            },
            Source::BitmapDirectory { index } => place(Structure::BitmapDirectory, Some(*index), None),
            Source::BitmapTable { index, raw, .. } => place(Structure::BitmapTable, Some(*index), Some(*raw)),
        }
    }
}

/// A source in words.
fn describe(source: &Source) -> String {
    let owner = |owner: L1Owner| match owner {
        L1Owner::Active => String::from("active"),
        L1Owner::Snapshot(index) => format!("snapshot {index}'s"),
    };
    match source {
        Source::Header => String::from("header"),
        Source::HeaderExtension => String::from("header extension"),
        Source::RefcountTable { index, raw } => format!("refcount table entry {index} ({raw:#x})"),
        Source::SnapshotTable { index } => format!("snapshot table entry {index}"),
        Source::L1(slot) => format!("{} L1 entry {} ({:#x})", owner(slot.owner), slot.index, slot.raw),
        Source::L2(slot) => {
            let table = slot.table;
            let bits = slot.raw.descriptor;
            format!("L2 entry {} ({bits:#x}) under {} L1 entry {}", slot.index, owner(table.owner), table.l1_index)
        }
        Source::BitmapDirectory { index } => format!("bitmap {index}"),
        Source::BitmapTable { bitmap, index, raw } => {
            format!("entry {index} ({raw:#x}) of the table of bitmap {bitmap}")
        }
    }
}
