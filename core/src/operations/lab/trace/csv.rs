//! Comma-separated columns.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::{Operation, fields};

/// The first line.
pub(super) const HEADER: &str = "operation,offset,length,detail";

/// One line; `None` for those that are ignored.
pub(super) fn line(line: &str, number: u64) -> Result<Option<Operation>, String> {
    if number == 1 {
        return if line == HEADER { Ok(None) } else { Err(format!("a trace as CSV begins with {HEADER}")) };
    }
    let mut columns = line.splitn(4, ',').map(str::trim);
    let name = columns.next().unwrap_or_default();
    let (offset, length) = (columns.next(), columns.next());
    let detail = columns.next().unwrap_or_default();
    let range = || fields::range(fields::number(offset, "offset")?, fields::number(length, "length")?);
    let flag = |word: &str| match detail {
        "" => Ok(false),
        given if given == word => Ok(true),
        given => Err(format!("the detail of {name} is {word} or empty, not {given}")),
    };
    match name {
        "write" => {
            let zeros = flag("zeros")?;
            Ok(range()?.map(|(offset, length)| Operation::Write { offset, length, zeros }))
        }
        "write_zeroes" => {
            let unmap = flag("unmap")?;
            Ok(range()?.map(|(offset, length)| Operation::WriteZeroes { offset, length, unmap }))
        }
        "discard" => Ok(range()?.map(|(offset, length)| Operation::Discard { offset, length })),
        "flush" => Ok(Some(Operation::Flush)),
        "mark" => Ok(Some(Operation::Mark(detail.into()))),
        "read" => Ok(None),
        _ => Err(format!("no such operation: {name}")),
    }
}

/// Writes one line.
pub(super) fn write(operation: &Operation, out: &mut dyn fmt::Write) -> fmt::Result {
    match operation {
        Operation::Write { offset, length, zeros } => {
            writeln!(out, "write,{offset},{length},{}", if *zeros { "zeros" } else { "" })
        }
        Operation::WriteZeroes { offset, length, unmap } => {
            writeln!(out, "write_zeroes,{offset},{length},{}", if *unmap { "unmap" } else { "" })
        }
        Operation::Discard { offset, length } => writeln!(out, "discard,{offset},{length},"),
        Operation::Flush => writeln!(out, "flush,,,"),
        Operation::Mark(name) => {
            writeln!(out, "mark,,,{}", name.replace(['\n', '\r'], " "))
        }
    }
}
