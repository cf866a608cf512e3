//! Dirty bitmaps under power cuts and under storage that fails: a bitmap that can be used marks everything that differs
//! from the state in which it began, and the image is sound.
//!
//! `QCOWKIT_CUTS=20` runs twenty times as many sessions; `QCOWKIT_SEED=7` begins with another seed.

mod common;

use common::{Rng, from_env};
use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, OverlayStorage, RecordingStorage, Storage,
    StorageErrorKind, StorageEvent, StorageOperation, epochs, replay,
};

const SIZE: u64 = 600 << 10;
const BITMAP: &str = "since the beginning";

fn create(seed: u64) -> CreateOptions {
    CreateOptions {
        cluster_size: 512 << (seed % 3),
        refcount_bits: [64, 16, 8][(seed / 3 % 3) as usize],
        ..CreateOptions::default()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::default();
    options.metadata.quarantine_bytes = 0;
    options
}

fn open<S: Storage>(storage: S) -> qcowkit_core::Result<Image<S>> {
    Image::open(storage, options())
}

/// An image with contents, and a bitmap that begins with them.
fn base(seed: u64) -> Vec<u8> {
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create(seed)).unwrap();
    image.write_at(10_000, &vec![0xee; 200_000]).unwrap();
    image.add_bitmap("other", Some(4096)).unwrap();
    image.add_bitmap(BITMAP, Some(512 << (seed % 4))).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

fn contents(image: &mut Image<impl Storage>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Opens, checks, and compares what the bitmap marks with what differs from `began`. Tells whether it can be used.
fn judge(storage: &dyn Storage, began: &[u8]) -> Result<bool, String> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_at(0, &mut bytes).unwrap();
    let header = HeaderArea::parse(&bytes).map_err(|e| e.to_string())?;
    let report = check(&storage, &header, &mut |_| ()).map_err(|e| e.to_string())?;
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("{report:?}"));
    }
    let mut image = open(storage).map_err(|e| format!("does not open: {e}"))?;
    let bitmaps = image.bitmaps().map_err(|e| format!("the directory is broken: {e}"))?;
    for bitmap in &bitmaps {
        if bitmap.problem.is_some() != bitmap.in_use {
            return Err(format!("{bitmap:?}"));
        }
    }
    let Some(found) = bitmaps.iter().find(|bitmap| bitmap.name == BITMAP) else {
        return Err(format!("the bitmap is gone: {bitmaps:?}"));
    };
    if found.in_use {
        return Ok(false);
    }
    let (bits, now) = (image.bitmap_bits(BITMAP).unwrap(), contents(&mut image));
    for (at, byte) in (0u64..).zip(&now) {
        let was = began.get(at as usize).copied().unwrap_or(0);
        if was != *byte && !bits.is_dirty(at) {
            return Err(format!("byte {at:#x} has changed from {was:#x} to {byte:#x} and is not marked"));
        }
    }
    Ok(true)
}

/// One random step of a session.
fn step<S: Storage>(image: &mut Image<S>, rng: &mut Rng) -> qcowkit_core::Result<()> {
    let size = image.virtual_size();
    let offset = rng.below(size);
    let length = (rng.below(40_000) + 1).min(size - offset);
    match rng.below(14) {
        0..=3 => image.write_at(offset, &vec![rng.next() as u8; length as usize]),
        4 => image.write_zeroes(offset, length, true),
        5 | 6 => image.discard(offset, length),
        7 => image.resize((rng.below(SIZE) + SIZE / 2).next_multiple_of(512)),
        8 => image.flush(),
        9 | 10 => image.finish(),
        11 => match image.bitmaps()?.len() {
            2 => image.add_bitmap("new", None),
            _ => image.remove_bitmap("new"),
        },
        12 => image.enable_bitmap("other", rng.one_in(2)),
        _ => {
            let bits = image.bitmap_bits(BITMAP)?;
            image.merge_into_bitmap("other", &bits)
        }
    }
}

/// The states that a cut may leave of the events of one epoch: prefixes, and random subsets, whole and torn.
fn cuts(events: &[StorageEvent], rng: &mut Rng) -> Vec<Vec<StorageEvent>> {
    let mut cuts: Vec<Vec<StorageEvent>> = (0..=events.len()).map(|end| events[..end].to_vec()).collect();
    for _ in 0..6 {
        let odds = [2, 4][rng.below(2) as usize];
        cuts.push(events.iter().filter(|_| rng.one_in(odds)).cloned().collect());
        cuts.push(events.iter().flat_map(|event| event.torn(512)).filter(|_| !rng.one_in(odds)).collect());
    }
    cuts
}

#[test]
fn after_a_cut_a_bitmap_is_right_or_not_trusted() {
    let (first, sessions) = (from_env("QCOWKIT_SEED", 1), 12 * from_env("QCOWKIT_CUTS", 1));
    let (mut usable, mut unusable) = (0, 0);
    for seed in first..first + sessions {
        let mut rng = Rng::new(seed);
        let start = base(seed);
        let began = contents(&mut open(MemoryStorage::from_bytes(&start)).unwrap());
        let mut image = open(RecordingStorage::new(MemoryStorage::from_bytes(&start))).unwrap();
        for _ in 0..25 {
            step(&mut image, &mut rng).unwrap();
        }
        let events = if rng.one_in(2) { image.close().unwrap().events() } else { image.storage().events() };
        let durable = MemoryStorage::from_bytes(&start);
        for epoch in epochs(&events) {
            let events = &events[epoch.clone()];
            let unsure = events.strip_suffix(&[StorageEvent::Barrier]).unwrap_or(events);
            for cut in cuts(unsure, &mut rng) {
                let storage = OverlayStorage::new(&durable).unwrap();
                cut.iter().for_each(|event| event.apply(&storage).unwrap());
                match judge(&storage, &began) {
                    Ok(true) => usable += 1,
                    Ok(false) => unusable += 1,
                    Err(error) => panic!("seed {seed}, epoch {epoch:?}, {} events: {error}", cut.len()),
                }
            }
            replay(events, &durable).unwrap();
        }
    }
    println!("{usable} states with the bitmap, {unusable} in which it is not trusted");
    assert!(usable > 100 && unusable > 100, "{usable}, {unusable}");
}

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
    let mut cases = 0;
    for scope in [
        FailureScope::WriteSide,
        FailureScope::Only(StorageOperation::Barrier),
        FailureScope::Only(StorageOperation::Read),
    ] {
        for lasting in [false, true] {
            for nth in 1.. {
                let rule = FailureRule::nth(scope, nth).with_kind(StorageErrorKind::NoSpace);
                let rule = if lasting { rule.from_then_on() } else { rule };
                match fail(rule.clone(), &start, &began) {
                    Ok(true) => cases += 1,
                    Ok(false) => break,
                    Err(error) => panic!("{rule:?}: {error}"),
                }
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 100, "{cases}");
}
