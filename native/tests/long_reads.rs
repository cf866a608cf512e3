//! Long reads with the help of other threads give what short ones give, errors too.
#![cfg(unix)]

mod common;

use common::{Folder, Rng};
use qcowkit::codec::NativeCodecs;
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::shared::SharedImage;
use qcowkit_core::image::{Content, CreateOptions, Image, OpenOptions};
use qcowkit_core::storage::Storage;
use qcowkit_core::{ErrorKind, Structure};

const SIZE: u64 = 24 << 20;

fn options() -> OpenOptions {
    OpenOptions { codecs: std::sync::Arc::new(NativeCodecs), ..OpenOptions::default() }
}

/// Clusters of data, compressed, zeroed, and of nothing, in no order.
fn make(folder: &Folder, name: &str, create: &CreateOptions) -> Image<FileStorage> {
    let file = FileStorage::open(folder.path(name), FileAccess::CreateNew).unwrap();
    let mut image = Image::create_with(file, SIZE, create, options()).unwrap();
    image.storage().set_barriers(false);
    let mut rng = Rng::new(5);
    let cluster = image.geometry().cluster_size();
    for start in (0..SIZE / cluster).map(|n| n * cluster) {
        let words: Vec<u8> = (0..cluster / 8).flat_map(|n| (start + n * 977 % 4096).to_le_bytes()).collect();
        match rng.below(5) {
            0 | 1 => image.write_at(start, &words).unwrap(),
            2 => image.write_compressed(start, &words).unwrap(),
            3 => image.write_zeroes(start, cluster, true).unwrap(),
            _ => {}
        }
    }
    image.flush().unwrap();
    image
}

#[test]
fn they_give_what_short_reads_give() {
    let folder = Folder::new();
    for (name, create) in [
        ("small.qcow2", CreateOptions { cluster_size: 4096, ..CreateOptions::default() }),
        ("usual.qcow2", CreateOptions::default()),
        ("large.qcow2", CreateOptions { cluster_size: 2 << 20, ..CreateOptions::default() }),
    ] {
        let image = SharedImage::new(make(&folder, name, &create));
        let mut whole = vec![0xa5; SIZE as usize];
        for (n, piece) in whole.chunks_mut(4096).enumerate() {
            image.read_at(n as u64 * 4096, piece).unwrap();
        }
        let mut rng = Rng::new(9);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (image, whole, seed) = (&image, &whole, rng.below(1000));
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..40 {
                        let offset = rng.below(SIZE);
                        let length = (rng.below(5 << 20) + 1).min(SIZE - offset);
                        let mut read = vec![0x5a; length as usize];
                        image.read_at_together(offset, &mut read).unwrap();
                        let right = &whole[offset as usize..(offset + length) as usize];
                        assert!(read == right, "{name}: {length} bytes at {offset}");
                    }
                });
            }
        });
        let mut beyond = vec![0; 1 << 20];
        let error = image.read_at_together(SIZE - 4096, &mut beyond).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutOfRange), "{error}");
    }
}

#[test]
fn several_places_are_filled_as_one() {
    let folder = Folder::new();
    let cluster = 65536;
    let image = SharedImage::new(make(&folder, "places.qcow2", &CreateOptions::default()));
    let mut whole = vec![0; SIZE as usize];
    image.read_at(0, &mut whole).unwrap();
    let (mut filled, mut cut) = (0, 0);
    let mut rng = Rng::new(11);
    for round in 0..300 {
        let each = if round % 2 == 0 { cluster * (1 + rng.below(2) as usize) } else { 1 + rng.below(100_000) as usize };
        let unit = if round % 2 == 0 { cluster as u64 } else { 1 };
        let places = 1 + rng.below(12) as usize;
        let last = SIZE - (each * places) as u64;
        let offset = rng.below(last / unit + 1) * unit;
        let mut memory = vec![0x5a; each * places];
        let done = image.read_places_together(offset, memory.chunks_mut(each).collect()).unwrap();
        if done {
            assert!(memory == whole[offset as usize..offset as usize + memory.len()], "{each} x {places} at {offset}");
            filled += 1;
        } else {
            assert!(round % 2 == 1, "whole clusters can always be filled");
            assert!(memory.iter().all(|&byte| byte == 0x5a));
            cut += 1;
        }
    }
    assert!(filled > 150 && cut > 50, "{filled} filled, {cut} cut");
    assert!(image.read_places_together(0, Vec::new()).unwrap());
    let mut beyond = vec![0; 8192];
    let error = image.read_places_together(SIZE - 4096, beyond.chunks_mut(4096).collect()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfRange), "{error}");
}

#[test]
fn of_several_errors_the_first_is_told() {
    let folder = Folder::new();
    let mut image = make(&folder, "broken.qcow2", &CreateOptions::default());
    let packed: Vec<_> = image
        .map(0, SIZE)
        .unwrap()
        .into_iter()
        .filter_map(|extent| match extent.content {
            Content::Compressed { range, .. } => Some((extent.guest_offset, range)),
            Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => None,
        })
        .collect();
    assert!(packed.len() > 20);
    for (_, range) in &packed[3..] {
        // A block of a type that does not exist.
        image.storage().write_at(range.offset.get(), &[0xff; 64]).unwrap();
    }
    let image = SharedImage::new(image);
    for _ in 0..20 {
        let mut into = vec![0; SIZE as usize];
        let error = image.read_at_together(0, &mut into).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Codec(_)), "{error}");
        assert_eq!(error.site().structure, Some(Structure::CompressedCluster));
        assert_eq!(error.site().guest_offset, Some(packed[3].0));
    }
    // What lies before it is read.
    let mut into = vec![0; packed[3].0 as usize];
    image.read_at_together(0, &mut into).unwrap();
}

#[test]
fn short_reads_in_a_row_give_the_same_while_clusters_are_replaced() {
    let folder = Folder::new();
    let mut image = make(&folder, "row.qcow2", &CreateOptions { cluster_size: 16384, ..CreateOptions::default() });
    let half = SIZE / 2;
    let mut whole = vec![0; SIZE as usize];
    image.read_at(0, &mut whole).unwrap();
    let image = SharedImage::new(image);
    std::thread::scope(|scope| {
        // One writes in the upper half: clusters that were compressed are released, and others take their places.
        let writer = scope.spawn(|| {
            let mut rng = Rng::new(3);
            for _ in 0..400 {
                let offset = half + rng.below(half - 70_000);
                let length = rng.below(70_000) as usize;
                image.write_at(offset, &rng.bytes(length)).unwrap();
                image.discard(half + rng.below(half - 70_000), 65536).unwrap();
            }
        });
        for step in [4096_usize, 16384, 65536, 100_000] {
            let (image, whole) = (&image, &whole);
            scope.spawn(move || {
                let mut piece = vec![0; step];
                for _ in 0..3 {
                    let mut at = 0;
                    while at < half as usize {
                        let piece = &mut piece[..step.min(half as usize - at)];
                        image.read_at_together(at as u64, piece).unwrap();
                        assert!(piece == &whole[at..at + piece.len()], "{step} bytes at {at}");
                        at += piece.len();
                    }
                }
            });
        }
        writer.join().unwrap();
    });
    // What was replaced is read as it is now.
    let mut now = vec![0; half as usize];
    image.read_at(half, &mut now).unwrap();
    let mut row = vec![0; half as usize];
    for (n, piece) in row.chunks_mut(16384).enumerate() {
        image.read_at_together(half + n as u64 * 16384, piece).unwrap();
    }
    assert!(now == row);
}
