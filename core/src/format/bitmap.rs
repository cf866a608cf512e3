//! The bitmap directory and bitmap tables (section "Bitmaps").

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::bits::bit_set;
use super::count::counted;
use super::{EntryError, Geometry, HostOffset, Name, Reader};
use crate::error::{Error, ErrorKind, Result, Structure};

bit_set! {
    /// The flags of a bitmap; unknown ones are kept.
    BitmapFlags(u32), {
        /// The bitmap was not saved correctly, or is being changed: it may be stale.
        IN_USE, in_use = 0;
        /// The bitmap records every change of the virtual disk.
        AUTO, auto = 1;
        /// The bitmap may be used by who does not know its extra data.
        EXTRA_DATA_COMPATIBLE, extra_data_compatible = 2;
    }
}

/// An entry of the bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BitmapEntry {
    /// First byte of the bitmap table.
    pub table_offset: u64,
    /// Entries of the bitmap table.
    pub table_entries: u32,
    /// The flags.
    pub flags: BitmapFlags,
    /// The sort of bitmap: 1 for dirty tracking.
    pub kind: u8,
    /// log2 of the guest bytes that one bit speaks for.
    pub granularity_bits: u8,
    /// Extra data of the kind.
    pub extra_data: Vec<u8>,
    /// The name.
    pub name: Name,
}

impl BitmapEntry {
    /// The kind "dirty tracking bitmap".
    pub const DIRTY_TRACKING: u8 = 1;

