//! Power cuts, and what else images go through in the tests of several crates and in the long runs of `cargo xtask crash`.
//!
//! [`session`] records random operations on an image with the guest's contents beside it; [`cuts`] makes the states that a
//! power cut may leave of what was recorded; [`walk`] judges an image without any code of the core. Each of [`amend`],
//! [`bitmaps`], [`chains`], [`data_files`], [`disks`], [`keys`] and [`repairs`] knows how one kind of operation is tried,
//! and [`kinds`] lists them all. [`failures`] has storage fail, and [`faulty`] judges what becomes of an image that is in use
//! then. [`qemu`] does to QEMU what [`disks`] does to the core.

pub mod amend;
pub mod bitmaps;
pub mod chains;
pub mod cuts;
pub mod data_files;
pub mod disks;
pub mod failures;
pub mod faulty;
pub mod files;
pub mod keys;
pub mod kinds;
pub mod outcome;
pub mod qemu;
pub mod repairs;
pub mod session;
pub mod snapshot;
pub mod walk;

/// A small generator: the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Begins anew.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Mixed, so that neighbouring seeds part at once; never 0.
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ (mixed >> 29)) | 1)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end, and nobody iterates")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A number from the environment, for longer runs.
///
/// # Panics
/// When it is no number.
#[must_use]
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}
