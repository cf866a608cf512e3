//! Commit, emptying and rebase: the guest sees no difference, before, after, and wherever a power cut stops them.

use std::ops::ControlFlow;

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewBacking, OpenOptions};
use qcowkit_core::metadata::MetadataOptions;
use qcowkit_core::storage::{MemoryStorage, Storage, StorageEvent};

use super::Rng;
use super::files::{Log, Logged, Survives, cut_file, cut_files};
use super::outcome::{Fault, FaultKind, Outcome};
use super::walk::{Fields, walk};

/// A chain of images in memory, the top first, and what the top shows.
pub struct Chain {
    /// The files, the top first.
    pub files: Vec<Vec<u8>>,
    /// The last file is a raw one.
    pub raw: bool,
    /// What the top shows.
    pub content: Vec<u8>,
}

/// Small caches, so that commits also happen in between.
#[must_use]
pub fn open_options() -> OpenOptions {
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    OpenOptions { metadata, ..OpenOptions::default() }.metadata_only()
}

/// Puts layers on top of each other, the top first. All of them can be written.
///
/// # Errors
/// As [`Image::open`].
///
/// # Panics
/// Without any.
pub fn stack<S: Storage>(files: Vec<S>, raw: bool) -> qcowkit_core::Result<Image<S>> {
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

/// The whole disk.
///
/// # Errors
/// As [`Image::read_at`].
pub fn read_all<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<Vec<u8>> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Options of a new image.
#[must_use]
pub fn create(version: u32, cluster_size: u64, extended_l2: bool) -> CreateOptions {
    CreateOptions { version, cluster_size, extended_l2, ..CreateOptions::default() }
}

/// Random contents in each layer; `layers` from the top down, each with its size.
///
/// # Panics
/// When an image does something else than the model.
#[must_use]
pub fn chain(layers: &[(CreateOptions, u64)], raw: Option<u64>, seed: u64) -> Chain {
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
pub type Action<'a, S> = dyn Fn(&mut Image<S>) -> qcowkit_core::Result<()> + 'a;

/// Progress that stops nothing.
pub fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// As `qemu-img commit` does.
///
/// # Errors
/// As [`Image::commit_into`].
pub fn commit_and_empty<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<()> {
    image.prepare_writing()?;
    image.commit_into(1, &mut go_on)?;
    image.empty()
}

/// As `qemu-img commit -b` does with the last file of the chain.
///
/// # Errors
/// As [`Image::commit_into`].
pub fn commit_to_the_bottom<S: Storage>(image: &mut Image<S>) -> qcowkit_core::Result<()> {
    let base = image.chain_length() - 1;
    image.commit_into(base, &mut go_on).map(drop)
}

/// Judges the files of a chain: the clusters that leak.
///
/// # Errors
/// What is wrong.
pub fn judge(chain: &Chain, files: &[Vec<u8>]) -> Result<u64, Fault> {
    let images = files.len() - usize::from(chain.raw);
    let mut leaks = 0;
    for (file, bytes) in files[..images].iter().enumerate() {
        let walked = walk(bytes).map_err(|why| Fault::new(FaultKind::Corrupt, format_args!("file {file}: {why}")))?;
        leaks += walked.leaks((bytes.len() as u64).div_ceil(Fields::read(bytes).cluster()));
    }
    let storages = files.iter().map(|bytes| MemoryStorage::from_bytes(bytes)).collect();
    let mut image = stack(storages, chain.raw).map_err(Fault::of(FaultKind::Opens))?;
    let got = read_all(&mut image).map_err(Fault::of(FaultKind::Unreadable))?;
    same(&got, &chain.content).map_err(Fault::of(FaultKind::Changed))?;
    Ok(leaks)
}

fn same(got: &[u8], expected: &[u8]) -> Result<(), String> {
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        None if got.len() == expected.len() => Ok(()),
        None => Err(format!("{} bytes instead of {}", got.len(), expected.len())),
        Some(at) => Err(format!("byte {at:#x} is {:#x} instead of {:#x}", got[at], expected[at])),
    }
}

/// Chains of many shapes, with their name.
#[must_use]
pub fn chains(seed: u64) -> Vec<(&'static str, Chain)> {
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

/// The image on another backing file, of which only the top is written.
pub struct Rebase {
    /// The chain as it is.
    pub old: Chain,
    /// What the image is put on.
    pub new: Option<Chain>,
    /// What is copied is packed.
    pub compress: bool,
}

/// Rebases of many shapes, with their name.
#[must_use]
pub fn rebases(seed: u64) -> Vec<(&'static str, Rebase)> {
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

/// The new backing file, each of its files made by `make`.
///
/// # Panics
/// When it does not open.
pub fn backing<S>(new: Option<&Chain>, make: impl Fn(&[u8]) -> S) -> NewBacking<S>
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
///
/// # Errors
/// What is wrong.
pub fn judge_rebased(rebase: &Rebase, top: &[u8]) -> Result<u64, Fault> {
    let walked = walk(top).map_err(Fault::of(FaultKind::Corrupt))?;
    let header = HeaderArea::parse(top).map_err(Fault::of(FaultKind::Opens))?;
    let name = header.backing_file.as_ref().map(ToString::to_string);
    let format = header.backing_format().map(ToString::to_string);
    let below = match (name.as_deref(), &rebase.new) {
        (Some("below"), _) if format.as_deref().is_some_and(|f| f == "raw" || f == "qcow2") => {
            (rebase.old.files[1..].to_vec(), rebase.old.raw)
        }
        (Some("the new one"), Some(new)) if format.as_deref() == Some("qcow2") => (new.files.clone(), new.raw),
        (None, _) if format.is_none() && (rebase.new.is_none() || rebase.old.files.len() == 1) => (Vec::new(), false),
        other => return Err(Fault::new(FaultKind::Changed, format_args!("the header names {:?} {format:?}", other.0))),
    };
    let mut files = vec![MemoryStorage::from_bytes(top)];
    files.extend(below.0.iter().map(|bytes| MemoryStorage::from_bytes(bytes)));
    let mut image = stack(files, below.1).map_err(Fault::of(FaultKind::Opens))?;
    let got = read_all(&mut image).map_err(Fault::of(FaultKind::Unreadable))?;
    same(&got, &rebase.old.content).map_err(Fault::of(FaultKind::Changed))?;
    Ok(walked.leaks((top.len() as u64).div_ceil(Fields::read(top).cluster())))
}

/// Carries an action out on a chain whose files are recorded: which file, and what happened to it.
///
/// # Panics
/// When it fails, or the guest sees a difference.
pub fn record(chain: &Chain, action: &Action<'_, Logged>) -> Vec<(usize, StorageEvent)> {
    let log = Log::default();
    let files = chain.files.iter().enumerate().map(|(file, bytes)| Logged::new(file, bytes, &log));
    let mut image = stack(files.collect(), chain.raw).unwrap();
    action(&mut image).unwrap();
    assert!(read_all(&mut image).unwrap() == chain.content, "the contents differ afterwards");
    drop(image);
    log.take()
}

/// Commits one chain and empties its top, or commits it through to the bottom, and judges states of all files.
///
/// # Panics
/// As [`record`].
#[must_use]
pub fn commit(seed: u64, budget: usize) -> Outcome {
    let mut all = chains(seed);
    let count = all.len() as u64;
    let (name, chain) = all.swap_remove((seed % count) as usize);
    let deep = chain.files.len() > 2 && seed / count % 2 == 1;
    let log = record(&chain, if deep { &commit_to_the_bottom } else { &commit_and_empty });
    let mut outcome = Outcome { sessions: 1, events: log.len() as u64, ..Outcome::default() };
    outcome.did(if deep { "commit through a chain" } else { "commit and empty" }, 1);
    assert!(!deep || log.iter().all(|(file, _)| *file == chain.files.len() - 1), "another file than the base");
    let mut rng = Rng::new(seed);
    for end in ends(log.len(), budget) {
        for survives in Survives::EACH {
            let files = cut_files(&chain.files, &log[..end], survives, &mut rng);
            let files: Vec<Vec<u8>> = files.iter().map(|file| file.to_vec().unwrap()).collect();
            let place = format_args!("{name}, seed {seed}, {end} of {} events, {survives:?}", log.len());
            outcome.state(judge(&chain, &files).map_err(|fault| fault.at(place)));
        }
    }
    outcome
}

/// Puts one image on another backing file, and judges states of it.
///
/// # Panics
/// As [`record`].
#[must_use]
pub fn rebase(seed: u64, budget: usize) -> Outcome {
    let mut all = rebases(seed);
    let count = all.len() as u64;
    let (name, rebase) = all.swap_remove((seed % count) as usize);
    let log = record(&rebase.old, &|image: &mut Image<Logged>| {
        let new = backing(rebase.new.as_ref(), |bytes| Logged::new(usize::MAX, bytes, &Log::default()));
        image.rebase(new, rebase.compress, &mut go_on).map(drop)
    });
    assert!(log.iter().all(|(file, _)| *file == 0), "a backing file was written");
    let mut outcome = Outcome { sessions: 1, events: log.len() as u64, ..Outcome::default() };
    outcome.did(if rebase.compress { "rebase, packing" } else { "rebase" }, 1);
    let events: Vec<&StorageEvent> = log.iter().map(|(_, event)| event).collect();
    let mut rng = Rng::new(seed);
    for end in ends(events.len(), budget) {
        for survives in Survives::EACH {
            let top = cut_file(&rebase.old.files[0], &events[..end], survives, &mut rng).to_vec().unwrap();
            let place = format_args!("{name}, seed {seed}, {end} of {} events, {survives:?}", events.len());
            outcome.state(judge_rebased(&rebase, &top).map_err(|fault| fault.at(place)));
        }
    }
    outcome
}

/// After how many of `count` events cuts are made: everywhere, or at as many places as the budget allows, and wherever
/// the header may change, at the end.
fn ends(count: usize, budget: usize) -> impl Iterator<Item = usize> {
    let step = (count * Survives::EACH.len()).div_ceil(budget.max(1)).max(1);
    (0..=count).filter(move |end| end.is_multiple_of(step) || end + 12 > count)
}
