//! The Python half: a virtual environment with tools under `target/`, and one with nothing but the wheel, where it is
//! tested as people have it: built from the source distribution, installed by pip.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, Failure};
use crate::stamp::Stamp;
use crate::system::{self, Need};
use crate::tally;
use crate::test::Report;

/// What the extension module is made from.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "pyproject.toml", "core", "native", "py"];

/// Builds the module into the environment, then lints, type checks and tests.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    let venv = environment()?;
    let installed = install(&venv)?;
    // The tests compare with what the command line prints.
    run::call(run::cargo("").args(["build", "-q", "-p", "qcowkit"]))?;
    report.check("python: ruff", tool(&venv, "ruff").args(["check", "py", "examples"]));
    report.check("python: ruff format", tool(&venv, "ruff").args(["format", "--check", "py", "examples"]));
    report.check("python: mypy", tool(&venv, "mypy").args(["py/python", "py/tests", "examples"]));
    let stubs = ["-m", "mypy.stubtest", "qcowkit", "--concise", "--mypy-config-file", "pyproject.toml"];
    let allowed = ["--allowlist", "py/stubtest-allowlist.txt", "--ignore-unused-allowlist"];
    report.check("python: stubs", tool(&installed, "python").args(stubs).args(allowed));
    report.runner(
        "python: tests",
        tool(&installed, "python").args(["-m", "pytest", "py/tests"]).env("QCOWKIT_PROGRAM", run::program()),
        tally::pytest,
    )
}

/// The virtual environment with the tools of the dependency group `test`.
fn environment() -> Result<PathBuf, Failure> {
    let venv = run::root().join("target").join("venv");
    let python = system::python().ok_or_else(|| Failure::new("no Python 3.11 or newer with venv"))?;
    let version = run::ask(run::command(&python).args(["-c", "import sys; print(sys.version, sys.base_prefix)"]))
        .unwrap_or_default();
    let inputs = ["pyproject.toml", "py/constraints.txt"];
    Stamp::new("venv", &inputs, &[&version], program(&venv, "maturin"))?.step(|| {
        run::call(run::command(&python).args(["-m", "venv", "--clear"]).arg(&venv))?;
        // An older pip knows no dependency groups.
        let pip = || {
            let mut pip = tool(&venv, "python");
            pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "py/constraints.txt"]);
            pip
        };
        run::call(pip().args(["--upgrade", "pip"]))?;
        run::call(pip().args(["--group", "test"]))
    })?;
    Ok(venv)
}

/// `cargo xtask bench python`: an optimised wheel beside the other libraries for qcow2 in Python. Writes the page that
/// docs has of it.
pub(crate) fn bench() -> Result<(), Failure> {
    run::heading("set-up");
    system::provide(&[Need::Qemu, Need::Venv])?;
    let venv = environment()?;
    let wheels = run::target("dist")?.join("release");
    let _ = std::fs::remove_dir_all(&wheels);
    run::call(
        tool(&venv, "maturin")
            .args(["build", "--quiet", "--release", "--out"])
            .arg(&wheels)
            .env("VIRTUAL_ENV", &venv)
            .env("CARGO_TARGET_DIR", run::root().join("target").join("python")),
    )?;
    let beside = run::root().join("target").join("venv-bench");
    run::call(tool(&venv, "python").args(["-m", "venv", "--clear"]).arg(&beside))?;
    let pip = || {
        let mut pip = tool(&beside, "python");
        pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "py/constraints.txt"]);
        pip
    };
    run::call(pip().args(["--upgrade", "pip"]))?;
    run::call(pip().args(["--group", "bench"]))?;
    run::call(pip().arg(only(&wheels, ".whl")?))?;
    run::heading("python");
    run::call(tool(&beside, "python").args(["py/bench/beside.py", "--write", "docs/benchmarks-python.md"]))
}

/// An environment that is empty but for the wheel, which is built from the source distribution. The tools of the other
/// environment are added afterwards, by a line that says where they are.
fn install(venv: &Path) -> Result<PathBuf, Failure> {
    let version = run::ask(run::command(run::rustc()).arg("--version")).unwrap_or_default();
    let installed = run::root().join("target").join("venv-wheel");
    let python = program(&installed, "python");
    Stamp::new("python-wheel", &SOURCES, &[&version, &venv.to_string_lossy()], python)?.step(|| {
        let wheel = wheel(venv)?;
        run::call(tool(venv, "python").args(["-m", "venv", "--clear"]).arg(&installed))?;
        run::call(
            tool(&installed, "python")
                .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index"])
                .arg(&wheel),
        )?;
        // Alone: nothing else is needed to use it.
        let alone = "import qcowkit; assert qcowkit.probe(bytes(512))['format'] == 'raw'";
        run::call(tool(&installed, "python").args(["-I", "-c", alone]))?;
        let packages = |venv: &Path| {
            let ask = "import sysconfig; print(sysconfig.get_path('purelib'))";
            run::ask(tool(venv, "python").args(["-c", ask])).map(|path| path.trim().to_owned())
        };
        let missing = || Failure::new("where an environment has its packages cannot be told");
        let (tools, here) = (packages(venv).ok_or_else(missing)?, packages(&installed).ok_or_else(missing)?);
        std::fs::write(Path::new(&here).join("tools.pth"), format!("{tools}\n"))?;
        Ok(())
    })?;
    Ok(installed)
}

/// The wheel, built from the source distribution, so that what that lacks is found missing.
fn wheel(venv: &Path) -> Result<PathBuf, Failure> {
    let dist = run::target("dist")?;
    let (source, wheels) = (dist.join("source"), dist.join("wheels"));
    for old in [&source, &wheels] {
        let _ = std::fs::remove_dir_all(old);
        std::fs::create_dir_all(old)?;
    }
    run::call(tool(venv, "maturin").args(["sdist", "--out"]).arg(&dist))?;
    let archive = only(&dist, ".tar.gz")?;
    // The files get the time of now, not that in the archive: cargo goes by that.
    let unpack = "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter=\
                  lambda file, path: file.replace(mtime=__import__('time').time()))";
    run::call(tool(venv, "python").args(["-c", unpack]).arg(&archive).arg(&source))?;
    let root = only(&source, "")?;
    run::call(
        tool(venv, "maturin")
            .current_dir(root)
            .args(["build", "--quiet", "--profile", "dev", "--out"])
            .arg(&wheels)
            .env("VIRTUAL_ENV", venv)
            .env("CARGO_TARGET_DIR", run::root().join("target").join("python")),
    )?;
    std::fs::remove_file(archive)?;
    only(&wheels, ".whl")
}

/// The only entry of a folder whose name ends so.
fn only(folder: &Path, end: &str) -> Result<PathBuf, Failure> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        _ => Err(Failure::new(format!("{}: {} entries that end in '{end}'", folder.display(), found.len()))),
    }
}

fn tool(venv: &Path, name: &str) -> Command {
    run::command(program(venv, name))
}

fn program(venv: &Path, name: &str) -> PathBuf {
    venv.join(if cfg!(windows) { "Scripts" } else { "bin" }).join(name)
}
