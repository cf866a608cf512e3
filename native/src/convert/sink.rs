//! The one place that writes the target, by whichever thread has the turn.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use qcowkit_core::Error;
use qcowkit_core::image::{Content, Extent};
use qcowkit_core::storage::{Storage, ZeroMode};

use super::piece::{GROW_BYTES, Piece, Rules, RunContent, read};
use super::plan::part_of;
use super::{ConvertError, ConvertOptions, ConvertReport};
use crate::disk::Disk;

/// The target and what was written to it.
pub(super) struct Sink<'a> {
    target: &'a mut Disk,
    zero_already: bool,
    /// Clusters before this byte are reserved whole, or not worth it any more.
    reserved_to: u64,
    /// The system copies data for us, so far.
    offload: bool,
    rate: Option<Rate>,
    buffer: Vec<u8>,
    report: ConvertReport,
}

impl<'a> Sink<'a> {
    pub(super) fn new(target: &'a mut Disk, rules: &Rules, options: &ConvertOptions) -> Self {
        Self {
            target,
            zero_already: rules.zero_already,
            reserved_to: 0,
            offload: options.offload,
            rate: options.rate.map(|per_second| Rate { per_second, free_at: Instant::now() }),
            buffer: Vec::new(),
            report: ConvertReport::default(),
        }
    }

    pub(super) fn target(&self) -> &Disk {
        self.target
    }

    pub(super) fn report(&self) -> ConvertReport {
        self.report
    }

    /// Writes a portion.
    pub(super) fn write(&mut self, piece: &Piece, sources: &[Disk]) -> Result<(), ConvertError> {
        for run in &piece.runs {
            let (offset, length) = (run.offset, run.length);
            let failed = |error| ConvertError::Write { offset, error };
            match &run.content {
                RunContent::Zero => {
                    self.target.write_zeroes(offset, length, true).map_err(failed)?;
                    self.report.zero_bytes += length;
                    continue;
                }
                RunContent::Offload { source, extent } => self.copy(offset, &sources[*source], *source, extent)?,
                RunContent::Data(place) => {
                    self.reserve(offset, length).map_err(failed)?;
                    self.target.write_at(offset, piece.bytes(*place, length)).map_err(failed)?;
                }
                RunContent::Packed(packed) => {
                    let image = self.target.image_mut().ok_or(ConvertError::Cancelled)?;
                    image.write_packed(offset, packed).map_err(failed)?;
                    self.report.compressed_bytes += length;
                    self.report.packed_bytes += packed.len() as u64;
                }
            }
            self.report.data_bytes += length;
            if let Some(rate) = &mut self.rate {
                rate.spend(length);
            }
        }
        Ok(())
    }

    /// Copies data that were not read: by the system, or, once that has failed, by hand.
    fn copy(&mut self, offset: u64, disk: &Disk, source: usize, extent: &Extent) -> Result<(), ConvertError> {
        let mut done = 0;
        while done < extent.length {
            let length = (extent.length - done).min(COPY_BYTES);
            let (part, at) = (part_of(extent, done, length), offset + done);
            let failed = |error| ConvertError::Write { offset: at, error };
            if self.offload && self.copy_by_system(at, disk, &part).map_err(failed)? {
                self.report.offloaded_bytes += length;
            } else {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let mut buffer = std::mem::take(&mut self.buffer);
                buffer.resize(length, 0);
                let written = read(disk, source, &part, &mut buffer)
                    .and_then(|()| self.reserve(at, length as u64).map_err(failed))
                    .and_then(|()| self.target.write_at(at, &buffer).map_err(failed));
                self.buffer = buffer;
                written?;
            }
            done += length;
        }
        Ok(())
    }

    /// False where the system cannot copy these bytes as they are: packed, encrypted, or together with others.
    fn copy_by_system(&mut self, offset: u64, disk: &Disk, extent: &Extent) -> Result<bool, Error> {
        let Content::Data { host_offset } = extent.content else { return Ok(false) };
        let from = match disk {
            Disk::Raw(_) => disk.file(),
            Disk::Qcow2(image) => match image.data_at_depth(extent.depth) {
                Ok(file) => file,
                Err(_) => return Ok(false),
            },
        };
        let Disk::Qcow2(image) = &mut *self.target else {
            self.offload = self.target.file().copy_from(from, host_offset.get(), offset, extent.length)?;
            return Ok(self.offload);
        };
        if image.data_at_depth(0).is_err() {
            return Ok(false);
        }
        let plan = image.prepare_write(offset, extent.length)?;
        let mut copied = Ok(!plan.moves_old_bytes());
        if let (Ok(true), Ok(to)) = (&copied, image.data_at_depth(0)) {
            for (at, length, place) in plan.targets() {
                let source = host_offset.get() + (at - offset);
                copied = to.copy_from(from, source, place.get(), length);
                self.offload &= !matches!(copied, Ok(false));
                if !matches!(copied, Ok(true)) {
                    break;
                }
            }
        }
        match copied {
            Ok(true) => image.commit_write(plan).map(|()| true),
            Ok(false) => image.abort_write(plan).map(|()| false),
            Err(error) => image.abort_write(plan).and(Err(error.into())),
        }
    }

    /// Has the large clusters of a run reserved as a whole: written in parts, they would be scattered on the host.
    fn reserve(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        let Some(image) = self.target.image_mut().filter(|_| self.zero_already) else { return Ok(()) };
        let cluster = image.geometry().cluster_size();
        if image.geometry().subcluster_size() <= GROW_BYTES || image.encryption().is_some() {
            // Zeros of the file are no zeros of an encrypted disk.
            return Ok(());
        }
        let end = (offset + length).next_multiple_of(cluster).min(image.virtual_size());
        let start = (offset & !(cluster - 1)).max(self.reserved_to);
        let partly = start < offset || offset + length < end;
        if end <= start || !partly {
            return Ok(());
        }
        self.reserved_to = end;
        let plan = image.prepare_write(start, end - start)?;
        let storage = image.data_file().unwrap_or_else(|| image.storage());
        let zeroed = plan
            .targets()
            .try_for_each(|(_, length, host)| storage.write_zeroes(host.get(), length, ZeroMode::KeepAllocated));
        match zeroed {
            Ok(()) => image.commit_write(plan),
            Err(error) => {
                image.abort_write(plan)?;
                Err(error.into())
            }
        }
    }
}

/// The most bytes that are copied, and counted against the rate, at once.
const COPY_BYTES: u64 = 2 << 20;

/// How fast data may be written.
struct Rate {
    /// Bytes.
    per_second: NonZeroU64,
    /// When what was written so far is paid for.
    free_at: Instant,
}

impl Rate {
    /// Waits as long as it takes to write so many bytes. What was written slower before gives no credit.
    fn spend(&mut self, bytes: u64) {
        let now = Instant::now();
        // Exact enough: more than a second's worth is rare.
        let time = Duration::from_secs_f64(bytes as f64 / self.per_second.get() as f64);
        self.free_at = self.free_at.max(now) + time;
        std::thread::sleep(self.free_at - now);
    }
}
