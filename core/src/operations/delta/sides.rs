//! The two states of a disk that are compared, and what is known of each range without reading it.

use super::within;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DirtyBits, Extent, Image, Layer};
use crate::storage::Storage;

/// A disk that can be mapped and read: an image with its layers, or whatever else knows its extents.
pub trait DeltaSide {
    /// Bytes of the disk.
    fn virtual_size(&self) -> u64;

    /// The extent that begins at `offset`, at most `length` bytes, through all layers.
    ///
    /// # Errors
    /// As [`Image::next_extent`].
    fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent>;

    /// Fills `into` with the bytes of the disk from `offset`.
    ///
    /// # Errors
    /// As [`Image::read_at`].
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;
}

impl<S: Storage> DeltaSide for Image<S> {
    fn virtual_size(&self) -> u64 {
        Image::virtual_size(self)
    }

    fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        Image::next_extent(self, offset, length)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        Image::read_at(self, offset, into)
    }
}

/// What is known of a range without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) length: u64,
    /// It has changed, as far as is known.
    pub(super) changed: bool,
    /// It reads as zeros now, for sure.
    pub(super) zero: bool,
}

/// A disk and its earlier state.
pub(super) trait Pair {
    fn size(&self) -> u64;
    fn old_size(&self) -> Option<u64>;
    fn next(&mut self, offset: u64, length: u64) -> Result<Piece>;
    fn read_new(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;
    /// Whether the earlier state can be read.
    fn compares(&self) -> bool;
    fn read_old(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// The earlier state is known by what a bitmap marks.
pub(super) struct BitmapPair<'a> {
    pub(super) disk: &'a mut dyn DeltaSide,
    pub(super) bits: &'a DirtyBits,
}

impl Pair for BitmapPair<'_> {
    fn size(&self) -> u64 {
        self.disk.virtual_size()
    }

    fn old_size(&self) -> Option<u64> {
        None
    }

    fn next(&mut self, offset: u64, length: u64) -> Result<Piece> {
        let (changed, run) = self.bits.run(offset);
        let extent = self.disk.next_extent(offset, length.min(run))?;
        Ok(Piece { length: extent.length, changed, zero: extent.is_zero() })
    }

    fn read_new(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, into)
    }

    fn compares(&self) -> bool {
        false
    }

    fn read_old(&mut self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::invalid("a bitmap does not know the old contents"))
    }
}

/// The earlier state is a layer further down.
pub(super) struct LayerPair<'a, S> {
    pub(super) image: &'a mut Image<S>,
    pub(super) depth: u32,
    pub(super) old_size: u64,
}

impl<S: Storage> Pair for LayerPair<'_, S> {
    fn size(&self) -> u64 {
        self.image.virtual_size()
    }

    fn old_size(&self) -> Option<u64> {
        Some(self.old_size)
    }

    fn next(&mut self, offset: u64, length: u64) -> Result<Piece> {
        let mut length = length;
        if offset < self.old_size {
            length = length.min(self.old_size.saturating_sub(offset));
        }
        let extent = self.image.next_extent(offset, length)?;
        let zero = extent.is_zero();
        let unallocated = extent.content == crate::image::Content::Unallocated;
        // What nobody has is told at the last layer that is long enough: nothing above says anything of it. Of a layer
        // in between that is too short for the one below it, zeros show where something else may have been.
        let inherited = extent.depth >= self.depth || (unallocated && !self.hidden(offset));
        let grown_zeros = offset >= self.old_size && zero;
        Ok(Piece { length: extent.length, changed: !(inherited || grown_zeros), zero })
    }

    fn read_new(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.image.read_at(offset, into)
    }

    fn compares(&self) -> bool {
        true
    }

    fn read_old(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let into = within(self.old_size, offset, into);
        if into.is_empty() {
            return Ok(());
        }
        match self.image.image_at_depth_mut(self.depth) {
            Some(layer) => layer.read_at(offset, into),
            None => Ok(self.image.data_at_depth(self.depth)?.read_at(offset, into)?),
        }
    }
}

impl<S: Storage> LayerPair<'_, S> {
    /// Whether the old layer has bytes at `offset` that a shorter layer between hides.
    fn hidden(&self, offset: u64) -> bool {
        offset < self.old_size
            && (1..self.depth).any(|depth| size_at_depth(self.image, depth).is_ok_and(|size| offset >= size))
    }
}

/// Bytes of the disk that the layer `depth` layers down holds.
pub(super) fn size_at_depth<S: Storage>(image: &Image<S>, depth: u32) -> Result<u64> {
    let missing = || Error::new(ErrorKind::InvalidArgument("the image has no layer so far down".into()));
    let above = depth.checked_sub(1).ok_or_else(|| Error::invalid("the image itself is not below itself"))?;
    let layer = image.image_at_depth(above).and_then(Image::backing);
    layer.map(Layer::virtual_size).ok_or_else(missing)
}

/// Two disks.
pub(super) struct SidesPair<'a> {
    pub(super) old: &'a mut dyn DeltaSide,
    pub(super) new: &'a mut dyn DeltaSide,
    /// Both are views of one file over the same layers, so that places tell of contents.
    pub(super) one_file: bool,
}

impl Pair for SidesPair<'_> {
    fn size(&self) -> u64 {
        self.new.virtual_size()
    }

    fn old_size(&self) -> Option<u64> {
        Some(self.old.virtual_size())
    }

    fn next(&mut self, offset: u64, length: u64) -> Result<Piece> {
        let new = self.new.next_extent(offset, length)?;
        let old_size = self.old.virtual_size();
        if offset >= old_size {
            return Ok(Piece { length: new.length, changed: !new.is_zero(), zero: new.is_zero() });
        }
        let length = new.length.min(old_size.saturating_sub(offset));
        let old = self.old.next_extent(offset, length)?;
        let (was_zero, zero) = (old.is_zero(), new.is_zero());
        let same_place = self.one_file && old.depth == new.depth && old.content == new.content;
        Ok(Piece { length: old.length.min(length), changed: !(same_place || (was_zero && zero)), zero })
    }

    fn read_new(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.new.read_at(offset, into)
    }

    fn compares(&self) -> bool {
        true
    }

    fn read_old(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let into = within(self.old.virtual_size(), offset, into);
        if into.is_empty() {
            return Ok(());
        }
        self.old.read_at(offset, into)
    }
}
