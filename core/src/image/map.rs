//! What each part of the virtual disk is, and where.

use alloc::vec::Vec;

use super::{Image, Layer};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{CompressedRange, Geometry, GuestOffset, HostOffset, L2Entry, Subclusters};
use crate::storage::{ReadStorage, Storage, StorageExtentKind};

/// What a run of guest bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Data, in one run of host bytes.
    Data {
        /// The first byte, in the image file, data file or raw file of the layer.
        host_offset: HostOffset,
    },
    /// Reads as zeros because this layer says so.
    Zero {
        /// The first byte of the host clusters that are kept for it, if there are any.
        host_offset: Option<HostOffset>,
    },
    /// Part of one compressed cluster.
    Compressed {
        /// Where the packed cluster is.
        range: CompressedRange,
        /// Bytes of the unpacked cluster before this run.
        skip: u64,
    },
    /// No layer of the chain knows of it; reads as zeros.
    Unallocated,
}

/// A run of guest bytes of one content; computed, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte in the virtual disk.
    pub guest_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Which layer holds it: 0 is the image itself. Of unallocated runs: the last layer that is long enough.
    pub depth: u32,
    /// What it is.
    pub content: Content,
}

impl Extent {
    /// Whether it reads as zeros without looking at any data.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        matches!(self.content, Content::Zero { .. } | Content::Unallocated)
    }

    /// Whether `next` goes on with the same content right behind this one: both are one run.
    #[must_use]
    pub fn continues_with(&self, next: &Self) -> bool {
        self.depth == next.depth
            && self.guest_offset.saturating_add(self.length) == next.guest_offset
            && match (self.content, next.content) {
                (Content::Data { host_offset: a }, Content::Data { host_offset: b }) => {
                    a.saturating_add(self.length) == b
                }
                (Content::Zero { host_offset: a }, Content::Zero { host_offset: b }) => {
                    a.map(|a| a.saturating_add(self.length)) == b
                }
                (Content::Unallocated, Content::Unallocated) => true,
                (
                    Content::Data { .. } | Content::Zero { .. } | Content::Compressed { .. } | Content::Unallocated,
                    _,
                ) => false,
            }
    }
}

