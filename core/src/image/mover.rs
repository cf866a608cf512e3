//! Moving bytes while somebody else decides.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Content, Extent, Image, Layer, WritePlan};
use crate::error::{Error, Result};
use crate::metadata::Epochs;
use crate::storage::{Storage, StorageError};

/// A second handle on the layers of an open image that only moves bytes: what [`Image::next_extent`] found and what
/// [`Image::prepare_write`] planned. Threads share it while one of them at a time has the image itself.
///
/// Whoever moves bytes so has the image know by [`Image::set_epochs`] until when, and sees to it that two plans never
/// cover the same guest cluster at the same time. Stays good as long as the image keeps its layers.
#[derive(Debug)]
pub struct Mover<S>(Image<S>);

impl<S: Storage> Mover<S> {
    /// As [`Image::read_extent`].
    ///
    /// # Errors
    /// As there.
    pub fn read_extent(&self, extent: &Extent, into: &mut [u8]) -> Result<()> {
        self.0.read_extent(extent, into)
    }

    /// The whole unpacked cluster that an extent of compressed data is a part of.
    ///
    /// # Errors
    /// As [`Image::read_extent`]; also when the extent is of another kind.
    pub fn unpack(&self, extent: &Extent) -> Result<Vec<u8>> {
        match extent.content {
            Content::Compressed { range, .. } => self.0.unpack(extent, range),
            Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => {
                Err(Error::invalid("an extent that is not compressed"))
            }
        }
    }

    /// As [`Image::write_planned`].
    ///
    /// # Errors
    /// As there.
    pub fn write_planned(&self, plan: &WritePlan, from: &[u8]) -> Result<()> {
        self.0.write_planned(plan, from)
    }

    /// The storage of the image file, for its length and what else it can tell.
    pub fn storage(&self) -> &S {
        self.0.storage()
    }

    /// Waits until the guest data that were written so far are durable, in the image file or the data file.
    ///
    /// # Errors
    /// When the storage fails. What [`Image::take_data_barrier`] asked for must then go to [`Image::poison`].
    pub fn data_barrier(&self) -> Result<(), StorageError> {
        self.0.data_storage().barrier()
    }
}

impl<S: Storage + Clone> Image<S> {
    /// A handle for moving bytes. `S` is cloned: clones must be the same storage.
    pub fn mover(&self) -> Mover<S> {
        Mover(self.without_tables())
    }

    fn without_tables(&self) -> Self {
        Self {
            storage: self.storage.clone(),
            metadata: self.metadata.without_tables(),
            backing: self.backing.as_ref().map(|layer| match layer {
                Layer::Image(image) => Layer::Image(Box::new(image.without_tables())),
                Layer::Raw { storage, length } => Layer::Raw { storage: storage.clone(), length: *length },
            }),
            data_file: self.data_file.clone(),
            options: self.options.clone(),
            encryption: self.encryption.clone(),
            data_unsynced: false,
            mapping_due: false,
            writing: false,
            recorder: super::bitmaps::Recorder::default(),
            open_plans: 0,
            unpacked: None,
        }
    }
}

impl<S: Storage> Image<S> {
    /// Says who moves bytes meanwhile; see [`Epochs`].
    pub fn set_epochs(&mut self, epochs: Epochs) {
        self.metadata.set_epochs(epochs);
    }

    /// How often host clusters were released since the image was opened. As long as this stays the same, compressed
    /// data that were found at a place are there.
    pub fn releases(&self) -> u64 {
        self.metadata.releases()
    }

    /// The first half of a flush, for callers with threads of their own: whether a barrier for guest data is all that a
    /// flush would do. The caller then owes it ([`Mover::data_barrier`], no lock needed), and no other flush may be
    /// answered before it is done. Otherwise [`Image::flush`] is due.
    ///
    /// Entries that change meanwhile do not name those data: what was written to new places asks for its own barrier
    /// when it is committed.
    ///
    /// # Errors
    /// When an earlier barrier failed.
    pub fn take_data_barrier(&mut self) -> Result<bool> {
        self.refuse_poisoned()?;
        let (image, data) = (self.metadata.is_unsynced(), self.data_unsynced);
        if !self.metadata.is_settled() || image == data {
            return Ok(false);
        }
        if self.data_file.is_some() != data {
            return Ok(false);
        }
        self.metadata.note_barrier();
        self.data_unsynced = false;
        Ok(true)
    }

    /// After a barrier that failed it is unknown what the disk holds: everything is refused from now on.
    pub fn poison(&mut self, error: &StorageError) -> Error {
        self.metadata.poison(error)
    }
}
