//! Many threads on one open image, against a model.
#![cfg(unix)]

mod common;

mod pausing;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Folder, Rng, assert_same, check_clean, open, qemu_create, qemu_is_here, qemu_read, read_all};
use pausing::{Pausing, open_slow};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::shared::SharedImage;
use qcowkit_core::crypto::Secret;
use qcowkit_core::image::{Content, DetectZeroes, OpenOptions, read_header};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};
use qcowkit_core::operations::check::check;

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
        case(
            "retain",
            &["-o", "cluster_size=16k"],
            true,
            options.clone().with_policy(retain).with_metadata(near.clone()),
        ),
        case("subclusters", &["-o", "cluster_size=64k,extended_l2=on"], true, options.clone().with_metadata(holes)),
        case("encrypted", ENCRYPTED, false, options.clone().with_key(Secret::from("abc"))),
        case(
            "encrypted, retain",
            ENCRYPTED,
            false,
            options.clone().with_key(Secret::from("abc")).with_policy(retain).with_metadata(near.clone()),
        ),
        case("v2", &["-o", "compat=0.10,cluster_size=8k"], true, options.clone()),
        case(
            "detect",
            &["-o", "cluster_size=64k,data_file=data.raw"],
            false,
            OpenOptions { detect_zeroes: DetectZeroes::Unmap, ..options },
        ),
    ]
}

const ENCRYPTED: &[&str] =
    &["-o", "cluster_size=4k,encrypt.format=aes,encrypt.key-secret=key", "--object", "secret,id=key,data=abc"];

