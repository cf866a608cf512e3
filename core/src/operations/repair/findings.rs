//! What a repair found, and what it does about it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::error::Structure;
use crate::operations::check::{FindingKind, Severity};

/// Findings that a plan keeps; the others are counted.
pub const MAX_REPAIR_FINDINGS: usize = 100_000;

/// What is done about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RepairAction {
    /// The refcount is lowered to the number of references.
    LowerRefcount,
    /// The refcount is raised to the number of references.
    RaiseRefcount,
    /// All refcounts are written anew, elsewhere.
    RebuildRefcounts,
    /// The COPIED flag is set.
    SetCopied,
    /// The COPIED flag is cleared.
    ClearCopied,
    /// Bits that must be 0 are cleared; what the entry says stays.
    ClearBits,
    /// The entry leads to the beginning of the cluster in whose middle it ended.
    AlignEntry,
    /// The entry leads nowhere any more: what it led to could not be read.
    DropEntry,
    /// The entry reads as zeros from now on.
    ZeroEntry,
    /// The compressed cluster ends at the end of the file.
    ShortenCompressed,
    /// What two structures used gets a copy of its own.
    CopyCluster,
    /// The snapshot table is written anew.
    RewriteSnapshotTable,
    /// The snapshot is taken out of the snapshot table: nothing of it could be read.
    DropSnapshot,
    /// The bitmap is taken out of the directory.
    DropBitmap,
    /// All bitmaps are given up.
    DropBitmaps,
    /// The bitmap is marked as not to be trusted.
    DistrustBitmap,
    /// A header field is corrected.
    CorrectHeader,
    /// The L1 table is written anew, elsewhere.
    MoveL1Table,
    /// An orphaned L2 table is put back into the L1 table, as asked.
    RelinkTable,
    /// The image is not marked dirty or corrupt any more.
    ClearMark,
    /// Nothing: it cannot be repaired.
    None,
}

impl RepairAction {
    /// The action in words, as in "would ...".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::LowerRefcount => "lower the refcount",
            Self::RaiseRefcount => "raise the refcount",
            Self::RebuildRefcounts => "write all refcounts anew",
            Self::SetCopied => "set the COPIED flag",
            Self::ClearCopied => "clear the COPIED flag",
            Self::ClearBits => "clear the bits that must not be set",
            Self::AlignEntry => "align the entry to its cluster",
            Self::DropEntry => "drop the entry",
            Self::ZeroEntry => "make it read as zeros",
            Self::ShortenCompressed => "shorten the compressed cluster",
            Self::CopyCluster => "give it a copy of its own",
            Self::RewriteSnapshotTable => "write the snapshot table anew",
            Self::DropSnapshot => "drop the snapshot",
            Self::DropBitmap => "drop the bitmap",
            Self::DropBitmaps => "drop all bitmaps",
            Self::DistrustBitmap => "mark the bitmap as inconsistent",
            Self::CorrectHeader => "correct the header",
            Self::MoveL1Table => "write the L1 table anew",
            Self::RelinkTable => "put the table back",
            Self::ClearMark => "clear the mark",
            Self::None => "nothing: it cannot be repaired",
        }
    }
}

/// One thing that is wrong, or several of a kind in a row, and what is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RepairFinding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: FindingKind,
    /// The structure that is wrong.
    pub structure: Structure,
    /// Where in the file, in bytes: the cluster, or where a broken entry leads.
    pub host_offset: Option<u64>,
    /// Bytes of the file that it is about; 0 where it is about a field.
    pub host_length: u64,
    /// Where in the virtual disk, in bytes.
    pub guest_offset: Option<u64>,
    /// Bytes of the virtual disk that it is about; 0 for none.
    pub guest_length: u64,
    /// Whose it is: `header`, `active`, `snapshot 0`, `bitmap 1`, `refcounts`.
    pub owner: String,
    /// What is done about it.
    pub action: RepairAction,
    /// What is wrong, in words.
    pub message: String,
}

impl RepairFinding {
    pub(super) fn new(kind: FindingKind, structure: Structure, action: RepairAction, owner: impl Into<String>) -> Self {
        Self {
            severity: Severity::Corruption,
            kind,
            structure,
            host_offset: None,
            host_length: 0,
            guest_offset: None,
            guest_length: 0,
            owner: owner.into(),
            action,
            message: String::new(),
        }
    }

    pub(super) fn at_host(self, offset: u64, length: u64) -> Self {
        Self { host_offset: Some(offset), host_length: length, ..self }
    }

    pub(super) fn at_guest(self, offset: u64, length: u64) -> Self {
        Self { guest_offset: Some(offset), guest_length: length, ..self }
    }

    pub(super) fn with_severity(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }

    pub(super) fn saying(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }
}

impl fmt::Display for RepairFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The findings of a plan, with those that were not kept.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) kept: Vec<RepairFinding>,
    pub(super) omitted: u64,
}

impl Findings {
    pub(super) fn add(&mut self, finding: RepairFinding) {
        if self.kept.len() < MAX_REPAIR_FINDINGS {
            self.kept.push(finding);
        } else {
            self.omitted = self.omitted.saturating_add(1);
        }
    }
}
