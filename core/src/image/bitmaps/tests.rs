//! Bitmaps against a plain model, and what becomes of broken ones.

use std::format;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::format::{BitmapFlags, Extension};
use crate::image::{CreateOptions, OpenOptions};
use crate::operations::check;
use crate::storage::{MemoryStorage, ReadStorage};

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

fn sound(storage: &MemoryStorage, what: &str) {
    let header = crate::image::read_header(storage).unwrap();
    let report = check(storage, &header, &mut |_| ()).unwrap();
    assert!(report.is_clean(), "{what}: {report:?}");
}

/// A bitmap as a plain vector, one for each granule.
struct Plain {
    name: &'static str,
    granularity: u64,
    enabled: bool,
    bits: Vec<bool>,
}

impl Plain {
    fn mark(&mut self, offset: u64, length: u64) {
        if self.enabled && length > 0 {
            let end = (offset + length).div_ceil(self.granularity) as usize;
            let end = end.min(self.bits.len());
            self.bits[(offset / self.granularity) as usize..end].fill(true);
        }
    }

    fn dirty_bytes(&self, size: u64) -> u64 {
        (0u64..)
            .zip(&self.bits)
            .filter(|(_, dirty)| **dirty)
            .map(|(n, _)| ((n + 1) * self.granularity).min(size) - n * self.granularity)
            .sum()
    }
}

fn compare(image: &Image<MemoryStorage>, plain: &[Plain], when: &str) {
    let size = image.virtual_size();
    let all = image.bitmaps().unwrap();
    assert_eq!(all.len(), plain.len(), "{when}");
    for (summary, plain) in all.iter().zip(plain) {
        let found = (summary.name.as_str(), summary.granularity, summary.enabled, summary.in_use);
        assert_eq!(found, (plain.name, plain.granularity, plain.enabled, false), "{when}");
        assert_eq!(summary.dirty_bytes, Some(plain.dirty_bytes(size)), "{when}, {}", plain.name);
        let bits = image.bitmap_bits(plain.name).unwrap();
        for (n, &dirty) in (0u64..).zip(&plain.bits) {
            assert_eq!(bits.is_dirty(n * plain.granularity), dirty, "{when}, {} granule {n}", plain.name);
        }
    }
}

