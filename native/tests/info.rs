//! What an image says of itself, against `qemu-img info --output=json` on images with one feature each.

use std::path::Path;
use std::process::Command;

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::info::{FileImageInfo, describe};
use qcowkit_core::image::{Image, OpenOptions};
use serde_json::Value;

/// Commands that make the image `a.qcow2`, one image a row.
const IMAGES: [&[&str]; 13] = [
    &["qemu-img create -f qcow2 a.qcow2 64M"],
    &["qemu-img create -f qcow2 -o compat=0.10 a.qcow2 1M"],
    &["qemu-img create -f qcow2 -o cluster_size=512 a.qcow2 1M"],
    &["qemu-img create -f qcow2 -o cluster_size=2M,refcount_bits=1 a.qcow2 1T"],
    &["qemu-img create -f qcow2 -o lazy_refcounts=on,refcount_bits=64 a.qcow2 1M"],
    &["qemu-img create -f qcow2 -o extended_l2=on,compression_type=zstd a.qcow2 1M"],
    &["qemu-img create -f qcow2 -o data_file=d.raw,data_file_raw=on a.qcow2 1M"],
    &["qemu-img create -f qcow2 -o data_file=d.raw a.qcow2 1M"],
    &["qemu-img create -f raw b.raw 1M", "qemu-img create -f qcow2 -b b.raw -F raw a.qcow2 2M"],
    &["qemu-img create -f qcow2 b.qcow2 1M", "qemu-img create -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 2M"],
    &["qemu-img create -f qcow2 a.qcow2 1M", "qemu-img snapshot -c first a.qcow2", "qemu-img snapshot -c 2nd a.qcow2"],
    &[
        "qemu-img create -f qcow2 a.qcow2 1M",
        "qemu-img bitmap --add -g 512 a.qcow2 on",
        "qemu-img bitmap --add --disable a.qcow2 off",
    ],
    &[
        "qemu-img create -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 a.qcow2 1M",
    ],
];

#[test]
fn info_is_qemus() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
        println!("skipped: qemu-img is missing");
        return;
    }
    for commands in IMAGES {
        let folder = tempfile::tempdir().unwrap();
        for command in commands {
            qemu(folder.path(), command);
        }
        let path = folder.path().join("a.qcow2");
        let theirs: Value =
            serde_json::from_str(&qemu(folder.path(), &format!("qemu-img info --output=json {}", path.display())))
                .unwrap();
        let ours = serde_json::to_value(read(&path)).unwrap();
        assert_eq!(ours, theirs, "{commands:?}");
    }
}

fn read(path: &Path) -> FileImageInfo {
    let storage = FileStorage::open(path, FileAccess::Read).unwrap();
    describe(&Image::open(storage, OpenOptions::default().read_only().metadata_only()).unwrap()).unwrap()
}

fn qemu(folder: &Path, line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
