//! Random operations on a sound image beside a model of the guest disk.

use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Pass, Unref};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::MemoryStorage;

use super::bytes::Bytes;

/// Bytes of the largest disk: small, so that operations meet each other.
const MOST: u64 = 256 << 10;

/// Whatever is done in whatever order: the guest reads what was written last, and a check finds nothing.
pub fn operations(data: &[u8]) {
    let choices = &mut Bytes(data);
    let version = choices.choose([3, 3, 2]);
    let extended_l2 = version == 3 && choices.flag();
    let bits = if extended_l2 { choices.choose([14, 15, 16]) } else { choices.choose([9, 10, 12, 16]) };
    let refcount_bits = if version == 3 { choices.choose([1, 2, 4, 8, 16, 32, 64]) } else { 16 };
    let create =
        CreateOptions { version, cluster_size: 1 << bits, refcount_bits, extended_l2, ..CreateOptions::default() };
    let mut model = vec![0u8; (choices.below(MOST / 512) * 512 + 512) as usize];
    let mut storage = MemoryStorage::new();
    Image::create(&storage, model.len() as u64, &create).unwrap().close().unwrap();
    while !choices.is_empty() {
        storage = session(storage, choices, &mut model, version);
        let area = read_header(&storage).unwrap();
        let report = check(&storage, &area, &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

/// Opens, operates, closes.
fn session(storage: MemoryStorage, choices: &mut Bytes<'_>, model: &mut Vec<u8>, version: u32) -> MemoryStorage {
    let unref = choices.choose([Unref::Always, Unref::RetainUnshared]);
    let unref = if version < 3 { Unref::Always } else { unref };
    let pass = Pass { request: choices.flag(), ..Pass::default() };
    let metadata = MetadataOptions {
        allocation: choices.choose([AllocationPolicy::Qemu, AllocationPolicy::FillHoles, AllocationPolicy::Near]),
        quarantine_bytes: choices.choose([0, 4096, 16 << 20]),
        cache_bytes: 4096,
        slice_bytes: 512,
        ..MetadataOptions::default()
    };
    let policy = DiscardPolicy { unref, pass, ..DiscardPolicy::default() };
    let options = OpenOptions::default().with_policy(policy).with_metadata(metadata);
    let mut image = Image::open(storage, options).unwrap();
    for _ in 0..choices.below(40) {
        operation(&mut image, choices, model);
    }
    let mut read = vec![0; model.len()];
    image.read_at(0, &mut read).unwrap();
    assert!(read == *model, "the guest reads something else");
    image.close().unwrap()
}

fn operation(image: &mut Image<MemoryStorage>, choices: &mut Bytes<'_>, model: &mut Vec<u8>) {
    let size = model.len() as u64;
    let offset = choices.below(size);
    let length = (choices.below(70_000) + 1).min(size - offset);
    let range = offset as usize..(offset + length) as usize;
    let cluster = image.geometry().cluster_size();
    match choices.byte() % 8 {
        0..=2 => {
            let value = choices.byte();
            model[range.clone()].fill(value);
            image.write_at(offset, &model[range]).unwrap();
        }
        3 => {
            image.discard(offset, length).unwrap();
            // Whole clusters go; the last one may end with the disk.
            let end = offset + length;
            let end = if end == size { end } else { end / cluster * cluster };
            let start = offset.next_multiple_of(cluster);
            if start < end {
                model[start as usize..end as usize].fill(0);
            }
        }
        4 => {
            image.write_zeroes(offset, length, choices.flag()).unwrap();
            model[range].fill(0);
        }
        5 => image.flush().unwrap(),
        6 => {
            let size = choices.below(MOST / 512) * 512 + 512;
            image.resize(size).unwrap();
            model.resize(size as usize, 0);
        }
        _ => {
            let start = offset / cluster * cluster;
            let end = (start + cluster).min(size);
            let part = &mut model[start as usize..end as usize];
            part.fill(choices.byte());
            image.write_compressed(start, part).unwrap();
        }
    }
}
