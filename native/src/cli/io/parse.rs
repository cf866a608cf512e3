//! From a line to a [`Command`]: words are parted by spaces, options are read as `getopt` reads them.

use super::command::{Command, OpenRequest, Pattern, Preallocation, Read, Refusal, Report, Source, Write};
use super::spec::{self, Spec};
use crate::cli::options::c_number;
use crate::cli::size::{self, SizeError};

/// Largest length of one request, as in QEMU: the largest multiple of 512 below 2 GiB.
pub(crate) const MAX_REQUEST: u64 = 2_147_483_136;

/// Reads one line. `None` for one without a word.
///
/// `image_open` tells whether commands that need an image can run.
///
/// # Errors
/// With what is printed and where, when the line is not a command that can run.
pub(crate) fn parse(line: &str, image_open: bool) -> Result<Option<Command>, Refusal> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let Some(name) = words.next() else { return Ok(None) };
    let Some(spec) = spec::find(name) else {
        return Err(if spec::REFUSED.contains(&name) {
            Refusal::err(format!("command \"{name}\" is not supported by qcowkit"))
        } else {
            Refusal::err(format!("command \"{name}\" not found"))
        });
    };
    if !image_open && !spec.without_image {
        return Err(Refusal::err("no file open, try 'help open'"));
    }
    let args: Vec<&str> = words.collect();
    check_count(name, spec, args.len())?;
    command(spec, &args).map(Some)
}

fn check_count(name: &str, spec: &Spec, count: usize) -> Result<(), Refusal> {
    let wanted = match spec.max {
        _ if count >= spec.min && spec.max.is_none_or(|max| count <= max) => return Ok(()),
        None => format!("at least {} arguments", spec.min),
        Some(max) if max == spec.min => format!("{max} arguments"),
        Some(max) => format!("between {} and {max} arguments", spec.min),
    };
    Err(Refusal::err(format!("bad argument count {count} to {name}, expected {wanted}")))
}

fn command(spec: &'static Spec, args: &[&str]) -> Result<Command, Refusal> {
    Ok(match spec.name {
        "read" => read(&Parsed::new(spec, args)?)?,
        "readv" | "aio_read" => readv(&Parsed::new(spec, args)?)?,
        "write" => write(&Parsed::new(spec, args)?)?,
        "writev" | "aio_write" => writev(&Parsed::new(spec, args)?)?,
        "discard" => discard(&Parsed::new(spec, args)?)?,
        "truncate" => truncate(&Parsed::new(spec, args)?)?,
        "open" | "reopen" => open(&Parsed::new(spec, args)?)?,
        "alloc" => {
            Command::Alloc { offset: number(args[0])?, length: args.get(1).map_or(Ok(512), |text| number(text))? }
        }
        "sleep" => match c_number(args[0]) {
            Some(milliseconds) => Command::Sleep(milliseconds),
            None => return Err(Refusal::out(format!("{} is not a valid number", args[0]))),
        },
        "help" => Command::Help(args.first().map(|&name| name.to_owned())),
        "aio_flush" => Command::AioFlush,
        "flush" => Command::Flush,
        "length" => Command::Length,
        "map" => Command::Map,
        "info" => Command::Info,
        "close" => Command::Close,
        "abort" => Command::Abort,
        _ => Command::Quit,
    })
}

/// Options and positional arguments of one command.
struct Parsed<'a> {
    spec: &'static Spec,
    flags: Vec<(u8, Option<&'a str>)>,
    rest: Vec<&'a str>,
}

