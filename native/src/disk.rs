//! A guest disk from a file of either format, qcow2 or raw, behind one set of calls.

use std::path::Path;

use qcowkit_core::image::{DetectZeroes, Extent, Image, Layer, LayerFormat, OpenOptions, Preallocation, raw_extent};
use qcowkit_core::storage::{ReadStorage, Storage, ZeroMode};
use qcowkit_core::{Error, ErrorKind, Result};

use crate::file::FileStorage;

/// A guest disk: a qcow2 image with its chain, or a raw file.
#[derive(Debug)]
pub enum Disk {
    /// A qcow2 image.
    Qcow2(Box<Image<FileStorage>>),
    /// A raw file or block device: host offset equals guest offset.
    Raw(RawDisk),
}

/// A raw file as a guest disk.
#[derive(Debug)]
pub struct RawDisk {
    storage: FileStorage,
    length: u64,
    read_only: bool,
    discard: bool,
    detect_zeroes: DetectZeroes,
}

/// One layer of a chain.
#[derive(Debug, Clone, Copy)]
pub enum LayerView<'a> {
    /// A qcow2 image.
    Qcow2(&'a Image<FileStorage>),
    /// A raw file and the bytes of its disk.
    Raw(&'a FileStorage, u64),
}

impl<'a> LayerView<'a> {
    /// The format.
    #[must_use]
    pub fn format(self) -> LayerFormat {
        match self {
            Self::Qcow2(_) => LayerFormat::Qcow2,
            Self::Raw(..) => LayerFormat::Raw,
        }
    }

    /// The file of the layer.
    #[must_use]
    pub fn file(self) -> &'a FileStorage {
        match self {
            Self::Qcow2(image) => image.storage(),
            Self::Raw(storage, _) => storage,
        }
    }

    /// The file that holds the layer's guest data: its data file, if it has one.
    #[must_use]
    pub fn data(self) -> &'a FileStorage {
        match self {
            Self::Qcow2(image) => image.data_file().unwrap_or_else(|| image.storage()),
            Self::Raw(storage, _) => storage,
        }
    }

    /// Bytes of the layer's disk.
    #[must_use]
    pub fn virtual_size(self) -> u64 {
        match self {
            Self::Qcow2(image) => image.virtual_size(),
            Self::Raw(_, length) => length,
        }
    }
}

impl RawDisk {
    /// Takes a file as the bytes of a disk, which ends at a whole sector of 512 bytes.
    ///
    /// # Errors
    /// When the length cannot be had.
    pub fn new(storage: FileStorage, options: &OpenOptions) -> Result<Self> {
        let length = storage.len()?.div_ceil(512).saturating_mul(512);
        Ok(Self {
            storage,
            length,
            read_only: options.read_only,
            discard: options.discard,
            detect_zeroes: options.detect_zeroes,
        })
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(ErrorKind::ReadOnly.into()) } else { Ok(()) }
    }

    fn range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(Error::new(ErrorKind::OutOfRange).at_guest(offset)),
        }
    }

    pub(crate) fn next_extent(&self, offset: u64, length: u64) -> Result<Extent> {
        self.range(offset, length)?;
        raw_extent(&self.storage, offset, length)
    }

    pub(crate) fn storage(&self) -> &FileStorage {
        &self.storage
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.length
    }

    pub(crate) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.range(offset, into.len() as u64)?;
        Ok(self.storage.read_at(offset, into)?)
    }

    pub(crate) fn flush(&self) -> Result<()> {
        Ok(self.storage.barrier()?)
    }

    pub(crate) fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.writable()?;
        self.range(offset, from.len() as u64)?;
        match self.detect_zeroes {
            DetectZeroes::Off => {}
            detect if qcowkit_core::zeros::is_zero(from) => {
                return self.write_zeroes(offset, from.len() as u64, detect == DetectZeroes::Unmap);
            }
            DetectZeroes::On | DetectZeroes::Unmap => {}
        }
        Ok(self.storage.write_at(offset, from)?)
    }

    pub(crate) fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.writable()?;
        self.range(offset, length)?;
        let mode = if may_unmap && self.discard { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
        Ok(self.storage.write_zeroes(offset, length, mode)?)
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.writable()?;
        self.range(offset, length)?;
        if self.discard { Ok(self.storage.discard(offset, length)?) } else { Ok(()) }
    }

    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.writable()?;
        if preallocation == Preallocation::Metadata {
            return Err(Error::invalid("unsupported preallocation mode: metadata"));
        }
        let old = self.length;
        if size < old && preallocation != Preallocation::Off {
            return Err(Error::invalid("preallocation can only be used for growing images"));
        }
        let old_file_end = self.storage.len()?;
        self.storage.set_len(size)?;
        let reserved = match preallocation {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            Preallocation::Falloc if size > old => self.storage.allocate(old, size - old).map_err(Error::from),
            Preallocation::Falloc => Ok(()),
            Preallocation::Full => write_zero_bytes(&self.storage, old, size),
        };
        match reserved {
            Ok(()) => self.length = size,
            // The disk is as it was, if the system lets it.
            Err(_) => self.storage.set_len(old_file_end)?,
        }
        reserved
    }
}

