//! Amending: another version, another refcount width, other names. The guest sees no difference wherever it stops.

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{AmendOptions, CreateOptions, Image, OpenOptions};
use qcowkit_core::metadata::MetadataOptions;
use qcowkit_core::storage::{MemoryStorage, RecordingStorage};

use super::Rng;
use super::cuts::check_cuts;
use super::outcome::Outcome;
use super::session::{Flushed, Scenario, Session, open_over};
use super::snapshot::make_snapshot;
use super::walk::walk;

/// Bytes of the disk.
pub const SIZE: u64 = 150_528;

/// An image before it is amended, and what its disk and its snapshot hold.
pub struct Base {
    /// How it is opened.
    pub scenario: Scenario,
    /// The file.
    pub bytes: Vec<u8>,
    /// The backing file.
    pub backing: Option<Vec<u8>>,
    /// Of the disk.
    pub content: Vec<u8>,
    /// Of the snapshot.
    pub snapshot: Option<Vec<u8>>,
}

/// Small caches.
#[must_use]
pub fn open() -> OpenOptions {
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    OpenOptions::default().with_metadata(metadata)
}

/// Data, packed clusters, zeros with and without a cluster, some of them beside a snapshot.
///
/// # Panics
/// When an image does something else than the model.
#[must_use]
pub fn base(create: &CreateOptions, backing: bool, snapshot: bool, seed: u64) -> Base {
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

/// What is amended.
#[must_use]
pub fn options(change: impl FnOnce(&mut AmendOptions)) -> AmendOptions {
    let mut options = AmendOptions::default();
    change(&mut options);
    options
}

/// A new image.
#[must_use]
pub fn create(cluster_size: u64, refcount_bits: u32) -> CreateOptions {
    CreateOptions { cluster_size, refcount_bits, ..CreateOptions::default() }
}

/// Name, new image, backing file, snapshot, what to amend.
pub type Case = (&'static str, CreateOptions, bool, bool, AmendOptions);

/// Amendments of many kinds.
#[must_use]
pub fn cases() -> Vec<Case> {
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

/// The header says what was asked for.
///
/// # Panics
/// If not.
pub fn assert_amended(name: &str, header: &HeaderArea, options: &AmendOptions) {
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

/// Amends one image, and judges states of it.
///
/// # Panics
/// When it is amended to something else.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let mut all = cases();
    let (name, create, backing, snapshot, amend) = all.swap_remove((seed % all.len() as u64) as usize);
    let base = base(&create, backing, snapshot, seed);
    let below = || base.backing.as_ref().map(|b| (RecordingStorage::new(MemoryStorage::from_bytes(b)), b.len() as u64));
    let disk = RecordingStorage::new(MemoryStorage::from_bytes(&base.bytes));
    let mut image = open_over(disk, &open(), below()).unwrap();
    let mut told = Vec::new();
    image.amend(&amend, &mut |done, total| told.push((done, total))).unwrap();
    assert!(told.is_sorted() && told.last().is_some_and(|(done, total)| done == total), "{name}: {told:?}");
    let disk = image.close().unwrap();
    let events = disk.events();
    let bytes = disk.into_parts().0.to_vec().unwrap();
    assert_amended(name, &HeaderArea::parse(&bytes).unwrap(), &amend);
    assert_eq!(walk(&bytes).unwrap().leaks(u64::MAX), 0, "{name}");
    let session = Session {
        base: base.bytes,
        backing: base.backing,
        snapshot: base.snapshot,
        events,
        flushed: vec![Flushed { events: 0, content: base.content }],
        operations: [(name, 1)].into(),
        ..Session::default()
    };
    check_cuts(&base.scenario, &session, seed, budget)
}
