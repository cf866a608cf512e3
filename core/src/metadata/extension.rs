//! The bitmaps extension of the header: which bitmaps the image has.

use super::Metadata;
use crate::error::Result;
use crate::format::{AutoclearFeatures, BitmapsExtension, Extension, HeaderArea};
use crate::storage::Storage;

impl Metadata {
    /// Makes the header name these bitmaps, or none; durable on return. What they consist of has been allocated and
    /// written, and what they replace is released afterwards.
    ///
    /// # Errors
    /// As [`Metadata::replace_header`]: no room in the header, or a storage that fails.
    pub(crate) fn publish_bitmaps(&mut self, storage: &impl Storage, new: Option<BitmapsExtension>) -> Result<()> {
        let mut area = self.header.clone();
        name_bitmaps(&mut area, new);
        // So that a header without room is refused before anything is written.
        area.emit()?;
        self.make_durable(storage)?;
        area.header = self.header.header.clone();
        name_bitmaps(&mut area, new);
        self.replace_header(storage, &area)
    }

    /// Clears the autoclear bit of the bitmaps, durably: nobody trusts them any more. The extension stays.
    pub(crate) fn distrust_bitmaps(&mut self, storage: &impl Storage) -> Result<()> {
        let header = &mut self.header_mut().header;
        header.autoclear = header.autoclear.without(AutoclearFeatures::BITMAPS);
        self.commit(storage)
    }

    /// Everything that was written so far, and the refcounts for it, is there before anything that names it.
    fn make_durable(&mut self, storage: &impl Storage) -> Result<()> {
        self.commit(storage)?;
        self.write_unreachable(storage)?;
        self.barrier(storage)?;
        self.link_refcounts(storage)
    }
}

/// Puts the extension into a header, or takes it out. A new one comes first, where the sector that is written whole has
/// room for it.
fn name_bitmaps(area: &mut HeaderArea, new: Option<BitmapsExtension>) {
    let place = area.extensions.iter().position(Extension::is_bitmaps);
    area.extensions.retain(|extension| !extension.is_bitmaps());
    let autoclear = area.header.autoclear;
    area.header.autoclear = match new {
        Some(new) => {
            area.extensions.insert(place.unwrap_or(0), Extension::Bitmaps(new));
            autoclear.with(AutoclearFeatures::BITMAPS)
        }
        None => autoclear.without(AutoclearFeatures::BITMAPS),
    };
}
