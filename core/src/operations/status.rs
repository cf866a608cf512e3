//! What each part of a disk is, as QEMU's block layer tells it: the facts behind `map`, `compare` and `convert`.

use alloc::vec::Vec;

use crate::error::Result;
use crate::format::{HostCluster, HostOffset};
use crate::image::{Content, Extent, Image, Layer};
use crate::storage::{Storage, StorageExtent, StorageExtentKind};

/// A run of guest bytes of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Status {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The layer that decides what is read; 0 is the image itself.
    pub depth: u32,
    /// That layer holds something for it, be it data or zeros; otherwise no layer does.
    pub present: bool,
    /// Known to read as zeros.
    pub zero: bool,
    /// Reads from a file.
    pub data: bool,
    /// Stored compressed.
    pub compressed: bool,
    /// Where it begins in the file of its layer.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub offset: Option<u64>,
}

impl Status {
    /// Whether `next`, right behind this one, is more of the same.
    fn continues_with(&self, next: &Self) -> bool {
        let same = |status: &Self| (status.depth, status.present, status.zero, status.data, status.compressed);
        same(self) == same(next)
            && match (self.offset, next.offset) {
                (Some(offset), Some(next)) => offset.checked_add(self.length) == Some(next),
                (None, None) => true,
                _ => false,
            }
    }
}

/// What is to be known of a layer beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusLayer {
    /// Bytes of its disk.
    pub size: u64,
    /// It is a qcow2 image, not a raw file.
    pub qcow2: bool,
    /// Its guest data are encrypted.
    pub encrypted: bool,
    /// It has subclusters.
    pub extended: bool,
}

/// A disk whose parts have states: an image with its chain, and in `native` a raw file too.
pub trait StatusDisk {
    /// Bytes of the disk.
    fn virtual_size(&self) -> u64;

    /// All layers that are open, the top first.
    fn status_layers(&self) -> Vec<StatusLayer>;

    /// As [`Image::next_extent`].
    ///
    /// # Errors
    /// Likewise.
    fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent>;

    /// As [`Image::next_local_extent`].
    ///
    /// # Errors
    /// Likewise.
    fn next_local_extent(&mut self, offset: u64, length: u64) -> Result<Extent>;

    /// As [`Image::next_place`], of the layer at `depth`; `None` where that is no qcow2 image.
    ///
    /// # Errors
    /// Likewise.
    fn next_place(&mut self, depth: u32, offset: u64, length: u64) -> Result<Option<(Option<HostOffset>, u64)>>;

    /// What the file with the guest data of the layer at `depth` has at `host_offset`, and the length of that file.
    ///
    /// # Errors
    /// When the storage fails.
    fn host_extent(&self, depth: u32, host_offset: u64) -> Result<(StorageExtent, u64)>;

    /// Whether host clusters of the layer at `depth` may be holes of its file, so that asking the file pays; see
    /// [`has_unbacked_clusters`]. Asked once.
    ///
    /// # Errors
    /// When tables cannot be read.
    fn may_have_holes(&mut self, depth: u32) -> Result<bool>;
}

impl<S: Storage> StatusDisk for Image<S> {
    fn virtual_size(&self) -> u64 {
        Self::virtual_size(self)
    }

    fn status_layers(&self) -> Vec<StatusLayer> {
        let mut layers = Vec::new();
        let mut next = Some(self);
        while let Some(image) = next {
            layers.push(StatusLayer::of_image(image));
            next = match image.backing() {
                None => None,
                Some(Layer::Image(below)) => Some(below),
                Some(Layer::Raw { length, .. }) => {
                    layers.push(StatusLayer { size: *length, qcow2: false, encrypted: false, extended: false });
                    None
                }
            };
        }
        layers
    }

    fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        Self::next_extent(self, offset, length)
    }

    fn next_local_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        Self::next_local_extent(self, offset, length)
    }

    fn next_place(&mut self, depth: u32, offset: u64, length: u64) -> Result<Option<(Option<HostOffset>, u64)>> {
        self.image_at_depth_mut(depth).map(|image| image.next_place(offset, length)).transpose()
    }

    fn host_extent(&self, depth: u32, host_offset: u64) -> Result<(StorageExtent, u64)> {
        let storage = self.data_at_depth(depth)?;
        Ok((storage.next_extent(host_offset)?, storage.len()?))
    }

    /// Storages of which this crate knows do not tell how much they hold.
    fn may_have_holes(&mut self, _depth: u32) -> Result<bool> {
        Ok(false)
    }
}

impl StatusLayer {
    /// Of a qcow2 image.
    pub fn of_image<S: Storage>(image: &Image<S>) -> Self {
        Self {
            size: image.virtual_size(),
            qcow2: true,
            encrypted: image.header().header.crypt_method != 0,
            extended: image.geometry().extended_l2(),
        }
    }
}

/// Tells the states of a disk's parts.
#[derive(Debug)]
pub struct Statuses<'a, D> {
    disk: &'a mut D,
    /// With what is known of holes; found out once.
    layers: Vec<(StatusLayer, Option<bool>)>,
    /// What ended the last merged run: it begins the next one.
    ahead: Option<Status>,
}

impl<'a, D: StatusDisk> Statuses<'a, D> {
    /// Of all layers of `disk` that are open.
    pub fn new(disk: &'a mut D) -> Self {
        let layers = disk.status_layers().into_iter().map(|layer| (layer, None)).collect();
        Self { disk, layers, ahead: None }
    }

    /// Bytes of the disk.
    pub fn virtual_size(&self) -> u64 {
        self.disk.virtual_size()
    }

    /// The run that begins at `offset`, at most `length` bytes.
    ///
    /// # Errors
    /// As [`StatusDisk::next_extent`].
    pub fn next(&mut self, offset: u64, length: u64) -> Result<Status> {
        Ok(self.next_with_extent(offset, length)?.0)
    }

    /// As [`Statuses::next`], with the extent that reads it.
    ///
    /// # Errors
    /// As [`StatusDisk::next_extent`].
    pub fn next_with_extent(&mut self, offset: u64, length: u64) -> Result<(Status, Extent)> {
        let extent = self.disk.next_extent(offset, length)?;
        self.complete(extent)
    }

    /// As [`Statuses::next_with_extent`], of the top layer alone: what it leaves to the layer below is not present.
    ///
    /// # Errors
    /// As [`StatusDisk::next_local_extent`].
    pub fn next_local(&mut self, offset: u64, length: u64) -> Result<(Status, Extent)> {
        let extent = self.disk.next_local_extent(offset, length)?;
        self.complete(extent)
    }

    fn complete(&mut self, extent: Extent) -> Result<(Status, Extent)> {
        let mut status = self.of_extent(&extent);
        if extent.content == Content::Unallocated {
            status = self.look_for_place(status)?;
        }
        if status.data && !status.compressed {
            status = self.look_for_holes(status)?;
        }
        Ok((status, Extent { length: status.length, ..extent }))
    }

    /// The longest run of one state that begins at `offset`, at most `length` bytes.
    ///
    /// # Errors
    /// As [`StatusDisk::next_extent`].
    pub fn next_merged(&mut self, offset: u64, length: u64) -> Result<Status> {
        let mut merged = match self.ahead.take() {
            Some(ahead) if ahead.start == offset => Status { length: ahead.length.min(length), ..ahead },
            _ => self.next(offset, length)?,
        };
        while merged.length < length {
            let rest = length.saturating_sub(merged.length);
            let next = self.next(offset.saturating_add(merged.length), rest)?;
            if !merged.continues_with(&next) {
                self.ahead = Some(next);
                break;
            }
            merged.length = merged.length.saturating_add(next.length);
        }
        Ok(merged)
    }

