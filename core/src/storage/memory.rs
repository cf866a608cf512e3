//! The store in memory.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

use super::{
    Capabilities, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind, ZeroMode,
    end_of,
};

/// The unit of allocation: 4 KiB, as in the usual file systems.
const PAGE_BYTES: u64 = 4096;
const PAGE: usize = 4096;

/// The longest store, as `off_t` has it.
const MAX_LENGTH: u64 = (1 << 63) - 1;

/// A sparse store in memory, of any length up to 2^63 - 1 bytes.
///
/// Space is allocated in pages of 4 KiB, as a file system does, so that holes, [`allocated_bytes`] and the effect of
/// a discard are what a file would show. A run of pages that hold one and the same byte takes no memory beyond a map
/// entry: a simulation that writes constant data handles a disk of many terabytes on a laptop, while metadata, whose
/// contents matter, is kept as it is. [`memory_bytes`] tells what is really held.
///
/// A clone is a copy of its own; the two share pages until one of them changes them.
///
/// ```
/// use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage, StorageExtentKind, ZeroMode};
///
/// let disk = MemoryStorage::new();
/// disk.write_at(1 << 40, &[0xaa; 65536])?;
/// assert_eq!(disk.len()?, (1 << 40) + 65536);
/// assert_eq!(disk.allocated_bytes(), 65536);
/// assert_eq!(disk.memory_bytes(), 0);
///
/// disk.discard(1 << 40, 4096)?;
/// let mut byte = [1];
/// disk.read_at(1 << 40, &mut byte)?;
/// assert_eq!(byte, [0]);
/// assert_eq!(disk.next_extent(0)?.kind, StorageExtentKind::Hole);
/// assert_eq!(disk.next_extent(0)?.length, (1 << 40) + 4096);
/// # Ok::<(), qcowkit_core::storage::StorageError>(())
/// ```
///
/// [`allocated_bytes`]: Self::allocated_bytes
/// [`memory_bytes`]: Self::memory_bytes
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: RefCell<State>,
    fixed: bool,
}

impl MemoryStorage {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A hole of `length` bytes; lengths beyond 2^63 - 1 are cut to that.
    #[must_use]
    pub fn with_len(length: u64) -> Self {
        let storage = Self::default();
        storage.state.borrow_mut().length = length.min(MAX_LENGTH);
        storage
    }

    /// A store that behaves as a block device of `length` bytes: it never grows and never shrinks.
    #[must_use]
    pub fn block_device(length: u64) -> Self {
        Self { fixed: true, ..Self::with_len(length) }
    }

    /// A store with these contents, all of them allocated.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let storage = Self::default();
        storage.state.borrow_mut().write(0, bytes);
        storage
    }

    /// The whole contents.
    ///
    /// # Errors
    /// [`StorageErrorKind::OutOfBounds`] when so much memory is not to be had.
    pub fn to_vec(&self) -> Result<Vec<u8>, StorageError> {
        let refused = || StorageError::new(StorageErrorKind::OutOfBounds, "copy out");
        let length = usize::try_from(self.state.borrow().length).map_err(|_| refused())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| refused())?;
        bytes.resize(length, 0);
        self.state.borrow().read(0, &mut bytes);
        Ok(bytes)
    }

    /// The bytes of the allocated pages: what `du` would say of a file with these contents.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.state.borrow().pages.saturating_mul(PAGE_BYTES)
    }

    /// The bytes of the pages that are really held in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let state = self.state.borrow();
        let held = state.runs.values().filter(|run| matches!(run.content, Content::Bytes(_)));
        held.fold(0_u64, |sum, _| sum.saturating_add(PAGE_BYTES))
    }

    /// Refuses what reaches past the end of a device, or past the longest length. Gives the end of the range.
    fn admit(&self, offset: u64, length: u64, operation: &'static str) -> Result<u64, StorageError> {
        let end = end_of(offset, length, operation)?;
        let limit = if self.fixed { self.state.borrow().length } else { MAX_LENGTH };
        if end > limit {
            return Err(StorageError::new(StorageErrorKind::OutOfBounds, operation).at(offset));
        }
        Ok(end)
    }
}

impl From<&[u8]> for MemoryStorage {
    fn from(bytes: &[u8]) -> Self {
        Self::from_bytes(bytes)
    }
}

impl From<Vec<u8>> for MemoryStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_bytes(&bytes)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage")
            .field("length", &self.state.borrow().length)
            .field("allocated_bytes", &self.allocated_bytes())
            .field("memory_bytes", &self.memory_bytes())
            .finish()
    }
}

