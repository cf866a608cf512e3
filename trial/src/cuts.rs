//! Power cuts: the states that a recorded session may leave on storage, and what must hold in each.

use std::collections::HashMap;

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::SnapshotSelector;
use qcowkit_core::operations::check;
use qcowkit_core::operations::check::{FindingKind, Severity};
use qcowkit_core::storage::{
    MemoryStorage, OverlayStorage, ReadStorage, Storage, StorageError, StorageEvent, epochs, replay,
};

use super::Rng;
use super::outcome::{Fault, FaultKind, Outcome};
use super::session::{SECTOR, Scenario, Session, open_over};
use super::snapshot::view_of_snapshot;
use super::walk::{STALE_COPIED, walk};

/// A state that a cut has left.
pub type Cut<'a> = OverlayStorage<&'a MemoryStorage>;

/// The contents that are right at some point: those of a flush, and what was written since.
struct Accepted<'a> {
    content: &'a [u8],
    versions: HashMap<usize, Vec<(&'a [u8], bool)>>,
    sizes: Vec<usize>,
}

/// Judges about `budget` states of a session, at least some of each epoch.
#[must_use]
pub fn check_cuts(scenario: &Scenario, session: &Session, seed: u64, budget: usize) -> Outcome {
    let mut outcome = Outcome { sessions: 1, events: session.events.len() as u64, ..Outcome::default() };
    outcome.operations.clone_from(&session.operations);
    let mut rng = Rng::new(seed ^ 0xc07);
    let mut continued = 0;
    each_cut(&session.base, &session.events, budget, &mut Rng::new(seed ^ 0xc08), |storage, at, plan| {
        let judged = check_state(scenario, session, storage, at, &mut rng, &mut continued);
        outcome.state(judged.map_err(|fault| fault.at(format_args!("after {at} events, {plan:?}"))));
    });
    outcome.continued = continued;
    outcome
}

