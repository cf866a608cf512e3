//! What looks at the file as edited, also at a broken one: check, repair, audit, inspect, analyze, clusters.

use js_sys::{Float64Array, Function, Object, Uint8Array};
use qcowkit_core::error::Structure;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::analyze::{
    AnalyzeOptions, ClusterOptions, ClusterRun, REQUEST_SIZES, SpaceClass, analyze, clusters,
};
use qcowkit_core::operations::audit::{AuditOptions, audit};
use qcowkit_core::operations::inspect::{EntryRange, InspectedLayer, Inspector, TableSource, inspect_guest};
use qcowkit_core::operations::repair::{RepairLevel, RepairOptions, apply, plan};
use qcowkit_core::operations::walk::L1Owner;
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, ErrorKind, Result};
use wasm_bindgen::prelude::*;

use crate::error::{self, outcome};
use crate::image::RawImage;
use crate::json;
use crate::limits::{MAX_READ_BYTES, MAX_ROWS, limit};
use crate::memory::zeros;
use crate::open::range;
use crate::options::{Options, Thrown, bytes, invalid, items, number, set};

/// Tells JavaScript how far a call is. What its function throws ends the call.
pub(crate) fn tell(progress: Option<&Function>, part: f64) {
    if let Some(progress) = progress
        && !error::interrupted()
        && let Err(thrown) = progress.call1(&JsValue::UNDEFINED, &part.into())
    {
        error::interrupt(thrown);
    }
}

#[wasm_bindgen]
impl RawImage {
    pub fn check(&mut self, options: &JsValue) -> Thrown<String> {
        let mut given = Options::new(options)?;
        let progress = given.function("progress")?;
        given.finish()?;
        self.with_file(|store| {
            let report = check(store, &read_header(store)?, &mut |part| tell(progress.as_ref(), part))?;
            Ok(json::text(&report))
        })
    }

    pub fn repair(&mut self, options: &JsValue, dry_run: bool) -> Thrown<String> {
        let mut given = Options::new(options)?;
        let levels = [("leaks", RepairLevel::Leaks), ("all", RepairLevel::All)];
        let level = given.choice("level", &levels)?.unwrap_or(RepairLevel::All);
        let relink = relinks(given.value("relink")?)?;
        let progress = given.function("progress")?;
        given.finish()?;
        if level == RepairLevel::Leaks && !relink.is_empty() {
            return Err(invalid("relink needs the level all"));
        }
        let options = RepairOptions { relink };
        let planned =
            self.with_file(|store| plan(&store, level, &options, &mut |part| tell(progress.as_ref(), part)))?;
        if !dry_run {
            let open = self.open_mut()?;
            outcome(open.writable())?;
            open.leave_disk();
            // What an orphaned table leads to may be wanted again.
            outcome(apply(&planned, &open.store(), planned.orphans.is_empty()))?;
        }
        Ok(json::text(&planned))
    }

    pub fn audit(&mut self, options: &JsValue) -> Thrown<String> {
        let mut given = Options::new(options)?;
        let wanted = AuditOptions {
            deep: given.flag("deep")?.unwrap_or(false),
            max_virtual_size: given.number("max_virtual_size")?,
        };
        let progress = given.function("progress")?;
        given.finish()?;
        self.with_file(|store| Ok(json::text(&audit(store, &wanted, &mut |part| tell(progress.as_ref(), part))?)))
    }

    pub fn analyze(&mut self, options: &JsValue) -> Thrown<String> {
        let mut given = Options::new(options)?;
        let scan_zeroes = given.flag("scan_zeroes")?.unwrap_or(false);
        let sizes = match given.value("request_sizes")? {
            None => REQUEST_SIZES.to_vec(),
            Some(sizes) => numbers(&sizes, "request_sizes")?,
        };
        let progress = given.function("progress")?;
        given.finish()?;
        let data_file = self.open_ref()?.setup.files.data_file();
        self.with_file(|store| {
            let options = AnalyzeOptions {
                scan_zeroes,
                request_sizes: &sizes,
                host_allocated: None,
                data_file: data_file.as_ref().map(|file| file as &dyn ReadStorage),
            };
            let mut progress = |done: u64, total: u64| tell(progress.as_ref(), number(done) / number(total.max(1)));
            Ok(json::text(&analyze(store, &read_header(store)?, &options, &mut progress)?))
        })
    }

    pub fn clusters(&mut self, options: &JsValue) -> Thrown<Object> {
        let mut given = Options::new(options)?;
        let most = most_rows(&mut given)?.unwrap_or(MAX_ROWS);
        let (wanted, progress) = part_of_file(given)?;
        let mut columns = Columns::default();
        let (cluster_size, file_length) = self.with_file(|store| {
            let area = read_header(store)?;
            columns.next = visit(store, &wanted, most, progress.as_ref(), &mut |run| columns.rows.push(run))?;
            Ok((1u64.checked_shl(area.header.cluster_bits).unwrap_or(0), store.len()?))
        })?;
        Ok(columns.object(cluster_size, file_length))
    }

