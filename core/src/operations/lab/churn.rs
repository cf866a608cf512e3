//! A workload like that of a virtual machine: files are written, rewritten and deleted on a disk that is nearly full.

use alloc::format;
use alloc::vec::Vec;

use super::guest::{BlockRun, Blocks};
use super::random::Random;
use super::{MAX_TRACE_OPERATIONS, Operation, Trace};
use crate::error::{Error, Result};

/// The longest discard that is made in one piece, in bytes.
const MAX_DISCARD: u64 = 1 << 30;

/// When the guest tells its disk what it needs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Trim {
    /// Never.
    Never,
    /// At once, for the blocks of every file that is deleted (mount option `discard`).
    Online,
    /// All that is free at that time, after each so many operations (`fstrim` by a timer).
    Every(u64),
}

/// The parameters of a workload. The same parameters give the same trace, on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Churn {
    /// Bytes of the disk.
    pub size: u64,
    /// How many operations to make; the trace ends with the first file or trim that reaches the number.
    pub operations: u64,
    /// Where the random numbers begin.
    pub seed: u64,
    /// How full the file system is kept, in percent of the disk, 1 to 99. The disk is filled to that first.
    pub fill_percent: u32,
    /// The median size of a file in bytes.
    pub file_median: u64,
    /// The spread of the sizes: sigma of their logarithm times 100. 0 gives files of one size; with 200, a third of the
    /// files is more than 7.4 times larger or smaller than the median.
    pub file_sigma_percent: u32,
    /// No file is larger than this many bytes.
    pub file_max: u64,
    /// Of 100 steps, how many rewrite a part of a file in place; the others make or delete files.
    pub rewrite_percent: u32,
    /// Of 100 files, how many hold nothing but zeros.
    pub zero_percent: u32,
    /// The guest's block in bytes: a power of two, 512 to 1 MiB.
    pub block: u64,
    /// Longer writes are cut into requests of this many bytes, as kernels do.
    pub request_max: u64,
    /// When discards are sent.
    pub trim: Trim,
    /// Free runs shorter than this many bytes are not trimmed (`fstrim -m`).
    pub trim_min: u64,
    /// A flush after each so many operations; 0 for none.
    pub flush_every: u64,
    /// A mark after each so many operations, named `1`, `2`, ...; 0 for none. A first mark, `filled`, is set when the disk
    /// is full.
    pub mark_every: u64,
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            size: 64 << 30,
            operations: 200_000,
            seed: 1,
            fill_percent: 90,
            file_median: 256 << 10,
            file_sigma_percent: 200,
            file_max: 1 << 30,
            rewrite_percent: 30,
            zero_percent: 2,
            block: 4096,
            request_max: 1 << 20,
            trim: Trim::Every(20_000),
            trim_min: 0,
            flush_every: 100,
            mark_every: 50_000,
        }
    }
}

impl Churn {
    /// Makes the trace.
    ///
    /// # Errors
    /// Parameters out of range, by name.
    pub fn trace(&self) -> Result<Trace> {
        self.validate()?;
        let mut workload = Workload::new(self);
        workload.fill();
        while workload.count() < self.operations {
            workload.step();
        }
        Ok(Trace { operations: workload.operations, ignored: 0 })
    }

    fn validate(&self) -> Result<()> {
        let most = u64::try_from(MAX_TRACE_OPERATIONS).unwrap_or(u64::MAX);
        let rules = [
            (
                self.block.is_power_of_two() && (512..=1 << 20).contains(&self.block),
                "the block must be a power of two from 512 to 1M",
            ),
            (
                self.size >= self.block.saturating_mul(64) && self.size <= 1 << 56,
                "the disk must hold 64 blocks, and be smaller than 64P",
            ),
            ((1..=99).contains(&self.fill_percent), "the fill must be 1 to 99 percent"),
            (self.rewrite_percent <= 90, "at most 90 of 100 steps can be rewrites"),
            (self.zero_percent <= 100, "at most 100 of 100 files can be zeros"),
            (
                self.file_median > 0 && self.file_max >= self.file_median,
                "the median size must be above 0, and the largest not below it",
            ),
            (self.file_sigma_percent <= 1000, "sigma must be at most 10"),
            (self.request_max >= self.block, "a request must hold a block"),
            (self.operations <= most, "a trace can have 33554432 operations at most"),
            (self.trim != Trim::Every(0), "a trim every 0 operations never ends"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::invalid(format!("churn: {rule}"))),
            None => Ok(()),
        }
    }
}

/// A file: where its blocks are, and whether it holds zeros.
struct File {
    runs: Vec<BlockRun>,
    zeros: bool,
}

struct Workload<'a> {
    churn: &'a Churn,
    random: Random,
    blocks: Blocks,
    files: Vec<File>,
    operations: Vec<Operation>,
    /// Blocks in use that the file system aims at.
    target: u64,
    next_flush: u64,
    next_mark: u64,
    next_trim: u64,
    marks: u64,
}

impl<'a> Workload<'a> {
    fn new(churn: &'a Churn) -> Self {
        let total = churn.size.checked_div(churn.block).unwrap_or(0);
        Self {
            churn,
            random: Random::new(churn.seed),
            blocks: Blocks::new(total),
            files: Vec::new(),
            operations: Vec::new(),
            target: total.saturating_mul(churn.fill_percent.into()) / 100,
            next_flush: churn.flush_every,
            next_mark: u64::MAX,
            next_trim: u64::MAX,
            marks: 0,
        }
    }

    fn count(&self) -> u64 {
        u64::try_from(self.operations.len()).unwrap_or(u64::MAX)
    }

