//! `cargo xtask bench`: qcowkit beside qemu-img, timed in one run on one machine, reported as ratios.
//!
//! Seconds say nothing across machines, so each case runs both programs in turn for some rounds, and what is
//! kept is how many times as fast qcowkit is. Both read the same input and their outputs are compared.

mod cases;
mod fixture;
mod report;
mod wasm;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{self, Failure};
use crate::system::{self, Need};
use cases::{CASES, Case};

/// How many runs of each program are timed in a case, after one to warm up.
const RUNS: usize = 7;

/// Fewer are enough once a case has taken this long.
const ENOUGH: Duration = Duration::from_secs(30);
const FEWEST_RUNS: usize = 2;

/// What one program took in one case.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Median wall time, in seconds.
    seconds: f64,
    /// User and system time, in seconds.
    processor_seconds: f64,
    /// Largest resident size, in KiB.
    peak_kib: u64,
}

/// What one case came to.
struct Measured {
    case: &'static Case,
    qemu: Cost,
    ours: Cost,
}

/// The verb: all cases, or those whose names hold one of the given words. Only a full run is written down.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    if arguments.iter().map(String::as_str).eq(["python"]) {
        return crate::python::bench();
    }
    let chosen: Vec<&'static Case> = CASES
        .iter()
        .filter(|case| arguments.is_empty() || arguments.iter().any(|word| case.name.contains(word.as_str())))
        .collect();
    let in_browsers = arguments.is_empty() || arguments.iter().any(|word| word == wasm::WORD);
    if chosen.is_empty() && !in_browsers && !arguments.iter().any(|word| LAB.contains(word.as_str())) {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).chain([LAB, wasm::WORD]).collect();
        return Err(Failure::new(format!("no such case; there are:\n  {}", names.join("\n  "))));
    }
    run::heading("set-up");
    system::provide(&[Need::Qemu, Need::Time])?;
    run::call(run::cargo("").args(["build", "--release", "-q", "-p", "qcowkit"]))?;
    let folder = run::target("bench")?;
    link_program(&folder)?;
    for fixture in fixture::ALL {
        if chosen.iter().any(|case| case.fixtures.contains(&fixture.name)) {
            fixture::provide(&fixture, &folder)?;
        }
    }
    let mut results = Vec::new();
    for case in chosen {
        run::heading(case.name);
        results.push(measure(case, &folder)?);
    }
    let lab = if arguments.is_empty() || arguments.iter().any(|word| LAB.contains(word.as_str())) {
        run::heading(LAB);
        lab(&folder)?
    } else {
        String::new()
    };
    if in_browsers {
        run::heading(wasm::WORD);
        wasm::run(&folder)?;
    }
    run::heading("results");
    let table = format!("{}{lab}", report::table(&results));
    run::say(&table);
    if arguments.is_empty() {
        let file = run::root().join("docs/benchmarks.md");
        std::fs::create_dir_all(run::root().join("docs"))?;
        std::fs::write(&file, report::page(&table))?;
        run::say("written to docs/benchmarks.md");
    }
    Ok(())
}

/// What the lab is timed with. QEMU has nothing beside it, so seconds are told, with the machine's in mind.
const LAB: &str = "replay, a million operations on 1 TiB";

/// One replay for each policy, of a workload that fills a third of the disk and trims it.
fn lab(folder: &Path) -> Result<String, Failure> {
    let trace = folder.join("lab.csv");
    if !trace.exists() {
        let partial = folder.join("lab.csv.partial");
        let mut churn = within(folder, "./qcowkit churn -s 1T -n 1000000 --fill 30 --trim 100000");
        run::call(churn.stdout(std::fs::File::create(&partial)?))?;
        std::fs::rename(&partial, &trace)?;
    }
    let mut lines = String::from("\n");
    for policy in ["ignore", "unmap", "no-unref"] {
        let start = Instant::now();
        run::call(
            within(folder, &format!("./qcowkit replay -s 1T -p {policy} --output=json lab.csv")).stdout(Stdio::null()),
        )?;
        lines.push_str(&format!("{LAB}, {policy}: {:.1} s\n\n", start.elapsed().as_secs_f64()));
    }
    Ok(lines)
}