    pub fn cluster_runs(&mut self, options: &JsValue) -> Thrown<String> {
        let (wanted, progress) = part_of_file(Options::new(options)?)?;
        let mut rows = Vec::new();
        self.with_file(|store| match visit(store, &wanted, MAX_ROWS, progress.as_ref(), &mut |run| rows.push(run))? {
            None => Ok(()),
            Some(at) => Err(limit("one list of runs", "max_rows", MAX_ROWS).at_host(at)),
        })?;
        Ok(json::text(&rows))
    }

    pub fn inspect(&mut self, name: &str, part: &JsValue) -> Thrown<String> {
        let mut given = Options::new(part)?;
        let usual = EntryRange::default();
        let part = EntryRange {
            first: given.number("first")?.unwrap_or(usual.first),
            count: given.number("count")?.unwrap_or(usual.count),
            skip_empty: given.flag("skip_empty")?.unwrap_or(usual.skip_empty),
        };
        given.finish()?;
        let shown = self.with_file(|store| Ok(show(&Inspector::new(store), name, part)))?;
        shown.ok_or_else(|| {
            invalid(format!(
                "'{name}' is no structure: there are header, l1, l1:SNAPSHOT, l2:INDEX, l2:@OFFSET, refcount-table, \
                 refcount-block:INDEX, snapshots, bitmaps and bitmap-table:INDEX"
            ))
        })
    }

    pub fn regions(&mut self) -> Thrown<String> {
        self.with_file(|store| Ok(json::text(&Inspector::new(store).regions())))
    }

    pub fn fields(&mut self, offset: f64, length: f64, structure: &str, options: &JsValue) -> Thrown<String> {
        let (offset, length) = range(offset, length)?;
        let found = Structure::ALL.into_iter().find(|known| known.code() == structure);
        let structure = found.ok_or_else(|| invalid(format!("there is no structure '{structure}'")))?;
        let mut given = Options::new(options)?;
        let skip_empty = given.flag("skip_empty")?.unwrap_or(false);
        given.finish()?;
        self.with_file(|store| Ok(json::text(&Inspector::new(store).fields(structure, offset, length, skip_empty))))
    }

    pub fn inspect_guest(&mut self, offset: f64) -> Thrown<String> {
        let offset = bytes(offset, "offset")?;
        let below = self.open_ref()?.setup.files.layers();
        self.with_file(|store| {
            let mut layers = vec![InspectedLayer { storage: store, format: LayerFormat::Qcow2 }];
            layers.extend(below.iter().map(|(store, format)| InspectedLayer { storage: store, format: *format }));
            Ok(json::text(&inspect_guest(&layers, offset)))
        })
    }

    pub fn inspect_host(&mut self, offset: f64) -> Thrown<String> {
        let offset = bytes(offset, "offset")?;
        self.with_file(|store| Ok(json::text(&Inspector::new(store).host(offset))))
    }

    pub fn host_bytes(&mut self, offset: f64, length: f64) -> Thrown<Vec<u8>> {
        let (offset, length) = range(offset, length)?;
        self.with_file(|store| {
            if length > MAX_READ_BYTES {
                return Err(limit("one read", "max_read_bytes", MAX_READ_BYTES));
            }
            // What lies behind the end is not there.
            let length = length.min(store.len()?.saturating_sub(offset));
            let mut into = zeros(length)?;
            store.read_at(offset, &mut into)?;
            Ok(into)
        })
    }
}

/// A structure by its name on the command line; `None` for another name.
fn show(inspector: &Inspector<'_, dyn ReadStorage + '_>, name: &str, part: EntryRange) -> Option<String> {
    let (name, index) = name.split_once(':').map_or((name, None), |(name, index)| (name, Some(index)));
    let number = || index?.parse::<u64>().ok();
    Some(match (name, index) {
        ("header", None) => json::text(&inspector.header()),
        ("l1", None) => json::text(&inspector.l1(L1Owner::Active, part)),
        ("l1", Some(_)) => json::text(&inspector.l1(L1Owner::Snapshot(u32::try_from(number()?).ok()?), part)),
        ("l2", Some(place)) => {
            let source = match place.strip_prefix('@') {
                Some(offset) => TableSource::Host(offset.parse().ok()?),
                None => TableSource::L1 { owner: L1Owner::Active, index: number()? },
            };
            json::text(&inspector.l2(source, part))
        }
        ("refcount-table", None) => json::text(&inspector.refcount_table(part)),
        ("refcount-block", Some(_)) => json::text(&inspector.refcount_block(number()?, part)),
        ("snapshots", None) => json::text(&inspector.snapshots()),
        ("bitmaps", None) => json::text(&inspector.bitmaps()),
        ("bitmap-table", Some(_)) => json::text(&inspector.bitmap_table(number()?, part)),
        _ => return None,
    })
}

