//! L1 and L2 entries: bits become meaning here, once, and meaning becomes bits again.
//!
//! Section "L1 and L2 tables", with "Extended L2 Entries". One value, [`L2Entry`], covers both widths: a standard
//! entry is a cluster with one part, an extended entry one with 32 parts.

use core::fmt;

use super::{EntryError, EntryFaults, Geometry, HostOffset};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits 56 to 61 and 1 to 8 of a standard descriptor.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// The same with bit 0, which only standard L2 entries of version 3 use.
const L2_RESERVED_WITH_ZERO: u64 = L2_RESERVED | ZERO;
/// Bits 56 to 62 and 0 to 8.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// An L2 entry as it stands in the table, in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RawL2Entry {
    /// The descriptor.
    pub descriptor: u64,
    /// The subcluster bitmap; 0 in standard entries, which have none.
    pub bitmap: u64,
}

/// An L1 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum L1Entry {
    /// No L2 table: the whole range is unallocated.
    #[default]
    Unallocated,
    /// An L2 table.
    Table(HostRef),
}

impl L1Entry {
    /// Reads the bits.
    ///
    /// # Errors
    /// Reserved bits, or an offset that is not aligned.
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Self, EntryError> {
        if raw & L1_RESERVED != 0 {
            return Err(EntryError::ReservedBits);
        }
        let offset = raw & OFFSET;
        if !geometry.is_aligned(offset) {
            return Err(EntryError::Unaligned);
        }
        if offset == 0 {
            return Ok(Self::Unallocated);
        }
        Ok(Self::Table(HostRef { offset: HostOffset::new(offset), copied: raw & COPIED != 0 }))
    }

    /// The bits.
    #[must_use]
    pub fn encode(self) -> u64 {
        match self {
            Self::Unallocated => 0,
            Self::Table(table) => table.bits(),
        }
    }

    /// The offset bits, whatever else is wrong with the entry: for reports on broken images.
    #[must_use]
    pub fn offset_bits(raw: u64) -> u64 {
        raw & OFFSET
    }

    /// Whether reserved bits are set.
    #[must_use]
    pub fn has_reserved_bits(raw: u64) -> bool {
        raw & L1_RESERVED != 0
    }

    /// The COPIED bit of any raw entry.
    #[must_use]
    pub fn copied_bit(raw: u64) -> bool {
        raw & COPIED != 0
    }

    /// The table's place, if there is one.
    #[must_use]
    pub fn table(self) -> Option<HostRef> {
        match self {
            Self::Unallocated => None,
            Self::Table(table) => Some(table),
        }
    }
}

/// A reference to a host cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostRef {
    /// First byte of the cluster.
    pub offset: HostOffset,
    /// The COPIED flag: the refcount is exactly one, so the cluster may be written in place.
    pub copied: bool,
}

impl HostRef {
    fn bits(self) -> u64 {
        (self.offset.get() & OFFSET) | if self.copied { COPIED } else { 0 }
    }
}

/// The place of a compressed cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressedRange {
    /// First byte; not aligned to anything.
    pub offset: HostOffset,
    /// Bytes up to the end of the last 512-byte sector that the data touches. The stream may end before it.
    pub length: u64,
}

/// State of the parts of a cluster: bit *i* speaks for part *i*. Standard entries have one part, bit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Subclusters {
    /// Parts whose data are in the host cluster.
    pub allocated: u32,
    /// Parts that read as zeros.
    pub zero: u32,
}

impl Subclusters {
    /// Neither allocated nor zero: reads come from the backing file, or are zero without one.
    pub const NONE: Self = Self { allocated: 0, zero: 0 };

    /// The mask of all parts of a cluster.
    #[must_use]
    pub fn full_mask(geometry: &Geometry) -> u32 {
        if geometry.extended_l2() { u32::MAX } else { 1 }
    }

    /// Every part allocated.
    #[must_use]
    pub fn all_allocated(geometry: &Geometry) -> Self {
        Self { allocated: Self::full_mask(geometry), zero: 0 }
    }

