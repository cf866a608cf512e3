//! Commit, emptying and rebase: the guest sees no difference, before, after, and wherever a failing storage stops them.
//! Power cuts are in `power_cuts.rs`.

use std::ops::ControlFlow;
use std::rc::Rc;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewBacking};
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, OverlayStorage, StorageErrorKind, StorageOperation,
};
use qcowkit_trial::chains::{
    Chain, backing, chain, chains, commit_and_empty, create, go_on, judge, judge_rebased, open_options, rebases, stack,
};
use qcowkit_trial::cuts::all_bytes;
use qcowkit_trial::walk::{Fields, walk};

#[test]
fn an_emptied_image_holds_nothing() {
    for (name, chain) in chains(9) {
        let storages = chain.files.iter().map(|bytes| MemoryStorage::from_bytes(bytes)).collect();
        let mut image = stack(storages, chain.raw).unwrap();
        commit_and_empty(&mut image).unwrap();
        let map = image.next_local_extent(0, image.virtual_size()).unwrap();
        assert_eq!(
            (map.length, map.content),
            (image.virtual_size(), qcowkit_core::image::Content::Unallocated),
            "{name}"
        );
        let bytes = image.close().unwrap().to_vec().unwrap();
        let walked = walk(&bytes).unwrap();
        let clusters = bytes.len() as u64 / Fields::read(&bytes).cluster();
        assert_eq!(walked.leaks(clusters), 0, "{name}");
        assert_eq!(walked.recorded.len(), walked.references.len(), "{name}");
        assert!(bytes.len() < chain.files[0].len(), "{name}: {} bytes of {}", bytes.len(), chain.files[0].len());
    }
}

/// A file whose calls may fail, over bytes that are kept.
type Failing<'a> = FailingStorage<OverlayStorage<MemoryStorage>>;

fn failing(bytes: &[u8]) -> Failing<'static> {
    FailingStorage::new(OverlayStorage::new(MemoryStorage::from_bytes(bytes)).unwrap())
}

