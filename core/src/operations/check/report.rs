//! What a check found.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::error::Structure;

/// Findings that a report keeps; the counters count all.
pub const MAX_FINDINGS: usize = 1000;

/// What a check found. The counters are those of `qemu-img check`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckReport {
    /// Errors that endanger data.
    pub corruptions: u64,
    /// Clusters whose refcount is higher than the references to them: lost space.
    pub leaks: u64,
    /// What could not be checked.
    pub check_errors: u64,
    /// What breaks the specification but neither QEMU nor reading minds; not among the corruptions.
    pub warnings: u64,
    /// References are missing because something could not be read: leaks are not reported then.
    pub incomplete: bool,
    /// The end of the last cluster that is in use, in bytes.
    pub image_end_offset: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Guest clusters that have a host cluster, compressed ones included, through the active L1 table.
    pub allocated_clusters: u64,
    /// Allocated clusters that do not follow on the one before them in their L2 table; and every compressed one.
    pub fragmented_clusters: u64,
    /// Compressed guest clusters.
    pub compressed_clusters: u64,
    /// The first [`MAX_FINDINGS`] findings.
    pub findings: Vec<Finding>,
    /// Findings beyond these.
    pub findings_omitted: u64,
}

impl CheckReport {
    /// Nothing is wrong, and everything could be checked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        let counter = match finding.severity {
            Severity::Corruption => &mut self.corruptions,
            Severity::Leak => &mut self.leaks,
            Severity::CheckError => &mut self.check_errors,
            Severity::Warning => &mut self.warnings,
        };
        *counter = counter.saturating_add(finding.count);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.findings_omitted = self.findings_omitted.saturating_add(1);
        }
    }

    /// Whether another finding would be kept: saves making its message.
    pub(super) fn has_room(&self) -> bool {
        self.findings.len() < MAX_FINDINGS
    }
}

/// How bad it is; also which counter it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Severity {
    /// Data are in danger.
    Corruption,
    /// Space is lost.
    Leak,
    /// Something could not be checked.
    CheckError,
    /// Against the specification, without danger.
    Warning,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FindingKind {
    /// The refcount is higher than the references.
    RefcountTooHigh,
    /// The refcount is lower than the references: the cluster may be given away while in use.
    RefcountTooLow,
    /// There are more references than a refcount of this width can hold.
    RefcountOverflow,
    /// The refcount could not be read.
    RefcountUnreadable,
    /// The COPIED flag does not fit the refcount.
    CopiedFlag,
    /// Reserved bits are set.
    ReservedBits,
    /// An offset is not aligned to a cluster.
    Unaligned,
    /// A reference leads beyond the end of the file.
    BeyondEndOfFile,
    /// A refcount block lies outside the file.
    RefcountBlockOutside,
    /// A refcount block is also used as something else.
    RefcountBlockShared,
    /// A compressed cluster has the COPIED flag.
    CompressedCopied,
    /// A compressed cluster has a subcluster bitmap.
    CompressedBitmap,
    /// A compressed cluster in an image with an external data file.
    CompressedInDataFile,
    /// A subcluster is marked both allocated and zero.
    SubclusterConflict,
    /// Subclusters are allocated without a host cluster.
    SubclusterWithoutCluster,
    /// The zero flag in an image of version 2.
    ZeroInVersion2,
    /// The zero flag in an extended L2 entry.
    ZeroInExtended,
    /// The offset in the data file differs from the guest offset.
    DataFileOffset,
    /// A snapshot lacks extra data.
    SnapshotIncomplete,
    /// A snapshot's L1 table is not aligned or too large.
    SnapshotL1Table,
    /// Snapshots in an image with an external data file.
    SnapshotsWithDataFile,
    /// The snapshot table cannot be followed.
    SnapshotTable,
    /// A bitmap, or the bitmap directory, cannot be followed.
    Bitmap,
    /// A table could not be read.
    Unreadable,
    /// A limit on time or memory ended the check.
    Limit,
    /// Two structures lie in one place. Only repair tells it so: a check counts references.
    Overlap,
    /// A field of the header is wrong.
    HeaderField,
    /// The image is marked dirty or corrupt.
    Mark,
    /// An L2 table that nothing leads to.
    OrphanedTable,
}

/// One thing that is wrong, or several of a kind in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: FindingKind,
    /// The structure that is wrong; for refcounts, the refcount block.
    pub structure: Structure,
    /// Where in the file, in bytes: the cluster, or where a broken entry leads.
    pub host_offset: Option<u64>,
    /// Where in the virtual disk, in bytes.
    pub guest_offset: Option<u64>,
    /// Index of the entry in its table.
    pub index: Option<u64>,
    /// What the image says: a refcount, or the bits of an entry.
    pub recorded: Option<u64>,
    /// What is so: the number of references, or the refcount.
    pub actual: Option<u64>,
    /// How many it stands for in the counter of its severity: clusters in a row, or ways that lead here.
    pub count: u64,
    /// All that in words.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
