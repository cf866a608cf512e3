//! What of the sources has to be looked at, and where it lies: decided under `&mut`, in batches.

use std::ops::Range;

use qcowkit_core::image::{Content, Extent};

use super::piece::Rules;
use super::{ConvertError, ConvertOptions, TargetState, Unreadable};
use crate::disk::Disk;

/// Bytes that are read, looked at and written as one, at least; a power of two.
const WINDOW_BYTES: u64 = 2 << 20;
/// Jobs that are done as one, at most: so many small ones cost no more than a large one.
const PORTION_JOBS: usize = 64;
/// A batch ends after so many segments, for the sake of memory.
const BATCH_SEGMENTS: usize = 1 << 15;
/// The first question to a source covers no more, so that progress can be told. Where the answer is one run of zeros the next
/// covers twice as much: a disk can claim exabytes of nothing.
const QUESTION_BYTES: u64 = 4 << 30;

/// Jobs in the order of the disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) jobs: Vec<Job>,
    segments: Vec<Segment>,
    /// Bytes that have to be read.
    pub(super) data_bytes: u64,
    /// Parts of which not even the status can be told.
    pub(super) unreadable: Vec<Unreadable>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    /// First byte in the target's disk.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
    pub(super) work: Work,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Copies a window: which segments of the batch it has.
    Copy(Range<usize>),
    /// Makes zeros.
    Zero,
    /// Leaves what is there.
    Skip,
}

/// A part of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// First byte in the target's disk.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
    pub(super) kind: Kind,
}

/// What the source says of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes to be read.
    Data {
        /// Which source.
        source: usize,
        /// Where.
        extent: Extent,
    },
    /// Reads as zeros.
    Zero,
    /// Left to the target's backing file.
    Backing,
}

impl Kind {
    /// The same from `by` bytes on, `length` bytes long.
    fn part(self, by: u64, length: u64) -> Self {
        match self {
            Self::Data { source, extent } => Self::Data { source, extent: part_of(&extent, by, length) },
            Self::Zero | Self::Backing => self,
        }
    }
}

/// An extent from `by` bytes on, `length` bytes long.
pub(super) fn part_of(extent: &Extent, by: u64, length: u64) -> Extent {
    let content = match extent.content {
        Content::Data { host_offset } => Content::Data { host_offset: host_offset.saturating_add(by) },
        Content::Compressed { range, skip } => Content::Compressed { range, skip: skip + by },
        Content::Zero { .. } | Content::Unallocated => extent.content,
    };
    Extent { guest_offset: extent.guest_offset + by, length, content, ..*extent }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn segments(&self, range: &Range<usize>) -> &[Segment] {
        self.segments.get(range.clone()).unwrap_or(&[])
    }

    /// The jobs from `first` on that one thread does as one: about a window's bytes of data.
    pub(super) fn portion(&self, first: usize) -> Range<usize> {
        let jobs = self.jobs.get(first..).unwrap_or(&[]);
        let mut bytes = 0;
        let fitting = jobs.iter().take(PORTION_JOBS).take_while(|job| {
            bytes += if matches!(job.work, Work::Copy(_)) { job.length } else { 0 };
            bytes <= WINDOW_BYTES
        });
        first..first + fitting.count().max(1).min(jobs.len())
    }

    /// Adds a run of zeros, or one that is left alone, to the last job if it goes on there.
    fn add_run(&mut self, offset: u64, length: u64, work: Work) {
        match self.jobs.last_mut() {
            Some(last) if last.work == work && last.offset + last.length == offset => last.length += length,
            _ => self.jobs.push(Job { offset, length, work }),
        }
    }
}

/// Goes through the sources once.
pub(super) struct Planner {
    /// Where in the target's disk each source begins, and the end of the last.
    starts: Vec<u64>,
    at: u64,
    /// What was learned beyond `at`: up to where, and what it is from `at` on.
    known: Option<(u64, Kind)>,
    /// Bytes of the next question.
    question: u64,
    window: u64,
    /// Runs that need no reading are cut out of the windows in multiples of this, a power of two.
    grain: u64,
    /// Whole clusters of this size are either copied or not.
    whole: u64,
    /// Zeros are written as data.
    dense: bool,
    backing: Option<Backing>,
    /// Up to here parts are read through all layers, though the top layer has nothing: their cluster is copied.
    forced_to: u64,
    salvage: bool,
}

/// What has to be known of the backing files.
struct Backing {
    /// Bytes of the source's; `None` if it has none, so that all it leaves unallocated is zero.
    source: Option<u64>,
    /// From here on a new target reads as zeros.
    target_zero_from: u64,
}

