//! A store that leaves its base alone.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

use super::{
    Capabilities, MemoryStorage, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent,
    StorageExtentKind, ZeroMode, end_of,
};

/// Where the bytes of a part of an [`OverlayStorage`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum OverlaySource {
    /// From the base, unchanged, at the same offset.
    Base,
    /// From the edits: read them from the overlay.
    Edits,
    /// They are zeros: a hole made by an edit, or bytes behind the end of the base.
    Zeros,
}

/// A part of an [`OverlayStorage`]. Parts follow one another without gaps or overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct OverlayPart {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; never 0.
    pub length: u64,
    /// Where its bytes come from.
    pub source: OverlaySource,
}

/// A state of the edits to go back to. It shares memory with them.
#[derive(Clone)]
pub struct OverlayMark(State);

/// A base that is only read, and edits in memory: for dry runs, for undoing, and for editing what cannot be written
/// in place (a file in a browser). The base must not change meanwhile.
///
/// ```
/// use qcowkit_core::storage::{OverlaySource, OverlayStorage, ReadStorage, SliceStorage, Storage};
///
/// let disk = OverlayStorage::new(SliceStorage::new([1; 10_000]))?;
/// let before = disk.mark();
/// disk.write_at(500, &[2; 3])?;
/// disk.discard(8000, 1000)?;
///
/// let changed: Vec<_> = disk.patch()?.iter().map(|part| (part.offset, part.length, part.source)).collect();
/// assert_eq!(changed, [(500, 3, OverlaySource::Edits), (8000, 1000, OverlaySource::Zeros)]);
///
/// disk.restore(&before);
/// assert!(disk.patch()?.is_empty());
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
pub struct OverlayStorage<B> {
    base: B,
    base_length: u64,
    state: RefCell<State>,
}

impl<B: ReadStorage> OverlayStorage<B> {
    /// An overlay without edits.
    ///
    /// # Errors
    /// When the base cannot tell its length.
    pub fn new(base: B) -> Result<Self, StorageError> {
        let base_length = base.len()?;
        Ok(Self { base, base_length, state: RefCell::new(State::new(base_length)) })
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &B {
        &self.base
    }

    /// The base, given back; the edits are lost.
    #[must_use]
    pub fn into_base(self) -> B {
        self.base
    }

    /// Forgets all edits.
    pub fn discard_edits(&self) {
        *self.state.borrow_mut() = State::new(self.base_length);
    }

    /// The edits as they are now. Costs time and memory in proportion to the number of edits, not to their size.
    #[must_use]
    pub fn mark(&self) -> OverlayMark {
        OverlayMark(self.state.borrow().clone())
    }

    /// Goes back to a mark of this overlay, or forward to a later one.
    pub fn restore(&self, mark: &OverlayMark) {
        *self.state.borrow_mut() = mark.0.clone();
    }

    /// The bytes of memory that hold edits.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.state.borrow().edits.memory_bytes()
    }

    /// The whole store in parts, in order, from 0 to its length.
    ///
    /// # Errors
    /// None today; as [`ReadStorage::next_extent`].
    pub fn parts(&self) -> Result<Vec<OverlayPart>, StorageError> {
        let state = self.state.borrow();
        let length = state.edits.len()?;
        let mut parts: Vec<OverlayPart> = Vec::new();
        let mut at = 0;
        while at < length {
            let (mut source, mut end) = state.piece(at, length);
            if source == OverlaySource::Edits {
                let extent = state.edits.next_extent(at)?;
                end = end.min(at.saturating_add(extent.length));
                if extent.kind == StorageExtentKind::Hole {
                    source = OverlaySource::Zeros;
                }
            }
            let piece = end.saturating_sub(at);
            match parts.last_mut() {
                Some(last) if last.source == source => last.length = last.length.saturating_add(piece),
                _ => parts.push(OverlayPart { offset: at, length: piece, source }),
            }
            at = end;
        }
        Ok(parts)
    }

    /// What differs from the base: the [`parts`](Self::parts) that do not come from it. The length may differ too.
    ///
    /// # Errors
    /// As [`OverlayStorage::parts`].
    pub fn patch(&self) -> Result<Vec<OverlayPart>, StorageError> {
        let mut parts = self.parts()?;
        parts.retain(|part| part.source != OverlaySource::Base);
        Ok(parts)
    }

