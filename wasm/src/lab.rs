//! The discard lab: traces, replays of them, and a replay that goes step by step.

use std::rc::Rc;

use js_sys::{Object, Uint8Array};
use qcowkit_core::Result;
use qcowkit_core::operations::lab::{
    Churn, LabConfig, LabDisk, LabOptions, LabReport, Replay, Skeleton, Trace, TraceFormat, TraceSummary, Trim, advise,
    fits,
};
use qcowkit_core::storage::ReadStorage;
use wasm_bindgen::prelude::*;

use crate::error::{self, outcome};
use crate::image::RawImage;
use crate::json;
use crate::limits::{MAX_ROWS, limit};
use crate::open::{ALLOCATION, DETECT_ZEROES, PREALLOCATION, RETAINED_OP, UNREF};
use crate::options::{Options, Thrown, bytes, invalid, items, number, set};

/// Operations after which a replay lets JavaScript know.
const STEP: usize = 4096;
/// Cells of a frame, unless told otherwise.
const CELLS: u64 = 4096;

/// What is behind the class `Trace` of the TypeScript layer.
#[wasm_bindgen]
pub struct RawTrace {
    trace: Option<Rc<Trace>>,
}

impl RawTrace {
    fn get(&self) -> Thrown<&Rc<Trace>> {
        self.trace.as_ref().ok_or_else(|| error::closed("trace"))
    }

    fn of(trace: Trace) -> Self {
        Self { trace: Some(Rc::new(trace)) }
    }
}

#[wasm_bindgen]
impl RawTrace {
    pub fn parse(text: &[u8], format: Option<String>) -> Thrown<RawTrace> {
        let format = match format {
            None => TraceFormat::detect(text),
            Some(name) => trace_format(&name)?,
        };
        Trace::parse(text, format).map(Self::of).map_err(|why| invalid(why.to_string()))
    }

    pub fn churn(options: &JsValue) -> Thrown<RawTrace> {
        let mut given = Options::new(options)?;
        let churn = churn(&mut given)?;
        given.finish()?;
        outcome(churn.trace()).map(Self::of)
    }

    pub fn length(&self) -> Thrown<f64> {
        Ok(self.get()?.operations.len() as f64)
    }

    pub fn end(&self) -> Thrown<f64> {
        Ok(number(self.get()?.end()))
    }

    pub fn summary(&self) -> Thrown<String> {
        Ok(json::text(&TraceSummary::of(self.get()?)))
    }

    pub fn operations(&self, first: f64, count: f64) -> Thrown<String> {
        let (first, count) = (bytes(first, "first")?, bytes(count, "count")?);
        if count > MAX_ROWS {
            return outcome(Err(limit("one list of operations", "max_rows", MAX_ROWS)));
        }
        let all = &self.get()?.operations;
        let first = usize::try_from(first).unwrap_or(usize::MAX).min(all.len());
        let end = first.saturating_add(count as usize).min(all.len());
        Ok(json::text(&&all[first..end]))
    }

    pub fn text(&self, format: &str) -> Thrown<String> {
        let mut text = String::new();
        let written = self.get()?.write(trace_format(format)?, &mut text);
        written.map(|()| text).map_err(|_| invalid("traces are written as csv or qemu-io"))
    }

    pub fn replay(&self, disk: &RawDisk, options: &JsValue) -> Thrown<String> {
        let trace = self.get()?;
        let mut given = Options::new(options)?;
        let samples = given.number("samples")?.unwrap_or(LabOptions::default().samples);
        let wants_advice = given.flag("advise")?.unwrap_or(false);
        let name = given.text("name")?.unwrap_or_default();
        let progress = given.function("progress")?;
        let configs = match given.value("configs")? {
            None => LabConfig::three_policies().to_vec(),
            Some(list) => items(&list, "configs")?.iter().map(config).collect::<Thrown<_>>()?,
        };
        given.finish()?;
        let virtual_size = outcome(disk.0.virtual_size())?;
        let mut runs = Vec::with_capacity(configs.len());
        for (index, config) in configs.iter().enumerate() {
            let mut state = outcome(State::new(trace, &disk.0, config, samples))?;
            while outcome(state.step(STEP))? > 0 {
                if let Some(progress) = &progress {
                    // What it throws comes out of the call as it is.
                    progress.call2(&JsValue::UNDEFINED, &(index as f64).into(), &(state.done as f64).into())?;
                }
            }
            runs.push(outcome(state.replay.finish())?);
        }
        let mut report = LabReport { trace: TraceSummary::of(trace).named(name), virtual_size, runs, advice: None };
        if wants_advice {
            report.advice = Some(advise(&report));
        }
        Ok(json::text(&report))
    }

