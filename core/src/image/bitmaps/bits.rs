//! The bits of one dirty bitmap in memory: sparse, and bounded.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Bits of one page: 4 KiB of bitmap data.
const PAGE_BITS: u64 = 1 << 15;
const PAGE_WORDS: usize = 512;
const PAGE_BYTES: u64 = 4096;
/// What a page without bits of its own costs, about.
const SPARSE_PAGE_COST: u64 = 64;

/// A page that is not all clear.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Page {
    /// Every bit is set.
    Full,
    /// Some are.
    Mixed(Box<[u64]>),
}

/// The bits of a dirty bitmap. Only what is neither all clear nor all set takes memory: a page of 4 KiB for each 32,768
/// bits.
///
/// # Examples
/// ```
/// use qcowkit_core::image::DirtyBits;
///
/// let mut bits = DirtyBits::new(1 << 30, 16);
/// bits.set(100_000, 1);
/// assert_eq!(bits.ranges().collect::<Vec<_>>(), [65536..131072]);
/// assert_eq!(bits.dirty_bytes(), 65536);
/// ```
#[derive(Debug, Clone)]
pub struct DirtyBits {
    granularity_bits: u32,
    size: u64,
    pages: BTreeMap<u64, Page>,
    mixed: u64,
}

/// The bits of one cluster of bitmap data.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClusterBits {
    Zeros,
    Ones,
    Bytes(Vec<u8>),
}

impl DirtyBits {
    /// Clean bits for a disk of `size` bytes, one for each `1 << granularity_bits` bytes of it (at most 63).
    #[must_use]
    pub fn new(size: u64, granularity_bits: u8) -> Self {
        Self { granularity_bits: u32::from(granularity_bits).min(63), size, pages: BTreeMap::new(), mixed: 0 }
    }

