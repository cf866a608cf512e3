//! Carrying out a batch: threads that read ahead and pack, and this thread, which writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};

use super::piece::{Packer, Piece, Rules};
use super::plan::{Batch, Work};
use super::sink::Sink;
use super::{ConvertError, ConvertOptions};
use crate::disk::Disk;

/// Less than this is read before a thread has started.
const WORTH_THREADS: u64 = 4 << 20;

/// Carries out all jobs of a batch.
pub(super) fn run(
    batch: &Batch,
    sources: &[Disk],
    sink: &mut Sink<'_>,
    rules: &Rules,
    options: &ConvertOptions,
) -> Result<(), ConvertError> {
    let packer = Packer::new(sink.target(), rules).map_err(ConvertError::Refused)?;
    let reader = Reader { batch, sources, rules, packer };
    match threads(batch, options) {
        0 => alone(&reader, sink),
        threads => with_threads(&reader, sink, threads, options.out_of_order),
    }
}

/// How many threads read besides the one that writes.
fn threads(batch: &Batch, options: &ConvertOptions) -> usize {
    if batch.data_bytes < WORTH_THREADS {
        return 0;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Packing takes far longer than writing, so that the writer hardly counts.
    let most = if options.compress { cores } else { cores - 1 };
    options.workers.min(most)
}

/// What is needed to get the bytes of a job.
struct Reader<'a> {
    batch: &'a Batch,
    sources: &'a [Disk],
    rules: &'a Rules,
    packer: Option<Packer>,
}

impl Reader<'_> {
    /// Reads the window of a job, if it has one.
    fn read(&self, job: usize, piece: &mut Piece) -> Result<(), ConvertError> {
        match &self.batch.jobs[job].work {
            Work::Copy(range) => piece.fill(self.sources, self.batch.segments(range), self.rules, self.packer.as_ref()),
            Work::Zero | Work::Skip => Ok(()),
        }
    }
}

/// Reads and writes by turns.
fn alone(reader: &Reader<'_>, sink: &mut Sink<'_>) -> Result<(), ConvertError> {
    let mut piece = Piece::default();
    for (number, job) in reader.batch.jobs.iter().enumerate() {
        reader.read(number, &mut piece)?;
        match job.work {
            Work::Skip => {}
            Work::Zero => sink.zero(job.offset, job.length)?,
            Work::Copy(_) => sink.write(job.offset, &piece)?,
        }
        sink.report_progress(job.length)?;
    }
    Ok(())
}

/// Writes what `threads` others read.
fn with_threads(
    reader: &Reader<'_>,
    sink: &mut Sink<'_>,
    threads: usize,
    out_of_order: bool,
) -> Result<(), ConvertError> {
    let pool = Pool::new(2 * threads + 2);
    let next = AtomicUsize::new(0);
    let (ready, arrivals) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let ready = ready.clone();
            let (pool, next) = (&pool, &next);
            scope.spawn(move || {
                let _close = CloseOnDrop(pool);
                // First the buffer, then the job: whoever has the job that is written next can do it.
                while let Some(mut piece) = pool.take() {
                    let Some(number) = next_copy(reader.batch, next) else { break };
                    let read = reader.read(number, &mut piece);
                    if ready.send((number, read.map(|()| piece))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(ready);
        // However this ends, the threads must not wait for buffers.
        let _close = CloseOnDrop(&pool);
        if out_of_order {
            write_as_they_come(reader.batch, sink, &pool, &arrivals)
        } else {
            write_in_order(reader.batch, sink, &pool, &arrivals)
        }
    })
}

/// The next job that reads.
fn next_copy(batch: &Batch, next: &AtomicUsize) -> Option<usize> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if let Work::Copy(_) = batch.jobs.get(number)?.work {
            return Some(number);
        }
    }
}

type Arrival = (usize, Result<Piece, ConvertError>);

fn write_in_order(
    batch: &Batch,
    sink: &mut Sink<'_>,
    pool: &Pool,
    arrivals: &mpsc::Receiver<Arrival>,
) -> Result<(), ConvertError> {
    let mut early = BTreeMap::new();
    for (number, job) in batch.jobs.iter().enumerate() {
        match job.work {
            Work::Skip => {}
            Work::Zero => sink.zero(job.offset, job.length)?,
            Work::Copy(_) => {
                let piece = loop {
                    if let Some(read) = early.remove(&number) {
                        break read;
                    }
                    // The threads are gone only when one of them panicked, which the scope passes on.
                    let Ok((arrived, read)) = arrivals.recv() else { return Err(ConvertError::Cancelled) };
                    early.insert(arrived, read);
                }?;
                sink.write(job.offset, &piece)?;
                pool.give_back(piece);
            }
        }
        sink.report_progress(job.length)?;
    }
    Ok(())
}

fn write_as_they_come(
    batch: &Batch,
    sink: &mut Sink<'_>,
    pool: &Pool,
    arrivals: &mpsc::Receiver<Arrival>,
) -> Result<(), ConvertError> {
    for (number, read) in arrivals {
        let (piece, job) = (read?, &batch.jobs[number]);
        sink.write(job.offset, &piece)?;
        pool.give_back(piece);
        sink.report_progress(job.length)?;
    }
    for job in &batch.jobs {
        match job.work {
            Work::Copy(_) => continue,
            Work::Zero => sink.zero(job.offset, job.length)?,
            Work::Skip => {}
        }
        sink.report_progress(job.length)?;
    }
    Ok(())
}

/// Buffers: their number bounds how far the threads run ahead.
struct Pool {
    state: Mutex<(Vec<Piece>, bool)>,
    changed: Condvar,
}

impl Pool {
    fn new(pieces: usize) -> Self {
        let free = std::iter::repeat_with(Piece::default).take(pieces).collect();
        Self { state: Mutex::new((free, false)), changed: Condvar::new() }
    }

    /// Waits for a buffer; `None` once the pool is closed.
    fn take(&self) -> Option<Piece> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.1 {
                return None;
            }
            if let Some(piece) = state.0.pop() {
                return Some(piece);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, piece: Piece) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.push(piece);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }
}

/// Closes the pool when a thread ends: no jobs are left then, or something went wrong.
struct CloseOnDrop<'a>(&'a Pool);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
