//! What changed since an earlier state.

use pyo3::prelude::*;
use qcowkit_core::Result;
use qcowkit_core::format::Name;
use qcowkit_core::image::{Image as CoreImage, OpenOptions, SnapshotSelector};
use qcowkit_core::operations::delta::{
    DeltaOptions, DeltaReport, DeltaState, delta_from_bitmap, delta_from_image, delta_from_layer, delta_from_snapshot,
};

use super::again::Chain;
use super::report;
use crate::calls::Progress;
use crate::image::Image;
use crate::storage::Store;
use crate::table::{Columns, Table};

/// The states, by their number in the column `state`.
const STATES: [DeltaState; 4] =
    [DeltaState::Clean, DeltaState::DirtyData, DeltaState::DirtyZero, DeltaState::CleanZero];

/// A report without its ranges, and these as a table.
type Delta<'py> = (Bound<'py, PyAny>, Table);

#[pymethods]
impl Image {
    /// Against what a bitmap marks.
    fn delta_from_bitmap<'py>(
        &self,
        py: Python<'py>,
        bitmap: &str,
        read: bool,
        cluster_size: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Delta<'py>> {
        let mut progress = Progress::new(progress);
        let options = DeltaOptions { read, cluster_size };
        let delta = self.with(py, |image| {
            let bits = image.bitmap_bits(bitmap)?;
            delta_from_bitmap(image, &bits, &options, &mut |done, total| progress.note(done, total))
        })?;
        split(py, delta)
    }

    /// Against the layer at a depth.
    fn delta_from_layer<'py>(
        &self,
        py: Python<'py>,
        depth: u32,
        read: bool,
        cluster_size: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Table, String)> {
        let mut progress = Progress::new(progress);
        let options = DeltaOptions { read, cluster_size };
        let (delta, name) = self.with(py, |image| {
            let delta = delta_from_layer(image, depth, &options, &mut |done, total| progress.note(done, total))?;
            Ok((delta, layer_name(image, depth)))
        })?;
        let (report, ranges) = split(py, delta)?;
        Ok((report, ranges, name))
    }

    /// From one snapshot to another, or to the disk as it is.
    fn delta_from_snapshot<'py>(
        &self,
        py: Python<'py>,
        from: &str,
        to: Option<&str>,
        read: bool,
        cluster_size: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Delta<'py>> {
        let mut progress = Progress::new(progress);
        let options = DeltaOptions { read, cluster_size };
        let delta = self.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            let (chain, own) = (Chain::of(image), image.options().clone());
            let view = |name: Option<&str>| -> Result<CoreImage<Store>> {
                let options = OpenOptions { read_only: true, snapshot: None, ..own.clone() };
                let options = match name {
                    Some(name) => options.of_snapshot(SnapshotSelector::IdOrName(Name::new(name.as_bytes().to_vec()))),
                    None => options,
                };
                chain.open(options, Ok)
            };
            let (mut old, mut new) = (view(Some(from))?, view(to)?);
            delta_from_snapshot(&mut old, &mut new, &options, &mut |done, total| progress.note(done, total))
        })?;
        split(py, delta)
    }

    /// Against another image. Data are read.
    fn delta_from_image<'py>(
        &self,
        py: Python<'py>,
        old: &Self,
        cluster_size: u64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Delta<'py>> {
        let mut progress = Progress::new(progress);
        let options = DeltaOptions { read: true, cluster_size };
        // A second handle on the old image, so that two images are never locked at once.
        let mut old = old.with(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            let options = OpenOptions { read_only: true, ..image.options().clone() };
            Chain::of(image).open(options, Ok)
        })?;
        let delta = self.with(py, |image| {
            delta_from_image(&mut old, image, &options, &mut |done, total| progress.note(done, total))
        })?;
        split(py, delta)
    }
}

fn layer_name(image: &CoreImage<Store>, depth: u32) -> String {
    let store = match image.image_at_depth(depth) {
        Some(layer) => Some(layer.storage()),
        None => image.data_at_depth(depth).ok(),
    };
    store.and_then(Store::file).map(|file| file.path().display().to_string()).unwrap_or_default()
}

fn split(py: Python<'_>, mut delta: DeltaReport) -> PyResult<Delta<'_>> {
    let ranges = std::mem::take(&mut delta.ranges);
    let code = |state: DeltaState| STATES.iter().position(|known| *known == state).unwrap_or_default() as i8;
    let table = Columns::default()
        .u64("start", ranges.iter().map(|range| range.start).collect())
        .u64("length", ranges.iter().map(|range| range.length).collect())
        .kinds("state", &STATES.map(DeltaState::name), ranges.iter().map(|range| code(range.state)).collect())
        .table()?;
    Ok((report(py, &delta)?, table))
}
