//! Commit, emptying and rebase: the guest sees no difference, before, after, and wherever a power cut or a failing
//! storage stops them. Each file of a chain loses its own writes in a cut: a barrier of one says nothing of another.

mod common;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;

use common::Rng;
use common::walk::walk;
use qcowkit_core::ErrorKind;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewBacking, OpenOptions};
use qcowkit_core::metadata::MetadataOptions;
use qcowkit_core::storage::{
    Capabilities, FailingStorage, FailureRule, FailureScope, MemoryStorage, OverlayStorage, ReadStorage, Storage,
    StorageError, StorageErrorKind, StorageEvent, StorageExtent, StorageOperation, ZeroMode,
};

/// A file of a chain whose events are told in the order of all files.
struct Tagged {
    inner: MemoryStorage,
    file: usize,
    log: Rc<RefCell<Vec<(usize, StorageEvent)>>>,
}

impl Tagged {
    fn carry_out(&self, event: StorageEvent) -> Result<(), StorageError> {
        event.apply(&self.inner)?;
        self.log.borrow_mut().push((self.file, event));
        Ok(())
    }
}

impl ReadStorage for Tagged {
    fn len(&self) -> Result<u64, StorageError> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.inner.read_at(offset, into)
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        self.inner.next_extent(offset)
    }
}

impl Storage for Tagged {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Write { offset, data: from.into() })
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::WriteZeroes { offset, length, mode })
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Discard { offset, length })
    }
    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::SetLen { length })
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Allocate { offset, length })
    }
    fn barrier(&self) -> Result<(), StorageError> {
        self.carry_out(StorageEvent::Barrier)
    }
}

/// A chain of images in memory, the top first, and what the top shows.
struct Chain {
    files: Vec<Vec<u8>>,
    /// The last file is a raw one.
    raw: bool,
    content: Vec<u8>,
}

fn open_options() -> OpenOptions {
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    OpenOptions { metadata, ..OpenOptions::default() }.metadata_only()
}

/// Puts the layers from `depth` down on top of each other. All of them can be written.
fn stack<S: Storage>(files: Vec<S>, raw: bool) -> qcowkit_core::Result<Image<S>> {
    let mut below: Option<Layer<S>> = None;
    let last = files.len() - 1;
    for (depth, storage) in files.into_iter().enumerate().rev() {
        if depth == last && raw {
            let length = storage.len()?;
            below = Some(Layer::Raw { storage, length });
            continue;
        }
        let image = Image::open(storage, open_options())?;
        below = Some(Layer::from(match below.take() {
            Some(layer) => image.with_backing(layer),
            None => image,
        }));
    }
    match below {
        Some(Layer::Image(image)) => Ok(*image),
        _ => panic!("the top is a qcow2 image"),
    }
}

fn read_all<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<Vec<u8>> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn create(version: u32, cluster_size: u64, extended_l2: bool) -> CreateOptions {
    CreateOptions { version, cluster_size, extended_l2, ..CreateOptions::default() }
}

/// Random contents in each layer; `layers` from the top down, each with its size.
fn chain(layers: &[(CreateOptions, u64)], raw: Option<u64>, seed: u64) -> Chain {
    let mut rng = Rng::new(seed);
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut model: Vec<u8> = Vec::new();
    if let Some(length) = raw {
        model = (0..length).map(|n| if n / 3000 % 2 == 0 { (n / 64) as u8 | 0x80 } else { 0 }).collect();
        files.push(model.clone());
    }
    for (n, (create, size)) in layers.iter().rev().enumerate() {
        let below = !files.is_empty();
        let create = CreateOptions {
            backing_file: below.then(|| "below".into()),
            backing_format: below.then(|| if n == 0 { "raw".into() } else { "qcow2".into() }),
            ..create.clone()
        };
        let top = Image::create(MemoryStorage::new(), *size, &create).unwrap().close().unwrap();
        let mut storages = vec![top];
        storages.extend(files.iter().map(|bytes| MemoryStorage::from_bytes(bytes)));
        let mut image = stack(storages, raw.is_some()).unwrap();
        model.resize(*size as usize, 0);
        for _ in 0..14 {
            change(&mut image, &mut model, create.cluster_size, &mut rng);
        }
        assert!(read_all(&mut image).unwrap() == model);
        files.insert(0, image.close().unwrap().to_vec().unwrap());
    }
    Chain { files, raw: raw.is_some(), content: model }
}

