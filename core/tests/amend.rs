//! Amending: another version, another refcount width, other names. The guest sees no difference, before, after, and
//! wherever a failing storage stops it. Power cuts are in `power_cuts.rs`.

use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{AmendOptions, CreateOptions, Image};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{FailingStorage, MemoryStorage, Storage};
use qcowkit_trial::amend::{Base, SIZE, assert_amended, base, cases, create, open, options};
use qcowkit_trial::failures::{Struck, each_fault};
use qcowkit_trial::session::open_over;
use qcowkit_trial::snapshot::view_of_snapshot;
use qcowkit_trial::walk::walk;

fn contents<S: qcowkit_core::storage::Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut got = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut got).unwrap();
    got
}

/// Amends while one rule holds; whether it struck.
fn fail_once(name: &str, base: &Base, amend: &AmendOptions, fault: &Struck) -> bool {
    let rule = &fault.rule;
    let disk = MemoryStorage::from_bytes(&base.bytes);
    let below = base.backing.as_ref().map(|b| MemoryStorage::from_bytes(b));
    let failing = below.as_ref().map(|below| (FailingStorage::new(below), base.scenario.backing));
    let mut image = open_over(FailingStorage::new(&disk), &open(), failing).unwrap();
    image.storage().fail(rule.clone());
    let done = image.amend(amend, &mut |_, _| ());
    let struck = image.storage().failures() > 0;
    image.storage().heal();
    fault.answered(&done, struck).unwrap_or_else(|why| panic!("{name}, {rule:?}: {why}"));
    let poisoned = done.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Poisoned(_)));
    let mut content = base.content.clone();
    if poisoned {
        assert!(image.write_at(0, &[9; 10]).is_err(), "{name}, {rule:?}");
    } else {
        // Usable, and what failed can be tried again.
        image.write_at(5_000, &[9; 3000]).unwrap();
        content[5_000..8_000].fill(9);
        image.amend(amend, &mut |_, _| ()).unwrap_or_else(|error| panic!("{name}, {rule:?}: again: {error}"));
        assert!(contents(&mut image) == content, "{name}, {rule:?}");
        image.flush().unwrap();
    }
    drop(image);
    let bytes = disk.to_vec().unwrap();
    walk(&bytes).unwrap_or_else(|error| panic!("{name}, {rule:?}: {error}"));
    let area = HeaderArea::parse(&bytes).unwrap();
    let report = check(&disk, &area, &mut |_| ()).unwrap();
    assert_eq!(report.corruptions + report.check_errors, 0, "{name}, {rule:?}: {report:?}");
    if !poisoned {
        assert_amended(name, &area, amend);
    }
    let reopened = base.backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
    let mut image = open_over(MemoryStorage::from_bytes(&bytes), &open().read_only(), reopened).unwrap();
    assert!(contents(&mut image) == content, "{name}, {rule:?}: contents");
    if let Some(expected) = &base.snapshot {
        let below = base.backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
        let view = MemoryStorage::from_bytes(&view_of_snapshot(&bytes).unwrap());
        let mut image = open_over(view, &open().read_only(), below).unwrap();
        assert!(&contents(&mut image) == expected, "{name}, {rule:?}: the snapshot");
    }
    struck
}

#[test]
fn every_call_may_fail() {
    let mut failures = 0;
    for (name, create, backing, snapshot, amend) in cases() {
        let base = base(&create, backing, snapshot, 7);
        failures += each_fault(&["read"], |fault| Ok(fail_once(name, &base, &amend, fault)));
    }
    assert!(failures > 800, "{failures}");
}

#[test]
fn what_does_not_go_together_changes_nothing() {
    let narrow = base(&create(512, 64), false, true, 3);
    for (amend, words) in [
        (options(|o| o.version = Some(2)), "compat=0.10 requires refcount_bits=16"),
        (options(|o| o.version = Some(4)), "format version"),
        (options(|o| o.refcount_bits = Some(7)), "power of two"),
        (options(|o| o.refcount_bits = Some(128)), "power of two"),
        (options(|o| o.refcount_bits = Some(1)), "has a refcount of 2"),
        (options(|o| o.data_file = Some("d".into())), "data-file can only be set"),
        (options(|o| o.data_file_raw = Some(true)), "data-file-raw cannot be set"),
        (options(|o| o.size = Some(1000)), "multiple of 512"),
        (options(|o| o.backing = Some((String::new(), Some("raw".into())))), "without backing file"),
        (
            options(|o| (o.version, o.refcount_bits, o.lazy_refcounts) = (Some(2), Some(16), Some(true))),
            "Lazy refcounts only supported",
        ),
    ] {
        let disk = MemoryStorage::from_bytes(&narrow.bytes);
        let mut image = Image::open(&disk, open()).unwrap();
        let error = image.amend(&amend, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        drop(image);
        assert!(disk.to_vec().unwrap() == narrow.bytes, "{words}");
    }
    let wide = CreateOptions { extended_l2: true, ..create(16384, 16) };
    let mut image = Image::create(MemoryStorage::new(), SIZE, &wide).unwrap();
    let error = image.amend(&options(|o| o.version = Some(2)), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("incompatible features 0x10"), "{error}");
}

/// Refcounts of a full device can be rewritten only where there is room.
#[test]
fn a_device_without_room_is_refused() {
    let bytes = base(&create(512, 16), false, false, 5).bytes;
    for spare in 0..40u64 {
        let device = MemoryStorage::block_device(bytes.len() as u64 + spare * 512);
        device.write_at(0, &bytes).unwrap();
        let mut image = Image::open(&device, open()).unwrap();
        let done = image.amend(&options(|o| o.refcount_bits = Some(64)), &mut |_, _| ());
        drop(image);
        let after = device.to_vec().unwrap();
        let walked = walk(&after).unwrap();
        match done {
            Ok(()) => {
                assert!(spare > 0);
                assert_eq!(walked.leaks(u64::MAX), 0);
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::NoSpace(_)) && spare < 30, "{error}"),
        }
    }
}
