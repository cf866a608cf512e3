//! Writing guest bytes: deciding where they go, moving them, linking them.

use alloc::vec;
use alloc::vec::Vec;

use super::{Content, DetectZeroes, Extent, Image};
use crate::crypto::SECTOR_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{GuestCluster, GuestOffset, HostCluster, HostOffset, HostRef, L2Entry, Subclusters};
use crate::metadata::{Quarantined, Run, Touch};
use crate::storage::Storage;
use crate::zeros::is_zero;

/// Segments that lie side by side are moved in one write up to this many bytes.
const GATHER_BYTES: u64 = 1 << 20;

/// Where a write will go: clusters are reserved, nothing is linked. Made by [`Image::prepare_write`]; it must come back
/// through [`Image::commit_write`] or [`Image::abort_write`], else its clusters leak.
#[derive(Debug)]
#[must_use]
pub struct WritePlan {
    pub(super) pieces: Vec<Piece>,
    /// Counted in [`Image::open_plans`].
    counted: bool,
}

/// One run of host bytes.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) guest_offset: u64,
    pub(super) length: u64,
    pub(super) host_offset: HostOffset,
    /// What has to be filled in around the data, in the order of the file.
    pub(super) fills: Vec<Fill>,
    links: Vec<Link>,
    run: Option<Run>,
    /// The clusters read as zeros: zeros need not be written.
    fresh: bool,
}

/// Old guest bytes that move along (copy on write).
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) guest_offset: u64,
    pub(super) host_offset: HostOffset,
    pub(super) length: u64,
    sources: Vec<Extent>,
}

/// An entry to be replaced once the bytes are in place.
#[derive(Debug)]
struct Link {
    cluster: GuestCluster,
    old: L2Entry,
    new: L2Entry,
}

impl WritePlan {
    /// Guest ranges and where their bytes go, in the image file or the data file: (guest offset, length, host offset).
    pub fn targets(&self) -> impl Iterator<Item = (u64, u64, HostOffset)> + '_ {
        self.pieces.iter().map(|piece| (piece.guest_offset, piece.length, piece.host_offset))
    }

    /// Whether old bytes have to move along (copy on write), which [`Image::write_planned`] does. Otherwise whoever
    /// fills the targets has done all.
    pub fn moves_old_bytes(&self) -> bool {
        self.pieces.iter().any(|piece| !piece.fills.is_empty())
    }
}