    /// Makes the same changes to another store, which holds what the base holds. There is no barrier in it and no
    /// order that a power cut would respect.
    ///
    /// # Errors
    /// When the target fails; some changes may have been made.
    pub fn apply<S: Storage + ?Sized>(&self, onto: &S) -> Result<(), StorageError> {
        const BUFFER: usize = 1 << 20;
        let mut buffer = vec![0; BUFFER];
        for part in self.patch()? {
            if part.source == OverlaySource::Zeros {
                onto.write_zeroes(part.offset, part.length, ZeroMode::MayUnmap)?;
                continue;
            }
            let (mut at, end) = (part.offset, part.offset.saturating_add(part.length));
            while at < end {
                let size = usize::try_from(end.saturating_sub(at)).unwrap_or(BUFFER).min(BUFFER);
                let chunk = buffer.get_mut(..size).unwrap_or_default();
                self.read_at(at, chunk)?;
                onto.write_at(at, chunk)?;
                at = at.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
            }
        }
        let length = self.len()?;
        if onto.len()? == length { Ok(()) } else { onto.set_len(length) }
    }

    /// Refuses what would make a device longer. Gives the end of the range.
    fn admit(&self, offset: u64, length: u64, operation: &'static str) -> Result<u64, StorageError> {
        let end = end_of(offset, length, operation)?;
        if end > self.base_length && self.base.capabilities().block_device {
            return Err(StorageError::new(StorageErrorKind::OutOfBounds, operation).at(offset));
        }
        Ok(end)
    }
}

impl<B: fmt::Debug> fmt::Debug for OverlayStorage<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        f.debug_struct("OverlayStorage")
            .field("base", &self.base)
            .field("edits", &state.edits)
            .field("changed_ranges", &state.changed.len())
            .finish()
    }
}

impl fmt::Debug for OverlayMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OverlayMark").field(&self.0.edits).finish()
    }
}

impl<B: ReadStorage> ReadStorage for OverlayStorage<B> {
    fn len(&self) -> Result<u64, StorageError> {
        self.state.borrow().edits.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let state = self.state.borrow();
        let end = offset.saturating_add(u64::try_from(into.len()).unwrap_or(u64::MAX));
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() && at < end {
            let (source, piece_end) = state.piece(at, end);
            let size = usize::try_from(piece_end.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(size);
            match source {
                OverlaySource::Base => self.base.read_at(at, part)?,
                OverlaySource::Edits => state.edits.read_at(at, part)?,
                OverlaySource::Zeros => part.fill(0),
            }
            rest = after;
            at = piece_end;
        }
        rest.fill(0);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let base = self.base.capabilities();
        Capabilities {
            read_only: false,
            grows: !base.block_device,
            discard_alignment: 1,
            holes_read_zero: true,
            ..base
        }
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        let state = self.state.borrow();
        let length = state.edits.len()?;
        let mut found: Option<StorageExtentKind> = None;
        let mut at = offset;
        while at < length {
            let (source, end) = state.piece(at, length);
            let extent = match source {
                OverlaySource::Base => self.base.next_extent(at)?,
                OverlaySource::Edits => state.edits.next_extent(at)?,
                OverlaySource::Zeros => StorageExtent { kind: StorageExtentKind::Hole, length: end.saturating_sub(at) },
            };
            if found.is_some_and(|kind| kind != extent.kind) {
                break;
            }
            found = Some(extent.kind);
            // A base that breaks its promise with an empty extent must not make this loop endless.
            at = at.saturating_add(extent.length.max(1)).min(end);
            if at < end {
                // Of the same source, what follows is of another kind: to ask for it would cost as much again.
                break;
            }
        }
        let kind = found.unwrap_or(StorageExtentKind::Hole);
        Ok(StorageExtent { kind, length: at.saturating_sub(offset) })
    }
}

impl<B: ReadStorage> Storage for OverlayStorage<B> {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        let end = self.admit(offset, length, "write")?;
        let mut state = self.state.borrow_mut();
        state.edits.write_at(offset, from)?;
        state.change(offset, end);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let end = self.admit(offset, length, "write zeroes")?;
        let mut state = self.state.borrow_mut();
        state.edits.write_zeroes(offset, length, mode)?;
        state.change(offset, end);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mut state = self.state.borrow_mut();
        let end = end_of(offset, length, "discard")?.min(state.edits.len()?);
        state.edits.discard(offset, length)?;
        state.change(offset, end);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        if length != self.base_length && self.base.capabilities().block_device {
            return Err(StorageError::new(StorageErrorKind::OutOfBounds, "set the length").at(length));
        }
        let mut state = self.state.borrow_mut();
        state.edits.set_len(length)?;
        state.truncate(length);
        Ok(())
    }

