//! Storage that fails while snapshots are taken, applied and deleted: the error reaches the caller, a snapshot that is
//! there shows what it should, the image goes on or says that it is poisoned, and what is left on storage is sound.

use std::collections::BTreeMap;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions, SnapshotSelector};
use qcowkit_core::storage::{FailingStorage, FailureRule, MemoryStorage};
use qcowkit_trial::failures::{SCOPES, each_failure, each_fault, small_metadata};
use qcowkit_trial::walk::walk;

const SIZE: usize = 60 << 10;

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(usize, usize, u8),
    Discard(usize, usize),
    Take(u8),
    Apply(u8),
    Delete(u8),
    Flush,
}

/// Shared and own clusters, tables copied on write, a table of snapshots that grows, shrinks and goes.
const OPS: [Op; 17] = [
    Op::Write(100, 9000, 1),
    Op::Write(40_000, 2000, 2),
    Op::Take(0),
    Op::Write(512, 1024, 3),
    Op::Discard(4096, 2048),
    Op::Take(1),
    Op::Write(50_000, 3000, 4),
    Op::Flush,
    Op::Apply(0),
    Op::Write(2048, 512, 5),
    Op::Delete(0),
    Op::Write(0, 700, 6),
    Op::Take(2),
    Op::Apply(1),
    Op::Delete(1),
    Op::Write(30_000, 5000, 7),
    Op::Delete(2),
];

type Disk<'a> = FailingStorage<&'a MemoryStorage>;

/// A disk's contents, and other bytes that may be there instead, since an operation failed half-way.
#[derive(Debug, Clone)]
struct Contents {
    bytes: Vec<u8>,
    others: Vec<(usize, Vec<u8>)>,
}

impl Contents {
    fn accepts(&self, got: &[u8]) -> Result<(), String> {
        let wrong = got.iter().enumerate().find(|&(at, byte)| {
            self.bytes.get(at) != Some(byte)
                && !self
                    .others
                    .iter()
                    .any(|(from, bytes)| at.checked_sub(*from).is_some_and(|n| bytes.get(n) == Some(byte)))
        });
        match wrong {
            None if got.len() == SIZE => Ok(()),
            None => Err(format!("{} bytes", got.len())),
            Some((at, byte)) => Err(format!("byte {at:#x} is {byte}")),
        }
    }
}

struct Model {
    disk: Contents,
    /// By name: what it shows, whether it is certainly there.
    snapshots: BTreeMap<u8, (Contents, bool)>,
}

