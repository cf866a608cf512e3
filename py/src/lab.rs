//! The discard lab: traces, and what each policy would have made of an image.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qcowkit_core::Result;
use qcowkit_core::operations::lab::{
    Churn, LabConfig, LabDisk, LabOptions, LabReport, LabRun, MAX_TRACE_OPERATIONS, Operation, Replay, Skeleton,
    Trace as CoreTrace, TraceFormat, TraceSummary, advise, fits,
};

use crate::calls::{self, Progress};
use crate::image::Image;
use crate::table::{Columns, Optional, Table, batches, strings, whole_numbers};
use crate::{convert, error};

/// Operations of a guest.
#[pyclass(frozen, module = "qcowkit._qcowkit")]
pub(crate) struct Trace {
    trace: Arc<CoreTrace>,
}

/// The operations, by their number in the column `operation`.
const OPERATIONS: [&str; 5] = ["write", "write_zeroes", "discard", "flush", "mark"];

#[pymethods]
impl Trace {
    /// From text in a format; found out if it is not named.
    #[staticmethod]
    fn parse(py: Python<'_>, text: &Bound<'_, PyBytes>, format: Option<&str>) -> PyResult<Self> {
        let format = format.map(format_of).transpose()?;
        let text = text.as_bytes().to_vec();
        let parsed = py.detach(|| CoreTrace::parse(&text, format.unwrap_or_else(|| TraceFormat::detect(&text))));
        Ok(Self::of(parsed.map_err(|why| PyValueError::new_err(why.to_string()))?))
    }

    /// From any table with the columns `operation`, `offset`, `length` and, if it likes, `detail`; `ignored` operations
    /// were left out of it.
    #[staticmethod]
    #[pyo3(signature = (table, ignored = 0))]
    fn from_table(table: &Bound<'_, PyAny>, ignored: u64) -> PyResult<Self> {
        let mut trace = CoreTrace { ignored, ..CoreTrace::default() };
        for batch in batches(table)? {
            let wrong = PyTypeError::new_err::<String>;
            let operations = strings(&batch, "operation").map_err(wrong)?;
            let operations = operations.ok_or_else(|| wrong("a table of a trace has a column operation".into()))?;
            let offsets = zero_where_null(&batch, "offset").map_err(wrong)?;
            let lengths = zero_where_null(&batch, "length").map_err(wrong)?;
            let details = strings(&batch, "detail").map_err(wrong)?;
            for (row, name) in operations.iter().enumerate() {
                let detail = details.as_ref().and_then(|all| all.get(row)).cloned().flatten().unwrap_or_default();
                let range = (offsets[row], lengths[row]);
                match operation(name.as_deref().unwrap_or_default(), range, &detail) {
                    Ok(Some(_)) if trace.operations.len() >= MAX_TRACE_OPERATIONS => {
                        let what = format!("a trace can have {MAX_TRACE_OPERATIONS} operations at most");
                        return Err(PyValueError::new_err(what));
                    }
                    Ok(Some(operation)) => trace.operations.push(operation),
                    Ok(None) => trace.ignored += 1,
                    Err(why) => return Err(PyValueError::new_err(format!("row {row} of the trace: {why}"))),
                }
            }
        }
        Ok(Self::of(trace))
    }

    /// Made up from parameters: JSON of the core's own structure.
    #[staticmethod]
    fn churn(py: Python<'_>, parameters: &str) -> PyResult<Self> {
        let churn: Churn = serde_json::from_str(parameters).map_err(|why| PyValueError::new_err(why.to_string()))?;
        let trace = py.detach(|| churn.trace()).map_err(|why| error::raised(py, &why, None))?;
        Ok(Self::of(trace))
    }

    fn __len__(&self) -> usize {
        self.trace.operations.len()
    }

    /// Operations that were left out.
    #[getter]
    fn ignored(&self) -> u64 {
        self.trace.ignored
    }

    /// The first byte behind everything that the trace touches.
    #[getter]
    fn end(&self) -> u64 {
        self.trace.end()
    }

    /// Counts.
    fn summary<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let summary = TraceSummary::of(&self.trace).named(name);
        convert::report(py, &summary)
    }

    /// In a format that is written too.
    fn write(&self, format: &str) -> PyResult<String> {
        let mut text = String::new();
        let written = self.trace.write(format_of(format)?, &mut text as &mut dyn Write);
        written.map_err(|_| PyValueError::new_err("traces are written as 'csv' and 'qemu-io' alone"))?;
        Ok(text)
    }

    /// The operations as a table.
    fn table(&self) -> PyResult<Table> {
        let (mut kinds, mut offsets, mut lengths) = (Vec::new(), Optional::default(), Optional::default());
        let mut details: Vec<Option<&str>> = Vec::new();
        for operation in &self.trace.operations {
            let (kind, detail) = match operation {
                Operation::Write { zeros, .. } => (0, zeros.then_some("zeros")),
                Operation::WriteZeroes { unmap, .. } => (1, unmap.then_some("unmap")),
                Operation::Discard { .. } => (2, None),
                Operation::Flush => (3, None),
                Operation::Mark(name) => (4, Some(&**name)),
            };
            kinds.push(kind);
            offsets.push(operation.range().map(|(offset, _)| offset));
            lengths.push(operation.range().map(|(_, length)| length));
            details.push(detail);
        }
        Columns::default()
            .kinds("operation", &OPERATIONS, kinds)
            .optional_u64("offset", offsets)
            .optional_u64("length", lengths)
            .text("detail", details)
            .table()
    }
}

impl Trace {
    fn of(trace: CoreTrace) -> Self {
        Self { trace: Arc::new(trace) }
    }
}

