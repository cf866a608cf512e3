//! `cargo xtask races [TEST...]`: the tests with many threads under the ThreadSanitizer.
//!
//! It sees what the standard library's locks order only if that library is compiled for it too, so the library is built
//! from its source ([`toolchain::from_source`]). The sanitizer's runtime is the one that every rustup toolchain has.

use std::path::{Path, PathBuf};

use crate::run::{self, Failure};
use crate::toolchain;

/// Tests of `native` in which threads share an image.
const TESTS: [&str; 2] = ["shared_image", "long_reads"];

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let host = run::ask(run::command(run::rustc()).args(["--print", "host-tuple"]))
        .ok_or_else(|| Failure::new("the compiler does not say which machine it is for"))?;
    let std = toolchain::from_source().ok_or_else(|| {
        Failure::new("the standard library's source is missing: on Debian, apt-get install rustc-web rust-web-src")
    })?;
    let libraries = toolchain::sysroot(run::rustc()).unwrap_or_default().join("lib/rustlib").join(&host);
    let runtime = runtime(&libraries.join("lib"))
        .ok_or_else(|| Failure::new(format!("no ThreadSanitizer runtime in {}", libraries.display())))?;
    // The GNU linker of Debian 12 does not find the versioned names that the runtime takes from the C library.
    let linker = format!("-Clink-arg=-B{} -Clink-arg=-fuse-ld=lld", libraries.join("bin/gcc-ld").display());
    let runtime = format!("-Clink-arg=-Wl,--whole-archive,{},--no-whole-archive", runtime.display());
    let flags = format!("-Zsanitizer=thread -Zexternal-clangrt {linker} {runtime} -Clink-args=-lm -Clink-arg=-lc");
    let mut cargo = run::cargo("races");
    cargo.args(["test", "-p", "qcowkit"]);
    let chosen = if arguments.is_empty() { TESTS.map(str::to_owned).to_vec() } else { arguments.to_vec() };
    chosen.iter().for_each(|test| {
        cargo.args(["--test", test]);
    });
    std.apply(&mut cargo, &host, "std,test,panic_unwind");
    run::call(cargo.env("RUSTFLAGS", flags))
}

fn runtime(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.to_string_lossy().ends_with("_rt.tsan.a"))
}
