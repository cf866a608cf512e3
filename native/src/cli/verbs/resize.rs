//! `resize`.

use std::ffi::{OsStr, OsString};

use qcowkit_core::ErrorKind;
use qcowkit_core::image::Preallocation;

use super::{preallocation_mode, warn_of_guess};
use crate::cli::args::ResizeArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::personality::Personality;
use crate::cli::plan::Session;
use crate::cli::size::{SizeError, parse};

/// Changes the size of a disk.
pub(crate) fn run(args: &ResizeArgs, session: &mut Session<'_>) -> Outcome {
    let (file, change) = operands(&args.operands, session.personality)?;
    let mode = preallocation_mode(args.preallocation.as_deref())?;
    let source = args.change.open().source(session.personality, file, args.format.as_deref(), true)?;
    let mut disk = source.open(session.personality)?;
    warn_of_guess(&source, &disk, session.personality)?;
    let old = disk.virtual_size();
    let size = change.apply(old)?;
    if size < old && mode != Preallocation::Off {
        return Err(Failure::new("Preallocation can only be used for growing images"));
    }
    if size < old && !args.shrink {
        return Err(refuse_shrinking(session.personality));
    }
    disk.resize(size, mode).and_then(|()| disk.finish()).map_err(|error| match error.kind() {
        ErrorKind::InvalidArgument(text) if !session.personality.is_own() => Failure::new(capitalized(text)),
        _ => Failure::in_file(file.display(), &error),
    })?;
    if !args.quiet {
        writeln!(session.out, "Image resized.")?;
    }
    Ok(0)
}

/// A new size as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    To(u64),
    By(u64),
    Less(u64),
}

impl Change {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (digits, change): (&str, fn(u64) -> Self) = match text.as_bytes().first() {
            Some(b'+') => (&text[1..], Self::By),
            Some(b'-') => (&text[1..], Self::Less),
            _ => (text, Self::To),
        };
        match parse(digits) {
            Ok(size) => Ok(change(size)),
            Err(SizeError::NotANumber | SizeError::OutOfRange) => Err(Failure::in_lines(
                "Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means \
                 kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.",
            )),
        }
    }

    fn apply(self, old: u64) -> Result<u64, Failure> {
        let size = match self {
            Self::To(size) => Some(size),
            Self::By(more) => old.checked_add(more),
            Self::Less(less) => old.checked_sub(less),
        };
        size.filter(|&size| size > 0 && i64::try_from(size).is_ok())
            .ok_or_else(|| Failure::new("New image size must be positive"))
    }
}

/// The last word is the size, whatever it looks like.
fn operands(words: &[OsString], personality: Personality) -> Result<(&OsStr, Change), Failure> {
    let [files @ .., size] = words else { return Err(Failure::usage("Expecting image file name and size")) };
    if let Some(option) = files.iter().find(|word| word.as_encoded_bytes().starts_with(b"-") && *word != "-") {
        let text = option.to_string_lossy();
        let what = match text.strip_prefix('-').and_then(|rest| rest.chars().next()) {
            Some(letter) if letter != '-' => format!("invalid option -- '{letter}'"),
            _ => format!("unrecognized option '{text}'"),
        };
        return Err(crate::cli::spelled(personality, " resize", &what));
    }
    match files {
        [] => Err(Failure::usage("Expecting image file name and size")),
        [file] => Ok((file, Change::parse(&size.to_string_lossy())?)),
        _ => Err(Failure::usage("Extra argument(s) in command line")),
    }
}

fn refuse_shrinking(personality: Personality) -> Failure {
    let name = personality.name();
    Failure::new("Use the --shrink option to perform a shrink operation.").and(format!(
        "{name}: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such \
         an operation, make sure there is no important data there."
    ))
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        for (text, expected) in [
            ("2M", Change::To(2 << 20)),
            ("+512", Change::By(512)),
            ("-1.5k", Change::Less(1536)),
            ("0x400", Change::To(1024)),
        ] {
            assert_eq!(Change::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "+", "-", "abc", "+-5", "--5", "1Q"] {
            assert!(Change::parse(text).is_err(), "{text}");
        }
        assert_eq!(Change::Less(3).apply(10).unwrap(), 7);
        assert!(Change::Less(10).apply(10).is_err() && Change::Less(11).apply(10).is_err());
        assert!(Change::By(u64::MAX).apply(10).is_err() && Change::To(1 << 63).apply(10).is_err());
    }

    #[test]
    fn the_last_word_is_the_size() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(operands(&words(&["a", "-5k"]), Personality::Own).unwrap(), (OsStr::new("a"), Change::Less(5120)));
        for wrong in [&[][..], &["a"], &["a", "b", "1M"], &["-5k", "a"], &["--foo", "a", "1M"]] {
            assert!(operands(&words(wrong), Personality::Own).is_err(), "{wrong:?}");
        }
    }
}
