//! Storage that fails at one call after another.

use qcowkit_core::storage::{FailureRule, FailureScope, StorageErrorKind, StorageOperation};

/// Every call, those that change something, and the kinds of calls that are most unlike the others.
pub const SCOPES: [FailureScope; 5] = [
    FailureScope::Any,
    FailureScope::WriteSide,
    FailureScope::Only(StorageOperation::Barrier),
    FailureScope::Only(StorageOperation::Read),
    FailureScope::Only(StorageOperation::Discard),
];

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
