//! What each way of giving space back would return, and how large the file can get. docs/analyze.md has the formulas.

use super::ledger::{Ledger, SpaceBytes, SpaceClass};
use crate::format::Geometry;

/// What one way of giving space back returns, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Gain {
    /// What the host gets back.
    pub host_bytes: u64,
    /// Further bytes of which the host could not tell whether it holds them.
    pub host_bytes_unknown: u64,
    /// By how much the file gets shorter.
    pub file_bytes: u64,
}

impl Gain {
    pub(super) fn in_place(space: SpaceBytes) -> Self {
        Self { host_bytes: space.held, host_bytes_unknown: space.unknown, file_bytes: 0 }
    }
}

/// The ways of giving space back. Those before `compact` change the file in place, touch different bytes, and so add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reclaim {
    /// Punching holes for free clusters inside the file.
    pub punch_free: Gain,
    /// Punching holes for space that is kept for clusters without data; their mapping stays.
    pub discard_retained: Gain,
    /// Cutting off what lies beyond the last cluster in use.
    pub truncate_end: Gain,
    /// Repairing leaks, and punching holes for the clusters that become free.
    pub repair_leaks: Gain,
    /// Deleting all snapshots, and punching holes for the clusters that become free.
    pub drop_snapshots: Gain,
    /// Unmapping clusters of live data that hold nothing but zeros. Only where reading the data was asked for.
    pub zero_filled: Option<Gain>,
    /// Rewriting the image without what it does not need, snapshots kept.
    pub compact: Compacted,
    /// Rewriting the image without what it does not need, and without its snapshots.
    pub compact_without_snapshots: Compacted,
}

/// What a rewritten image would be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Compacted {
    /// Its length in bytes.
    pub file_length: u64,
    /// What it gives back against the file as it is.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub gain: Gain,
}

/// How large the file can get while the guest writes (and takes no snapshot, and is not resized). In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WorstCase {
    /// Length of the file once every guest cluster holds data of its own, if freed clusters are used again. Never
    /// less than the length of the file now.
    pub fully_written: u64,
    /// The same once all snapshots were deleted.
    pub fully_written_without_snapshots: u64,
    /// Length of the file after every guest cluster was written once, if no free cluster is used again: the bound for
    /// a file whose gaps are too small for the requests that come.
    pub without_reuse: u64,
    /// Length of the external data file, where there is one.
    pub data_file: Option<u64>,
}

/// Clusters counted on the way, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Header, active L1 table, bitmap metadata, encryption header.
    pub(super) fixed: u64,
    /// Snapshot table and snapshots' L1 tables.
    pub(super) snapshot: u64,
    pub(super) refcount_table: u64,
    pub(super) refcount_blocks: u64,
    /// L2 tables under the active L1 table.
    pub(super) l2: u64,
    /// L2 tables under snapshots' L1 tables.
    pub(super) snapshot_l2: u64,
    /// L2 tables under both.
    pub(super) shared_l2: u64,
    /// L2 tables of the active L1 table that map nothing of the virtual disk (state of a VM).
    pub(super) l2_beyond: u64,
    pub(super) bitmap_data: u64,
    /// Clusters that all bitmaps together can have.
    pub(super) bitmap_data_at_most: u64,
    /// Host clusters of the active disk with at least one part of data, not compressed.
    pub(super) live: u64,
    /// Host clusters of the active disk that can be written in place.
    pub(super) in_place: u64,
    /// Host clusters of the active disk beyond the virtual size.
    pub(super) beyond_size: u64,
    /// Host clusters that snapshots use for data that is not compressed, live or not.
    pub(super) snapshot_plain: u64,
    /// Host clusters of which only snapshots use some part, not compressed.
    pub(super) only_snapshot_plain: u64,
    /// Host clusters that snapshots use for compressed data.
    pub(super) snapshot_compressed: u64,
    pub(super) leaked: u64,
    /// Bytes of compressed streams of the active disk.
    pub(super) stream_bytes: u64,
    /// Bytes of compressed streams of the active disk and of snapshots together.
    pub(super) all_stream_bytes: u64,
    /// Whole clusters, and bytes of those, that are retained without data.
    pub(super) retained: SpaceBytes,
}

impl Reclaim {
    pub(super) fn new(ledger: &Ledger, counts: &Counts, geometry: &Geometry) -> Self {
        let of = |class| Gain::in_place(ledger.of(class));
        let snapshots = ledger.of(SpaceClass::OnlyInSnapshots).plus(ledger.of(SpaceClass::SnapshotMetadata));
        let beyond = ledger.of(SpaceClass::BeyondLastUsed);
        Self {
            punch_free: of(SpaceClass::Free),
            discard_retained: of(SpaceClass::ZeroRetained),
            truncate_end: Gain { file_bytes: beyond.bytes, ..Gain::in_place(beyond) },
            repair_leaks: of(SpaceClass::Leaked),
            drop_snapshots: Gain::in_place(snapshots),
            zero_filled: None,
            compact: Self::compacted(ledger, counts, geometry, true),
            compact_without_snapshots: Self::compacted(ledger, counts, geometry, false),
        }
    }

