//! Putting what an image holds into a layer below it, and emptying it: `commit`.
//!
//! Like writes, it goes by steps: [`Image::next_commit_batch`] decides under `&mut`, [`Image::move_commit_piece`] moves
//! bytes under `&`, [`Image::link_commit_batch`] links. [`Image::commit_into`] is these steps in a row.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::{Content, Extent, Image, Layer, WritePlan};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::DiscardType;
use crate::metadata::decide::{self, Context};
use crate::storage::{Storage, StorageExtentKind, ZeroMode};

/// The most bytes of one piece, unless one cluster of the base has more.
const PIECE_BYTES: u64 = 2 << 20;

/// How far a commit is; made by [`Image::prepare_commit`].
#[derive(Debug)]
pub struct CommitPlan {
    base: u32,
    at: u64,
    end: u64,
    report: CommitReport,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CommitReport {
    /// Bytes copied into the base.
    pub data_bytes: u64,
    /// Bytes that were made to read as zeros in the base, and did not before.
    pub zero_bytes: u64,
}

/// A run of guest bytes that goes into the base.
#[derive(Debug)]
#[must_use]
pub struct CommitPiece {
    offset: u64,
    length: u64,
    sources: Vec<Extent>,
    /// Where it goes, if the base is a qcow2 image.
    write: Option<WritePlan>,
}

impl CommitPlan {
    /// How many bytes of the disk are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.at
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.end
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> CommitReport {
        self.report
    }
}

impl CommitPiece {
    /// Bytes that it copies.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl<S: Storage> Image<S> {
    /// Puts what this image, and the layers between, hold into the layer `base` layers down, which must be open for
    /// writing (see [`super::OpenOptions::writable_backing`]). A base that is shorter than this image grows. Durable on
    /// return; the guest sees the same at every instant, so that the image can be emptied ([`Image::empty`]) or dropped
    /// afterwards. What layers between show by themselves may change, unless `base` is 1.
    ///
    /// `progress` is told how many bytes of the disk are done, of how many, and can stop it.
    ///
    /// # Errors
    /// No such layer, one that cannot be written or grow; otherwise as [`Image::read_at`] and [`Image::write_at`].
    /// Stopped by `progress`, it returns what was done.
    ///
    /// # Examples
    /// ```
    /// use std::ops::ControlFlow;
    /// use qcowkit_core::image::{CreateOptions, Image, Layer};
    /// use qcowkit_core::storage::MemoryStorage;
    ///
    /// let mut base = Image::create(MemoryStorage::new(), 1 << 20, &CreateOptions::default())?;
    /// base.write_at(0, b"base")?;
    /// let options = CreateOptions {
    ///     backing_file: Some("base.qcow2".into()),
    ///     backing_format: Some("qcow2".into()),
    ///     ..CreateOptions::default()
    /// };
    /// let overlay = Image::create(MemoryStorage::new(), 1 << 20, &options)?;
    /// let mut overlay = overlay.with_backing(Layer::Image(Box::new(base)));
    /// overlay.write_at(2, b"nk")?;
    ///
    /// let report = overlay.commit_into(1, &mut |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(report.data_bytes, 1 << 16);
    /// overlay.empty()?;
    /// let mut bytes = [0; 4];
    /// overlay.image_at_depth_mut(1).expect("the base").read_at(0, &mut bytes)?;
    /// assert_eq!(&bytes, b"bank");
    /// # Ok::<(), qcowkit_core::Error>(())
    /// ```
    pub fn commit_into(
        &mut self,
        base: u32,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<CommitReport> {
        let mut plan = self.prepare_commit(base)?;
        let mut buffer = Vec::new();
        while plan.at < plan.end && progress(plan.at, plan.end).is_continue() {
            let pieces = self.next_commit_batch(&mut plan, PIECE_BYTES)?;
            let moved = pieces.iter().try_for_each(|piece| self.move_commit_piece(&plan, piece, &mut buffer));
            self.link_commit_batch(&mut plan, pieces, moved.is_ok())?;
            moved?;
        }
        let report = self.finish_commit(plan)?;
        let size = self.virtual_size();
        let _ = progress(size, size);
        Ok(report)
    }

    /// Begins a commit into the layer `base` layers down: what can be refused is refused, a base that is too short grows.
    ///
    /// # Errors
    /// As [`Image::commit_into`].
    pub fn prepare_commit(&mut self, base: u32) -> Result<CommitPlan> {
        let end = self.virtual_size();
        if base == 0 || base >= self.chain_length() {
            return Err(Error::invalid("there is no such layer to commit into"));
        }
        for depth in 0..=base {
            self.refuse_unreadable(depth)?;
        }
        match self.layer_mut(base)? {
            Layer::Raw { storage, length } => {
                if storage.capabilities().read_only {
                    return Err(Error::new(ErrorKind::ReadOnly).at_depth(base));
                }
                if *length < end {
                    if !storage.capabilities().grows {
                        let what = "the base is a device smaller than the image".into();
                        return Err(Error::new(ErrorKind::NoSpace(what)).at_depth(base));
                    }
                    storage.set_len(end)?;
                    *length = end;
                }
            }
            Layer::Image(image) => {
                image.begin_writing().map_err(|error| error.at_depth(base))?;
                if image.virtual_size() < end {
                    let size = end.checked_next_multiple_of(512).unwrap_or(end);
                    image.resize(size).map_err(|error| error.at_depth(base))?;
                }
            }
        }
        Ok(CommitPlan { base, at: 0, end, report: CommitReport::default() })
    }

    /// Decides what goes into the base next, about `most` bytes of data at a time, and makes the zeros before it. No two
    /// pieces of a batch touch the same cluster of the base, so that they can be moved at once. Empty at the end, and
    /// also where there was nothing but zeros: [`CommitPlan::done`] tells.
    ///
    /// # Errors
    /// As [`Image::commit_into`]; nothing is left allocated then.
    pub fn next_commit_batch(&mut self, plan: &mut CommitPlan, most: u64) -> Result<Vec<CommitPiece>> {
        let unit = match self.layer_mut(plan.base)? {
            Layer::Image(image) => image.geometry().cluster_size(),
            Layer::Raw { .. } => 512,
        };
        // Pieces end with a cluster of the base, as far as that goes.
        let cut_after = |first: u64| {
            let cut = first.saturating_add(PIECE_BYTES.max(unit));
            cut.saturating_sub(cut.checked_rem(unit).unwrap_or(0))
        };
        let start = plan.at;
        let mut pieces: Vec<CommitPiece> = Vec::new();
        let mut bytes = 0u64;
        // Also a long way without data ends, so that progress is seen.
        while plan.at < plan.end && bytes < most && plan.at.saturating_sub(start) < most.saturating_mul(64) {
            let (found, length) = self.extent_above(plan.at, plan.end.saturating_sub(plan.at), plan.base)?;
            let Some(extent) = found else {
                plan.at = plan.at.saturating_add(length.max(1));
                continue;
            };
            let extent = self.without_holes(extent);
            let (last_end, continues) = match pieces.last() {
                Some(last) => (last.end(), last.end() == plan.at && plan.at < cut_after(last.offset)),
                None => (0, false),
            };
            let same_cluster =
                !pieces.is_empty() && plan.at.checked_div(unit) == last_end.saturating_sub(1).checked_div(unit);
            if extent.is_zero() {
                if same_cluster {
                    break;
                }
                plan.report.zero_bytes =
                    plan.report.zero_bytes.saturating_add(self.zero_base(plan.base, plan.at, extent.length)?);
                plan.at = plan.at.saturating_add(extent.length.max(1));
                continue;
            }
            if same_cluster && !continues {
                break;
            }
            let first = pieces.last().filter(|_| continues).map_or(plan.at, |last| last.offset);
            let length = extent.length.min(cut_after(first).saturating_sub(plan.at));
            let source = Extent { length, ..extent };
            match pieces.last_mut() {
                Some(last) if continues => {
                    last.length = last.length.saturating_add(length);
                    last.sources.push(source);
                }
                Some(_) | None => {
                    pieces.push(CommitPiece { offset: plan.at, length, sources: vec![source], write: None });
                }
            }
            bytes = bytes.saturating_add(length);
            plan.at = plan.at.saturating_add(length);
        }
        self.reserve_in_base(plan.base, &mut pieces)?;
        Ok(pieces)
    }

    fn reserve_in_base(&mut self, base: u32, pieces: &mut [CommitPiece]) -> Result<()> {
        let Layer::Image(image) = self.layer_mut(base)? else { return Ok(()) };
        for at in 0..pieces.len() {
            let Some(piece) = pieces.get_mut(at) else { break };
            match image.prepare_write(piece.offset, piece.length) {
                Ok(write) => piece.write = Some(write),
                Err(error) => {
                    for piece in pieces.iter_mut() {
                        if let Some(write) = piece.write.take() {
                            image.abort_write(write)?;
                        }
                    }
                    return Err(error.at_depth(base));
                }
            }
        }
        Ok(())
    }

    /// Copies one piece. Moves bytes only: other threads may do the same with other pieces of the batch. `buffer` is
    /// used for it, whatever it holds.
    ///
    /// # Errors
    /// When a storage of the chain fails, or compressed data cannot be unpacked.
    pub fn move_commit_piece(&self, plan: &CommitPlan, piece: &CommitPiece, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(usize::try_from(piece.length).unwrap_or(usize::MAX), 0);
        let mut rest = buffer.as_mut_slice();
        for source in &piece.sources {
            let (head, tail) = rest.split_at_mut(usize::try_from(source.length).unwrap_or(usize::MAX).min(rest.len()));
            self.read_extent(source, head)?;
            rest = tail;
        }
        match (&piece.write, self.image_at_depth(plan.base)) {
            (Some(write), Some(image)) => image.write_planned(write, buffer),
            (None, None) => {
                let site = |e| Error::from(e).at_guest(piece.offset).at_depth(plan.base);
                self.data_at_depth(plan.base)?.write_at(piece.offset, buffer).map_err(site)
            }
            (Some(_), None) | (None, Some(_)) => Err(Error::invalid("a piece of another commit")),
        }
    }

    /// Links the pieces of a batch in the base, all of which have been moved; otherwise gives up what was reserved.
    ///
    /// # Errors
    /// When tables cannot be read or written.
    pub fn link_commit_batch(&mut self, plan: &mut CommitPlan, pieces: Vec<CommitPiece>, moved: bool) -> Result<()> {
        for piece in pieces {
            if let (Some(write), Layer::Image(image)) = (piece.write, self.layer_mut(plan.base)?) {
                if moved { image.commit_write(write)? } else { image.abort_write(write)? }
            }
            if moved {
                plan.report.data_bytes = plan.report.data_bytes.saturating_add(piece.length);
            }
        }
        Ok(())
    }

    /// Makes the base durable, also one that holds only a part.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn finish_commit(&mut self, plan: CommitPlan) -> Result<CommitReport> {
        // What was unpacked before may lie where the base has written.
        for depth in 0..plan.base {
            if let Some(image) = self.image_at_depth_mut(depth) {
                image.unpacked = None;
            }
        }
        match self.layer_mut(plan.base)? {
            Layer::Image(image) => image.finish()?,
            Layer::Raw { storage, .. } => storage.barrier()?,
        }
        Ok(plan.report)
    }

