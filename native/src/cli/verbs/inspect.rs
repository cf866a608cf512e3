//! `inspect`.

use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::inspect::{
    BitmapReport, BitmapTableEntryReport, EntryRange, HeaderReport, HostReport, InspectedLayer, Inspector,
    L1EntryReport, L2EntryReport, LayerPath, RefcountRun, RefcountTableEntryReport, Shown, SnapshotReport, TableReport,
    TableSource, inspect_guest,
};
use qcowkit_core::operations::walk::L1Owner;
use qcowkit_core::storage::ReadStorage;
use serde::Serialize;

use crate::cli::args::{InspectArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::output::inspect as human;
use crate::cli::plan::{Session, Source, one_file, size_argument};
use crate::cli::size;
use crate::file::FileStorage;
use crate::open::{Gate, OpenRequest, format_by_name, open_file, relative_to};

/// A structure that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Structure {
    Header,
    L1(L1Owner),
    L2(TableSource),
    RefcountTable,
    RefcountBlock(u64),
    Snapshots,
    Bitmaps,
    BitmapTable(u64),
}

/// Everything that was asked for, in the order of the format. What was not asked for is left out.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Inspection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<Shown<HeaderReport>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) l1: Vec<Shown<TableReport<L1EntryReport>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) l2: Vec<Shown<TableReport<L2EntryReport>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refcount_table: Option<Shown<TableReport<RefcountTableEntryReport>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refcount_blocks: Vec<Shown<TableReport<RefcountRun>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshots: Option<Shown<Vec<SnapshotReport>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bitmaps: Option<Shown<Vec<BitmapReport>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bitmap_tables: Vec<Shown<TableReport<BitmapTableEntryReport>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) guest: Vec<GuestWay>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) host: Vec<Shown<HostReport>>,
}

/// The way of one guest offset through the chain.
#[derive(Debug, Serialize)]
pub(crate) struct GuestWay {
    pub(crate) guest_offset: u64,
    pub(crate) layers: Vec<Shown<LayerPath>>,
    /// Why the chain ends before the way does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chain_ends: Option<String>,
}

/// Prints structures of an image, also of a broken one.
pub(crate) fn run(args: &InspectArgs, session: &mut Session<'_>) -> Outcome {
    let mut source = args.open.source(session.personality, one_file(&args.files)?, None, false)?;
    // A file without the magic is shown for what it lacks, not taken for raw.
    source.request.format = Some(LayerFormat::Qcow2);
    let offsets = |texts: &[String]| -> Result<Vec<u64>, Failure> {
        texts.iter().map(|text| size_argument(text, "offset")).collect()
    };
    let (guest, host) = (offsets(&args.guest)?, offsets(&args.host)?);
    let mut structures: Vec<Structure> = Vec::new();
    for text in args.show.iter().flat_map(|text| text.split(',')) {
        structures.extend(parse(text)?);
    }
    if structures.is_empty() && guest.is_empty() && host.is_empty() {
        structures.push(Structure::Header);
    }
    let (file, _) =
        open_file(&source.path, &source.request).map_err(|error| Failure::open(&error, session.personality))?;
    let inspector = Inspector::new(&file);
    let mut inspection = Inspection::default();
    for structure in structures {
        inspection.show(&inspector, structure);
    }
    if !guest.is_empty() {
        let (below, chain_ends) = layers_below(&file, &source);
        let mut layers = vec![InspectedLayer { storage: &file, format: LayerFormat::Qcow2 }];
        layers.extend(below.iter().map(|(file, format)| InspectedLayer { storage: file, format: *format }));
        for offset in guest {
            let ways = inspect_guest(&layers, offset);
            let used_up = ways.len() == layers.len();
            let chain_ends = chain_ends.clone().filter(|_| used_up);
            inspection.guest.push(GuestWay { guest_offset: offset, layers: ways, chain_ends });
        }
    }
    inspection.host = host.into_iter().map(|offset| inspector.host(offset)).collect();
    match args.output.output {
        OutputFormat::Human => human::print(session.out, &inspection)?,
        OutputFormat::Json => super::print_json(session.out, &inspection)?,
    }
    Ok(0)
}

