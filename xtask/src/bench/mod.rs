//! `cargo xtask bench`: qcowkit beside qemu-img, timed in one run on one machine, reported as ratios.
//!
//! Seconds say nothing across machines, so each case runs both programs in turn for some rounds, and what is
//! kept is how many times as fast qcowkit is. Both read the same input and their outputs are compared.

mod cases;
mod fixture;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, Failure};
use crate::system::{self, Need};
use cases::{CASES, Case};

/// How often each case is timed in turn, and how many runs a program gets each time.
const ROUNDS: usize = 3;
const RUNS: usize = 3;

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
    let chosen: Vec<&'static Case> = CASES
        .iter()
        .filter(|case| arguments.is_empty() || arguments.iter().any(|word| case.name.contains(word.as_str())))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        return Err(Failure::new(format!("no such case; there are:\n  {}", names.join("\n  "))));
    }
    run::heading("set-up");
    system::provide(&[Need::Qemu, Need::Timers])?;
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
    run::heading("results");
    let table = report::table(&results);
    run::say(&table);
    if arguments.is_empty() {
        let file = run::root().join("docs/benchmarks.md");
        std::fs::create_dir_all(run::root().join("docs"))?;
        std::fs::write(&file, report::page(&table))?;
        run::say("written to docs/benchmarks.md");
    }
    Ok(())
}

/// The release build under a plain name beside the fixtures, so that both programs are called alike.
fn link_program(folder: &Path) -> Result<(), Failure> {
    let link = folder.join("qcowkit");
    let _ = std::fs::remove_file(&link);
    std::fs::copy(run::root().join("target/release/qcowkit"), &link)?;
    Ok(())
}

fn measure(case: &'static Case, folder: &Path) -> Result<Measured, Failure> {
    let mut qemu = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        let times = hyperfine(case, folder)?;
        qemu.push(times[0]);
        ours.push(times[1]);
    }
    let measured = Measured {
        case,
        qemu: Cost { peak_kib: peak(case, case.qemu, folder)?, ..median(qemu) },
        ours: Cost { peak_kib: peak(case, case.ours, folder)?, ..median(ours) },
    };
    if let Some(check) = case.verify {
        run::call(&mut within(folder, check))?;
    }
    for left in case.leaves {
        let _ = std::fs::remove_file(folder.join(left));
    }
    Ok(measured)
}

/// One round: both programs, one after the other, each some runs.
fn hyperfine(case: &Case, folder: &Path) -> Result<[Cost; 2], Failure> {
    let csv = folder.join("times.csv");
    let runs = RUNS.to_string();
    let mut hyperfine = run::command("hyperfine");
    hyperfine.current_dir(folder).args(["-N", "--style", "basic", "--warmup", "1", "--runs", &runs]);
    hyperfine.arg("--export-csv").arg(&csv).args(["--prepare", case.prepare]);
    if let Some(input) = case.input {
        hyperfine.args(["--input", input]);
    }
    run::call(hyperfine.args([case.qemu, case.ours]))?;
    let text = std::fs::read_to_string(&csv)?;
    let costs: Vec<Cost> = text.lines().skip(1).filter_map(cost).collect();
    costs.try_into().map_err(|_| Failure::new(format!("cannot read hyperfine's numbers: {text}")))
}

/// `command,mean,stddev,median,user,system,min,max`; the command may hold commas, so columns count from the end.
fn cost(line: &str) -> Option<Cost> {
    let columns: Vec<&str> = line.rsplitn(8, ',').collect();
    let number = |from_end: usize| columns.get(from_end).and_then(|text| text.parse::<f64>().ok());
    Some(Cost { seconds: number(4)?, processor_seconds: number(3)? + number(2)?, peak_kib: 0 })
}

/// The round in the middle.
fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    costs.get(costs.len() / 2).copied().unwrap_or_default()
}

/// The largest resident size of one run, in KiB.
fn peak(case: &Case, line: &str, folder: &Path) -> Result<u64, Failure> {
    run::call(&mut within(folder, case.prepare))?;
    let file = folder.join("peak.txt");
    let mut time = run::command(run::find_program(&["time"]).unwrap_or_else(|| PathBuf::from("time")));
    time.current_dir(folder).args(["-f", "%M", "-o"]).arg(&file).args(line.split(' '));
    time.stdout(std::process::Stdio::null());
    if let Some(input) = case.input {
        time.stdin(std::fs::File::open(folder.join(input))?);
    }
    run::call(&mut time)?;
    let text = std::fs::read_to_string(&file)?;
    text.trim().parse().map_err(|_| Failure::new(format!("cannot read GNU time's number: {text}")))
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
    fn hyperfine_rows_are_read_from_the_end() {
        let row = "io -o a=b,c=d file,2.5,0.1,2.0,1.0,0.5,1.9,3.0";
        let cost = cost(row).unwrap_or_default();
        assert_eq!((cost.seconds, cost.processor_seconds), (2.0, 1.5));
    }

    #[test]
    fn the_median_is_the_round_in_the_middle() {
        let of = |seconds| Cost { seconds, ..Cost::default() };
        assert_eq!(median(vec![of(3.0), of(1.0), of(2.0)]).seconds, 2.0);
    }
}
