//! A verdict on an image from a stranger, before anything else touches it.
//!
//! [`audit_start`] judges by the first bytes alone: by what the header names, claims and contradicts. [`audit`] reads these
//! bytes from a storage and can also go through the whole file (`deep`). Nothing that the image names is opened, no guest
//! data are read, and the memory used does not depend on what the image says.
//!
//! # What is looked at
//! - Other files: a backing file or a data file lets an image read, or write, files of the host (CVE-2024-32498 for data
//!   files, CVE-2024-4467 for `json:` names). Where a name leads is told by its text: see [`Target`].
//! - Sizes: tables that do not fit their limits (CVE-2014-0143 and its siblings), virtual disks that no host holds.
//! - Structure: tables on each other or beyond the file, damaged extensions, unknown features.
//! - Other formats: bytes that make another program take the file for something else.
//! - Encryption: which method, and keys that would take unbounded time to try.
//! - With `deep`: everything that a check finds, and data that belong to nothing.

mod deep;
mod header;
mod magic;
mod target;

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Result, Structure};
use crate::format::{Header, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Name, format_by_magic};
use crate::storage::{ReadStorage, StorageExtentKind};

pub use target::Target;

/// Virtual disks beyond this many bytes (64 TiB) deserve a look: few hosts can hold what such a disk may grow to.
pub const LARGE_VIRTUAL_SIZE: u64 = 64 << 40;
/// Rounds of the key derivation beyond which trying one key can take minutes.
pub const MANY_ITERATIONS: u32 = 100_000_000;

/// What to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Verdict {
    /// Nothing speaks against opening it.
    #[default]
    Safe,
    /// A person should look at the findings first.
    Caution,
    /// It must not be opened as it is by a program that follows what it says.
    Danger,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Scope {
    /// The first cluster, and the last sector where the file has an end.
    #[default]
    Header,
    /// Every table, and the bytes behind the last cluster in use.
    Deep,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum AuditKind {
    /// It is no qcow2 image.
    NotQcow2,
    /// It names a backing file.
    BackingFile,
    /// It names a data file, or needs one without naming it.
    DataFile,
    /// The format of the backing file is not stated, so that programs guess it from the file's bytes.
    BackingFormat,
    /// Feature bits or extensions that are not known.
    UnknownFeature,
    /// The header, or what follows it, contradicts the specification.
    DamagedHeader,
    /// A size or count is beyond a limit.
    AbsurdSize,
    /// Two structures lie on each other.
    Overlap,
    /// A structure lies beyond the end of the file.
    BeyondEndOfFile,
    /// Bytes by which another program would take the file for another format.
    OtherFormat,
    /// Bytes in the header cluster that belong to nothing.
    HiddenData,
    /// Guest data are encrypted.
    Encrypted,
    /// The dirty bit: refcounts are rebuilt when it is opened for writing.
    Dirty,
    /// The corrupt bit.
    Corrupt,
    /// Metadata that are wrong, or could not be checked.
    Metadata,
    /// Clusters that are marked as used and belong to nothing.
    Leaks,
    /// Data behind the last cluster in use.
    TrailingData,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AuditFinding {
    /// What it makes of the verdict.
    pub verdict: Verdict,
    /// What it is about.
    pub kind: AuditKind,
    /// The structure, where it is one.
    pub structure: Option<Structure>,
    /// Where in the file, in bytes.
    pub host_offset: Option<u64>,
    /// All that in words. Names of the image are quoted, their control characters escaped.
    pub message: String,
}

/// Which of the files that an image can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum NamedFile {
    /// Read where the image itself has nothing.
    BackingFile,
    /// Read and written in place of the image's own clusters.
    DataFile,
}

/// A file that the image names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AuditReference {
    /// What for.
    pub role: NamedFile,
    /// The name as it stands in the image.
    pub name: Name,
    /// The format that the image states for it.
    pub format: Option<Name>,
    /// Where it leads, by its text.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub target: Target,
}

/// What was found out about an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Audit {
    /// The worst of the findings.
    pub verdict: Verdict,
    /// What was looked at.
    pub scope: Scope,
    /// "qcow2", or the format that the first bytes show; "raw" where they show none.
    pub format: &'static str,
    /// The qcow2 version.
    pub version: Option<u32>,
    /// Bytes of the virtual disk, as the header says it.
    pub virtual_size: Option<u64>,
    /// Bytes of a cluster, if the header says something possible.
    pub cluster_size: Option<u64>,
    /// Internal snapshots, as the header says it.
    pub snapshots: Option<u32>,
    /// Bytes of the file, where it is known.
    pub file_length: Option<u64>,
    /// The files that it names.
    pub references: Vec<AuditReference>,
    /// What speaks for caution, the worst first.
    pub findings: Vec<AuditFinding>,
}

impl AuditFinding {
    fn new(verdict: Verdict, kind: AuditKind, message: impl Into<String>) -> Self {
        Self { verdict, kind, structure: None, host_offset: None, message: message.into() }
    }

    fn danger(kind: AuditKind, message: impl Into<String>) -> Self {
        Self::new(Verdict::Danger, kind, message)
    }

