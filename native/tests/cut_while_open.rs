//! A file that somebody else cuts short while the image is open: reads give what is left or an error, writes are refused,
//! nothing panics, and what is left is not made worse.
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;

use common::Folder;
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{ReadStorage, Storage};

const SIZE: u64 = 200 << 10;
const STEP: u64 = 512;

type Pieces = Vec<Option<Vec<u8>>>;

fn build(path: &Path, cluster_size: u64, extended_l2: bool) {
    let create = CreateOptions { cluster_size, extended_l2, ..CreateOptions::default() };
    let storage = FileStorage::open(path, FileAccess::CreateNew).unwrap();
    let mut image = Image::create(storage, SIZE, &create).unwrap();
    image.write_at(0, &[1; 9000]).unwrap();
    image.write_compressed(32_768, &[2; 16_384]).unwrap();
    // With the smallest clusters this takes a second refcount block.
    image.write_at(70_000, &[3; 79_000]).unwrap();
    image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    image.write_at(1000, &[4; 3000]).unwrap();
    image.write_at(150_000, &[5; 10_000]).unwrap();
    image.close().unwrap();
}

fn open(path: &Path, access: FileAccess) -> Option<Image<FileStorage>> {
    let options = OpenOptions::default();
    let options = if access == FileAccess::Read { options.read_only() } else { options };
    Image::open(FileStorage::open(path, access).unwrap(), options).ok()
}

/// The disk by pieces; `None` for what cannot be read.
fn pieces(image: &mut Image<FileStorage>) -> Pieces {
    let piece = |n| {
        let mut bytes = vec![0; STEP as usize];
        image.read_at(n * STEP, &mut bytes).ok().map(|()| bytes)
    };
    (0..SIZE / STEP).map(piece).collect()
}

/// The same through a new opening; `None` if it does not open.
fn looked_at(path: &Path) -> Option<Pieces> {
    open(path, FileAccess::Read).map(|mut image| pieces(&mut image))
}

fn is_left(now: Option<&Vec<u8>>, whole: Option<&Vec<u8>>) -> bool {
    let (Some(now), Some(whole)) = (now, whole) else { return now.is_none() };
    now.iter().zip(whole).all(|(now, whole)| *now == 0 || now == whole)
}

/// How much is known in memory when the file is cut.
const SEEN: [&str; 3] = ["nothing", "all was read", "something was written"];

/// Makes so much known.
fn see(image: &mut Image<FileStorage>, seen: usize) {
    match seen {
        1 => drop(pieces(image)),
        2 => image.write_at(199 << 10, &[6; 512]).unwrap(),
        _ => {}
    }
}

