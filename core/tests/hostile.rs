//! Any bytes are an input: broken images are opened, mapped, read, written, discarded, resized and closed without a
//! panic, without end and without the loss of their header.
//!
//! `QCOWKIT_HOSTILE=50` runs fifty times as many cases; `QCOWKIT_SEED=7` begins with another seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions, SnapshotSelector};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};
use qcowkit_core::operations::inspect::{Inspector, Shown};
use qcowkit_core::operations::lab::{LabConfig, LabDisk, LabOptions, MAX_LAB_CLUSTERS, Trace, TraceFormat, replay};
use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage};
use qcowkit_core::{ErrorKind, Result};
use qcowkit_trial::snapshot::make_snapshot;
use qcowkit_trial::walk::{COMPRESSED, COPIED, Fields, OFFSET, be64};
use qcowkit_trial::{Rng, from_env};

const SIZE: u64 = 300 << 10;

fn options(unref: Unref, allocation: AllocationPolicy) -> OpenOptions {
    let metadata = MetadataOptions { allocation, cache_bytes: 8 * 512, slice_bytes: 512, ..MetadataOptions::default() };
    OpenOptions::default()
        .with_policy(DiscardPolicy { unref, ..DiscardPolicy::default() })
        .with_metadata(metadata)
        .metadata_only()
}

/// Sound images of several kinds, with data, zeros and packed clusters.
fn sound_images() -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for (version, bits, refcount_bits, extended_l2, snapshot) in [
        (3, 9, 64, false, false),
        (3, 9, 16, false, true),
        (2, 10, 16, false, false),
        (3, 12, 1, false, false),
        (3, 14, 8, true, true),
        (3, 16, 16, false, false),
    ] {
        let create =
            CreateOptions { version, cluster_size: 1 << bits, refcount_bits, extended_l2, ..CreateOptions::default() };
        let mut image = Image::create(MemoryStorage::new(), SIZE, &create).unwrap();
        let cluster = create.cluster_size;
        for n in 0..8 {
            image.write_at(n * 31_000, &vec![n as u8 + 1; 9000]).unwrap();
        }
        if refcount_bits > 1 {
            image.write_compressed(0, &vec![7; (4 * cluster as usize).min(128 << 10)]).unwrap();
        }
        image.write_zeroes(100_000, (3 * cluster).min(90_000), false).unwrap();
        image.discard(200_000, (3 * cluster).min(90_000)).unwrap();
        let mut bytes = image.close().unwrap().to_vec().unwrap();
        if snapshot {
            assert!(make_snapshot(&mut bytes));
        }
        images.push(bytes);
    }
    images
}

/// Where the entries of the tables of a sound image are: L1, L2, refcount table, refcount blocks.
fn interesting_places(bytes: &[u8]) -> Vec<u64> {
    let fields = Fields::read(bytes);
    let mut places: Vec<u64> = (0..fields.l1_size).map(|n| fields.l1_offset + n * 8).collect();
    let tables: Vec<u64> = places.iter().map(|&at| be64(bytes, at) & OFFSET).filter(|&table| table != 0).collect();
    for table in tables {
        places.extend((0..fields.cluster().min(2048) / 8).map(|n| table + n * 8));
    }
    for n in 0..8 {
        let at = fields.refcount_table + n * 8;
        places.push(at);
        let block = be64(bytes, at);
        if block != 0 {
            places.extend((0..fields.cluster().min(512) / 8).map(|n| block + n * 8));
        }
    }
    places
}

