//! The guest's bytes: read, written, discarded; the size of the disk, and where its parts are.

use js_sys::Uint8Array;
use qcowkit_core::image::OpenOptions;
use qcowkit_core::operations::partitions::partitions;
use qcowkit_core::operations::status::{Status, Statuses};
use qcowkit_core::operations::trim::{GuestRange, TrimReport, trim};
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, ErrorKind, Result};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::error::outcome;
use crate::image::{Open, RawImage};
use crate::json;
use crate::limits::{MAX_READ_BYTES, MAX_ROWS, limit};
use crate::look::most_rows;
use crate::memory::zeros;
use crate::open::{self, range};
use crate::options::{Options, Thrown, bytes, invalid, number};
use crate::store::store;

/// Bytes of one write that are copied at once; a multiple of every cluster size.
const PIECE_BYTES: u32 = 16 << 20;

/// What discards did, or would do.
#[derive(Serialize)]
struct DiscardReport {
    dry_run: bool,
    #[serde(flatten)]
    trim: TrimReport,
    file_length_before: u64,
    file_length_after: u64,
}

#[wasm_bindgen]
impl RawImage {
    pub fn read(&mut self, offset: f64, length: f64) -> Thrown<Vec<u8>> {
        let (offset, length) = range(offset, length)?;
        self.with_disk(|disk| {
            if length > MAX_READ_BYTES {
                return Err(limit("one read", "max_read_bytes", MAX_READ_BYTES));
            }
            // Before memory is taken.
            if offset.saturating_add(length) > disk.virtual_size() {
                return Err(Error::new(ErrorKind::OutOfRange).at_guest(offset));
            }
            let mut into = zeros(length)?;
            disk.read_at(offset, &mut into)?;
            Ok(into)
        })
    }

    /// `from` is copied piece by piece: whole it would take as much of this module's memory again.
    pub fn write(&mut self, offset: f64, from: &Uint8Array) -> Thrown<()> {
        let offset = bytes(offset, "offset")?;
        let length = from.length();
        self.with_disk(|disk| {
            if offset.saturating_add(length.into()) > disk.virtual_size() {
                return Err(Error::new(ErrorKind::OutOfRange).at_guest(offset));
            }
            let (mut done, mut piece) = (0, zeros(PIECE_BYTES.min(length).into())?);
            loop {
                // Pieces end where clusters of any size do, so that none is written in two parts.
                let here = PIECE_BYTES - ((offset + u64::from(done)) % u64::from(PIECE_BYTES)) as u32;
                let here = here.min(length - done);
                let part = &mut piece[..here as usize];
                from.subarray(done, done + here).copy_to(part);
                disk.write_at(offset + u64::from(done), part)?;
                done += here;
                if done >= length {
                    return Ok(());
                }
            }
        })
    }

    pub fn write_zeroes(&mut self, offset: f64, length: f64, options: &JsValue) -> Thrown<()> {
        let (offset, length) = range(offset, length)?;
        let mut given = Options::new(options)?;
        let unmap = given.flag("unmap")?.unwrap_or(true);
        given.finish()?;
        self.with_disk(|disk| disk.write_zeroes(offset, length, unmap))
    }

    pub fn discard(&mut self, columns: &[f64], policy: &JsValue, dry_run: bool) -> Thrown<String> {
        let mut ranges = Vec::with_capacity(columns.len() / 2);
        for pair in columns.chunks_exact(2) {
            let (offset, length) = range(pair[0], pair[1])?;
            ranges.push(GuestRange { offset, length });
        }
        let open = self.open_mut()?;
        let mut options = open.setup.options.clone();
        let own = policy.is_undefined();
        if !own {
            let mut given = Options::new(policy)?;
            open::policy(&mut given, &mut options)?;
            given.finish()?;
        }
        if dry_run {
            options.read_only = false;
            return outcome(open.would_discard(&ranges, options)).map(|report| json::text(&report));
        }
        outcome(open.discard(&ranges, (!own).then_some(options))).map(|report| json::text(&report))
    }

