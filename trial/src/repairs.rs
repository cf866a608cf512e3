//! Repair: whatever part of it reaches storage, what could be read can still be read, no refcount is too low that was not
//! before, another repair finishes the work, and the undo log brings everything back.

use std::collections::BTreeSet;

use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::operations::check::FindingKind;
use qcowkit_core::operations::repair::{RepairAction, RepairLevel, RepairOptions, RepairPlan, UndoLog, apply, plan};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{MemoryStorage, ReadStorage, RecordingStorage, Storage};

use super::Rng;
use super::cuts::{all_bytes, each_cut};
use super::outcome::{Fault, FaultKind, Outcome};

/// Places in the header that say where a table is: L1 table, refcount table, snapshot table.
const TABLE_FIELDS: [u64; 3] = [40, 48, 64];
/// Clusters of a small image in which its tables lie.
const TABLES: u64 = 16;

/// Bytes of a cluster.
pub const CLUSTER: u64 = 512;
const SIZE: u64 = 200 << 10;
/// The COPIED flag.
pub const COPIED: u64 = 1 << 63;

/// An image with data, zeros, packed clusters and a snapshot that shares some of them.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn sound(version: u32, refcount_bits: u32) -> Vec<u8> {
    let options = CreateOptions { cluster_size: CLUSTER, version, refcount_bits, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), SIZE, &options).unwrap();
    image.write_at(0, &[1; 9000]).unwrap();
    image.write_at(70_000, &[2; 20_000]).unwrap();
    image.write_compressed(16_384, &[3; 4096]).unwrap();
    if refcount_bits > 1 {
        image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    }
    image.write_at(1000, &[4; 3000]).unwrap();
    image.write_at(150_000, &[5; 10_000]).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

/// A word of an image; 0 beyond its end.
#[must_use]
pub fn get(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(word.try_into().unwrap()))
}

/// Sets a word of an image.
pub fn put(bytes: &mut [u8], at: u64, value: u64) {
    if let Some(word) = bytes.get_mut(at as usize..at as usize + 8) {
        word.copy_from_slice(&value.to_be_bytes());
    }
}

/// One thing wrong, by chance: an entry, a refcount, the refcount table, a field of the header.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let clusters = bytes.len() as u64 / CLUSTER;
    let (l1, table) = (get(bytes, 40), get(bytes, 48));
    let place = |rng: &mut Rng| rng.below(clusters + 3) * CLUSTER;
    match rng.below(9) {
        0..3 => {
            let l2 = get(bytes, l1 + 8 * rng.below(4)) & 0x00ff_ffff_ffff_fe00;
            let at = l2 + 8 * rng.below(64);
            let old = get(bytes, at);
            let new = [0, old ^ COPIED, old ^ 1 << rng.below(64), place(rng) | COPIED, place(rng)];
            put(bytes, at, new[rng.below(5) as usize]);
        }
        3 => {
            let at = l1 + 8 * rng.below(4);
            let old = get(bytes, at);
            let new = [0, old ^ COPIED, old ^ 1 << rng.below(60), place(rng) | COPIED];
            put(bytes, at, new[rng.below(4) as usize]);
        }
        4..7 => {
            let block = get(bytes, table) & !511;
            let at = (block + rng.below(CLUSTER)) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.below(3) as u8;
            }
        }
        7 => {
            let new = [0, place(rng), place(rng) + 512 * rng.below(2), u64::MAX << 9];
            put(bytes, table + 8 * rng.below(2), new[rng.below(4) as usize]);
        }
        _ => {
            let length = bytes.len() as u64 - rng.below(3 * CLUSTER);
            bytes.truncate(length as usize);
        }
    }
}

/// Makes tables of an image with clusters of 512 bytes lie on each other, on data, or on the header.
pub fn overlap(bytes: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    let clusters = bytes.len() as u64 / CLUSTER;
    let (l1, table) = (get(bytes, 40), get(bytes, 48));
    for _ in 0..=rng.below(3) {
        let place = if rng.one_in(4) { rng.below(clusters) } else { rng.below(TABLES) } * CLUSTER;
        let entry = if rng.one_in(2) { place | COPIED } else { place };
        match rng.below(6) {
            0 => put(bytes, TABLE_FIELDS[rng.below(3) as usize], place),
            1 => put(bytes, l1 + 8 * rng.below(7), entry),
            2 => put(bytes, table + 8 * rng.below(3), place),
            3 => put(bytes, 8 * rng.below(TABLES * CLUSTER / 8), entry),
            4 => {
                let l2 = get(bytes, l1 + 8 * rng.below(7)) & !COPIED & !511;
                put(bytes, l2 + 8 * rng.below(64), entry);
            }
            _ => {
                // What is in one table is in another, too.
                let from = rng.below(TABLES) * CLUSTER;
                let copied: Vec<u64> = (0..CLUSTER / 8).map(|n| get(bytes, from + 8 * n)).collect();
                (0u64..).zip(copied).for_each(|(n, word)| put(bytes, place + 8 * n, word));
            }
        }
    }
}

