//! A file object of Python as storage: whatever has `seek` and `read` or `readinto`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyAttributeError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use qcowkit_core::storage::{
    Capabilities, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind, ZeroMode,
};

use crate::calls;

/// The most that is asked of a file object at once.
const PIECE: usize = 8 << 20;
/// Zeros are written in pieces of this size.
const ZEROS: usize = 1 << 20;

/// A binary file object. It has one position, so that one thread at a time uses it; the object must not be used by others
/// meanwhile. Its length is asked once: nobody else changes it.
pub(crate) struct ObjectStorage {
    object: Py<PyAny>,
    writable: bool,
    reads_into: bool,
    /// Always taken before the GIL, never while it is held.
    position: Mutex<()>,
    length: AtomicU64,
}

impl ObjectStorage {
    /// Takes a file object, to be written where `writable`.
    ///
    /// # Errors
    /// When it does not seek, is not binary, or cannot be written; what the object raises.
    pub(crate) fn new(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        let py = object.py();
        let has = |name: &Bound<'_, pyo3::types::PyString>| object.hasattr(name);
        if !has(intern!(py, "seek"))? || !(has(intern!(py, "read"))? || has(intern!(py, "readinto"))?) {
            let kind = object.get_type().name()?;
            return Err(pyo3::exceptions::PyTypeError::new_err(format!(
                "an image is opened by a path, bytes, or a binary file object with seek() and read() or readinto(), \
                 not by {kind}"
            )));
        }
        refuse(object, "seekable", "the file object cannot seek")?;
        if writable {
            refuse(object, "writable", "the file object cannot be written")?;
            if !has(intern!(py, "write"))? {
                return Err(PyValueError::new_err("the file object cannot be written"));
            }
        }
        let length = end_of(object)?;
        Ok(Self {
            reads_into: !has(intern!(py, "read"))?,
            object: object.clone().unbind(),
            writable,
            position: Mutex::new(()),
            length: AtomicU64::new(length),
        })
    }

    /// What tells this object from all others as long as it is there.
    pub(crate) fn identity(&self) -> String {
        format!("object at {:p}", self.object.as_ptr())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls Python; what it raises is kept for the caller, and the core is told of a failure.
    fn ask<T>(
        &self,
        operation: &'static str,
        offset: Option<u64>,
        ask: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Result<T, StorageError> {
        let _one = self.lock();
        Python::attach(|py| {
            ask(self.object.bind(py)).map_err(|error| {
                let failure = calls::raised(py, error, operation);
                offset.map_or(failure.clone(), |offset| failure.at(offset))
            })
        })
    }

    fn admit(&self, operation: &'static str) -> Result<(), StorageError> {
        match self.writable {
            true => Ok(()),
            false => Err(StorageError::new(StorageErrorKind::ReadOnly, operation)),
        }
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.admit("write")?;
        self.ask("write", Some(offset), |object| {
            let mut rest = from;
            let mut at = offset;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(PIECE));
                seek(object, at)?;
                let written =
                    object.call_method1(intern!(object.py(), "write"), (PyBytes::new(object.py(), piece),))?;
                // Objects that answer nothing have taken all.
                let count = written.extract::<Option<usize>>()?.unwrap_or(piece.len());
                if count == 0 || count > piece.len() {
                    return Err(PyOSError::new_err("the file object's write() did not write"));
                }
                at += count as u64;
                rest = if count == piece.len() { after } else { &rest[count..] };
            }
            Ok(())
        })?;
        self.length.fetch_max(offset + from.len() as u64, Ordering::AcqRel);
        Ok(())
    }
}

fn seek(object: &Bound<'_, PyAny>, offset: u64) -> PyResult<()> {
    object.call_method1(intern!(object.py(), "seek"), (offset,)).map(drop)
}

/// The length: where a seek to the end leads.
fn end_of(object: &Bound<'_, PyAny>) -> PyResult<u64> {
    let end = object.call_method1(intern!(object.py(), "seek"), (0, 2))?;
    match end.extract::<Option<u64>>()? {
        Some(end) => Ok(end),
        None => object.call_method0(intern!(object.py(), "tell"))?.extract(),
    }
}

