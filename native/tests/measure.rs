//! `measure` beside `qemu-img measure`, and beside the files that a conversion then makes.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::program::{Said, own, qemu, said, stand_in};
use common::{Folder, qemu_is_here};

fn make(folder: &Path, line: &str) {
    let done = qemu(folder, line);
    assert_eq!(done.code, Some(0), "{line}: {}", done.err);
}

fn io(folder: &Path, file: &str, commands: &str) {
    let args: Vec<&str> = commands.split(';').flat_map(|command| ["-c", command.trim()]).collect();
    let done = said(Command::new("qemu-io").args(args).arg(file), folder);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
}

/// Disks of every kind that `measure` looks at.
fn gallery() -> Folder {
    let folder = Folder::in_memory();
    let base = folder.path("");
    make(&base, "create -q -f raw base.raw 20M");
    io(&base, "base.raw", "write -P 1 0 5M; write -P 2 7M 3k");
    make(&base, "create -q -f qcow2 plain.qcow2 100M");
    io(
        &base,
        "plain.qcow2",
        "write -P 1 0 5M; write -z 1M 1M; write -c -P 3 20M 1M; write -P 4 30M 1000; write -P 4 90M 3k",
    );
    make(&base, "snapshot -c old plain.qcow2");
    io(&base, "plain.qcow2", "write -P 9 50M 3M");
    make(&base, "create -q -f qcow2 -o extended_l2=on ext.qcow2 100M");
    io(&base, "ext.qcow2", "write -P 1 0 2k; write -P 1 1M 2k; write -P 1 10M 300k");
    make(&base, "create -q -f qcow2 -o cluster_size=512,compat=0.10 small.qcow2 9M");
    io(&base, "small.qcow2", "write -P 1 100k 700k; write -P 1 5M 1");
    make(&base, "create -q -f qcow2 -b base.raw -F raw over.qcow2 30M");
    io(&base, "over.qcow2", "write -P 1 10M 1M; write -z 0 1M; discard 2M 1M");
    make(&base, "create -q -f qcow2 -o preallocation=metadata reserved.qcow2 20M");
    make(&base, "create -q -f qcow2 marked.qcow2 100M");
    make(&base, "bitmap --add marked.qcow2 first");
    make(&base, "bitmap --add -g 4k marked.qcow2 second");
    make(&base, "create -q -f qcow2 -o preallocation=full kept.qcow2 20M");
    io(&base, "kept.qcow2", "write -z 0 16M; write -P 1 18M 1M");
    folder
}

const TARGETS: [&str; 12] = [
    "-O raw",
    "-O qcow2",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -o cluster_size=4k,refcount_bits=64",
    "-O qcow2 -o cluster_size=2M",
    "-O qcow2 -o refcount_bits=1",
    "-O qcow2 -o extended_l2=on",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow2 -o preallocation=falloc",
    "-O qcow2 -o backing_file=base.raw,backing_fmt=raw",
    "-O qcow2 --output=json",
];

const FILES: [&str; 10] = [
    "base.raw",
    "plain.qcow2",
    "-l old plain.qcow2",
    "ext.qcow2",
    "small.qcow2",
    "over.qcow2",
    "reserved.qcow2",
    "marked.qcow2",
    "kept.qcow2",
    "-f raw small.qcow2",
];

/// Both say the same; only where the refcount table has to move, our sizes are a little larger.
fn same_or_more(folder: &Path, line: &str) {
    let (ours, theirs) = (stand_in(folder, line), qemu(folder, line));
    let moves = ["cluster_size=512", "refcount_bits=64", "1P"].iter().any(|part| line.contains(part));
    if !moves || ours.code != Some(0) {
        assert_eq!(ours, theirs, "qemu-img {line}");
        return;
    }
    let sizes = |said: &Said| -> Vec<(String, u64)> {
        let parts = said.out.lines().filter_map(|line| line.rsplit_once(':'));
        parts.map(|(name, size)| (name.to_owned(), size.trim().trim_end_matches(',').parse().unwrap())).collect()
    };
    let (ours, theirs) = (sizes(&ours), sizes(&theirs));
    assert_eq!(ours.len(), theirs.len(), "qemu-img {line}");
    for ((name, size), (other_name, other)) in ours.iter().zip(&theirs) {
        assert_eq!(name, other_name, "qemu-img {line}");
        assert!(size >= other && *size <= other + other / 20, "qemu-img {line}: {name} {size}, QEMU {other}");
    }
}

