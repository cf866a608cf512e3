//! Commit, emptying and rebase: the guest sees no difference, before, after, and wherever a failing storage stops them.
//! Power cuts are in `power_cuts.rs`.

use std::ops::ControlFlow;
use std::rc::Rc;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewBacking};
use qcowkit_core::storage::{FailingStorage, MemoryStorage, OverlayStorage};
use qcowkit_trial::chains::{
    Chain, backing, chain, chains, commit_and_empty, create, go_on, judge, judge_rebased, open_options, rebases, stack,
};
use qcowkit_trial::cuts::all_bytes;
use qcowkit_trial::failures::each_fault;
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
    let mut cases = 0;
    for (name, chain) in
        chains(5).into_iter().filter(|(name, _)| !matches!(*name, "version 2" | "smaller base clusters" | "chain"))
    {
        for failing_file in 0..2 {
            let mut nth = 0;
            // A raw base is not read.
            cases += each_fault(&["read"], |fault| {
                let files: Vec<_> = chain.files.iter().map(|bytes| failing(bytes)).collect();
                let shared: Vec<Rc<Failing<'_>>> = files.into_iter().map(Rc::new).collect();
                let mut image = stack(shared.iter().map(Rc::clone).collect(), chain.raw).unwrap();
                shared[failing_file].fail(fault.rule.clone());
                let done = commit_and_empty(&mut image);
                let struck = shared[failing_file].failures() > 0;
                shared[failing_file].heal();
                let left = || -> Vec<Vec<u8>> { shared.iter().map(|file| all_bytes(file.as_ref())).collect() };
                let what = |why: String| format!("{name}, file {failing_file}, {done:?}: {why}");
                fault.answered(&done, struck).map_err(what)?;
                judge(&chain, &left()).map_err(|why| what(why.to_string()))?;
                nth += 1;
                // Usable, or it says that it is not; and so are the files that it leaves.
                if done.is_err() && nth % 3 == 0 {
                    match commit_and_empty(&mut image) {
                        Err(error) if !matches!(error.kind(), ErrorKind::Poisoned(_)) => {
                            return Err(what(format!("again: {error}")));
                        }
                        _ => judge(&chain, &left()).map_err(|why| what(format!("again: {why}")))?,
                    };
                }
                drop(image);
                if nth % 4 == 0 {
                    again(&chain, &left()).map_err(|why| what(format!("opened again: {why}")))?;
                }
                Ok(struck)
            });
        }
    }
    println!("{cases} failures");
    assert!(cases > 700, "{cases}");
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
    // To another backing file, packing too, and to none; the image fails, or what it is taken from.
    for (name, rebase) in rebases(7).into_iter().chain(rebases(8)).chain(rebases(6)).step_by(3) {
        for failing_file in 0..rebase.old.files.len().min(2) {
            let all: &[&str] = &["read", "write", "half a write", "flush", "no space"];
            let mut nth = 0;
            cases += each_fault(if failing_file > 0 { all } else { &["read"] }, |fault| {
                let shared: Vec<Rc<Failing<'_>>> =
                    rebase.old.files.iter().map(|bytes| Rc::new(failing(bytes))).collect();
                let mut image = stack(shared.iter().map(Rc::clone).collect(), rebase.old.raw).unwrap();
                let new = || backing(rebase.new.as_ref(), |bytes| Rc::new(failing(bytes)));
                shared[failing_file].fail(fault.rule.clone());
                let done = image.rebase(new(), rebase.compress, &mut go_on);
                let struck = shared[failing_file].failures() > 0;
                shared[failing_file].heal();
                let what = |why: String| format!("{name}, file {failing_file}, {done:?}: {why}");
                let left =
                    || judge_rebased(&rebase, &all_bytes(shared[0].as_ref())).map_err(|why| what(why.to_string()));
                fault.answered(&done, struck).map_err(what)?;
                left()?;
                nth += 1;
                if done.is_err() && nth % 3 == 0 {
                    match image.rebase(new(), rebase.compress, &mut go_on) {
                        Err(error) if !matches!(error.kind(), ErrorKind::Poisoned(_)) => {
                            return Err(what(format!("again: {error}")));
                        }
                        _ => left()?,
                    };
                }
                Ok(struck)
            });
        }
    }
    println!("{cases} failures");
    assert!(cases > 700, "{cases}");
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