/// Refuses an object that says it cannot.
fn refuse(object: &Bound<'_, PyAny>, method: &str, words: &'static str) -> PyResult<()> {
    match object.call_method0(method) {
        Ok(answer) if !answer.is_truthy()? => Err(PyValueError::new_err(words)),
        Ok(_) => Ok(()),
        Err(error) if error.is_instance_of::<PyAttributeError>(object.py()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads once, at the position of the object; 0 at the end.
fn read_some(object: &Bound<'_, PyAny>, into: &mut [u8], reads_into: bool) -> PyResult<usize> {
    let py = object.py();
    let wanted = into.len().min(PIECE);
    let nothing = || PyOSError::new_err("the file object has nothing to read at present: it must be a blocking one");
    if reads_into {
        let buffer = PyByteArray::new(py, &vec![0; wanted]);
        let count = object.call_method1(intern!(py, "readinto"), (&buffer,))?.extract::<Option<usize>>()?;
        let count = count.ok_or_else(nothing)?.min(wanted);
        into[..count].copy_from_slice(&buffer.to_vec()[..count]);
        return Ok(count);
    }
    let read = object.call_method1(intern!(py, "read"), (wanted,))?;
    if read.is_none() {
        return Err(nothing());
    }
    let bytes = read.cast_into::<PyBytes>().map_err(|_| {
        pyo3::exceptions::PyTypeError::new_err("the file object's read() does not give bytes: open it in binary mode")
    })?;
    let bytes = bytes.as_bytes();
    if bytes.len() > wanted {
        return Err(PyOSError::new_err("the file object's read() gave more than it was asked for"));
    }
    into[..bytes.len()].copy_from_slice(bytes);
    Ok(bytes.len())
}

impl ReadStorage for ObjectStorage {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.length.load(Ordering::Acquire))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let there = self.length.load(Ordering::Acquire).saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(into.len());
        let (mut rest, past_end) = into.split_at_mut(there);
        past_end.fill(0);
        if rest.is_empty() {
            return Ok(());
        }
        self.ask("read", Some(offset), |object| {
            seek(object, offset)?;
            while !rest.is_empty() {
                let count = read_some(object, rest, self.reads_into)?;
                if count == 0 {
                    // It became shorter, or said wrongly how long it is.
                    return Err(PyOSError::new_err("the file object ended before its end"));
                }
                rest = &mut std::mem::take(&mut rest)[count..];
            }
            Ok(())
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: !self.writable, grows: self.writable, ..Capabilities::default() }
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        let length = self.length.load(Ordering::Acquire).saturating_sub(offset);
        let kind = if length > 0 { StorageExtentKind::Unknown } else { StorageExtentKind::Hole };
        Ok(StorageExtent { kind, length })
    }
}

impl Storage for ObjectStorage {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.write(offset, from)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> Result<(), StorageError> {
        let zeros = vec![0; usize::try_from(length).unwrap_or(ZEROS).min(ZEROS)];
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(ZEROS).min(zeros.len());
            self.write(at, &zeros[..piece])?;
            at += piece as u64;
        }
        Ok(())
    }

    /// Advisory, and no file object of Python can do it.
    fn discard(&self, _offset: u64, _length: u64) -> Result<(), StorageError> {
        self.admit("discard")
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.admit("set the length")?;
        let present = self.len()?;
        if length > present {
            // Not all objects grow when they are truncated; all that can be written grow when they are written.
            return self.write(length - 1, &[0]);
        }
        if length < present {
            self.ask("set the length", Some(length), |object| {
                object.call_method1(intern!(object.py(), "truncate"), (length,)).map(drop)
            })?;
            self.length.store(length, Ordering::Release);
        }
        Ok(())
    }

    /// There is no way to reserve: the length alone is set.
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let end = offset.saturating_add(length);
        if end > self.len()? { self.set_len(end) } else { self.admit("allocate") }
    }

    /// Flushes the object; if it has a descriptor of the system, also that.
    fn barrier(&self) -> Result<(), StorageError> {
        self.admit("flush")?;
        self.ask("flush", None, |object| {
            let py = object.py();
            if object.hasattr(intern!(py, "flush"))? {
                object.call_method0(intern!(py, "flush"))?;
            }
            // `io.UnsupportedOperation` is an OSError and a ValueError: such an object has no descriptor.
            match object.call_method0(intern!(py, "fileno")) {
                Ok(descriptor) => py.import("os")?.call_method1("fsync", (descriptor,)).map(drop),
                Err(error) if error.is_instance_of::<PyAttributeError>(py) || error.is_instance_of::<PyOSError>(py) => {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }
}
