//! The agreement between those who offer work and the helpers who lend a hand: who may offer, who calls, who waits.
//!
//! One offer at a time, from [`Crew::offer`] until [`Offer::end`] has returned: with it goes the right to wait, so that
//! nobody else can be waiting for these helpers, nor be woken in another's place.
//!
//! `super::sync` names the primitives: those of `std`, or of `loom`, which tries every order in which threads can run
//! (`tests/crew_loom.rs`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, awake_until};

/// Helpers, and the job that is on offer.
pub(crate) struct Crew<J> {
    state: Mutex<State<J>>,
    offered: Condvar,
    finished: Condvar,
    /// Copies of [`State::number`] and [`State::helping`] for those who are awake: what they say is only taken for a
    /// reason to look at the state.
    number: AtomicU64,
    helping: AtomicUsize,
}

struct State<J> {
    job: Option<J>,
    /// There is an offer that has not ended, though its job may be withdrawn already.
    taken: bool,
    /// Of the latest job.
    number: u64,
    /// Helpers that are at the job of the offer.
    helping: usize,
    /// Helpers that sleep until there is a job.
    asleep: usize,
    /// Who made the offer sleeps until `helping` is 0.
    awaited: bool,
    panicked: bool,
    /// Helpers are to go home.
    dismissed: bool,
}

impl<J: Copy> Crew<J> {
    pub(crate) fn new() -> Self {
        let state = State {
            job: None,
            taken: false,
            number: 0,
            helping: 0,
            asleep: 0,
            awaited: false,
            panicked: false,
            dismissed: false,
        };
        Self {
            state: Mutex::new(state),
            offered: Condvar::new(),
            finished: Condvar::new(),
            number: AtomicU64::new(0),
            helping: AtomicUsize::new(0),
        }
    }

    /// Offers a job to the helpers, unless they have another. Each of them does it at most once. None begins it once the
    /// offer is being ended, and when the end has returned, all have left it.
    pub(crate) fn offer(&self, job: J) -> Option<Offer<'_, J>> {
        let mut state = self.lock();
        if state.taken {
            return None;
        }
        state.taken = true;
        state.job = Some(job);
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

    /// What a helper does all its life: `does` is called for each job that it comes to in time.
    pub(crate) fn help(&self, does: impl Fn(J)) {
        let mut served = 0;
        let mut state = self.lock();
        while !state.dismissed {
            let job = state.job.filter(|_| state.number != served);
            let Some(job) = job else {
                // Also a job that was withdrawn before this helper came to it.
                served = state.number;
                drop(state);
                let seen = awake_until(|| self.number.load(Ordering::Acquire) != served);
                state = self.lock();
                if !seen && state.number == served && !state.dismissed {
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
            let done = catch_unwind(AssertUnwindSafe(|| does(job)));
            state = self.lock();
            state.helping -= 1;
            self.helping.store(state.helping, Ordering::Release);
            state.panicked |= done.is_err();
            if state.helping == 0 && state.awaited {
                self.finished.notify_all();
            }
        }
    }

    /// Sends the helpers home: a model of threads ends when all of them have.
    #[cfg(test)]
    pub(crate) fn dismiss(&self) {
        self.lock().dismissed = true;
        self.offered.notify_all();
    }

    /// Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job is on offer, until [`Offer::end`], which a drop does too.
pub(crate) struct Offer<'a, J: Copy> {
    crew: &'a Crew<J>,
}

impl<J: Copy> Offer<'_, J> {
    /// Takes the job back and waits for those who are at it; whether one of them panicked.
    pub(crate) fn end(self) -> bool {
        let panicked = self.withdraw();
        // Once is enough: the next offer is somebody else's.
        std::mem::forget(self);
        panicked
    }

    fn withdraw(&self) -> bool {
        let crew = self.crew;
        let mut state = crew.lock();
        state.job = None;
        if state.helping > 0 {
            drop(state);
            awake_until(|| crew.helping.load(Ordering::Acquire) == 0);
            state = crew.lock();
        }
        while state.helping > 0 {
            state.awaited = true;
            state = crew.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = false;
        state.taken = false;
        state.panicked
    }
}

impl<J: Copy> Drop for Offer<'_, J> {
    /// Also when the work panics in the thread that offered it.
    fn drop(&mut self) {
        self.withdraw();
    }
}
