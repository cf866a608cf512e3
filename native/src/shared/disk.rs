//! A disk of either format for many threads.

use qcowkit_core::Result;
use qcowkit_core::image::{Extent, LayerFormat};

use super::SharedImage;
use crate::disk::{Disk, RawDisk};
use crate::file::FileStorage;

/// As [`Disk`], for many threads.
#[derive(Debug)]
pub enum SharedDisk {
    /// A qcow2 image.
    Qcow2(Box<SharedImage<FileStorage>>),
    /// A raw file or block device.
    Raw(RawDisk),
}

impl From<Disk> for SharedDisk {
    fn from(disk: Disk) -> Self {
        match disk {
            Disk::Qcow2(image) => Self::Qcow2(Box::new(SharedImage::new(*image))),
            Disk::Raw(raw) => Self::Raw(raw),
        }
    }
}

impl SharedDisk {
    /// The format.
    #[must_use]
    pub fn format(&self) -> LayerFormat {
        match self {
            Self::Qcow2(_) => LayerFormat::Qcow2,
            Self::Raw(_) => LayerFormat::Raw,
        }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        match self {
            Self::Qcow2(image) => image.virtual_size(),
            Self::Raw(raw) => raw.virtual_size(),
        }
    }

    /// Bytes of a cluster; `None` for raw.
    #[must_use]
    pub fn cluster_size(&self) -> Option<u64> {
        match self {
            Self::Qcow2(image) => Some(image.geometry().cluster_size()),
            Self::Raw(_) => None,
        }
    }

    /// Fills `into` with guest bytes.
    ///
    /// # Errors
    /// As [`SharedImage::read_at`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.read_at(offset, into),
            Self::Raw(raw) => raw.read_at(offset, into),
        }
    }

    /// Writes guest bytes.
    ///
    /// # Errors
    /// As [`SharedImage::write_at`].
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.write_at(offset, from),
            Self::Raw(raw) => raw.write_at(offset, from),
        }
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`SharedImage::write_zeroes`].
    pub fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.write_zeroes(offset, length, may_unmap),
            Self::Raw(raw) => raw.write_zeroes(offset, length, may_unmap),
        }
    }

    /// Tells the disk that a range is needed no more.
    ///
    /// # Errors
    /// As [`SharedImage::discard`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.discard(offset, length),
            Self::Raw(raw) => raw.discard(offset, length),
        }
    }

    /// Tells the disk that a range is needed no more, all of which reads as zeros afterwards: whole clusters are
    /// discarded, the ends are zeroed.
    ///
    /// A discard leaves clusters alone that have no mapping; zeroing all would make tables full of entries that say
    /// nothing new.
    ///
    /// # Errors
    /// As [`SharedImage::write_zeroes`].
    pub fn punch(&self, offset: u64, length: u64) -> Result<()> {
        let Self::Qcow2(image) = self else { return self.write_zeroes(offset, length, true) };
        let cluster = image.geometry().cluster_size();
        let end = offset.saturating_add(length);
        let first = offset.next_multiple_of(cluster);
        let last = if end == image.virtual_size() { end } else { end - end % cluster };
        if !image.discards_to_zero() || first >= last {
            return image.write_zeroes(offset, length, true);
        }
        image.write_zeroes(offset, first - offset, true)?;
        image.discard(first, last - first)?;
        image.write_zeroes(last, end - last, true)
    }

    /// The extent that begins at `offset`, at most `length` bytes, through all layers.
    ///
    /// # Errors
    /// As [`SharedImage::next_extent`].
    pub fn next_extent(&self, offset: u64, length: u64) -> Result<Extent> {
        match self {
            Self::Qcow2(image) => image.next_extent(offset, length),
            Self::Raw(raw) => raw.next_extent(offset, length),
        }
    }

    /// The bytes that the file system has allocated for the file of the top layer.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn allocated_bytes(&self) -> Result<u64> {
        Ok(match self {
            Self::Qcow2(image) => image.storage().allocated_bytes()?,
            Self::Raw(raw) => raw.storage().allocated_bytes()?,
        })
    }

    /// Flushes and closes.
    ///
    /// # Errors
    /// As [`SharedImage::close`].
    pub fn close(self) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.close().map(drop),
            Self::Raw(raw) => raw.flush(),
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// As [`SharedImage::flush`].
    pub fn flush(&self) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.flush(),
            Self::Raw(raw) => raw.flush(),
        }
    }
}
