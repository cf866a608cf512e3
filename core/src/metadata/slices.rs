//! The cache of L2 slices.
//!
//! A slice is the part of an L2 table that is loaded, kept and written as a unit. Dirty slices are never evicted:
//! only [`super::Metadata::commit`] writes them, in the order of law 4.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use crate::error::{Error, Result, Structure};
use crate::format::{Geometry, HostOffset, L2Entry, RawL2Entry};
use crate::storage::ReadStorage;

/// Neighbouring slices that are written at once.
const MOST_AT_ONCE: usize = 64;

/// Where a slice stands: host offset of its first byte.
type SliceKey = u64;

/// A handle to a cached slice, valid until the next call that loads one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceSlot(usize);

#[derive(Debug)]
struct Slice {
    key: SliceKey,
    words: Box<[u64]>,
    used: bool,
}

/// Slices in memory, found by their place in the file, replaced by the clock algorithm.
#[derive(Debug)]
pub(crate) struct SliceCache {
    slice_bytes: u64,
    table_bytes: u64,
    entry_words: usize,
    capacity: usize,
    slots: Vec<Slice>,
    index: BTreeMap<SliceKey, usize>,
    dirty: BTreeSet<SliceKey>,
    /// Tables that were made of zeros and of which no slice was written since: none has to be read.
    blank: BTreeSet<u64>,
    hand: usize,
    last: Option<(SliceKey, usize)>,
}

impl SliceCache {
    /// A cache of at most `cache_bytes` (but at least eight slices), cut into slices of `slice_bytes`.
    pub(crate) fn new(geometry: &Geometry, slice_bytes: u64, cache_bytes: u64) -> Self {
        let slice_bytes = slice_bytes.clamp(512, geometry.cluster_size());
        let capacity = cache_bytes.checked_div(slice_bytes).unwrap_or(0).clamp(8, 1 << 20);
        Self {
            slice_bytes,
            table_bytes: geometry.cluster_size(),
            entry_words: if geometry.extended_l2() { 2 } else { 1 },
            capacity: usize::try_from(capacity).unwrap_or(8),
            slots: Vec::new(),
            index: BTreeMap::new(),
            dirty: BTreeSet::new(),
            blank: BTreeSet::new(),
            hand: 0,
            last: None,
        }
    }

    /// Entries in one slice.
    pub(crate) fn entries_per_slice(&self) -> u64 {
        self.slice_bytes.checked_shr(if self.entry_words == 2 { 4 } else { 3 }).unwrap_or(1)
    }

    /// Slices that wait for a commit.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// Whether so many slices are dirty that the next one would not find a clean place.
    pub(crate) fn is_crowded(&self) -> bool {
        self.dirty.len() >= self.capacity.saturating_sub(self.capacity / 4)
    }

    /// Whether a slice of the table at `table` waits for a commit.
    pub(crate) fn has_dirty(&self, table: HostOffset) -> bool {
        self.dirty.range(table.get()..table.get().saturating_add(self.table_bytes)).next().is_some()
    }

    /// Whether the slice that holds entry `index` of the table at `table` is in memory.
    pub(crate) fn has(&self, table: HostOffset, index: u64) -> bool {
        let (key, _) = self.place(table, index);
        self.last.is_some_and(|(last, _)| last == key) || self.index.contains_key(&key)
    }

    /// The slice that holds entry `index` of the table at `table`, and the place of the entry in it.
    fn place(&self, table: HostOffset, index: u64) -> (SliceKey, u64) {
        let per_slice = self.entries_per_slice().max(1);
        let slice = index.checked_div(per_slice).unwrap_or(0);
        let within = index.checked_rem(per_slice).unwrap_or(0);
        (table.get().saturating_add(slice.saturating_mul(self.slice_bytes)), within)
    }

    /// Loads the slice that holds entry `index` of the table at `table`; gives its slot and the entry within it.
    pub(crate) fn load(
        &mut self,
        storage: &impl ReadStorage,
        table: HostOffset,
        index: u64,
    ) -> Result<(SliceSlot, u64)> {
        let (key, within) = self.place(table, index);
        if let Some((last, slot)) = self.last
            && last == key
        {
            return Ok((SliceSlot(slot), within));
        }
        let slot = match self.index.get(&key) {
            Some(&slot) => slot,
            None => self.read_in(storage, key)?,
        };
        if let Some(slice) = self.slots.get_mut(slot) {
            slice.used = true;
        }
        self.last = Some((key, slot));
        Ok((SliceSlot(slot), within))
    }

    fn read_in(&mut self, storage: &impl ReadStorage, key: SliceKey) -> Result<usize> {
        let length = usize::try_from(self.slice_bytes).unwrap_or(512);
        let mut words = vec![0u64; length / 8].into_boxed_slice();
        if !self.is_blank(key) {
            let mut bytes = vec![0u8; length];
            storage.read_at(key, &mut bytes).map_err(|e| Error::from(e).in_structure(Structure::L2Table))?;
            BigEndian::read_u64_into(&bytes, &mut words);
        }
        let slice = Slice { key, words, used: true };
        let slot = match self.victim() {
            Some(slot) => {
                if let Some(old) = self.slots.get_mut(slot) {
                    self.index.remove(&old.key);
                    *old = slice;
                }
                slot
            }
            None => {
                self.slots.push(slice);
                self.slots.len().saturating_sub(1)
            }
        };
        self.index.insert(key, slot);
        Ok(slot)
    }

    /// The table at `table`, nothing but zeros on storage, is new: the next writing makes its slices count.
    pub(crate) fn add_blank(&mut self, table: HostOffset) {
        self.blank.insert(table.get());
    }

