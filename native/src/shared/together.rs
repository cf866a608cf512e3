//! Long reads, with the help of other threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcowkit_core::format::HostOffset;
use qcowkit_core::image::{Content, Extent};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, Result};

use super::{SharedImage, Unpacked};
use crate::helpers::{self, Hand};

/// Shorter reads are over before anybody could help.
const WORTH_HELP: usize = 256 << 10;
/// Data are moved in parts of this size: long enough for what a part costs to be little, short enough to be shared out.
const PART: usize = 64 << 10;

/// Who reads compressed clusters one after the other has so many bytes of the next ones unpacked beforehand, and at least
/// one cluster.
const AHEAD: u64 = 1 << 20;

/// What there is to do, in the order of the guest's bytes. Each is taken out by one thread, so that nobody waits for its
/// lock.
type Parts<'a> = Vec<Mutex<Option<(Extent, &'a mut [u8])>>>;

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
            self.read_shared_out(extents, releases, vec![into])
        })
    }

    /// Fills several places, one after the other, with guest bytes from `offset` on, as [`SharedImage::read_at_together`]
    /// fills one, however short they are. False, and nothing is read, where compressed clusters would be cut: of those that
    /// are read in order, [`SharedImage::read_at_together`] has the next ones ready itself.
    ///
    /// # Errors
    /// As there.
    pub fn read_places_together(&self, offset: u64, places: Vec<&mut [u8]>) -> Result<bool> {
        let cluster = self.geometry.cluster_size();
        let whole =
            offset.is_multiple_of(cluster) && places.iter().all(|place| (place.len() as u64).is_multiple_of(cluster));
        let length = places.iter().map(|place| place.len() as u64).fold(0, u64::saturating_add);
        let mut done = true;
        self.with_extents(offset, length, |extents, releases| {
            done = extents.iter().all(|extent| match extent.content {
                Content::Compressed { skip, .. } => whole && skip == 0 && extent.length == cluster,
                Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => true,
            });
            if done { self.read_shared_out(extents, releases, places) } else { Ok(()) }
        })?;
        Ok(done)
    }

    fn read_shared_out(&self, extents: &[Extent], releases: u64, places: Vec<&mut [u8]>) -> Result<()> {
        let work = Work::new(parts(extents, places));
        helpers::together(&|hand| work.take(hand, |extent, into| self.read_part(extent, releases, into)));
        work.failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
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
        helpers::together(&|_| {
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
    parts: Parts<'a>,
    /// How many were taken, in all and from either end.
    taken: AtomicUsize,
    front: AtomicUsize,
    back: AtomicUsize,
    /// The number of the first part that failed, and why.
    failed: Mutex<Option<(usize, Error)>>,
}

impl<'a> Work<'a> {
    fn new(parts: Parts<'a>) -> Self {
        let zero = || AtomicUsize::new(0);
        Self { parts, taken: zero(), front: zero(), back: zero(), failed: Mutex::new(None) }
    }

    /// Does one part after the other until none is left.
    fn take(&self, hand: Hand, does: impl Fn(&Extent, &mut [u8]) -> Result<()>) {
        while let Some((number, (extent, into))) = self.next(hand) {
            let Err(error) = does(&extent, into) else { continue };
            let mut failed = self.failed();
            if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                *failed = Some((number, error));
            }
        }
    }

    /// The caller begins at the front and helpers at the back: of memory that is filled again and again, each half stays in
    /// the cache of one core.
    fn next(&self, hand: Hand) -> Option<(usize, (Extent, &'a mut [u8]))> {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.parts.len() {
            return None;
        }
        // No more are taken than there are, so what is taken from one end never reaches what was taken from the other.
        let number = match hand {
            Hand::Own => self.front.fetch_add(1, Ordering::Relaxed),
            Hand::Helping => self.parts.len() - 1 - self.back.fetch_add(1, Ordering::Relaxed),
        };
        let part = self.parts.get(number)?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some((number, part))
    }

    fn failed(&self) -> MutexGuard<'_, Option<(usize, Error)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts extents, and the places that they fill, into parts.
fn parts<'a>(extents: &[Extent], places: Vec<&'a mut [u8]>) -> Parts<'a> {
    let mut parts = Vec::new();
    let mut places = places.into_iter();
    let mut place: &mut [u8] = &mut [];
    for extent in extents {
        let mut done = 0;
        while done < extent.length {
            if place.is_empty() {
                let Some(next) = places.next() else { break };
                place = next;
                continue;
            }
            let most = match extent.content {
                Content::Data { .. } => PART,
                Content::Compressed { .. } | Content::Zero { .. } | Content::Unallocated => usize::MAX,
            };
            let left = usize::try_from(extent.length - done).unwrap_or(usize::MAX);
            let (part, behind) = place.split_at_mut(left.min(most).min(place.len()));
            place = behind;
            let content = match extent.content {
                Content::Data { host_offset } => {
                    Content::Data { host_offset: HostOffset::new(host_offset.get() + done) }
                }
                other => other,
            };
            let (guest_offset, length) = (extent.guest_offset + done, part.len() as u64);
            parts.push(Mutex::new(Some((Extent { guest_offset, length, content, ..*extent }, part))));
            done += length;
        }
    }
    parts
}
