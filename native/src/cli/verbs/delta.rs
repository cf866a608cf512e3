//! `delta`.

use std::ffi::OsStr;
use std::io::Write;

use qcowkit_core::operations::delta::{
    DeltaOptions, DeltaReport, DeltaSide, Forecast, IncrementSize, delta_from_bitmap, delta_from_image,
    delta_from_layer, delta_from_snapshot,
};
use serde::Serialize;

use super::print_json;
use crate::cli::args::{DeltaArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::table::{Align, Table};
use crate::cli::plan::{Session, size_argument};
use crate::cli::progress::Progress;
use crate::cli::size::human;
use crate::disk::Disk;

/// Where the earlier state is known from.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Against {
    Bitmap { name: String },
    Snapshot { from: String, to: Option<String> },
    Layer { depth: u32, filename: String },
    Image { filename: String },
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    filename: String,
    against: &'a Against,
    #[serde(flatten)]
    report: &'a DeltaReport,
}

/// Tells what an incremental backup has to take.
pub(crate) fn run(args: &DeltaArgs, session: &mut Session<'_>) -> Outcome {
    let options = check(args)?;
    let mut progress = Progress::new(session.personality, args.progress, false, session.out);
    let mut told = |done: u64, total: u64| progress.step(done, total);
    let made = make(args, &options, session.personality, &mut told);
    progress.leave();
    let (file, against, mut report) = made?;
    if args.summary {
        report.ranges.clear();
    }
    match args.output.output {
        OutputFormat::Json => {
            print_json(session.out, &Printed { filename: file, against: &against, report: &report })?;
        }
        OutputFormat::Human => print(&file, &against, &report, args.summary, session.out)?,
    }
    Ok(0)
}

fn check(args: &DeltaArgs) -> Result<DeltaOptions, Failure> {
    let kinds = [args.bitmap.is_some(), args.from_snapshot.is_some(), args.base.is_some(), args.files.len() == 2];
    if kinds.iter().filter(|given| **given).count() != 1 || !(1..=2).contains(&args.files.len()) {
        return Err(Failure::usage(
            "against what: --bitmap NAME, --from-snapshot SNAPSHOT or --base, with one image; or two images",
        ));
    }
    if args.to_snapshot.is_some() && args.from_snapshot.is_none() {
        return Err(Failure::usage("--to-snapshot goes together with --from-snapshot only"));
    }
    if args.new_format.is_some() && args.files.len() != 2 {
        return Err(Failure::usage("-F goes together with two images only"));
    }
    let mut options = DeltaOptions { read: args.read, ..DeltaOptions::default() };
    if let Some(text) = &args.cluster_size {
        options.cluster_size = size_argument(text, "cluster size")?;
    }
    Ok(options)
}

