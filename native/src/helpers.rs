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
//! The unsafe code is about one thing: that a closure which borrows is called by threads that outlive what it borrows.
#![allow(unsafe_code)]

use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
    let offer = crew().and_then(|crew| crew.offer(work));
    work(Hand::Own);
    if offer.is_some_and(Offer::withdraw) {
        panic!("a helper panicked");
    }
}

static CREW: OnceLock<Crew> = OnceLock::new();

/// The helpers of this process, which are started by the first who asks.
fn crew() -> Option<&'static Crew> {
    if CREW.get().is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let helpers = cores.saturating_sub(1).min(MOST);
        if CREW.set(Crew::new(helpers)).is_ok() {
            let crew = CREW.get()?;
            for _ in 0..helpers {
                // One that cannot be started helps nobody.
                let _ = thread::Builder::new().name("qcowkit-helper".into()).spawn(|| crew.help());
            }
        }
    }
    // A fork has the memory of its parent but not the threads; a lock may be held in it for ever.
    CREW.get().filter(|crew| crew.helpers > 0 && crew.process == std::process::id())
}

struct Crew {
    helpers: usize,
    process: u32,
    state: Mutex<State>,
    offered: Condvar,
    finished: Condvar,
    /// Copies of [`State::number`] and [`State::helping`] for those who are awake: what they say is only taken for a
    /// reason to look at the state.
    number: AtomicU64,
    helping: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Of the latest job.
    number: u64,
    /// Helpers that are calling its closure.
    helping: usize,
    /// Helpers that sleep until there is a job.
    asleep: usize,
    /// Who offered the job sleeps until `helping` is 0.
    awaited: bool,
    panicked: bool,
}

/// A closure without its type and lifetime.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const ()),
}

// SAFETY: The closure is `Sync` ([`Crew::offer`]), so that a pointer to it may be used by other threads.
unsafe impl Send for Job {}

/// # Safety
/// `closure` points to an `F` that lives until the call has returned.
unsafe fn call<F: Fn(Hand) + Sync>(closure: *const ()) {
    // SAFETY: As the caller promises.
    unsafe { (*closure.cast::<F>())(Hand::Helping) }
}

impl Crew {
    fn new(helpers: usize) -> Self {
        Self {
            helpers,
            process: std::process::id(),
            state: Mutex::default(),
            offered: Condvar::new(),
            finished: Condvar::new(),
            number: AtomicU64::new(0),
            helping: AtomicUsize::new(0),
        }
    }

    /// Offers a closure to the helpers, unless they have another. They call it until the offer is withdrawn, which its
    /// end does too: no call outlives the borrow.
    fn offer<'a, F: Fn(Hand) + Sync>(&'a self, work: &'a F) -> Option<Offer<'a>> {
        let mut state = self.lock();
        if state.job.is_some() || state.helping > 0 {
            return None;
        }
        state.job = Some(Job { closure: std::ptr::from_ref(work).cast(), call: call::<F> });
        state.number = state.number.wrapping_add(1);
        state.panicked = false;
        self.number.store(state.number, Ordering::Release);
        let asleep = state.asleep;
        drop(state);
        if asleep > 0 {
            self.offered.notify_all();
        }
        Some(Offer { crew: self })
    }

    /// What a helper does all its life.
    fn help(&self) {
        let mut served = 0;
        let mut state = self.lock();
        loop {
            let job = state.job.filter(|_| state.number != served);
            let Some(job) = job else {
                // Also a job that was withdrawn before this helper came to it.
                served = state.number;
                drop(state);
                let seen = awake_until(|| self.number.load(Ordering::Acquire) != served);
                state = self.lock();
                if !seen && state.number == served {
                    state.asleep += 1;
                    state = self.offered.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.asleep -= 1;
                }
                continue;
            };
            served = state.number;
            state.helping += 1;
            self.helping.store(state.helping, Ordering::Release);
            drop(state);
            // SAFETY: The job was there under the lock under which `helping` was raised. Who offered it borrows the
            // closure until `Offer::end` has returned, which takes the job away and then waits until `helping` is 0; and
            // that comes after this call.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.closure) }));
            state = self.lock();
            state.helping -= 1;
            self.helping.store(state.helping, Ordering::Release);
            state.panicked |= done.is_err();
            if state.helping == 0 && state.awaited {
                self.finished.notify_all();
            }
        }
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// The closure is on offer, until [`Offer::end`].
struct Offer<'a> {
    crew: &'a Crew,
}

impl Offer<'_> {
    /// Whether a helper panicked.
    fn withdraw(self) -> bool {
        let panicked = self.end();
        // Once is enough: the next offer is somebody else's.
        std::mem::forget(self);
        panicked
    }

    fn end(&self) -> bool {
        let crew = self.crew;
        let mut state = crew.lock();
        state.job = None;
        if state.helping > 0 {
            drop(state);
            awake_until(|| crew.helping.load(Ordering::Acquire) == 0);
            state = crew.lock();
        }
        state.awaited = true;
        while state.helping > 0 {
            state = crew.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = false;
        std::mem::take(&mut state.panicked)
    }
}

impl Drop for Offer<'_> {
    /// Also when the work panics here.
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
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
}
