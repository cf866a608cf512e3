//! Amending: another version, another refcount width, other names. The guest sees no difference, before, after, and
//! wherever a power cut or a failing storage stops it.

mod common;

use common::Rng;
use common::cuts::check_cuts;
use common::session::{Flushed, Scenario, Session, open_over};
use common::snapshot::{make_snapshot, view_of_snapshot};
use common::walk::walk;
use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{AmendOptions, CreateOptions, Image, OpenOptions};
use qcowkit_core::metadata::MetadataOptions;
use qcowkit_core::operations::check;
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, RecordingStorage, Storage, StorageErrorKind,
    StorageOperation,
};

const SIZE: u64 = 150_528;

/// An image before it is amended, and what its disk and its snapshot hold.
struct Base {
    scenario: Scenario,
    bytes: Vec<u8>,
    backing: Option<Vec<u8>>,
    content: Vec<u8>,
    snapshot: Option<Vec<u8>>,
}

fn open() -> OpenOptions {
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    OpenOptions::default().with_metadata(metadata)
}

/// Data, packed clusters, zeros with and without a cluster, some of them beside a snapshot.
fn base(create: &CreateOptions, backing: bool, snapshot: bool, seed: u64) -> Base {
    let mut rng = Rng::new(seed);
    let create = CreateOptions {
        backing_file: backing.then(|| "base".into()),
        backing_format: backing.then(|| "raw".into()),
        ..create.clone()
    };
    let backing: Option<Vec<u8>> = backing.then(|| (0..100_000u32).map(|n| (n / 64) as u8 | 0x80).collect());
    let packed = create.refcount_bits > 1 && (snapshot || create.refcount_bits < 64);
    let mut content = vec![0u8; SIZE as usize];
    if let Some(bytes) = &backing {
        content[..bytes.len()].copy_from_slice(bytes);
    }
    let mut bytes = Image::create(MemoryStorage::new(), SIZE, &create).unwrap().close().unwrap().to_vec().unwrap();
    let mut fill = |bytes: &mut Vec<u8>, content: &mut Vec<u8>, steps: u64| {
        let below = backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
        let mut image = open_over(MemoryStorage::from_bytes(bytes), &open(), below).unwrap();
        for step in 0..steps {
            let cluster = create.cluster_size;
            let at = rng.below(SIZE / cluster) * cluster;
            let length = ((rng.below(4) + 1) * cluster).min(SIZE - at);
            let range = at as usize..(at + length) as usize;
            let data = vec![step as u8 % 100 + 1; length as usize];
            match rng.below(5) {
                0 | 1 => image.write_at(at, &data).unwrap(),
                // Packed clusters have many references: not where one bit has to hold them.
                2 if packed => image.write_compressed(at, &data).unwrap(),
                3 if create.version >= 3 => image.write_zeroes(at, length, false).unwrap(),
                _ if create.version >= 3 => image.discard(at, length).unwrap(),
                _ => continue,
            }
            image.read_at(at, &mut content[range]).unwrap();
        }
        *bytes = image.close().unwrap().to_vec().unwrap();
    };
    fill(&mut bytes, &mut content, 30);
    let mut seen = None;
    if snapshot {
        while !make_snapshot(&mut bytes) {
            fill(&mut bytes, &mut content, 4);
        }
        seen = Some(content.clone());
        fill(&mut bytes, &mut content, 20);
    }
    let scenario = Scenario {
        name: "amend",
        backing: backing.as_ref().map_or(0, |b| b.len() as u64),
        open: open(),
        size: SIZE,
        snapshot,
        snapshots: false,
        resize: false,
        steps: 0,
        preallocated: 0,
        create,
    };
    Base { scenario, bytes, backing, content, snapshot: seen }
}

fn options(change: impl FnOnce(&mut AmendOptions)) -> AmendOptions {
    let mut options = AmendOptions::default();
    change(&mut options);
    options
}

fn create(cluster_size: u64, refcount_bits: u32) -> CreateOptions {
    CreateOptions { cluster_size, refcount_bits, ..CreateOptions::default() }
}