fn change_one(image: &mut Image<MemoryStorage>, plain: &mut Vec<Plain>, state: &mut u64, names: &[&'static str]) {
    let size = image.virtual_size();
    let pick = next(state) as usize % plain.len().max(1);
    match next(state) % 6 {
        0 if plain.len() < names.len() => {
            let name = *names.iter().find(|name| plain.iter().all(|plain| plain.name != **name)).unwrap();
            let granularity = 512 << (next(state) % 5);
            image.add_bitmap(name, Some(granularity)).unwrap();
            let bits = vec![false; size.div_ceil(granularity) as usize];
            plain.push(Plain { name, granularity, enabled: true, bits });
        }
        _ if plain.is_empty() => {}
        1 if next(state).is_multiple_of(3) => {
            image.remove_bitmap(plain[pick].name).unwrap();
            plain.remove(pick);
        }
        2 => {
            image.clear_bitmap(plain[pick].name).unwrap();
            plain[pick].bits.fill(false);
        }
        3 => {
            plain[pick].enabled = !next(state).is_multiple_of(3);
            image.enable_bitmap(plain[pick].name, plain[pick].enabled).unwrap();
        }
        _ => {
            let other = next(state) as usize % plain.len();
            let bits = image.bitmap_bits(plain[other].name).unwrap();
            image.merge_into_bitmap(plain[pick].name, &bits).unwrap();
            let (granularity, dirty) = (plain[other].granularity, plain[other].bits.clone());
            let enabled = std::mem::replace(&mut plain[pick].enabled, true);
            for (n, _) in (0u64..).zip(&dirty).filter(|(_, dirty)| **dirty) {
                plain[pick].mark(n * granularity, granularity.min(size - n * granularity));
            }
            plain[pick].enabled = enabled;
        }
    }
}

#[test]
fn bitmaps_are_those_of_a_plain_model() {
    const NAMES: [&str; 4] = ["b0", "second", "a longer name for a bitmap", "x"];
    for seed in 0..30u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed_0123;
        let cluster = 512 << (seed % 4);
        let create = CreateOptions { cluster_size: cluster, ..CreateOptions::default() };
        let mut size = 3_000_000 / 512 * 512;
        let mut image = Image::create(MemoryStorage::new(), size, &create).unwrap();
        let mut plain: Vec<Plain> = Vec::new();
        for step in 0..80 {
            let offset = next(&mut state) % size;
            let most = if next(&mut state).is_multiple_of(8) { size } else { cluster * 9 };
            let length = (next(&mut state) % most + 1).min(size - offset);
            let mark = |plain: &mut Vec<Plain>| plain.iter_mut().for_each(|plain| plain.mark(offset, length));
            match next(&mut state) % 12 {
                0..=2 => {
                    image.write_at(offset, &vec![step as u8; length as usize]).unwrap();
                    mark(&mut plain);
                }
                3 => {
                    image.write_zeroes(offset, length, true).unwrap();
                    mark(&mut plain);
                }
                4 | 5 => {
                    image.discard(offset, length).unwrap();
                    mark(&mut plain);
                }
                6 => {
                    let (from, to) = (offset / cluster * cluster, (offset / cluster + 1) * cluster);
                    image.write_compressed(from, &vec![step as u8; (to.min(size) - from) as usize]).unwrap();
                    plain.iter_mut().for_each(|plain| plain.mark(from, to.min(size) - from));
                }
                7 => {
                    let old = size;
                    size = (next(&mut state) % 6_000_000 + 1).next_multiple_of(512);
                    image.resize(size).unwrap();
                    for plain in &mut plain {
                        plain.bits.resize(size.div_ceil(plain.granularity) as usize, false);
                        plain.mark(old.min(size), size.saturating_sub(old));
                    }
                }
                8 => {
                    let storage = image.close().unwrap();
                    sound(&storage, "closed");
                    image = Image::open(storage, OpenOptions::default()).unwrap();
                }
                _ => change_one(&mut image, &mut plain, &mut state, &NAMES),
            }
            compare(&image, &plain, &format!("seed {seed}, step {step}"));
        }
        let storage = image.close().unwrap();
        sound(&storage, "at the end");
        let image = Image::open(storage, OpenOptions::default().read_only()).unwrap();
        compare(&image, &plain, &format!("seed {seed}, read-only"));
    }
}

fn with_bitmaps(names: &[&str]) -> Image<MemoryStorage> {
    let mut image = Image::create(MemoryStorage::new(), 64 << 20, &CreateOptions::default()).unwrap();
    names.iter().for_each(|name| image.add_bitmap(name, None).unwrap());
    image.write_at(1 << 20, &[1; 70_000]).unwrap();
    let storage = image.close().unwrap();
    Image::open(storage, OpenOptions::default()).unwrap()
}

#[test]
fn what_is_dropped_without_closing_is_not_trusted() {
    let storage = {
        let mut image = with_bitmaps(&["b0", "b1"]);
        image.enable_bitmap("b1", false).unwrap();
        image.write_at(0, &[2; 10]).unwrap();
        image.flush().unwrap();
        let bytes = image.storage().to_vec().unwrap();
        MemoryStorage::from_bytes(&bytes)
    };
    let mut image = Image::open(storage, OpenOptions::default()).unwrap();
    let all = image.bitmaps().unwrap();
    assert!(all[0].in_use && all[0].problem.is_some() && all[0].dirty_bytes.is_none());
    assert!(!all[1].in_use && all[1].dirty_bytes == Some(2 << 16), "one that does not record is untouched");
    let refused = image.clear_bitmap("b0").unwrap_err().to_string();
    assert!(refused.contains("inconsistent"), "{refused}");
    // It is not taken for good again.
    image.write_at(0, &[3; 10]).unwrap();
    let mut image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
    assert!(image.bitmaps().unwrap()[0].in_use);
    image.remove_bitmap("b0").unwrap();
    image.add_bitmap("b0", None).unwrap();
    sound(&image.close().unwrap(), "removed");
}

#[test]
fn reading_changes_nothing() {
    let bytes = with_bitmaps(&["b0"]).close().unwrap().to_vec().unwrap();
    let mut image = Image::open(MemoryStorage::from_bytes(&bytes), OpenOptions::default()).unwrap();
    image.read_at(0, &mut [0; 100]).unwrap();
    assert_eq!(image.bitmaps().unwrap()[0].dirty_bytes, Some(2 << 16));
    assert!(image.close().unwrap().to_vec().unwrap() == bytes);
}

