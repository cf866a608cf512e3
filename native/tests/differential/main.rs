//! Random images and random operations, through QEMU and through qcowkit: the same must come out.
//!
//! Each seed makes three images alike: one that QEMU alone works on, one that qcowkit alone works on, and one that
//! they work on in turn. `QCOWKIT_SEEDS=first..last` runs other seeds than the usual ones, `QCOWKIT_SECONDS=n` runs on
//! from there until the time is over; `TMPDIR` says on which file system.

#[path = "../common/mod.rs"]
mod common;
mod operations;
mod reshape;
mod scenario;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    CheckNumbers, Folder, KEY, Rng, allocated_bytes, assert_same, assert_same_map, check_clean, open, our_map, qemu_io,
    qemu_is_here, qemu_map, qemu_read, qemu_source, read_all, succeed,
};
use operations::{Disk, Operation, Patterns};
use qcowkit_core::crypto::Secret;
use qcowkit_core::image::{DirtyBits, NewSnapshot, OpenOptions, SnapshotSelector};
use scenario::{Backing, Scenario};

const BATCHES: u64 = 4;
const OPERATIONS: u64 = 40;

/// One image, and what its disk must read.
struct Subject {
    path: PathBuf,
    model: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    /// What a bitmap must mark.
    marks: DirtyBits,
}

