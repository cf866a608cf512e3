//! `bitmap`.

use std::ffi::OsStr;

use qcowkit_core::image::{BitmapSummary, DirtyBits, DroppedBitmap, Image};
use qcowkit_core::{Error, ErrorKind};
use serde::Serialize;

use super::print_json;
use crate::cli::args::{BitmapAction, BitmapArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome, qemu_lines};
use crate::cli::output::table::{Align, Table};
use crate::cli::personality::Personality;
use crate::cli::plan::{Session, one_file, size_argument};
use crate::cli::size::human;
use crate::file::FileStorage;

/// Exit code of `--remove-broken --dry-run` where something would be removed.
const WOULD_REMOVE: u8 = 3;

/// Adds, removes, changes and lists the dirty bitmaps of an image.
pub(crate) fn run(args: &BitmapArgs, session: &mut Session<'_>) -> Outcome {
    match (args.list, args.remove_broken, args.actions.0.is_empty()) {
        (true, false, true) => list(args, session),
        (false, true, true) => remove_broken(args, session),
        (false, false, false) => change(args, session),
        (false, false, true) => {
            Err(Failure::new("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"))
        }
        _ => Err(Failure::usage("--list, --remove-broken and changes of one bitmap do not go together")),
    }
}

fn change(args: &BitmapArgs, session: &mut Session<'_>) -> Outcome {
    let plan = Plan::new(args)?;
    let [file, name] = &args.files[..] else { return Err(Failure::new("Expecting filename and bitmap name")) };
    let name = utf8(name)?;
    let source = args.open.source(session.personality, file, args.format.as_deref(), true)?.alone();
    refuse_force_share(&source.request, &source.path)?;
    let merged = match &args.source_file {
        Some(file) => {
            let mut open = args.open.without_data_file();
            open.change.image_opts = false;
            Some(open.source(session.personality, file, args.source_format.as_deref(), false)?.alone())
        }
        None => None,
    };
    let mut disk = source.open(session.personality)?;
    // QEMU's order: the target first, so that of two names for one file the second finds the lock.
    let merged = merged.map(|merged| merged.open(session.personality)).transpose()?;
    let merged = merged.as_ref();
    for action in &args.actions.0 {
        let failed = |error: &Error| {
            let what = words(error, session.personality);
            Failure::new(format!("Operation {} on bitmap {name} failed: {what}", action.name()))
        };
        let Some(image) = disk.image_mut() else {
            return Err(failed(&Error::unsupported("Can't store persistent bitmaps to a raw image")));
        };
        let from = |image: &Image<FileStorage>, name: &str| -> Result<DirtyBits, Error> {
            match merged {
                None => image.bitmap_bits(name),
                Some(merged) => match merged.image() {
                    Some(image) => image.bitmap_bits(name),
                    None => Err(Error::invalid(format!("Dirty bitmap '{name}' not found"))),
                },
            }
        };
        let done = match action {
            BitmapAction::Add => image.add_bitmap(name, plan.granularity),
            BitmapAction::Remove => image.remove_bitmap(name),
            BitmapAction::Clear => image.clear_bitmap(name),
            BitmapAction::Enable => image.enable_bitmap(name, true),
            BitmapAction::Disable => image.enable_bitmap(name, false),
            BitmapAction::Merge(other) => from(image, other).and_then(|bits| image.merge_into_bitmap(name, &bits)),
        };
        done.map_err(|error| failed(&error))?;
    }
    disk.finish().map_err(|error| Failure::in_file(source.path.display(), &error))?;
    Ok(0)
}

struct Plan {
    granularity: Option<u64>,
}

impl Plan {
    fn new(args: &BitmapArgs) -> Result<Self, Failure> {
        let given = |wanted: fn(&BitmapAction) -> bool| args.actions.0.iter().any(wanted);
        let (add, merge) = (given(|a| matches!(a, BitmapAction::Add)), given(|a| matches!(a, BitmapAction::Merge(_))));
        let wrong = [
            (args.granularity.is_some() && !add, "granularity only supported with --add"),
            (args.source_file.is_some() && !merge, "Merge bitmap source file only supported with --merge"),
            (args.source_format.is_some() && args.source_file.is_none(), "-F only supported with -b"),
            (args.in_use || args.dry_run, "--in-use and --dry-run go together with --remove-broken only"),
            (
                args.output.output == OutputFormat::Json,
                "--output is for --list and --remove-broken, a change prints nothing",
            ),
        ];
        if let Some((_, words)) = wrong.iter().find(|(wrong, _)| *wrong) {
            return Err(Failure::new(*words));
        }
        let granularity = args.granularity.as_deref().map(|text| size_argument(text, "granularity")).transpose()?;
        Ok(Self { granularity })
    }
}

/// Options that belong to changes.
fn only_for_changes(args: &BitmapArgs) -> Result<(), Failure> {
    match args.granularity.is_some() || args.source_file.is_some() || args.source_format.is_some() {
        true => Err(Failure::usage("-g, -b and -F go together with changes of one bitmap")),
        false => Ok(()),
    }
}

