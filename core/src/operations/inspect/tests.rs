//! Structures of sound images as they are, of broken ones as far as they go, and never a panic.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::format::{L2Kind, Snapshot};
use crate::image::{Content, CreateOptions, Image, LayerFormat};
use crate::operations::walk::L1Owner;
use crate::storage::{MemoryStorage, Storage};

const CLUSTER: u64 = 65536;

fn options() -> CreateOptions {
    CreateOptions::default()
}

/// Data in clusters 0 and 1, plain zeros in 2, compressed data in 3, nothing in 4.
fn sample(options: &CreateOptions) -> MemoryStorage {
    let mut image = Image::create(MemoryStorage::new(), 1 << 30, options).unwrap();
    image.write_at(0, &vec![1; 2 * CLUSTER as usize]).unwrap();
    image.write_zeroes(2 * CLUSTER, CLUSTER, true).unwrap();
    image.write_compressed(3 * CLUSTER, &vec![9; CLUSTER as usize]).unwrap();
    image.close().unwrap()
}

fn put(storage: &MemoryStorage, at: u64, value: u64) {
    storage.write_at(at, &value.to_be_bytes()).unwrap();
}

#[test]
fn the_header_shows_fields_features_and_extensions() {
    let backing = CreateOptions {
        backing_file: Some("base.raw".into()),
        backing_format: Some("raw".into()),
        lazy_refcounts: true,
        ..options()
    };
    let storage = Image::create(MemoryStorage::new(), 1 << 30, &backing).map(|image| image.close().unwrap());
    let storage = storage.unwrap();
    // An unknown incompatible bit, which keeps everyone from opening it.
    put(&storage, 72, 1 << 40);
    let inspector = Inspector::new(&storage);
    let header = inspector.header();
    let header = header.value().unwrap();
    assert_eq!(header.backing_file.as_deref(), Some("base.raw"));
    assert_eq!(header.backing_format.as_deref(), Some("raw"));
    let bits: Vec<_> = header.features.iter().map(|bit| (bit.bit, bit.known, bit.name.as_str())).collect();
    assert_eq!(bits, [(40, false, "unknown incompatible feature bit 40"), (0, true, "lazy refcounts")]);
    let size = header.fields.iter().find(|field| field.name == "size").unwrap();
    assert_eq!((size.offset, size.raw), (24, 1 << 30));
    let mut kind = [0; 4];
    for extension in &header.extensions {
        storage.read_at(extension.offset, &mut kind).unwrap();
        assert_eq!(u32::from_be_bytes(kind), extension.kind);
    }
    assert_eq!(header.extensions[0].name, Some("backing file format"));
    assert!(header.refusal.as_ref().unwrap().contains("unknown incompatible feature bit 40"));
    // All else is shown all the same.
    assert!(inspector.l1(L1Owner::Active, EntryRange::default()).value().is_some());
    assert!(inspector.refcount_table(EntryRange::default()).value().is_some());
    assert!(Inspector::new(&MemoryStorage::with_len(1 << 20)).header().error().unwrap().contains("magic"));
}

