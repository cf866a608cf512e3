//! `cargo xtask doctor`: what this machine has, what it lacks, and the line that mends it.

use crate::run::{self, Failure};
use crate::system::{self, Need};
use crate::toolchain;

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = arguments.first() {
        return Err(Failure::new(format!("unexpected argument {unknown}")));
    }
    for program in ["cargo", "rustc", "cc", "git", "qemu-img", "node", "npm"] {
        let version = run::ask(run::command(program).arg("--version"));
        let first = version.as_deref().and_then(|text| text.lines().next()).unwrap_or("not found");
        run::say(&format!("{program:<10}{first}"));
    }
    let chromium = system::chromium().map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    run::say(&format!("{:<10}{chromium}", "chromium"));
    for (target, std) in [(toolchain::WASM, toolchain::wasm32()), (toolchain::I686, toolchain::i686())] {
        let how = std.map_or_else(|| "not to be had".to_owned(), |std| std.describe());
        run::say(&format!("std for {target}: {how}"));
    }
    let missing: Vec<Need> = Need::ALL.iter().copied().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        run::say("\nnothing is missing");
        return Ok(());
    }
    run::say("");
    for need in &missing {
        run::say(&format!("missing: {}", need.name()));
    }
    run::say(&format!("on Debian: {}", system::install_line(&system::packages_for(&missing))));
    if system::is_debian_like() && system::is_root() {
        run::say("(cargo xtask test runs that line by itself)");
    }
    Ok(())
}