impl<S: Storage> Image<S> {
    /// The extent that begins at `offset`: the longest run of one content, at most `length` bytes, through all layers.
    ///
    /// # Errors
    /// A range beyond the virtual disk, an entry without meaning, or a storage that fails. Of an image whose backing
    /// file was left out ([`super::OpenOptions::ignore_missing_files`]), unallocated parts are [`ErrorKind::Denied`].
    pub fn next_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        self.guest_range(offset, length)?;
        let here = self.next_local_extent(offset, length)?;
        if here.content != Content::Unallocated {
            return Ok(here);
        }
        self.below(here)
    }

    /// The extents of a range, in order, without gaps.
    ///
    /// # Errors
    /// As [`Image::next_extent`].
    pub fn map(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let end = self.guest_range(offset, length)?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let extent = self.next_extent(at, end.saturating_sub(at))?;
            at = at.saturating_add(extent.length.max(1));
            match extents.last_mut() {
                Some(last) if last.continues_with(&extent) => last.length = last.length.saturating_add(extent.length),
                Some(_) | None => extents.push(extent),
            }
        }
        Ok(extents)
    }

    /// What this layer alone says: as [`Image::next_extent`], but what it leaves to the layer below is
    /// [`Content::Unallocated`] with depth 0.
    ///
    /// # Errors
    /// As [`Image::next_extent`].
    pub fn next_local_extent(&mut self, offset: u64, length: u64) -> Result<Extent> {
        let end = self.guest_range(offset, length)?;
        let geometry = *self.geometry();
        let mut run = Run { geometry, start: offset, end: offset, limit: end, content: None };
        while run.end < end {
            let first = geometry.guest_cluster(GuestOffset::new(run.end));
            let last = geometry.guest_cluster(GuestOffset::new(end.saturating_sub(1)));
            let count = last.distance_from(first).saturating_add(1);
            let mut position = first;
            let mut ended = false;
            let visited = self.metadata.visit_runs(&self.storage, first, count, |entry, clusters| {
                let cluster_start = geometry.guest_start(position).get();
                let more = match entry {
                    Some(&entry) => run.cluster(cluster_start, entry) && run.more(cluster_start, clusters),
                    None => run.missing(cluster_start, clusters),
                };
                position = position.saturating_add(clusters);
                ended = !more;
                more
            });
            match visited {
                // What cannot be understood begins where this extent ends, and is told to who asks there.
                Err(_) if run.end > offset => break,
                Err(error) => return Err(error),
                Ok(()) if ended => break,
                Ok(()) => {}
            }
        }
        Ok(Extent {
            guest_offset: offset,
            length: run.end.saturating_sub(offset),
            depth: 0,
            content: run.content.unwrap_or(Content::Unallocated),
        })
    }

    /// Calls `visit` with the extents of a range, in order, without gaps: those that [`Image::next_extent`] gives one after
    /// the other, or [`Image::next_local_extent`] with `chain` false. Many of them take a fraction of the time so.
    ///
    /// # Errors
    /// As there, after the extents before it; what `visit` returns, which ends it.
    pub fn visit_extents(
        &mut self,
        offset: u64,
        length: u64,
        chain: bool,
        mut visit: impl FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = self.guest_range(offset, length)?;
        if !chain || (self.backing.is_none() && self.metadata.header().backing_file.is_none()) {
            return self.visit_local_extents(offset, end, &mut visit);
        }
        let mut at = offset;
        while at < end {
            let extent = self.next_extent(at, end.saturating_sub(at))?;
            at = at.saturating_add(extent.length.max(1));
            visit(extent)?;
        }
        Ok(())
    }

    /// As [`Image::visit_extents`], in one walk through the tables of this layer.
    fn visit_local_extents(
        &mut self,
        offset: u64,
        end: u64,
        visit: &mut impl FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let geometry = *self.geometry();
        let mut run = Run { geometry, start: offset, end: offset, limit: end, content: None };
        while run.end < end {
            let first = geometry.guest_cluster(GuestOffset::new(run.end));
            let last = geometry.guest_cluster(GuestOffset::new(end.saturating_sub(1)));
            let count = last.distance_from(first).saturating_add(1);
            let mut position = first;
            let mut told = Ok(());
            let visited = self.metadata.visit_runs(&self.storage, first, count, |entry, clusters| {
                let cluster_start = geometry.guest_start(position).get();
                let behind = cluster_start.saturating_add(clusters.saturating_mul(geometry.cluster_size())).min(end);
                position = position.saturating_add(clusters);
                // Once for each extent that ends here: one that begins takes at least a part of the entry.
                loop {
                    let more = match entry {
                        Some(&entry) => run.cluster(cluster_start, entry) && run.more(cluster_start, clusters),
                        None => run.missing(cluster_start, clusters),
                    };
                    if more {
                        return true;
                    }
                    told = visit(run.take());
                    if told.is_err() || run.end >= end {
                        return false;
                    }
                    if run.end >= behind {
                        return true;
                    }
                }
            });
            told?;
            if visited.is_err() && run.end > run.start {
                visit(run.take())?;
            }
            visited?;
        }
        if run.end > run.start { visit(run.take()) } else { Ok(()) }
    }

    /// Where the host clusters lie that this layer has for guest bytes from `offset` on, be they used or not: subclusters
    /// without data have a place too. The first byte of the run's, or `None` if it has none, and the length of the run,
    /// at most `length`. Compressed clusters have none of their own.
    ///
    /// # Errors
    /// As [`Image::next_extent`].
    pub fn next_place(&mut self, offset: u64, length: u64) -> Result<(Option<HostOffset>, u64)> {
        let end = self.guest_range(offset, length)?;
        let geometry = *self.geometry();
        let cluster_size = geometry.cluster_size();
        let mut at = offset;
        let mut place = None;
        while at < end {
            let first = geometry.guest_cluster(GuestOffset::new(at));
            let last = geometry.guest_cluster(GuestOffset::new(end.saturating_sub(1)));
            let count = last.distance_from(first).saturating_add(1);
            let mut more = true;
            self.metadata.visit_runs(&self.storage, first, count, |entry, clusters| {
                let start = geometry.align_down(at);
                let here = match entry {
                    Some(L2Entry::Plain { host: Some(host), .. }) => {
                        Some(host.offset.saturating_add(at.saturating_sub(start)))
                    }
                    Some(L2Entry::Plain { host: None, .. } | L2Entry::Compressed(_)) | None => None,
                };
                let stop = start.saturating_add(clusters.saturating_mul(cluster_size));
                let first_place = *place.get_or_insert(here);
                more = here == first_place.map(|first| first.saturating_add(at.saturating_sub(offset)));
                if more {
                    at = stop.min(end);
                }
                more
            })?;
            if !more {
                break;
            }
        }
        Ok((place.flatten(), at.saturating_sub(offset)))
    }

    /// What the layer below says of a run that this one leaves unallocated.
    fn below(&mut self, here: Extent) -> Result<Extent> {
        let Some(layer) = &mut self.backing else {
            if self.metadata.header().backing_file.is_some() {
                return Err(Error::new(ErrorKind::Denied("the backing file was not opened".into()))
                    .in_structure(Structure::BackingFile)
                    .at_guest(here.guest_offset));
            }
            return Ok(here);
        };
        let size = layer.virtual_size();
        if here.guest_offset >= size {
            // The chain ends here for what a layer below is too short to hold.
            return Ok(here);
        }
        let length = here.length.min(size.saturating_sub(here.guest_offset));
        let below = match layer {
            Layer::Image(image) => image.next_extent(here.guest_offset, length)?,
            Layer::Raw { storage, .. } => raw_extent(storage, here.guest_offset, length)?,
        };
        Ok(Extent { depth: below.depth.saturating_add(1), ..below })
    }
}

