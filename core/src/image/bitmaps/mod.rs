//! Persistent dirty bitmaps (section "Bitmaps"): which parts of the disk were written, kept right by every change.
//!
//! Before the first change of guest data the bitmaps that record (flag `auto`) are read, and marked *in use* on storage;
//! from then on their bits are in memory, and [`Image::finish`] (so also [`Image::close`]) stores them and takes the
//! mark off. What ends without that leaves the mark, and nobody trusts such a bitmap any more: it can only be removed.
//! Bits are set before the data change, and stay set when the change fails. Bitmaps that do not record are not touched.
//!
//! A bitmap, or a directory, that breaks the rules of the format is never believed and never in the way: guest data are
//! read and written as without it. [`Image::drop_broken_bitmaps`] takes it out.

mod bits;
mod change;
mod load;
mod store;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Image;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{BitmapEntry, BitmapFlags};
use crate::storage::Storage;

pub use bits::DirtyBits;
pub use change::DroppedBitmap;
pub(crate) use load::read_directory;

/// Bytes of memory for the bits of all bitmaps that record in one image. Where more is needed, whole pages of 32,768
/// bits count as dirty: too much is copied then, never too little.
pub const MAX_BITMAP_MEMORY: u64 = 256 << 20;

/// The bitmaps whose bits are in memory.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// They are marked as in use on storage, and kept right from now on.
    active: bool,
    tracked: Vec<Tracked>,
}

/// A bitmap in memory.
#[derive(Debug)]
struct Tracked {
    /// Its place in the directory.
    index: usize,
    bits: DirtyBits,
    /// Storage has other bits, or a table for another size of the disk.
    changed: bool,
    /// Changes of the disk are marked in it.
    records: bool,
}

/// A bitmap, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BitmapSummary {
    /// The name.
    pub name: String,
    /// Guest bytes that one bit speaks for; 0 where the image says something impossible.
    pub granularity: u64,
    /// It records changes of the disk (flag `auto`).
    pub enabled: bool,
    /// It was not saved correctly, or somebody is changing it: it may be stale.
    pub in_use: bool,
    /// Why it cannot be used: it can only be removed.
    pub problem: Option<String>,
    /// Guest bytes that are marked; none where it cannot be used.
    pub dirty_bytes: Option<u64>,
}

impl<S: Storage> Image<S> {
    /// The bitmaps of the image, also those that cannot be used. While the image is being written, the bits are those in
    /// memory.
    ///
    /// # Errors
    /// A directory that breaks the rules of the format: see [`Image::drop_broken_bitmaps`]. A storage that fails.
    pub fn bitmaps(&self) -> Result<Vec<BitmapSummary>> {
        let entries = self.bitmap_entries()?;
        let tracked: BTreeMap<usize, &Tracked> =
            self.recorder.tracked.iter().map(|tracked| (tracked.index, tracked)).collect();
        let unique = load::unique_names(&entries);
        let summary = |(index, (entry, unique)): (usize, (&BitmapEntry, bool))| -> Result<BitmapSummary> {
            let tracked = tracked.get(&index);
            let in_use = entry.flags.in_use() && tracked.is_none();
            let dirty = match tracked {
                Some(tracked) => Ok(tracked.bits.dirty_bytes()),
                None => self.load_entry(entry, index, unique).map(|bits| bits.dirty_bytes()),
            };
            let (problem, dirty_bytes) = match dirty {
                Ok(bytes) => (None, Some(bytes)),
                Err(error) if is_broken(&error) => (Some(problem_of(&error)), None),
                Err(error) => return Err(error),
            };
            Ok(BitmapSummary {
                name: entry.name.to_string(),
                granularity: entry.granularity().unwrap_or(0),
                enabled: entry.flags.auto(),
                in_use,
                problem,
                dirty_bytes,
            })
        };
        entries.iter().zip(unique).enumerate().map(summary).collect()
    }

    /// The bits of one bitmap.
    ///
    /// # Errors
    /// As [`Image::bitmaps`]; also a bitmap that does not exist, or that cannot be used.
    pub fn bitmap_bits(&self, name: &str) -> Result<DirtyBits> {
        let entries = self.bitmap_entries()?;
        let index = find(&entries, name)?;
        match self.recorder.tracked.iter().find(|tracked| tracked.index == index) {
            Some(tracked) => Ok(tracked.bits.clone()),
            None => self.load_usable(&entries, index),
        }
    }

    /// From now on the guest's data change: bitmaps that record are marked as in use, durably, and read.
    pub(super) fn start_recording(&mut self) -> Result<()> {
        if self.recorder.active {
            return Ok(());
        }
        let mut entries = match self.bitmap_entries() {
            Ok(entries) => entries,
            // What cannot be read cannot be marked: without the autoclear bit nobody trusts it.
            Err(error) if is_broken(&error) => return self.metadata.distrust_bitmaps(&self.storage),
            Err(error) => return Err(error),
        };
        let recording = |entry: &BitmapEntry| entry.flags.auto() && !entry.flags.in_use();
        let tracked = self.track(&entries, recording)?;
        let mut changed = false;
        // Also those that could not be read: what happens now is not going to be in them.
        for entry in entries.iter_mut().filter(|entry| recording(entry)) {
            entry.flags = entry.flags.with(BitmapFlags::IN_USE);
            changed = true;
        }
        if changed {
            self.write_flags(&entries)?;
        }
        self.recorder = Recorder { active: true, tracked };
        Ok(())
    }