impl ReadStorage for MemoryStorage {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.state.borrow().length)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.state.borrow().read(offset, into);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { grows: !self.fixed, block_device: self.fixed, ..Capabilities::default() }
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        Ok(self.state.borrow_mut().next_extent(offset))
    }
}

impl Storage for MemoryStorage {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        self.admit(offset, length, "write")?;
        self.state.borrow_mut().write(offset, from);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let end = self.admit(offset, length, "write zeroes")?;
        if length == 0 {
            return Ok(());
        }
        let mut state = self.state.borrow_mut();
        state.zero(offset, end);
        if mode == ZeroMode::KeepAllocated {
            state.allocate(offset, end);
        }
        state.length = state.length.max(end);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mut state = self.state.borrow_mut();
        let end = end_of(offset, length, "discard")?.min(state.length);
        state.zero(offset, end);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        let mut state = self.state.borrow_mut();
        if length > MAX_LENGTH || (self.fixed && length != state.length) {
            return Err(StorageError::new(StorageErrorKind::OutOfBounds, "set the length").at(length));
        }
        // Pages after the end would show again when the store grows. The last page is cut off as a whole.
        let rounded = state.length.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
        state.zero(length, rounded);
        state.length = length;
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let end = self.admit(offset, length, "allocate")?;
        if length > 0 {
            let mut state = self.state.borrow_mut();
            state.allocate(offset, end);
            state.length = state.length.max(end);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// What a run of pages holds.
#[derive(Clone)]
enum Content {
    /// This byte everywhere.
    Uniform(u8),
    /// These bytes; such a run is one page long.
    Bytes(Arc<[u8]>),
}

#[derive(Clone)]
struct Run {
    pages: u64,
    content: Content,
}

impl Run {
    fn end(&self, first: u64) -> u64 {
        first.saturating_add(self.pages)
    }
}

/// The contents. Runs are keyed by their first page and do not overlap; pages in none of them are holes. Bytes after
/// the end are zero, or in holes.
#[derive(Clone, Default)]
struct State {
    runs: BTreeMap<u64, Run>,
    /// Pages in all runs together.
    pages: u64,
    length: u64,
    /// The last extent found (start, end, kind), for callers that ask for every cluster of a long run. Dropped by
    /// every change.
    last: Option<(u64, u64, StorageExtentKind)>,
}

impl State {
    fn write(&mut self, offset: u64, from: &[u8]) {
        self.last = None;
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let (page, within) = (at / PAGE_BYTES, within_page(at));
            let taken = if within > 0 || rest.len() < PAGE {
                let taken = rest.len().min(PAGE.saturating_sub(within));
                let (part, after) = rest.split_at(taken);
                self.write_part(page, within, part);
                rest = after;
                taken
            } else {
                let taken = rest.len().saturating_sub(rest.len() % PAGE);
                let (whole, after) = rest.split_at(taken);
                self.write_pages(page, whole);
                rest = after;
                taken
            };
            at = at.saturating_add(to_u64(taken));
        }
        if !from.is_empty() {
            self.length = self.length.max(at);
        }
    }

    /// Writes whole pages.
    fn write_pages(&mut self, first: u64, bytes: &[u8]) {
        self.clear(first, first.saturating_add(to_u64(bytes.len() / PAGE)));
        let mut uniform: Option<(u64, u64, u8)> = None;
        for (page, chunk) in (first..).zip(bytes.chunks_exact(PAGE)) {
            let byte = uniform_byte(chunk);
            match (uniform, byte) {
                (Some((start, _, old)), Some(new)) if old == new => {
                    uniform = Some((start, page.saturating_add(1), old))
                }
                (before, _) => {
                    if let Some((start, end, byte)) = before {
                        self.insert_uniform(start, end, byte);
                    }
                    uniform = byte.map(|byte| (page, page.saturating_add(1), byte));
                }
            }
            if byte.is_none() {
                self.pages = self.pages.saturating_add(1);
                self.runs.insert(page, Run { pages: 1, content: Content::Bytes(Arc::from(chunk)) });
            }
        }
        if let Some((start, end, byte)) = uniform {
            self.insert_uniform(start, end, byte);
        }
    }

    /// Writes inside one page, which becomes allocated.
    fn write_part(&mut self, page: u64, within: usize, part: &[u8]) {
        if let Some((_, Run { content: Content::Uniform(byte), .. })) = self.covering(page)
            && part.iter().all(|other| other == byte)
        {
            return;
        }
        let end = within.saturating_add(part.len());
        if let Some(target) = self.page_mut(page).get_mut(within..end) {
            target.copy_from_slice(part);
        }
    }

    /// Makes the range read as zeros; whole pages become holes.
    fn zero(&mut self, offset: u64, end: u64) {
        if offset >= end {
            return;
        }
        self.last = None;
        let (first, last) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
        if first > last {
            // Within one page.
            self.zero_part(last, within_page(offset), within_page(end));
            return;
        }
        self.clear(first, last);
        if within_page(offset) > 0 {
            self.zero_part(offset / PAGE_BYTES, within_page(offset), PAGE);
        }
        if within_page(end) > 0 {
            self.zero_part(last, 0, within_page(end));
        }
    }

    fn zero_part(&mut self, page: u64, start: usize, end: usize) {
        match self.covering(page) {
            None | Some((_, Run { content: Content::Uniform(0), .. })) => {}
            Some(_) => {
                if let Some(part) = self.page_mut(page).get_mut(start..end) {
                    part.fill(0);
                }
            }
        }
    }

    /// Allocates every hole in the pages that the range touches.
    fn allocate(&mut self, offset: u64, end: u64) {
        self.last = None;
        let (mut page, end) = (offset / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        while page < end {
            if let Some((first, run)) = self.covering(page) {
                page = run.end(first);
                continue;
            }
            let hole_end = self.runs.range(page..end).next().map_or(end, |(first, _)| *first);
            self.insert_uniform(page, hole_end, 0);
            page = hole_end;
        }
    }

    /// The run that holds `page`, with its first page.
    fn covering(&self, page: u64) -> Option<(u64, &Run)> {
        let (first, run) = self.runs.range(..=page).next_back()?;
        (page < run.end(*first)).then_some((*first, run))
    }

    /// The bytes of a page, which becomes allocated and a run of its own.
    fn page_mut(&mut self, page: u64) -> &mut [u8] {
        let byte = match self.covering(page) {
            Some((_, Run { content: Content::Bytes(_), .. })) => None,
            Some((_, Run { content: Content::Uniform(byte), .. })) => Some(*byte),
            None => Some(0),
        };
        if let Some(byte) = byte {
            self.clear(page, page.saturating_add(1));
            let bytes = Arc::from(vec![byte; PAGE]);
            self.pages = self.pages.saturating_add(1);
            self.runs.insert(page, Run { pages: 1, content: Content::Bytes(bytes) });
        }
        match self.runs.get_mut(&page) {
            Some(Run { content: Content::Bytes(bytes), .. }) => Arc::make_mut(bytes),
            _ => &mut [],
        }
    }

    /// Makes a hole of the pages from `first` to before `end`.
    fn clear(&mut self, first: u64, end: u64) {
        if first >= end {
            return;
        }
        self.split(first);
        self.split(end);
        while let Some((&key, _)) = self.runs.range(first..end).next() {
            let gone = self.runs.remove(&key).map_or(0, |run| run.pages);
            self.pages = self.pages.saturating_sub(gone);
        }
    }

    /// Makes a run begin at `page`, if one reaches over it.
    fn split(&mut self, page: u64) {
        let Some((&first, run)) = self.runs.range_mut(..page).next_back() else { return };
        let after = run.end(first).saturating_sub(page);
        if after > 0 {
            let content = run.content.clone();
            run.pages = page.saturating_sub(first);
            self.runs.insert(page, Run { pages: after, content });
        }
    }

    /// Fills a hole with one byte, joining neighbours of the same byte.
    fn insert_uniform(&mut self, first: u64, end: u64, byte: u8) {
        let (mut first, mut end) = (first, end);
        self.pages = self.pages.saturating_add(end.saturating_sub(first));
        if let Some((&before, run)) = self.runs.range(..first).next_back()
            && run.end(before) == first
            && matches!(run.content, Content::Uniform(other) if other == byte)
        {
            first = before;
        }
        if let Some(run) = self.runs.get(&end)
            && matches!(run.content, Content::Uniform(other) if other == byte)
        {
            let joined = run.end(end);
            self.runs.remove(&end);
            end = joined;
        }
        self.runs.insert(first, Run { pages: end.saturating_sub(first), content: Content::Uniform(byte) });
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let end = offset.saturating_add(to_u64(into.len()));
        let page = offset / PAGE_BYTES;
        let from = self.covering(page).map_or(page, |(first, _)| first);
        let mut at = offset;
        let mut rest = into;
        for (first, run) in self.runs.range(from..) {
            let start = first.saturating_mul(PAGE_BYTES);
            if start >= end {
                break;
            }
            rest = take(rest, start.saturating_sub(at), |gap| gap.fill(0));
            at = at.max(start);
            let taken = run.end(*first).saturating_mul(PAGE_BYTES).min(end).saturating_sub(at);
            rest = take(rest, taken, |part| match &run.content {
                Content::Uniform(byte) => part.fill(*byte),
                Content::Bytes(bytes) => {
                    let within = within_page(at);
                    if let Some(source) = bytes.get(within..within.saturating_add(part.len())) {
                        part.copy_from_slice(source);
                    }
                }
            });
            at = at.saturating_add(taken);
        }
        rest.fill(0);
    }

    fn next_extent(&mut self, offset: u64) -> StorageExtent {
        if offset >= self.length {
            return StorageExtent { kind: StorageExtentKind::Hole, length: 0 };
        }
        if let Some((start, end, kind)) = self.last
            && start <= offset
            && offset < end
        {
            return StorageExtent { kind, length: end.saturating_sub(offset) };
        }
        let page = offset / PAGE_BYTES;
        let (kind, end) = if let Some((first, run)) = self.covering(page) {
            let mut end = run.end(first);
            for (first, run) in self.runs.range(end..) {
                if *first > end {
                    break;
                }
                end = run.end(*first);
            }
            (StorageExtentKind::Data, end)
        } else {
            (StorageExtentKind::Hole, self.runs.range(page..).next().map_or(u64::MAX, |(first, _)| *first))
        };
        let end = end.saturating_mul(PAGE_BYTES).min(self.length);
        self.last = Some((offset, end, kind));
        StorageExtent { kind, length: end.saturating_sub(offset) }
    }
}

/// Lets `fill` fill the first `length` bytes and gives the rest.
fn take(bytes: &mut [u8], length: u64, fill: impl FnOnce(&mut [u8])) -> &mut [u8] {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    let (part, rest) = bytes.split_at_mut(length);
    fill(part);
    rest
}

/// The byte that the chunk consists of, if it is one.
fn uniform_byte(chunk: &[u8]) -> Option<u8> {
    let (first, rest) = chunk.split_first()?;
    // Comparing the chunk with itself, one byte shifted, is a `memcmp`.
    (chunk.get(..rest.len()) == Some(rest)).then_some(*first)
}

fn within_page(offset: u64) -> usize {
    usize::try_from(offset % PAGE_BYTES).unwrap_or(0)
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[test]
    fn keeps_every_promise() {
        conformance::check_all(|length| Ok(MemoryStorage::with_len(length))).unwrap();
        conformance::check_all(|length| Ok(MemoryStorage::block_device(length))).unwrap();
    }

    #[test]
    fn uniform_data_takes_no_memory() {
        let disk = MemoryStorage::new();
        for megabyte in 0..64 {
            disk.write_at(megabyte << 20, &vec![7; 1 << 20]).unwrap();
        }
        assert_eq!((disk.allocated_bytes(), disk.memory_bytes()), (64 << 20, 0));
        assert_eq!(disk.state.borrow().runs.len(), 1, "neighbours of one byte are one run");
        disk.write_at(5000, &[8]).unwrap();
        assert_eq!((disk.allocated_bytes(), disk.memory_bytes()), (64 << 20, 4096));
        disk.write_at(5000, &[7; 10_000]).unwrap();
        disk.write_zeroes(0, 1 << 30, ZeroMode::KeepAllocated).unwrap();
        assert_eq!((disk.allocated_bytes(), disk.memory_bytes()), (1 << 30, 0));
        disk.write_zeroes(4096, 1 << 20, ZeroMode::MayUnmap).unwrap();
        assert_eq!(disk.allocated_bytes(), (1 << 30) - (1 << 20));
        disk.set_len(100).unwrap();
        assert_eq!(disk.allocated_bytes(), 4096);
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        let disk = MemoryStorage::from_bytes(b"one");
        let copy = disk.clone();
        disk.write_at(0, b"two").unwrap();
        assert_eq!((disk.to_vec().unwrap(), copy.to_vec().unwrap()), (b"two".to_vec(), b"one".to_vec()));
    }

    #[test]
    fn a_vector_too_long_for_memory_is_refused() {
        let disk = MemoryStorage::with_len(1 << 62);
        assert_eq!(disk.to_vec().unwrap_err().kind, StorageErrorKind::OutOfBounds);
    }
}
