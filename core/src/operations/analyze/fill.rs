//! From claims to classes: one pass over the file, in its order.

use alloc::vec;
use alloc::vec::Vec;

use super::claims::{Claims, Paged};
use super::collect::Notes;
use super::gains::Counts;
use super::layout::{DataRuns, GapCounter};
use super::ledger::{HostCursor, Ledger, Lines, MAX_OVERLAPS, Overlap, SpaceBytes, SpaceClass};
use super::ranges::Ranges;
use crate::error::Result;
use crate::format::Geometry;
use crate::storage::ReadStorage;

/// Bytes that are read at once when zeros are searched.
const PIECE: u64 = 2 << 20;

/// What the pass gives.
pub(super) struct Filled {
    pub(super) ledger: Ledger,
    pub(super) gaps: GapCounter,
    pub(super) runs: DataRuns,
    pub(super) zero_filled: Option<SpaceBytes>,
}

/// The ledger of the image file; counts go to `notes`.
pub(super) fn image<S: ReadStorage + ?Sized>(
    storage: &S,
    file_length: u64,
    notes: &mut Notes,
    scan: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Filled> {
    notes.streams.tidy();
    notes.snapshot_streams.tidy();
    let mut counts = notes.counts;
    let mut pass = Pass::new(storage, file_length, notes, scan);
    pass.over(&notes.claims, &mut counts, progress)?;
    counts.stream_bytes = notes.streams.bytes();
    counts.all_stream_bytes = notes.streams.bytes_with(&notes.snapshot_streams);
    let mut filled = pass.finish();
    filled.ledger.references_beyond_end = notes.references_beyond_end;
    filled.ledger.references_missing = notes.references_missing;
    notes.counts = counts;
    Ok(filled)
}

/// The ledger of the data file.
pub(super) fn data_file<S: ReadStorage + ?Sized>(
    storage: &S,
    file_length: u64,
    notes: &Notes,
    scan: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Filled> {
    let mut pass = Pass::new(storage, file_length, notes, scan);
    pass.over(&notes.data_claims, &mut Counts::default(), progress)?;
    let mut filled = pass.finish();
    // There are no refcounts here.
    filled.ledger.referenced_but_free_bytes = 0;
    Ok(filled)
}

struct Pass<'a, S: ?Sized> {
    geometry: Geometry,
    masks: &'a Paged<u32>,
    streams: &'a Ranges,
    snapshot_streams: &'a Ranges,
    lines: Lines<'a, S>,
    scanner: Option<Scanner<'a, S>>,
    gaps: GapCounter,
    ledger: Ledger,
}

impl<'a, S: ReadStorage + ?Sized> Pass<'a, S> {
    fn new(storage: &'a S, file_length: u64, notes: &'a Notes, scan: bool) -> Self {
        Self {
            geometry: notes.geometry,
            masks: &notes.masks,
            streams: &notes.streams,
            snapshot_streams: &notes.snapshot_streams,
            lines: Lines::new(storage, file_length),
            scanner: scan.then(|| Scanner::new(storage, file_length, notes.geometry.subcluster_size())),
            gaps: GapCounter::default(),
            ledger: Ledger { file_length, ..Ledger::default() },
        }
    }

    fn over(&mut self, claims: &Paged<Claims>, counts: &mut Counts, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let used_end = claims.used_end();
        let mut cluster = 0;
        loop {
            let (held, count) = claims.run(cluster);
            if count == 0 {
                return Ok(());
            }
            let end = cluster.saturating_add(count);
            if held.is_none() {
                let class = if cluster < used_end { SpaceClass::Free } else { SpaceClass::BeyondLastUsed };
                if class == SpaceClass::Free {
                    let (from, to) = (self.start(cluster), self.start(end));
                    self.gaps.add(from, count, to.saturating_sub(from));
                }
                self.lines.add(class, self.start(end))?;
            } else {
                self.claimed(held, cluster, end, counts)?;
            }
            cluster = end;
            progress(cluster, claims.clusters());
        }
    }

    fn finish(self) -> Filled {
        let (classes, runs) = self.lines.finish();
        let total = classes.iter().fold(SpaceBytes::default(), |sum, line| sum.plus(line.space));
        Filled {
            ledger: Ledger { classes, total, ..self.ledger },
            gaps: self.gaps,
            runs,
            zero_filled: self.scanner.map(|scanner| scanner.zeros),
        }
    }

    /// First byte of a cluster, at most the length of the file.
    fn start(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.geometry.cluster_size()).min(self.ledger.file_length)
    }

    /// Clusters in a row with the same claims.
    fn claimed(&mut self, held: Claims, first: u64, end: u64, counts: &mut Counts) -> Result<()> {
        let (from, to) = (self.start(first), self.start(end));
        let bytes = to.saturating_sub(from);
        if held.conflict() {
            self.ledger.overlapping_bytes = self.ledger.overlapping_bytes.saturating_add(bytes);
            if self.ledger.overlaps.len() < MAX_OVERLAPS {
                let claimed_by = Claims::CLASSES.iter().filter(|(claim, _)| held.any(*claim)).map(|(_, class)| *class);
                let mut claimed_by: Vec<SpaceClass> = claimed_by.collect();
                claimed_by.dedup();
                self.ledger.overlaps.push(Overlap { host_offset: from, length: bytes, claimed_by });
            }
        }
        if !held.references().is_none() && !held.any(Claims::COUNTED) {
            let all = &mut self.ledger.referenced_but_free_bytes;
            *all = all.saturating_add(bytes);
        }
        counts.note(held, end.saturating_sub(first));
        match held.class() {
            Some(SpaceClass::LiveData) => {
                counts.live = counts.live.saturating_add(end.saturating_sub(first));
                self.live(to)
            }
            Some(SpaceClass::ZeroRetained) => self.mapped(held, first, end, counts),
            Some(SpaceClass::CompressedData) => self.compressed(to),
            Some(class) => self.lines.add(class, to).map(|_| ()),
            None => self.lines.add(SpaceClass::Leaked, to).map(|_| ()),
        }
    }

    fn live(&mut self, to: u64) -> Result<()> {
        let from = self.lines.at();
        self.lines.add(SpaceClass::LiveData, to)?;
        self.scanner.as_mut().map_or(Ok(()), |scanner| scanner.scan(from, to))
    }

    /// Clusters of which only some parts hold data of the active disk, or none.
    fn mapped(&mut self, held: Claims, first: u64, end: u64, counts: &mut Counts) -> Result<()> {
        let in_snapshots = held.any(Claims::SNAPSHOT_DATA);
        let rest = if in_snapshots { SpaceClass::OnlyInSnapshots } else { SpaceClass::ZeroRetained };
        let mut cluster = first;
        while cluster < end {
            let (mask, run) = self.masks.run(cluster);
            let stop = cluster.saturating_add(run.max(1)).min(end);
            let clusters = stop.saturating_sub(cluster);
            if mask == 0 {
                let space = self.lines.add(rest, self.start(stop))?;
                if in_snapshots {
                    counts.only_snapshot_plain = counts.only_snapshot_plain.saturating_add(clusters);
                } else {
                    counts.retained = counts.retained.plus(space);
                }
            } else {
                counts.live = counts.live.saturating_add(clusters);
                (cluster..stop).try_for_each(|cluster| self.parts(cluster, mask, rest))?;
            }
            cluster = stop;
        }
        Ok(())
    }

    /// One cluster, part by part.
    fn parts(&mut self, cluster: u64, mask: u32, rest: SpaceClass) -> Result<()> {
        let (start, size) = (self.start(cluster), self.geometry.subcluster_size());
        let mut part = 0u32;
        while part < self.geometry.subclusters() {
            let bits = mask.checked_shr(part).unwrap_or(0);
            let live = bits & 1 == 1;
            let run = if live { bits.trailing_ones() } else { bits.trailing_zeros() };
            part = part.saturating_add(run).min(self.geometry.subclusters());
            let to = start.saturating_add(size.saturating_mul(part.into())).min(self.ledger.file_length);
            if live {
                self.live(to)?;
            } else {
                self.lines.add(rest, to)?;
            }
        }
        Ok(())
    }

    /// Clusters with compressed data of the active disk: streams of it, streams of snapshots, and what none uses.
    fn compressed(&mut self, to: u64) -> Result<()> {
        while self.lines.at() < to {
            let at = self.lines.at();
            let (live, until) = self.streams.state(at, to);
            if live {
                self.lines.add(SpaceClass::CompressedData, until)?;
                continue;
            }
            let (snapshot, until) = self.snapshot_streams.state(at, until);
            let class = if snapshot { SpaceClass::OnlyInSnapshots } else { SpaceClass::CompressedSlack };
            self.lines.add(class, until)?;
        }
        Ok(())
    }
}

