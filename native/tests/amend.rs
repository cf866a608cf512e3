//! `amend` beside `qemu-img amend`: messages and exit codes, what becomes of the image, and of what is in it.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::program::{Said, own, qemu, said, stand_in};
use common::{Folder, assert_same, check_clean, qemu_is_here, qemu_read, succeed};
use serde_json::Value;

/// What an image says of itself, without sizes on the host.
fn info(path: &Path) -> Value {
    let text = succeed("qemu-img", &["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]);
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let fields = value.as_object_mut().unwrap();
    fields.retain(|name, _| !matches!(name.as_str(), "children" | "actual-size" | "filename" | "dirty-flag"));
    value
}

fn io(folder: &Path, file: &str, commands: &str) {
    let args: Vec<&str> = commands.split(';').flat_map(|command| ["-c", command.trim()]).collect();
    let done = said(Command::new("qemu-io").args(args).arg(file), folder);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
}

/// Data, packed clusters and zeros of each kind.
const CONTENTS: &str = "write -P 1 0 300k; write -P 2 1M 64k; write -z 128k 64k; write -z -u 192k 64k; \
                        write -c -P 3 2M 64k; write -z 3M 128k; discard 1M 64k; write -P 4 5000k 10k";

/// A file that QEMU and we each get a copy of: how it is made, whether it gets a snapshot, what is amended.
const IMAGES: [(&str, &str, bool, &[&str]); 7] = [
    (
        "plain",
        "",
        false,
        &["compat=0.10", "compat=v3,lazy_refcounts=on", "refcount_bits=64", "refcount_bits=1", "size=9M"],
    ),
    ("small", "-o cluster_size=512,refcount_bits=64", false, &["compat=0.10", "compat=0.10,refcount_bits=16"]),
    ("snap", "", true, &["compat=0.10", "refcount_bits=8", "compat=1.1,refcount_bits=1"]),
    ("one", "-o refcount_bits=1", false, &["refcount_bits=32", "compat=0.10,size=7M"]),
    (
        "oldsnap",
        "-o compat=0.10,cluster_size=4k",
        true,
        &["compat=1.1", "refcount_bits=64", "compat=1.1,refcount_bits=2"],
    ),
    ("over", "-b base.raw -F raw", false, &["compat=0.10", "size=3M", "backing_file=base.raw,backing_fmt=raw"]),
    (
        "oversnap",
        "-b base.raw -F raw -o lazy_refcounts=on,cluster_size=8k",
        true,
        &["compat=0.10", "lazy_refcounts=off", "data_file=x"],
    ),
];

#[test]
fn images_come_out_as_qemus() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    succeed("qemu-img", &["create".as_ref(), "-q".as_ref(), folder.path("base.raw").as_os_str(), "6M".as_ref()]);
    io(&base, "base.raw", "write -P 9 0 6M");
    let mut amended = 0;
    for (name, options, snapshot, lines) in IMAGES {
        let made = qemu(&base, &format!("create -q -f qcow2 {options} {name}.qcow2 6M"));
        assert_eq!(made.code, Some(0), "{}", made.err);
        // One bit does not count what packed clusters share.
        let contents = if name == "one" { CONTENTS.replace("-c -P", "-P") } else { CONTENTS.to_owned() };
        io(&base, &format!("{name}.qcow2"), &contents);
        if snapshot {
            succeed(
                "qemu-img",
                &["snapshot".as_ref(), "-c".as_ref(), "s".as_ref(), folder.path(&format!("{name}.qcow2")).as_os_str()],
            );
            io(&base, &format!("{name}.qcow2"), "write -P 5 64k 100k; write -z 1500k 700k; write -P 6 3M 64k");
        }
        let source = folder.path(&format!("{name}.qcow2"));
        let before = qemu_read(&source, None);
        let snapshot_before = snapshot.then(|| qemu_read(&source, Some("s")));
        for line in lines {
            let what = format!("{name}: {line}");
            let (ours, theirs) = (folder.path("ours.qcow2"), folder.path("theirs.qcow2"));
            fs::copy(&source, &ours).unwrap();
            fs::copy(&source, &theirs).unwrap();
            let got = stand_in(&base, &format!("amend -o {line} ours.qcow2"));
            // Between one bit and others QEMU takes twenty seconds.
            let alone = *line == "refcount_bits=1" || (name == "one" && line.contains("refcount_bits"));
            let expected = match alone {
                true => Said { out: String::new(), err: String::new(), code: Some(0) },
                false => qemu(&base, &format!("amend -o {line} theirs.qcow2")),
            };
            assert_eq!(got, expected, "{what}");
            if got.code != Some(0) {
                assert!(fs::read(&ours).unwrap() == fs::read(&source).unwrap(), "{what}: changed although refused");
                continue;
            }
            amended += 1;
            check_clean(&ours, &what);
            if !alone {
                assert_eq!(info(&ours), info(&theirs), "{what}");
            }
            let mut content = before.clone();
            if line.contains("size=") {
                content.resize(info(&ours)["virtual-size"].as_u64().unwrap() as usize, 0);
            }
            assert_same(&qemu_read(&ours, None), &content, &what);
            if let Some(expected) = &snapshot_before {
                assert_same(&qemu_read(&ours, Some("s")), expected, &what);
            }
            // QEMU goes on with it.
            io(&base, "ours.qcow2", "write -P 7 200k 300k; write -z -u 2M 100k; discard 0 64k");
            check_clean(&ours, &what);
        }
    }
    assert!(amended > 14, "{amended}");
}

#[test]
fn words_and_codes_are_qemus() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    for line in [
        "create -q -f qcow2 a.qcow2 10M",
        "create -q -f qcow2 -o extended_l2=on ext.qcow2 10M",
        "create -q -f qcow2 -o data_file=d.raw data.qcow2 10M",
        "create -q -f raw a.raw 10M",
    ] {
        assert_eq!(qemu(&base, line).code, Some(0), "{line}");
    }
    for line in [
        "amend a.qcow2",
        "amend -o size=5M",
        "amend -o size=5M a.qcow2 b.qcow2",
        "amend -o size=5M nofile",
        "amend -o cluster_size=4k a.qcow2",
        "amend -o preallocation=full a.qcow2",
        "amend -o foo=1 a.qcow2",
        "amend -o compat=9 a.qcow2",
        "amend -o refcount_bits=7 a.qcow2",
        "amend -o refcount_bits=128 a.qcow2",
        "amend -o lazy_refcounts=maybe a.qcow2",
        "amend -o compat=0.10,lazy_refcounts=on a.qcow2",
        "amend -o compat=0.10,refcount_bits=8 a.qcow2",
        "amend -o backing_file=x a.qcow2",
        "amend -o backing_fmt=raw a.qcow2",
        "amend -o data_file=x a.qcow2",
        "amend -o data_file_raw=on a.qcow2",
        "amend -o data_file_raw=on data.qcow2",
        "amend -o compat=0.10 data.qcow2",
        "amend -o encrypt.state=active a.qcow2",
        "amend -f raw -o size=5M a.raw",
        "amend -f raw -o help a.raw",
        "amend -o help a.qcow2",
        "amend -f qcow2 -o help",
        "amend -t wrong -o size=5M a.qcow2",
        "amend -p -o compat=1.1 a.qcow2",
        "amend -q -o lazy_refcounts=on a.qcow2",
    ] {
        assert_eq!(stand_in(&base, line), qemu(&base, line), "qemu-img {line}");
    }
    // Here we say more.
    let got = stand_in(&base, "amend -o compat=0.10 ext.qcow2");
    assert_eq!(got.code, Some(1));
    assert!(got.err.contains("Cannot downgrade an image with incompatible features 0x10 set"), "{}", got.err);
}

