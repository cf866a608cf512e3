//! Adding, removing and changing bitmaps, one durable step each.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::bits::DirtyBits;
use super::load::unique_names;
use super::store::{self, Change};
use super::{find, is_broken, problem_of};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    BitmapEntry, BitmapFlags, MAX_BITMAP_GRANULARITY_BITS, MAX_BITMAP_NAME, MAX_BITMAPS, MIN_BITMAP_GRANULARITY_BITS,
    Name,
};
use crate::image::Image;
use crate::storage::Storage;

/// A bitmap, or all of them, taken out because it could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DroppedBitmap {
    /// Its name; none where the directory itself was broken.
    pub name: Option<String>,
    /// What was wrong.
    pub problem: String,
    /// Its clusters could not be told from those of others, and are leaks now.
    pub leaks: bool,
}

impl<S: Storage> Image<S> {
    /// The granularity of a bitmap for which none is asked: the cluster size, but 4 KiB to 64 KiB, as QEMU has it.
    #[must_use]
    pub fn default_bitmap_granularity(&self) -> u64 {
        self.geometry().cluster_size().clamp(4096, 65536)
    }

    /// Adds a bitmap without marks, which records from the next change on. `granularity` is a power of two from 512 bytes
    /// to 2 GiB. Durable on return.
    ///
    /// # Errors
    /// A name that is empty, too long or taken; a granularity that is out of range, or too fine for the disk; an image of
    /// version 2, which has no bitmaps, or of no bytes; otherwise as [`Image::write_at`].
    pub fn add_bitmap(&mut self, name: &str, granularity: Option<u64>) -> Result<()> {
        let granularity = granularity.unwrap_or_else(|| self.default_bitmap_granularity());
        let bits = u8::try_from(granularity.trailing_zeros()).unwrap_or(u8::MAX);
        let range = MIN_BITMAP_GRANULARITY_BITS..=MAX_BITMAP_GRANULARITY_BITS;
        if !granularity.is_power_of_two() || !range.contains(&bits) {
            return Err(Error::invalid("Granularity must be power of 2 and at least 512"));
        }
        if name.is_empty() || name.len() > MAX_BITMAP_NAME {
            return Err(Error::invalid(if name.is_empty() {
                "Bitmap name cannot be empty".to_string()
            } else {
                format!("Name length exceeds maximum ({MAX_BITMAP_NAME} characters)")
            }));
        }
        if self.geometry().version() < 3 {
            return Err(Error::unsupported("Cannot store dirty bitmaps in qcow2 v2 files"));
        }
        let size = self.virtual_size();
        self.change_bitmaps(|image, change| {
            if change.entries.iter().any(|entry| entry.name == name) {
                return Err(Error::invalid(format!("Bitmap already exists: {name}")));
            }
            if u32::try_from(change.entries.len()).unwrap_or(u32::MAX) >= MAX_BITMAPS {
                return Err(Error::new(ErrorKind::Limit(format!(
                    "Maximum number of persistent bitmaps is already reached ({MAX_BITMAPS})"
                ))));
            }
            let entry = BitmapEntry {
                table_offset: 0,
                table_entries: 0,
                flags: BitmapFlags::AUTO,
                kind: BitmapEntry::DIRTY_TRACKING,
                granularity_bits: bits,
                extra_data: Vec::new(),
                name: Name::from(name),
            };
            if store::table_entries(&entry, image.geometry()).is_none() {
                return Err(Error::invalid("Too much space will be occupied by the bitmap. Use larger granularity"));
            }
            change.entries.push(entry);
            let index = change.entries.len().saturating_sub(1);
            image.replace_bits(change, index, &DirtyBits::new(size, bits))
        })
    }

    /// Removes a bitmap, be it good or not, and gives its space back. Durable on return.
    ///
    /// # Errors
    /// As [`Image::bitmap_bits`] for a name that does not exist; otherwise as [`Image::write_at`].
    pub fn remove_bitmap(&mut self, name: &str) -> Result<()> {
        self.change_bitmaps(|image, change| {
            let index = find(&change.entries, name)?;
            let entry = change.entries.remove(index);
            // Two of one name, or a table without sense: what it names may belong to others.
            let sound = entry.what_is_wrong(image.geometry()).is_none() || entry.flags.in_use();
            if sound {
                image.release_bits(change, &entry);
            }
            Ok(())
        })
    }

    /// Removes all marks of a bitmap. Durable on return.
    ///
    /// # Errors
    /// As [`Image::bitmap_bits`] and [`Image::write_at`].
    pub fn clear_bitmap(&mut self, name: &str) -> Result<()> {
        self.change_bits(name, DirtyBits::clear)
    }

    /// Adds the marks of `other` to a bitmap. Durable on return.
    ///
    /// # Errors
    /// A disk of another size; otherwise as [`Image::bitmap_bits`] and [`Image::write_at`].
    pub fn merge_into_bitmap(&mut self, name: &str, other: &DirtyBits) -> Result<()> {
        let size = self.virtual_size();
        if other.size() != size {
            return Err(Error::invalid(format!(
                "Bitmaps are of different sizes (destination size is {size}, source size is {}) and can't be merged",
                other.size()
            )));
        }
        self.change_bits(name, |bits| bits.merge(other))
    }

    /// Lets a bitmap record changes of the disk, or stops it. Durable on return.
    ///
    /// # Errors
    /// As [`Image::bitmap_bits`] and [`Image::write_at`].
    pub fn enable_bitmap(&mut self, name: &str, enable: bool) -> Result<()> {
        self.change_bitmaps(|image, change| {
            let index = find(&change.entries, name)?;
            image.load_usable(&change.entries, index)?;
            if let Some(entry) = change.entries.get_mut(index) {
                entry.flags =
                    if enable { entry.flags.with(BitmapFlags::AUTO) } else { entry.flags.without(BitmapFlags::AUTO) };
            }
            Ok(())
        })
    }

