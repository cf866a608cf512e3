//! Many threads on one open image, against a model.
#![cfg(unix)]

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Folder, Rng, assert_same, check_clean, open, qemu_create, qemu_is_here, qemu_read, read_all, run};
use qcowkit::file::FileStorage;
use qcowkit::shared::SharedImage;
use qcowkit_core::image::{DetectZeroes, OpenOptions};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};

const SECTOR: u64 = 512;
const SIZE: u64 = 12 << 20;
const THREADS: u64 = 6;

/// What is written to a sector says whose it is, which sector, and in which write it came.
fn stamp(sector: u64, writer: u64, version: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    for (n, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = sector << 40 | writer << 32 | (version & 0xff_ffff) << 8 | (n as u64 + 1);
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Reads a stamp of this sector: writer and version; `None` of zeros. All else is another sector's data, or torn.
fn read_stamp(sector: u64, bytes: &[u8], what: &str) -> Option<(u64, u64)> {
    if bytes.iter().all(|&byte| byte == 0) {
        return None;
    }
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (writer, version) = (value >> 32 & 0xff, value >> 8 & 0xff_ffff);
    assert_same(bytes, &stamp(sector, writer, version), &format!("{what}: sector {sector}, which must be whole"));
    Some((writer, version))
}

struct Case {
    name: &'static str,
    create: &'static [&'static str],
    backing: bool,
    options: OpenOptions,
}

fn cases() -> Vec<Case> {
    let options = OpenOptions::default();
    let tight = MetadataOptions { quarantine_bytes: 0, cache_bytes: 0, ..MetadataOptions::default() };
    let retain = DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() };
    let near = MetadataOptions { allocation: AllocationPolicy::Near, ..tight.clone() };
    let holes = MetadataOptions { allocation: AllocationPolicy::FillHoles, ..tight.clone() };
    let case = |name, create, backing, options: OpenOptions| Case { name, create, backing, options };
    vec![
        case("plain", &["-o", "cluster_size=64k"], false, options.clone()),
        case("tight", &["-o", "cluster_size=4k"], false, options.clone().with_metadata(tight)),
        case("retain", &["-o", "cluster_size=16k"], true, options.clone().with_policy(retain).with_metadata(near)),
        case("subclusters", &["-o", "cluster_size=64k,extended_l2=on"], true, options.clone().with_metadata(holes)),
        case("v2", &["-o", "compat=0.10,cluster_size=8k"], true, options.clone()),
        case(
            "detect",
            &["-o", "cluster_size=64k,data_file=data.raw"],
            false,
            OpenOptions { detect_zeroes: DetectZeroes::Unmap, ..options },
        ),
    ]
}

/// An image of random data, a part of it compressed, and below it another.
fn make(folder: &Folder, case: &Case) -> std::path::PathBuf {
    let path = folder.path("image.qcow2");
    let mut words: Vec<String> = case.create.iter().map(|word| (*word).to_owned()).collect();
    if case.backing {
        let below = folder.path("below.qcow2");
        qemu_create(&below, &["-o", "cluster_size=32k"], SIZE - (1 << 20));
        fill(&below, 7);
        words.extend(["-b", "below.qcow2", "-F", "qcow2"].map(str::to_owned));
    }
    if let Some(last) = words.get_mut(1) {
        *last = last.replace("data.raw", &folder.path("data.raw").display().to_string());
    }
    qemu_create(&path, &words.iter().map(String::as_str).collect::<Vec<_>>(), SIZE);
    path
}

/// Stamps of writer 0 in places, plain and compressed.
fn fill(path: &Path, seed: u64) {
    let mut image = open(path, OpenOptions::default());
    let mut rng = Rng::new(seed);
    let cluster = image.geometry().cluster_size();
    for start in (0..image.virtual_size() / cluster).map(|n| n * cluster) {
        let bytes: Vec<u8> =
            (start / SECTOR..(start + cluster) / SECTOR).flat_map(|sector| stamp(sector, 0, 1)).collect();
        match rng.below(3) {
            0 => image.write_at(start, &bytes).unwrap(),
            1 => image.write_compressed(start, &bytes).unwrap(),
            _ => {}
        }
    }
    image.close().unwrap();
}

