//! `io`.

use std::io::{self, BufRead, IsTerminal};

use crate::cli::args::{IoArgs, OpenArgs};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::io::command::{Command, OpenRequest};
use crate::cli::io::exec::{Cache, Executor, Next, Streams};
use crate::cli::io::parse::parse;
use crate::cli::options::OptionList;
use crate::cli::personality::Personality;
use crate::cli::plan::{Session, Source, refuse};
use crate::cli::runtime;
use crate::cli::secrets::Secrets;
use crate::cli::terminal::Plain;
use crate::disk::Disk;

/// Carries out commands of qemu-io's language.
pub(crate) fn run(args: &IoArgs, session: &mut Session<'_>) -> Outcome {
    let plan = Plan::new(args, session.personality)?;
    let disk = match &plan.source {
        Some(source) => Some(open(source, session.personality, plan.cache)?),
        None => None,
    };
    let mut err = Plain::new(io::stderr().lock(), session.personality.is_own());
    let mut runner = Runner {
        disk,
        source: plan.source,
        open: args.open.clone(),
        personality: session.personality,
        executor: Executor::new(plan.cache),
        streams: Streams { out: session.out, err: &mut err, terse: !session.personality.is_own() },
        failed: false,
    };
    if args.cmd.is_empty() {
        runner.standard_input()?;
    } else {
        for line in &args.cmd {
            if !runner.line(line)? {
                break;
            }
        }
    }
    runner.close()?;
    Ok(u8::from(runner.failed))
}

struct Plan {
    source: Option<Source>,
    cache: Cache,
}

impl Plan {
    fn new(args: &IoArgs, personality: Personality) -> Result<Self, Failure> {
        refuse(&[
            (args.snapshot, "-s (snapshot mode)"),
            (args.nocache, "-n (no host cache)"),
            (args.copy_on_read, "-C (copy on read)"),
            (args.misalign, "-m (misaligned buffers)"),
            (args.native_aio, "-k (native AIO)"),
            (args.aio.as_deref().is_some_and(|mode| mode != "threads"), "an AIO mode other than 'threads'"),
        ])?;
        if args.open.force_share && !args.read_only {
            return Err(Failure::usage("-U (force-share) goes together with -r (read-only) only"));
        }
        let source = match &args.files[..] {
            [] => None,
            [file] => {
                let mut source = args.open.source(personality, file, args.format.as_deref(), !args.read_only)?;
                let secrets = args.open.change.keys.secrets(personality)?;
                configure(&mut source, args.discard.as_deref(), &args.options, &secrets)?;
                let source = source.with_prompt(personality);
                Some(source.of_snapshot(args.internal_snapshot.as_deref())?)
            }
            _ => return Err(Failure::usage("Expecting at most one image file name")),
        };
        Ok(Self { source, cache: cache_mode(args.cache.as_deref())? })
    }
}

/// Sets what the command line says of an open image.
fn configure(source: &mut Source, discard: Option<&str>, lists: &[String], secrets: &Secrets) -> Result<(), Failure> {
    if let Some(mode) = discard {
        source.request.options.discard = runtime::discard_mode(mode).map_err(Failure::usage)?;
    }
    let list = OptionList::parse(lists).map_err(|error| Failure::usage(error.to_string()))?;
    for (key, value) in &list.entries {
        match key.as_str() {
            "driver" => {
                source.request.format =
                    Some(crate::open::format_by_name(value).map_err(|error| Failure::usage(error.to_string()))?);
            }
            _ => source.set(key, value, secrets)?,
        }
    }
    Ok(())
}

fn cache_mode(mode: Option<&str>) -> Result<Cache, Failure> {
    match mode {
        None | Some("writeback") => Ok(Cache::Writeback),
        Some("writethrough") => Ok(Cache::Writethrough),
        Some("unsafe") => Ok(Cache::Unsafe),
        Some("none" | "off" | "directsync") => {
            Err(Failure::usage(format!("the cache mode '{}' is not supported", mode.unwrap_or_default())))
        }
        Some(other) => Err(Failure::usage(format!("Invalid cache option: {other}"))),
    }
}

