//! Law 4 under power cuts: whatever subset of the writes since the last barrier reaches the disk, the image opens, no
//! refcount is too low, flushed data are there, and the image can be used on. For every kind of operation that
//! `qcowkit_trial` knows; `cargo xtask crash` does the same for as long as one likes.
//!
//! `QCOWKIT_CUTS=20` runs twenty times as many sessions; `QCOWKIT_SEED=7` begins with another seed.

use qcowkit_trial::from_env;
use qcowkit_trial::kinds::{kind, kinds};
use qcowkit_trial::outcome::Outcome;

/// All sessions of a kind.
fn run(name: &str) -> Outcome {
    let kind = kind(name).unwrap();
    let (first, times) = (from_env("QCOWKIT_SEED", 1), from_env("QCOWKIT_CUTS", 1));
    let mut outcome = Outcome::default();
    for seed in first..first + kind.sessions * times {
        let of_session = (kind.trial)(seed, kind.budget);
        assert!(of_session.faults.is_empty(), "{name}, QCOWKIT_SEED={seed}: {:#?}", of_session.complaints());
        outcome.add(of_session);
    }
    println!("{name}: {outcome}");
    println!("{name}: {:?}", outcome.operations);
    assert!(outcome.states >= kind.least, "{} states instead of {}", outcome.states, kind.least);
    outcome
}

/// A test for each kind, which must have done each of the operations that are named.
macro_rules! cuts {
    ($($test:ident: $name:literal $(, $operation:literal)*;)*) => {
        $(#[test] fn $test() {
            let outcome = run($name);
            for operation in [$($operation),*] as [&str; _] {
                assert!(outcome.operations.get(operation).is_some_and(|times| *times > 0), "no {operation}");
            }
        })*
        const TESTED: &[&str] = &[$($name),*];
    };
}

cuts! {
    growth: "growth", "write", "compressed write", "write zeroes", "discard", "planned writes", "preallocate";
    narrow_refcounts: "narrow";
    version_2: "version-2";
    over_a_backing_file: "backing", "write", "compressed write", "write zeroes", "discard";
    version_2_over_a_backing_file: "backing-2";
    subclusters: "subclusters", "write", "compressed write", "write zeroes", "discard";
    snapshots_come_and_go: "snapshots", "snapshot taken", "snapshot applied", "snapshot deleted", "discard";
    snapshots_come_and_go_over_a_backing_file: "snapshots-backing";
    snapshots_come_and_go_with_subclusters: "snapshots-subclusters";
    snapshots_of_several_sizes: "snapshots-resize";
    beside_a_snapshot: "snapshot", "write", "discard";
    beside_a_snapshot_over_a_backing_file: "snapshot-backing";
    resizing: "resize", "grow", "shrink";
    resizing_over_a_backing_file: "resize-backing";
    resizing_beside_a_snapshot: "resize-snapshot";
    resizing_with_subclusters: "resize-subclusters";
    resizing_version_2: "resize-2";
    the_l1_table_moves: "l1-table", "L1 table moved";
    the_refcount_table_moves: "refcount-table", "refcount table moved";
    encrypted: "encrypted", "write", "write zeroes", "discard", "grow";
    both_files_of_an_image_with_a_data_file: "data-files", "raw data file", "data file";
    a_bitmap_is_right_or_not_trusted: "bitmaps", "states with the bitmap", "states in which it is not trusted";
    while_an_image_is_committed: "commit", "commit and empty", "commit through a chain";
    while_an_image_is_rebased: "rebase", "rebase", "rebase, packing";
    while_an_image_is_amended: "amend", "down, snapshot", "up", "narrower", "wider", "all at once";
    while_an_image_is_repaired: "repair", "repair";
    while_tables_that_overlap_are_repaired: "repair-overlaps", "repair in one round", "repair in several rounds";
    while_passwords_come_and_go: "keys", "key slot added", "key slot erased";
}

#[test]
fn every_kind_is_tested_and_the_states_are_tens_of_thousands() {
    let names: Vec<&str> = kinds().map(|kind| kind.name).collect();
    assert_eq!(TESTED, names);
    let least: u64 = kinds().map(|kind| kind.least).sum();
    println!("at least {least} states");
    assert!(least >= 50_000, "{least}");
}