/// Name, new image, backing file, snapshot, what to amend.
fn cases() -> Vec<(&'static str, CreateOptions, bool, bool, AmendOptions)> {
    let down = options(|o| o.version = Some(2));
    let up = options(|o| o.version = Some(3));
    let width = |bits| options(|o| o.refcount_bits = Some(bits));
    let old = CreateOptions { version: 2, ..create(1024, 16) };
    vec![
        ("down", create(512, 16), false, false, down.clone()),
        ("down, backing", create(1024, 16), true, false, down.clone()),
        ("down, snapshot", create(512, 16), false, true, down.clone()),
        ("down, backing and snapshot", create(1024, 16), true, true, down),
        ("up", CreateOptions { version: 2, ..create(512, 16) }, false, false, up.clone()),
        ("up, backing and snapshot", old.clone(), true, true, up),
        ("narrower", create(512, 64), false, false, width(1)),
        ("wider", create(512, 1), false, false, width(64)),
        ("wider, snapshot", create(1024, 16), true, true, width(32)),
        ("narrower, snapshot", create(512, 64), false, true, width(8)),
        (
            "all at once",
            create(1024, 64),
            true,
            true,
            options(|o| {
                (o.version, o.refcount_bits, o.lazy_refcounts) = (Some(2), Some(16), Some(false));
                o.backing = Some(("base".into(), Some("qcow2".into())));
            }),
        ),
        (
            "up with everything",
            old,
            false,
            false,
            options(|o| (o.version, o.refcount_bits, o.lazy_refcounts) = (Some(3), Some(8), Some(true))),
        ),
        ("a long name", create(4096, 16), true, false, options(|o| o.backing = Some(("b".repeat(1023), None)))),
    ]
}

fn assert_amended(name: &str, header: &HeaderArea, options: &AmendOptions) {
    let fields = &header.header;
    assert_eq!(fields.version, options.version.unwrap_or(fields.version), "{name}");
    assert_eq!(1 << fields.refcount_order, options.refcount_bits.unwrap_or(1 << fields.refcount_order), "{name}");
    if let Some(lazy) = options.lazy_refcounts {
        assert_eq!(fields.compatible.lazy_refcounts(), lazy, "{name}");
    }
    if let Some((backing, format)) = &options.backing {
        assert_eq!(header.backing_file.as_ref().unwrap(), &backing[..], "{name}");
        assert_eq!(header.backing_format().map(ToString::to_string), *format, "{name}");
    }
}

#[test]
fn a_power_cut_leaves_the_disk_as_it_was() {
    let mut states = 0;
    for (name, create, backing, snapshot, amend) in cases() {
        for seed in 1..4 {
            let base = base(&create, backing, snapshot, seed);
            let below =
                || base.backing.as_ref().map(|b| (RecordingStorage::new(MemoryStorage::from_bytes(b)), b.len() as u64));
            let disk = RecordingStorage::new(MemoryStorage::from_bytes(&base.bytes));
            let mut image = open_over(disk, &open(), below()).unwrap();
            let mut told = Vec::new();
            image.amend(&amend, &mut |done, total| told.push((done, total))).unwrap();
            assert!(told.is_sorted() && told.last().is_some_and(|(done, total)| done == total), "{name}: {told:?}");
            let disk = image.close().unwrap();
            let events = disk.events();
            let bytes = disk.into_parts().0.to_vec().unwrap();
            assert_amended(name, &HeaderArea::parse(&bytes).unwrap(), &amend);
            let walked = walk(&bytes).unwrap();
            assert_eq!(walked.leaks(u64::MAX), 0, "{name}");
            let session = Session {
                base: base.bytes.clone(),
                backing: base.backing.clone(),
                snapshot: base.snapshot.clone(),
                events,
                flushed: vec![Flushed { events: 0, content: base.content.clone() }],
                changes: Vec::new(),
                taken: Vec::new(),
                applied: Vec::new(),
            };
            match check_cuts(&base.scenario, &session, seed, 200) {
                Ok(checked) => states += checked,
                Err(error) => panic!("{name}, seed {seed}: {error}"),
            }
        }
    }
    assert!(states > 3000, "{states}");
}

fn contents<S: qcowkit_core::storage::Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut got = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut got).unwrap();
    got
}

