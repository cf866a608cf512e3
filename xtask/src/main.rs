//! Every routine of the project in one place: `cargo xtask VERB`.
//!
//! The crate has no dependencies, so that the first call compiles in seconds. Each routine does its own
//! set-up: what is missing is installed where that is possible and otherwise named together with the
//! line that installs it. Nothing is downloaded but packages from the ordinary registries.
//!
//! Top down: `main` picks a verb; `test`, `demo`, `bench`, `fuzz`, `crash`, `races`, `wasm` and `doctor` are the verbs;
//! `rust`, `python`, `wasm` and `tidy` know how one part of the house is built and tested; `system` and
//! `toolchain` know the machine; `run`, `tally` and `stamp` are the tools that all of them use.

mod bench;
mod crash;
mod demo;
mod doctor;
mod fuzz;
mod python;
mod races;
mod run;
mod rust;
mod stamp;
mod system;
mod tally;
mod test;
mod tidy;
mod toolchain;
mod wasm;
mod web;

use std::process::ExitCode;

use run::Failure;

/// What a verb is called, what it does in a line, and the function that does it.
type Verb = (&'static str, &'static str, fn(&[String]) -> Result<(), Failure>);

const VERBS: [Verb; 9] = [
    ("demo", "make an image, use it, discard from it under each policy, check it", demo::run),
    ("test", "set up, build and test everything, or only the PARTs named after it", test::run),
    ("bench", "time qcowkit beside qemu-img and write docs/benchmarks.md", bench::run),
    ("fuzz", "fuzz everything that takes bytes from strangers [TARGET...] [--seconds N] [--at-once N]", fuzz::run),
    (
        "crash",
        "cut the power in a million places [KIND...] [--seed N] [--states N] [--seconds N] [--jobs N]",
        crash::run,
    ),
    ("races", "the tests with many threads under the ThreadSanitizer [TEST...]", races::run),
    ("wasm", "build the npm package in wasm/ and the inspector in wasm/web/", wasm::run),
    ("web", "serve the inspector on this machine [--port N] [--images FOLDER]", web::run),
    ("doctor", "say what this machine has, what it lacks and how to get it", doctor::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        print!("{}", usage());
        return ExitCode::from(2);
    };
    if ["help", "--help", "-h"].contains(&name.as_str()) {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let Some((_, _, verb)) = VERBS.iter().find(|(verb, ..)| verb == name) else {
        run::complain(&format!("no verb {name}\n\n{}", usage()));
        return ExitCode::from(2);
    };
    match verb(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            run::complain(&format!("cargo xtask {name}: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let mut text = String::from("cargo xtask VERB\n\n");
    for (name, does, _) in VERBS {
        text.push_str(&format!("  {name:<8}{does}\n"));
    }
    text.push_str(&format!("\nParts of test: {}\n", test::part_names().join(", ")));
    text
}
