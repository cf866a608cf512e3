//! `snapshot` and what reads a snapshot's disk: as qemu-img does it, where it stands in for qemu-img, and beyond that.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Folder, check_clean, open, qemu_is_here, qemu_read, read_all, succeed};
use qcowkit_core::format::Name;
use qcowkit_core::image::{NewSnapshot, OpenOptions, SnapshotSelector};
use serde_json::Value;

/// What a program printed on both streams, and its exit code.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

fn said(command: &mut Command, folder: &Path, words: &[&str]) -> Said {
    let done = command.args(words).current_dir(folder).env("TZ", "UTC").stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { out: without_dates(&text(&done.stdout)), err: text(&done.stderr), code: done.status.code() }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_qcowkit"))
}

/// qcowkit by its own name.
fn own(folder: &Path, words: &[&str]) -> Said {
    said(&mut program(), folder, words)
}

fn does(folder: &Path, words: &[&str]) -> String {
    let done = own(folder, words);
    assert_eq!(done.code, Some(0), "{words:?}: {}{}", done.out, done.err);
    done.out
}

fn refuses(folder: &Path, words: &[&str], why: &str) {
    let done = own(folder, words);
    assert_ne!(done.code, Some(0), "{words:?}: {}", done.out);
    assert!(done.err.contains(why), "{words:?}: {}", done.err);
}

