//! Files that take their time, so that threads meet: now and then by themselves, and at a place for as long as told.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{Found, Image, OpenOptions, Opener, Reference};
use qcowkit_core::storage::{Capabilities, ReadStorage, Storage, StorageError};

use super::common::Beside;

/// A file; clones are the same.
#[derive(Clone)]
pub(crate) struct Pausing {
    file: FileStorage,
    /// The length that it cannot exceed.
    fixed: Option<u64>,
    calls: Arc<AtomicU64>,
    stops: Arc<Stops>,
}

#[derive(Default)]
struct Stops {
    state: Mutex<Stop>,
    changed: Condvar,
}

#[derive(Default)]
struct Stop {
    /// Writes (or reads) that begin here wait.
    at: Option<(bool, u64)>,
    there: bool,
}

/// A place where the next call waits.
pub(crate) struct Pause(Arc<Stops>);

impl Pause {
    pub(crate) fn wait_until_there(&self) {
        let mut state = self.0.state.lock().unwrap();
        while !state.there {
            state = self.0.changed.wait(state).unwrap();
        }
    }

    pub(crate) fn release(&self) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = Stop::default();
        self.0.changed.notify_all();
    }
}

/// A test that fails must not leave a thread behind that waits for ever.
impl Drop for Pause {
    fn drop(&mut self) {
        self.release();
    }
}

impl Pausing {
    fn new(file: FileStorage, fixed: Option<u64>) -> Self {
        // What barriers order is not asked for here, and they would wait for the disk.
        file.set_barriers(false);
        Self { file, fixed, calls: Arc::default(), stops: Arc::default() }
    }

    pub(crate) fn pause_reads_at(&self, offset: u64) -> Pause {
        self.pause_at(false, offset)
    }

    pub(crate) fn pause_writes_at(&self, offset: u64) -> Pause {
        self.pause_at(true, offset)
    }

    fn pause_at(&self, write: bool, offset: u64) -> Pause {
        self.stops.state.lock().unwrap().at = Some((write, offset));
        Pause(Arc::clone(&self.stops))
    }

    fn pass(&self, write: bool, offset: u64) {
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(5) {
            std::thread::sleep(Duration::from_micros(50));
        }
        let mut state = self.stops.state.lock().unwrap();
        if state.at != Some((write, offset)) || state.there {
            return;
        }
        state.there = true;
        self.stops.changed.notify_all();
        while state.at.is_some() {
            state = self.stops.changed.wait(state).unwrap();
        }
    }
}

impl ReadStorage for Pausing {
    qcowkit_core::forward_storage!(this => this.file; len, next_extent);

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.pass(false, offset);
        self.file.read_at(offset, into)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { grows: self.fixed.is_none(), ..self.file.capabilities() }
    }
}

impl Storage for Pausing {
    qcowkit_core::forward_storage!(this => this.file; write_zeroes, discard, set_len, allocate, barrier);

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        assert!(self.fixed.is_none_or(|end| offset + from.len() as u64 <= end), "written beyond the end");
        self.pass(true, offset);
        self.file.write_at(offset, from)
    }
}

struct BesideSlowly(Beside);

impl Opener<Pausing> for BesideSlowly {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<Pausing>> {
        let Found { storage, format, identity } = self.0.open(reference)?;
        Ok(Found { storage: Pausing::new(storage, None), format, identity })
    }
}

/// Opens an image and what lies beside it.
pub(crate) fn open_slow(path: &Path, options: OpenOptions) -> Image<Pausing> {
    open(path, options, None)
}

/// As on a block device of this length.
pub(crate) fn open_of_fixed_length(path: &Path, length: u64) -> Image<Pausing> {
    open(path, OpenOptions::default(), Some(length))
}

fn open(path: &Path, options: OpenOptions, fixed: Option<u64>) -> Image<Pausing> {
    let storage = Pausing::new(FileStorage::open(path, FileAccess::Write).unwrap(), fixed);
    let mut opener = BesideSlowly(Beside(path.parent().unwrap().to_owned()));
    Image::open_with(storage, Some(path.display().to_string()), options, &mut opener).unwrap()
}