    /// Marks every granule that the range touches. What lies beyond the disk is left out.
    pub fn set(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.size);
        if offset >= end {
            return;
        }
        let first = offset.wrapping_shr(self.granularity_bits);
        let last = end.saturating_sub(1).wrapping_shr(self.granularity_bits);
        self.set_bits(first, last.saturating_add(1));
    }

    /// Marks everything.
    pub fn set_all(&mut self) {
        self.set(0, self.size);
    }

    /// Marks nothing.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.mixed = 0;
    }

    /// Marks what `other` marks, whatever its granularity. Disks of different sizes share what both have.
    pub fn merge(&mut self, other: &Self) {
        for range in other.ranges() {
            self.set(range.start, range.end.saturating_sub(range.start));
        }
    }

    /// Another size of the disk: what is new is clean, what is gone is forgotten.
    pub fn resize(&mut self, size: u64) {
        // First at the old end: a full page that ends with the disk must not be full in a longer one.
        self.drop_from(self.len());
        self.size = size;
        self.drop_from(self.len());
    }

    /// Marks whole pages that are marked in part: never less than before, but without memory for them.
    pub(super) fn coarsen(&mut self) {
        let (pages, bits) = (core::mem::take(&mut self.pages), self.len());
        self.mixed = 0;
        for page in pages.into_keys() {
            let start = page.saturating_mul(PAGE_BITS);
            self.set_bits(start, start.saturating_add(PAGE_BITS).min(bits));
        }
    }

    /// Bytes of memory that the bits take, about.
    pub(super) fn memory(&self) -> u64 {
        let pages = u64::try_from(self.pages.len()).unwrap_or(u64::MAX);
        self.mixed.saturating_mul(PAGE_BYTES).saturating_add(pages.saturating_mul(SPARSE_PAGE_COST))
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the disk that one bit speaks for.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        1u64.wrapping_shl(self.granularity_bits)
    }

    /// Whether the granule that holds a byte is marked.
    #[must_use]
    pub fn is_dirty(&self, offset: u64) -> bool {
        let bit = offset.wrapping_shr(self.granularity_bits);
        offset < self.size && self.next_bit(bit, true).is_some_and(|next| next == bit)
    }

    /// Whether nothing is marked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.next_bit(0, true).is_none()
    }

    /// Bytes of the disk that are marked.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.ranges().fold(0, |sum, range| sum.saturating_add(range.end.saturating_sub(range.start)))
    }

    /// The ranges of the disk that are marked, in bytes, in order, with clean bytes between them.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        core::iter::from_fn(move || {
            let start = self.next_bit(at, true)?;
            at = self.next_bit(start, false).unwrap_or(self.len());
            Some(self.byte_of(start)..self.byte_of(at))
        })
    }

    /// Whether the byte at `offset` is marked, and how many bytes from there on are like it, up to the end of the disk.
    #[must_use]
    pub fn run(&self, offset: u64) -> (bool, u64) {
        let dirty = self.is_dirty(offset);
        let bit = offset.wrapping_shr(self.granularity_bits);
        let end = self.next_bit(bit, !dirty).map_or(self.size, |end| self.byte_of(end));
        (dirty, end.saturating_sub(offset))
    }

    /// Bits.
    fn len(&self) -> u64 {
        self.size.div_ceil(self.granularity())
    }

    /// Clusters of bitmap data that hold the bits.
    pub(super) fn clusters(&self, cluster_size: u64) -> u64 {
        self.len().div_ceil(8).div_ceil(cluster_size.max(1))
    }

    /// The bits of cluster `index` of the bitmap data, for storage.
    pub(super) fn cluster(&self, index: u64, cluster_size: u64) -> ClusterBits {
        let bits = cluster_size.saturating_mul(8);
        let first = index.saturating_mul(bits);
        let end = first.saturating_add(bits);
        if self.next_bit_before(first, end, true).is_none() {
            return ClusterBits::Zeros;
        }
        // Tail bits must be zero, so that a cluster that is used in part cannot be "all ones".
        if end <= self.len() && self.next_bit_before(first, end, false).is_none() {
            return ClusterBits::Ones;
        }
        let mut bytes = vec![0u8; usize::try_from(cluster_size).unwrap_or(0)];
        for (at, word) in (0u64..).zip(bytes.as_chunks_mut::<8>().0) {
            *word = self.word(first.saturating_add(at.saturating_mul(64))).to_le_bytes();
        }
        ClusterBits::Bytes(bytes)
    }

    /// Takes the bits of cluster `index` of the bitmap data from storage. Tail bits are ignored.
    pub(super) fn load_cluster(&mut self, index: u64, cluster_size: u64, bits: &ClusterBits) {
        let first = index.saturating_mul(cluster_size.saturating_mul(8));
        match bits {
            ClusterBits::Zeros => {}
            ClusterBits::Ones => {
                let end = first.saturating_add(cluster_size.saturating_mul(8)).min(self.len());
                self.set_bits(first, end);
            }
            ClusterBits::Bytes(bytes) => {
                for (at, word) in (0u64..).zip(bytes.as_chunks::<8>().0) {
                    let start = first.saturating_add(at.saturating_mul(64));
                    self.or_word(start, u64::from_le_bytes(*word) & self.valid(start));
                }
            }
        }
    }

    fn byte_of(&self, bit: u64) -> u64 {
        bit.checked_mul(self.granularity()).map_or(self.size, |byte| byte.min(self.size))
    }

    /// The bits of the word at `start` that the disk has.
    fn valid(&self, start: u64) -> u64 {
        match self.len().saturating_sub(start) {
            0 => 0,
            count if count >= 64 => u64::MAX,
            count => low_bits(count),
        }
    }

    fn word(&self, start: u64) -> u64 {
        match self.pages.get(&(start / PAGE_BITS)) {
            None => 0,
            Some(Page::Full) => self.valid(start),
            Some(Page::Mixed(words)) => words.get(word_index(start)).copied().unwrap_or(0),
        }
    }

    fn or_word(&mut self, start: u64, bits: u64) {
        if bits == 0 {
            return;
        }
        let mut added = 0;
        let page = self.pages.entry(start / PAGE_BITS).or_insert_with(|| {
            added = 1;
            Page::Mixed(vec![0u64; PAGE_WORDS].into_boxed_slice())
        });
        if let Page::Mixed(words) = page
            && let Some(word) = words.get_mut(word_index(start))
        {
            *word |= bits;
        }
        self.mixed = self.mixed.saturating_add(added);
    }

    /// Sets the bits of `first..end`, which the disk has.
    fn set_bits(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let page = at / PAGE_BITS;
            let start = page.saturating_mul(PAGE_BITS);
            let page_end = start.saturating_add(PAGE_BITS);
            if at == start && (end >= page_end || end >= self.len()) {
                if let Some(Page::Mixed(_)) = self.pages.insert(page, Page::Full) {
                    self.mixed = self.mixed.saturating_sub(1);
                }
                at = page_end;
                continue;
            }
            let word = at & !63;
            let until = word.saturating_add(64).min(end);
            let mask = low_bits(until.saturating_sub(word)) & !low_bits(at.saturating_sub(word));
            self.or_word(word, mask);
            at = until;
        }
    }

    /// Forgets the bits from `end` on.
    fn drop_from(&mut self, end: u64) {
        let page = end / PAGE_BITS;
        for dropped in self.pages.split_off(&page) {
            let (index, content) = dropped;
            let mixed = matches!(content, Page::Mixed(_));
            self.mixed = self.mixed.saturating_sub(u64::from(mixed));
            let start = index.saturating_mul(PAGE_BITS);
            if start >= end {
                continue;
            }
            match content {
                // Its end may not be the disk's any more: bit by bit it is right in any case.
                Page::Full => self.refill(start, end),
                Page::Mixed(words) => {
                    for (at, &word) in (0u64..).zip(words.iter()) {
                        let first = start.saturating_add(at.saturating_mul(64));
                        self.or_word(first, word & self.valid(first));
                    }
                }
            }
        }
    }

    /// Sets the bits of a page that was full, up to `end`.
    fn refill(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let until = at.saturating_add(64).min(end);
            self.or_word(at, low_bits(until.saturating_sub(at)));
            at = until;
        }
    }

    /// The first bit at or after `from` that is `set` or clear; `None` when there is none before the end.
    fn next_bit(&self, from: u64, set: bool) -> Option<u64> {
        self.next_bit_before(from, self.len(), set)
    }

    /// The same before `end`: whoever asks cluster by cluster must not look through all the rest each time.
    fn next_bit_before(&self, from: u64, end: u64, set: bool) -> Option<u64> {
        let len = self.len().min(end);
        let mut at = from;
        while at < len {
            let page = at / PAGE_BITS;
            let page_end = page.saturating_add(1).saturating_mul(PAGE_BITS);
            match self.pages.get(&page) {
                None if !set => return Some(at),
                Some(Page::Full) if set => return Some(at),
                // Over what is clear to the next page that is not.
                None => at = self.pages.range(page..).next()?.0.saturating_mul(PAGE_BITS),
                Some(Page::Full) => at = page_end,
                Some(Page::Mixed(words)) => {
                    while at < page_end.min(len) {
                        let start = at & !63;
                        let word = words.get(word_index(start)).copied().unwrap_or(0);
                        let wanted = (if set { word } else { !word }) & !low_bits(at.saturating_sub(start));
                        if wanted != 0 {
                            let bit = start.saturating_add(wanted.trailing_zeros().into());
                            return (bit < len).then_some(bit);
                        }
                        at = start.saturating_add(64);
                    }
                }
            }
        }
        None
    }
}