fn open(source: &Source, personality: Personality, cache: Cache) -> Result<Disk, Failure> {
    let opened = source.open(personality).map_err(|failure| match personality {
        Personality::QemuIo => {
            let prefix = format!("Could not open '{}': ", source.path.display());
            let text = failure.message.strip_prefix(&prefix).unwrap_or(&failure.message);
            Failure::new(format!("can't open device {}: {text}", source.path.display()))
        }
        Personality::Own | Personality::QemuImg => failure,
    })?;
    if cache == Cache::Unsafe {
        // Also of barriers that the image's own order of writes asks for.
        opened
            .layers()
            .first()
            .into_iter()
            .flat_map(|top| [top.file(), top.data()])
            .for_each(|file| file.set_barriers(false));
    }
    if !source.request.options.read_only {
        super::warn_of_guess(source, &opened, personality)?;
    }
    Ok(opened)
}

/// Runs commands one after the other.
struct Runner<'a> {
    disk: Option<Disk>,
    source: Option<Source>,
    open: OpenArgs,
    personality: Personality,
    executor: Executor,
    streams: Streams<'a>,
    failed: bool,
}

impl Runner<'_> {
    /// Lines from standard input. Output is held back as long as more input is at hand.
    fn standard_input(&mut self) -> Result<(), Failure> {
        let stdin = io::stdin();
        let prompt = !self.personality.is_own() || stdin.is_terminal();
        let mut input = io::BufReader::with_capacity(1 << 16, stdin.lock());
        let mut line = Vec::new();
        loop {
            if prompt {
                write!(self.streams.out, "qemu-io> ")?;
            }
            if input.buffer().is_empty() {
                self.streams.out.flush()?;
            }
            line.clear();
            if input.read_until(b'\n', &mut line).map_err(|error| Failure::new(format!("standard input: {error}")))?
                == 0
            {
                return Ok(());
            }
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
            if !self.line(&text)? {
                return Ok(());
            }
        }
    }

    /// One line; false to end.
    fn line(&mut self, line: &str) -> Result<bool, Failure> {
        // Our own scripts may have comments and tabs; qemu-io knows neither.
        let own;
        let line = match self.personality {
            Personality::Own => {
                let text = line.trim();
                if text.starts_with('#') {
                    return Ok(true);
                }
                own = text.replace('\t', " ");
                own.as_str()
            }
            Personality::QemuImg | Personality::QemuIo => line,
        };
        match parse(line, self.disk.is_some()) {
            Ok(None) => Ok(true),
            Ok(Some(command)) => self.command(command),
            Err(refusal) => {
                self.failed = true;
                self.streams.out.flush()?;
                self.streams.err.write_all(refusal.err.as_bytes())?;
                self.streams.out.write_all(refusal.out.as_bytes())?;
                Ok(true)
            }
        }
    }

    fn command(&mut self, command: Command) -> Result<bool, Failure> {
        let next = match &mut self.disk {
            Some(disk) => self.executor.run(disk, command, &mut self.streams)?,
            None => self.executor.run_without_disk(command, &mut self.streams)?,
        };
        match next {
            Next::Command => {}
            Next::Failed => self.failed = true,
            Next::Quit => return Ok(false),
            Next::Close => self.close()?,
            Next::Open(request, reopen) => {
                if let Err(failure) = self.reopen(&request, reopen) {
                    self.failed = true;
                    let name = self.personality.name();
                    self.streams.complain(&format!("{name}: {}", failure.message))?;
                }
            }
        }
        Ok(true)
    }

    fn reopen(&mut self, request: &OpenRequest, reopen: bool) -> Result<(), Failure> {
        if self.disk.is_some() && !reopen {
            return Err(Failure::new("file open already, try 'help close'"));
        }
        let mut source = match (&self.source, reopen) {
            (Some(source), true) => source.clone(),
            _ => {
                let Some(path) = &request.path else { return Err(Failure::new("open needs a file name")) };
                self.open.source(self.personality, path.as_ref(), None, request.read_only != Some(true))?
            }
        };
        source.request.force_share |= request.force_share;
        if let Some(read_only) = request.read_only {
            source.request.options.read_only = read_only;
        }
        let secrets = self.open.change.keys.secrets(self.personality)?;
        configure(&mut source, request.discard.as_deref(), &request.options, &secrets)?;
        let source = source.with_prompt(self.personality);
        if let Some(mode) = request.cache.as_deref() {
            self.executor = Executor::new(cache_mode(Some(mode))?);
        }
        // Two openings of one file would be in each other's way.
        self.close()?;
        self.disk = Some(open(&source, self.personality, self.executor.cache())?);
        self.source = Some(source);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some(mut disk) = self.disk.take() else { return Ok(()) };
        let path = disk.path().display().to_string();
        disk.finish().map_err(|error| Failure::in_file(path, &error))
    }
}
