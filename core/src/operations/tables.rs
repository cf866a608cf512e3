//! Tables that stand outside the guest's way through the image: the bitmap directory. (The snapshot table is read on
//! the floor of the metadata.)

use alloc::vec::Vec;

use crate::error::Result;
use crate::format::{BitmapEntry, HeaderArea};
use crate::storage::ReadStorage;

/// The bitmap directory (section "Bitmap directory"), if the image has one that is consistent; otherwise nothing.
///
/// # Errors
/// A directory larger than the limit or than the file, an entry that does not parse, a storage that fails.
pub fn read_bitmaps(area: &HeaderArea, storage: &(impl ReadStorage + ?Sized)) -> Result<Vec<BitmapEntry>> {
    if area.header.autoclear.bitmaps() {
        // The geometry of an image that may not be opened for other reasons: bitmaps ask little of it.
        let geometry = area.validate_for_check(None)?;
        return crate::image::read_directory(area, &geometry, storage);
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{AutoclearFeatures, BitmapsExtension, Extension, Header};
    use crate::storage::MemoryStorage;

    #[test]
    fn a_bitmap_directory_larger_than_the_file_is_refused() {
        let mut header = Header::new(3, 16, 1 << 20);
        header.autoclear = AutoclearFeatures::BITMAPS;
        let mut area = HeaderArea::new(header);
        let bitmaps = BitmapsExtension { nb_bitmaps: 1, directory_size: 1 << 20, directory_offset: 0 };
        area.extensions.push(Extension::Bitmaps(bitmaps));
        let error = read_bitmaps(&area, &MemoryStorage::from_bytes(&[0; 512])).unwrap_err();
        assert!(matches!(error.kind(), crate::ErrorKind::Corrupt(_)), "{error}");
        area.header.autoclear = AutoclearFeatures::default();
        assert!(read_bitmaps(&area, &MemoryStorage::from_bytes(&[0; 512])).unwrap().is_empty());
    }
}