impl Model {
    fn note(&mut self, from: usize, bytes: Vec<u8>, failed: bool) {
        if failed {
            self.disk.others.push((from, bytes));
        } else {
            // What is not durable may be lost when the image fails for good.
            let before = self.disk.bytes[from..from + bytes.len()].to_vec();
            self.disk.others.push((from, before));
            self.disk.bytes[from..from + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn named(name: u8) -> SnapshotSelector {
    SnapshotSelector::Name(name.to_string().into())
}

fn apply(image: &mut Image<Disk<'_>>, model: &mut Model, op: Op) -> qcowkit_core::Result<()> {
    match op {
        Op::Write(at, length, byte) => {
            let done = image.write_at(at as u64, &vec![byte; length]);
            model.note(at, vec![byte; length], done.is_err());
            done
        }
        Op::Discard(at, length) => {
            let done = image.discard(at as u64, length as u64);
            model.note(at, vec![0; length], done.is_err());
            done
        }
        Op::Take(name) => {
            let new = NewSnapshot { name: name.to_string().into(), ..NewSnapshot::default() };
            let done = image.create_snapshot(&new);
            model.snapshots.insert(name, (model.disk.clone(), done.is_ok()));
            done.map(drop)
        }
        Op::Apply(name) => {
            let done = image.apply_snapshot(&named(name));
            if let Some((content, _)) = model.snapshots.get(&name).cloned() {
                model.disk.others.extend(content.others);
                model.note(0, content.bytes, done.is_err());
            }
            done
        }
        Op::Delete(name) => {
            let done = image.delete_snapshot(&named(name));
            match (&done, model.snapshots.get_mut(&name)) {
                (Ok(()), _) => drop(model.snapshots.remove(&name)),
                (Err(_), Some((_, certain))) => *certain = false,
                (Err(_), None) => {}
            }
            done
        }
        Op::Flush => image.flush(),
    }
}

fn options() -> OpenOptions {
    OpenOptions::default().with_metadata(small_metadata())
}

/// Runs the operations while one rule holds; gives whether it struck.
fn run(rule: FailureRule) -> Result<bool, String> {
    let create = CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let base = Image::create(MemoryStorage::new(), SIZE as u64, &create).unwrap().close().unwrap();
    let disk = Contents { bytes: vec![0; SIZE], others: Vec::new() };
    let mut model = Model { disk, snapshots: BTreeMap::new() };
    let mut image = Image::open(FailingStorage::new(&base), options()).unwrap();
    image.storage().fail(rule);
    let (mut poisoned, mut told) = (false, 0);
    for op in OPS {
        let before = image.storage().failures();
        let done = apply(&mut image, &mut model, op);
        let struck = image.storage().failures() > before;
        match done {
            Err(error) => {
                told += 1;
                let says_so = matches!(error.kind(), ErrorKind::Poisoned(_));
                let missing = matches!(error.kind(), ErrorKind::InvalidArgument(_)) && told > 1;
                if !struck && !says_so && !missing {
                    return Err(format!("{op:?} failed by itself: {error}"));
                }
                poisoned |= says_so;
            }
            Ok(()) if poisoned => return Err(format!("{op:?} on a poisoned image")),
            // Holes are advice.
            Ok(()) => told += usize::from(struck),
        }
    }
    let failures = image.storage().failures();
    if failures > 0 && told == 0 {
        return Err("the failure was kept from the caller".into());
    }
    image.storage().heal();
    if !poisoned {
        image.write_at(1000, &[9; 100]).map_err(|e| format!("not usable: {e}"))?;
        model.note(1000, vec![9; 100], false);
        let new = NewSnapshot { name: "9".into(), ..NewSnapshot::default() };
        image.create_snapshot(&new).map_err(|e| format!("no more snapshots: {e}"))?;
        model.snapshots.insert(9, (model.disk.clone(), true));
        image.flush().map_err(|e| format!("not usable: {e}"))?;
    }
    drop(image);
    judge(&base, &model)?;
    Ok(failures > 0)
}

fn judge(base: &MemoryStorage, model: &Model) -> Result<(), String> {
    walk(&base.to_vec().unwrap())?;
    let mut got = vec![0; SIZE];
    let mut image = Image::open(base, options().read_only()).map_err(|e| format!("does not open again: {e}"))?;
    image.read_at(0, &mut got).map_err(|e| e.to_string())?;
    model.disk.accepts(&got)?;
    let names: Vec<u8> =
        image.snapshots().unwrap().iter().map(|s| s.name.to_string_lossy().parse::<u8>().unwrap()).collect();
    for (name, (content, certain)) in &model.snapshots {
        if !names.contains(name) {
            if *certain {
                return Err(format!("snapshot {name} is gone"));
            }
            continue;
        }
        let mut view = Image::open(base, options().of_snapshot(named(*name))).map_err(|e| e.to_string())?;
        view.read_at(0, &mut got).map_err(|e| e.to_string())?;
        content.accepts(&got).map_err(|e| format!("snapshot {name}: {e}"))?;
    }
    match names.iter().find(|name| !model.snapshots.contains_key(name)) {
        Some(name) => Err(format!("snapshot {name} is still there")),
        None => Ok(()),
    }
}

#[test]
fn every_call_may_fail() {
    let cases = each_failure(&SCOPES, run) + each_fault(&[], |fault| run(fault.rule.clone()));
    println!("{cases} failures");
    assert!(cases > 500, "{cases}");
}

#[test]
fn a_full_disk_loses_nothing() {
    for space in (0..120 << 10).step_by(1024) {
        let create = CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
        let base = Image::create(MemoryStorage::new(), SIZE as u64, &create).unwrap().close().unwrap();
        let disk = Contents { bytes: vec![0; SIZE], others: Vec::new() };
        let mut model = Model { disk, snapshots: BTreeMap::new() };
        let mut image = Image::open(FailingStorage::new(&base), options()).unwrap();
        image.storage().limit_space(space);
        for op in OPS {
            let _ = apply(&mut image, &mut model, op);
        }
        image.storage().heal();
        image.flush().unwrap();
        drop(image);
        judge(&base, &model).unwrap_or_else(|error| panic!("{space} bytes of space: {error}"));
    }
}
