//! What the commands print.

use std::io::{self, Write};
use std::time::Duration;

use super::command::Report;
use crate::cli::size::{write_decimals, write_io_rate, write_io_size};

/// One transfer, done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    /// "read", "wrote" or "discard".
    pub(crate) word: &'static str,
    /// First guest byte.
    pub(crate) offset: u64,
    /// Bytes asked for, all of which were done.
    pub(crate) length: u64,
    /// Time that it took.
    pub(crate) took: Duration,
}

impl Transfer {
    /// Prints it in qemu-io's form.
    pub(crate) fn print(&self, report: Report, out: &mut dyn Write) -> io::Result<()> {
        let Self { word, offset, length, took } = *self;
        let seconds = took.as_secs_f64().max(1e-9);
        let bytes = length as f64;
        match report {
            Report::Quiet => Ok(()),
            Report::Machine => {
                writeln!(
                    out,
                    "{length},1,{},{:.3},{:.3}",
                    Clock { took, always_long: true },
                    bytes / seconds,
                    1.0 / seconds
                )
            }
            Report::Human => {
                writeln!(out, "{word} {length}/{length} bytes at offset {offset}")?;
                let mut out = out;
                write_io_size(&mut out, bytes)?;
                write!(out, ", 1 ops; {} (", Clock { took, always_long: false })?;
                write_io_rate(&mut out, bytes / seconds)?;
                write!(out, "/sec and ")?;
                write_decimals::<10_000>(&mut out, 1.0 / seconds)?;
                writeln!(out, " ops/sec)")
            }
        }
    }
}

/// `00.02 sec`, or `0:00:03.36` from a second on.
struct Clock {
    took: Duration,
    always_long: bool,
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs();
        let hundredths = self.took.subsec_millis() / 10;
        if seconds == 0 && !self.always_long {
            return write!(f, "00.{hundredths:02} sec");
        }
        write!(f, "{}:{:02}:{:02}.{hundredths:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// Bytes in rows of 16, with their guest offset and as letters.
pub(crate) fn dump(bytes: &[u8], offset: u64, out: &mut dyn Write) -> io::Result<()> {
    for (row, chunk) in bytes.chunks(16).enumerate() {
        write!(out, "{:08x}:  ", offset + row as u64 * 16)?;
        for byte in chunk {
            write!(out, "{byte:02x} ")?;
        }
        write!(out, " ")?;
        for &byte in chunk {
            let letter = if byte.is_ascii_alphanumeric() { char::from(byte) } else { '.' };
            write!(out, "{letter}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        print(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn transfers_look_as_in_qemu_io() {
        let transfer = Transfer { word: "wrote", offset: 512, length: 65536, took: Duration::from_millis(20) };
        assert_eq!(
            printed(|out| transfer.print(Report::Human, out).unwrap()),
            "wrote 65536/65536 bytes at offset 512\n64 KiB, 1 ops; 00.02 sec (3.125 MiB/sec and 50.0000 ops/sec)\n"
        );
        assert_eq!(
            printed(|out| transfer.print(Report::Machine, out).unwrap()),
            "65536,1,0:00:00.02,3276800.000,50.000\n"
        );
        assert_eq!(printed(|out| transfer.print(Report::Quiet, out).unwrap()), "");
        let slow = Transfer { length: 3, took: Duration::from_millis(3_723_450), ..transfer };
        assert_eq!(
            printed(|out| slow.print(Report::Human, out).unwrap()),
            "wrote 3/3 bytes at offset 512\n3 bytes, 1 ops; 1:02:03.45 (0.000806 bytes/sec and 0.0003 ops/sec)\n"
        );
    }

    #[test]
    fn dumps_have_rows_of_sixteen() {
        let text = printed(|out| dump(b"abc#\x00 0123456789Z", 0x7d0, out).unwrap());
        assert_eq!(
            text,
            "000007d0:  61 62 63 23 00 20 30 31 32 33 34 35 36 37 38 39  abc...0123456789\n000007e0:  5a  Z\n"
        );
    }
}