fn mutate(bytes: &mut [u8], rng: &mut Rng) {
    let places = interesting_places(bytes);
    let cluster = Fields::read(bytes).cluster();
    let length = bytes.len() as u64;
    for _ in 0..=rng.below(6) {
        let place = places[rng.below(places.len() as u64) as usize] as usize;
        match rng.below(8) {
            // Any byte of the header, or of the structures.
            0 => bytes[8 + rng.below(104) as usize] = rng.next() as u8,
            1 => bytes[rng.below(length) as usize] ^= 1 << rng.below(8),
            2 => bytes[place + rng.below(8) as usize] = rng.next() as u8,
            // A field of the header becomes huge.
            3 => {
                let (at, width) = [(20, 4), (24, 8), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8), (96, 4)]
                    [rng.below(9) as usize];
                let value = [u64::MAX, 1 << 62, 0x7fff_ffff_ffff_fe00, 1 << 31, length * 3, 1 << 20, 21, 0];
                let value = value[rng.below(8) as usize].to_be_bytes();
                bytes[at..at + width].copy_from_slice(&value[8 - width..]);
            }
            // An entry that points somewhere: at any cluster of the file, beyond it, at nothing aligned.
            _ => {
                let target = match rng.below(6) {
                    0 => 0,
                    1 => length + rng.below(1 << 30),
                    2 => rng.next(),
                    _ => rng.below(length / cluster) * cluster,
                };
                let flags = [0, COPIED, COPIED, COPIED, 1, COPIED | 1, COMPRESSED][rng.below(7) as usize];
                bytes[place..place + 8].copy_from_slice(&(target | flags).to_be_bytes());
            }
        }
    }
}

fn abuse(bytes: &[u8], rng: &mut Rng) -> Result<()> {
    let unref = [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu][rng.below(3) as usize];
    let allocation =
        [AllocationPolicy::Qemu, AllocationPolicy::FillHoles, AllocationPolicy::Near][rng.below(3) as usize];
    let storage = MemoryStorage::from_bytes(bytes);
    let mut image = Image::open(&storage, options(unref, allocation))?;
    let size = image.virtual_size();
    let mut buffer = vec![0; 40_000];
    for step in 0..24 {
        let offset = if rng.one_in(4) { rng.below(size) } else { rng.below(size.min(SIZE)) };
        let length = (rng.below(40_000) + 1).min(size - offset.min(size));
        let part = &mut buffer[..length as usize];
        // Errors are what is asked for; the image must stand the next call.
        let selector = SnapshotSelector::IdOrName(["1", "s", "2"][rng.below(3) as usize].into());
        let _ = match rng.below(12) {
            9 => image.create_snapshot(&NewSnapshot::default()).map(drop),
            10 => image.apply_snapshot(&selector),
            11 => image.delete_snapshot(&selector),
            0..=1 => image.read_at(offset, part),
            2..=3 => image.write_at(offset, part),
            4 => image.discard(offset, length),
            5 => image.write_zeroes(offset, length, rng.one_in(2)),
            6 => image.next_extent(offset, size - offset.min(size)).map(drop),
            7 => image.flush(),
            _ if step % 3 == 0 => image.resize((offset + 700).next_multiple_of(512)),
            _ => image.map(offset, length).map(drop),
        };
    }
    let _ = image.flush();
    drop(image);
    let view = options(unref, allocation).of_snapshot(SnapshotSelector::IdOrName("1".into()));
    if let Ok(mut view) = Image::open(&storage, view) {
        let _ = view.read_at(0, &mut buffer);
        let _ = view.map(0, view.virtual_size().min(SIZE));
    }
    // The file may have grown by what was written, not by what the image says.
    assert!(storage.memory_bytes() < bytes.len() as u64 + (48 << 20), "{} bytes kept", storage.memory_bytes());
    let mut magic = [0; 8];
    storage.read_at(0, &mut magic).unwrap();
    assert_eq!(magic, bytes[..8], "the header is lost");
    Ok(())
}

#[test]
fn broken_images_do_no_harm() {
    let images = sound_images();
    let first = from_env("QCOWKIT_SEED", 1);
    let cases = 6000 * from_env("QCOWKIT_HOSTILE", 1);
    let (mut opened, mut slowest) = (0, Duration::ZERO);
    for seed in first..first + cases {
        let mut rng = Rng::new(seed);
        let mut bytes = images[(seed % images.len() as u64) as usize].clone();
        mutate(&mut bytes, &mut rng);
        if from_env("QCOWKIT_VERBOSE", 0) > 0 {
            println!("seed {seed}");
        }
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| abuse(&bytes, &mut rng))) {
            Ok(Ok(())) => opened += 1,
            Ok(Err(_)) => {}
            Err(_) => panic!("seed {seed} (QCOWKIT_SEED={seed})"),
        }
        slowest = slowest.max(start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(20), "seed {seed} took {:?}", start.elapsed());
    }
    println!("{cases} images, {opened} opened, slowest {slowest:?}, {:?} KiB at most", peak_memory());
    assert!(opened > cases / 4, "most images were refused: nothing was tested");
    assert!(peak_memory().is_none_or(|kib| kib < 1 << 20), "{:?} KiB", peak_memory());
}

