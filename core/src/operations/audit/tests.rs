use std::vec::Vec;

use super::*;
use crate::format::{
    AutoclearFeatures, BitmapsExtension, CompatibleFeatures, Extension, HeaderArea, IncompatibleFeatures,
    MAX_FEATURE_NAMES, MAX_HEADER_EXTENSIONS,
};
use crate::image::{CreateOptions, Image, OpenOptions, read_header};
use crate::storage::{CountingStorage, MemoryStorage, Storage};

fn image() -> MemoryStorage {
    let mut image = Image::create(MemoryStorage::new(), 64 << 20, &CreateOptions::default()).unwrap();
    image.write_at(0, &[7; 128 << 10]).unwrap();
    image.close().unwrap()
}

/// The image with another header cluster.
fn with_header(change: impl FnOnce(&mut HeaderArea)) -> MemoryStorage {
    let storage = image();
    let mut area = read_header(&storage).unwrap();
    change(&mut area);
    storage.write_at(0, &area.emit().unwrap()).unwrap();
    storage
}

/// The image with other bytes somewhere.
fn with_bytes(at: u64, bytes: &[u8]) -> MemoryStorage {
    let storage = image();
    storage.write_at(at, bytes).unwrap();
    storage
}

fn look(storage: &MemoryStorage, deep: bool) -> Audit {
    audit(storage, &AuditOptions { deep, ..AuditOptions::default() }, &mut |_| ()).unwrap()
}

fn kinds(audit: &Audit, verdict: Verdict) -> Vec<AuditKind> {
    audit.findings.iter().filter(|finding| finding.verdict == verdict).map(|finding| finding.kind).collect()
}

#[test]
fn an_ordinary_image_is_safe_by_header_and_by_all_of_it() {
    for deep in [false, true] {
        let audit = look(&image(), deep);
        assert_eq!(audit.verdict, Verdict::Safe, "{audit:?}");
        assert!(audit.findings.is_empty(), "{audit:?}");
        assert_eq!((audit.format, audit.version, audit.cluster_size), ("qcow2", Some(3), Some(65_536)));
    }
}

#[test]
fn the_header_costs_a_few_reads_whatever_the_image_says() {
    let storage = CountingStorage::new(image());
    audit(&storage, &AuditOptions::default(), &mut |_| ()).unwrap();
    let reads = storage.counts().read;
    assert!(reads.calls <= 3 && reads.bytes <= 70_000, "{reads:?}");
}

#[test]
fn every_name_that_leads_elsewhere_is_a_danger() {
    for (name, verdict) in [
        ("base.qcow2", Verdict::Caution),
        ("../../tenant-b/disk.raw", Verdict::Danger),
        ("/etc/passwd", Verdict::Danger),
        ("nbd://10.0.0.1/secret", Verdict::Danger),
        // CVE-2024-4467: a json: name reaches any driver, whatever the caller forbids for plain names.
        ("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}}", Verdict::Danger),
    ] {
        let backed = with_header(|area| {
            area.backing_file = Some(name.into());
            area.extensions.push(Extension::BackingFormat("raw".into()));
        });
        let audit = look(&backed, false);
        assert_eq!(audit.verdict, verdict, "{name}: {audit:?}");
        assert_eq!(audit.findings[0].kind, AuditKind::BackingFile);
        assert_eq!(audit.references.len(), 1);
        assert_eq!(audit.references[0].name, name);
    }
    let guessed = with_header(|area| area.backing_file = Some("base".into()));
    assert!(kinds(&look(&guessed, false), Verdict::Caution).contains(&AuditKind::BackingFormat));
    let odd = with_header(|area| area.backing_file = Some("x\x1b[2J\n".into()));
    let audit = look(&odd, false);
    assert!(!audit.findings.iter().any(|finding| finding.message.chars().any(char::is_control)), "{audit:?}");
}

