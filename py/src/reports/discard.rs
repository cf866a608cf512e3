//! Discards: planned on a copy that lies in memory, and carried out.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use qcowkit::options::runtime;
use qcowkit_core::image::{Image as CoreImage, OpenOptions};
use qcowkit_core::operations::trim::{DiscardReport, GuestRange, trim, trim_while};
use qcowkit_core::storage::{CountingStorage, ReadStorage, Storage};
use qcowkit_core::{Error, Result};

use super::again::Chain;
use super::report;
use super::tables::{KINDS, kind};
use crate::calls::Progress;
use crate::image::Image;
use crate::storage::Store;
use crate::table::{Columns, Optional, Table, batches, ranges_of};

#[pymethods]
impl Image {
    /// What discards of these ranges would do: the report, the pieces with their states before and after, and a number
    /// that stands for the state of the ranges before.
    fn plan_discard<'py>(
        &self,
        py: Python<'py>,
        ranges: Vec<(u64, u64)>,
        policy: Vec<(String, String)>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Table, u64)> {
        let ranges = guest_ranges(ranges);
        let mut progress = Progress::new(progress);
        let name = self.report_name();
        let (plan, pieces, state) = self.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            let before = pieces(image, &ranges)?;
            let sizes = Sizes::of(image)?;
            let options = with_policy(image.options(), &policy)?;
            let dry = |store: Store| Ok(CountingStorage::new(store.scratch()?));
            let mut copy = Chain::of(image).open(options, dry)?;
            let trimmed = trim(&mut copy, &ranges, &mut |done, total| progress.note(done, total))?;
            let after = pieces(&mut copy, &ranges)?;
            let plan = DiscardReport {
                filename: name,
                dry_run: true,
                trim: trimmed,
                host_bytes_before: sizes.held,
                host_bytes_after: None,
                file_length_before: sizes.length,
                file_length_after: copy.close()?.into_inner().len()?,
            };
            let state = state(&before);
            Ok((plan, joined(&before, &after), state))
        })?;
        Ok((report(py, &plan)?, table(pieces)?, state))
    }

    /// Discards these ranges, if they are as they were when `state` was told.
    fn apply_discard<'py>(
        &self,
        py: Python<'py>,
        ranges: Vec<(u64, u64)>,
        policy: Vec<(String, String)>,
        expected: Option<u64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ranges = guest_ranges(ranges);
        let mut progress = Progress::new(progress);
        let name = self.report_name();
        let done = self.change(py, |image| {
            if image.is_read_only() {
                return Err(qcowkit_core::ErrorKind::ReadOnly.into());
            }
            if expected.is_some_and(|expected| pieces(image, &ranges).map(|now| state(&now)) != Ok(expected)) {
                return Err(Error::invalid("the ranges have changed since the discard was planned: plan it again"));
            }
            image.finish()?;
            let before = Sizes::of(image)?;
            let (chain, own) = (Chain::of(image), image.options().clone());
            let options = with_policy(&own, &policy)?;
            let mut second = chain.open(options, |store| Ok(CountingStorage::new(store)))?;
            let trimmed = trim_while(&mut second, &ranges, &mut |done, total| progress.tell(done, total).is_continue());
            let closed = second.close();
            // Whatever became of it: the tables in memory are old.
            *image = chain.open(own, Ok)?;
            let (trimmed, _) = (trimmed?, closed?);
            let after = Sizes::of(image)?;
            Ok(DiscardReport {
                filename: name,
                dry_run: false,
                trim: trimmed,
                host_bytes_before: before.held,
                host_bytes_after: after.held,
                file_length_before: before.length,
                file_length_after: after.length,
            })
        })?;
        report(py, &done)
    }
}

/// `(offset, length)` of each row of a table of another library.
#[pyfunction]
pub(crate) fn ranges_of_table(table: &Bound<'_, PyAny>) -> PyResult<Vec<(u64, u64)>> {
    ranges_of(&batches(table)?).map_err(PyTypeError::new_err)
}

