//! Internal snapshots.

use pyo3::prelude::*;
use qcowkit_core::Error;
use qcowkit_core::format::{Name, Snapshot};
use qcowkit_core::image::{NewSnapshot, SnapshotSelector};
use qcowkit_core::operations::info::SnapshotInfo;

use super::Image;
use crate::convert;

#[pymethods]
impl Image {
    /// The snapshots as `info` tells of them, each with the bytes of its disk where they are on record.
    fn snapshots<'py>(&self, py: Python<'py>) -> PyResult<Vec<(Bound<'py, PyAny>, Option<u64>)>> {
        let snapshots = self.with(py, |image| image.snapshots())?;
        snapshots.iter().map(|snapshot| told(py, snapshot)).collect()
    }

    /// Takes a snapshot.
    fn create_snapshot<'py>(
        &self,
        py: Python<'py>,
        name: String,
        seconds: u32,
        nanoseconds: u32,
    ) -> PyResult<(Bound<'py, PyAny>, Option<u64>)> {
        let new = NewSnapshot {
            name: Name::new(name.into_bytes()),
            date_seconds: seconds,
            date_nanoseconds: nanoseconds,
            ..NewSnapshot::default()
        };
        let snapshot = self.change(py, |image| image.create_snapshot(&new))?;
        told(py, &snapshot)
    }

    /// Has the disk be what it was when the snapshot was taken.
    fn apply_snapshot(&self, py: Python<'_>, snapshot: String, id: Option<String>) -> PyResult<()> {
        let selector = selector(snapshot, id);
        self.change(py, |image| image.apply_snapshot(&selector))
    }

    /// Deletes a snapshot; one that is not named for sure is refused.
    fn delete_snapshot(&self, py: Python<'_>, snapshot: String, id: Option<String>) -> PyResult<()> {
        self.refuse_views(py)?;
        let text = Name::new(snapshot.clone().into_bytes());
        let sure = id.is_some();
        let selector = selector(snapshot, id);
        self.change(py, |image| {
            let all = image.snapshots()?;
            let meant: Vec<String> = all
                .iter()
                .filter(|snapshot| snapshot.id == text || snapshot.name == text)
                .map(|snapshot| format!("{} ('{}')", snapshot.id, snapshot.name))
                .collect();
            if !sure && meant.len() > 1 {
                let meant = meant.join(", ");
                return Err(Error::invalid(format!(
                    "'{text}' may mean several snapshots: {meant}; give the snapshot itself"
                )));
            }
            image.delete_snapshot(&selector)
        })
    }
}

fn selector(text: String, id: Option<String>) -> SnapshotSelector {
    let name = Name::new(text.into_bytes());
    match id {
        Some(id) => SnapshotSelector::IdAndName { id: Name::new(id.into_bytes()), name },
        None => SnapshotSelector::IdOrName(name),
    }
}

fn told<'py>(py: Python<'py>, snapshot: &Snapshot) -> PyResult<(Bound<'py, PyAny>, Option<u64>)> {
    Ok((convert::report(py, &SnapshotInfo::new(snapshot))?, snapshot.virtual_size()))
}
