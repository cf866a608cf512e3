//! L1 and L2 tables: what maps guest clusters (section "Cluster mapping").

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{Budget, Fault, FaultKind, HostReference, L1Owner, L1Slot, L2Slot, L2Table, Source, Uses, Visitor, Walk};
use crate::error::{Result, Structure};
use crate::format::{EntryError, EntryFaults, L1Entry, L2Entry, L2Run, MAX_L1_BYTES, l2_runs};
use crate::storage::ReadStorage;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Ways to L2 tables are folded when there are twice as many as after the last time, and at least so many.
const FOLD_MINIMUM: usize = 1 << 16;

/// One or more ways to an L2 table: the first, and how many.
#[derive(Debug, Clone, Copy)]
struct Way {
    offset: u64,
    /// 0 is the active L1 table, others are snapshots.
    owner: u32,
    l1_index: u32,
    uses: Uses,
}

/// The L2 tables that L1 tables lead to.
#[derive(Debug, Default)]
pub(super) struct L2Tables {
    ways: Vec<Way>,
    folded: usize,
}

impl L2Tables {
    fn push(&mut self, way: Way) {
        if self.ways.len() >= self.folded.saturating_mul(2).max(FOLD_MINIMUM) {
            self.fold();
        }
        self.ways.push(way);
    }

    /// Makes one way of all that lead to the same table.
    fn fold(&mut self) {
        self.ways.sort_unstable_by_key(|way| (way.offset, way.owner, way.l1_index));
        self.ways.dedup_by(|later, first| {
            let same = later.offset == first.offset;
            if same {
                first.uses = first.uses.add(later.uses);
            }
            same
        });
        self.folded = self.ways.len();
    }

    /// In guest order, the active ones first.
    fn sort(&mut self) {
        self.fold();
        self.ways.sort_unstable_by_key(|way| (way.owner, way.l1_index));
    }
}

