//! What an image needs when it is copied: which clusters of the new one its data touch.

use std::ops::Range;

use qcowkit_core::Error;
use qcowkit_core::Result;
use qcowkit_core::format::BitmapFlags;
use qcowkit_core::image::{CreateOptions, LayerFormat};
use qcowkit_core::operations::measure::{BitmapShape, Measure, Measurement};
use qcowkit_core::operations::read_bitmaps;
use serde::Serialize;

use crate::create::NewFormat;
use crate::disk::Disk;
use crate::options::create::ImageOptions;
use crate::status::Statuses;

/// The first piece that is asked about at once. Where the answer is one run the next is twice as large: a disk can claim
/// exabytes of nothing.
const PIECE_BYTES: u64 = 4 << 30;

/// The sizes of the file of a new image: what `qcowkit measure --output=json` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measured {
    /// Bytes that the copies of its bitmaps take; `None` where there can be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
    /// Bytes that are enough for the data that there are.
    pub required: u64,
    /// Bytes that are enough when every cluster is written.
    pub fully_allocated: u64,
}

/// Measures a new image with these options: for a copy of `disk`, or for an empty disk of `size` bytes. With `retained`,
/// what has a place and no data counts too: see [`data_clusters`].
///
/// # Errors
/// Options that do not go together; what of `disk` cannot be read.
pub fn measured(options: &ImageOptions, disk: Option<&mut Disk>, size: u64, retained: bool) -> Result<Measured> {
    let size = disk.as_ref().map_or(size, |disk| disk.virtual_size());
    let size = size.checked_next_multiple_of(512).unwrap_or(size);
    let new = options.new_image(size).map_err(Error::invalid)?;
    let encryption = options.encryption().map_err(Error::invalid)?.map_or(0, |wanted| wanted.luks.header_bytes());
    let (measured, bitmaps) = match &new.format {
        NewFormat::Raw(_) => (Measurement { required: size, fully_allocated: size }, None),
        NewFormat::Qcow2(options) => {
            let measure = Measure::new(options, size, encryption)?;
            of_qcow2(&measure, options, disk, retained)?
        }
    };
    Ok(Measured { bitmaps, required: measured.required, fully_allocated: measured.fully_allocated })
}

fn of_qcow2(
    measure: &Measure,
    options: &CreateOptions,
    disk: Option<&mut Disk>,
    retained: bool,
) -> Result<(Measurement, Option<u64>)> {
    let Some(disk) = disk else { return Ok((measure.of(0), None)) };
    let shapes = if options.version < 3 { None } else { bitmaps(disk)? };
    // How much of it the new backing file has cannot be told without reading both.
    let data = match options.backing_file {
        Some(_) => u64::MAX,
        None => data_clusters(disk, measure, retained)?,
    };
    Ok((measure.of(data), shapes.map(|shapes| measure.bitmaps(&shapes))))
}

/// Clusters of the new image that data of `disk` touch. With `retained`, also those that only have a place, in the
/// layer below the top, or in the top where there is no other: what a commit with `discard-no-unref` leaves there.
///
/// # Errors
/// When tables of the chain cannot be read.
pub fn data_clusters(disk: &mut Disk, measure: &Measure, retained: bool) -> Result<u64> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut counter = measure.counter();
    let end = disk.virtual_size();
    let mut statuses = Statuses::new(disk);
    let (mut at, mut piece) = (0, PIECE_BYTES);
    while at < end {
        let run = statuses.next(at, (end - at).min(piece))?;
        if run.length == 0 {
            break;
        }
        match (run.data && !run.zero, runs.last_mut()) {
            (false, _) => {}
            (true, _) if !retained => counter.add(at, run.length),
            (true, Some(last)) if last.end == at => last.end += run.length,
            (true, _) => runs.push(at..at + run.length),
        }
        piece = if run.length >= piece { piece.saturating_mul(2) } else { PIECE_BYTES };
        at += run.length;
    }
    if retained {
        let (mut at, mut piece) = (0, PIECE_BYTES);
        while at < end {
            let (placed, length) = next_place(disk, at, (end - at).min(piece))?;
            piece = if length >= piece { piece.saturating_mul(2) } else { PIECE_BYTES };
            if placed {
                runs.push(at..at + length);
            }
            at += length.max(1);
        }
        // A run that begins within another adds what reaches beyond its end: the counter takes each cluster once.
        runs.sort_unstable_by_key(|run| run.start);
        runs.iter().for_each(|run| counter.add(run.start, run.end - run.start));
    }
    Ok(counter.clusters())
}

/// Whether the layer that a commit would write to has a place for what begins at `offset`, and for how many bytes that
/// holds.
fn next_place(disk: &mut Disk, offset: u64, length: u64) -> Result<(bool, u64)> {
    let Some(top) = disk.image_mut() else { return Ok((false, length)) };
    let depth = u32::from(top.chain_length() > 1);
    let Some(image) = top.image_at_depth_mut(depth) else { return Ok((false, length)) };
    let size = image.virtual_size();
    if offset >= size {
        return Ok((false, length));
    }
    let (place, length) = image.next_place(offset, length.min(size - offset))?;
    Ok((place.is_some(), length))
}

/// The shapes of the bitmaps that would be copied; `None` where the format has none.
///
/// # Errors
/// When the bitmap directory cannot be read.
pub fn bitmaps(disk: &Disk) -> Result<Option<Vec<BitmapShape>>> {
    let Some(image) = disk.image().filter(|image| image.geometry().version() >= 3) else { return Ok(None) };
    debug_assert_eq!(disk.format(), LayerFormat::Qcow2);
    let entries = read_bitmaps(image.header(), image.storage())?;
    // What was in use when the image was left is inconsistent and is not copied.
    let kept = entries.iter().filter(|entry| !entry.flags.contains(BitmapFlags::IN_USE));
    Ok(Some(
        kept.map(|entry| BitmapShape {
            name_bytes: entry.name.len() as u64,
            granularity_bits: u32::from(entry.granularity_bits),
        })
        .collect(),
    ))
}
