//! What an image in a file says of itself, with what the file system adds: all of `qemu-img info`.

use std::path::Path;

use qcowkit_core::image::Image;
use qcowkit_core::operations::info::ImageInfo;
use qcowkit_core::storage::{ReadStorage, Storage, StorageError};
use serde::Serialize;

use crate::file::FileStorage;

/// An image with its file. In JSON the names and the shape are those of `qemu-img info --output=json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FileImageInfo {
    /// The files that hold the image.
    pub children: Vec<Child>,
    /// The name that the image was opened by.
    pub filename: String,
    /// Bytes that the file takes on the host.
    pub actual_size: u64,
    /// Where the backing file is, seen from here: its name, and the image's folder before it if that is relative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// What the image itself says.
    #[serde(flatten)]
    pub image: ImageInfo,
}

/// A file that holds an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Child {
    /// What it is to the image: "file".
    pub name: &'static str,
    /// The file itself.
    pub info: FileInfo,
}

/// A file, as a raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FileInfo {
    /// Always empty: nothing lies below a file.
    pub children: Vec<Child>,
    /// Bytes of the file, rounded up to a sector.
    pub virtual_size: u64,
    /// Its name.
    pub filename: String,
    /// "file" or "host_device".
    pub format: &'static str,
    /// Bytes that it takes on the host.
    pub actual_size: u64,
    /// QEMU's envelope, empty for files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FileSpecific>,
    /// Always false.
    pub dirty_flag: bool,
}

/// QEMU's envelope for what one kind of file has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSpecific {
    /// "file" or "host_device".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Nothing.
    pub data: Nothing,
}

/// An object without members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Nothing {}

/// Everything about an open image; its backing file need not be open.
///
/// # Errors
/// When tables of the image cannot be read, or the system does not tell the file's size.
pub fn describe(image: &Image<FileStorage>) -> Result<FileImageInfo, qcowkit_core::Error> {
    describe_in(image, file_info(image.storage())?, image.storage().path())
}

/// As [`describe`], of an image that need not lie in a file: `file` tells of what it lies in, and names of backing
/// files are relative to the folder of `place`.
///
/// # Errors
/// When tables of the image cannot be read.
pub fn describe_in<S: Storage>(
    image: &Image<S>,
    file: FileInfo,
    place: &Path,
) -> Result<FileImageInfo, qcowkit_core::Error> {
    let info = ImageInfo::read(image.header(), image.storage())?;
    let backing = info.backing_filename.as_deref();
    Ok(FileImageInfo {
        filename: file.filename.clone(),
        actual_size: file.actual_size,
        full_backing_filename: backing.map(|name| full_name(place, name)),
        children: vec![Child { name: "file", info: file }],
        image: info,
    })
}

impl FileInfo {
    /// Of bytes that are no file of this machine, under a name for people: all of them take space.
    #[must_use]
    pub fn of_bytes(name: String, length: u64) -> Self {
        Self {
            children: Vec::new(),
            virtual_size: length.next_multiple_of(512),
            filename: name,
            format: "file",
            actual_size: length,
            format_specific: Some(FileSpecific { kind: "file", data: Nothing {} }),
            dirty_flag: false,
        }
    }
}

/// A file, as a raw disk.
///
/// # Errors
/// When the system does not tell its size.
pub fn file_info(storage: &FileStorage) -> Result<FileInfo, StorageError> {
    let kind = if storage.capabilities().block_device { "host_device" } else { "file" };
    Ok(FileInfo {
        children: Vec::new(),
        virtual_size: storage.len()?.next_multiple_of(512),
        filename: storage.path().to_string_lossy().into_owned(),
        format: kind,
        actual_size: storage.allocated_bytes()?,
        format_specific: Some(FileSpecific { kind, data: Nothing {} }),
        dirty_flag: false,
    })
}

/// The name of a backing file as seen from the current folder. Names with a protocol (`nbd:`) stand as they are.
#[must_use]
pub fn full_name(image: &Path, backing: &str) -> String {
    match image.parent() {
        Some(folder) if crate::open::protocol(backing.as_bytes()).is_none() => {
            folder.join(backing).to_string_lossy().into_owned()
        }
        _ => backing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_backing_name_is_relative_to_the_image() {
        let full = |image, backing| full_name(Path::new(image), backing);
        assert_eq!(full("a.qcow2", "b"), "b");
        assert_eq!(full("x/a.qcow2", "b"), "x/b");
        assert_eq!(full("x/a.qcow2", "/y/b"), "/y/b");
        assert_eq!(full("x/a.qcow2", "nbd:localhost:1"), "nbd:localhost:1");
        assert_eq!(full("x/a.qcow2", "./b:c"), "x/./b:c");
    }
}
