//! What QEMU was seen to do to one cluster, row by row, and where we mean to do otherwise.

use qcowkit_core::format::{CompressedRange, Geometry, HostOffset, HostRef, L2Entry, Subclusters};
use qcowkit_core::metadata::decide::{Context, DiscardPolicy, Pass, Unref};

const ROWS: &str = include_str!("../data/discard-golden.csv");
pub(crate) const CLUSTER: u64 = 0x50000;

#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) image: &'a str,
    pub(crate) backing: bool,
    pub(crate) cluster: &'a str,
    pub(crate) op: &'a str,
    pub(crate) no_unref: bool,
    pub(crate) pass: bool,
    pub(crate) before: &'a str,
    pub(crate) after: &'a str,
    pub(crate) host_offset: &'a str,
    pub(crate) refcount: &'a str,
    pub(crate) host: &'a str,
}

pub(crate) fn rows() -> Vec<Row<'static>> {
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
    pub(crate) fn geometry(&self) -> Geometry {
        let version = if self.image == "v2" { 2 } else { 3 };
        Geometry::new(version, 16, 4, self.image == "v3-extl2", self.image.contains("datafile"), 1 << 30).unwrap()
    }

    pub(crate) fn context(&self, retained: Unref) -> Context {
        let unref = if self.no_unref { retained } else { Unref::Always };
        let pass = Pass { request: self.pass, ..Pass::default() };
        let policy = DiscardPolicy { unref, pass, ..DiscardPolicy::default() };
        Context {
            has_backing: self.backing,
            data_file_raw: self.image.contains("raw"),
            ..Context::request(self.geometry(), policy)
        }
    }

    pub(crate) fn guest0(&self) -> bool {
        self.image.ends_with("-guest0")
    }

    /// The place of the cluster before the operation: the data file has it where the guest has it.
    pub(crate) fn place(&self) -> u64 {
        if self.guest0() { 0 } else { CLUSTER }
    }

    /// An entry in the words of the table.
    pub(crate) fn entry(&self, words: &str) -> L2Entry {
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

    pub(crate) fn outcome(&self) -> Outcome {
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

    pub(crate) fn name(&self) -> String {
        let Self { image, backing, cluster, op, no_unref, pass, .. } = self;
        format!("{image} backing={backing} {cluster} {op} no_unref={no_unref} pass={pass}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    Kept,
    Discarded,
    Zeroed,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) entry: L2Entry,
    /// Afterwards; `None` where the table does not say.
    pub(crate) refcount: Option<u32>,
    pub(crate) host: Option<Host>,
}

/// What we do where QEMU does otherwise, with the reason; `None`: as QEMU.
pub(crate) fn ours(row: &Row<'_>, all: &[Row<'_>], retained: Unref) -> Option<(&'static str, Outcome)> {
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
