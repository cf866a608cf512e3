//! The decisions against 756 observations of QEMU 10.0.2, row by row.
//!
//! `data/discard-golden.csv` was made with qemu-io: one cluster, one operation, then a look at the entry, the refcount
//! and the bytes of the old host cluster. Where we mean to differ, [`ours`] says so, and the number of such rows is fixed.

mod golden;

use std::collections::BTreeMap;

use golden::{CLUSTER, Host, Outcome, Row, ours, rows};
use qcowkit_core::format::{HostOffset, L2Entry, L2Kind, RawL2Entry};
use qcowkit_core::metadata::decide::{
    Context, DiscardType, Effect, HostOp, HostRange, Release, Step, Unref, discard, release, write_zeroes,
};

fn decide(row: &Row<'_>, retained: Unref) -> Option<Step> {
    let ctx = row.context(retained);
    let before = row.entry(row.before);
    match row.op {
        "discard" => Some(discard(before, &ctx)),
        "write_zeroes" => write_zeroes(before, &ctx, false),
        "write_zeroes_unmap" => write_zeroes(before, &ctx, true),
        other => panic!("{other}"),
    }
}

/// Compares one decision with what is expected of it.
fn check(row: &Row<'_>, step: Step, expected: Outcome) {
    let name = row.name();
    let before = row.entry(row.before);
    assert_eq!(step.entry, expected.entry, "{name}");
    assert_eq!(step.changed, step.entry != before, "{name}");
    // The entry as it stands in the file, and back.
    let geometry = row.geometry();
    let raw: RawL2Entry = step.entry.encode(&geometry);
    assert_eq!(L2Entry::decode(raw, &geometry), Ok(step.entry), "{name}");

    let refcount = row.refcount.split_once("->").map(|(before, _)| before.parse::<u32>().unwrap());
    let after = refcount.map(|count| count - u32::from(step.release != Release::None));
    match expected.refcount {
        Some(_) => assert_eq!(after, expected.refcount, "{name}"),
        None => assert_eq!(step.release, Release::None, "{name}"),
    }
    if let Release::Refs(range) = step.release {
        let length = if before.kind(&geometry) == L2Kind::Compressed { 924 } else { 0x10000 };
        let start = if before.kind(&geometry) == L2Kind::Compressed { CLUSTER + 100 } else { CLUSTER };
        assert_eq!(range, HostRange { offset: HostOffset::new(start), length }, "{name}");
    }
    let possible: &[Host] = match step.host_op {
        HostOp::None => &[Host::Kept],
        HostOp::Now(_, Effect::Discard) => &[Host::Discarded],
        HostOp::Now(_, Effect::ZeroMayUnmap) => &[Host::Discarded, Host::Zeroed],
        HostOp::Now(_, Effect::ZeroKeep) => &[Host::Zeroed],
        HostOp::AfterCommit(_) if after == Some(0) => &[Host::Discarded],
        HostOp::AfterCommit(_) => &[Host::Kept],
    };
    if let Some(host) = expected.host {
        assert!(possible.contains(&host), "{name}: {:?}, expected {host:?}", step.host_op);
    }
    if let HostOp::Now(range, _) = step.host_op {
        assert_eq!(range, HostRange { offset: HostOffset::new(row.place()), length: 0x10000 }, "{name}");
        assert!(refcount.is_none_or(|count| count == 1), "{name}: shared");
    }
}

/// Zeros that the entry cannot say become an ordinary write: in place where the cluster is ours alone, else into a new
/// one, and the old one is given back without a hole.
fn check_write(row: &Row<'_>) {
    let name = row.name();
    assert!(row.image == "v2" && row.backing && row.op != "discard", "{name}");
    let before = row.entry(row.before);
    let ctx = Context { kind: DiscardType::Never, ..row.context(Unref::Always) };
    assert_eq!(row.after, "NORMAL+C", "{name}");
    if before.host().is_some_and(|host| host.copied) {
        assert_eq!((row.host_offset, row.refcount, row.host), ("same", "1->1", "zero-written"), "{name}");
        return;
    }
    assert_eq!(row.host_offset, "changed", "{name}");
    match release(before, &ctx) {
        (Release::None, HostOp::None) => assert_eq!((row.refcount, row.host), ("-", "-"), "{name}"),
        (Release::Refs(_), HostOp::None) => {
            assert!(["1->0", "2->1"].contains(&row.refcount) && row.host == "kept", "{name}");
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn prove(retained: Unref) -> BTreeMap<&'static str, usize> {
    let rows = rows();
    assert_eq!(rows.len(), 756);
    let mut counts = BTreeMap::new();
    for row in &rows {
        let Some(step) = decide(row, retained) else {
            check_write(row);
            *counts.entry("as QEMU: written").or_default() += 1;
            continue;
        };
        match ours(row, &rows, retained) {
            None => check(row, step, row.outcome()),
            Some((reason, outcome)) => {
                assert_ne!(outcome, row.outcome(), "{}: no deviation", row.name());
                check(row, step, outcome);
                *counts.entry(reason).or_default() += 1;
            }
        }
    }
    counts
}

#[test]
fn as_qemu_but_for_what_qemu_breaks() {
    let counts = prove(Unref::RetainQemu);
    let expected = [
        ("as QEMU: written", 20),
        // Snapshots would read zeros.
        ("shared: never punched", 8),
        // QEMU takes "zero, place 0" for "zero without place". Of the 12 rows that drop such a cluster, the one with a
        // backing file and nothing to pass comes out right all the same.
        ("guest0", 11),
        // The raw file would keep what the guest no longer reads.
        ("raw: zeros in the file", 4),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
}

#[test]
fn no_unref_keeps_what_is_not_shared_and_passes_zeros_down() {
    let counts = prove(Unref::RetainUnshared);
    let expected = [
        ("as QEMU: written", 20),
        // Nothing is gained by keeping a place that the next write must leave.
        ("shared: dropped", 32),
        ("guest0", 11),
        ("raw: zeros in the file", 4),
        // The space of clusters that were zero before the discard.
        ("zero: passed down", 16),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
}