/// The time of a snapshot is that of the clock: `2026-11-22 10:18:47` becomes `DATE`.
fn without_dates(text: &str) -> String {
    let pattern = b"dddd-dd-dd dd:dd:dd";
    let bytes = text.as_bytes();
    let is_date = |at: usize| {
        bytes.get(at..at + pattern.len()).is_some_and(|part| {
            part.iter().zip(pattern).all(|(byte, wanted)| match wanted {
                b'd' => byte.is_ascii_digit(),
                other => byte == other,
            })
        })
    };
    let (mut result, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if is_date(at) {
            result.extend(b"DATE");
            at += pattern.len();
        } else {
            result.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(result).unwrap()
}

fn io(folder: &Path, file: &str, commands: &[&str]) {
    let mut words: Vec<&str> = Vec::new();
    commands.iter().for_each(|command| words.extend(["-c", command]));
    words.push(file);
    let done = said(&mut Command::new("qemu-io"), folder, &words);
    assert!(done.code == Some(0) && !done.out.contains("failed"), "{commands:?}: {}{}", done.out, done.err);
}

/// Cut into words; a word in quotes keeps its spaces or is empty.
fn words(line: &str) -> Vec<&str> {
    let part =
        |(n, part): (usize, &'static str)| if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() };
    let line: &'static str = Box::leak(line.to_owned().into_boxed_str());
    line.split('\'').enumerate().flat_map(part).collect()
}

#[test]
fn as_a_stand_in_it_does_and_says_what_qemu_img_does_and_says() {
    if !qemu_is_here() {
        return;
    }
    let folders = [Folder::new(), Folder::new()];
    for folder in &folders {
        let base = folder.path("");
        for line in [
            "create -q -f qcow2 a.qcow2 64M",
            "create -q -f qcow2 -o data_file=d.raw d.qcow2 1M",
            "create -q -f qcow2 -o refcount_bits=1 narrow.qcow2 1M",
            "create -q -f qcow2 marked.qcow2 1M",
            "snapshot -c s marked.qcow2",
            "bitmap --add marked.qcow2 b",
            "create -q -f qcow2 -o compat=0.10,cluster_size=512 v2.qcow2 1M",
        ] {
            assert_eq!(said(&mut Command::new("qemu-img"), &base, &words(line)).code, Some(0), "{line}");
        }
        fs::write(base.join("raw"), vec![1; 65536]).unwrap();
        io(&base, "a.qcow2", &["write -P 1 0 3M"]);
        io(&base, "v2.qcow2", &["write -P 1 0 300k"]);
        io(&base, "narrow.qcow2", &["write 0 64k"]);
    }
    let long = "n".repeat(300);
    let lines = [
        "snapshot a.qcow2",
        "snapshot -q -c q a.qcow2",
        "snapshot -c q a.qcow2",
        "snapshot -c 1 a.qcow2",
        "snapshot -c '' a.qcow2",
        "snapshot -c 'two words' a.qcow2",
        &format!("snapshot -c {long} a.qcow2"),
        "snapshot -l a.qcow2",
        "snapshot --list -U a.qcow2",
        "snapshot -q a.qcow2",
        "snapshot -f qcow2 a.qcow2",
        "snapshot -U -c x a.qcow2",
        "snapshot -l -l a.qcow2",
        "snapshot -c x -d x a.qcow2",
        "snapshot -c x",
        "snapshot -l a.qcow2 v2.qcow2",
        "snapshot -l nothing",
        "snapshot -f bogus -l a.qcow2",
        "snapshot -d 2 a.qcow2",
        "snapshot -d zz a.qcow2",
        "snapshot -a zz a.qcow2",
        "snapshot -a 1 a.qcow2",
        "snapshot -a 'two words' a.qcow2",
        "snapshot -d q a.qcow2",
        "snapshot -d '' a.qcow2",
        "snapshot -l a.qcow2",
        "snapshot --image-opts -c io driver=qcow2,file.filename=a.qcow2",
        "snapshot --image-opts -l driver=qcow2,file.filename=a.qcow2",
        "snapshot -f raw -l raw",
        "snapshot -f raw -c x raw",
        "snapshot -f raw -a x raw",
        "snapshot -f raw -d x raw",
        "snapshot -c x d.qcow2",
        "snapshot -a x d.qcow2",
        "snapshot -d x d.qcow2",
        "snapshot -c x narrow.qcow2",
        "snapshot -a s marked.qcow2",
        "snapshot -c t marked.qcow2",
        "snapshot -d s marked.qcow2",
        "snapshot -c old v2.qcow2",
        "snapshot -c new v2.qcow2",
        "snapshot -a 1 v2.qcow2",
        "snapshot -l v2.qcow2",
        "convert -l nosuch a.qcow2 o.raw",
        "convert -l snapshot.id=7 a.qcow2 o.raw",
        "convert -l snapshot.name=q,snapshot.id=7 a.qcow2 o.raw",
        "convert -l q a.qcow2 v2.qcow2 o.raw",
        "convert -l q -f raw raw o.raw",
        "convert -l q a.qcow2 q.raw",
        "convert -l snapshot.id=3 -O qcow2 a.qcow2 three.qcow2",
        "convert -l snapshot.name=q,snapshot.id=2 a.qcow2 two.raw",
        "compare q.raw two.raw",
        "info v2.qcow2 -f raw",
    ];
    for line in lines {
        let [qemus, ours] = &folders;
        let qemu = said(&mut Command::new("qemu-img"), &qemus.path(""), &words(line));
        let us = said(program().arg0("qemu-img"), &ours.path(""), &words(line));
        assert_eq!(us, qemu, "qemu-img {line}");
    }
    for folder in &folders {
        for image in ["a.qcow2", "v2.qcow2", "marked.qcow2"] {
            check_clean(&folder.path(image), image);
        }
    }
    for file in ["q.raw", "two.raw"] {
        assert!(fs::read(folders[0].path(file)).unwrap() == fs::read(folders[1].path(file)).unwrap(), "{file}");
    }
}

/// Two snapshots named alike, one of a larger disk.
fn several(folder: &Folder) {
    let base = folder.path("");
    does(&base, &["create", "-q", "-f", "qcow2", "a.qcow2", "4M"]);
    for (byte, name) in [(1, "base"), (2, "twice"), (3, "twice")] {
        does(&base, &["io", "-c", &format!("write -P {byte} 1M 512k"), "a.qcow2"]);
        does(&base, &["snapshot", "-c", name, "a.qcow2"]);
    }
    does(&base, &["resize", "-q", "a.qcow2", "8M"]);
    does(&base, &["io", "-c", "write -P 4 6M 1M", "a.qcow2"]);
    does(&base, &["snapshot", "-c", "large", "a.qcow2"]);
    does(&base, &["resize", "-q", "--shrink", "a.qcow2", "1M"]);
}

#[test]
fn ids_sizes_and_json() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let base = folder.path("");
    several(&folder);
    let listed: Value = serde_json::from_str(&does(&base, &["snapshot", "--output=json", "a.qcow2"])).unwrap();
    let sizes: Vec<_> = listed.as_array().unwrap().iter().map(|s| s["disk-size"].as_u64().unwrap() >> 20).collect();
    assert_eq!(sizes, [4, 4, 4, 8]);
    let info: Value = serde_json::from_str(&succeed(
        "qemu-img",
        &["info".as_ref(), "--output=json".as_ref(), folder.path("a.qcow2").as_os_str()],
    ))
    .unwrap();
    for (ours, theirs) in listed.as_array().unwrap().iter().zip(info["snapshots"].as_array().unwrap()) {
        for (key, value) in theirs.as_object().unwrap() {
            assert_eq!(&ours[key], value, "{key}");
        }
    }
    refuses(&base, &["snapshot", "-d", "twice", "a.qcow2"], "by its ID (2, 3)");
    does(&base, &["snapshot", "-d", "2", "a.qcow2"]);
    does(&base, &["snapshot", "-d", "twice", "a.qcow2"]);
    refuses(&base, &["snapshot", "-d", "twice", "a.qcow2"], "there is no snapshot");
    refuses(&base, &["snapshot", "-c", &"n".repeat(256), "a.qcow2"], "255");
    refuses(&base, &["snapshot", "-c", "x", "--output=json", "a.qcow2"], "--output");
    // QEMU takes the size that the disk has now (and would cut this snapshot's off); the snapshot has its own.
    assert_eq!(qemu_read(&folder.path("a.qcow2"), Some("large")).len(), 1 << 20);
    does(&base, &["convert", "--snapshot", "large", "a.qcow2", "large.raw"]);
    let large = fs::read(folder.path("large.raw")).unwrap();
    assert_eq!(large.len(), 8 << 20);
    assert!(large[6 << 20..7 << 20].iter().all(|&byte| byte == 4) && large[1 << 20] == 3);
    does(&base, &["snapshot", "-a", "large", "a.qcow2"]);
    check_clean(&folder.path("a.qcow2"), "applied");
    assert!(qemu_read(&folder.path("a.qcow2"), None) == large);
}

#[test]
fn every_reader_can_be_given_a_snapshot() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let base = folder.path("");
    several(&folder);
    for (snapshot, name) in [("base", "base.raw"), ("snapshot.id=2", "two.raw"), ("large", "large.raw")] {
        does(&base, &["convert", "-l", snapshot, "a.qcow2", name]);
        assert_eq!(
            does(&base, &["compare", "--a-snapshot", snapshot, "-F", "raw", "a.qcow2", name]),
            "Images are identical.\n"
        );
        assert_eq!(
            does(&base, &["compare", "-f", "raw", "--b-snapshot", snapshot, name, "a.qcow2"]),
            "Images are identical.\n"
        );
    }
    let two = own(&base, &["compare", "--snapshot", "base", "--b-snapshot", "snapshot.id=2", "a.qcow2", "a.qcow2"]);
    assert_eq!((two.out.as_str(), two.code), ("Content mismatch at offset 1048576!\n", Some(1)));
    let map: Value =
        serde_json::from_str(&does(&base, &["map", "--snapshot", "large", "--output=json", "a.qcow2"])).unwrap();
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["data"] == true)
        .map(|row| (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(1 << 20, 512 << 10), (6 << 20, 1 << 20)]);
    does(&base, &["io", "-l", "large", "-c", "read -P 4 6M 1M", "-c", "read -P 3 1M 512k", "a.qcow2"]);
    let written = own(&base, &["io", "-l", "large", "-c", "write 0 64k", "a.qcow2"]);
    assert_ne!(written.code, Some(0));
    refuses(&base, &["map", "--snapshot", "nosuch", "a.qcow2"], "there is no snapshot 'nosuch'");
    refuses(&base, &["map", "--snapshot", "base", "-f", "raw", "base.raw"], "internal snapshots of a raw file");
    refuses(&base, &["map", "--snapshot", "snapshot.foo=1", "a.qcow2"], "Invalid parameter 'snapshot.foo'");
    check_clean(&folder.path("a.qcow2"), "only read");
}

