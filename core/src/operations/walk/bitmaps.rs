//! Bitmaps (section "Bitmaps"): directory, tables, data. Only where the autoclear bit says that they are consistent.

use alloc::collections::BTreeSet;
use alloc::vec;

use super::{Budget, Fault, FaultKind, Source, Uses, Visitor, Walk};
use crate::error::{Error, Result, Structure};
use crate::format::BitmapTableEntry;
use crate::operations::tables::read_bitmaps;
use crate::storage::ReadStorage;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    pub(super) fn visit_bitmaps(&self, visitor: &mut impl Visitor, budget: &mut Budget) -> Result<()> {
        let bitmaps = match self.area.usable_bitmaps(&self.geometry) {
            Ok(Some(bitmaps)) => bitmaps,
            Ok(None) => return Ok(()),
            Err(error) => return bitmap_fault(visitor, error, Source::HeaderExtension, 0),
        };
        let (offset, length) = (bitmaps.directory_offset, bitmaps.directory_size);
        visitor.reference(&self.named_by(Source::HeaderExtension, Structure::BitmapDirectory, offset, length))?;
        let entries = match read_bitmaps(self.area, self.storage) {
            Ok(entries) => entries,
            Err(error) => return bitmap_fault(visitor, error, Source::HeaderExtension, offset),
        };
        let mut names = BTreeSet::new();
        for (index, entry) in (0..).zip(&entries) {
            let source = Source::BitmapDirectory { index };
            let bytes = u64::from(entry.table_entries).saturating_mul(8);
            let wrong = entry
                .what_is_wrong(&self.geometry)
                .or((!names.insert(&entry.name)).then_some("two bitmaps of one name"));
            if let Some(what) = wrong {
                let error = Error::corrupt(Structure::BitmapDirectory, what).at_index(index);
                bitmap_fault(visitor, error, source, entry.table_offset)?;
                continue;
            }
            visitor.reference(&self.named_by(source, Structure::BitmapTable, entry.table_offset, bytes))?;
            budget.spend(bytes.min(self.file_length), Structure::BitmapTable)?;
            self.visit_bitmap_table(index, entry.table_offset, bytes, visitor)?;
        }
        Ok(())
    }

    fn visit_bitmap_table(&self, bitmap: u64, offset: u64, bytes: u64, visitor: &mut impl Visitor) -> Result<()> {
        let mut reader = self.reader();
        let mut buffer = vec![0u8; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE))];
        let mut done = 0u64;
        while done < bytes {
            let length = usize::try_from(bytes.saturating_sub(done)).unwrap_or(PIECE).min(buffer.len());
            let piece = buffer.get_mut(..length).unwrap_or_default();
            let at = offset.saturating_add(done);
            match reader.read(at, piece) {
                Ok(false) => {}
                Ok(true) => self.visit_bitmap_entries(bitmap, done / 8, piece, visitor)?,
                Err(error) => return bitmap_fault(visitor, error, Source::BitmapDirectory { index: bitmap }, at),
            }
            done = done.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn visit_bitmap_entries(&self, bitmap: u64, first: u64, piece: &[u8], visitor: &mut impl Visitor) -> Result<()> {
        let (entries, _) = piece.as_chunks::<8>();
        for (index, bytes) in (first..).zip(entries) {
            let raw = u64::from_be_bytes(*bytes);
            let source = Source::BitmapTable { bitmap, index, raw };
            match BitmapTableEntry::decode(raw, &self.geometry) {
                Ok(BitmapTableEntry::AllZeros | BitmapTableEntry::AllOnes) => {}
                Ok(BitmapTableEntry::Cluster(host)) => {
                    let length = self.geometry.cluster_size();
                    visitor.reference(&self.named_by(source, Structure::BitmapData, host.get(), length))?;
                }
                Err(error) => {
                    let kind = FaultKind::Entry(error);
                    let host_offset = BitmapTableEntry::offset_bits(raw);
                    visitor.fault(&Fault { kind, source, host_offset, uses: Uses::ACTIVE })?;
                }
            }
        }
        Ok(())
    }
}

fn bitmap_fault(visitor: &mut impl Visitor, error: Error, source: Source, host_offset: u64) -> Result<()> {
    visitor.fault(&Fault { kind: FaultKind::Bitmap(error), source, host_offset, uses: Uses::ACTIVE })
}