/// What a sector may hold: the last write of its owner, or what is under way.
fn owned_sectors(
    image: &SharedImage<FileStorage>,
    owner: u64,
    rounds: u64,
    seed: u64,
    granule: u64,
) -> Vec<Option<u64>> {
    let sectors = SIZE / SECTOR;
    // Its own sectors lie scattered among those of the others, many in one cluster.
    let owns = |sector: u64| sector / granule % THREADS == owner;
    let mut model: Vec<Option<u64>> = vec![None; sectors as usize];
    let mut rng = Rng::new(seed ^ owner << 20);
    let mut buffer = vec![0; (granule * SECTOR) as usize];
    for version in 2..rounds + 2 {
        let mut first = rng.below(sectors / granule) * granule;
        while !owns(first) {
            first = (first + granule) % (sectors / granule * granule);
        }
        let skip = rng.below(granule);
        let count = 1 + rng.below(granule - skip);
        let (at, length) = ((first + skip) * SECTOR, count * SECTOR);
        let range = (first + skip) as usize..(first + skip + count) as usize;
        match rng.below(10) {
            0..5 => {
                let bytes: Vec<u8> =
                    (first + skip..first + skip + count).flat_map(|sector| stamp(sector, owner + 1, version)).collect();
                image.write_at(at, &bytes).unwrap();
                model[range].fill(Some(version));
            }
            5 => {
                image.write_zeroes(at, length, rng.one_in(2)).unwrap();
                model[range].fill(Some(0));
            }
            _ => {
                let bytes = &mut buffer[..length as usize];
                image.read_at(at, bytes).unwrap();
                for (sector, bytes) in (first + skip..).zip(bytes.chunks_exact(SECTOR as usize)) {
                    check_own(sector, bytes, model[sector as usize], owner);
                }
            }
        }
        if rng.one_in(60) {
            image.flush().unwrap();
        }
    }
    model
}

fn check_own(sector: u64, bytes: &[u8], expected: Option<u64>, owner: u64) {
    let found = read_stamp(sector, bytes, "own");
    match expected {
        // Never touched: what was there before.
        None => assert!(matches!(found, None | Some((0, 1))), "sector {sector}: {found:?}"),
        Some(0) => assert_eq!(found, None, "sector {sector}"),
        Some(version) => assert_eq!(found, Some((owner + 1, version)), "sector {sector}"),
    }
}

/// Each thread changes sectors of its own, and finds in them what it has put there; they share clusters with those of
/// the others.
#[test]
fn threads_with_sectors_of_their_own() {
    if !qemu_is_here() {
        return;
    }
    for case in cases() {
        let folder = Folder::new();
        let path = make(&folder, &case);
        if case.name != "detect" {
            fill(&path, 3);
        }
        let image = SharedImage::new(open(&path, case.options.clone()));
        let granule = 20;
        let models: Vec<Vec<Option<u64>>> = std::thread::scope(|scope| {
            let image = &image;
            let threads: Vec<_> =
                (0..THREADS).map(|owner| scope.spawn(move || owned_sectors(image, owner, 500, 11, granule))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        image.close().unwrap();
        check_clean(&path, case.name);
        for (what, bytes) in [
            ("read back", read_all(&mut open(&path, OpenOptions::default().read_only()))),
            ("read by QEMU", qemu_read(&path, None)),
        ] {
            for (sector, bytes) in bytes.chunks_exact(SECTOR as usize).enumerate() {
                let owner = sector as u64 / granule % THREADS;
                let expected = models[owner as usize][sector];
                let found = std::panic::catch_unwind(|| check_own(sector as u64, bytes, expected, owner));
                assert!(found.is_ok(), "{}: {what}", case.name);
            }
        }
    }
}

/// All change and discard everywhere. Whoever reads finds zeros, or what was written to that very sector.
#[test]
fn threads_that_change_the_same_places() {
    if !qemu_is_here() {
        return;
    }
    for case in cases() {
        let folder = Folder::new();
        let path = make(&folder, &case);
        if case.name != "detect" {
            fill(&path, 5);
        }
        let image = SharedImage::new(open(&path, case.options.clone()));
        let versions = AtomicU64::new(2);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (1..=3)
                .map(|writer| {
                    let (image, versions) = (&image, &versions);
                    scope.spawn(move || change_everywhere(image, writer, versions))
                })
                .collect();
            for reader in 0..3 {
                let (image, done) = (&image, &done);
                scope.spawn(move || read_everywhere(image, reader, done));
            }
            let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::Relaxed);
            assert!(ended.iter().all(Result::is_ok), "{}", case.name);
        });
        image.close().unwrap();
        check_clean(&path, case.name);
        let bytes = read_all(&mut open(&path, OpenOptions::default().read_only()));
        assert_same(&bytes, &qemu_read(&path, None), case.name);
        for (sector, bytes) in bytes.chunks_exact(SECTOR as usize).enumerate() {
            read_stamp(sector as u64, bytes, case.name);
        }
    }
}