    fn caution(kind: AuditKind, message: impl Into<String>) -> Self {
        Self::new(Verdict::Caution, kind, message)
    }

    /// Worth knowing, and no reason for caution.
    fn note(kind: AuditKind, message: impl Into<String>) -> Self {
        Self::new(Verdict::Safe, kind, message)
    }

    fn on(mut self, structure: Structure) -> Self {
        self.structure = Some(structure);
        self
    }

    fn at(mut self, host_offset: u64) -> Self {
        self.host_offset = Some(host_offset);
        self
    }
}

impl Audit {
    /// Says that a reference leads to `place`, outside the image's own directory, although its text does not: by a symbolic
    /// link, which only the file system can tell. `index` is that in [`Audit::references`]; another is ignored.
    pub fn leads_outside(&mut self, index: usize, place: &str) {
        let Some(reference) = self.references.get_mut(index) else { return };
        reference.target = Target::Outside;
        let (kind, structure, what) = match reference.role {
            NamedFile::BackingFile => (AuditKind::BackingFile, Structure::BackingFile, "backing file"),
            NamedFile::DataFile => (AuditKind::DataFile, Structure::DataFile, "data file"),
        };
        let message = alloc::format!("the name of its {what} is a link that leads outside its directory: to {place:?}");
        self.add(AuditFinding::danger(kind, message).on(structure));
    }

    fn add(&mut self, finding: AuditFinding) {
        self.verdict = self.verdict.max(finding.verdict);
        // The worst first, those of a kind in the order in which they came.
        let at = self.findings.partition_point(|other| other.verdict >= finding.verdict);
        self.findings.insert(at, finding);
    }
}

/// What an audit is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditOptions {
    /// Go through every table and look behind the last cluster in use.
    pub deep: bool,
    /// Bytes of virtual disk that are allowed; more is a danger.
    pub max_virtual_size: Option<u64>,
}

/// How many bytes from the start of a file [`audit_start`] wants, judged by the 512 or more bytes that are there
/// already: one cluster, at most 2 MiB.
#[must_use]
pub fn bytes_wanted(start: &[u8]) -> usize {
    let bits = Header::parse(start).map_or(0, |header| header.cluster_bits);
    let known = (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits);
    // Other formats show themselves in the first 40 KiB.
    if known { 1usize.wrapping_shl(bits).max(magic::REACH) } else { magic::REACH }
}

/// Judges an image by its first bytes: as many as [`bytes_wanted`] says, or all there are.
///
/// `file_length` is the length of the file in bytes where that is known; of a stream it is not. Never fails: what cannot
/// be judged is a finding.
///
/// # Examples
/// ```
/// use qcowkit_core::operations::audit::{AuditKind, AuditOptions, Verdict, audit_start};
///
/// let audit = audit_start(b"conectix, not qcow2", None, &AuditOptions::default());
/// assert_eq!((audit.format, audit.verdict), ("vpc", Verdict::Danger));
/// assert_eq!(audit.findings[0].kind, AuditKind::NotQcow2);
/// ```
#[must_use]
pub fn audit_start(start: &[u8], file_length: Option<u64>, options: &AuditOptions) -> Audit {
    let mut audit = Audit { file_length, format: format_by_magic(start), ..Audit::default() };
    header::judge(start, options, &mut audit);
    audit
}

/// Judges an image on a storage: by its first cluster and last sector, with [`AuditOptions::deep`] by all of it.
///
/// # Errors
/// A storage that fails. All that is wrong with the image is in the audit.
pub fn audit<S: ReadStorage + ?Sized>(
    storage: &S,
    options: &AuditOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<Audit> {
    let length = storage.len()?;
    let mut start = vec![0u8; clipped(length, 512)];
    storage.read_at(0, &mut start)?;
    let mut start = vec![0u8; clipped(length, bytes_wanted(&start))];
    read_data(storage, &mut start)?;
    let mut audit = audit_start(&start, Some(length), options);
    magic::judge_end(storage, length, &mut audit)?;
    if audit.format == "qcow2" {
        deep::judge_keys(storage, &start, &mut audit)?;
        if options.deep {
            audit.scope = Scope::Deep;
            deep::judge(storage, &mut audit, progress)?;
        }
    }
    Ok(audit)
}

/// Reads the first bytes into zeros, and leaves holes alone: of a large header cluster little has been written.
fn read_data<S: ReadStorage + ?Sized>(storage: &S, into: &mut [u8]) -> Result<()> {
    let mut rest = into;
    let mut at = 0u64;
    while !rest.is_empty() {
        let extent = storage.next_extent(at)?;
        let length = usize::try_from(extent.length).unwrap_or(usize::MAX).clamp(1, rest.len());
        let (part, behind) = rest.split_at_mut(length);
        if extent.kind != StorageExtentKind::Hole {
            storage.read_at(at, part)?;
        }
        at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        rest = behind;
    }
    Ok(())
}

/// `wanted` bytes, or as many as a file of this length has.
fn clipped(length: u64, wanted: usize) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).min(wanted)
}
