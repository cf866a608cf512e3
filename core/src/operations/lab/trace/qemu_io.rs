//! Scripts for `qemu-io`: the commands that change a disk. What would change the meaning and is not understood is
//! refused; the command line's `io` verb has the whole language.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::{Operation, fields};

/// The longest request that `qemu-io` takes.
const MAX_REQUEST: u64 = 2_147_483_136;

/// The options of one command.
#[derive(Default)]
struct Options {
    zeroes: bool,
    unmap: bool,
    pattern: Option<u64>,
    compressed: bool,
}

/// One line; `None` for those that are ignored.
pub(super) fn line(line: &str) -> Result<Option<Operation>, String> {
    if let Some(comment) = line.strip_prefix('#') {
        let mark = comment.trim().strip_prefix("mark");
        return Ok(mark
            .filter(|name| name.is_empty() || name.starts_with(' '))
            .map(|name| Operation::Mark(name.trim().into())));
    }
    let mut words = line.split_ascii_whitespace();
    match words.next().unwrap_or_default() {
        name @ ("write" | "w" | "writev" | "aio_write") => {
            let vectored = matches!(name, "writev" | "aio_write");
            let (options, offset, length) = arguments(words, vectored)?;
            let range = fields::range(offset, length)?;
            if options.compressed {
                return Err("compressed writes (-c) are not replayed".into());
            }
            if options.unmap && !options.zeroes {
                return Err("-u requires -z to be specified".into());
            }
            let zeros = options.pattern == Some(0);
            Ok(range.map(|(offset, length)| match options.zeroes {
                true => Operation::WriteZeroes { offset, length, unmap: options.unmap },
                false => Operation::Write { offset, length, zeros },
            }))
        }
        "discard" | "d" => {
            let (_, offset, length) = arguments(words, false)?;
            Ok(fields::range(offset, length)?.map(|(offset, length)| Operation::Discard { offset, length }))
        }
        "flush" | "f" | "aio_flush" => Ok(Some(Operation::Flush)),
        "read" | "r" | "readv" | "aio_read" | "sleep" | "quit" | "q" | "map" | "info" | "i" | "length" | "l"
        | "alloc" | "a" | "help" | "?" => Ok(None),
        name => Err(format!("the command {name} is not replayed")),
    }
}

/// Options, offset and the sum of the lengths.
fn arguments<'a>(mut words: impl Iterator<Item = &'a str>, vectored: bool) -> Result<(Options, u64, u64), String> {
    let mut options = Options::default();
    let mut offset = None;
    let mut length: Option<u64> = None;
    while let Some(word) = words.next() {
        if let Some(letters) = word.strip_prefix('-')
            && !letters.is_empty()
        {
            for (at, letter) in letters.char_indices() {
                match letter {
                    'z' => options.zeroes = true,
                    'u' => options.unmap = true,
                    'c' => options.compressed = true,
                    'C' | 'f' | 'i' | 'n' | 'p' | 'q' | 'r' => {}
                    'P' => {
                        let attached = letters.get(at.saturating_add(1)..).filter(|rest| !rest.is_empty());
                        options.pattern = Some(fields::size(attached.or_else(|| words.next()), "pattern")?);
                        break;
                    }
                    _ => return Err(format!("the option -{letter} is not replayed")),
                }
            }
        } else if offset.is_none() {
            offset = Some(fields::size(Some(word), "offset")?);
        } else if length.is_none() || vectored {
            let more = fields::size(Some(word), "length")?;
            length = Some(length.unwrap_or(0).checked_add(more).ok_or("the lengths together are too large")?);
        } else {
            return Err(format!("one word too many: {word}"));
        }
    }
    Ok((options, offset.ok_or("the offset is missing")?, length.ok_or("the length is missing")?))
}

/// A multiple of 2 MiB, so that clusters stay whole.
const PIECE: u64 = MAX_REQUEST & !((2 << 20) - 1);

/// How many commands an operation takes.
pub(super) fn commands(operation: &Operation) -> u64 {
    operation.range().map_or(1, |(_, length)| length.div_ceil(PIECE))
}

/// Writes the commands for one operation; requests longer than `qemu-io` takes are cut. Marks are left out.
pub(super) fn write(operation: &Operation, out: &mut dyn fmt::Write) -> fmt::Result {
    let command = match operation {
        Operation::Write { zeros: false, .. } => "write -q",
        Operation::Write { zeros: true, .. } => "write -q -P 0",
        Operation::WriteZeroes { unmap: false, .. } => "write -q -z",
        Operation::WriteZeroes { unmap: true, .. } => "write -q -z -u",
        Operation::Discard { .. } => "discard -q",
        Operation::Flush => return writeln!(out, "flush"),
        Operation::Mark(_) => return Ok(()),
    };
    let Some((mut at, mut rest)) = operation.range() else { return Ok(()) };
    while rest > 0 {
        let piece = if rest > MAX_REQUEST { PIECE } else { rest };
        writeln!(out, "{command} {at} {piece}")?;
        at = at.saturating_add(piece);
        rest = rest.saturating_sub(piece);
    }
    Ok(())
}