/// The most memory this process ever had, in KiB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn is_corrupt<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if matches!(error.kind(), ErrorKind::Corrupt(_)))
}

fn put(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

/// An image with data in its first clusters; its fields, its first L2 table, and where each structure lies.
fn with_targets() -> (Vec<u8>, Fields, u64, Vec<(&'static str, u64)>) {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 1 << 20, &create).unwrap();
    image.write_at(0, &[1; 20_000]).unwrap();
    let bytes = image.close().unwrap().to_vec().unwrap();
    let fields = Fields::read(&bytes);
    let l2 = be64(&bytes, fields.l1_offset) & OFFSET;
    let targets = vec![
        ("header", 0),
        ("L1 table", fields.l1_offset),
        ("refcount table", fields.refcount_table),
        ("refcount block", be64(&bytes, fields.refcount_table)),
        ("L2 table", l2),
    ];
    (bytes, fields, l2, targets)
}

fn is_poisoned<T>(done: &Result<T, qcowkit_core::Error>) -> bool {
    matches!(done, Err(error) if matches!(error.kind(), ErrorKind::Poisoned(_)))
}

/// The image with the mark that a detected overlap leaves.
fn marked_corrupt(bytes: &[u8]) -> Vec<u8> {
    let mut marked = bytes.to_vec();
    marked[79] |= 2;
    marked
}

#[test]
fn a_guest_cluster_on_metadata_is_neither_written_nor_discarded() {
    let (sound, fields, l2, targets) = with_targets();
    let cluster = fields.cluster();
    for (name, target) in targets {
        for unref in [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu] {
            for flags in [COPIED, 0] {
                let mut bytes = sound.clone();
                put(&mut bytes, l2, target | flags);
                let storage = MemoryStorage::from_bytes(&bytes);
                let mut image = Image::open(&storage, options(unref, AllocationPolicy::Qemu)).unwrap();
                for attempt in 0..3 {
                    let done = match attempt {
                        0 => image.write_at(100, b"overwritten"),
                        1 => image.discard(0, cluster),
                        _ => image.write_zeroes(0, cluster, true),
                    };
                    // To keep the shared cluster harms nothing; to release or write it would.
                    let kept = unref == Unref::RetainQemu && flags == 0 && attempt > 0;
                    // Offset 0 is no place for a guest cluster: the entry counts as unallocated.
                    let nowhere = target == 0;
                    let refused = is_corrupt(&done) || is_poisoned(&done);
                    assert!(refused || kept || nowhere, "{name}, {unref:?}, {flags:#x}, {attempt}: {done:?}");
                }
                if flags == COPIED && target != 0 {
                    // A write that would have gone there marks the image corrupt, and nothing is written any more.
                    assert!(is_poisoned(&image.write_at(2 * cluster, &[9; 100])));
                    drop(image);
                    assert!(storage.to_vec().unwrap() == marked_corrupt(&bytes), "{name}: changed all the same");
                    let done = Image::open(&storage, options(unref, AllocationPolicy::Qemu)).unwrap().write_at(0, &[1]);
                    assert!(done.is_err(), "{name}");
                    continue;
                }
                // The rest of the image can be used on.
                image.write_at(2 * cluster, &[9; 100]).unwrap();
                image.flush().unwrap();
                drop(image);
                let after = storage.to_vec().unwrap();
                if name == "header" {
                    assert_eq!(after[..24], bytes[..24], "{name}");
                }
                let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
                let mut data = [0; 100];
                image.read_at(2 * cluster, &mut data).unwrap();
                assert_eq!(data, [9; 100], "{name}");
            }
        }
    }
}

#[test]
fn metadata_marked_as_free_are_not_allocated() {
    let (sound, fields, _, targets) = with_targets();
    let block = be64(&sound, fields.refcount_table);
    for (name, target) in targets {
        for allocation in [AllocationPolicy::Qemu, AllocationPolicy::FillHoles] {
            let mut bytes = sound.clone();
            let at = (block + target / fields.cluster() * 2) as usize;
            bytes[at..at + 2].fill(0);
            let storage = MemoryStorage::from_bytes(&bytes);
            let mut image = Image::open(&storage, options(Unref::Always, allocation)).unwrap();
            let done = image.write_at(122 * 4096, &[5; 4096]);
            assert!(is_corrupt(&done), "{name}, {allocation:?}: {done:?}");
            drop(image);
            assert!(storage.to_vec().unwrap() == marked_corrupt(&bytes), "{name}: changed all the same");
        }
    }
}

#[test]
fn tables_on_other_tables_are_refused_before_the_first_write() {
    let (sound, fields, l2, targets) = with_targets();
    for (name, target) in &targets {
        // The L1 entry, then the first entry of the refcount table, point there.
        for (at, flags, entry) in [(fields.l1_offset, COPIED, "L2 table"), (fields.refcount_table, 0, "refcount block")]
        {
            if *name == entry || *target | flags == 0 || (entry == "refcount block" && *target == l2) {
                continue;
            }
            let mut bytes = sound.clone();
            put(&mut bytes, at, *target | flags);
            let storage = MemoryStorage::from_bytes(&bytes);
            let mut image = Image::open(&storage, options(Unref::Always, AllocationPolicy::Qemu)).unwrap();
            let done = image.write_at(0, &[5; 100]);
            let unallocated = *target == 0;
            assert!(is_corrupt(&done) || unallocated, "{entry} on {name}: {done:?}");
            drop(image);
            let after = storage.to_vec().unwrap();
            let untouched = after == bytes || after == marked_corrupt(&bytes);
            assert!(unallocated || untouched, "{entry} on {name}: changed all the same");
        }
    }
    // The header's own fields.
    for (at, value) in [(40, 0), (40, fields.refcount_table), (48, 0)] {
        let mut bytes = sound.clone();
        put(&mut bytes, at, value);
        let storage = MemoryStorage::from_bytes(&bytes);
        let done = Image::open(&storage, options(Unref::Always, AllocationPolicy::Qemu))
            .and_then(|mut image| image.write_at(0, &[5; 100]));
        assert!(is_corrupt(&done), "field {at}, {value:#x}: {done:?}");
        assert!(storage.to_vec().unwrap() == bytes);
    }
}

/// Bitmaps that are all set cost a little for each page of bits; many of them on a large disk would cost gigabytes. They are
/// refused where they would have to be kept in memory, and are listed and taken out all the same.
#[test]
fn many_bitmaps_that_are_all_set_have_a_limit() {
    let mut image = Image::create(MemoryStorage::new(), 2 << 40, &CreateOptions::default()).unwrap();
    let names: Vec<String> = (0..40).map(|n| format!("b{n}")).collect();
    for name in &names {
        image.add_bitmap(name, Some(512)).unwrap();
    }
    let storage = image.close().unwrap();
    let Shown::Value(tables) = Inspector::new(&storage).bitmaps() else { panic!("no directory") };
    for entry in tables.iter().map(|report| &report.entry) {
        let ones: Vec<u8> = (0..entry.table_entries).flat_map(|_| 1u64.to_be_bytes()).collect();
        storage.write_at(entry.table_offset, &ones).unwrap();
    }
    let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
    let refused = image.write_at(0, &[1; 512]);
    assert!(matches!(&refused, Err(error) if matches!(error.kind(), ErrorKind::Limit(_))), "{refused:?}");
    drop(image);
    let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
    assert_eq!(image.bitmaps().unwrap().iter().filter(|bitmap| bitmap.dirty_bytes == Some(2 << 40)).count(), 40);
    for name in &names[10..] {
        image.remove_bitmap(name).unwrap();
    }
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
}

/// The lab has bits for each guest cluster, and refuses a disk that claims more of them than it has bits for.
#[test]
fn a_disk_of_too_many_clusters_is_not_replayed() {
    let trace = Trace::parse(b"write 0 64k\n", TraceFormat::QemuIo).unwrap();
    let run = |size| {
        let options = LabOptions::default();
        replay(&trace, &LabDisk::Empty { size }, &LabConfig::unmap(), &options, &mut |_| ()).map(drop)
    };
    run(1 << 40).unwrap();
    let refused = run((MAX_LAB_CLUSTERS + 1) << 16);
    assert!(matches!(&refused, Err(error) if matches!(error.kind(), ErrorKind::Limit(_))), "{refused:?}");
}
