//! The commands of qemu-io's language, typed.

/// How a transfer is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Report {
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
pub struct Pattern {
    /// The byte that is expected everywhere.
    pub byte: u8,
    /// First byte compared, counted from the start of the read.
    pub skip: u64,
    /// How many bytes are compared.
    pub length: u64,
}

/// `read`, `readv`, `aio_read`. Offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Guest offset.
    pub offset: u64,
    /// Sum of the lengths given.
    pub length: u64,
    /// What to compare with.
    pub pattern: Option<Pattern>,
    /// Dump the bytes (`-v`).
    pub dump: bool,
    /// How to report.
    pub report: Report,
    /// The word for messages: `read` or `readv`.
    pub verb: &'static str,
    /// An `aio_` form: its failure does not make the command fail.
    pub detached: bool,
}

/// Where the bytes of a write come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
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
pub struct Write {
    /// Guest offset.
    pub offset: u64,
    /// Sum of the lengths given.
    pub length: u64,
    /// What is written.
    pub source: Source,
    /// Durable before the command ends (`-f`).
    pub durable: bool,
    /// How to report.
    pub report: Report,
    /// The word for messages: `write`, `writev` or `aio_write`.
    pub verb: &'static str,
    /// An `aio_` form: its failure does not make the command fail.
    pub detached: bool,
}

/// Preallocation of `truncate -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
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
    pub fn parse(word: &str) -> Option<Self> {
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
pub struct OpenRequest {
    /// `-r` (true) or, for `reopen`, `-w` (false).
    pub read_only: Option<bool>,
    /// `-U`.
    pub force_share: bool,
    /// `-t`, or `-c` of `reopen`.
    pub cache: Option<String>,
    /// `-d`.
    pub discard: Option<String>,
    /// Every `-o`.
    pub options: Vec<String>,
    /// The file; `open` only.
    pub path: Option<String>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
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
pub struct Refusal {
    /// Lines for standard error.
    pub err: String,
    /// Lines for standard output.
    pub out: String,
}

impl Refusal {
    /// A refusal on standard output.
    pub fn out(text: impl Into<String>) -> Self {
        Self { err: String::new(), out: text.into() + "\n" }
    }

    /// A refusal on standard error.
    pub fn err(text: impl Into<String>) -> Self {
        Self { err: text.into() + "\n", out: String::new() }
    }
}
