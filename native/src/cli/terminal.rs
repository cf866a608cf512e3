//! What images say reaches a terminal as text only: names in an image are a stranger's, and escape sequences in them
//! would move the cursor, rename the window or hide what was printed before.

use std::borrow::Cow;
use std::io::{self, StderrLock, Write};

/// Passes everything on but control characters, which come out as `\x1b`; line ends, tabs and returns stay. Of what QEMU's
/// programs print nothing is changed: stand-ins write past it.
pub(crate) struct Plain<W: Write> {
    inner: W,
    passes: bool,
    /// The last byte was 0xc2, with which the second set of control characters begins in UTF-8.
    after_c2: bool,
}

impl<W: Write> Plain<W> {
    /// Escapes if `own`, passes everything on otherwise.
    pub(crate) fn new(inner: W, own: bool) -> Self {
        Self { inner, passes: !own, after_c2: false }
    }
}

/// Standard error for what images say.
pub(crate) fn plain_stderr() -> Plain<StderrLock<'static>> {
    Plain::new(io::stderr().lock(), true)
}

/// A line on standard error that may hold names from images: it stays one line. Errors of standard error are told to nobody.
pub(crate) fn tell(line: &str, own: bool) {
    let _ = writeln!(Plain::new(io::stderr().lock(), own), "{}", one_line(line, own));
}

/// A name from an image that has to stay on its line: with a line end in it, it could forge the next line of the output.
/// `Plain` escapes the other control characters. If not `own`, the name is as QEMU's programs print it.
pub(crate) fn one_line(name: &str, own: bool) -> Cow<'_, str> {
    let splits = |c: char| matches!(c, '\n' | '\r' | '\t');
    if !own || !name.contains(splits) {
        return Cow::Borrowed(name);
    }
    let escaped = |c: char| if splits(c) { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(name.chars().map(escaped).collect())
}

fn commands(byte: u8, after_c2: bool) -> bool {
    let first = byte < 0x20 && !matches!(byte, b'\n' | b'\t' | b'\r');
    first || byte == 0x7f || (after_c2 && (0x80..0xa0).contains(&byte))
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.passes || bytes.is_empty() {
            return self.inner.write(bytes);
        }
        let mut before = self.after_c2;
        let found = bytes.iter().position(|&byte| {
            let commands = commands(byte, before);
            before = byte == 0xc2;
            commands
        });
        match found {
            Some(0) => {
                self.inner.write_all(format!("\\x{:02x}", bytes[0]).as_bytes())?;
                self.after_c2 = false;
                Ok(1)
            }
            end => {
                let clean = &bytes[..end.unwrap_or(bytes.len())];
                let count = self.inner.write(clean)?;
                if let Some(last) = clean[..count].last() {
                    self.after_c2 = *last == 0xc2;
                }
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        let mut bytes = Vec::new();
        Plain::new(&mut bytes, true).write_all(text.as_bytes()).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_name_stays_on_its_line() {
        assert_eq!(one_line("a\r\nb\tc", true), "a\\x0d\\x0ab\\x09c");
        assert_eq!(one_line("a\nb", false), "a\nb");
        assert_eq!(one_line("\u{e9} \\", true), "\u{e9} \\");
    }

    #[test]
    fn control_characters_are_told_and_text_stays() {
        assert_eq!(plain("tab\t, line\nand \u{e9}\u{4e2d} stay\r"), "tab\t, line\nand \u{e9}\u{4e2d} stay\r");
        assert_eq!(plain("\x1b[2J\x07\0\x7f"), "\\x1b[2J\\x07\\x00\\x7f");
        // Byte by byte, as whoever calls may write.
        let mut bytes = Vec::new();
        let mut writer = Plain::new(&mut bytes, true);
        "a\u{9b}b\u{e9}\x1b".bytes().for_each(|byte| writer.write_all(&[byte]).unwrap());
        assert!(bytes.starts_with(b"a\xc2\\x9bb\xc3\xa9\\x1b"), "{bytes:?}");
        let mut bytes = Vec::new();
        Plain::new(&mut bytes, false).write_all(b"\x1b[2J").unwrap();
        assert_eq!(bytes, b"\x1b[2J");
    }
}
