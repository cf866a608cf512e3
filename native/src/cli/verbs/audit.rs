//! `audit`.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::Path;

use qcowkit_core::ErrorKind;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::audit::{Audit, AuditOptions, Target, Verdict, audit, audit_start, bytes_wanted};

use super::print_json;
use crate::cli::args::{AuditArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::plan::{Session, one_file, size_argument};
use crate::cli::progress::Progress;
use crate::cli::terminal::one_line;
use crate::file::{FileAccess, FileStorage};
use crate::open::{BackingPolicy, Gate, lock_request, relative_to};

/// Beside the codes of `check`: 2 is the worst, 3 the lesser one.
const DANGER: u8 = 2;
const CAUTION: u8 = 3;

/// Gives a verdict on an image before anything else touches it.
pub(crate) fn run(args: &AuditArgs, session: &mut Session<'_>) -> Outcome {
    let file = one_file(&args.files)?;
    let max_virtual_size = args.max_size.as_deref().map(|text| size_argument(text, "maximum size")).transpose()?;
    let options = AuditOptions { deep: args.deep, max_virtual_size };
    let found = if file == "-" { of_stream(&options)? } else { of_file(args, Path::new(file), &options, session)? };
    match args.output.output {
        OutputFormat::Json => print_json(session.out, &found)?,
        OutputFormat::Human => human(&found, file, session.out)?,
    }
    Ok(match found.verdict {
        Verdict::Safe => 0,
        Verdict::Caution => CAUTION,
        Verdict::Danger => DANGER,
    })
}

/// Reads no more of the stream than the first cluster.
fn of_stream(options: &AuditOptions) -> Result<Audit, Failure> {
    if options.deep {
        return Err(Failure::usage("--deep needs a file: of a stream only the first bytes are read"));
    }
    let failed = |error: io::Error| Failure::new(format!("standard input: {error}"));
    let mut start = Vec::new();
    let mut stdin = io::stdin().lock();
    stdin.by_ref().take(512).read_to_end(&mut start).map_err(failed)?;
    let mut wanted = bytes_wanted(&start);
    stdin.by_ref().take((wanted - start.len().min(wanted)) as u64).read_to_end(&mut start).map_err(failed)?;
    wanted = wanted.max(start.len());
    // A stream that ended early has shown its length.
    let length = (start.len() < wanted).then_some(start.len() as u64);
    Ok(audit_start(&start, length, options))
}

fn of_file(args: &AuditArgs, path: &Path, options: &AuditOptions, session: &mut Session<'_>) -> Result<Audit, Failure> {
    let failed = |error: qcowkit_core::Error| Failure::in_file(path.display(), &error);
    let storage = FileStorage::open(path, FileAccess::Read).map_err(|error| failed(error.into()))?;
    if args.deep && !args.force_share {
        // The tables of an image in use change while they are read; the header of one does not.
        let hint = " -U looks at it all the same, but what it reads may be inconsistent";
        storage
            .lock(lock_request(LayerFormat::Qcow2, false))
            .map_err(|error| Failure::new(format!("{}: {}{hint}", path.display(), qcowkit_core::Error::from(error))))?;
    }
    let mut progress = Progress::new(session.personality, false, false, session.out);
    let found = audit(&storage, options, &mut |part| progress.step((part * 1000.0) as u64, 1000));
    progress.leave();
    let mut found = found.map_err(failed)?;
    judge_links(path, &mut found);
    Ok(found)
}

/// A name can say "below" and be a link to anywhere: an archive brings image and link together. Looks where the names lead
/// without opening anything.
fn judge_links(path: &Path, found: &mut Audit) {
    let gate = Gate::new(BackingPolicy::SameDirectory, path);
    for index in 0..found.references.len() {
        let reference = &found.references[index];
        let Ok(full) = relative_to(path, &reference.name) else { continue };
        let denied = |error: qcowkit_core::Error| matches!(error.kind(), ErrorKind::Denied(_));
        if reference.target == Target::Below && gate.admit(&full, "file").is_err_and(denied) {
            let place = full.canonicalize().unwrap_or(full);
            found.leads_outside(index, &place.display().to_string());
        }
    }
}

fn human(found: &Audit, file: &OsStr, out: &mut dyn Write) -> io::Result<()> {
    let name = if file == "-" { "standard input".into() } else { Path::new(file).display().to_string() };
    let name = one_line(&name, true);
    let verdict = match found.verdict {
        Verdict::Safe => "safe: nothing was found that speaks against opening it",
        Verdict::Caution => "caution: look at this before it is opened",
        Verdict::Danger => "DANGER: do not open it as it is",
    };
    writeln!(out, "{name}: {verdict}")?;
    for finding in &found.findings {
        let word = match finding.verdict {
            Verdict::Safe => "note",
            Verdict::Caution => "caution",
            Verdict::Danger => "danger",
        };
        let message = one_line(&finding.message, true);
        match finding.host_offset {
            Some(offset) => writeln!(out, "  {word:<8} {message} (host offset {offset:#x})")?,
            None => writeln!(out, "  {word:<8} {message}")?,
        }
    }
    Ok(())
}
