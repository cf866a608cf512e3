//! Where the standard library of a target other than the host comes from.
//!
//! In this order: the toolchain has it; the toolchain has its source; Debian's `rustc-web` with its
//! source. The last two let cargo build it. No toolchain component is ever downloaded from here.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

pub(crate) const WASM: &str = "wasm32-unknown-unknown";
pub(crate) const I686: &str = "i686-unknown-linux-gnu";

pub(crate) const WASM_REMEDIES: &str = "
Rust's standard library for wasm32 comes from one of:
  - Debian 12 or newer:  apt-get install rustc-web rust-web-src
  - rustup:              rustup target add wasm32-unknown-unknown
";

pub(crate) const I686_REMEDIES: &str = "
Rust's standard library for 32-bit x86 comes from one of:
  - Debian 12 or newer:  apt-get install rustc-web rust-web-src gcc-multilib
  - rustup:              rustup target add i686-unknown-linux-gnu, and a C compiler that links with -m32
";

/// A way to compile for a target.
#[derive(Clone, Debug)]
pub(crate) enum Std {
    /// The toolchain has the target.
    Installed,
    /// Cargo builds the standard library with this compiler, whose source is beside it.
    Built {
        /// `None`: the toolchain's own.
        rustc: Option<PathBuf>,
        /// The linker, where the compiler brings none.
        linker: Option<PathBuf>,
    },
}

/// How to compile for wasm32, if that is possible here.
pub(crate) fn wasm32() -> Option<Std> {
    let rust_lld = || {
        let sysroot = sysroot(run::rustc())?;
        let host = run::ask(run::command(run::rustc()).args(["--print", "host-tuple"]))?;
        let lld = sysroot.join("lib/rustlib").join(host).join("bin/rust-lld");
        lld.exists().then_some(lld)
    };
    find(WASM, || rust_lld().or_else(|| run::find_program(&["rust-lld", "wasm-ld"])))
}

/// How to compile for 32-bit x86, if that is possible here.
pub(crate) fn i686() -> Option<Std> {
    find(I686, || None)
}

impl Std {
    /// Adds to a `cargo build` or `cargo test` what it needs for this target. `libraries` are the parts
    /// of the standard library to build where it is not installed.
    pub(crate) fn apply(&self, cargo: &mut Command, target: &str, libraries: &str) {
        cargo.args(["--target", target]);
        if let Self::Built { rustc, linker } = self {
            cargo.arg(format!("-Zbuild-std={libraries}")).env("RUSTC_BOOTSTRAP", "1");
            if let Some(rustc) = rustc {
                cargo.env("RUSTC", rustc);
                cargo.env("RUSTDOC", rustc.with_file_name("rustdoc"));
            }
            if let Some(linker) = linker {
                let key = target.to_uppercase().replace('-', "_");
                cargo.env(format!("CARGO_TARGET_{key}_LINKER"), linker);
            }
        }
    }

    /// Adds what makes a standard library that is built here small: no texts of panics, and no code that prints them (a
    /// panic is a trap then, which is all that JavaScript sees of one anyway), and its shorter algorithms. The linker writes
    /// to `map` what lies where.
    pub(crate) fn for_size(&self, cargo: &mut Command, map: &Path) {
        let map = format!("-Clink-arg=-Map={}", map.display());
        let mut flags = vec![map.as_str()];
        if let Self::Built { .. } = self {
            flags.extend([
                "-Zunstable-options",
                "-Cpanic=immediate-abort",
                "-Zfmt-debug=shallow",
                "-Zlocation-detail=none",
                // SHA-2 in loops, not written out round by round.
                "--cfg=sha2_backend=\"soft\"",
                "--cfg=sha2_backend_soft=\"compact\"",
            ]);
            cargo.arg("-Zbuild-std-features=optimize_for_size");
        }
        let flags: Vec<String> = flags.iter().map(|flag| format!("'{flag}'")).collect();
        cargo.arg("--config").arg(format!("build.rustflags=[{}]", flags.join(",")));
    }

    /// The compiler and the way, for stamps and for people.
    pub(crate) fn describe(&self) -> String {
        let version = |rustc: &Path| run::ask(run::command(rustc).arg("--version")).unwrap_or_else(|| "unknown".into());
        match self {
            Self::Installed => format!("in the toolchain ({})", version(&run::rustc())),
            Self::Built { rustc: None, .. } => {
                format!("built from the toolchain's source ({})", version(&run::rustc()))
            }
            Self::Built { rustc: Some(rustc), .. } => {
                format!("built from source for {} ({})", rustc.display(), version(rustc))
            }
        }
    }
}

fn find(target: &str, linker: impl FnOnce() -> Option<PathBuf>) -> Option<Std> {
    let own = sysroot(run::rustc())?;
    if own.join("lib/rustlib").join(target).join("lib").is_dir() {
        return Some(Std::Installed);
    }
    match from_source()? {
        Std::Built { rustc: Some(rustc), .. } => Some(Std::Built { rustc: Some(rustc), linker: linker() }),
        own => Some(own),
    }
}

/// A way to compile the standard library anew.
pub(crate) fn from_source() -> Option<Std> {
    if has_source(&sysroot(run::rustc())?) {
        return Some(Std::Built { rustc: None, linker: None });
    }
    let debian = Path::new("/usr/bin/rustc");
    let usable = has_source(&sysroot(debian)?) && minor_version(debian)? >= minimum()?;
    usable.then(|| Std::Built { rustc: Some(debian.to_path_buf()), linker: None })
}

pub(crate) fn sysroot(rustc: impl AsRef<std::ffi::OsStr>) -> Option<PathBuf> {
    run::ask(run::command(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file()
}

/// 96 for `rustc 1.96.0 (...)`.
fn minor_version(rustc: &Path) -> Option<u32> {
    minor(run::ask(run::command(rustc).arg("--version"))?.split(' ').nth(1)?)
}

/// The workspace's `rust-version`, which xtask's own package inherits.
fn minimum() -> Option<u32> {
    minor(env!("CARGO_PKG_RUST_VERSION"))
}

fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_minor_number() {
        assert_eq!(minor("1.96.0"), Some(96));
        assert_eq!(minor("1.90"), Some(90));
        assert_eq!(minor("nonsense"), None);
        assert!(minimum().is_some());
    }

    #[test]
    fn a_built_library_names_its_compiler_and_linker_to_cargo() {
        let std = Std::Built { rustc: Some("/usr/bin/rustc".into()), linker: Some("/x/rust-lld".into()) };
        let mut cargo = Command::new("cargo");
        std.apply(&mut cargo, WASM, "core,alloc");
        let arguments: Vec<_> = cargo.get_args().map(|part| part.to_string_lossy()).collect();
        assert_eq!(arguments, ["--target", WASM, "-Zbuild-std=core,alloc"]);
        let has = |key: &str| cargo.get_envs().any(|(name, value)| name == key && value.is_some());
        assert!(has("RUSTC") && has("RUSTC_BOOTSTRAP") && has("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER"));
    }
}
