//! Repair under failures: whatever part of it reaches storage, what could be read can still be read, no refcount is too
//! low that was not before, another repair finishes the work, and the undo log brings everything back. Power cuts are in
//! `power_cuts.rs`.

use qcowkit_core::format::HostOffset;
use qcowkit_core::image::{Image, OpenOptions};
use qcowkit_core::operations::check::FindingKind;
use qcowkit_core::operations::repair::{
    RepairAction, RepairLevel, RepairOptions, UndoLog, apply, find_orphans, plan, repair_dirty,
};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{
    FailingStorage, FailureRule, FailureScope, MemoryStorage, ReadStorage, RecordingStorage, Storage, StorageEvent,
};
use qcowkit_trial::cuts::{all_bytes, each_cut};
use qcowkit_trial::failures::each_fault;
use qcowkit_trial::repairs::{CLUSTER, COPIED, Expected, damaged, get, make_plan, overlap, put, readable, sound};
use qcowkit_trial::{Rng, from_env};

#[test]
fn every_call_of_a_repair_may_fail() {
    let mut cases = 0;
    for (seed, bytes, plan) in (100..140).filter_map(|seed| damaged(seed).map(|(bytes, plan)| (seed, bytes, plan))) {
        if plan.is_empty() {
            continue;
        }
        let expected = Expected::of(&bytes, &plan);
        // The plan has read what there is to read.
        cases += each_fault(&["read"], |fault| {
            let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
            storage.fail(fault.rule.clone());
            let done = apply(&plan, &storage, false);
            let failed = storage.failures() > 0;
            fault.answered(&done, failed)?;
            storage.heal();
            let left = storage.into_inner();
            expected.judge(&left, false).map_err(|error| format!("seed {seed}: {error} {:#?}", plan.findings))?;
            Ok(failed)
        });
    }
    assert!(cases > 500, "{cases}");
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

/// An image whose snapshot table lies in an L2 table: found by the fuzzer.
fn snapshot_table_in_an_l2_table() -> Vec<u8> {
    let input = include_bytes!("../../fuzz/crashers/repair/a-snapshot-table-in-an-l2-table-took-three-repairs");
    // Two bytes in front are the fuzzer's.
    input[2..].to_vec()
}

/// What is done to one of two structures in one place is done to the other: the plan goes on until nothing is left to do.
#[test]
fn one_repair_of_overlapping_tables_is_enough() {
    let (mut repaired, mut several) = (0, 0);
    let bases = [snapshot_table_in_an_l2_table(), sound(3, 16), sound(3, 8), sound(3, 64)];
    let (first, times) = (from_env("QCOWKIT_SEED", 0), from_env("QCOWKIT_CUTS", 1));
    for seed in first..first + 400 * times {
        let mut bytes = bases[(seed % 4) as usize].clone();
        if seed > 0 {
            overlap(&mut bytes, seed);
        }
        for level in [RepairLevel::Leaks, RepairLevel::All] {
            let storage = MemoryStorage::from_bytes(&bytes);
            let Ok(planned) = plan(&storage, level, &RepairOptions::default(), &mut |_| ()) else { continue };
            assert_eq!(storage.to_vec().unwrap(), bytes, "a plan changed the image");
            let log = UndoLog::of(&planned, &storage).unwrap();
            apply(&planned, &storage, seed % 2 == 1).unwrap();
            let now = check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap();
            assert_eq!(now, planned.after, "{seed} {level:?}");
            if let Ok(again) = plan(&storage, level, &RepairOptions::default(), &mut |_| ()) {
                assert!(again.is_empty(), "{seed} {level:?}: {:#?} after {:#?}", again.findings, planned.findings);
            }
            // What was punched cannot be had back.
            if seed % 2 == 0 {
                log.restore(&storage).unwrap();
                assert_eq!(storage.to_vec().unwrap(), bytes, "{seed} {level:?}");
            }
            repaired += 1;
            several += u32::from(planned.rounds() > 1);
        }
    }
    println!("{repaired} repaired, {several} of them in several rounds");
    assert!(repaired > 400 && several > 20, "{repaired}, {several} in several rounds");
}

/// A repair in several rounds, cut anywhere, is undone, or finished by another.
#[test]
fn cuts_between_the_rounds_of_a_repair() {
    let (mut images, mut states) = (0, 0);
    for seed in 0..200 {
        let mut bytes = snapshot_table_in_an_l2_table();
        overlap(&mut bytes, seed);
        let Ok(planned) = make_plan(&MemoryStorage::from_bytes(&bytes)) else { continue };
        if planned.rounds() < 2 || !planned.after.is_clean() {
            continue;
        }
        images += 1;
        let log = UndoLog::of(&planned, &MemoryStorage::from_bytes(&bytes)).unwrap();
        let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
        apply(&planned, &recording, false).unwrap();
        let (_, events) = recording.into_parts();
        each_cut(&bytes, &events, 100, &mut Rng::new(seed), |state, at, cut| {
            let copy = MemoryStorage::from_bytes(&all_bytes(state));
            log.restore(&copy).unwrap_or_else(|error| panic!("seed {seed}, after {at} events, {cut:?}: {error}"));
            assert_eq!(copy.to_vec().unwrap(), bytes, "seed {seed}, after {at} events, {cut:?}");
            apply(&make_plan(state).unwrap(), state, false).unwrap();
            let report = check(state, &read_header(state).unwrap(), &mut |_| ()).unwrap();
            assert!(report.is_clean(), "seed {seed}, after {at} events, {cut:?}: {:#?}", report.findings);
            states += 1;
        });
    }
    println!("{states} states of {images} repairs");
    assert!(images > 10 && states > 1000, "{states} states of {images} repairs");
}

/// Two changes of a stage can lie in one sector. The disk may keep the later without the earlier: found by
/// `cargo xtask crash repair --seed 111`.
#[test]
fn a_repair_is_undone_whichever_of_its_writes_reached_the_disk() {
    let (bytes, plan) = damaged(111).unwrap();
    let log = UndoLog::of(&plan, &MemoryStorage::from_bytes(&bytes)).unwrap();
    let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
    apply(&plan, &recording, false).unwrap();
    let (_, events) = recording.into_parts();
    let sector = |event: &StorageEvent| match event {
        StorageEvent::Write { offset, .. } => Some(offset / 512),
        _ => None,
    };
    let shared = events.windows(2).filter(|pair| sector(&pair[0]).is_some() && sector(&pair[0]) == sector(&pair[1]));
    assert!(shared.count() > 0, "no two writes to one sector: {events:?}");
    // Each write left out, alone and with all that follow.
    for left_out in 0..events.len() {
        for alone in [true, false] {
            let storage = MemoryStorage::from_bytes(&bytes);
            let kept = events.iter().enumerate().filter(|(n, _)| if alone { *n != left_out } else { *n < left_out });
            kept.for_each(|(_, event)| event.apply(&storage).unwrap());
            log.restore(&storage).unwrap();
            assert_eq!(storage.to_vec().unwrap(), bytes, "without event {left_out}");
        }
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

/// Refcounts are not raised in a block in whose cluster an L2 table is still read: its move is not there yet.
#[test]
fn a_refcount_block_that_was_a_table_too_is_written_anew() {
    let outcome = qcowkit_trial::repairs::trial(129, 200);
    assert!(outcome.states > 20 && outcome.faults.is_empty(), "{:?}", outcome.faults);
}

/// What is moved out of a shared cluster is there before the cluster is changed: a snapshot table that was an L2 table too
/// lost its snapshot, and then the L2 table was dropped, when an entry had reached the disk before the header that names
/// the new snapshot table. Found by `cargo xtask crash repair --seed 410`; the others came later.
#[test]
fn nothing_is_changed_before_what_shares_its_cluster_has_moved() {
    for seed in [410, 200_339, 200_487, 200_792, 202_400, 202_729] {
        let outcome = qcowkit_trial::repairs::trial(seed, 800);
        assert!(outcome.states > 100 && outcome.faults.is_empty(), "{seed}: {:?}", outcome.complaints());
    }
    let (bytes, plan) = damaged(410).unwrap();
    let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
    apply(&plan, &recording, false).unwrap();
    let (_, events) = recording.into_parts();
    let shared = get(&bytes, 64);
    let place_of = |event: &StorageEvent| match event {
        StorageEvent::Write { offset, .. } => Some(*offset),
        _ => None,
    };
    let header = events.iter().position(|event| place_of(event) == Some(60)).unwrap();
    let in_table = |event: &StorageEvent| place_of(event).is_some_and(|at| (shared..shared + CLUSTER).contains(&at));
    let table = events.iter().position(in_table).unwrap();
    assert!(header < table && events[header..table].contains(&StorageEvent::Barrier), "{events:#?}");
}

/// A header that names a wrong place for the snapshots does not cost the L2 table that lies there.
#[test]
fn an_l2_table_that_is_taken_for_the_snapshot_table_is_kept() {
    let mut bytes = sound(2, 16);
    let table = get(&bytes, get(&bytes, 40)) & !COPIED;
    // A snapshot without L1 table, name and extra data, as one may read it.
    (1..9).for_each(|entry| put(&mut bytes, table + 8 * entry, 0));
    put(&mut bytes, 64, table);
    let before = readable(&MemoryStorage::from_bytes(&bytes));
    assert!(!before.is_empty() && before.iter().all(Option::is_some));
    let storage = MemoryStorage::from_bytes(&bytes);
    let plan = make_plan(&storage).unwrap();
    assert!(plan.findings.iter().any(|f| (f.kind, f.action) == (FindingKind::Overlap, RepairAction::CopyCluster)));
    apply(&plan, &storage, false).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
    assert_eq!(readable(&storage), before);
}

/// Where there is no room to move an L2 table out of a cluster that is data too, it stays as it is.
#[test]
fn a_table_that_cannot_be_moved_from_data_is_not_changed() {
    let mut bytes = sound(3, 16);
    let (l1, block) = (get(&bytes, 40), get(&bytes, get(&bytes, 48)));
    let table = |index: u64| get(&bytes, l1 + 8 * index) & !COPIED;
    let (broken, data) = (table(2), table(4));
    let refcount = |bytes: &[u8], cluster: u64| get(bytes, block + 2 * cluster) >> 48;
    let free: Vec<u64> = (1..bytes.len() as u64 / CLUSTER).filter(|&cluster| refcount(&bytes, cluster) == 0).collect();
    // Guest clusters that nobody wrote take all that is free.
    (0u64..).zip(&free).for_each(|(n, cluster)| put(&mut bytes, data + 8 * n, cluster * CLUSTER));
    put(&mut bytes, data + 8 * 50, broken);
    let entry = broken + 8 * 20;
    let wrong = get(&bytes, entry) | 1 << 60;
    put(&mut bytes, entry, wrong);
    let device = MemoryStorage::block_device(bytes.len() as u64);
    device.write_at(0, &bytes).unwrap();
    let before = readable(&device);
    let plan = make_plan(&device).unwrap();
    assert!(plan.after.corruptions > 0 && plan.findings.iter().any(|f| f.action == RepairAction::None));
    apply(&plan, &device, false).unwrap();
    let now = readable(&device);
    let lost = before.iter().zip(&now).position(|(before, now)| before.is_some() && before != now);
    assert!(lost.is_none() && before.iter().filter(|read| read.is_none()).count() == 1, "{lost:?}");
    // With room it moves, and all is well.
    let storage = MemoryStorage::from_bytes(&bytes);
    apply(&make_plan(&storage).unwrap(), &storage, false).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
    assert!(readable(&storage).iter().zip(&before).all(|(now, before)| before.is_none() || now == before));
}
