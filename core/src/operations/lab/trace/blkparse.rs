//! The default text of `blkparse`: `8,0  3  11  0.009507758  697  D  W 223490 + 8 [kjournald]`.

use alloc::string::{String, ToString};

use super::{MAX_TRACE_OPERATIONS, Operation, Trace, fields};

/// Sectors of block traces are 512 bytes whatever the device says.
const SECTOR: u64 = 512;

/// Lists both kinds of lines, since only the end tells which kind the trace has.
#[derive(Debug, Default)]
pub(super) struct Parser {
    device: Option<String>,
    issued: Trace,
    queued: Trace,
    ignored: u64,
    /// The statistics at the end have begun.
    ended: bool,
}

/// Whether a line begins with the numbers of a device.
pub(super) fn looks_like(line: &[u8]) -> bool {
    let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    core::str::from_utf8(word).is_ok_and(is_device)
}

fn is_device(word: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    word.split_once(',').is_some_and(|(major, minor)| is_number(major) && is_number(minor))
}

impl Parser {
    /// One line.
    pub(super) fn line(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().unwrap_or_default();
        if !is_device(device) {
            let statistics = ["CPU", "Total", "Throughput", "Events", "Skips", "Input file"];
            if self.ended || statistics.iter().any(|start| line.starts_with(start)) {
                self.ended = true;
                return Ok(());
            }
            return Err("neither an event nor statistics".into());
        }
        let same = self.device.get_or_insert_with(|| device.to_string()) == device;
        // Processor, sequence, time, process.
        let action = words.nth(4).ok_or("the action is missing")?;
        let list = match action {
            "D" => &mut self.issued,
            "Q" => &mut self.queued,
            _ => {
                self.ignored = self.ignored.saturating_add(1);
                return Ok(());
            }
        };
        if !same {
            self.ignored = self.ignored.saturating_add(1);
            return Ok(());
        }
        let kind = words.next().ok_or("the kind of the request is missing")?;
        let mut range = || {
            let sector = fields::number(words.next(), "sector")?;
            if words.next() != Some("+") {
                return Err("the sector is not followed by + and a number of sectors".to_string());
            }
            let count = fields::number(words.next(), "number of sectors")?;
            match (sector.checked_mul(SECTOR), count.checked_mul(SECTOR)) {
                (Some(offset), Some(length)) => fields::range(offset, length),
                _ => Err("the range lies beyond 2^63 bytes".into()),
            }
        };
        let mut take = |operation| match operation {
            Some(_) if list.operations.len() >= MAX_TRACE_OPERATIONS => {
                Err(alloc::format!("a trace can have {MAX_TRACE_OPERATIONS} operations at most"))
            }
            Some(operation) => {
                list.operations.push(operation);
                Ok(())
            }
            None => {
                list.ignored = list.ignored.saturating_add(1);
                Ok(())
            }
        };
        // Letters: a flush before the request (F), the request (R, W, D, N), then its flags (F again: durable at once).
        let kind = match kind.strip_prefix('F') {
            Some(rest) => {
                take(Some(Operation::Flush))?;
                rest
            }
            None => kind,
        };
        match kind.as_bytes() {
            [b'W', b'Z', ..] => {
                take(range()?.map(|(offset, length)| Operation::WriteZeroes { offset, length, unmap: false }))
            }
            [b'W', flags @ ..] => {
                // A write of nothing that only carries a flush has no range.
                let written = if words_left(line) { range()? } else { None };
                take(written.map(|(offset, length)| Operation::Write { offset, length, zeros: false }))?;
                if flags.contains(&b'F') { take(Some(Operation::Flush)) } else { Ok(()) }
            }
            [b'D', ..] => take(range()?.map(|(offset, length)| Operation::Discard { offset, length })),
            _ => take(None),
        }
    }

    /// The trace: requests where they were issued, or where they were queued if none was.
    pub(super) fn finish(self) -> Trace {
        let (mut chosen, other) =
            if self.issued.operations.is_empty() { (self.queued, self.issued) } else { (self.issued, self.queued) };
        let others = u64::try_from(other.operations.len()).unwrap_or(u64::MAX).saturating_add(other.ignored);
        chosen.ignored = chosen.ignored.saturating_add(self.ignored).saturating_add(others);
        chosen
    }
}

/// Whether a request has a range: `223490 + 8`.
fn words_left(line: &str) -> bool {
    line.split_ascii_whitespace().nth(8) == Some("+")
}
