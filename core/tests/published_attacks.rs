//! The published attacks on programs that read qcow2 images, by their numbers. Each is refused, or does nothing, and `audit`
//! tells of it beforehand.
//!
//! What the numbers of 2014 stand for, of QEMU's block drivers (RHSA-2014:0420, the entries of NVD and OSV, the titles of
//! QEMU's fixes): 0142, a division by zero (Parallels' tracks, the extent size of Bochs); 0143, integer overflows (sizes of
//! L1 tables, places of refcounts; the catalogues of Parallels and Bochs); 0144, fields that nobody checked (cloop, qcow2,
//! VHD and others); 0145, buffer overflows (a snapshot's L1 table; DMG); 0146, the error path of opening a qcow2 image, about
//! the fields of its snapshots; 0147, refcounts that are updated wrongly when a snapshot is created, and signed sizes in
//! Bochs; 0148, the block allocation table of VHDX; 0222 and 0223, qcow of version 1. QEMU holds itself to those of qcow2 in
//! its iotest 080. What each number has of qcow2 is tried here; the rest is refused as another format.

use qcowkit_core::ErrorKind;
use qcowkit_core::format::{Extension, HeaderArea, IncompatibleFeatures};
use qcowkit_core::image::{CreateOptions, Found, Image, NewSnapshot, OpenOptions, Opener, Reference, SnapshotSelector};
use qcowkit_core::operations::audit::{AuditKind, AuditOptions, Target, Verdict, audit, audit_start};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage};

const CLUSTER: u64 = 65_536;

fn image() -> MemoryStorage {
    let mut image = Image::create(MemoryStorage::new(), 64 << 20, &CreateOptions::default()).unwrap();
    image.write_at(0, &[7; 200_000]).unwrap();
    image.close().unwrap()
}

/// An image with one snapshot, and where its entry stands.
fn with_snapshot() -> (MemoryStorage, u64) {
    let mut image = Image::open(image(), OpenOptions::default()).unwrap();
    image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    let storage = image.close().unwrap();
    let at = read_header(&storage).unwrap().header.snapshots_offset;
    (storage, at)
}

fn with_header(change: impl FnOnce(&mut HeaderArea)) -> MemoryStorage {
    let storage = image();
    let mut area = read_header(&storage).unwrap();
    change(&mut area);
    storage.write_at(0, &area.emit().unwrap()).unwrap();
    storage
}

fn with_bytes(at: u64, bytes: &[u8]) -> MemoryStorage {
    let storage = image();
    storage.write_at(at, bytes).unwrap();
    storage
}

fn dangers(storage: &MemoryStorage, deep: bool) -> Vec<AuditKind> {
    let options = AuditOptions { deep, ..AuditOptions::default() };
    let audit = audit(storage, &options, &mut |_| ()).unwrap();
    let dangers = audit.findings.iter().filter(|finding| finding.verdict == Verdict::Danger);
    dangers.map(|finding| finding.kind).collect()
}

/// Neither opened for reading nor for writing nor changed, and a danger by its header.
fn refused(storage: &MemoryStorage, what: &str) {
    let before = storage.to_vec().unwrap();
    assert!(Image::open(storage, OpenOptions::default().read_only()).is_err(), "{what}: opened");
    assert!(Image::open(storage, OpenOptions::default()).is_err(), "{what}: opened for writing");
    assert!(storage.to_vec().unwrap() == before, "{what}: changed");
    assert!(!dangers(storage, false).is_empty(), "{what}: not told");
}

fn view(storage: &MemoryStorage) -> qcowkit_core::Result<Image<&MemoryStorage>> {
    Image::open(storage, OpenOptions::default().of_snapshot(SnapshotSelector::Name("s".into())))
}

fn is_limit_or_corrupt<T>(result: qcowkit_core::Result<T>) -> bool {
    matches!(result.map(drop), Err(error) if matches!(error.kind(), ErrorKind::Limit(_) | ErrorKind::Corrupt(_)))
}