/// Changes the raw directory of an image.
fn damage(image: Image<MemoryStorage>, edit: impl FnOnce(&mut Vec<u8>, usize)) -> Image<MemoryStorage> {
    let at = image.header().bitmaps().unwrap().directory_offset as usize;
    let mut bytes = image.close().unwrap().to_vec().unwrap();
    edit(&mut bytes, at);
    Image::open(MemoryStorage::from_bytes(&bytes), OpenOptions::default()).unwrap()
}

fn extension_at(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|window| window == [0x23, 0x85, 0x28, 0x75]).unwrap()
}

#[test]
fn a_broken_directory_is_in_nobodys_way() {
    type Edit = fn(&mut Vec<u8>, usize);
    let edits: [(&str, Edit); 9] = [
        ("count", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 11] = 9;
        }),
        ("no bitmaps", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 11] = 0;
        }),
        ("unaligned", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 30] = 2;
        }),
        ("beyond the file", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 27] = 1;
        }),
        ("huge", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 18] = 1;
        }),
        ("reserved", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 15] = 1;
        }),
        ("wrong length of the extension", |bytes, _| {
            let at = extension_at(bytes);
            bytes[at + 7] = 16;
        }),
        ("name too long for the directory", |bytes, at| bytes[at + 18] = 1),
        ("extra data too long", |bytes, at| bytes[at + 21] = 1),
    ];
    for (what, edit) in edits {
        for write_first in [false, true] {
            let mut image = damage(with_bitmaps(&["b0"]), edit);
            assert!(image.bitmaps().is_err(), "{what}");
            assert_eq!(image.broken_bitmaps(false).unwrap().len(), 1, "{what}");
            let mut byte = [0];
            image.read_at(1 << 20, &mut byte).unwrap();
            assert_eq!(byte, [1], "{what}");
            if write_first {
                image.write_at(0, &[5]).unwrap_or_else(|error| panic!("{what}: {error}"));
                image.resize(128 << 20).unwrap();
                assert!(image.bitmaps().unwrap().is_empty(), "{what}: void from now on");
                image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
            }
            let dropped = image.drop_broken_bitmaps(false).unwrap();
            assert!(dropped.len() == 1 && dropped[0].name.is_none(), "{what}: {dropped:?}");
            image.add_bitmap("new", None).unwrap_or_else(|error| panic!("{what}: {error}"));
            image.write_at(0, &[6]).unwrap();
            let image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
            assert_eq!(image.bitmaps().unwrap()[0].dirty_bytes, Some(1 << 16), "{what}");
            assert!(image.broken_bitmaps(true).unwrap().is_empty(), "{what}");
            let header = image.header().clone();
            let report = check(image.storage(), &header, &mut |_| ()).unwrap();
            assert_eq!(report.corruptions + report.check_errors, 0, "{what}: {report:?}");
        }
    }
}

#[test]
fn a_broken_bitmap_is_dropped_and_the_others_stay() {
    type Edit = fn(&mut Vec<u8>, usize);
    let edits: [(&str, Edit); 8] = [
        ("kind", |bytes, at| bytes[at + 16] = 2),
        ("reserved flag", |bytes, at| bytes[at + 12] = 1),
        ("granularity", |bytes, at| bytes[at + 17] = 40),
        ("table unaligned", |bytes, at| bytes[at + 6] = 2),
        ("table beyond the file", |bytes, at| bytes[at + 3] = 1),
        ("table too long", |bytes, at| bytes[at + 11] = 2),
        ("table entry", |bytes, at| {
            let table = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            bytes[table + 7] = 0x80;
        }),
        ("two of one name", |bytes, at| bytes[at + 25] = b'1'),
    ];
    for (what, edit) in edits {
        let mut image = damage(with_bitmaps(&["b0", "b1", "b2"]), edit);
        let all = image.bitmaps().unwrap();
        assert!(all[0].problem.is_some() && all[2].problem.is_none(), "{what}: {all:?}");
        // The broken one is not in the way of the others.
        image.write_at(8 << 20, &[7]).unwrap();
        let mut image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
        assert_eq!(image.bitmaps().unwrap()[2].dirty_bytes, Some(3 << 16), "{what}");
        let expected = if what == "two of one name" { 2 } else { 1 };
        let dropped = image.drop_broken_bitmaps(true).unwrap();
        assert_eq!(dropped.len(), expected, "{what}: {dropped:?}");
        assert_eq!(image.bitmaps().unwrap().len(), 3 - expected, "{what}");
        let header = image.header().clone();
        let report = check(image.storage(), &header, &mut |_| ()).unwrap();
        assert_eq!(report.corruptions + report.check_errors, 0, "{what}: {report:?}");
    }
}

