//! The program is killed, as by `kill -9`, at each of its calls that change a file, in the middle of a write if it is one:
//! sources are untouched, images open, a check finds leaks at most, the disk shows what it showed, and what was begun can
//! be done again.
#![cfg(all(feature = "cli", target_os = "linux", debug_assertions))]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Folder, Rng, assert_same, open, read_all, try_open};
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{MemoryStorage, ReadStorage};

const SIZE: u64 = 1 << 20;
const CLUSTER: u64 = 4096;
const SIGKILL: i32 = 9;

/// How a run of the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Done,
}

/// Runs the program with a line of words; it dies at its `nth` call that changes a file.
fn run(folder: &Folder, line: &str, nth: Option<u64>) -> End {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qcowkit"));
    command.args(line.split_whitespace()).current_dir(folder.path("")).stdin(Stdio::null());
    if let Some(nth) = nth {
        command.env("QCOWKIT_DIE_AT", nth.to_string());
    }
    let done = command.output().unwrap();
    match (done.status.signal(), done.status.success()) {
        (Some(SIGKILL), _) => End::Killed,
        (None, true) => End::Done,
        _ => panic!("{line}, call {nth:?}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr)),
    }
}

/// Puts the files there, kills the program at one call after another, and has each state judged; gives how many there
/// were. Then what was begun is done again, and judged again.
fn each_kill(files: &[(&str, Vec<u8>)], line: &str, again: &str, judge: impl Fn(&Folder, End)) -> u64 {
    let folder = Folder::in_memory();
    let mut nth = 1;
    let mut kills = 0;
    loop {
        // What the last run left is gone.
        for entry in std::fs::read_dir(folder.path("")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, bytes) in files {
            std::fs::write(folder.path(name), bytes).unwrap();
        }
        let end = run(&folder, line, Some(nth));
        println!("{line}: call {nth}: {end:?}");
        judge(&folder, end);
        if end == End::Done {
            assert!(kills > 0, "{line}: it was never killed");
            return kills;
        }
        kills += 1;
        run(&folder, again, None);
        judge(&folder, End::Done);
        // Every call at first, then fewer and fewer.
        nth += 1 + nth / 40;
    }
}

/// A check of an image finds leaks at most.
fn check_file(folder: &Folder, name: &str) {
    let storage = MemoryStorage::from_bytes(&std::fs::read(folder.path(name)).unwrap());
    let report = check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{name}: {:#?}", report.findings);
}

fn contents(folder: &Folder, name: &str) -> Vec<u8> {
    read_all(&mut open(&folder.path(name), OpenOptions::default().read_only()))
}

fn create(backing: Option<&str>) -> CreateOptions {
    CreateOptions {
        cluster_size: CLUSTER,
        backing_file: backing.map(Into::into),
        backing_format: backing.map(|_| "qcow2".into()),
        ..CreateOptions::default()
    }
}

/// An image with data, zeros, holes; without a backing file what it does not have is zeros.
fn image(create: &CreateOptions, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let storage = Image::create(MemoryStorage::new(), SIZE, create).unwrap().close().unwrap();
    let mut image = Image::open(storage, OpenOptions::default().metadata_only()).unwrap();
    for n in 0..24 {
        let at = rng.below(SIZE / CLUSTER) * CLUSTER;
        let length = ((rng.below(6) + 1) * CLUSTER).min(SIZE - at);
        match n % 8 {
            6 => image.write_zeroes(at, length, true).unwrap(),
            7 if create.refcount_bits > 1 => image.write_compressed(at, &vec![n as u8; length as usize]).unwrap(),
            _ => image.write_at(at, &rng.bytes(length as usize)).unwrap(),
        }
    }
    image.close().unwrap().to_vec().unwrap()
}

/// The image `top` over `base`, and what it shows.
fn chain(seed: u64) -> (Vec<(&'static str, Vec<u8>)>, Vec<u8>) {
    let files = vec![("top", image(&create(Some("base")), seed)), ("base", image(&create(None), seed + 1))];
    let shown = shown(&files, "top");
    (files, shown)
}

fn shown(files: &[(&str, Vec<u8>)], name: &str) -> Vec<u8> {
    let folder = Folder::in_memory();
    for (name, bytes) in files {
        std::fs::write(folder.path(name), bytes).unwrap();
    }
    contents(&folder, name)
}

fn same_file(folder: &Folder, name: &str, bytes: &[u8]) {
    assert_same(&std::fs::read(folder.path(name)).unwrap(), bytes, name);
}

#[test]
fn convert_leaves_its_sources_alone_and_no_target_that_lies() {
    let (files, shown) = chain(1);
    let line = "convert -O qcow2 -o cluster_size=4096 top new";
    let kills = each_kill(&files, line, line, |folder, end| {
        for (name, bytes) in &files {
            same_file(folder, name, bytes);
        }
        let new = folder.path("new");
        if end == End::Done {
            check_file(folder, "new");
            assert_same(&contents(folder, "new"), &shown, "the target");
        } else if new.exists() && is_an_image(&new) {
            check_file(folder, "new");
            each_cluster_is_right_or_empty(&contents(folder, "new"), &shown);
        }
    });
    assert!(kills > 20, "{kills}");
}

fn is_an_image(path: &Path) -> bool {
    try_open(path, OpenOptions::default().read_only()).is_ok()
}

/// What is there is the source's.
fn each_cluster_is_right_or_empty(got: &[u8], expected: &[u8]) {
    let wrong = got
        .chunks(CLUSTER as usize)
        .zip(expected.chunks(CLUSTER as usize))
        .position(|(got, expected)| got != expected && got.iter().any(|byte| *byte != 0));
    assert_eq!(wrong, None, "a cluster that is neither the source's nor empty");
}

#[test]
fn commit_shows_the_same_disk_at_every_moment() {
    let (files, shown) = chain(3);
    let line = "commit top";
    let kills = each_kill(&files, line, line, |folder, end| {
        check_file(folder, "top");
        check_file(folder, "base");
        assert_same(&contents(folder, "top"), &shown, "the chain");
        if end == End::Done {
            assert_same(&contents(folder, "base"), &shown, "the base");
        }
    });
    assert!(kills > 15, "{kills}");
}

#[test]
fn rebase_shows_the_same_disk_at_every_moment() {
    let (mut files, shown) = chain(5);
    files.push(("other", image(&create(None), 9)));
    let line = "rebase -b other -F qcow2 top";
    let kills = each_kill(&files, line, line, |folder, _| {
        check_file(folder, "top");
        for (name, bytes) in &files[1..] {
            same_file(folder, name, bytes);
        }
        assert_same(&contents(folder, "top"), &shown, "the image");
    });
    assert!(kills > 10, "{kills}");
}

#[test]
fn resize_gives_the_old_or_the_new_size() {
    let files = [("top", image(&create(None), 7))];
    let before = shown(&files, "top");
    for (line, size) in [
        ("resize --preallocation=metadata top 40M", 40 << 20),
        ("resize --preallocation=full top 2M", 2 << 20),
        ("resize --shrink top 300K", 300 << 10),
    ] {
        each_kill(&files, line, line, |folder, end| {
            check_file(folder, "top");
            let now = contents(folder, "top");
            assert!(now.len() == size || end == End::Killed && now.len() == before.len(), "{} bytes", now.len());
            let common = if size < before.len() { size } else { before.len() };
            assert_same(&now[..common], &before[..common], "what both sizes have");
            // Behind a smaller size the end may be gone before the size says so; never is it anything else.
            each_cluster_is_right_or_empty(&now[common..], &[&before[common..], &vec![0; now.len()][..]].concat());
        });
    }
}

#[test]
fn amend_shows_the_same_disk_at_every_moment() {
    let files = [("top", image(&create(None), 11))];
    let before = shown(&files, "top");
    for line in ["amend -f qcow2 -o compat=0.10 top", "amend -f qcow2 -o lazy_refcounts=on top"] {
        each_kill(&files, line, line, |folder, _| {
            check_file(folder, "top");
            assert_same(&contents(folder, "top"), &before, "the disk");
        });
    }
}

/// Refcounts and flags of an image with a snapshot, wrong by chance; what can be read can be read at every moment, and a
/// second repair finishes.
#[test]
fn repair_can_be_killed_and_done_again() {
    let options = create(None);
    let storage = MemoryStorage::from_bytes(&image(&options, 13));
    let mut made = Image::open(&storage, OpenOptions::default()).unwrap();
    made.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    made.write_at(100_000, &[9; 200_000]).unwrap();
    made.close().unwrap();
    let mut bytes = storage.to_vec().unwrap();
    let header = read_header(&storage).unwrap().header;
    let mut block = [0; 8];
    storage.read_at(header.refcount_table_offset, &mut block).unwrap();
    let block = u64::from_be_bytes(block) as usize;
    let mut rng = Rng::new(17);
    for _ in 0..60 {
        // Refcounts of 16 bits: too low, too high.
        bytes[block + rng.below(400) as usize * 2 + 1] = rng.below(4) as u8;
    }
    let files = [("top", bytes)];
    let before = shown(&files, "top");
    for line in ["check -q -r all top", "check -q -r all --undo log top"] {
        each_kill(&files, line, "check -q -r all top", |folder, end| {
            assert_same(&contents(folder, "top"), &before, "the disk");
            if end == End::Done {
                let storage = MemoryStorage::from_bytes(&std::fs::read(folder.path("top")).unwrap());
                assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
            }
        });
    }
}
