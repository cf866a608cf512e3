//! How a verb ends when it cannot do what was asked: one message and an exit code.

use std::fmt;
use std::io;

use super::personality::Personality;
use crate::open::{OpenError, system_words};
use qcowkit_core::{Error, ErrorKind, Structure};

/// A message for standard error, and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code; 1 unless the verb has another for it.
    pub(crate) code: u8,
    /// What happened. Empty when everything has been said already. One line of the output, whatever names it holds.
    pub(crate) message: String,
    /// Further lines of the message.
    pub(crate) lines: Vec<String>,
    /// The arguments were wrong: `qemu-img` adds a line about `--help`.
    pub(crate) usage: bool,
    /// The reader of our output went away.
    pub(crate) broken_pipe: bool,
}

/// The result of a verb: its exit code, or a failure.
pub(crate) type Outcome = Result<u8, Failure>;

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), lines: Vec::new(), usage: false, broken_pipe: false }
    }

    /// The same with one line more.
    #[must_use]
    pub(crate) fn and(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// A failure with exit code 1 whose message has line ends of ours: nothing that an image says may be in it.
    pub(crate) fn in_lines(message: &str) -> Self {
        let mut lines = message.split('\n').map(str::to_owned);
        let first = lines.next().unwrap_or_default();
        Self { lines: lines.collect(), ..Self::new(first) }
    }

    /// Wrong arguments.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(message) }
    }

    /// An exit code whose message has been printed.
    #[must_use]
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, ..Self::new("") }
    }

    /// The same with another exit code.
    #[must_use]
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// An image that was not opened, in the words of the program that is spoken for.
    pub(crate) fn open(error: &OpenError, personality: Personality) -> Self {
        Self::new(if personality.is_own() { own_open(error) } else { qemu_open(error) })
    }

    /// Something that went wrong in a file.
    pub(crate) fn in_file(path: impl fmt::Display, error: &Error) -> Self {
        Self::new(format!("{path}: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { broken_pipe, ..Self::new(format!("standard output: {error}")) }
    }
}

/// An error as the program that is spoken for prints it.
pub(crate) fn qemu_lines(error: &Error, personality: Personality) -> String {
    match error.kind() {
        ErrorKind::Locked(text) if !personality.is_own() => text.replacen(". Is another", "\nIs another", 1),
        _ => error.to_string(),
    }
}

fn own_open(error: &OpenError) -> String {
    let hint = match error.error.kind() {
        // Whoever asked to write is not helped by a way to look.
        ErrorKind::Locked(what) if what.contains("shared") => {
            " -U looks at it all the same, but what it reads may be inconsistent"
        }
        ErrorKind::Locked(_) => " Close it there first: only one program at a time can change it",
        ErrorKind::Denied(_) => "; --backing-files=follow opens it, for images that are trusted",
        ErrorKind::Encrypted(_) => "; --key-file or --key-env give it",
        ErrorKind::Limit(what) if what.contains("key derivation") => "; --max-key-iterations allows more",
        ErrorKind::NotQcow2 => "; -f raw takes its bytes as they are",
        _ => "",
    };
    let chain = match error.failed == error.image {
        true => String::new(),
        false => format!(" (in the chain of {})", error.image.display()),
    };
    format!("{}: {}{chain}{hint}", error.failed.display(), error.error)
}

fn qemu_open(error: &OpenError) -> String {
    let (image, failed) = (error.image.display(), error.failed.display());
    match (error.error.site().structure, error.error.kind()) {
        (Some(Structure::SnapshotTable), ErrorKind::InvalidArgument(_)) => {
            return "Failed to load snapshot: Can't find snapshot".to_owned();
        }
        (Some(Structure::SnapshotTable), ErrorKind::Unsupported(_)) => {
            return "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading \
                    internal snapshots"
                .to_owned();
        }
        _ => {}
    }
    let what = match (system_words(&error.error), error.error.kind()) {
        (Some(words), _) if words == "is a directory" => {
            format!("'file' driver requires '{failed}' to be a regular file")
        }
        (Some(words), _) => format!("Could not open '{failed}': {words}"),
        (None, ErrorKind::NotQcow2) => "Image is not in qcow2 format".to_owned(),
        (None, ErrorKind::Encrypted(_)) => "Parameter 'encrypt.key-secret' is required for cipher".to_owned(),
        (None, ErrorKind::WrongKey(_)) => "Invalid password, cannot unlock any keyslot".to_owned(),
        (None, ErrorKind::InvalidArgument(words)) => words.clone(),
        (None, ErrorKind::Locked(_)) => qemu_lines(&error.error, Personality::QemuImg),
        (None, _) => error.error.to_string(),
    };
    format!("Could not open '{image}': {}{what}", "Could not open backing file: ".repeat(error.depth as usize))
}
