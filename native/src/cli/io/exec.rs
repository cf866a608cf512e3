//! Carries commands out on a disk.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use qcowkit_core::image::{Content, Preallocation as CorePreallocation};
use qcowkit_core::storage::StorageErrorKind;
use qcowkit_core::{Error, ErrorKind};

use super::command::{self, Command, Pattern, Preallocation, Report, Source};
use super::report::{Transfer, dump};
use crate::cli::json::Json;
use crate::cli::output::info::specific;
use crate::cli::size::io_size;
use crate::cli::terminal::one_line;
use crate::disk::Disk;
use crate::info::describe;
use qcowkit_core::zeros::is_filled;

/// Bytes that move at once. A multiple of every cluster size, so that cutting a request there costs nothing.
const CHUNK: u64 = 2 << 20;

/// What every write and flush is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Cache {
    /// Writes are durable after the next flush.
    #[default]
    Writeback,
    /// Every write is durable when it ends.
    Writethrough,
    /// Flushes do nothing.
    Unsafe,
}

/// Whether the commands go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// They do.
    Command,
    /// They do; this one failed.
    Failed,
    /// `quit`.
    Quit,
    /// `close`.
    Close,
    /// `open` or `reopen`, which the caller does.
    Open(command::OpenRequest, bool),
}

/// Where commands print: qemu-io's messages are on both streams.
pub(crate) struct Streams<'a> {
    /// Standard output, buffered.
    pub(crate) out: &'a mut dyn Write,
    /// Standard error; `out` is flushed before each line on it.
    pub(crate) err: &'a mut dyn Write,
    /// Errors in qemu-io's few words instead of ours.
    pub(crate) terse: bool,
}

impl Streams<'_> {
    /// A line on standard error, after all that was printed before; names in it make no other lines.
    pub(crate) fn complain(&mut self, text: &str) -> io::Result<()> {
        self.out.flush()?;
        writeln!(self.err, "{}", one_line(text, !self.terse))
    }
}

/// Carries out commands, keeping buffers from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    buffer: Vec<u8>,
    /// A buffer filled with one byte, and the byte.
    filled: Vec<u8>,
    fill: u8,
    cache: Cache,
}

impl Executor {
    /// An executor under a cache mode.
    pub(crate) fn new(cache: Cache) -> Self {
        Self { cache, ..Self::default() }
    }

    /// The cache mode.
    pub(crate) fn cache(&self) -> Cache {
        self.cache
    }

    /// Carries out one command.
    pub(crate) fn run(&mut self, disk: &mut Disk, command: Command, streams: &mut Streams<'_>) -> io::Result<Next> {
        match command {
            Command::Read(read) => self.read(disk, &read, streams),
            Command::Write(write) => self.write(disk, &write, streams),
            Command::Discard { offset, length, report } => {
                let begun = Instant::now();
                let done = disk.discard(offset, length);
                transferred(
                    Transfer { word: "discard", offset, length, took: begun.elapsed() },
                    report,
                    done,
                    "discard",
                    streams,
                )
            }
            Command::Flush => {
                let done = if self.cache == Cache::Unsafe { Ok(()) } else { disk.flush() };
                match done {
                    Ok(()) => Ok(Next::Command),
                    Err(error) => failed("flush", &error, streams),
                }
            }
            Command::Truncate { size, preallocation } => {
                let preallocation = match preallocation {
                    Preallocation::Off => CorePreallocation::Off,
                    Preallocation::Metadata => CorePreallocation::Metadata,
                    Preallocation::Falloc => CorePreallocation::Falloc,
                    Preallocation::Full => CorePreallocation::Full,
                };
                match disk.resize(size, preallocation) {
                    Ok(()) => Ok(Next::Command),
                    Err(error) => {
                        streams.complain(&format!("{}: {error}", name(streams)))?;
                        Ok(Next::Failed)
                    }
                }
            }
            Command::Length => {
                writeln!(streams.out, "{}", io_size(disk.virtual_size()))?;
                Ok(Next::Command)
            }
            Command::Alloc { offset, length } => alloc(disk, offset, length, streams),
            Command::Map => map(disk, streams),
            Command::Info => info(disk, streams),
            Command::Sleep(milliseconds) => pause(milliseconds, streams),
            Command::Inject { verb } => {
                writeln!(streams.out, "injecting invalid {verb} request")?;
                Ok(Next::Command)
            }
            Command::AioFlush => Ok(Next::Command),
            Command::Quit => Ok(Next::Quit),
            Command::Close => Ok(Next::Close),
            Command::Open(request) => Ok(Next::Open(request, false)),
            Command::Reopen(request) => Ok(Next::Open(request, true)),
            Command::Abort => abort(streams),
            Command::Help(topic) => help(topic.as_deref(), streams),
        }
    }