    fn layer(&self, depth: u32) -> Option<StatusLayer> {
        let at = usize::try_from(depth).unwrap_or(usize::MAX);
        self.layers.get(at).map(|(layer, _)| *layer)
    }

    fn of_extent(&self, extent: &Extent) -> Status {
        let mut status = Status {
            start: extent.guest_offset,
            length: extent.length,
            depth: extent.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        };
        let layer = self.layer(extent.depth);
        let encrypted = layer.is_some_and(|layer| layer.encrypted);
        match extent.content {
            Content::Data { host_offset } => {
                status.data = true;
                status.offset = (!encrypted).then_some(host_offset.get());
            }
            Content::Compressed { .. } => {
                status.data = true;
                status.compressed = true;
            }
            Content::Zero { .. } if layer.is_some_and(|layer| extent.guest_offset >= layer.size) => {
                // The layer above ends the matter: nothing is left to ask below.
                status.zero = true;
                status.present = false;
                status.depth = extent.depth.saturating_sub(1);
            }
            Content::Zero { host_offset } => {
                status.zero = true;
                status.offset = host_offset.filter(|_| !encrypted).map(|offset| offset.get());
            }
            Content::Unallocated => {
                status.zero = true;
                status.present = false;
            }
        }
        status
    }

    /// With extended L2 entries, parts of a cluster without data have a place in the file, which QEMU tells.
    fn look_for_place(&mut self, mut status: Status) -> Result<Status> {
        let Some(layer) = self.layer(status.depth) else { return Ok(status) };
        if !layer.extended || layer.encrypted || status.length == 0 {
            return Ok(status);
        }
        if let Some((place, length)) = self.disk.next_place(status.depth, status.start, status.length)? {
            status.offset = place.map(HostOffset::get);
            status.length = length;
        }
        Ok(status)
    }

    /// Data of a qcow2 image that lie in a hole of its file read as zeros. QEMU asks the file only of images that have
    /// more clusters than space.
    fn look_for_holes(&mut self, mut status: Status) -> Result<Status> {
        let Some(offset) = status.offset else { return Ok(status) };
        if !self.has_holes(status.depth)? {
            return Ok(status);
        }
        let (found, file_length) = self.disk.host_extent(status.depth, offset)?;
        if found.kind == StorageExtentKind::Hole {
            status.zero = true;
            // What lies behind the end of the file reads as zeros however long it is.
            if found.length == 0 || offset.saturating_add(found.length) >= file_length {
                return Ok(status);
            }
        }
        status.length = status.length.min(found.length);
        Ok(status)
    }

    fn has_holes(&mut self, depth: u32) -> Result<bool> {
        let at = usize::try_from(depth).unwrap_or(usize::MAX);
        let Some((layer, known)) = self.layers.get_mut(at) else { return Ok(false) };
        if !layer.qcow2 {
            return Ok(false);
        }
        if let Some(known) = known {
            return Ok(*known);
        }
        let found = self.disk.may_have_holes(depth)?;
        *known = Some(found);
        Ok(found)
    }
}

/// Whether more clusters are in use than the file has space for (`allocated` bytes): metadata were preallocated.
///
/// # Errors
/// When refcounts cannot be read.
pub fn has_unbacked_clusters<S: Storage>(image: &mut Image<S>, allocated: u64) -> Result<bool> {
    let bits = image.geometry().cluster_bits();
    let real = allocated.checked_shr(bits).unwrap_or(0);
    let threshold = (real.saturating_mul(10) / 9).max(real.saturating_add(2));
    let end = image.geometry().clusters_for(image.storage().len()?);
    if end < threshold {
        return Ok(false);
    }
    let mut used = 0u64;
    for cluster in 0..end {
        if used >= threshold || used.saturating_add(end.saturating_sub(cluster)) < threshold {
            break;
        }
        used = used.saturating_add(u64::from(image.refcount(HostCluster::new(cluster))? > 0));
    }
    Ok(used >= threshold)
}
