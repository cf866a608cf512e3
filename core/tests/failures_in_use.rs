//! Images of many kinds in use while one of their files fails: subclusters, packed clusters, backing files, tables that
//! grow, encryption. The plainest are in `failures.rs`, data files in `data_file_failures.rs`.

use std::rc::Rc;

use qcowkit_core::crypto::Secret;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewSnapshot, OpenOptions};
use qcowkit_core::metadata::{DiscardPolicy, RetainedOp, Unref};
use qcowkit_core::storage::{FailingStorage, MemoryStorage, ReadStorage};
use qcowkit_trial::disks::volume;
use qcowkit_trial::failures::{each_fault, small_metadata};
use qcowkit_trial::faulty::{Disk, Op, Session};

fn options() -> OpenOptions {
    OpenOptions::default().with_metadata(small_metadata())
}

fn retaining(retained_op: RetainedOp) -> OpenOptions {
    options().with_policy(DiscardPolicy { unref: Unref::RetainUnshared, retained_op, ..DiscardPolicy::default() })
}

/// The first file over the others, which are qcow2 images, the last of them perhaps raw.
fn open(disks: &[Disk], options: OpenOptions) -> qcowkit_core::Result<Image<Disk>> {
    let image = Image::open(Rc::clone(&disks[0]), options.clone().metadata_only())?;
    let Some(below) = disks.get(1) else { return Ok(image) };
    let mut start = [0; 4];
    below.read_at(0, &mut start)?;
    let layer = if &start == b"QFI\xfb" {
        let below = OpenOptions { snapshot: None, ..options }.read_only();
        Layer::from(open(&disks[1..], below)?)
    } else {
        Layer::Raw { storage: Rc::clone(below), length: below.len()? }
    };
    Ok(image.with_backing(layer))
}

fn all_fail(name: &str, session: &Session<'_>, never: &[&[&str]]) -> u64 {
    // It does what it should where nothing fails.
    let failures = never.iter().enumerate().map(|(file, never)| {
        each_fault(never, |fault| session.run(file, fault).map_err(|why| format!("{name}, file {file}: {why}")))
    });
    let failures = failures.sum();
    println!("{name}: {failures} failures");
    failures
}

fn session(files: Vec<Vec<u8>>, content: Vec<u8>, options: OpenOptions, ops: &[Op]) -> Session<'_> {
    Session { files, content, options, open: &open, ops, raw_view: None, judge: &|_| Ok(()), own: 1 }
}

/// An image made by `fill`, and its disk.
fn made(
    create: &CreateOptions,
    size: usize,
    open: OpenOptions,
    fill: impl FnOnce(&mut Image<MemoryStorage>),
) -> (Vec<u8>, Vec<u8>) {
    let mut image = Image::create_with(MemoryStorage::new(), size as u64, create, open.metadata_only()).unwrap();
    fill(&mut image);
    let mut content = vec![0; size];
    if create.backing_file.is_none() {
        image.read_at(0, &mut content).unwrap();
    }
    (image.close().unwrap().to_vec().unwrap(), content)
}

fn over(create: CreateOptions, format: &str) -> CreateOptions {
    CreateOptions { backing_file: Some("base".into()), backing_format: Some(format.into()), ..create }
}

const NOTHING_WRITTEN: &[&str] = &["write", "half a write", "flush", "no space"];

