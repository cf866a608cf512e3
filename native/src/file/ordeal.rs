//! A sudden end for the tests: with `QCOWKIT_DIE_AT=N` in the environment a process kills itself at its N-th call that
//! changes a file. Programs that are built without debug assertions know nothing of it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A call that changes a file is about to be made; `half` does a part of it.
pub(super) fn call(half: impl FnOnce()) {
    static LAST: OnceLock<Option<u64>> = OnceLock::new();
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let last = LAST.get_or_init(|| std::env::var("QCOWKIT_DIE_AT").ok()?.parse().ok());
    if last.is_some_and(|last| CALLS.fetch_add(1, Ordering::SeqCst) + 1 == last) {
        half();
        die();
    }
}

/// About half of a write, up to the end of a sector: a signal does not interrupt the copy of a few bytes.
pub(super) fn half(offset: u64, length: usize) -> usize {
    let end = (offset + length as u64 / 2) & !511;
    usize::try_from(end.saturating_sub(offset)).map_or(0, |half| half.min(length))
}

/// Nothing is cleaned up, and nobody is told: as by `kill -9`.
#[cfg(unix)]
fn die() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

#[cfg(not(unix))]
fn die() {
    std::process::abort();
}