/// CVE-2024-32498: an image with a data file of the host's, uploaded by a tenant.
#[test]
fn every_data_file_is_a_danger() {
    for (named, bit) in [(true, true), (true, false), (false, true)] {
        let storage = with_header(|area| {
            if bit {
                area.header.incompatible = IncompatibleFeatures::DATA_FILE;
            }
            if named {
                area.extensions.push(Extension::DataFile("/etc/passwd".into()));
            }
        });
        let audit = look(&storage, false);
        assert_eq!(audit.verdict, Verdict::Danger);
        assert_eq!(kinds(&audit, Verdict::Danger)[0], AuditKind::DataFile, "{audit:?}");
        assert_eq!(audit.references.len(), usize::from(named));
    }
}

/// CVE-2014-0143 and its siblings: sizes that overflow or exhaust memory.
#[test]
fn absurd_sizes_and_places_are_named() {
    type Change = fn(&mut HeaderArea);
    let cases: [(&str, Change, AuditKind); 12] = [
        ("L1 table", |a| a.header.l1_size = u32::MAX, AuditKind::AbsurdSize),
        ("L1 too small", |a| a.header.l1_size = 0, AuditKind::DamagedHeader),
        ("refcount table", |a| a.header.refcount_table_clusters = u32::MAX, AuditKind::AbsurdSize),
        ("snapshots", |a| a.header.snapshot_count = u32::MAX, AuditKind::AbsurdSize),
        ("virtual size", |a| a.header.virtual_size = u64::MAX, AuditKind::AbsurdSize),
        ("refcount order", |a| a.header.refcount_order = 63, AuditKind::DamagedHeader),
        ("crypt method", |a| a.header.crypt_method = 9, AuditKind::Encrypted),
        ("L1 offset", |a| a.header.l1_table_offset = u64::MAX - 0xffff, AuditKind::DamagedHeader),
        ("L1 on the header", |a| a.header.l1_table_offset = 0, AuditKind::Overlap),
        ("L1 on the refcounts", |a| a.header.l1_table_offset = a.header.refcount_table_offset, AuditKind::Overlap),
        ("refcounts beyond", |a| a.header.refcount_table_offset = 1 << 40, AuditKind::BeyondEndOfFile),
        (
            "bitmap directory",
            |a| {
                a.header.autoclear = AutoclearFeatures::BITMAPS;
                let huge = BitmapsExtension { nb_bitmaps: 1, directory_size: 1 << 60, directory_offset: 1 << 20 };
                a.extensions.push(Extension::Bitmaps(huge));
            },
            AuditKind::AbsurdSize,
        ),
    ];
    for (name, change, kind) in cases {
        let audit = look(&with_header(change), false);
        assert_eq!(audit.verdict, Verdict::Danger, "{name}");
        assert!(kinds(&audit, Verdict::Danger).contains(&kind), "{name}: {audit:?}");
    }
    // Fields that `emit` would not write.
    for (at, bytes) in [(20, [0, 0, 0, 63]), (4, [0, 0, 0, 9]), (100, [0xff; 4])] {
        let audit = look(&with_bytes(at, &bytes), false);
        assert_eq!(audit.verdict, Verdict::Danger, "{at}: {audit:?}");
    }
    let large = with_header(|area| area.header.virtual_size = 1 << 40);
    let options = AuditOptions { max_virtual_size: Some(1 << 30), ..AuditOptions::default() };
    assert!(
        kinds(&audit(&large, &options, &mut |_| ()).unwrap(), Verdict::Danger).contains(&AuditKind::AbsurdSize),
        "a limit of the caller's"
    );
}

#[test]
fn features_are_weighed_by_what_they_mean() {
    let unknown = with_header(|area| {
        area.header.incompatible = IncompatibleFeatures::from_bits(1 << 40);
    });
    assert_eq!(kinds(&look(&unknown, false), Verdict::Danger), [AuditKind::UnknownFeature]);
    let harmless = with_header(|area| {
        area.header.compatible = CompatibleFeatures::from_bits(1 << 40);
        area.header.autoclear = AutoclearFeatures::from_bits(1 << 40);
        area.extensions.push(Extension::Unknown { kind: 0x1234_5678, data: vec![1, 2, 3] });
    });
    let audit = look(&harmless, false);
    assert_eq!((audit.verdict, audit.findings.len()), (Verdict::Safe, 3), "{audit:?}");
    let dirty = with_header(|area| area.header.incompatible = IncompatibleFeatures::DIRTY);
    assert_eq!(look(&dirty, false).verdict, Verdict::Caution);
    let corrupt = with_header(|area| area.header.incompatible = IncompatibleFeatures::CORRUPT);
    assert_eq!(look(&corrupt, false).verdict, Verdict::Danger);
}