#[test]
fn subclusters_over_a_raw_file() {
    const SIZE: usize = 112 << 10;
    const OPS: [Op; 17] = [
        Op::Write(700, 20_000, 1),
        Op::Flush,
        Op::Zeroes(2048, 3000, true),
        Op::Write(2560, 600, 2),
        Op::Packed(32_768, 16_384, 3),
        Op::Take(1),
        Op::Write(33_000, 100, 4),
        Op::Write(900, 5, 5),
        Op::Read,
        Op::Discard(0, 32_768),
        Op::Write(16_384, 512, 6),
        Op::Reopen,
        Op::Zeroes(40_000, 20_000, false),
        Op::Delete(1),
        Op::Read,
        Op::Resize(SIZE + 50_176),
        Op::Resize(81_920),
    ];
    let create = CreateOptions { cluster_size: 16 << 10, extended_l2: true, ..CreateOptions::default() };
    let (top, _) = made(&over(create, "raw"), SIZE, OpenOptions::default(), |_| ());
    let below: Vec<u8> = (0..90_000).map(|n| (n / 2000 + 10) as u8).collect();
    let mut content = below.clone();
    content.resize(SIZE, 0);
    for options in [options(), retaining(RetainedOp::Punch)] {
        let session = session(vec![top.clone(), below.clone()], content.clone(), options, &OPS);
        let cases = all_fail("subclusters", &session, &[&[], NOTHING_WRITTEN]);
        assert!(cases > 200, "{cases}");
    }
}

#[test]
fn packed_clusters_over_images() {
    const SIZE: usize = 60 << 10;
    const OPS: [Op; 16] = [
        Op::Packed(0, 4096, 1),
        Op::Packed(8192, 1024, 2),
        Op::Write(500, 1000, 3),
        Op::Flush,
        Op::Packed(1024, 2048, 4),
        Op::Take(1),
        Op::Discard(2048, 2048),
        Op::Packed(3072, 1024, 5),
        Op::Write(20_000, 3000, 6),
        Op::Zeroes(8192, 512, true),
        Op::Read,
        Op::Reopen,
        Op::Read,
        Op::Packed(51_200, 1024, 7),
        Op::Delete(1),
        Op::Write(8300, 50, 8),
    ];
    let plain = |cluster_size| CreateOptions { cluster_size, refcount_bits: 64, ..CreateOptions::default() };
    // Packed clusters, plain ones and zeros below; and below these a shorter image that is all data.
    let (bottom, data) = made(&plain(2048), 40 << 10, OpenOptions::default(), |image| {
        (0..20).for_each(|n| image.write_at(n * 2048, &[n as u8 + 20; 2048]).unwrap());
    });
    let (middle, _) = made(&over(plain(1024), "qcow2"), SIZE, OpenOptions::default(), |image| {
        image.write_compressed(1024, &[50; 3072]).unwrap();
        image.write_at(18_432, &[51; 4096]).unwrap();
        image.write_zeroes(50_176, 4096, true).unwrap();
    });
    let (top, _) = made(&over(plain(1024), "qcow2"), SIZE, OpenOptions::default(), |_| ());
    let mut content = data;
    content.resize(SIZE, 0);
    content[1024..4096].fill(50);
    content[18_432..22_528].fill(51);
    let session = session(vec![top, middle, bottom], content, options(), &OPS);
    let cases = all_fail("packed", &session, &[&[], NOTHING_WRITTEN, NOTHING_WRITTEN]);
    assert!(cases > 150, "{cases}");
}

/// The refcount table moves, in the middle of writes. (The L1 table does in `resize_failures.rs`.)
#[test]
fn a_refcount_table_that_grows() {
    const SIZE: usize = 96 << 10;
    const OPS: [Op; 7] = [
        Op::Write(1000, 20_000, 1),
        Op::Write(40_000, 30_000, 2),
        Op::Flush,
        Op::Discard(2048, 4096),
        Op::Write(80_000, 10_000, 3),
        Op::Write(3000, 500, 4),
        Op::Reopen,
    ];
    let create = CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    // Many snapshots of a small disk make a long file: 2 MiB are as far as one cluster of the refcount table goes.
    let (image, content) = made(&create, SIZE, OpenOptions::default(), |image| {
        for n in 0..20 {
            image.write_at(0, &vec![n + 10; SIZE]).unwrap();
            image.create_snapshot(&NewSnapshot { name: n.to_string().into(), ..NewSnapshot::default() }).unwrap();
        }
    });
    let refcount_table = |bytes: &[u8]| bytes[48..56].to_vec();
    // With nothing that fails, it has moved.
    let disk = MemoryStorage::from_bytes(&image);
    let mut used = Image::open(&disk, options()).unwrap();
    used.write_at(1000, &[1; 60_000]).unwrap();
    used.close().unwrap();
    assert!(refcount_table(&image) != refcount_table(&disk.to_vec().unwrap()), "{} bytes", image.len());
    let session = session(vec![image], content, options(), &OPS);
    let cases = all_fail("growth", &session, &[&[]]);
    assert!(cases > 100, "{cases}");
}

