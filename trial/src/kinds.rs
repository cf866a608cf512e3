//! The kinds of operations whose power cuts are tried.

use super::outcome::Outcome;
use super::{amend, bitmaps, chains, data_files, disks, keys, qemu, repairs};

/// A kind of operation.
pub struct Kind {
    /// Its name, for options and tables.
    pub name: &'static str,
    /// What is done, in words.
    pub what: &'static str,
    /// Sessions of the seeded test, and about how many states of each are judged.
    pub sessions: u64,
    /// See `sessions`.
    pub budget: usize,
    /// The fewest states that the seeded test has to judge.
    pub least: u64,
    /// A session with this seed, and about how many states of it are judged.
    pub trial: fn(u64, usize) -> Outcome,
}

/// `name, what, sessions, budget, least;` for scenarios of [`disks`].
macro_rules! disks {
    ($($name:literal, $what:literal, $sessions:literal, $budget:literal, $least:literal;)*) => {
        [$(Kind {
            name: $name,
            what: $what,
            sessions: $sessions,
            budget: $budget,
            least: $least,
            trial: |seed, budget| disks::trial($name, seed, budget),
        }),*]
    };
}

/// A disk in use. All of them write in place and with copy on write, packed and planned; write zeros; discard under each
/// policy; preallocate; flush; and are closed and opened.
static DISKS: [Kind; 20] = disks! {
    "growth", "all writes, discards under each policy, refcount blocks that grow", 27, 300, 6250;
    "narrow", "the same with refcounts of 1 to 32 bits", 18, 200, 2800;
    "version-2", "the same in version 2", 18, 200, 2800;
    "backing", "copy on write from a backing file", 18, 200, 2750;
    "backing-2", "the same in version 2", 9, 200, 1350;
    "subclusters", "extended L2 entries, with and without a backing file", 18, 200, 2650;
    "snapshots", "snapshots taken, applied, deleted", 18, 200, 4650;
    "snapshots-backing", "the same over a backing file", 9, 200, 2500;
    "snapshots-subclusters", "the same with extended L2 entries", 6, 200, 1750;
    "snapshots-resize", "the same with changing sizes", 9, 200, 2700;
    "snapshot", "copy on write of clusters that a snapshot shares", 18, 200, 3100;
    "snapshot-backing", "the same over a backing file", 9, 200, 1500;
    "resize", "growing and shrinking, with each preallocation", 18, 200, 2850;
    "resize-backing", "the same over a backing file", 9, 200, 1450;
    "resize-snapshot", "the same beside a snapshot", 9, 200, 1700;
    "resize-subclusters", "the same with extended L2 entries", 9, 200, 1450;
    "resize-2", "the same in version 2", 9, 200, 1400;
    "l1-table", "an L1 table that grows out of its place", 4, 100, 400;
    "refcount-table", "a refcount table that grows out of its place", 4, 150, 550;
    "encrypted", "LUKS: all writes, changing sizes", 9, 150, 1100;
};

/// Whole operations, each on an image of its own.
static OPERATIONS: [Kind; 8] = [
    Kind {
        name: "data-files",
        what: "an external data file, raw or not: cuts of both files",
        sessions: 36,
        budget: 60,
        least: 1700,
        trial: data_files::trial,
    },
    Kind {
        name: "bitmaps",
        what: "dirty bitmaps that record, are added, merged, removed, switched",
        sessions: 12,
        budget: 400,
        least: 3700,
        trial: bitmaps::trial,
    },
    Kind {
        name: "commit",
        what: "commit and emptying in chains of many shapes: cuts of all files",
        sessions: 24,
        budget: 240,
        least: 1950,
        trial: chains::commit,
    },
    Kind {
        name: "rebase",
        what: "rebase to another backing file or none, also packing: cuts of the image",
        sessions: 40,
        budget: 240,
        least: 2300,
        trial: chains::rebase,
    },
    Kind {
        name: "amend",
        what: "another version, refcount width, backing file name, lazy refcounts",
        sessions: 39,
        budget: 200,
        least: 4600,
        trial: amend::trial,
    },
    Kind {
        name: "repair",
        what: "repair of images damaged by chance; each state is repaired again, and undone",
        sessions: 60,
        budget: 60,
        least: 1550,
        trial: repairs::trial,
    },
    Kind {
        name: "repair-overlaps",
        what: "repair of images whose tables lie on each other, in several rounds",
        sessions: 60,
        budget: 100,
        least: 3400,
        trial: repairs::overlapping,
    },
    Kind {
        name: "keys",
        what: "LUKS key slots added and erased",
        sessions: 6,
        budget: 80,
        least: 400,
        trial: keys::trial,
    },
];

/// Not ours: what QEMU writes, to compare. Only run when it is named.
static QEMU: Kind =
    Kind { name: "qemu", what: "QEMU: all writes, discards", sessions: 4, budget: 200, least: 400, trial: qemu::trial };

/// All of ours.
pub fn kinds() -> impl Iterator<Item = &'static Kind> {
    DISKS.iter().chain(&OPERATIONS)
}

/// The one with this name; `qemu` for QEMU's own writes.
#[must_use]
pub fn kind(name: &str) -> Option<&'static Kind> {
    kinds().chain([&QEMU]).find(|kind| kind.name == name)
}