/// A list of numbers.
fn numbers(list: &JsValue, name: &str) -> Thrown<Vec<u64>> {
    items(list, name)?.iter().map(|value| bytes(value.as_f64().unwrap_or(f64::NAN), name)).collect()
}

/// Host and guest offsets of tables that are put back.
fn relinks(list: Option<JsValue>) -> Thrown<Vec<(u64, u64)>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let one = |item: JsValue| {
        let mut given = Options::new(&item)?;
        let pair = (given.number("host_offset")?, given.number("guest_offset")?);
        given.finish()?;
        let (Some(host), Some(guest)) = pair else {
            return Err(invalid("relink needs host_offset and guest_offset"));
        };
        Ok((host, guest))
    };
    items(&list, "relink")?.into_iter().map(one).collect()
}

/// How many rows a caller wants at most.
pub(crate) fn most_rows(given: &mut Options<'_>) -> Thrown<Option<u64>> {
    match given.number("max_rows")? {
        Some(0) => Err(invalid("max_rows must be 1 at least")),
        wanted => Ok(wanted.map(|rows| rows.min(MAX_ROWS))),
    }
}

fn part_of_file(mut given: Options<'_>) -> Thrown<(ClusterOptions, Option<Function>)> {
    let start = given.number("host_offset")?.unwrap_or(0);
    let end = given.number("length")?.map_or(u64::MAX, |length| start.saturating_add(length));
    let progress = given.function("progress")?;
    given.finish()?;
    Ok((ClusterOptions { range: start..end, data_file: None }, progress))
}

/// Hands out runs, `most` at most; gives where to go on.
fn visit(
    store: &dyn ReadStorage,
    wanted: &ClusterOptions,
    most: u64,
    progress: Option<&Function>,
    take: &mut dyn FnMut(ClusterRun),
) -> Result<Option<u64>> {
    let (mut rows, mut next) = (0, None);
    let mut take = |run: ClusterRun| {
        if rows >= most {
            next = Some(run.host_offset);
            return Err(Error::new(ErrorKind::Limit(String::new())));
        }
        rows += 1;
        take(run);
        Ok(())
    };
    let mut progress = |done: u64, total: u64| tell(progress, number(done) / number(total.max(1)));
    match clusters(store, &read_header(store)?, wanted, &mut take, &mut progress) {
        Err(_) if next.is_some() => Ok(next),
        other => other.map(|()| next),
    }
}

/// Runs as columns.
#[derive(Default)]
struct Columns {
    rows: Vec<ClusterRun>,
    next: Option<u64>,
}

impl Columns {
    fn object(&self, cluster_size: u64, file_length: u64) -> Object {
        let mut structures: Vec<Structure> = Vec::new();
        let mut place = |structure: Option<Structure>| {
            let Some(structure) = structure else { return u8::MAX };
            let at = structures.iter().position(|known| *known == structure).unwrap_or_else(|| {
                structures.push(structure);
                structures.len() - 1
            });
            at as u8
        };
        let class = |class: SpaceClass| SpaceClass::ALL.iter().position(|known| *known == class).unwrap_or(0) as u8;
        let structure: Vec<u8> = self.rows.iter().map(|run| place(run.structure)).collect();
        let object = Object::new();
        set(&object, "cluster_size", &number(cluster_size).into());
        set(&object, "file_length", &number(file_length).into());
        set(&object, "host_offset", &self.floats(|run| number(run.host_offset)));
        set(&object, "length", &self.floats(|run| number(run.length)));
        set(&object, "class", &self.small(|run| class(run.class)));
        set(&object, "classes", &list(&SpaceClass::ALL));
        set(&object, "structure", &Uint8Array::from(&structure[..]));
        set(&object, "structures", &list(&structures));
        set(&object, "guest_offset", &self.floats(|run| run.guest_offset.map_or(-1.0, number)));
        set(&object, "refcount", &self.floats(|run| run.refcount.map_or(-1.0, number)));
        set(&object, "references", &self.floats(|run| number(run.references)));
        set(&object, "owners", &self.small(|run| u8::from(run.active) | u8::from(run.in_snapshots) << 1));
        set(&object, "next", &self.next.map_or(JsValue::NULL, |next| number(next).into()));
        object
    }

    fn floats(&self, value: impl FnMut(&ClusterRun) -> f64) -> JsValue {
        let values: Vec<f64> = self.rows.iter().map(value).collect();
        Float64Array::from(&values[..]).into()
    }

    fn small(&self, value: impl FnMut(&ClusterRun) -> u8) -> JsValue {
        let values: Vec<u8> = self.rows.iter().map(value).collect();
        Uint8Array::from(&values[..]).into()
    }
}

/// Names as a list of JavaScript.
fn list(names: &impl serde::Serialize) -> JsValue {
    js_sys::JSON::parse(&json::text(names)).unwrap_or(JsValue::UNDEFINED)
}
