//! Dirty bitmaps.

use pyo3::prelude::*;

use super::Image;
use crate::convert;

#[pymethods]
impl Image {
    /// The bitmaps as `bitmap --list --output=json` tells of them.
    fn bitmaps<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let bitmaps = self.with(py, |image| image.bitmaps())?;
        convert::report(py, &bitmaps)
    }

    /// The ranges that a bitmap marks, as offset and length.
    fn bitmap_ranges(&self, py: Python<'_>, name: String) -> PyResult<Vec<(u64, u64)>> {
        self.with(py, |image| {
            let bits = image.bitmap_bits(&name)?;
            Ok(bits.ranges().map(|range| (range.start, range.end - range.start)).collect())
        })
    }

    fn add_bitmap(&self, py: Python<'_>, name: String, granularity: Option<u64>, enabled: bool) -> PyResult<()> {
        self.change(py, |image| {
            image.add_bitmap(&name, granularity)?;
            if enabled { Ok(()) } else { image.enable_bitmap(&name, false) }
        })
    }

    fn remove_bitmap(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.change(py, |image| image.remove_bitmap(&name))
    }

    fn clear_bitmap(&self, py: Python<'_>, name: String) -> PyResult<()> {
        self.change(py, |image| image.clear_bitmap(&name))
    }

    fn enable_bitmap(&self, py: Python<'_>, name: String, enable: bool) -> PyResult<()> {
        self.change(py, |image| image.enable_bitmap(&name, enable))
    }

    /// Adds what a bitmap of this or another image marks.
    fn merge_bitmap(&self, py: Python<'_>, name: String, other: String, source: &Self) -> PyResult<()> {
        let bits = source.with(py, |image| image.bitmap_bits(&other))?;
        self.change(py, |image| image.merge_into_bitmap(&name, &bits))
    }
}