    /// Carries out one of the commands that need no image.
    pub(crate) fn run_without_disk(&mut self, command: Command, streams: &mut Streams<'_>) -> io::Result<Next> {
        match command {
            Command::Help(topic) => help(topic.as_deref(), streams),
            Command::Open(request) => Ok(Next::Open(request, false)),
            Command::Sleep(milliseconds) => pause(milliseconds, streams),
            Command::Abort => abort(streams),
            Command::Quit => Ok(Next::Quit),
            // The parser lets no other one through.
            _ => Ok(Next::Command),
        }
    }

    fn read(&mut self, disk: &mut Disk, read: &command::Read, streams: &mut Streams<'_>) -> io::Result<Next> {
        let command::Read { offset, length, pattern, dump: dumped, report, verb, detached } = *read;
        let begun = Instant::now();
        let differs = match self.compare(disk, offset, length, pattern) {
            Ok(differs) => differs,
            Err(error) => {
                let ended = failed(verb, &error, streams)?;
                return Ok(if detached { Next::Command } else { ended });
            }
        };
        let took = begun.elapsed();
        if let Some(pattern) = pattern.filter(|_| differs) {
            writeln!(
                streams.out,
                "Pattern verification failed at offset {}, {} bytes",
                offset + pattern.skip,
                pattern.length
            )?;
        }
        if dumped && report != Report::Quiet {
            self.dump(disk, offset, length, streams.out)?;
        }
        Transfer { word: "read", offset, length, took }.print(report, streams.out)?;
        Ok(if differs && !detached { Next::Failed } else { Next::Command })
    }

    /// Reads a range; tells whether a part of it differs from what was expected.
    fn compare(
        &mut self,
        disk: &mut Disk,
        offset: u64,
        length: u64,
        pattern: Option<Pattern>,
    ) -> qcowkit_core::Result<bool> {
        let mut differs = false;
        // Also of an empty range it is told whether it lies on the disk.
        disk.read_at(offset, &mut [])?;
        if offset.checked_add(length).is_none_or(|end| end > disk.virtual_size()) {
            return Err(Error::new(ErrorKind::OutOfRange).at_guest(offset));
        }
        for (at, piece) in pieces(offset, length) {
            let buffer = self.buffer(piece);
            disk.read_at(at, buffer)?;
            if let Some(Pattern { byte, skip, length }) = pattern {
                let from = (offset + skip).clamp(at, at + piece);
                let to = (offset + skip + length).clamp(from, at + piece);
                differs |= !is_filled(&buffer[(from - at) as usize..(to - at) as usize], byte);
            }
        }
        Ok(differs)
    }

    fn dump(&mut self, disk: &mut Disk, offset: u64, length: u64, out: &mut dyn Write) -> io::Result<()> {
        for (at, piece) in pieces_of(offset, length, CHUNK) {
            let buffer = self.buffer(piece);
            disk.read_at(at, buffer).map_err(io::Error::other)?;
            dump(buffer, at, out)?;
        }
        Ok(())
    }