impl<'a> Parsed<'a> {
    fn new(spec: &'static Spec, args: &[&'a str]) -> Result<Self, Refusal> {
        let mut parsed = Self { spec, flags: Vec::new(), rest: Vec::new() };
        let mut args = args.iter().copied();
        while let Some(arg) = args.next() {
            match arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                Some("-") => parsed.rest.extend(args.by_ref()),
                Some(letters) => parsed.letters(letters, &mut args)?,
                None => parsed.rest.push(arg),
            }
        }
        Ok(parsed)
    }

    fn letters(&mut self, letters: &'a str, args: &mut impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
        for (index, letter) in letters.char_indices() {
            let known = match letter {
                ':' => None,
                _ => self.spec.options.find(letter).map(|at| self.spec.options[at + 1..].starts_with(':')),
            };
            let after = &letters[index + letter.len_utf8()..];
            // Options are ASCII, so a known letter fits one byte.
            let flag = u8::try_from(letter).unwrap_or(b'?');
            match known {
                None => return Err(self.getopt(format!("invalid option -- '{letter}'"))),
                Some(false) => self.flags.push((flag, None)),
                Some(true) => {
                    let value = if after.is_empty() { args.next() } else { Some(after) };
                    let Some(value) = value else {
                        return Err(self.getopt(format!("option requires an argument -- '{letter}'")));
                    };
                    self.flags.push((flag, Some(value)));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn getopt(&self, what: String) -> Refusal {
        Refusal { err: format!("{}: {what}\n", self.spec.name), ..self.usage() }
    }

    fn usage(&self) -> Refusal {
        Refusal::out(self.spec.usage())
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.iter().any(|&(name, _)| name == flag)
    }

    fn last(&self, flag: u8) -> Option<&'a str> {
        self.flags.iter().rev().find(|&&(name, _)| name == flag).and_then(|&(_, value)| value)
    }

    fn report(&self) -> Report {
        if self.has(b'q') {
            Report::Quiet
        } else if self.has(b'C') {
            Report::Machine
        } else {
            Report::Human
        }
    }

    fn pattern(&self) -> Result<Option<u8>, Refusal> {
        self.last(b'P').map(pattern_byte).transpose()
    }

    /// The two arguments `off len`, and only they.
    fn range(&self) -> Result<(&'a str, &'a str), Refusal> {
        match self.rest[..] {
            [offset, length] => Ok((offset, length)),
            _ => Err(self.usage()),
        }
    }

    /// `off len [len..]`, the lengths added up.
    fn vector(&self) -> Result<(u64, u64), Refusal> {
        let [offset, lengths @ ..] = &self.rest[..] else { return Err(self.usage()) };
        if lengths.is_empty() {
            return Err(self.usage());
        }
        let offset = number(offset)?;
        let mut total: u64 = 0;
        for text in lengths {
            let length = number(text)?;
            if length > MAX_REQUEST {
                return Err(Refusal::out(format!("Argument '{text}' exceeds maximum size {MAX_REQUEST}")));
            }
            total += length;
            if total > MAX_REQUEST {
                return Err(Refusal::out(format!("The total number of bytes exceed the maximum size {MAX_REQUEST}")));
            }
        }
        Ok((offset, total))
    }

    fn refuse_vm_state(&self) -> Result<(), Refusal> {
        if self.has(b'b') {
            return Err(Refusal::err(format!("{}: -b (VM state) is not supported by qcowkit", self.spec.name)));
        }
        Ok(())
    }
}

fn pattern_byte(text: &str) -> Result<u8, Refusal> {
    c_number(text)
        .and_then(|byte| u8::try_from(byte).ok())
        .ok_or_else(|| Refusal::out(format!("{text} is not a valid pattern byte")))
}

fn number(text: &str) -> Result<u64, Refusal> {
    match size::parse(text) {
        Ok(value) if i64::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => Err(Refusal::out(format!("Parsing error: argument too large -- {text}"))),
        Err(SizeError::NotANumber) => Err(Refusal::out(format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        ))),
    }
}

fn limited(text: &str, hint: &str) -> Result<u64, Refusal> {
    let length = number(text)?;
    if length > MAX_REQUEST {
        return Err(Refusal::out(format!("length cannot exceed {MAX_REQUEST}{hint}, given {text}")));
    }
    Ok(length)
}

fn sector_aligned(text: &str, value: u64, what: &str) -> Result<(), Refusal> {
    if !value.is_multiple_of(512) {
        return Err(Refusal::out(format!("{text} is not a sector-aligned value for '{what}'")));
    }
    Ok(())
}

fn read(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let skip = parsed.last(b's').map(number).transpose()?;
    let part = parsed.last(b'l').map(number).transpose()?;
    let byte = parsed.pattern()?;
    let (offset_text, length_text) = parsed.range()?;
    let offset = number(offset_text)?;
    let length = limited(length_text, "")?;
    if byte.is_none() && (skip.is_some() || part.is_some()) {
        return Err(parsed.usage());
    }
    parsed.refuse_vm_state()?;
    let skip = skip.unwrap_or(0);
    let part = part.unwrap_or(length.saturating_sub(skip));
    if skip.checked_add(part).is_none_or(|end| end > length) {
        return Err(Refusal::out("pattern verification range exceeds end of read data"));
    }
    Ok(Command::Read(Read {
        offset,
        length,
        pattern: byte.map(|byte| Pattern { byte, skip, length: part }),
        dump: parsed.has(b'v'),
        report: parsed.report(),
        verb: "read",
        detached: false,
    }))
}

fn readv(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let byte = parsed.pattern()?;
    if parsed.has(b'i') {
        return Ok(Command::Inject { verb: "read" });
    }
    let (offset, length) = parsed.vector()?;
    Ok(Command::Read(Read {
        offset,
        length,
        pattern: byte.map(|byte| Pattern { byte, skip: 0, length }),
        dump: parsed.has(b'v'),
        report: parsed.report(),
        verb: "readv",
        detached: parsed.spec.name == "aio_read",
    }))
}

fn write(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let byte = parsed.pattern()?;
    let (offset_text, length_text) = parsed.range()?;
    let (zero, compress) = (parsed.has(b'z'), parsed.has(b'c'));
    if parsed.has(b'b') && zero {
        return Err(Refusal::out("-b and -z cannot be specified at the same time"));
    }
    if parsed.has(b'f') && (parsed.has(b'b') || compress) {
        return Err(Refusal::out("-f and -b or -c cannot be specified at the same time"));
    }
    if parsed.has(b'n') && !zero {
        return Err(Refusal::out("-n requires -z to be specified"));
    }
    if parsed.has(b'u') && !zero {
        return Err(Refusal::out("-u requires -z to be specified"));
    }
    let file = parsed.last(b's');
    if usize::from(zero) + usize::from(byte.is_some()) + usize::from(file.is_some()) > 1 {
        return Err(Refusal::out("Only one of -z, -P, and -s can be specified at the same time"));
    }
    let offset = number(offset_text)?;
    let length = if parsed.has(b'n') { number(length_text)? } else { limited(length_text, " without -n")? };
    if compress && !zero {
        sector_aligned(offset_text, offset, "offset")?;
        sector_aligned(length_text, length, "count")?;
    }
    parsed.refuse_vm_state()?;
    if parsed.has(b'n') {
        return Err(Refusal::err(
            "write: -n is not supported by qcowkit: zeros fall back to writing at unaligned ends",
        ));
    }
    let source = match (zero, compress, file) {
        (true, ..) => Source::Zeroes { unmap: parsed.has(b'u') },
        (_, true, Some(_)) => {
            return Err(Refusal::err("write: -c together with -s is not supported by qcowkit"));
        }
        (_, true, None) => Source::Compressed(byte.unwrap_or(0xcd)),
        (_, _, Some(path)) => Source::File(path.to_owned()),
        _ => Source::Pattern(byte.unwrap_or(0xcd)),
    };
    Ok(Command::Write(Write {
        offset,
        length,
        source,
        durable: parsed.has(b'f'),
        report: parsed.report(),
        verb: "write",
        detached: false,
    }))
}

fn writev(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let byte = parsed.pattern()?;
    let zero = parsed.has(b'z');
    if zero && parsed.rest.len() > 2 {
        return Err(Refusal::out("-z supports only a single length parameter"));
    }
    if parsed.has(b'u') && !zero {
        return Err(Refusal::out("-u requires -z to be specified"));
    }
    if parsed.has(b'i') {
        return Ok(Command::Inject { verb: "write" });
    }
    let (offset, length) = match parsed.rest[..] {
        [offset, length] if zero => (number(offset)?, number(length)?),
        _ => parsed.vector()?,
    };
    let detached = parsed.spec.name == "aio_write";
    Ok(Command::Write(Write {
        offset,
        length,
        source: if zero { Source::Zeroes { unmap: parsed.has(b'u') } } else { Source::Pattern(byte.unwrap_or(0xcd)) },
        durable: parsed.has(b'f'),
        report: parsed.report(),
        verb: if detached { "aio_write" } else { "writev" },
        detached,
    }))
}

fn discard(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let (offset, length) = parsed.range()?;
    Ok(Command::Discard { offset: number(offset)?, length: limited(length, "")?, report: parsed.report() })
}

fn truncate(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let preallocation = match parsed.last(b'm') {
        None => Preallocation::Off,
        Some(word) => Preallocation::parse(word)
            .ok_or_else(|| Refusal::err(format!("qemu-io: Invalid preallocation mode '{word}'")))?,
    };
    let Some(size) = parsed.rest.first() else { return Err(parsed.usage()) };
    Ok(Command::Truncate { size: number(size)?, preallocation })
}

fn open(parsed: &Parsed<'_>) -> Result<Command, Refusal> {
    let reopen = parsed.spec.name == "reopen";
    for (flag, what) in [
        (b's', "-s (snapshot mode)"),
        (b'C', "-C (copy on read)"),
        (b'n', "-n (no host cache)"),
        (b'k', "-k (native AIO)"),
        (b'i', "-i (AIO mode)"),
    ] {
        if parsed.has(flag) {
            return Err(Refusal::err(format!("{}: {what} is not supported by qcowkit", parsed.spec.name)));
        }
    }
    if parsed.rest.len() > usize::from(!reopen) || (parsed.has(b'r') && parsed.has(b'w')) {
        return Err(parsed.usage());
    }
    let read_only = match (parsed.has(b'r'), parsed.has(b'w')) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let options =
        parsed.flags.iter().filter(|(flag, _)| *flag == b'o').filter_map(|(_, value)| value.map(str::to_owned));
    let request = OpenRequest {
        read_only,
        force_share: parsed.has(b'U'),
        cache: parsed.last(if reopen { b'c' } else { b't' }).map(str::to_owned),
        discard: parsed.last(b'd').map(str::to_owned),
        options: options.collect(),
        path: parsed.rest.first().map(|&path| path.to_owned()),
    };
    Ok(if reopen { Command::Reopen(request) } else { Command::Open(request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(line: &str) -> Command {
        parse(line, true).unwrap().unwrap()
    }

    fn bad(line: &str) -> Refusal {
        parse(line, true).unwrap_err()
    }

    fn usage(name: &str) -> String {
        spec::find(name).unwrap().usage() + "\n"
    }

    #[test]
    fn reads() {
        let plain = Read {
            offset: 1536,
            length: 1024,
            pattern: None,
            dump: false,
            report: Report::Human,
            verb: "read",
            detached: false,
        };
        assert_eq!(good("read 1.5k 1k"), Command::Read(plain.clone()));
        assert_eq!(good("r  1.5k   1k -v"), Command::Read(Read { dump: true, ..plain.clone() }));
        let pattern = Some(Pattern { byte: 8, skip: 5, length: 1019 });
        assert_eq!(good("read -P 010 -s5 1536 1k"), Command::Read(Read { pattern, ..plain.clone() }));
        let pattern = Some(Pattern { byte: 255, skip: 0, length: 1024 });
        assert_eq!(
            good("aio_read -qP255 1536 1000 24"),
            Command::Read(Read { pattern, report: Report::Quiet, verb: "readv", detached: true, ..plain.clone() })
        );
        assert_eq!(
            good("readv -C -- 1536 1024"),
            Command::Read(Read { report: Report::Machine, verb: "readv", ..plain })
        );
    }

    #[test]
    fn writes() {
        let plain = Write {
            offset: 0,
            length: 65536,
            source: Source::Pattern(0xcd),
            durable: false,
            report: Report::Human,
            verb: "write",
            detached: false,
        };
        assert_eq!(good("write 0 64k"), Command::Write(plain.clone()));
        let zero = Source::Zeroes { unmap: true };
        assert_eq!(good("w -zu 0 64k"), Command::Write(Write { source: zero.clone(), ..plain.clone() }));
        let packed = Source::Compressed(3);
        assert_eq!(good("write -cP 3 0 64k"), Command::Write(Write { source: packed, ..plain.clone() }));
        let file = Source::File("a".into());
        assert_eq!(good("write -f -s a 0 64k"), Command::Write(Write { source: file, durable: true, ..plain.clone() }));
        assert_eq!(
            good("aio_write -zu 0 64k"),
            Command::Write(Write { source: zero, verb: "aio_write", detached: true, ..plain })
        );
    }

    #[test]
    fn the_other_commands() {
        assert_eq!(good("d 64k 1M"), Command::Discard { offset: 65536, length: 1 << 20, report: Report::Human });
        assert_eq!(
            good("truncate -m full 1M"),
            Command::Truncate { size: 1 << 20, preallocation: Preallocation::Full }
        );
        assert_eq!(good("alloc 1k"), Command::Alloc { offset: 1024, length: 512 });
        assert_eq!(good("sleep 0x10"), Command::Sleep(16));
        assert_eq!(good("quit now"), Command::Quit);
        assert_eq!(good("help read"), Command::Help(Some("read".into())));
        let request = OpenRequest { options: vec!["a=b".into()], path: Some("x".into()), ..OpenRequest::default() };
        assert_eq!(good("open -o a=b x"), Command::Open(request));
        assert_eq!(parse("   ", true), Ok(None));
        assert_eq!(parse("quit", false), Ok(Some(Command::Quit)));
    }

    #[test]
    fn refusals_are_qemu_ios_words_on_its_streams() {
        let parsing = "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ";
        for (line, text) in [
            ("write a b", format!("{parsing}a")),
            ("read \"0\" 512", format!("{parsing}\"0\"")),
            ("read 9E 1", "Parsing error: argument too large -- 9E".into()),
            ("alloc -1", "Parsing error: argument too large -- -1".into()),
            ("write -P 256 0 5", "256 is not a valid pattern byte".into()),
            ("read -P 1 -s 3 -l 4 0 5", "pattern verification range exceeds end of read data".into()),
            ("write -u 0 5", "-u requires -z to be specified".into()),
            ("write -z -P 3 0 5", "Only one of -z, -P, and -s can be specified at the same time".into()),
            ("write -c 3 512", "3 is not a sector-aligned value for 'offset'".into()),
            ("write -c 0 1000", "1000 is not a sector-aligned value for 'count'".into()),
            ("write 0 3G", "length cannot exceed 2147483136 without -n, given 3G".into()),
            ("discard 0 3G", "length cannot exceed 2147483136, given 3G".into()),
            ("readv 0 2G 2G", "Argument '2G' exceeds maximum size 2147483136".into()),
            ("sleep 1k", "1k is not a valid number".into()),
        ] {
            assert_eq!(bad(line), Refusal::out(text), "{line}");
        }
        for (line, text) in [
            ("foo", "command \"foo\" not found"),
            ("# comment", "command \"#\" not found"),
            ("write 0", "bad argument count 1 to write, expected at least 2 arguments"),
            ("l 1", "bad argument count 1 to l, expected 0 arguments"),
            ("alloc 1 2 3", "bad argument count 3 to alloc, expected between 1 and 2 arguments"),
            ("write -b 0 512", "write: -b (VM state) is not supported by qcowkit"),
            ("break a b", "command \"break\" is not supported by qcowkit"),
        ] {
            assert_eq!(bad(line), Refusal::err(text), "{line}");
        }
        assert_eq!(parse("length", false), Err(Refusal::err("no file open, try 'help open'")));
        for (line, err) in [
            ("write -5 3", "write: invalid option -- '5'\n"),
            ("write 0 -P", "write: option requires an argument -- 'P'\n"),
            ("write 0 1 2", ""),
        ] {
            assert_eq!(bad(line), Refusal { err: err.into(), out: usage("write") }, "{line}");
        }
    }
}