    /// Guest bytes are about to change, or may have changed.
    pub(super) fn mark_dirty(&mut self, offset: u64, length: u64) {
        let mut memory = 0u64;
        for tracked in self.recorder.tracked.iter_mut().filter(|tracked| tracked.records) {
            tracked.bits.set(offset, length);
            tracked.changed = true;
            memory = memory.saturating_add(tracked.bits.memory());
        }
        if memory > MAX_BITMAP_MEMORY
            && let Some(largest) = self.recorder.tracked.iter_mut().max_by_key(|tracked| tracked.bits.memory())
        {
            largest.bits.coarsen();
        }
    }

    /// Before the virtual size changes: reads every bitmap that can be used, recording or not, and marks it as in use,
    /// since its table may have another length at another size. Refuses a size that one of them cannot have.
    pub(super) fn start_resizing_bitmaps(&mut self, size: u64) -> Result<()> {
        let mut entries = match self.bitmap_entries() {
            Ok(entries) => entries,
            Err(error) if is_broken(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let resting = |entry: &BitmapEntry| !entry.flags.auto() && !entry.flags.in_use();
        let tracked = self.track(&entries, resting)?;
        let geometry = self.geometry().with_virtual_size(size);
        for entry in self.recorder.tracked.iter().chain(&tracked).filter_map(|tracked| entries.get(tracked.index)) {
            if geometry.is_none_or(|geometry| store::table_entries(entry, &geometry).is_none()) {
                let what = alloc::format!("the bitmap '{}' cannot have the size {size}: remove it first", entry.name);
                return Err(Error::invalid(what));
            }
        }
        for tracked in &tracked {
            if let Some(entry) = entries.get_mut(tracked.index) {
                entry.flags = entry.flags.with(BitmapFlags::IN_USE);
            }
        }
        if !tracked.is_empty() {
            self.write_flags(&entries)?;
            self.recorder.tracked.extend(tracked);
        }
        Ok(())
    }

    /// After the virtual size has changed: the bitmaps have the new one. New space counts as changed, because what an
    /// older copy of the disk has there need not be zeros.
    pub(super) fn bitmaps_resized(&mut self, old: u64) {
        let size = self.virtual_size();
        for tracked in &mut self.recorder.tracked {
            tracked.changed = true;
            tracked.bits.resize(size);
        }
        self.mark_dirty(old, size.saturating_sub(old));
    }

    fn bitmap_entries(&self) -> Result<Vec<BitmapEntry>> {
        read_directory(self.header(), self.geometry(), &self.storage)
    }

    /// Reads the bitmaps that `select` accepts. Those that cannot be used are left out.
    fn track(&self, entries: &[BitmapEntry], select: impl Fn(&BitmapEntry) -> bool) -> Result<Vec<Tracked>> {
        let mut tracked = Vec::new();
        let mut memory = self.recorder.tracked.iter().fold(0u64, |sum, t| sum.saturating_add(t.bits.memory()));
        let unique = load::unique_names(entries);
        for (index, (entry, unique)) in entries.iter().zip(unique).enumerate().filter(|(_, (entry, _))| select(entry)) {
            match self.load_entry(entry, index, unique) {
                Ok(mut bits) => {
                    memory = memory.saturating_add(bits.memory());
                    if memory > MAX_BITMAP_MEMORY {
                        memory = memory.saturating_sub(bits.memory());
                        bits.coarsen();
                        memory = memory.saturating_add(bits.memory());
                    }
                    // Pages that are all set cost something too, and 65,535 bitmaps can share one table of them.
                    if memory > MAX_BITMAP_MEMORY {
                        let what = alloc::format!(
                            "the bitmaps need more than {MAX_BITMAP_MEMORY} bytes of memory: remove some"
                        );
                        return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::BitmapDirectory));
                    }
                    let records = entry.flags.auto();
                    // Coarser bits are other bits; storage need not have them, but it may.
                    tracked.push(Tracked { index, bits, changed: false, records });
                }
                Err(error) if is_broken(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(tracked)
    }
}

/// The one bitmap of a name.
fn find(entries: &[BitmapEntry], name: &str) -> Result<usize> {
    let found = entries.iter().position(|entry| entry.name == name);
    found.ok_or_else(|| Error::invalid(alloc::format!("Dirty bitmap '{name}' not found")))
}

/// Whether an error says that a bitmap, or the directory, is no good, rather than that storage failed.
fn is_broken(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt(_) | ErrorKind::Limit(_) | ErrorKind::Unsupported(_))
}

/// The reason alone.
fn problem_of(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Corrupt(what) | ErrorKind::Limit(what) | ErrorKind::Unsupported(what) => what.clone(),
        other => other.to_string(),
    }
}
