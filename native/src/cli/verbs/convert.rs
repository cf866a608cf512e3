//! `convert`.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcowkit_core::crypto::Secret;
use qcowkit_core::format::Name;
use qcowkit_core::image::{LayerFormat, OpenOptions};
use qcowkit_core::storage::ReadStorage;

use super::convert_bitmaps;
use crate::cli::args::ConvertArgs;
use crate::cli::create_options::{ImageOptions, help};
use crate::cli::failure::{Failure, Outcome, qemu_lines};
use crate::cli::keys::{named, new_volume};
use crate::cli::options::{OptionList, c_number};
use crate::cli::personality::Personality;
use crate::cli::plan::{Session, Source, only_writeback, source_of_backing};
use crate::cli::progress::Progress;
use crate::cli::terminal::tell;
use crate::codec::NativeCodecs;
use crate::convert::{ConvertError, ConvertOptions, TargetState, Unreadable, Watch, convert_watched, total_size};
use crate::create::NewImage;
use crate::disk::Disk;
use crate::open::{OpenRequest, format_by_name, local_path, relative_to, system_words};

/// Copies disks into one.
pub(crate) fn run(args: &ConvertArgs, session: &mut Session<'_>) -> Outcome {
    let plan = Plan::new(args, session)?;
    if plan.list.wants_help() {
        write!(session.out, "{}", help(plan.format, false))?;
        return Ok(0);
    }
    let Some(target) = &plan.target else { return Err(Failure::new("Must specify image file name")) };
    let mut sources = Vec::new();
    for source in &plan.sources {
        sources.push(source.open(session.personality)?);
    }
    if sources.len() > 1 {
        args.open.one_data_file(&sources)?;
    }
    let bitmaps = convert_bitmaps::find(args, &sources, session.personality)?;
    let total = total_size(&sources).map_err(|error| Failure::new(error.to_string()))?;
    let backing = plan.check_backing(target, session)?;
    let mut disk = if args.no_create {
        plan.existing(args, target, total, session)?
    } else {
        plan.create(args, target, total, session)?
    };
    convert_bitmaps::check_target(args, &disk)?;
    let options = ConvertOptions {
        compress: args.compress,
        sparse_size: plan.sparse,
        backing,
        target: target_state(args, &disk),
        out_of_order: args.oob_writes && !args.compress,
        workers: plan.workers,
        offload: args.copy_range_offloading,
        salvage: args.salvage,
        rate: plan.rate,
    };
    let progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
    let mut watcher = Watcher { progress, personality: session.personality, quiet: args.quiet, sources: &plan.sources };
    let copied = convert_watched(&mut sources, &mut disk, &options, &mut watcher);
    watcher.progress.finish(copied.is_ok());
    copied.map_err(|error| match error {
        ConvertError::Read { source, .. } => Failure::new(format!("{}: {error}", plan.sources[source].path.display())),
        ConvertError::TargetTooSmall { .. } => Failure::new(error.to_string()),
        _ => Failure::new(format!("{}: {error}", target.display())),
    })?;
    convert_bitmaps::copy(&sources, &mut disk, target, &bitmaps)?;
    Ok(0)
}

/// Shows how the conversion goes.
struct Watcher<'a> {
    progress: Progress<'a>,
    personality: Personality,
    quiet: bool,
    sources: &'a [Source],
}

impl Watch for Watcher<'_> {
    fn progress(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        self.progress.step(done, total);
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, part: &Unreadable) {
        if !self.quiet {
            let path = self.sources[part.source].path.display();
            // As good as nobody there: the conversion goes on.
            tell(&format!("{}: warning: {path}: {part}", self.personality.name()), self.personality.is_own());
        }
    }
}

/// What the target holds before anything is copied.
fn target_state(args: &ConvertArgs, disk: &Disk) -> TargetState {
    let raw_device = disk.format() == LayerFormat::Raw && disk.file().capabilities().block_device;
    match (args.no_create, args.target_is_zero) {
        (true, true) => TargetState::Zeroed,
        (true, false) => TargetState::Existing,
        // What a device holds is still there after it was taken for a new image.
        (false, _) if raw_device => TargetState::Existing,
        (false, _) => TargetState::New,
    }
}

/// The arguments, checked.
struct Plan {
    sources: Vec<Source>,
    target: Option<PathBuf>,
    format: LayerFormat,
    list: OptionList,
    options: Option<ImageOptions>,
    sparse: u64,
    workers: usize,
    rate: Option<NonZeroU64>,
    durable: bool,
}