    pub fn resize(&mut self, size: f64, options: &JsValue) -> Thrown<()> {
        let size = bytes(size, "size")?;
        let mut given = Options::new(options)?;
        let shrink = given.flag("shrink")?.unwrap_or(false);
        let mode = given.choice("preallocation", &open::PREALLOCATION)?.unwrap_or_default();
        given.finish()?;
        let now = self.with_disk(|disk| Ok(disk.virtual_size()))?;
        if size < now && !shrink {
            return Err(invalid(
                "a smaller disk loses what lies behind its new end: the option shrink says that it may",
            ));
        }
        self.with_disk(|disk| disk.resize_with(size, mode))
    }

    /// Four numbers a run: where it begins, its length, its offset in the file (-1: none), and 16 times the depth with a
    /// bit each for present, zero, data and compressed. Large maps cross at a fraction of what a text costs.
    pub fn map(&mut self, options: &JsValue) -> Thrown<Vec<f64>> {
        let mut given = Options::new(options)?;
        let start = given.number("offset")?.unwrap_or(0);
        let length = given.number("length")?;
        let most = most_rows(&mut given)?;
        let local = given.flag("local")?.unwrap_or(false);
        given.finish()?;
        self.with_disk(|disk| {
            let size = disk.virtual_size();
            let end = length.map_or(size, |length| start.saturating_add(length)).min(size);
            let mut statuses = Statuses::new(disk);
            let (mut rows, mut count) = (Vec::new(), 0);
            let mut at = start;
            while at < end {
                if most.is_some_and(|most| count >= most) {
                    break;
                }
                if count >= MAX_ROWS {
                    return Err(limit("one map", "max_rows", MAX_ROWS).at_guest(at));
                }
                let run =
                    if local { statuses.next_local(at, end - at)?.0 } else { statuses.next_merged(at, end - at)? };
                rows.extend_from_slice(&row(&run)?);
                at += run.length;
                count += 1;
            }
            Ok(rows)
        })
    }

    pub fn partitions(&mut self) -> Thrown<String> {
        self.with_disk(|disk| {
            let size = disk.virtual_size();
            Ok(json::text(&partitions(size, &mut |offset, into| disk.read_at(offset, into))?))
        })
    }
}

/// A run of a map in four numbers.
fn row(run: &Status) -> Result<[f64; 4]> {
    // Offsets in files are below 2^56, and multiples of 512 but for where the map was asked to begin: nearly all are exact.
    let offset = run.offset.map_or(-1.0, number);
    if run.offset.is_some_and(|exact| offset as u64 != exact) {
        let message = "a host offset of the map is beyond what JavaScript's numbers hold exactly".to_owned();
        return Err(Error::new(ErrorKind::Limit(message)).at_guest(run.start));
    }
    let flags = [run.present, run.zero, run.data, run.compressed];
    let bits: u64 = flags.iter().zip([1, 2, 4, 8]).filter(|(flag, _)| **flag).map(|(_, bit)| bit).sum();
    Ok([number(run.start), number(run.length), offset, number(u64::from(run.depth) * 16 + bits)])
}

impl Open {
    /// Discards on a copy, which is then forgotten.
    fn would_discard(&mut self, ranges: &[GuestRange], options: OpenOptions) -> Result<DiscardReport> {
        self.settle()?;
        let file_length_before = self.edits.len()?;
        let copy = self.edits.fork()?;
        let mut disk = self.open_disk_with(store(&copy), options, self.setup.files.fork()?)?;
        let trim = trim(&mut disk, ranges, &mut |_, _| ())?;
        disk.finish()?;
        Ok(DiscardReport { dry_run: true, trim, file_length_before, file_length_after: copy.len()? })
    }

    /// Discards; under a policy of its own, on a disk that is opened for that.
    fn discard(&mut self, ranges: &[GuestRange], options: Option<OpenOptions>) -> Result<DiscardReport> {
        self.settle()?;
        let file_length_before = self.edits.len()?;
        let trim = match options {
            None => {
                let disk = self.disk()?;
                let trim = trim(disk, ranges, &mut |_, _| ())?;
                disk.finish()?;
                trim
            }
            Some(options) => {
                self.leave_disk();
                let mut disk = self.open_disk(self.store(), options)?;
                let trim = trim(&mut disk, ranges, &mut |_, _| ())?;
                disk.finish()?;
                trim
            }
        };
        Ok(DiscardReport { dry_run: false, trim, file_length_before, file_length_after: self.edits.len()? })
    }
}
