//! Carrying out a batch: each thread takes a portion, reads it, hands it in, and takes the next.
//!
//! One portion is written at a time, since the kernel lets one thread at a time write to a file anyway (ext4, XFS and
//! tmpfs hold the inode's lock meanwhile; threads that meet there spin and keep others from reading). But no thread is
//! there to write alone: who hands in while nobody writes does it, and goes on as long as the next portion is ready.
//! So nobody waits to be woken between two writes, and a thread that finds nothing to write reads.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::piece::{Packer, Piece, Rules};
use super::plan::Batch;
use super::sink::Sink;
use super::{ConvertError, ConvertOptions, Unreadable, Watch};
use crate::disk::Disk;

/// Less than this is done before a thread has started.
const WORTH_THREADS: u64 = 4 << 20;

/// Portions that can be ready or in writing while every thread reads another.
const BUFFERS_BESIDES: usize = 3;

/// Where it is told how far the conversion has come.
pub(super) struct Progress<'a> {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) watch: &'a mut dyn Watch,
}

impl Progress<'_> {
    /// Tells that `done` bytes in all are done, and what was found unreadable.
    pub(super) fn reached(&mut self, done: u64, unreadable: &[Unreadable]) -> Result<(), ConvertError> {
        unreadable.iter().for_each(|part| self.watch.unreadable(part));
        self.done = done;
        match self.watch.progress(done, self.total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ConvertError::Cancelled),
        }
    }
}

/// Carries out all jobs of a batch.
pub(super) fn run(
    batch: &Batch,
    sources: &[Disk],
    sink: &mut Sink<'_>,
    rules: &Rules,
    options: &ConvertOptions,
    progress: &mut Progress<'_>,
) -> Result<(), ConvertError> {
    let packer = Packer::new(sink.target(), rules).map_err(ConvertError::Refused)?;
    let threads = threads(batch, options);
    let state = State {
        free: std::iter::repeat_with(Piece::default).take(threads + BUFFERS_BESIDES).collect(),
        waiting: 0,
        ready: BTreeMap::new(),
        portion: 0,
        writing: false,
        done: progress.done,
        unreadable: batch.unreadable.clone(),
        failed: None,
    };
    let in_order = !options.out_of_order;
    let crew = Crew {
        batch,
        sources,
        rules,
        packer,
        in_order,
        next: Mutex::new((0, 0)),
        state: Mutex::new(state),
        freed: Condvar::new(),
        sink: Mutex::new(sink),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| crew.work(None));
        }
        // Only this thread may call back.
        crew.work(Some(progress));
    });
    let state = crew.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failed {
        Some(error) => Err(error),
        None => progress.reached(state.done, &state.unreadable),
    }
}

/// How many threads work, this one among them.
fn threads(batch: &Batch, options: &ConvertOptions) -> usize {
    if batch.data_bytes < WORTH_THREADS {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    options.workers.min(cores)
}

/// The threads that work on a batch.
struct Crew<'a, 'b> {
    batch: &'a Batch,
    sources: &'a [Disk],
    rules: &'a Rules,
    packer: Option<Packer>,
    /// Portions are written in the order of the disk.
    in_order: bool,
    /// The number of the next portion, and its first job.
    next: Mutex<(usize, usize)>,
    state: Mutex<State>,
    /// A buffer was freed, or all stop.
    freed: Condvar,
    /// Taken by the one that writes.
    sink: Mutex<&'a mut Sink<'b>>,
}

/// What the threads share. The lock is held for moments only.
struct State {
    /// Buffers: their number bounds how far reading runs ahead.
    free: Vec<Piece>,
    /// Threads that wait for one.
    waiting: usize,
    /// Portions that were read, or could not be, by number.
    ready: BTreeMap<usize, Result<Piece, ConvertError>>,
    /// The portion that is written next.
    portion: usize,
    /// Somebody writes, and will write all that becomes ready meanwhile.
    writing: bool,
    /// Bytes of the disk that are done.
    done: u64,
    /// What was taken for zeros and not told yet.
    unreadable: Vec<Unreadable>,
    /// Why all stop.
    failed: Option<ConvertError>,
}

impl Crew<'_, '_> {
    /// Does portions until there are none left, or one has failed. One thread tells the progress.
    fn work(&self, mut progress: Option<&mut Progress<'_>>) {
        let _end = EndOfWork(self);
        // First the buffer, then the portion: whoever has the portion that is written next can do it.
        while let Some(mut piece) = self.take_buffer() {
            let Some((number, jobs)) = self.take_portion() else { return };
            let jobs = self.batch.jobs.get(jobs).unwrap_or(&[]);
            let read = piece.fill(self.sources, self.batch, jobs, self.rules, self.packer.as_ref());
            self.hand_in(number, read.map(|()| piece), &mut progress);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a buffer; `None` when all stop.
    fn take_buffer(&self) -> Option<Piece> {
        let mut state = self.state();
        while state.failed.is_none() {
            if let Some(piece) = state.free.pop() {
                return Some(piece);
            }
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        None
    }

    fn take_portion(&self) -> Option<(usize, Range<usize>)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = self.batch.portion(next.1);
        let number = next.0;
        *next = (number + 1, jobs.end);
        (!jobs.is_empty()).then_some((number, jobs))
    }

    /// Adds what was read, and writes all that can be written, unless somebody does.
    fn hand_in(&self, number: usize, read: Result<Piece, ConvertError>, progress: &mut Option<&mut Progress<'_>>) {
        let mut state = self.state();
        state.ready.insert(number, read);
        if state.writing {
            drop(self.tell(state, progress));
            return;
        }
        state.writing = true;
        while state.failed.is_none()
            && let Some(read) = self.next_ready(&mut state)
        {
            drop(state);
            let written = read.and_then(|piece| {
                self.sink.lock().unwrap_or_else(PoisonError::into_inner).write(&piece, self.sources)?;
                Ok(piece)
            });
            state = self.state();
            state.portion += 1;
            match written {
                Ok(mut piece) => {
                    state.done += piece.disk_bytes;
                    state.unreadable.append(&mut piece.unreadable);
                    state.free.push(piece);
                    if state.waiting > 0 {
                        self.freed.notify_one();
                    }
                    state = self.tell(state, progress);
                }
                Err(error) => self.fail(&mut state, error),
            }
        }
        state.writing = false;
    }

    /// Tells how far all have come, without the lock.
    fn tell<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        progress: &mut Option<&mut Progress<'_>>,
    ) -> MutexGuard<'a, State> {
        let Some(progress) = progress else { return state };
        let (done, unreadable) = (state.done, std::mem::take(&mut state.unreadable));
        drop(state);
        let told = progress.reached(done, &unreadable);
        let mut state = self.state();
        if let Err(error) = told {
            self.fail(&mut state, error);
        }
        state
    }

    fn next_ready(&self, state: &mut State) -> Option<Result<Piece, ConvertError>> {
        match self.in_order {
            true => state.ready.remove(&state.portion),
            false => state.ready.pop_first().map(|(_, read)| read),
        }
    }

    /// Lets all end, with this error if there was none before.
    fn fail(&self, state: &mut State, error: ConvertError) {
        state.failed.get_or_insert(error);
        self.freed.notify_all();
    }
}

/// Wakes the others when a thread panics: its portion will never be written.
struct EndOfWork<'a, 'b, 'c>(&'c Crew<'a, 'b>);

impl Drop for EndOfWork<'_, '_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&mut self.0.state(), ConvertError::Cancelled);
        }
    }
}
