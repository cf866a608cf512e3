//! Carrying out what [`crate::metadata::decide`] decided: discards and write-zeroes.

use alloc::vec;
use alloc::vec::Vec;

use super::{Content, Image};
use crate::error::Result;
use crate::format::{GuestCluster, GuestOffset, HostCluster, L2Entry};
use crate::metadata::decide::{self, Context, DiscardType, Effect, HostOp, HostRange, Release, Step};
use crate::metadata::{Quarantined, Touch};
use crate::storage::{Storage, ZeroMode};

/// Host operations of one call that lie side by side are done as one.
struct HostOps {
    now: Option<(HostRange, Effect)>,
    /// Entries that say "zero" once the zeros of `now` are there: until then a raw data file would show something else.
    waiting: Vec<(GuestCluster, L2Entry)>,
    after_commit: Vec<HostRange>,
    /// Those of kept clusters that have to wait until their entries are durable.
    deferred: Vec<(HostRange, Effect)>,
}

impl<S: Storage> Image<S> {
    /// Tells the image that the guest needs a range no more. Whole clusters only: what is left of a cluster at the
    /// ends is ignored, except the last, partial cluster of the disk. The policy of the options says what happens to
    /// the mapping and to the space below; afterwards the range reads as zeros.
    ///
    /// Nothing happens with `discard` off, and in an image of version 2 with a backing file, which has no way to say
    /// "zero".
    ///
    /// # Errors
    /// A range beyond the virtual disk, a read-only or poisoned image, a storage that fails in earnest.
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = self.guest_range(offset, length)?;
        let context = self.request_context();
        if !self.options.discard || (context.geometry.version() < 3 && context.has_backing) {
            return Ok(());
        }
        self.begin_writing()?;
        // All of the request, as in QEMU, also what is less than a cluster at its ends and stays as it is.
        self.mark_dirty(offset, length);
        let first = context.geometry.clusters_for(offset);
        let last = if end == self.virtual_size() { context.geometry.align_up(end) } else { end };
        let last = context.geometry.guest_cluster(GuestOffset::new(last)).get();
        self.each_cluster(first, last, &context, |entry, context| Some(decide::discard(entry, context))).map(drop)
    }

    /// Makes a range read as zeros without writing them, where the format can say it: with extended L2 entries by
    /// subcluster, else by cluster; the rest is written as zeros. `may_unmap` lets the policy give clusters back, but
    /// only in an image that was opened with `discard`.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn write_zeroes(&mut self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        let end = self.guest_range(offset, length)?;
        self.begin_writing()?;
        self.mark_dirty(offset, length);
        let may_unmap = may_unmap && self.options.discard;
        let unit = self.geometry().subcluster_size().max(1);
        // The disk's last, partial unit counts as whole.
        let round_up = |at: u64| at.div_ceil(unit).saturating_mul(unit);
        let round_down = |at: u64| at.saturating_sub(at.checked_rem(unit).unwrap_or(0));
        let from = round_up(offset);
        let to = if end == self.virtual_size() { round_up(end) } else { round_down(end) };
        // In this order, as QEMU does it, so that the tail can reuse what the middle gives back.
        if offset < from {
            self.zero_part_of_unit(offset, end.min(from), may_unmap)?;
        }
        if from < to {
            self.zero_units(from, to, may_unmap)?;
        }
        if to < end && from < end { self.zero_part_of_unit(to, end, may_unmap) } else { Ok(()) }
    }

    /// Zeroes a part of one unit: by zeroing it whole where the rest reads as zeros too, else by writing zeros.
    fn zero_part_of_unit(&mut self, from: u64, to: u64, may_unmap: bool) -> Result<()> {
        let unit = self.geometry().subcluster_size().max(1);
        let unit_start = from.saturating_sub(from.checked_rem(unit).unwrap_or(0));
        if self.rest_reads_zero(unit_start, from, to)? {
            self.zero_units(unit_start, unit_start.saturating_add(unit), may_unmap)
        } else {
            self.write_zero_bytes(from, to)
        }
    }

    /// Whether a unit that is zeroed in part reads as zeros elsewhere, because it is unallocated or zero: it can then
    /// be zeroed whole.
    fn rest_reads_zero(&mut self, unit_start: u64, zero_from: u64, zero_to: u64) -> Result<bool> {
        let unit_end = unit_start.saturating_add(self.geometry().subcluster_size()).min(self.virtual_size());
        let here = self.next_local_extent(unit_start, unit_end.saturating_sub(unit_start))?;
        if !matches!(here.content, Content::Unallocated | Content::Zero { .. }) {
            return Ok(false);
        }
        for (from, to) in [(unit_start, zero_from), (zero_to, unit_end)] {
            let mut at = from;
            while at < to {
                let extent = self.next_extent(at, to.saturating_sub(at))?;
                if !extent.is_zero() && !self.extent_reads_zero(&extent)? {
                    return Ok(false);
                }
                at = at.saturating_add(extent.length.max(1));
            }
        }
        Ok(true)
    }

    /// Whether data of a lower layer lie in a hole of their file.
    fn extent_reads_zero(&self, extent: &super::Extent) -> Result<bool> {
        let Content::Data { host_offset } = extent.content else { return Ok(false) };
        if self.extent_is_encrypted(extent) {
            // A hole there would be read as garbage, not as zeros.
            return Ok(false);
        }
        let found = self.data_at_depth(extent.depth)?.next_extent(host_offset.get())?;
        Ok(found.kind == crate::storage::StorageExtentKind::Hole && found.length >= extent.length)
    }

    /// Writes zeros as data, whatever `detect_zeroes` says.
    fn write_zero_bytes(&mut self, from: u64, to: u64) -> Result<()> {
        const ZEROS: u64 = 1 << 20;
        let zeros = vec![0u8; usize::try_from(to.saturating_sub(from).min(ZEROS)).unwrap_or(0)];
        let mut at = from;
        while at < to {
            let length = to.saturating_sub(at).min(ZEROS);
            let bytes = zeros.get(..usize::try_from(length).unwrap_or(0)).unwrap_or(&zeros);
            self.write_data(at, bytes)?;
            at = at.saturating_add(length);
        }
        Ok(())
    }

    /// Zeroes whole units: subclusters at the ends, clusters between them.
    fn zero_units(&mut self, from: u64, to: u64, may_unmap: bool) -> Result<()> {
        let context = self.request_context();
        let geometry = context.geometry;
        let size = geometry.cluster_size();
        // The disk's last cluster counts as whole, even if the disk ends within it.
        let last_start = geometry.guest_clusters().saturating_sub(1).saturating_mul(size);
        let to = if from <= last_start && to >= self.virtual_size() { geometry.align_up(to) } else { to };
        let (first, last) = (geometry.clusters_for(from), geometry.guest_cluster(GuestOffset::new(to)).get());
        let partial = |image: &mut Self, cluster: u64, from: u64, to: u64| -> Result<()> {
            let start = cluster.saturating_mul(size);
            let part = |at: u64| {
                let part = at.saturating_sub(start).checked_div(geometry.subcluster_size()).unwrap_or(0);
                u32::try_from(part).unwrap_or(u32::MAX)
            };
            let range = part(from)..part(to);
            let done = image.each_cluster(cluster, cluster.saturating_add(1), &context, |entry, context| {
                decide::write_zeroes_subclusters(entry, context, range.clone(), may_unmap)
            })?;
            if done { Ok(()) } else { image.write_zero_bytes(from, to.min(image.virtual_size())) }
        };
        if first > last {
            return partial(self, last, from, to);
        }
        if from < first.saturating_mul(size) {
            partial(self, first.saturating_sub(1), from, first.saturating_mul(size))?;
        }
        let done =
            self.each_cluster(first, last, &context, |entry, context| decide::write_zeroes(entry, context, may_unmap))?;
        if !done {
            let end = last.saturating_mul(size).min(self.virtual_size());
            self.write_zero_bytes(first.saturating_mul(size), end)?;
        }
        if last.saturating_mul(size) < to {
            partial(self, last, last.saturating_mul(size), to)?;
        }
        Ok(())
    }

    pub(super) fn request_context(&self) -> Context {
        Context {
            has_backing: self.header().backing_file.is_some(),
            data_file_raw: self.header().header.autoclear.data_file_raw(),
            ..Context::request(*self.geometry(), self.options.policy)
        }
    }

    /// Takes the decision for each guest cluster of `first..last` and carries it out. False when `decide` could not
    /// say it for a cluster: then nothing was changed from there on.
    pub(super) fn each_cluster(
        &mut self,
        first: u64,
        last: u64,
        context: &Context,
        decide: impl Fn(L2Entry, &Context) -> Option<Step>,
    ) -> Result<bool> {
        let mut ops = HostOps { now: None, waiting: Vec::new(), after_commit: Vec::new(), deferred: Vec::new() };
        let done = self.each_cluster_with(first, last, context, decide, &mut ops);
        // Also after a failure: what was decided is in the tables, and a later write must find the holes made.
        self.finish_host_op(&mut ops)?;
        if !ops.deferred.is_empty() {
            self.commit()?;
            for (range, effect) in core::mem::take(&mut ops.deferred) {
                self.host_operation(range, effect)?;
            }
        }
        let done = done?;
        if !ops.after_commit.is_empty() {
            self.commit()?;
            for range in ops.after_commit {
                let _ = self.data_storage().discard(range.offset.get(), range.length);
            }
        }
        Ok(done)
    }

    fn each_cluster_with(
        &mut self,
        first: u64,
        last: u64,
        context: &Context,
        decide: impl Fn(L2Entry, &Context) -> Option<Step>,
        ops: &mut HostOps,
    ) -> Result<bool> {
        let mut at = first;
        // A missing table is one decision for all its clusters, as long as nothing changes.
        let nothing_to_do = decide(L2Entry::UNALLOCATED, context).is_some_and(|step| !step.changed);
        while at < last {
            let cluster = GuestCluster::new(at);
            let per_step = self.metadata.entries_per_step().max(1);
            let in_step = per_step.saturating_sub(at.checked_rem(per_step).unwrap_or(0));
            let l1_index = context.geometry.l1_index(cluster);
            if nothing_to_do && self.table_says_nothing(cluster)? {
                at = context.geometry.cluster_at(l1_index.saturating_add(1), 0).get();
                continue;
            }
            let most = in_step.min(last.saturating_sub(at));
            let mut runs: Vec<(L2Entry, u64)> = Vec::new();
            self.metadata.visit_runs(&self.storage, cluster, most, |entry, count| {
                runs.push((entry.copied().unwrap_or(L2Entry::UNALLOCATED), count));
                true
            })?;
            let mut position = cluster;
            for (entry, count) in runs {
                if !self.carry_out_run(position, entry, count, context, &decide, ops)? {
                    return Ok(false);
                }
                position = position.saturating_add(count);
            }
            at = at.saturating_add(most);
            let commits = self.metadata.wants_commit();
            if commits || !ops.waiting.is_empty() {
                self.finish_host_op(ops)?;
            }
            if commits {
                self.commit()?;
            }
        }
        Ok(true)
    }

    /// Whether no cluster of an L2 table is mapped, as is known without reading it: there is no table, or `first`, its first
    /// cluster, begins one that lies in a hole.
    fn table_says_nothing(&self, first: GuestCluster) -> Result<bool> {
        let geometry = self.geometry();
        let table = self.metadata.l2_table(geometry.l1_index(first))?;
        let whole = geometry.l2_index(first) == 0;
        Ok(table.is_none_or(|table| whole && self.metadata.says_nothing(&self.storage, table.offset)))
    }

    /// Decides and carries out for clusters of which each goes on with the one before. False as soon as `decide` cannot
    /// say it.
    fn carry_out_run(
        &mut self,
        first: GuestCluster,
        entry: L2Entry,
        count: u64,
        context: &Context,
        decide: &impl Fn(L2Entry, &Context) -> Option<Step>,
        ops: &mut HostOps,
    ) -> Result<bool> {
        for n in 0..count {
            let here = entry.further(n.saturating_mul(context.geometry.cluster_size()));
            let Some(step) = decide(here, context) else { return Ok(false) };
            if here.host().is_none() && !step.changed && step.host_op == HostOp::None {
                // All of them are equal, and nothing is to be done for one.
                return Ok(true);
            }
            self.carry_out(first.saturating_add(n), step, context, ops)?;
        }
        Ok(true)
    }

    fn carry_out(&mut self, cluster: GuestCluster, step: Step, context: &Context, ops: &mut HostOps) -> Result<()> {
        let touched = match (step.release, step.host_op) {
            (Release::Refs(range), _) | (_, HostOp::Now(range, _)) if !context.geometry.data_file() => Some(range),
            _ => None,
        };
        if let Some(range) = touched {
            let (first, count) = host_clusters(range, context);
            let refused = self.metadata.refuse_metadata(first, count, Touch::GuestData);
            refused.map_err(|e| e.at_guest(context.geometry.guest_start(cluster).get()))?;
        }
        if step.changed {
            self.metadata.writable_table(&self.storage, context.geometry.l1_index(cluster))?;
        }
        let release = match step.release {
            Release::Refs(range) => {
                let (first, count) = host_clusters(range, context);
                Some(Quarantined { first, count, pass: matches!(step.host_op, HostOp::AfterCommit(_)) })
            }
            Release::None => None,
        };
        let zeros_first = self.encryption().is_none()
            && matches!(step.host_op, HostOp::Now(_, Effect::ZeroMayUnmap | Effect::ZeroKeep));
        // A reference can turn out to be corrupt, and then the entry stays; an entry that cannot be changed keeps its
        // reference.
        if let Some(release) = release {
            self.metadata.refuse_unreferenced(&self.storage, release)?;
        }
        if step.changed && !zeros_first {
            self.metadata.set_entry(&self.storage, cluster, step.entry)?;
        }
        if let Some(release) = release {
            self.metadata.release_sound(release);
            self.unpacked = None;
        }
        match step.host_op {
            HostOp::None => Ok(()),
            HostOp::AfterCommit(range) => {
                if step.release == Release::None {
                    ops.after_commit.push(range);
                }
                Ok(())
            }
            HostOp::Now(range, effect) => {
                self.host_op_now(range, effect, ops)?;
                if step.changed && zeros_first {
                    ops.waiting.push((cluster, step.entry));
                }
                Ok(())
            }
        }
    }

    /// Joins a host operation with the one before, or does that one.
    fn host_op_now(&mut self, range: HostRange, effect: Effect, ops: &mut HostOps) -> Result<()> {
        if self.encryption().is_some() {
            // After a cut between the two, the old entry would show what zeros of the file decrypt to: neither old nor
            // new. Without encryption it shows zeros, which is what was asked for.
            match ops.deferred.last_mut() {
                Some((last, last_effect))
                    if *last_effect == effect && last.offset.saturating_add(last.length) == range.offset =>
                {
                    last.length = last.length.saturating_add(range.length);
                }
                Some(_) | None => ops.deferred.push((range, effect)),
            }
            return Ok(());
        }
        if let Some((last, last_effect)) = &mut ops.now
            && *last_effect == effect
            && last.offset.saturating_add(last.length) == range.offset
        {
            last.length = last.length.saturating_add(range.length);
            return Ok(());
        }
        self.finish_host_op(ops)?;
        ops.now = Some((range, effect));
        Ok(())
    }

    fn finish_host_op(&mut self, ops: &mut HostOps) -> Result<()> {
        let waiting = core::mem::take(&mut ops.waiting);
        if let Some((range, effect)) = ops.now.take() {
            self.host_operation(range, effect)?;
        }
        for (cluster, entry) in waiting {
            self.metadata.set_entry(&self.storage, cluster, entry)?;
        }
        Ok(())
    }

    fn host_operation(&mut self, range: HostRange, effect: Effect) -> Result<()> {
        let storage = self.data_file.as_ref().unwrap_or(&self.storage);
        let mode = match effect {
            Effect::Discard => {
                // Advisory: space that stays allocated is not an error of the guest's.
                let _ = storage.discard(range.offset.get(), range.length);
                return Ok(());
            }
            Effect::ZeroMayUnmap => ZeroMode::MayUnmap,
            Effect::ZeroKeep => ZeroMode::KeepAllocated,
        };
        storage.write_zeroes(range.offset.get(), range.length, mode)?;
        self.note_data();
        Ok(())
    }

    /// Drops the mapping of whole clusters altogether, so that nothing or the backing file shows: for shrinking.
    pub(super) fn drop_clusters(&mut self, first: u64, last: u64) -> Result<()> {
        let context = Context { full: true, kind: DiscardType::Always, ..self.request_context() };
        self.each_cluster(first, last, &context, |entry, context| Some(decide::discard(entry, context))).map(drop)
    }
}

/// The host clusters that a range touches: the first, and how many.
fn host_clusters(range: HostRange, context: &Context) -> (HostCluster, u64) {
    let last = range.offset.saturating_add(range.length.saturating_sub(1));
    let first = context.geometry.host_cluster(range.offset);
    (first, context.geometry.host_cluster(last).distance_from(first).saturating_add(1))
}
