//! `cargo xtask test`: sets up, builds and tests every part of the house and adds up what was counted.

use std::time::Instant;

use crate::run::{self, Failure};
use crate::system::{self, Need};
use crate::tally::Tally;
use crate::{demo, fuzz, python, rust, tidy, wasm};

/// A part of the house that can be tested by itself.
struct Part {
    name: &'static str,
    /// What it needs from outside the language toolchains.
    needs: &'static [Need],
    /// Why it cannot be done on this kind of machine at all, if so.
    obstacle: fn() -> Option<&'static str>,
    run: fn(&mut Report) -> Result<(), Failure>,
}

const PARTS: [Part; 7] = [
    Part { name: "tidy", needs: &[], obstacle: nothing, run: tidy::test },
    Part { name: "rust", needs: &[Need::Qemu, Need::FileSystems], obstacle: nothing, run: rust::test },
    Part { name: "32-bit", needs: &[Need::Std32], obstacle: rust::not_x86_linux, run: rust::test_32_bit },
    Part { name: "fuzz", needs: &[Need::Cxx], obstacle: nothing, run: fuzz::test },
    Part { name: "demo", needs: &[], obstacle: nothing, run: demo },
    Part { name: "python", needs: &[Need::Qemu, Need::Venv], obstacle: nothing, run: python::test },
    Part {
        name: "wasm",
        needs: &[Need::Qemu, Need::WasmStd, Need::Node, Need::Chromium],
        obstacle: nothing,
        run: wasm::test,
    },
];

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = arguments.iter().find(|name| !PARTS.iter().any(|part| part.name == *name)) {
        return Err(Failure::new(format!("no part {unknown}; there are {}", part_names().join(", "))));
    }
    let chosen = |part: &&Part| arguments.is_empty() || arguments.iter().any(|name| name == part.name);
    let mut report = Report::default();
    let mut parts = Vec::new();
    for part in PARTS.iter().filter(chosen) {
        match (part.obstacle)() {
            Some(why) => report.skip(&format!("{}: {why}", part.name)),
            None => parts.push(part),
        }
    }
    run::heading("set-up");
    let needs: Vec<Need> = parts.iter().flat_map(|part| part.needs).copied().collect();
    system::provide(&needs)?;
    for part in parts {
        run::heading(part.name);
        let start = Instant::now();
        if let Err(failure) = (part.run)(&mut report) {
            report.add(&format!("{}: {failure}", part.name), Tally::FAILED);
        }
        run::say(&format!("   {} took {} s", part.name, start.elapsed().as_secs()));
    }
    report.close()
}

/// The names of the parts, in the order in which they run.
pub(crate) fn part_names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}

/// What was counted so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, Tally)>,
}

impl Report {
    /// Counts a test runner's result, or a check's.
    pub(crate) fn add(&mut self, label: &str, tally: Tally) {
        if tally.failed > 0 {
            run::complain(&format!("   failed: {label}"));
        }
        self.rows.push((label.to_owned(), tally));
    }

    /// Runs a command that either holds or not, and counts it as one.
    pub(crate) fn check(&mut self, label: &str, command: &mut std::process::Command) {
        let result = run::call(command);
        if let Err(failure) = &result {
            run::complain(&failure.to_string());
        }
        self.add(label, Tally::of(result.is_ok()));
    }

    /// Runs a test runner and counts what it says.
    pub(crate) fn runner(
        &mut self,
        label: &str,
        command: &mut std::process::Command,
        read: fn(&str) -> Option<Tally>,
    ) -> Result<(), Failure> {
        let outcome = run::watch(command)?;
        self.add(label, Tally::read(&outcome.lines, outcome.success, read));
        Ok(())
    }

    /// Says aloud that something was left out.
    pub(crate) fn skip(&mut self, label: &str) {
        self.add(&format!("skipped {label}"), Tally::SKIPPED);
    }

    /// Prints the sums. A failure is a failure; on a machine of CI so is a skip.
    fn close(&self) -> Result<(), Failure> {
        run::heading("results");
        let mut sum = Tally::default();
        for (label, tally) in &self.rows {
            sum += *tally;
            run::say(&format!("   {label}: {tally}"));
        }
        run::say(&format!("\n{sum}"));
        if sum.failed > 0 {
            Err(Failure::new("something failed, see above"))
        } else if sum.skipped > 0 && run::in_ci() {
            Err(Failure::new("in CI nothing may be skipped"))
        } else {
            Ok(())
        }
    }
}

/// The demo proves itself; here it counts.
fn demo(report: &mut Report) -> Result<(), Failure> {
    let result = demo::run(&[]);
    if let Err(failure) = &result {
        run::complain(&failure.to_string());
    }
    report.add("demo: ends well", Tally::of(result.is_ok()));
    Ok(())
}

fn nothing() -> Option<&'static str> {
    None
}