fn change(image: &mut Image<MemoryStorage>, model: &mut [u8], cluster: u64, rng: &mut Rng) {
    let size = model.len() as u64;
    let offset = rng.below(size);
    let length = (rng.below(cluster * 5) + 1).min(size - offset);
    let aligned = offset / cluster * cluster;
    let whole = aligned..(aligned + cluster).min(size);
    let bytes: Vec<u8> = (0..length).map(|n| (n / 97) as u8 ^ rng.next() as u8 & 3 | 4).collect();
    let range = offset as usize..(offset + length) as usize;
    match rng.below(5) {
        0 => {
            let bytes = vec![bytes[0]; (whole.end - whole.start) as usize];
            image.write_compressed(whole.start, &bytes).unwrap();
            model[whole.start as usize..whole.end as usize].copy_from_slice(&bytes);
        }
        1 => {
            image.write_zeroes(offset, length, rng.one_in(2)).unwrap();
            model[range].fill(0);
        }
        _ => {
            image.write_at(offset, &bytes).unwrap();
            model[range].copy_from_slice(&bytes);
        }
    }
}

/// What is done to a chain.
type Action<'a, S> = dyn Fn(&mut Image<S>) -> qcowkit_core::Result<()> + 'a;

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn commit_and_empty<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<()> {
    image.prepare_writing()?;
    image.commit_into(1, &mut go_on)?;
    image.empty()
}

fn commit_to_the_bottom<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<()> {
    let base = image.chain_length() - 1;
    image.commit_into(base, &mut go_on).map(drop)
}

/// Carries an action out on a chain whose files are recorded.
fn record(chain: &Chain, action: &Action<'_, Tagged>) -> Vec<(usize, StorageEvent)> {
    let log = Rc::new(RefCell::new(Vec::new()));
    let files = chain.files.iter().enumerate().map(|(file, bytes)| Tagged {
        inner: MemoryStorage::from_bytes(bytes),
        file,
        log: Rc::clone(&log),
    });
    let mut image = stack(files.collect(), chain.raw).unwrap();
    action(&mut image).unwrap();
    assert!(read_all(&mut image).unwrap() == chain.content, "the contents differ afterwards");
    drop(image);
    Rc::try_unwrap(log).map_err(drop).unwrap().into_inner()
}

/// Checks states that a cut may leave: of each file what its last barrier promised, and any part of what came after.
fn check_cuts(chain: &Chain, log: &[(usize, StorageEvent)], budget: usize, seed: u64) -> usize {
    let mut rng = Rng::new(seed);
    let step = (log.len() / budget).max(1);
    let mut states = 0;
    for end in (0..=log.len()).step_by(step).chain([log.len()]) {
        for variant in 0..3 {
            let files: Vec<Vec<u8>> = (0..chain.files.len())
                .map(|file| {
                    let events: Vec<&StorageEvent> =
                        log[..end].iter().filter(|(f, _)| *f == file).map(|(_, event)| event).collect();
                    cut(&chain.files[file], &events, variant, &mut rng)
                })
                .collect();
            judge(chain, &files).unwrap_or_else(|why| panic!("{end} of {} events, {variant}: {why}", log.len()));
            states += 1;
        }
    }
    states
}

/// A file after a cut: with all of the events, none that no barrier promised, or some, in part.
fn cut(before: &[u8], events: &[&StorageEvent], variant: u32, rng: &mut Rng) -> Vec<u8> {
    let durable = events.iter().rposition(|event| **event == StorageEvent::Barrier).map_or(0, |last| last + 1);
    let storage = MemoryStorage::from_bytes(before);
    for (n, event) in events.iter().enumerate() {
        if n < durable || variant == 0 {
            event.apply(&storage).unwrap();
        } else if variant == 2 {
            let most = rng.one_in(2);
            for piece in event.torn(512) {
                if rng.one_in(4) != most {
                    piece.apply(&storage).unwrap();
                }
            }
        }
    }
    storage.to_vec().unwrap()
}