    /// Takes out what cannot be used: bitmaps that break the rules of the format, all of them where the directory does,
    /// and with `in_use` also those that were not saved. Nothing is done where there is nothing of that sort. Durable on
    /// return.
    ///
    /// Clusters of a table or directory that makes no sense are not freed: they may belong to others. They are leaks then,
    /// which a repair can tell for sure.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn drop_broken_bitmaps(&mut self, in_use: bool) -> Result<Vec<DroppedBitmap>> {
        self.begin_changing()?;
        let problem = match self.bitmap_entries() {
            Ok(_) if !self.has_void_extension() => return self.drop_broken_entries(in_use),
            Ok(_) => "a program that does not know bitmaps has written to the image since".to_string(),
            Err(error) if is_broken(&error) => problem_of(&error),
            Err(error) => return Err(error),
        };
        self.metadata.publish_bitmaps(&self.storage, None)?;
        self.recorder = super::Recorder::default();
        self.writing = false;
        Ok([DroppedBitmap { name: None, problem, leaks: true }].into())
    }

    /// What [`Image::drop_broken_bitmaps`] would take out.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn broken_bitmaps(&self, in_use: bool) -> Result<Vec<DroppedBitmap>> {
        let all = |problem| Ok([DroppedBitmap { name: None, problem, leaks: true }].into());
        let entries = match self.bitmap_entries() {
            Ok(_) if self.has_void_extension() => {
                return all("a program that does not know bitmaps has written to the image since".to_string());
            }
            Ok(entries) => entries,
            Err(error) if is_broken(&error) => return all(problem_of(&error)),
            Err(error) => return Err(error),
        };
        let found = self.broken_entries(&entries, in_use)?;
        Ok(found.into_iter().map(|(_, dropped)| dropped).collect())
    }

    /// The extension is there, but its autoclear bit says that it means nothing.
    fn has_void_extension(&self) -> bool {
        let area = self.header();
        !area.header.autoclear.bitmaps() && area.extensions.iter().any(crate::format::Extension::is_bitmaps)
    }

    fn drop_broken_entries(&mut self, in_use: bool) -> Result<Vec<DroppedBitmap>> {
        let entries = self.bitmap_entries()?;
        let found = self.broken_entries(&entries, in_use)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        self.change_bitmaps(|image, change| {
            for (index, dropped) in found.iter().rev() {
                let entry = change.entries.remove(*index);
                if !dropped.leaks {
                    image.release_bits(change, &entry);
                }
            }
            Ok(())
        })?;
        Ok(found.into_iter().map(|(_, dropped)| dropped).collect())
    }

    /// The bitmaps that cannot be used, by index.
    fn broken_entries(&self, entries: &[BitmapEntry], in_use: bool) -> Result<Vec<(usize, DroppedBitmap)>> {
        let mut found = Vec::new();
        for (index, (entry, unique)) in entries.iter().zip(unique_names(entries)).enumerate() {
            let unsaved = entry.flags.in_use();
            // Its rules hold also for one that was not saved.
            let judged = BitmapEntry { flags: entry.flags.without(BitmapFlags::IN_USE), ..entry.clone() };
            let rules = entry.what_is_wrong(self.geometry());
            let problem = match (rules, unsaved) {
                (None, true) => match self.bitmap_table(entry) {
                    Ok(_) if in_use => Some(("it was not saved".to_string(), false)),
                    Ok(_) => None,
                    Err(error) if is_broken(&error) => Some((problem_of(&error), true)),
                    Err(error) => return Err(error),
                },
                (_, _) => match self.load_entry(&judged, index, unique) {
                    Ok(_) => None,
                    Err(error) if is_broken(&error) => Some((problem_of(&error), true)),
                    Err(error) => return Err(error),
                },
            };
            if let Some((problem, leaks)) = problem {
                found.push((index, DroppedBitmap { name: Some(entry.name.to_string()), problem, leaks }));
            }
        }
        Ok(found)
    }

    fn change_bits(&mut self, name: &str, edit: impl FnOnce(&mut DirtyBits)) -> Result<()> {
        self.change_bitmaps(|image, change| {
            let index = find(&change.entries, name)?;
            let mut bits = image.load_usable(&change.entries, index)?;
            let before = bits.clone();
            edit(&mut bits);
            if bits == before { Ok(()) } else { image.replace_bits(change, index, &bits) }
        })
    }

    /// The bits of a bitmap that is going to be used by its name.
    pub(super) fn load_usable(&self, entries: &[BitmapEntry], index: usize) -> Result<DirtyBits> {
        let entry = entries.get(index);
        self.load_bits(entries, index).map_err(|error| match entry {
            Some(entry) if entry.flags.in_use() => Error::corrupt(
                Structure::BitmapDirectory,
                format!("Bitmap '{}' is inconsistent and cannot be used", entry.name),
            ),
            _ => error,
        })
    }

    /// Changes the directory in one step.
    pub(super) fn change_bitmaps(&mut self, edit: impl FnOnce(&mut Self, &mut Change) -> Result<()>) -> Result<()> {
        self.begin_changing()?;
        // What is in memory only has to be in the directory first.
        self.save_bitmaps()?;
        let mut change = self.begin_change()?;
        let done = edit(self, &mut change);
        self.end_change(change, done)
    }
}