/// Sizes whose product with the entry size overflows: L1 table of the image and of a snapshot, refcount table.
#[test]
fn cve_2014_0143_sizes_that_overflow() {
    for entries in [0x2000_0001u32, 0x1fff_ffff, 0x8000_0000, u32::MAX] {
        refused(&with_bytes(36, &entries.to_be_bytes()), "L1 size");
        let (storage, at) = with_snapshot();
        storage.write_at(at + 8, &entries.to_be_bytes()).unwrap();
        assert!(is_limit_or_corrupt(view(&storage)), "{entries:#x} entries of a snapshot");
        let mut open = Image::open(&storage, OpenOptions::default()).unwrap();
        let selector = SnapshotSelector::Name("s".into());
        assert!(
            is_limit_or_corrupt(open.apply_snapshot(&selector)) && is_limit_or_corrupt(open.delete_snapshot(&selector))
        );
    }
    for clusters in [129u32, 0x0001_0000, 0x8000_0001, u32::MAX] {
        refused(&with_bytes(56, &clusters.to_be_bytes()), "refcount table clusters");
    }
    // A disk whose L1 table would be too large.
    refused(&with_bytes(24, &0x7fff_ffff_ffff_fe00u64.to_be_bytes()), "disk size");
    // The place of a refcount: an L2 entry that leads where the refcount table has no entries any more.
    let storage = image();
    let mut open = Image::open(&storage, OpenOptions::default()).unwrap();
    let l1 = open.header().header.l1_table_offset;
    let mut entry = [0; 8];
    storage.read_at(l1, &mut entry).unwrap();
    let table = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    storage.write_at(table, &(1 << 63 | ((1u64 << 56) - CLUSTER)).to_be_bytes()).unwrap();
    let _ = open.discard(0, CLUSTER);
    let area = read_header(&storage).unwrap();
    assert!(check(&storage, &area, &mut |_| ()).unwrap().corruptions > 0);
    assert!(dangers(&storage, true).contains(&AuditKind::Metadata));
}

/// Fields that were used before they were looked at: header length, backing file name, places and sizes of tables.
#[test]
fn cve_2014_0144_fields_that_nobody_checked() {
    for length in [0u32, 71, 103, 65_537, 0x7fff_ffff, u32::MAX] {
        refused(&with_bytes(100, &length.to_be_bytes()), "header length");
    }
    for (offset, size) in [(u64::MAX - 7, 16u32), (1 << 40, 16), (CLUSTER - 4, 1023), (1024, 1024), (1024, u32::MAX)] {
        let storage = image();
        storage.write_at(8, &offset.to_be_bytes()).unwrap();
        storage.write_at(16, &size.to_be_bytes()).unwrap();
        refused(&storage, "backing file name");
    }
    for offset in [1, CLUSTER + 512, u64::MAX - CLUSTER + 1, 1 << 63] {
        refused(&with_bytes(40, &offset.to_be_bytes()), "L1 offset");
        refused(&with_bytes(48, &offset.to_be_bytes()), "refcount table offset");
    }
    for (count, offset) in [(65_537u32, 5 * CLUSTER), (u32::MAX, 5 * CLUSTER), (1, u64::MAX - CLUSTER + 1), (1, 12)] {
        let storage = image();
        storage.write_at(60, &count.to_be_bytes()).unwrap();
        storage.write_at(64, &offset.to_be_bytes()).unwrap();
        let opened = Image::open(&storage, OpenOptions::default().read_only());
        assert!(opened.is_err() || is_limit_or_corrupt(view(&storage)), "{count} snapshots at {offset:#x}");
        assert!(!dangers(&storage, false).is_empty(), "{count} snapshots at {offset:#x}: not told");
    }
}

/// A snapshot whose L1 table is longer than the image's was read into memory for the shorter one.
#[test]
fn cve_2014_0145_a_snapshot_with_a_longer_table() {
    let (storage, at) = with_snapshot();
    for entries in [2u32, 100, 8192, 4 << 20] {
        storage.write_at(at + 8, &entries.to_be_bytes()).unwrap();
        if let Ok(mut view) = view(&storage) {
            let mut bytes = [0; 512];
            view.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes, [7; 512], "{entries} entries");
            assert_eq!(view.virtual_size(), 64 << 20);
        }
    }
}

/// Opening that fails half-way, also for the snapshots' sake: what was set up is taken down, what was not is left alone.
#[test]
fn cve_2014_0146_opening_that_fails_half_way() {
    let (storage, _) = with_snapshot();
    let long = Extension::BackingFormat("x".repeat(60_000).into());
    for change in [
        Box::new(|area: &mut HeaderArea| area.header.snapshots_offset = 1 << 40) as Box<dyn Fn(&mut HeaderArea)>,
        Box::new(|area| area.header.incompatible = IncompatibleFeatures::from_bits(1 << 5)),
        Box::new(move |area| area.extensions.push(long.clone())),
        Box::new(|area| area.header.crypt_method = 3),
    ] {
        let mut area = read_header(&storage).unwrap();
        change(&mut area);
        let Ok(header) = area.emit() else { continue };
        let broken = MemoryStorage::from_bytes(&storage.to_vec().unwrap());
        broken.write_at(0, &header).unwrap();
        let _ = Image::open(&broken, OpenOptions::default()).map(|mut image| image.write_at(0, &[1; 512]));
        let _ = view(&broken);
        let mut start = [0; 4];
        broken.read_at(0, &mut start).unwrap();
        assert_eq!(&start, b"QFI\xfb");
    }
}

