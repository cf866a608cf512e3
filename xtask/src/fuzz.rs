//! `cargo xtask fuzz [TARGET...] [--seconds N] [--at-once N]`: coverage-guided fuzzing of everything that takes bytes from
//! strangers.
//!
//! The targets are in `fuzz/`. They are built here with the compiler's own coverage instrumentation, so that neither
//! cargo-fuzz nor a nightly toolchain is needed; the address sanitizer, which needs both, would find nothing in a core that
//! forbids `unsafe`. What is new in coverage is kept under `target/fuzz-corpus`, what crashes under `fuzz/artifacts`.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::run::{self, Failure};
use crate::system::{self, Need};
use crate::tally::Tally;
use crate::test::Report;

/// The targets of `fuzz/Cargo.toml`.
const TARGETS: [&str; 9] =
    ["inspect", "read", "check", "operations", "abuse", "trace", "codec", "repair", "encryption"];
/// Seconds for each target, unless others are asked for.
const SECONDS: u64 = 60;
/// Bytes of the longest input: images with clusters of 512 bytes are as small as that.
const MAX_LENGTH: u64 = 64 << 10;
/// Seconds for one input and memory: more is a hang, or a bomb.
const LIMITS: [&str; 2] = ["-timeout=20", "-rss_limit_mb=1500"];
/// Coverage of edges with counters, and of what is compared: what cargo-fuzz asks for, without a sanitizer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";
/// Runs at a time: one for each of the cores of a small machine.
const AT_ONCE: usize = 2;

/// What a run said at its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    executions: u64,
    /// Edges of the program that some input reached, of all that there are.
    coverage: u64,
    edges: u64,
    inputs: u64,
}

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let (mut seconds, mut at_once) = (SECONDS, AT_ONCE);
    let mut chosen = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => seconds = number(word, words.next())?,
            "--at-once" => at_once = usize::try_from(number(word, words.next())?).unwrap_or(AT_ONCE).max(1),
            name if TARGETS.contains(&name) => chosen.push(name.to_owned()),
            other => return Err(Failure::new(format!("no target {other}; there are {}", TARGETS.join(", ")))),
        }
    }
    if chosen.is_empty() {
        chosen = TARGETS.map(str::to_owned).to_vec();
    }
    system::provide(&[Need::Cxx])?;
    let results = fuzz(&chosen, seconds, at_once)?;
    let failed: Vec<&str> = results.iter().filter(|(_, ended)| ended.is_err()).map(|(name, _)| name.as_str()).collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(format!("crashes in {}", failed.join(", ")))) }
}

fn number(option: &str, text: Option<&String>) -> Result<u64, Failure> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Failure::new(format!("{option} needs a number")))
}

/// A minute for each target, as part of the tests.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    for (name, ended) in fuzz(&TARGETS.map(str::to_owned), SECONDS, AT_ONCE)? {
        if let Err(why) = &ended {
            run::complain(why);
        }
        report.add(&format!("fuzz: {name} for {SECONDS} s"), Tally::of(ended.is_ok()));
    }
    Ok(())
}

type Ended = (String, Result<Summary, String>);

fn fuzz(targets: &[String], seconds: u64, at_once: usize) -> Result<Vec<Ended>, Failure> {
    let host = host()?;
    let manifest = run::root().join("fuzz/Cargo.toml");
    let corpus = run::target("fuzz-corpus")?;
    run::call(cargo(&["run", "-q", "--bin", "seeds", "--manifest-path"], &manifest).arg("--").arg(&corpus))?;
    let mut build = cargo(&["build", "-q", "--release", "--features", "fuzzer", "--manifest-path"], &manifest);
    build.args(["--target", &host]).env("RUSTFLAGS", FLAGS);
    for target in targets {
        build.args(["--bin", target]);
    }
    run::call(&mut build)?;
    let programs = run::target("fuzz")?.join(host).join("release");
    let mut results = Vec::new();
    for group in targets.chunks(at_once) {
        let started: Result<Vec<_>, Failure> =
            group.iter().map(|target| Ok((target, start(&programs, &corpus, target, seconds)?))).collect();
        for (target, child) in started? {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            let summary = summary(&text);
            run::say(&format!(
                "   {target}: {} executions, {} of {} edges covered, {} inputs kept",
                summary.executions, summary.coverage, summary.edges, summary.inputs
            ));
            let ended = if output.status.success() { Ok(summary) } else { Err(last_lines(&text)) };
            results.push((target.clone(), ended));
        }
    }
    Ok(results)
}

fn cargo(arguments: &[&str], manifest: &Path) -> Command {
    let mut cargo = run::cargo("fuzz");
    cargo.args(arguments).arg(manifest);
    cargo
}

fn start(programs: &Path, corpus: &Path, target: &str, seconds: u64) -> Result<Child, Failure> {
    let artifacts = run::root().join("fuzz/artifacts").join(target);
    let kept = run::root().join("fuzz/corpus").join(target);
    let grown = corpus.join(target);
    for folder in [&artifacts, &grown] {
        std::fs::create_dir_all(folder)?;
    }
    let mut command = run::command(programs.join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1"])
        .args(LIMITS)
        .arg(grown);
    if kept.is_dir() {
        command.arg(kept);
    }
    run::say(&format!("   $ {}", run::shown(&command)));
    Ok(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?)
}

/// Reads the fuzzer's lines: `INFO: Loaded 1 modules   (123 inline 8-bit counters): ...`, and at the end `#123 DONE cov: 45 ft: 67 corp: 8/9Kb ...`, `stat::number_of_executed_units: 123`.
fn summary(text: &str) -> Summary {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let after = |line: &str, word: &str| line.split_once(word).map(|(_, rest)| number(rest.trim_start()));
    let mut summary = Summary::default();
    for line in text.lines() {
        if let Some(executions) = after(line, "stat::number_of_executed_units:") {
            summary.executions = executions;
        } else if line.contains("inline 8-bit counters)") {
            summary.edges = after(line, "(").unwrap_or(0);
        } else if line.starts_with('#') {
            summary.coverage = after(line, "cov: ").unwrap_or(summary.coverage);
            summary.inputs = after(line, "corp: ").unwrap_or(summary.inputs);
        }
    }
    summary
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn host() -> Result<String, Failure> {
    let host = run::ask(run::command(run::rustc()).args(["--print", "host-tuple"]));
    host.ok_or_else(|| Failure::new("the compiler does not say which machine it is for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_last_words_are_understood() {
        let text = "INFO: Loaded 1 modules   (4711 inline 8-bit counters): 4711 [0x1, 0x2), \n\
                    #2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb\n\
                    #8192\tpulse  cov: 340 ft: 900 corp: 57/12Kb lim: 80 exec/s: 4096 rss: 60Mb\n\
                    #9000\tDONE   cov: 345 ft: 950 corp: 60/13Kb lim: 80 exec/s: 4000 rss: 60Mb\n\
                    stat::number_of_executed_units: 9000\nstat::average_exec_per_sec:     4000\n";
        assert_eq!(summary(text), Summary { executions: 9000, coverage: 345, edges: 4711, inputs: 60 });
        assert_eq!(summary(""), Summary::default());
    }
}
