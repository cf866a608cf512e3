//! Internal snapshots and persistent bitmaps.

use std::rc::Rc;

use qcowkit_core::format::Name;
use qcowkit_core::image::{NewSnapshot, SnapshotSelector};
use qcowkit_core::operations::info::SnapshotListing;
use qcowkit_core::operations::trim::GuestRange;
use wasm_bindgen::prelude::*;

use crate::error::outcome;
use crate::image::{Open, RawImage};
use crate::json;
use crate::limits::{MAX_ROWS, limit};
use crate::open::{Files, Setup};
use crate::options::{Options, Thrown, bytes};

fn selector(name: &str) -> SnapshotSelector {
    SnapshotSelector::IdOrName(Name::new(name.as_bytes()))
}

#[wasm_bindgen]
impl RawImage {
    pub fn snapshots(&mut self) -> Thrown<String> {
        self.with_disk(|disk| {
            let size = disk.virtual_size();
            let all: Vec<_> = disk.snapshots()?.iter().map(|snapshot| SnapshotListing::new(snapshot, size)).collect();
            Ok(json::text(&all))
        })
    }

    /// `date` in milliseconds since 1970.
    pub fn create_snapshot(&mut self, name: &str, date: f64) -> Thrown<String> {
        let date = bytes(date, "date")?;
        let new = NewSnapshot {
            name: Name::new(name.as_bytes()),
            date_seconds: u32::try_from(date / 1000).unwrap_or(u32::MAX),
            date_nanoseconds: (date % 1000) as u32 * 1_000_000,
            ..NewSnapshot::default()
        };
        self.with_disk(|disk| Ok(disk.create_snapshot(&new)?.id.to_string_lossy().into_owned()))
    }

    pub fn apply_snapshot(&mut self, name: &str) -> Thrown<()> {
        self.with_disk(|disk| disk.apply_snapshot(&selector(name)))
    }

    pub fn delete_snapshot(&mut self, name: &str) -> Thrown<()> {
        self.with_disk(|disk| disk.delete_snapshot(&selector(name)))
    }

    pub fn open_snapshot(&mut self, name: &str) -> Thrown<RawImage> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let edits = outcome(open.edits.fork().map_err(Into::into))?;
        let setup = Setup {
            options: open.setup.options.clone().of_snapshot(selector(name)).read_only(),
            tolerant: false,
            identity: open.setup.identity.clone(),
            max_edit_bytes: open.setup.max_edit_bytes,
            files: Files::clone(&open.setup.files),
        };
        let mut view = Open::new(Rc::clone(&edits), setup);
        outcome(view.disk().map(drop))?;
        Ok(RawImage::of(view))
    }

    pub fn bitmaps(&mut self) -> Thrown<String> {
        self.with_disk(|disk| Ok(json::text(&disk.bitmaps()?)))
    }

    pub fn add_bitmap(&mut self, name: &str, options: &JsValue) -> Thrown<()> {
        let mut given = Options::new(options)?;
        let granularity = given.number("granularity")?;
        given.finish()?;
        self.with_disk(|disk| disk.add_bitmap(name, granularity))
    }

    pub fn remove_bitmap(&mut self, name: &str) -> Thrown<()> {
        self.with_disk(|disk| disk.remove_bitmap(name))
    }

    pub fn bitmap_ranges(&mut self, name: &str) -> Thrown<String> {
        self.with_disk(|disk| {
            let bits = disk.bitmap_bits(name)?;
            let mut rows = Vec::new();
            for range in bits.ranges() {
                if rows.len() as u64 >= MAX_ROWS {
                    return Err(limit("one list of ranges", "max_rows", MAX_ROWS).at_guest(range.start));
                }
                rows.push(GuestRange { offset: range.start, length: range.end - range.start });
            }
            Ok(json::text(&rows))
        })
    }
}
