//! `replay` and `churn`.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use qcowkit_core::image::{DetectZeroes, LayerFormat, Preallocation};
use qcowkit_core::metadata::AllocationPolicy;
use qcowkit_core::operations::lab::render::{Metric, html, metric_svg, samples_csv, text};
use qcowkit_core::operations::lab::{
    Churn, LabConfig, LabDisk, LabOptions, LabReport, LabRun, Skeleton, Trace, TraceFormat, TraceSummary, Trim, advise,
    fits, replay,
};

use super::print_json;
use crate::cli::args::{ChurnArgs, OutputFormat, ReplayArgs, TraceOutput};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::options::{OptionList, boolean, size};
use crate::cli::plan::{Session, size_argument};
use crate::cli::progress::Progress;

/// Replays a trace under several policies and compares them.
pub(crate) fn replay_verb(args: &ReplayArgs, session: &mut Session<'_>) -> Outcome {
    let Some(path) = &args.trace else { return Err(Failure::usage("Expecting one trace; '-' for standard input")) };
    let configs = configs(args)?;
    let format = args.format.as_deref().map(trace_format).transpose()?;
    let size = args.size.as_deref().map(|size| size_argument(size, "disk size")).transpose()?;
    let name = path.to_string_lossy();
    let bytes = read_trace(Path::new(path))?;
    let trace = Trace::parse(&bytes, format.unwrap_or_else(|| TraceFormat::detect(&bytes)))
        .map_err(|error| Failure::new(format!("{name}: {error}")))?;
    drop(bytes);
    let disk = match &args.image {
        None => LabDisk::Empty { size: size.unwrap_or_else(|| trace.end().next_multiple_of(1 << 20)) },
        Some(file) => {
            let source = args.open.source(session.personality, file, None, false)?;
            let (storage, format) = source.open_file(session.personality)?;
            if format != LayerFormat::Qcow2 {
                return Err(Failure::new(format!("{}: not a qcow2 image", source.path.display())));
            }
            let skeleton = Skeleton::of(&storage, None);
            LabDisk::Skeleton(skeleton.map_err(|error| Failure::in_file(source.path.display(), &error))?)
        }
    };
    let wrong = |error: qcowkit_core::Error| Failure::new(format!("{name}: {error}"));
    let virtual_size = disk.virtual_size().map_err(wrong)?;
    fits(&trace, virtual_size).map_err(wrong)?;
    let mut progress = Progress::new(session.personality, false, false, session.out).in_operations();
    let runs = run_all(&trace, &disk, &configs, &LabOptions { samples: args.samples }, &mut progress);
    progress.leave();
    let title = if name == "-" { "standard input".into() } else { name.clone().into_owned() };
    let runs = runs.map_err(wrong)?;
    let mut report = LabReport { trace: TraceSummary::of(&trace).named(title), virtual_size, runs, advice: None };
    if args.advise {
        report.advice = Some(advise(&report));
    }
    write_files(args, &report)?;
    match args.output.output {
        OutputFormat::Json => print_json(session.out, &report)?,
        OutputFormat::Human => session.out.write_all(text(&report).as_bytes())?,
    }
    Ok(0)
}

/// The replays, as many at once as there are processors, in the order of their configurations.
fn run_all(
    trace: &Trace,
    disk: &LabDisk,
    configs: &[LabConfig],
    options: &LabOptions,
    progress: &mut Progress<'_>,
) -> qcowkit_core::Result<Vec<LabRun>> {
    let done: Vec<AtomicU64> = configs.iter().map(|_| AtomicU64::new(0)).collect();
    let results: Mutex<Vec<Option<qcowkit_core::Result<LabRun>>>> = Mutex::new(configs.iter().map(|_| None).collect());
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(configs.len());
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (disk, done, results, next) = (disk.clone(), &done, &results, &next);
            workers.push(scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(config) = configs.get(at) else { break };
                    let run = replay(trace, &disk, config, options, &mut |count| {
                        done[at].store(count, Ordering::Relaxed);
                    });
                    results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(run);
                }
            }));
        }
        let total = trace.operations.len() as u64 * configs.len() as u64;
        while workers.iter().any(|worker| !worker.is_finished()) {
            progress.step(done.iter().map(|done| done.load(Ordering::Relaxed)).sum(), total);
            thread::sleep(Duration::from_millis(20));
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

fn read_trace(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map(drop)
    };
    read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(bytes)
}

fn write_files(args: &ReplayArgs, report: &LabReport) -> Result<(), Failure> {
    let write = |path: &Path, text: String| {
        fs::write(path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    if let Some(path) = &args.html {
        write(path, html(report))?;
    }
    if let Some(path) = &args.csv {
        write(path, samples_csv(report))?;
    }
    if let Some(folder) = &args.svg {
        fs::create_dir_all(folder).map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
        for metric in Metric::ALL {
            write(&folder.join(format!("{}.svg", metric.key)), metric_svg(report, &metric))?;
        }
    }
    Ok(())
}

fn trace_format(name: &str) -> Result<TraceFormat, Failure> {
    let known = TraceFormat::NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, format)| *format).ok_or_else(|| {
        Failure::usage(format!("Unknown trace format '{name}': there are qemu-io, fio, blkparse and csv"))
    })
}

