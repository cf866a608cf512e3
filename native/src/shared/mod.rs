//! One open image for many threads.

mod disk;
mod gate;
mod together;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qcowkit_core::format::Geometry;
use qcowkit_core::image::{Content, DetectZeroes, Extent, Image, Mover, OpenOptions};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, ErrorKind, Result};

pub use disk::SharedDisk;

use gate::{Claim, Gate};

/// The primitives that [`gate`] is built on.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
}

/// With more bytes than this written since the last flush, the disk gets to work on them before the lock is taken.
const EARLY_BARRIER: u64 = 4 << 20;

/// Zeros that are written as bytes go out in pieces of this size.
const ZEROS: usize = 1 << 20;

/// An open image that many threads read and write at the same time.
///
/// Each call is as the one of [`Image`] of the same name. What calls that overlap in time leave of a range that two of
/// them change is what either of them wrote, per sector. A lock is held while it is decided where bytes are and where
/// they go; they move without it, so that reads and writes of different clusters go on side by side. While somebody
/// reads a cluster, it is neither punched nor given to another part of the disk.
///
/// Discards and what else changes tables alone is done under the lock, one L2 table at a time; so are the barriers of a
/// commit, which order these changes. The barrier that only makes guest data durable is waited for without it.
///
/// # Examples
/// ```
/// use qcowkit::file::{FileAccess, FileStorage};
/// use qcowkit::shared::SharedImage;
/// use qcowkit_core::image::{CreateOptions, Image};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("disk.qcow2");
/// let storage = FileStorage::open(&path, FileAccess::CreateNew)?;
/// let image = SharedImage::new(Image::create(storage, 1 << 30, &CreateOptions::default())?);
/// std::thread::scope(|scope| {
///     for n in 0..4u8 {
///         let image = &image;
///         scope.spawn(move || image.write_at(u64::from(n) << 20, &[n; 4096]).unwrap());
///     }
/// });
/// let mut bytes = [0; 4096];
/// image.read_at(3 << 20, &mut bytes)?;
/// assert_eq!(bytes, [3; 4096]);
/// image.close()?;
/// # Ok::<(), qcowkit_core::Error>(())
/// ```
#[derive(Debug)]
pub struct SharedImage<S> {
    gate: Gate<Image<S>>,
    mover: Mover<S>,
    geometry: Geometry,
    options: OpenOptions,
    has_backing: bool,
    /// Encrypted data must not change while they are read: half a sector of old bytes and half of new ones decrypt to
    /// neither.
    encrypted: bool,
    /// Bytes written since the last flush.
    written: AtomicU64,
    /// One flush at a time: a second one must not be answered while the barrier of the first is under way.
    flushing: Mutex<()>,
    unpacked: Mutex<Vec<Unpacked>>,
    /// Where the last read ended that found compressed data; `u64::MAX` when the last one found none.
    packed_until: AtomicU64,
}

/// A compressed cluster that was unpacked last, so that reads smaller than a cluster unpack it once, or one that is likely
/// to be read next.
#[derive(Debug, Clone)]
struct Unpacked {
    depth: u32,
    host_offset: u64,
    /// [`Image::releases`] when it was found: as long as that stays, the place holds the same.
    releases: u64,
    bytes: Arc<[u8]>,
}

impl<S: Storage + Clone> SharedImage<S> {
    /// Shares an image. Clones of `S` must be the same storage.
    pub fn new(image: Image<S>) -> Self {
        Self {
            mover: image.mover(),
            geometry: *image.geometry(),
            options: image.options().clone(),
            has_backing: image.header().backing_file.is_some(),
            encrypted: image.header().header.crypt_method != 0,
            gate: Gate::new(image),
            written: AtomicU64::new(0),
            flushing: Mutex::new(()),
            unpacked: Mutex::default(),
            packed_until: AtomicU64::new(u64::MAX),
        }
    }

    /// Does something that needs the image itself: what is done with whole images, changes of its shape. Nobody reads or
    /// writes meanwhile, as the exclusive reference says.
    pub fn alone<R>(&mut self, does: impl FnOnce(&mut Image<S>) -> R) -> R {
        // Every ticket was given back: what was released is of interest to nobody.
        self.decide(|_| ());
        let image = self.gate.get_mut();
        let done = does(image);
        self.mover = image.mover();
        self.geometry = *image.geometry();
        self.options = image.options().clone();
        self.has_backing = image.header().backing_file.is_some();
        self.encrypted = image.header().header.crypt_method != 0;
        self.unpacked.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        done
    }
}

