//! Writing bitmaps: new tables and data beside the old, a new directory, and then the header names it.
//!
//! So the bitmaps of before are whole until those of afterwards are, and no cut leaves a mixture (law 4).

use alloc::vec::Vec;

use super::Recorder;
use super::bits::{ClusterBits, DirtyBits};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    BitmapEntry, BitmapFlags, BitmapTableEntry, BitmapsExtension, Geometry, HostOffset, MAX_BITMAP_BYTES,
    MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAP_TABLE_ENTRIES,
};
use crate::image::Image;
use crate::metadata::{Quarantined, Run, Touch};
use crate::storage::{Storage, ZeroMode};

/// A directory that is going to take the place of the one on storage.
pub(super) struct Change {
    /// The directory as it is going to be.
    pub(super) entries: Vec<BitmapEntry>,
    /// What the directory on storage says.
    before: Vec<BitmapEntry>,
    /// Clusters that only the new one uses.
    allocated: Vec<Run>,
    /// Clusters that only the old one used.
    released: Vec<Quarantined>,
}

impl<S: Storage> Image<S> {
    /// Stores the bits that are in memory, and takes the mark "in use" off. Recording ends with that; the next change of
    /// the disk begins it anew.
    pub(in crate::image) fn save_bitmaps(&mut self) -> Result<()> {
        if self.recorder.tracked.is_empty() {
            self.stop_recording();
            return Ok(());
        }
        let mut change = self.begin_change()?;
        let done = self.collect_saved(&mut change);
        self.end_change(change, done)
    }

    fn stop_recording(&mut self) {
        if self.recorder.active {
            self.recorder = Recorder::default();
            self.writing = false;
        }
    }

    fn collect_saved(&mut self, change: &mut Change) -> Result<()> {
        let tracked = core::mem::take(&mut self.recorder.tracked);
        let mut done = Ok(());
        for tracked in &tracked {
            if done.is_ok() && tracked.changed {
                done = self.replace_bits(change, tracked.index, &tracked.bits);
            }
            if let Some(entry) = change.entries.get_mut(tracked.index) {
                entry.flags = entry.flags.without(BitmapFlags::IN_USE);
            }
        }
        // Until the directory is stored they are only here.
        self.recorder.tracked = tracked;
        done
    }

    /// Reads the directory that is going to change.
    pub(super) fn begin_change(&mut self) -> Result<Change> {
        // What the guest wrote comes first: the steps below only order what they write themselves.
        self.commit()?;
        let entries = self.bitmap_entries()?;
        Ok(Change { before: entries.clone(), entries, allocated: Vec::new(), released: Vec::new() })
    }

    /// Stores the changed directory, or takes everything back where what led to it failed.
    pub(super) fn end_change(&mut self, change: Change, done: Result<()>) -> Result<()> {
        let mut change = change;
        let done = done.and_then(|()| self.store_directory(&mut change));
        let Err(error) = done else {
            // Nothing is marked as in use any more, whatever comes next.
            self.stop_recording();
            for release in change.released {
                // Of what is wrong with the refcounts of the old ones, a check tells.
                let touched = self.metadata.refuse_metadata(release.first, release.count, Touch::GuestData);
                if touched.is_ok() {
                    let _ = self.metadata.release(&self.storage, release);
                }
            }
            self.metadata.flush(&self.storage)?;
            return Ok(());
        };
        if !matches!(error.kind(), ErrorKind::Poisoned(_)) {
            for run in change.allocated {
                self.metadata.undo_allocation(&self.storage, run)?;
            }
        }
        Err(error)
    }

    /// Writes the bits of a bitmap to new clusters; the old ones are going to be released.
    pub(super) fn replace_bits(&mut self, change: &mut Change, index: usize, bits: &DirtyBits) -> Result<()> {
        let Some(entry) = change.entries.get(index) else { return Err(Error::invalid("no such bitmap")) };
        if entry.table_offset != 0 {
            let old = entry.clone();
            self.release_bits(change, &old);
        }
        let (table_offset, table_entries) = self.write_bits(change, bits)?;
        if let Some(entry) = change.entries.get_mut(index) {
            entry.table_offset = table_offset;
            entry.table_entries = table_entries;
        }
        Ok(())
    }

    /// Adds the clusters of a bitmap to what is going to be released. Of a table that is not sound nothing is: it may
    /// name what belongs to others, so that its clusters are left to be found as leaks.
    pub(super) fn release_bits(&mut self, change: &mut Change, entry: &BitmapEntry) {
        let geometry = *self.geometry();
        if entry.table_offset == 0 || !geometry.is_aligned(entry.table_offset) {
            return;
        }
        let Ok(table) = self.bitmap_table(entry) else { return };
        let pass_table = self.options.metadata.pass_discard_other;
        for content in table {
            if let BitmapTableEntry::Cluster(host) = content {
                change.released.push(Quarantined { first: geometry.host_cluster(host), count: 1, pass: true });
            }
        }
        change.released.push(Quarantined {
            first: geometry.host_cluster(HostOffset::new(entry.table_offset)),
            count: geometry.clusters_for(u64::from(entry.table_entries).saturating_mul(8)),
            pass: pass_table,
        });
    }

