//! The command line. Verbs are thin: arguments become a checked plan, library calls do the work, output is printed.

pub(crate) mod args;
mod clock;
mod failure;
pub(crate) mod io;
pub(crate) mod json;
mod keys;
mod output;
mod personality;
mod plan;
mod progress;
mod secrets;
mod shell;
mod snapshot_param;
mod terminal;
mod verbs;

// Also for other wrappings than this one.
pub(crate) use crate::options::{create as create_options, list as options, runtime, size};

use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};

use args::{Cli, IoArgs, Verb};
use failure::{Failure, Outcome};
use personality::Personality;
use plan::Session;

/// Exit code of a program that SIGPIPE ended: what was printed is not complete.
const BROKEN_PIPE: u8 = 128 + 13;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let personality = words.first().map_or(Personality::Own, |program| Personality::of(program));
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    bear_file_limits();
    let out = terminal::Plain::new(std::io::stdout().lock(), personality.is_own());
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let ended = run(&words, personality, &mut out);
    let ended = match (out.flush(), ended) {
        (Err(error), Ok(_)) => Err(error.into()),
        (_, ended) => ended,
    };
    ExitCode::from(match ended {
        Ok(code) => code,
        Err(failure) if failure.broken_pipe => BROKEN_PIPE,
        Err(failure) => {
            complain(&failure, personality, verb_word(&words));
            failure.code
        }
    })
}

/// A file that may not become larger (`ulimit -f`) is an error that says so, not the end by a signal.
#[cfg(all(feature = "fuse", target_os = "linux"))]
fn bear_file_limits() {
    let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Where the system refuses a handler the signal stays what it was.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, flag);
}

/// The verb as it was typed, for messages about arguments that could not be parsed.
fn verb_word(words: &[OsString]) -> &str {
    words.iter().skip(1).filter_map(|word| word.to_str()).find(|word| !word.starts_with('-')).unwrap_or_default()
}

#[expect(clippy::print_stderr, reason = "what was typed, not what an image says")]
fn complain(failure: &Failure, personality: Personality, verb: &str) {
    if failure.message.is_empty() {
        return;
    }
    let name = personality.name();
    terminal::tell(&format!("{name}: {}", failure.message), personality.is_own());
    failure.lines.iter().for_each(|line| terminal::tell(line, personality.is_own()));
    if failure.usage {
        match personality {
            Personality::QemuIo => eprintln!("Try '{name} --help' for more info"),
            _ if verb.is_empty() => eprintln!("Try '{name} --help' for more info"),
            _ => eprintln!("Try '{name} {verb} --help' for more info"),
        }
    }
}

fn run(words: &[OsString], personality: Personality, out: &mut dyn Write) -> Outcome {
    let usage_code = |verb: &str| match verb {
        // 1 would say "they differ".
        "compare" if personality.is_own() => 2,
        _ => 1,
    };
    match personality {
        Personality::QemuIo => {
            let command = IoArgs::command_named("qemu-io");
            let matches = match command.try_get_matches_from(words) {
                Ok(matches) => matches,
                Err(error) => return unparsed(&error, personality, "", out),
            };
            let args = IoArgs::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))?;
            verbs::io::run(&args, &mut Session { personality, out })
        }
        Personality::Own | Personality::QemuImg => {
            let verb = verb_word(words);
            let mut command = Cli::command();
            if personality == Personality::QemuImg {
                if words.len() < 2 {
                    return Err(Failure::usage("Not enough arguments"));
                }
                let version = concat!("version 10.0.2 (qcowkit ", env!("CARGO_PKG_VERSION"), ")");
                command = command.name("qemu-img").bin_name("qemu-img").version(version);
            }
            let matches = match command.try_get_matches_from(words) {
                Ok(matches) => matches,
                Err(error) => {
                    return unparsed(&error, personality, verb, out).map_err(|f| f.with_code(usage_code(verb)));
                }
            };
            let cli = Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))?;
            let verb = cli.verb.name();
            dispatch(&cli.verb, &mut Session { personality, out }).map_err(|failure| match failure.usage {
                true => failure.with_code(usage_code(verb)),
                false => failure,
            })
        }
    }
}

