//! The agreement between callers and helpers, in every order in which loom can make threads run.
//!
//! The file under test is included as it is; it finds loom's primitives where the library finds those of `std`. A job is
//! the number of a place that only those may touch who are at that job: a helper that begins a job after its end, or is
//! not waited for, fails the model (loom's cells see to that), and so does a thread that nobody wakes any more.

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    /// Nobody stays awake: what is seen then is looked at again under the lock, so it makes no difference to what can
    /// happen, but there are fewer orders to try.
    pub(crate) fn awake_until(_done: impl Fn() -> bool) -> bool {
        false
    }
}

#[path = "../src/helpers/crew.rs"]
mod crew;

use crew::Crew;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// The jobs of the callers: each makes some, one after the other.
struct Work {
    crew: Crew<usize>,
    /// One place a caller. It is read by all who are at the job and changed by its caller when the job has ended.
    places: [UnsafeCell<usize>; 2],
}

// Cells are shared on purpose: that is what is tested.
impl Work {
    fn new() -> Arc<Self> {
        Arc::new(Self { crew: Crew::new(), places: [UnsafeCell::new(0), UnsafeCell::new(0)] })
    }

    fn look(&self, place: usize) {
        self.places[place].with(|_| ());
    }

    fn call(&self, caller: usize, jobs: usize) {
        for _ in 0..jobs {
            let offer = self.crew.offer(caller);
            self.look(caller);
            assert!(!offer.is_some_and(crew::Offer::end));
            // Memory that was lent is the caller's again.
            self.places[caller].with_mut(|_| ());
        }
    }
}

/// `jobs` of each caller, and so many helpers, in every order in which threads are interrupted up to so many times.
fn model(interruptions: usize, helpers: usize, jobs: &'static [usize]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(move || {
        let work = Work::new();
        let helping: Vec<_> = (0..helpers)
            .map(|_| {
                let work = Arc::clone(&work);
                thread::spawn(move || work.crew.help(|place| work.look(place)))
            })
            .collect();
        let calling: Vec<_> = jobs
            .iter()
            .enumerate()
            .skip(1)
            .map(|(caller, &jobs)| {
                let work = Arc::clone(&work);
                thread::spawn(move || work.call(caller, jobs))
            })
            .collect();
        work.call(0, jobs[0]);
        for caller in calling {
            caller.join().unwrap();
        }
        work.crew.dismiss();
        for helper in helping {
            helper.join().unwrap();
        }
    });
}

#[test]
fn one_caller_gets_its_memory_back() {
    model(4, 1, &[2]);
    model(2, 2, &[1]);
}

#[test]
fn of_two_callers_neither_is_forgotten() {
    // That a caller slept for ever because another's helpers had woken it took seven.
    model(7, 1, &[2, 1]);
}