impl Planner {
    pub(super) fn new(sources: &[Disk], target: &Disk, rules: &Rules, options: &ConvertOptions, total: u64) -> Self {
        let mut starts = vec![0];
        let mut sum = 0;
        for source in sources {
            sum += source.virtual_size();
            starts.push(sum);
        }
        debug_assert_eq!(sum, total);
        let below = |disk: &Disk| disk.layers().get(1).map(|layer| layer.virtual_size());
        let backing = options.backing.then(|| Backing {
            source: sources.first().and_then(below),
            target_zero_from: match (options.target, below(target)) {
                (TargetState::New, Some(size)) => size,
                _ => u64::MAX,
            },
        });
        let cluster = target.cluster_size().unwrap_or(1);
        Self {
            starts,
            at: 0,
            known: None,
            question: QUESTION_BYTES,
            window: WINDOW_BYTES.max(cluster),
            grain: rules.grain(),
            whole: if options.compress { cluster } else { 1 },
            dense: rules.dense,
            backing,
            forced_to: 0,
            salvage: options.salvage,
        }
    }

    /// The next jobs; none at the end.
    pub(super) fn next_batch(&mut self, sources: &mut [Disk]) -> Result<Batch, ConvertError> {
        let mut batch = Batch::default();
        let mut window_segments = 0;
        let total = self.starts.last().copied().unwrap_or(0);
        while self.at < total {
            let (end, kind) = match self.look(sources) {
                Err(ConvertError::Read { source, offset, error }) if self.salvage => {
                    self.pass_over(sources, &mut batch, source, offset, error)
                }
                seen => seen?,
            };
            let open = batch.segments.len() > window_segments;
            let window_end = (self.at & !(self.window - 1)).saturating_add(self.window).min(total);
            let run_start = self.at.next_multiple_of(self.grain);
            let run_end = if end == total { end } else { end & !(self.grain - 1) };
            let is_run = matches!(kind, Kind::Backing) || (matches!(kind, Kind::Zero) && !self.dense);
            if is_run && run_start < run_end {
                if open {
                    self.add_segment(&mut batch, run_start, kind);
                    self.close_window(&mut batch, window_segments);
                    window_segments = batch.segments.len();
                }
                let work = if kind == Kind::Zero { Work::Zero } else { Work::Skip };
                batch.add_run(self.at, run_end - self.at, work);
                self.advance(run_end);
            } else {
                let piece_end = end.min(window_end);
                self.add_segment(&mut batch, piece_end, kind);
                if piece_end == window_end {
                    self.close_window(&mut batch, window_segments);
                    window_segments = batch.segments.len();
                }
            }
            if batch.segments.len() == window_segments && batch.segments.len() >= BATCH_SEGMENTS {
                break;
            }
        }
        Ok(batch)
    }

    /// Takes a cluster, or a sector, of which the source cannot tell anything for zeros.
    fn pass_over(
        &mut self,
        sources: &[Disk],
        batch: &mut Batch,
        source: usize,
        offset: u64,
        error: qcowkit_core::Error,
    ) -> (u64, Kind) {
        let unit = sources[source].cluster_size().unwrap_or(512);
        let rest = sources[source].virtual_size() - offset;
        let length = (unit - offset % unit).min(rest).max(1);
        batch.unreadable.push(Unreadable { source, offset, length, error, status: true });
        let end = self.at + length;
        self.known = Some((end, Kind::Zero));
        (end, Kind::Zero)
    }

    /// Adds what lies between here and `end` to the open window.
    fn add_segment(&mut self, batch: &mut Batch, end: u64, kind: Kind) {
        let length = end - self.at;
        if length > 0 {
            batch.segments.push(Segment { offset: self.at, length, kind: kind.part(0, length) });
            batch.data_bytes += if matches!(kind, Kind::Data { .. }) { length } else { 0 };
            self.advance(end);
        }
    }

    /// Makes a job of the segments from `first` on.
    fn close_window(&self, batch: &mut Batch, first: usize) {
        let segments = batch.segments.get(first..).unwrap_or(&[]);
        let (Some(start), Some(end)) = (segments.first(), segments.last()) else { return };
        let offset = start.offset;
        let length = end.offset + end.length - offset;
        if self.dense || segments.iter().any(|segment| matches!(segment.kind, Kind::Data { .. })) {
            let work = Work::Copy(first..batch.segments.len());
            batch.jobs.push(Job { offset, length, work });
            return;
        }
        for segment in batch.segments.split_off(first) {
            let work = if segment.kind == Kind::Zero { Work::Zero } else { Work::Skip };
            batch.add_run(segment.offset, segment.length, work);
        }
    }

    fn advance(&mut self, to: u64) {
        let by = to - self.at;
        self.at = to;
        self.known = match self.known {
            Some((end, kind)) if end > to => Some((end, kind.part(by, end - to))),
            _ => None,
        };
    }