/// Makes about `budget` states that a power cut may leave of a file with the bytes `base`, at least some of each epoch,
/// and gives each with the number of events that had begun.
///
/// # Panics
/// When an event cannot be repeated.
pub fn each_cut(
    base: &[u8],
    events: &[StorageEvent],
    budget: usize,
    rng: &mut Rng,
    mut judge: impl FnMut(&Cut<'_>, usize, &CutPlan),
) {
    let durable = MemoryStorage::from_bytes(base);
    let all = epochs(events);
    let per_epoch = (budget / all.len().max(1)).max(4);
    for epoch in all {
        let events = &events[epoch.clone()];
        // Once the barrier has returned, nothing before it can be missing.
        let unsure = events.strip_suffix(&[StorageEvent::Barrier]).unwrap_or(events);
        for plan in plan_cuts(unsure, per_epoch, rng) {
            let storage = OverlayStorage::new(&durable).expect("memory has a length");
            plan.apply(unsure, &storage).expect("what could be done once can be done again");
            judge(&storage, epoch.start + plan.end, &plan);
        }
        replay(events, &durable).expect("what could be done once can be done again");
    }
}

/// Some of the events before `end`, the torn ones in part.
#[derive(Debug)]
pub struct CutPlan {
    end: usize,
    /// Bit by bit, in turns: which events happened. Empty: all.
    kept: Vec<bool>,
    /// Seed of the sectors that survive; none: events are whole.
    torn: Option<u64>,
    /// Only the last event is torn.
    last_only: bool,
}

impl CutPlan {
    fn apply(&self, events: &[StorageEvent], storage: &Cut<'_>) -> Result<(), StorageError> {
        let mut rng = Rng::new(self.torn.unwrap_or(1));
        for (n, event) in events[..self.end].iter().enumerate() {
            let kept = self.kept.get(n).copied().unwrap_or(true);
            let torn = self.torn.is_some() && (!self.last_only || n + 1 == self.end);
            if !torn {
                if kept {
                    event.apply(storage)?;
                }
                continue;
            }
            // Torn: mostly there, or mostly not.
            for piece in event.torn(SECTOR as u32) {
                if kept != rng.one_in(4) {
                    piece.apply(storage)?;
                }
            }
        }
        Ok(())
    }
}

fn plan_cuts(events: &[StorageEvent], budget: usize, rng: &mut Rng) -> Vec<CutPlan> {
    let mut cuts = Vec::new();
    let whole = |end, kept| CutPlan { end, kept, torn: None, last_only: false };
    // Every prefix, or as many as the budget allows; always the ends.
    let step = events.len().div_ceil((budget / 3).max(1)).max(1);
    cuts.extend((0..=events.len()).step_by(step).map(|end| whole(end, Vec::new())));
    cuts.push(whole(events.len(), Vec::new()));
    if events.len() <= 6 && (1 << events.len()) <= budget {
        for subset in 0..1u32 << events.len() {
            cuts.push(whole(events.len(), (0..events.len()).map(|n| subset & (1 << n) != 0).collect()));
        }
    }
    while cuts.len() < budget && !events.is_empty() {
        let back = 1 + rng.below(20);
        let end = events.len() - rng.below((events.len() as u64).min(back)) as usize;
        let odds = [2, 4, 16][rng.below(3) as usize];
        let mostly = rng.one_in(2);
        let kept = (0..end).map(|_| rng.one_in(odds) != mostly).collect();
        let torn = rng.one_in(2).then(|| rng.next());
        let last_only = rng.one_in(3);
        let kept = if last_only { Vec::new() } else { kept };
        cuts.push(CutPlan { end, kept, torn, last_only });
    }
    cuts
}

fn check_state(
    scenario: &Scenario,
    session: &Session,
    storage: &Cut<'_>,
    at: usize,
    rng: &mut Rng,
    continued: &mut u64,
) -> Result<u64, Fault> {
    let bytes = all_bytes(storage);
    let walked = walk(&bytes).map_err(|what| {
        let stale = what.starts_with(STALE_COPIED) && what.ends_with(" and 1 references");
        Fault::new(if stale { FaultKind::Copied } else { FaultKind::Corrupt }, what)
    })?;
    let header = HeaderArea::parse(&bytes).map_err(Fault::of(FaultKind::Opens))?;
    let mut report = check(storage, &header, &mut |_| ()).map_err(Fault::of(FaultKind::Opens))?;
    if session.within_snapshot_operation(at) {
        // Here a flag may be missing (law 4), which check calls a corruption. That none is wrong, the walk has seen.
        let (flags, others): (Vec<_>, Vec<_>) = report
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Corruption)
            .partition(|finding| finding.kind == FindingKind::CopiedFlag);
        // Of more findings than a report keeps, the rest are taken for what those are that it kept.
        let omitted = if others.is_empty() && report.findings_omitted > 0 { report.corruptions } else { 0 };
        let missing = flags.iter().map(|finding| finding.count).sum::<u64>().max(omitted);
        report.corruptions -= missing;
    }
    // The check and the walk share no code: they must agree. As in QEMU, refcounts behind the end of the file are no
    // leaks, since they hold no space.
    let leaks = walked.leaks((bytes.len() as u64).div_ceil(scenario.create.cluster_size));
    if report.corruptions + report.check_errors > 0 || report.leaks != leaks {
        return Err(Fault::new(FaultKind::Corrupt, format_args!("{leaks} leaks were walked, check says: {report:?}")));
    }
    let accepted = accepted(session, at);
    let dynamic: Box<dyn Storage + '_> = Box::new(storage);
    let mut image = open_over(dynamic, &scenario.open.clone().read_only(), backing(session))
        .map_err(Fault::of(FaultKind::Opens))?;
    let mut got = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut got).map_err(Fault::of(FaultKind::Unreadable))?;
    if let Err(fault) = accepted.judge(&got) {
        let applied = session.applied.iter().find(|applied| (applied.events.0..=applied.events.1).contains(&at));
        if applied.is_none_or(|applied| applied.content != got) {
            return Err(fault);
        }
    }
    drop(image);
    check_snapshots(scenario, session, storage, at).map_err(Fault::of(FaultKind::Changed))?;
    if let (Some(expected), true) = (&session.snapshot, rng.one_in(2)) {
        check_snapshot(scenario, session, &bytes, expected).map_err(Fault::of(FaultKind::Changed))?;
    }
    if rng.one_in(3) {
        goes_on(scenario, session, storage, got, rng).map_err(Fault::of(FaultKind::GoesOn))?;
        *continued += 1;
    }
    Ok(leaks)
}

fn backing<'a>(session: &Session) -> Option<(Box<dyn Storage + 'a>, u64)> {
    let bytes = session.backing.as_ref()?;
    Some((Box::new(MemoryStorage::from_bytes(bytes)), bytes.len() as u64))
}

/// Snapshots are there or not, as they should be, and show what they showed.
fn check_snapshots(scenario: &Scenario, session: &Session, storage: &Cut<'_>, at: usize) -> Result<(), String> {
    for (n, taken) in session.taken.iter().enumerate() {
        let begun = at >= taken.created.0 && taken.deleted.is_none_or(|(_, done)| at < done);
        let certain = at >= taken.created.1 && taken.deleted.is_none_or(|(begun, _)| at <= begun);
        let options = scenario.open.clone().of_snapshot(SnapshotSelector::Name(n.to_string().into()));
        let dynamic: Box<dyn Storage + '_> = Box::new(storage);
        match open_over(dynamic, &options, backing(session)) {
            Ok(mut view) if begun => {
                let mut got = vec![0; view.virtual_size() as usize];
                view.read_at(0, &mut got).map_err(|e| format!("snapshot {n}: {e}"))?;
                if got != taken.content {
                    return Err(format!("snapshot {n} changed"));
                }
            }
            Err(_) if !certain => {}
            Ok(_) => return Err(format!("snapshot {n} is there, but should not be")),
            Err(error) => return Err(format!("snapshot {n} should be there: {error}")),
        }
    }
    Ok(())
}