impl<S: Storage> SharedImage<S> {
    /// Bytes of the virtual disk.
    pub fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size()
    }

    /// The sizes that follow from the header.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The options that the image was opened with.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The storage of the image file, for its length and what else it can tell.
    pub fn storage(&self) -> &S {
        self.mover.storage()
    }

    /// As [`Image::read_at`].
    ///
    /// # Errors
    /// As there.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.with_extents(offset, into.len() as u64, |extents, releases| self.read_parts(extents, releases, into))
    }

    /// Finds where a range is, and has `read` move its bytes: what was found stays meanwhile. `read` is given the extents,
    /// and [`Image::releases`] when they were found.
    fn with_extents(&self, offset: u64, length: u64, read: impl FnOnce(&[Extent], u64) -> Result<()>) -> Result<()> {
        // A hole that a discard makes in a cluster that it keeps would be decrypted as if it were data.
        let claimed = self.encrypted && length > 0 && self.guest_range(offset, length).is_ok();
        let _claim = claimed.then(|| self.claim(offset, length));
        let (found, _ticket) = self.gate.decide_to_move(|image, epochs| {
            image.set_epochs(core_epochs(epochs));
            Ok::<_, Error>((image.map(offset, length)?, image.releases()))
        });
        let (extents, releases) = found?;
        read(&extents, releases)
    }

    /// Fills memory with what extents that were found together hold, one after the other.
    fn read_parts(&self, extents: &[Extent], releases: u64, into: &mut [u8]) -> Result<()> {
        let mut rest = into;
        for extent in extents {
            let (head, tail) = rest.split_at_mut(extent.length as usize);
            self.read_part(extent, releases, head)?;
            rest = tail;
        }
        Ok(())
    }

    fn read_part(&self, extent: &Extent, releases: u64, into: &mut [u8]) -> Result<()> {
        match extent.content {
            Content::Compressed { .. } => self.read_packed(extent, releases, into),
            Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => self.mover.read_extent(extent, into),
        }
    }

    /// The unpacked cluster at a place, if it was kept and the place holds the same.
    fn kept(&self, depth: u32, host_offset: u64, releases: u64) -> Option<Arc<[u8]>> {
        let unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = unpacked
            .iter()
            .find(|kept| (kept.depth, kept.host_offset, kept.releases) == (depth, host_offset, releases));
        kept.map(|kept| Arc::clone(&kept.bytes))
    }

    fn read_packed(&self, extent: &Extent, releases: u64, into: &mut [u8]) -> Result<()> {
        let Content::Compressed { range, skip } = extent.content else { return self.mover.read_extent(extent, into) };
        let (depth, host_offset) = (extent.depth, range.offset.get());
        let kept = self.kept(depth, host_offset, releases);
        let bytes = match kept {
            Some(kept) => kept,
            // Whole clusters are unpacked where they belong: nothing of them is left to be read next.
            None if skip == 0 && into.len() as u64 == self.geometry.cluster_size() => {
                return self.mover.read_extent(extent, into);
            }
            None => {
                let bytes: Arc<[u8]> = self.mover.unpack(extent)?.into();
                let unpacked = Unpacked { depth, host_offset, releases, bytes: Arc::clone(&bytes) };
                *self.unpacked.lock().unwrap_or_else(PoisonError::into_inner) = vec![unpacked];
                bytes
            }
        };
        let from = bytes.get(skip as usize..).unwrap_or(&[]);
        let there = from.len().min(into.len());
        into[..there].copy_from_slice(&from[..there]);
        into[there..].fill(0);
        Ok(())
    }

    /// As [`Image::write_at`].
    ///
    /// # Errors
    /// As there.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        let detect = self.options.detect_zeroes;
        if detect != DetectZeroes::Off && qcowkit_core::zeros::is_zero(from) {
            return self.write_zeroes(offset, from.len() as u64, detect == DetectZeroes::Unmap);
        }
        self.write_data(offset, from)
    }

    fn write_data(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.guest_range(offset, from.len() as u64)?;
        if from.is_empty() {
            return self.decide(|image| image.write_at(offset, from));
        }
        let _claim = self.claim(offset, from.len() as u64);
        let prepare = || {
            self.gate.decide_to_move(|image, epochs| {
                image.set_epochs(core_epochs(epochs));
                image.prepare_write(offset, from.len() as u64)
            })
        };
        let (mut plan, mut ticket) = prepare();
        if matches!(&plan, Err(error) if matches!(error.kind(), ErrorKind::NoSpace(_))) {
            // What others are reading may be just what is missing.
            drop(ticket);
            self.gate.wait_for_tickets();
            (plan, ticket) = prepare();
        }
        let plan = plan?;
        let moved = self.mover.write_planned(&plan, from);
        self.written.fetch_add(from.len() as u64, Ordering::Relaxed);
        // Before the commit, which may have use for what was held.
        drop(ticket);
        self.decide(|image| match moved {
            Ok(()) => image.commit_write(plan),
            Err(error) => {
                image.abort_write(plan)?;
                Err(error)
            }
        })
    }

    /// As [`Image::write_zeroes`].
    ///
    /// # Errors
    /// As there.
    pub fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.guest_range(offset, length)?;
        if self.geometry.version() < 3 && self.has_backing && length > 0 {
            // No entry can say it: bytes are written, which is not done under the lock.
            let zeros = vec![0; usize::try_from(length).unwrap_or(ZEROS).min(ZEROS)];
            return pieces(offset, length, zeros.len() as u64, |at, length| {
                self.write_data(at, &zeros[..length as usize])
            });
        }
        self.in_tables(offset, length, |image, at, length| image.write_zeroes(at, length, may_unmap))
    }

    /// As [`Image::discard`].
    ///
    /// # Errors
    /// As there.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.guest_range(offset, length)?;
        self.in_tables(offset, length, |image, at, length| image.discard(at, length))
    }

    /// Whether [`SharedImage::discard`] makes whole clusters read as zeros, or may do nothing.
    pub fn discards_to_zero(&self) -> bool {
        self.options.discard && (self.geometry.version() >= 3 || !self.has_backing)
    }

    /// As [`Image::next_extent`].
    ///
    /// # Errors
    /// As there.
    pub fn next_extent(&self, offset: u64, length: u64) -> Result<Extent> {
        self.decide(|image| image.next_extent(offset, length))
    }

    /// As [`Image::flush`]: everything that was written before the call is durable after it.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.written.swap(0, Ordering::Relaxed) > EARLY_BARRIER {
            // The image asks for its own barriers, which have less to do then. If this one fails, nobody can tell
            // whether they would.
            self.mover.data_barrier().map_err(|error| self.decide(|image| image.poison(&error)))?;
        }
        if self.decide(Image::take_data_barrier)? {
            return self.mover.data_barrier().map_err(|error| self.decide(|image| image.poison(&error)));
        }
        self.decide(Image::flush)
    }

    /// Flushes and gives the image back.
    ///
    /// # Errors
    /// As [`Image::flush`]; the image is then dropped.
    pub fn into_image(self) -> Result<Image<S>> {
        self.decide(Image::flush)?;
        Ok(self.gate.into_inner())
    }

    /// Flushes and gives the storage back.
    ///
    /// # Errors
    /// As [`Image::close`].
    pub fn close(self) -> Result<S> {
        self.into_image()?.close()
    }

    fn decide<R>(&self, decide: impl FnOnce(&mut Image<S>) -> R) -> R {
        self.gate.decide(|image, epochs| {
            image.set_epochs(core_epochs(epochs));
            decide(image)
        })
    }

    /// Changes a range that is not empty by changing tables, as much at a time as one L2 table covers.
    fn in_tables(
        &self,
        offset: u64,
        length: u64,
        change: impl Fn(&mut Image<S>, u64, u64) -> Result<()>,
    ) -> Result<()> {
        if length == 0 {
            return self.decide(|image| change(image, offset, 0));
        }
        pieces(offset, length, self.geometry.l2_coverage(), |at, length| {
            let _claim = self.claim(at, length);
            let changed = self.decide(|image| change(image, at, length));
            if !matches!(&changed, Err(error) if matches!(error.kind(), ErrorKind::NoSpace(_))) {
                return changed;
            }
            self.gate.wait_for_tickets();
            self.decide(|image| change(image, at, length))
        })
    }

    /// Claims the clusters of a range that is not empty.
    fn claim(&self, offset: u64, length: u64) -> Claim<'_> {
        let bits = self.geometry.cluster_bits();
        self.gate.claim(offset >> bits, (offset + (length - 1)) >> bits)
    }

    fn guest_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.virtual_size() => Ok(()),
            _ => Err(Error::new(ErrorKind::OutOfRange).at_guest(offset)),
        }
    }
}

fn core_epochs(epochs: gate::Epochs) -> qcowkit_core::metadata::Epochs {
    qcowkit_core::metadata::Epochs { current: epochs.current, settled: epochs.settled }
}

/// Calls `each` with the pieces of a range, cut at multiples of `size`.
fn pieces(offset: u64, length: u64, size: u64, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let size = size.max(1);
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let here = (size - at % size).min(end - at);
        each(at, here)?;
        at += here;
    }
    Ok(())
}
