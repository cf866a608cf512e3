//! What the example programs share: an image to show something on when none is named.

use std::path::{Path, PathBuf};

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::Result;
use qcowkit_core::image::{CreateOptions, Image};

/// An image in the directory for temporary files, removed with this value.
#[derive(Debug)]
pub struct SampleImage(PathBuf);

impl SampleImage {
    /// Makes an image of 16 MiB with data, stretches of zeros, and gaps where data were discarded.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(name: &str) -> Result<Self> {
        let sample = Self(std::env::temp_dir().join(format!("qcowkit-{name}-{}.qcow2", std::process::id())));
        let storage = FileStorage::open(&sample.0, FileAccess::CreateNew)?;
        let mut image = Image::create(storage, 16 << 20, &CreateOptions::default())?;
        image.write_at(0, &vec![b'q'; 4 << 20])?;
        image.write_at(4 << 20, &vec![0; 1 << 20])?;
        image.discard(1 << 20, 640 << 10)?;
        image.discard(3 << 20, 192 << 10)?;
        image.close()?;
        Ok(sample)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SampleImage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