impl<S: Storage> Image<S> {
    /// Writes guest bytes. With `detect_zeroes`, a write of nothing but zeros becomes a write-zeroes.
    ///
    /// # Errors
    /// A range beyond the virtual disk, a read-only or poisoned image, an image that must be repaired first, no space,
    /// a storage that fails. Each part of the range then holds old or new bytes.
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        self.guest_range(offset, length)?;
        self.begin_writing()?;
        self.mark_dirty(offset, length);
        if self.options.detect_zeroes != DetectZeroes::Off && is_zero(from) {
            return self.write_zeroes(offset, length, self.options.detect_zeroes == DetectZeroes::Unmap);
        }
        self.write_data(offset, from)
    }

    /// Writes bytes as data, be they zeros or not.
    pub(super) fn write_data(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = from;
        let mut goal = None;
        while !rest.is_empty() {
            let piece = self.prepare_piece(at, u64::try_from(rest.len()).unwrap_or(u64::MAX), goal)?;
            let (head, tail) = rest.split_at(usize::try_from(piece.length).unwrap_or(rest.len()).min(rest.len()));
            at = at.saturating_add(piece.length);
            goal = self.goal_after(&piece);
            if let Err(error) = self.move_piece(&piece, head) {
                self.abort_write(WritePlan { pieces: vec![piece], counted: false })?;
                return Err(error);
            }
            self.commit_write(WritePlan { pieces: vec![piece], counted: false })?;
            rest = tail;
        }
        Ok(())
    }

    /// Decides where a write will go. The plan's clusters are allocated but not reachable, so a cut only leaks them.
    ///
    /// # Errors
    /// As [`Image::write_at`]; nothing is left allocated then.
    pub fn prepare_write(&mut self, offset: u64, length: u64) -> Result<WritePlan> {
        let end = self.guest_range(offset, length)?;
        self.begin_writing()?;
        self.mark_dirty(offset, length);
        let mut plan = WritePlan { pieces: Vec::new(), counted: false };
        let mut at = offset;
        let mut goal = None;
        while at < end {
            match self.prepare_piece(at, end.saturating_sub(at), goal) {
                Ok(piece) => {
                    at = at.saturating_add(piece.length);
                    goal = self.goal_after(&piece);
                    plan.pieces.push(piece);
                }
                Err(error) => {
                    self.abort_write(plan)?;
                    return Err(error);
                }
            }
        }
        plan.counted = true;
        self.open_plans = self.open_plans.saturating_add(1);
        Ok(plan)
    }

    /// Moves the bytes of a planned write, together with what copy on write needs. `from` is the whole write.
    ///
    /// # Errors
    /// When a storage of the chain fails; the plan can be aborted, or moved again.
    pub fn write_planned(&self, plan: &WritePlan, from: &[u8]) -> Result<()> {
        let mut rest = from;
        for piece in &plan.pieces {
            let Some((head, tail)) = rest.split_at_checked(usize::try_from(piece.length).unwrap_or(usize::MAX)) else {
                return Err(Error::invalid("the buffer is shorter than the planned write"));
            };
            self.move_piece(piece, head)?;
            rest = tail;
        }
        Ok(())
    }

    /// Links a planned write whose bytes have been moved, and releases what it replaces.
    ///
    /// # Errors
    /// When tables cannot be read.
    pub fn commit_write(&mut self, plan: WritePlan) -> Result<()> {
        self.open_plans = self.open_plans.saturating_sub(plan.counted.into());
        self.note_data();
        for piece in plan.pieces {
            for link in piece.links {
                self.replace_entry(link.cluster, link.old, link.new)?;
            }
        }
        if self.metadata.wants_commit() {
            self.commit()?;
        }
        Ok(())
    }

    /// Gives the clusters of a planned write back.
    ///
    /// # Errors
    /// When refcount blocks cannot be read.
    pub fn abort_write(&mut self, plan: WritePlan) -> Result<()> {
        self.open_plans = self.open_plans.saturating_sub(plan.counted.into());
        for piece in plan.pieces {
            if let Some(run) = piece.run {
                self.metadata.undo_allocation(&self.storage, run)?;
            }
        }
        Ok(())
    }

    /// Replaces an entry after a write: the old cluster, if another took its place, loses its reference and is never
    /// punched (as in QEMU, [`crate::metadata::DiscardType::Never`]).
    pub(super) fn replace_entry(&mut self, cluster: GuestCluster, old: L2Entry, new: L2Entry) -> Result<()> {
        let moved = old.host().map(|host| host.offset) != new.host().map(|host| host.offset);
        let (first, count) = match old {
            L2Entry::Compressed(range) => self.metadata.compressed_clusters(range),
            L2Entry::Plain { host: Some(host), .. } if moved && !self.geometry().data_file() => {
                (self.geometry().host_cluster(host.offset), 1)
            }
            L2Entry::Plain { .. } => return self.metadata.set_entry(&self.storage, cluster, new),
        };
        let refused = self.metadata.refuse_metadata(first, count, Touch::GuestData);
        refused.map_err(|e| e.at_guest(self.geometry().guest_start(cluster).get()))?;
        self.metadata.set_entry(&self.storage, cluster, new)?;
        self.unpacked = None;
        self.metadata.release(&self.storage, Quarantined { first, count, pass: false })
    }

    /// The host cluster that would continue a piece: as in QEMU, also one that was written in place.
    fn goal_after(&self, piece: &Piece) -> Option<HostCluster> {
        let end = piece.host_offset.saturating_add(piece.length);
        (!self.geometry().data_file() && self.geometry().is_aligned(end.get()))
            .then(|| self.geometry().host_cluster(end))
    }

    /// Decides the longest run from `offset` on that goes to one run of host bytes, within one step of the allocation.
    fn prepare_piece(&mut self, offset: u64, length: u64, goal: Option<HostCluster>) -> Result<Piece> {
        self.refuse_locked()?;
        let geometry = *self.geometry();
        let first = geometry.guest_cluster(GuestOffset::new(offset));
        self.metadata.writable_table(&self.storage, geometry.l1_index(first))?;
        let per_step = self.metadata.entries_per_step().max(1);
        let in_step = per_step.saturating_sub(first.get().checked_rem(per_step).unwrap_or(0));
        let last = geometry.guest_cluster(GuestOffset::new(offset.saturating_add(length).saturating_sub(1)));
        let most = last.distance_from(first).saturating_add(1).min(in_step);
        self.map_raw_data(first, most, in_step)?;
        let (entries, in_place) = self.similar_entries(first, most)?;
        let count = u64::try_from(entries.len()).unwrap_or(1);
        if in_place {
            let host = entries.first().and_then(|entry| entry.host());
            let host = host.ok_or_else(|| Error::invalid("a cluster in place has a host cluster"))?.offset;
            if !geometry.data_file() {
                let first = geometry.host_cluster(host);
                let touched = self.metadata.forbid_overlap(&self.storage, first, count, Touch::GuestData);
                touched.map_err(|e| e.at_guest(offset))?;
            }
            return self.lay_out(offset, length, first, &entries, host, None);
        }
        if geometry.data_file() {
            // Host offset equals guest offset: nothing to allocate.
            let host = HostOffset::new(geometry.guest_start(first).get());
            return self.lay_out(offset, length, first, &entries, host, None);
        }
        let goal = goal.or_else(|| self.near_goal(first));
        let run = self.metadata.allocate(&self.storage, count, goal)?;
        let entries = entries.get(..usize::try_from(run.count).unwrap_or(usize::MAX)).unwrap_or(&entries);
        let planned = self.lay_out(offset, length, first, entries, geometry.host_start(run.first), Some(run));
        if planned.is_err() {
            self.metadata.undo_allocation(&self.storage, run)?;
        }
        planned
    }

    /// With the policy `near`: the host cluster behind that of the preceding guest cluster.
    fn near_goal(&mut self, first: GuestCluster) -> Option<HostCluster> {
        if self.options.metadata.allocation != crate::metadata::AllocationPolicy::Near {
            return None;
        }
        let before = GuestCluster::new(first.get().checked_sub(1)?);
        let host = self.metadata.entry(&self.storage, before).ok()?.host()?;
        Some(self.geometry().host_cluster(host.offset).saturating_add(1))
    }

    /// The entries from `first` on that can be written in the same way: all in place in one run of host clusters, or
    /// all to new clusters.
    fn similar_entries(&mut self, first: GuestCluster, most: u64) -> Result<(Vec<L2Entry>, bool)> {
        let geometry = *self.geometry();
        let mut entries: Vec<L2Entry> = Vec::new();
        let mut in_place = false;
        let mut expected = HostOffset::default();
        self.metadata.visit(&self.storage, first, most, |entry| {
            let entry = entry.unwrap_or(L2Entry::UNALLOCATED);
            let here = entry.host().filter(|host| host.copied);
            if entries.is_empty() {
                in_place = here.is_some();
            } else if in_place != here.is_some() || here.is_some_and(|host| host.offset != expected) {
                return false;
            }
            if let Some(host) = here {
                expected = host.offset.saturating_add(geometry.cluster_size());
            }
            entries.push(entry);
            true
        })?;
        Ok((entries, in_place))
    }

    /// Lays the write out over `entries`, whose clusters go to the host bytes from `host` on.
    fn lay_out(
        &mut self,
        offset: u64,
        length: u64,
        first: GuestCluster,
        entries: &[L2Entry],
        host: HostOffset,
        run: Option<Run>,
    ) -> Result<Piece> {
        let geometry = *self.geometry();
        let size = geometry.cluster_size();
        let start = geometry.guest_start(first).get();
        let covered = u64::try_from(entries.len()).unwrap_or(1).saturating_mul(size);
        let length = length.min(start.saturating_add(covered).saturating_sub(offset));
        let mut piece = Piece {
            guest_offset: offset,
            length,
            host_offset: host.saturating_add(offset.saturating_sub(start)),
            fills: Vec::new(),
            links: Vec::new(),
            run,
            fresh: run.is_some_and(|run| run.fresh),
        };
        for (cluster_number, &old) in (0u64..).zip(entries) {
            let cluster = first.saturating_add(cluster_number);
            let cluster_host = host.saturating_add(cluster_number.saturating_mul(size));
            let new = self.lay_out_cluster(&mut piece, cluster, old, cluster_host)?;
            if new != old {
                piece.links.push(Link { cluster, old, new });
            }
        }
        Ok(piece)
    }

    /// The new entry of one cluster of a piece; adds what must be filled in around the written bytes.
    fn lay_out_cluster(
        &mut self,
        piece: &mut Piece,
        cluster: GuestCluster,
        old: L2Entry,
        host: HostOffset,
    ) -> Result<L2Entry> {
        let geometry = *self.geometry();
        let start = geometry.guest_start(cluster).get();
        let end = start.saturating_add(geometry.cluster_size());
        let host_ref = HostRef { offset: host, copied: true };
        let (write_start, write_end) = (piece.guest_offset, piece.guest_offset.saturating_add(piece.length));
        if write_start <= start && end <= write_end {
            return Ok(L2Entry::normal(host_ref, &geometry));
        }
        let moves = old.host().map(|host| host.offset) != Some(host);
        let old_parts = match old {
            L2Entry::Plain { parts, .. } => parts,
            L2Entry::Compressed(_) => Subclusters::all_allocated(&geometry),
        };
        let mut parts = old_parts;
        for part in 0..geometry.subclusters() {
            let bit = 1u32.wrapping_shl(part);
            let part_start = start.saturating_add(u64::from(part).saturating_mul(geometry.subcluster_size()));
            let part_end = part_start.saturating_add(geometry.subcluster_size());
            let touched = write_start < part_end && part_start < write_end;
            let allocated = old_parts.allocated & bit != 0;
            if touched {
                parts.allocated |= bit;
                parts.zero &= !bit;
                let (from, to) = if moves || !allocated {
                    (part_start, part_end)
                } else {
                    self.whole_sectors(write_start.max(part_start), write_end.min(part_end))
                };
                self.fill(piece, from, write_start.min(part_end), start, host)?;
                self.fill(piece, write_end.max(part_start), to, start, host)?;
            } else if moves && allocated {
                self.fill(piece, part_start, part_end, start, host)?;
            }
        }
        Ok(L2Entry::Plain { host: Some(host_ref), parts })
    }

    /// Adds the old guest bytes of `from..to` to what moves along.
    fn fill(&mut self, piece: &mut Piece, from: u64, to: u64, cluster_start: u64, host: HostOffset) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        // Of a cluster that reaches beyond the virtual disk, what lies beyond is zero.
        let inside = to.min(self.virtual_size()).max(from);
        let mut sources = if inside > from { self.map(from, inside.saturating_sub(from))? } else { Vec::new() };
        if to > inside {
            let length = to.saturating_sub(inside);
            sources.push(Extent { guest_offset: inside, length, depth: 0, content: Content::Unallocated });
        }
        if piece.fresh && self.encryption().is_none() && sources.iter().all(Extent::is_zero) {
            return Ok(());
        }
        let host_offset = host.saturating_add(from.saturating_sub(cluster_start));
        let length = to.saturating_sub(from);
        match piece.fills.last_mut() {
            Some(last) if last.guest_offset.saturating_add(last.length) == from => {
                last.length = last.length.saturating_add(length);
                last.sources.extend(sources);
            }
            Some(_) | None => piece.fills.push(Fill { guest_offset: from, host_offset, length, sources }),
        }
        Ok(())
    }

    /// What has to be written so that `from..to` can be: with encryption, whole sectors.
    fn whole_sectors(&self, from: u64, to: u64) -> (u64, u64) {
        if self.encryption().is_none() {
            return (from, to);
        }
        let start = from.saturating_sub(from.checked_rem(SECTOR_BYTES).unwrap_or(0));
        (start, to.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(to))
    }

    /// Moves the bytes of one piece: data and fills, gathered where they lie side by side.
    fn move_piece(&self, piece: &Piece, data: &[u8]) -> Result<()> {
        if let Some(cipher) = self.cipher() {
            return self.move_encrypted(cipher, piece, data);
        }
        let target = self.data_at_depth(0)?;
        let site = |e| Error::from(e).at_guest(piece.guest_offset);
        let total = piece.fills.iter().fold(piece.length, |sum, fill| sum.saturating_add(fill.length));
        if piece.fills.is_empty() || total > GATHER_BYTES {
            for fill in &piece.fills {
                target.write_at(fill.host_offset.get(), &self.read_fill(fill)?).map_err(site)?;
            }
            return target.write_at(piece.host_offset.get(), data).map_err(site);
        }
        let mut gathered: Vec<u8> = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        let mut gathered_at = HostOffset::default();
        let mut add = |at: HostOffset, bytes: &[u8]| -> Result<()> {
            let end = gathered_at.saturating_add(u64::try_from(gathered.len()).unwrap_or(0));
            if !gathered.is_empty() && end != at {
                target.write_at(gathered_at.get(), &gathered).map_err(site)?;
                gathered.clear();
            }
            if gathered.is_empty() {
                gathered_at = at;
            }
            gathered.extend_from_slice(bytes);
            Ok(())
        };
        let mut data_due = true;
        for fill in &piece.fills {
            if data_due && fill.guest_offset > piece.guest_offset {
                add(piece.host_offset, data)?;
                data_due = false;
            }
            add(fill.host_offset, &self.read_fill(fill)?)?;
        }
        if data_due {
            add(piece.host_offset, data)?;
        }
        target.write_at(gathered_at.get(), &gathered).map_err(site)
    }

    pub(super) fn read_fill(&self, fill: &Fill) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; usize::try_from(fill.length).unwrap_or(0)];
        let mut rest = bytes.as_mut_slice();
        for source in &fill.sources {
            let (head, tail) = rest.split_at_mut(usize::try_from(source.length).unwrap_or(0).min(rest.len()));
            self.read_extent(source, head)?;
            rest = tail;
        }
        Ok(bytes)
    }

    /// What must hold before guest data change, and what the first change must announce on storage.
    pub(super) fn begin_writing(&mut self) -> Result<()> {
        self.refuse_poisoned()?;
        if self.writing {
            // An operation on snapshots that failed half-way may have left others than those that are known.
            return if self.metadata.guards_snapshots() { Ok(()) } else { self.metadata.guard(&self.storage) };
        }
        self.refuse_read_only()?;
        self.refuse_missing_data_file()?;
        self.begin_changing()?;
        self.start_recording()?;
        self.writing = true;
        Ok(())
    }

    /// What must hold before metadata change, be it on behalf of the guest or not.
    pub(super) fn begin_changing(&mut self) -> Result<()> {
        self.refuse_poisoned()?;
        self.refuse_read_only()?;
        let obstacles = self.header().write_obstacles();
        if obstacles.corrupt {
            return Err(Error::unsupported("writing to an image marked corrupt: repair it first"));
        }
        if obstacles.dirty {
            return Err(Error::unsupported("writing to an image marked dirty: repair it first"));
        }
        self.metadata.guard(&self.storage)?;
        let header = &self.metadata.header().header;
        let unknown = header.autoclear.unknown();
        if !unknown.is_empty() {
            // Section "Header": what we do not maintain must not be believed from now on.
            let known = header.autoclear.without(unknown);
            self.metadata.header_mut().header.autoclear = known;
        }
        if self.metadata.header_waits() {
            // Also when an earlier attempt failed here.
            self.commit()?;
        }
        Ok(())
    }

    fn refuse_read_only(&self) -> Result<()> {
        if self.options.read_only || self.storage.capabilities().read_only {
            return Err(ErrorKind::ReadOnly.into());
        }
        Ok(())
    }
}