    pub fn close(&mut self) {
        self.trace = None;
    }
}

/// What is behind the class `Replay` of the TypeScript layer.
#[wasm_bindgen]
pub struct RawReplay {
    state: Option<State>,
}

struct State {
    replay: Replay,
    trace: Rc<Trace>,
    done: usize,
    /// Operations between two samples of the report.
    every: usize,
    virtual_size: u64,
}

impl RawReplay {
    fn get(&mut self) -> Thrown<&mut State> {
        self.state.as_mut().ok_or_else(|| error::closed("replay"))
    }
}

impl State {
    fn new(trace: &Rc<Trace>, disk: &LabDisk, config: &LabConfig, samples: u64) -> Result<Self> {
        let virtual_size = disk.virtual_size()?;
        fits(trace, virtual_size)?;
        let replay = Replay::new(disk, config)?;
        // As often as the command line does.
        let samples = usize::try_from(samples).unwrap_or(usize::MAX).max(1);
        let every = trace.operations.len().div_ceil(samples).max(1);
        Ok(Self { replay, trace: Rc::clone(trace), done: 0, every, virtual_size })
    }

    fn step(&mut self, count: usize) -> Result<usize> {
        let trace = Rc::clone(&self.trace);
        let end = self.done.saturating_add(count).min(trace.operations.len());
        let start = self.done;
        for operation in &trace.operations[start..end] {
            self.done += 1;
            self.replay.apply(operation).map_err(|error| match error.site().index {
                None => error.at_index(self.done as u64),
                Some(_) => error,
            })?;
            if self.done.is_multiple_of(self.every) && self.done < trace.operations.len() {
                self.replay.sample()?;
            }
        }
        Ok(end - start)
    }
}

#[wasm_bindgen]
impl RawReplay {
    pub fn begin(trace: &RawTrace, disk: &RawDisk, options: &JsValue) -> Thrown<RawReplay> {
        let config = config(options)?;
        let state = outcome(State::new(trace.get()?, &disk.0, &config, LabOptions::default().samples))?;
        Ok(Self { state: Some(state) })
    }

    pub fn done(&mut self) -> Thrown<f64> {
        Ok(self.get()?.done as f64)
    }

    pub fn length(&mut self) -> Thrown<f64> {
        Ok(self.get()?.trace.operations.len() as f64)
    }

    pub fn step(&mut self, count: f64) -> Thrown<f64> {
        let count = usize::try_from(bytes(count, "count")?).unwrap_or(usize::MAX);
        let state = self.get()?;
        outcome(state.step(count)).map(|done| done as f64)
    }

    pub fn sample(&mut self) -> Thrown<String> {
        outcome(self.get()?.replay.now()).map(|sample| json::text(&sample))
    }

    pub fn frame(&mut self, options: &JsValue) -> Thrown<Object> {
        let mut given = Options::new(options)?;
        let cells = given.number("cells")?.unwrap_or(CELLS);
        let cell_bytes = given.number("cell_bytes")?;
        given.finish()?;
        let state = self.get()?;
        let cell_bytes = cell_bytes.unwrap_or_else(|| state.virtual_size.div_ceil(cells.max(1)).max(1));
        let picture = outcome(state.replay.picture(cells, cell_bytes))?;
        let object = Object::new();
        set(&object, "cell_bytes", &number(picture.cell_bytes).into());
        set(&object, "file_length", &number(picture.file_length).into());
        set(&object, "host", &Uint8Array::from(picture.host.as_flattened()));
        set(&object, "guest", &Uint8Array::from(picture.guest.as_flattened()));
        Ok(object)
    }

    pub fn finish(&mut self) -> Thrown<String> {
        self.get()?;
        let Some(mut state) = self.state.take() else { return Err(error::closed("replay")) };
        while outcome(state.step(STEP))? > 0 {}
        outcome(state.replay.finish()).map(|run| json::text(&run))
    }

    pub fn close(&mut self) {
        self.state = None;
    }
}

/// What a replay begins with.
#[wasm_bindgen]
pub struct RawDisk(LabDisk);

#[wasm_bindgen]
impl RawDisk {
    pub fn empty(size: f64) -> Thrown<RawDisk> {
        Ok(Self(LabDisk::Empty { size: bytes(size, "size")? }))
    }

    /// The metadata of an image.
    pub fn of(image: &mut RawImage) -> Thrown<RawDisk> {
        let data_file = image.open_ref()?.setup.files.data_file();
        let data_file = data_file.as_ref().map(|file| file as &dyn ReadStorage);
        image.with_file(|store| Ok(Self(LabDisk::Skeleton(Skeleton::of(store, data_file)?))))
    }
}

