//! Repair under cuts and failures: whatever part of it reaches storage, what could be read can still be read, no refcount
//! is too low that was not before, another repair finishes the work, and the undo log brings everything back.

mod common;

use std::collections::BTreeSet;

use common::{Rng, from_env};
use qcowkit_core::format::HostOffset;
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::operations::check::FindingKind;
use qcowkit_core::operations::repair::{
    RepairAction, RepairLevel, RepairOptions, RepairPlan, UndoLog, apply, find_orphans, plan, repair_dirty,
};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, OverlayStorage, ReadStorage, RecordingStorage, Storage,
    StorageEvent, epochs, replay,
};

const CLUSTER: u64 = 512;
const SIZE: u64 = 200 << 10;
const COPIED: u64 = 1 << 63;

/// An image with data, zeros, packed clusters and a snapshot that shares some of them.
fn sound(version: u32, refcount_bits: u32) -> Vec<u8> {
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

fn get(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(word.try_into().unwrap()))
}

fn put(bytes: &mut [u8], at: u64, value: u64) {
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

/// Guest clusters that can be read.
fn readable(storage: &impl Storage) -> Vec<Option<Vec<u8>>> {
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

fn make_plan(storage: &impl ReadStorage) -> Result<RepairPlan, String> {
    plan(storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).map_err(|error| error.to_string())
}

/// What must hold of every state between before and after.
struct Expected {
    damaged: Vec<u8>,
    readable: Vec<Option<Vec<u8>>>,
    too_low: Option<BTreeSet<u64>>,
    log: UndoLog,
}

impl Expected {
    fn judge<S: Storage>(&self, state: &S, undo: bool) -> Result<(), String> {
        let now = readable(state);
        let lost = self.readable.iter().zip(&now).position(|(before, now)| before.is_some() && before != now);
        if let Some(lost) = lost {
            return Err(format!("guest cluster {lost} could be read before"));
        }
        if self.readable.len() > now.len() {
            return Err("it does not open any more".into());
        }
        if let (Some(before), Some(now)) = (&self.too_low, too_low(state)) {
            // What broken entries name behind the end of the file was nobody's before, too.
            let end = self.damaged.len() as u64 / CLUSTER;
            let fresh: Vec<_> = now.difference(before).filter(|&&cluster| cluster < end).collect();
            if !fresh.is_empty() {
                return Err(format!("refcounts of {fresh:?} are too low now"));
            }
        }
        if undo {
            let copy = MemoryStorage::new();
            let mut bytes = vec![0; state.len().unwrap() as usize];
            state.read_at(0, &mut bytes).unwrap();
            copy.write_at(0, &bytes).unwrap();
            self.log.restore(&copy).map_err(|error| format!("undo: {error}"))?;
            if copy.to_vec().unwrap() != self.damaged {
                return Err("undone, it is another".into());
            }
        }
        let again = make_plan(state).map_err(|error| format!("it cannot be repaired any more: {error}"))?;
        apply(&again, state, false).map_err(|error| error.to_string())?;
        let report = check(state, &read_header(state).unwrap(), &mut |_| ()).unwrap();
        if !report.is_clean() {
            return Err(format!("repaired again, {:?} is left", report.findings));
        }
        let after = readable(state);
        let lost = self.readable.iter().zip(&after).position(|(before, now)| before.is_some() && before != now);
        lost.map_or(Ok(()), |lost| Err(format!("repaired again, guest cluster {lost} is lost")))
    }
}

/// An image that is wrong in some ways, with its plan; `None` where damage made it unrepairable, or changes what is read
/// on purpose: a table that lies on another is dropped.
fn damaged(seed: u64) -> Option<(Vec<u8>, RepairPlan)> {
    let mut rng = Rng::new(seed);
    let widths = [16, 16, 64, 1, 8];
    let (version, bits) = if seed.is_multiple_of(7) { (2, 16) } else { (3, widths[(seed % 5) as usize]) };
    let mut bytes = sound(version, bits);
    for _ in 0..=rng.below(3) {
        damage(&mut bytes, &mut rng);
    }
    let plan = make_plan(&MemoryStorage::from_bytes(&bytes)).ok()?;
    let dropped = |f: &&_| matches!(f, (FindingKind::Overlap, RepairAction::DropEntry));
    let findings = plan.findings.iter().map(|finding| (finding.kind, finding.action)).collect::<Vec<_>>();
    (plan.after.is_clean() && !findings.iter().any(|f| dropped(&f))).then_some((bytes, plan))
}

#[test]
fn cuts_leave_an_image_that_is_no_worse() {
    let first = from_env("QCOWKIT_SEED", 1);
    let (mut cases, mut states) = (0, 0);
    for seed in first..first + 60 * from_env("QCOWKIT_CUTS", 1) {
        let Some((bytes, plan)) = damaged(seed) else { continue };
        let base = MemoryStorage::from_bytes(&bytes);
        let log = UndoLog::of(&plan, &base).unwrap();
        let expected = Expected { damaged: bytes.clone(), readable: readable(&base), too_low: too_low(&base), log };
        let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
        apply(&plan, &recording, false).unwrap();
        let (_, events) = recording.into_parts();
        let mut rng = Rng::new(seed ^ 0x5eed);
        for epoch in epochs(&events) {
            let all = &events[epoch];
            let unsure = all.strip_suffix(&[StorageEvent::Barrier]).unwrap_or(all);
            for round in 0..6u32 {
                let cut = OverlayStorage::new(&base).unwrap();
                for event in unsure {
                    for piece in event.torn(512) {
                        // None, all, and parts.
                        if round == 1 || (round > 1 && rng.one_in(2)) {
                            piece.apply(&cut).unwrap();
                        }
                    }
                }
                expected.judge(&cut, true).unwrap_or_else(|error| {
                    panic!("seed {seed}, round {round}: {error}\n{:#?}", plan.findings);
                });
                states += 1;
            }
            replay(all, &base).unwrap();
        }
        cases += 1;
    }
    println!("{cases} images, {states} states");
    assert!(cases >= 25, "{cases}");
}

#[test]
fn every_call_of_a_repair_may_fail() {
    let mut cases = 0;
    for seed in 100..112 {
        let Some((bytes, plan)) = damaged(seed) else { continue };
        let base = MemoryStorage::from_bytes(&bytes);
        let log = UndoLog::of(&plan, &base).unwrap();
        let expected = Expected { damaged: bytes.clone(), readable: readable(&base), too_low: too_low(&base), log };
        for nth in 1.. {
            let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
            storage.fail(FailureRule::nth(FailureScope::WriteSide, nth));
            let done = apply(&plan, &storage, false);
            let failed = storage.failures() > 0;
            assert_eq!(done.is_err(), failed, "seed {seed}, call {nth}");
            storage.heal();
            let inner = storage.into_inner();
            expected
                .judge(&inner, false)
                .unwrap_or_else(|error| panic!("seed {seed}, call {nth}: {error} {:#?}", plan.findings));
            cases += 1;
            if !failed {
                break;
            }
        }
    }
    assert!(cases > 20, "{cases}");
}

#[test]
fn a_plan_that_cannot_be_read_changes_nothing() {
    let Some((bytes, _)) = (1..).find_map(damaged) else { return };
    for nth in 1.. {
        let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
        storage.fail(FailureRule::nth(FailureScope::Any, nth));
        let planned = make_plan(&storage);
        let failed = storage.failures() > 0;
        assert_eq!(storage.inner().to_vec().unwrap(), bytes);
        if !failed {
            assert!(planned.is_ok());
            return;
        }
    }
}

#[test]
fn refcounts_are_rebuilt_within_the_size_of_a_device() {
    let bytes = sound(3, 16);
    let table = get(&bytes, 48);
    // Room for a table and a block, and then for nothing.
    for (free, repairable) in [(2, true), (0, false)] {
        let length = bytes.len() as u64 + free * CLUSTER;
        let device = MemoryStorage::block_device(length);
        device.write_at(0, &bytes).unwrap();
        // The table names a block that is no block.
        device.write_at(table, &(table | 512 >> 1).to_be_bytes()).unwrap();
        let before = readable(&device);
        match make_plan(&device) {
            Ok(plan) => {
                assert!(repairable);
                apply(&plan, &device, false).unwrap();
                assert_eq!(device.len().unwrap(), length);
                assert!(check(&device, &read_header(&device).unwrap(), &mut |_| ()).unwrap().is_clean());
                assert_eq!(readable(&device), before);
            }
            Err(error) => assert!(!repairable && error.contains("no room"), "{error}"),
        }
    }
}

#[test]
fn a_dirty_image_is_repaired_before_it_is_written() {
    let mut bytes = sound(3, 16);
    let block = get(&bytes, get(&bytes, 48));
    // As after a crash with lazy refcounts: clusters in use have none.
    bytes[block as usize + 20..block as usize + 60].fill(0);
    put(&mut bytes, 72, 1);
    let storage = MemoryStorage::from_bytes(&bytes);
    let before = readable(&storage);
    assert!(Image::open(&storage, OpenOptions::default()).unwrap().write_at(0, &[1]).is_err());
    let plan = repair_dirty(&storage).unwrap().unwrap();
    assert!(plan.corruptions_fixed() > 0 && plan.after.is_clean());
    assert!(repair_dirty(&storage).unwrap().is_none());
    assert_eq!(readable(&storage), before);
    let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
    image.write_at(0, &[9; 100_000]).unwrap();
    image.close().unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
    // One that is marked corrupt as well is not touched unasked.
    put(&mut bytes, 72, 3);
    let storage = MemoryStorage::from_bytes(&bytes);
    assert!(repair_dirty(&storage).unwrap().is_none());
    assert_eq!(storage.to_vec().unwrap(), bytes);
}

#[test]
fn a_lost_table_is_found_and_put_back() {
    let mut bytes = sound(3, 16);
    let l1 = get(&bytes, 40);
    let whole = readable(&MemoryStorage::from_bytes(&bytes));
    // The tables of 512 bytes map 32 KiB each: that of 150,000 is number 4.
    let table = get(&bytes, l1 + 32) & !COPIED;
    put(&mut bytes, l1 + 32, 0);
    let storage = MemoryStorage::from_bytes(&bytes);
    let orphans = find_orphans(&storage).unwrap();
    let orphan = orphans.iter().find(|orphan| orphan.host_offset == table).unwrap();
    assert!(orphan.score > 50 && orphan.possible_guest_offsets.contains(&(4 << 15)), "{orphan:?}");
    assert_eq!(orphan.entries, orphan.leaked_clusters);
    let relink = RepairOptions { relink: vec![(HostOffset::new(table).get(), 4 << 15)] };
    let planned = plan(&storage, RepairLevel::All, &relink, &mut |_| ()).unwrap();
    assert!(planned.findings.iter().any(|finding| finding.action == RepairAction::RelinkTable));
    apply(&planned, &storage, false).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
    assert_eq!(readable(&storage), whole);
    // Where there is a table already, and where there is none to put back.
    for wrong in [(table, 0), (table, 5), (table + 1, 5 << 15), (0, 5 << 15)] {
        let relink = RepairOptions { relink: vec![wrong] };
        assert!(plan(&storage, RepairLevel::All, &relink, &mut |_| ()).is_err(), "{wrong:?}");
    }
}

#[test]
fn an_undo_file_is_recognised_and_so_is_its_image() {
    let (bytes, plan) = (1..).find_map(damaged).unwrap();
    let storage = MemoryStorage::from_bytes(&bytes);
    let log = UndoLog::of(&plan, &storage).unwrap();
    let written = log.to_bytes();
    assert_eq!(UndoLog::from_bytes(&written).unwrap(), log);
    for cut in [0, 8, 15, 40, written.len() / 2, written.len() - 1] {
        assert!(UndoLog::from_bytes(&written[..cut]).is_err());
    }
    for at in 0..written.len().min(200) {
        let mut broken = written.clone();
        broken[at] ^= 1;
        assert!(UndoLog::from_bytes(&broken).is_err(), "{at}");
    }
    apply(&plan, &storage, false).unwrap();
    let repaired = storage.to_vec().unwrap();
    let changed = bytes.iter().zip(&repaired).position(|(old, new)| old != new).unwrap();
    storage.write_at(changed as u64, &[!repaired[changed] ^ bytes[changed] ^ 0x5a]).unwrap();
    assert!(log.restore(&storage).is_err(), "another image");
    storage.write_at(changed as u64, &[repaired[changed]]).unwrap();
    log.restore(&storage).unwrap();
    assert_eq!(storage.to_vec().unwrap(), bytes);
}