/// Amends while one rule holds; whether it struck.
fn fail_once(name: &str, base: &Base, amend: &AmendOptions, rule: &FailureRule) -> bool {
    let disk = MemoryStorage::from_bytes(&base.bytes);
    let below = base.backing.as_ref().map(|b| MemoryStorage::from_bytes(b));
    let failing = below.as_ref().map(|below| (FailingStorage::new(below), base.scenario.backing));
    let mut image = open_over(FailingStorage::new(&disk), &open(), failing).unwrap();
    image.storage().fail(rule.clone());
    let done = image.amend(amend, &mut |_, _| ());
    let struck = image.storage().failures() > 0;
    image.storage().heal();
    match &done {
        Ok(()) => {}
        Err(error) => assert!(struck, "{name}, {rule:?}: failed by itself: {error}"),
    }
    let poisoned = done.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Poisoned(_)));
    let mut content = base.content.clone();
    if poisoned {
        assert!(image.write_at(0, &[9; 10]).is_err(), "{name}, {rule:?}");
    } else {
        // Usable, and what failed can be tried again.
        image.write_at(5_000, &[9; 3000]).unwrap();
        content[5_000..8_000].fill(9);
        image.amend(amend, &mut |_, _| ()).unwrap_or_else(|error| panic!("{name}, {rule:?}: again: {error}"));
        assert!(contents(&mut image) == content, "{name}, {rule:?}");
        image.flush().unwrap();
    }
    drop(image);
    let bytes = disk.to_vec().unwrap();
    walk(&bytes).unwrap_or_else(|error| panic!("{name}, {rule:?}: {error}"));
    let area = HeaderArea::parse(&bytes).unwrap();
    let report = check(&disk, &area, &mut |_| ()).unwrap();
    assert_eq!(report.corruptions + report.check_errors, 0, "{name}, {rule:?}: {report:?}");
    if !poisoned {
        assert_amended(name, &area, amend);
    }
    let reopened = base.backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
    let mut image = open_over(MemoryStorage::from_bytes(&bytes), &open().read_only(), reopened).unwrap();
    assert!(contents(&mut image) == content, "{name}, {rule:?}: contents");
    if let Some(expected) = &base.snapshot {
        let below = base.backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
        let view = MemoryStorage::from_bytes(&view_of_snapshot(&bytes).unwrap());
        let mut image = open_over(view, &open().read_only(), below).unwrap();
        assert!(&contents(&mut image) == expected, "{name}, {rule:?}: the snapshot");
    }
    struck
}

#[test]
fn every_call_may_fail() {
    let scopes = [
        FailureScope::WriteSide,
        FailureScope::Only(StorageOperation::Barrier),
        FailureScope::Only(StorageOperation::Read),
    ];
    let mut failures = 0;
    for (name, create, backing, snapshot, amend) in cases() {
        let base = base(&create, backing, snapshot, 7);
        for scope in scopes {
            for nth in 1.. {
                let rule = FailureRule::nth(scope, nth).with_kind(StorageErrorKind::NoSpace);
                if !fail_once(name, &base, &amend, &rule) {
                    break;
                }
                failures += 1;
            }
        }
    }
    assert!(failures > 300, "{failures}");
}

#[test]
fn what_does_not_go_together_changes_nothing() {
    let narrow = base(&create(512, 64), false, true, 3);
    for (amend, words) in [
        (options(|o| o.version = Some(2)), "compat=0.10 requires refcount_bits=16"),
        (options(|o| o.version = Some(4)), "format version"),
        (options(|o| o.refcount_bits = Some(7)), "power of two"),
        (options(|o| o.refcount_bits = Some(128)), "power of two"),
        (options(|o| o.refcount_bits = Some(1)), "has a refcount of 2"),
        (options(|o| o.data_file = Some("d".into())), "data-file can only be set"),
        (options(|o| o.data_file_raw = Some(true)), "data-file-raw cannot be set"),
        (options(|o| o.size = Some(1000)), "multiple of 512"),
        (options(|o| o.backing = Some((String::new(), Some("raw".into())))), "without backing file"),
        (
            options(|o| (o.version, o.refcount_bits, o.lazy_refcounts) = (Some(2), Some(16), Some(true))),
            "Lazy refcounts only supported",
        ),
    ] {
        let disk = MemoryStorage::from_bytes(&narrow.bytes);
        let mut image = Image::open(&disk, open()).unwrap();
        let error = image.amend(&amend, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        drop(image);
        assert!(disk.to_vec().unwrap() == narrow.bytes, "{words}");
    }
    let wide = CreateOptions { extended_l2: true, ..create(16384, 16) };
    let mut image = Image::create(MemoryStorage::new(), SIZE, &wide).unwrap();
    let error = image.amend(&options(|o| o.version = Some(2)), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("incompatible features 0x10"), "{error}");
}

/// Refcounts of a full device can be rewritten only where there is room.
#[test]
fn a_device_without_room_is_refused() {
    let bytes = base(&create(512, 16), false, false, 5).bytes;
    for spare in 0..40u64 {
        let device = MemoryStorage::block_device(bytes.len() as u64 + spare * 512);
        device.write_at(0, &bytes).unwrap();
        let mut image = Image::open(&device, open()).unwrap();
        let done = image.amend(&options(|o| o.refcount_bits = Some(64)), &mut |_, _| ());
        drop(image);
        let after = device.to_vec().unwrap();
        let walked = walk(&after).unwrap();
        match done {
            Ok(()) => {
                assert!(spare > 0);
                assert_eq!(walked.leaks(u64::MAX), 0);
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::NoSpace(_)) && spare < 30, "{error}"),
        }
    }
}