/// The worlds of one seed.
struct Trial {
    scenario: Scenario,
    disk: Disk,
    patterns: Patterns,
    rng: Rng,
    qemu: Subject,
    ours: Subject,
    turn: Subject,
    operations: u64,
    snapshots_made: u64,
    // Last: the others lie in it.
    _folder: Folder,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let scenario = Scenario::random(seed);
        let folder = Folder::new();
        let mut rng = Rng::new(seed ^ 0x5eed);
        let patterns = Patterns::new(&folder, &mut rng);
        let model = scenario.make_backing(&folder, &patterns, &mut rng);
        let subject = |name: &str, by_us: bool| {
            let path = folder.path(name);
            scenario.make(&path, by_us);
            let granularity = scenario.create.cluster_size.clamp(4096, 65536).trailing_zeros() as u8;
            let marks = DirtyBits::new(scenario.size, granularity);
            Subject { path, model: model.clone(), snapshots: Vec::new(), marks }
        };
        let qemu = subject("qemu.qcow2", false);
        let ours = subject("ours.qcow2", scenario.made_by_us);
        let turn = subject("turn.qcow2", scenario.made_by_us);
        let disk = scenario.disk();
        Self { disk, patterns, rng, qemu, ours, turn, operations: 0, snapshots_made: 0, scenario, _folder: folder }
    }

    fn run(&mut self) {
        self.compare("new");
        for batch in 0..BATCHES {
            let operations: Vec<Operation> =
                (0..OPERATIONS).map(|_| Operation::random(&mut self.rng, &self.disk)).collect();
            let done = self.through_qemu(&operations, false);
            self.through_us(&done, false);
            if batch % 2 == 0 {
                self.through_qemu(&operations, true);
            } else {
                self.through_us(&operations, true);
            }
            self.compare(&format!("batch {batch}"));
            if self.scenario.snapshots {
                self.snapshot();
                self.compare(&format!("batch {batch}, snapshots"));
            }
        }
        self.reshape();
    }

    /// QEMU does the operations; gives those that it did, in its order.
    ///
    /// Compressed writes come first, in a session of their own: QEMU 10.0.2 goes on filling the rest of a cluster with
    /// compressed data after its last user has freed it and another has taken it, and so destroys what is there.
    fn through_qemu(&mut self, operations: &[Operation], turn: bool) -> Vec<Operation> {
        let subject = if turn { &mut self.turn } else { &mut self.qemu };
        let (packed, others): (Vec<Operation>, Vec<Operation>) =
            operations.iter().copied().partition(|operation| operation.is_compressed());
        let packed: Vec<Operation> = packed.into_iter().filter(|operation| operation.packs()).collect();
        let mut all_done = Vec::new();
        for session in [packed, others] {
            let commands: Vec<String> = session.iter().map(|operation| operation.command(&self.patterns)).collect();
            let done = qemu_io(&subject.path, &self.scenario.qemu_run_options(&subject.path), &commands);
            for (operation, done) in session.into_iter().zip(done) {
                // QEMU refuses to write a compressed cluster over one that is allocated.
                assert!(done || operation.is_compressed(), "qemu-io failed: {}", operation.command(&self.patterns));
                if done {
                    operation.apply_to_model(&mut subject.model, &self.disk, &self.patterns);
                    operation.mark(&mut subject.marks);
                    all_done.push(operation);
                }
            }
        }
        self.operations += all_done.len() as u64;
        all_done
    }

    fn through_us(&mut self, operations: &[Operation], turn: bool) {
        let subject = if turn { &mut self.turn } else { &mut self.ours };
        let mut image = open(&subject.path, self.scenario.our_options(!turn));
        for (n, operation) in operations.iter().enumerate() {
            let command = operation.command(&self.patterns);
            operation.apply(&mut image, &self.patterns).unwrap_or_else(|error| panic!("{command}: {error}"));
            operation.apply_to_model(&mut subject.model, &self.disk, &self.patterns);
            operation.mark(&mut subject.marks);
            if n % 16 == 15 {
                assert_same(&read_all(&mut image), &subject.model, &format!("while open, after {command}"));
            }
        }
        image.close().unwrap();
        self.operations += operations.len() as u64;
    }

    /// Everything that must be equal after a batch.
    fn compare(&mut self, when: &str) {
        let mut numbers = Vec::new();
        for (who, subject) in [("qemu", &self.qemu), ("ours", &self.ours), ("turn", &self.turn)] {
            let what = format!("{when}, {who}");
            numbers.push(check_clean(&subject.path, &what));
            let mut image = open(&subject.path, options().read_only());
            assert_same(&read_all(&mut image), &subject.model, &format!("{what}, read by us"));
            assert_same(&qemu_read(&subject.path, None), &subject.model, &format!("{what}, read by QEMU"));
            assert_same_map(&our_map(&mut image), &qemu_map(&subject.path), false, &format!("{what}, our map of it"));
            if self.scenario.bitmap {
                // QEMU also marks the compressed writes that it refused.
                let mut found = image.bitmap_bits("b0").unwrap();
                assert!(who != "ours" || found == subject.marks, "{what}: the bitmap");
                let before = found.dirty_bytes();
                found.merge(&subject.marks);
                assert_eq!(found.dirty_bytes(), before, "{what}: the bitmap misses a change");
            }
            // QEMU lets a raw data file keep what the guest sees as zeros (discard.md, hazard 3).
            if who == "ours" && self.scenario.data_file == Some(true) {
                let raw = std::fs::read(subject.path.with_extension("data")).unwrap();
                assert_same(&raw, &subject.model, &format!("{what}, the raw data file"));
            }
            for (name, model) in &subject.snapshots {
                // QEMU punches what snapshots share (discard.md, hazard 1); what is ours alone must be whole.
                if who == "ours" || !self.scenario.no_unref {
                    assert_same(&qemu_read(&subject.path, Some(name)), model, &format!("{what}, snapshot {name}"));
                    let options = options().of_snapshot(SnapshotSelector::Name(name.as_str().into()));
                    let view = read_all(&mut open(&subject.path, options.read_only()));
                    assert_same(&view, model, &format!("{what}, snapshot {name}, read by us"));
                }
            }
        }
        let counted = |n: &CheckNumbers| (n.total, n.compressed);
        assert_eq!(counted(&numbers[1]), counted(&numbers[0]), "{when}: total and compressed clusters");
        // Holes in the file of a qcow2 layer below tell us, not QEMU, that what a zero write leaves of a cluster is zero.
        let sees_more = !matches!(self.scenario.backing, Backing::None | Backing::Raw);
        let (ours, qemu) = (numbers[1].allocated, numbers[0].allocated);
        // Of a raw data file we map clusters some time before they are written.
        let ahead = self.scenario.data_file == Some(true);
        let allowed = ours == qemu || sees_more && ours < qemu || ahead && ours > qemu;
        assert!(allowed, "{when}: {ours} clusters allocated, by QEMU {qemu}");
        let [ours, qemu] = [&self.ours, &self.qemu].map(|subject| qemu_map(&subject.path));
        // When QEMU copies a shared cluster with subclusters, it copies also what is zero or unallocated in between.
        let may_copy = sees_more || self.scenario.create.extended_l2 && self.scenario.snapshots;
        let (found, expected) = if ahead { (&qemu, &ours) } else { (&ours, &qemu) };
        assert_same_map(found, expected, may_copy || ahead, &format!("{when}, ours, map"));
        self.compare_space(when);
    }

    /// What the host holds: as much as for QEMU, or less.
    fn compare_space(&self, when: &str) {
        if !self.scenario.comparable_space() {
            return;
        }
        let (qemu, ours) = (allocated_bytes(&self.qemu.path), allocated_bytes(&self.ours.path));
        // QEMU links the parts of a long write in no fixed order, so that a cluster or two are reused elsewhere.
        let slack = 2 * self.disk.cluster.max(4096);
        assert!(ours <= qemu + slack, "{when}: we take {ours} bytes on the host, QEMU {qemu}");
        // QEMU makes holes in a raw data file also where discards are not to be passed; we do not.
        if self.scenario.data_file.is_some() && self.scenario.pass_request {
            let [qemu, ours] = [&self.qemu, &self.ours].map(|s| allocated_bytes(&s.path.with_extension("data")));
            assert!(ours <= qemu, "{when}: our data file takes {ours} bytes on the host, QEMU's {qemu}");
        }
    }

    /// Takes a snapshot of all three, applies one or deletes one; of the third, QEMU or we, by chance.
    fn snapshot(&mut self) {
        let there = self.qemu.snapshots.len() as u64;
        // Refcounts of two bits have room for two snapshots beside the disk, and for one while it is applied.
        let narrow = self.scenario.create.refcount_bits == 2;
        let which = self.rng.below(there) as usize;
        let change = match self.rng.below(4) {
            0 if there > 0 => Change::Delete,
            _ if narrow && there >= 2 => Change::Delete,
            // QEMU may have lost what its snapshots shared (discard.md, hazard 1), and so would the disk. Beside bitmaps,
            // nobody applies.
            1 if there > 0 && !self.scenario.no_unref && !self.scenario.bitmap => Change::Apply,
            _ => Change::Take,
        };
        let name = match change {
            Change::Take => format!("s{}", self.snapshots_made),
            Change::Apply | Change::Delete => self.qemu.snapshots[which].0.clone(),
        };
        self.snapshots_made += 1;
        let by_us = self.rng.one_in(2);
        let options = [false, true, by_us].map(|us| us.then(|| self.scenario.our_options(true)));
        for (subject, options) in [&mut self.qemu, &mut self.ours, &mut self.turn].into_iter().zip(options) {
            match options {
                Some(options) => change.by_us(&subject.path, &name, options),
                None => change.by_qemu(&subject.path, &name),
            }
            match change {
                Change::Take => subject.snapshots.push((name.clone(), subject.model.clone())),
                Change::Apply => subject.model.clone_from(&subject.snapshots[which].1),
                Change::Delete => drop(subject.snapshots.remove(which)),
            }
        }
    }
}

