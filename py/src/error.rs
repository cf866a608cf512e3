//! Errors of the core become the exceptions of `qcowkit.errors`.

use std::ffi::OsStr;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use qcowkit_core::storage::StorageErrorKind;
use qcowkit_core::{Error, ErrorKind};

/// The exception for `error`, which happened in what is called `name`.
pub(crate) fn raised(py: Python<'_>, error: &Error, name: Option<&OsStr>) -> PyErr {
    exception(py, error, name).unwrap_or_else(|instead| instead)
}

/// `Err` is what went wrong in making the exception.
fn exception(py: Python<'_>, error: &Error, name: Option<&OsStr>) -> PyResult<PyErr> {
    let (errno, message) = system_words(error).map_or((None, error.to_string()), |(errno, text)| (Some(errno), text));
    let site = error.site();
    let place = PyDict::new(py);
    place.set_item("structure", site.structure.map(|structure| structure.code()))?;
    place.set_item("host_offset", site.host_offset)?;
    place.set_item("guest_offset", site.guest_offset)?;
    place.set_item("index", site.index)?;
    place.set_item("depth", site.depth)?;
    let make = py.import("qcowkit.errors")?.getattr("_raised")?;
    let made = make.call1((error.kind().code(), message, name, errno, place))?;
    Ok(PyErr::from_value(made))
}

/// The operating system's number and words, where it refused something: Python has exceptions for those.
fn system_words(error: &Error) -> Option<(i32, String)> {
    match error.kind() {
        ErrorKind::Storage(storage) => match &storage.kind {
            StorageErrorKind::Os { code, message } => Some((*code, message.clone())),
            _ => None,
        },
        _ => None,
    }
}