impl Plan {
    fn new(args: &ConvertArgs, session: &Session<'_>) -> Result<Self, Failure> {
        only_writeback(args.source_cache.as_deref(), "source")?;
        let name = args.target_format.as_deref().unwrap_or("raw");
        let format = format_by_name(name).map_err(|_| Failure::new(format!("Unknown file format '{name}'")))?;
        let list = OptionList::parse(&args.options).map_err(|error| Failure::new(error.to_string()))?;
        let (sparse, workers) = (sparse_bytes(args)?, workers(args)?);
        let (rate, durable) = (rate(args)?, durable(args)?);
        check_combinations(args, format, &list)?;
        let (sources, target) = match &args.files[..] {
            [] | [_] if list.wants_help() => (Vec::new(), args.files.first()),
            [sources @ .., target] if !sources.is_empty() => (sources.to_vec(), Some(target)),
            _ => return Err(Failure::new("Must specify image file name")),
        };
        convert_bitmaps::check_arguments(args, sources.len())?;
        if args.source_snapshot.is_some() && sources.len() > 1 {
            return Err(Failure::new("No support for concatenating multiple snapshot"));
        }
        let mut open_args = args.open.clone();
        open_args.change.image_opts |= args.source_image_opts;
        let several = sources.len() > 1;
        let open = |file: &OsString| {
            let source = open_args.source(session.personality, file, args.source_format.as_deref(), false)?;
            let source = source.of_snapshot(args.source_snapshot.as_deref())?.for_data(session.personality);
            Ok(if several { source.one_of_several() } else { source })
        };
        let sources = sources.iter().map(open).collect::<Result<_, Failure>>()?;
        let by_options = args.target_image_opts;
        let target = target.map(|target| if by_options { Ok(target.into()) } else { local(target) }).transpose()?;
        let mut plan = Self { sources, target, format, list, options: None, sparse, workers, rate, durable };
        if !args.no_create && !plan.list.wants_help() {
            plan.options = Some(plan.image_options(args, session.personality)?);
        }
        Ok(plan)
    }

    fn image_options(&self, args: &ConvertArgs, personality: Personality) -> Result<ImageOptions, Failure> {
        let mut options = ImageOptions::parse(self.format, &self.list).map_err(Failure::new)?;
        let name = args.target_format.as_deref().unwrap_or("raw");
        if let Some(file) = &args.backing {
            options
                .set("backing_file", file)
                .map_err(|_| Failure::new(format!("Backing file not supported for file format '{name}'")))?;
        }
        if let Some(format) = &args.backing_format {
            options
                .set("backing_fmt", format)
                .map_err(|_| Failure::new(format!("Backing file format not supported for file format '{name}'")))?;
        }
        // qemu-img takes it and makes the target as large as the sources all the same.
        if personality.is_own() && options.size().is_some() {
            return Err(Failure::usage("the option size is not supported: the target is as large as the sources"));
        }
        if options.text("backing_file").is_some() && options.text("backing_fmt").is_none() {
            return Err(Failure::new("Use of backing file requires explicit backing format"));
        }
        if args.compress && options.text("preallocation").is_some_and(|mode| mode != "off") {
            return Err(Failure::new("Compression and preallocation not supported at the same time"));
        }
        if args.compress && options.encryption().map_err(Failure::new)?.is_some() {
            return Err(Failure::new("Compression and encryption not supported at the same time"));
        }
        Ok(options)
    }

    /// Opens the backing file that the arguments give the target, to see that it can be; false if they give none.
    fn check_backing(&self, target: &Path, session: &Session<'_>) -> Result<bool, Failure> {
        let named = self
            .options
            .as_ref()
            .and_then(|options| Some((options.text("backing_file")?, options.text("backing_fmt").unwrap_or_default())));
        let Some((name, format)) = named else { return Ok(false) };
        let failed = |error: qcowkit_core::Error| Failure::new(format!("backing file '{name}': {error}"));
        let path = relative_to(target, &Name::new(name.as_bytes())).map_err(failed)?;
        let format = Some(format_by_name(&format).map_err(failed)?);
        source_of_backing(path, OpenRequest { format, ..OpenRequest::default() }).open(session.personality)?;
        Ok(true)
    }

