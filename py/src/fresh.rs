//! `bytes` of Python that are filled where they lie, without being zeroed first: zeroing takes as long as a third of the
//! reading that follows.
#![expect(unsafe_code, reason = "PyO3 offers zeroed memory alone; each block has its proof")]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// New `bytes` of that length, which `fill` fills. It must write all of them, or fail.
///
/// # Errors
/// No memory for it, or what `fill` returns: nobody sees the object then.
pub(crate) fn filled<'py>(
    py: Python<'py>,
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> PyResult<()>,
) -> PyResult<Bound<'py, PyBytes>> {
    if length < SMALL {
        return PyBytes::new_with(py, length, fill);
    }
    let mut fresh = Fresh::new(py, length)?;
    fill(fresh.memory())?;
    Ok(fresh.bytes)
}

/// As [`filled`], several of one length, of which `fill` gets all at once. They are of at least [`SMALL`] bytes.
///
/// # Errors
/// As there; also when they would be shorter.
pub(crate) fn filled_each<'py>(
    py: Python<'py>,
    count: usize,
    length: usize,
    fill: impl FnOnce(Vec<&mut [u8]>) -> PyResult<()>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    if length < SMALL {
        return Err(PyErr::new::<pyo3::exceptions::PyValueError, _>("too short to be filled together"));
    }
    let mut all = (0..count).map(|_| Fresh::new(py, length)).collect::<PyResult<Vec<_>>>()?;
    fill(all.iter_mut().map(Fresh::memory).collect())?;
    Ok(all.into_iter().map(|fresh| fresh.bytes).collect())
}

/// A `bytes` object that nobody else has, of at least [`SMALL`] bytes, whose contents are still to be written.
struct Fresh<'py> {
    bytes: Bound<'py, PyBytes>,
    length: usize,
}

impl<'py> Fresh<'py> {
    fn new(py: Python<'py>, length: usize) -> PyResult<Self> {
        let size =
            ffi::Py_ssize_t::try_from(length).map_err(|_| PyErr::new::<pyo3::exceptions::PyMemoryError, _>(()))?;
        // SAFETY: The thread is attached. Without a source, the function makes an object of `size` bytes that the caller is
        // to fill, or returns null with an exception set, which `from_owned_ptr_or_err` takes. The object is a `bytes`.
        let bytes = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?
                .cast_into_unchecked::<PyBytes>()
        };
        Ok(Self { bytes, length })
    }

    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: The object was made in `new` and nobody else has it, so this is the only reference to its memory, as long
        // as `self` is borrowed; it is `length` bytes long and lives as long as `bytes`; an object of at least `SMALL` bytes
        // is not one of those that Python shares. The memory was given out by the C library through a function that the
        // compiler cannot look into: for all it knows, the bytes were written, and each is some `u8`. What they are is not
        // looked at: all readers below (files, codecs, fills) only write to what they are to fill, and the object is let out
        // only if that succeeded.
        unsafe { std::slice::from_raw_parts_mut(ffi::PyBytes_AsString(self.bytes.as_ptr()).cast::<u8>(), self.length) }
    }
}

/// Shorter ones are zeroed: Python shares empty ones and those of one byte, and there is nothing to be gained.
const SMALL: usize = 4096;