    /// Writes flags in place. An entry's flags lie in one sector, so that each is as before or as afterwards.
    pub(super) fn write_flags(&mut self, entries: &[BitmapEntry]) -> Result<()> {
        let Some(bitmaps) = self.header().consistent_bitmaps() else { return Ok(()) };
        let bytes = emit(entries)?;
        if u64::try_from(bytes.len()).ok() != Some(bitmaps.directory_size) {
            return Err(Error::corrupt(Structure::BitmapDirectory, "its length changed behind our back"));
        }
        self.storage.write_at(bitmaps.directory_offset, &bytes)?;
        self.metadata.barrier(&self.storage)
    }

    fn store_directory(&mut self, change: &mut Change) -> Result<()> {
        if change.entries == change.before {
            return Ok(());
        }
        if only_flags_differ(&change.entries, &change.before) {
            // The bits in memory are those on storage. Should this fail half-way, the next change reads them again.
            self.stop_recording();
            return self.write_flags(&change.entries);
        }
        let geometry = *self.geometry();
        if let Some(old) = self.header().consistent_bitmaps() {
            change.released.push(Quarantined {
                first: geometry.host_cluster(HostOffset::new(old.directory_offset)),
                count: geometry.clusters_for(old.directory_size),
                pass: self.options.metadata.pass_discard_other,
            });
        }
        if change.entries.is_empty() {
            return self.metadata.publish_bitmaps(&self.storage, None);
        }
        let bytes = emit(&change.entries)?;
        let directory_size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if directory_size > MAX_BITMAP_DIRECTORY_BYTES {
            return Err(Error::new(ErrorKind::Limit("the bitmap directory would exceed 64 MiB".into())));
        }
        let directory_offset = self.write_new(change, bytes, Structure::BitmapDirectory)?;
        let nb_bitmaps = u32::try_from(change.entries.len()).unwrap_or(u32::MAX);
        let extension = BitmapsExtension { nb_bitmaps, directory_size, directory_offset };
        self.metadata.publish_bitmaps(&self.storage, Some(extension))
    }

    /// Writes table and data of a bitmap to new clusters; gives the place and length of the table.
    fn write_bits(&mut self, change: &mut Change, bits: &DirtyBits) -> Result<(u64, u32)> {
        let geometry = *self.geometry();
        let count = bits.clusters(geometry.cluster_size());
        let entries = u32::try_from(count).ok().filter(|&entries| entries <= MAX_BITMAP_TABLE_ENTRIES);
        let entries = entries.ok_or_else(|| Error::new(ErrorKind::Limit("the bitmap would be too large".into())))?;
        let mut table = Vec::new();
        for index in 0..count {
            let content = match bits.cluster(index, geometry.cluster_size()) {
                ClusterBits::Zeros => BitmapTableEntry::AllZeros,
                ClusterBits::Ones => BitmapTableEntry::AllOnes,
                ClusterBits::Bytes(bytes) => {
                    BitmapTableEntry::Cluster(HostOffset::new(self.write_new(change, bytes, Structure::BitmapData)?))
                }
            };
            table.extend(content.encode().to_be_bytes());
        }
        Ok((self.write_new(change, table, Structure::BitmapTable)?, entries))
    }

    /// Writes bytes to new clusters in a row, the last filled up with zeros; gives their place.
    fn write_new(&mut self, change: &mut Change, bytes: Vec<u8>, structure: Structure) -> Result<u64> {
        let geometry = *self.geometry();
        let clusters = geometry.clusters_for(u64::try_from(bytes.len()).unwrap_or(u64::MAX)).max(1);
        let run = self.metadata.allocate_exact(&self.storage, clusters)?;
        change.allocated.push(run);
        let offset = geometry.host_start(run.first).get();
        // Most tables are short, most bits are clear: what is zero takes no space.
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
        let head = bytes.get(..used).unwrap_or(&bytes);
        let length = clusters.saturating_mul(geometry.cluster_size());
        let written = u64::try_from(head.len()).unwrap_or(u64::MAX).next_multiple_of(512).min(length);
        let mut sectors = head.to_vec();
        sectors.resize(usize::try_from(written).unwrap_or(head.len()), 0);
        self.storage
            .write_at(offset, &sectors)
            .and_then(|()| {
                self.storage.write_zeroes(
                    offset.saturating_add(written),
                    length.saturating_sub(written),
                    ZeroMode::MayUnmap,
                )
            })
            .map_err(|error| Error::from(error).in_structure(structure))?;
        self.metadata.note_write();
        Ok(offset)
    }
}

/// Entries of the table of a bitmap; `None` where they would be none, or too many.
pub(super) fn table_entries(entry: &BitmapEntry, geometry: &Geometry) -> Option<u32> {
    let bytes = geometry.virtual_size().div_ceil(entry.granularity()?).div_ceil(8);
    let entries = geometry.clusters_for(bytes);
    let fits = bytes <= MAX_BITMAP_BYTES
        && entries.saturating_mul(geometry.cluster_size()) <= MAX_BITMAP_BYTES
        && entries <= u64::from(MAX_BITMAP_TABLE_ENTRIES);
    u32::try_from(entries).ok().filter(|&entries| fits && entries > 0)
}

fn emit(entries: &[BitmapEntry]) -> Result<Vec<u8>> {
    let length = entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.emitted_length()));
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(MAX_BITMAP_DIRECTORY_BYTES)).unwrap_or(0));
    entries.iter().try_for_each(|entry| entry.emit(&mut bytes))?;
    Ok(bytes)
}

fn only_flags_differ(a: &[BitmapEntry], b: &[BitmapEntry]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| *a == BitmapEntry { flags: a.flags, ..b.clone() })
}
