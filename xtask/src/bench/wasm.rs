//! The package for browsers beside the command line: `cargo xtask bench wasm`.

use std::path::Path;

use crate::run::{self, Failure};
use crate::system::{self, Need};
use crate::wasm;

/// The word that asks for it.
pub(super) const WORD: &str = "wasm";

/// Times both on the same images in one run, and writes the table down. Fails where the module takes more than three times
/// as long.
pub(super) fn run(folder: &Path) -> Result<(), Failure> {
    system::provide(&[Need::WasmStd, Need::Node])?;
    wasm::provide()?;
    let mut node = run::command("node");
    node.arg(run::root().join("wasm/bench/bench.mjs")).arg(folder).arg(folder.join("qcowkit"));
    let outcome = run::watch(&mut node)?;
    let table: Vec<&str> = outcome.lines.iter().map(String::as_str).filter(|line| line.starts_with('|')).collect();
    let page = format!(
        "# The module for browsers beside the command line\n\n\
         Written by `cargo xtask bench wasm`: medians of one run on one machine. Both read the same file where it is; the\n\
         command line's time is that of a whole process, the module's begins with the module loaded, in Node.\n\n{}\n",
        table.join("\n")
    );
    std::fs::write(run::root().join("docs/benchmarks-wasm.md"), page)?;
    run::say("written to docs/benchmarks-wasm.md");
    if outcome.success { Ok(()) } else { Err(Failure::new("wasm takes more than three times as long as native")) }
}