fn trace_format(name: &str) -> Thrown<TraceFormat> {
    let known = TraceFormat::NAMES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, format)| *format)
        .ok_or_else(|| invalid(format!("there is no trace format '{name}'; there are qemu-io, fio, blkparse and csv")))
}

fn config(object: &JsValue) -> Thrown<LabConfig> {
    let mut given = Options::new(object)?;
    let bases = [("ignore", 0), ("unmap", 1), ("no-unref", 2)];
    let base = given.choice("base", &bases)?;
    let mut config = match base {
        Some(0) => LabConfig::ignore(),
        Some(2) => LabConfig::no_unref(),
        _ => LabConfig::unmap(),
    };
    let name = given.text("name")?;
    config.discard = given.flag("discard")?.unwrap_or(config.discard);
    if let Some(policy) = given.value("policy")? {
        let mut policy = Options::new(&policy)?;
        config.policy.unref = policy.choice("unref", &UNREF)?.unwrap_or(config.policy.unref);
        config.policy.retained_op = policy.choice("retained_op", &RETAINED_OP)?.unwrap_or(config.policy.retained_op);
        if let Some(pass) = policy.value("pass")? {
            let (mut pass, usual) = (Options::new(&pass)?, config.policy.pass);
            config.policy.pass.request = pass.flag("request")?.unwrap_or(usual.request);
            config.policy.pass.snapshot = pass.flag("snapshot")?.unwrap_or(usual.snapshot);
            config.policy.pass.other = pass.flag("other")?.unwrap_or(usual.other);
            pass.finish()?;
        }
        policy.finish()?;
    }
    config.detect_zeroes = given.choice("detect_zeroes", &DETECT_ZEROES)?.unwrap_or(config.detect_zeroes);
    config.cluster_size = given.number("cluster_size")?.unwrap_or(config.cluster_size);
    config.extended_l2 = given.flag("extended_l2")?.unwrap_or(config.extended_l2);
    config.preallocation = given.choice("preallocation", &PREALLOCATION)?.unwrap_or(config.preallocation);
    config.allocation = given.choice("allocation", &ALLOCATION)?.unwrap_or(config.allocation);
    config.quarantine_bytes = given.number("quarantine_bytes")?.unwrap_or(config.quarantine_bytes);
    given.finish()?;
    config.name = name.unwrap_or_else(|| config.describe());
    Ok(config)
}

fn churn(given: &mut Options<'_>) -> Thrown<Churn> {
    let usual = Churn::default();
    Ok(Churn {
        size: given.number("size")?.unwrap_or(usual.size),
        operations: given.number("operations")?.unwrap_or(usual.operations),
        seed: given.number("seed")?.unwrap_or(usual.seed),
        fill_percent: given.small("fill_percent")?.unwrap_or(usual.fill_percent),
        file_median: given.number("file_median")?.unwrap_or(usual.file_median),
        file_sigma_percent: given.small("file_sigma_percent")?.unwrap_or(usual.file_sigma_percent),
        file_max: given.number("file_max")?.unwrap_or(usual.file_max),
        rewrite_percent: given.small("rewrite_percent")?.unwrap_or(usual.rewrite_percent),
        zero_percent: given.small("zero_percent")?.unwrap_or(usual.zero_percent),
        block: given.number("block")?.unwrap_or(usual.block),
        request_max: given.number("request_max")?.unwrap_or(usual.request_max),
        trim: trim(given.value("trim")?)?.unwrap_or(usual.trim),
        trim_min: given.number("trim_min")?.unwrap_or(usual.trim_min),
        flush_every: given.number("flush_every")?.unwrap_or(usual.flush_every),
        mark_every: given.number("mark_every")?.unwrap_or(usual.mark_every),
    })
}

/// `never`, `online`, or an object with `every`.
fn trim(value: Option<JsValue>) -> Thrown<Option<Trim>> {
    let Some(value) = value else { return Ok(None) };
    match value.as_string().as_deref() {
        Some("never") => return Ok(Some(Trim::Never)),
        Some("online") => return Ok(Some(Trim::Online)),
        Some(_) => return Err(invalid("trim is never, online or { every: number }")),
        None => {}
    }
    let mut given = Options::new(&value)?;
    let every = given.number("every")?;
    given.finish()?;
    every.map(|every| Some(Trim::Every(every))).ok_or_else(|| invalid("trim is never, online or { every: number }"))
}