    /// Makes files until the disk is as full as it is to be.
    fn fill(&mut self) {
        while self.blocks.used() < self.target && self.count() < self.churn.operations {
            self.make_file();
        }
        self.operations.push(Operation::Mark("filled".into()));
        let now = self.count();
        if self.churn.mark_every > 0 {
            self.next_mark = now.saturating_add(self.churn.mark_every);
        }
        if let Trim::Every(every) = self.churn.trim {
            self.next_trim = now.saturating_add(every);
        }
    }

    fn step(&mut self) {
        if self.random.percent(self.churn.rewrite_percent) {
            self.rewrite();
        } else if self.blocks.used() < self.target {
            self.make_file();
        } else {
            self.delete();
        }
        if self.count() >= self.next_trim
            && let Trim::Every(every) = self.churn.trim
        {
            self.trim();
            self.next_trim = self.count().saturating_add(every);
        }
        if self.count() >= self.next_mark {
            self.marks = self.marks.saturating_add(1);
            self.operations.push(Operation::Mark(format!("{}", self.marks).into()));
            self.next_mark = self.count().saturating_add(self.churn.mark_every);
        }
    }

    fn make_file(&mut self) {
        let size = self.random.log_normal(self.churn.file_median, self.churn.file_sigma_percent);
        let size = size.clamp(1, self.churn.file_max);
        let want = size.div_ceil(self.churn.block).min(self.blocks.free());
        let zeros = self.random.percent(self.churn.zero_percent);
        let runs = self.blocks.take(want);
        for &run in &runs {
            self.write(run, zeros);
        }
        if !runs.is_empty() {
            self.files.push(File { runs, zeros });
        }
    }

    /// Rewrites a part of a random file: from a random place on, up to a quarter of the run that is there.
    fn rewrite(&mut self) {
        let Some(file) = self.random.position(&self.files).and_then(|at| self.files.get(at)) else {
            return self.make_file();
        };
        let zeros = file.zeros;
        let Some(&(first, count)) = self.random.position(&file.runs).and_then(|at| file.runs.get(at)) else { return };
        let start = self.random.below(count);
        let most = (count / 4).clamp(1, count.saturating_sub(start).max(1));
        let length = self.random.below(most).saturating_add(1);
        self.write((first.saturating_add(start), length), zeros);
    }

    fn delete(&mut self) {
        let Some(at) = self.random.position(&self.files) else { return self.make_file() };
        for run in self.files.swap_remove(at).runs {
            self.blocks.give(run);
            if self.churn.trim == Trim::Online {
                self.discard(run);
            }
        }
    }

    /// Tells the disk of everything that is free.
    fn trim(&mut self) {
        let runs: Vec<BlockRun> = self.blocks.free_runs().collect();
        for run in runs {
            self.discard(run);
        }
    }

    fn write(&mut self, (first, count): BlockRun, zeros: bool) {
        let block = self.churn.block;
        let most = (self.churn.request_max.checked_div(block).unwrap_or(1)).max(1);
        let (mut at, mut rest) = (first, count);
        while rest > 0 {
            let piece = rest.min(most);
            let (offset, length) = (at.saturating_mul(block), piece.saturating_mul(block));
            self.operations.push(Operation::Write { offset, length, zeros });
            at = at.saturating_add(piece);
            rest = rest.saturating_sub(piece);
        }
        if self.churn.flush_every > 0 && self.count() >= self.next_flush {
            self.operations.push(Operation::Flush);
            self.next_flush = self.count().saturating_add(self.churn.flush_every);
        }
    }

    fn discard(&mut self, (first, count): BlockRun) {
        let (mut offset, mut rest) = (first.saturating_mul(self.churn.block), count.saturating_mul(self.churn.block));
        if rest < self.churn.trim_min {
            return;
        }
        while rest > 0 {
            let length = rest.min(MAX_DISCARD);
            self.operations.push(Operation::Discard { offset, length });
            offset = offset.saturating_add(length);
            rest = rest.saturating_sub(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::lab::TraceSummary;

    fn small() -> Churn {
        Churn { size: 256 << 20, operations: 5000, trim: Trim::Every(500), mark_every: 1000, ..Churn::default() }
    }

    #[test]
    fn the_same_parameters_give_the_same_trace() {
        let trace = small().trace().unwrap();
        assert_eq!(trace, small().trace().unwrap());
        assert_ne!(trace, Churn { seed: 2, ..small() }.trace().unwrap());
        assert!(trace.end() <= 256 << 20);
        let summary = TraceSummary::of(&trace);
        assert!(summary.operations >= 5000 && summary.marks > 1 && summary.discards > 100 && summary.flushes > 10);
    }

    #[test]
    fn trims_are_made_when_asked_for() {
        let discards = |trim| TraceSummary::of(&Churn { trim, ..small() }.trace().unwrap()).discards;
        assert_eq!(discards(Trim::Never), 0);
        assert!(discards(Trim::Online) > 100);
        let of_any_size = discards(Trim::Every(500));
        let large = Churn { trim_min: 1 << 20, ..small() }.trace().unwrap();
        assert!(TraceSummary::of(&large).discards < of_any_size);
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for churn in [
            Churn { block: 1000, ..small() },
            Churn { fill_percent: 100, ..small() },
            Churn { size: 4096, ..small() },
            Churn { file_max: 1, ..small() },
            Churn { request_max: 512, ..small() },
            Churn { trim: Trim::Every(0), ..small() },
            Churn { operations: u64::MAX, ..small() },
        ] {
            assert!(churn.trace().is_err(), "{churn:?}");
        }
    }
}
