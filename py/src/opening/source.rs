//! What an image can be opened from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyMemoryView};
use qcowkit::open::{OpenRequest, open_file};
use qcowkit_core::Error;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::storage::ReadStorage;

use super::Mode;
use crate::storage::{ObjectStorage, Store};

/// A source, not opened yet.
pub(crate) enum Source {
    Path(PathBuf),
    Bytes(PyBackedBytes),
    Object(Arc<ObjectStorage>, Option<OsString>),
}

impl Source {
    /// Sorts an argument: what can seek is a file object; then paths; then what shows its bytes.
    ///
    /// # Errors
    /// Anything else; a file object that does not do what it must.
    pub(crate) fn new(source: &Bound<'_, PyAny>, writable: bool) -> PyResult<Self> {
        let py = source.py();
        if source.hasattr(intern!(py, "seek"))? {
            if source.is_instance(&py.import(intern!(py, "io"))?.getattr(intern!(py, "TextIOBase"))?)? {
                return Err(PyTypeError::new_err("the file object gives text: open it in binary mode"));
            }
            let name = source.getattr(intern!(py, "name")).ok().and_then(|name| name.extract::<OsString>().ok());
            return Ok(Self::Object(Arc::new(ObjectStorage::new(source, writable)?), name));
        }
        if let Ok(path) = source.extract::<PathBuf>() {
            if path.as_os_str().as_encoded_bytes().contains(&0) {
                // As Python's own open() says it.
                return Err(PyValueError::new_err("embedded null byte"));
            }
            return Ok(Self::Path(path));
        }
        if PyMemoryView::from(source).is_ok() {
            return Ok(Self::Bytes(exact_bytes(source)?));
        }
        let kind = source.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "an image is opened by a path, bytes, or a binary file object that seeks, not by {kind}"
        )))
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> Option<OsString> {
        match self {
            Self::Path(path) => Some(path.clone().into_os_string()),
            Self::Object(_, name) => name.clone(),
            Self::Bytes(_) => None,
        }
    }

    /// The path, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Bytes(_) | Self::Object(..) => None,
        }
    }

    /// Whether making an image here would replace something.
    pub(crate) fn holds_something(&self) -> bool {
        match self {
            Self::Path(path) => path.metadata().is_ok_and(|there| there.is_file() && there.len() > 0),
            Self::Bytes(_) => false,
            Self::Object(object, _) => object.is_empty().is_ok_and(|empty| !empty),
        }
    }

    /// Opens it, and takes its locks where it is a file. Edits of scratch mode come on top.
    ///
    /// # Errors
    /// A file that cannot be opened or is in use.
    pub(crate) fn open(self, mode: Mode, format: LayerFormat, lock: bool) -> Result<Store, Error> {
        match self {
            Self::Bytes(bytes) => Ok(Store::of_bytes(bytes)),
            Self::Object(object, _) => Ok(Store::Object(object)),
            Self::Path(path) => {
                let mut request = OpenRequest { format: Some(format), force_share: !lock, ..OpenRequest::default() };
                request.options.read_only = mode != Mode::Write;
                open_file(&path, &request).map(|(file, _)| Store::File(file)).map_err(|failure| failure.error)
            }
        }
    }
}

/// The bytes that an object shows through the buffer protocol: those of `bytes` themselves, copies of others.
///
/// # Errors
/// The object shows none.
pub(crate) fn exact_bytes(object: &Bound<'_, PyAny>) -> PyResult<PyBackedBytes> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => Ok(PyBackedBytes::from(bytes.clone())),
        Err(_) => {
            let view = PyMemoryView::from(object)?;
            Ok(PyBackedBytes::from(view.call_method0(intern!(object.py(), "tobytes"))?.cast_into::<PyBytes>()?))
        }
    }
}
