//! What a guest did to its disk: a list of operations, read from and written to the formats in which people have it.

mod blkparse;
mod csv;
mod fields;
mod fio;
mod qemu_io;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// The most operations of a trace: more would not fit the memory of the machines this runs on.
pub const MAX_TRACE_OPERATIONS: usize = 1 << 25;

/// The longest line of a trace, in bytes.
pub const MAX_TRACE_LINE: usize = 4096;

/// One thing that a guest asked of its disk. Offsets and lengths in bytes; lengths are never 0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Operation {
    /// Data are written.
    Write {
        /// First byte of the virtual disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The data are nothing but zeros, so that `detect-zeroes` sees them.
        zeros: bool,
    },
    /// The range reads as zeros from now on.
    WriteZeroes {
        /// First byte of the virtual disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The space may be given back.
        unmap: bool,
    },
    /// The contents of the range are needed no more.
    Discard {
        /// First byte of the virtual disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// What was written so far is to be durable.
    Flush,
    /// A point in time with a name; an incremental backup is taken here.
    Mark(Box<str>),
}

impl Operation {
    /// The range of the virtual disk that it touches: offset and length.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Write { offset, length, .. }
            | Self::WriteZeroes { offset, length, .. }
            | Self::Discard { offset, length } => Some((offset, length)),
            Self::Flush | Self::Mark(_) => None,
        }
    }
}

/// A list of operations, in the order in which the guest asked for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The operations.
    pub operations: Vec<Operation>,
    /// Lines that mean nothing to the layout of an image: reads, and what else a format tells.
    pub ignored: u64,
}

/// In which form a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum TraceFormat {
    /// Commands of `qemu-io`, one a line: `write`, `writev`, `aio_write`, `discard`, `flush`, `aio_flush` and the reads.
    /// `# mark NAME` is a mark (`qemu-io` itself has no comments: it complains and goes on).
    QemuIo,
    /// An iolog of `fio`, version 2 or 3. All its files are taken for one disk.
    Fio,
    /// The text that `blkparse` prints in its default format. Requests count where they are issued to the driver
    /// (`D`), or where they are queued (`Q`) in traces without such lines; the first device that occurs is the disk.
    Blkparse,
    /// Columns `operation,offset,length,detail`, with this line at the top. Operations: `write` (detail `zeros` for
    /// data of zeros), `write_zeroes` (detail `unmap`), `discard`, `flush`, `mark` (detail: its name), `read`.
    Csv,
}

impl TraceFormat {
    /// All formats, with the names that the command line has for them.
    pub const NAMES: [(&'static str, Self); 4] =
        [("qemu-io", Self::QemuIo), ("fio", Self::Fio), ("blkparse", Self::Blkparse), ("csv", Self::Csv)];

    /// Looks at the beginning of a trace: fio and CSV say what they are, a line of blkparse begins with two numbers.
    #[must_use]
    pub fn detect(text: &[u8]) -> Self {
        let line = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
        let line = line.unwrap_or_default();
        if line.starts_with(b"fio version ") {
            Self::Fio
        } else if line.starts_with(csv::HEADER.as_bytes()) {
            Self::Csv
        } else if blkparse::looks_like(line) {
            Self::Blkparse
        } else {
            Self::QemuIo
        }
    }
}

/// Why a trace was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceError {
    /// The line, from 1 on.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the trace: {}", self.line, self.what)
    }
}

impl core::error::Error for TraceError {}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first line that cannot be understood, or that is longer than [`MAX_TRACE_LINE`]; a trace of more than
    /// [`MAX_TRACE_OPERATIONS`] operations.
    pub fn parse(text: &[u8], format: TraceFormat) -> Result<Self, TraceError> {
        let mut trace = Self::default();
        match format {
            TraceFormat::QemuIo => each_line(text, |line, _| trace.take(qemu_io::line(line)?))?,
            TraceFormat::Csv => each_line(text, |line, number| trace.take(csv::line(line, number)?))?,
            TraceFormat::Fio => {
                let mut log = fio::Log::default();
                each_line(text, |line, number| trace.take(log.line(line, number)?))?;
            }
            TraceFormat::Blkparse => {
                let mut parser = blkparse::Parser::default();
                each_line(text, |line, _| parser.line(line))?;
                trace = parser.finish();
            }
        }
        Ok(trace)
    }

    /// Writes the trace in a format that [`Trace::parse`] reads: `qemu-io` scripts (for QEMU itself: without marks) and
    /// CSV.
    ///
    /// # Errors
    /// Those of the writer; [`fmt::Error`] too for a format that is only read, and for a script that would have more than
    /// [`MAX_TRACE_OPERATIONS`] commands: `qemu-io` takes less than 2 GiB at once, and a line can discard exabytes.
    pub fn write(&self, format: TraceFormat, out: &mut dyn fmt::Write) -> fmt::Result {
        match format {
            TraceFormat::QemuIo if self.script_commands() > MAX_TRACE_OPERATIONS => Err(fmt::Error),
            TraceFormat::QemuIo => self.operations.iter().try_for_each(|operation| qemu_io::write(operation, out)),
            TraceFormat::Csv => {
                writeln!(out, "{}", csv::HEADER)?;
                self.operations.iter().try_for_each(|operation| csv::write(operation, out))
            }
            TraceFormat::Fio | TraceFormat::Blkparse => Err(fmt::Error),
        }
    }

    /// The commands of a script for `qemu-io`.
    fn script_commands(&self) -> usize {
        let commands = self.operations.iter().map(qemu_io::commands).fold(0u64, u64::saturating_add);
        usize::try_from(commands).unwrap_or(usize::MAX)
    }

    /// The first byte behind everything that the trace touches: the smallest disk that it fits on.
    #[must_use]
    pub fn end(&self) -> u64 {
        let ends = self.operations.iter().filter_map(Operation::range);
        ends.map(|(offset, length)| offset.saturating_add(length)).max().unwrap_or(0)
    }

    fn take(&mut self, operation: Option<Operation>) -> Result<(), String> {
        match operation {
            None => self.ignored = self.ignored.saturating_add(1),
            Some(_) if self.operations.len() >= MAX_TRACE_OPERATIONS => {
                return Err(format!("a trace can have {MAX_TRACE_OPERATIONS} operations at most"));
            }
            Some(operation) => self.operations.push(operation),
        }
        Ok(())
    }
}

/// Calls `take` with every line that is not blank, and its number from 1 on.
fn each_line(text: &[u8], mut take: impl FnMut(&str, u64) -> Result<(), String>) -> Result<(), TraceError> {
    for (number, line) in (1u64..).zip(text.split(|&byte| byte == b'\n')) {
        let wrong = |what: String| TraceError { line: number, what };
        if line.len() > MAX_TRACE_LINE {
            return Err(wrong(format!("longer than {MAX_TRACE_LINE} bytes")));
        }
        let line = core::str::from_utf8(line).map_err(|_| wrong("not text (UTF-8)".into()))?.trim();
        if !line.is_empty() {
            take(line, number).map_err(wrong)?;
        }
    }
    Ok(())
}