    fn write(&mut self, disk: &mut Disk, write: &command::Write, streams: &mut Streams<'_>) -> io::Result<Next> {
        let command::Write { offset, length, ref source, durable, report, verb, detached } = *write;
        if let Source::File(path) = source {
            match std::fs::read(path) {
                Ok(bytes) if bytes.is_empty() => {
                    streams.complain(&format!("{path}: file is empty"))?;
                    return Ok(Next::Failed);
                }
                // As many copies as the largest piece takes, and one more to begin anywhere.
                Ok(bytes) => self.buffer = bytes,
                Err(error) => {
                    let error = crate::error::storage_error(&error, "open", None);
                    let words = crate::open::system_words(&error.into()).unwrap_or_default();
                    streams.complain(&format!("{path}: {words}"))?;
                    return Ok(Next::Failed);
                }
            }
        }
        let begun = Instant::now();
        let mut done = self.write_source(disk, offset, length, source);
        if done.is_ok() && (durable || self.cache == Cache::Writethrough) && self.cache != Cache::Unsafe {
            done = disk.flush();
        }
        let transfer = Transfer { word: "wrote", offset, length, took: begun.elapsed() };
        let ended = transferred(transfer, report, done, verb, streams)?;
        Ok(if detached { Next::Command } else { ended })
    }

    fn write_source(&mut self, disk: &mut Disk, offset: u64, length: u64, source: &Source) -> qcowkit_core::Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > disk.virtual_size()) {
            return Err(Error::new(ErrorKind::OutOfRange).at_guest(offset));
        }
        match *source {
            Source::Zeroes { unmap } => disk.write_zeroes(offset, length, unmap),
            Source::Pattern(byte) => {
                disk.write_at(offset, &[])?;
                pieces(offset, length).try_for_each(|(at, piece)| disk.write_at(at, self.filled(byte, piece)))
            }
            Source::Compressed(byte) => {
                disk.write_compressed(offset, &[])?;
                // Checked as a whole, so that a range that ends inside a cluster changes nothing.
                let cluster = disk.cluster_size().unwrap_or(1);
                let end = offset + length;
                if !end.is_multiple_of(cluster) && end != disk.virtual_size() {
                    return Err(Error::invalid("compressed writes cover whole clusters").at_guest(offset));
                }
                pieces(offset, length).try_for_each(|(at, piece)| disk.write_compressed(at, self.filled(byte, piece)))
            }
            Source::File(_) => {
                let file = std::mem::take(&mut self.buffer);
                let mut piece_bytes = Vec::new();
                pieces(offset, length).try_for_each(|(at, piece)| {
                    let skip = ((at - offset) % file.len() as u64) as usize;
                    piece_bytes.clear();
                    piece_bytes.extend(file.iter().cycle().skip(skip).take(piece as usize));
                    disk.write_at(at, &piece_bytes)
                })
            }
        }
    }

    fn buffer(&mut self, length: u64) -> &mut [u8] {
        let length = length as usize;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        &mut self.buffer[..length]
    }

    /// `length` bytes of one value; filled anew only when the value changes.
    fn filled(&mut self, byte: u8, length: u64) -> &[u8] {
        let length = length as usize;
        if self.fill != byte {
            self.filled.clear();
            self.fill = byte;
        }
        if self.filled.len() < length {
            self.filled.resize(length, byte);
        }
        &self.filled[..length]
    }
}

/// A range cut at multiples of [`CHUNK`].
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = (CHUNK - at % CHUNK).min(end - at);
        let item = (at, piece);
        at += piece;
        (piece > 0).then_some(item)
    })
}

/// A range cut into equal pieces.
fn pieces_of(offset: u64, length: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length).step_by(size as usize).map(move |from| (offset + from, size.min(length - from)))
}

fn transferred(
    transfer: Transfer,
    report: Report,
    done: qcowkit_core::Result<()>,
    verb: &str,
    streams: &mut Streams<'_>,
) -> io::Result<Next> {
    match done {
        Ok(()) => {
            transfer.print(report, streams.out)?;
            Ok(Next::Command)
        }
        Err(error) => failed(verb, &error, streams),
    }
}

fn failed(verb: &str, error: &Error, streams: &mut Streams<'_>) -> io::Result<Next> {
    match (streams.terse, error.kind()) {
        (true, _) => writeln!(streams.out, "{verb} failed: {}", errno_words(error))?,
        (false, _) => writeln!(streams.out, "{verb} failed: {}", one_line(&error.to_string(), true))?,
    }
    Ok(Next::Failed)
}

