//! Any bytes as an image.

use qcowkit_core::image::{Content, CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};
use qcowkit_core::operations::analyze::{AnalyzeOptions, analyze};
use qcowkit_core::operations::audit::{AuditOptions, audit};
use qcowkit_core::operations::info::ImageInfo;
use qcowkit_core::operations::inspect::{EntryRange, Inspector, TableSource};
use qcowkit_core::operations::walk::L1Owner;
use qcowkit_core::operations::{check as check_image, read_header};
use qcowkit_core::storage::{MemoryStorage, ReadStorage, SliceStorage};

use super::bytes::Bytes;

/// Extents and bytes that a reader looks at: a broken image can claim 8 EiB.
const MAX_EXTENTS: usize = 2000;
const MAX_READ: u64 = 1 << 20;

/// Audit, information, and every structure as the inspector shows it.
pub fn inspect(data: &[u8]) {
    let storage = SliceStorage::new(data);
    let _ = audit(&storage, &AuditOptions { deep: true, max_virtual_size: None }, &mut |_| ());
    let inspector = Inspector::new(&storage);
    let range = EntryRange { first: 0, count: 300, skip_empty: false };
    let _ = inspector.header();
    for index in 0..3 {
        for owner in [L1Owner::Active, L1Owner::Snapshot(index)] {
            let _ = inspector.l1(owner, range);
            let _ = inspector.l2(TableSource::L1 { owner, index: index.into() }, range);
        }
        let _ = inspector.refcount_block(index.into(), range);
        let _ = inspector.bitmap_table(index.into(), range);
    }
    let _ = inspector.refcount_table(range);
    let _ = inspector.snapshots();
    let _ = inspector.bitmaps();
    for n in 0..16 {
        let _ = inspector.host(data.len() as u64 * n / 15);
        let _ = inspector.guest((1 << 16) * n);
    }
    if let Ok(area) = read_header(&storage) {
        let _ = ImageInfo::read(&area, &storage);
        let _ = analyze(
            &storage,
            &area,
            &AnalyzeOptions { scan_zeroes: true, ..AnalyzeOptions::default() },
            &mut |_, _| (),
        );
    }
}

/// Opens and reads what there is, compressed clusters too.
pub fn read(data: &[u8]) {
    let storage = MemoryStorage::from_bytes(data);
    let Ok(mut image) = Image::open(&storage, OpenOptions::default().read_only().metadata_only()) else { return };
    let size = image.virtual_size();
    let (mut at, mut bytes_read) = (0, 0);
    for _ in 0..MAX_EXTENTS {
        if at >= size {
            break;
        }
        let Ok(extent) = image.next_extent(at, size - at) else {
            // One broken entry does not hide the next.
            at = at.saturating_add(image.geometry().cluster_size());
            continue;
        };
        assert!(extent.length > 0, "an extent without length");
        let holds = matches!(extent.content, Content::Data { .. } | Content::Compressed { .. });
        if holds && bytes_read < MAX_READ {
            let here = extent.length.min(MAX_READ);
            let mut bytes = vec![0; here as usize];
            let _ = image.read_at(at, &mut bytes);
            bytes_read += here;
        }
        at = at.saturating_add(extent.length);
    }
}

/// A check. It changes nothing and says the same when it is asked again.
pub fn check(data: &[u8]) {
    let storage = SliceStorage::new(data);
    let Ok(area) = read_header(&storage) else { return };
    let Ok(first) = check_image(&storage, &area, &mut |_| ()) else { return };
    assert_eq!(Ok(first), check_image(&storage, &area, &mut |_| ()));
}

/// Operations on whatever opens: the header survives, memory stays bounded, and errors are errors.
pub fn abuse(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((script, bytes)) = rest.split_at_checked(usize::from(count)) else { return };
    let mut choices = Bytes(script);
    let unref = choices.choose([Unref::Always, Unref::RetainUnshared, Unref::RetainQemu]);
    let allocation = choices.choose([AllocationPolicy::Qemu, AllocationPolicy::FillHoles, AllocationPolicy::Near]);
    let metadata = MetadataOptions { allocation, cache_bytes: 4096, slice_bytes: 512, ..MetadataOptions::default() };
    let policy = DiscardPolicy { unref, ..DiscardPolicy::default() };
    let options = OpenOptions::default().with_policy(policy).with_metadata(metadata).metadata_only();
    let storage = MemoryStorage::from_bytes(bytes);
    let Ok(mut image) = Image::open(&storage, options) else { return };
    let size = image.virtual_size();
    let mut buffer = vec![0x5a; 5000];
    while !choices.is_empty() {
        let offset = choices.below(size.min(1 << 20));
        let length = (choices.below(5000) + 1).min(size - offset.min(size));
        let part = &mut buffer[..length as usize];
        let _ = match choices.byte() % 8 {
            0 => image.read_at(offset, part),
            1 | 2 => image.write_at(offset, part),
            3 => image.discard(offset, length),
            4 => image.write_zeroes(offset, length, choices.flag()),
            5 => image.flush(),
            6 => image.resize((offset + 512).next_multiple_of(512)),
            _ => image.map(offset, length).map(drop),
        };
    }
    let _ = image.flush();
    drop(image);
    assert!(storage.memory_bytes() < bytes.len() as u64 + (48 << 20), "{} bytes kept", storage.memory_bytes());
    let mut magic = [0; 4];
    storage.read_at(0, &mut magic).unwrap();
    assert_eq!(magic, bytes[..4], "the header is lost");
}

/// Small sound images of several kinds.
pub(crate) fn sound() -> Vec<Vec<u8>> {
    let kinds = [(3, 9, 64, false), (3, 9, 16, false), (2, 10, 16, false), (3, 12, 1, false), (3, 14, 8, true)];
    let make = |(version, bits, refcount_bits, extended_l2)| {
        let cluster_size = 1u64 << bits;
        let create = CreateOptions { version, cluster_size, refcount_bits, extended_l2, ..CreateOptions::default() };
        let mut image = Image::create(MemoryStorage::new(), 100 << 10, &create).unwrap();
        for n in 0..4u8 {
            image.write_at(u64::from(n) * 11_000, &[n + 1; 3000]).unwrap();
        }
        if refcount_bits > 1 {
            let cluster = vec![7; cluster_size as usize];
            image.write_compressed(0, &cluster).unwrap();
        }
        image.write_zeroes(40_000, cluster_size.min(9000), false).unwrap();
        image.discard(60_000, 2 * cluster_size.min(9000)).unwrap();
        image.close().unwrap().to_vec().unwrap()
    };
    let mut all: Vec<Vec<u8>> = kinds.into_iter().map(make).collect();
    all.extend([(3, 9), (2, 10), (3, 12)].map(|(version, bits)| with_snapshot(version, 1 << bits)));
    all
}

/// Clusters of a snapshot's own and shared ones, and from version 3 on a bitmap.
fn with_snapshot(version: u32, cluster_size: u64) -> Vec<u8> {
    let create = CreateOptions { version, cluster_size, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 60 << 10, &create).unwrap();
    image.write_at(0, &[1; 9000]).unwrap();
    image.write_compressed(16_384, &[3; 4096]).unwrap();
    image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    image.write_at(1000, &[4; 3000]).unwrap();
    if version > 2 {
        image.add_bitmap("b", Some(4096)).unwrap();
        image.write_at(30_000, &[5; 100]).unwrap();
    }
    image.close().unwrap().to_vec().unwrap()
}
