//! `discard`.

use std::ffi::OsStr;
use std::io::Read;

use qcowkit_core::image::{Found, Image, LayerFormat, Opener, Reference};
use qcowkit_core::storage::{CountingStorage, OverlayStorage, ReadStorage, Storage};

use crate::cli::args::{DiscardArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::options::OptionList;
use crate::cli::output::discard as print;
use crate::cli::plan::{Session, Source};
use crate::cli::progress::Progress;
use crate::cli::runtime;
use crate::file::FileStorage;
use crate::open::FileOpener;
use qcowkit_core::operations::trim::{DiscardReport, GuestRange, TrimReport, trim};

/// Discards ranges, or tells what that would do.
pub(crate) fn run(args: &DiscardArgs, session: &mut Session<'_>) -> Outcome {
    let Some(file) = &args.file else { return Err(Failure::usage("Expecting one image file name")) };
    let plan = Plan::new(args, file, session)?;
    let (storage, format) = plan.source.open_file(session.personality)?;
    if format != LayerFormat::Qcow2 {
        return Err(Failure::new(format!("{}: only qcow2 images have discards to be told of", file.display())));
    }
    let progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
    let report = plan.carry_out(storage, args.dry_run, progress)?;
    match args.output.output {
        _ if args.quiet => {}
        OutputFormat::Human => print::print(&report, session.out)?,
        OutputFormat::Json => super::print_json(session.out, &report)?,
    }
    Ok(0)
}

struct Plan {
    source: Source,
    words: Vec<GuestRange>,
    all: bool,
}

impl Plan {
    fn new(args: &DiscardArgs, file: &OsStr, session: &Session<'_>) -> Result<Self, Failure> {
        let mut source = args.open.source(session.personality, file, args.format.as_deref(), !args.dry_run)?;
        if args.open.force_share && !args.dry_run {
            return Err(Failure::usage("-U (force-share) goes together with --dry-run only"));
        }
        let list = OptionList::parse(&args.options).map_err(|error| Failure::usage(error.to_string()))?;
        for (key, value) in &list.entries {
            runtime::set(&mut source.request.options, key, value).map_err(Failure::usage)?;
        }
        let all = args.ranges == ["all"];
        let words = if all { Vec::new() } else { ranges(&args.ranges)? };
        if words.is_empty() && !all {
            return Err(Failure::usage("no ranges: OFFSET+LENGTH, OFFSET LENGTH, '-' for standard input, or 'all'"));
        }
        Ok(Self { source, words, all })
    }

    fn carry_out(&self, storage: FileStorage, dry_run: bool, progress: Progress<'_>) -> Result<DiscardReport, Failure> {
        let path = self.source.path.display().to_string();
        let failed = |error: qcowkit_core::Error| Failure::in_file(&path, &error);
        let sizes =
            |file: &FileStorage| -> qcowkit_core::Result<(u64, u64)> { Ok((file.allocated_bytes()?, file.len()?)) };
        let before = sizes(&storage).map_err(failed)?;
        let (trim, after) = if dry_run {
            let overlay = OverlayStorage::new(storage).map_err(|error| failed(error.into()))?;
            let (trim, overlay) = self.on(overlay, progress).map_err(failed)?;
            (trim, (None, overlay.len().map_err(|error| failed(error.into()))?))
        } else {
            let (trim, storage) = self.on(storage, progress).map_err(failed)?;
            let (held, length) = sizes(&storage).map_err(failed)?;
            (trim, (Some(held), length))
        };
        Ok(DiscardReport {
            filename: path.clone(),
            dry_run,
            trim,
            host_bytes_before: Some(before.0),
            host_bytes_after: after.0,
            file_length_before: before.1,
            file_length_after: after.1,
        })
    }

    /// Discards on a storage that stands for the file.
    fn on<S: Storage + FromFile>(
        &self,
        storage: S,
        mut progress: Progress<'_>,
    ) -> qcowkit_core::Result<(TrimReport, S)> {
        let mut options = self.source.request.options.clone();
        options.read_only = false;
        // Discards look at nothing below; whether there is something below is in the header.
        let mut opener = Wrapped(FileOpener::new(&self.source.path, &self.source.request));
        let identity = Some(self.source.path.display().to_string());
        let mut image = Image::open_with(CountingStorage::new(storage), identity, options, &mut opener)?;
        let ranges = match self.all {
            true => vec![GuestRange { offset: 0, length: image.virtual_size() }],
            false => self.words.clone(),
        };
        let done = trim(&mut image, &ranges, &mut |done, total| progress.step(done, total));
        progress.leave();
        let report = done?;
        Ok((report, image.close()?.into_inner()))
    }
}

/// A storage that can stand for a file of the chain.
trait FromFile: Sized {
    fn from_file(file: FileStorage) -> qcowkit_core::Result<Self>;
}

impl FromFile for FileStorage {
    fn from_file(file: FileStorage) -> qcowkit_core::Result<Self> {
        Ok(file)
    }
}

impl FromFile for OverlayStorage<FileStorage> {
    fn from_file(file: FileStorage) -> qcowkit_core::Result<Self> {
        Ok(Self::new(file)?)
    }
}

/// The files of the chain, wrapped as the image itself is.
struct Wrapped(FileOpener);

impl<S: FromFile> Opener<CountingStorage<S>> for Wrapped {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<CountingStorage<S>>> {
        let Found { storage, format, identity } = self.0.open(reference)?;
        Ok(Found { storage: CountingStorage::new(S::from_file(storage)?), format, identity })
    }
}

/// Ranges from the arguments, or from standard input.
fn ranges(words: &[String]) -> Result<Vec<GuestRange>, Failure> {
    if words != ["-"] {
        return parse_words(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::new(format!("standard input: {error}")))?;
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split([' ', '\t', ',', ';']).filter(|word| !word.is_empty()).collect();
        let parsed = parse_words(&words)
            .map_err(|failure| Failure::usage(format!("standard input, line {}: {}", number + 1, failure.message)))?;
        all.extend(parsed);
    }
    Ok(all)
}

/// `OFFSET+LENGTH`, any number, or pairs of `OFFSET LENGTH`.
fn parse_words(words: &[&str]) -> Result<Vec<GuestRange>, Failure> {
    let size =
        |text: &str| crate::cli::size::parse(text).map_err(|_| Failure::usage(format!("'{text}' is not a size")));
    let mut ranges = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (offset, length): (&str, &str) = match word.split_once('+') {
            Some(parts) => parts,
            None => match words.next() {
                Some(length) => (word, length),
                None => return Err(Failure::usage(format!("'{word}' lacks a length: OFFSET+LENGTH"))),
            },
        };
        ranges.push(GuestRange { offset: size(offset)?, length: size(length)? });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_two_forms() {
        let parsed = parse_words(&["1M+64k", "0", "0x10", "2k+1"]).unwrap();
        let expected = [(1 << 20, 65536), (0, 16), (2048, 1)];
        assert_eq!(parsed, expected.map(|(offset, length)| GuestRange { offset, length }));
        for words in [&["1M"][..], &["x+1"], &["1+"], &["1", "y"]] {
            assert!(parse_words(words).is_err(), "{words:?}");
        }
    }
}