#[test]
fn a_file_that_is_two_things_is_found_out() {
    for (at, magic, verdict) in [
        (510u64, &b"\x55\xaa"[..], Verdict::Danger),
        (512, b"EFI PART", Verdict::Danger),
        (0x8001, b"CD001", Verdict::Danger),
        (257, b"ustar", Verdict::Danger),
        (40_000, b"anything", Verdict::Caution),
    ] {
        let audit = look(&with_bytes(at, magic), false);
        assert_eq!(audit.verdict, verdict, "{at}: {audit:?}");
    }
    let footer = image();
    let end = footer.len().unwrap();
    footer.write_at(end - 512, b"conectix").unwrap();
    assert_eq!(kinds(&look(&footer, false), Verdict::Caution), [AuditKind::OtherFormat]);
    for (start, format) in [
        (&b"QFI\xfb\0\0\0\x01"[..], "qcow"),
        (b"KDMV", "vmdk"),
        (b"LUKS\xba\xbe\0\x01", "luks"),
        (b"", "raw"),
        (b"Q", "raw"),
        (&[0; 4096], "raw"),
    ] {
        let audit = audit_start(start, Some(start.len() as u64), &AuditOptions::default());
        assert_eq!((audit.format, audit.verdict), (format, Verdict::Danger));
    }
}

#[test]
fn what_lies_deeper_takes_a_deep_look() {
    // The L2 entry of guest cluster 0 leads to the header.
    let storage = image();
    let mut open = Image::open(storage, OpenOptions::default().read_only()).unwrap();
    let host = open.map(0, 65_536).unwrap();
    assert!(!host.is_empty());
    let storage = open.close().unwrap();
    let table = 0x40000;
    storage.write_at(table, &(1u64 << 63).to_be_bytes()).unwrap();
    storage.write_at(table + 8, &((1u64 << 63) | 0x30000).to_be_bytes()).unwrap();
    assert_eq!(look(&storage, false).verdict, Verdict::Safe);
    let audit = look(&storage, true);
    assert_eq!((audit.verdict, audit.scope), (Verdict::Danger, Scope::Deep));
    assert!(kinds(&audit, Verdict::Danger).contains(&AuditKind::Metadata), "{audit:?}");

    let trailing = image();
    let end = trailing.len().unwrap();
    trailing.write_at(end + (1 << 30), b"smuggled").unwrap();
    assert_eq!(look(&trailing, false).verdict, Verdict::Safe);
    let audit = look(&trailing, true);
    assert_eq!(kinds(&audit, Verdict::Caution), [AuditKind::TrailingData]);
    assert_eq!(audit.findings[0].host_offset, Some(end + (1 << 30)));
}

#[test]
fn keys_that_take_hours_are_a_danger() {
    let crypto = 0x10_0000u64;
    let storage = with_header(|area| {
        area.header.crypt_method = 2;
        area.extensions.push(Extension::CryptoHeader { offset: crypto, length: 4096 });
    });
    let mut luks = [0u8; 592];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    luks[208..212].copy_from_slice(&0x00ac_71f3u32.to_be_bytes());
    luks[212..216].copy_from_slice(&u32::MAX.to_be_bytes());
    storage.write_at(crypto, &luks).unwrap();
    storage.write_at(crypto + 4096, &[0]).unwrap();
    let audit = look(&storage, false);
    assert_eq!(audit.verdict, Verdict::Danger, "{audit:?}");
    assert!(audit.findings[0].message.contains("4294967295 rounds"), "{audit:?}");
}

