//! What is tried again after the storage failed: the announcement of the first write, and preallocation.

use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions, Preallocation};
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, Storage, StorageErrorKind, StorageOperation,
};
use qcowkit_trial::walk::walk;

const SIZE: u64 = 300 << 10;
const SCOPES: [FailureScope; 3] = [
    FailureScope::WriteSide,
    FailureScope::Only(StorageOperation::Barrier),
    FailureScope::Only(StorageOperation::Read),
];

fn create() -> CreateOptions {
    CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() }
}

fn header(disk: &MemoryStorage) -> HeaderArea {
    HeaderArea::parse(&disk.to_vec().unwrap()).unwrap()
}

/// Calls `attempt` while the `nth` call of each kind fails, until none is left to fail; gives how many failed. An attempt
/// that fails is made again on the healed storage, unless the image says that nothing more is written.
fn each_failure(
    base: &MemoryStorage,
    attempt: impl Fn(&mut Image<FailingStorage<&MemoryStorage>>) -> qcowkit_core::Result<()>,
    judge: impl Fn(&MemoryStorage, bool, &str),
) -> u64 {
    let bytes = base.to_vec().unwrap();
    let mut failures = 0;
    for scope in SCOPES {
        for nth in 1.. {
            let rule = FailureRule::nth(scope, nth).with_kind(StorageErrorKind::NoSpace);
            let what = format!("{rule:?}");
            let disk = MemoryStorage::from_bytes(&bytes);
            let mut image = Image::open(FailingStorage::new(&disk), OpenOptions::default()).unwrap();
            image.storage().fail(rule);
            let mut done = attempt(&mut image);
            let struck = image.storage().failures() > 0;
            assert!(done.is_ok() || struck, "{what}: failed by itself: {done:?}");
            image.storage().heal();
            let poisoned = done.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Poisoned(_)));
            if done.is_err() && !poisoned {
                done = attempt(&mut image);
            }
            assert!(done.is_ok() || poisoned, "{what}: again: {done:?}");
            if !poisoned {
                image.flush().unwrap();
            }
            drop(image);
            judge(&disk, poisoned, &what);
            if !struck {
                break;
            }
            failures += 1;
        }
    }
    failures
}

/// Unknown autoclear bits go before anything else is written, however often that fails.
#[test]
fn the_first_write_is_announced_again() {
    let base = Image::create(MemoryStorage::new(), SIZE, &create()).unwrap().close().unwrap();
    base.write_at(88, &(1u64 << 40).to_be_bytes()).unwrap();
    let failures = each_failure(
        &base,
        |image| image.write_at(5000, &[7; 3000]),
        |disk, poisoned, what| {
            let walked = walk(&disk.to_vec().unwrap()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let untouched = header(disk).header.autoclear.bits() != 0;
            // Data under a bit that is still set would be believed to be what the bit describes.
            let changed = walked.references.len() > 4;
            assert!(!(untouched && changed && !poisoned), "{what}");
            if !poisoned {
                assert!(!untouched, "{what}");
                let mut image = Image::open(disk, OpenOptions::default().read_only()).unwrap();
                let mut bytes = [0; 3000];
                image.read_at(5000, &mut bytes).unwrap();
                assert!(bytes == [7; 3000], "{what}");
            }
        },
    );
    assert!(failures > 5, "{failures}");
}

#[test]
fn preallocation_that_fails_leaves_a_sound_image_and_can_be_made_again() {
    for mode in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        let base = Image::create(MemoryStorage::new(), SIZE, &create()).unwrap();
        let mut base = base;
        // Something in between, and holes where something was: not all that is taken is new.
        base.write_at(10_000, &[9; 20_000]).unwrap();
        base.flush().unwrap();
        base.discard(10_240, 10_240).unwrap();
        let base = base.close().unwrap();
        let failures = each_failure(
            &base,
            |image| image.preallocate(0, SIZE, mode),
            |disk, poisoned, what| {
                let walked = walk(&disk.to_vec().unwrap()).unwrap_or_else(|error| panic!("{mode:?}, {what}: {error}"));
                if !poisoned {
                    assert_eq!(walked.leaks(u64::MAX), 0, "{mode:?}, {what}");
                }
                let mut expected = vec![0u8; SIZE as usize];
                expected[10_000..30_000].fill(9);
                expected[10_240..20_480].fill(0);
                let mut image = Image::open(disk, OpenOptions::default().read_only()).unwrap();
                let mut bytes = vec![0; SIZE as usize];
                image.read_at(0, &mut bytes).unwrap();
                assert!(bytes == expected, "{mode:?}, {what}");
            },
        );
        assert!(failures > 20, "{failures}");
    }
}

/// Where the snapshots' tables lie is read before the first write, so that nothing is written there. A read that fails is
/// told, and made again by the next write.
#[test]
fn a_write_without_knowing_the_snapshots_is_refused() {
    let mut base = Image::create(MemoryStorage::new(), SIZE, &create()).unwrap();
    base.write_at(10_000, &[9; 20_000]).unwrap();
    base.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    let bytes = base.close().unwrap().to_vec().unwrap();
    for nth in 1.. {
        let mut image =
            Image::open(FailingStorage::new(MemoryStorage::from_bytes(&bytes)), OpenOptions::default()).unwrap();
        image.storage().fail(FailureRule::nth(FailureScope::Only(StorageOperation::Read), nth));
        let done = image.write_at(200_000, &[7; 512]);
        let struck = image.storage().failures() > 0;
        assert_eq!(done.is_err(), struck, "read {nth}: {done:?}");
        image.write_at(200_000, &[7; 512]).unwrap();
        if !struck {
            assert!(nth > 2, "{nth} reads");
            break;
        }
    }
}
