//! The Rust half: format, lints, feature sets, tests, documentation, and the core where memory is small.

use crate::run::{self, Failure};
use crate::tally::{self, Tally};
use crate::test::Report;
use crate::toolchain::{self, I686, WASM};

/// Crates that are tested from the language they are for, or with it, not by this `cargo test`.
const BOUND: [&str; 3] = ["qcowkit-py", "qcowkit-wasm", "xtask-bindgen"];

/// Feature sets that must build, apart from the default one: features only add.
const FEATURE_SETS: [(&str, &str); 8] = [
    ("qcowkit-core", ""),
    ("qcowkit-core", "std"),
    ("qcowkit-core", "serde"),
    ("qcowkit-core", "zlib"),
    ("qcowkit-core", "zstd"),
    ("qcowkit", ""),
    ("qcowkit", "cli"),
    ("qcowkit", "fuse"),
];

/// Everything that a plain Rust toolchain can prove.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    report.check("rust: format", run::cargo("").args(["fmt", "--all", "--", "--check"]));
    report.check(
        "rust: clippy",
        run::cargo("").args(["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    for (package, features) in FEATURE_SETS {
        report.check(
            &format!("rust: {package} with features '{features}'"),
            run::cargo("").args(["check", "-q", "-p", package, "--no-default-features", "--features", features]),
        );
    }
    report.check(
        "rust: documentation",
        run::cargo("").args(["doc", "-q", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    );
    let excluded = BOUND.iter().flat_map(|package| ["--exclude", package]);
    let mut cargo = run::cargo("");
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(excluded).args(["--", "--show-output"]);
    let outcome = run::watch(&mut cargo)?;
    let mut tally = Tally::read(&outcome.lines, outcome.success, tally::cargo);
    let skipped = tally::skipped_inside(&outcome.lines).min(tally.passed);
    tally.passed -= skipped;
    tally.skipped += skipped;
    report.add("rust: tests", tally);
    Ok(())
}

/// The core's tests where a `usize` has 32 bits, as in a browser.
pub(crate) fn test_32_bit(report: &mut Report) -> Result<(), Failure> {
    let std = toolchain::i686().ok_or_else(|| Failure::new(toolchain::I686_REMEDIES))?;
    run::say(&format!("   the standard library for {I686} is {}", std.describe()));
    let mut cargo = run::cargo("i686");
    cargo.args(["test", "-p", "qcowkit-core", "--lib", "--tests", "--no-fail-fast"]);
    std.apply(&mut cargo, I686, "std,panic_abort");
    report.runner("32-bit: core's tests", &mut cargo, tally::cargo)
}

/// Why the 32-bit tests cannot run on this machine.
pub(crate) fn not_x86_linux() -> Option<&'static str> {
    let possible = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    (!possible).then_some("a 64-bit x86 Linux is needed to run 32-bit programs")
}

/// The core without `std`: for wasm32, with nothing but `core` and `alloc` to link to. (`zlib` is left out: zlib-rs with
/// Rust's allocator links `std`, which wasm32 in a browser has.)
pub(crate) fn test_alloc_only(report: &mut Report, std: &toolchain::Std) {
    for features in ["", "serde,zstd"] {
        let mut cargo = run::cargo("wasm");
        cargo.args(["build", "-q", "-p", "qcowkit-core", "--no-default-features", "--features", features]);
        std.apply(&mut cargo, WASM, "core,alloc");
        report.check(&format!("wasm: core with alloc only, features '{features}'"), &mut cargo);
    }
}