    /// Every part zero.
    #[must_use]
    pub fn all_zero(geometry: &Geometry) -> Self {
        Self { allocated: 0, zero: Self::full_mask(geometry) }
    }
}

/// What an L2 entry says, for both widths of entries.
///
/// The names of discard.md: *U* `Plain` without host and without bits, *ZP* `Plain` without host and all zero, *ZA*
/// `Plain` with host and all zero, *N* `Plain` with host and all allocated, *C* `Compressed`. See [`L2Entry::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum L2Entry {
    /// A cluster that is not compressed.
    Plain {
        /// The host cluster, if one is mapped.
        host: Option<HostRef>,
        /// What its parts are.
        parts: Subclusters,
    },
    /// A compressed cluster; it has no subclusters and is never COPIED.
    Compressed(CompressedRange),
}

/// The five kinds of a cluster, and the mixed one that extended entries allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum L2Kind {
    /// Nothing stored here.
    Unallocated,
    /// Reads as zeros, no host cluster.
    ZeroPlain,
    /// Reads as zeros, a host cluster is kept.
    ZeroAllocated,
    /// Data in a host cluster.
    Normal,
    /// Subclusters of different states (extended L2 entries only).
    Mixed,
    /// Compressed data.
    Compressed,
}

impl L2Entry {
    /// *U*: nothing stored here.
    pub const UNALLOCATED: Self = Self::Plain { host: None, parts: Subclusters::NONE };

    /// *ZP*: zeros without a host cluster.
    #[must_use]
    pub fn zero_plain(geometry: &Geometry) -> Self {
        Self::Plain { host: None, parts: Subclusters::all_zero(geometry) }
    }

    /// *ZA*: zeros, host cluster kept.
    #[must_use]
    pub fn zero_allocated(host: HostRef, geometry: &Geometry) -> Self {
        Self::Plain { host: Some(host), parts: Subclusters::all_zero(geometry) }
    }

    /// *N*: all data in the host cluster.
    #[must_use]
    pub fn normal(host: HostRef, geometry: &Geometry) -> Self {
        Self::Plain { host: Some(host), parts: Subclusters::all_allocated(geometry) }
    }

    /// Reads the bits.
    ///
    /// With an external data file, offset 0 is a place like any other; there the COPIED flag, which every mapped
    /// cluster has, tells it from "no host cluster".
    ///
    /// # Errors
    /// [`EntryError`]; QEMU's `check` calls each of them a corruption too.
    #[inline(always)]
    pub fn decode(raw: RawL2Entry, geometry: &Geometry) -> Result<Self, EntryError> {
        // Most entries of most images.
        if raw == RawL2Entry::default() {
            return Ok(Self::UNALLOCATED);
        }
        Self::decode_some(raw, geometry)
    }

    #[inline(always)]
    fn decode_some(raw: RawL2Entry, geometry: &Geometry) -> Result<Self, EntryError> {
        if raw.descriptor & COMPRESSED != 0 {
            return Self::decode_compressed(raw, geometry);
        }
        let reserved = if geometry.extended_l2() { L2_RESERVED_WITH_ZERO } else { L2_RESERVED };
        if raw.descriptor & reserved != 0 {
            return Err(EntryError::ReservedBits);
        }
        let offset = raw.descriptor & OFFSET;
        if !geometry.is_aligned(offset) {
            return Err(EntryError::Unaligned);
        }
        let copied = raw.descriptor & COPIED != 0;
        let mapped = offset != 0 || (geometry.data_file() && copied);
        let host = mapped.then_some(HostRef { offset: HostOffset::new(offset), copied });
        let parts = if geometry.extended_l2() {
            decode_bitmap(raw.bitmap, mapped)?
        } else if raw.descriptor & ZERO != 0 {
            if geometry.version() < 3 {
                return Err(EntryError::ZeroInVersion2);
            }
            Subclusters { allocated: 0, zero: 1 }
        } else {
            Subclusters { allocated: u32::from(mapped), zero: 0 }
        };
        Ok(Self::Plain { host, parts })
    }