const ENCRYPTED: [Op; 14] = [
    Op::Write(100, 9000, 1),
    Op::Write(40_000, 2000, 2),
    Op::Flush,
    Op::Write(700, 100, 3),
    Op::Discard(4096, 4096),
    Op::Zeroes(40_100, 1500, true),
    Op::Take(1),
    Op::Write(600, 5000, 4),
    Op::Reopen,
    Op::Read,
    Op::Resize(70 << 10),
    Op::Write(66_000, 3000, 5),
    Op::Delete(1),
    Op::Resize(50 << 10),
];

/// A file that fails gives no garbage to read: neither by a hole under an entry that names data, nor by half a sector.
#[test]
fn encrypted_disks() {
    const SIZE: usize = 60 << 10;
    let key = || OpenOptions::default().with_key(Secret::from("key"));
    let luks = CreateOptions { cluster_size: 1024, encryption: Some(volume()), ..CreateOptions::default() };
    let (luks, content) = made(&luks, SIZE, key(), |image| image.write_at(20_000, &[7; 10_000]).unwrap());
    // QEMU's AES of old, which is not made any more: the method in an image without data.
    let plain = CreateOptions { cluster_size: 1024, ..CreateOptions::default() };
    let (mut aes, zeros) = made(&plain, SIZE, OpenOptions::default(), |_| ());
    aes[35] = 1;
    let cases = [
        ("LUKS", &luks, &content, options()),
        ("LUKS, retained", &luks, &content, retaining(RetainedOp::Punch)),
        ("LUKS, zeroed", &luks, &content, retaining(RetainedOp::ZeroRange)),
        ("AES", &aes, &zeros, options()),
    ];
    for (name, image, content, options) in cases {
        let options = options.with_key(Secret::from("key"));
        let session = session(vec![image.clone()], content.clone(), options, &ENCRYPTED);
        let cases = all_fail(name, &session, &[&[]]);
        assert!(cases > 100, "{cases}");
    }
}

/// What QEMU's AES of old has encrypted is read, or the failure is told.
#[test]
fn every_read_of_an_aes_disk_may_fail() {
    let plain = CreateOptions { cluster_size: 1024, ..CreateOptions::default() };
    let (mut bytes, _) = made(&plain, 30 << 10, OpenOptions::default(), |_| ());
    bytes[35] = 1;
    let key = || OpenOptions::default().with_key(Secret::from("abc"));
    let mut image = Image::open(MemoryStorage::from_bytes(&bytes), key()).unwrap();
    image.write_at(700, &[1; 9000]).unwrap();
    image.write_at(20_000, &[2; 3000]).unwrap();
    let bytes = image.close().unwrap().to_vec().unwrap();
    let mut cases = 0;
    cases += each_fault(NOTHING_WRITTEN, |fault| {
        let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
        storage.fail(fault.rule.clone());
        let mut got = vec![0; 20_000];
        let done = Image::open(&storage, key().read_only()).and_then(|mut image| image.read_at(600, &mut got));
        let struck = storage.failures() > 0;
        fault.answered(&done, struck)?;
        let right = (600..).zip(&got).all(|(at, &byte)| match at {
            700..9700 => byte == 1,
            20_000.. => byte == 2,
            _ => byte == 0,
        });
        if done.is_ok() && !right { Err("what was read is wrong".into()) } else { Ok(struck) }
    });
    assert!(cases > 8, "{cases}");
}
