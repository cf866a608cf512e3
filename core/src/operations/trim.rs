//! Discarding ranges of an image, for real or for show, and telling what became of them.

use alloc::string::String;

use crate::error::Result;
use crate::image::{Content, Image};
use crate::storage::{CountingStorage, Storage};

/// A range of the virtual disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GuestRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Guest bytes by what the image itself (not its backing files) says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
        *counter = counter.saturating_add(length);
    }
}

/// What discards did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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

/// What discards of an image did, or would do: what `qcowkit discard --output=json` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DiscardReport {
    /// The name of the image.
    pub filename: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// What became of the ranges.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub trim: TrimReport,
    /// Bytes that the host held for the file before, where it can tell.
    pub host_bytes_before: Option<u64>,
    /// And afterwards; not known of a dry run.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub host_bytes_after: Option<u64>,
    /// Bytes of the file before.
    pub file_length_before: u64,
    /// And afterwards.
    pub file_length_after: u64,
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
    let mut go_on = |done, total| {
        progress(done, total);
        true
    };
    trim_while(image, ranges, &mut go_on)
}

/// As [`trim`], until `go_on` says no: what was discarded until then is flushed and told.
///
/// # Errors
/// As [`trim`].
pub fn trim_while<S: Storage>(
    image: &mut Image<CountingStorage<S>>,
    ranges: &[GuestRange],
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<TrimReport> {
    let mut report = TrimReport { ranges: u64::try_from(ranges.len()).unwrap_or(u64::MAX), ..TrimReport::default() };
    for range in ranges {
        report.requested_bytes = report.requested_bytes.saturating_add(range.length);
        report.before.add(image, *range)?;
    }
    image.storage().reset();
    let mut done = 0u64;
    for piece in ranges.iter().copied().flat_map(GuestRange::stretches) {
        image.discard(piece.offset, piece.length)?;
        done = done.saturating_add(piece.length);
        if !go_on(done, report.requested_bytes) {
            break;
        }
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

/// Between pieces that end at multiples of this, which every cluster size divides, a caller is heard.
const LEAST_STRETCH: u64 = 1 << 30;
/// More pieces than about so many are not made of a range: disks can claim exabytes.
const MOST_STRETCHES: u64 = 1 << 12;

impl GuestRange {
    /// The pieces of the range, in order; an empty range is one piece.
    fn stretches(self) -> impl Iterator<Item = Self> {
        // A power of 2, too.
        let stretch = (self.length / MOST_STRETCHES).checked_next_power_of_two().unwrap_or(1 << 63).max(LEAST_STRETCH);
        let mut rest = Some(self);
        core::iter::from_fn(move || {
            let Self { offset, length } = rest?;
            let here = stretch.saturating_sub(offset & stretch.saturating_sub(1)).min(length);
            let left = length.saturating_sub(here);
            rest = (left > 0).then(|| Self { offset: offset.saturating_add(here), length: left });
            Some(Self { offset, length: here })
        })
    }
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
            at = at.saturating_add(extent.length);
            rest = rest.saturating_sub(extent.length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::image::CreateOptions;
    use crate::storage::MemoryStorage;

    #[test]
    fn a_long_range_is_told_and_stopped_on_the_way() {
        let storage = CountingStorage::new(MemoryStorage::new());
        let mut image = Image::create(storage, 4 << 30, &CreateOptions::default()).unwrap();
        for at in [600 << 20, 1100 << 20, 2200 << 20] {
            image.write_at(at, &[1; 64 << 10]).unwrap();
        }
        let range = GuestRange { offset: 512 << 20, length: 2 << 30 };
        let mut told = Vec::new();
        let mut go_on = |done: u64, total: u64| {
            told.push((done >> 20, total >> 20));
            told.len() < 2
        };
        let report = trim_while(&mut image, &[range], &mut go_on).unwrap();
        assert_eq!(told, [(512, 2048), (1536, 2048)]);
        assert_eq!((report.ranges, report.before.data, report.after.data), (1, 192 << 10, 64 << 10));
        let report = trim(&mut image, &[range], &mut |_, _| ()).unwrap();
        assert_eq!((report.before.data, report.after.data), (64 << 10, 0));
    }

    #[test]
    fn a_range_has_not_too_many_pieces() {
        for (offset, length, pieces) in [
            (0, 0, 1),
            (5, 1 << 30, 2),
            (0, 1 << 42, 1 << 12),
            (0, 1 << 61, 1 << 12),
            (1 << 30, (1 << 61) + 1, (1 << 12) + 1),
            (1, u64::MAX - 1, 1 << 12),
        ] {
            let cut: Vec<GuestRange> = GuestRange { offset, length }.stretches().collect();
            assert_eq!(cut.len(), pieces, "{offset} {length}");
            let mut at = offset;
            for piece in cut {
                assert!(piece.offset == at && (at == offset || at.is_multiple_of(1 << 30)));
                at += piece.length;
            }
            assert_eq!(at, offset + length);
        }
    }

    #[test]
    fn ranges_are_told_before_and_after() {
        let storage = CountingStorage::new(MemoryStorage::new());
        let mut image = Image::create(storage, 1 << 20, &CreateOptions::default()).unwrap();
        image.write_at(0, &[1; 128 << 10]).unwrap();
        let range = GuestRange { offset: 0, length: 192 << 10 };
        let report = trim(&mut image, &[range], &mut |_, _| ()).unwrap();
        assert_eq!((report.before.data, report.before.unallocated), (128 << 10, 64 << 10));
        assert_eq!((report.after.data, report.host_discards), (0, 128 << 10));

        let beyond = GuestRange { offset: 1 << 20, length: 1 };
        image.write_at(0, &[1]).unwrap();
        assert!(trim(&mut image, &[range, beyond], &mut |_, _| ()).is_err());
        let mut byte = [0];
        image.read_at(0, &mut byte).unwrap();
        assert_eq!(byte, [1], "nothing is discarded before all ranges are looked at");
    }
}
