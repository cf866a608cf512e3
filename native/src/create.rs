//! Making new images by name.

use std::path::Path;
use std::sync::Arc;

use qcowkit_core::crypto::NewVolume;
use qcowkit_core::format::Name;
use qcowkit_core::image::{CreateOptions, Image, LayerFormat, OpenOptions, Preallocation};
use qcowkit_core::{Error, Result, Structure};

use crate::disk::Disk;
use crate::file::{FileAccess, FileStorage};
use crate::open::{lock_request, relative_to};

/// What is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Bytes of the disk, rounded up to 512.
    pub size: u64,
    /// The format, with what belongs to it.
    pub format: NewFormat,
    /// Whether what is made reaches the disk before the call returns, and later flushes do; see
    /// [`FileStorage::set_barriers`].
    pub durable: bool,
}

/// The format of a new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewFormat {
    /// A raw file. `Preallocation::Metadata` makes no sense for it.
    Raw(Preallocation),
    /// A qcow2 image.
    Qcow2(CreateOptions),
}

impl NewImage {
    /// Checks everything that can be checked before a file is touched.
    ///
    /// # Errors
    /// Options that are out of range or do not go together.
    pub fn validate(&self) -> Result<()> {
        let size =
            self.size.checked_next_multiple_of(512).ok_or_else(|| Error::invalid("the virtual size is too large"))?;
        match &self.format {
            NewFormat::Raw(Preallocation::Metadata) => Err(Error::invalid("unsupported preallocation mode: metadata")),
            NewFormat::Raw(_) => Ok(()),
            NewFormat::Qcow2(options) => options.validate(size).map(drop),
        }
    }

    /// The same, encrypted by a LUKS volume, if one is given. Raw files are never encrypted.
    #[must_use]
    pub fn encrypted(mut self, volume: Option<Arc<NewVolume>>) -> Self {
        if let NewFormat::Qcow2(options) = &mut self.format {
            options.encryption = volume;
        }
        self
    }

    /// Makes the image, in place of what the file held before, and opens it for writing. A file that is in use is left
    /// alone.
    ///
    /// # Errors
    /// As [`NewImage::validate`] (the file is not touched then); a file that cannot be made, is in use or is too small;
    /// no space.
    pub fn create(&self, path: impl AsRef<Path>, open: OpenOptions) -> Result<Disk> {
        let (storage, data) = self.create_files(path)?;
        match &self.format {
            NewFormat::Raw(preallocation) => Disk::create_raw(storage, self.size, *preallocation),
            NewFormat::Qcow2(options) => {
                let image = match data {
                    None => Image::create_with(storage, self.size, options, open)?,
                    Some(data) => Image::create_with_data_file(storage, data, self.size, options, open)?,
                };
                Ok(Disk::Qcow2(Box::new(image)))
            }
        }
    }

    /// The first half of [`NewImage::create`]: the empty file of the image, and its data file, with their locks.
    ///
    /// # Errors
    /// As there.
    pub fn create_files(&self, path: impl AsRef<Path>) -> Result<(FileStorage, Option<FileStorage>)> {
        self.validate()?;
        let path = path.as_ref();
        let storage = FileStorage::open(path, FileAccess::Create)?;
        storage.lock(lock_request(self.layer_format(), true))?;
        storage.set_barriers(self.durable);
        storage.clear().map_err(Error::from)?;
        let data = match &self.format {
            NewFormat::Qcow2(CreateOptions { data_file: Some(name), .. }) => {
                Some(self.create_data_file(path, name, &storage)?)
            }
            NewFormat::Qcow2(_) | NewFormat::Raw(_) => None,
        };
        Ok((storage, data))
    }

    /// Makes the data file where the image will look for it: its name is relative to the image, not to the current
    /// directory.
    fn create_data_file(&self, image: &Path, name: &str, beside: &FileStorage) -> Result<FileStorage> {
        let path = relative_to(image, &Name::from(name)).map_err(|error| error.in_structure(Structure::DataFile))?;
        let data = FileStorage::open(path, FileAccess::Create).map_err(Error::from)?;
        if data.identity()?.is_some() && data.identity()? == beside.identity()? {
            return Err(
                Error::invalid("the image and its data file are the same file").in_structure(Structure::DataFile)
            );
        }
        data.lock(lock_request(LayerFormat::Raw, true))?;
        data.set_barriers(self.durable);
        Ok(data)
    }

    /// The format alone.
    #[must_use]
    pub fn layer_format(&self) -> LayerFormat {
        match self.format {
            NewFormat::Raw(_) => LayerFormat::Raw,
            NewFormat::Qcow2(_) => LayerFormat::Qcow2,
        }
    }
}
