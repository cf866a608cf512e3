//! Several files that a power cut strikes at one moment: a barrier of one says nothing of another.

use std::cell::RefCell;
use std::rc::Rc;

use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage, StorageError, StorageEvent, ZeroMode};

use super::Rng;
use super::session::SECTOR;

/// What happened to several files, in order: which file, and what.
pub type Log = Rc<RefCell<Vec<(usize, StorageEvent)>>>;

/// A file in memory that shares its log with others. Clones are the same file.
#[derive(Clone)]
pub struct Logged {
    number: usize,
    inner: Rc<MemoryStorage>,
    log: Log,
}

impl Logged {
    /// The file with this number in the log.
    #[must_use]
    pub fn new(number: usize, bytes: &[u8], log: &Log) -> Self {
        Self { number, inner: Rc::new(MemoryStorage::from_bytes(bytes)), log: Rc::clone(log) }
    }

    /// Its bytes.
    ///
    /// # Panics
    /// When it is too large for memory.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.inner.to_vec().expect("it fits in memory")
    }

    fn carry_out(&self, event: StorageEvent) -> Result<(), StorageError> {
        event.apply(self.inner.as_ref())?;
        self.log.borrow_mut().push((self.number, event));
        Ok(())
    }
}

impl ReadStorage for Logged {
    qcowkit_core::forward_storage!(this => this.inner; len, read_at, capabilities, next_extent);
}

impl Storage for Logged {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Write { offset, data: from.into() })
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::WriteZeroes { offset, length, mode })
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Discard { offset, length })
    }
    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::SetLen { length })
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Allocate { offset, length })
    }
    fn barrier(&self) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Barrier)
    }
}

/// What survives of the writes that no barrier has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// All.
    All,
    /// Nothing.
    Nothing,
    /// Some of them, whole.
    Some,
    /// Some sectors of them.
    Sectors,
}

impl Survives {
    /// All of them.
    pub const EACH: [Self; 4] = [Self::All, Self::Nothing, Self::Some, Self::Sectors];
}

/// Files as a cut after all of `log` may leave them.
///
/// # Panics
/// When an event cannot be repeated.
#[must_use]
pub fn cut_files(
    before: &[Vec<u8>],
    log: &[(usize, StorageEvent)],
    survives: Survives,
    rng: &mut Rng,
) -> Vec<MemoryStorage> {
    let cut = |(number, bytes): (usize, &Vec<u8>)| {
        let own = log.iter().filter(|(file, _)| *file == number).map(|(_, event)| event);
        cut_file(bytes, &own.collect::<Vec<_>>(), survives, rng)
    };
    before.iter().enumerate().map(cut).collect()
}

/// One file as a cut after these events may leave it.
///
/// # Panics
/// When an event cannot be repeated.
#[must_use]
pub fn cut_file(before: &[u8], events: &[&StorageEvent], survives: Survives, rng: &mut Rng) -> MemoryStorage {
    let durable = events.iter().rposition(|event| **event == StorageEvent::Barrier).map_or(0, |last| last + 1);
    let storage = MemoryStorage::from_bytes(before);
    let odds = [2, 4, 16][rng.below(3) as usize];
    let mostly = rng.one_in(2);
    for (n, event) in events.iter().enumerate() {
        let pieces = match survives {
            _ if n < durable => event.torn(0),
            Survives::All => event.torn(0),
            Survives::Nothing => Vec::new(),
            Survives::Some if rng.one_in(odds) == mostly => Vec::new(),
            Survives::Some => event.torn(0),
            Survives::Sectors => event.torn(SECTOR as u32).into_iter().filter(|_| rng.one_in(odds) != mostly).collect(),
        };
        pieces.iter().for_each(|piece| piece.apply(&storage).expect("what could be done once can be done again"));
    }
    storage
}
