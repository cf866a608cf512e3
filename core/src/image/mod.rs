//! The guest's view of an image: open, create, map, read, write, write zeroes, discard, flush, close.
//!
//! Metadata are decided under `&mut self`, bytes move under `&self` (law 2): [`Image::next_extent`] and
//! [`Image::prepare_write`] decide, [`Image::read_extent`] and [`Image::write_planned`] move,
//! [`Image::commit_write`] links. [`Image::read_at`] and [`Image::write_at`] are these steps in a row.

mod amend;
mod bitmaps;
mod commit_into;
mod compressed;
mod create;
mod data_holes;
mod discard;
mod encryption;
mod look;
mod map;
mod mover;
mod open;
mod options;
mod preallocate;
mod raw_data;
mod read;
mod rebase;
mod resize;
mod snapshots;
mod write;

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Geometry, HeaderArea, HostCluster};
use crate::metadata::{DiscardPolicy, Metadata};
use crate::storage::Storage;

use encryption::Encryption;

pub use amend::AmendOptions;
pub(crate) use bitmaps::read_directory;
pub use bitmaps::{BitmapSummary, DirtyBits, DroppedBitmap, MAX_BITMAP_MEMORY};
pub use commit_into::{CommitPiece, CommitPlan, CommitReport};
pub use create::{CreateOptions, Preallocation};
pub use map::{Content, Extent, raw_extent};
pub use mover::Mover;
pub use open::{AllowNone, Found, LayerFormat, Opener, Reference, Role, read_header};
pub use options::{DetectZeroes, OpenOptions};
pub use rebase::{NewBacking, RebaseReport};
pub use snapshots::{NewSnapshot, SnapshotSelector};
pub use write::WritePlan;

/// An open image on a storage of type `S`, with the layers of its backing chain.
///
/// Closing is explicit: [`Image::close`] makes everything durable and gives the storage back. An image that is
/// dropped without it keeps its promise up to the last [`Image::flush`]; what came after may be lost or leaked, never
/// corrupt, and dirty bitmaps that record are marked as not to be trusted.
///
/// # Examples
/// ```
/// use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
/// use qcowkit_core::storage::MemoryStorage;
///
/// let mut image = Image::create(MemoryStorage::new(), 1 << 30, &CreateOptions::default())?;
/// image.write_at(123_456, b"hello")?;
/// let storage = image.close()?;
///
/// let mut image = Image::open(storage, OpenOptions::default().read_only())?;
/// let mut bytes = [0; 5];
/// image.read_at(123_456, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok::<(), qcowkit_core::Error>(())
/// ```
pub struct Image<S> {
    storage: S,
    metadata: Metadata,
    backing: Option<Layer<S>>,
    data_file: Option<S>,
    options: OpenOptions,
    /// What the guest data are encrypted with, if they are.
    encryption: Encryption,
    /// The data file was changed since its last barrier.
    data_unsynced: bool,
    /// Clusters of the data file may be mapped in memory that are not on storage.
    mapping_due: bool,
    /// The preparations of the first write are done.
    writing: bool,
    /// Plans of [`Image::prepare_write`] that did not come back yet.
    open_plans: u64,
    /// Dirty bitmaps that are kept right.
    recorder: bitmaps::Recorder,
    unpacked: Option<Unpacked>,
}

/// A layer of a backing chain.
#[derive(Debug)]
pub enum Layer<S> {
    /// A qcow2 image, opened read-only.
    Image(Box<Image<S>>),
    /// A raw image: host offset equals guest offset.
    Raw {
        /// Where the bytes are.
        storage: S,
        /// Bytes of the disk.
        length: u64,
    },
}

/// The compressed cluster that was read last, so that reads smaller than a cluster unpack it once.
struct Unpacked {
    depth: u32,
    host_offset: u64,
    bytes: Vec<u8>,
}

impl<S> core::fmt::Debug for Image<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Image").field("header", self.metadata.header()).finish_non_exhaustive()
    }
}

impl<S: Storage> Image<S> {
    /// Makes everything durable that was asked so far. At most two barriers, one when nothing was linked, none when
    /// nothing changed; one more when the refcount structures grew.
    ///
    /// # Errors
    /// When the storage fails. After a failed barrier the image refuses all further writes: what reached the disk is
    /// unknown.
    pub fn flush(&mut self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        self.refuse_poisoned()?;
        self.sync_data()?;
        self.metadata.flush(&self.storage)?;
        self.mapping_due = false;
        Ok(())
    }

