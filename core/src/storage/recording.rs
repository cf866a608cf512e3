//! A wrapper that keeps a log of everything that changes a store, and replays parts of it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::ops::Range;

use super::{ReadStorage, Storage, StorageError, ZeroMode};

/// A successful call of the write side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageEvent {
    /// `write_at`.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// `write_zeroes`.
    WriteZeroes {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// How.
        mode: ZeroMode,
    },
    /// `discard`.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// `set_len`.
    SetLen {
        /// The new length in bytes.
        length: u64,
    },
    /// `allocate`.
    Allocate {
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// `barrier`.
    Barrier,
}

impl StorageEvent {
    /// Does the same to another store.
    ///
    /// # Errors
    /// As the call it stands for.
    pub fn apply<S: Storage + ?Sized>(&self, storage: &S) -> Result<(), StorageError> {
        match self {
            Self::Write { offset, data } => storage.write_at(*offset, data),
            Self::WriteZeroes { offset, length, mode } => storage.write_zeroes(*offset, *length, *mode),
            Self::Discard { offset, length } => storage.discard(*offset, *length),
            Self::SetLen { length } => storage.set_len(*length),
            Self::Allocate { offset, length } => storage.allocate(*offset, *length),
            Self::Barrier => storage.barrier(),
        }
    }

    /// The pieces that a power cut may tear the event into: a write, zero-write or discard is atomic only per sector
    /// of `sector_bytes`. Other events, and all when `sector_bytes` is 0, are one piece.
    #[must_use]
    pub fn torn(&self, sector_bytes: u32) -> Vec<Self> {
        match self {
            Self::Write { offset, data } => sectors(*offset, to_u64(data.len()), sector_bytes)
                .filter_map(|(start, length)| {
                    let from = usize::try_from(start.saturating_sub(*offset)).ok()?;
                    let to = from.saturating_add(usize::try_from(length).ok()?);
                    Some(Self::Write { offset: start, data: Arc::from(data.get(from..to)?) })
                })
                .collect(),
            Self::WriteZeroes { offset, length, mode } => sectors(*offset, *length, sector_bytes)
                .map(|(offset, length)| Self::WriteZeroes { offset, length, mode: *mode })
                .collect(),
            Self::Discard { offset, length } => sectors(*offset, *length, sector_bytes)
                .map(|(offset, length)| Self::Discard { offset, length })
                .collect(),
            Self::SetLen { .. } | Self::Allocate { .. } | Self::Barrier => alloc::vec![self.clone()],
        }
    }
}

/// Applies events in order.
///
/// # Errors
/// As the first call that fails.
pub fn replay<'a, S: Storage + ?Sized>(
    events: impl IntoIterator<Item = &'a StorageEvent>,
    onto: &S,
) -> Result<(), StorageError> {
    events.into_iter().try_for_each(|event| event.apply(onto))
}

/// The epochs of a log: the ranges of events between barriers. The barrier that ends an epoch is its last event; the
/// last epoch is the one that no barrier has ended, and may be empty.
///
/// After a power cut during the last of these epochs all events of the earlier ones have happened, and any subset of
/// its own, in any order.
#[must_use]
pub fn epochs(events: &[StorageEvent]) -> Vec<Range<usize>> {
    let mut epochs = Vec::new();
    let mut start = 0;
    for (index, event) in events.iter().enumerate() {
        if *event == StorageEvent::Barrier {
            let end = index.saturating_add(1);
            epochs.push(start..end);
            start = end;
        }
    }
    epochs.push(start..events.len());
    epochs
}

/// Passes everything on, and remembers what changed the store and when it was asked to be durable. Calls that fail
/// leave no event.
///
/// ```
/// use qcowkit_core::storage::{MemoryStorage, RecordingStorage, ReadStorage, Storage, replay};
///
/// let disk = RecordingStorage::new(MemoryStorage::new());
/// disk.write_at(0, b"first")?;
/// disk.barrier()?;
/// disk.write_at(5, b" second")?;
///
/// // The power is cut after the barrier.
/// let after = MemoryStorage::new();
/// replay(disk.events().iter().take(2), &after)?;
/// assert_eq!(after.to_vec()?, b"first");
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
pub struct RecordingStorage<S> {
    inner: S,
    events: RefCell<Vec<StorageEvent>>,
}

