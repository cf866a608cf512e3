//! A set of byte ranges, kept as few runs as possible: where compressed streams lie.

use alloc::format;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};

/// Separate runs of compressed data that an analysis keeps apart.
pub const MAX_ANALYSIS_RUNS: usize = 1 << 24;

/// Ranges of bytes; overlapping and touching ones are one.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// Start and end. Sorted and apart after [`Ranges::tidy`].
    runs: Vec<(u64, u64)>,
    /// Runs at the last tidying: it is done again when there are twice as many.
    tidied: usize,
}

impl Ranges {
    /// Adds a range. Those that continue the one before cost nothing.
    pub(super) fn add(&mut self, start: u64, length: u64) -> Result<()> {
        let end = start.saturating_add(length);
        if let Some(last) = self.runs.last_mut().filter(|last| start >= last.0 && start <= last.1) {
            last.1 = last.1.max(end);
            return Ok(());
        }
        if self.runs.len() >= self.tidied.saturating_mul(2).max(4096) {
            self.tidy();
        }
        if self.runs.len() >= MAX_ANALYSIS_RUNS {
            return Err(Error::new(ErrorKind::Limit(format!(
                "more than {MAX_ANALYSIS_RUNS} separate runs of compressed data"
            ))));
        }
        self.runs.push((start, end));
        Ok(())
    }

    /// Sorts and joins.
    pub(super) fn tidy(&mut self) {
        self.runs.sort_unstable();
        self.runs.dedup_by(|next, run| {
            let joined = next.0 <= run.1;
            if joined {
                run.1 = run.1.max(next.1);
            }
            joined
        });
        self.tidied = self.runs.len();
    }

    /// Bytes of all ranges. Only after [`Ranges::tidy`].
    pub(super) fn bytes(&self) -> u64 {
        self.runs.iter().fold(0, |sum: u64, run| sum.saturating_add(run.1.saturating_sub(run.0)))
    }

    /// Bytes of all ranges of both. Only after [`Ranges::tidy`] of both.
    pub(super) fn bytes_with(&self, other: &Self) -> u64 {
        // What only the other has: each of its runs without what this one covers.
        let only = other.runs.iter().fold(0u64, |sum, &(start, end)| {
            let (mut at, mut sum) = (start, sum);
            while at < end {
                let (here, until) = self.state(at, end);
                if !here {
                    sum = sum.saturating_add(until.saturating_sub(at));
                }
                at = until.max(at.saturating_add(1));
            }
            sum
        });
        self.bytes().saturating_add(only)
    }

    /// Bytes behind the first byte of the last sector of each run: what may be padding at most. Only after
    /// [`Ranges::tidy`].
    pub(super) fn last_sectors(&self) -> u64 {
        u64::try_from(self.runs.len()).unwrap_or(u64::MAX).saturating_mul(511)
    }

    /// Whether `at` lies in a range, and where that changes next (at most `end`). Only after [`Ranges::tidy`].
    pub(super) fn state(&self, at: u64, end: u64) -> (bool, u64) {
        let after = self.runs.partition_point(|run| run.1 <= at);
        match self.runs.get(after) {
            Some(run) if run.0 <= at => (true, run.1.min(end)),
            Some(run) => (false, run.0.min(end)),
            None => (false, end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_in_any_order() {
        let mut ranges = Ranges::default();
        for (start, length) in [(100, 50), (150, 10), (10, 5), (140, 40), (12, 3), (0, 2)] {
            ranges.add(start, length).unwrap();
        }
        ranges.tidy();
        assert_eq!(ranges.runs, [(0, 2), (10, 15), (100, 180)]);
        assert_eq!(ranges.bytes(), 87);
        assert_eq!(ranges.state(0, 1000), (true, 2));
        assert_eq!(ranges.state(2, 1000), (false, 10));
        assert_eq!(ranges.state(179, 1000), (true, 180));
        assert_eq!(ranges.state(180, 1000), (false, 1000));
        assert_eq!(ranges.state(120, 130), (true, 130));
    }
}
