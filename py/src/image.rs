//! The handle of an open image.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qcowkit::disk::Disk;
use qcowkit::file::FileStorage;
use qcowkit::open::OpenRequest;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::{Error, ErrorKind};

use crate::{convert, error};

type FileImage = qcowkit_core::image::Image<FileStorage>;

/// An open image; empty once it is closed.
#[pyclass(frozen, module = "qcowkit._qcowkit")]
pub(crate) struct Image {
    path: PathBuf,
    /// One lock: calls from several threads wait for each other.
    image: Mutex<Option<FileImage>>,
}

#[pymethods]
impl Image {
    /// Opens the image in a file, for looking at it. Files that it names are not opened.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(|| open(&path));
        let image = opened.map_err(|why| error::raised(py, &why, &path))?;
        Ok(Self { path, image: Mutex::new(Some(image)) })
    }

    /// The name that the image was opened by.
    #[getter]
    fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the image is closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| self.lock().is_none())
    }

    /// Everything that `qcowkit info --output=json` prints.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let info = self.with(py, |image| qcowkit::info::describe(image))?;
        let value = serde_json::to_value(info).map_err(|why| PyValueError::new_err(why.to_string()))?;
        convert::to_python(py, &value)
    }

    /// Closes the image; again is allowed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let closed = py.detach(|| self.lock().take().map_or(Ok(()), |image| image.close().map(drop)));
        closed.map_err(|why| error::raised(py, &why, &self.path))
    }
}

impl Image {
    /// Does something with the open image while other Python threads go on.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        does: impl FnOnce(&mut FileImage) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| self.lock().as_mut().map(does));
        match done {
            None => Err(PyValueError::new_err("the image is closed")),
            Some(result) => result.map_err(|why| error::raised(py, &why, &self.path)),
        }
    }

    /// A thread that panicked while it held the lock left the image as unsure as any failure: the image knows itself.
    fn lock(&self) -> MutexGuard<'_, Option<FileImage>> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As the command line opens an image to look at it, without the files that it names.
fn open(path: &Path) -> Result<FileImage, Error> {
    let request = OpenRequest { format: Some(LayerFormat::Qcow2), alone: true, ..OpenRequest::default() };
    match qcowkit::open::open(path, &request) {
        Ok(Disk::Qcow2(image)) => Ok(*image),
        Ok(Disk::Raw(_)) => Err(ErrorKind::NotQcow2.into()),
        Err(failure) => Err(failure.error),
    }
}
