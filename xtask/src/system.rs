//! What the machine has, and the one `apt-get install` that brings what it lacks.

use std::path::{Path, PathBuf};

use crate::run::{self, Failure};
use crate::toolchain;

/// Something that a routine needs from outside the language toolchains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// qemu-img, qemu-io and qemu-nbd: the reference that the differential tests ask.
    Qemu,
    /// Programs that make file systems, and unmount what FUSE mounted: for images on them, and for a real file system
    /// inside an image. Mounting is root's, so nobody else needs them.
    FileSystems,
    /// A Python with `venv` and `pip`.
    Venv,
    /// Node and npm.
    Node,
    /// A Chromium that is already installed; none is ever downloaded.
    Chromium,
    /// The standard library for wasm32.
    WasmStd,
    /// The standard library and the C start-up files for 32-bit x86.
    Std32,
    /// A C++ compiler, for the fuzzer's own loop.
    Cxx,
    /// GNU time, for the benchmarks.
    Time,
}

impl Need {
    pub(crate) const ALL: [Self; 9] = [
        Self::Qemu,
        Self::FileSystems,
        Self::Venv,
        Self::Node,
        Self::Chromium,
        Self::WasmStd,
        Self::Std32,
        Self::Cxx,
        Self::Time,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-img, qemu-io, qemu-nbd",
            Self::FileSystems => "mkfs for ext4, xfs, btrfs and vfat, fusermount3",
            Self::Venv => "python3 (3.11 or newer) with venv",
            Self::Node => "node (18 or newer) and npm",
            Self::Chromium => "chromium",
            Self::WasmStd => "Rust's standard library for wasm32",
            Self::Std32 => "Rust's and C's libraries for 32-bit x86",
            Self::Cxx => "a C++ compiler",
            Self::Time => "GNU time",
        }
    }

    /// Debian's packages that bring it.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu-utils"],
            Self::FileSystems => &["e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools", "fuse3"],
            Self::Venv => &["python3-venv"],
            Self::Node => &["nodejs", "npm"],
            Self::Chromium => &["chromium"],
            Self::WasmStd => &["rustc-web", "rust-web-src"],
            Self::Std32 => &["rustc-web", "rust-web-src", "gcc-multilib"],
            Self::Cxx => &["g++"],
            Self::Time => &["time"],
        }
    }

    pub(crate) fn is_met(self) -> bool {
        let has = |name: &str| run::find_program(&[name]).is_some();
        match self {
            Self::Qemu => has("qemu-img") && has("qemu-io") && has("qemu-nbd"),
            Self::FileSystems => {
                let makes = |name: &&str| has(name) || in_sbin(name);
                let programs = ["mkfs.ext4", "debugfs", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "fusermount3"];
                !is_root() || programs.iter().all(makes)
            }
            Self::Venv => python().is_some(),
            Self::Node => has("node") && has("npm"),
            Self::Chromium => chromium().is_some(),
            Self::WasmStd => toolchain::wasm32().is_some(),
            Self::Std32 => toolchain::i686().is_some() && links_32_bit(),
            Self::Cxx => has("c++") || has("g++") || has("clang++"),
            Self::Time => has("time"),
        }
    }
}

/// Installs what is missing of these. On a Debian-like system, as root, that is one `apt-get install`;
/// elsewhere the line is named and the routine stops.
pub(crate) fn provide(needs: &[Need]) -> Result<(), Failure> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.name()).collect();
    run::say(&format!("   missing: {}", names.join("; ")));
    let packages = packages_for(&missing);
    if !is_debian_like() {
        return Err(Failure::new(format!(
            "please install: {}. (On Debian these are the packages {}.){}",
            names.join("; "),
            packages.join(" "),
            remedies(&missing)
        )));
    }
    if !is_root() {
        let line = install_line(&packages);
        return Err(Failure::new(format!(
            "run this as root, then this command again:\n\n    {line}\n{}",
            remedies(&missing)
        )));
    }
    run::call(run::command("apt-get").args(["-q", "update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    run::call(
        run::command("apt-get")
            .args(["-q", "install", "-y", "--no-install-recommends"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let still: Vec<&str> = missing.iter().filter(|need| !need.is_met()).map(|need| need.name()).collect();
    if still.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!(
            "{} installed, but still missing: {}.{}",
            packages.join(" "),
            still.join("; "),
            remedies(&missing)
        )))
    }
}

/// The packages of these needs, each once.
pub(crate) fn packages_for(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = Vec::new();
    for package in needs.iter().flat_map(|need| need.packages()) {
        if !packages.contains(package) {
            packages.push(package);
        }
    }
    packages
}

/// The line that installs packages on a Debian-like system.
pub(crate) fn install_line(packages: &[&str]) -> String {
    format!("apt-get update && apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// A Python new enough that can make virtual environments.
pub(crate) fn python() -> Option<PathBuf> {
    let test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";
    ["python3", "python", "/usr/bin/python3"]
        .iter()
        .find(|name| run::ask(run::command(name).args(["-c", test])).is_some())
        .map(PathBuf::from)
}

/// The browser for the browser tests: `QCOWKIT_CHROMIUM`, or what the search path has.
pub(crate) fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("QCOWKIT_CHROMIUM").map(PathBuf::from).filter(|path| path.is_file());
    named.or_else(|| {
        run::find_program(&["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"])
    })
}

pub(crate) fn is_debian_like() -> bool {
    Path::new("/etc/debian_version").exists() && run::find_program(&["apt-get"]).is_some()
}

pub(crate) fn is_root() -> bool {
    run::ask(run::command("id").arg("-u")).is_some_and(|id| id == "0")
}

/// What else helps where Debian's packages are not to be had.
fn remedies(missing: &[Need]) -> String {
    let mut text = String::new();
    if missing.contains(&Need::WasmStd) {
        text.push_str(toolchain::WASM_REMEDIES);
    }
    if missing.contains(&Need::Std32) {
        text.push_str(toolchain::I686_REMEDIES);
    }
    text
}

/// Debian keeps administrators' tools out of a user's search path.
fn in_sbin(name: &str) -> bool {
    ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).is_file())
}

/// Whether the C compiler has the start-up files that a 32-bit program is linked with.
fn links_32_bit() -> bool {
    run::ask(run::command("cc").args(["-m32", "-print-file-name=crt1.o"]))
        .is_some_and(|file| Path::new(&file).is_absolute() && Path::new(&file).exists())
        && run::ask(run::command("cc").args(["-m32", "-print-libgcc-file-name"]))
            .is_some_and(|file| Path::new(&file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_two_needs_share_is_named_once() {
        let packages = packages_for(&[Need::WasmStd, Need::Std32]);
        assert_eq!(packages, ["rustc-web", "rust-web-src", "gcc-multilib"]);
        assert!(install_line(&packages).ends_with("rustc-web rust-web-src gcc-multilib"));
    }
}