fn change_everywhere(image: &SharedImage<FileStorage>, writer: u64, versions: &AtomicU64) {
    let mut rng = Rng::new(writer);
    // A small part of the disk, so that they meet.
    let sectors = (SIZE / SECTOR) / 8;
    for round in 0..400 {
        let first = rng.below(sectors);
        let count = 1 + rng.below(400.min(sectors - first));
        let (at, length) = (first * SECTOR, count * SECTOR);
        match rng.below(8) {
            0..4 => {
                let version = versions.fetch_add(1, Ordering::Relaxed);
                let bytes: Vec<u8> = (first..first + count).flat_map(|sector| stamp(sector, writer, version)).collect();
                image.write_at(at, &bytes).unwrap();
            }
            4 => image.write_zeroes(at, length, rng.one_in(2)).unwrap(),
            5 | 6 => image.discard(at, length).unwrap(),
            _ => image.flush().unwrap(),
        }
        if round % 97 == 0 {
            image.discard(0, SIZE).unwrap();
        }
    }
}

fn read_everywhere(image: &SharedImage<FileStorage>, reader: u64, done: &AtomicBool) {
    let mut rng = Rng::new(100 + reader);
    let mut buffer = vec![0; 300 * SECTOR as usize];
    while !done.load(Ordering::Relaxed) {
        let count = 1 + rng.below(300);
        let first = rng.below(SIZE / SECTOR / 8 - count);
        let bytes = &mut buffer[..(count * SECTOR) as usize];
        image.read_at(first * SECTOR, bytes).unwrap();
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR as usize)) {
            // The kernel may show a sector while it is being written; but never anything that is not this sector's.
            for word in bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())) {
                assert!(word == 0 || word >> 40 == sector, "sector {sector} shows {word:#x}");
            }
        }
    }
}

/// A full block device has room again when what others read is given back: nobody is told that there is no space.
#[test]
fn nobody_is_refused_what_readers_hold() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("image.qcow2");
    qemu_create(&path, &[], 8 << 20);
    let options = OpenOptions::default();
    let image = SharedImage::new(open(&path, options));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let (image, failures) = (&image, &failures);
            scope.spawn(move || {
                let bytes = vec![writer as u8 + 1; 65536];
                for n in 0..200u64 {
                    let at = (writer * 40 + n % 40) * 65536;
                    let done = image.write_at(at, &bytes).and_then(|()| image.discard(at, 65536));
                    if let Err(error) = done {
                        failures.lock().unwrap().push(error);
                    }
                }
            });
        }
    });
    assert!(failures.into_inner().unwrap().is_empty());
    image.close().unwrap();
    check_clean(&path, "after discards");
    assert_eq!(run("qemu-img", &["check".as_ref(), path.as_os_str()]).code, 0);
}
