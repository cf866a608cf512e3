//! The check over images broken on purpose. `native/tests/check/` compares the numbers with QEMU's.

use std::vec::Vec;

use super::*;
use crate::ErrorKind;
use crate::image::{CreateOptions, Image};
use crate::operations::read_header;
use crate::storage::{
    Capabilities, MemoryStorage, ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent,
};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;

/// An image of 2 GiB with four data clusters, and ways to break it.
struct Broken {
    storage: MemoryStorage,
    l1: u64,
    l2: u64,
    refcounts: u64,
}

impl Broken {
    fn new() -> Self {
        let mut image = Image::create(MemoryStorage::new(), 2 << 30, &CreateOptions::default()).unwrap();
        image.write_at(0, &[1; 3 * 65536]).unwrap();
        image.write_at(1 << 30, &[2; 65536]).unwrap();
        let storage = image.close().unwrap();
        let header = read_header(&storage).unwrap().header;
        let mut broken = Self { storage, l1: header.l1_table_offset, l2: 0, refcounts: 0 };
        broken.l2 = broken.get(broken.l1) & !COPIED;
        broken.refcounts = broken.get(header.refcount_table_offset);
        broken
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.storage.read_at(at, &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn put(&self, at: u64, value: u64) {
        self.storage.write_at(at, &value.to_be_bytes()).unwrap();
    }

    fn set_refcount(&self, host_offset: u64, refcount: u16) {
        self.storage.write_at(self.refcounts + host_offset / CLUSTER * 2, &refcount.to_be_bytes()).unwrap();
    }

    /// Where the guest's cluster is.
    fn data(&self, guest_cluster: u64) -> u64 {
        self.get(self.l2 + 8 * guest_cluster) & !COPIED
    }

    fn check(&self) -> CheckReport {
        check(&self.storage, &read_header(&self.storage).unwrap(), &mut |_| ()).unwrap()
    }
}

/// A disk with one place that cannot be read.
struct BadSector {
    inner: MemoryStorage,
    at: u64,
}

impl ReadStorage for BadSector {
    fn len(&self) -> Result<u64, StorageError> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        if (offset..offset + into.len() as u64).contains(&self.at) {
            return Err(StorageError::new(StorageErrorKind::Other("bad sector".into()), "read").at(offset));
        }
        self.inner.read_at(offset, into)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        self.inner.next_extent(offset)
    }
}

fn numbers(report: &CheckReport) -> (u64, u64, u64) {
    (report.corruptions, report.leaks, report.check_errors)
}

fn kinds(report: &CheckReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

#[test]
fn a_sound_image_is_clean() {
    let broken = Broken::new();
    let report = broken.check();
    assert!(report.is_clean() && report.findings.is_empty(), "{report:?}");
    assert_eq!((report.total_clusters, report.allocated_clusters, report.fragmented_clusters), (32768, 4, 0));
    assert_eq!(report.image_end_offset, broken.storage.len().unwrap().next_multiple_of(CLUSTER));
}

#[test]
fn refcounts_too_high_and_too_low() {
    let broken = Broken::new();
    broken.set_refcount(broken.data(0), 5);
    broken.set_refcount(broken.data(1), 0);
    let report = broken.check();
    // Both clusters' COPIED flags are wrong then.
    assert_eq!(numbers(&report), (3, 1, 0));
    let leak = report.findings.iter().find(|finding| finding.severity == Severity::Leak).unwrap();
    assert_eq!((leak.kind, leak.recorded, leak.actual), (FindingKind::RefcountTooHigh, Some(5), Some(1)));
    assert!(leak.message.ends_with("has refcount 5, but 1 reference"), "{}", leak.message);
    assert_eq!(leak.host_offset, Some(broken.data(0)));
    let low = report.findings.iter().find(|finding| finding.kind == FindingKind::RefcountTooLow).unwrap();
    assert_eq!((low.recorded, low.actual, low.host_offset), (Some(0), Some(1), Some(broken.data(1))));
}

#[test]
fn a_copied_flag_is_found_in_the_middle_of_a_run() {
    let broken = Broken::new();
    broken.put(broken.l2 + 8, broken.data(1));
    let report = broken.check();
    assert_eq!(numbers(&report), (1, 0, 0));
    let finding = &report.findings[0];
    assert_eq!((finding.kind, finding.guest_offset, finding.index), (FindingKind::CopiedFlag, Some(CLUSTER), Some(1)));
    // And the other way round: the flag is as it was, the refcount is not.
    let broken = Broken::new();
    broken.set_refcount(broken.data(2), 2);
    let report = broken.check();
    let flag = report.findings.iter().find(|finding| finding.kind == FindingKind::CopiedFlag).unwrap();
    assert_eq!((flag.guest_offset, flag.actual), (Some(2 * CLUSTER), Some(2)));
    assert_eq!(flag.recorded, Some(broken.data(2) | COPIED));
}

#[test]
fn references_that_lead_nowhere() {
    let broken = Broken::new();
    let end = broken.storage.len().unwrap();
    broken.put(broken.l2 + 8 * 2, end | COPIED);
    broken.put(broken.l2 + 8 * 9, broken.data(0) | 0x200);
    broken.put(broken.l2 + 8 * 10, 2);
    let report = broken.check();
    let found = kinds(&report);
    for kind in [FindingKind::BeyondEndOfFile, FindingKind::Unaligned, FindingKind::ReservedBits] {
        assert!(found.contains(&kind), "{kind:?} {report:?}");
    }
}

#[test]
fn clusters_with_two_uses() {
    let broken = Broken::new();
    broken.put(broken.l2 + 8, broken.refcounts | COPIED);
    let report = broken.check();
    assert!(kinds(&report).contains(&FindingKind::RefcountBlockShared), "{report:?}");
    assert!(kinds(&report).contains(&FindingKind::RefcountTooLow), "{report:?}");
    // The cluster that lost its reference.
    assert_eq!(report.leaks, 1);
}

#[test]
fn an_l1_table_of_one_l2_table_only() {
    let broken = Broken::new();
    // Every entry that the limit allows names the table with three clusters; the others have one reference less.
    let entries = (crate::format::MAX_L1_BYTES / 8) as u32;
    let l1 = broken.storage.len().unwrap().next_multiple_of(CLUSTER);
    let table: Vec<u8> = (0..entries).flat_map(|_| (broken.l2 | COPIED).to_be_bytes()).collect();
    broken.storage.write_at(l1, &table).unwrap();
    broken.storage.write_at(36, &entries.to_be_bytes()).unwrap();
    broken.put(40, l1);
    let report = broken.check();
    assert_eq!(report.allocated_clusters, 3 * u64::from(entries));
    let overflow: Vec<_> = report.findings.iter().filter(|f| f.kind == FindingKind::RefcountOverflow).collect();
    // The L2 table and its three clusters.
    assert_eq!(overflow.iter().map(|f| f.count).sum::<u64>(), 4 * (u64::from(entries) - 65535));
}

#[test]
fn findings_are_bounded_and_counted() {
    let broken = Broken::new();
    for index in 0..4000 {
        broken.put(broken.l2 + 8 * (100 + index), 2);
    }
    let report = broken.check();
    assert_eq!((report.corruptions, report.findings.len()), (4000, MAX_FINDINGS));
    assert_eq!(report.findings_omitted, 4000 - MAX_FINDINGS as u64);
}

#[test]
fn leaked_clusters_in_a_row_are_one_finding() {
    let broken = Broken::new();
    let end = broken.storage.len().unwrap().next_multiple_of(CLUSTER);
    broken.storage.set_len(end + 1000 * CLUSTER).unwrap();
    (0..1000).for_each(|cluster| broken.set_refcount(end + cluster * CLUSTER, 1));
    let report = broken.check();
    assert_eq!((report.leaks, report.findings.len(), report.findings[0].count), (1000, 1, 1000));
    assert_eq!(report.image_end_offset, end + 1000 * CLUSTER);
}

#[test]
fn what_cannot_be_read_hides_leaks_and_is_reported() {
    let broken = Broken::new();
    let area = read_header(&broken.storage).unwrap();
    let damaged = BadSector { at: broken.l2, inner: broken.storage };
    let report = check(&damaged, &area, &mut |_| ()).unwrap();
    assert!(report.incomplete && !report.is_clean());
    assert_eq!(numbers(&report), (0, 0, 1));
    assert_eq!(report.findings[0].kind, FindingKind::Unreadable);
    assert!(report.findings[0].message.contains("bad sector"));
}

#[test]
fn refcount_blocks_that_cannot_be_followed() {
    let broken = Broken::new();
    let table = read_header(&broken.storage).unwrap().header.refcount_table_offset;
    broken.put(table, broken.refcounts | 0x200);
    let report = broken.check();
    let clusters = broken.storage.len().unwrap().div_ceil(CLUSTER);
    assert_eq!(numbers(&report), (1, 0, clusters));
    broken.put(table, 0);
    let report = broken.check();
    // Every cluster but that of the block has a reference and no refcount; six entries are COPIED.
    assert_eq!(numbers(&report), (clusters - 1 + 6, 0, 0));
}

#[test]
fn a_file_of_too_many_clusters_is_not_checked() {
    let broken = Broken::new();
    broken.storage.set_len((MAX_CHECKED_CLUSTERS + 1) * CLUSTER).unwrap();
    let report = broken.check();
    assert_eq!((report.check_errors, kinds(&report)), (1, std::vec![FindingKind::Limit]));
    broken.storage.set_len(MAX_CHECKED_CLUSTERS * CLUSTER).unwrap();
    assert!(broken.check().is_clean());
}

#[test]
fn progress_goes_from_nothing_to_all() {
    let broken = Broken::new();
    let mut seen = Vec::new();
    check(&broken.storage, &read_header(&broken.storage).unwrap(), &mut |part| seen.push(part)).unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] <= pair[1]), "{seen:?}");
    assert_eq!((seen[0], *seen.last().unwrap()), (0.0, 1.0));
}

