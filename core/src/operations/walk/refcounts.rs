//! The refcount table and its blocks (section "Host cluster management").

use alloc::vec;
use alloc::vec::Vec;

use super::{Fault, FaultKind, Source, TableReader, Uses, Visitor, Walk};
use crate::error::{Error, Result, Structure};
use crate::format::{
    Geometry, HeaderArea, HostCluster, HostOffset, decode_refcount_table_entry, read_refcount,
    refcount_table_offset_bits,
};
use crate::storage::ReadStorage;

/// The refcount table in memory, as it stands in the file, and single refcounts behind it.
#[derive(Debug, Clone)]
pub struct RefcountTable {
    /// Without the zeros at the end.
    entries: Vec<u64>,
    geometry: Geometry,
    file_length: u64,
}

/// Where the refcount block of a table entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockPlace {
    /// There is none: all its refcounts are 0.
    None,
    /// It begins here; maybe past the end of the file, where refcounts are 0 too.
    At(HostOffset),
    /// Its offset is not aligned: its refcounts cannot be known.
    Unaligned(u64),
}

impl RefcountTable {
    /// Reads the table. The header must have passed [`HeaderArea::validate_for_check`].
    ///
    /// # Errors
    /// When the storage fails.
    pub fn read<S: ReadStorage + ?Sized>(
        storage: &S,
        area: &HeaderArea,
        geometry: &Geometry,
        file_length: u64,
    ) -> Result<Self> {
        let offset = area.header.refcount_table_offset;
        let bytes = u64::from(area.header.refcount_table_clusters).saturating_mul(geometry.cluster_size());
        // Past the end of the file all entries are 0.
        let bytes = bytes.min(file_length.saturating_sub(offset).saturating_add(7) & !7);
        let mut buffer = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
        if !buffer.is_empty() {
            TableReader::new(storage, file_length)
                .read(offset, &mut buffer)
                .map_err(|error| error.in_structure(Structure::RefcountTable))?;
        }
        let (words, _) = buffer.as_chunks::<8>();
        let used = words.iter().rposition(|word| *word != [0; 8]).map_or(0, |last| last.saturating_add(1));
        let entries = words.iter().take(used).map(|word| u64::from_be_bytes(*word)).collect();
        Ok(Self { entries, geometry: *geometry, file_length })
    }

    /// The entries, without zeros at the end.
    #[must_use]
    pub fn entries(&self) -> &[u64] {
        &self.entries
    }

    /// Where the block with this index is.
    #[must_use]
    pub fn block(&self, index: u64) -> BlockPlace {
        let raw = usize::try_from(index).ok().and_then(|index| self.entries.get(index)).copied().unwrap_or(0);
        match refcount_table_offset_bits(raw) {
            0 => BlockPlace::None,
            offset if self.geometry.is_aligned(offset) => BlockPlace::At(HostOffset::new(offset)),
            offset => BlockPlace::Unaligned(offset),
        }
    }

    /// The refcount of one cluster, read alone.
    ///
    /// # Errors
    /// When its block is not aligned or cannot be read.
    pub fn refcount<S: ReadStorage + ?Sized>(&self, storage: &S, cluster: HostCluster) -> Result<u64> {
        let place = self.block(self.geometry.refcount_table_index(cluster));
        let block = match place {
            BlockPlace::None => return Ok(0),
            BlockPlace::At(block) => block,
            BlockPlace::Unaligned(offset) => {
                return Err(Error::corrupt(Structure::RefcountBlock, "its offset is not aligned").at_host(offset));
            }
        };
        // The eight bytes that hold it, whatever its width.
        let order = self.geometry.refcount_order();
        let index = self.geometry.refcount_block_index(cluster);
        let per_word_bits = 6u32.saturating_sub(order);
        let word = index.wrapping_shr(per_word_bits);
        let in_word = index & 1u64.wrapping_shl(per_word_bits).wrapping_sub(1);
        let mut bytes = [0u8; 8];
        let at = block.saturating_add(word.saturating_mul(8)).get();
        TableReader::new(storage, self.file_length).read(at, &mut bytes)?;
        Ok(read_refcount(&bytes, in_word, order).unwrap_or(0))
    }
}

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    pub(super) fn visit_refcount_table(&self, visitor: &mut impl Visitor) -> Result<()> {
        let header = &self.area.header;
        let bytes = u64::from(header.refcount_table_clusters).saturating_mul(self.geometry.cluster_size());
        if bytes > 0 {
            let (target, offset) = (Structure::RefcountTable, header.refcount_table_offset);
            visitor.reference(&self.named_by(Source::Header, target, offset, bytes))?;
        }
        let table = match self.refcount_table() {
            Ok(table) => table,
            Err(error) => {
                let kind = FaultKind::Unreadable(error);
                let host_offset = header.refcount_table_offset;
                return visitor.fault(&Fault { kind, source: Source::Header, host_offset, uses: Uses::ACTIVE });
            }
        };
        for (index, &raw) in (0u64..).zip(table.entries()) {
            let source = Source::RefcountTable { index, raw };
            match decode_refcount_table_entry(raw, &self.geometry) {
                Ok(None) => {}
                Ok(Some(block)) => {
                    let (target, length) = (Structure::RefcountBlock, self.geometry.cluster_size());
                    visitor.reference(&self.named_by(source, target, block.get(), length))?;
                }
                Err(error) => visitor.fault(&Fault {
                    kind: FaultKind::Entry(error),
                    source,
                    host_offset: refcount_table_offset_bits(raw),
                    uses: Uses::ACTIVE,
                })?,
            }
        }
        Ok(())
    }
}
