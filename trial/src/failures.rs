//! Storage that fails at one call after another.

use qcowkit_core::metadata::{AllocationPolicy, MetadataOptions};
use qcowkit_core::storage::{FailureRule, FailureScope, StorageErrorKind, StorageOperation};

/// Every call, those that change something, and the kinds of calls that are most unlike the others.
pub const SCOPES: [FailureScope; 5] = [
    FailureScope::Any,
    FailureScope::WriteSide,
    FailureScope::Only(StorageOperation::Barrier),
    FailureScope::Only(StorageOperation::Read),
    FailureScope::Only(StorageOperation::Discard),
];

/// Small caches, nothing that waits: every path of a commit is gone through.
#[must_use]
pub fn small_metadata() -> MetadataOptions {
    MetadataOptions {
        slice_bytes: 512,
        cache_bytes: 8 * 512,
        quarantine_bytes: 0,
        pass_discard_other: true,
        allocation: AllocationPolicy::FillHoles,
    }
}

/// Tries the failure of the first call, of the second, and so on, each alone and with all after it, until `run` says that
/// its rule did not strike any more. Gives how many did.
///
/// # Panics
/// When `run` says that something is wrong.
pub fn each_failure(scopes: &[FailureScope], mut run: impl FnMut(FailureRule) -> Result<bool, String>) -> u64 {
    let mut struck = 0;
    for &scope in scopes {
        for lasting in [false, true] {
            for nth in 1.. {
                let rule = FailureRule::nth(scope, nth).with_kind(StorageErrorKind::NoSpace);
                let rule = if lasting { rule.from_then_on() } else { rule };
                match run(rule.clone()) {
                    Ok(true) => struck += 1,
                    Ok(false) => break,
                    Err(error) => panic!("{rule:?}: {error}"),
                }
            }
        }
    }
    struck
}

/// The ways in which a call fails, and whether its failure must be told: holes, room that is asked for ahead, and a file
/// that is to become shorter are advice. A read that fails once may be tried again in the same call.
const FAULTS: [(&str, FailureScope, Fails, bool); 5] = [
    ("read", FailureScope::Only(StorageOperation::Read), Fails::Whole, true),
    ("write", FailureScope::Only(StorageOperation::Write), Fails::Whole, true),
    ("half a write", FailureScope::Only(StorageOperation::Write), Fails::Half, true),
    ("flush", FailureScope::Only(StorageOperation::Barrier), Fails::Whole, true),
    ("no space", FailureScope::WriteSide, Fails::NoSpace, false),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Whole,
    Half,
    NoSpace,
}

/// What a trial is given: the rule, and what is expected of it.
#[derive(Debug, Clone)]
pub struct Struck {
    /// The rule.
    pub rule: FailureRule,
    /// The caller must hear of it.
    pub told: bool,
}

impl Struck {
    /// Judges what a call answered while the rule held: `struck` says whether it did anything.
    ///
    /// # Errors
    /// An error without a failure, a failure without an error.
    pub fn answered<T, E: core::fmt::Debug>(&self, done: &Result<T, E>, struck: bool) -> Result<(), String> {
        match done {
            Err(error) if !struck => Err(format!("failed by itself: {error:?}")),
            Ok(_) if struck && self.told => Err("the failure was kept from the caller".into()),
            _ => Ok(()),
        }
    }
}

/// As [`each_failure`], for each fault by name: the N-th read, write, half of a write, flush fails, or there is no space
/// for what it asks; once and from then on. Each kind must have struck unless it is among `never`.
///
/// # Panics
/// When `run` says that something is wrong, or a fault never struck.
pub fn each_fault(never: &[&str], mut run: impl FnMut(&Struck) -> Result<bool, String>) -> u64 {
    let mut all = 0;
    for (name, scope, fails, told) in FAULTS {
        let mut struck = 0;
        for lasting in [false, true] {
            for nth in 1.. {
                let mut rule = FailureRule::nth(scope, nth);
                rule = match fails {
                    Fails::Whole => rule,
                    Fails::Half => rule.torn(),
                    Fails::NoSpace => rule.with_kind(StorageErrorKind::NoSpace),
                };
                let rule = if lasting { rule.from_then_on() } else { rule };
                let told = told && (lasting || name != "read");
                match run(&Struck { rule: rule.clone(), told }) {
                    Ok(true) => struck += 1,
                    Ok(false) => break,
                    Err(error) => panic!("{name}: {rule:?}: {error}"),
                }
            }
        }
        println!("{name}: {struck} failures");
        assert!(struck > 0 || never.contains(&name), "{name} never struck");
        all += struck;
    }
    all
}
