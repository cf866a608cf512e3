//! Threads that lend a hand with work of a fraction of a millisecond.
//!
//! Such work is over before a thread has started, often before one has woken. So nobody is waited for who has not begun:
//! [`together`] does all of the work alone unless a helper is quick enough to take a part of it. There is one set of
//! helpers for the process, one less than the machine has cores and at most [`MOST`]; who finds them helping somebody
//! else works alone. A process that was forked has none.
//!
//! Waking a thread takes longer than much of this work. So who waits stays awake for a moment ([`AWAKE`]) before it sleeps:
//! a helper for the next job, since who reads on comes back within microseconds, and the caller for the last part of a helper.
//!
//! [`crew`] has the agreement between the threads. The unsafe code is about one thing: that a closure which borrows is
//! called by threads that outlive what it borrows.
#![allow(unsafe_code)]

mod crew;

use std::hint;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crew::Crew;

/// The primitives that [`crew`] is built on.
mod sync {
    pub(super) use super::awake_until;
    pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
}

/// More than these share memory's speed without adding to it.
const MOST: usize = 7;

/// As long as waking would take, about.
const AWAKE: Duration = Duration::from_micros(20);

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    /// The thread that called [`together`].
    Own,
    /// A helper.
    Helping,
}

/// Calls `work` here, and at the same time on helpers that are free; returns when all calls have returned. Each call is
/// to take parts of the work until none is left.
///
/// # Panics
/// When a call of `work` does.
pub(crate) fn together<F: Fn(Hand) + Sync>(work: &F) {
    let job = Job { closure: std::ptr::from_ref(work).cast(), call: call::<F> };
    // Held until its end here, also when the call below panics: that is what makes the job's use by others sound.
    let offer = helpers().and_then(|crew| crew.offer(job));
    work(Hand::Own);
    if offer.is_some_and(crew::Offer::end) {
        panic!("a helper panicked");
    }
}

/// The helpers of one process.
struct Helpers {
    crew: Crew<Job>,
    number: usize,
    process: u32,
}

static HELPERS: OnceLock<Helpers> = OnceLock::new();

/// The helpers of this process, which are started by the first who asks.
fn helpers() -> Option<&'static Crew<Job>> {
    if HELPERS.get().is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let number = cores.saturating_sub(1).min(MOST);
        if HELPERS.set(Helpers { crew: Crew::new(), number, process: std::process::id() }).is_ok() {
            let helpers = HELPERS.get()?;
            for _ in 0..number {
                // One that cannot be started helps nobody.
                let _ =
                    thread::Builder::new().name("qcowkit-helper".into()).spawn(|| helpers.crew.help(Job::lend_a_hand));
            }
        }
    }
    // A fork has the memory of its parent but not the threads; a lock may be held in it for ever.
    let here = |helpers: &&Helpers| helpers.number > 0 && helpers.process == std::process::id();
    HELPERS.get().filter(here).map(|helpers| &helpers.crew)
}

/// A closure without its type and lifetime. Only [`together`] makes one.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const ()),
}

// SAFETY: The closure is `Sync` ([`together`]), so that a pointer to it may be used by other threads.
unsafe impl Send for Job {}

impl Job {
    fn lend_a_hand(self) {
        // SAFETY: A helper has a job only while it is on offer ([`Crew::offer`]): it was begun before the offer's end, and
        // the end returns after this call. `together` borrows the closure until its offer has ended or was dropped,
        // which ends it too; the offer never leaves that function.
        unsafe { (self.call)(self.closure) }
    }
}

/// # Safety
/// `closure` points to an `F` that lives until the call has returned.
unsafe fn call<F: Fn(Hand) + Sync>(closure: *const ()) {
    // SAFETY: As the caller promises.
    unsafe { (*closure.cast::<F>())(Hand::Helping) }
}

/// Waits for something, awake and not for long; whether it came about.
fn awake_until(done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        for _ in 0..16 {
            if done() {
                return true;
            }
            hint::spin_loop();
        }
        // Nobody is given way to: on a busy machine that would be for longer than sleeping takes.
        if begun.elapsed() >= AWAKE {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_part_is_done_once_whoever_helps() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let parts: Vec<AtomicUsize> = (0..round % 40).map(|_| AtomicUsize::new(0)).collect();
                        let next = AtomicUsize::new(0);
                        together(&|_| {
                            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                                part.fetch_add(1, Ordering::Relaxed);
                                thread::yield_now();
                            }
                        });
                        assert!(parts.iter().all(|part| part.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn two_work_at_the_same_time_where_there_are_cores() {
        if thread::available_parallelism().map_or(1, usize::from) < 2 {
            return;
        }
        // Others of this process may have the helpers: again until they are free.
        let met = (0..1000).any(|_| {
            let (arrived, seen) = (AtomicUsize::new(0), AtomicUsize::new(0));
            together(&|_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                let begun = std::time::Instant::now();
                while arrived.load(Ordering::SeqCst) < 2 && begun.elapsed().as_millis() < 20 {
                    thread::yield_now();
                }
                seen.fetch_max(arrived.load(Ordering::SeqCst), Ordering::SeqCst);
            });
            seen.into_inner() >= 2
        });
        assert!(met);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_helpers_serve_on() {
        for _ in 0..20 {
            let caught = catch_unwind(AssertUnwindSafe(|| together(&|_| panic!("on purpose"))));
            assert!(caught.is_err());
        }
        every_part_is_done_once_whoever_helps();
    }

    #[test]
    fn callers_that_call_at_once_are_all_woken() {
        let crew = Crew::new();
        let helped = [(); 3].map(|()| AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                crew.help(|caller: usize| {
                    helped[caller].fetch_add(1, Ordering::Relaxed);
                })
            });
            let calling = [0, 1, 2].map(|caller| {
                let (crew, helped) = (&crew, &helped[caller]);
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let offer = crew.offer(caller);
                        thread::yield_now();
                        let panicked = offer.is_some_and(crew::Offer::end);
                        assert!(!panicked && helped.swap(0, Ordering::Relaxed) <= 1);
                    }
                })
            });
            for caller in calling {
                caller.join().unwrap();
            }
            crew.dismiss();
        });
    }
}
