//! Whether two disks hold the same, as `qemu-img compare` sees it.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use qcowkit_core::Error;
use qcowkit_core::image::{Content, Extent};

use crate::disk::Disk;
use qcowkit_core::zeros::is_zero;

/// Bytes of each disk that are read as one.
const CHUNK_BYTES: u64 = 1 << 20;
/// The first question to a disk covers no more, so that progress can be told. Where the answer is one extent the next covers
/// twice as much: a disk can claim exabytes of nothing.
const QUESTION_BYTES: u64 = 4 << 30;
/// Chunks that are decided on before they are compared.
const BATCH_CHUNKS: usize = 512;
/// Contents that differ are told by the sector, as `qemu-img` does.
const SECTOR_BYTES: usize = 512;

/// How two disks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Not at all. Where one is longer than the other, it holds nothing but zeros there.
    Identical,
    /// In their bytes.
    Content {
        /// The sector of 512 bytes in which they first differ; it can lie behind the end of the shorter disk.
        offset: u64,
    },
    /// In what the images say of their bytes: data, compressed, zero, not allocated. Only when asked to be strict.
    Status {
        /// The first byte of which they do not say the same.
        offset: u64,
    },
    /// In length. Only when asked to be strict; nothing else was compared.
    Size,
}

/// Why a comparison ended early.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum CompareError {
    /// What an image says of its bytes could not be had.
    Status {
        /// The first disk (0) or the second (1).
        disk: usize,
        /// Byte of the disk.
        offset: u64,
        /// What is wrong.
        error: Error,
    },
    /// Bytes could not be read.
    Read {
        /// The first disk (0) or the second (1).
        disk: usize,
        /// Byte of the disk.
        offset: u64,
        /// What is wrong.
        error: Error,
    },
    /// The callback for progress said to stop.
    Cancelled,
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { offset, error, .. } => write!(f, "cannot tell what lies at byte {offset}: {error}"),
            Self::Read { offset, error, .. } => write!(f, "error while reading at byte {offset}: {error}"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for CompareError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Status { error, .. } | Self::Read { error, .. } => Some(error),
            Self::Cancelled => None,
        }
    }
}

