//! Key slots of an encrypted image: passwords come and go, and whatever a cut leaves, one of those that should open it
//! does, and none that was erased.

use qcowkit_core::crypto::{Secret, SlotChange};
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{MemoryStorage, RecordingStorage, Storage};

use super::Rng;
use super::cuts::{all_bytes, each_cut};
use super::disks::{noise, volume};
use super::outcome::{Fault, FaultKind, Outcome};

const SIZE: u64 = 20 << 10;
const STEPS: usize = 6;

/// A password, with the events that had happened when it began to be and was there, and the same for its end.
struct Password {
    text: String,
    added: (usize, usize),
    erased: Option<(usize, usize)>,
    slot: usize,
}

/// Adds and erases passwords; judges states.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let mut rng = Rng::new(seed);
    let create = CreateOptions { cluster_size: 4096, encryption: Some(volume()), ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create).unwrap();
    image.write_at(1000, &[7; 9000]).unwrap();
    let base = image.close().unwrap().to_vec().unwrap();
    let mut image = open(RecordingStorage::new(MemoryStorage::from_bytes(&base)), "key").unwrap();
    let mut passwords = vec![Password { text: "key".into(), added: (0, 0), erased: None, slot: 0 }];
    let mut outcome = Outcome { sessions: 1, ..Outcome::default() };
    for step in 0..STEPS {
        let begun = image.storage().event_count();
        let valid: Vec<usize> = (0..passwords.len()).filter(|&n| passwords[n].erased.is_none()).collect();
        if valid.len() > 1 && rng.one_in(2) {
            let gone = valid[rng.below(valid.len() as u64) as usize];
            let slot = passwords[gone].slot;
            image.key_slots().unwrap().erase(&[slot], SlotChange::Careful, &mut noise(step as u8)).unwrap();
            passwords[gone].erased = Some((begun, image.storage().event_count()));
            outcome.did("key slot erased", 1);
        } else {
            let text = format!("password {step}");
            let (master, secret) = (image.master_key().unwrap(), Secret::from(text.as_str()));
            let mut slots = image.key_slots().unwrap();
            let slot = slots.add(&master, &secret, None, 1, SlotChange::Careful, &mut noise(step as u8)).unwrap();
            passwords.push(Password { text, added: (begun, image.storage().event_count()), erased: None, slot });
            outcome.did("key slot added", 1);
        }
    }
    let events = image.storage().events();
    outcome.events = events.len() as u64;
    each_cut(&base, &events, budget, &mut rng, |state, at, plan| {
        let place = format_args!("seed {seed}, after {at} events, {plan:?}");
        outcome.state(judge(state, at, &passwords).map_err(|fault| fault.at(place)));
    });
    outcome
}

fn open<S: Storage>(storage: S, password: &str) -> qcowkit_core::Result<Image<S>> {
    Image::open(storage, OpenOptions::default().with_key(Secret::from(password)))
}

fn judge<S: Storage>(state: &S, at: usize, passwords: &[Password]) -> Result<u64, Fault> {
    let header = HeaderArea::parse(&all_bytes(state)).map_err(Fault::of(FaultKind::Opens))?;
    let report = check(state, &header, &mut |_| ()).map_err(Fault::of(FaultKind::Opens))?;
    if report.corruptions + report.check_errors > 0 {
        return Err(Fault::new(FaultKind::Corrupt, format_args!("{report:?}")));
    }
    for Password { text, added, erased, .. } in passwords {
        let must = at >= added.1 && erased.is_none_or(|(begun, _)| at <= begun);
        let may = at >= added.0 && erased.is_none_or(|(_, done)| at < done);
        match open(state, text) {
            Ok(mut image) if may => {
                let mut bytes = vec![0; 12_000];
                image.read_at(0, &mut bytes).map_err(Fault::of(FaultKind::Unreadable))?;
                let right =
                    bytes.iter().enumerate().all(|(n, byte)| *byte == if (1000..10_000).contains(&n) { 7 } else { 0 });
                if !right {
                    return Err(Fault::new(FaultKind::Lost, format_args!("'{text}' opens another disk")));
                }
            }
            Ok(_) => return Err(Fault::new(FaultKind::Changed, format_args!("'{text}' opens the image"))),
            Err(error) if must => return Err(Fault::new(FaultKind::Lost, format_args!("'{text}': {error}"))),
            Err(_) => {}
        }
    }
    Ok(report.leaks)
}
