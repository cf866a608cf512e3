//! Another virtual size.

use super::{Content, Image, Preallocation};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{GuestCluster, MAX_SNAPSHOTS, Snapshot};
use crate::storage::{Storage, ZeroMode};

impl<S: Storage> Image<S> {
    /// Changes the virtual size; new space reads as zeros, also over a longer backing file. Shrinking drops what lies
    /// beyond the new end and gives its space back, whatever the discard policy. Durable on return; after a cut before
    /// that, the disk has its old or its new size, and of what was to be cut off the backing file may show.
    ///
    /// A data file gets the new size too. Snapshots keep the size that they have on record.
    ///
    /// # Errors
    /// A size that is not a multiple of 512 or too large for the L1 table; an image with snapshots that have no size of
    /// their own (version 2); a bitmap that cannot have the new size; otherwise as [`Image::write_at`].
    pub fn resize(&mut self, size: u64) -> Result<()> {
        self.resize_with(size, Preallocation::Off)
    }

    /// As [`Image::resize`]; what is new is reserved as `mode` says. A raw data file gets at least
    /// [`Preallocation::Metadata`], so that what is written to it shows in the image.
    ///
    /// # Errors
    /// As [`Image::resize`]; preallocation of a disk that does not grow.
    pub fn resize_with(&mut self, size: u64, mode: Preallocation) -> Result<()> {
        if !size.is_multiple_of(512) {
            return Err(Error::invalid("the new size must be a multiple of 512"));
        }
        let old = self.virtual_size();
        if size < old && mode != Preallocation::Off {
            return Err(Error::invalid("preallocation can only be used for growing images"));
        }
        self.refuse_snapshots_without_size()?;
        self.begin_writing()?;
        self.start_resizing_bitmaps(size)?;
        let resized = if size < old { self.shrink(size) } else { self.grow(old, size, mode) };
        if resized.is_ok() || self.virtual_size() != old {
            // What fails when the new size is there already leaves bitmaps of that size.
            self.bitmaps_resized(old);
        }
        resized?;
        self.save_bitmaps()
    }

    /// Snapshots without a size on record have that of the image, and so would be resized too.
    fn refuse_snapshots_without_size(&self) -> Result<()> {
        let header = &self.header().header;
        if header.snapshot_count == 0 {
            return Ok(());
        }
        if self.geometry().version() < 3 {
            return Err(Error::unsupported("resizing an image of version 2 that has snapshots"));
        }
        let mut at = header.snapshots_offset;
        for index in 0..header.snapshot_count.min(MAX_SNAPSHOTS) {
            let mut fixed = [0u8; Snapshot::FIXED_LENGTH];
            self.storage.read_at(at, &mut fixed)?;
            if Snapshot::extra_data_length(&fixed)? < 16 {
                let error = Error::unsupported("resizing an image with a snapshot that has no size of its own");
                return Err(error.in_structure(Structure::SnapshotTable).at_index(u64::from(index)));
            }
            at = at.saturating_add(Snapshot::entry_length(&fixed)?);
        }
        Ok(())
    }

    fn grow(&mut self, old: u64, size: u64, mode: Preallocation) -> Result<()> {
        let grown = self
            .geometry()
            .with_virtual_size(size)
            .ok_or_else(|| Error::invalid("the virtual size is beyond what the format holds"))?;
        let raw = self.geometry().data_file() && self.header().header.autoclear.data_file_raw();
        let mode = if raw && mode == Preallocation::Off { Preallocation::Metadata } else { mode };
        self.metadata.resize_l1(&self.storage, grown.l1_entries())?;
        self.metadata.set_virtual_size(size)?;
        // The larger size must not be seen before what would show in the new space is covered with zeros.
        let covered = self
            .grow_data_file(old, size, raw)
            .and_then(|()| self.cover_new_space(old, size))
            .and_then(|()| self.preallocate_growth(old, size, mode))
            .and_then(|()| self.commit());
        let grown = covered.and_then(|()| {
            self.metadata.publish_size();
            self.flush()
        });
        if grown.is_err() {
            // The caller is told that it has the old size, and so is the next commit. What was mapped for the new space
            // goes, if that is possible: beyond the end nobody would find it.
            let geometry = *self.geometry();
            let dropped = self.drop_clusters(geometry.clusters_for(old), geometry.guest_clusters());
            self.metadata.set_virtual_size(old)?;
            self.metadata.publish_size();
            drop(dropped);
        }
        grown
    }

    /// Makes an external data file long enough for the disk.
    fn grow_data_file(&mut self, old: u64, size: u64, raw: bool) -> Result<()> {
        let Some(data_file) = self.data_file.as_ref().filter(|_| self.geometry().data_file()) else { return Ok(()) };
        let length = data_file.len()?;
        if !data_file.capabilities().grows {
            if length < size {
                return Err(ErrorKind::NoSpace("the data file is a device too small for the new size".into()).into());
            }
            if raw {
                data_file.write_zeroes(old, size.saturating_sub(old), ZeroMode::MayUnmap)?;
            }
        } else if raw && length > old && old < size {
            // What lies beyond the end of the disk is not part of it, and would show.
            data_file.set_len(old)?;
            data_file.set_len(size)?;
        } else if length < size {
            data_file.set_len(size)?;
        }
        self.data_unsynced = true;
        Ok(())
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
        if geometry.data_file() && self.header().header.autoclear.data_file_raw() {
            // The file would go on showing what the guest does not see any more. Its clusters are not counted, so they
            // cannot be lost behind the smaller size.
            self.metadata.set_virtual_size(size)?;
            self.metadata.publish_size();
            self.flush()?;
        }
        let first = geometry.clusters_for(size);
        // VM state of a snapshot that was applied lies beyond the end of the disk.
        let mapped = self.metadata.l1_len().saturating_mul(geometry.l2_entries());
        self.drop_clusters(first, geometry.guest_clusters().max(mapped))?;
        let kept_tables = match first.checked_sub(1) {
            None => 0,
            Some(last) => geometry.l1_index(GuestCluster::new(last)).saturating_add(1),
        };
        self.drop_tables(kept_tables, self.metadata.l1_len(), true)?;
        // First the mapping: behind a smaller size nobody would find what is left of it.
        self.commit()?;
        self.metadata.set_virtual_size(size)?;
        self.metadata.publish_size();
        self.flush()?;
        if let Some(data_file) = self.data_file.as_ref().filter(|_| geometry.data_file())
            && data_file.capabilities().grows
            && data_file.len()? > size
        {
            data_file.set_len(size)?;
        }
        self.cut_free_end()
    }

    /// Drops the L2 tables of some L1 entries, whose clusters have been released. `pass`: punch what becomes free.
    pub(super) fn drop_tables(&mut self, first: u64, end: u64, pass: bool) -> Result<()> {
        for l1_index in first..end.min(self.metadata.l1_len()) {
            self.metadata.drop_table(&self.storage, l1_index, pass)?;
        }
        Ok(())
    }

    /// Cuts the free clusters at the end of the file.
    pub(super) fn cut_free_end(&mut self) -> Result<()> {
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
