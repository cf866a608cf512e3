//! The block allocator of a pretend guest file system: files in extents on a disk of blocks.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Blocks in a row: first block and count.
pub(super) type BlockRun = (u64, u64);

/// A file smaller than what is free where the search stands is put there whole; larger ones, after this many tries, go
/// where there is room.
const TRIES: usize = 32;

/// Which blocks are free. Searches go on from the last allocation (next fit), as file systems spread their files.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Free runs by first block; neighbours are joined.
    free: BTreeMap<u64, u64>,
    free_blocks: u64,
    cursor: u64,
    total: u64,
}

impl Blocks {
    pub(super) fn new(total: u64) -> Self {
        let mut free = BTreeMap::new();
        if total > 0 {
            free.insert(0, total);
        }
        Self { free, free_blocks: total, cursor: 0, total }
    }

    pub(super) fn used(&self) -> u64 {
        self.total.saturating_sub(self.free_blocks)
    }

    pub(super) fn free(&self) -> u64 {
        self.free_blocks
    }

    /// The free runs, in order.
    pub(super) fn free_runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        self.free.iter().map(|(&first, &count)| (first, count))
    }

    /// Takes `want` blocks in as few runs as a short search finds; fewer when the disk is full.
    pub(super) fn take(&mut self, want: u64) -> Vec<BlockRun> {
        let mut runs = Vec::new();
        let mut rest = want.min(self.free_blocks);
        while rest > 0 {
            let Some((first, count)) = self.find(rest) else { break };
            let taken = count.min(rest);
            self.free.remove(&first);
            if count > taken {
                self.free.insert(first.saturating_add(taken), count.saturating_sub(taken));
            }
            self.free_blocks = self.free_blocks.saturating_sub(taken);
            self.cursor = first.saturating_add(taken);
            rest = rest.saturating_sub(taken);
            runs.push((first, taken));
        }
        runs
    }

    /// A free run that holds `want` blocks, else the longest that was seen.
    fn find(&self, want: u64) -> Option<BlockRun> {
        let around = self.free.range(self.cursor..).chain(self.free.range(..self.cursor));
        let mut longest: Option<BlockRun> = None;
        for (&first, &count) in around.take(TRIES) {
            if count >= want {
                return Some((first, count));
            }
            if longest.is_none_or(|(_, most)| count > most) {
                longest = Some((first, count));
            }
        }
        longest
    }

    /// Gives blocks back.
    pub(super) fn give(&mut self, (first, count): BlockRun) {
        let (mut first, mut end) = (first, first.saturating_add(count));
        self.free_blocks = self.free_blocks.saturating_add(count);
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before.saturating_add(length) == first
        {
            first = before;
        }
        if let Some(length) = self.free.remove(&end) {
            end = end.saturating_add(length);
        }
        self.free.insert(first, end.saturating_sub(first));
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    #[test]
    fn blocks_are_never_given_twice() {
        let mut random = Random::new(3);
        let mut blocks = Blocks::new(1000);
        let mut owner = alloc::vec![false; 1000];
        let mut files: Vec<Vec<BlockRun>> = Vec::new();
        for _ in 0..3000 {
            if random.percent(55) {
                let file = blocks.take(1 + random.below(60));
                for &(first, count) in &file {
                    for block in first..first + count {
                        assert!(!core::mem::replace(&mut owner[usize::try_from(block).unwrap()], true));
                    }
                }
                files.push(file);
            } else if let Some(at) = random.position(&files) {
                for run in files.swap_remove(at) {
                    owner[usize::try_from(run.0).unwrap()..usize::try_from(run.0 + run.1).unwrap()].fill(false);
                    blocks.give(run);
                }
            }
            let used = owner.iter().filter(|used| **used).count();
            assert_eq!(u64::try_from(used).unwrap(), blocks.used());
        }
        files.into_iter().flatten().for_each(|run| blocks.give(run));
        assert_eq!(blocks.free_runs().collect::<Vec<_>>(), [(0, 1000)]);
    }
}
