//! The browser half: the module, its JavaScript, and its tests in Node and in a real Chromium.

use std::path::PathBuf;

use crate::run::{self, Failure};
use crate::stamp::Stamp;
use crate::system::{self, Need};
use crate::tally;
use crate::test::Report;
use crate::toolchain::{self, Std, WASM};

/// What the package is made from.
const SOURCES: [&str; 7] =
    ["Cargo.toml", "Cargo.lock", "core", "wasm/Cargo.toml", "wasm/src", "wasm/package-lock.json", "xtask/bindgen"];

/// The verb `wasm`: builds the package.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = arguments.first() {
        return Err(Failure::new(format!("unexpected argument {unknown}")));
    }
    system::provide(&[Need::WasmStd, Need::Node])?;
    let std = standard_library()?;
    build(&std)?;
    page()?;
    run::say("the package is in wasm/: wasm/pkg/ is generated, wasm/dist/ compiled from wasm/js/");
    run::say("the inspector is in wasm/web/dist/: any server of files will do, cargo xtask web is one");
    Ok(())
}

/// The inspector's files, built first if need be.
pub(crate) fn inspector() -> Result<PathBuf, Failure> {
    system::provide(&[Need::WasmStd, Need::Node])?;
    build(&standard_library()?)?;
    page()?;
    Ok(run::root().join(PAGE))
}

/// Where the page is built.
const PAGE: &str = "wasm/web/dist";

/// Builds the package if it is not there as it is.
pub(crate) fn provide() -> Result<(), Failure> {
    build(&standard_library()?)
}

/// Builds the package and tests it.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    let std = standard_library()?;
    crate::rust::test_alloc_only(report, &std);
    let mut splitter = run::cargo("xtask");
    report.runner("wasm: the splitter", splitter.args(["test", "-p", "xtask-bindgen"]), tally::cargo)?;
    build(&std)?;
    page()?;
    let chromium = system::chromium().ok_or_else(|| Failure::new("no Chromium found"))?;
    report.check("wasm: types", run::command(script("tsc")).args(["--project", "wasm/tsconfig.json"]));
    report.check(
        "wasm: types of the inspector",
        run::command(script("tsc")).args(["--project", "wasm/web/tsconfig.json"]),
    );
    // What the package reports has to be what the command line prints.
    run::call(run::cargo("").args(["build", "-q", "-p", "qcowkit"]))?;
    let program = run::root().join("target/debug/qcowkit");
    let node = |folder: &str| {
        let mut node = run::command("node");
        // Much of a test is waiting for QEMU or the browser: two files at a time.
        node.args(["--test", "--test-concurrency=2", "--test-reporter=spec", folder]);
        node.env("QCOWKIT_CHROMIUM", &chromium).env("QCOWKIT_PROGRAM", &program);
        node
    };
    report.runner("wasm: tests in Node", &mut node("wasm/test/node/"), tally::node)?;
    report.runner("wasm: tests in Chromium", &mut node("wasm/test/browser/"), tally::node)?;
    report.runner("wasm: tests of the inspector", &mut node("wasm/test/inspector/"), tally::node)
}

/// How wasm-opt makes the pieces of the module smaller.
const SHRINK: [&str; 3] = ["-Oz", "--strip-debug", "--strip-producers"];

fn standard_library() -> Result<Std, Failure> {
    let std = toolchain::wasm32().ok_or_else(|| Failure::new(toolchain::WASM_REMEDIES))?;
    run::say(&format!("   the standard library for {WASM} is {}", std.describe()));
    Ok(std)
}

/// Compiles the module, writes the JavaScript for it and shrinks it; compiles the TypeScript layer.
fn build(std: &Std) -> Result<(), Failure> {
    packages()?;
    let pkg = run::root().join("wasm/pkg");
    Stamp::new("wasm-package", &SOURCES, &[&std.describe()], pkg.join("qcowkit_parts.js"))?.step(|| {
        let mut cargo = run::cargo("wasm");
        cargo.args(["build", "-q", "-p", "qcowkit-wasm", "--profile", "wasm"]);
        std.apply(&mut cargo, WASM, "std,panic_abort");
        let module = run::root().join("target/wasm").join(WASM).join("wasm/qcowkit_wasm.wasm");
        let map = module.with_extension("map");
        std.for_size(&mut cargo, &map);
        run::call(&mut cargo)?;
        // The very wasm-bindgen that the module was compiled against: no version can differ.
        // What an earlier version wrote there would be packed.
        let _ = std::fs::remove_dir_all(&pkg);
        run::call(run::cargo("xtask").args(["run", "-q", "-p", "xtask-bindgen", "--"]).args([&module, &map, &pkg]))?;
        for file in std::fs::read_dir(&pkg)? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "wasm") {
                run::call(run::command(script("wasm-opt")).args(SHRINK).arg(&file).arg("-o").arg(&file))?;
            }
        }
        Ok(())
    })?;
    let inputs = ["wasm/js", "wasm/package-lock.json", "wasm/src"];
    Stamp::new("wasm-dist", &inputs, &[], run::root().join("wasm/dist/api.js"))?.step(|| {
        let _ = std::fs::remove_dir_all(run::root().join("wasm/dist"));
        run::call(run::command(script("tsc")).args(["--project", "wasm/js/tsconfig.json"]))
    })
}

/// Builds the inspector out of the package.
fn page() -> Result<(), Failure> {
    let root = run::root();
    let inputs =
        ["wasm/dist", "wasm/pkg", "wasm/package-lock.json", "wasm/web/src", "wasm/web/public", "wasm/web/index.html"];
    let config = std::fs::read_to_string(root.join("wasm/web/vite.config.mjs"))?;
    Stamp::new("inspector", &inputs, &[&config], root.join(PAGE).join("sw.js"))?.step(|| {
        let mut vite = run::command(script("vite"));
        run::call(vite.args(["build", "wasm/web", "--logLevel", "warn", "--config", "wasm/web/vite.config.mjs"]))
    })
}

/// The packages from npm; none of them may fetch a browser.
fn packages() -> Result<(), Failure> {
    let version = run::ask(run::command("node").arg("--version")).unwrap_or_default();
    let inputs = ["wasm/package.json", "wasm/package-lock.json"];
    Stamp::new("npm", &inputs, &[&version], script("tsc"))?.step(|| {
        run::call(
            run::command("npm")
                .args(["ci", "--no-audit", "--no-fund", "--prefix", "wasm"])
                .env("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1"),
        )
    })
}

/// A program that an npm package brought.
fn script(name: &str) -> PathBuf {
    run::root().join("wasm/node_modules/.bin").join(name)
}