    fn compacted(ledger: &Ledger, counts: &Counts, geometry: &Geometry, snapshots: bool) -> Compacted {
        let mut clusters = counts.fixed.saturating_add(counts.l2).saturating_add(counts.bitmap_data);
        clusters = clusters.saturating_add(counts.live);
        let mut dropped =
            [SpaceClass::CompressedSlack, SpaceClass::Leaked, SpaceClass::Free, SpaceClass::BeyondLastUsed]
                .into_iter()
                .fold(counts.retained, |sum, class| sum.plus(ledger.of(class)));
        let streams = if snapshots {
            let only_l2 = counts.snapshot_l2.saturating_sub(counts.shared_l2);
            clusters = clusters.saturating_add(counts.snapshot).saturating_add(only_l2);
            clusters = clusters.saturating_add(counts.only_snapshot_plain);
            counts.all_stream_bytes
        } else {
            dropped = dropped.plus(ledger.of(SpaceClass::OnlyInSnapshots));
            dropped = dropped.plus(ledger.of(SpaceClass::SnapshotMetadata));
            counts.stream_bytes
        };
        clusters = clusters.saturating_add(geometry.clusters_for(streams));
        let file_length = with_refcounts(geometry, clusters, 0, 0).saturating_mul(geometry.cluster_size());
        // A file that is denser than whole clusters allow stays as it is.
        let file_length = file_length.min(ledger.file_length);
        let file_bytes = ledger.file_length.saturating_sub(file_length);
        Compacted { file_length, gain: Gain { file_bytes, ..Gain::in_place(dropped) } }
    }

    /// The sum of everything that can be had in place without deleting a snapshot or reading data.
    #[must_use]
    pub fn in_place(&self) -> Gain {
        let parts = [self.punch_free, self.discard_retained, self.truncate_end, self.repair_leaks];
        parts.into_iter().fold(Gain::default(), |sum, gain| Gain {
            host_bytes: sum.host_bytes.saturating_add(gain.host_bytes),
            host_bytes_unknown: sum.host_bytes_unknown.saturating_add(gain.host_bytes_unknown),
            file_bytes: sum.file_bytes.saturating_add(gain.file_bytes),
        })
    }
}

impl WorstCase {
    pub(super) fn new(file_length: u64, counts: &Counts, geometry: &Geometry) -> Self {
        let (blocks, table) = (counts.refcount_blocks, counts.refcount_table);
        let guest = if geometry.data_file() { 0 } else { geometry.guest_clusters() };
        let bitmaps = counts.bitmap_data.max(counts.bitmap_data_at_most);
        let alone =
            [counts.fixed, guest, geometry.l1_entries(), counts.l2_beyond, counts.beyond_size, bitmaps, counts.leaked];
        let alone = sum(&alone);
        let snapshots = sum(&[counts.snapshot, counts.snapshot_l2, counts.snapshot_plain, counts.snapshot_compressed]);
        let bytes = |clusters| {
            let clusters = with_refcounts(geometry, clusters, blocks, table);
            clusters.saturating_mul(geometry.cluster_size()).max(file_length)
        };
        let own_l2 = counts.l2.saturating_sub(counts.shared_l2).saturating_sub(counts.l2_beyond);
        let added = sum(&[
            guest.saturating_sub(counts.in_place),
            geometry.l1_entries().saturating_sub(own_l2),
            bitmaps.saturating_sub(counts.bitmap_data),
        ]);
        let now = geometry.clusters_for(file_length).saturating_sub(blocks).saturating_sub(table);
        Self {
            fully_written: bytes(alone.saturating_add(snapshots)),
            fully_written_without_snapshots: bytes(alone),
            without_reuse: if added == 0 { file_length } else { bytes(now.saturating_add(added)) },
            data_file: geometry.data_file().then(|| geometry.virtual_size()),
        }
    }
}

/// `clusters` and the refcount blocks and table that count them and themselves; at least `blocks` and `table` of these.
pub(super) fn with_refcounts(geometry: &Geometry, clusters: u64, blocks: u64, table: u64) -> u64 {
    let (mut blocks, mut table) = (blocks, table);
    loop {
        let total = sum(&[clusters, blocks, table]);
        let more_blocks = total.div_ceil(geometry.refcount_block_entries().max(1)).max(blocks);
        let more_table = geometry.clusters_for(more_blocks.saturating_mul(8)).max(table);
        // A block counts at least 64 clusters, so every round adds less than the one before and the loop ends.
        if (more_blocks, more_table) == (blocks, table) {
            return total;
        }
        (blocks, table) = (more_blocks, more_table);
    }
}

fn sum(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
}