/// Refcounts that say that everything is free, the refcount structures included: when a snapshot was created, the block
/// that its refcounts needed went over what was there. So it could when anything was written.
#[test]
fn cve_2014_0147_a_snapshot_of_an_image_that_counts_nothing() {
    for what in ["no block", "an empty block"] {
        let storage = image();
        let table = read_header(&storage).unwrap().header.refcount_table_offset;
        let mut block = [0; 8];
        storage.read_at(table, &mut block).unwrap();
        match what {
            "no block" => storage.write_at(table, &[0; 8]).unwrap(),
            _ => storage.write_at(u64::from_be_bytes(block), &[0; CLUSTER as usize]).unwrap(),
        }
        let before = storage.to_vec().unwrap();
        let mut open = Image::open(&storage, OpenOptions::default()).unwrap();
        let snapshot = NewSnapshot { name: "s".into(), ..NewSnapshot::default() };
        assert!(open.create_snapshot(&snapshot).is_err(), "{what}");
        assert!(storage.to_vec().unwrap() == before, "{what}: a snapshot that was refused changed the image");
        for n in 0..40 {
            let _ = open.write_at((8 << 20) + n * CLUSTER, &[9; 1000]);
        }
        let _ = open.flush();
        drop(open);
        let mut bytes = vec![0; 200_000];
        Image::open(&storage, OpenOptions::default().read_only()).unwrap().read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7), "{what}: data were overwritten");
        let mut start = [0; 72];
        storage.read_at(0, &mut start).unwrap();
        assert_eq!(start, before[..72], "{what}: the header was overwritten");
        assert!(dangers(&storage, true).contains(&AuditKind::Metadata), "{what}: not told");
    }
}