/// Looks for units of live data that hold nothing but zeros.
struct Scanner<'a, S: ?Sized> {
    storage: &'a S,
    file_length: u64,
    unit: u64,
    host: HostCursor<'a, S>,
    buffer: Vec<u8>,
    zeros: SpaceBytes,
}

impl<'a, S: ReadStorage + ?Sized> Scanner<'a, S> {
    fn new(storage: &'a S, file_length: u64, unit: u64) -> Self {
        let zeros = SpaceBytes::default();
        Self { storage, file_length, unit, host: HostCursor::new(storage, file_length), buffer: Vec::new(), zeros }
    }

    fn scan(&mut self, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let end = at.saturating_add(PIECE.max(self.unit)).min(to);
            self.scan_piece(at, end)?;
            at = end;
        }
        Ok(())
    }

    /// At most a piece; what is a hole throughout is not read.
    fn scan_piece(&mut self, from: u64, to: u64) -> Result<()> {
        let mut in_holes = SpaceBytes::default();
        let mut parts = Vec::new();
        self.host.each(from, to, |kind, at, bytes| {
            in_holes.add(kind, bytes);
            parts.push((kind, at, at.saturating_add(bytes)));
        })?;
        if in_holes.holes == in_holes.bytes {
            self.zeros = self.zeros.plus(in_holes);
            return Ok(());
        }
        let length = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        if self.buffer.len() < length {
            self.buffer = vec![0; length];
        }
        let piece = self.buffer.get_mut(..length).unwrap_or_default();
        self.storage.read_at(from, piece)?;
        let unit = usize::try_from(self.unit).unwrap_or(usize::MAX).max(1);
        let starts = (from..to).step_by(usize::try_from(self.unit).unwrap_or(usize::MAX).max(1));
        let mut parts = parts.as_slice();
        for (start, bytes) in starts.zip(piece.chunks(unit)) {
            let end = start.saturating_add(self.unit).min(to).min(self.file_length);
            let zero = bytes.iter().all(|&byte| byte == 0);
            while let Some(((kind, part_from, part_to), rest)) = parts.split_first() {
                let bytes = end.min(*part_to).saturating_sub(start.max(*part_from));
                if zero {
                    self.zeros.add(*kind, bytes);
                }
                if *part_to > end {
                    break;
                }
                parts = rest;
            }
        }
        Ok(())
    }
}

