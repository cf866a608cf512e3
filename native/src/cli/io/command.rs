//! The commands of qemu-io's language, typed.

/// How a transfer is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Report {
    /// Two lines for a person.
    #[default]
    Human,
    /// One line of numbers (`-C`).
    Machine,
    /// Nothing (`-q`).
    Quiet,
}

/// What a read is compared with (`-P`, and `-s`, `-l` for a part).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The byte that is expected everywhere.
    pub(crate) byte: u8,
    /// First byte compared, counted from the start of the read.
    pub(crate) skip: u64,
    /// How many bytes are compared.
    pub(crate) length: u64,
}

/// `read`, `readv`, `aio_read`. Offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// Guest offset.
    pub(crate) offset: u64,
    /// Sum of the lengths given.
    pub(crate) length: u64,
    /// What to compare with.
    pub(crate) pattern: Option<Pattern>,
    /// Dump the bytes (`-v`).
    pub(crate) dump: bool,
    /// How to report.
    pub(crate) report: Report,
    /// The word for messages: `read` or `readv`.
    pub(crate) verb: &'static str,
    /// An `aio_` form: its failure does not make the command fail.
    pub(crate) detached: bool,
}

/// Where the bytes of a write come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// One byte, repeated.
    Pattern(u8),
    /// A file, repeated (`-s`).
    File(String),
    /// Zeros, written as such (`-z`).
    Zeroes {
        /// Space may be given back (`-u`).
        unmap: bool,
    },
    /// One byte, repeated, compressed (`-c`).
    Compressed(u8),
}

/// `write`, `writev`, `aio_write`. Offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Guest offset.
    pub(crate) offset: u64,
    /// Sum of the lengths given.
    pub(crate) length: u64,
    /// What is written.
    pub(crate) source: Source,
    /// Durable before the command ends (`-f`).
    pub(crate) durable: bool,
    /// How to report.
    pub(crate) report: Report,
    /// The word for messages: `write`, `writev` or `aio_write`.
    pub(crate) verb: &'static str,
    /// An `aio_` form: its failure does not make the command fail.
    pub(crate) detached: bool,
}

/// Preallocation of `truncate -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables only.
    Metadata,
    /// Space reserved.
    Falloc,
    /// Zeros written.
    Full,
}

impl Preallocation {
    /// Reads QEMU's word for it.
    #[must_use]
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "off" => Self::Off,
            "metadata" => Self::Metadata,
            "falloc" => Self::Falloc,
            "full" => Self::Full,
            _ => return None,
        })
    }
}

/// Options of `open` and `reopen`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct OpenRequest {
    /// `-r` (true) or, for `reopen`, `-w` (false).
    pub(crate) read_only: Option<bool>,
    /// `-U`.
    pub(crate) force_share: bool,
    /// `-t`, or `-c` of `reopen`.
    pub(crate) cache: Option<String>,
    /// `-d`.
    pub(crate) discard: Option<String>,
    /// Every `-o`.
    pub(crate) options: Vec<String>,
    /// The file; `open` only.
    pub(crate) path: Option<String>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// `read`, `readv`, `aio_read`.
    Read(Read),
    /// `write`, `writev`, `aio_write`.
    Write(Write),
    /// `aio_read -i`, `aio_write -i`: counts as an invalid request.
    Inject {
        /// `read` or `write`.
        verb: &'static str,
    },
    /// `aio_flush`: nothing is outstanding, for every request is complete when its command ends.
    AioFlush,
    /// `discard`.
    Discard {
        /// Guest offset in bytes.
        offset: u64,
        /// Bytes.
        length: u64,
        /// How to report.
        report: Report,
    },
    /// `flush`.
    Flush,
    /// `truncate`.
    Truncate {
        /// New virtual size in bytes.
        size: u64,
        /// For the part that is new.
        preallocation: Preallocation,
    },
    /// `length`.
    Length,
    /// `alloc`.
    Alloc {
        /// Guest offset in bytes.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// `map`.
    Map,
    /// `info`.
    Info,
    /// `quit`.
    Quit,
    /// `sleep`, in milliseconds.
    Sleep(u64),
    /// `open`.
    Open(OpenRequest),
    /// `close`.
    Close,
    /// `reopen`.
    Reopen(OpenRequest),
    /// `abort`.
    Abort,
    /// `help`.
    Help(Option<String>),
}

/// Where a message of a refused command goes, as in qemu-io.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Lines for standard error.
    pub(crate) err: String,
    /// Lines for standard output.
    pub(crate) out: String,
}

impl Refusal {
    /// A refusal on standard output.
    pub(crate) fn out(text: impl Into<String>) -> Self {
        Self { err: String::new(), out: text.into() + "\n" }
    }

    /// A refusal on standard error.
    pub(crate) fn err(text: impl Into<String>) -> Self {
        Self { err: text.into() + "\n", out: String::new() }
    }
}
