//! `measure`.

use qcowkit_core::{Error, ErrorKind};

use crate::cli::args::{MeasureArgs, OutputFormat};
use crate::cli::create_options::ImageOptions;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::json::Json;
use crate::cli::options::OptionList;
use crate::cli::plan::Session;
use crate::cli::size::SizeError;
use crate::disk::Disk;
use crate::measure::{Measured, measured};
use crate::open::format_by_name;

/// Tells how large the file of a new image becomes.
pub(crate) fn run(args: &MeasureArgs, session: &mut Session<'_>) -> Outcome {
    let list = OptionList::parse(&args.options).map_err(|error| Failure::new(error.to_string()))?;
    let from_file = match (&args.image.files[..], &args.size) {
        ([], None) => return Err(Failure::new("Either --size N or one filename must be specified.")),
        ([_], Some(_)) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        ([_, _, ..], _) => return Err(Failure::new("At most one filename argument is allowed.")),
        ([], Some(_)) => false,
        ([_], None) => true,
    };
    if !from_file && (args.image.open.change.image_opts || args.image.format.is_some() || args.snapshot.is_some()) {
        return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
    }
    let size = args.size.as_deref().map(disk_size).transpose()?;
    let name = args.target_format.as_deref().unwrap_or("raw");
    let format = format_by_name(name).map_err(|_| Failure::new(format!("Unknown file format '{name}'")))?;
    let options = ImageOptions::parse(format, &list).map_err(|words| {
        let program = session.personality.name();
        Failure::new(words).and(format!("{program}: Invalid options for file format '{name}'"))
    })?;
    let mut disk = from_file.then(|| open(args, session)).transpose()?;
    let measured = measured(&options, disk.as_mut(), size.unwrap_or(0), args.discard_no_unref);
    let measured = measured.map_err(|error| Failure::new(words(&error)))?;
    print(&measured, args.image.output.output, session)?;
    Ok(0)
}

fn open(args: &MeasureArgs, session: &Session<'_>) -> Result<Disk, Failure> {
    let source = args.image.source(session.personality, false)?;
    source.of_snapshot(args.snapshot.as_deref())?.open(session.personality)
}

/// An error without the name of its kind: the words say it.
fn words(error: &Error) -> String {
    match error.kind() {
        ErrorKind::InvalidArgument(words) if words.contains("L1 table would exceed") => {
            "The image size is too large (try using a larger cluster size)".into()
        }
        ErrorKind::InvalidArgument(words) => words.clone(),
        _ => error.to_string(),
    }
}

fn disk_size(text: &str) -> Result<u64, Failure> {
    let out_of_range = || Failure::new(format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX));
    match crate::cli::size::parse(text) {
        Ok(size) if i64::try_from(size).is_ok() => Ok(size),
        Ok(_) | Err(SizeError::OutOfRange) => Err(out_of_range()),
        Err(SizeError::NotANumber) => Err(Failure::new(format!("Invalid image size specified: '{text}'."))),
    }
}

fn print(measured: &Measured, format: OutputFormat, session: &mut Session<'_>) -> std::io::Result<()> {
    match format {
        OutputFormat::Human => {
            writeln!(session.out, "required size: {}", measured.required)?;
            writeln!(session.out, "fully allocated size: {}", measured.fully_allocated)?;
            measured.bitmaps.map_or(Ok(()), |bytes| writeln!(session.out, "bitmaps size: {bytes}"))
        }
        OutputFormat::Json => {
            let mut members: Vec<(String, Json)> = Vec::new();
            members.extend(measured.bitmaps.map(|bytes| ("bitmaps".to_owned(), bytes.into())));
            members.push(("required".into(), measured.required.into()));
            members.push(("fully-allocated".into(), measured.fully_allocated.into()));
            Json::Object(members).print(session.out)
        }
    }
}