fn cut_short(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_not_made_worse() {
    let folder = Folder::in_memory();
    let (mut written, mut refused) = (0, 0);
    for (kind, (cluster_size, extended)) in [(512, false), (4096, false), (16 << 10, true)].into_iter().enumerate() {
        let original = folder.path(&format!("original{kind}"));
        build(&original, cluster_size, extended);
        let length = fs::metadata(&original).unwrap().len();
        let whole = looked_at(&original).unwrap();
        let path = folder.path("cut");
        for (seen, step) in [(0, 2), (1, 2), (2, 1)] {
            for cut in (0..length).step_by(cluster_size as usize / step) {
                let what = format!("{cut} of {length} bytes, clusters of {cluster_size}, {}", SEEN[seen]);
                fs::copy(&original, &path).unwrap();
                let mut image = open(&path, FileAccess::Write).unwrap();
                see(&mut image, seen);
                cut_short(&path, cut);
                let left = looked_at(&path);

                let mut whole = whole.clone();
                if seen == 2 {
                    whole[398] = Some(vec![6; 512]);
                }
                let now = pieces(&mut image);
                let other = (0..whole.len()).find(|&n| !is_left(now[n].as_ref(), whole[n].as_ref()));
                assert_eq!(other, None, "{what}: a piece is another");

                let new = 20_000 / STEP as usize..25_000 / STEP as usize;
                let done = image.write_at(new.start as u64 * STEP, &vec![9; new.len() * STEP as usize]);
                if done.is_ok() {
                    let now = pieces(&mut image);
                    assert!(
                        new.clone().all(|n| now[n] == Some(vec![9; STEP as usize])),
                        "{what}: not what was written"
                    );
                }
                let closed = image.close().map(drop);
                if done.is_ok() && closed.is_ok() {
                    written += 1
                } else {
                    refused += 1
                }

                // What the file still showed to somebody else it shows now too.
                let later = looked_at(&path);
                if let Some(left) = left {
                    let later = later
                        .unwrap_or_else(|| panic!("{what}: it does not open: {done:?} {:?}", closed.clone().err()));
                    let right = |n: &usize| left[*n] == whole[*n] && !new.contains(n);
                    let lost: Vec<usize> = (0..whole.len()).filter(right).filter(|&n| later[n] != whole[n]).collect();
                    assert!(lost.is_empty(), "{what}: {lost:?} are lost: {done:?} {:?}", closed.clone().err());
                }
                // It can be looked at, whatever it is now.
                let storage = FileStorage::open(&path, FileAccess::Read).unwrap();
                if let Ok(header) = read_header(&storage) {
                    let _ = check(&storage, &header, &mut |_| ());
                }
            }
        }
    }
    // Nobody is told that something is durable in a file that somebody else has cut.
    assert!(written == 0 && refused > 1000, "{written} written, {refused} refused");
}

/// What was cut off is not told as zeros, and nothing more is written: neither tables nor the mark that an image is corrupt.
#[test]
fn a_file_that_is_cut_to_nothing_stays_empty() {
    let folder = Folder::in_memory();
    let original = folder.path("original");
    build(&original, 4096, false);
    let path = folder.path("cut");
    for (seen, known) in SEEN.into_iter().enumerate() {
        for cut in [0, 60, 4096] {
            let what = format!("{cut} bytes are left, {known}");
            fs::copy(&original, &path).unwrap();
            let mut image = open(&path, FileAccess::Write).unwrap();
            see(&mut image, seen);
            cut_short(&path, cut);
            let left = fs::read(&path).unwrap();
            let mut bytes = [0; 512];
            let error = image.read_at(70_144, &mut bytes).unwrap_err();
            assert!(error.to_string().contains("another program has made the file shorter"), "{what}: {error}");
            for offset in [70_144, 120 << 10] {
                assert!(image.write_at(offset, &[9; 4096]).is_err(), "{what}");
            }
            let _ = image.discard(0, SIZE);
            assert!(image.flush().is_err() || seen != 2, "{what}");
            drop(image.close());
            assert_eq!(fs::read(&path).unwrap(), left, "{what}");
        }
    }
}

/// Zeros behind the end are as good as ever where nothing was before: the last cluster need not be there as a whole.
#[test]
fn a_file_that_was_short_before_reads_as_zeros() {
    let folder = Folder::in_memory();
    let path = folder.path("short");
    build(&path, 4096, false);
    let length = fs::metadata(&path).unwrap().len();
    let whole = looked_at(&path).unwrap();
    for cut in [length - 512, length - 4096, length - 8192] {
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let mut image = open(&path, FileAccess::Write).unwrap();
        let now = pieces(&mut image);
        assert!((0..whole.len()).all(|n| is_left(now[n].as_ref(), whole[n].as_ref())), "{cut}");
        assert!(now.iter().all(Option::is_some), "{cut}");
        image.close().unwrap();
    }
    // And a file that is made shorter and longer again by whoever has it open.
    let disk = FileStorage::open(folder.path("other"), FileAccess::CreateNew).unwrap();
    disk.set_len(8192).unwrap();
    disk.set_len(100).unwrap();
    let mut bytes = [1; 512];
    disk.read_at(4096, &mut bytes).unwrap();
    assert_eq!((bytes, disk.len().unwrap()), ([0; 512], 100));
    disk.write_at(5000, &[2; 100]).unwrap();
    disk.barrier().unwrap();
    // A program that only looks is told as well.
    let looker = FileStorage::open(folder.path("other"), FileAccess::Read).unwrap();
    disk.set_len(10).unwrap();
    assert!(looker.read_at(5000, &mut bytes).is_err() && looker.len().is_err());
    looker.read_at(6000, &mut bytes).unwrap();
}