/// Replays a trace under configurations (JSON of the core's own structures): what `qcowkit replay --output=json` prints.
/// It begins with a new disk of `size` bytes, or with the metadata of `image`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the facade names them")]
pub(crate) fn replay<'py>(
    py: Python<'py>,
    trace: &Trace,
    name: String,
    configs: &str,
    size: Option<u64>,
    image: Option<&Image>,
    samples: u64,
    advice: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut configs: Vec<LabConfig> =
        serde_json::from_str(configs).map_err(|why| PyValueError::new_err(why.to_string()))?;
    if configs.is_empty() {
        configs = LabConfig::default().candidates();
    }
    configs.iter_mut().filter(|config| config.name.is_empty()).for_each(|config| config.name = config.describe());
    let disk = match image {
        Some(image) => image.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            let data_file = image.data_file().map(|file| file as &dyn qcowkit_core::storage::ReadStorage);
            Ok(LabDisk::Skeleton(Skeleton::of(image.storage(), data_file)?))
        })?,
        None => LabDisk::Empty { size: size.unwrap_or_else(|| trace.trace.end().next_multiple_of(1 << 20)) },
    };
    let mut progress = Progress::new(progress);
    let trace = Arc::clone(&trace.trace);
    let work = move || -> Result<LabReport> {
        let virtual_size = disk.virtual_size()?;
        fits(&trace, virtual_size)?;
        let runs = run_all(&trace, &disk, &configs, &LabOptions { samples }, &mut progress)?;
        let trace = TraceSummary::of(&trace).named(name);
        let mut report = LabReport { trace, virtual_size, runs, advice: None };
        report.advice = advice.then(|| advise(&report));
        Ok(report)
    };
    let done = calls::run(py, 0, true, work, std::result::Result::is_err)?;
    let report = done.map_err(|why| error::raised(py, &why, None))?;
    convert::report(py, &report)
}

/// The replays, as many at once as there are processors, in the order of their configurations. Ends early, without
/// runs, when the call is to end.
fn run_all(
    trace: &CoreTrace,
    disk: &LabDisk,
    configs: &[LabConfig],
    options: &LabOptions,
    progress: &mut Progress,
) -> Result<Vec<LabRun>> {
    let done: Vec<AtomicU64> = configs.iter().map(|_| AtomicU64::new(0)).collect();
    let results: Mutex<Vec<Option<Result<LabRun>>>> = Mutex::new(configs.iter().map(|_| None).collect());
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(configs.len());
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (disk, done, results, next, stop) = (disk.clone(), &done, &results, &next, &stop);
            workers.push(scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(config) = configs.get(at) else { break };
                    let mut go_on = |count| {
                        done[at].store(count, Ordering::Relaxed);
                        !stop.load(Ordering::Relaxed)
                    };
                    let run = run(trace, &disk, config, options, &mut go_on).transpose();
                    results.lock().unwrap_or_else(PoisonError::into_inner)[at] = run;
                }
            }));
        }
        let total = trace.operations.len() as u64 * configs.len() as u64;
        let sum = || done.iter().map(|done| done.load(Ordering::Relaxed)).sum::<u64>();
        while workers.iter().any(|worker| !worker.is_finished()) {
            if progress.tell(sum().min(total.saturating_sub(1)), total).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(10));
        }
        progress.note(sum(), total);
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

/// One replay; nothing if it was stopped.
fn run(
    trace: &CoreTrace,
    disk: &LabDisk,
    config: &LabConfig,
    options: &LabOptions,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<LabRun>> {
    let mut replay = Replay::new(disk, config)?;
    if !replay.run_while(trace, options, go_on)? {
        return Ok(None);
    }
    replay.finish().map(Some)
}

fn zero_where_null(batch: &arrow_array::RecordBatch, name: &str) -> std::result::Result<Vec<u64>, String> {
    use arrow_array::Array;
    let array = batch.column_by_name(name).ok_or_else(|| format!("the table has no column {name}"))?;
    if array.null_count() == 0 {
        return whole_numbers(batch, name);
    }
    // Flushes and marks have no range.
    let nulls: Vec<bool> = (0..array.len()).map(|row| array.is_null(row)).collect();
    let bare = array.to_data().into_builder().nulls(None).build().map_err(|why| why.to_string())?;
    let bare = arrow_array::RecordBatch::try_from_iter([(name, arrow_array::make_array(bare))]);
    let values = whole_numbers(&bare.map_err(|why| why.to_string())?, name)?;
    Ok(values.into_iter().zip(nulls).map(|(value, null)| if null { 0 } else { value }).collect())
}

/// One row of a table; `None` for reads and for empty ranges.
fn operation(name: &str, (offset, length): (u64, u64), detail: &str) -> std::result::Result<Option<Operation>, String> {
    if offset.checked_add(length).is_none() {
        return Err("the range ends beyond 2^64".into());
    }
    let flag = |word: &str| match detail {
        "" => Ok(false),
        given if given == word => Ok(true),
        given => Err(format!("the detail of {name} is {word} or empty, not {given}")),
    };
    let made = match name {
        "write" => Operation::Write { offset, length, zeros: flag("zeros")? },
        "write_zeroes" => Operation::WriteZeroes { offset, length, unmap: flag("unmap")? },
        "discard" => Operation::Discard { offset, length },
        "flush" => return Ok(Some(Operation::Flush)),
        "mark" => return Ok(Some(Operation::Mark(detail.into()))),
        "read" => return Ok(None),
        other => return Err(format!("no such operation: {other}")),
    };
    Ok(Some(made).filter(|_| length > 0))
}

fn format_of(name: &str) -> PyResult<TraceFormat> {
    let known = TraceFormat::NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, format)| *format).ok_or_else(|| {
        let what = format!("no trace format is called '{name}': there are qemu-io, fio, blkparse and csv");
        PyValueError::new_err(what)
    })
}
