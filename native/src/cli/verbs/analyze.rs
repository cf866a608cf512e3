//! `analyze`.

use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::read_header;

use crate::analyze::{FileAnalyzeOptions, analyze_file};
use crate::cli::args::{AnalyzeArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::analysis as human;
use crate::cli::plan::{Session, size_argument};
use crate::cli::progress::Progress;
use crate::file::{FileAccess, FileStorage};
use crate::open::{BackingPolicy, Gate, open_file, relative_to};

/// Tells where the space of an image went, and how it is laid out.
pub(crate) fn run(args: &AnalyzeArgs, session: &mut Session<'_>) -> Outcome {
    let mut options = FileAnalyzeOptions {
        scan_zeroes: args.scan_zeroes,
        extents: !args.no_extents,
        ..FileAnalyzeOptions::default()
    };
    if !args.request_size.is_empty() {
        let sizes = args.request_size.iter().map(|text| size_argument(text, "request size"));
        options.request_sizes = sizes.collect::<Result<_, _>>()?;
    }
    let source = args.image.source(session.personality, false)?;
    let (file, format) =
        open_file(&source.path, &source.request).map_err(|error| Failure::open(&error, session.personality))?;
    if format == LayerFormat::Raw {
        return Err(Failure::new(format!("{}: a raw image has no metadata to analyze", source.path.display())));
    }
    let failed = |error| Failure::in_file(source.path.display(), &error);
    let data_file = data_file(&file, source.request.backing)?;
    let mut progress = Progress::new(session.personality, false, false, session.out);
    let analysis = analyze_file(&file, data_file.as_ref(), &options, &mut |done, total| progress.step(done, total));
    progress.leave();
    let analysis = analysis.map_err(failed)?;
    match args.image.output.output {
        OutputFormat::Human => human::print(session.out, &analysis)?,
        OutputFormat::Json => super::print_json(session.out, &analysis)?,
    }
    Ok(0)
}

/// The external data file, if the image names one that may be opened and is there. Without it, the rest is told.
fn data_file(file: &FileStorage, policy: BackingPolicy) -> Result<Option<FileStorage>, Failure> {
    let Ok(area) = read_header(file) else { return Ok(None) };
    let Some(name) = area.data_file().filter(|_| area.header.incompatible.data_file()) else { return Ok(None) };
    let path = relative_to(file.path(), name).map_err(|error| Failure::in_file(file.path().display(), &error))?;
    let allowed = Gate::new(policy, file.path()).admit(&path, "data file").is_ok();
    Ok(if allowed { FileStorage::open(&path, FileAccess::Read).ok() } else { None })
}
