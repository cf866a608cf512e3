//! Tables that stand outside the guest's way through the image: the bitmap directory. (The snapshot table is read on
//! the floor of the metadata.)

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{BitmapEntry, HeaderArea, MAX_BITMAP_DIRECTORY_BYTES};
use crate::storage::ReadStorage;

/// The bitmap directory (section "Bitmap directory"), if the image has one that is consistent; otherwise nothing.
///
/// # Errors
/// A directory larger than the limit or than the file, an entry that does not parse, a storage that fails.
pub fn read_bitmaps(area: &HeaderArea, storage: &(impl ReadStorage + ?Sized)) -> Result<Vec<BitmapEntry>> {
    let Some(bitmaps) = area.consistent_bitmaps() else { return Ok(Vec::new()) };
    let at = |error: Error| error.in_structure(Structure::BitmapDirectory).at_host(bitmaps.directory_offset);
    if bitmaps.directory_size > MAX_BITMAP_DIRECTORY_BYTES.min(storage.len()?) {
        let what = format!("a bitmap directory of {} bytes", bitmaps.directory_size);
        return Err(at(Error::new(ErrorKind::Limit(what))));
    }
    let mut bytes = vec![0u8; usize::try_from(bitmaps.directory_size).unwrap_or(0)];
    storage.read_at(bitmaps.directory_offset, &mut bytes).map_err(|error| at(error.into()))?;
    BitmapEntry::parse_directory(&bytes, bitmaps.nb_bitmaps, bitmaps.directory_offset)
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
        assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}");
        area.header.autoclear = AutoclearFeatures::default();
        assert!(read_bitmaps(&area, &MemoryStorage::from_bytes(&[0; 512])).unwrap().is_empty());
    }
}
