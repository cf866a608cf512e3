//! Header bytes taken apart, built again and refused: each refusal was seen with qemu-img 10.0.

use super::super::*;
use crate::error::{ErrorKind, Structure};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// The header of `qemu-img create -f qcow2 a.qcow2 1M`, with the extensions cut off.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0u8; 65536];
    put(&mut bytes, 0, &[0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
    put(&mut bytes, 20, &[0, 0, 0, 16, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    put(&mut bytes, 36, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    put(&mut bytes, 96, &[0, 0, 0, 4, 0, 0, 0, 112]);
    bytes
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = plain();
    changes.iter().for_each(|(at, what)| put(&mut bytes, *at, what));
    bytes
}

fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn refusal(bytes: &[u8]) -> ErrorKind {
    match HeaderArea::parse(bytes) {
        Ok(area) => area.validate(None).unwrap_err().kind().clone(),
        Err(error) => error.kind().clone(),
    }
}

#[test]
fn the_header_of_an_empty_image() {
    let area = HeaderArea::parse(&plain()).unwrap();
    let expected = Header {
        l1_size: 1,
        l1_table_offset: 0x30000,
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        ..Header::new(3, 16, 1 << 20)
    };
    assert_eq!(area.header, expected);
    assert_eq!(area.emit().unwrap(), plain());
    let geometry = area.validate(Some(0x40000)).unwrap();
    assert_eq!((geometry.cluster_size(), geometry.virtual_size(), geometry.version()), (65536, 1 << 20, 3));
}

#[test]
fn everything_in_the_cluster_survives_both_ways() {
    let mut bytes = with(&[(72, &[0, 0, 0, 0, 0, 0, 0, 8]), (100, &[0, 0, 0, 128]), (104, &[1])]);
    put(&mut bytes, 120, b"unknown!");
    let mut rest = extension(0x1234, b"odd");
    rest.extend(extension(0xe279_2aca, b"raw"));
    rest.extend([0; 8]);
    put(&mut bytes, 128, &rest);
    let name_at = 128 + rest.len();
    put(&mut bytes, name_at, b"b\xe4se.img");
    put(&mut bytes, 8, &(name_at as u64).to_be_bytes());
    put(&mut bytes, 16, &8u32.to_be_bytes());
    let area = HeaderArea::parse(&bytes).unwrap();
    assert_eq!(area.damage, None);
    assert_eq!(area.header.compression_type, 1);
    assert_eq!(area.backing_file.as_ref().map(Name::as_bytes), Some(&b"b\xe4se.img"[..]));
    assert_eq!(area.backing_format().unwrap(), &"raw");
    assert_eq!(area.emit().unwrap(), bytes);
    area.validate(None).unwrap();
}

#[test]
fn version_2_has_nothing_of_version_3() {
    let mut bytes = with(&[(4, &[0, 0, 0, 2])]);
    bytes[72..128].fill(0);
    let area = HeaderArea::parse(&bytes).unwrap();
    assert_eq!((area.header.refcount_order, area.header.header_length), (4, 72));
    assert!(area.header.incompatible.is_empty());
    assert_eq!(area.emit().unwrap(), bytes);
    assert_eq!(area.header.emit().len(), 72);
    // Bytes that would be feature bits in version 3 are extensions here.
    put(&mut bytes, 72, &extension(0xe279_2aca, b"qcow2"));
    let area = HeaderArea::parse(&bytes).unwrap();
    assert_eq!(area.extensions, [Extension::BackingFormat("qcow2".into())]);
    assert!(area.validate(None).is_ok());
}

#[test]
fn lengths_of_the_header() {
    for (length, emitted) in [(104u32, 104), (105, 112), (112, 112), (65528, 65528)] {
        let bytes = with(&[(100, &length.to_be_bytes())]);
        let area = HeaderArea::parse(&bytes).unwrap();
        assert!(area.validate(None).is_ok(), "{length}");
        assert_eq!(area.header.emitted_length(), emitted);
        assert_eq!(area.emit().unwrap().len(), 65536);
    }
    for length in [0u32, 72, 103, 65537, u32::MAX] {
        assert!(matches!(refusal(&with(&[(100, &length.to_be_bytes())])), ErrorKind::Corrupt(_)), "{length}");
    }
    for cut in 4..104 {
        assert!(matches!(refusal(&plain()[..cut]), ErrorKind::Corrupt(_)), "{cut}");
    }
    for cut in 0..4 {
        assert_eq!(refusal(&plain()[..cut]), ErrorKind::NotQcow2);
    }
    assert!(HeaderArea::parse(&plain()[..104]).unwrap().validate(None).is_ok());
}

#[test]
fn what_qemu_refuses_is_refused() {
    let unsupported: &[(usize, &[u8])] = &[
        (4, &[0, 0, 0, 1]),
        (4, &[0, 0, 0, 4]),
        (20, &[0, 0, 0, 8]),
        (20, &[0, 0, 0, 22]),
        (20, &[0, 0, 0, 64]),
        (32, &[0, 0, 0, 3]),
        (72, &[0, 0, 0, 0, 0, 0, 0, 32]),
        (104, &[2]),
    ];
    for change in unsupported {
        assert!(matches!(refusal(&with(&[*change])), ErrorKind::Unsupported(_)), "{change:?}");
    }
    let corrupt: &[(usize, &[u8])] = &[
        (8, &[0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 5]),
        (8, &[0, 0, 0, 0, 0, 0, 255, 250, 0, 0, 0, 50]),
        (8, &[0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 4, 0]),
        (24, &[0, 0, 0, 0, 0x40, 0, 0, 0]),
        (32, &[0, 0, 0, 2]),
        (36, &[0, 0, 0, 0]),
        (40, &[0, 0, 0, 0, 0, 3, 2, 0]),
        (40, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        (48, &[0, 0, 0, 0, 0, 1, 2, 0]),
        (48, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        (56, &[0, 0, 0, 0]),
        (60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 2, 0]),
        (60, &[0, 0, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        (72, &[0, 0, 0, 0, 0, 0, 0, 8]),
        (88, &[0, 0, 0, 0, 0, 0, 0, 2]),
        (96, &[0, 0, 0, 7]),
        (104, &[1]),
        (112, &[0, 0, 0x12, 0x34, 0, 1, 0x11, 0x70]),
    ];
    for change in corrupt {
        assert!(matches!(refusal(&with(&[*change])), ErrorKind::Corrupt(_)), "{change:?}");
    }
    let limits: &[(usize, &[u8])] = &[
        (24, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        (24, &[0x20, 0, 0, 0, 0, 0, 0, 0]),
        (36, &[0, 0x40, 0, 1]),
        (56, &[0, 0, 0, 129]),
        (56, &[255, 255, 255, 255]),
        (60, &[0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0]),
    ];
    for change in limits {
        assert!(matches!(refusal(&with(&[*change])), ErrorKind::Limit(_)), "{change:?}");
    }
}

#[test]
fn what_qemu_opens_is_accepted() {
    let fine: &[(usize, &[u8])] = &[
        (24, &[0; 8]),
        (36, &[0, 0x40, 0, 0]),
        (40, &[0; 8]),
        (40, &[0, 0, 1, 0, 0, 0, 0, 0]),
        (48, &[0; 8]),
        (56, &[0, 0, 0, 128]),
        (72, &[0, 0, 0, 0, 0, 0, 0, 3]),
        (72, &[0, 0, 0, 0, 0, 0, 0, 16]),
        (80, &[255; 8]),
        (88, &[0x80, 0, 0, 0, 0, 0, 0, 1]),
        (32, &[0, 0, 0, 1]),
    ];
    for change in fine {
        let area = HeaderArea::parse(&with(&[*change])).unwrap();
        assert!(area.validate(None).is_ok(), "{change:?}");
    }
    let dirty = HeaderArea::parse(&with(&[(72, &[0, 0, 0, 0, 0, 0, 0, 1])])).unwrap();
    assert_eq!(dirty.write_obstacles(), WriteObstacles { corrupt: false, dirty: true });
}

#[test]
fn unknown_features_are_refused_by_the_images_own_names() {
    let mut table = vec![0u8, 5];
    table.extend(b"moon phase");
    table.resize(48, 0);
    let bytes = with(&[(72, &[0, 0, 0, 0, 0, 0, 0, 0x60]), (112, &extension(0x6803_f857, &table))]);
    let error = HeaderArea::parse(&bytes).unwrap().validate(None).unwrap_err().to_string();
    assert!(error.contains("moon phase, unknown incompatible feature bit 6"), "{error}");
}

#[test]
fn extensions_that_make_no_sense_are_refused() {
    let bitmaps = |count: u32, reserved: u32, size: u64, offset: u64| {
        let mut data = count.to_be_bytes().to_vec();
        data.extend(reserved.to_be_bytes());
        data.extend(size.to_be_bytes());
        data.extend(offset.to_be_bytes());
        extension(0x2385_2875, &data)
    };
    let autoclear: (usize, &[u8]) = (88, &[0, 0, 0, 0, 0, 0, 0, 1]);
    // Bitmaps that make no sense are in nobody's way.
    let useless: &[Vec<u8>] = &[
        bitmaps(0, 0, 24, 0x50000),
        bitmaps(1, 1, 24, 0x50000),
        bitmaps(65536, 0, 24, 0x50000),
        bitmaps(1, 0, 24, 0x50200),
        bitmaps(1, 0, u64::MAX, 0x50000),
        bitmaps(1, 0, 24, !0xffff),
        extension(0x2385_2875, &[0; 8]),
    ];
    for one in useless {
        let area = HeaderArea::parse(&with(&[autoclear, (112, one)])).unwrap();
        let geometry = area.validate(None).unwrap();
        assert!(area.usable_bitmaps(&geometry).is_err(), "{one:x?}");
    }
    let refused: &[Vec<u8>] = &[
        extension(0x0537_be77, &[0; 8]),
        extension(0x0537_be77, &[0; 16]),
        extension(0xe279_2aca, b"a format name too long"),
    ];
    for one in refused {
        assert!(HeaderArea::parse(&with(&[autoclear, (112, one)])).unwrap().validate(None).is_err(), "{one:x?}");
    }
    // Without the autoclear bit the bitmaps are inconsistent anyway: they are not looked at.
    let area = HeaderArea::parse(&with(&[(112, &bitmaps(0, 0, 24, 0x50200))])).unwrap();
    let geometry = area.validate(None).unwrap();
    assert_eq!(area.usable_bitmaps(&geometry), Ok(None));
    assert!(HeaderArea::parse(&with(&[(112, &extension(0x6803_f857, &[0; 50]))])).unwrap().validate(None).is_ok());
    let mut luks = vec![0, 0, 0, 0, 0, 4, 0, 0];
    luks.extend(592u64.to_be_bytes());
    let luks = with(&[(32, &[0, 0, 0, 2]), (112, &extension(0x0537_be77, &luks))]);
    let area = HeaderArea::parse(&luks).unwrap();
    assert!(area.validate(Some(0x50000)).is_ok());
    assert!(area.validate(Some(0x30000)).is_err());
}

#[test]
fn what_does_not_fit_one_cluster_is_not_emitted() {
    let header = Header::new(3, 9, 1 << 20);
    let mut area = HeaderArea::new(header);
    area.backing_file = Some(Name::new(vec![b'x'; 512 - 112 - 8]));
    let bytes = area.emit().unwrap();
    assert_eq!(bytes.len(), 512);
    assert_eq!(HeaderArea::parse(&bytes).unwrap().backing_file, area.backing_file);
    area.backing_file = Some(Name::new(vec![b'x'; 512 - 112 - 7]));
    assert!(matches!(area.emit().unwrap_err().kind(), ErrorKind::Limit(_)));
    area.header.cluster_bits = 16;
    area.backing_file = Some(Name::from(String::from_utf8(vec![b'x'; 1024]).unwrap()));
    assert!(matches!(area.emit().unwrap_err().kind(), ErrorKind::Limit(_)));
    area.header.cluster_bits = 64;
    assert!(matches!(area.emit().unwrap_err().kind(), ErrorKind::InvalidArgument(_)));
}

#[test]
fn a_damaged_area_is_shown_but_not_emitted() {
    let bytes = with(&[(112, &[0, 0, 0x12, 0x34, 255, 255, 255, 255])]);
    let area = HeaderArea::parse(&bytes).unwrap();
    assert_eq!(area.damage.as_ref().unwrap().site().structure, Some(Structure::HeaderExtension));
    assert_eq!(area.emit().unwrap_err(), area.damage.clone().unwrap());
    assert_eq!(area.validate(None).unwrap_err(), area.damage.unwrap());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048), valid in proptest::bool::ANY) {
        let mut bytes = bytes;
        if valid && bytes.len() >= 104 {
            put(&mut bytes, 0, &plain()[..24]);
            put(&mut bytes, 100, &[0, 0, 0, 112]);
        }
        if let Ok(area) = HeaderArea::parse(&bytes) {
            let _ = area.validate(Some(bytes.len() as u64));
            if let Ok(emitted) = area.emit() {
                let again = HeaderArea::parse(&emitted).unwrap();
                proptest::prop_assert_eq!(again.extensions, area.extensions);
                proptest::prop_assert_eq!(again.backing_file, area.backing_file);
            }
        }
    }
}