    /// Reads one entry with its padding.
    ///
    /// # Errors
    /// When the entry reaches beyond the bytes.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self> {
        let start = reader.host_offset();
        let table_offset = reader.u64("bitmap table offset")?;
        let table_entries = reader.u32("bitmap table size")?;
        let flags = BitmapFlags::from_bits(reader.u32("flags")?);
        let kind = reader.u8("type")?;
        let granularity_bits = reader.u8("granularity")?;
        let name_length = usize::from(reader.u16("length of the name")?);
        let extra_length = usize::try_from(reader.u32("length of extra data")?).unwrap_or(usize::MAX);
        let extra_data = reader.take(extra_length, "extra data")?.to_vec();
        let name = Name::new(reader.take(name_length, "name")?);
        let length = usize::try_from(reader.host_offset().saturating_sub(start)).unwrap_or(0);
        reader.take(length.wrapping_neg() & 7, "padding")?;
        Ok(Self { table_offset, table_entries, flags, kind, granularity_bits, extra_data, name })
    }

    /// Reads a whole directory of `count` entries, which must fill `bytes`.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] for more than [`super::MAX_BITMAPS`]; [`ErrorKind::Corrupt`] when the entries do not end
    /// where the directory ends.
    pub fn parse_directory(bytes: &[u8], count: u32, host_offset: u64) -> Result<Vec<Self>> {
        if count > super::MAX_BITMAPS {
            let what = format!("{count} bitmaps, at most {} are allowed", super::MAX_BITMAPS);
            return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::BitmapDirectory));
        }
        let mut reader = Reader::new(bytes, Structure::BitmapDirectory, host_offset);
        let mut entries = Vec::new();
        for index in 0..count {
            entries.push(Self::parse(&mut reader).map_err(|error| error.at_index(index.into()))?);
        }
        if !reader.rest().is_empty() {
            return Err(Error::corrupt(Structure::BitmapDirectory, "bytes remain after the last entry")
                .at_host(reader.host_offset()));
        }
        Ok(entries)
    }

    /// The fields of the entry in their order, without the padding: name, place within the entry, bytes, and what it
    /// says, in words.
    #[must_use]
    pub fn layout(&self) -> Vec<(&'static str, u64, u64, String)> {
        let bytes = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let (extra, name) = (bytes(self.extra_data.len()), bytes(self.name.len()));
        let granularity = self.granularity().map_or_else(String::new, |bytes| counted(bytes, "byte"));
        let mut fields = alloc::vec![
            ("bitmap table offset", 0, 8, format!("{:#x}", self.table_offset)),
            ("bitmap table size", 8, 4, counted(self.table_entries.into(), "entry")),
            ("flags", 12, 4, format!("{:#x}", self.flags.bits())),
            ("type", 16, 1, format!("{}", self.kind)),
            ("granularity", 17, 1, granularity),
            ("length of the name", 18, 2, counted(name, "byte")),
            ("length of extra data", 20, 4, counted(extra, "byte")),
            ("extra data", 24, extra, String::new()),
            ("name", extra.saturating_add(24), name, self.name.to_string_lossy().into_owned()),
        ];
        fields.retain(|(_, _, length, _)| *length > 0);
        fields
    }

    /// Appends the entry with its padding.
    ///
    /// # Errors
    /// When the name is longer than 65,535 bytes; nothing is appended then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<()> {
        let long = || {
            Error::new(ErrorKind::Limit("a bitmap's name is too long".into())).in_structure(Structure::BitmapDirectory)
        };
        let name_length = u16::try_from(self.name.len()).map_err(|_| long())?;
        let extra_length = u32::try_from(self.extra_data.len()).map_err(|_| long())?;
        let start = out.len();
        out.extend(self.table_offset.to_be_bytes());
        out.extend(self.table_entries.to_be_bytes());
        out.extend(self.flags.bits().to_be_bytes());
        out.extend([self.kind, self.granularity_bits]);
        out.extend(name_length.to_be_bytes());
        out.extend(extra_length.to_be_bytes());
        out.extend(&self.extra_data);
        out.extend(self.name.as_bytes());
        let length = out.len().saturating_sub(start);
        out.resize(out.len().saturating_add(length.wrapping_neg() & 7), 0);
        Ok(())
    }

    /// Bytes that [`BitmapEntry::emit`] appends.
    #[must_use]
    pub fn emitted_length(&self) -> u64 {
        let variable = self.extra_data.len().saturating_add(self.name.len());
        u64::try_from(variable).unwrap_or(u64::MAX).saturating_add(24 + 7) & !7
    }

    /// What breaks the rules of the format (QEMU refuses the whole image then); `None` for a sound entry. Says nothing
    /// of the table behind it, nor of two bitmaps of one name.
    #[must_use]
    pub fn what_is_wrong(&self, geometry: &Geometry) -> Option<&'static str> {
        let bytes = u64::from(self.table_entries).saturating_mul(geometry.cluster_size());
        let bits_needed =
            self.granularity().map_or(0, |granularity| geometry.virtual_size().div_ceil(granularity.max(1)));
        let checks = [
            (self.kind != Self::DIRTY_TRACKING, "a bitmap of an unknown kind"),
            (!self.flags.unknown().is_empty(), "reserved flags of a bitmap are set"),
            (!self.extra_data.is_empty() && !self.flags.extra_data_compatible(), "a bitmap with extra data"),
            (self.name.is_empty() || self.name.len() > super::MAX_BITMAP_NAME, "a bitmap name of impossible length"),
            (
                !(super::MIN_BITMAP_GRANULARITY_BITS..=super::MAX_BITMAP_GRANULARITY_BITS)
                    .contains(&self.granularity_bits),
                "a bitmap of impossible granularity",
            ),
            (
                self.table_offset == 0 || !geometry.is_aligned(self.table_offset),
                "the offset of a bitmap table is invalid",
            ),
            (
                self.table_entries == 0
                    || self.table_entries > super::MAX_BITMAP_TABLE_ENTRIES
                    || bytes > super::MAX_BITMAP_BYTES,
                "the size of a bitmap table is impossible",
            ),
            (
                !self.flags.in_use() && geometry.clusters_for(bits_needed.div_ceil(8)) != u64::from(self.table_entries),
                "the size of a bitmap table does not fit the virtual disk",
            ),
        ];
        checks.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
    }

    /// Guest bytes that one bit speaks for; `None` beyond 63 bits.
    #[must_use]
    pub fn granularity(&self) -> Option<u64> {
        1u64.checked_shl(self.granularity_bits.into())
    }
}

