//! Bitmaps (section "Bitmaps"): directory, tables, data. Only where the autoclear bit says that they are consistent.

use alloc::collections::BTreeSet;
use alloc::vec;

use super::{Budget, Fault, FaultKind, Source, Uses, Visitor, Walk};
use crate::error::{Error, Result, Structure};
use crate::format::{BitmapEntry, BitmapFlags, BitmapTableEntry, MAX_BITMAP_TABLE_ENTRIES};
use crate::operations::tables::read_bitmaps;
use crate::storage::ReadStorage;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// Bytes of bitmap data that one bitmap may have: QEMU's limit.
const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// Longest name: QEMU's limit.
const MAX_NAME: usize = 1023;

impl<S: ReadStorage + ?Sized> Walk<'_, S> {
    pub(super) fn visit_bitmaps(&self, visitor: &mut impl Visitor, budget: &mut Budget) -> Result<()> {
        let Some(bitmaps) = self.area.consistent_bitmaps() else { return Ok(()) };
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
            let wrong = self.what_is_wrong(entry).or((!names.insert(&entry.name)).then_some("two bitmaps of one name"));
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

    /// QEMU's conditions for a bitmap; without them it refuses the image.
    fn what_is_wrong(&self, entry: &BitmapEntry) -> Option<&'static str> {
        let cluster = self.geometry.cluster_size();
        let bytes = u64::from(entry.table_entries).saturating_mul(cluster);
        let bits_needed =
            entry.granularity().map_or(0, |granularity| self.geometry.virtual_size().div_ceil(granularity.max(1)));
        let in_use = entry.flags.contains(BitmapFlags::IN_USE);
        let checks = [
            (entry.kind != BitmapEntry::DIRTY_TRACKING, "a bitmap of an unknown kind"),
            (
                entry.flags.without(BitmapFlags::EXTRA_DATA_COMPATIBLE).unknown() != BitmapFlags::default(),
                "reserved flags of a bitmap are set",
            ),
            (!entry.extra_data.is_empty(), "a bitmap with extra data"),
            (entry.name.is_empty() || entry.name.len() > MAX_NAME, "a bitmap name of impossible length"),
            (!(9..=31).contains(&entry.granularity_bits), "a bitmap of impossible granularity"),
            (
                entry.table_offset == 0 || !self.geometry.is_aligned(entry.table_offset),
                "the offset of a bitmap table is invalid",
            ),
            (
                entry.table_entries == 0 || entry.table_entries > MAX_BITMAP_TABLE_ENTRIES || bytes > MAX_BITMAP_BYTES,
                "the size of a bitmap table is impossible",
            ),
            (!in_use && bits_needed > bytes.saturating_mul(8), "a bitmap too short for the virtual disk"),
        ];
        checks.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
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