/// The names that `--show` takes.
fn parse(text: &str) -> Result<Vec<Structure>, Failure> {
    let (name, index) = text.split_once(':').map_or((text, None), |(name, index)| (name, Some(index)));
    let number = |what: &str| -> Result<u64, Failure> {
        let index = index.ok_or_else(|| Failure::usage(format!("--show {name} needs {what}, as in {name}:0")))?;
        size::parse(index).map_err(|_| Failure::usage(format!("'{index}' is not {what}")))
    };
    Ok(vec![match (name, index) {
        ("header", None) => Structure::Header,
        ("l1", None) => Structure::L1(L1Owner::Active),
        ("l1", Some(_)) => {
            let index = u32::try_from(number("the index of a snapshot")?);
            Structure::L1(L1Owner::Snapshot(index.map_err(|_| Failure::usage("no image has that many snapshots"))?))
        }
        ("l2", Some(place)) if place.starts_with('@') => {
            let offset = size::parse(place.trim_start_matches('@'));
            let offset = offset.map_err(|_| Failure::usage(format!("'{place}' is not a host offset")))?;
            Structure::L2(TableSource::Host(offset))
        }
        ("l2", _) => {
            let index = number("the index of an L1 entry, or @ and a host offset")?;
            Structure::L2(TableSource::L1 { owner: L1Owner::Active, index })
        }
        ("refcount-table", None) => Structure::RefcountTable,
        ("refcount-block", _) => Structure::RefcountBlock(number("the index of a refcount table entry")?),
        ("snapshots", None) => Structure::Snapshots,
        ("bitmaps", None) => Structure::Bitmaps,
        ("bitmap-table", _) => Structure::BitmapTable(number("the index of a bitmap")?),
        ("all", None) => {
            return Ok(vec![
                Structure::Header,
                Structure::L1(L1Owner::Active),
                Structure::RefcountTable,
                Structure::Snapshots,
                Structure::Bitmaps,
            ]);
        }
        _ => {
            return Err(Failure::usage(format!(
                "'{text}' is no structure: there are header, l1, l1:SNAPSHOT, l2:INDEX, l2:@OFFSET, refcount-table, \
                 refcount-block:INDEX, snapshots, bitmaps, bitmap-table:INDEX and all"
            )));
        }
    }])
}

impl Inspection {
    fn show<S: ReadStorage>(&mut self, inspector: &Inspector<'_, S>, structure: Structure) {
        let all = EntryRange::default();
        match structure {
            Structure::Header => self.header = Some(inspector.header()),
            Structure::L1(owner) => self.l1.push(inspector.l1(owner, all)),
            Structure::L2(source) => self.l2.push(inspector.l2(source, all)),
            Structure::RefcountTable => self.refcount_table = Some(inspector.refcount_table(all)),
            Structure::RefcountBlock(index) => self.refcount_blocks.push(inspector.refcount_block(index, all)),
            Structure::Snapshots => self.snapshots = Some(inspector.snapshots()),
            Structure::Bitmaps => self.bitmaps = Some(inspector.bitmaps()),
            Structure::BitmapTable(index) => self.bitmap_tables.push(inspector.bitmap_table(index, all)),
        }
    }
}

/// The files below the image, as far as they may and can be opened; and why not further.
fn layers_below(top: &FileStorage, source: &Source) -> (Vec<(FileStorage, LayerFormat)>, Option<String>) {
    let mut found: Vec<(FileStorage, LayerFormat)> = Vec::new();
    let gate = Gate::new(source.request.backing, top.path());
    loop {
        let above = found.last().map_or(top, |(file, _)| file);
        let format = found.last().map_or(LayerFormat::Qcow2, |(_, format)| *format);
        let Ok(area) = qcowkit_core::operations::read_header(above) else { return (found, None) };
        let Some(name) = area.backing_file.as_ref().filter(|_| format == LayerFormat::Qcow2) else {
            return (found, None);
        };
        if found.len() >= qcowkit_core::format::MAX_CHAIN_DEPTH as usize {
            return (found, Some("the chain is too long".to_owned()));
        }
        // Only entries are going to be read, so that probing the format does no harm.
        let format = area.backing_format().map(|name| format_by_name(&name.to_string_lossy())).transpose();
        let opened = relative_to(above.path(), name)
            .and_then(|path| gate.admit(&path, "backing file").map(|()| path))
            .and_then(|path| Ok((path, format?)))
            .map_err(|error| error.to_string())
            .and_then(|(path, format)| {
                let request = OpenRequest { format, ..source.request.clone() };
                open_file(&path, &request).map_err(|error| error.to_string())
            });
        match opened {
            Ok(layer) => found.push(layer),
            Err(why) => return (found, Some(why)),
        }
    }
}