    fn create(&self, args: &ConvertArgs, target: &Path, total: u64, session: &Session<'_>) -> Result<Disk, Failure> {
        let shown = target.display();
        let failed = |text: String| {
            Failure::new(format!(
                "{shown}: error while converting {}: {text}",
                crate::cli::create_options::format_name(self.format)
            ))
        };
        let Some(options) = &self.options else { return Err(Failure::new("no options for the new image")) };
        let new = NewImage { durable: self.durable, ..options.new_image(total).map_err(failed)? };
        let secrets = args.open.change.keys.secrets(session.personality)?;
        let name = shown.to_string();
        let volume = new_volume(options, &secrets, target_key(args)?, &name, session.personality).map_err(failed)?;
        let new = new.encrypted(volume);
        let open = OpenOptions { codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
        new.create(target, open).map_err(|error| {
            failed(match (system_words(&error), session.personality.is_own()) {
                (Some(words), false) => format!("Could not create '{shown}': {words}"),
                _ => qemu_lines(&error, session.personality),
            })
        })
    }

    /// The target as it is, for `-n`.
    fn existing(&self, args: &ConvertArgs, target: &Path, total: u64, session: &Session<'_>) -> Result<Disk, Failure> {
        // The source's options say nothing of the target.
        let mut open = args.open.without_data_file();
        open.change.image_opts = args.target_image_opts;
        let name = args.target_format.as_deref().or(Some("raw")).filter(|_| !args.target_image_opts);
        let mut source = open.source(session.personality, target.as_os_str(), name, true)?;
        if let Some(secret) = target_key(args)? {
            source.add_key(secret);
        }
        let disk = source.for_data(session.personality).open(session.personality)?;
        disk.file().set_barriers(self.durable);
        if disk.virtual_size() < total {
            return Err(Failure::new("output file is smaller than input file"));
        }
        Ok(disk)
    }
}

fn local(target: &OsStr) -> Result<PathBuf, Failure> {
    local_path(target.as_encoded_bytes()).map_err(|error| Failure::new(format!("{}: {error}", target.display())))
}

/// The key that the arguments give the target.
fn target_key(args: &ConvertArgs) -> Result<Option<Secret>, Failure> {
    named(args.target_keys.target_key_file.as_deref(), args.target_keys.target_key_env.as_deref())
}

/// Bytes per second; 0 stands for no limit.
fn rate(args: &ConvertArgs) -> Result<Option<NonZeroU64>, Failure> {
    let Some(text) = &args.rate else { return Ok(None) };
    let bytes =
        crate::cli::size::parse(text).map_err(|_| Failure::new(format!("Invalid rate limit specified: '{text}'.")))?;
    Ok(NonZeroU64::new(bytes))
}

fn sparse_bytes(args: &ConvertArgs) -> Result<u64, Failure> {
    const MOST: u64 = 16 << 20;
    let Some(text) = &args.sparse_size else { return Ok(4096) };
    let bytes = crate::cli::size::parse(text)
        .map_err(|_| Failure::new(format!("Invalid buffer size for sparse output specified: '{text}'.")))?;
    if !bytes.is_multiple_of(512) || bytes > MOST {
        return Err(Failure::new(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MOST}. Select 0 to \
             disable sparse detection (fully allocates output)."
        )));
    }
    Ok(bytes)
}

fn workers(args: &ConvertArgs) -> Result<usize, Failure> {
    let Some(text) = &args.parallel else { return Ok(8) };
    match c_number(text) {
        Some(number @ 1..=16) => Ok(number as usize),
        Some(_) => Err(Failure::new("Invalid number of coroutines specified. Must be between 1 and 16.")),
        None => Err(Failure::new(format!("Invalid number of coroutines specified: '{text}'."))),
    }
}

/// Whether the target is flushed to the disk at the end.
fn durable(args: &ConvertArgs) -> Result<bool, Failure> {
    match args.target_cache.as_deref() {
        None | Some("unsafe") => Ok(false),
        Some("writeback" | "writethrough") => Ok(true),
        Some(mode @ ("none" | "off" | "directsync")) => {
            Err(Failure::new(format!("the target cache mode '{mode}' is not supported")))
        }
        Some(other) => Err(Failure::new(format!("Invalid cache option: {other}"))),
    }
}

fn check_combinations(args: &ConvertArgs, format: LayerFormat, list: &OptionList) -> Result<(), Failure> {
    let wrong = [
        (args.no_create && !list.entries.is_empty(), "-o has no effect when skipping image creation"),
        (args.copy_range_offloading && args.sparse_size.is_some(), "Cannot enable copy offloading when -S is used"),
        (args.copy_range_offloading && args.compress, "Cannot enable copy offloading when -c is used"),
        (args.copy_range_offloading && args.salvage, "Cannot use copy offloading in salvaging mode"),
        (args.target_image_opts && !args.no_create, "--target-image-opts requires use of -n flag"),
        (args.target_is_zero && !args.no_create, "--target-is-zero requires use of -n flag"),
        (args.compress && format == LayerFormat::Raw, "Compression not supported for this file format"),
        (
            args.no_create && args.backing.is_some(),
            "-B together with -n is not supported: the target keeps the backing file it has",
        ),
    ];
    match wrong.iter().find(|(wrong, _)| *wrong) {
        Some((_, words)) => Err(Failure::new(*words)),
        None => Ok(()),
    }
}
