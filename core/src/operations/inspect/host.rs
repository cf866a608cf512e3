//! Who owns a byte of the file.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Inspector, Shown};
use crate::error::{Result, Structure};
use crate::format::HostOffset;
use crate::operations::walk::{Fault, HostReference, L1Owner, Source, Visitor, Walk};
use crate::storage::{ReadStorage, StorageExtentKind};

/// Owners that are listed one by one.
pub const MAX_OWNERS: usize = 100;

/// What is known of one byte of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HostReport {
    /// The byte asked for.
    pub host_offset: u64,
    /// Number of its cluster.
    pub host_cluster: u64,
    /// First byte of its cluster.
    pub cluster_offset: u64,
    /// It lies at or beyond the end of the file.
    pub beyond_end: bool,
    /// Whether the host holds the byte.
    pub host: Shown<StorageExtentKind>,
    /// The refcount of the cluster.
    pub refcount: Shown<u64>,
    /// What refers to the cluster.
    pub owners: Shown<Vec<Owner>>,
    /// References to the cluster, those that are not listed too; a shared table counts as often as it is shared.
    pub references: u64,
    /// The walk through the image met faults: owners may be missing.
    pub faults: u64,
}

/// Something that refers to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Owner {
    /// What the cluster is for it.
    pub structure: Structure,
    /// First byte of what it refers to.
    pub host_offset: u64,
    /// Bytes of what it refers to: of the one cluster, where it refers to a run.
    pub length: u64,
    /// What refers to it, in words.
    pub source: String,
    /// The guest byte that is stored at the beginning of the cluster; for data.
    pub guest_offset: Option<u64>,
    /// References from the active image.
    pub active_uses: u32,
    /// References from snapshots.
    pub snapshot_uses: u32,
    /// The byte asked for is within what it refers to; else it shares the cluster only.
    pub contains_offset: bool,
}

impl<S: ReadStorage + ?Sized> Inspector<'_, S> {
    /// Who owns a byte of the file, and its refcount. Goes through the whole image.
    #[must_use]
    pub fn host(&self, offset: u64) -> Shown<HostReport> {
        self.host_report(offset).into()
    }

    fn host_report(&self, offset: u64) -> Result<HostReport> {
        let geometry = *self.geometry()?;
        let cluster = geometry.host_cluster(HostOffset::new(offset));
        let cluster_offset = geometry.align_down(offset);
        let mut search = Search {
            offset,
            cluster: (cluster_offset, cluster_offset.saturating_add(geometry.cluster_size())),
            cluster_size: geometry.cluster_size(),
            coverage: geometry.l2_coverage(),
            owners: Vec::new(),
            references: 0,
            faults: 0,
        };
        let walked = self.header_area().and_then(|area| Walk::new(self.storage, area)?.run(&mut search));
        let owners = core::mem::take(&mut search.owners);
        Ok(HostReport {
            host_offset: offset,
            host_cluster: cluster.get(),
            cluster_offset,
            beyond_end: offset >= self.file_length,
            host: self.storage.next_extent(offset).map(|extent| extent.kind).map_err(Into::into).into(),
            refcount: self.refcount_of(offset).into(),
            owners: walked.map(|()| owners).into(),
            references: search.references,
            faults: search.faults,
        })
    }
}

struct Search {
    offset: u64,
    cluster: (u64, u64),
    cluster_size: u64,
    /// Guest bytes of one L2 table.
    coverage: u64,
    owners: Vec<Owner>,
    references: u64,
    faults: u64,
}

impl Visitor for Search {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        let all = reference.length.saturating_mul(reference.count);
        let end = reference.host_offset.saturating_add(all);
        // What lies in the data file has other offsets.
        if reference.target == Structure::DataFile || end <= self.cluster.0 || reference.host_offset >= self.cluster.1 {
            return Ok(());
        }
        self.references = self.references.saturating_add(reference.uses.total());
        if self.owners.len() >= MAX_OWNERS {
            return Ok(());
        }
        let index = self.cluster.0.saturating_sub(reference.host_offset).checked_div(reference.length).unwrap_or(0);
        let index = if reference.count > 1 { index } else { 0 };
        let host_offset = reference.host_offset.saturating_add(index.saturating_mul(reference.length));
        let contains = (host_offset..host_offset.saturating_add(reference.length)).contains(&self.offset);
        self.owners.push(Owner {
            structure: reference.target,
            host_offset,
            length: reference.length,
            source: describe(&reference.source, index),
            guest_offset: self.guest_offset(&reference.source, index),
            active_uses: reference.uses.active,
            snapshot_uses: reference.uses.snapshots,
            contains_offset: contains,
        });
        Ok(())
    }

    fn fault(&mut self, _: &Fault) -> Result<()> {
        self.faults = self.faults.saturating_add(1);
        Ok(())
    }
}

impl Search {
    fn guest_offset(&self, source: &Source, more: u64) -> Option<u64> {
        let Source::L2(slot) = source else { return None };
        let table = slot.table.l1_index.saturating_mul(self.coverage);
        Some(table.saturating_add(slot.index.saturating_add(more).saturating_mul(self.cluster_size)))
    }
}

/// A source in words; `more` entries behind the one that it names.
fn describe(source: &Source, more: u64) -> String {
    let l1 = |owner: L1Owner| match owner {
        L1Owner::Active => "active L1 table".to_string(),
        L1Owner::Snapshot(index) => format!("L1 table of snapshot {index}"),
    };
    match source {
        Source::Header => "header".into(),
        Source::HeaderExtension => "header extension".into(),
        Source::RefcountTable { index, .. } => format!("refcount table, entry {index}"),
        Source::SnapshotTable { index } => format!("snapshot table, entry {index}"),
        Source::L1(slot) => format!("{}, entry {}", l1(slot.owner), slot.index),
        Source::L2(slot) => {
            let (table, index) = (slot.table, slot.index.saturating_add(more));
            let owner = l1(table.owner);
            format!("L2 table at {:#x} ({owner}, entry {}), entry {index}", table.host_offset, table.l1_index)
        }
        Source::BitmapDirectory { index } => format!("bitmap directory, entry {index}"),
        Source::BitmapTable { bitmap, index, .. } => format!("table of bitmap {bitmap}, entry {index}"),
    }
}