/// Header clusters of 2 MiB that are made to cost time and memory: what is kept, and told, has bounds.
#[test]
fn a_header_full_of_extensions_names_or_rubbish_is_told_in_few_words() {
    let extension = |kind: u32, length: u32| [kind.to_be_bytes(), length.to_be_bytes()].concat();
    let much = 1usize << 20;
    let empty = extension(0x1234_5678, 0).repeat(much / 8);
    let entry = [&[1, 63][..], &[b'n'; 46]].concat();
    let names = [extension(0x6803_f857, 48 * 20_000), entry.repeat(20_000)].concat();
    let long = [extension(0x4441_5441, much as u32), vec![1; much]].concat();
    let rubbish = [extension(0, 0), vec![0xff; much]].concat();
    let create = CreateOptions { cluster_size: 2 << 20, ..CreateOptions::default() };
    let cases = [
        ("empty extensions", empty, Verdict::Danger, AuditKind::AbsurdSize),
        ("feature names", names, Verdict::Safe, AuditKind::UnknownFeature),
        ("the name of a data file", long, Verdict::Danger, AuditKind::DataFile),
        ("rubbish", rubbish, Verdict::Caution, AuditKind::HiddenData),
    ];
    for (name, bytes, verdict, kind) in cases {
        let storage = Image::create(MemoryStorage::new(), 1 << 30, &create).unwrap().close().unwrap();
        let header_length = 112;
        storage.write_at(header_length, &bytes).unwrap();
        // Unknown features, so that their names are looked for.
        storage.write_at(80, &(u64::from(kind == AuditKind::UnknownFeature) << 63).to_be_bytes()).unwrap();
        let audit = look(&storage, false);
        assert_eq!(audit.verdict, verdict, "{name}: {:?}", audit.findings);
        assert!(audit.findings.iter().any(|finding| finding.kind == kind), "{name}: {:?}", audit.findings);
        let words: usize = audit.findings.iter().map(|finding| finding.message.len()).sum();
        assert!(words < 16 << 10, "{name}: {words} bytes of messages");
        let area = read_header(&storage).unwrap();
        assert!(area.extensions.len() <= MAX_HEADER_EXTENSIONS && area.feature_names().len() <= MAX_FEATURE_NAMES);
        // Without its bit a data file is not used, and the rest is kept as it is.
        let opens = Image::open(&storage, OpenOptions::default().read_only()).is_ok();
        assert_eq!(opens, kind != AuditKind::AbsurdSize, "{name}");
    }
}

#[test]
fn bytes_that_belong_to_nothing_are_counted_around_the_name() {
    let storage = with_header(|area| area.backing_file = Some("base".into()));
    let clean = look(&storage, false);
    assert!(!clean.findings.iter().any(|finding| finding.kind == AuditKind::HiddenData), "{clean:?}");
    let area = read_header(&storage).unwrap();
    let name = area.header.backing_file_offset;
    for (at, bytes) in [(name + 4, &[1u8, 2][..]), (65_535, &[3]), (20_000, &[9; 5000])] {
        storage.write_at(at, bytes).unwrap();
        let mut cluster = vec![0; 65_536];
        storage.read_at(0, &mut cluster).unwrap();
        let hidden: Vec<usize> = (name as usize + 4..65_536).filter(|&at| cluster[at] != 0).collect();
        let audit = look(&storage, false);
        let found = audit.findings.iter().find(|finding| finding.kind == AuditKind::HiddenData).unwrap();
        assert_eq!(found.host_offset, Some(hidden[0] as u64));
        assert!(found.message.starts_with(&std::format!("{} bytes of", hidden.len())), "{found:?}");
    }
}

#[test]
fn a_stream_is_judged_by_its_first_bytes() {
    let storage = image();
    let mut start = std::vec![0u8; 65_536];
    storage.read_at(0, &mut start).unwrap();
    assert_eq!(bytes_wanted(&start[..512]), 65_536);
    let audit = audit_start(&start, None, &AuditOptions::default());
    assert_eq!((audit.verdict, audit.file_length), (Verdict::Safe, None), "{audit:?}");
    // Any prefix is judged without a panic, and never as safer than what it shows.
    for length in 0..200 {
        let audit = audit_start(&start[..length], Some(length as u64), &AuditOptions::default());
        assert_eq!(audit.verdict, Verdict::Danger, "{length}");
    }
}
