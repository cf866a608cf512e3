//! Bytes that are read before they are asked for.
//!
//! Who reads a disk in order, in pieces of one size, asks for the next piece within microseconds. What a short read costs
//! beside the bytes themselves (giving up the GIL, the locks of the image) is as much as the bytes, and no other thread
//! could help with so few. So several pieces are read at once, shared out as those of a long read, each into the `bytes` that
//! is going to be returned: they are handed out without being copied.
//!
//! Only where nothing changes meanwhile ([`super::Open`] tells): an image that is only read, whose files are locked against
//! those who write, or that lies in bytes. No more is read beforehand than was read in order before, and never more than
//! [`MOST_BYTES`]. What cannot be read is told to who asks for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, Once, TryLockError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Of one image.
const MOST_BYTES: u64 = 1 << 20;
/// Shorter pieces are not worth an object each, longer ones are shared out by themselves.
const PIECES: std::ops::Range<u64> = 16 << 10..256 << 10;
/// So many reads one after the other, each of the same length, are taken for the beginning of more.
const STEADY: u32 = 3;

/// See above.
#[derive(Default)]
pub(super) struct Ahead(Mutex<State>);

#[derive(Default)]
struct State {
    /// Where the last read ended, and the first of `pieces` begins.
    at: u64,
    /// How long it was, and each of `pieces` is.
    length: u64,
    /// How many reads of that length came one after the other.
    steady: u32,
    pieces: VecDeque<Py<PyBytes>>,
}

impl Ahead {
    /// What is to be done for a read: the bytes, if they are there, or how many pieces of that length to read from there
    /// on, of which the first one is asked for.
    pub(super) fn ask<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> Asked<'py> {
        // Another thread reads this image: then nobody reads it in order.
        let Some(mut state) = self.state() else { return Asked::Pieces(1) };
        if state.at != offset || state.length != length {
            *state = State { at: offset.saturating_add(length), length, steady: 1, pieces: VecDeque::new() };
            return Asked::Pieces(1);
        }
        state.at = offset.saturating_add(length);
        if let Some(piece) = state.pieces.pop_front() {
            return Asked::Bytes(piece.into_bound(py));
        }
        state.steady = state.steady.saturating_add(1);
        if state.steady < STEADY || !PIECES.contains(&length) {
            return Asked::Pieces(1);
        }
        keep_memory();
        let doubled = 2u64.checked_shl(state.steady - STEADY).filter(|pieces| *pieces != 0).unwrap_or(u64::MAX);
        Asked::Pieces(doubled.min(MOST_BYTES / length))
    }

    /// Keeps what was read behind a piece that ended at `at`, unless somebody else has read since.
    pub(super) fn keep<'py>(&self, at: u64, length: u64, pieces: impl Iterator<Item = Bound<'py, PyBytes>>) {
        let Some(mut state) = self.state() else { return };
        if state.at == at && state.length == length && state.pieces.is_empty() {
            state.pieces = pieces.map(Bound::unbind).collect();
        }
    }

    /// Drops what was read, and begins anew.
    pub(super) fn forget(&self) {
        if let Some(mut state) = self.state() {
            *state = State::default();
        }
    }

    /// Nobody waits for it: it is held for moments, but a fork can leave it locked for ever.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        match self.0.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// The GNU C library gives memory back to the system as soon as 128 KiB at the end of its heap are free, and takes it anew,
/// page by page, for the next pieces: that takes five times as long as to read them. It learns by the sizes that it sees
/// freed, and keeps twice the largest one. Whoever has freed 1 MiB before has taught it as much.
fn keep_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(2 * MOST_BYTES as usize))));
}

/// The answer of [`Ahead::ask`].
pub(super) enum Asked<'py> {
    /// It was read already.
    Bytes(Bound<'py, PyBytes>),
    /// So many pieces are to be read, at least one.
    Pieces(u64),
}