    /// Writes what is dirty in the order of law 4: data in a data file before what makes them reachable.
    fn commit(&mut self) -> Result<()> {
        self.sync_data()?;
        self.metadata.commit(&self.storage)?;
        self.mapping_due = false;
        Ok(())
    }

    fn sync_data(&mut self) -> Result<()> {
        if self.data_unsynced
            && let Some(data_file) = &self.data_file
        {
            data_file.barrier().map_err(|error| self.metadata.poison(&error))?;
        }
        self.data_unsynced = false;
        Ok(())
    }

    /// Guest data were written: the next flush owes a barrier to where they are.
    fn note_data(&mut self) {
        if self.data_file.is_some() {
            self.data_unsynced = true;
        } else {
            self.metadata.note_write();
        }
    }

    /// Flushes, and stores the dirty bitmaps that record: what a program does when it is done with an image. It may go on
    /// writing afterwards, and must then finish again.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn finish(&mut self) -> Result<()> {
        self.flush()?;
        if self.options.read_only { Ok(()) } else { self.save_bitmaps() }
    }

    /// Finishes and gives the storage back.
    ///
    /// # Errors
    /// As [`Image::finish`]; the storage is then dropped.
    pub fn close(mut self) -> Result<S> {
        self.finish()?;
        Ok(self.storage)
    }

    /// The storage below, for its length and what else it can tell.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The header with its extensions.
    pub fn header(&self) -> &HeaderArea {
        self.metadata.header()
    }

    /// The sizes that follow from the header.
    pub fn geometry(&self) -> &Geometry {
        self.metadata.geometry()
    }

    /// Bytes of the virtual disk.
    pub fn virtual_size(&self) -> u64 {
        self.geometry().virtual_size()
    }

    /// The options that the image was opened with.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// Has discards from now on do what `policy` says, and ask nothing of the host where `discard` is off. Gives what
    /// held before.
    pub fn set_discard_policy(&mut self, policy: DiscardPolicy, discard: bool) -> (DiscardPolicy, bool) {
        self.metadata.set_pass_discard_other(policy.pass.other);
        self.options.metadata.pass_discard_other = policy.pass.other;
        let before = core::mem::replace(&mut self.options.policy, policy);
        (before, core::mem::replace(&mut self.options.discard, discard))
    }

    /// The layer below, if the image has a backing file and it was opened.
    pub fn backing(&self) -> Option<&Layer<S>> {
        self.backing.as_ref()
    }

    /// The external data file, if there is one.
    pub fn data_file(&self) -> Option<&S> {
        self.data_file.as_ref()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Layers from this one to the bottom of the chain.
    pub fn chain_length(&self) -> u32 {
        match &self.backing {
            None => 1,
            Some(Layer::Raw { .. }) => 2,
            Some(Layer::Image(image)) => image.chain_length().saturating_add(1),
        }
    }

    /// The refcount on record for a host cluster; 0 where none is recorded.
    ///
    /// # Errors
    /// When the refcount structures cannot be read.
    pub fn refcount(&mut self, cluster: HostCluster) -> Result<u64> {
        self.metadata.refcount(&self.storage, cluster)
    }

    fn refuse_poisoned(&self) -> Result<()> {
        self.metadata.refuse_poisoned()
    }

    /// Checks a guest range; gives its end.
    fn guest_range(&self, offset: u64, length: u64) -> Result<u64> {
        offset
            .checked_add(length)
            .filter(|&end| end <= self.virtual_size())
            .ok_or_else(|| Error::new(ErrorKind::OutOfRange).at_guest(offset))
    }

    /// Where guest data of this layer are stored.
    fn data_storage(&self) -> &S {
        self.data_file.as_ref().unwrap_or(&self.storage)
    }
}

impl<S: Storage> Layer<S> {
    /// Bytes of the layer's disk.
    pub fn virtual_size(&self) -> u64 {
        match self {
            Self::Image(image) => image.virtual_size(),
            Self::Raw { length, .. } => *length,
        }
    }

    /// The qcow2 image, unless the layer is raw.
    pub fn image(&self) -> Option<&Image<S>> {
        match self {
            Self::Image(image) => Some(image),
            Self::Raw { .. } => None,
        }
    }
}
