//! The one place that writes the target, by whichever thread has the turn.

use qcowkit_core::Error;
use qcowkit_core::storage::{Storage, ZeroMode};

use super::piece::{GROW_BYTES, Piece, Rules, RunContent};
use super::{ConvertError, ConvertReport};
use crate::disk::Disk;

/// The target and what was written to it.
pub(super) struct Sink<'a> {
    target: &'a mut Disk,
    zero_already: bool,
    /// Clusters before this byte are reserved whole, or not worth it any more.
    reserved_to: u64,
    report: ConvertReport,
}

impl<'a> Sink<'a> {
    pub(super) fn new(target: &'a mut Disk, rules: &Rules) -> Self {
        Self { target, zero_already: rules.zero_already, reserved_to: 0, report: ConvertReport::default() }
    }

    pub(super) fn target(&self) -> &Disk {
        self.target
    }

    pub(super) fn report(&self) -> ConvertReport {
        self.report
    }

    /// Writes a portion.
    pub(super) fn write(&mut self, piece: &Piece) -> Result<(), ConvertError> {
        for run in &piece.runs {
            let (offset, length) = (run.offset, run.length);
            let failed = |error| ConvertError::Write { offset, error };
            match &run.content {
                RunContent::Zero => {
                    self.target.write_zeroes(offset, length, true).map_err(failed)?;
                    self.report.zero_bytes += length;
                    continue;
                }
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
        }
        Ok(())
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
