//! Putting what an image holds into its backing file, or one further down: `commit`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use qcowkit_core::Result;
use qcowkit_core::image::{CommitPiece, CommitPlan, CommitReport, Image};

use crate::disk::{Disk, LayerView};
use crate::file::FileStorage;

/// Bytes that are decided at once.
const BATCH: u64 = 32 << 20;

/// Less than this is copied before a thread has started.
const WORTH_THREADS: u64 = 4 << 20;

/// How a commit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitOptions {
    /// The most bytes that are copied in a second; no limit without.
    pub bytes_per_second: Option<u64>,
    /// The most threads that copy; as many as the machine can run with 0.
    pub workers: usize,
}

/// How deep in the chain of a disk a file lies: found by what it is, or by the name that the image above has for it.
///
/// The top itself does not count.
#[must_use]
pub fn depth_of(disk: &Disk, base: &Path) -> Option<u32> {
    let wanted = base.canonicalize().ok();
    let layers = disk.layers();
    let named = |above: LayerView<'_>| match above {
        LayerView::Qcow2(image) => {
            let name = image.header().backing_file.as_ref();
            name.is_some_and(|name| name.as_bytes() == base.as_os_str().as_encoded_bytes())
        }
        LayerView::Raw(..) => false,
    };
    let found = layers.windows(2).position(|pair| {
        let here = pair[1].file().path();
        here == base || named(pair[0]) || (wanted.is_some() && here.canonicalize().ok() == wanted)
    });
    found.and_then(|at| u32::try_from(at + 1).ok())
}

/// As [`Image::commit_into`], with threads that copy.
///
/// # Errors
/// As [`Image::commit_into`]. What was linked stays, and is made durable if that is possible.
pub fn commit(
    image: &mut Image<FileStorage>,
    base: u32,
    options: &CommitOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<CommitReport> {
    let mut plan = image.prepare_commit(base)?;
    let copied = copy(image, &mut plan, options, progress);
    let report = image.finish_commit(plan);
    copied?;
    let report = report?;
    let size = image.virtual_size();
    let _ = progress(size, size);
    Ok(report)
}

fn copy(
    image: &mut Image<FileStorage>,
    plan: &mut CommitPlan,
    options: &CommitOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<()> {
    let begun = Instant::now();
    let mut buffer = Vec::new();
    // A limited rate is kept in steps of about a quarter of a second.
    let batch = options.bytes_per_second.map_or(BATCH, |rate| (rate / 4).clamp(64 << 10, BATCH));
    while plan.done() < plan.total() && progress(plan.done(), plan.total()).is_continue() {
        let pieces = image.next_commit_batch(plan, batch)?;
        let moved = move_pieces(image, plan, &pieces, options, &mut buffer);
        image.link_commit_batch(plan, pieces, moved.is_ok())?;
        moved?;
        if let Some(rate) = options.bytes_per_second {
            let due = Duration::from_secs_f64(plan.report().data_bytes as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
    Ok(())
}

fn move_pieces(
    image: &Image<FileStorage>,
    plan: &CommitPlan,
    pieces: &[CommitPiece],
    options: &CommitOptions,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let bytes: u64 = pieces.iter().map(CommitPiece::length).sum();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match options.workers {
        0 => cores,
        most => most.min(cores),
    };
    if threads < 2 || pieces.len() < 2 || bytes < WORTH_THREADS {
        return pieces.iter().try_for_each(|piece| image.move_commit_piece(plan, piece, buffer));
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = Vec::new();
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = image.move_commit_piece(plan, piece, &mut buffer) {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                        next.store(pieces.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}
