//! Images with external data files, made and changed by us and by QEMU: both read the same, and a raw file is the disk.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::program::{Said, own, qemu, said, stand_in, words};
use common::{Folder, assert_same, qemu_is_here};
use serde_json::Value;

fn done(said: Said, line: &str) {
    assert_eq!(said.code, Some(0), "{line}: {}{}", said.out, said.err);
}

fn info(folder: &Path, file: &str) -> Value {
    let mut value: Value = serde_json::from_str(&qemu(folder, &format!("info --output=json {file}")).out).unwrap();
    value.as_object_mut().unwrap().retain(|name, _| matches!(name.as_str(), "virtual-size" | "format-specific"));
    value
}

/// QEMU takes names of data files from the current directory, which is that of the image here.
fn check(folder: &Path, what: &str) {
    let found = qemu(folder, "check a.qcow2");
    assert!(found.code == Some(0) && found.out.contains("No errors"), "{what}: {}{}", found.out, found.err);
}

/// The disk as QEMU reads it.
fn disk_of(folder: &Path, what: &str) -> Vec<u8> {
    done(qemu(folder, "convert -O raw a.qcow2 theirs.raw"), what);
    fs::read(folder.join("theirs.raw")).unwrap()
}

#[test]
fn images_are_made_as_qemu_makes_them() {
    if !qemu_is_here() {
        return;
    }
    for options in [
        "data_file=d.raw",
        "data_file=d.raw,data_file_raw=on",
        "data_file=d.raw,preallocation=metadata",
        "data_file=d.raw,data_file_raw=on,preallocation=falloc,cluster_size=4k",
        "data_file=d.raw,preallocation=full,extended_l2=on",
        "data_file=d.raw,compat=0.10",
        "data_file=d.raw,data_file_raw=on,backing_file=b.raw,backing_fmt=raw",
        "data_file=d.raw,backing_file=b.raw,backing_fmt=raw",
        "data_file_raw=on",
    ] {
        let (ours, theirs) = (Folder::in_memory(), Folder::in_memory());
        let line = format!("create -f qcow2 -o {options} a.qcow2 3M");
        for folder in [&ours, &theirs] {
            done(qemu(&folder.path(""), "create -q -f raw b.raw 3M"), "b.raw");
        }
        let (got, expected) = (stand_in(&ours.path(""), &line), qemu(&theirs.path(""), &line));
        assert_eq!(got, expected, "{line}");
        if got.code != Some(0) {
            continue;
        }
        assert_eq!(info(&ours.path(""), "a.qcow2"), info(&theirs.path(""), "a.qcow2"), "{line}");
        let length = |folder: &Folder| fs::metadata(folder.path("d.raw")).unwrap().len();
        assert_eq!(length(&ours), length(&theirs), "{line}");
        check(&ours.path(""), &line);
    }
}

/// QEMU lets both views drift when discards are not passed, and at guest cluster 0 (discard.md, hazards 3 and 4).
#[test]
fn a_raw_file_is_the_disk_whatever_the_policy() {
    if !qemu_is_here() {
        return;
    }
    const COMMANDS: &str = "-c 'write -P 1 0 1M' -c 'write -P 2 2M 300k' -c 'discard 0 128k' -c 'write -z -u 2M 64k' \
                            -c 'write -z 256k 100k' -c 'discard 0 64k' -c 'write -P 3 32k 4k' -c 'discard 512k 64k'";
    for options in
        ["data_file=d.raw", "data_file=d.raw,data_file_raw=on", "data_file=d.raw,data_file_raw=on,extended_l2=on"]
    {
        for policy in [
            "discard=unmap",
            "discard=unmap,pass-discard-request=off",
            "discard=unmap,discard-no-unref=on",
            "discard=unmap,discard-no-unref=on,pass-discard-request=off",
            "discard=ignore",
        ] {
            let folder = Folder::in_memory();
            let base = folder.path("");
            let what = format!("{options}, {policy}");
            // Made by QEMU, changed by us.
            done(qemu(&base, &format!("create -q -f qcow2 -o {options} a.qcow2 3M")), &what);
            done(own(&base, &format!("io -o {policy} {COMMANDS} a.qcow2")), &what);
            check(&base, &what);
            let disk = disk_of(&base, &what);
            if options.contains("raw=on") {
                assert_same(&fs::read(folder.path("d.raw")).unwrap(), &disk, &what);
            }
            done(own(&base, "convert -O raw a.qcow2 ours.raw"), &what);
            assert_same(&fs::read(folder.path("ours.raw")).unwrap(), &disk, &what);
            // QEMU goes on, then we.
            let written = said(Command::new("qemu-io").args(words("-c 'write -P 9 100k 200k' a.qcow2")), &base);
            done(written, &what);
            done(own(&base, &format!("io -o {policy} -c 'discard 128k 64k' -c 'write -P 8 1M 1M' a.qcow2")), &what);
            check(&base, &what);
            if options.contains("raw=on") {
                let disk = disk_of(&base, &what);
                assert_same(&fs::read(folder.path("d.raw")).unwrap(), &disk, &what);
            }
        }
    }
}