    /// Reserves nothing in the base: what is not edited stays as it is there.
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let end = self.admit(offset, length, "allocate")?;
        let mut state = self.state.borrow_mut();
        let mut at = offset;
        while at < end {
            let (source, piece_end) = state.piece(at, end);
            if source != OverlaySource::Base {
                state.edits.allocate(at, piece_end.saturating_sub(at))?;
                state.change(at, piece_end);
            }
            at = piece_end;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

#[derive(Clone)]
struct State {
    /// The contents of the changed ranges. Its length is that of the whole store.
    edits: MemoryStorage,
    /// The changed ranges, start to end, neither overlapping nor touching.
    changed: BTreeMap<u64, u64>,
    /// The base is seen below this; what a cut removed does not come back when the store grows again.
    base_end: u64,
}

impl State {
    fn new(base_length: u64) -> Self {
        Self { edits: MemoryStorage::with_len(base_length), changed: BTreeMap::new(), base_end: base_length }
    }

    /// The source of the bytes from `at`, and where it changes, at most `end`.
    fn piece(&self, at: u64, end: u64) -> (OverlaySource, u64) {
        if let Some((_, &changed_end)) = self.changed.range(..=at).next_back()
            && at < changed_end
        {
            return (OverlaySource::Edits, changed_end.min(end));
        }
        let next = self.changed.range(at..end.max(at)).next().map_or(end, |(start, _)| *start);
        if at < self.base_end { (OverlaySource::Base, next.min(self.base_end)) } else { (OverlaySource::Zeros, next) }
    }

    fn change(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        while let Some((&other, &other_end)) = self.changed.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            (start, end) = (start.min(other), end.max(other_end));
            self.changed.remove(&other);
        }
        self.changed.insert(start, end);
    }

    fn truncate(&mut self, length: u64) {
        self.base_end = self.base_end.min(length);
        while let Some((&start, &end)) = self.changed.range(..).next_back() {
            if end <= length {
                break;
            }
            self.changed.remove(&start);
            if start < length {
                self.changed.insert(start, length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{SliceStorage, conformance};

    #[test]
    fn keeps_every_promise() {
        conformance::check_all(|length| OverlayStorage::new(MemoryStorage::with_len(length))).unwrap();
        conformance::check_all(|length| OverlayStorage::new(MemoryStorage::block_device(length))).unwrap();
        // Over data that must stay hidden where zeros are promised.
        conformance::check_all(|length| {
            let disk = OverlayStorage::new(MemoryStorage::from_bytes(&vec![0xdd; usize::try_from(length).unwrap()]))?;
            disk.write_zeroes(0, length, ZeroMode::MayUnmap)?;
            Ok(disk)
        })
        .unwrap();
    }

    #[test]
    fn the_base_does_not_change_and_edits_can_be_applied() {
        for seed in 1..6 {
            let base = MemoryStorage::with_len(1 << 20);
            conformance::check_against_model(&base, seed, 20).unwrap();
            let contents = base.to_vec().unwrap();
            let disk = OverlayStorage::new(&base).unwrap();
            let fresh = disk.mark();
            disk.write_zeroes(0, base.len().unwrap(), ZeroMode::MayUnmap).unwrap();
            conformance::check_against_model(&disk, seed + 100, 50).unwrap();
            assert_eq!(base.to_vec().unwrap(), contents);

            let target = base.clone();
            disk.apply(&target).unwrap();
            let mut edited = vec![0; usize::try_from(disk.len().unwrap()).unwrap()];
            disk.read_at(0, &mut edited).unwrap();
            assert_eq!(target.to_vec().unwrap(), edited);

            disk.restore(&fresh);
            conformance::check_contents(&disk, &contents).unwrap();
        }
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let disk = OverlayStorage::new(SliceStorage::new([5; 10_000])).unwrap();
        disk.write_at(9000, &[6; 500]).unwrap();
        disk.set_len(9100).unwrap();
        disk.set_len(9_900).unwrap();
        let mut expected = vec![5; 9000];
        expected.resize(9100, 6);
        expected.resize(9900, 0);
        conformance::check_contents(&disk, &expected).unwrap();
        let sources: Vec<_> = disk.parts().unwrap().iter().map(|part| (part.length, part.source)).collect();
        use OverlaySource::*;
        assert_eq!(sources, [(9000, Base), (100, Edits), (800, Zeros)]);
        disk.discard_edits();
        conformance::check_contents(&disk, &[5; 10_000]).unwrap();
    }

    #[test]
    fn changed_ranges_are_exact_and_joined() {
        let disk = OverlayStorage::new(SliceStorage::new([5; 10_000])).unwrap();
        for (offset, length) in [(10, 2), (14, 2), (12, 2), (5000, 1), (20, 3), (18, 10)] {
            disk.write_at(offset, &vec![1; length]).unwrap();
        }
        let changed: Vec<_> = disk.patch().unwrap().iter().map(|part| (part.offset, part.length)).collect();
        assert_eq!(changed, [(10, 6), (18, 10), (5000, 1)]);
    }

    #[test]
    fn an_allocation_hides_nothing_of_the_base() {
        let disk = OverlayStorage::new(SliceStorage::new([5; 100])).unwrap();
        disk.allocate(0, 200).unwrap();
        let mut expected = vec![5; 100];
        expected.resize(200, 0);
        conformance::check_contents(&disk, &expected).unwrap();
        assert_eq!(disk.next_extent(0).unwrap(), StorageExtent { kind: StorageExtentKind::Data, length: 200 });
    }
}