fn check_snapshot(scenario: &Scenario, session: &Session, bytes: &[u8], expected: &[u8]) -> Result<(), String> {
    let view = view_of_snapshot(bytes).ok_or("the snapshot is gone")?;
    let backing = session.backing.as_ref().map(|b| (MemoryStorage::from_bytes(b), b.len() as u64));
    let mut image = open_over(MemoryStorage::from_bytes(&view), &scenario.open.clone().read_only(), backing)
        .map_err(|e| format!("the snapshot: {e}"))?;
    let mut got = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut got).map_err(|e| format!("the snapshot: {e}"))?;
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        None if got.len() == expected.len() => Ok(()),
        at => Err(format!("the snapshot changed at {at:?}")),
    }
}

/// The image is written again, closed, and must be right.
fn goes_on(
    scenario: &Scenario,
    session: &Session,
    storage: &Cut<'_>,
    mut model: Vec<u8>,
    rng: &mut Rng,
) -> Result<(), String> {
    let text = |e: qcowkit_core::Error| e.to_string();
    let dynamic: Box<dyn Storage + '_> = Box::new(storage);
    let mut image = open_over(dynamic, &scenario.open, backing(session)).map_err(text)?;
    let cluster = scenario.create.cluster_size;
    for round in 0..6u8 {
        let offset = rng.below(model.len() as u64);
        let length = (rng.below(cluster * 4) + 1).min(model.len() as u64 - offset);
        let range = offset as usize..(offset + length) as usize;
        if round % 2 == 0 {
            model[range].fill(200 + round);
            image.write_at(offset, &vec![200 + round; length as usize]).map_err(text)?;
        } else {
            model[range].fill(0);
            image.write_zeroes(offset, length, true).map_err(text)?;
        }
    }
    image.close().map_err(text)?;
    let bytes = all_bytes(storage);
    walk(&bytes)?;
    HeaderArea::parse(&bytes).map_err(text)?;
    let dynamic: Box<dyn Storage + '_> = Box::new(storage);
    let mut image = open_over(dynamic, &scenario.open.clone().read_only(), backing(session)).map_err(text)?;
    let mut got = vec![0; model.len()];
    image.read_at(0, &mut got).map_err(text)?;
    match got.iter().zip(&model).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at:#x} is {:#x} instead of {:#x}", got[at], model[at])),
    }
}

impl Session {
    fn within_snapshot_operation(&self, at: usize) -> bool {
        let taken = self.taken.iter().flat_map(|taken| [Some(taken.created), taken.deleted]).flatten();
        let mut all = taken.chain(self.applied.iter().map(|applied| applied.events));
        all.any(|(begun, done)| (begun..=done).contains(&at))
    }
}

/// All bytes of a file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn all_bytes(storage: &impl ReadStorage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_at(0, &mut bytes).unwrap();
    bytes
}

fn accepted(session: &Session, at: usize) -> Accepted<'_> {
    let flush = session.flushed.iter().rposition(|flushed| flushed.events <= at).unwrap_or(0);
    let content = &session.flushed[flush].content;
    let mut accepted = Accepted { content, versions: HashMap::new(), sizes: vec![content.len()] };
    for change in &session.changes {
        if change.flushes > flush && change.events <= at {
            accepted.versions.entry(change.sector).or_default().push((&change.value, change.partial));
            if !accepted.sizes.contains(&change.size) {
                accepted.sizes.push(change.size);
            }
        }
    }
    accepted
}

impl Accepted<'_> {
    fn judge(&self, got: &[u8]) -> Result<(), Fault> {
        if !self.sizes.contains(&got.len()) {
            let what = format_args!("the virtual size is {}, not one of {:?}", got.len(), self.sizes);
            return Err(Fault::new(FaultKind::Lost, what));
        }
        for (sector, bytes) in got.chunks(SECTOR).enumerate() {
            let start = sector * SECTOR;
            let mut flushed = self.content.get(start..(start + SECTOR).min(self.content.len())).unwrap_or(&[]).to_vec();
            flushed.resize(SECTOR, 0);
            if bytes == flushed || self.accepts(sector, bytes, &flushed) {
                continue;
            }
            let at = bytes.iter().zip(&flushed).position(|(a, b)| a != b).unwrap_or(0);
            let versions = self.versions.get(&sector).map_or(0, Vec::len);
            let kind = if versions == 0 { FaultKind::Lost } else { FaultKind::Mixed };
            let what = format_args!(
                "guest sector {sector:#x}: byte {at} is {:#x}, flushed {:#x}, and none of {versions} later versions",
                bytes[at], flushed[at]
            );
            return Err(Fault::new(kind, what));
        }
        Ok(())
    }

    fn accepts(&self, sector: usize, bytes: &[u8], flushed: &[u8]) -> bool {
        let Some(versions) = self.versions.get(&sector) else { return false };
        if versions.iter().any(|(version, _)| bytes == &version[..bytes.len()]) {
            return true;
        }
        // Partial writes of one sector reach storage one by one.
        versions.iter().any(|(_, partial)| *partial)
            && bytes
                .iter()
                .enumerate()
                .all(|(n, byte)| flushed[n] == *byte || versions.iter().any(|(version, _)| version[n] == *byte))
    }
}
