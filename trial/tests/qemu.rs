//! What QEMU writes can be cut like what the core writes: its log is understood, and its states are judged.

use qcowkit_trial::kinds::kind;
use qcowkit_trial::outcome::{FaultKind, Outcome};

#[test]
fn what_qemu_writes_is_cut_and_judged() {
    if std::process::Command::new("qemu-io").arg("--version").output().is_err() {
        println!("skipped: there is no qemu-io");
        return;
    }
    let kind = kind("qemu").unwrap();
    let mut outcome = Outcome::default();
    for seed in 1..=kind.sessions {
        // It panics when the log, replayed, is not the file that QEMU left.
        outcome.add((kind.trial)(seed, kind.budget));
    }
    println!("{outcome}\n{:#?}", outcome.complaints());
    assert!(outcome.states >= kind.least && outcome.events > 200, "{outcome}");
    for operation in ["write", "compressed write", "write zeroes", "discard", "flush"] {
        assert!(outcome.operations.contains_key(operation), "no {operation}");
    }
    // QEMU keeps refcounts above references too. (That data are there is another question: see docs/power-cuts.md.)
    assert!(!outcome.faults.contains_key(&FaultKind::Opens), "{:#?}", outcome.complaints());
}
