//! Storage that fails: the error reaches the caller, nothing flushed is lost, the image goes on or says that it is
//! poisoned, and what is left on storage is sound. And what a flush costs when nothing fails.

use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::metadata::{DiscardPolicy, Unref};
use qcowkit_core::storage::{CountingStorage, FailingStorage, FailureRule, MemoryStorage};
use qcowkit_core::{Error, ErrorKind};
use qcowkit_trial::failures::{SCOPES, each_failure, each_fault, small_metadata};
use qcowkit_trial::walk::walk;

const SIZE: usize = 200 << 10;

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(usize, usize, u8),
    Packed(usize, usize, u8),
    Zeroes(usize, usize),
    Discard(usize, usize),
    Grow(usize),
    Flush,
}

/// New tables, growth of refcounts and L1, copies, releases, packed clusters: every path of a commit.
const OPS: [Op; 16] = [
    Op::Write(100, 3000, 1),
    Op::Flush,
    Op::Packed(8192, 4096, 2),
    Op::Write(40_000, 20_000, 3),
    Op::Discard(1024, 1024),
    Op::Flush,
    Op::Write(512, 100, 4),
    Op::Write(1024, 700, 5),
    Op::Zeroes(42_000, 6_000),
    Op::Flush,
    Op::Discard(8192, 2048),
    Op::Write(100_000, 50_000, 6),
    Op::Flush,
    Op::Grow(SIZE + (200 << 10)),
    Op::Write(8192, 512, 7),
    Op::Packed(60_416, 1024, 8),
];

fn options(unref: Unref) -> OpenOptions {
    OpenOptions::default()
        .with_policy(DiscardPolicy { unref, ..DiscardPolicy::default() })
        .with_metadata(small_metadata())
}

fn create() -> CreateOptions {
    CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() }
}

/// Guest contents, with what may have become of failed and of unflushed operations.
struct Model {
    content: Vec<u8>,
    flushed: Vec<u8>,
    /// Range, byte, whether the operation failed.
    versions: Vec<(usize, usize, u8, bool)>,
    sizes: Vec<usize>,
}

impl Model {
    fn note(&mut self, from: usize, to: usize, byte: u8, failed: bool) {
        self.versions.push((from, to, byte, failed));
        if !failed {
            self.content[from..to].fill(byte);
        }
    }

    fn flushed(&mut self) {
        self.flushed = self.content.clone();
        self.versions.retain(|version| version.3);
        self.sizes.retain(|&size| size == self.content.len());
    }

    fn judge(&self, got: &[u8]) -> Result<(), String> {
        if !self.sizes.contains(&got.len()) {
            return Err(format!("{} bytes, not one of {:?}", got.len(), self.sizes));
        }
        let wrong = got.iter().enumerate().find(|&(at, byte)| {
            self.flushed.get(at).copied().unwrap_or(0) != *byte
                && !self.versions.iter().any(|&(from, to, version, _)| (from..to).contains(&at) && version == *byte)
        });
        match wrong {
            None => Ok(()),
            Some((at, byte)) => Err(format!("byte {at:#x} is {byte}, flushed {:?}", self.flushed.get(at))),
        }
    }
}

type Disk<'a> = FailingStorage<&'a MemoryStorage>;

fn apply(image: &mut Image<Disk<'_>>, model: &mut Model, op: Op) -> Result<(), Error> {
    let (done, from, to, byte) = match op {
        Op::Write(at, length, byte) => (image.write_at(at as u64, &vec![byte; length]), at, at + length, byte),
        Op::Packed(at, length, byte) => (image.write_compressed(at as u64, &vec![byte; length]), at, at + length, byte),
        Op::Zeroes(at, length) => (image.write_zeroes(at as u64, length as u64, true), at, at + length, 0),
        Op::Discard(at, length) => (image.discard(at as u64, length as u64), at, at + length, 0),
        Op::Grow(size) => {
            model.sizes.push(size);
            image.resize(size as u64)?;
            model.content.resize(size, 0);
            model.flushed();
            return Ok(());
        }
        Op::Flush => {
            image.flush()?;
            model.flushed();
            return Ok(());
        }
    };
    model.note(from, to, byte, done.is_err());
    done
}

