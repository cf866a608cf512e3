//! `check`: look, repair, undo a repair.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::repair::{
    RepairLevel, RepairLimit, RepairOptions, RepairPlan, RepairState, UndoLog, apply, find_orphans, plan,
};
use qcowkit_core::operations::{CheckReport, check, read_header};

use crate::cli::args::{CheckArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::check as print;
use crate::cli::plan::{Session, Source, one_file, only_writeback, size_argument};
use crate::cli::progress::Progress;
use crate::cli::terminal::{plain_stderr, tell};
use crate::file::FileStorage;

/// Exit codes of qemu-img.
const NOT_CHECKED: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NO_CHECKS: u8 = 63;

/// Plans that a repair carries out one after the other where limits of memory end them. With all copies of each
/// (`MAX_REPAIR_COPY_BYTES`) the file grows by 16 GiB.
const MAX_PLANS: u32 = 64;

/// Finds errors and lost space in the metadata, and repairs them if asked. Only the image itself is opened, not what it
/// names.
pub(crate) fn run(args: &CheckArgs, session: &mut Session<'_>) -> Outcome {
    let file = one_file(&args.image.files)?;
    let repair = repair_level(args)?;
    only_writeback(args.cache.as_deref(), "source")?;
    let options = RepairOptions { relink: args.relink.iter().map(|text| relink(text)).collect::<Result<_, _>>()? };
    let undo = args.undo.as_deref().map(Path::new);
    if let Some(path) = undo.filter(|path| path.exists()) {
        return Err(Failure::new(format!("{}: the undo file exists already", path.display())));
    }
    let writable = (repair.is_some() && !args.dry_run) || args.apply_undo.is_some();
    if writable && args.image.open.force_share {
        let what =
            format!("Could not open '{}': force-share=on can only be used with read-only images", file.display());
        return Err(Failure::new(what));
    }
    let source = args.image.source(session.personality, writable)?;
    let (storage, format) = source.open_file(session.personality)?;
    if format != LayerFormat::Qcow2 {
        return Err(Failure::new("This image format does not support checks").with_code(NO_CHECKS));
    }
    if let Some(path) = &args.apply_undo {
        return take_back(&storage, Path::new(path), file, session);
    }
    let Some(level) = repair else { return look(args, &source, &storage, file, session) };
    let mut planned = make_plan(args, level, &options, &source, &storage, session)?;
    if args.dry_run {
        return dry_run(args, &planned, file, session);
    }
    carry_out(&planned, &storage, undo, file, session)?;
    // Each plan would need an undo file of its own.
    let (stopped, often, how) = match undo {
        Some(_) => (planned.limit(), String::new(), ", with another undo file"),
        None => {
            let stopped = go_on(args, level, &mut planned, &source, &storage, file, session)?;
            (stopped, format!(", {MAX_PLANS} times"), "")
        }
    };
    if let Some(limit) = stopped {
        let name = session.personality.name();
        let file = file.display();
        session.out.flush()?;
        tell(
            &format!("{name}: {file}: the repair ends at a limit: {limit}{often}; repeat it to go on from here{how}"),
            true,
        );
    }
    finish(args, &planned, &source, &storage, file, session)
}

/// Carries out plan after plan while a limit ends them and they make the image better; gives the limit that ended the last.
fn go_on(
    args: &CheckArgs,
    level: RepairLevel,
    planned: &mut RepairPlan,
    source: &Source,
    storage: &FileStorage,
    file: &OsStr,
    session: &mut Session<'_>,
) -> Result<Option<RepairLimit>, Failure> {
    let mut stopped = planned.limit();
    for _ in 1..MAX_PLANS {
        if stopped.is_none() {
            break;
        }
        planned.forget_changes();
        let more = make_plan(args, level, &RepairOptions::default(), source, storage, session)?;
        let better = errors(&more.after) < errors(&planned.after);
        carry_out(&more, storage, None, file, session)?;
        stopped = more.limit().filter(|_| better);
        planned.join_carried_out(more);
    }
    Ok(stopped)
}

/// Plans a repair, and tells what it does.
fn make_plan(
    args: &CheckArgs,
    level: RepairLevel,
    options: &RepairOptions,
    source: &Source,
    storage: &FileStorage,
    session: &mut Session<'_>,
) -> Result<RepairPlan, Failure> {
    let planned = with_progress(args, session, |step| plan(storage, level, options, step))
        .map_err(|error| source.failure(error, session.personality))?;
    if let Some(before) = &planned.before
        && !session.personality.is_own()
    {
        print::findings(before, session.personality, session.out)?;
    }
    print::repairs(&planned, args.dry_run, session.personality, session.out)?;
    Ok(planned)
}

fn carry_out(
    planned: &RepairPlan,
    storage: &FileStorage,
    undo: Option<&Path>,
    file: &OsStr,
    session: &Session<'_>,
) -> Result<(), Failure> {
    if planned.is_empty() {
        return Ok(());
    }
    if let Some(path) = undo {
        keep(planned, storage, path)?;
    }
    // What is to be undone must not be punched.
    apply(planned, storage, undo.is_none() && keeps_nothing(planned, session))
        .map_err(|error| Failure::in_file(file.display(), &error))
}

fn errors(report: &CheckReport) -> u64 {
    report.corruptions.saturating_add(report.check_errors)
}

fn repair_level(args: &CheckArgs) -> Result<Option<RepairLevel>, Failure> {
    match args.repair.as_deref() {
        Some("leaks") if !args.relink.is_empty() => Err(Failure::usage("--relink needs -r all")),
        Some("leaks") => Ok(Some(RepairLevel::Leaks)),
        Some("all") => Ok(Some(RepairLevel::All)),
        Some(other) => Err(Failure::usage(format!("--repair (-r) expects 'leaks' or 'all' not '{other}'"))),
        None if args.dry_run => Ok(Some(RepairLevel::All)),
        None if args.undo.is_some() || !args.relink.is_empty() => {
            Err(Failure::usage("--undo and --relink belong to a repair: -r all"))
        }
        None => Ok(None),
    }
}

/// `HOST@GUEST`.
fn relink(text: &str) -> Result<(u64, u64), Failure> {
    let wrong = || Failure::usage(format!("--relink expects HOST@GUEST, two offsets, not '{text}'"));
    let (host, guest) = text.split_once('@').ok_or_else(wrong)?;
    Ok((size_argument(host, "host offset")?, size_argument(guest, "guest offset")?))
}

/// The space of clusters that become free is given back as QEMU does, unless they hold what may be wanted again.
fn keeps_nothing(planned: &RepairPlan, session: &Session<'_>) -> bool {
    planned.orphans.is_empty() || !session.personality.is_own()
}

fn with_progress<T>(
    args: &CheckArgs,
    session: &mut Session<'_>,
    work: impl FnOnce(&mut dyn FnMut(f64)) -> qcowkit_core::Result<T>,
) -> qcowkit_core::Result<T> {
    let mut progress = Progress::new(session.personality, false, args.quiet, session.out);
    let done = work(&mut |part| progress.step((part * 1000.0) as u64, 1000));
    progress.leave();
    done
}

fn look(args: &CheckArgs, source: &Source, storage: &FileStorage, file: &OsStr, session: &mut Session<'_>) -> Outcome {
    let broken = |error: qcowkit_core::Error| source.failure(error, session.personality);
    let area = read_header(storage).map_err(broken)?;
    let report = with_progress(args, session, |step| check(storage, &area, step))
        .map_err(|error| source.failure(error, session.personality))?;
    print::findings(&report, session.personality, session.out)?;
    let wanted = session.personality.is_own() && report.leaks > 0;
    let orphans = if wanted { find_orphans(storage).unwrap_or_default() } else { Vec::new() };
    print::orphans(&orphans, &mut plain_stderr())?;
    match args.image.output.output {
        OutputFormat::Json => {
            print::json(&report, None, &orphans, file, session.personality)?.print(session.out)?;
        }
        OutputFormat::Human if args.quiet => {}
        OutputFormat::Human => print::human(&report, session.out)?,
    }
    Ok(code(&report))
}

fn code(report: &CheckReport) -> u8 {
    match report {
        report if report.check_errors > 0 => NOT_CHECKED,
        report if report.corruptions > 0 => CORRUPT,
        report if report.leaks > 0 => LEAKS,
        _ => 0,
    }
}

/// The image is as it was: so are numbers and exit code.
fn dry_run(args: &CheckArgs, planned: &RepairPlan, file: &OsStr, session: &mut Session<'_>) -> Outcome {
    let before = planned.before.clone().unwrap_or_default();
    match args.image.output.output {
        OutputFormat::Json => {
            let json = print::json(
                &before,
                Some((planned, RepairState::Planned)),
                &planned.orphans,
                file,
                session.personality,
            )?;
            json.print(session.out)?;
        }
        OutputFormat::Human if args.quiet => {}
        OutputFormat::Human => print::prospect(planned, session.out)?,
    }
    Ok(if planned.before.is_none() { NOT_CHECKED } else { code(&before) })
}

/// Checks again what is there now, and tells.
fn finish(
    args: &CheckArgs,
    planned: &RepairPlan,
    source: &Source,
    storage: &FileStorage,
    file: &OsStr,
    session: &mut Session<'_>,
) -> Outcome {
    let area = read_header(storage).map_err(|error| source.failure(error, session.personality))?;
    let after = with_progress(args, session, |step| check(storage, &area, step))
        .map_err(|error| source.failure(error, session.personality))?;
    let human = args.image.output.output == OutputFormat::Human && !args.quiet;
    if human && (planned.leaks_fixed() > 0 || planned.corruptions_fixed() > 0) {
        print::repaired(planned, session.out)?;
    }
    if after.leaks + after.corruptions + after.check_errors > 0 {
        print::findings(&after, session.personality, session.out)?;
    }
    match args.image.output.output {
        OutputFormat::Json => {
            let json =
                print::json(&after, Some((planned, RepairState::Done)), &planned.orphans, file, session.personality)?;
            json.print(session.out)?;
        }
        OutputFormat::Human if args.quiet => {}
        OutputFormat::Human => print::human(&after, session.out)?,
    }
    Ok(code(&after))
}

/// Writes the undo file, durably, before anything is overwritten.
fn keep(planned: &RepairPlan, storage: &FileStorage, path: &Path) -> Result<(), Failure> {
    let log = UndoLog::of(planned, storage).map_err(|error| Failure::in_file(path.display(), &error))?;
    let written = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        file.write_all(&log.to_bytes())?;
        file.sync_all()?;
        // The name, too, must be there after a cut.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    written().map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn take_back(storage: &FileStorage, path: &Path, file: &OsStr, session: &mut Session<'_>) -> Outcome {
    let bytes = std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let log = UndoLog::from_bytes(&bytes).map_err(|error| Failure::in_file(path.display(), &error))?;
    log.restore(storage).map_err(|error| Failure::in_file(file.display(), &error))?;
    writeln!(session.out, "The repair is undone.")?;
    Ok(0)
}