    /// What lies at `at`, and up to where.
    fn look(&mut self, sources: &mut [Disk]) -> Result<(u64, Kind), ConvertError> {
        if let Some(known) = self.known {
            return Ok(known);
        }
        // The last source that begins here or before: those of no length are passed over.
        let source = self.starts.partition_point(|&start| start <= self.at) - 1;
        let (start, source_end) = (self.starts[source], self.starts[source + 1]);
        let offset = self.at - start;
        let disk = &mut sources[source];
        let limit = (source_end - self.at).min(self.question);
        let failed = |error| ConvertError::Read { source, offset, error };
        let (length, kind) = match &self.backing {
            Some(backing) if self.at >= self.forced_to => backing.ask(disk, offset, limit).map_err(failed)?,
            _ => {
                let limit = if self.backing.is_some() { limit.min(self.forced_to - self.at) } else { limit };
                let extent = disk.next_extent(offset, limit).map_err(failed)?;
                let extent = disk.without_holes(extent);
                (extent.length, if extent.is_zero() { Kind::Zero } else { Kind::Data { source, extent } })
            }
        };
        self.question = match length >= self.question && !matches!(kind, Kind::Data { .. }) {
            true => self.question.saturating_mul(2),
            false => QUESTION_BYTES,
        };
        let mut end = self.at + length.max(1).min(limit);
        if self.backing.is_some() && self.whole > 1 && self.at >= self.forced_to {
            let total = self.starts.last().copied().unwrap_or(0);
            let whole_end = if end == total { end } else { end & !(self.whole - 1) };
            if kind == Kind::Backing && whole_end > self.at {
                end = whole_end;
            } else {
                // A packed cluster has no gaps: what the top layer lacks of it is read from below.
                let cluster_end = (self.at & !(self.whole - 1)).saturating_add(self.whole).min(total);
                if kind == Kind::Backing || end < cluster_end {
                    self.forced_to = cluster_end;
                    return self.look(sources);
                }
                end = whole_end;
            }
        }
        self.known = Some((end, kind));
        Ok((end, kind))
    }
}

impl Backing {
    /// What the top layer of the source says at `offset`, and for how many bytes.
    fn ask(&self, disk: &mut Disk, offset: u64, limit: u64) -> qcowkit_core::Result<(u64, Kind)> {
        // Questions do not cross the ends of the backing files, behind which "nothing" means zeros.
        let limit = [self.source.unwrap_or(u64::MAX), self.target_zero_from]
            .into_iter()
            .filter(|&border| border > offset)
            .fold(limit, |limit, border| limit.min(border - offset));
        let extent = disk.next_local_extent(offset, limit)?;
        let extent = disk.without_holes(extent);
        let left_out = match extent.content {
            Content::Unallocated => self.source.is_some_and(|size| offset < size),
            Content::Zero { .. } | Content::Data { .. } | Content::Compressed { .. } => false,
        };
        let kind = if left_out {
            Kind::Backing
        } else if extent.is_zero() {
            if offset >= self.target_zero_from { Kind::Backing } else { Kind::Zero }
        } else {
            Kind::Data { source: 0, extent }
        };
        Ok((extent.length, kind))
    }
}

#[cfg(test)]
mod tests {
    use qcowkit_core::image::{CreateOptions, Image, Preallocation};

    use super::*;
    use crate::disk::RawDisk;
    use crate::file::{FileAccess, FileStorage};

    /// A terabyte that is mapped and was never written, but for some bytes in the middle.
    #[test]
    fn data_in_large_holes_are_not_read() {
        const SIZE: u64 = 1 << 40;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| FileStorage::open(folder.path().join(name), FileAccess::CreateNew).unwrap();
        let create = CreateOptions { cluster_size: 2 << 20, ..CreateOptions::default() };
        let mut image = Image::create(file("source"), SIZE, &create).unwrap();
        image.preallocate(0, SIZE, Preallocation::Metadata).unwrap();
        image.write_at(SIZE / 2 + 100, &[1; 5000]).unwrap();
        let mut sources = [Disk::Qcow2(Box::new(image))];
        let target = Disk::Raw(RawDisk::new(file("target"), &Default::default()).unwrap());
        for backing in [false, true] {
            let options = ConvertOptions { backing, ..ConvertOptions::default() };
            let rules = Rules::new(&target, &options);
            let mut planner = Planner::new(&sources, &target, &rules, &options, SIZE);
            let (mut data, mut copied, mut all) = (0, 0, 0);
            loop {
                let batch = planner.next_batch(&mut sources).unwrap();
                if batch.is_empty() {
                    break;
                }
                data += batch.data_bytes;
                all += batch.jobs.iter().map(|job| job.length).sum::<u64>();
                let copies = batch.jobs.iter().filter(|job| matches!(job.work, Work::Copy(_)));
                copied += copies.map(|job| job.length).sum::<u64>();
            }
            assert_eq!(all, SIZE);
            assert!((5000..=4 << 20).contains(&data), "{data} bytes would be read");
            assert!(copied <= 4 << 20, "{copied}");
        }
    }
}