/// The configurations that are asked for.
fn configs(args: &ReplayArgs) -> Result<Vec<LabConfig>, Failure> {
    let common = OptionList::parse(&args.options).map_err(|error| Failure::usage(error.to_string()))?;
    let wanted: Vec<&str> = match (args.policy.as_slice(), args.advise) {
        ([], true) => {
            let (mut base, mut name) = (LabConfig::default(), None);
            set_all(&mut base, &common, &mut name)?;
            let mut all = base.candidates();
            all.iter_mut().zip(name.iter().cycle()).for_each(|(config, name)| config.name.clone_from(name));
            return Ok(all);
        }
        ([], false) => vec!["ignore", "unmap", "no-unref"],
        (given, _) => given.iter().map(String::as_str).collect(),
    };
    wanted.into_iter().map(|policy| config(policy, &common)).collect()
}

fn config(text: &str, common: &OptionList) -> Result<LabConfig, Failure> {
    let (policy, rest) = text.split_once(',').unwrap_or((text, ""));
    let mut config = match policy {
        "ignore" => LabConfig::ignore(),
        "unmap" => LabConfig::unmap(),
        "no-unref" => LabConfig::no_unref(),
        _ => return Err(Failure::usage(format!("Unknown policy '{policy}': there are ignore, unmap and no-unref"))),
    };
    let own = OptionList::parse(&[rest]).map_err(|error| Failure::usage(error.to_string()))?;
    let mut name = None;
    set_all(&mut config, common, &mut name)?;
    set_all(&mut config, &own, &mut name)?;
    config.name = name.unwrap_or_else(|| config.describe());
    Ok(config)
}

fn set_all(config: &mut LabConfig, options: &OptionList, name: &mut Option<String>) -> Result<(), Failure> {
    for (key, value) in &options.entries {
        if key == "name" {
            *name = Some(value.clone());
        } else {
            set(config, key, value).map_err(Failure::usage)?;
        }
    }
    Ok(())
}

fn set(config: &mut LabConfig, key: &str, value: &str) -> Result<(), String> {
    let wrong = |choices: &str| format!("Parameter '{key}' expects {choices}, not '{value}'");
    match key {
        "cluster_size" => config.cluster_size = size(key, value)?,
        "extended_l2" => config.extended_l2 = boolean(key, value)?,
        "quarantine" => config.quarantine_bytes = size(key, value)?,
        "pass-discard-request" => config.policy.pass.request = boolean(key, value)?,
        "pass-discard-snapshot" => config.policy.pass.snapshot = boolean(key, value)?,
        "pass-discard-other" => config.policy.pass.other = boolean(key, value)?,
        "preallocation" => {
            config.preallocation = match value {
                "off" => Preallocation::Off,
                "metadata" => Preallocation::Metadata,
                "falloc" => Preallocation::Falloc,
                "full" => Preallocation::Full,
                _ => return Err(wrong("off, metadata, falloc or full")),
            }
        }
        "detect-zeroes" => {
            config.detect_zeroes = match value {
                "off" => DetectZeroes::Off,
                "on" => DetectZeroes::On,
                "unmap" => DetectZeroes::Unmap,
                _ => return Err(wrong("off, on or unmap")),
            }
        }
        "allocator" => {
            config.allocation = match value {
                "qemu" => AllocationPolicy::Qemu,
                "fill-holes" => AllocationPolicy::FillHoles,
                "near" => AllocationPolicy::Near,
                _ => return Err(wrong("qemu, fill-holes or near")),
            }
        }
        _ => return Err(format!("Unknown option '{key}'; see qcowkit replay --help")),
    }
    Ok(())
}

/// Writes a workload to standard output.
pub(crate) fn churn_verb(args: &ChurnArgs, session: &mut Session<'_>) -> Outcome {
    let bytes = |text: &str, what| size_argument(text, what);
    let churn = Churn {
        size: bytes(&args.size, "disk size")?,
        operations: args.operations,
        seed: args.seed,
        fill_percent: args.fill,
        file_median: bytes(&args.file_median, "median size")?,
        file_sigma_percent: args.file_sigma,
        file_max: bytes(&args.file_max, "largest size")?,
        rewrite_percent: args.rewrite,
        zero_percent: args.zeros,
        block: bytes(&args.block, "block")?,
        request_max: bytes(&args.request_max, "request")?,
        trim: match args.trim.as_str() {
            "never" => Trim::Never,
            "online" => Trim::Online,
            number => Trim::Every(number.parse().map_err(|_| {
                Failure::usage(format!("--trim is never, online or a number of operations, not '{number}'"))
            })?),
        },
        trim_min: bytes(&args.trim_min, "trim length")?,
        flush_every: args.flush_every,
        mark_every: args.mark_every,
    };
    let trace = churn.trace().map_err(|error| Failure::usage(error.to_string()))?;
    let format = match args.format {
        TraceOutput::Csv => TraceFormat::Csv,
        TraceOutput::QemuIo => TraceFormat::QemuIo,
    };
    let mut out = Sink { out: session.out, failed: None };
    match (trace.write(format, &mut out), out.failed) {
        (Ok(()), _) => Ok(0),
        (Err(_), Some(error)) => Err(error.into()),
        (Err(_), None) => {
            let most = qcowkit_core::operations::lab::MAX_TRACE_OPERATIONS;
            Err(Failure::usage(format!("a script for qemu-io would have more than {most} commands")))
        }
    }
}

/// Text to bytes, with the error that the text's interface cannot carry.
struct Sink<'a> {
    out: &'a mut dyn Write,
    failed: Option<std::io::Error>,
}

impl std::fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.failed = Some(error);
            std::fmt::Error
        })
    }
}
