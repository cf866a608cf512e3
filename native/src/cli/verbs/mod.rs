//! The verbs, each thin: a checked plan, a call, output.

pub(crate) mod analyze;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod discard;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod io;
pub(crate) mod lab;
pub(crate) mod map;

use std::io::Write;

use serde::Serialize;

/// Prints a report of our own as JSON: the same names and units as in Python and JavaScript.
pub(crate) fn print_json(out: &mut dyn Write, report: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}
