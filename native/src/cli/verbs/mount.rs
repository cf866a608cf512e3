//! `mount`.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use qcowkit_core::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::args::MountArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::options::OptionList;
use crate::cli::plan::{Session, Source};
use crate::cli::runtime;
use crate::cli::terminal::tell;
use crate::mount::{Detached, Mount, MountRequest};

/// More failures than this of one mount are not told: a guest that tries again and again would fill a log.
const TOLD_FAILURES: u32 = 20;

/// A program that was killed leaves its mount point behind, at which everything fails like this.
fn cannot_mount(at: &Path, error: &std::io::Error) -> Failure {
    let at = at.display();
    let hint = match error.kind() {
        std::io::ErrorKind::NotConnected => {
            format!("; a mount whose program was killed is left here: 'umount -l {at}'")
        }
        _ => String::new(),
    };
    Failure::new(format!("{at}: cannot mount: {error}{hint}"))
}

/// Shows the disk as a file until it is unmounted, by whomever.
pub(crate) fn run(args: &MountArgs, session: &mut Session<'_>) -> Outcome {
    let source = source(args, session)?;
    let request = request(args)?;
    let name = source.path.display().to_string();
    // Before the mount: a signal that comes early must not leave it behind.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    let disk = source.open(session.personality)?;
    if disk.image().is_some_and(qcowkit_core::image::Image::is_locked) {
        return Err(Failure::new(format!("{name}: the image is encrypted and no key was given")));
    }
    let size = disk.virtual_size();

    let (events, happened) = mpsc::channel();
    let over = events.clone();
    let mount = Mount::new(disk, &request, tell_failures(&name), move || drop(over.send(Event::Over)))
        .map_err(|error| cannot_mount(&request.at, &error))?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                break;
            }
        }
    });
    let file = mount.file().display().to_string();
    if !args.quiet {
        let mode = if request.writable { "read-write" } else { "read-only" };
        writeln!(session.out, "{name} is mounted {mode} at {file} ({size} bytes)")?;
        writeln!(session.out, "Ctrl-C, SIGTERM or 'umount {}' ends it", request.at.display())?;
        session.out.flush()?;
    }
    let failed = |error: Error| Failure::in_file(&name, &error);
    match wait(&mount, &happened, &file)? {
        Ended::Unused => mount.finish().map_err(failed)?,
        Ended::Forced => {
            mount.abort().map_err(failed)?;
            return Err(Failure::new(format!("{file}: ended while it was in use")));
        }
    }
    Ok(0)
}

fn source(args: &MountArgs, session: &Session<'_>) -> Result<Source, Failure> {
    if args.open.force_share && args.rw {
        return Err(Failure::usage("-U (force-share) does not go together with --rw"));
    }
    if args.snapshot.is_some() && args.rw {
        return Err(Failure::usage("a snapshot cannot be written to: --snapshot does not go together with --rw"));
    }
    let mut source = args.open.source(session.personality, &args.image, args.format.as_deref(), args.rw)?;
    let secrets = args.open.change.keys.secrets(session.personality)?;
    if let Some(mode) = &args.discard {
        source.request.options.discard = runtime::discard_mode(mode).map_err(Failure::usage)?;
    }
    let list = OptionList::parse(&args.options).map_err(|error| Failure::usage(error.to_string()))?;
    for (key, value) in &list.entries {
        source.set(key, value, &secrets)?;
    }
    let mut source = source.for_data(session.personality);
    let options = &mut source.request.options;
    // Whatever the lists say.
    options.read_only |= !args.rw;
    if options.read_only && args.rw {
        return Err(Failure::usage("read-only=on does not go together with --rw"));
    }
    source.of_snapshot(args.snapshot.as_deref())
}

fn request(args: &MountArgs) -> Result<MountRequest, Failure> {
    let image = Path::new(&args.image);
    let name = match &args.name {
        Some(name) if Path::new(name).file_name() != Some(name) => {
            return Err(Failure::usage("--name takes a file name without a directory"));
        }
        Some(name) => name.clone(),
        None => {
            let mut name = image.file_stem().map_or_else(|| OsString::from("disk"), OsString::from);
            name.push(".raw");
            name
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or(cores.clamp(2, 8), usize::from);
    let source = std::path::absolute(image).unwrap_or_else(|_| image.into()).display().to_string();
    Ok(MountRequest {
        at: Path::new(&args.at).into(),
        name,
        source,
        writable: args.rw,
        allow_other: args.allow_other,
        threads,
    })
}

enum Event {
    /// Nobody uses the mount any more.
    Over,
    Signal,
}

enum Ended {
    Unused,
    Forced,
}

/// Waits for the end. A signal unmounts; while the disk is still in use, another one is needed to end it.
fn wait(mount: &Mount, happened: &mpsc::Receiver<Event>, file: &str) -> Result<Ended, Failure> {
    let mut detached = false;
    loop {
        match happened.recv() {
            Ok(Event::Over) => return Ok(Ended::Unused),
            Ok(Event::Signal) if detached => return Ok(Ended::Forced),
            Ok(Event::Signal) => match mount.detach() {
                Ok(Detached::Done) => detached = true,
                Ok(Detached::InUse) => {
                    detached = true;
                    tell(&format!("{file}: unmounted, but still in use; waiting. Another signal cuts it off."), true);
                }
                Err(error) => tell(&format!("{file}: cannot unmount: {error}"), true),
            },
            Err(_) => return Err(Failure::new("the threads that wait are gone")),
        }
    }
}

/// The kernel's users only hear a number of what goes wrong.
fn tell_failures(name: &str) -> impl Fn(&Error) + Send + Sync + 'static {
    let (name, told) = (name.to_owned(), AtomicU32::new(0));
    let last = Mutex::new(String::new());
    move |error| {
        let text = format!("{name}: {error}");
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        // Once is enough where one request after the other ends like this.
        if *last == text {
            return;
        }
        match told.fetch_add(1, Ordering::Relaxed) {
            n if n < TOLD_FAILURES => tell(&text, true),
            TOLD_FAILURES => tell(&format!("{name}: further errors are not told"), true),
            _ => {}
        }
        *last = text;
    }
}
