//! `create`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcowkit_core::format::Name;
use qcowkit_core::image::{LayerFormat, OpenOptions};

use crate::cli::args::CreateArgs;
use crate::cli::create_options::{ImageOptions, format_name, help};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::keys::{named, new_volume};
use crate::cli::options::OptionList;
use crate::cli::plan::{Session, source_of_backing};
use crate::cli::size::SizeError;
use crate::codec::NativeCodecs;
use crate::open::{OpenRequest, format_by_name, local_path, relative_to, system_words};

/// Makes a new image.
pub(crate) fn run(args: &CreateArgs, session: &mut Session<'_>) -> Outcome {
    let secrets = args.keys.secrets(session.personality)?;
    let list = OptionList::parse(&args.options).map_err(|error| Failure::new(error.to_string()))?;
    let name = args.format.as_deref().unwrap_or("raw");
    let file = args.operands.first();
    if list.wants_help() {
        let format = known(name, file.map_or(OsStr::new(""), |file| file))?;
        write!(session.out, "{}", help(format, file.is_some()))?;
        return Ok(0);
    }
    let Some(file) = file else { return Err(Failure::usage("Expecting image file name")) };
    let size = operand_size(args)?;
    let shown = file.display().to_string();
    let failed = |text: String| Failure::new(format!("{shown}: {text}"));
    let format = known(name, file)?;
    let mut options = ImageOptions::parse(format, &list).map_err(failed)?;
    backing_options(args, &mut options).map_err(failed)?;
    if size.is_some() && options.size().is_some() {
        return Err(failed("The image size must be specified only once".into()));
    }
    let path = local_path(file.as_encoded_bytes()).map_err(|error| failed(error.to_string()))?;
    let size = match (size.or(options.size()), backing_size(args, &path, &options, session)?) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => return Err(failed("Image creation needs a size parameter".into())),
    };
    if !args.quiet {
        writeln!(session.out, "{}", options.line(&shown, size))?;
        session.out.flush()?;
    }
    let new = options.new_image(size).map_err(failed)?;
    let keys = &args.keys;
    if keys.key_file.len() + keys.key_env.len() > 1 {
        return Err(Failure::usage("a new image takes one key; amend adds others"));
    }
    let given = named(keys.key_file.first().map(PathBuf::as_path), keys.key_env.first().map(String::as_str))?;
    if given.is_some() && options.encryption().map_err(failed)?.is_none() {
        return Err(Failure::usage("a key for an image that is not encrypted: -o encrypt.format=luks encrypts it"));
    }
    let volume = new_volume(&options, &secrets, given, &shown, session.personality).map_err(failed)?;
    let new = new.encrypted(volume);
    let open = OpenOptions { codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
    let disk = new.create(&path, open).and_then(|mut disk| disk.flush());
    disk.map_err(|error| {
        failed(match (system_words(&error), session.personality.is_own()) {
            (Some(words), false) if words == "is a directory" => format!("Could not create '{shown}': Is a directory"),
            (Some(words), false) => format!("Could not create '{shown}': {words}"),
            _ => crate::cli::failure::qemu_lines(&error, session.personality),
        })
    })?;
    Ok(0)
}

fn known(name: &str, file: &OsStr) -> Result<LayerFormat, Failure> {
    format_by_name(name).map_err(|_| Failure::new(format!("{}: Unknown file format '{name}'", file.display())))
}

fn operand_size(args: &CreateArgs) -> Result<Option<u64>, Failure> {
    if let Some(extra) = args.operands.get(2) {
        return Err(Failure::usage(format!("Unexpected argument: {}", extra.display())));
    }
    let Some(text) = args.operands.get(1) else { return Ok(None) };
    let text = text.to_string_lossy();
    let out_of_range = || Failure::new(format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX));
    match crate::cli::size::parse(&text) {
        Ok(size) if i64::try_from(size).is_ok() => Ok(Some(size)),
        Ok(_) | Err(SizeError::OutOfRange) => Err(out_of_range()),
        Err(SizeError::NotANumber) => Err(Failure::new(format!("Invalid image size specified: '{text}'."))),
    }
}

/// `-b` and `-F` as options, over those of the list.
fn backing_options(args: &CreateArgs, options: &mut ImageOptions) -> Result<(), String> {
    let format = args.format.as_deref().unwrap_or("raw");
    if let Some(file) = &args.backing {
        options
            .set("backing_file", file)
            .map_err(|_| format!("Backing file not supported for file format '{format}'"))?;
    }
    if let Some(name) = &args.backing_format {
        options
            .set("backing_fmt", name)
            .map_err(|_| format!("Backing file format not supported for file format '{format}'"))?;
    }
    Ok(())
}

/// The size of the disk of the backing file, which is opened unless told otherwise. The files that it names in turn are
/// not needed for that.
fn backing_size(
    args: &CreateArgs,
    path: &Path,
    options: &ImageOptions,
    session: &Session<'_>,
) -> Result<Option<u64>, Failure> {
    let shown = path.display();
    let Some(name) = options.text("backing_file") else { return Ok(None) };
    if name.is_empty() {
        return Err(Failure::new(format!("{shown}: Expected backing file name, got empty string")));
    }
    let named = relative_to(path, &Name::new(name.as_bytes()))
        .map_err(|error| Failure::new(format!("{shown}: backing file '{name}': {error}")))?;
    if Path::new(&name) == path {
        return Err(Failure::new(format!(
            "{shown}: Error: Trying to create an image with the same filename as the backing file"
        )));
    }
    let format = options.text("backing_fmt");
    if args.backing_unsafe {
        return match format {
            Some(_) => Ok(None),
            None => Err(Failure::new(format!("{shown}: Backing file specified without backing format"))),
        };
    }
    open_backing(&named, format.as_deref(), session)
        .map(Some)
        .map_err(|failure| Failure { message: format!("{shown}: {}", failure.message), ..failure })
}

fn open_backing(named: &Path, format: Option<&str>, session: &Session<'_>) -> Result<u64, Failure> {
    let unopened = |text: String| Failure::new(text).and("Could not open backing image.");
    let known = match format {
        Some(name) => Some(format_by_name(name).map_err(|_| unopened(format!("Unknown driver '{name}'")))?),
        None => None,
    };
    let source = source_of_backing(PathBuf::from(named), OpenRequest { format: known, ..OpenRequest::default() });
    let disk = source.open(session.personality).map_err(|failure| {
        let doubled = format!("Could not open '{}': ", named.display());
        unopened(failure.message.strip_prefix(&doubled).unwrap_or(&failure.message).to_owned())
    })?;
    match format {
        Some(_) => Ok(disk.virtual_size()),
        None => Err(Failure::new("Backing file specified without backing format")
            .and(format!("Detected format of {}.", format_name(disk.format())))),
    }
}
