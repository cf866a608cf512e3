//! Files that are terabytes long and hold a few kilobytes: what lies in their holes says nothing, and is not gone through.
//! Counted in calls of the storage.

use std::ops::ControlFlow;

use qcowkit_core::format::HostOffset;
use qcowkit_core::image::{
    AmendOptions, Content, CreateOptions, Extent, Image, Layer, NewBacking, NewSnapshot, OpenOptions, Preallocation,
    SnapshotSelector,
};
use qcowkit_core::operations::repair::{RepairLevel, RepairOptions, apply, plan};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{CallCounts, CountingStorage, MemoryStorage, ReadStorage, Storage};
use qcowkit_trial::walk::{COPIED, Fields};

const CLUSTER: u64 = 2 << 20;
/// L2 tables that lie in holes, each of 2 MiB.
const TABLES: u64 = 2000;
/// Bytes of disk behind one of them.
const COVERED: u64 = CLUSTER / 8 * CLUSTER;

type Counting = CountingStorage<MemoryStorage>;

/// What is done to an image, and its name.
type Case = (&'static str, fn(&mut Image<Counting>));

fn create(cluster_size: u64, size: u64) -> MemoryStorage {
    let create = CreateOptions { cluster_size, ..CreateOptions::default() };
    Image::create(MemoryStorage::new(), size, &create).unwrap().close().unwrap()
}

fn fields(storage: &MemoryStorage) -> Fields {
    let mut head = vec![0; 4096];
    storage.read_at(0, &mut head).unwrap();
    Fields::read(&head)
}

fn put_all(storage: &MemoryStorage, at: u64, values: impl Iterator<Item = u64>) {
    let bytes: Vec<u8> = values.flat_map(u64::to_be_bytes).collect();
    storage.write_at(at, &bytes).unwrap();
}

/// An image whose L1 table names tables in a hole of 4 GB; its refcounts are right.
fn with_tables_in_a_hole() -> MemoryStorage {
    let storage = create(CLUSTER, TABLES * COVERED);
    let l1 = fields(&storage).l1_offset;
    let first = storage.len().unwrap();
    put_all(&storage, l1, (0..TABLES).map(|n| (first + n * CLUSTER) | COPIED));
    storage.set_len(first + TABLES * CLUSTER).unwrap();
    let plan = plan(&storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).unwrap();
    apply(&plan, &storage, false).unwrap();
    storage
}

fn open(storage: MemoryStorage) -> Image<Counting> {
    Image::open(CountingStorage::new(storage), OpenOptions::default()).unwrap()
}

fn assert_few_reads(what: &str, counts: &CallCounts) {
    // One question for each table now and then; to read them all would be a million calls.
    assert!(counts.read.calls < 3000, "{what}: {} calls of read_at", counts.read.calls);
    assert!(counts.read.bytes < 256 << 20, "{what}: {} bytes are read", counts.read.bytes);
    assert!(counts.next_extent.calls < 12 * TABLES, "{what}: {} calls of next_extent", counts.next_extent.calls);
}

#[test]
fn tables_in_holes_are_not_read() {
    let cases: [Case; 7] = [
        ("map", |image| {
            let size = image.virtual_size();
            let extents = image.map(0, size).unwrap();
            assert_eq!(extents.iter().map(|extent| extent.content).collect::<Vec<_>>(), [Content::Unallocated]);
        }),
        ("places", |image| {
            let size = image.virtual_size();
            assert_eq!(image.next_place(0, size).unwrap(), (None, size));
        }),
        ("discard", |image| image.discard(0, image.virtual_size()).unwrap()),
        ("empty", |image| image.empty().unwrap()),
        ("shrink", |image| image.resize(1 << 20).unwrap()),
        ("snapshots", |image| {
            let id = image.create_snapshot(&NewSnapshot::default()).unwrap().id;
            let selector = SnapshotSelector::Id(id);
            image.apply_snapshot(&selector).unwrap();
            image.delete_snapshot(&selector).unwrap();
        }),
        ("downgrade", |image| {
            image.amend(&AmendOptions { version: Some(2), ..AmendOptions::default() }, &mut |_, _| ()).unwrap();
        }),
    ];
    for (what, operation) in cases {
        let mut image = open(with_tables_in_a_hole());
        operation(&mut image);
        let counting = image.close().unwrap();
        assert_few_reads(what, &counting.counts());
        let report = check(&counting, &read_header(&counting).unwrap(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{what}: {report:?}");
    }
}

/// In whatever order an L1 table names them: a check asks for a hole now and then, not for each table.
#[test]
fn tables_in_any_order_in_a_hole_are_one_question() {
    let storage = create(CLUSTER, TABLES * COVERED);
    let l1 = fields(&storage).l1_offset;
    let first = storage.len().unwrap();
    storage.set_len(first + TABLES * CLUSTER).unwrap();
    for order in [(|n| n) as fn(u64) -> u64, |n| TABLES - 1 - n, |n| n * 7 % TABLES] {
        put_all(&storage, l1, (0..TABLES).map(|n| (first + order(n) * CLUSTER) | COPIED));
        let counting = CountingStorage::new(&storage);
        check(&counting, &read_header(&counting).unwrap(), &mut |_| ()).unwrap();
        let counts = counting.counts();
        assert!(counts.next_extent.calls < TABLES / 10, "{} calls of next_extent", counts.next_extent.calls);
        // Some refcounts are read alone, for the findings: nothing here has one.
        assert!(counts.read.bytes < 16 << 20, "{} bytes are read", counts.read.bytes);
    }
}

/// What waits in memory for a table that is a hole in the file still counts.
#[test]
fn entries_that_wait_for_a_commit_are_seen() {
    let mut image = open(with_tables_in_a_hole());
    let middle = 7 * COVERED + COVERED / 2;
    image.write_at(middle, &[1; 512]).unwrap();
    let size = image.virtual_size();
    let data = |image: &mut Image<Counting>| {
        let extents = image.map(0, size).unwrap();
        extents.iter().filter(|extent| !extent.is_zero()).map(|extent| extent.guest_offset).collect::<Vec<_>>()
    };
    assert_eq!(data(&mut image), [middle]);
    image.flush().unwrap();
    assert_eq!(data(&mut image), [middle]);
    image.discard(0, size).unwrap();
    assert_eq!(data(&mut image), []);
}

/// Blocks of refcounts in a hole, of which most speak for what lies behind the end of the file: all refcounts there are 0.
#[test]
fn refcount_blocks_in_holes_are_not_read() {
    let make = || {
        let storage = create(CLUSTER, 1 << 40);
        let table = fields(&storage).refcount_table;
        let first = storage.len().unwrap();
        put_all(&storage, table + 8, (0..TABLES).map(|n| first + n * CLUSTER));
        storage.set_len(first + TABLES * CLUSTER).unwrap();
        // The refcounts of the blocks themselves.
        let counting = CountingStorage::new(storage);
        let plan = plan(&counting, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).unwrap();
        apply(&plan, &counting, false).unwrap();
        assert_few_reads("repair", &counting.counts());
        counting.into_inner()
    };
    let cases: [Case; 3] = [
        ("shrink", |image| image.resize(1 << 20).unwrap()),
        ("width", |image| {
            image.amend(&AmendOptions { refcount_bits: Some(64), ..AmendOptions::default() }, &mut |_, _| ()).unwrap();
        }),
        ("write", |image| image.write_at(0, &[1; 512]).unwrap()),
    ];
    for (what, operation) in cases {
        let mut image = open(make());
        operation(&mut image);
        let counting = image.close().unwrap();
        assert_few_reads(what, &counting.counts());
        let report = check(&counting, &read_header(&counting).unwrap(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{what}: {report:?}");
    }
}

const SMALL: u64 = 65_536;
/// All that one table of clusters of 64 KiB maps: 512 MiB.
const MAPPED: u64 = SMALL / 8 * SMALL;

/// An image that maps a place for all of its disk, of which all but a little is a hole.
fn preallocated(backing: bool) -> (MemoryStorage, u64) {
    let names = CreateOptions {
        backing_file: backing.then(|| "base".into()),
        backing_format: backing.then(|| "qcow2".into()),
        ..CreateOptions::default()
    };
    let mut image = Image::create(MemoryStorage::new(), MAPPED, &names).unwrap();
    if backing {
        image = image.with_backing(Layer::Raw { storage: MemoryStorage::with_len(MAPPED), length: MAPPED });
    }
    image.preallocate(0, MAPPED, Preallocation::Metadata).unwrap();
    image.write_at(MAPPED / 2, &[1; 5000]).unwrap();
    let Content::Data { host_offset } = image.next_extent(0, MAPPED).unwrap().content else { panic!("not mapped") };
    (image.close().unwrap(), host_offset.get())
}

#[test]
fn data_end_where_a_large_hole_begins() {
    let (storage, host) = preallocated(false);
    // A small hole between data is read like them.
    storage.write_at(host + MAPPED / 2 + 100_000, &[1]).unwrap();
    let mut image = Image::open(storage, OpenOptions::default().read_only()).unwrap();
    let data = |host: u64| Content::Data { host_offset: HostOffset::new(host) };
    let mut parts = Vec::new();
    let mut at = 0;
    while at < MAPPED {
        let extent = image.next_extent(at, MAPPED - at).unwrap();
        assert_eq!(extent, Extent { guest_offset: at, length: MAPPED - at, depth: 0, content: data(host + at) });
        let part = image.without_holes(extent);
        parts.push((part.guest_offset, part.length, part.is_zero()));
        at += part.length;
    }
    // In whole clusters.
    let (begin, end) = (MAPPED / 2, MAPPED / 2 + 102_400_u64.next_multiple_of(image.geometry().cluster_size()));
    assert_eq!(parts, [(0, begin, true), (begin, end - begin, false), (end, MAPPED - end, true)]);
}

#[test]
fn the_last_cluster_of_a_file_is_data_to_its_end() {
    let mut image = Image::open(create(SMALL, 16 << 20), OpenOptions::default()).unwrap();
    image.write_at(5 << 20, b"new").unwrap();
    let extent = image.next_extent(5 << 20, 1 << 20).unwrap();
    assert!(extent.length > 3 && !extent.is_zero());
    assert_eq!(image.without_holes(extent), extent);
}

#[test]
fn a_commit_does_not_read_holes() {
    let (storage, _) = preallocated(true);
    let below = create(SMALL, MAPPED);
    let mut base = Image::open(CountingStorage::new(below), OpenOptions::default()).unwrap();
    base.write_at(0, &[7; 100_000]).unwrap();
    let options = OpenOptions { ignore_missing_files: true, ..OpenOptions::default() };
    let image = Image::open(CountingStorage::new(storage), options).unwrap();
    let mut image = image.with_backing(Layer::Image(Box::new(base)));
    let report = image.commit_into(1, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert!(report.data_bytes <= 1 << 20, "{report:?}");
    let read = image.storage().counts().read.bytes;
    assert!(read < 4 << 20, "{read} bytes are read");
    let base = image.image_at_depth_mut(1).unwrap();
    let mut bytes = vec![0; 100_000];
    base.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    base.read_at(MAPPED / 2, &mut bytes).unwrap();
    assert!(bytes[..5000] == [1; 5000] && bytes[5000..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_rebase_does_not_read_holes() {
    let (storage, _) = preallocated(false);
    let base = Image::open(CountingStorage::new(storage), OpenOptions::default().read_only()).unwrap();
    let names = CreateOptions {
        backing_file: Some("base".into()),
        backing_format: Some("qcow2".into()),
        ..CreateOptions::default()
    };
    let image = Image::create(CountingStorage::new(MemoryStorage::new()), MAPPED, &names).unwrap();
    let mut image = image.with_backing(Layer::Image(Box::new(base)));
    let none = NewBacking { name: String::new(), format: None, layer: None, shared_depth: None };
    let report = image.rebase(none, false, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert!(report.data_bytes <= 1 << 20, "{report:?}");
    let mut bytes = vec![0; 6000];
    image.read_at(MAPPED / 2, &mut bytes).unwrap();
    assert!(bytes[..5000] == [1; 5000] && bytes[5000..].iter().all(|&byte| byte == 0));
}