#[test]
fn numbers_and_words_are_qemus() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    let base = folder.path("");
    for file in FILES {
        for target in TARGETS {
            same_or_more(&base, &format!("measure {target} {file}"));
        }
    }
    for size in ["0", "1", "1000", "1G", "3T", "1P"] {
        for target in TARGETS {
            same_or_more(&base, &format!("measure {target} --size {size}"));
        }
    }
    for line in [
        "measure",
        "measure --size 1G plain.qcow2",
        "measure --size 1G -f qcow2",
        "measure --size 1G -l x",
        "measure --size -1",
        "measure --size 1x",
        "measure --size 1G -O nope",
        "measure --size 1G -O qcow2 -o foo=1",
        "measure --size 1G -O qcow2 -o size=2G",
        "measure --size 1G -O qcow2 -o cluster_size=3k",
        "measure --size 64T -O qcow2 -o cluster_size=512",
        "measure a b",
        "measure nofile",
        "measure -U -O qcow2 ext.qcow2",
    ] {
        assert_eq!(stand_in(&base, line), qemu(&base, line), "qemu-img {line}");
    }
}

/// Bytes of a member of a report.
fn number(report: &str, name: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    report[name].as_u64().unwrap()
}

#[test]
fn what_is_required_is_enough() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    let base = folder.path("");
    // Data everywhere, so that the refcounts grow as far as they can.
    make(&base, "create -q -f raw full.raw 12M");
    io(&base, "full.raw", "write -P 7 0 12M");
    let mut checked = 0;
    for file in ["base.raw", "plain.qcow2", "ext.qcow2", "small.qcow2", "over.qcow2", "kept.qcow2", "full.raw"] {
        for options in [
            "cluster_size=512",
            "cluster_size=512,refcount_bits=64",
            "cluster_size=4k",
            "cluster_size=64k",
            "cluster_size=2M",
            "extended_l2=on",
            "compat=0.10",
            "refcount_bits=1",
            "preallocation=metadata",
            "cluster_size=1k,preallocation=full",
        ] {
            let measured = own(&base, &format!("measure --output=json -O qcow2 -o {options} {file}"));
            assert_eq!(measured.code, Some(0), "{}", measured.err);
            let (required, fully) = (number(&measured.out, "required"), number(&measured.out, "fully-allocated"));
            assert!(required <= fully);
            for sparse in ["", "-S 0"] {
                let made = own(&base, &format!("convert -O qcow2 {sparse} -o {options} {file} new.qcow2"));
                assert_eq!(made.code, Some(0), "{}", made.err);
                let length = fs::metadata(folder.path("new.qcow2")).unwrap().len();
                let enough = if sparse.is_empty() && !options.contains("preallocation") { required } else { fully };
                assert!(length <= enough, "{file}, {options} {sparse}: {length} bytes, more than {enough}");
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

/// QEMU's issue 2369: what keeps its place when it is discarded is not free after a commit.
#[test]
fn retained_zero_clusters_are_counted_when_asked_for() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    make(&base, "create -q -f qcow2 base.qcow2 10M");
    io(&base, "base.qcow2", "write -P 1 0 4M");
    make(&base, "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    io(&base, "top.qcow2", "discard 0 2M; write -P 2 3M 64k; write -P 2 5M 1M");
    let required = |more: &str, file: &str| {
        let measured = own(&base, &format!("measure --output=json -O qcow2 {more} {file}"));
        assert_eq!(measured.code, Some(0), "{}", measured.err);
        number(&measured.out, "required")
    };
    let tables = 5 * 65536;
    // Copied, zeros take nothing; in the backing file, their clusters stay.
    assert_eq!(required("", "top.qcow2"), tables + (3 << 20));
    assert_eq!(required("--discard-no-unref", "top.qcow2"), tables + (5 << 20));
    // An image with retained zeros of its own.
    make(&base, "create -q -f qcow2 kept.qcow2 10M");
    io(&base, "kept.qcow2", "write -P 1 0 8M; write -z 0 6M");
    assert_eq!(required("", "kept.qcow2"), tables + (2 << 20));
    assert_eq!(required("--discard-no-unref", "kept.qcow2"), tables + (8 << 20));
}

/// QEMU counts data that will be in the data file.
#[test]
fn data_elsewhere_take_no_space() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    let base = folder.path("");
    let measured = own(&base, "measure --output=json -O qcow2 -o data_file=data.raw plain.qcow2");
    assert_eq!(measured.code, Some(0), "{}", measured.err);
    let required = number(&measured.out, "required");
    assert_eq!((required, number(&measured.out, "fully-allocated")), (5 * 65536, 5 * 65536));
    let made = own(&base, "convert -O qcow2 -o data_file=data.raw,data_file_raw=on plain.qcow2 new.qcow2");
    assert_eq!(made.code, Some(0), "{}", made.err);
    assert!(fs::metadata(folder.path("new.qcow2")).unwrap().len() <= required);
}
