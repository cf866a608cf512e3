//! Images with an external data file: what the guest sees, and for raw files that the file shows the same, under every
//! policy, and after a power cut that strikes both files at one moment.

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use common::Rng;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{
    CreateOptions, Found, Image, LayerFormat, OpenOptions, Opener, Preallocation, Reference, Role,
};
use qcowkit_core::metadata::{DiscardPolicy, MetadataOptions, Pass, RetainedOp, Unref};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{
    Capabilities, MemoryStorage, ReadStorage, Storage, StorageError, StorageEvent, StorageExtent, ZeroMode,
};

const SECTOR: usize = 512;
const SIZE: usize = 200 * SECTOR;

type Log = Rc<RefCell<Vec<(usize, StorageEvent)>>>;

/// One of two files that share a log of what happened to them.
#[derive(Clone)]
struct Part {
    number: usize,
    inner: Rc<MemoryStorage>,
    log: Log,
}

impl Part {
    fn note(&self, done: Result<(), StorageError>, event: StorageEvent) -> Result<(), StorageError> {
        done?;
        self.log.borrow_mut().push((self.number, event));
        Ok(())
    }
}

impl ReadStorage for Part {
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

impl Storage for Part {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.note(self.inner.write_at(offset, from), StorageEvent::Write { offset, data: from.into() })
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        let done = self.inner.write_zeroes(offset, length, mode);
        self.note(done, StorageEvent::WriteZeroes { offset, length, mode })
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.note(self.inner.discard(offset, length), StorageEvent::Discard { offset, length })
    }
    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.note(self.inner.set_len(length), StorageEvent::SetLen { length })
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.note(self.inner.allocate(offset, length), StorageEvent::Allocate { offset, length })
    }
    fn barrier(&self) -> Result<(), StorageError> {
        self.note(self.inner.barrier(), StorageEvent::Barrier)
    }
}

/// Opens the data file, whatever its name.
struct Give<S>(Option<S>);

impl<S> Opener<S> for Give<S> {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<S>> {
        assert_eq!(reference.role, Role::DataFile);
        Ok(Found { storage: self.0.take().unwrap(), format: LayerFormat::Raw, identity: None })
    }
}

#[derive(Debug, Clone)]
struct Scenario {
    raw: bool,
    create: CreateOptions,
    open: OpenOptions,
}

fn scenario(seed: u64) -> Scenario {
    let pick = |n: u64, of: u64| (seed / n % of) as usize;
    let raw = seed.is_multiple_of(2);
    let policy = DiscardPolicy {
        unref: [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu][pick(2, 3)],
        retained_op: [RetainedOp::Punch, RetainedOp::ZeroRange, RetainedOp::None][pick(6, 3)],
        pass: Pass { request: pick(18, 2) == 0, ..Pass::default() },
    };
    let extended_l2 = pick(3, 4) == 0;
    let create = CreateOptions {
        cluster_size: if extended_l2 { 16384 } else { 512 << pick(5, 4) },
        extended_l2,
        data_file: Some("data".into()),
        data_file_raw: raw,
        preallocation: [Preallocation::Off, Preallocation::Metadata, Preallocation::Full][pick(7, 3)],
        ..CreateOptions::default()
    };
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    Scenario { raw, create, open: OpenOptions::default().with_policy(policy).with_metadata(metadata) }
}

fn open<S: Storage>(image: S, data: S, options: &OpenOptions) -> Image<S> {
    Image::open_with(image, None, options.clone(), &mut Give(Some(data))).unwrap()
}

fn contents<S: Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn bytes_of(data: &impl ReadStorage, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    data.read_at(0, &mut bytes).unwrap();
    bytes
}

/// One operation on whole sectors; gives the range that it changed.
fn step(image: &mut Image<Part>, model: &mut [u8], rng: &mut Rng, stamp: u8, cluster: usize) -> (usize, usize) {
    let from = rng.below((SIZE / SECTOR) as u64) as usize * SECTOR;
    let most = if rng.one_in(6) { 120 } else { 12 };
    let to = (from + (rng.below(most) as usize + 1) * SECTOR).min(SIZE);
    let (offset, length) = (from as u64, (to - from) as u64);
    match rng.below(10) {
        0..=4 => {
            image.write_at(offset, &vec![stamp; to - from]).unwrap();
            model[from..to].fill(stamp);
        }
        5..=6 => {
            image.write_zeroes(offset, length, rng.one_in(2)).unwrap();
            model[from..to].fill(0);
        }
        _ => {
            image.discard(offset, length).unwrap();
            let from = from.next_multiple_of(cluster);
            let to = if to == SIZE { to } else { to / cluster * cluster };
            if from < to {
                model[from..to].fill(0);
            }
        }
    }
    (from, to)
}

