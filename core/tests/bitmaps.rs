//! Dirty bitmaps under storage that fails: a bitmap that can be used marks everything that differs from the state in
//! which it began, and the image is sound. Power cuts are in `power_cuts.rs`.

use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{FailingStorage, MemoryStorage};
use qcowkit_trial::Rng;
use qcowkit_trial::bitmaps::{base, contents, judge, open, step};
use qcowkit_trial::failures::{Struck, each_fault};

/// A session whose storage fails once or for good; the callers are told, and the bitmap never lies. Bitmaps are stored at
/// the end, by a storage that still fails or by one that does not any more.
fn fail(fault: &Struck, start: &[u8], began: &[u8], heals: bool) -> Result<bool, String> {
    let storage = MemoryStorage::from_bytes(start);
    let mut image = open(FailingStorage::new(&storage)).unwrap();
    image.storage().fail(fault.rule.clone());
    let mut rng = Rng::new(5);
    let mut told = 0;
    for _ in 0..16 {
        let before = image.storage().failures();
        let done = step(&mut image, &mut rng);
        let struck = image.storage().failures() > before;
        if done.is_ok() {
            fault.answered(&done, struck)?;
        }
        if let Err(error) = done {
            let allowed =
                matches!(error.kind(), ErrorKind::Poisoned(_) | ErrorKind::InvalidArgument(_) | ErrorKind::Corrupt(_));
            if !struck && !allowed {
                return Err(format!("failed by itself: {error}"));
            }
            told += 1;
        }
    }
    let failures = image.storage().failures();
    let mut struck = failures > 0;
    if heals {
        image.storage().heal();
    }
    let closed = image.finish();
    struck |= image.storage().failures() > failures;
    if closed.is_ok() {
        fault.answered(&closed, image.storage().failures() > failures)?;
    }
    drop(image);
    judge(&storage, began).map_err(|error| format!("{error} ({failures} failures, {told} told, {closed:?})"))?;
    Ok(struck)
}

#[test]
fn every_call_may_fail_and_the_bitmap_does_not_lie() {
    let start = base(1);
    let began = contents(&mut open(MemoryStorage::from_bytes(&start)).unwrap());
    let run = |heals| each_fault(&[], |fault| fail(fault, &start, &began, heals));
    let cases = run(true) + run(false);
    println!("{cases} failures");
    assert!(cases > 100, "{cases}");
}

/// A resize that fails when the new size is there already: the bitmaps are stored with the size that the disk has then.
#[test]
fn a_resize_that_fails_leaves_bitmaps_of_the_size_of_the_disk() {
    // A cluster of bits is 2 MiB of the disk.
    let create = CreateOptions { cluster_size: 512, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), 5 << 20, &create).unwrap();
    image.add_bitmap("b", Some(512)).unwrap();
    image.write_at(1000, &[1; 3000]).unwrap();
    image.write_at(4 << 20, &[2; 3000]).unwrap();
    let bytes = image.close().unwrap().to_vec().unwrap();
    let mut other_sizes = 0;
    for size in [1 << 20, 9 << 20] {
        each_fault(&[], |fault| {
            let storage = MemoryStorage::from_bytes(&bytes);
            let mut image = Image::open(FailingStorage::new(&storage), OpenOptions::default()).unwrap();
            image.storage().fail(fault.rule.clone());
            let done = image.resize(size);
            let struck = image.storage().failures() > 0;
            image.storage().heal();
            fault.answered(&done, struck)?;
            other_sizes += u64::from(done.is_err() && image.virtual_size() == size);
            let finished = image.finish();
            drop(image);
            let area = HeaderArea::parse(&storage.to_vec().unwrap()).map_err(|error| error.to_string())?;
            let report = check(&storage, &area, &mut |_| ()).map_err(|error| error.to_string())?;
            if report.corruptions + report.check_errors > 0 {
                return Err(format!("{done:?}, {finished:?}: {report:?}"));
            }
            let image = Image::open(&storage, OpenOptions::default().read_only()).map_err(|error| error.to_string())?;
            let bitmaps = image.bitmaps().map_err(|error| error.to_string())?;
            let known = bitmaps.iter().all(|bitmap| bitmap.problem.is_some() == bitmap.in_use);
            if known { Ok(struck) } else { Err(format!("{done:?}, {finished:?}: {bitmaps:?}")) }
        });
    }
    assert!(other_sizes > 0);
}
