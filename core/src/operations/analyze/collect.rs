//! Meets the walk and notes who claims what.

use super::claims::{Claims, MAX_ANALYSIS_MAP_BYTES, Paged};
use super::gains::Counts;
use super::layout::GuestWalk;
use super::ranges::Ranges;
use crate::error::{Result, Structure};
use crate::format::{CompressedRange, EntryError, Geometry, HostOffset, L2Entry, L2Run, Subclusters, read_refcount};
use crate::operations::walk::{
    BlockPlace, Fault, HostReference, L2Table, RefcountTable, Source, TableReader, Uses, Visitor,
};
use crate::storage::ReadStorage;

/// Everything that the walk told, in the form that the ledger needs.
pub(super) struct Notes {
    pub(super) geometry: Geometry,
    /// Claims on the clusters of the image file.
    pub(super) claims: Paged<Claims>,
    /// Claims on the clusters of the data file.
    pub(super) data_claims: Paged<Claims>,
    /// For clusters with [`Claims::MAPPED`]: the parts that hold data of the active disk.
    pub(super) masks: Paged<u32>,
    /// Compressed streams of the active disk.
    pub(super) streams: Ranges,
    /// Compressed streams of snapshots.
    pub(super) snapshot_streams: Ranges,
    pub(super) guest: GuestWalk,
    pub(super) counts: Counts,
    pub(super) references_beyond_end: u64,
    pub(super) references_missing: bool,
    pub(super) faults: u64,
}

/// Takes notes during the walk.
pub(super) struct Collector<'p> {
    notes: Notes,
    progress: &'p mut dyn FnMut(u64, u64),
}

impl<'p> Collector<'p> {
    pub(super) fn new(
        geometry: Geometry,
        file_length: u64,
        data_file_length: u64,
        progress: &'p mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let clusters = geometry.clusters_for(file_length);
        let data_clusters = geometry.clusters_for(data_file_length);
        // With a data file, clusters with parts are there.
        let masked = if geometry.data_file() { data_clusters } else { clusters };
        let notes = Notes {
            geometry,
            claims: Paged::new(clusters, MAX_ANALYSIS_MAP_BYTES)?,
            data_claims: Paged::new(data_clusters, MAX_ANALYSIS_MAP_BYTES)?,
            masks: Paged::new(masked, MAX_ANALYSIS_MAP_BYTES)?,
            streams: Ranges::default(),
            snapshot_streams: Ranges::default(),
            guest: GuestWalk::default(),
            counts: Counts::default(),
            references_beyond_end: 0,
            references_missing: false,
            faults: 0,
        };
        Ok(Self { notes, progress })
    }

    pub(super) fn finish(self) -> Notes {
        self.notes
    }

    /// Marks the clusters whose refcount is not zero. Gives whether all refcounts could be read.
    pub(super) fn count<S: ReadStorage + ?Sized>(
        &mut self,
        storage: &S,
        file_length: u64,
        table: &RefcountTable,
    ) -> Result<bool> {
        let per_block = self.notes.geometry.refcount_block_entries();
        let mut block = alloc::vec![0u8; self.notes.geometry.cluster_len()];
        let mut reader = TableReader::new(storage, file_length);
        let mut all = true;
        let blocks = u64::try_from(table.entries().len()).unwrap_or(u64::MAX);
        for index in 0..blocks {
            let first = index.saturating_mul(per_block);
            if first >= self.notes.claims.clusters() {
                break;
            }
            match table.block(index) {
                BlockPlace::None => {}
                BlockPlace::Unaligned(_) => all = false,
                BlockPlace::At(offset) => match reader.read(offset.get(), &mut block) {
                    Ok(true) => self.count_block(first, &block)?,
                    Ok(false) => {}
                    Err(_) => all = false,
                },
            }
        }
        Ok(all)
    }

    /// One refcount block; zeros are skipped eight bytes at once.
    fn count_block(&mut self, first: u64, block: &[u8]) -> Result<()> {
        let order = self.notes.geometry.refcount_order();
        let per_word = 1u64.wrapping_shl(6u32.saturating_sub(order));
        let (words, _) = block.as_chunks::<8>();
        let (mut run_start, mut run) = (first, 0u64);
        for (word, at) in words.iter().zip((first..).step_by(usize::try_from(per_word).unwrap_or(1))) {
            if *word == [0; 8] {
                continue;
            }
            for index in 0..per_word {
                let cluster = at.saturating_add(index);
                if read_refcount(word, index, order).unwrap_or(0) == 0 {
                    continue;
                }
                if run_start.saturating_add(run) != cluster {
                    self.notes.claims.claim(run_start, run, Claims::COUNTED)?;
                    (run_start, run) = (cluster, 0);
                }
                run = run.saturating_add(1);
            }
        }
        self.notes.claims.claim(run_start, run, Claims::COUNTED)?;
        Ok(())
    }