    /// Whether the descriptor `next` differs from `now` by `step` bytes of host offset and by nothing else: then it
    /// means the same, that much further on. For entries without subclusters that are not compressed.
    #[inline]
    #[must_use]
    pub fn goes_on(now: u64, next: u64, step: u64) -> bool {
        // A carry out of the offset would change a flag.
        now.checked_add(step) == Some(next) && (now ^ next) & !OFFSET == 0
    }

    /// What the entry would say if nothing were wrong with it, and all that is wrong: for the check of broken images,
    /// which has to follow references that reading refuses. The offset may be unaligned then.
    ///
    /// One thing is told otherwise than by [`L2Entry::decode`], as QEMU's check does: with an external data file, a
    /// standard entry with offset 0 and the zero flag has no host cluster, COPIED or not.
    #[must_use]
    pub fn examine(raw: RawL2Entry, geometry: &Geometry) -> (Self, EntryFaults) {
        let mut faults = EntryFaults::default();
        if raw.descriptor & COMPRESSED != 0 {
            faults.add_if(raw.descriptor & COPIED != 0, EntryError::CompressedCopied);
            faults.add_if(geometry.data_file(), EntryError::CompressedInDataFile);
            faults.add_if(raw.bitmap != 0, EntryError::CompressedBitmap);
            return (Self::Compressed(compressed_range(raw, geometry)), faults);
        }
        let extended = geometry.extended_l2();
        let offset = raw.descriptor & OFFSET;
        let copied = raw.descriptor & COPIED != 0;
        let zero = raw.descriptor & ZERO != 0;
        let mapped = offset != 0 || (geometry.data_file() && copied && (extended || !zero));
        let parts = if extended {
            split_bitmap(raw.bitmap)
        } else {
            Subclusters { allocated: u32::from(mapped && !zero), zero: u32::from(zero) }
        };
        faults.add_if(raw.descriptor & L2_RESERVED != 0, EntryError::ReservedBits);
        faults.add_if(!geometry.is_aligned(offset), EntryError::Unaligned);
        faults.add_if(zero && extended, EntryError::ZeroInExtended);
        faults.add_if(zero && !extended && geometry.version() < 3, EntryError::ZeroInVersion2);
        faults.add_if(mapped && parts.allocated & parts.zero != 0, EntryError::SubclusterConflict);
        faults.add_if(!mapped && parts.allocated != 0, EntryError::SubclusterWithoutCluster);
        let host = mapped.then_some(HostRef { offset: HostOffset::new(offset), copied });
        (Self::Plain { host, parts }, faults)
    }

    fn decode_compressed(raw: RawL2Entry, geometry: &Geometry) -> Result<Self, EntryError> {
        if geometry.data_file() {
            return Err(EntryError::CompressedInDataFile);
        }
        Ok(Self::Compressed(compressed_range(raw, geometry)))
    }

    /// The bits. The inverse of [`L2Entry::decode`] for every value that `decode` gives.
    ///
    /// A compressed range whose place or length does not fit the descriptor loses high bits; the allocator never
    /// makes one (see [`CompressedRange::fits`]).
    #[must_use]
    pub fn encode(self, geometry: &Geometry) -> RawL2Entry {
        match self {
            Self::Compressed(range) => {
                let (offset_mask, sector_shift) = compressed_layout(geometry);
                let more = range.extra_sectors().wrapping_shl(sector_shift) & !(COPIED | COMPRESSED);
                RawL2Entry { descriptor: COMPRESSED | (range.offset.get() & offset_mask) | more, bitmap: 0 }
            }
            Self::Plain { host, parts } => {
                let descriptor = host.map_or(0, HostRef::bits);
                if geometry.extended_l2() {
                    let bitmap = (u64::from(parts.zero) << 32) | u64::from(parts.allocated);
                    RawL2Entry { descriptor, bitmap }
                } else {
                    RawL2Entry { descriptor: descriptor | u64::from(parts.zero & 1), bitmap: 0 }
                }
            }
        }
    }