#[test]
fn a_data_file_that_is_named_is_that_of_one_image() {
    let folder = Folder::in_memory();
    let base = folder.path("");
    fs::create_dir(folder.path("other")).unwrap();
    for name in ["a", "b"] {
        let options = format!("data_file={name}.raw,data_file_raw=on");
        done(own(&base, &format!("create -q -f qcow2 -o {options} {name}.qcow2 1M")), "create");
    }
    done(own(&base, "io -c 'write -P 5 0 64k' a.qcow2"), "write");
    done(own(&base, "create -q -f qcow2 plain.qcow2 1M"), "create");
    let same = fs::read(folder.path("a.raw")).unwrap();
    fs::write(folder.path("same.img"), &same).unwrap();
    fs::rename(folder.path("a.raw"), folder.path("other/a.raw")).unwrap();
    let call = |line: &str| own(&base, &line.replacen(' ', " --data-file other/a.raw ", 1));

    // Where there is nothing that it could be for, it is not ignored.
    for line in ["io -c 'read 0 1k' plain.qcow2", "map plain.qcow2", "resize plain.qcow2 2M", "map -f raw same.img"] {
        let refused = call(line);
        assert!(refused.code == Some(1) && refused.err.contains("external data file"), "{line}: {}", refused.err);
    }
    let both = [("compare plain.qcow2 same.img", 2), ("delta plain.qcow2 same.img", 1), ("compare a.qcow2 b.qcow2", 2)];
    for (line, code) in both {
        let refused = call(line);
        assert!(refused.code == Some(code) && refused.err.contains("--data-file"), "{line}: {}", refused.err);
    }
    done(call("compare a.qcow2 same.img"), "compare");
    done(call("delta a.qcow2 same.img"), "delta");
    done(call("convert -O raw a.qcow2 plain.qcow2 joined.img"), "convert of two");
    assert_eq!(fs::metadata(folder.path("joined.img")).unwrap().len(), 2 << 20);

    // The target has its own, whatever the source's is.
    done(call("convert -n -O qcow2 a.qcow2 b.qcow2"), "convert -n");
    assert_same(&fs::read(folder.path("b.raw")).unwrap(), &same, "what was copied");
    assert_same(&fs::read(folder.path("other/a.raw")).unwrap(), &same, "the source");
}

#[test]
fn files_are_found_named_and_refused() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::in_memory();
    let base = folder.path("");
    for name in ["images", "other"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    // Made where the image looks for it.
    done(own(&base, "create -q -f qcow2 -o data_file=d.raw,data_file_raw=on images/a.qcow2 1M"), "create");
    assert!(folder.path("images/d.raw").exists() && !folder.path("d.raw").exists());
    done(own(&base, "io -c 'write -P 5 0 64k' images/a.qcow2"), "write");
    // Moved, it has to be named.
    fs::rename(folder.path("images/d.raw"), folder.path("other/d.raw")).unwrap();
    assert_eq!(own(&base, "io -c 'read -P 5 0 64k' images/a.qcow2").code, Some(1));
    done(own(&base, "io --data-file other/d.raw -c 'read -P 5 0 64k' images/a.qcow2"), "--data-file");
    let opts = "driver=qcow2,file.filename=images/a.qcow2,data-file.filename=other/d.raw";
    done(own(&base, &format!("map --image-opts {opts}")), "--image-opts");
    // What lies elsewhere is not opened by itself.
    done(own(&base, "amend --data-file other/d.raw -o data_file=../other/d.raw images/a.qcow2"), "amend");
    let denied = own(&base, "io -c 'read 0 64k' images/a.qcow2");
    assert!(denied.code == Some(1) && denied.err.contains("data file"), "{}", denied.err);
    done(own(&base, "io --backing-files=follow -c 'read -P 5 0 64k' images/a.qcow2"), "follow");
    // An image that QEMU made from another directory names its data file as seen from there.
    done(qemu(&base, "create -q -f qcow2 -o data_file=images/q.raw images/q.qcow2 1M"), "QEMU's");
    done(own(&base, "io -c 'read 0 64k' images/q.qcow2"), "QEMU's");
    // What data files cannot have.
    let snapshot = own(&base, "snapshot --backing-files=follow -c s images/a.qcow2");
    assert!(snapshot.code == Some(1) && snapshot.err.contains("data file"), "{}", snapshot.err);
    done(own(&base, "create -q -f raw b.raw 1M"), "raw");
    let packed = own(&base, "convert -c -O qcow2 -o data_file=e.raw b.raw c.qcow2");
    assert!(packed.code == Some(1) && packed.err.contains("data file"), "{}", packed.err);
    let same = own(&base, "create -q -f qcow2 -o data_file=c2.qcow2 c2.qcow2 1M");
    assert!(same.code == Some(1) && same.err.contains("same file"), "{}", same.err);
}
