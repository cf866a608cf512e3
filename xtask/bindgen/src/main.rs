//! Reads a compiled module and writes the packages for the web, for Node and for bundlers.
//!
//! `xtask-bindgen MODULE.wasm OUT` writes `OUT/web`, `OUT/nodejs` and `OUT/bundler`. It is the library
//! behind the wasm-bindgen command line, pinned by `Cargo.lock` to the very version that the module was
//! compiled against; an installed command line of another version would refuse it. It is a crate of its
//! own so that `xtask` itself stays free of dependencies.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wasm_bindgen_cli_support::Bindgen;

/// The names of the three packages, each a folder.
const PACKAGES: [&str; 3] = ["web", "nodejs", "bundler"];

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [module, out] = arguments.as_slice() else {
        return fail("usage: xtask-bindgen MODULE.wasm OUT");
    };
    for package in PACKAGES {
        if let Err(error) = generate(module, package, &out.join(package)) {
            return fail(&format!("{package}: {error}"));
        }
    }
    ExitCode::SUCCESS
}

fn generate(module: &Path, package: &str, out: &Path) -> Result<(), String> {
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).out_name("qcowkit").typescript(true);
    match package {
        "web" => bindgen.omit_default_module_path(false).web(true),
        "nodejs" => bindgen.nodejs_module(true),
        _ => bindgen.bundler(true),
    }
    .map_err(|error| format!("{error:#}"))?;
    bindgen.generate(out).map_err(|error| format!("{error:#}"))
}

#[expect(clippy::print_stderr, reason = "a command-line tool says why it stops")]
fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