#[test]
fn tables_entry_by_entry() {
    let storage = sample(&options());
    let inspector = Inspector::new(&storage);
    let l1 = inspector.l1(L1Owner::Active, EntryRange::default());
    let l1 = l1.value().unwrap();
    assert_eq!((l1.total, l1.entries.len(), l1.next), (2, 1, None));
    assert!(l1.entries[0].copied && l1.entries[0].faults.is_empty());
    let source = TableSource::L1 { owner: L1Owner::Active, index: 0 };
    let l2 = inspector.l2(source, EntryRange { first: 1, count: 4, skip_empty: false });
    let l2 = l2.value().unwrap();
    assert_eq!((l2.total, l2.next, Some(l2.host_offset)), (8192, Some(5), l1.entries[0].l2_offset));
    let kinds: Vec<_> =
        l2.entries.iter().map(|entry| (entry.index, entry.guest_offset / CLUSTER, entry.kind)).collect();
    let expected =
        [(1, 1, L2Kind::Normal), (2, 2, L2Kind::ZeroPlain), (3, 3, L2Kind::Compressed), (4, 4, L2Kind::Unallocated)];
    assert_eq!(kinds, expected);
    assert!(l2.entries[2].compressed_length.unwrap() > 0);
    let same = inspector.l2(TableSource::Host(l2.host_offset), EntryRange::one(1));
    assert_eq!(same.value().unwrap().entries[0], l2.entries[0]);
    assert!(
        inspector.l2(TableSource::L1 { owner: L1Owner::Active, index: 1 }, EntryRange::default()).error().is_some()
    );
    let table = inspector.refcount_table(EntryRange::default());
    let table = table.value().unwrap();
    assert_eq!((table.entries.len(), table.entries[0].host_offset), (1, 0));
    let block = inspector.refcount_block(0, EntryRange::default());
    let block = block.value().unwrap();
    assert_eq!((block.total, block.entries.len(), block.entries[0].refcount), (32768, 1, 1));
    assert_eq!(block.entries[0].clusters, storage.len().unwrap().div_ceil(CLUSTER));
    assert!(inspector.refcount_block(1, EntryRange::default()).error().unwrap().contains("names no block"));
    assert!(inspector.snapshots().value().unwrap().is_empty());
    assert!(inspector.bitmaps().value().unwrap().is_empty());
    assert!(inspector.bitmap_table(0, EntryRange::default()).error().is_some());
}

#[test]
fn snapshots_and_their_tables() {
    let storage = sample(&options());
    let end = storage.len().unwrap().next_multiple_of(CLUSTER);
    let l1 = read_header(&storage).unwrap().header.l1_table_offset;
    let mut table = Vec::new();
    let snapshot = Snapshot {
        l1_table_offset: l1,
        l1_size: 2,
        date_seconds: 7,
        date_nanoseconds: 0,
        vm_clock_nanoseconds: 0,
        vm_state_size_32: 0,
        extra_data: Snapshot::extra_data_for(5, 1 << 29, None),
        id: "1".into(),
        name: "before".into(),
    };
    snapshot.emit(&mut table).unwrap();
    storage.write_at(end, &table).unwrap();
    storage.write_at(60, &1u32.to_be_bytes()).unwrap();
    put(&storage, 64, end);
    let inspector = Inspector::new(&storage);
    let snapshots = inspector.snapshots();
    let shown = &snapshots.value().unwrap()[0];
    assert_eq!((shown.vm_state_size, shown.virtual_size, &shown.entry), (5, Some(1 << 29), &snapshot));
    assert_eq!(inspector.l1(L1Owner::Snapshot(0), EntryRange::default()).value().unwrap().entries.len(), 1);
    assert!(inspector.l1(L1Owner::Snapshot(1), EntryRange::default()).error().is_some());
    let owners = inspector.host(l1);
    let owners = owners.value().unwrap().owners.value().unwrap();
    assert_eq!(owners.len(), 2);
    assert_eq!((owners[1].snapshot_uses, owners[1].source.as_str()), (1, "snapshot table, entry 0"));
}

#[test]
fn the_way_of_a_guest_offset_goes_through_the_chain() {
    let mut base = vec![7u8; 3 * CLUSTER as usize + 100];
    base[0] = 8;
    let base = MemoryStorage::from_bytes(&base);
    let storage = sample(&options());
    let layers = |offset| {
        inspect_guest(
            &[
                InspectedLayer { storage: &storage, format: LayerFormat::Qcow2 },
                InspectedLayer { storage: &base, format: LayerFormat::Raw },
            ],
            offset,
        )
    };
    let ends = |offset| layers(offset).iter().map(|path| path.value().unwrap().resolution).collect::<Vec<_>>();
    let l2 = layers(5)[0].value().unwrap().entries.as_ref().unwrap().l2.as_ref().unwrap().value().unwrap().clone();
    assert_eq!(ends(5), [Resolution::Data { host_offset: l2.host_offset.unwrap() + 5 }]);
    assert_eq!(ends(2 * CLUSTER), [Resolution::Zero]);
    assert!(matches!(ends(3 * CLUSTER + 9)[..], [Resolution::Compressed { in_cluster: 9, .. }]));
    assert_eq!(ends(4 * CLUSTER), [Resolution::Unallocated, Resolution::BeyondEnd]);
    assert_eq!(ends(1 << 40), [Resolution::BeyondEnd]);
    let path = layers(CLUSTER)[0].value().unwrap().entries.clone().unwrap();
    assert_eq!(path.host_refcount, Some(Shown::Value(1)));
    assert_eq!(path.l2_table_refcount, Some(Shown::Value(1)));
    // A reserved bit in the entry: shown, and the way ends.
    put(&storage, path.l2_entry_offset.unwrap(), l2.raw | 2);
    assert_eq!(ends(CLUSTER), [Resolution::Broken]);
    let path = layers(CLUSTER)[0].value().unwrap().entries.clone().unwrap();
    assert_eq!(path.l2.unwrap().value().unwrap().faults, ["reserved bits are set"]);
}

