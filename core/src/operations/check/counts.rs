//! What is known of each cluster: the refcount that the image records, in short, and the references counted.

use alloc::format;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};

/// Clusters of one page.
const PAGE: usize = 4096;
/// Bytes that all pages may take together: one byte for each of the 2^31 clusters that QEMU can check.
pub const MAX_COUNTER_BYTES: u64 = 2 << 30;

/// A recorded refcount, as far as most questions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::operations) enum Recorded {
    /// 0, or not known.
    Zero,
    /// Exactly 1.
    One,
    /// 2 or more.
    More,
}

/// One number for each cluster: the two low bits are [`Recorded`], the others count references.
///
/// Pages take memory when something in them is not 0, a byte for each cluster; those with clusters of many references
/// grow to two or eight bytes.
#[derive(Debug)]
pub(in crate::operations) struct Counts {
    pages: Vec<Option<Page>>,
    clusters: u64,
    bytes: u64,
}

#[derive(Debug)]
enum Page {
    Narrow(Vec<u8>),
    Middle(Vec<u16>),
    Wide(Vec<u64>),
}

const RECORDED_BITS: u32 = 2;
/// What adds one reference.
const ONE_REFERENCE: u8 = 1 << RECORDED_BITS;
/// One reference, refcount 1: what nearly every cluster in use has.
const SOUND: u8 = ONE_REFERENCE | 1;

impl Counts {
    /// For this many clusters, all without references and with refcount 0.
    pub(in crate::operations) fn new(clusters: u64) -> Result<Self> {
        let pages = usize::try_from(clusters.div_ceil(4096)).map_err(|_| too_large())?;
        let mut all = Vec::new();
        all.try_reserve_exact(pages).map_err(|_| too_large())?;
        all.resize_with(pages, || None);
        Ok(Self { pages: all, clusters, bytes: 0 })
    }