/// What an entry of a bitmap table says of one cluster of bitmap data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BitmapTableEntry {
    /// All bits are clear; nothing is stored.
    AllZeros,
    /// All bits are set; nothing is stored.
    AllOnes,
    /// The bits are in this cluster.
    Cluster(HostOffset),
}

impl BitmapTableEntry {
    /// Bits 9 to 55.
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    /// Bits 1 to 8 and 56 to 63.
    const RESERVED: u64 = 0xff00_0000_0000_01fe;
    const ONES: u64 = 1;

    /// Reads the bits.
    ///
    /// # Errors
    /// Reserved bits (bit 0 is one, beside an offset), or an offset that is not aligned.
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Self, EntryError> {
        let offset = raw & Self::OFFSET;
        if raw & Self::RESERVED != 0 || (offset != 0 && raw & Self::ONES != 0) {
            return Err(EntryError::ReservedBits);
        }
        if !geometry.is_aligned(offset) {
            return Err(EntryError::Unaligned);
        }
        Ok(match (offset, raw & Self::ONES) {
            (0, 0) => Self::AllZeros,
            (0, _) => Self::AllOnes,
            (offset, _) => Self::Cluster(HostOffset::new(offset)),
        })
    }

    /// The offset bits, whatever else is wrong with the entry: for reports on broken images.
    #[must_use]
    pub fn offset_bits(raw: u64) -> u64 {
        raw & Self::OFFSET
    }

    /// The bits.
    #[must_use]
    pub fn encode(self) -> u64 {
        match self {
            Self::AllZeros => 0,
            Self::AllOnes => Self::ONES,
            Self::Cluster(offset) => offset.get() & Self::OFFSET,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn hand_written(extra: &[u8], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x83, 1, 16];
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend((extra.len() as u32).to_be_bytes());
        bytes.extend(extra);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_hand_written_directory_survives_both_ways() {
        let mut bytes = hand_written(b"", b"backup0");
        bytes.extend(hand_written(b"extra", b"caf\xe9"));
        let entries = BitmapEntry::parse_directory(&bytes, 2, 0x50000).unwrap();
        assert_eq!((entries[0].table_offset, entries[0].table_entries, entries[0].kind), (0x70000, 2, 1));
        assert_eq!(entries[0].granularity(), Some(65536));
        let flags = entries[0].flags;
        assert!(flags.contains(BitmapFlags::IN_USE.with(BitmapFlags::AUTO)));
        assert!(!flags.contains(BitmapFlags::EXTRA_DATA_COMPATIBLE));
        assert_eq!(flags.unknown().bits(), 0x80);
        assert_eq!(entries[0].name, "backup0");
        assert_eq!(entries[1].extra_data, b"extra");
        let mut out = Vec::new();
        entries.iter().for_each(|entry| entry.emit(&mut out).unwrap());
        assert_eq!(out, bytes);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let bytes = hand_written(b"", b"backup0");
        assert!(BitmapEntry::parse_directory(&bytes, 0, 0).is_err());
        assert!(BitmapEntry::parse_directory(&bytes, 2, 0).is_err());
        assert!(BitmapEntry::parse_directory(&bytes, u32::MAX, 0).is_err());
        for cut in [0, 23, 25, 31] {
            assert!(BitmapEntry::parse_directory(&bytes[..cut], 1, 0).is_err());
        }
        let mut extra = bytes;
        extra[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(BitmapEntry::parse_directory(&extra, 1, 0).is_err());
    }

    #[test]
    fn table_entries() {
        let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
        for entry in
            [BitmapTableEntry::AllZeros, BitmapTableEntry::AllOnes, BitmapTableEntry::Cluster(HostOffset::new(0x50000))]
        {
            assert_eq!(BitmapTableEntry::decode(entry.encode(), &geometry), Ok(entry));
        }
        let decode = |raw| BitmapTableEntry::decode(raw, &geometry);
        assert_eq!(decode(0x50001), Err(EntryError::ReservedBits));
        assert_eq!(decode(2), Err(EntryError::ReservedBits));
        assert_eq!(decode(1 << 56), Err(EntryError::ReservedBits));
        assert_eq!(decode(0x50200), Err(EntryError::Unaligned));
    }
}