/// Equal when they mark the same, however it is kept.
impl PartialEq for DirtyBits {
    fn eq(&self, other: &Self) -> bool {
        self.granularity_bits == other.granularity_bits && self.size == other.size && self.ranges().eq(other.ranges())
    }
}

impl Eq for DirtyBits {}

/// The position of a word in its page.
fn word_index(start: u64) -> usize {
    usize::try_from((start & PAGE_BITS.wrapping_sub(1)) / 64).unwrap_or(usize::MAX)
}

/// The lowest `count` bits.
fn low_bits(count: u64) -> u64 {
    u32::try_from(count).ok().and_then(|count| 1u64.checked_shl(count)).map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> 11
    }

    /// Against a plain vector, over sizes and granularities, with pages and words cut in all ways.
    #[test]
    fn the_bits_are_those_of_a_plain_vector() {
        let mut state = 42;
        for round in 0..60u64 {
            let granularity_bits = 9 + (round % 4) as u8;
            let granularity = 1u64 << granularity_bits;
            let mut size = (next(&mut state) % (100_000 * granularity) + 1).next_multiple_of(512);
            let mut bits = DirtyBits::new(size, granularity_bits);
            let mut plain = vec![false; size.div_ceil(granularity) as usize];
            for _ in 0..30 {
                match next(&mut state) % 12 {
                    0 => {
                        size = (next(&mut state) % (100_000 * granularity) + 1).next_multiple_of(512);
                        bits.resize(size);
                        plain.resize(size.div_ceil(granularity) as usize, false);
                    }
                    1 => {
                        bits.set_all();
                        plain.fill(true);
                    }
                    2 if round % 3 == 0 => {
                        bits.clear();
                        plain.fill(false);
                    }
                    _ => {
                        let offset = next(&mut state) % size;
                        let most = if next(&mut state).is_multiple_of(4) { size } else { granularity * 70 };
                        let length = (next(&mut state) % most + 1).min(size - offset);
                        bits.set(offset, length);
                        plain[(offset / granularity) as usize..(offset + length).div_ceil(granularity) as usize]
                            .fill(true);
                    }
                }
                check(&bits, &plain, size, granularity);
            }
            let cluster = 512u64 << (round % 5);
            let mut loaded = DirtyBits::new(size, granularity_bits);
            (0..bits.clusters(cluster)).for_each(|n| loaded.load_cluster(n, cluster, &bits.cluster(n, cluster)));
            assert!(loaded == bits);
            let mut coarse = bits.clone();
            coarse.coarsen();
            assert_eq!(coarse.mixed, 0);
            assert!(bits.ranges().all(|r| coarse.is_dirty(r.start) && coarse.run(r.start).1 >= r.end - r.start));
            let mut merged = DirtyBits::new(size, 9);
            merged.merge(&bits);
            assert!(merged.ranges().eq(bits.ranges()));
        }
    }

    fn check(bits: &DirtyBits, plain: &[bool], size: u64, granularity: u64) {
        let mut expected: Vec<Range<u64>> = Vec::new();
        for (n, _) in plain.iter().enumerate().filter(|(_, dirty)| **dirty) {
            let (start, end) = (n as u64 * granularity, ((n as u64 + 1) * granularity).min(size));
            match expected.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => expected.push(start..end),
            }
        }
        assert_eq!(bits.ranges().collect::<Vec<_>>(), expected);
        assert_eq!(bits.mixed, bits.pages.values().filter(|page| matches!(page, Page::Mixed(_))).count() as u64);
        assert_eq!(bits.is_clean(), expected.is_empty());
    }

    #[test]
    fn what_is_stored_is_as_short_as_the_format_allows() {
        // Three clusters of 512 bytes and a part of a fourth.
        let mut bits = DirtyBits::new((3 * 4096 + 5) * 512, 9);
        bits.set(512, 1);
        bits.set(4096 * 512, (2 * 4096 + 5) * 512);
        assert_eq!(bits.clusters(512), 4);
        let mut first = vec![0u8; 512];
        first[0] = 2;
        assert_eq!(bits.cluster(0, 512), ClusterBits::Bytes(first));
        assert_eq!(bits.cluster(1, 512), ClusterBits::Ones);
        let mut last = vec![0u8; 512];
        last[0] = 0x1f;
        assert_eq!(bits.cluster(3, 512), ClusterBits::Bytes(last));
    }
}
