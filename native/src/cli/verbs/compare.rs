//! `compare`.

use std::ffi::OsString;
use std::ops::ControlFlow;

use crate::cli::args::CompareArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::plan::{Session, only_writeback};
use crate::cli::progress::Progress;
use crate::compare::{CompareError, Comparison, compare};

/// Exit codes of qemu-img.
const DIFFER: u8 = 1;
const CANNOT_OPEN: u8 = 2;
const CANNOT_MAP: u8 = 3;
const CANNOT_READ: u8 = 4;

/// Tells whether two disks have the same contents.
pub(crate) fn run(args: &CompareArgs, session: &mut Session<'_>) -> Outcome {
    let [first, second] = &args.files[..] else { return Err(Failure::usage("Expecting two image file names")) };
    only_writeback(args.cache.as_deref(), "source").map_err(|failure| failure.with_code(CANNOT_OPEN))?;
    let open = |file, format: Option<&str>, snapshot: Option<&OsString>| {
        let source = args.open.source(session.personality, file, format, false)?;
        let source = source.of_snapshot(snapshot.map(OsString::as_os_str))?;
        source
            .one_of_several()
            .for_data(session.personality)
            .open(session.personality)
            .map_err(|failure| failure.with_code(CANNOT_OPEN))
    };
    let unknown = |failure: Failure| if failure.usage { failure } else { failure.with_code(CANNOT_OPEN) };
    let mut a = open(first, args.a_format.as_deref(), args.a_snapshot.as_ref()).map_err(unknown)?;
    let mut b = open(second, args.b_format.as_deref(), args.b_snapshot.as_ref()).map_err(unknown)?;
    args.open.one_data_file([&a, &b]).map_err(|failure| failure.with_code(CANNOT_OPEN))?;

    let mut progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
    let compared = compare(&mut a, &mut b, args.strict, &mut |done, total| {
        progress.step(done, total);
        ControlFlow::Continue(())
    });
    let newline = progress.leave();
    let compared = compared.map_err(|error| {
        let code = if matches!(error, CompareError::Read { .. }) { CANNOT_READ } else { CANNOT_MAP };
        let disk = match &error {
            CompareError::Read { disk, .. } | CompareError::Status { disk, .. } => *disk,
            _ => 0,
        };
        let name = if disk == 0 { first } else { second };
        Failure::new(format!("{}: {error}", name.display())).with_code(code)
    })?;
    if !args.quiet {
        let shorter = a.virtual_size().min(b.virtual_size());
        let sizes_differ = a.virtual_size() != b.virtual_size();
        // The longer one's end is looked at last, after the warning.
        let warned =
            sizes_differ && !args.strict && !matches!(compared, Comparison::Content { offset } if offset < shorter);
        if warned {
            writeln!(session.out, "Warning: Image size mismatch!")?;
        }
        match compared {
            Comparison::Identical => writeln!(session.out, "Images are identical.")?,
            Comparison::Content { offset } => writeln!(session.out, "Content mismatch at offset {offset}!")?,
            Comparison::Status { offset } => {
                writeln!(session.out, "Strict mode: Offset {offset} block status mismatch!")?;
            }
            Comparison::Size => writeln!(session.out, "Strict mode: Image size mismatch!")?,
        }
    }
    if newline {
        writeln!(session.out)?;
    }
    Ok(if compared == Comparison::Identical { 0 } else { DIFFER })
}