#[test]
fn headers_that_qemu_refuses_are_errors() {
    let broken = Broken::new();
    broken.storage.write_at(20, &[0, 0, 0, 30]).unwrap();
    let error = check(&broken.storage, &read_header(&broken.storage).unwrap(), &mut |_| ()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
}

#[test]
#[cfg(feature = "serde")]
fn the_report_in_json() {
    let broken = Broken::new();
    broken.set_refcount(broken.data(0), 5);
    let json = serde_json::to_value(broken.check()).unwrap();
    assert_eq!((&json["leaks"], &json["corruptions"], &json["incomplete"]), (&1.into(), &1.into(), &false.into()));
    assert_eq!(json["findings"][1]["kind"], "refcount_too_high");
    assert_eq!(json["findings"][1]["severity"], "leak");
    assert_eq!(json["findings"][0]["structure"], "l2_table");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(changes in proptest::collection::vec((0u64..8 * 65536, proptest::num::u64::ANY), 1..40)) {
        let broken = Broken::new();
        for (at, value) in changes {
            // Mostly where tables are, and values of every size.
            let at = if at % 3 == 0 { at & !7 } else { [broken.l1, broken.l2, broken.refcounts, 16][at as usize % 4] + (at >> 8) * 8 };
            let value = value.wrapping_shr((value & 63) as u32);
            broken.put(at, if value & 64 == 0 { value & !0xffff } else { value });
        }
        if let Ok(area) = read_header(&broken.storage) {
            let _ = check(&broken.storage, &area, &mut |_| ());
        }
    }
}
