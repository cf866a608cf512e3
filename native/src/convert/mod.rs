//! Copying a guest disk into another image, as `qemu-img convert` does: what reads as zeros is not copied.
//!
//! The source is planned under `&mut` in batches (`plan`); threads take portions of them, read, look for zeros and
//! pack clusters, all under `&` (`piece`), and write by turns, in order unless told otherwise (`pipeline`, `sink`).

mod piece;
mod pipeline;
mod plan;
mod sink;
mod split;

use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;

use qcowkit_core::Error;

use crate::disk::Disk;

/// What the target holds before the conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetState {
    /// It was made for this conversion, so it reads as zeros, or as its backing file.
    #[default]
    New,
    /// Anything (`-n`): zeros have to be written too.
    Existing,
    /// It was there before, and reads as zeros throughout (`-n --target-is-zero`).
    Zeroed,
}

/// How a disk is converted. The defaults are those of `qemu-img convert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Packs every cluster of the target (`-c`).
    pub compress: bool,
    /// So many zero bytes in a row become zeros without data in the target (`-S`); 0 writes everything as data.
    pub sparse_size: u64,
    /// The target's backing file has the contents of the source's (`-B`): what the source's top layer leaves
    /// unallocated is not copied.
    pub backing: bool,
    /// What the target holds.
    pub target: TargetState,
    /// Writes in the order in which reads come back (`-W`), not in that of the disk. Not together with `compress`.
    pub out_of_order: bool,
    /// The most threads that read and pack (`-m`), at least 1. More than the machine can run at once are not started.
    pub workers: usize,
    /// Has the system copy data from file to file where it can (`-C`): quick where blocks can be shared, but zeros among
    /// the data are copied as they are. Neither with `compress` nor with `salvage`.
    pub offload: bool,
    /// What cannot be read becomes zeros, and is told to [`Watch::unreadable`], instead of ending the conversion
    /// (`--salvage`).
    pub salvage: bool,
    /// The most bytes of data that are written in a second (`-r`).
    pub rate: Option<NonZeroU64>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            compress: false,
            sparse_size: 4096,
            backing: false,
            target: TargetState::New,
            out_of_order: false,
            workers: 8,
            offload: false,
            salvage: false,
            rate: None,
        }
    }
}

/// What a conversion did. All in guest bytes except `packed_bytes`; what is in none of them was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Bytes of all sources.
    pub total_bytes: u64,
    /// Written as data, packed or not.
    pub data_bytes: u64,
    /// Written as zeros, without data.
    pub zero_bytes: u64,
    /// Of `data_bytes`, those whose clusters were packed.
    pub compressed_bytes: u64,
    /// What the packed clusters take in the file.
    pub packed_bytes: u64,
    /// Of `data_bytes`, those that the system copied.
    pub offloaded_bytes: u64,
}

/// Hears of a conversion while it goes on, in the thread that asked for it.
pub trait Watch {
    /// So many bytes of the disk are done, and of how many; can stop the conversion.
    fn progress(&mut self, done: u64, total: u64) -> ControlFlow<()>;

    /// A part of a source cannot be read and is taken for zeros; see [`ConvertOptions::salvage`].
    fn unreadable(&mut self, part: &Unreadable);
}

/// A part of a source that cannot be read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Unreadable {
    /// Which source, from 0.
    pub source: usize,
    /// First byte of that source's disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What is wrong.
    pub error: Error,
    /// Not even what lies there can be told.
    pub status: bool,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.status { "block status at" } else { "" };
        let space = if self.status { " " } else { "" };
        write!(f, "error while reading {what}{space}offset {}: {}", self.offset, self.error)
    }
}

/// A function of the progress alone.
struct ProgressOnly<'a>(&'a mut dyn FnMut(u64, u64) -> ControlFlow<()>);

impl Watch for ProgressOnly<'_> {
    fn progress(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        (self.0)(done, total)
    }

    fn unreadable(&mut self, _part: &Unreadable) {}
}

/// Why a conversion ended early.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConvertError {
    /// Options that do not go together, or not with this target; nothing was written.
    Refused(Error),
    /// The target is too small; nothing was written.
    TargetTooSmall {
        /// Bytes of the target's disk.
        target: u64,
        /// Bytes of all sources.
        sources: u64,
    },
    /// A source could not be read.
    Read {
        /// Which source, from 0.
        source: usize,
        /// Byte of that source's disk.
        offset: u64,
        /// What is wrong.
        error: Error,
    },
    /// The target could not be written.
    Write {
        /// Byte of the target's disk.
        offset: u64,
        /// What is wrong.
        error: Error,
    },
    /// Everything was written, but not made durable.
    Flush(Error),
    /// The callback for progress said to stop.
    Cancelled,
}

