//! What each part of a disk is, as QEMU's block layer tells it, for disks in files.

use qcowkit_core::Result;
use qcowkit_core::format::HostOffset;
use qcowkit_core::image::Extent;
use qcowkit_core::storage::{ReadStorage, StorageExtent};

use crate::disk::{Disk, LayerView};

pub use qcowkit_core::operations::status::{Status, StatusDisk, StatusLayer, Statuses, has_unbacked_clusters};

impl StatusDisk for Disk {
    fn virtual_size(&self) -> u64 {
        Self::virtual_size(self)
    }

    fn status_layers(&self) -> Vec<StatusLayer> {
        let facts = |layer: LayerView<'_>| match layer {
            LayerView::Qcow2(image) => StatusLayer::of_image(image),
            LayerView::Raw(_, size) => StatusLayer { size, qcow2: false, encrypted: false, extended: false },
        };
        self.layers().into_iter().map(facts).collect()
    }

    fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        Self::next_extent(self, offset, length)
    }

    fn next_local_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        Self::next_local_extent(self, offset, length)
    }

    fn next_place(&mut self, depth: u32, offset: u64, length: u64) -> Result<Option<(Option<HostOffset>, u64)>> {
        let image = self.image_mut().and_then(|image| image.image_at_depth_mut(depth));
        image.map(|image| image.next_place(offset, length)).transpose()
    }

    fn host_extent(&self, depth: u32, host_offset: u64) -> Result<(StorageExtent, u64)> {
        let layers = self.layers();
        let layer = layers.get(depth as usize).ok_or_else(|| qcowkit_core::Error::invalid("no such layer"))?;
        let file = layer.data();
        Ok((file.next_extent(host_offset)?, file.len()?))
    }

    fn may_have_holes(&mut self, depth: u32) -> Result<bool> {
        let image = self.image_mut().and_then(|image| image.image_at_depth_mut(depth));
        let Some(image) = image else { return Ok(false) };
        let allocated = image.storage().allocated_bytes()?;
        has_unbacked_clusters(image, allocated)
    }
}