/// What QEMU does although it loses something, and we do not.
#[test]
fn a_downgrade_that_would_lose_something_is_refused() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    for line in [
        "create -q -f qcow2 -o compression_type=zstd zstd.qcow2 1M",
        "create -q -f qcow2 bitmap.qcow2 1M",
        "bitmap --add bitmap.qcow2 b",
    ] {
        assert_eq!(qemu(&base, line).code, Some(0), "{line}");
    }
    for (file, words) in [("zstd", "compression type"), ("bitmap", "persistent bitmaps")] {
        let before = fs::read(folder.path(&format!("{file}.qcow2"))).unwrap();
        let got = own(&base, &format!("amend -o compat=0.10 {file}.qcow2"));
        assert_eq!(got.code, Some(1));
        assert!(got.err.contains(words), "{}", got.err);
        assert!(fs::read(folder.path(&format!("{file}.qcow2"))).unwrap() == before);
    }
}

/// A zero cluster that was kept lies where a snapshot has data: QEMU writes zeros there.
#[test]
fn zeros_over_a_cluster_of_a_snapshot_leave_it_alone() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    let path = folder.path("a.qcow2");
    assert_eq!(qemu(&base, "create -q -f qcow2 a.qcow2 1M").code, Some(0));
    io(&base, "a.qcow2", "write -P 1 0 256k");
    assert_eq!(qemu(&base, "snapshot -c s a.qcow2").code, Some(0));
    io(&base, "a.qcow2", "write -z 64k 64k");
    let (before, snapshot) = (qemu_read(&path, None), qemu_read(&path, Some("s")));
    let got = own(&base, "amend -o compat=0.10 a.qcow2");
    assert_eq!((got.code, got.err.as_str()), (Some(0), ""));
    check_clean(&path, "after the downgrade");
    assert_same(&qemu_read(&path, None), &before, "disk");
    assert_same(&qemu_read(&path, Some("s")), &snapshot, "snapshot");
}

#[test]
fn another_backing_file_needs_force() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    for line in
        ["create -q -f raw old.raw 1M", "create -q -f raw new.raw 1M", "create -q -f qcow2 -b old.raw -F raw a.qcow2"]
    {
        assert_eq!(qemu(&base, line).code, Some(0), "{line}");
    }
    io(&base, "new.raw", "write -P 8 0 1M");
    let refused = own(&base, "amend -o backing_file=new.raw,backing_fmt=raw a.qcow2");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("rebase"), "{}", refused.err);
    let done = own(&base, "amend --force -o backing_file=new.raw a.qcow2");
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    let path = folder.path("a.qcow2");
    assert_eq!(info(&path)["backing-filename"], "new.raw");
    assert_eq!(info(&path)["backing-filename-format"], "raw");
    assert!(qemu_read(&path, None).iter().all(|&byte| byte == 8));
    check_clean(&path, "after another backing file");
}
