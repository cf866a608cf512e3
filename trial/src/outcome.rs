//! What was found in the states that power cuts left.

use std::collections::BTreeMap;
use std::fmt;

/// In which way a state is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// It does not open.
    Opens,
    /// It opens, and the disk cannot be read.
    Unreadable,
    /// A refcount is too low, two things lie in one place, a check finds errors.
    Corrupt,
    /// A COPIED flag where the refcount is not 1: an error to a check, harmless while there is one reference.
    Copied,
    /// What was flushed, and not changed since, is not there.
    Lost,
    /// What was written after the last flush is neither old nor new.
    Mixed,
    /// A snapshot, or the guest's view of a chain or of an image under repair, is another.
    Changed,
    /// It cannot be used on.
    GoesOn,
    /// No state, but a session: an operation failed.
    Failed,
}

impl FaultKind {
    /// A few words for a table.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Opens => "does not open",
            Self::Unreadable => "cannot be read",
            Self::Corrupt => "corrupt",
            Self::Copied => "COPIED flag with a refcount above 1",
            Self::Lost => "flushed data lost",
            Self::Mixed => "neither old nor new",
            Self::Changed => "another disk",
            Self::GoesOn => "cannot be used on",
            Self::Failed => "an operation failed",
        }
    }
}

/// What is wrong with a state.
#[derive(Debug, Clone)]
pub struct Fault {
    /// In which way.
    pub kind: FaultKind,
    /// All about it.
    pub text: String,
}

impl Fault {
    /// One of a kind.
    pub fn new(kind: FaultKind, text: impl fmt::Display) -> Self {
        Self { kind, text: text.to_string() }
    }

    /// For `map_err`.
    pub fn of<E: fmt::Display>(kind: FaultKind) -> impl Fn(E) -> Self {
        move |error| Self::new(kind, error)
    }

    /// The same, with more about where.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self { text: format!("{place}: {}", self.text), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.words(), self.text)
    }
}

/// What was found in many states.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Recorded sessions.
    pub sessions: u64,
    /// What they wrote: writes, holes, changes of length, barriers.
    pub events: u64,
    /// States that were judged.
    pub states: u64,
    /// States in which some clusters leak and nothing else is wrong.
    pub leaking: u64,
    /// The most clusters that leak in one state.
    pub most_leaks: u64,
    /// States that were also written on, closed and judged again.
    pub continued: u64,
    /// What the sessions did, by name.
    pub operations: BTreeMap<&'static str, u64>,
    /// Wrong states by kind: how many, and the first.
    pub faults: BTreeMap<FaultKind, (u64, String)>,
}

impl Outcome {
    /// Counts a state: the clusters that leak in it, or what is wrong.
    pub fn state(&mut self, judged: Result<u64, Fault>) {
        self.states += 1;
        match judged {
            Ok(leaks) => {
                self.leaking += u64::from(leaks > 0);
                self.most_leaks = self.most_leaks.max(leaks);
            }
            Err(fault) => self.fault(fault),
        }
    }

    /// Notes what is wrong with a state that is counted already.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.entry(fault.kind).or_insert_with(|| (0, fault.text)).0 += 1;
    }

    /// Counts what a session did.
    pub fn did(&mut self, what: &'static str, times: u64) {
        *self.operations.entry(what).or_default() += times;
    }

    /// States in which something is wrong.
    #[must_use]
    pub fn faulty(&self) -> u64 {
        self.faults.values().map(|(count, _)| count).sum()
    }

    /// Adds what was found in others.
    pub fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.events += other.events;
        self.states += other.states;
        self.leaking += other.leaking;
        self.most_leaks = self.most_leaks.max(other.most_leaks);
        self.continued += other.continued;
        for (what, times) in other.operations {
            self.did(what, times);
        }
        for (kind, (count, first)) in other.faults {
            self.faults.entry(kind).or_insert_with(|| (0, first)).0 += count;
        }
    }

    /// The first fault of each kind, in words; empty if there is none.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.faults.iter().map(|(kind, (count, first))| format!("{count} states: {}: {first}", kind.words())).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, events, states, leaking, most_leaks, continued, .. } = self;
        write!(
            f,
            "{states} states of {sessions} sessions with {events} events: {leaking} leak (at most {most_leaks} "
        )?;
        write!(f, "clusters), {continued} were used on, {} are wrong", self.faulty())
    }
}
