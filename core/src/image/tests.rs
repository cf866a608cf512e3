//! The engine against a model: a plain `Vec<u8>` of guest bytes.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::format::{GuestCluster, HostOffset};
use crate::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};
use crate::storage::{CountingStorage, MemoryStorage, ReadStorage};

/// A small generator: the same numbers for the same seed, everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }
}

fn read_all<S: Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Every refcount against the references that the tables hold, counted by hand.
fn assert_consistent(storage: &MemoryStorage, exact: bool, what: &str) {
    let report = crate::image::tests::count::references(storage);
    for (cluster, (references, recorded)) in &report {
        assert!(
            recorded >= references,
            "{what}: cluster {cluster:#x} has {references} references, refcount {recorded}"
        );
        if exact {
            assert_eq!(recorded, references, "{what}: cluster {cluster:#x} leaks");
        }
    }
}

/// A walk of its own, so that the engine's tables are not checked by the engine.
mod count {
    use super::*;
    use crate::format::{L1Entry, L2Entry, RawL2Entry, read_refcount};
    use std::collections::BTreeMap;

    fn u64_at(storage: &MemoryStorage, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        storage.read_at(offset, &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    }

    pub(super) fn references(storage: &MemoryStorage) -> BTreeMap<u64, (u64, u64)> {
        let header = crate::image::open::read_header(storage).unwrap();
        let geometry = header.validate(Some(storage.len().unwrap())).unwrap();
        let header = header.header;
        let size = geometry.cluster_size();
        let mut map: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let add = |offset: u64, bytes: u64, map: &mut BTreeMap<u64, (u64, u64)>| {
            if bytes > 0 {
                (offset / size..=(offset + bytes - 1) / size).for_each(|c| map.entry(c).or_default().0 += 1);
            }
        };
        add(0, size, &mut map);
        add(header.l1_table_offset, u64::from(header.l1_size) * 8, &mut map);
        let table_bytes = u64::from(header.refcount_table_clusters) * size;
        add(header.refcount_table_offset, table_bytes, &mut map);
        let mut recorded = Vec::new();
        for index in 0..table_bytes / 8 {
            let offset = u64_at(storage, header.refcount_table_offset + index * 8);
            if offset == 0 {
                continue;
            }
            add(offset, size, &mut map);
            let mut block = vec![0; size as usize];
            storage.read_at(offset, &mut block).unwrap();
            let entries = geometry.refcount_block_entries();
            for n in 0..entries {
                let value = read_refcount(&block, n, geometry.refcount_order()).unwrap();
                if value > 0 {
                    recorded.push((index * entries + n, value));
                }
            }
        }
        for l1 in 0..u64::from(header.l1_size) {
            let raw = u64_at(storage, header.l1_table_offset + l1 * 8);
            let Some(table) = L1Entry::decode(raw, &geometry).unwrap().table() else { continue };
            add(table.offset.get(), size, &mut map);
            for n in 0..geometry.l2_entries() {
                let at = table.offset.get() + n * geometry.l2_entry_size();
                let bitmap = if geometry.extended_l2() { u64_at(storage, at + 8) } else { 0 };
                let raw = RawL2Entry { descriptor: u64_at(storage, at), bitmap };
                match L2Entry::decode(raw, &geometry).unwrap() {
                    L2Entry::Compressed(range) => add(range.offset.get(), range.length, &mut map),
                    L2Entry::Plain { host: Some(host), .. } => add(host.offset.get(), size, &mut map),
                    L2Entry::Plain { host: None, .. } => {}
                }
            }
        }
        for (cluster, value) in recorded {
            map.entry(cluster).or_default().1 = value;
        }
        map
    }
}

struct Case {
    create: CreateOptions,
    open: OpenOptions,
    size: u64,
    name: String,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in [2, 3] {
        for (bits, size) in [(9u32, 300_000u64), (12, 1 << 20), (16, 5 << 20), (14, 3 << 20)] {
            for extended_l2 in [false, true] {
                for refcount_bits in [1u32, 8, 16, 64] {
                    let create = CreateOptions {
                        version,
                        cluster_size: 1 << bits,
                        refcount_bits,
                        extended_l2,
                        ..CreateOptions::default()
                    };
                    if create.validate(size).is_err() {
                        continue;
                    }
                    for (unref, allocation, quarantine_bytes) in [
                        (Unref::Always, AllocationPolicy::Qemu, 0),
                        (Unref::RetainUnshared, AllocationPolicy::FillHoles, 1 << 16),
                        (Unref::Always, AllocationPolicy::Near, u64::MAX),
                    ] {
                        let open = OpenOptions::default()
                            .with_policy(DiscardPolicy { unref, ..DiscardPolicy::default() })
                            .with_metadata(MetadataOptions {
                                allocation,
                                quarantine_bytes,
                                slice_bytes: 512,
                                cache_bytes: 8 * 512,
                                ..MetadataOptions::default()
                            });
                        let name = format!("{create:?} {unref:?} {allocation:?}");
                        cases.push(Case { create: create.clone(), open, size, name });
                    }
                }
            }
        }
    }
    cases
}

fn one_operation(image: &mut Image<MemoryStorage>, model: &mut [u8], rng: &mut Rng, refcount_bits: u32) {
    let size = model.len() as u64;
    let cluster = image.geometry().cluster_size();
    let offset = rng.below(size);
    let most = if rng.below(4) == 0 { cluster * 40 } else { cluster * 3 };
    let length = (rng.below(most) + 1).min(size - offset);
    let range = offset as usize..(offset + length) as usize;
    match rng.below(12) {
        0..=4 => {
            let byte = (rng.below(255) + 1) as u8;
            model[range.clone()].fill(byte);
            image.write_at(offset, &model[range]).unwrap();
        }
        5 => {
            image.write_zeroes(offset, length, rng.below(2) == 0).unwrap();
            model[range].fill(0);
        }
        6..=8 => {
            image.discard(offset, length).unwrap();
            let (from, to) = (offset.next_multiple_of(cluster), offset + length);
            let to = if to == size { to } else { to / cluster * cluster };
            if from < to {
                model[from as usize..to as usize].fill(0);
            }
        }
        9 => {
            let start = offset / cluster * cluster;
            let end = (start + cluster * (1 + rng.below(3))).min(size);
            let range = start as usize..end as usize;
            for (n, byte) in model[range.clone()].iter_mut().enumerate() {
                *byte = (n / 100) as u8;
            }
            // One bit holds no shared cluster, and packed clusters share.
            if refcount_bits > 1 {
                image.write_compressed(start, &model[range]).unwrap();
            } else {
                image.write_at(start, &model[range]).unwrap();
            }
        }
        10 => image.flush().unwrap(),
        _ => {
            let mut bytes = vec![0; length as usize];
            image.read_at(offset, &mut bytes).unwrap();
            assert_eq!(bytes, model[range]);
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    for (n, case) in cases().into_iter().enumerate() {
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15 ^ (n as u64 + 1));
        let size = case.size.next_multiple_of(512);
        let mut model = vec![0u8; size as usize];
        let mut storage =
            Image::create(MemoryStorage::new(), size, &case.create).expect(&case.name).close().expect(&case.name);
        assert_consistent(&storage, true, &case.name);
        for _ in 0..3 {
            let mut image = Image::open(storage, case.open.clone()).unwrap();
            for step in 0..60 {
                one_operation(&mut image, &mut model, &mut rng, case.create.refcount_bits);
                if step % 6 == 0 {
                    assert_consistent(image.storage(), false, &case.name);
                }
            }
            assert!(read_all(&mut image) == model, "{}", case.name);
            storage = image.close().unwrap();
            assert_consistent(&storage, true, &case.name);
            let mut image = Image::open(storage, OpenOptions::default().read_only()).unwrap();
            assert!(read_all(&mut image) == model, "after reopening: {}", case.name);
            storage = image.close().unwrap();
        }
    }
}

/// What cannot be understood is told to who asks for it, not to who asks for what lies before it: a reader that passes
/// over it would otherwise go through all that is before it again and again.
#[test]
fn an_extent_ends_before_what_cannot_be_understood() {
    let mut image = Image::create(MemoryStorage::new(), 1 << 40, &CreateOptions::default()).unwrap();
    let coverage = image.geometry().l2_coverage();
    let l1 = image.header().header.l1_table_offset;
    image.write_at(0, &[1; 512]).unwrap();
    let storage = image.close().unwrap();
    storage.write_at(l1 + 7 * 8, &1u64.to_be_bytes()).unwrap();
    let mut image = Image::open(storage, OpenOptions::default().read_only()).unwrap();
    let cluster = image.geometry().cluster_size();
    let before = image.next_extent(cluster, (1 << 40) - cluster).unwrap();
    assert_eq!(before.length, 7 * coverage - cluster);
    assert!(image.next_extent(7 * coverage, coverage).is_err());
    assert!(image.map(0, 1 << 40).is_err());
    assert!(image.read_at(7 * coverage - 512, &mut [0; 1024]).is_err());
    assert_eq!(image.next_extent(8 * coverage, coverage).unwrap().length, coverage);
}

/// A snapshot's disk may be any size, whatever its L1 table maps: what lies beyond is one extent.
#[test]
fn a_snapshot_that_claims_exabytes_is_mapped_at_once() {
    let mut image = Image::create(MemoryStorage::new(), 1 << 30, &CreateOptions::default()).unwrap();
    image.write_at(0, &[1; 65536]).unwrap();
    image.create_snapshot(&NewSnapshot::default()).unwrap();
    let table = image.header().header.snapshots_offset;
    let storage = image.close().unwrap();
    // Its extra data: the size of the VM state, then that of the disk.
    storage.write_at(table + 48, &(1u64 << 62).to_be_bytes()).unwrap();
    let id = SnapshotSelector::Id("1".into());
    let mut view = Image::open(storage, OpenOptions::default().read_only().of_snapshot(id)).unwrap();
    assert_eq!(view.virtual_size(), 1 << 62);
    let extents = view.map(0, 1 << 62).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.length).collect::<Vec<_>>(), [65536, (1 << 62) - 65536]);
    assert_eq!(view.next_place(65536, (1 << 62) - 65536).unwrap(), (None, (1 << 62) - 65536));
}

