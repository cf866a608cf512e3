//! Tables that very many others name: what goes through an image goes through each of them once, or refuses by a limit. A
//! small file can ask for endless work otherwise.

use qcowkit_core::format::MAX_REPAIR_COPY_BYTES;
use qcowkit_core::image::{AmendOptions, CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::metadata::OverlapChecks;
use qcowkit_core::operations::repair::{
    RepairAction, RepairLevel, RepairLimit, RepairOptions, RepairPlan, apply, plan,
};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{CountingStorage, MemoryStorage, ReadStorage, Storage};
use qcowkit_trial::walk::{COPIED, Fields, be64};

const CLUSTER: u64 = 4096;
/// Bytes of guest data behind one L2 table.
const COVERED: u64 = CLUSTER / 8 * CLUSTER;
/// L1 entries of the images.
const ENTRIES: u64 = 8192;

fn put(storage: &impl Storage, at: u64, value: u64) {
    storage.write_at(at, &value.to_be_bytes()).unwrap();
}

fn get(storage: &impl ReadStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_at(at, &mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// An image with a little data and one snapshot.
fn with_snapshot() -> MemoryStorage {
    let create = CreateOptions { cluster_size: CLUSTER, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), ENTRIES * COVERED, &create).unwrap();
    image.write_at(0, &[1; 20_000]).unwrap();
    image.create_snapshot(&NewSnapshot::default()).unwrap();
    image.close().unwrap()
}

fn fields(storage: &MemoryStorage) -> Fields {
    Fields::read(&storage.to_vec().unwrap())
}

/// The same image with so many snapshots, whose entries all are the one that it has: they share its L1 table. The
/// refcounts do not know of them.
fn with_copies(storage: MemoryStorage, count: u32) -> MemoryStorage {
    let fields = fields(&storage);
    let mut head = [0; 40];
    storage.read_at(fields.snapshots_offset, &mut head).unwrap();
    let number = |at: usize, bytes: usize| head[at..at + bytes].iter().fold(0usize, |n, &b| n << 8 | usize::from(b));
    let length = (40 + number(36, 4) + number(12, 2) + number(14, 2)).next_multiple_of(8);
    let mut entry = vec![0; length];
    storage.read_at(fields.snapshots_offset, &mut entry).unwrap();
    let table = storage.len().unwrap().next_multiple_of(CLUSTER);
    storage.write_at(table, &entry.repeat(count as usize)).unwrap();
    storage.set_len(storage.len().unwrap().next_multiple_of(CLUSTER)).unwrap();
    storage.write_at(60, &count.to_be_bytes()).unwrap();
    put(&storage, 64, table);
    storage
}

fn make_plan(storage: &impl ReadStorage) -> RepairPlan {
    plan(storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).unwrap()
}

fn actions(plan: &RepairPlan, action: RepairAction) -> usize {
    plan.findings.iter().filter(|finding| finding.action == action).count()
}

#[test]
fn a_downgrade_reads_an_l1_table_of_many_snapshots_once() {
    let read = |count| {
        let storage = CountingStorage::new(with_copies(with_snapshot(), count));
        let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
        storage.reset();
        image.amend(&AmendOptions { version: Some(2), ..AmendOptions::default() }, &mut |_, _| ()).unwrap();
        image.close().unwrap();
        assert_eq!(read_header(&storage).unwrap().header.version, 2);
        storage.counts().read.bytes
    };
    let (one, many) = (read(1), read(1000));
    // The snapshot table itself is larger, and is read several times; their L1 tables would be 64 MB.
    assert!(many < one + (4 << 20), "{one} bytes are read with one snapshot, {many} with 1000");
}

#[test]
fn overlap_checks_read_an_l1_table_of_many_snapshots_once() {
    let read = |count| {
        let storage = with_copies(with_snapshot(), count);
        // The refcounts become right: a write needs clusters.
        apply(&make_plan(&storage), &storage, false).unwrap();
        let storage = CountingStorage::new(storage);
        let options = OpenOptions { overlap: OverlapChecks::ALL, ..OpenOptions::default() };
        let mut image = Image::open(&storage, options).unwrap();
        image.write_at(0, &[2; 512]).unwrap();
        image.close().unwrap();
        storage.counts().read.bytes
    };
    let (one, many) = (read(1), read(1000));
    assert!(many < one + (4 << 20), "{one} bytes are read with one snapshot, {many} with 1000");
}

/// The refcounts of what so many snapshots share are raised, and nothing is moved: it is theirs together.
#[test]
fn a_repair_takes_an_l1_table_of_many_snapshots_for_one() {
    let storage = with_copies(with_snapshot(), 60_000);
    let plan = make_plan(&storage);
    assert_eq!(actions(&plan, RepairAction::MoveL1Table), 0);
    assert!(plan.after.is_clean(), "{:?}", plan.after);
    apply(&plan, &storage, false).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
}

/// Guest data lie on the L1 table of many snapshots: it moves, once, and they have it in common still.
#[test]
fn an_l1_table_of_many_snapshots_moves_once() {
    const COUNT: u32 = 5000;
    let storage = with_copies(with_snapshot(), COUNT);
    let l1 = get(&storage, fields(&storage).snapshots_offset);
    let l2 = get(&storage, fields(&storage).l1_offset) & !COPIED;
    put(&storage, l2 + 8 * 100, l1);
    let plan = make_plan(&storage);
    assert_eq!(actions(&plan, RepairAction::MoveL1Table), COUNT as usize);
    assert!(plan.length_after - plan.length_before < 4 << 20, "{}", plan.length_after);
    assert!(plan.after.is_clean(), "{:?}", plan.after);
    apply(&plan, &storage, false).unwrap();
    let table = storage.to_vec().unwrap();
    let places: Vec<u64> = fields_of_snapshots(&table, COUNT);
    assert!(places[0] != l1 && places.iter().all(|&place| place == places[0]));
}

/// Where the L1 tables of the snapshots are; their entries have one length.
fn fields_of_snapshots(bytes: &[u8], count: u32) -> Vec<u64> {
    let fields = Fields::read(bytes);
    let at = fields.snapshots_offset;
    let first = be64(bytes, at);
    let length = (1..).map(|n| n * 8).find(|&n| n >= 40 && be64(bytes, at + n) == first).unwrap();
    (0..u64::from(count)).map(|n| be64(bytes, at + n * length)).collect()
}

/// More L1 entries lead to an L2 table than a refcount can say: as many as it can say get the same copy.
#[test]
fn a_table_that_all_l1_entries_name_is_copied_a_few_times() {
    let create = CreateOptions { cluster_size: CLUSTER, refcount_bits: 8, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), ENTRIES * COVERED, &create).unwrap();
    image.write_zeroes(0, COVERED, false).unwrap();
    let storage = image.close().unwrap();
    let l1 = fields(&storage).l1_offset;
    let entry = get(&storage, l1);
    assert_ne!(entry, 0);
    storage.write_at(l1, &entry.to_be_bytes().repeat(ENTRIES as usize)).unwrap();
    let plan = make_plan(&storage);
    assert!(plan.after.is_clean(), "{:?}", plan.after);
    // 255 references each.
    let copies = ENTRIES.div_ceil(255);
    let more = plan.length_after - plan.length_before;
    assert!(more <= (copies + 2) * CLUSTER, "{more} bytes for {copies} copies");
    apply(&plan, &storage, false).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
}

/// What has to be copied because refcounts are too narrow has a limit, over all rounds together; once they are written, it
/// goes on.
#[test]
fn copies_have_a_limit() {
    const LARGE: u64 = 2 << 20;
    let create = CreateOptions { cluster_size: LARGE, refcount_bits: 1, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 100 << 30, &create).unwrap();
    image.write_compressed(0, &vec![7; LARGE as usize]).unwrap();
    let storage = image.close().unwrap();
    let l2 = get(&storage, fields(&storage).l1_offset) & !COPIED;
    let entry = get(&storage, l2);
    storage.write_at(l2, &entry.to_be_bytes().repeat(400)).unwrap();
    let mut whole = make_plan(&storage);
    let more = whole.length_after - whole.length_before;
    assert!(more <= MAX_REPAIR_COPY_BYTES + 8 * LARGE, "{more}");
    assert!(more > MAX_REPAIR_COPY_BYTES - 8 * LARGE, "{more}");
    assert!(whole.after.corruptions > 0);
    assert_eq!(whole.limit(), Some(RepairLimit::Copies));
    assert!(RepairLimit::Copies.to_string().contains("256 MiB"));
    assert_eq!(serde_json::to_value(RepairLimit::Copies).unwrap(), "copies");
    apply(&whole, &storage, false).unwrap();
    let (before, length) = (whole.before.as_ref().unwrap().corruptions, whole.length_before);
    let mut limit = whole.limit();
    let mut plans = 1;
    while limit.is_some() {
        whole.forget_changes();
        let more = make_plan(&storage);
        apply(&more, &storage, false).unwrap();
        limit = more.limit();
        whole.join_carried_out(more);
        plans += 1;
    }
    assert_eq!(plans, 4);
    // Together they tell the whole story.
    assert!(whole.after.is_clean() && !whole.is_empty());
    assert_eq!((whole.corruptions_fixed(), whole.length_before), (before, length));
    assert_eq!(whole.length_after, storage.len().unwrap());
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
}

/// More snapshots share a table than a refcount can say: copies of what it leads to would have as many references again.
#[test]
fn what_no_copy_can_help_is_not_copied() {
    let create = CreateOptions { cluster_size: CLUSTER, refcount_bits: 8, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), ENTRIES * COVERED, &create).unwrap();
    for table in 0..20 {
        image.write_at(table * COVERED, &[1; 512]).unwrap();
    }
    image.create_snapshot(&NewSnapshot::default()).unwrap();
    let storage = with_copies(image.close().unwrap(), 300);
    let plan = make_plan(&storage);
    assert_eq!(actions(&plan, RepairAction::CopyCluster), 0);
    assert!(plan.after.corruptions > 0);
    assert!(plan.length_after - plan.length_before < 20 * CLUSTER, "{}", plan.length_after);
}