/// Compares what two disks hold. Strict: also their sizes, and which parts are allocated.
///
/// `progress` is told now and then how many bytes are done, and of how many; it can stop the comparison. The first
/// difference is found, whatever the number of threads.
///
/// # Errors
/// As [`CompareError`] says, when it comes before any difference.
pub fn compare(
    a: &mut Disk,
    b: &mut Disk,
    strict: bool,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Comparison, CompareError> {
    if strict && a.virtual_size() != b.virtual_size() {
        return Ok(Comparison::Size);
    }
    let total = a.virtual_size().max(b.virtual_size());
    let mut planner = Planner { total, strict, at: 0, known: [None, None], question: QUESTION_BYTES };
    let mut done = 0;
    while done < total {
        if progress(done, total).is_break() {
            return Err(CompareError::Cancelled);
        }
        let (chunks, end) = planner.next_batch([&mut *a, &mut *b]);
        if let Some(found) = compare_batch([&*a, &*b], &chunks)? {
            return Ok(found);
        }
        if let Some(end) = end {
            return end;
        }
        done = planner.at;
    }
    // The end is told, but nothing is left to be stopped.
    let _ = progress(total, total);
    Ok(Comparison::Identical)
}

/// A part of both disks that has to be read.
struct Chunk {
    offset: u64,
    length: u64,
    /// Where to read; `None` reads as zeros.
    extents: [Option<Extent>; 2],
}

/// Goes through both disks once.
struct Planner {
    total: u64,
    strict: bool,
    at: u64,
    /// What is known of each disk: the extent that `at` lies in.
    known: [Option<Extent>; 2],
    /// Bytes of the next question.
    question: u64,
}

impl Planner {
    /// What has to be read next, and what ends the comparison behind it.
    fn next_batch(&mut self, disks: [&mut Disk; 2]) -> (Vec<Chunk>, Option<Result<Comparison, CompareError>>) {
        let mut chunks = Vec::new();
        while self.at < self.total && chunks.len() < BATCH_CHUNKS {
            let mut here = [None, None];
            for (disk, here) in here.iter_mut().enumerate() {
                match self.look(disk, disks[disk]) {
                    Ok(extent) => *here = Some(extent),
                    Err(error) => {
                        return (chunks, Some(Err(CompareError::Status { disk, offset: self.at, error })));
                    }
                }
            }
            let [Some(a), Some(b)] = here else { break };
            if self.strict && status(&a) != status(&b) {
                return (chunks, Some(Ok(Comparison::Status { offset: self.at })));
            }
            let mut length = a.length.min(b.length);
            if !(a.is_zero() && b.is_zero()) {
                length = length.min(CHUNK_BYTES);
                let extents = [a, b].map(|extent| (!extent.is_zero()).then_some(extent));
                chunks.push(Chunk { offset: self.at, length, extents });
            }
            self.at += length.max(1);
        }
        (chunks, None)
    }

    /// What a disk is from `at` on; zeros behind its end.
    fn look(&mut self, which: usize, disk: &mut Disk) -> Result<Extent, Error> {
        if let Some(known) = self.known[which]
            && self.at < known.guest_offset + known.length
        {
            return Ok(rest(known, self.at - known.guest_offset));
        }
        let size = disk.virtual_size();
        let extent = if self.at < size {
            let extent = disk.next_extent(self.at, (size - self.at).min(self.question))?;
            // What the images say of it matters more where the comparison is strict.
            let extent = if self.strict { extent } else { disk.without_holes(extent) };
            self.question = match extent.length == self.question && extent.is_zero() {
                true => self.question.saturating_mul(2),
                false => QUESTION_BYTES,
            };
            extent
        } else {
            let length = self.total - self.at;
            Extent { guest_offset: self.at, length, depth: 0, content: Content::Unallocated }
        };
        self.known[which] = Some(extent);
        Ok(extent)
    }
}

/// An extent from `by` bytes on.
fn rest(extent: Extent, by: u64) -> Extent {
    let content = match extent.content {
        Content::Data { host_offset } => Content::Data { host_offset: host_offset.saturating_add(by) },
        Content::Compressed { range, skip } => Content::Compressed { range, skip: skip + by },
        Content::Zero { .. } | Content::Unallocated => extent.content,
    };
    Extent { guest_offset: extent.guest_offset + by, length: extent.length - by, content, ..extent }
}

/// What strict comparison compares.
#[derive(PartialEq, Eq)]
enum Status {
    Data,
    Compressed,
    ZeroAllocated,
    ZeroPlain,
    Unallocated,
}

fn status(extent: &Extent) -> Status {
    match extent.content {
        Content::Data { .. } => Status::Data,
        Content::Compressed { .. } => Status::Compressed,
        Content::Zero { host_offset: Some(_) } => Status::ZeroAllocated,
        Content::Zero { host_offset: None } => Status::ZeroPlain,
        Content::Unallocated => Status::Unallocated,
    }
}

/// What came out of one chunk that was not equal.
type Finding = (u64, Result<Comparison, CompareError>);

/// Compares the chunks on as many threads as the machine runs; the finding of the lowest offset counts.
fn compare_batch(disks: [&Disk; 2], chunks: &[Chunk]) -> Result<Option<Comparison>, CompareError> {
    let next = AtomicUsize::new(0);
    let first: Mutex<Option<Finding>> = Mutex::new(None);
    let work = || {
        let mut buffers = [Vec::new(), Vec::new()];
        // Chunks are handed out in order, so those before a finding are all in good hands.
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(found) = compare_chunk(disks, chunk, &mut buffers) else { continue };
            next.fetch_max(chunks.len(), Ordering::Relaxed);
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(offset, _)| found.0 < *offset) {
                *first = Some(found);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chunks.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(None),
        Some((_, found)) => found.map(Some),
    }
}

fn compare_chunk(disks: [&Disk; 2], chunk: &Chunk, buffers: &mut [Vec<u8>; 2]) -> Option<Finding> {
    let length = usize::try_from(chunk.length).unwrap_or(0);
    for (disk, (extent, buffer)) in chunk.extents.iter().zip(buffers.iter_mut()).enumerate() {
        let Some(extent) = extent else { continue };
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        if let Err(error) = disks[disk].read_extent(extent, &mut buffer[..length]) {
            let offset = chunk.offset;
            return Some((offset, Err(CompareError::Read { disk, offset, error })));
        }
    }
    let [a, b] = buffers;
    let differs = match chunk.extents {
        [Some(_), Some(_)] => first_difference(&a[..length], Some(&b[..length])),
        [Some(_), None] => first_difference(&a[..length], None),
        [None, Some(_)] => first_difference(&b[..length], None),
        [None, None] => None,
    };
    differs.map(|at| {
        let offset = chunk.offset + at as u64;
        (offset, Ok(Comparison::Content { offset }))
    })
}

/// The first sector in which two buffers differ, or one from zeros.
fn first_difference(a: &[u8], b: Option<&[u8]>) -> Option<usize> {
    let equal = |at: usize, end: usize| match b {
        Some(b) => a[at..end] == b[at..end],
        None => is_zero(&a[at..end]),
    };
    if equal(0, a.len()) {
        return None;
    }
    (0..a.len()).step_by(SECTOR_BYTES).find(|&at| !equal(at, (at + SECTOR_BYTES).min(a.len())))
}
