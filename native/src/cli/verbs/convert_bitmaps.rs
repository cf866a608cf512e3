//! `convert --bitmaps`.

use std::path::Path;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::BitmapSummary;

use crate::bitmaps;
use crate::cli::args::ConvertArgs;
use crate::cli::failure::Failure;
use crate::cli::personality::Personality;
use crate::cli::terminal::tell;
use crate::disk::Disk;

/// What must hold whatever the images are.
///
/// # Errors
/// Options that do not go together.
pub(crate) fn check_arguments(args: &ConvertArgs, sources: usize) -> Result<(), Failure> {
    let wrong = [
        (args.skip_broken_bitmaps && !args.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
        (args.bitmaps && sources > 1, "Copying bitmaps only possible with single source"),
        (
            args.bitmaps && args.source_snapshot.is_some(),
            "--bitmaps together with -l is not supported: bitmaps tell of the disk as it is now",
        ),
    ];
    match wrong.iter().find(|(wrong, _)| *wrong) {
        Some((_, words)) => Err(Failure::new(*words)),
        None => Ok(()),
    }
}

/// The bitmaps that are going to be copied, found before the target is made; none unless asked for.
///
/// # Errors
/// A source without bitmaps, bitmaps that cannot be used.
pub(crate) fn find(
    args: &ConvertArgs,
    sources: &[Disk],
    personality: Personality,
) -> Result<Vec<BitmapSummary>, Failure> {
    let name = personality.name();
    if !args.bitmaps {
        return Ok(Vec::new());
    }
    let Some(source) = sources.first().and_then(Disk::image) else {
        return Err(Failure::new("Source lacks bitmap support"));
    };
    let (good, broken) = match bitmaps::copyable(source) {
        Ok(found) => found,
        Err(error) if args.skip_broken_bitmaps && !matches!(error.kind(), ErrorKind::Storage(_)) => {
            tell(&format!("{name}: warning: Skipping all bitmaps: {error}"), personality.is_own());
            return Ok(Vec::new());
        }
        Err(error) => return Err(Failure::new(format!("Cannot copy the bitmaps: {error}"))),
    };
    for bitmap in &broken {
        if !args.skip_broken_bitmaps {
            return Err(Failure::new(format!("Cannot copy inconsistent bitmap '{}'", bitmap.name))
                .and(format!("Try --skip-broken-bitmaps, or use '{name} bitmap --remove' to delete it")));
        }
        let warning = format!("{name}: warning: Skipping inconsistent bitmap '{}'", bitmap.name);
        tell(&warning, personality.is_own());
    }
    Ok(good)
}

/// Refuses a target that has no bitmaps, before anything is copied.
///
/// # Errors
/// Raw images, and version 2.
pub(crate) fn check_target(args: &ConvertArgs, target: &Disk) -> Result<(), Failure> {
    let able = target.image().is_some_and(|image| image.geometry().version() >= 3);
    if args.bitmaps && !able {
        let format = crate::cli::create_options::format_name(target.format());
        return Err(Failure::new(format!("Format driver '{format}' does not support bitmaps")));
    }
    Ok(())
}

/// Copies the bitmaps after the data.
///
/// # Errors
/// As [`bitmaps::copy`].
pub(crate) fn copy(sources: &[Disk], target: &mut Disk, path: &Path, bitmaps: &[BitmapSummary]) -> Result<(), Failure> {
    let (Some(source), Some(target)) = (sources.first().and_then(Disk::image), target.image_mut()) else {
        return Ok(());
    };
    bitmaps::copy(source, target, bitmaps).map_err(|error| Failure::new(error.to_string()))?;
    target.finish().map_err(|error| Failure::in_file(path.display(), &error))
}