/// An image that is whole, and its disk as QEMU reads it, if it has no key.
fn judge(path: &Path, case: &Case) -> Vec<Vec<u8>> {
    let ours = read_all(&mut open(path, case.options.clone().read_only()));
    if case.name.starts_with("encrypted") {
        let file = FileStorage::open(path, FileAccess::Read).unwrap();
        let report = check(&file, &read_header(&file).unwrap(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        return vec![ours];
    }
    check_clean(path, case.name);
    vec![ours, qemu_read(path, None)]
}

/// An image of random data, a part of it compressed, and below it another.
fn make(folder: &Folder, case: &Case) -> std::path::PathBuf {
    let path = folder.path("image.qcow2");
    let mut words: Vec<String> = case.create.iter().map(|word| (*word).to_owned()).collect();
    if case.backing {
        let below = folder.path("below.qcow2");
        qemu_create(&below, &["-o", "cluster_size=32k"], SIZE - (1 << 20));
        fill(&below, OpenOptions::default(), 7);
        words.extend(["-b", "below.qcow2", "-F", "qcow2"].map(str::to_owned));
    }
    if let Some(last) = words.get_mut(1) {
        *last = last.replace("data.raw", &folder.path("data.raw").display().to_string());
    }
    qemu_create(&path, &words.iter().map(String::as_str).collect::<Vec<_>>(), SIZE);
    path
}

/// Shares an image on a storage that takes its time now and then.
fn share(path: &Path, options: &OpenOptions) -> SharedImage<Pausing> {
    SharedImage::new(open_slow(path, options.clone()))
}

/// Stamps of writer 0 in places, plain and compressed.
fn fill(path: &Path, options: OpenOptions, seed: u64) {
    let mut image = open(path, options);
    image.storage().set_barriers(false);
    let mut rng = Rng::new(seed);
    let cluster = image.geometry().cluster_size();
    for start in (0..image.virtual_size() / cluster).map(|n| n * cluster) {
        let bytes: Vec<u8> =
            (start / SECTOR..(start + cluster) / SECTOR).flat_map(|sector| stamp(sector, 0, 1)).collect();
        match rng.below(3) {
            0 => image.write_at(start, &bytes).unwrap(),
            1 if image.encryption().is_none() => image.write_compressed(start, &bytes).unwrap(),
            _ => {}
        }
    }
    image.close().unwrap();
}

/// What a sector may hold: the last write of its owner, or what is under way.
fn owned_sectors(image: &SharedImage<Pausing>, owner: u64, rounds: u64, seed: u64, granule: u64) -> Vec<Option<u64>> {
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
        if !case.create[1].contains("data_file") {
            fill(&path, case.options.clone(), 3);
        }
        let image = share(&path, &case.options);
        let granule = 20;
        let models: Vec<Vec<Option<u64>>> = std::thread::scope(|scope| {
            let image = &image;
            let threads: Vec<_> =
                (0..THREADS).map(|owner| scope.spawn(move || owned_sectors(image, owner, 300, 11, granule))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        image.close().unwrap();
        for bytes in judge(&path, &case) {
            for (sector, bytes) in bytes.chunks_exact(SECTOR as usize).enumerate() {
                let owner = sector as u64 / granule % THREADS;
                let expected = models[owner as usize][sector];
                let found = std::panic::catch_unwind(|| check_own(sector as u64, bytes, expected, owner));
                assert!(found.is_ok(), "{}", case.name);
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
        if !case.create[1].contains("data_file") {
            fill(&path, case.options.clone(), 5);
        }
        let image = share(&path, &case.options);
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
        let read = judge(&path, &case);
        assert_same(read.last().unwrap(), &read[0], case.name);
        for (sector, bytes) in read[0].chunks_exact(SECTOR as usize).enumerate() {
            read_stamp(sector as u64, bytes, case.name);
        }
    }
}

fn change_everywhere(image: &SharedImage<Pausing>, writer: u64, versions: &AtomicU64) {
    let mut rng = Rng::new(writer);
    // A small part of the disk, so that they meet.
    let sectors = (SIZE / SECTOR) / 8;
    for round in 0..250 {
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

fn read_everywhere(image: &SharedImage<Pausing>, reader: u64, done: &AtomicBool) {
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

/// Where a guest offset is mapped.
fn host_of(image: &SharedImage<Pausing>, guest: u64) -> u64 {
    match image.next_extent(guest, 1).unwrap().content {
        Content::Data { host_offset } => host_offset.get(),
        other => panic!("{other:?}"),
    }
}

/// While a reader is between its decision and its bytes, everything else goes on, and what it reads stays.
#[test]
fn what_is_being_read_is_neither_punched_nor_reused() {
    if !qemu_is_here() {
        return;
    }
    let cluster = 65536u64;
    for policy in [DiscardPolicy::default(), DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() }]
    {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        qemu_create(&path, &[], 64 << 20);
        let tight = MetadataOptions { quarantine_bytes: 0, ..MetadataOptions::default() };
        let image = share(&path, &OpenOptions::default().with_policy(policy).with_metadata(tight));
        image.write_at(0, &vec![1; cluster as usize]).unwrap();
        image.write_at(cluster, &vec![2; cluster as usize]).unwrap();
        image.flush().unwrap();
        let host = host_of(&image, 0);
        let pause = image.storage().pause_reads_at(host);
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut bytes = vec![9; cluster as usize];
                image.read_at(0, &mut bytes).unwrap();
                bytes
            });
            pause.wait_until_there();
            // The lock is not held: all this goes on.
            if policy.unref == Unref::Always {
                image.discard(0, cluster).unwrap();
                image.flush().unwrap();
            }
            image.write_at(0, &vec![3; cluster as usize]).unwrap();
            image.flush().unwrap();
            for n in 2..40 {
                image.write_at(n * cluster, &vec![4; cluster as usize]).unwrap();
                assert_ne!(host_of(&image, n * cluster), host);
            }
            pause.release();
            reader.join().unwrap()
        });
        let expected = if policy.unref == Unref::Always { 1 } else { 3 };
        assert!(read.iter().all(|&byte| byte == expected), "{} instead of {expected}", read[0]);
        if policy.unref == Unref::Always {
            image.flush().unwrap();
            image.write_at(50 * cluster, &vec![5; cluster as usize]).unwrap();
            assert_eq!(host_of(&image, 50 * cluster), host, "reused once it is read");
        }
        image.close().unwrap();
        check_clean(&path, "after a slow reader");
    }
}

/// A write that is under way is not erased by the hole of a discard that came later, and two changes of one cluster do
/// not undo each other.
#[test]
fn changes_of_one_cluster_wait_for_each_other() {
    if !qemu_is_here() {
        return;
    }
    let cluster = 65536u64;
    let retain = DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() };
    for (policy, mapped) in [(retain, true), (DiscardPolicy::default(), true), (DiscardPolicy::default(), false)] {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        qemu_create(&path, &[], 64 << 20);
        let image = share(&path, &OpenOptions::default().with_policy(policy));
        image.write_at(3 * cluster, &[7; 512]).unwrap();
        let mut host = host_of(&image, 3 * cluster) + cluster;
        if mapped {
            image.write_at(0, &vec![1; cluster as usize]).unwrap();
            image.flush().unwrap();
            host = host_of(&image, 0);
        }
        let pause = image.storage().pause_writes_at(host);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let (image, order) = (&image, &order);
            scope.spawn(move || {
                image.write_at(0, &vec![2; cluster as usize]).unwrap();
                order.lock().unwrap().push("write");
            });
            pause.wait_until_there();
            scope.spawn(move || {
                image.discard(0, cluster).unwrap();
                order.lock().unwrap().push("discard");
                // Another that goes to a part of the same cluster.
                image.write_at(512, &[4; 512]).unwrap();
            });
            // Other clusters are nobody's business.
            image.write_at(cluster, &vec![3; cluster as usize]).unwrap();
            image.flush().unwrap();
            assert!(order.lock().unwrap().is_empty(), "the discard must wait");
            pause.release();
        });
        assert_eq!(order.lock().unwrap().len(), 2);
        let mut bytes = vec![9; 2 * cluster as usize];
        image.read_at(0, &mut bytes).unwrap();
        let mut expected = vec![0; cluster as usize];
        expected[512..1024].fill(4);
        expected.extend(vec![3; cluster as usize]);
        assert_same(&bytes, &expected, "after both");
        image.close().unwrap();
        check_clean(&path, "after both");
        assert_same(&qemu_read(&path, None)[..bytes.len()], &expected, "read by QEMU");
    }
}

/// On a store that cannot grow, what readers hold is waited for; nobody is told that there is no space.
#[test]
fn nobody_is_refused_what_readers_hold() {
    if !qemu_is_here() {
        return;
    }
    let cluster = 65536u64;
    let folder = Folder::new();
    let path = folder.path("image.qcow2");
    qemu_create(&path, &[], 64 << 20);
    let mut image = open(&path, OpenOptions::default());
    image.write_at(0, &vec![1; 4 * cluster as usize]).unwrap();
    let image = image.close().unwrap();
    let full = qcowkit_core::storage::ReadStorage::len(&image).unwrap();
    drop(image);
    let image = SharedImage::new(pausing::open_of_fixed_length(&path, full));
    let host = host_of(&image, 0);
    let pause = image.storage().pause_reads_at(host);
    std::thread::scope(|scope| {
        let image = &image;
        scope.spawn(move || image.read_at(0, &mut vec![0; cluster as usize]).unwrap());
        pause.wait_until_there();
        image.discard(0, cluster).unwrap();
        // There is no room but what the reader reads.
        let writer = scope.spawn(move || image.write_at(8 * cluster, &vec![2; cluster as usize]));
        // Long enough for the writer to find that out; if it is not, nothing is proven, and nothing fails.
        std::thread::sleep(std::time::Duration::from_millis(100));
        pause.release();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(host_of(&image, 8 * cluster), host);
    assert!(image.write_at(9 * cluster, &[1]).is_err(), "and now it is full");
    image.close().unwrap();
    check_clean(&path, "full");
}
