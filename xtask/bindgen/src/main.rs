//! Reads a compiled module and writes the JavaScript that loads it and calls it.
//!
//! `xtask-bindgen MODULE.wasm OUT` writes `OUT/qcowkit.js` with its types, and `OUT/qcowkit_bg.wasm`: the form for the
//! web, which Node and bundlers load too. It is the library behind the wasm-bindgen command line, pinned by `Cargo.lock`
//! to the very version that the module was compiled against; an installed command line of another version would refuse
//! it. It is a crate of its own so that `xtask` itself stays free of dependencies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [module, out] = arguments.as_slice() else {
        return fail("usage: xtask-bindgen MODULE.wasm OUT");
    };
    match generate(module, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn generate(module: &Path, out: &Path) -> Result<(), String> {
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).out_name("qcowkit").typescript(true).omit_default_module_path(false);
    bindgen.web(true).map_err(|error| format!("{error:#}"))?;
    bindgen.generate(out).map_err(|error| format!("{error:#}"))
}

#[expect(clippy::print_stderr, reason = "a command-line tool says why it stops")]
fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
