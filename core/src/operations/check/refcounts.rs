//! The recorded refcounts: read before the walk, compared after it.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::counts::Recorded;
use super::references::Checker;
use super::{Finding, FindingKind, REFCOUNTS_SHARE, Severity, part};
use crate::error::{Result, Structure};
use crate::format::{Geometry, HostCluster, counted, read_refcount};
use crate::operations::walk::{BlockPlace, RefcountTable, TableReader};
use crate::storage::ReadStorage;

impl<S: ReadStorage + ?Sized> Checker<'_, S> {
    /// Reads every refcount block that speaks for a cluster of the file.
    pub(super) fn record_refcounts(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let per_block = geometry.refcount_block_entries();
        let blocks = self.counts.clusters().div_ceil(per_block.max(1));
        let mut reader = TableReader::new(self.storage, self.file_length);
        let mut bytes = vec![0u8; geometry.cluster_len()];
        for index in 0..blocks {
            let read = match self.table.block(index) {
                BlockPlace::None => continue,
                BlockPlace::At(offset) => reader.read(offset.get(), &mut bytes).ok(),
                BlockPlace::Unaligned(_) => None,
            };
            match read {
                Some(false) => {}
                Some(true) => {
                    let first = index.saturating_mul(per_block);
                    if geometry.refcount_order() == 4 {
                        let (words, _) = bytes.as_chunks::<2>();
                        self.counts.record(first, words.iter().map(|word| u16::from_be_bytes(*word).into()))?;
                    } else {
                        let order = geometry.refcount_order();
                        let refcounts = (0..per_block).map(|at| read_refcount(&bytes, at, order).unwrap_or(0));
                        self.counts.record(first, refcounts)?;
                    }
                }
                None => {
                    self.unreadable.insert(index);
                }
            }
            (self.progress)(REFCOUNTS_SHARE * part(index, blocks));
        }
        Ok(())
    }

    /// Compares the references with the refcounts, cluster by cluster.
    pub(super) fn compare(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let per_block = geometry.refcount_block_entries();
        for &index in &self.unreadable {
            let first = index.saturating_mul(per_block);
            let count = self.clusters.saturating_sub(first).min(per_block);
            self.report.add(Finding {
                severity: Severity::CheckError,
                kind: FindingKind::RefcountUnreadable,
                structure: Structure::RefcountBlock,
                host_offset: Some(geometry.host_start(HostCluster::new(first)).get()),
                guest_offset: None,
                index: Some(index),
                recorded: None,
                actual: None,
                count,
                message: format!("the refcounts of {count} clusters cannot be read: refcount block {index}"),
            });
        }
        let mut pending = Pending::default();
        let mut highest = None;
        let mut blocks = BlockReader::new(self.storage, self.file_length, geometry);
        let (counts, table, unreadable, report) = (&self.counts, &self.table, &self.unreadable, &mut self.report);
        let sound = counts.visit_unsound(self.clusters, |cluster, recorded, references| {
            let known = !unreadable.contains(&geometry.refcount_table_index(HostCluster::new(cluster)));
            let recorded = match recorded {
                _ if !known => None,
                Recorded::Zero => Some(0),
                Recorded::One => Some(1),
                Recorded::More => Some(blocks.refcount(table, cluster)?),
            };
            if known {
                highest = Some(cluster);
            }
            let judgement = Judgement { cluster, recorded, references };
            pending.push(judgement, &geometry, report);
            Ok(())
        })?;
        pending.flush(&geometry, report);
        // The header's cluster is in use, whatever else is known.
        let end = highest.max(sound).unwrap_or(0).saturating_add(1);
        self.report.image_end_offset = geometry.host_start(HostCluster::new(end)).get();
        Ok(())
    }
}

/// A cluster whose refcount has to be judged.
#[derive(Debug, Clone, Copy)]
struct Judgement {
    cluster: u64,
    /// `None` where it cannot be read.
    recorded: Option<u64>,
    references: u64,
}

/// Clusters in a row with the same numbers become one finding.
#[derive(Debug, Default)]
struct Pending {
    run: Option<(Judgement, u64)>,
}

impl Pending {
    fn push(&mut self, next: Judgement, geometry: &Geometry, report: &mut super::CheckReport) {
        if let Some((first, count)) = &mut self.run
            && first.cluster.checked_add(*count) == Some(next.cluster)
            && (first.recorded, first.references) == (next.recorded, next.references)
        {
            *count = count.saturating_add(1);
            return;
        }
        self.flush(geometry, report);
        self.run = Some((next, 1));
    }

    fn flush(&mut self, geometry: &Geometry, report: &mut super::CheckReport) {
        let Some((Judgement { cluster, recorded, references }, clusters)) = self.run.take() else { return };
        let most = geometry.max_refcount();
        let (incomplete, report_has_room) = (report.incomplete, report.has_room());
        let mut add = |severity, kind, count, message: Option<String>| {
            report.add(Finding {
                severity,
                kind,
                structure: Structure::RefcountBlock,
                host_offset: Some(geometry.host_start(HostCluster::new(cluster)).get()),
                guest_offset: None,
                index: Some(cluster),
                recorded,
                actual: Some(references),
                count,
                message: message.unwrap_or_default(),
            });
        };
        // Images can be wrong in every cluster: words only for findings that are kept.
        let words = report_has_room.then(|| {
            if clusters == 1 {
                format!("cluster {cluster} has")
            } else {
                format!("{clusters} clusters from cluster {cluster} on have")
            }
        });
        let words = words.as_deref();
        if let Some(excess) = references.checked_sub(most).filter(|&excess| excess > 0) {
            let message =
                words.map(|words| format!("{words} {references} references, a refcount can be {most} at most"));
            add(Severity::Corruption, FindingKind::RefcountOverflow, excess.saturating_mul(clusters), message);
        }
        let Some(recorded) = recorded else { return };
        let message =
            || words.map(|words| format!("{words} refcount {recorded}, but {}", counted(references, "reference")));
        match recorded.cmp(&references.min(most)) {
            core::cmp::Ordering::Less => add(Severity::Corruption, FindingKind::RefcountTooLow, clusters, message()),
            core::cmp::Ordering::Equal => {}
            core::cmp::Ordering::Greater => {
                if !incomplete {
                    add(Severity::Leak, FindingKind::RefcountTooHigh, clusters, message());
                }
            }
        }
    }
}

/// Refcounts in ascending order of clusters: keeps the last block.
struct BlockReader<'a, S: ?Sized> {
    reader: TableReader<'a, S>,
    geometry: Geometry,
    bytes: Vec<u8>,
    index: Option<u64>,
}

impl<'a, S: ReadStorage + ?Sized> BlockReader<'a, S> {
    fn new(storage: &'a S, file_length: u64, geometry: Geometry) -> Self {
        Self { reader: TableReader::new(storage, file_length), geometry, bytes: Vec::new(), index: None }
    }

    fn refcount(&mut self, table: &RefcountTable, cluster: u64) -> Result<u64> {
        let cluster = HostCluster::new(cluster);
        let index = self.geometry.refcount_table_index(cluster);
        if self.index != Some(index) {
            self.bytes.clear();
            self.bytes.resize(self.geometry.cluster_len(), 0);
            if let BlockPlace::At(offset) = table.block(index) {
                self.reader.read(offset.get(), &mut self.bytes)?;
            }
            self.index = Some(index);
        }
        let in_block = self.geometry.refcount_block_index(cluster);
        Ok(read_refcount(&self.bytes, in_block, self.geometry.refcount_order()).unwrap_or(0))
    }
}