impl<S> RecordingStorage<S> {
    /// Wraps a store.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, events: RefCell::new(Vec::new()) }
    }

    /// The store below.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The store below, and the log.
    #[must_use]
    pub fn into_parts(self) -> (S, Vec<StorageEvent>) {
        (self.inner, self.events.into_inner())
    }

    /// A copy of the log. Written bytes are shared, not copied.
    #[must_use]
    pub fn events(&self) -> Vec<StorageEvent> {
        self.events.borrow().clone()
    }

    /// The number of events so far: a mark for "everything up to here".
    #[must_use]
    pub fn event_count(&self) -> usize {
        self.events.borrow().len()
    }

    /// Empties the log and gives what was in it.
    #[must_use]
    pub fn take_events(&self) -> Vec<StorageEvent> {
        self.events.take()
    }

    fn log(&self, done: Result<(), StorageError>, event: impl FnOnce() -> StorageEvent) -> Result<(), StorageError> {
        done?;
        self.events.borrow_mut().push(event());
        Ok(())
    }
}

impl<S: fmt::Debug> fmt::Debug for RecordingStorage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingStorage").field("inner", &self.inner).field("events", &self.event_count()).finish()
    }
}

impl<S: ReadStorage> ReadStorage for RecordingStorage<S> {
    crate::forward_storage!(this => this.inner; len, read_at, capabilities, next_extent);
}

impl<S: Storage> Storage for RecordingStorage<S> {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.log(self.inner.write_at(offset, from), || StorageEvent::Write { offset, data: Arc::from(from) })
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let done = self.inner.write_zeroes(offset, length, mode);
        self.log(done, || StorageEvent::WriteZeroes { offset, length, mode })
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.log(self.inner.discard(offset, length), || StorageEvent::Discard { offset, length })
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.log(self.inner.set_len(length), || StorageEvent::SetLen { length })
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.log(self.inner.allocate(offset, length), || StorageEvent::Allocate { offset, length })
    }

    fn barrier(&self) -> Result<(), StorageError> {
        self.log(self.inner.barrier(), || StorageEvent::Barrier)
    }
}

/// Cuts a range at multiples of the sector size into (offset, length).
fn sectors(offset: u64, length: u64, sector_bytes: u32) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(length);
    let sector = u64::from(sector_bytes);
    let mut at = offset;
    core::iter::from_fn(move || {
        let into_sector = at.checked_rem(sector).unwrap_or(0);
        let size = if sector == 0 { u64::MAX } else { sector };
        let piece = size.saturating_sub(into_sector).min(end.saturating_sub(at));
        let found = (at, piece);
        at = at.saturating_add(piece);
        (piece > 0).then_some(found)
    })
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    #[test]
    fn a_full_replay_is_the_same_store() {
        let disk = RecordingStorage::new(MemoryStorage::with_len(1 << 20));
        conformance::check_against_model(&disk, 77, 300).unwrap();
        let (inner, events) = disk.into_parts();
        let again = MemoryStorage::with_len(1 << 20);
        replay(&events, &again).unwrap();
        assert_eq!(again.to_vec().unwrap(), inner.to_vec().unwrap());
        assert_eq!(again.allocated_bytes(), inner.allocated_bytes());
        // Torn into sectors and put together again it is still the same.
        let torn = MemoryStorage::with_len(1 << 20);
        for event in &events {
            replay(&event.torn(512), &torn).unwrap();
        }
        assert_eq!(torn.to_vec().unwrap(), inner.to_vec().unwrap());
    }

    #[test]
    fn keeps_every_promise() {
        conformance::check_all(|length| Ok(RecordingStorage::new(MemoryStorage::with_len(length)))).unwrap();
    }

    #[test]
    fn epochs_end_with_their_barrier() {
        let disk = RecordingStorage::new(MemoryStorage::new());
        disk.write_at(0, b"a").unwrap();
        disk.barrier().unwrap();
        disk.barrier().unwrap();
        disk.write_at(1, b"b").unwrap();
        assert_eq!(epochs(&disk.events()), [0..2, 2..3, 3..4]);
        assert_eq!(epochs(&[]).len(), 1);
    }

    #[test]
    fn pieces_end_at_sectors() {
        let event = StorageEvent::Write { offset: 510, data: Arc::from(*b"abcde") };
        let piece = |offset, data: &[u8]| StorageEvent::Write { offset, data: Arc::from(data) };
        assert_eq!(event.torn(512), [piece(510, b"ab"), piece(512, b"cde")]);
        assert_eq!(event.torn(0), std::slice::from_ref(&event));
    }

    #[test]
    fn failed_calls_leave_no_event() {
        let disk = RecordingStorage::new(MemoryStorage::block_device(10));
        disk.write_at(10, b"x").unwrap_err();
        assert_eq!(disk.event_count(), 0);
    }
}
