//! Long reads, with the help of other threads.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::IntoIter;

use qcowkit_core::format::HostOffset;
use qcowkit_core::image::{Content, Extent};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, Result};

use super::{SharedImage, Unpacked};
use crate::helpers;

/// Shorter reads are over before anybody could help.
const WORTH_HELP: usize = 256 << 10;
/// Data are moved in parts of this size: long enough for what a part costs to be little, short enough to be shared out.
const PART: usize = 128 << 10;

/// Who reads compressed clusters one after the other has so many bytes of the next ones unpacked beforehand, and at least
/// one cluster.
const AHEAD: u64 = 1 << 20;

/// What is left to do, in the order of the guest's bytes.
type Parts<'a> = std::iter::Enumerate<IntoIter<(Extent, &'a mut [u8])>>;

impl<S: Storage + Send + Sync> SharedImage<S> {
    /// As [`SharedImage::read_at`]; of long reads, threads that are free unpack, decrypt and copy a part. The storage is
    /// then read by several threads at once, not only by the one that calls.
    ///
    /// # Errors
    /// As there: of several errors, that of the lowest guest offset.
    pub fn read_at_together(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if into.len() < WORTH_HELP {
            return self.read_in_turn(offset, into);
        }
        self.with_extents(offset, into.len() as u64, |extents, releases| {
            let work = Work { parts: Mutex::new(parts(extents, into)), failed: Mutex::new(None) };
            helpers::together(&|| work.take(|extent, into| self.read_part(extent, releases, into)));
            work.failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
        })
    }

    /// A short read. If it goes on where one of compressed data has ended, clusters behind it are unpacked as well: their
    /// places hold the same until something is released, whoever writes meanwhile.
    fn read_in_turn(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let length = into.len() as u64;
        if self.packed_until.load(Ordering::Relaxed) == offset {
            let ahead = AHEAD.max(self.geometry.cluster_size());
            let reach = length.saturating_add(ahead).min(self.virtual_size().saturating_sub(offset));
            // What cannot be read of it is told to who asks for it.
            let _ = self.with_extents(offset, reach, |extents, releases| {
                self.unpack_ahead(extents, releases, offset.saturating_add(length));
                Ok(())
            });
        }
        self.with_extents(offset, length, |extents, releases| {
            let packed = extents.last().is_some_and(|extent| matches!(extent.content, Content::Compressed { .. }));
            self.packed_until.store(if packed { offset + length } else { u64::MAX }, Ordering::Relaxed);
            self.read_parts(extents, releases, into)
        })
    }

    /// Unpacks the compressed clusters of these extents, if one of those that begin before `wanted` is not there yet.
    fn unpack_ahead(&self, extents: &[Extent], releases: u64, wanted: u64) {
        let packed = |extent: &&Extent| matches!(extent.content, Content::Compressed { .. });
        let key = |extent: &Extent| match extent.content {
            Content::Compressed { range, .. } => (extent.depth, range.offset.get()),
            Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => (extent.depth, 0),
        };
        let kept = |extent: &Extent| {
            let (depth, host_offset) = key(extent);
            self.kept(depth, host_offset, releases)
        };
        let here = |extent: &&Extent| extent.guest_offset < wanted;
        if extents.iter().filter(packed).filter(here).all(|extent| kept(extent).is_some()) {
            return;
        }
        let next = Mutex::new(extents.iter().filter(packed));
        let done = Mutex::new(Vec::new());
        helpers::together(&|| {
            loop {
                let Some(extent) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
                let (depth, host_offset) = key(extent);
                let bytes = match kept(extent) {
                    Some(bytes) => bytes,
                    None => match self.mover.unpack(extent) {
                        Ok(bytes) => Arc::from(bytes),
                        Err(_) => continue,
                    },
                };
                let unpacked = Unpacked { depth, host_offset, releases, bytes };
                done.lock().unwrap_or_else(PoisonError::into_inner).push(unpacked);
            }
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.unpacked.lock().unwrap_or_else(PoisonError::into_inner) = done;
    }
}

struct Work<'a> {
    parts: Mutex<Parts<'a>>,
    /// The number of the first part that failed, and why. Parts before it have been taken, and are finished.
    failed: Mutex<Option<(usize, Error)>>,
}

impl Work<'_> {
    /// Does one part after the other until none is left.
    fn take(&self, does: impl Fn(&Extent, &mut [u8]) -> Result<()>) {
        loop {
            let next = self.parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, (extent, into))) = next else { return };
            let Err(error) = does(&extent, into) else { continue };
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                *failed = Some((number, error));
            }
            // What comes behind it is of no use.
            self.parts.lock().unwrap_or_else(PoisonError::into_inner).by_ref().for_each(drop);
            return;
        }
    }
}

/// Cuts extents, and the memory that they fill, into parts.
fn parts<'a>(extents: &[Extent], into: &'a mut [u8]) -> Parts<'a> {
    let mut parts = Vec::new();
    let mut rest = into;
    for extent in extents {
        let (mut here, tail) = rest.split_at_mut(extent.length as usize);
        rest = tail;
        let mut done = 0;
        while !here.is_empty() {
            let length = match extent.content {
                Content::Data { .. } => here.len().min(PART),
                Content::Compressed { .. } | Content::Zero { .. } | Content::Unallocated => here.len(),
            };
            let (part, behind) = here.split_at_mut(length);
            let content = match extent.content {
                Content::Data { host_offset } => {
                    Content::Data { host_offset: HostOffset::new(host_offset.get() + done) }
                }
                other => other,
            };
            let (guest_offset, length) = (extent.guest_offset + done, length as u64);
            parts.push((Extent { guest_offset, length, content, ..*extent }, part));
            done += length;
            here = behind;
        }
    }
    parts.into_iter().enumerate()
}