    fn claim(&mut self, offset: u64, length: u64, claims: Claims) -> Result<()> {
        let first = self.notes.geometry.host_cluster(HostOffset::new(offset)).get();
        let last = offset.saturating_add(length.saturating_sub(1));
        let last = self.notes.geometry.host_cluster(HostOffset::new(last)).get();
        let count = if length == 0 { 0 } else { last.saturating_sub(first).saturating_add(1) };
        let beyond = self.notes.claims.claim(first, count, claims)?;
        self.notes.references_beyond_end = self.notes.references_beyond_end.saturating_add(beyond);
        Ok(())
    }

    fn plain(&mut self, guest: u64, host: u64, count: u64, parts: Subclusters, uses: Uses) -> Result<()> {
        let full = parts.allocated == Subclusters::full_mask(&self.notes.geometry);
        let claims = Claims::of_data(if full { Claims::LIVE } else { Claims::MAPPED }, uses);
        if uses.active > 0 {
            self.notes.guest.mapped(guest, host, count);
            self.note_beyond_size(guest, count);
        }
        let map = if self.notes.geometry.data_file() { &mut self.notes.data_claims } else { &mut self.notes.claims };
        let beyond = map.claim(host, count, claims)?;
        self.notes.references_beyond_end = self.notes.references_beyond_end.saturating_add(beyond);
        if uses.active > 0 && !full && parts.allocated != 0 {
            for cluster in host..host.saturating_add(count) {
                if let Some(mask) = self.notes.masks.at_mut(cluster)? {
                    *mask |= parts.allocated;
                }
            }
        }
        Ok(())
    }

    fn compressed(&mut self, guest: u64, range: CompressedRange, uses: Uses) -> Result<()> {
        let (offset, length) = (range.offset.get(), range.length);
        if uses.active > 0 {
            self.claim(offset, length, Claims::COMPRESSED)?;
            self.notes.streams.add(offset, length)?;
            self.notes.guest.compressed(offset, length);
            self.note_beyond_size(guest, 1);
        }
        if uses.snapshots > 0 {
            self.claim(offset, length, Claims::SNAPSHOT_COMPRESSED)?;
            self.notes.snapshot_streams.add(offset, length)?;
        }
        Ok(())
    }

    fn note_beyond_size(&mut self, guest: u64, count: u64) {
        let end = guest.saturating_add(count);
        let beyond = end.saturating_sub(guest.max(self.notes.geometry.guest_clusters()).min(end));
        self.notes.counts.beyond_size = self.notes.counts.beyond_size.saturating_add(beyond);
    }
}

impl Visitor for Collector<'_> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        // What L2 entries name comes with the runs; names lie in the header cluster.
        let Some(claims) = Claims::of_metadata(reference.target, reference.uses) else { return Ok(()) };
        let counts = &mut self.notes.counts;
        match (reference.target, reference.source) {
            (Structure::L2Table, Source::L1(slot))
                if reference.uses.active > 0 && slot.index >= self.notes.geometry.l1_entries() =>
            {
                counts.l2_beyond = counts.l2_beyond.saturating_add(1);
            }
            (Structure::BitmapTable, _) => {
                counts.bitmap_data_at_most = counts.bitmap_data_at_most.saturating_add(reference.length / 8);
            }
            _ => {}
        }
        self.claim(reference.host_offset, reference.length, claims)
    }

    fn fault(&mut self, fault: &Fault) -> Result<()> {
        self.notes.faults = self.notes.faults.saturating_add(1);
        self.notes.references_missing |= fault.kind.hides_references();
        Ok(())
    }

    fn l2_run(&mut self, table: &L2Table, run: &L2Run) -> Result<()> {
        let guest = self.notes.geometry.cluster_at(table.l1_index, run.first).get();
        match run.entry {
            L2Entry::Plain { host: None, .. } => Ok(()),
            L2Entry::Plain { host: Some(host), parts } => {
                let first = self.notes.geometry.host_cluster(host.offset).get();
                self.plain(guest, first, run.count, parts, table.uses)
            }
            // Such entries refer to nothing; see the walk.
            L2Entry::Compressed(_)
                if run.faults.contains(EntryError::CompressedInDataFile)
                    || run.faults.contains(EntryError::CompressedBitmap) =>
            {
                Ok(())
            }
            L2Entry::Compressed(range) => self.compressed(guest, range, table.uses),
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        (self.progress)(done, total);
        Ok(())
    }
}
