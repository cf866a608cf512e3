//! `commit`.

use std::ops::ControlFlow;
use std::path::Path;

use super::written_files;
use crate::cli::args::CommitArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::plan::{Session, one_file};
use crate::cli::progress::Progress;
use crate::cli::size::parse;
use crate::commit::{CommitOptions, commit, depth_of};

/// Puts what an image holds into its backing file.
pub(crate) fn run(args: &CommitArgs, session: &mut Session<'_>) -> Outcome {
    let file = one_file(&args.files)?;
    let durable = super::durable(args.cache.as_deref(), "cache")?;
    let options = CommitOptions { bytes_per_second: rate(args.rate.as_deref())?, workers: 0 };
    let mut source = args
        .change
        .open()
        .source(session.personality, file, args.format.as_deref(), true)?
        .for_data(session.personality);
    let depth = match &args.base {
        None => 1,
        Some(base) => {
            // The base must be known before the chain is opened with the base for writing.
            let mut look = source.clone();
            look.request.options.read_only = true;
            let disk = look.open(session.personality)?;
            depth_of(&disk, Path::new(base)).ok_or_else(|| {
                let (base, file) = (base.display(), file.display());
                Failure::new(format!("Did not find '{base}' in the backing chain of '{file}'"))
            })?
        }
    };
    source.request.options.writable_backing = Some(depth);
    let mut disk = source.open(session.personality)?;
    let failed = |error| Failure::in_file(file.display(), &error);
    let Some(image) = disk.image_mut().filter(|image| image.header().backing_file.is_some()) else {
        return Err(Failure::new("Image does not have a backing file"));
    };
    written_files(image, &[0, depth]).for_each(|file| file.set_barriers(durable));
    let empties = !args.drop && args.base.is_none();
    if empties {
        // Before the base changes: an image that cannot be emptied is refused.
        image.prepare_writing().map_err(failed)?;
    }
    let mut progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
    let committed = commit(image, depth, &options, &mut |done, total| {
        progress.step(done, total);
        ControlFlow::Continue(())
    });
    progress.finish(committed.is_ok());
    committed.map_err(failed)?;
    if empties {
        image.empty().map_err(failed)?;
    }
    if !args.quiet {
        writeln!(session.out, "Image committed.")?;
    }
    Ok(0)
}

/// The value of `-r`; 0 is no limit.
fn rate(text: Option<&str>) -> Result<Option<u64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    match parse(text) {
        Ok(rate) if i64::try_from(rate).is_ok() => Ok((rate > 0).then_some(rate)),
        _ => Err(Failure::new(format!("Invalid rate limit specified: '{text}'."))),
    }
}
