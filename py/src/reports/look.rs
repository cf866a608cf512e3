//! Looks at images that are open, and at files that need not be images at all: analysis, audit, check, repair, measure.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qcowkit::analyze::{FileAnalyzeOptions, analyze_file};
use qcowkit::measure::{Measured, measured};
use qcowkit::open::{BackingPolicy, OpenRequest, format_by_name, open};
use qcowkit::options::create::ImageOptions;
use qcowkit::options::list::OptionList;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::analyze::{Analysis, AnalyzeOptions, REQUEST_SIZES, analyze};
use qcowkit_core::operations::audit::{AuditOptions, audit as core_audit};
use qcowkit_core::operations::repair::{RepairOptions, UndoLog};
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, Result};

use super::checks::{RepairPlan, checked, done, level_of, planned, repaired};
use super::report;
use crate::calls::{self, Progress};
use crate::error;
use crate::image::Image;
use crate::opening::{Mode, Source, StoreImage, refuse_read_only};
use crate::storage::Store;

#[pymethods]
impl Image {
    /// What `qcowkit analyze --output=json` prints.
    fn analyze<'py>(
        &self,
        py: Python<'py>,
        scan_zeroes: bool,
        request_sizes: Option<Vec<u64>>,
        extents: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut progress = Progress::new(progress);
        let request_sizes = request_sizes.unwrap_or_else(|| REQUEST_SIZES.to_vec());
        let options = FileAnalyzeOptions { scan_zeroes, request_sizes, extents };
        let analysis = self.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            analysis(image, &options, &mut progress)
        })?;
        report(py, &analysis)
    }
}

impl Image {
    /// What reports call the image.
    pub(super) fn report_name(&self) -> String {
        self.called().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

fn analysis(image: &StoreImage, options: &FileAnalyzeOptions, progress: &mut Progress) -> Result<Analysis> {
    let mut tell = |done, total| progress.note(done, total);
    let store = image.storage();
    match (store, image.data_file()) {
        (Store::File(file), None) => analyze_file(file, None, options, &mut tell),
        (Store::File(file), Some(Store::File(data))) => analyze_file(file, Some(data), options, &mut tell),
        (_, data_file) => {
            let core = AnalyzeOptions {
                scan_zeroes: options.scan_zeroes,
                request_sizes: &options.request_sizes,
                host_allocated: None,
                data_file: data_file.map(|file| file as &dyn ReadStorage),
            };
            analyze(store, image.header(), &core, &mut tell)
        }
    }
}

/// A verdict on a file: what `qcowkit audit --output=json` prints.
#[pyfunction]
pub(crate) fn audit<'py>(
    source: &Bound<'py, PyAny>,
    deep: bool,
    max_virtual_size: Option<u64>,
    lock: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut progress = Progress::new(progress);
    let options = AuditOptions { deep, max_virtual_size };
    // The tables of an image in use change while they are read; the header of one does not.
    let found = on(source, Mode::Read, lock && deep, |store, _| {
        core_audit(store, &options, &mut |part| progress.note((part * 1000.0) as u64, 1000))
    })?;
    report(source.py(), &found)
}

/// The check of a file, which may be too broken to be opened.
#[pyfunction]
pub(crate) fn check<'py>(
    source: &Bound<'py, PyAny>,
    lock: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut progress = Progress::new(progress);
    let value = on(source, Mode::Read, lock, |store, name| checked(store, name, &mut progress))?;
    report(source.py(), &value)
}

/// Works out the repair of a file.
#[pyfunction]
pub(crate) fn plan_repair(
    source: &Bound<'_, PyAny>,
    level: &str,
    relink: Vec<(u64, u64)>,
    lock: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<RepairPlan> {
    let (level, options) = (level_of(level)?, RepairOptions { relink });
    let mut progress = Progress::new(progress);
    on(source, Mode::Read, lock, |store, name| {
        Ok(RepairPlan::new(planned(store, level, &options, &mut progress)?, name.to_owned()))
    })
}

/// Carries out the repair of a file.
#[pyfunction]
pub(crate) fn apply_repair<'py>(
    source: &Bound<'py, PyAny>,
    plan: &RepairPlan,
    undo: Option<PathBuf>,
    punch: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let after = on(source, Mode::Write, true, |store, _| repaired(store, plan, undo.as_deref(), punch))?;
    done(source.py(), plan.name(), plan, &after)
}

/// Puts back what a repair overwrote.
#[pyfunction]
pub(crate) fn undo_repair(source: &Bound<'_, PyAny>, undo: &Bound<'_, PyBytes>) -> PyResult<()> {
    let undo = undo.as_bytes().to_vec();
    on(source, Mode::Write, true, |store, _| UndoLog::from_bytes(&undo)?.restore(store))
}

/// What the file of a new image takes: what `qcowkit measure --output=json` prints.
#[pyfunction]
pub(crate) fn measure<'py>(
    py: Python<'py>,
    path: Option<PathBuf>,
    size: u64,
    format: &str,
    options: Vec<(String, String)>,
    backing: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let refused = |why: Error| error::raised(py, &why, None);
    let format = format_by_name(format).map_err(refused)?;
    let options = ImageOptions::parse(format, &OptionList { entries: options });
    let options = options.map_err(|why| refused(Error::invalid(why)))?;
    let backing = if backing { BackingPolicy::Follow } else { BackingPolicy::Deny };
    let work = || -> Result<Measured> {
        let request = OpenRequest { backing, ..OpenRequest::default() };
        let disk = path.as_ref().map(|path| open(path, &request).map_err(|failure| failure.error)).transpose();
        measured(&options, disk?.as_mut(), size, false)
    };
    let done = calls::run(py, 0, true, work, std::result::Result::is_err)?;
    let path = path.as_ref().map(|path| path.as_os_str());
    report(py, &done.map_err(|why| error::raised(py, &why, path))?)
}

/// Does something with what a source holds, whether that is an image or not.
fn on<T: Send>(
    source: &Bound<'_, PyAny>,
    mode: Mode,
    lock: bool,
    does: impl FnOnce(&Store, &str) -> Result<T> + Send,
) -> PyResult<T> {
    let py = source.py();
    let source = Source::new(source, mode == Mode::Write)?;
    let name = source.name();
    let called = name.as_ref().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let work = || -> Result<T> {
        let store = source.open(mode, LayerFormat::Qcow2, lock)?;
        if mode == Mode::Write {
            refuse_read_only(&store)?;
        }
        does(&store, &called)
    };
    let worked = calls::run(py, 0, mode == Mode::Read, work, std::result::Result::is_err)?;
    worked.map_err(|why| error::raised(py, &why, name.as_deref()))
}