    pub(in crate::operations) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Records the refcounts of clusters from `first` on; those beyond the end are left out.
    pub(super) fn record(&mut self, first: u64, refcounts: impl Iterator<Item = u64>) -> Result<()> {
        let mut refcounts = refcounts.fuse();
        let mut at = first;
        while at < self.clusters {
            let (page, start) = place(at);
            let length = PAGE.saturating_sub(start);
            let mut any = false;
            let mut short = [0u8; PAGE];
            let mut filled = 0usize;
            for (slot, refcount) in short.iter_mut().zip(refcounts.by_ref().take(length)) {
                *slot = u8::try_from(refcount.min(2)).unwrap_or(2);
                any |= refcount != 0;
                filled = filled.saturating_add(1);
            }
            if any && let Page::Narrow(numbers) = self.page(page)? {
                numbers.iter_mut().skip(start).zip(short.iter().take(filled)).for_each(|(slot, short)| *slot |= short);
            }
            if filled < length {
                return Ok(());
            }
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Counts `weight` references to each of `count` clusters; those beyond the end are left out.
    pub(super) fn add(&mut self, first: u64, count: u64, weight: u64) -> Result<()> {
        let end = first.saturating_add(count).min(self.clusters);
        let mut at = first;
        while at < end {
            let (index, start) = place(at);
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(PAGE).min(PAGE.saturating_sub(start));
            let page = self.page(index)?;
            let before = page.bytes();
            page.add(start, length, weight)?;
            let grown = page.bytes().saturating_sub(before);
            self.spend(grown)?;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// The recorded refcount; `None` beyond the end.
    pub(in crate::operations) fn recorded(&self, cluster: u64) -> Option<Recorded> {
        (cluster < self.clusters).then(|| split(self.number(cluster)).0)
    }

    /// The references counted; 0 beyond the end.
    pub(in crate::operations) fn references(&self, cluster: u64) -> u64 {
        split(self.number(cluster)).1
    }

    /// Whether each of these clusters has a recorded refcount of 1 (`one`), or none has. False beyond the end.
    pub(super) fn all_recorded(&self, first: u64, count: u64, one: bool) -> bool {
        let Some(end) = first.checked_add(count).filter(|&end| end <= self.clusters) else { return false };
        let mut at = first;
        while at < end {
            let (index, start) = place(at);
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(PAGE).min(PAGE.saturating_sub(start));
            let same = match self.pages.get(index).and_then(Option::as_ref) {
                None => !one,
                Some(Page::Narrow(numbers)) => uniform(numbers, start, length, |number| (number & 3 == 1) == one),
                Some(Page::Middle(numbers)) => uniform(numbers, start, length, |number| (number & 3 == 1) == one),
                Some(Page::Wide(numbers)) => uniform(numbers, start, length, |number| (number & 3 == 1) == one),
            };
            if !same {
                return false;
            }
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        true
    }

    /// Calls `visit` for each cluster below `end` that is neither free (no refcount, no reference) nor sound (refcount
    /// 1, one reference); gives the highest sound one.
    pub(in crate::operations) fn visit_unsound(
        &self,
        end: u64,
        mut visit: impl FnMut(u64, Recorded, u64) -> Result<()>,
    ) -> Result<Option<u64>> {
        let mut highest = None;
        for (first, page) in (0u64..).step_by(PAGE).zip(&self.pages) {
            let Some(page) = page else { continue };
            let length = usize::try_from(end.saturating_sub(first)).unwrap_or(PAGE).min(PAGE);
            let mut each = |at: usize, number: u64| -> Result<()> {
                let cluster = first.saturating_add(u64::try_from(at).unwrap_or(0));
                match split(number) {
                    (Recorded::Zero, 0) => {}
                    (Recorded::One, 1) => highest = Some(cluster),
                    (recorded, references) => visit(cluster, recorded, references)?,
                }
                Ok(())
            };
            match page {
                Page::Narrow(numbers) => {
                    let numbers = numbers.get(..length).unwrap_or_default();
                    let (words, rest) = numbers.as_chunks::<64>();
                    for (word, at) in words.iter().zip((0usize..).step_by(64)) {
                        // Most of the file is like this.
                        if word.iter().all(|&number| number == SOUND) {
                            each(at.saturating_add(63), SOUND.into())?;
                        } else if word.iter().any(|&number| number != 0) {
                            (at..).zip(word).try_for_each(|(at, &number)| each(at, number.into()))?;
                        }
                    }
                    (words.len().saturating_mul(64)..)
                        .zip(rest)
                        .try_for_each(|(at, &number)| each(at, number.into()))?;
                }
                Page::Middle(numbers) => {
                    numbers.iter().take(length).enumerate().try_for_each(|(at, &number)| each(at, number.into()))?;
                }
                Page::Wide(numbers) => {
                    numbers.iter().take(length).enumerate().try_for_each(|(at, &number)| each(at, number))?;
                }
            }
        }
        Ok(highest)
    }

    fn number(&self, cluster: u64) -> u64 {
        let (index, at) = place(cluster);
        match self.pages.get(index).and_then(Option::as_ref) {
            None => 0,
            Some(Page::Narrow(numbers)) => numbers.get(at).copied().unwrap_or(0).into(),
            Some(Page::Middle(numbers)) => numbers.get(at).copied().unwrap_or(0).into(),
            Some(Page::Wide(numbers)) => numbers.get(at).copied().unwrap_or(0),
        }
    }

    /// The page, made where there was none.
    fn page(&mut self, index: usize) -> Result<&mut Page> {
        if self.pages.get(index).is_some_and(Option::is_none) {
            self.spend(4096)?;
            let numbers = zeros::<u8>()?;
            if let Some(slot) = self.pages.get_mut(index) {
                *slot = Some(Page::Narrow(numbers));
            }
        }
        self.pages.get_mut(index).and_then(Option::as_mut).ok_or_else(too_large)
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_COUNTER_BYTES { Err(too_large()) } else { Ok(()) }
    }
}

impl Page {
    fn bytes(&self) -> u64 {
        match self {
            Self::Narrow(_) => 4096,
            Self::Middle(_) => 2 << 12,
            Self::Wide(_) => 8 << 12,
        }
    }

    fn add(&mut self, start: usize, length: usize, weight: u64) -> Result<()> {
        let more = weight.saturating_mul(ONE_REFERENCE.into());
        loop {
            let done = match self {
                Self::Narrow(numbers) => u8::try_from(more).is_ok_and(|more| add(numbers, start, length, more)),
                Self::Middle(numbers) => u16::try_from(more).is_ok_and(|more| add(numbers, start, length, more)),
                Self::Wide(numbers) => {
                    let numbers = numbers.iter_mut().skip(start).take(length);
                    // Never reached, but the two low bits must stay what they are.
                    numbers
                        .for_each(|number| *number = number.checked_add(more).unwrap_or(u64::MAX << 2 | *number & 3));
                    true
                }
            };
            if done {
                return Ok(());
            }
            self.widen()?;
        }
    }

    fn widen(&mut self) -> Result<()> {
        match self {
            Self::Narrow(numbers) => {
                let mut wider = zeros::<u16>()?;
                wider.iter_mut().zip(numbers).for_each(|(wide, number)| *wide = u16::from(*number));
                *self = Self::Middle(wider);
            }
            Self::Middle(numbers) => {
                let mut wider = zeros::<u64>()?;
                wider.iter_mut().zip(numbers).for_each(|(wide, number)| *wide = u64::from(*number));
                *self = Self::Wide(wider);
            }
            Self::Wide(_) => {}
        }
        Ok(())
    }
}

/// Adds `more` to each number, or to none if one would overflow.
fn add<T: Number>(numbers: &mut [T], start: usize, length: usize, more: T) -> bool {
    let Some(numbers) = start.checked_add(length).and_then(|end| numbers.get_mut(start..end)) else { return true };
    if numbers.iter().any(|number| number.overflows(more)) {
        return false;
    }
    numbers.iter_mut().for_each(|number| *number = number.wrapping_sum(more));
    true
}

/// The two widths that are added to without overflow.
trait Number: Copy {
    fn overflows(self, more: Self) -> bool;
    fn wrapping_sum(self, more: Self) -> Self;
}

macro_rules! number {
    ($type:ty) => {
        impl Number for $type {
            fn overflows(self, more: Self) -> bool {
                self > Self::MAX.wrapping_sub(more)
            }

            fn wrapping_sum(self, more: Self) -> Self {
                self.wrapping_add(more)
            }
        }
    };
}
number!(u8);
number!(u16);

fn uniform<T: Copy>(numbers: &[T], start: usize, length: usize, holds: impl Fn(T) -> bool) -> bool {
    numbers.iter().skip(start).take(length).all(|&number| holds(number))
}

fn zeros<T: Clone + Default>() -> Result<Vec<T>> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(PAGE).map_err(|_| too_large())?;
    numbers.resize(PAGE, T::default());
    Ok(numbers)
}

/// The page of a cluster, and its place there.
fn place(cluster: u64) -> (usize, usize) {
    let page = usize::try_from(cluster.wrapping_shr(12)).unwrap_or(usize::MAX);
    (page, usize::try_from(cluster & 0xfff).unwrap_or(0))
}

fn split(number: u64) -> (Recorded, u64) {
    let recorded = match number & 3 {
        0 => Recorded::Zero,
        1 => Recorded::One,
        _ => Recorded::More,
    };
    (recorded, number.wrapping_shr(RECORDED_BITS))
}

fn too_large() -> Error {
    Error::new(ErrorKind::Limit(format!("counting references takes more than {MAX_COUNTER_BYTES} bytes of memory")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn counts_grow_from_bits_to_words() {
        let mut counts = Counts::new(10_000).unwrap();
        counts.record(4090, [1, 2, 0, 1, 1, 1, 1, 7].into_iter()).unwrap();
        let mut expected = 0;
        for weight in [1, 62, 1, 1000, 20_000, 1 << 40] {
            counts.add(4000, 200, weight).unwrap();
            expected += weight;
            assert_eq!((counts.references(4000), counts.references(4199)), (expected, expected));
            assert_eq!((counts.references(3999), counts.references(4200)), (0, 0));
            assert_eq!(counts.recorded(4090), Some(Recorded::One));
            assert_eq!(counts.recorded(4091), Some(Recorded::More));
            assert_eq!(counts.recorded(4092), Some(Recorded::Zero));
            assert_eq!(counts.recorded(4097), Some(Recorded::More));
        }
        assert_eq!(counts.recorded(10_000), None);
    }

    #[test]
    fn only_what_is_not_sound_is_visited() {
        let mut counts = Counts::new(20_000).unwrap();
        counts.record(0, (0..20_000).map(|cluster| u64::from(cluster < 9000))).unwrap();
        counts.add(0, 8999, 1).unwrap();
        counts.add(17, 1, 1).unwrap();
        counts.add(9500, 1, 1).unwrap();
        let mut visited = vec![];
        let highest = counts.visit_unsound(20_000, |cluster, recorded, references| {
            visited.push((cluster, recorded, references));
            Ok(())
        });
        assert_eq!(highest.unwrap(), Some(8998));
        let expected = [(17, Recorded::One, 2), (8999, Recorded::One, 0), (9500, Recorded::Zero, 1)];
        assert_eq!(visited, expected);
        assert_eq!(counts.visit_unsound(17, |_, _, _| unreachable!()).unwrap(), Some(16));
    }

    #[test]
    fn runs_of_one_refcount_are_recognised() {
        let mut counts = Counts::new(10_000).unwrap();
        counts.record(100, std::iter::repeat_n(1, 6000)).unwrap();
        assert!(counts.all_recorded(100, 6000, true));
        assert!(!counts.all_recorded(99, 6000, true));
        assert!(!counts.all_recorded(100, 6001, true));
        assert!(counts.all_recorded(6100, 3900, false));
        assert!(!counts.all_recorded(6100, 3901, false));
        counts.add(4096, 1, 1 << 50).unwrap();
        assert!(counts.all_recorded(100, 6000, true));
    }

    #[test]
    fn beyond_the_end_nothing_is_counted() {
        let mut counts = Counts::new(100).unwrap();
        counts.add(90, 1 << 40, 1).unwrap();
        counts.add(u64::MAX, u64::MAX, 1).unwrap();
        assert_eq!((counts.references(99), counts.references(100)), (1, 0));
        assert!(Counts::new(u64::MAX).is_err());
    }
}