#[test]
fn the_guest_and_a_raw_file_show_the_same_under_every_policy() {
    for seed in 0..72 {
        let scenario = scenario(seed);
        let mut rng = Rng::new(seed);
        let log = Log::default();
        let part = |number| Part { number, inner: Rc::default(), log: Rc::clone(&log) };
        let (disk, data) = (part(0), part(1));
        let (create, size) = (&scenario.create, SIZE as u64);
        let options = scenario.open.clone();
        let mut image = Image::create_with_data_file(disk.clone(), data.clone(), size, create, options).unwrap();
        let mut model = vec![0u8; SIZE];
        for n in 0..60 {
            step(&mut image, &mut model, &mut rng, n % 100 + 1, create.cluster_size as usize);
            assert!(contents(&mut image) == model, "seed {seed}, step {n}: {scenario:?}");
            if scenario.raw {
                assert!(bytes_of(&data, SIZE) == model, "seed {seed}, step {n}: the raw file: {scenario:?}");
            }
            if rng.one_in(8) {
                image.close().unwrap();
                image = open(disk.clone(), data.clone(), &scenario.open);
            }
        }
        // Larger and smaller.
        image.resize(size * 2).unwrap();
        model.resize(SIZE * 2, 0);
        assert!(contents(&mut image) == model, "seed {seed}: larger");
        image.write_at(size, &[200; 5000]).unwrap();
        model[SIZE..SIZE + 5000].fill(200);
        image.resize(size / 2 / 512 * 512).unwrap();
        image.resize(size).unwrap();
        let kept = SIZE / 2 / 512 * 512;
        model.truncate(kept);
        model.resize(SIZE, 0);
        assert!(contents(&mut image) == model, "seed {seed}: smaller and larger");
        if scenario.raw {
            assert!(bytes_of(&data, SIZE) == model, "seed {seed}: the raw file after resizing");
        }
        image.close().unwrap();
        assert_eq!(data.len().unwrap(), size, "seed {seed}");
        let report = check(&disk, &HeaderArea::parse(&disk.inner.to_vec().unwrap()).unwrap(), &mut |_| ()).unwrap();
        assert_eq!(report.corruptions + report.leaks + report.check_errors, 0, "seed {seed}: {report:?}");
    }
}

/// What an operation made of each sector.
struct Done {
    began: usize,
    flushes: usize,
    sectors: Vec<(usize, Vec<u8>)>,
}

struct Session {
    base: [Vec<u8>; 2],
    log: Vec<(usize, StorageEvent)>,
    /// Events that had happened, contents.
    flushed: Vec<(usize, Vec<u8>)>,
    done: Vec<Done>,
}

fn record(scenario: &Scenario, seed: u64) -> Session {
    let mut rng = Rng::new(seed ^ 77);
    let log = Log::default();
    let part = |number| Part { number, inner: Rc::default(), log: Rc::clone(&log) };
    let (disk, data) = (part(0), part(1));
    let (create, size) = (&scenario.create, SIZE as u64);
    let image = Image::create_with_data_file(disk.clone(), data.clone(), size, create, scenario.open.clone());
    image.unwrap().close().unwrap();
    let base = [disk.inner.to_vec().unwrap(), data.inner.to_vec().unwrap()];
    log.borrow_mut().clear();
    let mut model = vec![0u8; SIZE];
    let mut image = open(disk, data, &scenario.open);
    let mut session = Session { base, log: Vec::new(), flushed: vec![(0, model.clone())], done: Vec::new() };
    for n in 0..50 {
        let began = log.borrow().len();
        if rng.one_in(6) {
            image.flush().unwrap();
            session.flushed.push((log.borrow().len(), model.clone()));
            continue;
        }
        let (from, to) = step(&mut image, &mut model, &mut rng, n % 100 + 1, create.cluster_size as usize);
        let sectors = (from / SECTOR..to / SECTOR).map(|s| (s, model[s * SECTOR..(s + 1) * SECTOR].to_vec())).collect();
        session.done.push(Done { began, flushes: session.flushed.len(), sectors });
    }
    drop(image);
    session.log = log.take();
    session
}

