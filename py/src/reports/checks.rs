//! Check and repair.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qcowkit_core::image::read_header;
use qcowkit_core::operations::repair::{
    CheckSummary, RepairLevel, RepairOptions, RepairPlan as CorePlan, RepairState, UndoLog, apply, find_orphans, plan,
};
use qcowkit_core::operations::{CheckReport, check};
use qcowkit_core::storage::StorageError;
use qcowkit_core::{Error, Result};
use serde_json::Value;

use super::again::Chain;
use super::report;
use crate::calls::Progress;
use crate::image::Image;
use crate::storage::Store;

/// What the core tells as a part of 1 is told as so many of this.
const WHOLE: f64 = 1000.0;

/// A plan to repair one image, as the core keeps it.
#[pyclass(frozen, module = "qcowkit._qcowkit")]
pub(crate) struct RepairPlan {
    plan: CorePlan,
    name: String,
}

#[pymethods]
impl RepairPlan {
    /// What `qcowkit check --repair LEVEL --dry-run --output=json` prints.
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let before = self.plan.before.clone().unwrap_or_default();
        let repair = Some((&self.plan, RepairState::Planned));
        report(py, &CheckSummary::new(&self.name, &before, &self.plan.orphans, repair))
    }

    /// Whether there is nothing to do.
    #[getter]
    fn is_empty(&self) -> bool {
        self.plan.is_empty()
    }

    /// Leaked clusters and corruptions that it takes away.
    #[getter]
    fn fixes(&self) -> (u64, u64) {
        (self.plan.leaks_fixed(), self.plan.corruptions_fixed())
    }
}

impl RepairPlan {
    pub(super) fn new(plan: CorePlan, name: String) -> Self {
        Self { plan, name }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

#[pymethods]
impl Image {
    /// What `qcowkit check --output=json` prints.
    fn check_report<'py>(&self, py: Python<'py>, progress: Option<Py<PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let mut progress = Progress::new(progress);
        let name = self.report_name();
        let value = self.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            checked(image.storage(), &name, &mut progress)
        })?;
        report(py, &value)
    }

    /// Works out a repair.
    fn plan_repair(
        &self,
        py: Python<'_>,
        level: &str,
        relink: Vec<(u64, u64)>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<RepairPlan> {
        let (level, options) = (level_of(level)?, RepairOptions { relink });
        let mut progress = Progress::new(progress);
        let plan = self.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            planned(image.storage(), level, &options, &mut progress)
        })?;
        Ok(RepairPlan::new(plan, self.report_name()))
    }

    /// Carries a repair out, with what it overwrites kept in the file `undo`; gives the check of the image afterwards.
    fn apply_repair<'py>(
        &self,
        py: Python<'py>,
        plan: &RepairPlan,
        undo: Option<PathBuf>,
        punch: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.refuse_views(py)?;
        let name = self.report_name();
        let after = self.change(py, |image| {
            if image.is_read_only() {
                return Err(qcowkit_core::ErrorKind::ReadOnly.into());
            }
            image.finish()?;
            let (chain, own) = (Chain::of(image), image.options().clone());
            let after = repaired(image.storage(), plan, undo.as_deref(), punch);
            // Whatever became of it: the tables in memory are old.
            *image = chain.open(own, Ok)?;
            after
        })?;
        done(py, &name, plan, &after)
    }

    /// Puts back what a repair overwrote.
    fn undo_repair(&self, py: Python<'_>, undo: &Bound<'_, PyBytes>) -> PyResult<()> {
        self.refuse_views(py)?;
        let undo = undo.as_bytes().to_vec();
        self.change(py, |image| {
            if image.is_read_only() {
                return Err(qcowkit_core::ErrorKind::ReadOnly.into());
            }
            let log = UndoLog::from_bytes(&undo)?;
            image.finish()?;
            let (chain, own) = (Chain::of(image), image.options().clone());
            log.restore(image.storage())?;
            *image = chain.open(own, Ok)?;
            Ok(())
        })
    }
}

/// The check of a store, with what else is told of it.
pub(super) fn checked(store: &Store, name: &str, progress: &mut Progress) -> Result<Value> {
    let area = read_header(store)?;
    let report = check(store, &area, &mut |part| step(progress, part))?;
    let orphans = if report.leaks > 0 { find_orphans(store).unwrap_or_default() } else { Vec::new() };
    let summary = CheckSummary::new(name, &report, &orphans, None);
    serde_json::to_value(summary).map_err(|why| Error::invalid(why.to_string()))
}

/// The plan of a repair.
pub(super) fn planned(
    store: &Store,
    level: RepairLevel,
    options: &RepairOptions,
    progress: &mut Progress,
) -> Result<CorePlan> {
    plan(store, level, options, &mut |part| step(progress, part))
}

/// Carries a plan out; gives the check afterwards.
pub(super) fn repaired(store: &Store, plan: &RepairPlan, undo: Option<&Path>, punch: bool) -> Result<CheckReport> {
    if !plan.plan.is_empty() {
        if let Some(path) = undo {
            keep(&plan.plan, store, path)?;
        }
        // What is to be undone, and what may be wanted again, must not be punched.
        apply(&plan.plan, store, punch && undo.is_none() && plan.plan.orphans.is_empty())?;
    }
    check(store, &read_header(store)?, &mut |_| ())
}

/// The report of a repair that was carried out.
pub(super) fn done<'py>(
    py: Python<'py>,
    name: &str,
    plan: &RepairPlan,
    after: &CheckReport,
) -> PyResult<Bound<'py, PyAny>> {
    report(py, &CheckSummary::new(name, after, &plan.plan.orphans, Some((&plan.plan, RepairState::Done))))
}

/// `leaks` or `all`.
pub(super) fn level_of(name: &str) -> PyResult<RepairLevel> {
    match name {
        "leaks" => Ok(RepairLevel::Leaks),
        "all" => Ok(RepairLevel::All),
        other => Err(PyValueError::new_err(format!("the level of a repair is 'leaks' or 'all', not '{other}'"))),
    }
}

fn step(progress: &mut Progress, part: f64) {
    progress.note((part * WHOLE) as u64, WHOLE as u64);
}

/// Writes the undo file, durably, before anything is overwritten.
fn keep(plan: &CorePlan, store: &Store, path: &Path) -> Result<()> {
    let log = UndoLog::of(plan, store)?;
    let written = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        file.write_all(&log.to_bytes())?;
        file.sync_all()?;
        // The name, too, must be there after a cut.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    written().map_err(|why| {
        let error: StorageError = qcowkit::error::storage_error(&why, "write the undo file", None);
        Error::from(error)
    })
}