impl ConvertError {
    /// What went wrong below, if it was that.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Refused(error) | Self::Read { error, .. } | Self::Write { error, .. } | Self::Flush(error) => {
                Some(error)
            }
            Self::TargetTooSmall { .. } | Self::Cancelled => None,
        }
    }
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{error}"),
            Self::TargetTooSmall { .. } => f.write_str("output file is smaller than input file"),
            Self::Read { offset, error, .. } => write!(f, "error while reading at byte {offset}: {error}"),
            Self::Write { offset, error } => write!(f, "error while writing at byte {offset}: {error}"),
            Self::Flush(error) => write!(f, "error while making the output durable: {error}"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for ConvertError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error().map(|error| error as _)
    }
}

/// Bytes of a disk that holds all sources, one behind the other.
///
/// # Errors
/// When they are more than an image can hold.
pub fn total_size(sources: &[Disk]) -> Result<u64, Error> {
    sources
        .iter()
        .try_fold(0u64, |sum, disk| sum.checked_add(disk.virtual_size()))
        .filter(|&total| i64::try_from(total).is_ok())
        .ok_or_else(|| Error::invalid("the sources together are too large"))
}

/// Copies the disks of `sources`, one behind the other, to `target`, and flushes it.
///
/// `progress` is told now and then how many bytes of the disk are done, and of how many; it can stop the conversion.
/// A target longer than the sources keeps what it has behind them.
///
/// # Errors
/// As [`ConvertError`] says. The target then holds part of the copy, and is still flushed if that is possible: an
/// image that existed before has no leaks.
pub fn convert(
    sources: &mut [Disk],
    target: &mut Disk,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ConvertReport, ConvertError> {
    convert_watched(sources, target, options, &mut ProgressOnly(progress))
}

/// As [`convert`], with somebody who also hears of what cannot be read.
///
/// # Errors
/// As there.
pub fn convert_watched(
    sources: &mut [Disk],
    target: &mut Disk,
    options: &ConvertOptions,
    watch: &mut dyn Watch,
) -> Result<ConvertReport, ConvertError> {
    let total = total_size(sources).map_err(ConvertError::Refused)?;
    if target.virtual_size() < total {
        return Err(ConvertError::TargetTooSmall { target: target.virtual_size(), sources: total });
    }
    refuse(sources, target, options).map_err(ConvertError::Refused)?;
    let rules = piece::Rules::new(target, options);
    let mut planner = plan::Planner::new(sources, target, &rules, options, total);
    let mut sink = sink::Sink::new(target, &rules, options);
    let mut progress = pipeline::Progress { done: 0, total, watch };
    let copied = copy(sources, &mut planner, &mut sink, &rules, options, &mut progress);
    let mut report = sink.report();
    report.total_bytes = total;
    // Also after a failure, so that what was linked and what was released agree on storage.
    let flushed = target.finish().map_err(ConvertError::Flush);
    copied.and(flushed).map(|()| report)
}

fn copy(
    sources: &mut [Disk],
    planner: &mut plan::Planner,
    sink: &mut sink::Sink<'_>,
    rules: &piece::Rules,
    options: &ConvertOptions,
    progress: &mut pipeline::Progress<'_>,
) -> Result<(), ConvertError> {
    progress.reached(0, &[])?;
    loop {
        let batch = planner.next_batch(sources)?;
        if batch.is_empty() {
            return Ok(());
        }
        pipeline::run(&batch, sources, sink, rules, options, progress)?;
    }
}

/// What cannot be done, before anything is written.
fn refuse(sources: &[Disk], target: &Disk, options: &ConvertOptions) -> Result<(), Error> {
    let has_backing = target.image().is_some_and(|image| image.header().backing_file.is_some());
    if options.compress {
        match target.image() {
            None => return Err(Error::unsupported("compression in a raw file")),
            Some(image) if image.geometry().data_file() => {
                return Err(Error::unsupported("compressed clusters in an image with an external data file"));
            }
            Some(_) => {}
        }
        if options.out_of_order {
            return Err(Error::invalid("compression does not go with writes out of order"));
        }
    }
    if options.offload && (options.compress || options.salvage) {
        return Err(Error::invalid("copy offloading goes neither with compression nor with salvaging"));
    }
    if options.backing && sources.len() != 1 {
        return Err(Error::invalid("a backing file for the target makes no sense with several sources"));
    }
    if options.backing && !has_backing {
        return Err(Error::invalid("the target has no backing file"));
    }
    if options.target == TargetState::Zeroed && has_backing {
        return Err(Error::invalid("an image with a backing file does not read as zeros"));
    }
    if !(1..=16).contains(&options.workers) {
        return Err(Error::invalid("the number of workers must be between 1 and 16"));
    }
    Ok(())
}
