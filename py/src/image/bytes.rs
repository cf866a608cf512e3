//! The guest's bytes.

use std::cell::Cell;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyException};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice};
use qcowkit::options::runtime;
use qcowkit::shared::SharedImage;
use qcowkit_core::{Error, ErrorKind, Result};

use super::Image;
use super::ahead::Asked;
use crate::opening::exact_bytes;
use crate::storage::Store;
use crate::{calls, fresh};

/// Between pieces of this size Ctrl-C is heard, and memory is bounded by it where bytes are copied.
const PIECE: usize = 4 << 20;
/// Buffers of others may change under our hands: bytes go there by way of memory of our own, of which so many are at once
/// in the cache of a core.
const BOUNCED: usize = 512 << 10;
/// Discards and zeros go on in pieces that end at multiples of this, which every cluster size divides.
const STRETCH: u64 = 1 << 30;

thread_local! {
    /// What [`Image::readinto`] reads into; kept, since fresh memory costs as much as a copy.
    static BOUNCE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[pymethods]
impl Image {
    /// Bytes of the guest.
    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        // Before memory is taken for it.
        self.refuse_beyond(py, offset, length)?;
        let bytes = usize::try_from(length).map_err(|_| self.raised(py, &Error::invalid("too long for memory")))?;
        match self.ahead.ask(py, offset, length) {
            Asked::Bytes(bytes) => return Ok(bytes),
            Asked::Pieces(pieces) if pieces > 1 => {
                if let Some(first) = self.read_pieces(py, offset, bytes, pieces)? {
                    return Ok(first);
                }
            }
            Asked::Pieces(_) => {}
        }
        fresh::filled(py, bytes, |into| self.share_open(py, true, |open| open.read_at(offset, into)))
    }

    /// Fills a buffer, which must be writable and contiguous.
    fn readinto(&self, py: Python<'_>, offset: u64, buffer: &Bound<'_, PyAny>) -> PyResult<u64> {
        let view = PyMemoryView::from(buffer)?;
        if view.getattr(intern!(py, "readonly"))?.is_truthy()? {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        if !view.getattr(intern!(py, "c_contiguous"))?.is_truthy()? {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        let length = view.getattr(intern!(py, "nbytes"))?.extract::<usize>()?;
        self.refuse_beyond(py, offset, length as u64)?;
        if length == 0 {
            return Ok(0);
        }
        let bytes = view.call_method1(intern!(py, "cast"), ("B",))?;
        // Taken, so that a call that comes in between has one of its own.
        let mut piece = BOUNCE.take();
        piece.resize(length.min(BOUNCED).max(piece.len()), 0);
        let mut done = 0;
        while done < length {
            py.check_signals()?;
            let piece = &mut piece[..(length - done).min(BOUNCED)];
            let end = done + piece.len();
            self.share_open(py, true, |open| open.read_at(offset + done as u64, piece))?;
            let into = match piece.len() == length {
                true => PyBuffer::<u8>::get(&bytes)?,
                false => PyBuffer::<u8>::get(&bytes.get_item(PySlice::new(py, done as isize, end as isize, 1))?)?,
            };
            into.copy_from_slice(py, piece)?;
            done = end;
        }
        BOUNCE.set(piece);
        Ok(length as u64)
    }

    /// Writes bytes of the guest.
    fn write(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let data = exact_bytes(data)?;
        self.share(py, false, |image| {
            writable(image, offset, data.len() as u64)?;
            let mut at = offset;
            for piece in data.chunks(PIECE) {
                calls::checkpoint()?;
                image.write_at(at, piece)?;
                at += piece.len() as u64;
            }
            Ok(data.len() as u64)
        })
    }

    /// Makes a range read as zeros.
    fn write_zeroes(&self, py: Python<'_>, offset: u64, length: u64, unmap: bool) -> PyResult<()> {
        self.share(py, false, |image| {
            writable(image, offset, length)?;
            stretches(offset, length, |at, length| image.write_zeroes(at, length, unmap))
        })
    }

    /// Tells that a range is needed no more; with `once`, under another policy this once.
    #[pyo3(signature = (offset, length, once=None))]
    fn discard(&self, py: Python<'_>, offset: u64, length: u64, once: Option<Vec<(String, String)>>) -> PyResult<()> {
        let Some(once) = once else {
            return self.share(py, false, |image| {
                writable(image, offset, length)?;
                stretches(offset, length, |at, length| image.discard(at, length))
            });
        };
        self.share(py, false, |image| writable(image, offset, length))?;
        self.change(py, |image| {
            let mut options = image.options().clone();
            once.iter().try_for_each(|(key, value)| runtime::set(&mut options, key, value).map_err(Error::invalid))?;
            let (policy, discard) = image.set_discard_policy(options.policy, options.discard);
            let done = stretches(offset, length, |at, length| image.discard(at, length));
            image.set_discard_policy(policy, discard);
            done
        })
    }

    /// Makes everything durable.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.share(py, false, SharedImage::flush)
    }
}

impl Image {
    /// Reads several pieces at once, keeps all but the first for who reads on, and gives that. Nothing where it must not be
    /// done so, or fails: the piece that was asked for is then read alone.
    ///
    /// # Errors
    /// What ends the call whatever it does: Ctrl-C.
    fn read_pieces<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: usize,
        pieces: u64,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let each = length as u64;
        let pieces = match self.state.try_read() {
            Ok(state) => state
                .as_ref()
                .filter(|open| open.still)
                .map_or(0, |open| pieces.min(open.image.virtual_size().saturating_sub(offset) / each) as usize),
            Err(_) => 0,
        };
        let mut read = false;
        let filled = fresh::filled_each(py, pieces, length, |places| {
            read = pieces > 1 && self.share_open(py, true, |open| open.image.read_places_together(offset, places))?;
            Ok(())
        });
        match filled {
            Ok(filled) if read => {
                let mut filled = filled.into_iter();
                let first = filled.next();
                self.ahead.keep(offset + each, each, filled);
                Ok(first)
            }
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            Ok(_) | Err(_) => {
                self.ahead.forget();
                Ok(None)
            }
        }
    }
}

pub(super) fn in_range(image: &SharedImage<Store>, offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= image.virtual_size() => Ok(()),
        _ => Err(Error::new(ErrorKind::OutOfRange).at_guest(offset)),
    }
}

/// Asked for the whole range before the first piece of it is changed.
fn writable(image: &SharedImage<Store>, offset: u64, length: u64) -> Result<()> {
    if image.options().read_only {
        return Err(ErrorKind::ReadOnly.into());
    }
    in_range(image, offset, length)
}

/// Goes through a range, and hears Ctrl-C in between.
fn stretches(offset: u64, length: u64, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        calls::checkpoint()?;
        let here = (STRETCH - at % STRETCH).min(end - at);
        each(at, here)?;
        at += here;
    }
    Ok(())
}
