//! `dd`.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::Arc;

use qcowkit_core::image::{CreateOptions, LayerFormat, OpenOptions, Preallocation};

use crate::blocks::{Blocks, copy};
use crate::cli::args::DdArgs;
use crate::cli::failure::{Failure, Outcome, qemu_lines};
use crate::cli::options::c_number;
use crate::cli::plan::Session;
use crate::codec::NativeCodecs;
use crate::create::{NewFormat, NewImage};
use crate::disk::Disk;
use crate::open::{format_by_name, local_path, system_words};

/// Copies blocks of a disk into a new image.
pub(crate) fn run(args: &DdArgs, session: &mut Session<'_>) -> Outcome {
    let operands = Operands::parse(&args.operands)?;
    let format = format_by_name(args.output_format.as_deref().unwrap_or("raw"))
        .map_err(|_| Failure::new("Unknown file format"))?;
    let source = args.open.source(session.personality, &operands.input, args.format.as_deref(), false)?;
    let mut input = source.for_data(session.personality).open(session.personality)?;
    let range = operands.blocks.of(input.virtual_size());
    if range.is_none() {
        let name = session.personality.name();
        let shown = operands.input.display();
        writeln!(std::io::stderr(), "{name}: {shown}: cannot skip to specified offset")?;
    }
    let range = range.unwrap_or(0..0);
    let mut output = create(&operands.output, format, range.end - range.start, session)?;
    let failed = |error| Failure::in_file(operands.output.display(), &error);
    copy(&mut input, range, &mut output).and_then(|()| output.finish()).map_err(failed)?;
    Ok(0)
}

struct Operands {
    blocks: Blocks,
    input: OsString,
    output: OsString,
}

impl Operands {
    fn parse(words: &[OsString]) -> Result<Self, Failure> {
        let mut blocks = Blocks::default();
        let (mut input, mut output) = (None, None);
        for word in words {
            let text = word.to_string_lossy();
            let (key, value) = text.split_once('=').unwrap_or((&text, ""));
            match key {
                "if" => input = Some(after_equals(word)),
                "of" => output = Some(after_equals(word)),
                "bs" => blocks.bytes = block_bytes(value)?,
                "count" => blocks.count = Some(number("count", value)?),
                "skip" => blocks.skip = number("skip", value)?,
                _ => return Err(Failure::new(format!("unrecognized operand {key}"))),
            }
        }
        match (input, output) {
            (Some(input), Some(output)) => Ok(Self { blocks, input, output }),
            _ => Err(Failure::new("Must specify both input and output files")),
        }
    }
}

/// What follows `if=` or `of=`, which need not be UTF-8.
#[cfg(unix)]
fn after_equals(word: &OsStr) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    OsStr::from_bytes(word.as_bytes().get(3..).unwrap_or_default()).to_owned()
}

/// What follows `if=` or `of=`.
#[cfg(not(unix))]
fn after_equals(word: &OsStr) -> OsString {
    OsString::from(word.to_string_lossy().get(3..).unwrap_or_default())
}

fn block_bytes(text: &str) -> Result<u64, Failure> {
    let most = i32::MAX;
    match crate::cli::size::parse(text) {
        Ok(bytes) if bytes > 0 && i32::try_from(bytes).is_ok() => Ok(bytes),
        Ok(_) | Err(crate::cli::size::SizeError::OutOfRange) => {
            Err(Failure::new(format!("Invalid bs specified. Must be between 1 and {most}.")))
        }
        Err(crate::cli::size::SizeError::NotANumber) => Err(Failure::new(format!("Invalid bs specified: '{text}'."))),
    }
}

fn number(what: &str, text: &str) -> Result<u64, Failure> {
    if text.starts_with('-') && c_number(&text[1..]).is_some() {
        let most = i64::MAX;
        return Err(Failure::new(format!("Invalid {what} specified. Must be between 0 and {most}.")));
    }
    c_number(text).ok_or_else(|| Failure::new(format!("Invalid {what} specified: '{text}'.")))
}

fn create(name: &OsStr, format: LayerFormat, size: u64, session: &Session<'_>) -> Result<Disk, Failure> {
    let shown = name.display();
    let failed = |text: String| Failure::new(format!("{shown}: error while creating output image: {text}"));
    let path = local_path(name.as_encoded_bytes()).map_err(|error| failed(error.to_string()))?;
    let format = match format {
        LayerFormat::Raw => NewFormat::Raw(Preallocation::Off),
        LayerFormat::Qcow2 => NewFormat::Qcow2(CreateOptions::default()),
    };
    let new = NewImage { size, format, durable: true };
    let open = OpenOptions { codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
    new.create(&path, open).map_err(|error| {
        failed(match (system_words(&error), session.personality.is_own()) {
            (Some(words), false) => format!("Could not create '{shown}': {words}"),
            _ => qemu_lines(&error, session.personality),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Operands, Failure> {
        Operands::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn operands_are_read_as_qemu_img_reads_them() {
        let all = parse(&["if=a=b", "bs=1.5k", "count=0x10", "skip=2", "of=c", "count=3"]).unwrap();
        assert_eq!((all.input.to_str(), all.output.to_str()), (Some("a=b"), Some("c")));
        assert_eq!(all.blocks, Blocks { bytes: 1536, skip: 2, count: Some(3) });
        assert_eq!(parse(&["if=a", "of=c"]).unwrap().blocks, Blocks::default());
        for (word, message) in [
            ("bs=0", "Invalid bs specified. Must be between 1 and 2147483647."),
            ("bs=3G", "Invalid bs specified. Must be between 1 and 2147483647."),
            ("bs=x", "Invalid bs specified: 'x'."),
            ("count=1k", "Invalid count specified: '1k'."),
            ("count=", "Invalid count specified: ''."),
            ("count=-1", "Invalid count specified. Must be between 0 and 9223372036854775807."),
            ("skip=x", "Invalid skip specified: 'x'."),
            ("conv=sync", "unrecognized operand conv"),
            ("seek", "unrecognized operand seek"),
        ] {
            let Err(failure) = parse(&["if=a", "of=c", word]) else { panic!("{word} passed") };
            assert_eq!(failure.message, message);
        }
        assert!(parse(&["if=a"]).is_err() && parse(&["of=a"]).is_err());
    }
}
