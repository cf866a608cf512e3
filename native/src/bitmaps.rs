//! Copying dirty bitmaps from one image to another, as `qemu-img convert --bitmaps` does.

use qcowkit_core::image::{BitmapSummary, Image};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, ErrorKind};

/// The bitmaps of an image that can be copied, and those that cannot.
///
/// # Errors
/// As [`Image::bitmaps`].
pub fn copyable<S: Storage>(source: &Image<S>) -> Result<(Vec<BitmapSummary>, Vec<BitmapSummary>), Error> {
    Ok(source.bitmaps()?.into_iter().partition(|bitmap| bitmap.problem.is_none()))
}

/// What could not be done to the target.
#[derive(Debug, Clone)]
pub enum CopyError {
    /// The bits of a bitmap of the source could not be read.
    Read(String, Error),
    /// The bitmap of this name could not be made.
    Create(String, Error),
    /// It was made, but could not be filled.
    Populate(String, Error),
}

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (verb, name, error) = match self {
            Self::Read(name, error) => ("read", name, error),
            Self::Create(name, error) => ("create", name, error),
            Self::Populate(name, error) => ("populate", name, error),
        };
        write!(f, "Failed to {verb} bitmap {name}: ")?;
        match error.kind() {
            ErrorKind::InvalidArgument(what) | ErrorKind::Unsupported(what) => f.write_str(what),
            _ => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for CopyError {}

/// Gives `target` these bitmaps of `source`, with what is marked in them, recording or not as there. To be done after the
/// data were copied, or the copying would be recorded.
///
/// # Errors
/// A bitmap of the name that the target has already, disks of different sizes; otherwise as [`Image::add_bitmap`].
pub fn copy<A: Storage, B: Storage>(
    source: &Image<A>,
    target: &mut Image<B>,
    bitmaps: &[BitmapSummary],
) -> Result<(), CopyError> {
    for bitmap in bitmaps {
        let name = &bitmap.name;
        let bits = source.bitmap_bits(name).map_err(|error| CopyError::Read(name.clone(), error))?;
        let added = target.add_bitmap(name, Some(bitmap.granularity));
        added.map_err(|error| CopyError::Create(name.clone(), error))?;
        let filled = target.merge_into_bitmap(name, &bits).and_then(|()| match bitmap.enabled {
            true => Ok(()),
            false => target.enable_bitmap(name, false),
        });
        filled.map_err(|error| CopyError::Populate(name.clone(), error))?;
    }
    Ok(())
}