/// What the way says is what the engine's map says, byte for byte.
#[test]
fn ways_and_the_map_agree() {
    for extended_l2 in [false, true] {
        let options = CreateOptions { extended_l2, ..options() };
        let mut image = Image::create(MemoryStorage::new(), 4 << 20, &options).unwrap();
        image.write_at(100_000, &[1; 5000]).unwrap();
        image.write_at(CLUSTER * 8, &vec![1; 3 * CLUSTER as usize]).unwrap();
        image.write_zeroes(CLUSTER * 9 + 4096, 8192, false).unwrap();
        image.discard(CLUSTER * 10, CLUSTER).unwrap();
        let storage = image.close().unwrap();
        let mut image = Image::open(&storage, crate::image::OpenOptions::default().read_only()).unwrap();
        for extent in image.map(0, 4 << 20).unwrap() {
            for offset in [extent.guest_offset, extent.guest_offset + extent.length - 1] {
                let layers = [InspectedLayer { storage: &storage, format: LayerFormat::Qcow2 }];
                let end = inspect_guest(&layers, offset)[0].value().unwrap().resolution;
                let agrees = match (end, &extent.content) {
                    (Resolution::Data { host_offset }, Content::Data { host_offset: host }) => {
                        host_offset == host.get() + (offset - extent.guest_offset)
                    }
                    (Resolution::Zero, content) => matches!(content, Content::Zero { .. }),
                    (Resolution::Unallocated, content) => matches!(content, Content::Unallocated),
                    _ => false,
                };
                assert!(agrees, "{end:?} {extent:?}");
            }
        }
    }
}

#[test]
fn owners_of_host_offsets() {
    let storage = sample(&options());
    let inspector = Inspector::new(&storage);
    let owner = |offset: u64| {
        let report = inspector.host(offset);
        let report = report.value().unwrap();
        let owners = report.owners.value().unwrap();
        owners.iter().map(|owner| (owner.structure, owner.guest_offset, owner.contains_offset)).collect::<Vec<_>>()
    };
    assert_eq!(owner(5), [(Structure::Header, None, true)]);
    let entry = |index| {
        let source = TableSource::L1 { owner: L1Owner::Active, index: 0 };
        inspector.l2(source, EntryRange::one(index)).value().unwrap().entries[0].clone()
    };
    let data = entry(1).host_offset.unwrap();
    assert_eq!(owner(data + 77), [(Structure::DataCluster, Some(CLUSTER), true)]);
    let (at, length) = (entry(3).host_offset.unwrap(), entry(3).compressed_length.unwrap());
    assert_eq!(owner(at), [(Structure::CompressedCluster, Some(3 * CLUSTER), true)]);
    assert_eq!(owner(at + length), [(Structure::CompressedCluster, Some(3 * CLUSTER), false)]);
    let report = inspector.host(1 << 40);
    let report = report.value().unwrap();
    assert!(report.beyond_end);
    assert_eq!((report.refcount.value(), report.owners.value().unwrap().len()), (Some(&0), 0));
}