    fn is_blank(&self, key: SliceKey) -> bool {
        let table = self.blank.range(..=key).next_back();
        table.is_some_and(|table| key.saturating_sub(*table) < self.table_bytes)
    }

    /// A clean slot to replace, once the cache is full; none when everything is dirty (the cache then grows).
    fn victim(&mut self) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return None;
        }
        for _ in 0..self.slots.len().saturating_mul(2) {
            let slot = self.hand;
            self.hand = self.hand.saturating_add(1).checked_rem(self.slots.len()).unwrap_or(0);
            let slice = self.slots.get_mut(slot)?;
            if slice.used {
                slice.used = false;
            } else if !self.dirty.contains(&slice.key) {
                return Some(slot);
            }
        }
        None
    }

    /// The entries of a loaded slice.
    pub(crate) fn entries(&self, slot: SliceSlot) -> Entries<'_> {
        Entries { words: self.slots.get(slot.0).map_or(&[], |slice| &slice.words), wide: self.entry_words == 2 }
    }

    /// The raw entry at `within` of a loaded slice.
    pub(crate) fn entry(&self, slot: SliceSlot, within: u64) -> RawL2Entry {
        self.entries(slot).entry(within)
    }

    /// Replaces the raw entry at `within` and marks the slice dirty.
    pub(crate) fn set_entry(&mut self, slot: SliceSlot, within: u64, raw: RawL2Entry) {
        let Some(first) = self.word_position(within) else { return };
        let wide = self.entry_words == 2;
        let Some(slice) = self.slots.get_mut(slot.0) else { return };
        if let Some(word) = slice.words.get_mut(first) {
            *word = raw.descriptor;
        }
        if wide && let Some(word) = slice.words.get_mut(first.saturating_add(1)) {
            *word = raw.bitmap;
        }
        self.dirty.insert(slice.key);
    }

    fn word_position(&self, within: u64) -> Option<usize> {
        usize::try_from(within).ok()?.checked_mul(self.entry_words)
    }

    /// Calls `write` for every dirty slice whose place `select` accepts, in file order, neighbours at once, and marks
    /// it clean.
    pub(crate) fn write_dirty(
        &mut self,
        mut select: impl FnMut(HostOffset) -> bool,
        mut write: impl FnMut(HostOffset, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let cached = self.dirty.iter().copied().filter(|key| self.index.contains_key(key));
        let chosen: Vec<SliceKey> = cached.filter(|&key| select(HostOffset::new(key))).collect();
        if !chosen.is_empty() {
            self.blank.clear();
        }
        let neighbours = |a: &SliceKey, b: &SliceKey| a.saturating_add(self.slice_bytes) == *b;
        let mut bytes = Vec::new();
        for run in chosen.chunk_by(neighbours) {
            for part in run.chunks(MOST_AT_ONCE) {
                bytes.clear();
                for key in part {
                    let slice = self.index.get(key).and_then(|&slot| self.slots.get(slot));
                    bytes.extend(slice.iter().flat_map(|slice| &slice.words).flat_map(|word| word.to_be_bytes()));
                }
                if let Some(&first) = part.first() {
                    write(HostOffset::new(first), &bytes)?;
                }
                for key in part {
                    self.dirty.remove(key);
                }
            }
        }
        Ok(())
    }

    /// Forgets the slices of a table whose cluster now serves something else.
    pub(crate) fn forget(&mut self, table: HostOffset, cluster_size: u64) {
        self.last = None;
        let range = table.get()..table.get().saturating_add(cluster_size);
        self.blank.retain(|table| !range.contains(table));
        let keys: Vec<SliceKey> = self.index.range(range).map(|(&key, _)| key).collect();
        for key in keys {
            self.dirty.remove(&key);
            if let Some(slot) = self.index.remove(&key)
                && let Some(slice) = self.slots.get_mut(slot)
            {
                // A key that no table can have: offsets are 56 bits wide.
                slice.key = u64::MAX.saturating_sub(u64::try_from(slot).unwrap_or(0));
                slice.used = false;
            }
        }
    }
}

/// The entries of one slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entries<'a> {
    words: &'a [u64],
    /// Extended entries, of two words.
    wide: bool,
}

impl Entries<'_> {
    /// The raw entry at `within`.
    #[inline]
    pub(crate) fn entry(self, within: u64) -> RawL2Entry {
        let Ok(within) = usize::try_from(within) else { return RawL2Entry::default() };
        let word = |at: usize| self.words.get(at).copied().unwrap_or_default();
        match self.wide {
            false => RawL2Entry { descriptor: word(within), bitmap: 0 },
            true => {
                let first = within.saturating_mul(2);
                RawL2Entry { descriptor: word(first), bitmap: word(first.saturating_add(1)) }
            }
        }
    }

    /// How many entries from `within` on, at most `limit` but at least one, each differ from the one before by `step`
    /// bytes of host offset and by nothing else. For entries of one word.
    #[inline]
    pub(crate) fn run_length(self, within: u64, limit: u64, step: u64) -> u64 {
        let words = usize::try_from(within).ok().and_then(|first| self.words.get(first..)).unwrap_or_default();
        let words = usize::try_from(limit).ok().and_then(|limit| words.get(..limit)).unwrap_or(words);
        let goes_on = |&(now, next): &(&u64, &u64)| L2Entry::goes_on(*now, *next, step);
        let more = words.iter().zip(words.iter().skip(1)).take_while(goes_on).count();
        u64::try_from(more).unwrap_or(0).saturating_add(1)
    }
}
