//! One window of the disk: read, searched for zeros, packed. Nothing is decided here, so threads do it side by side.

use std::ops::Range;
use std::sync::Arc;

use qcowkit_core::Error;
use qcowkit_core::codec::{Codecs, CompressionType};
use qcowkit_core::storage::ReadStorage;

use super::plan::{Kind, Segment};
use super::split::Split;
use super::{ConvertError, ConvertOptions, TargetState};
use crate::disk::Disk;
use crate::zeros::is_zero;

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
}

/// A window that was read.
#[derive(Debug, Default)]
pub(super) struct Piece {
    bytes: Vec<u8>,
    pub(super) runs: Vec<Run>,
}

/// A part of a window and what becomes of it.
#[derive(Debug)]
pub(super) struct Run {
    /// Bytes of the window.
    pub(super) range: Range<usize>,
    pub(super) content: RunContent,
}

#[derive(Debug)]
pub(super) enum RunContent {
    Data,
    Zero,
    /// One cluster, packed.
    Packed(Vec<u8>),
}

impl Piece {
    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or(&[])
    }

    /// Reads a window and finds out what has to be written. `packer` is the target, if its clusters are packed.
    pub(super) fn fill(
        &mut self,
        sources: &[Disk],
        segments: &[Segment],
        rules: &Rules,
        packer: Option<&Packer>,
    ) -> Result<(), ConvertError> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let start = first.offset;
        let place = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
        self.runs.clear();
        let length = place(last.offset + last.length);
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
        for segment in segments {
            let into = &mut self.bytes[place(segment.offset)..place(segment.offset + segment.length)];
            match segment.kind {
                Kind::Zero => into.fill(0),
                Kind::Backing => {}
                Kind::Data { source, extent } => sources[source]
                    .read_extent(&extent, into)
                    .map_err(|error| ConvertError::Read { source, offset: extent.guest_offset, error })?,
            }
        }
        for stretch in segments.split(|segment| segment.kind == Kind::Backing) {
            let (Some(head), Some(tail)) = (stretch.first(), stretch.last()) else { continue };
            let range = place(head.offset)..place(tail.offset + tail.length);
            match packer {
                Some(packer) => self.pack(range, start, rules, packer)?,
                None => self.split(stretch, range, start, rules),
            }
        }
        Ok(())
    }

    /// Packs every cluster of a stretch that is not all zeros.
    fn pack(&mut self, stretch: Range<usize>, start: u64, rules: &Rules, packer: &Packer) -> Result<(), ConvertError> {
        let mut at = stretch.start;
        while at < stretch.end {
            let range = at..(at + rules.cluster).min(stretch.end);
            let cluster = &self.bytes[range.clone()];
            at = range.end;
            if !rules.dense && is_zero(cluster) {
                self.add(range, RunContent::Zero, rules);
                continue;
            }
            let packed = packer
                .pack(cluster)
                .map_err(|error| ConvertError::Write { offset: start + range.start as u64, error })?;
            match packed {
                Some(packed) => self.runs.push(Run { range, content: RunContent::Packed(packed) }),
                None => self.add(range, RunContent::Data, rules),
            }
        }
        Ok(())
    }

    /// Tells data from zeros in a stretch.
    fn split(&mut self, segments: &[Segment], stretch: Range<usize>, start: u64, rules: &Rules) {
        if rules.dense {
            self.add(stretch, RunContent::Data, rules);
            return;
        }
        let place = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX);
        let (unit, window) = (rules.unit, start);
        let mut zero_from = stretch.start;
        let bytes = std::mem::take(&mut self.bytes);
        for same in segments.chunk_by(|a, b| (a.kind == Kind::Zero) == (b.kind == Kind::Zero)) {
            let (Some(head), Some(tail)) = (same.first(), same.last()) else { continue };
            if head.kind == Kind::Zero {
                continue;
            }
            let range = place(head.offset)..place(tail.offset + tail.length);
            rules.split.runs(&bytes[range.clone()], head.offset, |zero, run| {
                if zero {
                    return;
                }
                // What lies around the data in its unit was read too, or is zero and was filled in.
                let (from, to) = (window + (range.start + run.start) as u64, window + (range.start + run.end) as u64);
                let from = place((from & !(unit - 1)).max(window)).max(zero_from);
                let to = place(to.div_ceil(unit).saturating_mul(unit)).min(stretch.end);
                if from >= to {
                    return;
                }
                if zero_from < from {
                    self.add(zero_from..from, RunContent::Zero, rules);
                }
                self.add(from..to, RunContent::Data, rules);
                zero_from = to;
            });
        }
        self.bytes = bytes;
        if zero_from < stretch.end {
            self.add(zero_from..stretch.end, RunContent::Zero, rules);
        }
    }

    /// Adds a run, joined with the last if that is of the same content.
    fn add(&mut self, range: Range<usize>, content: RunContent, rules: &Rules) {
        if rules.zero_already && matches!(content, RunContent::Zero) {
            return;
        }
        match (self.runs.last_mut(), &content) {
            (Some(Run { range: last, content: RunContent::Data }), RunContent::Data)
            | (Some(Run { range: last, content: RunContent::Zero }), RunContent::Zero)
                if last.end == range.start =>
            {
                last.end = range.end;
            }
            _ => self.runs.push(Run { range, content }),
        }
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
