//! What an image says of itself.

use std::path::Path;

use pyo3::prelude::*;
use qcowkit::info::{FileInfo, describe_in, file_info};
use qcowkit::options::runtime;
use qcowkit_core::operations::partitions;
use qcowkit_core::storage::ReadStorage;

use super::Image;
use crate::convert;

#[pymethods]
impl Image {
    /// Everything that `qcowkit info --output=json` prints.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let name = self.name.as_ref().map(|name| name.to_string_lossy().into_owned());
        let info = self.with(py, |image| {
            let file = match image.storage().file() {
                Some(file) => file_info(&file)?,
                None => FileInfo::of_bytes(name.unwrap_or_default(), image.storage().len()?),
            };
            describe_in(image, file, self.path.as_deref().unwrap_or(Path::new("")))
        })?;
        convert::report(py, &info)
    }

    /// Bytes of the virtual disk.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        self.share(py, true, |image| Ok(image.virtual_size()))
    }

    /// Bytes of a cluster.
    #[getter]
    fn cluster_size(&self, py: Python<'_>) -> PyResult<u64> {
        self.share(py, true, |image| Ok(image.geometry().cluster_size()))
    }

    /// Bytes of the image file, or of what else it lies in; with edits in memory, what it would have.
    #[getter]
    fn file_size(&self, py: Python<'_>) -> PyResult<u64> {
        self.share(py, true, |image| Ok(image.storage().len()?))
    }

    /// Bytes of memory that hold edits; 0 except in scratch mode.
    #[getter]
    fn edited_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.share(py, true, |image| Ok(image.storage().overlay().map_or(0, |overlay| overlay.memory_bytes())))
    }

    /// How many layers were opened: the image, and its backing files.
    #[getter]
    fn chain_length(&self, py: Python<'_>) -> PyResult<u32> {
        self.with(py, |image| Ok(image.chain_length()))
    }

    /// Whether the image is encrypted and no key was given.
    #[getter]
    fn locked(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |image| Ok(image.is_locked()))
    }

    /// What discards and writes of zeros do, as options under QEMU's names.
    fn policy_words(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, &'static str)>> {
        self.share(py, true, |image| Ok(runtime::policy_words(image.options())))
    }

    /// The partition table of the disk, if it has one.
    fn partitions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let table = self.share(py, true, |image| {
            partitions(image.virtual_size(), &mut |offset, into| image.read_at(offset, into))
        })?;
        convert::report(py, &table)
    }
}