    /// Does what the first write does before it changes anything: what forbids writing is found out, and the image made
    /// ready. For callers that change other files first.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn prepare_writing(&mut self) -> Result<()> {
        self.begin_writing()
    }

    /// Drops everything that this layer holds, so that its backing file shows, or zeros without one. Space that nobody
    /// else uses is given back as the policy says for snapshots, and the file becomes as short as it can. Snapshots keep
    /// what they have. Durable on return.
    ///
    /// After [`Image::commit_into`] of the layer right below, the guest sees no difference.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn empty(&mut self) -> Result<()> {
        self.begin_writing()?;
        let geometry = *self.geometry();
        let context = Context { full: true, kind: DiscardType::Snapshot, ..self.request_context() };
        // VM state lies beyond the end of the disk; a snapshot that was applied may have left it there.
        let mapped = match self.header().header.snapshot_count {
            0 => self.metadata.l1_len().saturating_mul(geometry.l2_entries()).max(geometry.guest_clusters()),
            _ => geometry.guest_clusters(),
        };
        self.each_cluster(0, mapped, &context, |entry, context| Some(decide::discard(entry, context)))?;
        let tables = mapped.div_ceil(geometry.l2_entries().max(1));
        self.drop_tables(0, tables, self.options.policy.passes(DiscardType::Snapshot))?;
        self.finish()?;
        self.unpacked = None;
        self.cut_free_end()
    }

    /// The extent at `offset` that a layer above the base has, or nothing if it is left to the base; and how far that
    /// goes. Where a layer in between is too short, zeros show.
    fn extent_above(&mut self, offset: u64, length: u64, levels: u32) -> Result<(Option<Extent>, u64)> {
        let here = self.next_local_extent(offset, length)?;
        if here.content != Content::Unallocated {
            return Ok((Some(here), here.length));
        }
        match &mut self.backing {
            Some(_) if levels <= 1 => Ok((None, here.length)),
            Some(Layer::Image(below)) => {
                let size = below.virtual_size();
                if offset >= size {
                    return Ok((Some(here), here.length));
                }
                let length = here.length.min(size.saturating_sub(offset));
                let (found, length) = below.extent_above(offset, length, levels.saturating_sub(1))?;
                Ok((found.map(|extent| Extent { depth: extent.depth.saturating_add(1), ..extent }), length))
            }
            Some(Layer::Raw { .. }) | None => Err(Error::invalid("there is no such layer to commit into")),
        }
    }

    /// Makes a range of the base read as zeros; gives the bytes that did not before.
    fn zero_base(&mut self, base: u32, offset: u64, length: u64) -> Result<u64> {
        let end = offset.saturating_add(length);
        let (mut at, mut changed) = (offset, 0u64);
        let layer = self.layer_mut(base)?;
        while at < end {
            let left = end.saturating_sub(at);
            let (zero, length) = match layer {
                Layer::Image(image) => {
                    let extent = image.next_extent(at, left)?;
                    (extent.is_zero(), extent.length)
                }
                Layer::Raw { storage, .. } => {
                    let found = storage.next_extent(at)?;
                    let length = if found.length == 0 { left } else { found.length.min(left) };
                    (found.kind == StorageExtentKind::Hole, length)
                }
            };
            if !zero {
                match layer {
                    Layer::Image(image) => image.write_zeroes(at, length, true)?,
                    Layer::Raw { storage, .. } => storage.write_zeroes(at, length, ZeroMode::MayUnmap)?,
                }
                changed = changed.saturating_add(length);
            }
            at = at.saturating_add(length.max(1));
        }
        Ok(changed)
    }

    /// The layer `depth` layers down, at least 1.
    fn layer_mut(&mut self, depth: u32) -> Result<&mut Layer<S>> {
        let none = || Error::invalid("there is no such layer to commit into");
        let mut layer = self.backing.as_mut().ok_or_else(none)?;
        for _ in 1..depth {
            layer = match layer {
                Layer::Image(image) => image.backing.as_mut().ok_or_else(none)?,
                Layer::Raw { .. } => return Err(none()),
            };
        }
        Ok(layer)
    }
}
