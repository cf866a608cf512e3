//! The decisions against 756 observations of QEMU 10.0.2, row by row.
//!
//! `data/discard-golden.csv` was made with qemu-io: one cluster, one operation, then a look at the entry, the refcount
//! and the bytes of the old host cluster. Where we mean to differ, [`ours`] says so, and the number of such rows is fixed.

use std::collections::BTreeMap;

use qcowkit_core::format::{CompressedRange, Geometry, HostOffset, HostRef, L2Entry, L2Kind, RawL2Entry, Subclusters};
use qcowkit_core::metadata::decide::{
    Context, DiscardPolicy, DiscardType, Effect, HostOp, HostRange, Pass, Release, Step, Unref, discard, release,
    write_zeroes,
};

const ROWS: &str = include_str!("data/discard-golden.csv");
const CLUSTER: u64 = 0x50000;

#[derive(Clone, Copy)]
struct Row<'a> {
    image: &'a str,
    backing: bool,
    cluster: &'a str,
    op: &'a str,
    no_unref: bool,
    pass: bool,
    before: &'a str,
    after: &'a str,
    host_offset: &'a str,
    refcount: &'a str,
    host: &'a str,
}

fn rows() -> Vec<Row<'static>> {
    let lines = ROWS.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [image, backing, cluster, op, no_unref, pass, before, after, host_offset, refcount, host] = fields[..]
            else {
                panic!("{line}")
            };
            let flag = |text| match text {
                "yes" | "on" => true,
                "no" | "off" => false,
                _ => panic!("{line}"),
            };
            Row {
                image,
                backing: flag(backing),
                cluster,
                op,
                no_unref: flag(no_unref),
                pass: flag(pass),
                before,
                after,
                host_offset,
                refcount,
                host,
            }
        })
        .collect()
}

