//! What a call hears while it works without the GIL: Ctrl-C, progress callbacks, and exceptions of Python objects that
//! are called from below (file objects, openers, keys).
//!
//! Each call of this thread that gave up the GIL has a frame on a stack of the thread. An exception that comes up
//! inside is kept in the frame, while the core is told of a failing storage; [`run`] raises the exception itself.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use qcowkit_core::Result;
use qcowkit_core::storage::{StorageError, StorageErrorKind};

/// Ctrl-C is asked for this often, and progress told. The interpreter's lock may be busy for longer.
const INTERVAL: Duration = Duration::from_millis(50);

thread_local! {
    static FRAMES: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

struct Frame {
    /// What is locked meanwhile: a call back into that could only wait for itself.
    holds: usize,
    /// Reads of the storage may be cut off: nothing is being changed.
    reading: bool,
    asked: Instant,
    /// Ends the call, whatever became of it: Ctrl-C, or what a progress callback raised.
    stopped: Option<PyErr>,
    /// What a Python object below raised; the failure of the call, if it fails.
    raised: Option<PyErr>,
}

/// Does something without the GIL, as a call that holds the lock of `holds` (an address, 0 for none). The inner result
/// is the core's, the outer one has the exceptions that came up meanwhile.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    holds: usize,
    reading: bool,
    does: impl FnOnce() -> T + Send,
    failed: impl FnOnce(&T) -> bool,
) -> PyResult<T> {
    if holds != 0 && FRAMES.with_borrow(|frames| frames.iter().any(|frame| frame.holds == holds)) {
        return Err(PyRuntimeError::new_err("the image is busy with the call that this comes from"));
    }
    let frame = Frame { holds, reading, asked: Instant::now(), stopped: None, raised: None };
    FRAMES.with_borrow_mut(|frames| frames.push(frame));
    // Also when a panic goes through.
    let popped = Popped;
    let done = py.detach(does);
    let frame = popped.frame();
    match frame {
        Some(Frame { stopped: Some(stopped), .. }) => Err(stopped),
        Some(Frame { raised: Some(raised), .. }) if failed(&done) => Err(raised),
        Some(_) | None => Ok(done),
    }
}

struct Popped;

impl Popped {
    fn frame(self) -> Option<Frame> {
        std::mem::forget(self);
        FRAMES.with_borrow_mut(Vec::pop)
    }
}

impl Drop for Popped {
    fn drop(&mut self) {
        drop(FRAMES.with_borrow_mut(Vec::pop));
    }
}

/// A place between two steps where a call may end: an error if Ctrl-C was pressed.
///
/// # Errors
/// The call is to end; which exception it ends with is kept.
pub(crate) fn checkpoint() -> Result<()> {
    match poll(false) {
        true => Err(interrupted("continue").into()),
        false => Ok(()),
    }
}

/// As [`checkpoint`], for reads of a storage: only where nothing is being changed.
///
/// # Errors
/// As [`checkpoint`].
pub(crate) fn checkpoint_of_read() -> Result<(), StorageError> {
    match poll(true) {
        true => Err(interrupted("read")),
        false => Ok(()),
    }
}

/// Keeps an exception that a Python object raised, and gives the failure that the core is told of instead.
pub(crate) fn raised(py: Python<'_>, error: PyErr, operation: &'static str) -> StorageError {
    // Ctrl-C is no failure of the object: it ends the call also where the failure would be got over.
    let stops = !error.is_instance_of::<PyException>(py);
    FRAMES.with_borrow_mut(|frames| {
        if let Some(frame) = frames.last_mut() {
            let place = if stops { &mut frame.stopped } else { &mut frame.raised };
            place.get_or_insert(error);
        }
    });
    StorageError::new(StorageErrorKind::Other("a Python object raised an exception".into()), operation)
}

fn interrupted(operation: &'static str) -> StorageError {
    StorageError::new(StorageErrorKind::Other("interrupted".into()), operation)
}

/// Whether the present call is to end.
fn poll(only_reading: bool) -> bool {
    enum State {
        GoOn,
        Stop,
        Ask,
    }
    let state = FRAMES.with_borrow_mut(|frames| match frames.last_mut() {
        None => State::GoOn,
        Some(frame) if only_reading && !frame.reading => State::GoOn,
        Some(frame) if frame.stopped.is_some() => State::Stop,
        Some(frame) if frame.asked.elapsed() < INTERVAL => State::GoOn,
        Some(frame) => {
            frame.asked = Instant::now();
            State::Ask
        }
    });
    match state {
        State::GoOn => false,
        State::Stop => true,
        State::Ask => Python::attach(|py| py.check_signals()).is_err_and(stop),
    }
}

/// Ends the present call with an exception.
fn stop(error: PyErr) -> bool {
    FRAMES.with_borrow_mut(|frames| frames.last_mut().map(|frame| frame.stopped.get_or_insert(error)).is_some())
}

/// A callback of Python that is told how much is done, of how much; an exception of its ends the call.
pub(crate) struct Progress {
    callback: Option<Py<PyAny>>,
    told: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(callback: Option<Py<PyAny>>) -> Self {
        Self { callback, told: None }
    }

    /// As [`Progress::tell`], where the work cannot be broken off here: its next read of the storage ends it.
    pub(crate) fn note(&mut self, done: u64, total: u64) {
        let _ = self.tell(done, total);
    }

    /// Tells, at most once in a while and always at the end; breaks when the call is to end.
    pub(crate) fn tell(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if poll(false) {
            return ControlFlow::Break(());
        }
        let due = self.told.is_none_or(|told| told.elapsed() >= INTERVAL) || done >= total;
        let Some(callback) = self.callback.as_ref().filter(|_| due) else { return ControlFlow::Continue(()) };
        self.told = Some(Instant::now());
        match Python::attach(|py| callback.call1(py, (done, total)).map(drop)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stop(error);
                ControlFlow::Break(())
            }
        }
    }
}
