//! Carrying out a batch: threads that read ahead, and this thread, which writes.

use super::piece::{Packer, Piece, Rules};
use super::plan::{Batch, Work};
use super::sink::Sink;
use super::{ConvertError, ConvertOptions};
use crate::disk::Disk;

/// Carries out all jobs of a batch.
pub(super) fn run(
    batch: &Batch,
    sources: &[Disk],
    sink: &mut Sink<'_>,
    rules: &Rules,
    _options: &ConvertOptions,
) -> Result<(), ConvertError> {
    let packer = Packer::new(sink.target(), rules).map_err(ConvertError::Refused)?;
    let mut piece = Piece::default();
    for job in &batch.jobs {
        match &job.work {
            Work::Skip => {}
            Work::Zero => sink.zero(job.offset, job.length)?,
            Work::Copy(range) => {
                piece.fill(sources, batch.segments(range), rules, packer.as_ref())?;
                sink.write(job.offset, &piece)?;
            }
        }
        sink.report_progress(job.length)?;
    }
    Ok(())
}