impl Counts {
    /// Clusters in a row with these claims.
    fn note(&mut self, held: Claims, clusters: u64) {
        let shared_l2 = held.any(Claims::L2) && held.any(Claims::SNAPSHOT_L2);
        let active = held.any(Claims::LIVE) || held.any(Claims::MAPPED);
        let snapshot = held.any(Claims::SNAPSHOT_DATA);
        let class = held.class();
        let fixed = [SpaceClass::Header, SpaceClass::L1Table, SpaceClass::BitmapMetadata, SpaceClass::EncryptionHeader];
        for (is, count) in [
            (class.is_some_and(|class| fixed.contains(&class)), &mut self.fixed),
            (held.any(Claims::SNAPSHOT), &mut self.snapshot),
            (held.any(Claims::REFCOUNT_TABLE), &mut self.refcount_table),
            (held.any(Claims::REFCOUNT_BLOCK), &mut self.refcount_blocks),
            (held.any(Claims::L2), &mut self.l2),
            (held.any(Claims::SNAPSHOT_L2), &mut self.snapshot_l2),
            (shared_l2, &mut self.shared_l2),
            (held.any(Claims::BITMAP_DATA), &mut self.bitmap_data),
            (active && !snapshot, &mut self.in_place),
            (snapshot, &mut self.snapshot_plain),
            (class == Some(SpaceClass::OnlyInSnapshots) && snapshot, &mut self.only_snapshot_plain),
            (held.any(Claims::SNAPSHOT_COMPRESSED), &mut self.snapshot_compressed),
            (class.is_none(), &mut self.leaked),
        ] {
            if is {
                *count = count.saturating_add(clusters);
            }
        }
    }
}