fn dispatch(verb: &Verb, session: &mut Session<'_>) -> Outcome {
    match verb {
        Verb::Info(args) => verbs::info::run(args, session),
        Verb::Measure(args) => verbs::measure::run(args, session),
        Verb::Amend(args) => verbs::amend::run(args, session),
        Verb::Create(args) => verbs::create::run(args, session),
        Verb::Check(args) => verbs::check::run(args, session),
        Verb::Compare(args) => verbs::compare::run(args, session),
        Verb::Convert(args) => verbs::convert::run(args, session),
        Verb::Resize(args) => verbs::resize::run(args, session),
        Verb::Commit(args) => verbs::commit::run(args, session),
        Verb::Rebase(args) => verbs::rebase::run(args, session),
        Verb::Dd(args) => verbs::dd::run(args, session),
        Verb::Bitmap(args) => verbs::bitmap::run(args, session),
        Verb::Delta(args) => verbs::delta::run(args, session),
        Verb::Io(args) => verbs::io::run(args, session),
        Verb::Map(args) => verbs::map::run(args, session),
        Verb::Analyze(args) => verbs::analyze::run(args, session),
        Verb::Discard(args) => verbs::discard::run(args, session),
        Verb::Inspect(args) => verbs::inspect::run(args, session),
        Verb::Audit(args) => verbs::audit::run(args, session),
        Verb::Replay(args) => verbs::lab::replay_verb(args, session),
        Verb::Churn(args) => verbs::lab::churn_verb(args, session),
        Verb::Snapshot(args) => verbs::snapshot::run(args, session),
        #[cfg(all(feature = "fuse", target_os = "linux"))]
        Verb::Mount(args) => verbs::mount::run(args, session),
        Verb::Completions { shell } => shell::completions(*shell, session.out),
        Verb::Manpages { directory } => shell::manpages(directory),
    }
}

/// Arguments that clap did not take, or that ask for help.
fn unparsed(error: &clap::Error, personality: Personality, verb: &str, out: &mut dyn Write) -> Outcome {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Colours for a person at a terminal, not for a pipe or a file.
            let help = error.render();
            if std::io::stdout().is_terminal() { write!(out, "{}", help.ansi()) } else { write!(out, "{help}") }?;
            return Ok(0);
        }
        _ if personality.is_own() => {
            // clap's own words, with its hints.
            error.print()?;
            return Err(Failure::silent(1));
        }
        _ => {}
    }
    let invalid = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let scope = if verb.is_empty() { String::new() } else { format!(" {verb}") };
    Err(match error.kind() {
        ErrorKind::UnknownArgument if invalid.starts_with("--") => {
            spelled(personality, &scope, &format!("unrecognized option '{invalid}'"))
        }
        ErrorKind::UnknownArgument if invalid.starts_with('-') => {
            spelled(personality, &scope, &format!("invalid option -- '{}'", invalid.trim_start_matches('-')))
        }
        ErrorKind::InvalidValue if invalid_value_missing(error) => {
            let letter = invalid_letter(error).unwrap_or_default();
            spelled(personality, &scope, &format!("option requires an argument -- '{letter}'"))
        }
        ErrorKind::InvalidSubcommand => spelled(personality, "", &format!("Command not found: {verb}")),
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            Failure::usage(line.strip_prefix("error: ").unwrap_or(line).to_owned())
        }
    })
}

/// Whether an option lacks its value.
fn invalid_value_missing(error: &clap::Error) -> bool {
    matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if value.is_empty())
}

/// The option of an error, as it was most likely typed: its first letter.
fn invalid_letter(error: &clap::Error) -> Option<char> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.trim_start_matches('-').chars().next(),
        _ => None,
    }
}

/// A message of `getopt`, which names the verb too.
#[expect(clippy::print_stderr, reason = "getopt's words stand on their own line")]
fn spelled(personality: Personality, scope: &str, what: &str) -> Failure {
    let name = personality.name();
    eprintln!("{name}{scope}: {what}");
    eprintln!("Try '{name}{scope} --help' for more info");
    Failure::silent(1)
}
