//! A portion of the disk: read, searched for zeros, packed. Nothing is decided here, so threads do it side by side.

use std::ops::Range;
use std::sync::Arc;

use qcowkit_core::Error;
use qcowkit_core::codec::{Codecs, CompressionType};
use qcowkit_core::image::Extent;
use qcowkit_core::storage::ReadStorage;

use super::plan::{Batch, Job, Kind, Segment, Work, part_of};
use super::split::Split;
use super::{ConvertError, ConvertOptions, TargetState, Unreadable};
use crate::disk::Disk;
use qcowkit_core::zeros::is_zero;

/// Data that touch a part of a cluster are written with up to so many bytes around them, zeros included: fewer, larger
/// writes.
pub(super) const GROW_BYTES: u64 = 64 << 10;

/// What follows from the options and the target.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Zeros are written as data.
    pub(super) dense: bool,
    /// The target reads as zeros where nothing is written.
    pub(super) zero_already: bool,
    /// Every cluster is packed.
    pub(super) compress: bool,
    offload: bool,
    salvage: bool,
    split: Split,
    /// Data runs grow to multiples of this, a power of two.
    unit: u64,
    cluster: usize,
}

impl Rules {
    pub(super) fn new(target: &Disk, options: &ConvertOptions) -> Self {
        let image = target.image();
        let has_backing = image.is_some_and(|image| image.header().backing_file.is_some());
        // A device keeps what it held before.
        let data = image.and_then(|image| image.data_file()).unwrap_or_else(|| target.file());
        let stored_as_is = image.is_none_or(|image| image.geometry().data_file());
        let kept_bytes = stored_as_is && data.capabilities().block_device;
        let zero_already = match options.target {
            TargetState::New => !has_backing && !kept_bytes,
            TargetState::Existing => false,
            TargetState::Zeroed => true,
        };
        Self {
            dense: options.sparse_size < 512,
            zero_already,
            compress: options.compress,
            offload: options.offload,
            salvage: options.salvage,
            split: Split::new(options.sparse_size),
            unit: match image.map(|image| image.geometry().subcluster_size()) {
                None => 1,
                Some(unit) if zero_already => unit.min(GROW_BYTES),
                // What is there must go, so all of it is written.
                Some(unit) => unit,
            },
            cluster: image.map_or(1, |image| image.geometry().cluster_len()),
        }
    }

    /// Zeros that the source says are there, as far as a run of data can reach into them.
    fn make_zeros(&self, into: &mut [u8]) {
        let reach = usize::try_from(self.unit).unwrap_or(usize::MAX);
        if self.dense || self.compress || into.len() / 2 <= reach {
            into.fill(0);
            return;
        }
        let tail = into.len() - reach;
        into[..reach].fill(0);
        into[tail..].fill(0);
    }

    /// What is written begins and ends at multiples of this, a power of two, or has its neighbourhood at hand.
    pub(super) fn grain(&self) -> u64 {
        let packed = if self.compress { self.cluster as u64 } else { 1 };
        GROW_BYTES.max(self.unit).max(packed)
    }
}

/// A portion of the disk as it will be written, in its order.
#[derive(Debug, Default)]
pub(super) struct Piece {
    bytes: Vec<u8>,
    /// Of `bytes`, those that belong to this portion.
    used: usize,
    /// Bytes of the disk that it stands for, those that are left alone among them.
    pub(super) disk_bytes: u64,
    pub(super) runs: Vec<Run>,
    /// What could not be read and was taken for zeros.
    pub(super) unreadable: Vec<Unreadable>,
}

/// A part of the disk and what becomes of it.
#[derive(Debug)]
pub(super) struct Run {
    /// First byte in the target's disk.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
    pub(super) content: RunContent,
}

#[derive(Debug)]
pub(super) enum RunContent {
    /// The piece's bytes from here on.
    Data(usize),
    Zero,
    /// One cluster, packed.
    Packed(Vec<u8>),
    /// Not read: the system may be able to copy it.
    Offload {
        source: usize,
        extent: Extent,
    },
}

