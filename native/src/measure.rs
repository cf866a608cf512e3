//! What an image needs when it is copied: which clusters of the new one its data touch.

use std::ops::Range;

use qcowkit_core::Result;
use qcowkit_core::format::BitmapFlags;
use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::measure::{BitmapShape, Measure};
use qcowkit_core::operations::read_bitmaps;

use crate::disk::Disk;
use crate::status::Statuses;

/// The largest piece that is asked about at once.
const PIECE_BYTES: u64 = 4 << 30;

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
    let mut at = 0;
    while at < end {
        let run = statuses.next(at, (end - at).min(PIECE_BYTES))?;
        if run.length == 0 {
            break;
        }
        match (run.data && !run.zero, runs.last_mut()) {
            (false, _) => {}
            (true, _) if !retained => counter.add(at, run.length),
            (true, Some(last)) if last.end == at => last.end += run.length,
            (true, _) => runs.push(at..at + run.length),
        }
        at += run.length;
    }
    if retained {
        let mut at = 0;
        while at < end {
            let (placed, length) = next_place(disk, at, (end - at).min(PIECE_BYTES))?;
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
