//! Running other programs: say the command, run it, and give back what it printed where that matters.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Why a routine stopped: a sentence for the person who ran it.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A folder under `target/`, made if it is not there.
pub(crate) fn target(name: &str) -> Result<PathBuf, Failure> {
    let folder = root().join("target").join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Whether this is a machine of continuous integration, where nothing may be skipped.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// A command in the root of the repository that reads nothing from the terminal.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this program, building into `target/NAME` (into `target` for an empty name).
pub(crate) fn cargo(name: &str) -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.env("CARGO_TARGET_DIR", root().join("target").join(name));
    // Set by the cargo that runs xtask; build scripts and tests must not take them for their own.
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&key);
        }
    }
    cargo
}

/// The compiler that belongs to that cargo; in the search path another may come first.
pub(crate) fn rustc() -> PathBuf {
    let beside = std::env::var_os("CARGO").map(|cargo| PathBuf::from(cargo).with_file_name("rustc"));
    beside.filter(|rustc| rustc.is_file()).unwrap_or_else(|| PathBuf::from("rustc"))
}

/// The command line of the host build, in the development profile.
pub(crate) fn program() -> PathBuf {
    root().join("target/debug").join(format!("qcowkit{}", std::env::consts::EXE_SUFFIX))
}

/// Runs a command whose output goes to the person; an exit code other than 0 is a failure.
pub(crate) fn call(command: &mut Command) -> Result<(), Failure> {
    announce(command);
    let status = command.status().map_err(|error| not_started(command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{} ended with {status}", shown(command)))) }
}

/// What a command that was shown to the person printed, and whether it succeeded.
pub(crate) struct Outcome {
    pub(crate) lines: Vec<String>,
    pub(crate) success: bool,
}

/// A test runner that says nothing for so long hangs: the slowest build before its first line takes half of that.
const SILENCE: Duration = Duration::from_secs(20 * 60);

/// Runs a command, shows its standard output line by line and keeps it too. In continuous integration, where nobody
/// looks on, a command that has fallen silent is ended, which is no success.
pub(crate) fn watch(command: &mut Command) -> Result<Outcome, Failure> {
    announce(command);
    let patience = in_ci().then_some(SILENCE);
    watch_with(command, patience)
}

fn watch_with(command: &mut Command, patience: Option<Duration>) -> Result<Outcome, Failure> {
    command.stdout(Stdio::piped());
    #[cfg(unix)]
    if patience.is_some() {
        // So that what it starts can be ended with it. At a terminal they stay in the group that Ctrl-C goes to.
        std::os::unix::process::CommandExt::process_group(command, 0);
    }
    let mut child = command.spawn().map_err(|error| not_started(command, &error))?;
    let (send, lines_read) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.map(|line| String::from_utf8_lossy(&line).into_owned());
                if send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    let mut lines = Vec::new();
    loop {
        let next = match patience {
            Some(patience) => lines_read.recv_timeout(patience),
            None => lines_read.recv().map_err(mpsc::RecvTimeoutError::from),
        };
        match next {
            Ok(line) => {
                let line = line?;
                say(&line);
                lines.push(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let silent = patience.unwrap_or_default().as_secs();
                complain(&format!("   {} hangs: it has said nothing for {silent} s; ended", shown(command)));
                end_group(&mut child);
                child.wait()?;
                return Ok(Outcome { lines, success: false });
            }
        }
    }
    let success = child.wait()?.success();
    Ok(Outcome { lines, success })
}

/// Ends a child that leads a group of processes, and the others of the group.
fn end_group(child: &mut Child) {
    let group = format!("-{}", child.id());
    // Who has ended by itself meanwhile needs no ending.
    let _ = command("kill").args(["-KILL", "--", &group]).status();
    let _ = child.kill();
}

/// Standard output of a command that says little; `None` if it cannot be started or fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first program of these that stands in the search path.
pub(crate) fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    names
        .iter()
        .find_map(|name| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()))
}

/// A heading in the output.
pub(crate) fn heading(text: &str) {
    say(&format!("\n== {text}"));
}

/// One line for the person. A reader that went away is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One line about what went wrong.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let base = root();
    let plain = |text: &OsStr| {
        let text = text.to_string_lossy();
        let text = Path::new(text.as_ref())
            .strip_prefix(&base)
            .map_or_else(|_| text.to_string(), |short| short.display().to_string());
        if text.is_empty() || text.contains([' ', '"', '$', '*']) { format!("'{text}'") } else { text }
    };
    let program = Path::new(command.get_program());
    let name = if program.starts_with(&base) {
        plain(command.get_program())
    } else {
        program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    };
    std::iter::once(name).chain(command.get_args().map(plain)).collect::<Vec<_>>().join(" ")
}

fn announce(command: &Command) {
    say(&format!("   $ {}", shown(command)));
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("{} does not start: {error}", shown(command)))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = command("sh");
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn what_hangs_is_ended_with_what_it_started() {
        // The inner shell holds the pipe open, as a test program does when cargo alone has gone.
        let hung =
            watch_with(&mut shell("echo begun; sh -c 'sleep 100000; true'; echo never"), Some(Duration::from_secs(1)));
        let hung = hung.unwrap();
        assert!(!hung.success);
        assert_eq!(hung.lines, ["begun"]);
    }

    #[test]
    fn what_ends_is_shown_whole() {
        for patience in [None, Some(Duration::from_secs(600))] {
            let done = watch_with(&mut shell("echo one; printf two; exit 3"), patience).unwrap();
            assert!(!done.success);
            assert_eq!(done.lines, ["one", "two"]);
            assert!(watch_with(&mut shell("true"), patience).unwrap().success);
        }
    }
}