/// Attacks by formats that are not read at all: Parallels and Bochs (0142, 0143, and Bochs 0147), VHD (0144), VHDX (0148),
/// qcow of version 1 (0222 and 0223).
#[test]
fn cve_2014_0142_0148_0222_0223_other_formats_are_refused() {
    for (start, format) in [
        (&b"QFI\xfb\0\0\0\x01"[..], "qcow"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
        (b"Bochs Virtual HD Image", "raw"),
        (b"WithoutFreeSpace", "parallels"),
    ] {
        let storage = MemoryStorage::from_bytes(&[start, &[0xff; 2000]].concat());
        assert!(Image::open(&storage, OpenOptions::default()).is_err(), "{format}");
        let audit = audit_start(&storage.to_vec().unwrap(), None, &AuditOptions::default());
        assert_eq!(audit.verdict, Verdict::Danger, "{format}");
        assert!(audit.format == format || audit.format == "raw", "{format}: {}", audit.format);
    }
}

/// What an opener was asked for; it opens nothing.
#[derive(Default)]
struct Asked(Vec<String>);

impl Opener<MemoryStorage> for Asked {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<MemoryStorage>> {
        self.0.push(reference.name.to_string());
        Err(qcowkit_core::Error::new(ErrorKind::Denied("a test opens nothing".into())))
    }
}

fn opens_nothing(change: impl FnOnce(&mut HeaderArea), kind: AuditKind, target: &Target) {
    let storage = with_header(change);
    // Without an opener nothing is opened, and the image's data do not come from elsewhere either.
    let refused = Image::open(storage.clone(), OpenOptions::default());
    assert!(matches!(refused, Err(error) if matches!(error.kind(), ErrorKind::Denied(_))));
    // With one it is asked, once, with the name as it stands there.
    let mut asked = Asked::default();
    assert!(Image::open_with(storage.clone(), None, OpenOptions::default(), &mut asked).is_err());
    assert_eq!(asked.0.len(), 1);
    assert!(dangers(&storage, false).contains(&kind));
    let audit = audit(&storage, &AuditOptions::default(), &mut |_| ()).unwrap();
    assert_eq!(&audit.references[0].target, target);
}

/// A tenant's image with a data file of the host's.
#[test]
fn cve_2024_32498_a_data_file_of_the_hosts() {
    let change = |area: &mut HeaderArea| {
        area.header.incompatible = IncompatibleFeatures::DATA_FILE;
        area.extensions.push(Extension::DataFile("/etc/passwd".into()));
    };
    opens_nothing(change, AuditKind::DataFile, &Target::Absolute);
}

/// A `json:` name in the place of a data file's, which opens anything before anybody has asked for data.
#[test]
fn cve_2024_4467_a_description_in_place_of_a_name() {
    let name = "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}";
    let change = |area: &mut HeaderArea| {
        area.header.incompatible = IncompatibleFeatures::DATA_FILE;
        area.extensions.push(Extension::DataFile(name.into()));
    };
    opens_nothing(change, AuditKind::DataFile, &Target::Json);
}

/// A backing file of the host's.
#[test]
fn cve_2015_5163_a_backing_file_of_the_hosts() {
    let change = |area: &mut HeaderArea| {
        area.backing_file = Some("/etc/shadow".into());
        area.extensions.push(Extension::BackingFormat("raw".into()));
    };
    opens_nothing(change, AuditKind::BackingFile, &Target::Absolute);
}

/// Images that made `qemu-img` use memory and disk without limit: an L1 table in which all entries lead to one L2 table.
#[test]
fn cve_2015_5162_a_small_file_that_claims_everything() {
    let large = CreateOptions { cluster_size: 2 << 20, ..CreateOptions::default() };
    let size = 600u64 << 39;
    let mut image = Image::create(MemoryStorage::new(), size, &large).unwrap();
    image.write_at(0, &[7; 512]).unwrap();
    let storage = image.close().unwrap();
    let l1 = read_header(&storage).unwrap().header.l1_table_offset;
    let mut entry = [0; 8];
    storage.read_at(l1, &mut entry).unwrap();
    storage.write_at(l1, &entry.repeat(400)).unwrap();
    // So many may be a damaged table; its data can be read.
    let mut open = Image::open(&storage, OpenOptions::default().read_only()).unwrap();
    let mut bytes = [0; 512];
    open.read_at(399 << 39, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
    storage.write_at(l1, &entry.repeat(600)).unwrap();
    let refused = Image::open(&storage, OpenOptions::default().read_only());
    assert!(matches!(refused, Err(error) if matches!(error.kind(), ErrorKind::Limit(_))));
    assert!(!dangers(&storage, true).is_empty());
    // Still it is shown and checked.
    let area = read_header(&storage).unwrap();
    assert!(check(&storage, &area, &mut |_| ()).unwrap().corruptions > 0);
}

/// The same within one table, with refcounts that are right: sound, and a bomb.
#[test]
fn a_cluster_that_is_packed_once_and_named_a_million_times_is_told() {
    let options = CreateOptions { refcount_bits: 64, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 2 << 30, &options).unwrap();
    image.write_compressed(0, &vec![0; CLUSTER as usize]).unwrap();
    image.write_compressed(CLUSTER, &vec![0x55; CLUSTER as usize]).unwrap();
    let l1 = image.header().header.l1_table_offset;
    let storage = image.close().unwrap();
    let (mut table, mut entry) = ([0; 8], [0; 8]);
    for index in 0..4 {
        storage.read_at(l1, &mut table).unwrap();
        let at = u64::from_be_bytes(table) & 0x00ff_ffff_ffff_fe00;
        storage.read_at(at + 8, &mut entry).unwrap();
        storage.write_at(at, &entry.repeat(8192)).unwrap();
        storage.write_at(l1 + index * 8, &table).unwrap();
    }
    let audit = audit(&storage, &AuditOptions { deep: true, ..AuditOptions::default() }, &mut |_| ()).unwrap();
    let told = |finding: &&qcowkit_core::operations::audit::AuditFinding| finding.kind == AuditKind::AbsurdSize;
    let bomb = audit.findings.iter().find(told).unwrap_or_else(|| panic!("{:?}", audit.findings));
    assert!(bomb.message.contains("2147483648 bytes of data"), "{bomb:?}");
    // An image that is merely sparse, or packed as anybody packs, is none.
    assert!(dangers(&image_of_zeros(), true).is_empty());
}

fn image_of_zeros() -> MemoryStorage {
    let mut image = Image::create(MemoryStorage::new(), 1 << 40, &CreateOptions::default()).unwrap();
    image.write_zeroes(0, 4 << 30, false).unwrap();
    image.close().unwrap()
}
