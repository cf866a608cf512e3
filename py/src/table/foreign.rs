//! Memory that is shared with other libraries: with `crate::fresh`, the only unsafe code of this crate beside what PyO3
//! makes.
//!
//! Two things cross the border: tables come in by Arrow's C stream interface, and columns are lent out by Python's buffer
//! protocol. Each block says why it is sound.
#![expect(unsafe_code, reason = "other libraries' memory is known by pointers alone; each block has its proof")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use arrow_array::cast::AsArray;
use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::types::{Float64Type, Int8Type, Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::Column;

/// The batches of any object that has `__arrow_c_stream__`.
///
/// # Errors
/// What the object raises, a capsule of another name, or what the stream reports.
pub(crate) fn batches(object: &Bound<'_, PyAny>) -> PyResult<Vec<RecordBatch>> {
    let capsule = object.call_method0("__arrow_c_stream__")?;
    let capsule = capsule
        .cast_into::<PyCapsule>()
        .map_err(|_| PyTypeError::new_err("__arrow_c_stream__ did not return a capsule"))?;
    let stream = capsule.pointer_checked(Some(c"arrow_array_stream"))?.cast::<FFI_ArrowArrayStream>();
    // SAFETY: A capsule of this name holds a pointer to a valid `ArrowArrayStream` (Arrow's PyCapsule interface), which
    // lives as long as `capsule` does, and that is until the end of this function. The stream is moved out, with a
    // released one put in its place, so that the capsule's destructor finds nothing to release. Nobody else uses it
    // meanwhile: the capsule was made for this call, and the thread stays attached to Python.
    let reader = unsafe { RecordBatchStreamReader::from_raw(stream.as_ptr()) };
    let wrong = |error: arrow_schema::ArrowError| PyValueError::new_err(error.to_string());
    reader.map_err(wrong)?.map(|batch| batch.map_err(wrong)).collect()
}

#[pymethods]
impl Column {
    /// The values as memory, read-only: `memoryview(column)`, `numpy.asarray(column)`.
    ///
    /// # Safety
    /// Called by Python alone, with a `view` that it owns.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill"));
        }
        let column = slf.get();
        let refused = if (flags & ffi::PyBUF_WRITABLE) == ffi::PyBUF_WRITABLE {
            Some("a column is read-only".to_owned())
        } else if column.values.null_count() > 0 {
            Some(format!("the column '{}' has nulls: use to_numpy() or to_list()", column.name))
        } else {
            None
        };
        let found = match refused {
            Some(why) => Err(PyBufferError::new_err(why)),
            None => memory(column).ok_or_else(|| {
                PyBufferError::new_err(format!("the column '{}' is not of numbers: use to_list()", column.name))
            }),
        };
        // SAFETY: Python hands over a `Py_buffer` that it owns, which is not null as checked above; `obj` is to be null
        // when an error is returned.
        unsafe { (*view).obj = ptr::null_mut() };
        let (start, bytes, format) = found?;
        let width = column.strides[0];
        let wants = |flag: c_int| (flags & flag) == flag;
        let shape = if wants(ffi::PyBUF_ND) { column.shape.as_ptr().cast_mut() } else { ptr::null_mut() };
        let strides = if wants(ffi::PyBUF_STRIDES) { column.strides.as_ptr().cast_mut() } else { ptr::null_mut() };
        let format = if wants(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { ptr::null_mut() };
        // SAFETY: `view` as above. `start` points to `bytes` initialised bytes of an Arrow buffer that `column.values`
        // keeps alive and that is never changed, since the class is frozen; `shape` and `strides` point into the same
        // object; `format` is static. The object stays alive as long as the view, which owns a reference to it.
        unsafe {
            (*view).buf = start;
            (*view).len = bytes;
            (*view).readonly = 1;
            (*view).itemsize = width;
            (*view).format = format;
            (*view).ndim = 1;
            (*view).shape = shape;
            (*view).strides = strides;
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
            (*view).obj = slf.into_ptr();
        }
        Ok(())
    }
}

/// Where the values of a column of numbers lie, how many bytes they are, and their letter in `struct`.
fn memory(column: &Column) -> Option<(*mut c_void, isize, &'static CStr)> {
    fn of<T>(values: &[T]) -> (*mut c_void, isize) {
        let bytes = isize::try_from(size_of_val(values)).unwrap_or(isize::MAX);
        (values.as_ptr().cast_mut().cast(), bytes)
    }
    let values = &column.values;
    let ((start, bytes), format) = match values.data_type() {
        DataType::UInt64 => (of(values.as_primitive::<UInt64Type>().values()), c"Q"),
        DataType::Int64 => (of(values.as_primitive::<Int64Type>().values()), c"q"),
        DataType::UInt32 => (of(values.as_primitive::<UInt32Type>().values()), c"I"),
        DataType::Int32 => (of(values.as_primitive::<Int32Type>().values()), c"i"),
        DataType::Int8 => (of(values.as_primitive::<Int8Type>().values()), c"b"),
        DataType::Float64 => (of(values.as_primitive::<Float64Type>().values()), c"d"),
        _ => return None,
    };
    Some((start, bytes, format))
}