fn refuse_force_share(request: &crate::open::OpenRequest, path: &std::path::Path) -> Result<(), Failure> {
    match request.force_share {
        true => Err(Failure::new(format!(
            "Could not open '{}': force-share=on can only be used with read-only images",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// What `--list` tells.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    filename: String,
    virtual_size: u64,
    bitmaps: Vec<BitmapSummary>,
    /// What is wrong with the directory as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

fn list(args: &BitmapArgs, session: &mut Session<'_>) -> Outcome {
    only_for_changes(args)?;
    if args.in_use || args.dry_run {
        return Err(Failure::usage("--in-use and --dry-run go together with --remove-broken only"));
    }
    let source = args.open.source(session.personality, one_file(&args.files)?, args.format.as_deref(), false)?.alone();
    let disk = source.open(session.personality)?;
    let Some(image) = disk.image() else {
        return Err(Failure::new(format!("{}: raw images have no bitmaps", source.path.display())));
    };
    let failed = |error: Error| Failure::in_file(source.path.display(), &error);
    let whole = image.broken_bitmaps(false).map_err(failed)?.into_iter().find(|broken| broken.name.is_none());
    let bitmaps = match &whole {
        Some(_) => Vec::new(),
        None => image.bitmaps().map_err(failed)?,
    };
    let problem = whole.as_ref().map(|broken| broken.problem.as_str());
    let listing =
        Listing { filename: source.path.display().to_string(), virtual_size: disk.virtual_size(), bitmaps, problem };
    match args.output.output {
        OutputFormat::Json => print_json(session.out, &listing)?,
        OutputFormat::Human => print_list(&listing, session)?,
    }
    Ok(0)
}

fn print_list(listing: &Listing<'_>, session: &mut Session<'_>) -> std::io::Result<()> {
    if let Some(problem) = listing.problem {
        writeln!(session.out, "The bitmaps cannot be used: {problem}.")?;
        return writeln!(session.out, "'qcowkit bitmap --remove-broken FILE' takes them out.");
    }
    if listing.bitmaps.is_empty() {
        return writeln!(session.out, "No bitmaps.");
    }
    let mut table = Table::new(&[
        ("name", Align::Left),
        ("granularity", Align::Right),
        ("records", Align::Left),
        ("dirty", Align::Right),
        ("state", Align::Left),
    ]);
    for bitmap in &listing.bitmaps {
        table.row(vec![
            bitmap.name.clone(),
            human(bitmap.granularity),
            if bitmap.enabled { "yes" } else { "no" }.to_owned(),
            bitmap.dirty_bytes.map_or_else(|| "?".to_owned(), human),
            bitmap.problem.clone().unwrap_or_else(|| "good".to_owned()),
        ]);
    }
    table.print(session.out, 0)
}

/// What `--remove-broken` tells.
#[derive(Debug, Serialize)]
struct Removal {
    filename: String,
    dry_run: bool,
    removed: Vec<DroppedBitmap>,
}

fn remove_broken(args: &BitmapArgs, session: &mut Session<'_>) -> Outcome {
    only_for_changes(args)?;
    let writable = !args.dry_run;
    let file = one_file(&args.files)?;
    let source = args.open.source(session.personality, file, args.format.as_deref(), writable)?.alone();
    if writable {
        refuse_force_share(&source.request, &source.path)?;
    }
    let mut disk = source.open(session.personality)?;
    let failed = |error: Error| Failure::in_file(source.path.display(), &error);
    let Some(image) = disk.image_mut() else {
        return Err(Failure::new(format!("{}: raw images have no bitmaps", source.path.display())));
    };
    let removed = if args.dry_run { image.broken_bitmaps(args.in_use) } else { image.drop_broken_bitmaps(args.in_use) };
    let removed = removed.map_err(failed)?;
    disk.finish().map_err(failed)?;
    let would = args.dry_run && !removed.is_empty();
    let removal = Removal { filename: source.path.display().to_string(), dry_run: args.dry_run, removed };
    match args.output.output {
        OutputFormat::Json => print_json(session.out, &removal)?,
        OutputFormat::Human => print_removal(&removal, session)?,
    }
    Ok(if would { WOULD_REMOVE } else { 0 })
}

fn print_removal(removal: &Removal, session: &mut Session<'_>) -> std::io::Result<()> {
    if removal.removed.is_empty() {
        return writeln!(session.out, "Nothing is broken.");
    }
    let verb = if removal.dry_run { "Would remove" } else { "Removed" };
    for dropped in &removal.removed {
        match &dropped.name {
            Some(name) => writeln!(session.out, "{verb} the bitmap '{name}': {}.", dropped.problem)?,
            None => writeln!(session.out, "{verb} all bitmaps: {}.", dropped.problem)?,
        }
    }
    if removal.removed.iter().any(|dropped| dropped.leaks) {
        writeln!(session.out, "Clusters of theirs may be leaked: a check finds them, its repair frees them.")?;
    }
    Ok(())
}

fn utf8(name: &OsStr) -> Result<&str, Failure> {
    name.to_str().ok_or_else(|| Failure::usage("the name of the bitmap is not UTF-8"))
}

/// An error in the words of the program that is spoken for.
fn words(error: &Error, personality: Personality) -> String {
    match error.kind() {
        ErrorKind::Corrupt(what) if what.contains("is inconsistent and cannot be used") => match personality {
            Personality::Own => format!("{what}; 'qcowkit bitmap --remove' takes it out"),
            _ => format!("{what}\nTry block-dirty-bitmap-remove to delete this bitmap from disk"),
        },
        ErrorKind::InvalidArgument(what) | ErrorKind::Unsupported(what) => what.clone(),
        _ => qemu_lines(error, personality),
    }
}
