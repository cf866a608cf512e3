//! Images with an external data file: a power cut strikes both files at one moment.

use std::collections::HashMap;

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{
    CreateOptions, Found, Image, LayerFormat, OpenOptions, Opener, Preallocation, Reference, Role,
};
use qcowkit_core::metadata::{DiscardPolicy, MetadataOptions, Pass, RetainedOp, Unref};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage, StorageEvent};

use super::Rng;
use super::files::{Log, Logged, Survives, cut_files};
use super::outcome::{Fault, FaultKind, Outcome};
use super::session::SECTOR;

/// Bytes of the disk.
pub const SIZE: usize = 200 * SECTOR;

/// Opens the data file, whatever its name.
pub struct Give<S>(pub Option<S>);

impl<S> Opener<S> for Give<S> {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<S>> {
        assert_eq!(reference.role, Role::DataFile);
        Ok(Found { storage: self.0.take().unwrap(), format: LayerFormat::Raw, identity: None })
    }
}

/// Options of all kinds.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The data file is a raw one.
    pub raw: bool,
    /// How the image is made.
    pub create: CreateOptions,
    /// How it is opened.
    pub open: OpenOptions,
}

/// Those for a seed.
#[must_use]
pub fn scenario(seed: u64) -> Scenario {
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

/// Opens both files.
///
/// # Panics
/// When they do not open.
pub fn open<S: Storage>(image: S, data: S, options: &OpenOptions) -> Image<S> {
    Image::open_with(image, None, options.clone(), &mut Give(Some(data))).unwrap()
}

/// The whole disk.
///
/// # Panics
/// When it cannot be read.
pub fn contents<S: Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The first bytes of a file.
///
/// # Panics
/// When it cannot be read.
pub fn bytes_of(data: &impl ReadStorage, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    data.read_at(0, &mut bytes).unwrap();
    bytes
}

/// One operation on whole sectors; gives the range that it changed.
///
/// # Panics
/// When it fails.
pub fn step(image: &mut Image<Logged>, model: &mut [u8], rng: &mut Rng, stamp: u8, cluster: usize) -> (usize, usize) {
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

/// What an operation made of each sector.
struct Done {
    began: usize,
    flushes: usize,
    sectors: Vec<(usize, Vec<u8>)>,
}

struct Session {
    base: Vec<Vec<u8>>,
    log: Vec<(usize, StorageEvent)>,
    /// Events that had happened, contents.
    flushed: Vec<(usize, Vec<u8>)>,
    done: Vec<Done>,
}

fn record(scenario: &Scenario, seed: u64) -> Session {
    let mut rng = Rng::new(seed ^ 77);
    let log = Log::default();
    let (disk, data) = (Logged::new(0, &[], &log), Logged::new(1, &[], &log));
    let (create, size) = (&scenario.create, SIZE as u64);
    let image = Image::create_with_data_file(disk.clone(), data.clone(), size, create, scenario.open.clone());
    image.unwrap().close().unwrap();
    let base = vec![disk.bytes(), data.bytes()];
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

/// Random operations; judges states of both files.
///
/// # Panics
/// When an operation fails.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let scenario = scenario(seed);
    let session = record(&scenario, seed);
    let mut rng = Rng::new(seed ^ 99);
    let mut outcome = Outcome { sessions: 1, events: session.log.len() as u64, ..Outcome::default() };
    outcome.did(if scenario.raw { "raw data file" } else { "data file" }, 1);
    for n in 0..budget {
        let end = rng.below(session.log.len() as u64 + 1) as usize;
        let survives = Survives::EACH[n % Survives::EACH.len()];
        let files = cut_files(&session.base, &session.log[..end], survives, &mut rng);
        let judged = judge(&scenario, &session, end, &files[0], &files[1]);
        let place = format_args!("seed {seed}, cut after {end} events, {survives:?}: {scenario:?}");
        outcome.state(judged.map_err(|fault| fault.at(place)));
    }
    outcome.continued = outcome.states;
    outcome
}

fn judge(
    scenario: &Scenario,
    session: &Session,
    end: usize,
    disk: &MemoryStorage,
    data: &MemoryStorage,
) -> Result<u64, Fault> {
    let area = HeaderArea::parse(&disk.to_vec().unwrap()).map_err(Fault::of(FaultKind::Opens))?;
    let report = check(disk, &area, &mut |_| ()).map_err(Fault::of(FaultKind::Opens))?;
    if report.corruptions + report.check_errors > 0 {
        return Err(Fault::new(FaultKind::Corrupt, format_args!("{report:?}")));
    }
    let raw_view = bytes_of(data, SIZE);
    let mut image = open(disk, data, &scenario.open);
    let got = contents(&mut image);
    let flush = session.flushed.iter().rposition(|(at, _)| *at <= end).unwrap();
    let mut later: HashMap<usize, Vec<&[u8]>> = HashMap::new();
    for done in session.done.iter().filter(|done| done.flushes > flush && done.began <= end) {
        done.sectors.iter().for_each(|(sector, value)| later.entry(*sector).or_default().push(value));
    }
    for (sector, bytes) in got.chunks(SECTOR).enumerate() {
        let flushed = &session.flushed[flush].1[sector * SECTOR..(sector + 1) * SECTOR];
        let versions = later.get(&sector);
        if bytes != flushed && !versions.is_some_and(|values| values.contains(&bytes)) {
            let kind = if versions.is_some() { FaultKind::Mixed } else { FaultKind::Lost };
            let what = format_args!("sector {sector} is {}, flushed {}", bytes[0], flushed[0]);
            return Err(Fault::new(kind, what));
        }
    }
    if scenario.raw && raw_view != got {
        return Err(Fault::new(FaultKind::Changed, "the raw file shows something else"));
    }
    // It can be used on.
    image.write_at(1000, &[111; 3000]).map_err(Fault::of(FaultKind::GoesOn))?;
    image.close().map_err(Fault::of(FaultKind::GoesOn))?;
    let mut model = got;
    model[1000..4000].fill(111);
    if contents(&mut open(disk, data, &scenario.open)) != model {
        return Err(Fault::new(FaultKind::GoesOn, "written, it is another"));
    }
    Ok(report.leaks)
}
