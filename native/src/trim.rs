//! Discarding ranges of an image, for real or for show, and telling what became of them.

use qcowkit_core::Result;
use qcowkit_core::image::{Content, Image};
use qcowkit_core::storage::{CountingStorage, Storage};
use serde::Serialize;

/// A range of the virtual disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GuestRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Guest bytes by what the image itself (not its backing files) says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct StateBytes {
    /// Data in host clusters.
    pub data: u64,
    /// Compressed data.
    pub compressed: u64,
    /// Reads as zeros; host clusters are kept.
    pub zero_retained: u64,
    /// Reads as zeros; nothing is kept.
    pub zero: u64,
    /// Nothing is stored: the backing file is read, or zeros.
    pub unallocated: u64,
}

impl StateBytes {
    fn count(&mut self, content: Content, length: u64) {
        let counter = match content {
            Content::Data { .. } => &mut self.data,
            Content::Compressed { .. } => &mut self.compressed,
            Content::Zero { host_offset: Some(_) } => &mut self.zero_retained,
            Content::Zero { host_offset: None } => &mut self.zero,
            Content::Unallocated => &mut self.unallocated,
        };
        *counter += length;
    }
}

/// What discards did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TrimReport {
    /// Ranges.
    pub ranges: u64,
    /// Their bytes; where ranges overlap, as often as they are in one.
    pub requested_bytes: u64,
    /// The ranges before.
    pub before: StateBytes,
    /// The ranges afterwards.
    pub after: StateBytes,
    /// Bytes of the file for which holes were asked of the host; also of places that were holes before.
    pub host_discards: u64,
    /// Zeros written to the host instead, in bytes.
    pub host_zeroes: u64,
}

/// Discards ranges, and flushes. The counters of the storage are set back.
///
/// # Errors
/// As [`Image::discard`] and [`Image::flush`]; a range beyond the disk is refused before anything is changed.
pub fn trim<S: Storage>(
    image: &mut Image<CountingStorage<S>>,
    ranges: &[GuestRange],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<TrimReport> {
    let mut report = TrimReport { ranges: ranges.len() as u64, ..TrimReport::default() };
    for range in ranges {
        report.requested_bytes += range.length;
        report.before.add(image, *range)?;
    }
    image.storage().reset();
    let mut done = 0;
    for range in ranges {
        image.discard(range.offset, range.length)?;
        done += range.length;
        progress(done, report.requested_bytes);
    }
    image.flush()?;
    let counts = image.storage().counts();
    report.host_discards = counts.discard.bytes;
    report.host_zeroes = counts.write_zeroes.bytes;
    for range in ranges {
        report.after.add(image, *range)?;
    }
    Ok(report)
}

impl StateBytes {
    fn add<S: Storage>(&mut self, image: &mut Image<S>, range: GuestRange) -> Result<()> {
        let mut at = range.offset;
        let mut rest = range.length;
        // An empty range can lie beyond the disk too.
        image.next_local_extent(at, rest)?;
        while rest > 0 {
            let extent = image.next_local_extent(at, rest)?;
            self.count(extent.content, extent.length);
            at += extent.length;
            rest -= extent.length;
        }
        Ok(())
    }
}