/// A chain: the snapshot is the overlay's, what lies below shows through it as it is.
#[test]
fn a_snapshot_over_a_backing_file() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let base = folder.path("");
    does(&base, &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    does(&base, &["io", "-c", "write -P 1 0 1M", "-c", "write -P 2 0 64k", "base.qcow2"]);
    does(&base, &["snapshot", "-c", "s", "base.qcow2"]);
    does(&base, &["io", "-c", "write -P 3 0 64k", "base.qcow2"]);
    does(&base, &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    does(&base, &["snapshot", "-c", "s", "top.qcow2"]);
    does(&base, &["io", "-c", "write -P 4 0 128k", "-c", "discard 512k 64k", "top.qcow2"]);
    let read = qemu_read(&folder.path("top.qcow2"), Some("s"));
    assert_eq!((read[0], read[1 << 19]), (3, 1));
    does(&base, &["convert", "-l", "s", "top.qcow2", "s.raw"]);
    assert!(fs::read(folder.path("s.raw")).unwrap() == read);
}

/// VM state beyond the end of the disk: QEMU wrote it, we take the snapshot, QEMU reads it back from there.
#[test]
fn vm_state_goes_with_the_snapshot() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (base, path) = (folder.path(""), folder.path("a.qcow2"));
    succeed(
        "qemu-img",
        &["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str(), "64M".as_ref()],
    );
    io(&base, "a.qcow2", &["write -P 1 0 1M", "write -b -P 2 0 300k"]);
    let mut image = open(&path, OpenOptions::default());
    let new = NewSnapshot { name: "vm".into(), vm_state_size: 300 << 10, ..NewSnapshot::default() };
    image.create_snapshot(&new).unwrap();
    image.close().unwrap();
    check_clean(&path, "taken");
    // Dropped from the disk in use, as QEMU drops it; kept in the snapshot while others come and go.
    io(&base, "a.qcow2", &["read -b -P 0 0 300k", "write -P 3 0 1M"]);
    does(&base, &["snapshot", "-c", "disk", "a.qcow2"]);
    does(&base, &["snapshot", "-a", "disk", "a.qcow2"]);
    does(&base, &["snapshot", "-d", "disk", "a.qcow2"]);
    check_clean(&path, "others came and went");
    let list = does(&base, &["snapshot", "a.qcow2"]);
    assert!(list.contains("300 KiB"), "{list}");
    does(&base, &["snapshot", "-a", "vm", "a.qcow2"]);
    check_clean(&path, "applied");
    io(&base, "a.qcow2", &["read -P 1 0 1M", "read -b -P 2 0 300k"]);
    does(&base, &["snapshot", "-d", "vm", "a.qcow2"]);
    check_clean(&path, "deleted");
    io(&base, "a.qcow2", &["read -P 1 0 1M", "read -b -P 2 0 300k"]);
}

/// A view of an image that is in use elsewhere for reading, and of one whose snapshots have names in other encodings.
#[test]
fn names_are_bytes() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (base, path) = (folder.path(""), folder.path("a.qcow2"));
    does(&base, &["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    let mut image = open(&path, OpenOptions::default());
    let name = Name::new(&b"caf\xe9"[..]);
    image.write_at(0, &[7; 512]).unwrap();
    image.create_snapshot(&NewSnapshot { name: name.clone(), ..NewSnapshot::default() }).unwrap();
    image.write_at(0, &[8; 512]).unwrap();
    image.close().unwrap();
    let options = OpenOptions::default().of_snapshot(SnapshotSelector::Name(name.clone()));
    assert_eq!(read_all(&mut open(&path, options.read_only()))[0], 7);
    use std::os::unix::ffi::OsStrExt;
    let word = std::ffi::OsStr::from_bytes(name.as_bytes());
    let done = program().args(["snapshot", "-d"]).arg(word).arg(&path).output().unwrap();
    assert!(done.status.success());
    check_clean(&path, "deleted");
}