/// Runs the operations while one rule holds; gives whether it struck.
fn run(rule: FailureRule, unref: Unref) -> Result<bool, String> {
    let base = Image::create(MemoryStorage::new(), SIZE as u64, &create()).unwrap().close().unwrap();
    let zero = vec![0; SIZE];
    let mut model = Model { content: zero.clone(), flushed: zero, versions: Vec::new(), sizes: vec![SIZE] };
    let mut image = Image::open(FailingStorage::new(&base), options(unref)).unwrap();
    image.storage().fail(rule);
    let mut poisoned = false;
    let mut errors = 0;
    let mut advisory = 0;
    for op in OPS {
        let before = image.storage().failures();
        let done = apply(&mut image, &mut model, op);
        let struck = image.storage().failures() > before;
        match done {
            Err(error) => {
                errors += 1;
                let says_so = matches!(error.kind(), ErrorKind::Poisoned(_));
                if !struck && !says_so {
                    return Err(format!("{op:?} failed by itself: {error}"));
                }
                poisoned |= says_so;
            }
            Ok(()) if poisoned && !matches!(op, Op::Flush) => return Err(format!("{op:?} on a poisoned image")),
            Ok(()) if poisoned => return Err("a flush on a poisoned image".into()),
            // Holes are advice.
            Ok(()) => advisory += u64::from(struck),
        }
    }
    let failures = image.storage().failures();
    if failures > 0 && errors == 0 && advisory == 0 {
        return Err("the failure was kept from the caller".into());
    }
    image.storage().heal();
    if !poisoned {
        // Usable: what could not be written before is written now.
        image.write_at(0, &[9; 10]).map_err(|e| format!("not usable: {e}"))?;
        model.note(0, 10, 9, false);
        image.flush().map_err(|e| format!("not usable: {e}"))?;
        model.flushed();
    }
    drop(image);
    walk(&base.to_vec().unwrap())?;
    let mut image = Image::open(&base, options(unref)).map_err(|e| format!("does not open again: {e}"))?;
    let mut got = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut got).map_err(|e| e.to_string())?;
    model.judge(&got)?;
    image.write_at(50_000, &[10; 5000]).map_err(|e| e.to_string())?;
    image.close().map_err(|e| e.to_string())?;
    walk(&base.to_vec().unwrap())?;
    Ok(failures > 0)
}

#[test]
fn every_call_may_fail() {
    let policies = [Unref::Always, Unref::RetainUnshared];
    let any: u64 = policies.map(|unref| each_failure(&SCOPES, |rule| run(rule, unref))).iter().sum();
    let faults: u64 = policies.map(|unref| each_fault(&[], |fault| run(fault.rule.clone(), unref))).iter().sum();
    let cases = any + faults;
    println!("{cases} failures");
    assert!(cases > 500, "{cases}");
}

#[test]
fn a_full_disk_loses_nothing() {
    for space in (0..300 << 10).step_by(4096) {
        let base = Image::create(MemoryStorage::new(), SIZE as u64, &create()).unwrap().close().unwrap();
        let zero = vec![0; SIZE];
        let mut model = Model { content: zero.clone(), flushed: zero, versions: Vec::new(), sizes: vec![SIZE] };
        let mut image = Image::open(FailingStorage::new(&base), options(Unref::Always)).unwrap();
        image.storage().limit_space(space);
        for op in OPS {
            let _ = apply(&mut image, &mut model, op);
        }
        image.storage().heal();
        image.flush().unwrap();
        model.flushed();
        drop(image);
        walk(&base.to_vec().unwrap()).unwrap();
        let mut image = Image::open(&base, OpenOptions::default().read_only()).unwrap();
        let mut got = vec![0; image.virtual_size() as usize];
        image.read_at(0, &mut got).unwrap();
        model.judge(&got).unwrap_or_else(|error| panic!("{space} bytes of space: {error}"));
    }
}

#[test]
fn a_flush_costs_the_barriers_that_it_needs() {
    let storage = CountingStorage::new(MemoryStorage::new());
    let create = CreateOptions { cluster_size: 4096, refcount_bits: 64, ..CreateOptions::default() };
    Image::create(&storage, 64 << 20, &create).unwrap().close().unwrap();
    let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
    let cost = |what: &str, image: &mut Image<_>, barriers: u64| {
        storage.reset();
        Image::<&CountingStorage<MemoryStorage>>::flush(image).unwrap();
        assert_eq!(storage.counts().barrier.calls, barriers, "{what}");
    };
    cost("nothing changed", &mut image, 0);
    image.write_at(0, &[1; 4096]).unwrap();
    cost("an L2 table and a cluster are linked", &mut image, 2);
    cost("nothing changed", &mut image, 0);
    image.write_at(100, &[2; 50]).unwrap();
    cost("data in place", &mut image, 1);
    image.write_at(4096, &[3; 4096]).unwrap();
    cost("a cluster is linked", &mut image, 2);
    image.discard(4096, 4096).unwrap();
    cost("a cluster is released", &mut image, 1);
    image.write_at(1 << 20, &vec![4; 4 << 20]).unwrap();
    cost("the refcounts grow", &mut image, 3);
    let mut byte = [0];
    image.read_at(0, &mut byte).unwrap();
    cost("something was read", &mut image, 0);
    storage.reset();
    image.close().unwrap();
    assert_eq!(storage.counts().barrier.calls, 0, "closing after a flush");
}
