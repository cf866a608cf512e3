//! `snapshot`.

use std::ffi::OsStr;
use std::time::{SystemTime, UNIX_EPOCH};

use qcowkit_core::format::{Name, Snapshot};
use qcowkit_core::image::{Image, NewSnapshot, SnapshotSelector};
use qcowkit_core::operations::info::{SnapshotInfo, SnapshotListing};
use qcowkit_core::{Error, ErrorKind};

use crate::cli::args::{OutputFormat, SnapshotArgs};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::json::Json;
use crate::cli::output::info::snapshots as print_table;
use crate::cli::personality::Personality;
use crate::cli::plan::Session;
use crate::file::FileStorage;

/// Bytes of a name that QEMU reads.
const LONGEST_NAME: usize = 255;

/// What is asked for.
enum Action<'a> {
    List,
    Create(&'a OsStr),
    Apply(&'a OsStr),
    Delete(&'a OsStr),
}

/// Lists, takes, applies or deletes internal snapshots.
pub(crate) fn run(args: &SnapshotArgs, session: &mut Session<'_>) -> Outcome {
    let action = action(args)?;
    let writable = !matches!(action, Action::List);
    let source = args.image.source(session.personality, writable)?;
    if writable && source.request.force_share {
        let name = source.path.display();
        return Err(Failure::new(format!(
            "Could not open '{name}': force-share=on can only be used with read-only images"
        )));
    }
    if writable && args.image.output.output == OutputFormat::Json {
        return Err(Failure::usage("--output is for the list of snapshots"));
    }
    // Only metadata are touched: neither the chain nor a key is needed.
    let source = source.alone();
    let mut disk = source.open(session.personality)?;
    let Some(image) = disk.image_mut() else { return raw(&action, args.image.output.output, session) };
    let failed = Failed { personality: session.personality, path: source.path.display().to_string() };
    match action {
        Action::List => list(image, args.image.output.output, session, &failed)?,
        Action::Create(name) => create(image, name, session.personality, &failed)?,
        Action::Apply(name) => {
            let selector = SnapshotSelector::IdOrName(Name::new(name.as_encoded_bytes()));
            image.apply_snapshot(&selector).map_err(|error| failed.apply(name, &error))?;
        }
        Action::Delete(name) => delete(image, name, session.personality, &failed)?,
    }
    disk.finish().map_err(|error| Failure::in_file(source.path.display(), &error))?;
    Ok(0)
}

fn action(args: &SnapshotArgs) -> Result<Action<'_>, Failure> {
    let given = usize::from(args.list) + args.create.len() + args.apply.len() + args.delete.len();
    if given > 1 {
        return Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'"));
    }
    Ok(match (&args.create[..], &args.apply[..], &args.delete[..]) {
        ([name, ..], _, _) => Action::Create(name),
        (_, [name, ..], _) => Action::Apply(name),
        (_, _, [name, ..]) => Action::Delete(name),
        _ => Action::List,
    })
}

fn list(
    image: &Image<FileStorage>,
    format: OutputFormat,
    session: &mut Session<'_>,
    failed: &Failed,
) -> Result<(), Failure> {
    let snapshots = image.snapshots().map_err(|error| Failure::in_file(&failed.path, &error))?;
    match format {
        OutputFormat::Json => {
            let size = image.virtual_size();
            let all: Vec<_> = snapshots.iter().map(|snapshot| SnapshotListing::new(snapshot, size)).collect();
            Json::of(&all)?.print(session.out)?;
        }
        OutputFormat::Human if snapshots.is_empty() => {}
        OutputFormat::Human => {
            let all: Vec<SnapshotInfo> = snapshots.iter().map(SnapshotInfo::new).collect();
            writeln!(session.out, "Snapshot list:")?;
            print_table(session.out, &all, session.personality.is_own())?;
        }
    }
    Ok(())
}

fn create(
    image: &mut Image<FileStorage>,
    name: &OsStr,
    personality: Personality,
    failed: &Failed,
) -> Result<(), Failure> {
    let bytes = name.as_encoded_bytes();
    if bytes.len() > LONGEST_NAME && personality.is_own() {
        return Err(Failure::usage(format!(
            "the name has {} bytes; QEMU reads at most {LONGEST_NAME} bytes of a snapshot's name",
            bytes.len()
        )));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot {
        // qemu-img cuts longer ones off.
        name: Name::new(&bytes[..bytes.len().min(LONGEST_NAME)]),
        date_seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nanoseconds: now.subsec_nanos(),
        // qemu-img says 0, where a machine without record and replay says that there is none.
        icount: (!personality.is_own()).then_some(0),
        ..NewSnapshot::default()
    };
    image.create_snapshot(&new).map(drop).map_err(|error| failed.create(name, &error))
}

/// qemu-img goes by the name alone and takes the first. qcowkit takes an ID too, and does not choose among several.
fn delete(
    image: &mut Image<FileStorage>,
    name: &OsStr,
    personality: Personality,
    failed: &Failed,
) -> Result<(), Failure> {
    let wanted = Name::new(name.as_encoded_bytes());
    let snapshots = image.snapshots().map_err(|error| failed.delete(name, &error))?;
    let named: Vec<&Snapshot> = snapshots.iter().filter(|snapshot| snapshot.name == wanted).collect();
    let selector = match named[..] {
        [_, _, ..] if personality.is_own() => {
            let ids: Vec<String> = named.iter().map(|snapshot| snapshot.id.to_string()).collect();
            let (ids, shown) = (ids.join(", "), name.display());
            return Err(Failure::new(format!(
                "{}: several snapshots are named '{shown}': delete one by its ID ({ids})",
                failed.path
            )));
        }
        [] if personality.is_own() => SnapshotSelector::Id(wanted),
        [] => {
            let name = name.display();
            return Err(Failure::new(format!("Could not delete snapshot '{name}': snapshot not found")));
        }
        [first, ..] => SnapshotSelector::IdAndName { id: first.id.clone(), name: wanted },
    };
    image.delete_snapshot(&selector).map_err(|error| failed.delete(name, &error))
}

/// A raw file has no snapshots.
fn raw(action: &Action<'_>, format: OutputFormat, session: &mut Session<'_>) -> Outcome {
    match action {
        Action::List => {
            if format == OutputFormat::Json {
                writeln!(session.out, "[\n]")?;
            }
            Ok(0)
        }
        Action::Create(name) => {
            Err(Failure::new(format!("Could not create snapshot '{}': Operation not supported", name.display())))
        }
        Action::Apply(name) => Err(Failure::new(format!(
            "Could not apply snapshot '{}': Block driver does not support snapshots",
            name.display()
        ))),
        Action::Delete(name) => {
            Err(Failure::new(format!("Could not delete snapshot '{}': snapshot not found", name.display())))
        }
    }
}

/// Tells what went wrong, in the words of the program that is spoken for.
struct Failed {
    personality: Personality,
    path: String,
}

impl Failed {
    fn create(&self, name: &OsStr, error: &Error) -> Failure {
        self.tell("create", name, error, |error| match error.kind() {
            ErrorKind::Unsupported(_) => "Operation not supported".into(),
            ErrorKind::Limit(_) => "Invalid argument".into(),
            ErrorKind::NoSpace(_) => "No space left on device".into(),
            _ => error.to_string(),
        })
    }

    fn apply(&self, name: &OsStr, error: &Error) -> Failure {
        self.tell("apply", name, error, |error| match error.kind() {
            ErrorKind::Unsupported(what) if what.contains("bitmaps") => "Device has active dirty bitmaps".into(),
            ErrorKind::Unsupported(_) => "Failed to load snapshot: Operation not supported".into(),
            ErrorKind::InvalidArgument(_) => "Failed to load snapshot: No such file or directory".into(),
            ErrorKind::Limit(_) => "Failed to load snapshot: Invalid argument".into(),
            _ => format!("Failed to load snapshot: {error}"),
        })
    }

    fn delete(&self, name: &OsStr, error: &Error) -> Failure {
        self.tell("delete", name, error, |error| match error.kind() {
            ErrorKind::Unsupported(_) => "Operation not supported".into(),
            _ => error.to_string(),
        })
    }

    fn tell(&self, what: &str, name: &OsStr, error: &Error, qemu: impl Fn(&Error) -> String) -> Failure {
        let name = name.display();
        Failure::new(match self.personality.is_own() {
            true => format!("{}: could not {what} snapshot '{name}': {error}", self.path),
            false => format!("Could not {what} snapshot '{name}': {}", qemu(error)),
        })
    }
}
