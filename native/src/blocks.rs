//! Copying a part of a disk, counted in blocks, into another: `dd`.

use std::ops::{ControlFlow, Range};

use qcowkit_core::image::{Image, LayerFormat};
use qcowkit_core::storage::{ReadStorage, Storage};
use qcowkit_core::zeros::is_zero;
use qcowkit_core::{Error, Result};

use crate::convert::ConvertReport;
use crate::disk::Disk;

/// Bytes that are read at once, whatever the size of a block.
const PIECE: u64 = 2 << 20;

/// Zeros of this many bytes are not written into a new image.
const SPARSE: usize = 64 << 10;

/// Which part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Bytes of a block, not 0.
    pub bytes: u64,
    /// Blocks before the part.
    pub skip: u64,
    /// Blocks before the end of the part; all without it.
    ///
    /// As `qemu-img dd` counts: the skipped blocks are among them, so that `skip=3 count=7` copies four blocks.
    pub count: Option<u64>,
}

impl Default for Blocks {
    /// The whole disk in blocks of 512 bytes.
    fn default() -> Self {
        Self { bytes: 512, skip: 0, count: None }
    }
}

impl Blocks {
    /// The bytes of a disk of `size` bytes; `None` where the part begins behind its end.
    #[must_use]
    pub fn of(&self, size: u64) -> Option<Range<u64>> {
        let end = self.count.map_or(size, |count| count.saturating_mul(self.bytes).min(size));
        let start = self.skip.checked_mul(self.bytes).filter(|&start| start <= end)?;
        Some(start..end)
    }
}

/// Copies a range of one disk to the beginning of another, which was just made for it. What reads as zeros is not
/// written.
///
/// # Errors
/// When a disk cannot be read or written.
pub fn copy(from: &mut Disk, range: Range<u64>, to: &mut Disk) -> Result<()> {
    // What a device holds is still there after it was taken for a new image.
    let used = to.format() == LayerFormat::Raw && to.file().capabilities().block_device;
    let mut buffer = vec![0u8; usize::try_from(PIECE.min(range.end - range.start)).unwrap_or(0)];
    let mut at = range.start;
    while at < range.end {
        let extent = from.next_extent(at, range.end - at)?;
        let extent = from.without_holes(extent);
        let target = at - range.start;
        if extent.is_zero() {
            if used {
                to.write_zeroes(target, extent.length, true)?;
            }
            at += extent.length.max(1);
            continue;
        }
        let length = extent.length.min(PIECE);
        let bytes = &mut buffer[..length as usize];
        from.read_at(at, bytes)?;
        write_data(to, target, bytes, if used { None } else { Some(SPARSE) })?;
        at += length;
    }
    Ok(())
}

/// Copies the disk of an image, which may lie on any storage, to a disk that was just made for it; packed with
/// `compress`, otherwise without zeros of `sparse` bytes (at least 512). One thread does it: [`mod@crate::convert`] is
/// quicker where everything lies in files.
///
/// `progress` is told how many bytes are done, of how many, and can stop the copy; nothing is given back then. The report
/// counts as that of a conversion does.
///
/// # Errors
/// When the image cannot be read, or the disk not be written.
pub fn copy_image<S: Storage>(
    from: &mut Image<S>,
    to: &mut Disk,
    compress: bool,
    sparse: u64,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Option<ConvertReport>> {
    let used = to.format() == LayerFormat::Raw && to.file().capabilities().block_device;
    let cluster = usize::try_from(to.cluster_size().unwrap_or(PIECE)).unwrap_or(SPARSE);
    let size = from.virtual_size();
    let mut buffer = vec![0u8; usize::try_from(PIECE.max(cluster as u64).min(size)).unwrap_or(0)];
    // What a cluster is allocated for is written whole, as far as that is little: as a conversion does.
    let unit = to.image().map_or(1, |image| image.geometry().subcluster_size()).min(SPARSE as u64);
    let sparse = 1u64 << sparse.max(unit).max(512).ilog2();
    let sparse = if used { None } else { Some(usize::try_from(sparse).unwrap_or(SPARSE)) };
    let mut report = ConvertReport { total_bytes: size, ..ConvertReport::default() };
    let mut at = 0;
    while at < size {
        if progress(at, size).is_break() {
            return Ok(None);
        }
        let length = (buffer.len() as u64).min(size - at);
        let extent = from.next_extent(at, size - at)?;
        let extent = from.without_holes(extent);
        // Whole pieces, so that clusters are whole.
        let zeros = if extent.is_zero() { extent.length - extent.length % buffer.len() as u64 } else { 0 };
        if zeros > 0 || (extent.is_zero() && extent.length >= length) {
            let zeros = zeros.max(length);
            if used {
                to.write_zeroes(at, zeros, true)?;
                report.zero_bytes += zeros;
            }
            at += zeros;
            continue;
        }
        let bytes = &mut buffer[..length as usize];
        from.read_at(at, bytes)?;
        match compress {
            false => report.data_bytes += write_data(to, at, bytes, sparse)?,
            true => {
                for (number, bytes) in bytes.chunks(cluster).enumerate().filter(|(_, bytes)| !is_zero(bytes)) {
                    pack(to, at + (number * cluster) as u64, bytes, &mut report)?;
                }
            }
        }
        at += length;
    }
    let _ = progress(size, size);
    Ok(Some(report))
}

/// Writes a cluster packed, or plainly where that is not larger.
fn pack(to: &mut Disk, offset: u64, cluster: &[u8], report: &mut ConvertReport) -> Result<()> {
    let image = to.image_mut().ok_or_else(|| Error::unsupported("compression in a raw file"))?;
    match image.pack(cluster)? {
        Some(packed) => {
            image.write_packed(offset, &packed)?;
            report.compressed_bytes += cluster.len() as u64;
            report.packed_bytes += packed.len() as u64;
        }
        None => image.write_at(offset, cluster)?,
    }
    report.data_bytes += cluster.len() as u64;
    Ok(())
}

/// Writes all but so many zeros, neighbours in one call; gives how many bytes that were.
fn write_data(to: &mut Disk, offset: u64, bytes: &[u8], sparse: Option<usize>) -> Result<u64> {
    let Some(sparse) = sparse else {
        to.write_at(offset, bytes)?;
        return Ok(bytes.len() as u64);
    };
    let (mut start, mut written) = (0, 0);
    let zero = |at: usize| is_zero(&bytes[at..bytes.len().min(at + sparse)]);
    while start < bytes.len() {
        if zero(start) {
            start += sparse;
            continue;
        }
        let mut end = start + sparse;
        while end < bytes.len() && !zero(end) {
            end += sparse;
        }
        let end = end.min(bytes.len());
        to.write_at(offset + start as u64, &bytes[start..end])?;
        written += (end - start) as u64;
        start = end;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_the_beginning() {
        let part = |bytes, skip, count| Blocks { bytes, skip, count }.of(10_240);
        assert_eq!(Blocks::default().of(10_240), Some(0..10_240));
        assert_eq!(part(100, 3, Some(7)), Some(300..700));
        assert_eq!(part(1000, 3, None), Some(3000..10_240));
        assert_eq!(part(1000, 3, Some(u64::MAX)), Some(3000..10_240));
        assert_eq!(part(512, 20, None), Some(10_240..10_240));
        assert_eq!(part(512, 21, None), None);
        assert_eq!(part(512, u64::MAX, None), None);
        assert_eq!(part(100, 9, Some(7)), None);
    }
}
