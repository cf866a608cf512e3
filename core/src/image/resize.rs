//! Another virtual size.

use super::{Content, Image};
use crate::error::{Error, Result};
use crate::format::GuestCluster;
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// Changes the virtual size; new space reads as zeros, also over a longer backing file. Shrinking drops what lies
    /// beyond the new end and gives its space back, whatever the discard policy. Durable on return; after a cut before
    /// that, the disk has its old or its new size, and of what was to be cut off the backing file may show.
    ///
    /// # Errors
    /// A size that is not a multiple of 512 or too large for the L1 table; an image with snapshots or bitmaps, which
    /// would have to be resized too; otherwise as [`Image::write_at`].
    pub fn resize(&mut self, size: u64) -> Result<()> {
        if !size.is_multiple_of(512) {
            return Err(Error::invalid("the virtual size must be a multiple of 512 bytes"));
        }
        if self.header().header.snapshot_count > 0 {
            return Err(Error::unsupported("resizing an image that has snapshots"));
        }
        if self.header().bitmaps().is_some() {
            return Err(Error::unsupported("resizing an image that has persistent bitmaps"));
        }
        if self.geometry().data_file() {
            return Err(Error::unsupported("resizing an image with an external data file"));
        }
        self.begin_writing()?;
        let old = self.virtual_size();
        if size < old { self.shrink(size) } else { self.grow(old, size) }
    }

    fn grow(&mut self, old: u64, size: u64) -> Result<()> {
        let grown = self
            .geometry()
            .with_virtual_size(size)
            .ok_or_else(|| Error::invalid("the virtual size is beyond what the format holds"))?;
        self.metadata.resize_l1(&self.storage, grown.l1_entries())?;
        self.metadata.set_virtual_size(size)?;
        // The larger size must not be seen before what would show in the new space is covered with zeros.
        let covered = self.cover_new_space(old, size).and_then(|()| self.commit());
        let grown = covered.and_then(|()| {
            self.metadata.publish_size();
            self.flush()
        });
        if grown.is_err() {
            // The caller is told that it has the old size, and so is the next commit.
            self.metadata.set_virtual_size(old)?;
            self.metadata.publish_size();
        }
        grown
    }

    /// Zeroes what shows between two sizes: the backing file, the rest of the cluster in which the disk used to end, and
    /// what a cut during shrinking left mapped.
    fn cover_new_space(&mut self, old: u64, size: u64) -> Result<()> {
        let shown = self.backing.as_ref().map_or(old, |layer| layer.virtual_size()).min(size);
        let mut at = old;
        while at < size {
            let extent = self.next_local_extent(at, size.saturating_sub(at))?;
            let end = at.saturating_add(extent.length.max(1));
            match extent.content {
                Content::Zero { .. } => {}
                Content::Data { .. } | Content::Compressed { .. } => self.write_zeroes(at, extent.length, true)?,
                Content::Unallocated if at < shown => self.write_zeroes(at, end.min(shown).saturating_sub(at), true)?,
                Content::Unallocated => {}
            }
            at = end;
        }
        Ok(())
    }

    fn shrink(&mut self, size: u64) -> Result<()> {
        let geometry = *self.geometry();
        let first = geometry.clusters_for(size);
        self.drop_clusters(first, geometry.guest_clusters())?;
        let kept_tables = match first.checked_sub(1) {
            None => 0,
            Some(last) => geometry.l1_index(GuestCluster::new(last)).saturating_add(1),
        };
        for l1_index in kept_tables..self.metadata.l1_len() {
            self.metadata.drop_table(&self.storage, l1_index, true)?;
        }
        // First the mapping: behind a smaller size nobody would find what is left of it.
        self.commit()?;
        self.metadata.set_virtual_size(size)?;
        self.metadata.publish_size();
        self.flush()?;
        self.cut_free_end()
    }

    /// Cuts the free clusters at the end of the file.
    fn cut_free_end(&mut self) -> Result<()> {
        if !self.storage.capabilities().grows {
            return Ok(());
        }
        let length = self.storage.len()?;
        let end = self.metadata.end_of_use(&self.storage, self.geometry().clusters_for(length))?;
        let cut = self.geometry().host_start(end).get();
        if cut < length {
            self.storage.set_len(cut)?;
        }
        Ok(())
    }
}
