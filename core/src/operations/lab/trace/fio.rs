//! Iologs of `fio`: "Trace file format v2" and "v3" in its documentation.

use alloc::format;
use alloc::string::String;

use super::{Operation, fields};

/// The version, once the first line was read.
#[derive(Debug, Default)]
pub(super) struct Log {
    version: Option<u8>,
}

impl Log {
    /// One line; `None` for those that are ignored.
    pub(super) fn line(&mut self, line: &str, number: u64) -> Result<Option<Operation>, String> {
        let Some(version) = self.version else {
            self.version = Some(match line {
                "fio version 2 iolog" => 2,
                "fio version 3 iolog" => 3,
                _ => return Err(format!("line {number} should say \"fio version 2 iolog\" or 3, not: {line}")),
            });
            return Ok(None);
        };
        let mut words = line.split_ascii_whitespace();
        if version == 3 {
            let time = words.next();
            fields::number(time, "time")?;
        }
        words.next().ok_or("the file name is missing")?;
        let action = words.next().ok_or("the action is missing")?;
        let mut range = || {
            let (offset, length) = (words.next(), words.next());
            fields::range(fields::number(offset, "offset")?, fields::number(length, "length")?)
        };
        match action {
            "add" | "open" | "close" | "wait" | "read" => Ok(None),
            "write" => Ok(range()?.map(|(offset, length)| Operation::Write { offset, length, zeros: false })),
            "trim" => Ok(range()?.map(|(offset, length)| Operation::Discard { offset, length })),
            "sync" | "datasync" => Ok(Some(Operation::Flush)),
            _ => Err(format!("no such action: {action}")),
        }
    }
}