fn judge(chain: &Chain, files: &[Vec<u8>]) -> Result<(), String> {
    let images = files.len() - usize::from(chain.raw);
    for (file, bytes) in files[..images].iter().enumerate() {
        walk(bytes).map_err(|why| format!("file {file}: {why}"))?;
    }
    let storages = files.iter().map(|bytes| MemoryStorage::from_bytes(bytes)).collect();
    let mut image = stack(storages, chain.raw).map_err(|error| error.to_string())?;
    let got = read_all(&mut image).map_err(|error| error.to_string())?;
    same(&got, &chain.content)
}

fn same(got: &[u8], expected: &[u8]) -> Result<(), String> {
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        None if got.len() == expected.len() => Ok(()),
        None => Err(format!("{} bytes instead of {}", got.len(), expected.len())),
        Some(at) => Err(format!("byte {at:#x} is {:#x} instead of {:#x}", got[at], expected[at])),
    }
}

/// Chains of many shapes, with their name.
fn chains(seed: u64) -> Vec<(&'static str, Chain)> {
    let plain = || create(3, 512, false);
    vec![
        ("plain", chain(&[(plain(), 60_416), (plain(), 60_416)], None, seed)),
        ("larger base clusters", chain(&[(plain(), 60_416), (create(3, 4096, false), 40_960)], None, seed)),
        ("smaller base clusters", chain(&[(create(3, 4096, false), 60_416), (plain(), 80_896)], None, seed)),
        ("version 2", chain(&[(create(2, 512, false), 60_416), (create(2, 1024, false), 30_720)], None, seed)),
        ("subclusters", {
            let wide = create(3, 16 << 10, true);
            chain(&[(wide.clone(), 150_528), (wide, 120_320)], None, seed)
        }),
        ("raw base", chain(&[(plain(), 60_416)], Some(50_176), seed)),
        ("chain", chain(&[(plain(), 60_416), (create(3, 1024, false), 40_960), (plain(), 70_656)], None, seed)),
        ("chain on raw", chain(&[(plain(), 60_416), (create(3, 2048, false), 90_112)], Some(40_448), seed)),
    ]
}

#[test]
fn cuts_while_an_image_is_committed_and_emptied() {
    let mut states = 0;
    for seed in 1..4 {
        for (name, chain) in chains(seed) {
            println!("{name}, seed {seed}");
            let log = record(&chain, &commit_and_empty);
            states += check_cuts(&chain, &log, 60, seed);
        }
    }
    println!("{states} states");
}

#[test]
fn cuts_while_an_image_is_committed_through_a_chain() {
    for seed in 1..4 {
        for (name, chain) in chains(seed) {
            if chain.files.len() < 3 {
                continue;
            }
            println!("{name}, seed {seed}");
            let log = record(&chain, &commit_to_the_bottom);
            assert!(
                log.iter().all(|(file, _)| *file == chain.files.len() - 1),
                "another file than the base was written"
            );
            check_cuts(&chain, &log, 60, seed);
        }
    }
}

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
        let clusters = (bytes.len() / chain_cluster(&bytes)) as u64;
        assert_eq!(walked.leaks(clusters), 0, "{name}");
        assert_eq!(walked.recorded.len(), walked.references.len(), "{name}");
        assert!(bytes.len() < chain.files[0].len(), "{name}: {} bytes of {}", bytes.len(), chain.files[0].len());
    }
}

fn chain_cluster(bytes: &[u8]) -> usize {
    1 << u32::from_be_bytes(bytes[20..24].try_into().unwrap())
}

/// The image on another backing file, of which only the top is written.
struct Rebase {
    old: Chain,
    new: Option<Chain>,
    compress: bool,
}

fn rebases(seed: u64) -> Vec<(&'static str, Rebase)> {
    let other = |size| chain(&[(create(3, 1024, false), size)], None, seed + 100);
    let mut all = Vec::new();
    let alone = [2, 3].map(|version| ("no backing file", chain(&[(create(version, 512, false), 60_416)], None, seed)));
    for (name, old) in chains(seed).into_iter().chain(alone) {
        let new = match seed % 3 {
            0 => None,
            1 => Some(other(40_960)),
            _ => Some(other(200_704)),
        };
        all.push((name, Rebase { old, new, compress: seed.is_multiple_of(2) && name != "subclusters" }));
    }
    all
}