impl Way {
    fn table(&self) -> L2Table {
        L2Table {
            host_offset: self.offset,
            owner: match self.owner.checked_sub(1) {
                None => L1Owner::Active,
                Some(snapshot) => L1Owner::Snapshot(snapshot),
            },
            l1_index: self.l1_index.into(),
            uses: self.uses,
        }
    }
}

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    /// The active L1 table, the snapshot table, and the L1 tables of the snapshots.
    pub(super) fn visit_l1_tables(&self, visitor: &mut impl Visitor, budget: &mut Budget) -> Result<L2Tables> {
        let mut tables = L2Tables::default();
        let header = &self.area.header;
        let bytes = u64::from(header.l1_size).saturating_mul(8);
        if bytes > 0 {
            visitor.reference(&self.named_by(Source::Header, Structure::L1Table, header.l1_table_offset, bytes))?;
            self.visit_l1(L1Owner::Active, Uses::ACTIVE, header.l1_table_offset, bytes, visitor, &mut tables)?;
        }
        self.visit_snapshots(visitor, &mut tables, budget)?;
        tables.sort();
        Ok(tables)
    }

    fn visit_snapshots(&self, visitor: &mut impl Visitor, tables: &mut L2Tables, budget: &mut Budget) -> Result<()> {
        // Several snapshots with one L1 table are walked through once.
        let mut l1_tables: BTreeMap<(u64, u32), (u32, Uses)> = BTreeMap::new();
        for (index, snapshot) in (0u32..).zip(self.visit_snapshot_table(visitor)?) {
            let (host_offset, entries) = (snapshot.l1_table_offset, snapshot.l1_size);
            let kind = if !self.geometry.is_aligned(host_offset) {
                FaultKind::SnapshotL1Unaligned
            } else if u64::from(entries).saturating_mul(8) > MAX_L1_BYTES {
                FaultKind::SnapshotL1TooLarge { entries }
            } else {
                if entries > 0 {
                    let ways = l1_tables.entry((host_offset, entries)).or_insert((index, Uses::default()));
                    ways.1 = ways.1.add(Uses::SNAPSHOT);
                }
                continue;
            };
            let source = Source::SnapshotTable { index: index.into() };
            visitor.fault(&Fault { kind, source, host_offset, uses: Uses::SNAPSHOT })?;
        }
        // In the order of their offsets: only what overlaps is read more than once.
        let mut read_until = 0u64;
        for ((offset, entries), (first, uses)) in l1_tables {
            let bytes = u64::from(entries).saturating_mul(8);
            let source = Source::SnapshotTable { index: first.into() };
            visitor.reference(&HostReference { uses, ..self.named_by(source, Structure::L1Table, offset, bytes) })?;
            let end = offset.saturating_add(bytes).min(self.file_length);
            budget.spend(end.min(read_until).saturating_sub(offset), Structure::L1Table)?;
            read_until = read_until.max(end);
            self.visit_l1(L1Owner::Snapshot(first), uses, offset, bytes, visitor, tables)?;
        }
        Ok(())
    }

    /// The entries of one L1 table.
    fn visit_l1(
        &self,
        owner: L1Owner,
        uses: Uses,
        offset: u64,
        bytes: u64,
        visitor: &mut impl Visitor,
        tables: &mut L2Tables,
    ) -> Result<()> {
        let mut reader = self.reader();
        // What lies past the end of the file is zeros.
        let bytes = bytes.min(self.file_length.saturating_sub(offset).saturating_add(7) & !7).max(8);
        let mut buffer = vec![0u8; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE))];
        let mut done = 0u64;
        while done < bytes {
            let length = usize::try_from(bytes.saturating_sub(done)).unwrap_or(PIECE).min(buffer.len());
            let piece = buffer.get_mut(..length).unwrap_or_default();
            let at = offset.saturating_add(done);
            match reader.read(at, piece) {
                Ok(false) => {}
                Ok(true) => self.visit_l1_piece(owner, uses, done / 8, piece, visitor, tables)?,
                Err(error) => {
                    let source = Source::L1(L1Slot { owner, index: done / 8, raw: 0 });
                    visitor.fault(&Fault { kind: FaultKind::Unreadable(error), source, host_offset: at, uses })?;
                }
            }
            done = done.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn visit_l1_piece(
        &self,
        owner: L1Owner,
        uses: Uses,
        first: u64,
        piece: &[u8],
        visitor: &mut impl Visitor,
        tables: &mut L2Tables,
    ) -> Result<()> {
        let (entries, _) = piece.as_chunks::<8>();
        for (index, bytes) in (first..).zip(entries) {
            let raw = u64::from_be_bytes(*bytes);
            if raw == 0 {
                continue;
            }
            let offset = L1Entry::offset_bits(raw);
            let source = Source::L1(L1Slot { owner, index, raw });
            let mut fault = |kind| visitor.fault(&Fault { kind, source, host_offset: offset, uses });
            if L1Entry::has_reserved_bits(raw) {
                fault(FaultKind::Entry(EntryError::ReservedBits))?;
            }
            if !self.geometry.is_aligned(offset) {
                fault(FaultKind::Entry(EntryError::Unaligned))?;
            }
            let length = self.geometry.cluster_size();
            let target = Structure::L2Table;
            visitor.reference(&HostReference { target, host_offset: offset, length, count: 1, source, uses })?;
            // Past the end there are only zeros: nothing to visit.
            if offset < self.file_length {
                let owner = match owner {
                    L1Owner::Active => 0,
                    L1Owner::Snapshot(snapshot) => snapshot.saturating_add(1),
                };
                tables.push(Way { offset, owner, l1_index: u32::try_from(index).unwrap_or(u32::MAX), uses });
            }
        }
        Ok(())
    }

    /// The L2 tables, several at once where they lie in a row.
    pub(super) fn visit_l2_tables(
        &self,
        tables: &L2Tables,
        visitor: &mut impl Visitor,
        budget: &mut Budget,
    ) -> Result<()> {
        let size = self.geometry.cluster_len();
        let most = (PIECE.wrapping_shr(self.geometry.cluster_bits())).max(1);
        let mut buffer = vec![0u8; size.saturating_mul(most.min(tables.ways.len()))];
        let mut reader = self.reader();
        let mut rest = tables.ways.as_slice();
        let total = u64::try_from(rest.len()).unwrap_or(u64::MAX);
        while let Some(first) = rest.first() {
            let offsets = core::iter::successors(Some(first.offset), |at| at.checked_add(self.geometry.cluster_size()));
            let count = rest.iter().take(most).zip(offsets).take_while(|(way, at)| way.offset == *at).count();
            let (batch, others) = rest.split_at_checked(count.max(1)).unwrap_or((rest, &[]));
            let bytes = buffer.get_mut(..size.saturating_mul(batch.len())).unwrap_or_default();
            if !self.geometry.is_aligned(first.offset) {
                // Unaligned tables may overlap: the same bytes, read again and again.
                budget.spend(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Structure::L2Table)?;
            }
            match reader.read(first.offset, bytes) {
                Ok(false) => batch.iter().try_for_each(|way| visitor.l2_table(&way.table()))?,
                Ok(true) => batch
                    .iter()
                    .zip(bytes.chunks(size))
                    .try_for_each(|(way, bytes)| self.visit_l2(&way.table(), bytes, visitor))?,
                Err(_) => self.visit_one_by_one(batch, &mut reader, bytes, visitor)?,
            }
            rest = others;
            visitor.progress(total.saturating_sub(u64::try_from(rest.len()).unwrap_or(0)), total)?;
        }
        Ok(())
    }

    /// After a failure: so that one bad sector hides one table only.
    fn visit_one_by_one(
        &self,
        batch: &[Way],
        reader: &mut super::TableReader<'_, S>,
        bytes: &mut [u8],
        visitor: &mut impl Visitor,
    ) -> Result<()> {
        for (way, bytes) in batch.iter().zip(bytes.chunks_mut(self.geometry.cluster_len())) {
            let table = way.table();
            match reader.read(way.offset, bytes) {
                Ok(false) => visitor.l2_table(&table)?,
                Ok(true) => self.visit_l2(&table, bytes, visitor)?,
                Err(error) => {
                    let source = Source::L1(L1Slot { owner: table.owner, index: table.l1_index, raw: 0 });
                    let kind = FaultKind::Unreadable(error);
                    visitor.fault(&Fault { kind, source, host_offset: way.offset, uses: way.uses })?;
                }
            }
        }
        Ok(())
    }

    fn visit_l2(&self, table: &L2Table, bytes: &[u8], visitor: &mut impl Visitor) -> Result<()> {
        visitor.l2_table(table)?;
        for run in l2_runs(bytes, &self.geometry) {
            visitor.l2_run(table, &run)?;
            let faults = self.with_data_file_offset(table, &run);
            let slot = L2Slot { table: *table, index: run.first, raw: run.raw, entry: run.entry };
            self.visit_entry_faults(&slot, faults, visitor)?;
            if let Some(reference) = self.reference_of(&slot, &run) {
                visitor.reference(&reference)?;
            }
        }
        Ok(())
    }

    /// The faults of the run's entry, with the one that only its place can tell.
    fn with_data_file_offset(&self, table: &L2Table, run: &L2Run) -> EntryFaults {
        match run.entry.host() {
            Some(host)
                if self.geometry.data_file() && host.offset.get() != table.guest_offset(run.first, &self.geometry) =>
            {
                run.faults.with(EntryError::DataFileOffset)
            }
            Some(_) | None => run.faults,
        }
    }

    fn visit_entry_faults(&self, slot: &L2Slot, faults: EntryFaults, visitor: &mut impl Visitor) -> Result<()> {
        let host_offset = match slot.entry {
            L2Entry::Plain { host, .. } => host.map_or(0, |host| host.offset.get()),
            L2Entry::Compressed(range) => range.offset.get(),
        };
        for error in faults.iter() {
            let kind = FaultKind::Entry(error);
            visitor.fault(&Fault { kind, source: Source::L2(*slot), host_offset, uses: slot.table.uses })?;
        }
        Ok(())
    }

    /// The range that a run refers to. A compressed entry that cannot be one at all refers to nothing.
    fn reference_of(&self, slot: &L2Slot, run: &L2Run) -> Option<HostReference> {
        let (target, host_offset, length) = match run.entry {
            L2Entry::Plain { host, .. } => {
                let target = if self.geometry.data_file() { Structure::DataFile } else { Structure::DataCluster };
                (target, host?.offset.get(), self.geometry.cluster_size())
            }
            L2Entry::Compressed(_)
                if run.faults.contains(EntryError::CompressedInDataFile)
                    || run.faults.contains(EntryError::CompressedBitmap) =>
            {
                return None;
            }
            L2Entry::Compressed(range) => (Structure::CompressedCluster, range.offset.get(), range.length),
        };
        let (source, uses) = (Source::L2(*slot), slot.table.uses);
        Some(HostReference { target, host_offset, length, count: run.count, source, uses })
    }
}
