//! The locks of an image that threads share, in every order in which loom can make threads run.
//!
//! The file under test is included as it is; it finds loom's primitives where the library finds those of `std`. What
//! the locks guard is a toy: guest clusters that are mapped to host clusters, and a quarantine. A host cluster that is
//! written while somebody reads or writes it fails the model (loom's cells see to that), and so does one that holds
//! another cluster's data.

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
}

// What needs an exclusive reference has nothing to interleave.
#[allow(dead_code)]
#[path = "../src/shared/gate.rs"]
mod gate;

use gate::{Epochs, Gate};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

const HOSTS: usize = 3;

/// The metadata: what the lock guards.
struct Tables {
    /// The host cluster of each guest cluster.
    map: [usize; 2],
    free: Vec<usize>,
    /// Host clusters that were released, and when.
    quarantine: Vec<(usize, u64)>,
}

impl Tables {
    fn drain(&mut self, epochs: Epochs) {
        let (settled, kept) = self.quarantine.drain(..).partition(|&(_, epoch)| epoch <= epochs.settled);
        self.quarantine = kept;
        self.free.extend(Vec::into_iter(settled).map(|(host, _)| host));
    }

    /// Each host cluster is in one place.
    fn check(&self) {
        let waiting = self.quarantine.iter().map(|&(host, _)| host);
        let mut all: Vec<usize> = self.map.iter().copied().chain(self.free.iter().copied()).chain(waiting).collect();
        all.sort_unstable();
        assert_eq!(all, (0..HOSTS).collect::<Vec<_>>());
    }
}

struct Disk {
    gate: Gate<Tables>,
    /// The bytes of the host clusters: who touches them at the same time as others fails the model.
    bytes: [UnsafeCell<()>; HOSTS],
    /// Whose data they are.
    owner: [AtomicUsize; HOSTS],
}

// Cells are shared on purpose: that is what is tested.
impl Disk {
    fn new() -> Arc<Self> {
        let tables = Tables { map: [0, 1], free: vec![2], quarantine: Vec::new() };
        let owner = [AtomicUsize::new(0), AtomicUsize::new(1), AtomicUsize::new(9)];
        let bytes = [UnsafeCell::new(()), UnsafeCell::new(()), UnsafeCell::new(())];
        Arc::new(Self { gate: Gate::new(tables), bytes, owner })
    }

    fn read(&self, guest: usize) {
        let (host, _ticket) = self.gate.decide_to_move(|tables, _| tables.map[guest]);
        self.bytes[host].with(|_| assert_eq!(self.owner[host].load(Ordering::Relaxed), guest));
    }

    /// Writes to a new place, if there is one.
    fn rewrite(&self, guest: usize) -> bool {
        let claim = self.gate.claim(guest as u64, guest as u64);
        let prepare = || {
            self.gate.decide_to_move(|tables, epochs| {
                tables.drain(epochs);
                Some((tables.map[guest], tables.free.pop()?))
            })
        };
        let (mut plan, mut ticket) = prepare();
        if plan.is_none() {
            drop(ticket);
            self.gate.wait_for_tickets();
            (plan, ticket) = prepare();
        }
        let Some((old, new)) = plan else { return false };
        // Copy on write reads the old place too.
        self.bytes[old].with(|_| assert_eq!(self.owner[old].load(Ordering::Relaxed), guest));
        self.bytes[new].with_mut(|_| self.owner[new].store(guest, Ordering::Relaxed));
        drop(ticket);
        self.gate.decide(|tables, epochs| {
            assert_eq!(tables.map[guest], old, "nobody else has changed the entry");
            tables.map[guest] = new;
            tables.quarantine.push((old, epochs.current));
            tables.drain(epochs);
            tables.check();
        });
        drop(claim);
        true
    }
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Every order in which threads are interrupted up to three times; more finds nothing new and takes minutes.
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn a_cluster_that_is_read_is_not_reused() {
    model(|| {
        let disk = Disk::new();
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                assert!(disk.rewrite(0));
                // Wants the very place that has just become free.
                disk.rewrite(1)
            })
        };
        disk.read(0);
        // It waited for the reader, if it had to: the only others who could have a ticket are done.
        assert!(writer.join().unwrap());
        disk.read(0);
        disk.read(1);
    });
}

#[test]
fn two_changes_of_one_cluster_follow_each_other() {
    model(|| {
        let disk = Disk::new();
        let other = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.rewrite(0))
        };
        assert!(disk.rewrite(0));
        assert!(other.join().unwrap());
        disk.read(0);
    });
}

#[test]
fn a_reader_and_two_writers() {
    model(|| {
        let disk = Disk::new();
        let writers: Vec<_> = (0..2)
            .map(|guest| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || disk.rewrite(guest))
            })
            .collect();
        disk.read(0);
        let done: Vec<bool> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        // There is one free place, so that one of them may have found none before the other was done.
        assert!(done.contains(&true));
        disk.read(0);
        disk.read(1);
    });
}

#[test]
fn claims_that_overlap_exclude_each_other() {
    model(|| {
        let gate = Arc::new(Gate::new(()));
        let sectors: Arc<[UnsafeCell<()>; 2]> = Arc::new([UnsafeCell::new(()), UnsafeCell::new(())]);
        let writers: Vec<_> = (0..2)
            .map(|sector| {
                let (gate, sectors) = (Arc::clone(&gate), Arc::clone(&sectors));
                thread::spawn(move || {
                    let _claim = gate.claim(5 + sector as u64, 5 + sector as u64);
                    sectors[sector].with_mut(|_| ());
                })
            })
            .collect();
        let claim = gate.claim(5, 7);
        sectors.iter().for_each(|sector| sector.with_mut(|_| ()));
        drop(claim);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

#[test]
fn claims_of_several_ranges_never_wait_for_each_other_for_ever() {
    model(|| {
        let gate = Arc::new(Gate::new(()));
        let others: Vec<_> = [(0, 3), (2, 5)]
            .into_iter()
            .map(|(first, last)| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || drop(gate.claim(first, last)))
            })
            .collect();
        drop(gate.claim(3, 4));
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(Arc::try_unwrap(gate).ok().map(Gate::into_inner).is_some());
    });
}
