//! One bit for each guest cluster.

use alloc::vec;
use alloc::vec::Vec;

/// A set of cluster numbers below a fixed bound.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    words: Vec<u64>,
}

fn place(bit: u64) -> (usize, u64) {
    (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1u64.wrapping_shl(u32::try_from(bit % 64).unwrap_or(0)))
}

/// The bits of `word` from `first` on and before `end`, both within the word.
fn mask(first: u64, end: u64) -> u64 {
    let below = |bit: u64| if bit >= 64 { u64::MAX } else { place(bit).1.wrapping_sub(1) };
    below(end) & !below(first)
}

impl Bits {
    /// No member; room for numbers below `bound`.
    pub(super) fn new(bound: u64) -> Self {
        Self { words: vec![0; usize::try_from(bound.div_ceil(64)).unwrap_or(0)] }
    }

    /// Adds or removes a range.
    pub(super) fn set_range(&mut self, first: u64, end: u64, member: bool) {
        let mut at = first;
        while at < end {
            let word_start = at.saturating_sub(at % 64);
            let next = word_start.saturating_add(64).min(end);
            if let Some(word) = self.words.get_mut(place(at).0) {
                let mask = mask(at.saturating_sub(word_start), next.saturating_sub(word_start));
                *word = if member { *word | mask } else { *word & !mask };
            }
            at = next;
        }
    }

    /// The first member of `first..end`.
    pub(super) fn next(&self, first: u64, end: u64) -> Option<u64> {
        let mut at = first;
        while at < end {
            let word_start = at.saturating_sub(at % 64);
            let word = self.words.get(place(at).0).copied().unwrap_or(0);
            let found = word & mask(at.saturating_sub(word_start), end.saturating_sub(word_start).min(64));
            if found != 0 {
                return Some(word_start.saturating_add(found.trailing_zeros().into()));
            }
            at = word_start.saturating_add(64);
        }
        None
    }

    /// The last member of `first..end`.
    pub(super) fn previous(&self, first: u64, end: u64) -> Option<u64> {
        let mut end = end;
        while first < end {
            let last = end.saturating_sub(1);
            let word_start = last.saturating_sub(last % 64);
            let word = self.words.get(place(last).0).copied().unwrap_or(0);
            let from = first.saturating_sub(word_start);
            let found = word & mask(from, end.saturating_sub(word_start));
            if found != 0 {
                return Some(word_start.saturating_add(63u64.saturating_sub(found.leading_zeros().into())));
            }
            end = word_start;
        }
        None
    }

    /// Takes all members out, in order.
    pub(super) fn drain(&mut self) -> Vec<u64> {
        let mut members = Vec::new();
        for (start, word) in (0u64..).step_by(64).zip(&mut self.words) {
            let mut rest = core::mem::take(word);
            while rest != 0 {
                members.push(start.saturating_add(rest.trailing_zeros().into()));
                rest &= rest.wrapping_sub(1);
            }
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_from_both_sides() {
        let mut bits = Bits::new(300);
        bits.set_range(60, 70, true);
        bits.set_range(255, 255 + 1, true);
        bits.set_range(65, 65 + 1, false);
        assert_eq!((bits.next(0, 300), bits.next(65, 300), bits.next(70, 255)), (Some(60), Some(66), None));
        assert_eq!(
            (bits.previous(0, 300), bits.previous(0, 255), bits.previous(64, 66)),
            (Some(255), Some(69), Some(64))
        );
        assert_eq!((bits.previous(70, 255), bits.previous(5, 5)), (None, None));
        assert_eq!(bits.drain(), [60, 61, 62, 63, 64, 66, 67, 68, 69, 255]);
        assert_eq!(bits.next(0, 300), None);
    }
}
