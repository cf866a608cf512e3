//! Who may decide, who is moving bytes, and where: the locks of an open image, and nothing of what they guard.
//!
//! Three things keep threads apart that share an image `M`:
//!
//! - The *lock* on `M` is held to decide, never while bytes move.
//! - A *ticket* says that somebody goes to move bytes that a decision told of. Tickets are numbered; what is released
//!   after one was taken must not be touched before it is given back. [`Epochs`] carries the numbers to where releases
//!   are kept.
//! - A *claim* on a range of guest clusters keeps two changes of one cluster apart from the first decision to the last.
//!   Reads need none.
//!
//! Always in this order: claim, lock, ticket. No thread waits for a claim while it has one, so there are no deadlocks.
//!
//! `super::sync` names the primitives: those of `std`, or of `loom`, which tries every order in which threads can run
//! (`tests/gate_loom.rs`).

use std::collections::BTreeSet;

use super::sync::{Condvar, Mutex, MutexGuard};

/// The numbers that a decision rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// What is released now belongs to this epoch.
    pub(crate) current: u64,
    /// What was released in this epoch or before is of interest to nobody any more.
    pub(crate) settled: u64,
}

/// An image `M` and its locks.
#[derive(Debug)]
pub(crate) struct Gate<M> {
    image: Mutex<M>,
    tickets: Tickets,
    claims: Claims,
}

impl<M> Gate<M> {
    pub(crate) fn new(image: M) -> Self {
        Self { image: Mutex::new(image), tickets: Tickets::new(), claims: Claims::new() }
    }

    /// Decides something that nobody moves bytes for.
    pub(crate) fn decide<R>(&self, decide: impl FnOnce(&mut M, Epochs) -> R) -> R {
        let mut image = lock(&self.image);
        let epochs = self.tickets.epochs();
        decide(&mut image, epochs)
    }

    /// Decides where bytes are. What the decision told of stays as long as the ticket.
    pub(crate) fn decide_to_move<R>(&self, decide: impl FnOnce(&mut M, Epochs) -> R) -> (R, Ticket<'_>) {
        let mut image = lock(&self.image);
        let decided = decide(&mut image, self.tickets.epochs());
        // Before the lock is given up: nothing can be released between the decision and the ticket.
        (decided, self.tickets.take())
    }

    /// Keeps others from changing guest clusters `first..=last`. Waits for those who came before.
    pub(crate) fn claim(&self, first: u64, last: u64) -> Claim<'_> {
        self.claims.claim(first, last)
    }

    /// Waits until every ticket that is out now has been given back. The caller has none.
    pub(crate) fn wait_for_tickets(&self) {
        self.tickets.wait();
    }

    /// The image alone: nobody else holds anything, since there is no other reference.
    pub(crate) fn get_mut(&mut self) -> &mut M {
        match self.image.get_mut() {
            Ok(image) => image,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    pub(crate) fn into_inner(self) -> M {
        match self.image.into_inner() {
            Ok(image) => image,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// A thread that panicked while it decided has left an image whose storage is right at every instant (law 4).
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    match changed.wait(guard) {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

#[derive(Debug)]
struct Tickets {
    state: Mutex<TicketState>,
    returned: Condvar,
}

#[derive(Debug)]
struct TicketState {
    /// The number of the next ticket, and the epoch of what is released before it is taken.
    next: u64,
    out: BTreeSet<u64>,
    /// Those who wait for tickets to be given back: mostly nobody, and then nobody has to be woken, which is a call of the
    /// system.
    waiting: usize,
}

impl Tickets {
    fn new() -> Self {
        Self { state: Mutex::new(TicketState { next: 0, out: BTreeSet::new(), waiting: 0 }), returned: Condvar::new() }
    }

    fn epochs(&self) -> Epochs {
        let state = lock(&self.state);
        // A release of epoch `n` comes after the tickets below `n`, and before all others.
        Epochs { current: state.next, settled: state.out.first().copied().unwrap_or(u64::MAX) }
    }

    fn take(&self) -> Ticket<'_> {
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.out.insert(number);
        Ticket { tickets: self, number }
    }

    fn wait(&self) {
        let mut state = lock(&self.state);
        let end = state.next;
        state.waiting += 1;
        while state.out.first().is_some_and(|&oldest| oldest < end) {
            state = wait(&self.returned, state);
        }
        state.waiting -= 1;
    }
}

/// Somebody moves bytes; given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket<'a> {
    tickets: &'a Tickets,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.tickets.state);
        state.out.remove(&self.number);
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.tickets.returned.notify_all();
        }
    }
}

#[derive(Debug)]
struct Claims {
    state: Mutex<ClaimState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ClaimState {
    next: u64,
    /// Those who have their range and those who wait, in the order in which they came.
    queue: Vec<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    id: u64,
    first: u64,
    last: u64,
}

impl Claimed {
    fn excludes(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Claims {
    fn new() -> Self {
        Self { state: Mutex::new(ClaimState { next: 0, queue: Vec::new() }), changed: Condvar::new() }
    }

    fn claim(&self, first: u64, last: u64) -> Claim<'_> {
        let mut state = lock(&self.state);
        let id = state.next;
        state.next += 1;
        state.queue.push(Claimed { id, first, last });
        // First come, first served, so that a large range is not starved by small ones.
        while !state.is_first(id) {
            state = wait(&self.changed, state);
        }
        Claim { claims: self, id }
    }
}

impl ClaimState {
    /// Whether nobody who came before `id` excludes it.
    fn is_first(&self, id: u64) -> bool {
        let Some(at) = self.queue.iter().position(|claimed| claimed.id == id) else { return true };
        !self.queue[..at].iter().any(|before| before.excludes(&self.queue[at]))
    }
}

/// A range of guest clusters that nobody else changes, until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    id: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.claims.state);
        state.queue.retain(|claimed| claimed.id != self.id);
        let others = !state.queue.is_empty();
        drop(state);
        if others {
            self.claims.changed.notify_all();
        }
    }
}
