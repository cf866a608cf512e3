//! What a replay found: plain values.

use alloc::string::String;
use alloc::vec::Vec;

use super::LabConfig;
use super::advice::Advice;

/// Several replays of one trace.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LabReport {
    /// What was replayed.
    pub trace: TraceSummary,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// One for each configuration.
    pub runs: Vec<LabRun>,
    /// What the numbers speak for, if that was asked for.
    pub advice: Option<Advice>,
}

/// The size of a trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TraceSummary {
    /// Where it comes from, for titles.
    pub name: String,
    /// Operations.
    pub operations: u64,
    /// Lines that were not replayed, such as reads.
    pub ignored: u64,
    /// Writes of data.
    pub writes: u64,
    /// Bytes that these wrote.
    pub written_bytes: u64,
    /// Write-zeroes.
    pub write_zeroes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes that these covered.
    pub discarded_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Marks.
    pub marks: u64,
}

/// One replay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LabRun {
    /// How the image was made and opened.
    pub config: LabConfig,
    /// The image at the beginning, along the way and at the end.
    pub samples: Vec<Sample>,
    /// The image at the end.
    pub end: Sample,
    /// The longest that the file was in any sample, in bytes.
    pub peak_file_length: u64,
    /// Free gaps of the file at the end, by size.
    pub gaps: Vec<GapBucket>,
    /// Incremental backups: one at each mark, one at the end.
    pub backups: Vec<Backup>,
}

/// An image at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Sample {
    /// Operations replayed so far.
    pub operation: u64,
    /// Bytes of the file (with a data file: of both).
    pub file_length: u64,
    /// The same as a share of the virtual size, in parts per million.
    pub file_ppm: u64,
    /// Bytes that the host has allocated for the file.
    pub host_bytes: u64,
    /// Bytes of data that the guest can read.
    pub live_bytes: u64,
    /// Bytes of clusters that are mapped, but hold nothing that the guest can read.
    pub retained_bytes: u64,
    /// Free bytes in front of the last cluster in use.
    pub free_bytes: u64,
    /// Maximal runs of free clusters that make up these bytes.
    pub gaps: u64,
    /// Bytes of the largest of them.
    pub largest_gap: u64,
    /// Guest clusters that have a host cluster or are compressed.
    pub allocated_clusters: u64,
    /// Those of them that do not lie behind the one before: what `qemu-img check` calls fragmented.
    pub discontinuities: u64,
    /// Runs that are contiguous in the guest and in the file at once, within each L2 table.
    pub runs: u64,
    /// Writes of metadata so far.
    pub metadata_writes: u64,
    /// Bytes that these wrote.
    pub metadata_bytes: u64,
    /// Barriers so far (`fdatasync` on a file).
    pub barriers: u64,
    /// Discards that reached the host so far.
    pub host_discards: u64,
    /// Bytes that these covered.
    pub host_discarded_bytes: u64,
}

/// Free gaps of a size from `from` up to, not including, twice as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GapBucket {
    /// Smallest size in bytes: a power of two.
    pub from: u64,
    /// Gaps.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// An incremental backup by dirty bitmap, with the granularity of a cluster: what changed since the mark before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Backup {
    /// The name of the mark, or `end`.
    pub name: String,
    /// Operations replayed so far.
    pub operation: u64,
    /// Dirty bytes that hold data: what the backup has to carry.
    pub data_bytes: u64,
    /// Dirty bytes that read as zeros and keep a host cluster.
    pub zero_bytes: u64,
    /// Dirty bytes without a host cluster: discarded, or zero.
    pub discarded_bytes: u64,
}