#[cfg(feature = "serde")]
#[test]
fn reports_are_plain_json() {
    let storage = sample(&CreateOptions { extended_l2: true, ..options() });
    let json = serde_json::to_value(Inspector::new(&storage).guest(0)).unwrap();
    assert_eq!(json["value"]["l2"]["value"]["kind"], "normal");
    assert_eq!(json["value"]["subcluster"], 0);
    let json = serde_json::to_value(Inspector::new(&storage).host(0)).unwrap();
    assert_eq!(json["value"]["owners"]["value"][0]["structure"], "header");
    let json = serde_json::to_value(Inspector::new(&MemoryStorage::new()).header()).unwrap();
    assert!(json["error"].is_string());
}

/// Everything that an inspector shows.
fn show_everything(storage: &MemoryStorage, offset: u64) {
    let inspector = Inspector::new(storage);
    let range = EntryRange { first: offset % 7, count: 3000, skip_empty: offset.is_multiple_of(2) };
    let _ = inspector.header();
    for owner in [L1Owner::Active, L1Owner::Snapshot(0)] {
        let _ = inspector.l1(owner, range);
        let _ = inspector.l2(TableSource::L1 { owner, index: offset % 3 }, range);
    }
    let _ = inspector.l2(TableSource::Host(offset), range);
    let _ = inspector.refcount_table(range);
    let _ = inspector.refcount_block(offset % 3, range);
    let _ = inspector.snapshots();
    let _ = inspector.bitmaps();
    let _ = inspector.bitmap_table(0, range);
    let _ = inspector.host(offset);
    let _ = inspector.host(offset % (1 << 20));
    for offset in [offset, offset % (1 << 30), 0] {
        let _ = inspect_guest(&[InspectedLayer { storage, format: LayerFormat::Qcow2 }], offset);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_are_refused(
        bits in 9u32..17, order in 0u32..7, extended in any::<bool>(),
        header in prop::collection::vec((4u64..112, any::<u8>()), 0..3),
        changes in prop::collection::vec((any::<u64>(), any::<u8>()), 0..30),
        offset in any::<u64>(),
    ) {
        let extended_l2 = extended && bits >= 14;
        let create = CreateOptions { cluster_size: 1 << bits, refcount_bits: 1 << order, extended_l2, ..options() };
        let mut image = Image::create(MemoryStorage::new(), 4 << 20, &create).unwrap();
        image.write_at(0, &[1; 5000]).unwrap();
        image.write_at(1 << 20, &[1; 300_000]).unwrap();
        image.write_zeroes(1 << 20, 100_000, false).unwrap();
        let storage = image.close().unwrap();
        let length = storage.len().unwrap();
        for (at, byte) in header {
            storage.write_at(at, &[byte]).unwrap();
        }
        for (at, byte) in changes {
            storage.write_at(at % length, &[byte]).unwrap();
        }
        show_everything(&storage, offset);
        storage.set_len(offset % length).unwrap();
        show_everything(&storage, offset);
    }

    #[test]
    fn bytes_that_only_begin_like_an_image(bytes in prop::collection::vec(any::<u8>(), 0..2000), offset in any::<u64>()) {
        let mut all = b"QFI\xfb\0\0\0\x03".to_vec();
        all.extend(&bytes);
        show_everything(&MemoryStorage::from_bytes(&all), offset);
        show_everything(&MemoryStorage::from_bytes(&bytes), offset);
    }
}

/// Every byte of the metadata is in a field, and what the fields lead to is where the image has it.
#[test]
fn fields_cover_the_metadata_and_lead_on() {
    for extended_l2 in [false, true] {
        let storage = sample(&CreateOptions { extended_l2, ..options() });
        let inspector = Inspector::new(&storage);
        let regions = inspector.regions();
        let regions = regions.value().unwrap();
        let find = |structure| regions.iter().find(|region: &&Region| region.structure == structure).unwrap();
        let list = |region: &Region| {
            let shown = inspector.fields(region.structure, region.host_offset, region.length, false);
            let list = shown.value().unwrap();
            assert_eq!(list.next, None);
            list.fields.clone()
        };
        let header = list(find(Structure::Header));
        assert_eq!((header[0].name.as_str(), header[0].host_offset, header[0].length), ("magic", 0, 4));
        let l1 = list(find(Structure::L1Table));
        let bytes: u64 = l1.iter().map(|field| field.length).sum();
        assert_eq!(bytes, find(Structure::L1Table).length);
        let table = l1[0].target.clone().unwrap();
        let l2 = list(&table);
        assert_eq!(l2.iter().map(|field| field.length).sum::<u64>(), CLUSTER);
        let reached: Vec<_> = l2.iter().filter_map(|field| field.target.as_ref()).collect();
        let path = inspector.guest(CLUSTER);
        let host = path.value().unwrap().l2.as_ref().unwrap().value().unwrap().host_offset.unwrap();
        assert_eq!((reached[1].host_offset, reached[1].guest_offset), (host, Some(CLUSTER)));
        assert_eq!(reached[2].structure, Structure::CompressedCluster);
        // Part of a table, and without what is empty.
        let part = inspector.fields(Structure::L2Table, table.host_offset + 16, 16, false);
        let part = &part.value().unwrap().fields;
        assert_eq!(part[0], l2[if extended_l2 { 1 } else { 2 }]);
        let filled = inspector.fields(Structure::L2Table, table.host_offset, CLUSTER, true);
        assert_eq!(filled.value().unwrap().fields.len(), 4);
        let blocks = list(find(Structure::RefcountTable));
        let refcounts = list(blocks[0].target.as_ref().unwrap());
        assert_eq!(refcounts.iter().map(|field| field.length).sum::<u64>(), CLUSTER);
        assert_eq!(refcounts[0].meaning, "refcount 1 of the cluster at 0x0");
    }
}

#[test]
fn fields_of_snapshots_bitmaps_and_narrow_refcounts() {
    let narrow = CreateOptions { refcount_bits: 1, ..options() };
    let storage = sample(&narrow);
    let inspector = Inspector::new(&storage);
    let table = inspector.header_area().unwrap().header.refcount_table_offset;
    let block = inspector.fields(Structure::RefcountTable, table, 8, true).value().unwrap().fields[0].target.clone();
    let block = block.unwrap();
    let refcounts = inspector.fields(Structure::RefcountBlock, block.host_offset, 1, false);
    let refcounts = &refcounts.value().unwrap().fields;
    assert_eq!(refcounts[0].length, 1);
    assert!(refcounts[0].meaning.starts_with("refcount 1 1 1 1 1"), "{}", refcounts[0].meaning);

    let mut image = Image::open(sample(&options()), crate::image::OpenOptions::default()).unwrap();
    image.create_snapshot(&crate::image::NewSnapshot { name: "before".into(), ..Default::default() }).unwrap();
    image.add_bitmap("dirty", Some(CLUSTER)).unwrap();
    let storage = image.close().unwrap();
    let inspector = Inspector::new(&storage);
    let regions = inspector.regions();
    for (structure, entry) in [(Structure::SnapshotTable, "before"), (Structure::BitmapDirectory, "dirty")] {
        let region = regions.value().unwrap().iter().find(|region| region.structure == structure).unwrap();
        let fields = inspector.fields(structure, region.host_offset, region.length, false);
        let fields = &fields.value().unwrap().fields;
        assert!(fields.iter().any(|field| field.meaning == entry), "{fields:?}");
        let next = fields[0].target.as_ref().unwrap();
        let table = inspector.fields(next.structure, next.host_offset, next.length, false);
        assert!(!table.value().unwrap().fields.is_empty());
    }
}

proptest! {
    /// Any bytes as any structure, at any place: no panic, and never more than asked for.
    #[test]
    fn fields_of_anything(at in 0u64..6 * CLUSTER, value: u64, place in 0u64..8 * CLUSTER, length in 0u64..4096) {
        let storage = sample(&options());
        put(&storage, at & !7, value);
        let inspector = Inspector::new(&storage);
        let _ = inspector.regions();
        for structure in [
            Structure::Header, Structure::L1Table, Structure::L2Table, Structure::RefcountTable,
            Structure::RefcountBlock, Structure::SnapshotTable, Structure::BitmapDirectory, Structure::BitmapTable,
        ] {
            let shown = inspector.fields(structure, place, length, false);
            let Some(list) = shown.value() else { continue };
            let end = place.saturating_add(length);
            prop_assert!(list.fields.iter().all(|field| field.host_offset < end), "{structure:?}");
        }
    }
}