fn backing<S>(new: Option<&Chain>, make: impl Fn(&[u8]) -> S) -> NewBacking<S>
where
    S: Storage,
{
    match new {
        None => NewBacking::none(),
        Some(new) => {
            let files = new.files.iter().map(|bytes| make(bytes)).collect();
            let layer = Some(Layer::from(stack(files, new.raw).unwrap()));
            NewBacking { name: "the new one".into(), format: Some("qcow2".into()), layer, shared_depth: None }
        }
    }
}

/// What the image shows, over the backing file that its header names.
fn judge_rebased(rebase: &Rebase, top: &[u8]) -> Result<(), String> {
    walk(top)?;
    let text = |error: qcowkit_core::Error| error.to_string();
    let header = qcowkit_core::format::HeaderArea::parse(top).map_err(text)?;
    let name = header.backing_file.as_ref().map(ToString::to_string);
    let format = header.backing_format().map(ToString::to_string);
    let below = match (name.as_deref(), &rebase.new) {
        (Some("below"), _) if format.as_deref().is_some_and(|f| f == "raw" || f == "qcow2") => {
            (rebase.old.files[1..].to_vec(), rebase.old.raw)
        }
        (Some("the new one"), Some(new)) if format.as_deref() == Some("qcow2") => (new.files.clone(), new.raw),
        (None, _) if format.is_none() && (rebase.new.is_none() || rebase.old.files.len() == 1) => (Vec::new(), false),
        other => return Err(format!("the header names {:?} {format:?}", other.0)),
    };
    let mut files = vec![MemoryStorage::from_bytes(top)];
    files.extend(below.0.iter().map(|bytes| MemoryStorage::from_bytes(bytes)));
    let mut image = stack(files, below.1).map_err(text)?;
    same(&read_all(&mut image).map_err(text)?, &rebase.old.content)
}

#[test]
fn cuts_while_an_image_is_rebased() {
    let mut states = 0;
    for seed in 1..7 {
        for (name, rebase) in rebases(seed) {
            println!("{name}, seed {seed}");
            let log = record(&rebase.old, &|image: &mut Image<Tagged>| {
                let new = backing(rebase.new.as_ref(), |bytes| Tagged {
                    inner: MemoryStorage::from_bytes(bytes),
                    file: usize::MAX,
                    log: Rc::default(),
                });
                image.rebase(new, rebase.compress, &mut go_on).map(drop)
            });
            assert!(log.iter().all(|(file, _)| *file == 0), "a backing file was written");
            let events: Vec<&StorageEvent> = log.iter().map(|(_, event)| event).collect();
            let mut rng = Rng::new(seed);
            let step = (events.len() / 60).max(1);
            // The header changes at the end: all of the last events.
            let ends = (0..events.len()).step_by(step).chain(events.len().saturating_sub(12)..=events.len());
            for end in ends {
                for variant in 0..3 {
                    let top = cut(&rebase.old.files[0], &events[..end], variant, &mut rng);
                    let judged = judge_rebased(&rebase, &top);
                    judged.unwrap_or_else(|why| panic!("{end} of {} events, {variant}: {why}", events.len()));
                    states += 1;
                }
            }
        }
    }
    println!("{states} states");
}

/// A file whose calls may fail, over bytes that are kept.
type Failing<'a> = FailingStorage<OverlayStorage<MemoryStorage>>;

fn failing(bytes: &[u8]) -> Failing<'static> {
    FailingStorage::new(OverlayStorage::new(MemoryStorage::from_bytes(bytes)).unwrap())
}

fn bytes_of(storage: &impl ReadStorage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_at(0, &mut bytes).unwrap();
    bytes
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
                    let left: Vec<Vec<u8>> = shared.iter().map(|file| bytes_of(file.as_ref())).collect();
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
    judge(chain, &files)
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
                let judged = judge_rebased(&rebase, &bytes_of(shared[0].as_ref()));
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
