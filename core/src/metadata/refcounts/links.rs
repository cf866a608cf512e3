//! How blocks and tables reach storage: what is written when, in the order that [`super::super::commit`] asks for.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use byteorder::{BigEndian, ByteOrder};

use super::{OldTable, Refcounts};
use crate::error::{Error, Result, Structure};
use crate::storage::Storage;

/// Entries of the refcount table in 512 bytes, which storage writes whole or not at all.
const ENTRIES_PER_SECTOR: u64 = 64;

impl Refcounts {
    /// Writes every dirty block, in table order. Allowed at any time.
    pub(in crate::metadata) fn write_blocks(&mut self, storage: &impl Storage) -> Result<bool> {
        let mut wrote = false;
        let places: Vec<u64> = self.blocks.iter().filter(|(_, block)| block.dirty).map(|(&index, _)| index).collect();
        for index in places {
            let Some(offset) = self.block_offset(index)? else { continue };
            if let Some(block) = self.blocks.get_mut(&index) {
                storage
                    .write_at(offset.get(), &block.bytes)
                    .map_err(|e| Error::from(e).in_structure(Structure::RefcountBlock).at_index(index))?;
                block.dirty = false;
                wrote = true;
            }
        }
        Ok(wrote)
    }

    /// Writes a moved table whole: it is not reachable yet.
    pub(in crate::metadata) fn write_moved_table(&mut self, storage: &impl Storage) -> Result<()> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0u8; self.table.len().saturating_mul(8)];
        BigEndian::write_u64_into(&self.table, &mut bytes);
        storage
            .write_at(self.table_offset.get(), &bytes)
            .map_err(|e| Error::from(e).in_structure(Structure::RefcountTable))
    }

    /// The entries of new blocks, by sector of the table, in the order in which they may be written: the last first.
    ///
    /// A new block can lie in a cluster whose refcount is in another new block, of the same or a higher index. So the
    /// entries of one sector go out in one write, which is there whole or not at all, and a lower sector waits until
    /// the higher ones are durable.
    pub(in crate::metadata) fn unlinked_sectors(&self) -> Vec<RangeInclusive<u64>> {
        let mut sectors: Vec<RangeInclusive<u64>> = Vec::new();
        if !self.moved.is_empty() {
            // The moved table has them already, and counts as a whole.
            return sectors;
        }
        for &index in self.unlinked.iter().rev() {
            match sectors.last_mut() {
                Some(sector) if sector.end() / ENTRIES_PER_SECTOR == index / ENTRIES_PER_SECTOR => {
                    *sector = index..=*sector.end();
                }
                Some(_) | None => sectors.push(index..=index),
            }
        }
        sectors
    }

    /// Writes the entries of new blocks of one sector into the table in place. Their blocks must be durable.
    pub(in crate::metadata) fn link_blocks(&self, storage: &impl Storage, sector: RangeInclusive<u64>) -> Result<()> {
        let first = *sector.start();
        let entry = |index| usize::try_from(index).ok().and_then(|at| self.table.get(at)).copied().unwrap_or(0);
        let bytes: Vec<u8> = sector.flat_map(|index| entry(index).to_be_bytes()).collect();
        let place = self.table_offset.get().saturating_add(first.saturating_mul(8));
        storage
            .write_at(place, &bytes)
            .map_err(|e| Error::from(e).in_structure(Structure::RefcountTable).at_index(first))
    }

    /// All links are durable; gives the tables that nothing points to any more.
    pub(in crate::metadata) fn linked(&mut self) -> Vec<OldTable> {
        self.unlinked.clear();
        core::mem::take(&mut self.moved)
    }
}