    /// Which of the kinds it is. With extended entries, clusters whose parts differ are [`L2Kind::Mixed`].
    #[must_use]
    pub fn kind(self, geometry: &Geometry) -> L2Kind {
        let Self::Plain { host, parts } = self else {
            return L2Kind::Compressed;
        };
        let full = Subclusters::full_mask(geometry);
        match (host, parts.allocated, parts.zero) {
            (None, 0, 0) => L2Kind::Unallocated,
            (None, _, zero) if zero == full => L2Kind::ZeroPlain,
            (Some(_), 0, zero) if zero == full => L2Kind::ZeroAllocated,
            (Some(_), allocated, _) if allocated == full => L2Kind::Normal,
            (None | Some(_), _, _) => L2Kind::Mixed,
        }
    }

    /// The host cluster, if one is mapped; `None` for compressed clusters.
    #[must_use]
    pub fn host(self) -> Option<HostRef> {
        match self {
            Self::Plain { host, .. } => host,
            Self::Compressed(_) => None,
        }
    }

    /// The entry that goes on `bytes` behind: the same with a host cluster so much further on, if it has one.
    #[must_use]
    pub(crate) fn further(self, bytes: u64) -> Self {
        match self {
            Self::Plain { host: Some(host), parts } => {
                Self::Plain { host: Some(HostRef { offset: host.offset.saturating_add(bytes), ..host }), parts }
            }
            Self::Plain { host: None, .. } | Self::Compressed(_) => self,
        }
    }

    /// The same entry with another COPIED flag; entries without a host cluster stay as they are.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        match self {
            Self::Plain { host: Some(host), parts } => Self::Plain { host: Some(HostRef { copied, ..host }), parts },
            Self::Plain { host: None, .. } | Self::Compressed(_) => self,
        }
    }

    /// The raw entry for the host cluster that many further on, all else the same: the later entries of a run.
    #[must_use]
    pub fn advanced(raw: RawL2Entry, clusters: u64, geometry: &Geometry) -> RawL2Entry {
        let further = (raw.descriptor & OFFSET).wrapping_add(clusters.saturating_mul(geometry.cluster_size())) & OFFSET;
        RawL2Entry { descriptor: (raw.descriptor & !OFFSET) | further, ..raw }
    }

    /// The COPIED bit of any raw entry.
    #[must_use]
    pub fn copied_bit(raw: RawL2Entry) -> bool {
        raw.descriptor & COPIED != 0
    }
}

impl CompressedRange {
    /// 512-byte sectors beyond the one in which the data begin.
    #[must_use]
    pub fn extra_sectors(self) -> u64 {
        (self.offset.get() % 512).saturating_add(self.length).div_ceil(512).saturating_sub(1)
    }

    /// The place of `length` bytes at `offset`, if an entry of this geometry can say it.
    #[must_use]
    pub fn fits(offset: HostOffset, length: u64, geometry: &Geometry) -> Option<Self> {
        let range = Self { offset, length };
        let raw = L2Entry::Compressed(range).encode(geometry);
        match L2Entry::decode_compressed(raw, geometry) {
            Ok(L2Entry::Compressed(read)) if read.offset == offset && read.length >= length => Some(read),
            Ok(_) | Err(_) => None,
        }
    }
}

impl fmt::Display for L2Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unallocated => "unallocated",
            Self::ZeroPlain => "zero_plain",
            Self::ZeroAllocated => "zero_allocated",
            Self::Normal => "normal",
            Self::Mixed => "mixed",
            Self::Compressed => "compressed",
        })
    }
}

/// Mask of the offset and position of the sector count in a compressed descriptor.
fn compressed_layout(geometry: &Geometry) -> (u64, u32) {
    // x = 62 - (cluster_bits - 8); offset in bits 0 to x - 1, sectors in bits x to 61.
    let shift = 70u32.saturating_sub(geometry.cluster_bits());
    (1u64.wrapping_shl(shift).wrapping_sub(1), shift)
}

