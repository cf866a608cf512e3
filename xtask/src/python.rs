//! The Python half: a virtual environment under `target/`, the extension module in it, lints and tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, Failure};
use crate::stamp::Stamp;
use crate::system;
use crate::tally;
use crate::test::Report;

/// What the extension module is made from.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "pyproject.toml", "core", "native", "py"];

/// Builds the module into the environment, then lints, type checks and tests.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    let venv = environment()?;
    build(&venv)?;
    // The tests compare with what the command line prints.
    run::call(run::cargo("").args(["build", "-q", "-p", "qcowkit"]))?;
    report.check("python: ruff", tool(&venv, "ruff").args(["check", "py", "examples"]));
    report.check("python: ruff format", tool(&venv, "ruff").args(["format", "--check", "py", "examples"]));
    report.check("python: mypy", tool(&venv, "mypy").args(["py/python", "py/tests", "examples"]));
    let stubs = ["-m", "mypy.stubtest", "qcowkit", "--concise", "--mypy-config-file", "pyproject.toml"];
    let allowed = ["--allowlist", "py/stubtest-allowlist.txt", "--ignore-unused-allowlist"];
    report.check("python: stubs", tool(&venv, "python").args(stubs).args(allowed));
    report.runner(
        "python: tests",
        tool(&venv, "python").args(["-m", "pytest", "py/tests"]).env("QCOWKIT_PROGRAM", run::program()),
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

/// The extension module and the facade, importable in the environment.
fn build(venv: &Path) -> Result<(), Failure> {
    let version = run::ask(run::command(run::rustc()).arg("--version")).unwrap_or_default();
    let module = run::root().join("py/python/qcowkit/_qcowkit.abi3.so");
    Stamp::new("python-module", &SOURCES, &[&version, &venv.to_string_lossy()], module)?.step(|| {
        run::call(
            tool(venv, "maturin")
                .args(["develop", "--quiet"])
                .env("VIRTUAL_ENV", venv)
                .env("CARGO_TARGET_DIR", run::root().join("target").join("python")),
        )
    })
}

fn tool(venv: &Path, name: &str) -> Command {
    run::command(program(venv, name))
}

fn program(venv: &Path, name: &str) -> PathBuf {
    venv.join(if cfg!(windows) { "Scripts" } else { "bin" }).join(name)
}
