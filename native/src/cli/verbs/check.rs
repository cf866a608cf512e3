//! `check`.

use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::{check, read_header};

use crate::cli::args::{CheckArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::check as print;
use crate::cli::plan::{Session, one_file, only_writeback};
use crate::cli::progress::Progress;

/// Exit codes of qemu-img.
const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECKS: u8 = 63;

/// Finds errors and lost space in the metadata. Only the image itself is opened, not what it names.
pub(crate) fn run(args: &CheckArgs, session: &mut Session<'_>) -> Outcome {
    let file = one_file(&args.files)?;
    if args.repair.is_some() {
        return Err(Failure::usage("-r (repair) is not supported yet; qemu-img check -r repairs"));
    }
    only_writeback(args.cache.as_deref(), "source")?;
    let source = args.open.source(session.personality, file, args.format.as_deref(), false)?;
    let (storage, format) = source.open_file(session.personality)?;
    if format != LayerFormat::Qcow2 {
        return Err(Failure::new("This image format does not support checks").with_code(NO_CHECKS));
    }
    let broken = |error: qcowkit_core::Error| source.failure(error, session.personality);
    let area = read_header(&storage).map_err(broken)?;
    let mut progress = Progress::new(session.personality, false, args.quiet, session.out);
    let report = check(&storage, &area, &mut |part| progress.step((part * 1000.0) as u64, 1000));
    progress.leave();
    let report = report.map_err(broken)?;
    print::findings(&report, session.personality, session.out)?;
    match args.output.output {
        OutputFormat::Json => print::json(&report, file, session.personality)?.print(session.out)?,
        OutputFormat::Human if args.quiet => {}
        OutputFormat::Human => print::human(&report, session.out)?,
    }
    Ok(match &report {
        report if report.check_errors > 0 => NOT_CHECKED,
        report if report.corruptions > 0 => CORRUPT,
        report if report.leaks > 0 => LEAKS,
        _ => 0,
    })
}