/// A window while it is looked at.
#[derive(Clone, Copy)]
struct Window {
    /// First byte in the target's disk.
    offset: u64,
    /// Where that byte stands in the piece.
    place: usize,
}

impl Window {
    fn place(&self, offset: u64) -> usize {
        self.place + usize::try_from(offset - self.offset).unwrap_or(usize::MAX - self.place)
    }

    fn offset(&self, place: usize) -> u64 {
        self.offset + (place - self.place) as u64
    }
}

impl Piece {
    /// The bytes of a run of data.
    pub(super) fn bytes(&self, place: usize, length: u64) -> &[u8] {
        let end = usize::try_from(length).ok().and_then(|length| place.checked_add(length));
        end.and_then(|end| self.bytes.get(place..end)).unwrap_or(&[])
    }

    /// Reads what the jobs ask for and finds out what has to be written. `packer` is the target, if its clusters are
    /// packed.
    pub(super) fn fill(
        &mut self,
        sources: &[Disk],
        batch: &Batch,
        jobs: &[Job],
        rules: &Rules,
        packer: Option<&Packer>,
    ) -> Result<(), ConvertError> {
        self.runs.clear();
        self.used = 0;
        self.disk_bytes = jobs.iter().map(|job| job.length).sum();
        for job in jobs {
            match &job.work {
                Work::Skip => {}
                Work::Zero => self.add(job.offset, job.length, RunContent::Zero, rules),
                Work::Copy(range) => self.window(sources, batch.segments(range), rules, packer)?,
            }
        }
        Ok(())
    }

    fn window(
        &mut self,
        sources: &[Disk],
        segments: &[Segment],
        rules: &Rules,
        packer: Option<&Packer>,
    ) -> Result<(), ConvertError> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let window = Window { offset: first.offset, place: self.used };
        self.used = window.place(last.offset + last.length);
        if rules.offload {
            for segment in segments {
                let content = match segment.kind {
                    Kind::Zero => RunContent::Zero,
                    Kind::Backing => continue,
                    Kind::Data { source, extent } => RunContent::Offload { source, extent },
                };
                self.add(segment.offset, segment.length, content, rules);
            }
            return Ok(());
        }
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used, 0);
        }
        for segment in segments {
            let into = &mut self.bytes[window.place(segment.offset)..window.place(segment.offset + segment.length)];
            match segment.kind {
                Kind::Zero => rules.make_zeros(into),
                Kind::Backing => {}
                Kind::Data { source, extent } => match read(&sources[source], source, &extent, into) {
                    Err(_) if rules.salvage => salvage(&sources[source], source, &extent, into, &mut self.unreadable),
                    done => done?,
                },
            }
        }
        for stretch in segments.split(|segment| segment.kind == Kind::Backing) {
            let (Some(head), Some(tail)) = (stretch.first(), stretch.last()) else { continue };
            let range = window.place(head.offset)..window.place(tail.offset + tail.length);
            match packer {
                Some(packer) => self.pack(range, window, rules, packer)?,
                None => self.split(stretch, range, window, rules),
            }
        }
        Ok(())
    }

    /// Packs every cluster of a stretch that is not all zeros.
    fn pack(
        &mut self,
        stretch: Range<usize>,
        window: Window,
        rules: &Rules,
        packer: &Packer,
    ) -> Result<(), ConvertError> {
        let mut at = stretch.start;
        while at < stretch.end {
            let range = at..(at + rules.cluster).min(stretch.end);
            let (offset, length) = (window.offset(at), range.len() as u64);
            let cluster = &self.bytes[range.clone()];
            let content = if !rules.dense && is_zero(cluster) {
                RunContent::Zero
            } else {
                match packer.pack(cluster).map_err(|error| ConvertError::Write { offset, error })? {
                    Some(packed) => RunContent::Packed(packed),
                    None => RunContent::Data(at),
                }
            };
            self.add(offset, length, content, rules);
            at = range.end;
        }
        Ok(())
    }

    /// Tells data from zeros in a stretch.
    fn split(&mut self, segments: &[Segment], stretch: Range<usize>, window: Window, rules: &Rules) {
        let (start, end) = (window.offset(stretch.start), window.offset(stretch.end));
        if rules.dense {
            self.add(start, end - start, RunContent::Data(stretch.start), rules);
            return;
        }
        let unit = rules.unit;
        let mut zero_from = start;
        let bytes = std::mem::take(&mut self.bytes);
        for same in segments.chunk_by(|a, b| (a.kind == Kind::Zero) == (b.kind == Kind::Zero)) {
            let (Some(head), Some(tail)) = (same.first(), same.last()) else { continue };
            if head.kind == Kind::Zero {
                continue;
            }
            let range = window.place(head.offset)..window.place(tail.offset + tail.length);
            rules.split.runs(&bytes[range.clone()], head.offset, |zero, run| {
                if zero {
                    return;
                }
                // What lies around the data in its unit was read too, or is zero and was filled in.
                let (from, to) = (head.offset + run.start as u64, head.offset + run.end as u64);
                let from = (from & !(unit - 1)).max(window.offset).max(zero_from);
                let to = to.div_ceil(unit).saturating_mul(unit).min(end);
                if from >= to {
                    return;
                }
                if zero_from < from {
                    self.add(zero_from, from - zero_from, RunContent::Zero, rules);
                }
                self.add(from, to - from, RunContent::Data(window.place(from)), rules);
                zero_from = to;
            });
        }
        self.bytes = bytes;
        if zero_from < end {
            self.add(zero_from, end - zero_from, RunContent::Zero, rules);
        }
    }

    /// Adds a run, joined with the last if that is of the same content.
    fn add(&mut self, offset: u64, length: u64, content: RunContent, rules: &Rules) {
        if rules.zero_already && matches!(content, RunContent::Zero) {
            return;
        }
        if let Some(last) = self.runs.last_mut().filter(|last| last.offset + last.length == offset) {
            let joins = match (&last.content, &content) {
                (RunContent::Zero, RunContent::Zero) => true,
                (RunContent::Data(before), RunContent::Data(place)) => *before as u64 + last.length == *place as u64,
                _ => false,
            };
            if joins {
                last.length += length;
                return;
            }
        }
        self.runs.push(Run { offset, length, content });
    }
}

