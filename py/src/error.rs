//! Errors of the core become the exceptions of `qcowkit.errors`.

use std::ffi::OsStr;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use qcowkit_core::storage::{StorageError, StorageErrorKind};
use qcowkit_core::{Error, ErrorKind};

/// The number that Linux, macOS and Windows have for a file system that is read-only.
const EROFS: i32 = 30;

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
    let made = make.call1((code(error), message, name, errno, place))?;
    Ok(PyErr::from_value(made))
}

/// The name of the exception: a host without room is no other failure of the storage.
fn code(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Storage(StorageError { kind: StorageErrorKind::NoSpace, .. }) => "no_space",
        kind => kind.code(),
    }
}

/// The operating system's number and words, where it refused something: Python has exceptions for those.
fn system_words(error: &Error) -> Option<(i32, String)> {
    match error.kind() {
        ErrorKind::Storage(storage) => match &storage.kind {
            StorageErrorKind::Os { code, message } => Some((*code, message.clone())),
            StorageErrorKind::ReadOnly if storage.operation == "open" => {
                Some((EROFS, "Read-only file system".to_owned()))
            }
            _ => None,
        },
        _ => None,
    }
}