/// Writes zeros as bytes, so that the space is there and was written.
fn write_zero_bytes(storage: &FileStorage, from: u64, to: u64) -> Result<()> {
    let zeros = vec![0u8; 1 << 20];
    let mut at = from;
    while at < to {
        let piece = usize::try_from(to - at).unwrap_or(zeros.len()).min(zeros.len());
        storage.write_at(at, &zeros[..piece])?;
        at += piece as u64;
    }
    Ok(())
}

impl Disk {
    /// Makes a raw file of `size` bytes on `storage`, whose old contents are lost, and opens it for writing.
    ///
    /// # Errors
    /// When the storage refuses, or `preallocation` is `Metadata`.
    pub fn create_raw(storage: FileStorage, size: u64, preallocation: Preallocation) -> Result<Self> {
        if preallocation == Preallocation::Metadata {
            return Err(Error::invalid("preallocation=metadata of a raw file"));
        }
        let size = size.checked_next_multiple_of(512).ok_or_else(|| Error::invalid("the size is too large"))?;
        if storage.capabilities().grows {
            storage.set_len(0)?;
            let mut disk = RawDisk::new(storage, &OpenOptions::default())?;
            disk.resize(size, preallocation)?;
            return Ok(Self::Raw(disk));
        }
        if storage.len()? < size {
            return Err(ErrorKind::NoSpace("the device is too small".into()).into());
        }
        Ok(Self::Raw(RawDisk::new(storage, &OpenOptions::default())?))
    }

