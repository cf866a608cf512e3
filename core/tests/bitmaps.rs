//! Dirty bitmaps under storage that fails: a bitmap that can be used marks everything that differs from the state in
//! which it began, and the image is sound. Power cuts are in `power_cuts.rs`.

use qcowkit_core::ErrorKind;
use qcowkit_core::storage::{FailingStorage, FailureRule, MemoryStorage};
use qcowkit_trial::Rng;
use qcowkit_trial::bitmaps::{base, contents, judge, open, step};
use qcowkit_trial::failures::each_fault;

/// A session whose storage fails once or for good; whatever the callers are told, the bitmap never lies.
fn fail(rule: FailureRule, start: &[u8], began: &[u8]) -> Result<bool, String> {
    let storage = MemoryStorage::from_bytes(start);
    let mut image = open(FailingStorage::new(&storage)).unwrap();
    image.storage().fail(rule);
    let mut rng = Rng::new(5);
    let mut told = 0;
    for _ in 0..16 {
        let before = image.storage().failures();
        if let Err(error) = step(&mut image, &mut rng) {
            let struck = image.storage().failures() > before;
            let allowed =
                matches!(error.kind(), ErrorKind::Poisoned(_) | ErrorKind::InvalidArgument(_) | ErrorKind::Corrupt(_));
            if !struck && !allowed {
                return Err(format!("failed by itself: {error}"));
            }
            told += 1;
        }
    }
    let failures = image.storage().failures();
    image.storage().heal();
    let closed = image.close();
    judge(&storage, began).map_err(|error| format!("{error} ({failures} failures, {told} told, {closed:?})"))?;
    Ok(failures > 0)
}

#[test]
fn every_call_may_fail_and_the_bitmap_does_not_lie() {
    let start = base(1);
    let began = contents(&mut open(MemoryStorage::from_bytes(&start)).unwrap());
    let cases = each_fault(&[], |fault| fail(fault.rule.clone(), &start, &began));
    println!("{cases} failures");
    assert!(cases > 100, "{cases}");
}
