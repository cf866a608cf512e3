//! The shared suite of image operations (`data/operations.json`), which the wrappings replay as well. What the disk and its
//! snapshots hold in the end was told by a model (`wasm/test/make-operations.mjs`).
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]
#![cfg(feature = "serde")]

use qcowkit_core::format::Name;
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions, Preallocation, SnapshotSelector};
use qcowkit_core::metadata::{AllocationPolicy, MetadataOptions, Unref};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::MemoryStorage;
use serde_json::Value;

#[test]
fn every_case_ends_as_the_model_says() {
    let cases: Value = serde_json::from_str(include_str!("data/operations.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (create, open) = options(&case["options"]);
        let size = case["size"].as_u64().unwrap();
        let storage = Image::create(MemoryStorage::new(), size, &create).unwrap().close().unwrap();
        let mut image = Image::open(storage, open.clone()).unwrap();
        for operation in case["operations"].as_array().unwrap() {
            carry_out(&mut image, operation);
        }
        assert_eq!(image.virtual_size(), case["end_size"].as_u64().unwrap(), "{name}");
        assert_eq!(sum_of(&mut image), case["crc32"].as_u64().unwrap(), "{name}");
        let storage = image.close().unwrap();
        for (id, sum) in case["snapshots"].as_object().unwrap() {
            let selector = SnapshotSelector::Name(Name::new(id.as_bytes()));
            let mut view = Image::open(storage.clone(), OpenOptions::default().of_snapshot(selector)).unwrap();
            assert_eq!(sum_of(&mut view), sum.as_u64().unwrap(), "{name}, {id}");
        }
        let report = check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{name}: {:?}", report.findings);
    }
}

fn options(given: &Value) -> (CreateOptions, OpenOptions) {
    let usual = CreateOptions::default();
    let text = |key: &str| given[key].as_str().unwrap_or_default().to_owned();
    let create = CreateOptions {
        version: if text("compat") == "0.10" { 2 } else { 3 },
        cluster_size: given["cluster_size"].as_u64().unwrap_or(usual.cluster_size),
        refcount_bits: given["refcount_bits"].as_u64().map_or(usual.refcount_bits, |bits| u32::try_from(bits).unwrap()),
        extended_l2: given["extended_l2"].as_bool().unwrap_or(false),
        preallocation: if text("preallocation") == "metadata" { Preallocation::Metadata } else { Preallocation::Off },
        ..usual
    };
    let mut open = OpenOptions::default().with_metadata(MetadataOptions {
        allocation: match text("allocation").as_str() {
            "near" => AllocationPolicy::Near,
            "fill-holes" => AllocationPolicy::FillHoles,
            _ => AllocationPolicy::Qemu,
        },
        ..MetadataOptions::default()
    });
    if text("unref") == "retain_unshared" {
        open.policy.unref = Unref::RetainUnshared;
    }
    (create, open)
}

fn carry_out(image: &mut Image<MemoryStorage>, operation: &Value) {
    let Some((kind, with)) = operation.as_object().and_then(|operation| operation.iter().next()) else {
        assert_eq!(operation, "flush");
        return image.flush().unwrap();
    };
    let number = |key: &str| with[key].as_u64().unwrap();
    let selector = || SnapshotSelector::Name(Name::new(with.as_str().unwrap().as_bytes()));
    match kind.as_str() {
        "write" => {
            let first = number("byte");
            let bytes: Vec<u8> = (0..number("length")).map(|at| (first + at * 7 + (at >> 9)) as u8).collect();
            image.write_at(number("offset"), &bytes).unwrap();
        }
        "write_zeroes" => {
            image.write_zeroes(number("offset"), number("length"), with["unmap"].as_bool().unwrap()).unwrap();
        }
        "discard" => image.discard(number("offset"), number("length")).unwrap(),
        "create_snapshot" => {
            let name = Name::new(with.as_str().unwrap().as_bytes());
            image.create_snapshot(&NewSnapshot { name, ..NewSnapshot::default() }).unwrap();
        }
        "apply_snapshot" => image.apply_snapshot(&selector()).unwrap(),
        "delete_snapshot" => image.delete_snapshot(&selector()).unwrap(),
        "resize" => image.resize(with.as_u64().unwrap()).unwrap(),
        other => unreachable!("no operation {other}"),
    }
}

/// CRC-32 of the disk, as zlib has it.
fn sum_of(image: &mut Image<MemoryStorage>) -> u64 {
    let mut disk = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(0, &mut disk).unwrap();
    let bits = |value: u32| (0..8).fold(value, |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 });
    let table: Vec<u32> = (0..256).map(bits).collect();
    let sum = disk.iter().fold(u32::MAX, |sum, &byte| table[(sum as u8 ^ byte) as usize] ^ (sum >> 8));
    u64::from(!sum)
}
