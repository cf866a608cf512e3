//! Dirty bitmaps: one that can be used marks everything that differs from the state in which it began.

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{MemoryStorage, RecordingStorage, Storage};

use super::Rng;
use super::cuts::{all_bytes, each_cut};
use super::outcome::{Fault, FaultKind, Outcome};

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

/// An image that is opened for writing.
///
/// # Errors
/// As [`Image::open`].
pub fn open<S: Storage>(storage: S) -> qcowkit_core::Result<Image<S>> {
    Image::open(storage, options())
}

/// An image with contents, and a bitmap that begins with them.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn base(seed: u64) -> Vec<u8> {
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create(seed)).unwrap();
    image.write_at(10_000, &vec![0xee; 200_000]).unwrap();
    image.add_bitmap("other", Some(4096)).unwrap();
    image.add_bitmap(BITMAP, Some(512 << (seed % 4))).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

/// The whole disk.
///
/// # Panics
/// When it cannot be read.
pub fn contents(image: &mut Image<impl Storage>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// What a state says of the bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// It can be used, and marks all that changed; otherwise it says that it cannot be used.
    pub usable: bool,
    /// Clusters that leak.
    pub leaks: u64,
}

/// Opens, checks, and compares what the bitmap marks with what differs from `began`.
///
/// # Errors
/// What is wrong.
///
/// # Panics
/// When the storage fails.
pub fn judge<S: Storage>(storage: &S, began: &[u8]) -> Result<Judged, Fault> {
    let header = HeaderArea::parse(&all_bytes(storage)).map_err(Fault::of(FaultKind::Opens))?;
    let report = check(storage, &header, &mut |_| ()).map_err(Fault::of(FaultKind::Opens))?;
    if report.corruptions + report.check_errors > 0 {
        return Err(Fault::new(FaultKind::Corrupt, format_args!("{report:?}")));
    }
    let mut image = open(storage).map_err(Fault::of(FaultKind::Opens))?;
    let bitmaps = image.bitmaps().map_err(Fault::of(FaultKind::Corrupt))?;
    if let Some(bitmap) = bitmaps.iter().find(|bitmap| bitmap.problem.is_some() != bitmap.in_use) {
        return Err(Fault::new(FaultKind::Corrupt, format_args!("{bitmap:?}")));
    }
    let Some(found) = bitmaps.iter().find(|bitmap| bitmap.name == BITMAP) else {
        return Err(Fault::new(FaultKind::Lost, format_args!("the bitmap is gone: {bitmaps:?}")));
    };
    if found.in_use {
        return Ok(Judged { usable: false, leaks: report.leaks });
    }
    let (bits, now) = (image.bitmap_bits(BITMAP).unwrap(), contents(&mut image));
    for (at, byte) in (0u64..).zip(&now) {
        let was = began.get(at as usize).copied().unwrap_or(0);
        if was != *byte && !bits.is_dirty(at) {
            let what = format_args!("byte {at:#x} has changed from {was:#x} to {byte:#x} and is not marked");
            return Err(Fault::new(FaultKind::Lost, what));
        }
    }
    Ok(Judged { usable: true, leaks: report.leaks })
}

/// One random step of a session.
///
/// # Errors
/// As the image's.
pub fn step<S: Storage>(image: &mut Image<S>, rng: &mut Rng) -> qcowkit_core::Result<()> {
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

/// Random operations and changes of bitmaps; judges states.
///
/// # Panics
/// When an operation fails.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let mut rng = Rng::new(seed);
    let start = base(seed);
    let began = contents(&mut open(MemoryStorage::from_bytes(&start)).unwrap());
    let mut image = open(RecordingStorage::new(MemoryStorage::from_bytes(&start))).unwrap();
    for _ in 0..25 {
        step(&mut image, &mut rng).unwrap();
    }
    let closed = rng.one_in(2);
    let events = if closed { image.close().unwrap().events() } else { image.storage().events() };
    let mut outcome = Outcome { sessions: 1, events: events.len() as u64, ..Outcome::default() };
    outcome.did("steps with bitmaps", 25);
    let (mut usable, mut not_trusted) = (0, 0);
    each_cut(&start, &events, budget, &mut rng, |storage, at, plan| {
        let judged = judge(storage, &began);
        if let Ok(judged) = &judged {
            *if judged.usable { &mut usable } else { &mut not_trusted } += 1;
        }
        let place = format_args!("seed {seed}, after {at} events, {plan:?}");
        outcome.state(judged.map(|judged| judged.leaks).map_err(|fault| fault.at(place)));
    });
    outcome.did("states with the bitmap", usable);
    outcome.did("states in which it is not trusted", not_trusted);
    outcome
}