#[test]
fn what_a_bitmap_cannot_be_is_refused() {
    let mut image = with_bitmaps(&["b0"]);
    let before = image.storage().to_vec().unwrap();
    let long = "x".repeat(1024);
    for (name, granularity) in
        [("", None), (long.as_str(), None), ("b0", None), ("b", Some(256)), ("b", Some(1 << 32)), ("b", Some(1000))]
    {
        assert!(image.add_bitmap(name, granularity).is_err(), "{name:.5} {granularity:?}");
    }
    assert!(image.remove_bitmap("none").is_err() && image.enable_bitmap("none", true).is_err());
    assert!(image.merge_into_bitmap("b0", &DirtyBits::new(1 << 20, 16)).is_err());
    assert!(image.resize(0).is_err());
    assert!(image.close().unwrap().to_vec().unwrap()[..] == before[..]);
    let old = CreateOptions { version: 2, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 1 << 20, &old).unwrap();
    assert!(matches!(image.add_bitmap("b", None).unwrap_err().kind(), ErrorKind::Unsupported(_)));
    // 2^63 bytes by 512 are more bits than a bitmap can have.
    let mut image = Image::create(
        MemoryStorage::new(),
        1 << 50,
        &CreateOptions { cluster_size: 2 << 20, ..CreateOptions::default() },
    )
    .unwrap();
    assert!(image.add_bitmap("b", Some(512)).is_err());
    image.add_bitmap("b", Some(1 << 31)).unwrap();
}

/// The extension is found, and the header stays whole, wherever the other contents of the header lie.
#[test]
fn the_header_keeps_what_it_had() {
    for length in [1usize, 100, 200, 400, 1000] {
        for cluster_size in [512u64, 4096] {
            let create = CreateOptions {
                cluster_size,
                backing_file: Some("b".repeat(length)),
                backing_format: Some("raw".into()),
                ..CreateOptions::default()
            };
            let Ok(image) = Image::create(MemoryStorage::new(), 1 << 20, &create) else {
                assert!(length > 100 && cluster_size == 512);
                continue;
            };
            let storage = image.close().unwrap();
            let open = || OpenOptions::default().metadata_only();
            let before = storage.to_vec().unwrap();
            let mut image = Image::open(MemoryStorage::from_bytes(&before), open()).unwrap();
            if let Err(error) = image.add_bitmap("b0", None) {
                assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{length}, {cluster_size}: {error}");
                assert!(length > 100 && cluster_size == 512);
                continue;
            }
            let storage = image.close().unwrap();
            let mut image = Image::open(storage, open()).unwrap();
            assert_eq!(image.header().backing_file.as_ref().unwrap().len(), length);
            assert!(image.header().backing_format().is_some());
            assert_eq!(image.bitmaps().unwrap().len(), 1);
            image.remove_bitmap("b0").unwrap();
            let image = Image::open(image.close().unwrap(), open()).unwrap();
            assert!(!image.header().extensions.iter().any(Extension::is_bitmaps), "{length}, {cluster_size}");
            assert_eq!(image.header().backing_file.as_ref().unwrap().len(), length);
            sound(&image.close().unwrap(), "removed");
        }
    }
}

#[test]
fn extra_data_that_need_not_be_known_are_kept() {
    let mut image = with_bitmaps(&["b0"]);
    image
        .change_bitmaps(|_, change| {
            change.entries[0].extra_data = b"mystery".to_vec();
            change.entries[0].flags = change.entries[0].flags.with(BitmapFlags::EXTRA_DATA_COMPATIBLE);
            Ok(())
        })
        .unwrap();
    image.write_at(0, &[1]).unwrap();
    let image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
    let entries = image.bitmap_entries().unwrap();
    assert_eq!(entries[0].extra_data, b"mystery");
    assert_eq!(image.bitmap_bits("b0").unwrap().dirty_bytes(), 3 << 16);
    assert!(image.storage().len().unwrap() > 0);
}
