//! `cargo xtask crash [KIND...] [--seed N] [--states N] [--seconds N] [--jobs N]`: the power cuts of the tests as a long
//! run, with all that speed the compiler can give.

use crate::run::{self, Failure};

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let mut cargo = run::cargo("");
    cargo.args(["run", "-q", "--release", "-p", "qcowkit-trial", "--"]).args(arguments);
    run::call(&mut cargo)
}