#[test]
fn every_call_of_a_commit_may_fail() {
    let scopes = [
        FailureScope::WriteSide,
        FailureScope::Only(StorageOperation::Barrier),
        FailureScope::Only(StorageOperation::Read),
    ];
    let mut cases = 0;
    for (name, chain) in
        chains(5).into_iter().filter(|(name, _)| !matches!(*name, "version 2" | "smaller base clusters"))
    {
        for failing_file in 0..2 {
            for scope in scopes {
                for nth in 1.. {
                    let files: Vec<_> = chain.files.iter().map(|bytes| failing(bytes)).collect();
                    let shared: Vec<Rc<Failing<'_>>> = files.into_iter().map(Rc::new).collect();
                    let mut image = stack(shared.iter().map(Rc::clone).collect(), chain.raw).unwrap();
                    let rule = FailureRule::nth(scope, nth).with_kind(StorageErrorKind::NoSpace);
                    shared[failing_file].fail(rule);
                    let done = commit_and_empty(&mut image);
                    let struck = shared[failing_file].failures() > 0;
                    shared[failing_file].heal();
                    // Holes are advice; everything else is told.
                    assert!(done.is_err() <= struck, "{name}: {done:?} without a failure");
                    drop(image);
                    let left: Vec<Vec<u8>> = shared.iter().map(|file| all_bytes(file.as_ref())).collect();
                    let what = format!("{name}, file {failing_file}, {scope:?} {nth}, {done:?}");
                    judge(&chain, &left).unwrap_or_else(|why| panic!("{what}: {why}"));
                    if !struck {
                        break;
                    }
                    cases += 1;
                    if nth % 4 == 0 {
                        again(&chain, &left).unwrap_or_else(|why| panic!("{what}, again: {why}"));
                    }
                }
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 250, "{cases}");
}

/// What failed once is done again.
fn again(chain: &Chain, left: &[Vec<u8>]) -> Result<(), String> {
    let storages: Vec<Rc<MemoryStorage>> = left.iter().map(|bytes| Rc::new(MemoryStorage::from_bytes(bytes))).collect();
    let mut image = stack(storages.iter().map(Rc::clone).collect(), chain.raw).map_err(|e| e.to_string())?;
    commit_and_empty(&mut image).map_err(|e| e.to_string())?;
    drop(image);
    let files: Vec<Vec<u8>> = storages.iter().map(|file| file.to_vec().unwrap()).collect();
    judge(chain, &files).map(drop).map_err(|fault| fault.to_string())
}

#[test]
fn every_call_of_a_rebase_may_fail() {
    let mut cases = 0;
    for (name, rebase) in rebases(7).into_iter().chain(rebases(6)) {
        for scope in [FailureScope::WriteSide, FailureScope::Only(StorageOperation::Read)] {
            for nth in (1..).step_by(2) {
                let shared: Vec<Rc<Failing<'_>>> =
                    rebase.old.files.iter().map(|bytes| Rc::new(failing(bytes))).collect();
                let mut image = stack(shared.iter().map(Rc::clone).collect(), rebase.old.raw).unwrap();
                let new = backing(rebase.new.as_ref(), |bytes| Rc::new(failing(bytes)));
                shared[0].fail(FailureRule::nth(scope, nth));
                let done = image.rebase(new, rebase.compress, &mut go_on);
                let struck = shared[0].failures() > 0;
                shared[0].heal();
                assert!(done.is_err() <= struck, "{name}: {done:?} without a failure");
                drop(image);
                let judged = judge_rebased(&rebase, &all_bytes(shared[0].as_ref()));
                judged.unwrap_or_else(|why| panic!("{name}, {scope:?} {nth}, {done:?}: {why}"));
                if !struck {
                    break;
                }
                cases += 1;
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 200, "{cases}");
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_changes() {
    let chain = chain(&[(create(3, 512, false), 60_416), (create(3, 512, false), 60_416)], None, 1);
    let shared: Vec<Rc<MemoryStorage>> =
        chain.files.iter().map(|bytes| Rc::new(MemoryStorage::from_bytes(bytes))).collect();
    let mut image = stack(shared.iter().map(Rc::clone).collect(), false).unwrap();
    for base in [0, 2, 7] {
        assert!(image.commit_into(base, &mut go_on).is_err());
    }
    for name in ["x".repeat(1024), "x".repeat(400)] {
        // The second fits the rule, but not a header cluster of 512 bytes.
        let error = image.set_backing(&name, Some("qcow2")).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}");
        let new = NewBacking {
            name,
            layer: Some(Layer::Raw { storage: Rc::new(MemoryStorage::new()), length: 0 }),
            ..NewBacking::none()
        };
        assert!(image.rebase(new, false, &mut go_on).is_err());
    }
    let nameless = NewBacking { name: "name".into(), ..NewBacking::none() };
    assert!(image.rebase(nameless, false, &mut go_on).is_err());
    // Stopped by progress: nothing is lost, and nothing is new.
    let report = image.rebase(NewBacking::none(), false, &mut |_, _| ControlFlow::Break(())).unwrap();
    assert_eq!((report.data_bytes, report.zero_bytes), (0, 0));
    assert!(image.header().backing_file.is_some());
    drop(image);
    assert!(shared.iter().zip(&chain.files).all(|(now, before)| now.to_vec().unwrap() == *before));
    // A base that is open for reading alone.
    let base = Image::open(MemoryStorage::from_bytes(&chain.files[1]), open_options().read_only()).unwrap();
    let top = Image::open(MemoryStorage::from_bytes(&chain.files[0]), open_options()).unwrap();
    let mut image = top.with_backing(Layer::from(base));
    let error = image.commit_into(1, &mut go_on).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_name_of_any_length_fits_a_larger_cluster() {
    let image = Image::create(MemoryStorage::new(), 1 << 20, &CreateOptions::default()).unwrap();
    let mut bytes = image.close().unwrap().to_vec().unwrap();
    for length in [1023, 1, 300, 1022, 0, 5] {
        let name = "n".repeat(length);
        let mut image = Image::open(MemoryStorage::from_bytes(&bytes), open_options()).unwrap();
        image.set_backing(&name, Some("raw")).unwrap();
        bytes = image.close().unwrap().to_vec().unwrap();
        let image = Image::open(MemoryStorage::from_bytes(&bytes), open_options()).unwrap();
        let found = image.header().backing_file.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(found, name);
        assert_eq!(image.header().backing_format().is_some(), length > 0);
        walk(&bytes).unwrap();
    }
}