/// What the file takes.
struct Sizes {
    held: Option<u64>,
    length: u64,
}

impl Sizes {
    fn of(image: &CoreImage<Store>) -> Result<Self> {
        let store = image.storage();
        let held = match store {
            Store::File(file) => Some(file.allocated_bytes()?),
            Store::Bytes(_) | Store::Object(_) | Store::Scratch(_) => {
                store.file().map(|file| file.allocated_bytes()).transpose()?
            }
        };
        Ok(Self { held, length: store.len()? })
    }
}

/// A piece of the guest's disk as the image itself has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Piece {
    offset: u64,
    length: u64,
    kind: i8,
    host_offset: Option<u64>,
}

/// The pieces of ranges, in their order.
fn pieces<S: Storage>(image: &mut CoreImage<S>, ranges: &[GuestRange]) -> Result<Vec<Piece>> {
    let mut all = Vec::new();
    for range in ranges {
        let (mut at, mut rest) = (range.offset, range.length);
        // An empty range can lie beyond the disk too.
        image.next_local_extent(at, rest)?;
        while rest > 0 {
            let extent = image.next_local_extent(at, rest)?;
            let length = extent.length.clamp(1, rest);
            let host_offset = match extent.content {
                qcowkit_core::image::Content::Data { host_offset } => Some(host_offset.get()),
                qcowkit_core::image::Content::Compressed { range, .. } => Some(range.offset.get()),
                qcowkit_core::image::Content::Zero { host_offset } => host_offset.map(|offset| offset.get()),
                qcowkit_core::image::Content::Unallocated => None,
            };
            all.push(Piece { offset: at, length, kind: kind(extent.content, false), host_offset });
            at += length;
            rest -= length;
        }
    }
    Ok(all)
}

/// A number that stands for pieces.
fn state(pieces: &[Piece]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    pieces.hash(&mut hasher);
    hasher.finish()
}

/// The pieces of which each was one before and is one after: with both kinds.
fn joined(before: &[Piece], after: &[Piece]) -> Vec<(Piece, i8)> {
    let mut all: Vec<(Piece, i8)> = Vec::new();
    let mut after = after.iter().copied();
    let mut next = after.next();
    for piece in before {
        let mut piece = *piece;
        while let Some(other) = next.filter(|_| piece.length > 0) {
            let length = piece.length.min(other.length);
            all.push((Piece { length, ..piece }, other.kind));
            let cut = |piece: Piece| Piece {
                offset: piece.offset + length,
                length: piece.length - length,
                host_offset: piece.host_offset.map(|offset| offset + length),
                ..piece
            };
            piece = cut(piece);
            next = if other.length == length { after.next() } else { Some(cut(other)) };
        }
    }
    all
}

fn table(pieces: Vec<(Piece, i8)>) -> PyResult<Table> {
    let host: Optional = pieces.iter().map(|(piece, _)| piece.host_offset).collect();
    Columns::default()
        .u64("guest_offset", pieces.iter().map(|(piece, _)| piece.offset).collect())
        .u64("length", pieces.iter().map(|(piece, _)| piece.length).collect())
        .kinds("before", &KINDS, pieces.iter().map(|(piece, _)| piece.kind).collect())
        .kinds("after", &KINDS, pieces.iter().map(|(_, after)| *after).collect())
        .optional_u64("host_offset", host)
        .table()
}

fn guest_ranges(ranges: Vec<(u64, u64)>) -> Vec<GuestRange> {
    ranges.into_iter().map(|(offset, length)| GuestRange { offset, length }).collect()
}

/// The same options with what a policy says, in QEMU's words; discards are carried out in any case.
fn with_policy(options: &OpenOptions, policy: &[(String, String)]) -> Result<OpenOptions> {
    let mut options = OpenOptions { read_only: false, keys: None, ..options.clone() };
    for (key, value) in policy {
        runtime::set(&mut options, key, value).map_err(Error::invalid)?;
    }
    Ok(options.metadata_only())
}