    /// The same as a layer of another image's chain.
    #[must_use]
    pub fn into_layer(self) -> Layer<FileStorage> {
        match self {
            Self::Qcow2(image) => Layer::Image(image),
            Self::Raw(RawDisk { storage, length, .. }) => Layer::Raw { storage, length },
        }
    }

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
            Self::Raw(raw) => raw.length,
        }
    }

    /// The qcow2 image, unless it is raw.
    #[must_use]
    pub fn image(&self) -> Option<&Image<FileStorage>> {
        match self {
            Self::Qcow2(image) => Some(image),
            Self::Raw(_) => None,
        }
    }

    /// The qcow2 image for changes, unless it is raw.
    pub fn image_mut(&mut self) -> Option<&mut Image<FileStorage>> {
        match self {
            Self::Qcow2(image) => Some(image),
            Self::Raw(_) => None,
        }
    }

    /// The file of the top layer.
    #[must_use]
    pub fn file(&self) -> &FileStorage {
        match self {
            Self::Qcow2(image) => image.storage(),
            Self::Raw(raw) => &raw.storage,
        }
    }

    /// The name of the file of the top layer.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file().path()
    }

    /// Bytes of a cluster; `None` for raw.
    #[must_use]
    pub fn cluster_size(&self) -> Option<u64> {
        self.image().map(|image| image.geometry().cluster_size())
    }

    /// The layers that were opened, from the top down.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerView<'_>> {
        let mut layers = Vec::new();
        let mut image = match self {
            Self::Raw(raw) => return vec![LayerView::Raw(&raw.storage, raw.length)],
            Self::Qcow2(image) => image.as_ref(),
        };
        loop {
            layers.push(LayerView::Qcow2(image));
            match image.backing() {
                None => return layers,
                Some(Layer::Image(below)) => image = below,
                Some(Layer::Raw { storage, length }) => {
                    layers.push(LayerView::Raw(storage, *length));
                    return layers;
                }
            }
        }
    }

    /// The extent that begins at `offset`, at most `length` bytes, through all layers.
    ///
    /// # Errors
    /// As [`Image::next_extent`].
    pub fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        match self {
            Self::Qcow2(image) => image.next_extent(offset, length),
            Self::Raw(raw) => raw.next_extent(offset, length),
        }
    }

    /// As [`Disk::next_extent`], of the top layer alone.
    ///
    /// # Errors
    /// As [`Image::next_local_extent`].
    pub fn next_local_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        match self {
            Self::Qcow2(image) => image.next_local_extent(offset, length),
            Self::Raw(raw) => raw.next_extent(offset, length),
        }
    }

    /// As [`Image::without_holes`]; of a raw disk, extents are so already.
    #[must_use]
    pub fn without_holes(&self, extent: Extent) -> Extent {
        match self {
            Self::Qcow2(image) => image.without_holes(extent),
            Self::Raw(_) => extent,
        }
    }

    /// Reads the bytes of an extent that [`Disk::next_extent`] gave, from its first byte on.
    ///
    /// # Errors
    /// As [`Image::read_extent`].
    pub fn read_extent(&self, extent: &Extent, into: &mut [u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.read_extent(extent, into),
            Self::Raw(raw) => {
                raw.range(extent.guest_offset, into.len() as u64)?;
                Ok(raw.storage.read_at(extent.guest_offset, into)?)
            }
        }
    }

    /// Fills `into` with guest bytes.
    ///
    /// # Errors
    /// As [`Image::read_at`].
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.read_at(offset, into),
            Self::Raw(raw) => raw.read_at(offset, into),
        }
    }

    /// Writes guest bytes.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.write_at(offset, from),
            Self::Raw(raw) => raw.write_at(offset, from),
        }
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// As [`Image::write_zeroes`].
    pub fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.write_zeroes(offset, length, may_unmap),
            Self::Raw(raw) => raw.write_zeroes(offset, length, may_unmap),
        }
    }

    /// Writes whole clusters compressed.
    ///
    /// # Errors
    /// As [`Image::write_compressed`]; raw files have no compression.
    pub fn write_compressed(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.write_compressed(offset, from),
            Self::Raw(_) => Err(Error::unsupported("compression in a raw file")),
        }
    }

    /// Tells the disk that a range is needed no more.
    ///
    /// # Errors
    /// As [`Image::discard`].
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.discard(offset, length),
            Self::Raw(raw) => raw.discard(offset, length),
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn flush(&mut self) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.flush(),
            Self::Raw(raw) => raw.flush(),
        }
    }

    /// Makes everything durable, and stores dirty bitmaps: what to do before the disk is let go.
    ///
    /// # Errors
    /// As [`Image::finish`].
    pub fn finish(&mut self) -> Result<()> {
        match self {
            Self::Qcow2(image) => image.finish(),
            Self::Raw(raw) => raw.flush(),
        }
    }

    /// Sets the virtual size, and reserves what is new.
    ///
    /// # Errors
    /// As [`Image::resize_with`]; a raw file has no metadata to preallocate.
    pub fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        match self {
            Self::Raw(raw) => raw.resize(size, preallocation),
            Self::Qcow2(image) => image.resize_with(size, preallocation),
        }
    }
}