impl Row<'_> {
    fn geometry(&self) -> Geometry {
        let version = if self.image == "v2" { 2 } else { 3 };
        Geometry::new(version, 16, 4, self.image == "v3-extl2", self.image.contains("datafile"), 1 << 30).unwrap()
    }

    fn context(&self, retained: Unref) -> Context {
        let unref = if self.no_unref { retained } else { Unref::Always };
        let pass = Pass { request: self.pass, ..Pass::default() };
        let policy = DiscardPolicy { unref, pass, ..DiscardPolicy::default() };
        Context {
            has_backing: self.backing,
            data_file_raw: self.image.contains("raw"),
            ..Context::request(self.geometry(), policy)
        }
    }

    fn guest0(&self) -> bool {
        self.image.ends_with("-guest0")
    }

    /// The place of the cluster before the operation: the data file has it where the guest has it.
    fn place(&self) -> u64 {
        if self.guest0() { 0 } else { CLUSTER }
    }

    /// An entry in the words of the table.
    fn entry(&self, words: &str) -> L2Entry {
        let (words, bitmap) = words.split_once(" bm=").unwrap_or((words, "0/0"));
        let (name, copied) = words.strip_suffix("+C").map_or((words, false), |name| (name, true));
        let host = HostRef { offset: HostOffset::new(self.place()), copied };
        let geometry = self.geometry();
        match name {
            "COMPR" => {
                L2Entry::Compressed(CompressedRange::fits(HostOffset::new(CLUSTER + 100), 924, &geometry).unwrap())
            }
            "NORMAL" | "UNALLOC" if geometry.extended_l2() => {
                let (zero, allocated) = bitmap.split_once('/').unwrap();
                let [allocated, zero] = [allocated, zero].map(|bits| u32::from_str_radix(bits, 16).unwrap());
                L2Entry::Plain { host: (name == "NORMAL").then_some(host), parts: Subclusters { allocated, zero } }
            }
            "UNALLOC" => L2Entry::UNALLOCATED,
            "NORMAL" => L2Entry::normal(host, &geometry),
            "ZALLOC" => L2Entry::zero_allocated(host, &geometry),
            // What QEMU takes for ZPLAIN where the place is 0.
            "ZPLAIN" if copied && self.guest0() => L2Entry::zero_allocated(host, &geometry),
            "ZPLAIN" => L2Entry::zero_plain(&geometry),
            _ => panic!("{words}"),
        }
    }

    fn outcome(&self) -> Outcome {
        let after = self.refcount.split_once("->").map(|(_, after)| after.parse().unwrap());
        let host = match self.host {
            "kept" => Some(Host::Kept),
            "discarded" => Some(Host::Discarded),
            "zero-written" => Some(Host::Zeroed),
            "-" => None,
            other => panic!("{other}"),
        };
        let entry = self.entry(self.after);
        match self.host_offset {
            "same" => assert_eq!(entry.host(), self.entry(self.before).host()),
            "changed" => assert_eq!(entry.host(), None),
            "-" => assert!(self.guest0() || entry.host().is_none()),
            other => panic!("{other}"),
        }
        Outcome { entry, refcount: after, host }
    }

    fn decide(&self, retained: Unref) -> Option<Step> {
        let ctx = self.context(retained);
        let before = self.entry(self.before);
        match self.op {
            "discard" => Some(discard(before, &ctx)),
            "write_zeroes" => write_zeroes(before, &ctx, false),
            "write_zeroes_unmap" => write_zeroes(before, &ctx, true),
            other => panic!("{other}"),
        }
    }

    fn name(&self) -> String {
        let Self { image, backing, cluster, op, no_unref, pass, .. } = self;
        format!("{image} backing={backing} {cluster} {op} no_unref={no_unref} pass={pass}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Kept,
    Discarded,
    Zeroed,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Outcome {
    entry: L2Entry,
    /// Afterwards; `None` where the table does not say.
    refcount: Option<u32>,
    host: Option<Host>,
}

/// What we do where QEMU does otherwise, with the reason; `None`: as QEMU.
fn ours(row: &Row<'_>, all: &[Row<'_>], retained: Unref) -> Option<(&'static str, Outcome)> {
    let qemu = row.outcome();
    let unmaps = row.op != "write_zeroes";
    let retains = row.no_unref && unmaps;
    let shared = row.cluster.ends_with("+shared") && !row.cluster.starts_with("COMPR");
    if row.guest0() {
        // Place 0 of a data file is a place as any other: what holds for the others holds here.
        let image = row.image.strip_suffix("-guest0").unwrap();
        let same_but_image = |other: &&Row<'_>| {
            (other.image, other.backing, other.cluster, other.op, other.no_unref, other.pass)
                == (image, row.backing, row.cluster, row.op, row.no_unref, row.pass)
        };
        let twin = all.iter().find(same_but_image).unwrap();
        let (reason, mut outcome) = ours(twin, all, retained).unwrap_or(("guest0", twin.outcome()));
        outcome.entry = match outcome.entry {
            L2Entry::Plain { host: Some(host), parts } => {
                L2Entry::Plain { host: Some(HostRef { offset: HostOffset::new(0), ..host }), parts }
            }
            other => other,
        };
        return (outcome != qemu).then_some((reason, outcome));
    }
    if shared && retains {
        let zero = L2Entry::zero_plain(&row.geometry());
        return match retained {
            Unref::RetainUnshared => {
                Some(("shared: dropped", Outcome { entry: zero, refcount: Some(1), host: Some(Host::Kept) }))
            }
            Unref::RetainQemu | Unref::Always if qemu.host == Some(Host::Discarded) => {
                Some(("shared: never punched", Outcome { host: Some(Host::Kept), ..qemu }))
            }
            Unref::RetainQemu | Unref::Always => None,
        };
    }
    if row.image.ends_with("raw") {
        let lies = row.cluster == "NORMAL" && row.op == "discard" && !row.pass;
        return lies.then_some(("raw: zeros in the file", Outcome { host: Some(Host::Zeroed), ..qemu }));
    }
    if row.cluster == "ZALLOC" && retains && row.pass && retained == Unref::RetainUnshared {
        return Some(("zero: passed down", Outcome { host: Some(Host::Discarded), ..qemu }));
    }
    None
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
        let Some(step) = row.decide(retained) else {
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