/// The release build under a plain name beside the fixtures, so that both programs are called alike.
fn link_program(folder: &Path) -> Result<(), Failure> {
    let link = folder.join("qcowkit");
    let _ = std::fs::remove_file(&link);
    std::fs::copy(run::root().join("target/release/qcowkit"), &link)?;
    Ok(())
}

/// Runs both programs in turn, so that what else the machine does meanwhile meets both.
fn measure(case: &'static Case, folder: &Path) -> Result<Measured, Failure> {
    run::say(&format!("   $ {}\n   $ {}", case.qemu, case.ours));
    let mut qemu = Vec::new();
    let mut ours = Vec::new();
    let start = Instant::now();
    for round in 0..=RUNS {
        if round > FEWEST_RUNS && start.elapsed() > ENOUGH {
            break;
        }
        qemu.push(timed(case, case.qemu, folder)?);
        ours.push(timed(case, case.ours, folder)?);
    }
    let measured = Measured { case, qemu: median(qemu.split_off(1)), ours: median(ours.split_off(1)) };
    for check in case.verify {
        run::call(&mut within(folder, check))?;
    }
    for left in case.leaves {
        let _ = std::fs::remove_file(folder.join(left));
    }
    run::say(&format!("   {:.3} s and {:.3} s", measured.qemu.seconds, measured.ours.seconds));
    Ok(measured)
}

/// One run, under GNU time for what a clock on the wall does not tell.
fn timed(case: &Case, line: &str, folder: &Path) -> Result<Cost, Failure> {
    let prepared = within(folder, case.prepare).status()?.success();
    let file = folder.join("cost.txt");
    let mut time = run::command(run::find_program(&["time"]).unwrap_or_else(|| PathBuf::from("time")));
    time.current_dir(folder).args(["-f", "%U %S %M", "-o"]).arg(&file).args(line.split(' '));
    time.stdout(Stdio::null());
    if let Some(input) = case.input {
        time.stdin(std::fs::File::open(folder.join(input))?);
    }
    let start = Instant::now();
    let succeeded = time.status()?.success();
    let seconds = start.elapsed().as_secs_f64();
    if !prepared || !succeeded {
        return Err(Failure::new(format!("failed: {line}")));
    }
    let text = std::fs::read_to_string(&file)?;
    cost(seconds, &text).ok_or_else(|| Failure::new(format!("cannot read GNU time's numbers: {text}")))
}

/// `user system peak`, as GNU time was told to write them.
fn cost(seconds: f64, text: &str) -> Option<Cost> {
    let mut words = text.split_whitespace();
    let mut number = || words.next()?.parse::<f64>().ok();
    Some(Cost { seconds, processor_seconds: number()? + number()?, peak_kib: number()? as u64 })
}

/// The run in the middle by wall time; the peak is the largest of all.
fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let peak_kib = costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0);
    costs.get(costs.len() / 2).map_or_else(Cost::default, |&middle| Cost { peak_kib, ..middle })
}

/// A command line of a case, without a shell.
fn within(folder: &Path, line: &str) -> Command {
    let mut words = line.split(' ');
    let mut command = run::command(words.next().unwrap_or_default());
    command.current_dir(folder).args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_times_numbers_are_read() {
        let cost = cost(2.0, "1.25 0.50 4096\n").unwrap_or_default();
        assert_eq!((cost.seconds, cost.processor_seconds, cost.peak_kib), (2.0, 1.75, 4096));
        assert!(super::cost(2.0, "Command exited with non-zero status 1").is_none());
    }

    #[test]
    fn the_median_is_the_run_in_the_middle_with_the_largest_peak() {
        let of = |seconds, peak_kib| Cost { seconds, peak_kib, ..Cost::default() };
        let median = median(vec![of(3.0, 9), of(1.0, 1), of(2.0, 5)]);
        assert_eq!((median.seconds, median.peak_kib), (2.0, 9));
    }
}