fn make(
    args: &DeltaArgs,
    options: &DeltaOptions,
    personality: crate::cli::personality::Personality,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(String, Against, DeltaReport), Failure> {
    let open = |file: &OsStr, format: Option<&str>, snapshot: Option<&OsStr>| {
        let source = args.open.source(personality, file, format, false)?.of_snapshot(snapshot)?;
        let source = if args.files.len() > 1 { source.one_of_several() } else { source };
        source.open(personality)
    };
    let [first, rest @ ..] = &args.files[..] else { return Err(Failure::usage("Expecting one image file name")) };
    let format = args.format.as_deref();
    let name = first.display().to_string();
    let failed = |error: qcowkit_core::Error| Failure::in_file(first.display(), &error);
    if let [second, ..] = rest {
        let mut old = open(first, format, None)?;
        let mut new = open(second, args.new_format.as_deref(), None)?;
        args.open.one_data_file([&old, &new])?;
        let report = delta_from_image(&mut old, &mut new, options, progress);
        let report = report.map_err(|error| Failure::in_file(second.display(), &error))?;
        return Ok((second.display().to_string(), Against::Image { filename: name }, report));
    }
    if let Some(from) = &args.from_snapshot {
        let mut old = open(first, format, Some(from))?;
        let mut new = open(first, format, args.to_snapshot.as_deref())?;
        let report = delta_from_snapshot(&mut old, &mut new, options, progress).map_err(failed)?;
        let to = args.to_snapshot.as_ref().map(|to| to.display().to_string());
        return Ok((name, Against::Snapshot { from: from.display().to_string(), to }, report));
    }
    let mut disk = open(first, format, None)?;
    if let Some(depth) = args.base {
        let layers = disk.layers();
        let filename = layers.get(depth as usize).map(|layer| layer.file().path().display().to_string());
        let filename = filename.unwrap_or_default();
        let Some(image) = disk.image_mut() else {
            return Err(Failure::new(format!("{name}: raw images have no base")));
        };
        let report = delta_from_layer(image, depth, options, progress).map_err(failed)?;
        return Ok((name, Against::Layer { depth, filename }, report));
    }
    let bitmap = args.bitmap.clone().unwrap_or_default();
    let Some(image) = disk.image() else { return Err(Failure::new(format!("{name}: raw images have no bitmaps"))) };
    let bits = image.bitmap_bits(&bitmap).map_err(failed)?;
    let report = delta_from_bitmap(&mut disk, &bits, options, progress).map_err(failed)?;
    Ok((name, Against::Bitmap { name: bitmap }, report))
}

impl DeltaSide for Disk {
    fn virtual_size(&self) -> u64 {
        Self::virtual_size(self)
    }

    fn next_extent(&mut self, offset: u64, length: u64) -> qcowkit_core::Result<qcowkit_core::image::Extent> {
        Self::next_extent(self, offset, length)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> qcowkit_core::Result<()> {
        Self::read_at(self, offset, into)
    }
}

fn print(
    file: &str,
    against: &Against,
    report: &DeltaReport,
    summary: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let since = match against {
        Against::Bitmap { name } => format!("since the bitmap '{name}' began"),
        Against::Snapshot { from, to: None } => format!("since the snapshot '{from}'"),
        Against::Snapshot { from, to: Some(to) } => format!("from the snapshot '{from}' to '{to}'"),
        Against::Layer { filename, .. } => format!("above {filename}"),
        Against::Image { filename } => format!("against {filename}"),
    };
    writeln!(out, "{file}, {since}: {}", human(report.virtual_size))?;
    if !summary {
        writeln!(out)?;
        let mut table = Table::new(&[("start", Align::Right), ("length", Align::Right), ("state", Align::Left)]);
        for range in &report.ranges {
            table.row(vec![range.start.to_string(), range.length.to_string(), range.state.name().to_owned()]);
        }
        table.print(out, 0)?;
    }
    writeln!(out)?;
    let totals = &report.totals;
    for (bytes, words) in [
        (totals.dirty_data, "changed data: the increment holds it"),
        (totals.dirty_zero, "changed to zeros: the increment notes it"),
        (totals.clean, "data as before"),
        (totals.clean_zero, "zeros as before"),
    ] {
        writeln!(out, "{:>10}  {words}", human(bytes))?;
    }
    forecast(&report.forecast, out)
}

fn forecast(forecast: &Forecast, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "\nSize of the increment, with clusters of {}:", human(forecast.cluster_size))?;
    let mut table = Table::new(&[("", Align::Left), ("raw", Align::Right), ("qcow2", Align::Right)]);
    let mut row = |words: &str, size: &IncrementSize| {
        table.row(vec![words.to_owned(), human(size.raw_bytes), human(size.qcow2_bytes)]);
    };
    row("all that changed", &forecast.all_dirty);
    row("without what is known to be zeros", &forecast.without_known_zeros);
    if let Some(size) = &forecast.without_zeros_and_equal {
        row("without zeros and what is the same", size);
    }
    table.print(out, 2)
}