/// What lies at `offset` of a raw disk, which has `length` bytes left: where the store knows of a hole there are zeros.
///
/// # Errors
/// When the store fails.
pub fn raw_extent(storage: &impl ReadStorage, offset: u64, length: u64) -> Result<Extent> {
    let found = storage.next_extent(offset)?;
    let host_offset = HostOffset::new(offset);
    let content = match found.kind {
        StorageExtentKind::Data | StorageExtentKind::Unknown => Content::Data { host_offset },
        StorageExtentKind::Hole => Content::Zero { host_offset: Some(host_offset) },
    };
    // A file shorter than the disk it holds reads as zeros up to its end.
    let length = if found.length == 0 { length } else { length.min(found.length) };
    Ok(Extent { guest_offset: offset, length, depth: 0, content })
}

/// The run that grows while clusters are visited.
struct Run {
    geometry: Geometry,
    start: u64,
    end: u64,
    limit: u64,
    content: Option<Content>,
}

impl Run {
    /// The run as it is; the next one begins where it ends.
    fn take(&mut self) -> Extent {
        let extent = Extent {
            guest_offset: self.start,
            length: self.end.saturating_sub(self.start),
            depth: 0,
            content: self.content.take().unwrap_or(Content::Unallocated),
        };
        self.start = self.end;
        extent
    }

    /// Adds the parts of one cluster; false once the run has ended.
    #[inline(always)]
    fn cluster(&mut self, cluster_start: u64, entry: L2Entry) -> bool {
        match entry {
            L2Entry::Compressed(range) => {
                let skip = self.end.saturating_sub(cluster_start);
                if self.content.is_none() {
                    self.content = Some(Content::Compressed { range, skip });
                    self.end = cluster_start.saturating_add(self.geometry.cluster_size()).min(self.limit);
                }
                false
            }
            L2Entry::Plain { host, parts } => {
                let host = host.map(|host| host.offset);
                // Mostly a cluster is one part.
                if !self.geometry.extended_l2() {
                    return self.part(cluster_start, self.geometry.cluster_size(), host, parts, 1);
                }
                let size = self.geometry.subcluster_size();
                (0..self.geometry.subclusters()).all(|part| {
                    let part_end = u64::from(part).saturating_add(1).saturating_mul(size);
                    self.part(cluster_start, part_end, host, parts, 1u32.wrapping_shl(part))
                })
            }
        }
    }

    /// Adds the part of a cluster that ends `part_end` bytes behind its begin, unless it lies in front of the run's end;
    /// false once the run has ended.
    #[inline(always)]
    fn part(
        &mut self,
        cluster_start: u64,
        part_end: u64,
        host: Option<HostOffset>,
        parts: Subclusters,
        bit: u32,
    ) -> bool {
        let end = cluster_start.saturating_add(part_end);
        if end <= self.end {
            return true;
        }
        if self.end >= self.limit {
            return false;
        }
        let place = host.map(|host| host.saturating_add(self.end.saturating_sub(cluster_start)));
        let content = match place {
            Some(host_offset) if parts.allocated & bit != 0 => Content::Data { host_offset },
            host_offset if parts.zero & bit != 0 => Content::Zero { host_offset },
            Some(_) | None => Content::Unallocated,
        };
        self.add(content, end)
    }

    /// Adds the clusters that go on like the one at `cluster_start`, which was added: `clusters` in all.
    fn more(&mut self, cluster_start: u64, clusters: u64) -> bool {
        let bytes = clusters.saturating_mul(self.geometry.cluster_size());
        self.end = self.end.max(cluster_start.saturating_add(bytes)).min(self.limit);
        true
    }

    /// Adds clusters without an L2 table, of which the first begins at `cluster_start`.
    fn missing(&mut self, cluster_start: u64, clusters: u64) -> bool {
        let bytes = clusters.saturating_mul(self.geometry.cluster_size());
        self.add(Content::Unallocated, cluster_start.saturating_add(bytes))
    }

    /// Extends the run to `end` if `content`, which begins at the present end, goes on with it.
    fn add(&mut self, content: Content, end: u64) -> bool {
        let length = self.end.saturating_sub(self.start);
        let fits = match (self.content, content) {
            (None, _) => {
                self.content = Some(content);
                true
            }
            (Some(Content::Data { host_offset: a }), Content::Data { host_offset: b }) => a.saturating_add(length) == b,
            (Some(Content::Zero { host_offset: a }), Content::Zero { host_offset: b }) => {
                a.map(|a| a.saturating_add(length)) == b
            }
            (Some(Content::Unallocated), Content::Unallocated) => true,
            (Some(_), _) => false,
        };
        if fits {
            self.end = end.min(self.limit);
        }
        fits
    }
}