/// The system's words that QEMU has for an error.
fn errno_words(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Storage(storage) => match &storage.kind {
            StorageErrorKind::Os { message, .. } | StorageErrorKind::Other(message) => message.clone(),
            StorageErrorKind::NoSpace => "No space left on device".into(),
            StorageErrorKind::ReadOnly => "Operation not permitted".into(),
            StorageErrorKind::OutOfBounds => "File too large".into(),
            _ => "Operation not supported".into(),
        },
        ErrorKind::InvalidArgument(_) => "Invalid argument".into(),
        ErrorKind::Unsupported(_) => "Operation not supported".into(),
        ErrorKind::NoSpace(_) => "No space left on device".into(),
        ErrorKind::ReadOnly => "Operation not permitted".into(),
        _ => "Input/output error".into(),
    }
}

fn name(streams: &Streams<'_>) -> &'static str {
    if streams.terse { "qemu-io" } else { "qcowkit" }
}

fn alloc(disk: &mut Disk, offset: u64, length: u64, streams: &mut Streams<'_>) -> io::Result<Next> {
    let end = offset.saturating_add(length).min(disk.virtual_size());
    let asked = end.saturating_sub(offset);
    let mut allocated = 0;
    let mut at = offset;
    while at < end {
        match allocation(disk, at, end - at) {
            Ok((held, run)) => {
                allocated += if held { run } else { 0 };
                at += run;
            }
            Err(error) => return failed("is_allocated", &error, streams),
        }
    }
    writeln!(streams.out, "{allocated}/{asked} bytes allocated at offset {}", io_size(offset))?;
    Ok(Next::Command)
}

/// Whether the top layer holds something at `offset`, and for how many bytes the answer stands.
fn allocation(disk: &mut Disk, offset: u64, length: u64) -> qcowkit_core::Result<(bool, u64)> {
    let extent = disk.next_local_extent(offset, length)?;
    Ok((extent.content != Content::Unallocated, extent.length))
}

fn map(disk: &mut Disk, streams: &mut Streams<'_>) -> io::Result<Next> {
    let size = disk.virtual_size();
    let mut start = 0;
    while start < size {
        let mut end = start;
        let mut held = None;
        while end < size {
            match allocation(disk, end, size - end) {
                Ok((here, run)) if *held.get_or_insert(here) == here => end += run,
                Ok(_) => break,
                Err(error) => return failed("map", &error, streams),
            }
        }
        let word = if held == Some(true) { "    allocated" } else { "not allocated" };
        let length = end - start;
        let (bytes, from) = (io_size(length), io_size(start));
        writeln!(streams.out, "{bytes} ({length:#x}) bytes {word} at offset {from} ({start:#x})")?;
        start = end;
    }
    Ok(Next::Command)
}

fn info(disk: &Disk, streams: &mut Streams<'_>) -> io::Result<Next> {
    let own = !streams.terse;
    let out = &mut *streams.out;
    let Some(image) = disk.image() else {
        writeln!(out, "format name: raw\ncluster size: 0 bytes\nvm state offset: 0 bytes")?;
        return Ok(Next::Command);
    };
    let geometry = image.geometry();
    let coverage = geometry.l2_coverage().max(1);
    writeln!(out, "format name: qcow2")?;
    writeln!(out, "cluster size: {}", io_size(geometry.cluster_size()))?;
    writeln!(out, "vm state offset: {}", io_size(geometry.virtual_size().div_ceil(coverage).saturating_mul(coverage)))?;
    match describe(image) {
        Ok(facts) => {
            writeln!(out, "Format specific information:")?;
            specific(out, &Json::of(&facts.image.format_specific.data)?, 1, own)?;
            Ok(Next::Command)
        }
        Err(error) => failed("info", &error, streams),
    }
}

fn pause(milliseconds: u64, streams: &mut Streams<'_>) -> io::Result<Next> {
    streams.out.flush()?;
    std::thread::sleep(Duration::from_millis(milliseconds));
    Ok(Next::Command)
}

fn abort(streams: &mut Streams<'_>) -> io::Result<Next> {
    streams.out.flush()?;
    std::process::abort();
}

fn help(topic: Option<&str>, streams: &mut Streams<'_>) -> io::Result<Next> {
    match (super::help(topic), topic) {
        (Some(text), _) => {
            write!(streams.out, "{text}")?;
            Ok(Next::Command)
        }
        (None, topic) => {
            writeln!(streams.out, "command {} not found", topic.unwrap_or_default())?;
            Ok(Next::Failed)
        }
    }
}
