//! `qcowkit-trial [KIND...] [--seed N] [--states N] [--seconds N] [--jobs N]`: power cuts without end, or until so many
//! states are judged or so much time has passed. `cargo xtask crash` builds it as it should be built, and runs it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qcowkit_trial::kinds::{Kind, kind, kinds};
use qcowkit_trial::outcome::{Fault, FaultKind, Outcome};

/// States of a session, as a multiple of what the seeded test looks at.
const THOROUGH: usize = 4;
/// How often a line says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(30);

struct Options {
    kinds: Vec<&'static Kind>,
    seed: u64,
    states: u64,
    seconds: u64,
    jobs: u64,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            let _ = writeln!(io::stderr(), "{why}");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let outcomes = run(&options, start);
    println!("{}", table(&options, &outcomes, start.elapsed()));
    let mut wrong = false;
    for (kind, outcome) in &outcomes {
        for complaint in outcome.complaints() {
            println!("{kind}: {complaint}\n");
            wrong = true;
        }
    }
    if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { kinds: Vec::new(), seed: 1, states: 1_000_000, seconds: u64::MAX, jobs: 1 };
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "--seed" => &mut options.seed,
            "--states" => &mut options.states,
            "--seconds" => &mut options.seconds,
            "--jobs" => &mut options.jobs,
            name => {
                let names = || kinds().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
                options.kinds.push(kind(name).ok_or_else(|| format!("no kind {name}; there are {}", names()))?);
                continue;
            }
        };
        let number = words.next().and_then(|text| text.replace('_', "").parse().ok());
        *place = number.ok_or_else(|| format!("{word} needs a number"))?;
    }
    if options.kinds.is_empty() {
        options.kinds = kinds().collect();
    }
    Ok(options)
}

/// Sessions of all kinds in turn, each with a seed of its own, until it is enough.
fn run(options: &Options, start: Instant) -> BTreeMap<&'static str, Outcome> {
    let (next, states) = (AtomicU64::new(0), AtomicU64::new(0));
    let outcomes: Mutex<BTreeMap<&'static str, Outcome>> = Mutex::default();
    let told = Mutex::new(start);
    let work = || {
        while states.load(Ordering::Relaxed) < options.states && start.elapsed().as_secs() < options.seconds {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let count = options.kinds.len() as u64;
            let (kind, seed) = (options.kinds[(number % count) as usize], options.seed.wrapping_add(number / count));
            let outcome = session(kind, seed);
            states.fetch_add(outcome.states, Ordering::Relaxed);
            outcomes.lock().unwrap().entry(kind.name).or_default().add(outcome);
            let mut told = told.lock().unwrap();
            if told.elapsed() >= TELL_EVERY {
                *told = Instant::now();
                let faulty: u64 = outcomes.lock().unwrap().values().map(Outcome::faulty).sum();
                println!(
                    "{} s: {} states, {faulty} of them wrong, seed {seed}",
                    start.elapsed().as_secs(),
                    states.load(Ordering::Relaxed)
                );
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(work);
        }
    });
    outcomes.into_inner().unwrap()
}

fn session(kind: &Kind, seed: u64) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| (kind.trial)(seed, kind.budget * THOROUGH))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        let mut outcome = Outcome::default();
        outcome.fault(Fault::new(FaultKind::Failed, format_args!("seed {seed}: {text}")));
        outcome
    })
}

/// A table in Markdown.
fn table(options: &Options, outcomes: &BTreeMap<&'static str, Outcome>, time: Duration) -> String {
    let mut text = String::from("| kind | what is cut | sessions | events | states | sound | leaks alone | wrong |\n");
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|\n");
    let mut sum = Outcome::default();
    let mut row = |name: &str, what: &str, outcome: &Outcome| {
        let Outcome { sessions, events, states, leaking, .. } = outcome;
        let faulty = outcome.faulty();
        let sound = states.saturating_sub(leaking + faulty);
        text.push_str(&format!(
            "| {name} | {what} | {sessions} | {events} | {states} | {sound} | {leaking} | {faulty} |\n"
        ));
    };
    for kind in &options.kinds {
        if let Some(outcome) = outcomes.get(kind.name) {
            row(kind.name, kind.what, outcome);
            sum.add(outcome.clone());
        }
    }
    row("**all**", "", &sum);
    let operations: Vec<String> = sum.operations.iter().map(|(what, times)| format!("{what} {times}")).collect();
    text.push_str(&format!(
        "\n{} states were also used on: written, closed, judged again. Seeds from {} on; {} s.\n\nDone in the sessions: {}.\n",
        sum.continued,
        options.seed,
        time.as_secs(),
        operations.join(", ")
    ));
    text
}