/// Very many snapshots can share an L2 table: its refcount says how many references go with each of its entries. A downgrade
/// moves them all at once. (The refcounts are too high here, which nobody minds, and no snapshot is needed.)
#[test]
fn a_downgrade_counts_all_references_to_an_entry_at_once() {
    const ZEROS: u64 = 200;
    const USES: u16 = 60_000;
    let names = CreateOptions {
        cluster_size: 4096,
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        ..CreateOptions::default()
    };
    let below = || Layer::Raw { storage: CountingStorage::new(MemoryStorage::with_len(1 << 20)), length: 1 << 20 };
    let image = Image::create(CountingStorage::new(MemoryStorage::new()), 1 << 20, &names).unwrap();
    let mut image = image.with_backing(below());
    // Half of them keep their clusters.
    image.write_at(0, &vec![1; (ZEROS / 2 * 4096) as usize]).unwrap();
    image.write_zeroes(0, ZEROS * 4096, false).unwrap();
    let old: Vec<HostOffset> = (0..ZEROS / 2)
        .filter_map(|n| image.entry(GuestCluster::new(n)).unwrap().host())
        .map(|host| host.offset)
        .collect();
    assert_eq!(old.len() as u64, ZEROS / 2);
    let table = image.metadata.l2_table(0).unwrap().unwrap().offset;
    let block = {
        let mut bytes = [0; 8];
        image.storage().read_at(image.header().header.refcount_table_offset, &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    };
    let storage = image.close().unwrap();
    for (offset, refcount) in old.iter().map(|&old| (old, USES + 1)).chain([(table, USES)]) {
        storage.write_at(block + offset.get() / 4096 * 2, &refcount.to_be_bytes()).unwrap();
    }
    let options = OpenOptions { ignore_missing_files: true, ..OpenOptions::default() };
    let mut image = Image::open(storage, options).unwrap().with_backing(below());
    image.storage().reset();
    let before = image.metadata.refcount_lookups();
    image.amend(&AmendOptions { version: Some(2), ..AmendOptions::default() }, &mut |_, _| ()).unwrap();
    let lookups = image.metadata.refcount_lookups() - before;
    assert!(lookups < 40 * ZEROS, "refcounts were looked up {lookups} times");
    let barriers = image.storage().counts().barrier.calls;
    assert!(barriers < 20, "{barriers} barriers");
    for n in 0..ZEROS {
        let host = image.entry(GuestCluster::new(n)).unwrap().host().unwrap();
        assert_eq!(image.refcount(image.geometry().host_cluster(host.offset)).unwrap(), u64::from(USES), "cluster {n}");
    }
    for offset in old {
        assert_eq!(image.refcount(image.geometry().host_cluster(offset)).unwrap(), 1);
    }
    assert!(read_all(&mut image).iter().all(|&byte| byte == 0));
}

/// A cluster that has fewer references than the table that names it is refused before anything is changed for it.
#[test]
fn a_downgrade_refuses_refcounts_below_those_of_the_table() {
    let names = CreateOptions {
        cluster_size: 4096,
        backing_file: Some("base".into()),
        backing_format: Some("raw".into()),
        ..CreateOptions::default()
    };
    let image = Image::create(MemoryStorage::new(), 1 << 20, &names).unwrap();
    let mut image = image.with_backing(Layer::Raw { storage: MemoryStorage::with_len(1 << 20), length: 1 << 20 });
    image.write_at(0, &[1; 4096]).unwrap();
    image.write_zeroes(0, 4096, false).unwrap();
    image.flush().unwrap();
    let table = image.metadata.l2_table(0).unwrap().unwrap().offset;
    let table = image.geometry().host_cluster(table);
    let length = image.storage().len().unwrap();
    let more = image.metadata.raise_refcount(&image.storage, table, 6);
    more.unwrap();
    let error = image.amend(&AmendOptions { version: Some(2), ..AmendOptions::default() }, &mut |_, _| ()).unwrap_err();
    assert!(format!("{error}").contains("a cluster with 7 references has refcount 1"), "{error}");
    assert_eq!(image.storage().len().unwrap(), length);
}
