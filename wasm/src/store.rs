//! The one storage of all images here: what it was opened on, under edits in memory, of which there can be so many.

use std::cell::Cell;
use std::rc::Rc;

use qcowkit_core::storage::{CountingStorage, OverlayStorage, ReadStorage, Storage, StorageError, StorageErrorKind};

use crate::memory::has_room;
use crate::source::Base;

/// What images are made of here: the type that the lab of the core has too, so that the code for it is there once.
pub(crate) type Store = CountingStorage<Rc<dyn Storage>>;

/// Bytes of memory that edits may take, unless told otherwise: a quarter of what a module can have.
pub(crate) const MAX_EDIT_BYTES: u64 = 1 << 30;

/// The most bytes that are written before memory is counted again.
const AT_ONCE: u64 = 64 << 20;

/// A handle on edits, with counters of its own.
pub(crate) fn store(edits: &Rc<Edits>) -> Store {
    let edits: Rc<dyn Storage> = Rc::<Edits>::clone(edits);
    CountingStorage::new(edits)
}

/// Edits over a base.
#[derive(Debug)]
pub(crate) struct Edits {
    overlay: OverlayStorage<Rc<Base>>,
    most: u64,
    /// Bytes that can be written before memory is counted again, which takes time.
    spare: Cell<u64>,
}

impl Edits {
    pub(crate) fn new(base: Rc<Base>, most: u64) -> Result<Rc<Self>, StorageError> {
        Ok(Rc::new(Self { overlay: OverlayStorage::new(base)?, most, spare: Cell::new(0) }))
    }

    /// Another storage with the same bytes, whose edits are its own from now on.
    pub(crate) fn fork(&self) -> Result<Rc<Self>, StorageError> {
        let copy = Self::new(Rc::clone(self.overlay.base()), self.most)?;
        copy.overlay.restore(&self.overlay.mark());
        Ok(copy)
    }

    /// Takes all edits back.
    pub(crate) fn clear(&self) -> Result<(), StorageError> {
        let fresh = OverlayStorage::new(Rc::clone(self.overlay.base()))?;
        self.overlay.restore(&fresh.mark());
        Ok(())
    }

    pub(crate) fn overlay(&self) -> &OverlayStorage<Rc<Base>> {
        &self.overlay
    }

    /// Refuses a write for which there is no memory. Rewriting in place counts as new between two countings, no more.
    fn admit(&self, length: u64) -> Result<(), StorageError> {
        if length > self.spare.get() {
            let left = self.most.saturating_sub(self.overlay.memory_bytes());
            if length > left {
                return Err(StorageError::new(StorageErrorKind::NoSpace, "keep more edits in memory (max_edit_bytes)"));
            }
            let spare = length.max((left / 16).min(AT_ONCE));
            if !has_room(spare) {
                return Err(StorageError::new(
                    StorageErrorKind::NoSpace,
                    "keep more edits: the module's memory is full",
                ));
            }
            self.spare.set(spare);
        }
        self.spare.set(self.spare.get() - length);
        Ok(())
    }
}

impl ReadStorage for Edits {
    qcowkit_core::forward_storage!(this => this.overlay; len, read_at, capabilities, next_extent);
}

impl Storage for Edits {
    qcowkit_core::forward_storage!(this => this.overlay; write_zeroes, discard, set_len, allocate, barrier);

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.admit(from.len() as u64)?;
        self.overlay.write_at(offset, from)
    }
}
