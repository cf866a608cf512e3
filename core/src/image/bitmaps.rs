//! Persistent bitmaps that this image does not maintain yet: they are marked as not to be trusted before the first
//! change (section "Bitmap directory", flag `in_use`).

use alloc::vec;
use alloc::vec::Vec;

use super::Image;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{BitmapEntry, BitmapFlags, MAX_BITMAP_DIRECTORY_BYTES};
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// Marks every bitmap that records guest writes as *in use*, durably. Bitmaps that are switched off (flag `auto`
    /// unset) record a time in the past and stay true.
    pub(super) fn invalidate_bitmaps(&mut self) -> Result<()> {
        let Some(bitmaps) = self.header().consistent_bitmaps() else { return Ok(()) };
        if bitmaps.directory_size > MAX_BITMAP_DIRECTORY_BYTES {
            return Err(Error::new(ErrorKind::Limit("bitmap directory larger than 64 MiB".into()))
                .in_structure(Structure::BitmapDirectory));
        }
        let mut bytes = vec![0u8; usize::try_from(bitmaps.directory_size).unwrap_or(0)];
        self.storage.read_at(bitmaps.directory_offset, &mut bytes)?;
        let Ok(mut entries) = BitmapEntry::parse_directory(&bytes, bitmaps.nb_bitmaps, bitmaps.directory_offset) else {
            // A directory that cannot be read cannot be marked: without the autoclear bit nobody trusts it.
            let autoclear = self.header().header.autoclear.without(crate::format::AutoclearFeatures::BITMAPS);
            self.metadata.header_mut().header.autoclear = autoclear;
            return self.commit();
        };
        let mut changed = false;
        for entry in &mut entries {
            if entry.flags.contains(BitmapFlags::AUTO) && !entry.flags.contains(BitmapFlags::IN_USE) {
                entry.flags = entry.flags.with(BitmapFlags::IN_USE);
                changed = true;
            }
        }
        if !changed {
            return Ok(());
        }
        let mut marked = Vec::with_capacity(bytes.len());
        for entry in &entries {
            entry.emit(&mut marked)?;
        }
        // Flags alone differ, so the length is the same and each sector is right, old or new.
        self.storage.write_at(bitmaps.directory_offset, &marked)?;
        self.metadata.barrier(&self.storage)
    }
}
