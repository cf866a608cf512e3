//! What each part of a disk is, as QEMU's block layer tells it: the facts behind `map`, `compare` and `convert`.

use qcowkit_core::Result;
use qcowkit_core::format::HostCluster;
use qcowkit_core::image::{Content, Extent, Image};
use qcowkit_core::storage::{ReadStorage, StorageExtentKind};

use crate::disk::{Disk, LayerView};
use crate::file::FileStorage;

/// A run of guest bytes of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pub offset: Option<u64>,
}

impl Status {
    /// Whether `next`, right behind this one, is more of the same.
    fn continues_with(&self, next: &Self) -> bool {
        let same = |status: &Self| (status.depth, status.present, status.zero, status.data, status.compressed);
        same(self) == same(next)
            && match (self.offset, next.offset) {
                (Some(offset), Some(next)) => offset + self.length == next,
                (None, None) => true,
                _ => false,
            }
    }
}

/// Tells the states of a disk's parts.
pub struct Statuses<'a> {
    disk: &'a mut Disk,
    layers: Vec<LayerFacts>,
}

struct LayerFacts {
    size: u64,
    qcow2: bool,
    encrypted: bool,
    extended: bool,
    /// Whether host clusters may be holes of the file, so that asking the file pays; found out once.
    holes: Option<bool>,
}

impl<'a> Statuses<'a> {
    /// Of all layers of `disk` that are open.
    pub fn new(disk: &'a mut Disk) -> Self {
        let facts = |layer: LayerView<'_>| LayerFacts {
            size: layer.virtual_size(),
            qcow2: matches!(layer, LayerView::Qcow2(_)),
            encrypted: matches!(layer, LayerView::Qcow2(image) if image.header().header.crypt_method != 0),
            extended: matches!(layer, LayerView::Qcow2(image) if image.geometry().extended_l2()),
            holes: None,
        };
        let layers = disk.layers().into_iter().map(facts).collect();
        Self { disk, layers }
    }

    /// Bytes of the disk.
    pub fn virtual_size(&self) -> u64 {
        self.disk.virtual_size()
    }

    /// The run that begins at `offset`, at most `length` bytes.
    ///
    /// # Errors
    /// As [`Disk::next_extent`].
    pub fn next(&mut self, offset: u64, length: u64) -> Result<Status> {
        Ok(self.next_with_extent(offset, length)?.0)
    }

    /// As [`Statuses::next`], with the extent that reads it.
    ///
    /// # Errors
    /// As [`Disk::next_extent`].
    pub fn next_with_extent(&mut self, offset: u64, length: u64) -> Result<(Status, Extent)> {
        let extent = self.disk.next_extent(offset, length)?;
        self.complete(extent)
    }

    /// As [`Statuses::next_with_extent`], of the top layer alone: what it leaves to the layer below is not present.
    ///
    /// # Errors
    /// As [`Disk::next_local_extent`].
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
    /// As [`Disk::next_extent`].
    pub fn next_merged(&mut self, offset: u64, length: u64) -> Result<Status> {
        let mut merged = self.next(offset, length)?;
        while merged.length < length {
            let next = self.next(offset + merged.length, length - merged.length)?;
            if !merged.continues_with(&next) {
                break;
            }
            merged.length += next.length;
        }
        Ok(merged)
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
        let layer = self.layers.get(extent.depth as usize);
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
        let Some(layer) = self.layers.get(status.depth as usize) else { return Ok(status) };
        if !layer.extended || layer.encrypted || status.length == 0 {
            return Ok(status);
        }
        let image = self.disk.image_mut().and_then(|image| image.image_at_depth_mut(status.depth));
        if let Some(image) = image {
            let (place, length) = image.next_place(status.start, status.length)?;
            status.offset = place.map(|place| place.get());
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
        let layers = self.disk.layers();
        let Some(layer) = layers.get(status.depth as usize) else { return Ok(status) };
        let file = layer.data();
        let found = file.next_extent(offset)?;
        if found.kind == StorageExtentKind::Hole {
            status.zero = true;
            // What lies behind the end of the file reads as zeros however long it is.
            if found.length == 0 || offset + found.length >= file.len()? {
                return Ok(status);
            }
        }
        status.length = status.length.min(found.length);
        Ok(status)
    }

    fn has_holes(&mut self, depth: u32) -> Result<bool> {
        let Some(layer) = self.layers.get_mut(depth as usize).filter(|layer| layer.qcow2) else { return Ok(false) };
        if let Some(known) = layer.holes {
            return Ok(known);
        }
        let image = self.disk.image_mut().and_then(|image| image.image_at_depth_mut(depth));
        let found = image.map_or(Ok(false), has_unbacked_clusters)?;
        layer.holes = Some(found);
        Ok(found)
    }
}

/// Whether more clusters are in use than the file has space for: metadata were preallocated.
fn has_unbacked_clusters(image: &mut Image<FileStorage>) -> Result<bool> {
    let cluster_size = image.geometry().cluster_size();
    let real = image.storage().allocated_bytes()? / cluster_size;
    let threshold = (real * 10 / 9).max(real + 2);
    let end = image.storage().len()?.div_ceil(cluster_size);
    if end < threshold {
        return Ok(false);
    }
    let mut used = 0;
    for cluster in 0..end {
        if used >= threshold || used + (end - cluster) < threshold {
            break;
        }
        used += u64::from(image.refcount(HostCluster::new(cluster))? > 0);
    }
    Ok(used >= threshold)
}