/// Guest clusters that can be read.
pub fn readable(storage: &impl Storage) -> Vec<Option<Vec<u8>>> {
    let Ok(mut image) = Image::open(storage, OpenOptions::default().read_only()) else { return Vec::new() };
    let size = CLUSTER as usize;
    (0..SIZE / CLUSTER)
        .map(|cluster| {
            let mut bytes = vec![0; size];
            image.read_at(cluster * CLUSTER, &mut bytes).ok().map(|()| bytes)
        })
        .collect()
}

/// Clusters whose refcount is too low.
fn too_low(storage: &impl ReadStorage) -> Option<BTreeSet<u64>> {
    let report = check(storage, &read_header(storage).ok()?, &mut |_| ()).ok()?;
    let low = report.findings.iter().filter(|finding| finding.kind == FindingKind::RefcountTooLow);
    Some(low.filter_map(|finding| Some((finding.index?, finding.count))).flat_map(|(at, n)| at..at + n).collect())
}

/// The plan of a whole repair.
///
/// # Errors
/// As [`plan`].
pub fn make_plan(storage: &impl ReadStorage) -> Result<RepairPlan, String> {
    plan(storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).map_err(|error| error.to_string())
}

/// What must hold of every state between before and after.
pub struct Expected {
    damaged: Vec<u8>,
    readable: Vec<Option<Vec<u8>>>,
    too_low: Option<BTreeSet<u64>>,
    log: UndoLog,
}

impl Expected {
    /// Of the repair of `damaged` by `plan`.
    ///
    /// # Panics
    /// When memory cannot be read.
    #[must_use]
    pub fn of(damaged: &[u8], plan: &RepairPlan) -> Self {
        let base = MemoryStorage::from_bytes(damaged);
        let log = UndoLog::of(plan, &base).unwrap();
        Self { damaged: damaged.to_vec(), readable: readable(&base), too_low: too_low(&base), log }
    }

    /// The same, of an image of which the repair drops something on purpose: what `repaired` has lost is not asked for.
    #[must_use]
    pub fn without_lost(mut self, repaired: &impl Storage) -> Self {
        let after = readable(repaired);
        let before = self.readable.iter_mut().zip(after.into_iter().chain(core::iter::repeat(None)));
        before.filter(|(before, after)| *before != after).for_each(|(before, _)| *before = None);
        self
    }

    /// Judges a state, and what another repair makes of it; `undo`: the undo log must know it. Gives its leaks.
    ///
    /// # Errors
    /// What is wrong.
    ///
    /// # Panics
    /// When memory cannot be read.
    pub fn judge<S: Storage>(&self, state: &S, undo: bool) -> Result<u64, Fault> {
        self.same(state).map_err(Fault::of(FaultKind::Changed))?;
        if let (Some(before), Some(now)) = (&self.too_low, too_low(state)) {
            // What broken entries name behind the end of the file was nobody's before, too.
            let end = self.damaged.len() as u64 / CLUSTER;
            let fresh: Vec<_> = now.difference(before).filter(|&&cluster| cluster < end).collect();
            if !fresh.is_empty() {
                return Err(Fault::new(FaultKind::Corrupt, format_args!("refcounts of {fresh:?} are too low now")));
            }
        }
        if undo {
            let copy = MemoryStorage::from_bytes(&all_bytes(state));
            self.log.restore(&copy).map_err(Fault::of(FaultKind::GoesOn))?;
            if copy.to_vec().unwrap() != self.damaged {
                return Err(Fault::new(FaultKind::Changed, "undone, it is another"));
            }
        }
        let leaks = read_header(state).and_then(|area| check(state, &area, &mut |_| ())).map_or(0, |found| found.leaks);
        let again = make_plan(state).map_err(Fault::of(FaultKind::GoesOn))?;
        apply(&again, state, false).map_err(Fault::of(FaultKind::GoesOn))?;
        let report = check(state, &read_header(state).unwrap(), &mut |_| ()).unwrap();
        if !report.is_clean() {
            let what = format_args!("repaired again, {:?} is left", report.findings);
            return Err(Fault::new(FaultKind::GoesOn, what));
        }
        self.same(state).map_err(|what| Fault::new(FaultKind::Changed, format_args!("repaired again, {what}")))?;
        Ok(leaks)
    }