/// Both files as a cut after `end` events may leave them: what came before a file's own last barrier is there.
fn cut(session: &Session, end: usize, rng: &mut Rng) -> [MemoryStorage; 2] {
    let mut files = [MemoryStorage::from_bytes(&session.base[0]), MemoryStorage::from_bytes(&session.base[1])];
    let odds = [1, 2, 4, 16][rng.below(4) as usize];
    for (number, file) in files.iter_mut().enumerate() {
        let own = session.log[..end].iter().filter(|(part, _)| *part == number).map(|(_, event)| event);
        let own: Vec<&StorageEvent> = own.collect();
        let durable = own.iter().rposition(|event| **event == StorageEvent::Barrier).map_or(0, |at| at + 1);
        for (n, event) in own.into_iter().enumerate() {
            if n < durable {
                event.apply(file).unwrap();
                continue;
            }
            for piece in event.torn(SECTOR as u32) {
                if odds == 1 || !rng.one_in(odds) {
                    piece.apply(file).unwrap();
                }
            }
        }
    }
    files
}

#[test]
fn a_cut_of_both_files_loses_nothing_that_was_flushed() {
    let mut states = 0;
    for seed in 0..36 {
        let scenario = scenario(seed);
        let session = record(&scenario, seed);
        let mut rng = Rng::new(seed ^ 99);
        for _ in 0..60 {
            let end = rng.below(session.log.len() as u64 + 1) as usize;
            let what = format!("seed {seed}, cut after {end} events: {scenario:?}");
            let [disk, data] = cut(&session, end, &mut rng);
            let area = HeaderArea::parse(&disk.to_vec().unwrap()).unwrap();
            let report = check(&disk, &area, &mut |_| ()).unwrap();
            assert_eq!(report.corruptions + report.check_errors, 0, "{what}: {report:?}");
            let raw_view = bytes_of(&data, SIZE);
            let mut image = open(&disk, &data, &scenario.open);
            let got = contents(&mut image);
            let flush = session.flushed.iter().rposition(|(at, _)| *at <= end).unwrap();
            let mut later: HashMap<usize, Vec<&[u8]>> = HashMap::new();
            for done in session.done.iter().filter(|done| done.flushes > flush && done.began <= end) {
                done.sectors.iter().for_each(|(sector, value)| later.entry(*sector).or_default().push(value));
            }
            for (sector, bytes) in got.chunks(SECTOR).enumerate() {
                let flushed = &session.flushed[flush].1[sector * SECTOR..(sector + 1) * SECTOR];
                let right = bytes == flushed || later.get(&sector).is_some_and(|values| values.contains(&bytes));
                assert!(right, "{what}: sector {sector} is {}, flushed {}", bytes[0], flushed[0]);
            }
            if scenario.raw {
                assert!(raw_view == got, "{what}: the raw file shows something else");
            }
            // It can be used on.
            image.write_at(1000, &[111; 3000]).unwrap();
            image.close().unwrap();
            let mut model = got;
            model[1000..4000].fill(111);
            assert!(contents(&mut open(&disk, &data, &scenario.open)) == model, "{what}: after going on");
            states += 1;
        }
    }
    assert!(states > 2000, "{states}");
}

#[test]
fn what_a_data_file_cannot_do_is_refused() {
    let create = CreateOptions { data_file: Some("data".into()), ..CreateOptions::default() };
    assert!(Image::create(MemoryStorage::new(), 1 << 20, &create).is_err());
    let plain = CreateOptions::default();
    let both = (MemoryStorage::new(), MemoryStorage::new());
    assert!(Image::create_with_data_file(both.0, both.1, 1 << 20, &plain, OpenOptions::default()).is_err());
    for (wrong, words) in [
        (CreateOptions { version: 2, ..create.clone() }, "external data files need compat=1.1"),
        (CreateOptions { data_file: None, data_file_raw: true, ..create.clone() }, "data-file-raw requires data-file"),
        (
            CreateOptions { data_file_raw: true, backing_file: Some("base".into()), ..create.clone() },
            "Backing file and data-file-raw",
        ),
    ] {
        let error = wrong.validate(1 << 20).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let (disk, data) = (MemoryStorage::new(), MemoryStorage::new());
    let mut image = Image::create_with_data_file(&disk, &data, 1 << 20, &create, OpenOptions::default()).unwrap();
    let error = image.write_compressed(0, &[1; 65536]).unwrap_err();
    assert!(error.to_string().contains("data file"), "{error}");
    image.close().unwrap();
    // Nothing that an image names is opened by itself.
    assert!(Image::open(&disk, OpenOptions::default()).is_err());
    // A device that is too small.
    let small = MemoryStorage::block_device(1 << 19);
    let made = Image::create_with_data_file(MemoryStorage::new(), small, 1 << 20, &create, OpenOptions::default());
    assert!(made.is_err());
}