/// Reads a part of an extent, from its beginning.
pub(super) fn read(disk: &Disk, source: usize, extent: &Extent, into: &mut [u8]) -> Result<(), ConvertError> {
    disk.read_extent(extent, into).map_err(|error| ConvertError::Read { source, offset: extent.guest_offset, error })
}

/// Reads sector by sector; where one cannot be read, there are zeros.
fn salvage(disk: &Disk, source: usize, extent: &Extent, into: &mut [u8], unreadable: &mut Vec<Unreadable>) {
    const SECTOR: usize = 512;
    let mut rest = *extent;
    for sector in into.chunks_mut(SECTOR) {
        let length = sector.len() as u64;
        if let Err(error) = disk.read_extent(&rest, sector) {
            sector.fill(0);
            unreadable.push(Unreadable { source, offset: rest.guest_offset, length, error, status: false });
        }
        rest = part_of(&rest, length, rest.length.saturating_sub(length));
    }
}

/// Packs clusters for a target that is written meanwhile.
pub(super) struct Packer {
    codecs: Arc<dyn Codecs + Send + Sync>,
    method: CompressionType,
    cluster: usize,
}

impl Packer {
    /// `None` unless the clusters are to be packed.
    pub(super) fn new(target: &Disk, rules: &Rules) -> Result<Option<Self>, Error> {
        let Some(image) = target.image().filter(|_| rules.compress) else { return Ok(None) };
        let method = CompressionType::from_u8(image.header().header.compression_type)?;
        Ok(Some(Self { codecs: Arc::clone(&image.options().codecs), method, cluster: rules.cluster }))
    }

    /// As [`qcowkit_core::image::Image::pack`].
    fn pack(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut packed = Vec::new();
        let smaller = if cluster.len() < self.cluster {
            let mut whole = cluster.to_vec();
            whole.resize(self.cluster, 0);
            self.codecs.compress(self.method, &whole, &mut packed)?
        } else {
            self.codecs.compress(self.method, cluster, &mut packed)?
        };
        Ok(smaller.then_some(packed))
    }
}