    /// What could be read can be read.
    fn same<S: Storage>(&self, state: &S) -> Result<(), String> {
        let now = readable(state);
        if self.readable.len() > now.len() {
            return Err("it does not open any more".into());
        }
        let lost = self.readable.iter().zip(&now).position(|(before, now)| before.is_some() && before != now);
        lost.map_or(Ok(()), |lost| Err(format!("guest cluster {lost} could be read before")))
    }
}

/// An image that is wrong in some ways, with its plan; `None` where damage made it unrepairable, or changes what is read
/// on purpose: a table that lies on another is dropped, an L1 table that cannot be one is made anew.
#[must_use]
pub fn damaged(seed: u64) -> Option<(Vec<u8>, RepairPlan)> {
    let mut rng = Rng::new(seed);
    let widths = [16, 16, 64, 1, 8];
    let (version, bits) = if seed.is_multiple_of(7) { (2, 16) } else { (3, widths[(seed % 5) as usize]) };
    let mut bytes = sound(version, bits);
    for _ in 0..=rng.below(3) {
        damage(&mut bytes, &mut rng);
    }
    let plan = make_plan(&MemoryStorage::from_bytes(&bytes)).ok()?;
    // An L1 table that the header says to be the header itself, say, leads to tables that read as data.
    let dropped = |f: &&_| {
        matches!(
            f,
            (FindingKind::Overlap, RepairAction::DropEntry) | (FindingKind::HeaderField, RepairAction::MoveL1Table)
        )
    };
    let findings = plan.findings.iter().map(|finding| (finding.kind, finding.action)).collect::<Vec<_>>();
    (plan.after.is_clean() && !findings.iter().any(|f| dropped(&f))).then_some((bytes, plan))
}

/// Repairs one image that was damaged by chance, if it can be repaired, and judges states of it.
///
/// # Panics
/// When the plan cannot be carried out.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let Some((bytes, plan)) = damaged(seed) else { return Outcome::default() };
    let expected = Expected::of(&bytes, &plan);
    let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
    apply(&plan, &recording, false).unwrap();
    let (_, events) = recording.into_parts();
    let mut outcome = Outcome { sessions: 1, events: events.len() as u64, ..Outcome::default() };
    outcome.did("repair", 1);
    each_cut(&bytes, &events, budget, &mut Rng::new(seed ^ 0x5eed), |state, at, cut| {
        let place = format_args!("seed {seed}, after {at} events, {cut:?}, {:#?}", plan.findings);
        outcome.state(expected.judge(state, true).map_err(|fault| fault.at(place)));
    });
    outcome.continued = outcome.states;
    outcome
}

/// Repairs one image whose tables lie on each other, which takes several rounds at times, and judges states of it: what the
/// whole repair keeps, a repair that was cut and done again keeps too.
///
/// # Panics
/// When the plan cannot be carried out.
#[must_use]
pub fn overlapping(seed: u64, budget: usize) -> Outcome {
    // Found by the fuzzer; two bytes in front are its own.
    let fuzzed = include_bytes!("../../fuzz/crashers/repair/a-snapshot-table-in-an-l2-table-took-three-repairs");
    let (version, bits) = if seed.is_multiple_of(7) { (2, 16) } else { (3, [16, 64, 1, 8][(seed % 4) as usize]) };
    let mut bytes = if seed.is_multiple_of(3) { fuzzed[2..].to_vec() } else { sound(version, bits) };
    overlap(&mut bytes, seed);
    let mut outcome = Outcome::default();
    let Ok(plan) = make_plan(&MemoryStorage::from_bytes(&bytes)) else { return outcome };
    if plan.is_empty() || !plan.after.is_clean() {
        return outcome;
    }
    let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
    apply(&plan, &recording, false).unwrap();
    let (repaired, events) = recording.into_parts();
    let expected = Expected::of(&bytes, &plan).without_lost(&repaired);
    outcome.sessions = 1;
    outcome.events = events.len() as u64;
    outcome.did(if plan.rounds() > 1 { "repair in several rounds" } else { "repair in one round" }, 1);
    each_cut(&bytes, &events, budget, &mut Rng::new(seed ^ 0x5eed), |state, at, cut| {
        let place = format_args!("seed {seed}, after {at} events, {cut:?}, {:#?}", plan.findings);
        outcome.state(expected.judge(state, true).map_err(|fault| fault.at(place)));
    });
    outcome.continued = outcome.states;
    outcome
}