fn compressed_range(raw: RawL2Entry, geometry: &Geometry) -> CompressedRange {
    let (offset_mask, sector_shift) = compressed_layout(geometry);
    let offset = raw.descriptor & offset_mask;
    let more = (raw.descriptor & !(COMPRESSED | COPIED)).wrapping_shr(sector_shift);
    // The count excludes the sector in which the data begin.
    let length = more.saturating_add(1).saturating_mul(512).saturating_sub(offset % 512);
    CompressedRange { offset: HostOffset::new(offset), length }
}

fn split_bitmap(bitmap: u64) -> Subclusters {
    let allocated = u32::try_from(bitmap & u64::from(u32::MAX)).unwrap_or_default();
    Subclusters { allocated, zero: u32::try_from(bitmap >> 32).unwrap_or_default() }
}

fn decode_bitmap(bitmap: u64, mapped: bool) -> Result<Subclusters, EntryError> {
    let Subclusters { allocated, zero } = split_bitmap(bitmap);
    if allocated & zero != 0 {
        return Err(EntryError::SubclusterConflict);
    }
    if !mapped && allocated != 0 {
        return Err(EntryError::SubclusterWithoutCluster);
    }
    Ok(Subclusters { allocated, zero })
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn geometry(version: u32, extended: bool, data_file: bool) -> Geometry {
        Geometry::new(version, 16, 4, extended, data_file, 1 << 30).unwrap()
    }

    #[test]
    fn every_kind_survives_both_ways() {
        for (extended, data_file) in [(false, false), (true, false), (false, true), (true, true)] {
            let geometry = geometry(3, extended, data_file);
            let host = HostRef { offset: HostOffset::new(0x50000), copied: true };
            let mut entries = vec![
                (L2Entry::UNALLOCATED, L2Kind::Unallocated),
                (L2Entry::zero_plain(&geometry), L2Kind::ZeroPlain),
                (L2Entry::zero_allocated(host, &geometry), L2Kind::ZeroAllocated),
                (L2Entry::normal(host, &geometry), L2Kind::Normal),
                (L2Entry::normal(host, &geometry).with_copied(false), L2Kind::Normal),
            ];
            if extended {
                let parts = Subclusters { allocated: 0xff, zero: 0xff00 };
                entries.push((L2Entry::Plain { host: Some(host), parts }, L2Kind::Mixed));
                let parts = Subclusters { allocated: 0, zero: 1 };
                entries.push((L2Entry::Plain { host: None, parts }, L2Kind::Mixed));
            }
            if data_file {
                let zero = HostRef { offset: HostOffset::new(0), copied: true };
                entries.push((L2Entry::normal(zero, &geometry), L2Kind::Normal));
                entries.push((L2Entry::zero_allocated(zero, &geometry), L2Kind::ZeroAllocated));
            }
            for (entry, kind) in entries {
                assert_eq!(L2Entry::decode(entry.encode(&geometry), &geometry), Ok(entry));
                assert_eq!(entry.kind(&geometry), kind);
            }
        }
    }

    #[test]
    fn hand_written_standard_entries() {
        let geometry = geometry(3, false, false);
        let decode = |descriptor| L2Entry::decode(RawL2Entry { descriptor, bitmap: 0 }, &geometry);
        let host = HostRef { offset: HostOffset::new(0x50000), copied: true };
        assert_eq!(decode(0x8000_0000_0005_0000), Ok(L2Entry::normal(host, &geometry)));
        assert_eq!(decode(0x8000_0000_0005_0001), Ok(L2Entry::zero_allocated(host, &geometry)));
        assert_eq!(decode(1), Ok(L2Entry::zero_plain(&geometry)));
        assert_eq!(decode(0x8000_0000_0005_0002), Err(EntryError::ReservedBits));
        assert_eq!(decode(0x8000_0000_0005_0200), Err(EntryError::Unaligned));
        assert_eq!(decode(0x0100_0000_0005_0000), Err(EntryError::ReservedBits));
    }

    #[test]
    fn version_2_has_no_zero_flag_and_extended_entries_have_rules() {
        let raw = |descriptor, bitmap| RawL2Entry { descriptor, bitmap };
        assert_eq!(L2Entry::decode(raw(1, 0), &geometry(2, false, false)), Err(EntryError::ZeroInVersion2));
        let extended = geometry(3, true, false);
        assert_eq!(L2Entry::decode(raw(0x50001, 0), &extended), Err(EntryError::ReservedBits));
        assert_eq!(L2Entry::decode(raw(0x50000, (1 << 32) | 1), &extended), Err(EntryError::SubclusterConflict));
        assert_eq!(L2Entry::decode(raw(0, 1), &extended), Err(EntryError::SubclusterWithoutCluster));
    }

    #[test]
    fn examining_agrees_with_decoding_and_names_every_fault() {
        let raw = |descriptor, bitmap| RawL2Entry { descriptor, bitmap };
        for (extended, data_file) in [(false, false), (true, false), (false, true), (true, true)] {
            let geometry = geometry(3, extended, data_file);
            for descriptor in
                [0, 1, COPIED, COPIED | 1, COPIED | 0x50000, 0x50001, 0x50200, 0x50002, COMPRESSED | 0x50123, 1 << 58]
            {
                for bitmap in if extended { vec![0, 1, 1 << 32, (1 << 32) | 1, u64::MAX << 32] } else { vec![0] } {
                    let (entry, faults) = L2Entry::examine(raw(descriptor, bitmap), &geometry);
                    match L2Entry::decode(raw(descriptor, bitmap), &geometry) {
                        // The zero flag at offset 0 of a data file.
                        Ok(_) if data_file && !extended && descriptor == COPIED | 1 => {
                            assert_eq!(entry, L2Entry::zero_plain(&geometry));
                        }
                        Ok(decoded) => {
                            assert_eq!(entry, decoded);
                            assert!(
                                faults.is_empty() || faults.iter().all(|fault| fault == EntryError::CompressedBitmap)
                            );
                        }
                        Err(_) => assert!(!faults.is_empty(), "{descriptor:#x} {bitmap:#x}"),
                    }
                }
            }
        }
        let (_, faults) = L2Entry::examine(raw(COPIED | COMPRESSED, 1), &geometry(3, true, true));
        let expected = [EntryError::CompressedInDataFile, EntryError::CompressedCopied, EntryError::CompressedBitmap];
        assert_eq!(faults.iter().collect::<vec::Vec<_>>(), expected);
    }

    #[test]
    fn compressed_places() {
        for bits in 9..=21 {
            let geometry = Geometry::new(3, bits, 4, false, false, 1 << 30).unwrap();
            for (offset, length) in [(0x10000u64, 1u64), (0x10001, 511), (0x10001, 512), (0x103ff, 1), (0x10200, 300)] {
                let length = length.min(geometry.cluster_size());
                let range = CompressedRange::fits(HostOffset::new(offset), length, &geometry).unwrap();
                assert_eq!((offset + range.length) % 512, 0);
                assert!(range.length >= length && range.length < length + 512);
            }
            assert_eq!(CompressedRange::fits(HostOffset::new(1 << 61), 1, &geometry), None);
        }
        let geometry = geometry(3, false, false);
        // 64 KiB clusters: sectors in bits 54 to 61.
        let raw = RawL2Entry { descriptor: (1 << 62) | (3 << 54) | 0x50123, bitmap: 0 };
        let expected = CompressedRange { offset: HostOffset::new(0x50123), length: 4 * 512 - 0x123 };
        assert_eq!(L2Entry::decode(raw, &geometry), Ok(L2Entry::Compressed(expected)));
    }

    #[test]
    fn l1_entries() {
        let geometry = geometry(3, false, false);
        assert_eq!(L1Entry::decode(0, &geometry), Ok(L1Entry::Unallocated));
        let table = L1Entry::Table(HostRef { offset: HostOffset::new(0x40000), copied: true });
        assert_eq!(L1Entry::decode(0x8000_0000_0004_0000, &geometry), Ok(table));
        assert_eq!(table.encode(), 0x8000_0000_0004_0000);
        assert_eq!(L1Entry::decode(0x4000_0000_0004_0000, &geometry), Err(EntryError::ReservedBits));
        assert_eq!(L1Entry::decode(0x40200, &geometry), Err(EntryError::Unaligned));
    }
}
