//! Deltas against plain models of both states, and the forecast against real increments.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::format::Name;
use crate::image::{CreateOptions, NewSnapshot, OpenOptions, SnapshotSelector};
use crate::storage::{MemoryStorage, ReadStorage};

const MIB: u64 = 1 << 20;

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

fn silent() -> impl FnMut(u64, u64) {
    |_, _| ()
}

fn read(image: &mut Image<MemoryStorage>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The ranges follow each other, fill the disk, and add up to the totals.
fn sound(delta: &DeltaReport) {
    let mut at = 0;
    let mut totals = DeltaTotals::default();
    for (n, range) in delta.ranges.iter().enumerate() {
        assert_eq!(range.start, at);
        assert!(range.length > 0 && (n == 0 || delta.ranges[n - 1].state != range.state));
        at += range.length;
        match range.state {
            DeltaState::Clean => totals.clean += range.length,
            DeltaState::DirtyData => totals.dirty_data += range.length,
            DeltaState::DirtyZero => totals.dirty_zero += range.length,
            DeltaState::CleanZero => totals.clean_zero += range.length,
        }
    }
    assert_eq!(at, delta.virtual_size);
    assert_eq!(totals, delta.totals);
    assert!(delta.forecast.all_dirty.raw_bytes >= totals.dirty_data);
}

/// What the map calls unchanged is, and what it calls zero reads as zeros; with `exact` also the other way round.
fn right(delta: &DeltaReport, old: &[u8], new: &[u8], exact: bool) {
    sound(delta);
    for range in &delta.ranges {
        for block in (range.start..range.start + range.length).step_by(DELTA_BLOCK as usize) {
            let start = block as usize;
            let end = (start + (DELTA_BLOCK - block % DELTA_BLOCK) as usize).min((range.start + range.length) as usize);
            let was: Vec<u8> = (start..end).map(|at| old.get(at).copied().unwrap_or(0)).collect();
            let (same, zero) = (was == new[start..end], new[start..end].iter().all(|byte| *byte == 0));
            match range.state {
                DeltaState::Clean => assert!(same, "{range:?}"),
                DeltaState::CleanZero => assert!(same && zero, "{range:?}"),
                DeltaState::DirtyZero => assert!(zero && !(exact && same), "{range:?}"),
                DeltaState::DirtyData => assert!(!exact || !(same || zero), "{range:?}"),
            }
        }
    }
}

fn churn(image: &mut Image<MemoryStorage>, state: &mut u64, steps: u64) {
    let size = image.virtual_size();
    for _ in 0..steps {
        let offset = next(state) % size;
        let length = (next(state) % 300_000 + 1).min(size - offset);
        match next(state) % 5 {
            0 => image.discard(offset, length).unwrap(),
            1 => image.write_zeroes(offset, length, next(state).is_multiple_of(2)).unwrap(),
            2 => image.write_at(offset, &vec![0; length as usize]).unwrap(),
            3 => {
                // The same bytes again.
                let mut same = vec![0; length as usize];
                image.read_at(offset, &mut same).unwrap();
                image.write_at(offset, &same).unwrap();
            }
            _ => image.write_at(offset, &vec![(next(state) % 250 + 1) as u8; length as usize]).unwrap(),
        }
    }
}

fn new_image(size: u64) -> Image<MemoryStorage> {
    Image::create(MemoryStorage::new(), size, &CreateOptions::default()).unwrap()
}

/// What users report: 3 GiB are deleted and trimmed, little is written; the increment must be little. (Scaled down.)
#[test]
fn what_was_deleted_and_trimmed_is_not_in_the_increment() {
    let mut image = new_image(64 * MIB);
    image.write_at(0, &vec![7; 30 * MIB as usize]).unwrap();
    image.add_bitmap("backup", None).unwrap();
    image.discard(0, 30 * MIB).unwrap();
    image.write_at(40 * MIB, &vec![8; MIB as usize]).unwrap();
    image.write_at(2 * MIB, &vec![9; 65536]).unwrap();
    let mut image = Image::open(image.close().unwrap(), OpenOptions::default()).unwrap();
    let bits = image.bitmap_bits("backup").unwrap();
    assert_eq!(bits.dirty_bytes(), 31 * MIB, "the bitmap alone marks it all");
    let delta = delta_from_bitmap(&mut image, &bits, &DeltaOptions::default(), &mut silent()).unwrap();
    sound(&delta);
    assert_eq!(delta.totals.dirty_data, MIB + 65536);
    assert_eq!(delta.totals.dirty_zero, 30 * MIB - 65536);
    assert_eq!((delta.totals.clean, delta.totals.clean_zero), (0, 33 * MIB));
    assert_eq!(delta.granularity, Some(65536));
    let forecast = delta.forecast;
    assert_eq!(forecast.all_dirty.raw_bytes, 31 * MIB);
    assert_eq!(forecast.without_known_zeros.raw_bytes, MIB + 65536);
    assert_eq!((forecast.without_known_zeros.data_clusters, forecast.without_known_zeros.zero_clusters), (17, 479));
    assert_eq!(forecast.without_zeros_and_equal, None);
}

#[test]
fn reading_finds_zeros_among_the_marked_data() {
    let mut image = new_image(16 * MIB);
    image.add_bitmap("b", None).unwrap();
    image.write_at(MIB, &vec![0; MIB as usize]).unwrap();
    image.write_at(3 * MIB, &[1; 100]).unwrap();
    let bits = image.bitmap_bits("b").unwrap();
    let mapped = delta_from_bitmap(&mut image, &bits, &DeltaOptions::default(), &mut silent()).unwrap();
    assert_eq!((mapped.totals.dirty_data, mapped.totals.dirty_zero), (MIB + 65536, 0));
    let options = DeltaOptions { read: true, ..DeltaOptions::default() };
    let looked = delta_from_bitmap(&mut image, &bits, &options, &mut silent()).unwrap();
    sound(&looked);
    assert_eq!((looked.totals.dirty_data, looked.totals.dirty_zero), (4096, MIB + 65536 - 4096));
    assert_eq!(looked.forecast.without_known_zeros, mapped.forecast.without_known_zeros);
    let seen = looked.forecast.without_zeros_and_equal.unwrap();
    assert_eq!((seen.raw_bytes, seen.data_clusters, seen.zero_clusters), (4096, 1, 16));
}

#[test]
fn snapshots_are_compared_by_place_and_by_contents() {
    for seed in 1..6u64 {
        let mut state = seed * 7_777_777;
        let mut image = new_image(6 * MIB);
        churn(&mut image, &mut state, 12);
        let name = |n: u64| Name::from(std::format!("s{n}"));
        let mut contents = Vec::new();
        for n in 0..3 {
            contents.push(read(&mut image));
            image.create_snapshot(&NewSnapshot { name: name(n), ..NewSnapshot::default() }).unwrap();
            churn(&mut image, &mut state, 6);
        }
        contents.push(read(&mut image));
        let bytes = image.close().unwrap().to_vec().unwrap();
        let open = |n: usize| {
            let options = OpenOptions::default().read_only();
            let options = match n {
                3 => options,
                n => options.of_snapshot(SnapshotSelector::IdOrName(name(n as u64))),
            };
            Image::open(MemoryStorage::from_bytes(&bytes), options).unwrap()
        };
        for (old, new) in [(0, 1), (0, 2), (1, 3), (2, 3), (3, 0), (1, 1)] {
            let (mut a, mut b) = (open(old), open(new));
            for read in [false, true] {
                let options = DeltaOptions { read, ..DeltaOptions::default() };
                let delta = delta_from_snapshot(&mut a, &mut b, &options, &mut silent()).unwrap();
                right(&delta, &contents[old], &contents[new], read);
                assert!(old != new || delta.totals.dirty_data + delta.totals.dirty_zero == 0);
            }
            let delta = delta_from_image(&mut a, &mut b, &DeltaOptions::default(), &mut silent()).unwrap();
            right(&delta, &contents[old], &contents[new], true);
        }
    }
}

fn over(bottom: Image<MemoryStorage>, size: u64) -> Image<MemoryStorage> {
    let create = CreateOptions {
        backing_file: Some("below".into()),
        backing_format: Some("qcow2".into()),
        ..CreateOptions::default()
    };
    let top = Image::create_with(MemoryStorage::new(), size, &create, OpenOptions::default().metadata_only()).unwrap();
    let storage = top.close().unwrap();
    let image = Image::open(storage, OpenOptions::default().metadata_only()).unwrap();
    image.with_backing(crate::image::Layer::Image(alloc::boxed::Box::new(bottom)))
}

#[test]
fn layers_are_compared_with_those_below() {
    for (seed, sizes) in
        [(1u64, [6u64, 6, 6]), (2, [6, 4, 7]), (3, [4, 6, 3]), (4, [7, 3, 5]), (5, [5, 2, 6]), (6, [3, 3, 6])]
    {
        let mut state = seed * 999_331;
        let mut contents = Vec::new();
        let mut image = new_image(sizes[0] * MIB);
        churn(&mut image, &mut state, 12);
        contents.push(read(&mut image));
        for size in &sizes[1..] {
            image = over(image, size * MIB);
            churn(&mut image, &mut state, 8);
            contents.push(read(&mut image));
        }
        for depth in 1..=2 {
            let old = &contents[2 - depth as usize];
            for read in [false, true] {
                let options = DeltaOptions { read, ..DeltaOptions::default() };
                let delta = delta_from_layer(&mut image, depth, &options, &mut silent()).unwrap();
                assert_eq!(delta.old_virtual_size, Some(old.len() as u64));
                right(&delta, old, &contents[2], read);
            }
        }
        assert!(delta_from_layer(&mut image, 3, &DeltaOptions::default(), &mut silent()).is_err());
        assert!(delta_from_layer(&mut image, 0, &DeltaOptions::default(), &mut silent()).is_err());
    }
}

#[test]
fn images_of_different_sizes_are_compared_by_contents() {
    let mut state = 4242;
    for (a, b) in [(3, 5), (5, 3), (4, 4)] {
        let (mut old, mut new) = (new_image(a * MIB), new_image(b * MIB));
        churn(&mut old, &mut state, 8);
        churn(&mut new, &mut state, 8);
        let (was, is) = (read(&mut old), read(&mut new));
        let delta = delta_from_image(&mut old, &mut new, &DeltaOptions::default(), &mut silent()).unwrap();
        right(&delta, &was, &is, true);
    }
}

/// The forecast against increments that are really made.
#[test]
fn the_forecast_is_the_size_of_the_file() {
    for seed in 1..8u64 {
        let mut state = seed * 31_337;
        let mut image = new_image(40 * MIB);
        image.write_at(0, &vec![3; 20 * MIB as usize]).unwrap();
        image.add_bitmap("b", None).unwrap();
        churn(&mut image, &mut state, 4 + seed * 3);
        let bits = image.bitmap_bits("b").unwrap();
        let cluster_size = [512u64, 4096, 65536, 1 << 20][(seed % 4) as usize];
        let options = DeltaOptions { cluster_size, read: false };
        let delta = delta_from_bitmap(&mut image, &bits, &options, &mut silent()).unwrap();
        let create = CreateOptions {
            cluster_size,
            backing_file: Some("before".into()),
            backing_format: Some("raw".into()),
            ..CreateOptions::default()
        };
        let open = OpenOptions::default().metadata_only();
        let storage =
            Image::create_with(MemoryStorage::new(), 40 * MIB, &create, open.clone()).unwrap().close().unwrap();
        let before = MemoryStorage::from_bytes(&vec![3; 20 * MIB as usize]);
        let layer = crate::image::Layer::Raw { storage: before, length: 20 * MIB };
        let mut increment = Image::open(storage, open).unwrap().with_backing(layer);
        for range in &delta.ranges {
            let mut bytes = vec![0; range.length as usize];
            image.read_at(range.start, &mut bytes).unwrap();
            match range.state {
                DeltaState::DirtyData => increment.write_at(range.start, &bytes).unwrap(),
                DeltaState::DirtyZero => increment.write_zeroes(range.start, range.length, true).unwrap(),
                DeltaState::Clean | DeltaState::CleanZero => {}
            }
        }
        let length = increment.close().unwrap().len().unwrap();
        let forecast = delta.forecast.without_known_zeros;
        assert_eq!(forecast.raw_bytes, delta.totals.dirty_data);
        // Parts of clusters that are zeroed at the edges of marked granules take clusters too: a few.
        let slack = if cluster_size > 65536 { 20 } else { 3 } * cluster_size;
        assert!(
            length.abs_diff(forecast.qcow2_bytes) <= slack.max(length / 50),
            "seed {seed}, clusters of {cluster_size}: {length} bytes, forecast {forecast:?}"
        );
    }
}
