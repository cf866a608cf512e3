//! Tables of an open image: the map of the guest, runs, and the clusters of the file.

use std::ops::ControlFlow;

use pyo3::prelude::*;
use qcowkit_core::image::{Content, Extent, Image as CoreImage, Layer};
use qcowkit_core::operations::analyze::{ClusterOptions, ClusterRun, SpaceClass, clusters};
use qcowkit_core::storage::{ReadStorage, Storage};
use qcowkit_core::{Error, Result, Structure};

use crate::calls::Progress;
use crate::image::Image;
use crate::table::{Columns, Optional, Table};

/// What the guest's bytes are, by their number in the column `kind`.
pub(super) const KINDS: [&str; 5] = ["data", "compressed", "zero", "zero_retained", "unallocated"];

/// The number of `content` in [`KINDS`]; `raw` if a raw layer holds it, whose holes keep no clusters.
pub(super) fn kind(content: Content, raw: bool) -> i8 {
    match content {
        Content::Data { .. } => 0,
        Content::Compressed { .. } => 1,
        Content::Zero { host_offset: Some(_) } if !raw => 3,
        Content::Zero { .. } => 2,
        Content::Unallocated => 4,
    }
}

#[pymethods]
impl Image {
    /// The guest's bytes from `start` to `stop` in runs of one kind.
    #[pyo3(signature = (start, stop, chain, merge, progress))]
    fn map_table(
        &self,
        py: Python<'_>,
        start: u64,
        stop: u64,
        chain: bool,
        merge: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Table> {
        let mut progress = Progress::new(progress);
        let rows = self.with(py, |image| {
            let mut rows = MapRows::default();
            let raw_depth = raw_depth(image);
            let mut last: Option<Extent> = None;
            image.visit_extents(start, stop.saturating_sub(start), chain, |next| {
                let reached = next.guest_offset - start + next.length;
                if !merge {
                    rows.add(&next, raw_depth);
                } else {
                    match &mut last {
                        Some(run) if run.continues_with(&next) => run.length += next.length,
                        Some(run) => rows.add(&std::mem::replace(run, next), raw_depth),
                        None => last = Some(next),
                    }
                }
                if rows.due() { tell(&mut progress, reached, stop - start) } else { Ok(()) }
            })?;
            last.iter().for_each(|run| rows.add(run, raw_depth));
            tell(&mut progress, stop.saturating_sub(start), stop.saturating_sub(start))?;
            Ok(rows)
        })?;
        rows.table()
    }

    /// Runs of guest bytes that have host clusters and are contiguous in the guest and in the file at once, of the image
    /// itself.
    fn runs_table(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Table> {
        let mut progress = Progress::new(progress);
        let (mut guest, mut host, mut length) = (Vec::new(), Vec::new(), Vec::new());
        self.with(py, |image| {
            let size = image.virtual_size();
            let mut at = 0;
            while at < size {
                let (place, bytes) = image.next_place(at, size - at)?;
                if let Some(place) = place {
                    let place = place.get();
                    let follows = guest
                        .last()
                        .zip(host.last())
                        .zip(length.last_mut())
                        .filter(|((from, to), bytes)| **from + **bytes == at && **to + **bytes == place);
                    match follows {
                        Some((_, run)) => *run += bytes,
                        None => {
                            guest.push(at);
                            host.push(place);
                            length.push(bytes);
                        }
                    }
                }
                at += bytes.max(1);
                if guest.len() % 4096 == 0 {
                    tell(&mut progress, at, size)?;
                }
            }
            tell(&mut progress, size, size)
        })?;
        // How far the file's position moves from the end of one run to the beginning of the next.
        let mut before: Option<u64> = None;
        let mut jumps = Vec::with_capacity(host.len());
        for (&start, &bytes) in host.iter().zip(&length) {
            jumps.push(before.map(|end: u64| (i128::from(start) - i128::from(end)) as i64));
            before = Some(start + bytes);
        }
        Columns::default()
            .u64("guest_offset", guest)
            .u64("host_offset", host)
            .u64("length", length)
            .i64("jump", jumps)
            .table()
    }

    /// The clusters of the file from `start` to `stop`, in runs of one kind.
    fn clusters_table(
        &self,
        py: Python<'_>,
        start: u64,
        stop: u64,
        data_file: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Table> {
        let mut rows = ClusterRows::default();
        self.visit_clusters(py, start..stop, data_file, progress, |run| rows.add(&run))?;
        rows.table()
    }

    /// Free space in front of the last cluster in use, in maximal runs.
    fn gaps_table(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Table> {
        let (mut host, mut length): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        self.visit_clusters(py, 0..u64::MAX, false, progress, |run| {
            if run.class != SpaceClass::Free {
                return;
            }
            match host.last().zip(length.last_mut()) {
                Some((start, bytes)) if *start + *bytes == run.host_offset => *bytes += run.length,
                _ => {
                    host.push(run.host_offset);
                    length.push(run.length);
                }
            }
        })?;
        Columns::default().u64("host_offset", host).u64("length", length).table()
    }

    /// Runs of clusters with one refcount.
    fn refcounts_table(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Table> {
        let (mut host, mut length): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let (mut refcounts, mut references): (Vec<Option<u64>>, Vec<u64>) = (Vec::new(), Vec::new());
        self.visit_clusters(py, 0..u64::MAX, false, progress, |run| {
            let same = refcounts.last() == Some(&run.refcount) && references.last() == Some(&run.references);
            match length.last_mut() {
                Some(bytes) if same => *bytes += run.length,
                _ => {
                    host.push(run.host_offset);
                    length.push(run.length);
                    refcounts.push(run.refcount);
                    references.push(run.references);
                }
            }
        })?;
        let columns = Columns::default().u64("host_offset", host).u64("length", length);
        columns.optional_u64("refcount", refcounts.into_iter().collect()).u64("references", references).table()
    }
}

impl Image {
    fn visit_clusters(
        &self,
        py: Python<'_>,
        range: std::ops::Range<u64>,
        data_file: bool,
        progress: Option<Py<PyAny>>,
        mut visit: impl FnMut(ClusterRun) + Send,
    ) -> PyResult<()> {
        let mut progress = Progress::new(progress);
        self.with(py, |image| {
            let data_file = match (data_file, image.data_file()) {
                (false, _) => None,
                (true, Some(file)) => Some(file.len()?),
                (true, None) => return Err(Error::invalid("the image has no external data file, or it is not open")),
            };
            let options = ClusterOptions { range, data_file };
            clusters(
                image.storage(),
                image.header(),
                &options,
                &mut |run| {
                    visit(run);
                    Ok(())
                },
                &mut |done, total| {
                    progress.note(done, total);
                },
            )
        })
    }
}

/// The depth at which the chain ends with a raw layer, if it does.
pub(super) fn raw_depth<S: Storage>(image: &CoreImage<S>) -> Option<u32> {
    let (mut image, mut depth) = (image, 0);
    loop {
        match image.backing()? {
            Layer::Image(below) => (image, depth) = (below, depth + 1),
            Layer::Raw { .. } => return Some(depth + 1),
        }
    }
}

/// Tells how far a call is.
///
/// # Errors
/// The call is to end.
pub(super) fn tell(progress: &mut Progress, done: u64, total: u64) -> Result<()> {
    match progress.tell(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::invalid("interrupted")),
    }
}

/// The rows of a map.
#[derive(Default)]
struct MapRows {
    guest: Vec<u64>,
    length: Vec<u64>,
    kinds: Vec<i8>,
    host: Optional,
    /// Empty as long as all are 0, which most are.
    depths: Vec<u32>,
    /// As long as the last compressed extent's row: most images have none.
    compressed: Optional,
    steps: u32,
}

impl MapRows {
    fn add(&mut self, extent: &Extent, raw_depth: Option<u32>) {
        let (host, compressed) = match extent.content {
            Content::Data { host_offset } => (Some(host_offset.get()), None),
            Content::Compressed { range, .. } => (Some(range.offset.get()), Some(range.length)),
            Content::Zero { host_offset } => (host_offset.map(|offset| offset.get()), None),
            Content::Unallocated => (None, None),
        };
        self.kinds.push(kind(extent.content, Some(extent.depth) == raw_depth));
        self.guest.push(extent.guest_offset);
        self.length.push(extent.length);
        self.host.push(host);
        if extent.depth != 0 || !self.depths.is_empty() {
            self.depths.resize(self.guest.len() - 1, 0);
            self.depths.push(extent.depth);
        }
        if compressed.is_some() {
            self.compressed.fill(self.guest.len() - 1);
            self.compressed.push(compressed);
        }
    }

    /// Whether it is time to tell how far it is.
    fn due(&mut self) -> bool {
        self.steps = self.steps.wrapping_add(1);
        self.steps.is_multiple_of(4096)
    }

    fn table(mut self) -> PyResult<Table> {
        self.compressed.fill(self.guest.len());
        if self.depths.is_empty() {
            // Zeros that nobody looks at take address space alone.
            self.depths = vec![0; self.guest.len()];
        }
        Columns::default()
            .u64("guest_offset", self.guest)
            .u64("length", self.length)
            .kinds("kind", &KINDS, self.kinds)
            .optional_u64("host_offset", self.host)
            .u32("depth", self.depths)
            .optional_u64("compressed_length", self.compressed)
            .table()
    }
}

/// The rows of a table of clusters.
#[derive(Default)]
struct ClusterRows {
    host: Vec<u64>,
    length: Vec<u64>,
    classes: Vec<i8>,
    structures: Vec<i8>,
    known: Vec<&'static str>,
    guest: Optional,
    refcounts: Optional,
    references: Vec<u64>,
    owners: Vec<i8>,
}

/// Who refers to a cluster, by its number in the column `owner`.
const OWNERS: [&str; 4] = ["none", "active", "snapshots", "both"];

impl ClusterRows {
    fn add(&mut self, run: &ClusterRun) {
        self.host.push(run.host_offset);
        self.length.push(run.length);
        let class = SpaceClass::ALL.iter().position(|class| *class == run.class).unwrap_or_default();
        self.classes.push(i8::try_from(class).unwrap_or(i8::MAX));
        let structure = run.structure.map_or("none", Structure::code);
        let at = self.known.iter().position(|known| *known == structure).unwrap_or_else(|| {
            self.known.push(structure);
            self.known.len() - 1
        });
        self.structures.push(i8::try_from(at).unwrap_or(i8::MAX));
        self.guest.push(run.guest_offset);
        self.refcounts.push(run.refcount);
        self.references.push(run.references);
        self.owners.push(match (run.active, run.in_snapshots) {
            (false, false) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (true, true) => 3,
        });
    }

    fn table(self) -> PyResult<Table> {
        Columns::default()
            .u64("host_offset", self.host)
            .u64("length", self.length)
            .kinds("kind", &SpaceClass::ALL.map(SpaceClass::code), self.classes)
            .kinds("structure", &self.known, self.structures)
            .kinds("owner", &OWNERS, self.owners)
            .optional_u64("guest_offset", self.guest)
            .optional_u64("refcount", self.refcounts)
            .u64("references", self.references)
            .table()
    }
}