fn options() -> OpenOptions {
    OpenOptions::default().with_key(Secret::from(KEY))
}

/// What can be done with snapshots.
#[derive(Debug, Clone, Copy)]
enum Change {
    Take,
    Apply,
    Delete,
}

impl Change {
    fn by_qemu(self, path: &Path, name: &str) {
        let verb = match self {
            Self::Take => "-c",
            Self::Apply => "-a",
            Self::Delete => "-d",
        };
        let (options, source) = qemu_source(path);
        let words = [vec!["snapshot".to_owned(), verb.to_owned(), name.to_owned()], options, vec![source]].concat();
        succeed("qemu-img", &words);
    }

    fn by_us(self, path: &Path, name: &str, options: OpenOptions) {
        let mut image = open(path, options);
        let selector = SnapshotSelector::Name(name.into());
        match self {
            Self::Take => {
                let new = NewSnapshot { name: name.into(), date_seconds: 1, ..NewSnapshot::default() };
                image.create_snapshot(&new).map(drop)
            }
            Self::Apply => image.apply_snapshot(&selector),
            Self::Delete => image.delete_snapshot(&selector),
        }
        .unwrap_or_else(|error| panic!("{self:?} {name}: {error}"));
        image.close().unwrap();
    }
}

/// Runs one seed; what fails says which.
fn run(seed: u64) -> u64 {
    let done = std::panic::catch_unwind(|| {
        let mut trial = Trial::new(seed);
        trial.run();
        trial.operations
    });
    done.unwrap_or_else(|cause| {
        println!("seed {seed} failed: QCOWKIT_SEEDS={seed}..{}\n{:#?}", seed + 1, Scenario::random(seed));
        std::panic::resume_unwind(cause)
    })
}

#[test]
fn the_same_operations_have_the_same_results() {
    if !qemu_is_here() {
        return;
    }
    let seeds = std::env::var("QCOWKIT_SEEDS").unwrap_or_else(|_| "0..24".to_owned());
    let (first, last) = seeds.split_once("..").expect("QCOWKIT_SEEDS=first..last");
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let seconds = std::env::var("QCOWKIT_SECONDS").ok().map(|text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let (mut seed, mut operations) = (first, 0);
    while seed < last || Instant::now() < end {
        operations += run(seed);
        seed += 1;
    }
    println!("seeds {first}..{seed}: {operations} operations");
}
