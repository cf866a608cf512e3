//! The snapshot table (section "Snapshots").

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::count::counted;
use super::{Name, Reader};
use crate::error::{Error, ErrorKind, Result, Structure};

/// Extra data that this version knows: VM state size, virtual size, instruction count.
const KNOWN_EXTRA_DATA: usize = 24;

/// An entry of the snapshot table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Snapshot {
    /// First byte of the snapshot's L1 table.
    pub l1_table_offset: u64,
    /// Entries of that table.
    pub l1_size: u32,
    /// When it was taken, in seconds since 1970.
    pub date_seconds: u32,
    /// The part of a second of that time, in nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// The 32-bit size of the VM state; [`Snapshot::vm_state_size`] prefers the one in the extra data.
    pub vm_state_size_32: u32,
    /// The extra data, known and unknown, as they stand in the entry; at most 1024 bytes.
    pub extra_data: Vec<u8>,
    /// The unique identifier.
    pub id: Name,
    /// The name.
    pub name: Name,
}

impl Snapshot {
    /// Bytes of the part of an entry that every entry has.
    pub const FIXED_LENGTH: usize = 40;

    /// Reads one entry with its padding.
    ///
    /// # Errors
    /// When the entry reaches beyond the bytes, or its extra data are longer than [`super::MAX_SNAPSHOT_EXTRA_DATA`].
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self> {
        let start = reader.host_offset();
        let l1_table_offset = reader.u64("L1 table offset")?;
        let l1_size = reader.u32("L1 size")?;
        let id_length = usize::from(reader.u16("length of the ID")?);
        let name_length = usize::from(reader.u16("length of the name")?);
        let date_seconds = reader.u32("date")?;
        let date_nanoseconds = reader.u32("date, nanoseconds")?;
        let vm_clock_nanoseconds = reader.u64("VM clock")?;
        let vm_state_size_32 = reader.u32("VM state size")?;
        let extra_length = reader.u32("length of extra data")?;
        if extra_length > super::MAX_SNAPSHOT_EXTRA_DATA {
            let limit = super::MAX_SNAPSHOT_EXTRA_DATA;
            let what = format!("{extra_length} bytes of extra data in a snapshot, at most {limit} are allowed");
            return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::SnapshotTable).at_host(start));
        }
        let extra_length = usize::try_from(extra_length).unwrap_or(usize::MAX);
        let extra_data = reader.take(extra_length, "extra data")?.to_vec();
        let id = Name::new(reader.take(id_length, "ID")?);
        let name = Name::new(reader.take(name_length, "name")?);
        let length = usize::try_from(reader.host_offset().saturating_sub(start)).unwrap_or(0);
        // The last entry of a table that ends with the file may lack padding.
        reader.take((length.wrapping_neg() & 7).min(reader.rest().len()), "padding")?;
        Ok(Self {
            l1_table_offset,
            l1_size,
            date_seconds,
            date_nanoseconds,
            vm_clock_nanoseconds,
            vm_state_size_32,
            extra_data,
            id,
            name,
        })
    }

    /// Bytes of an entry with its padding, told from its first [`Snapshot::FIXED_LENGTH`] bytes: how much to read
    /// before [`Snapshot::parse`]. At most 132,136 where the extra data keep their limit.
    ///
    /// # Errors
    /// When the bytes are fewer.
    pub fn entry_length(fixed: &[u8]) -> Result<u64> {
        let mut reader = Reader::new(fixed, Structure::SnapshotTable, 0);
        reader.take(12, "L1 table")?;
        let id = u64::from(reader.u16("length of the ID")?);
        let name = u64::from(reader.u16("length of the name")?);
        reader.take(20, "date, VM clock, VM state size")?;
        let extra = u64::from(reader.u32("length of extra data")?);
        let length = 40u64.saturating_add(extra).saturating_add(id).saturating_add(name);
        Ok(length.saturating_add(7) & !7)
    }

    /// Bytes of extra data, told from the first [`Snapshot::FIXED_LENGTH`] bytes of an entry; not checked.
    ///
    /// # Errors
    /// When the bytes are fewer.
    pub fn extra_data_length(fixed: &[u8]) -> Result<u32> {
        let mut reader = Reader::new(fixed, Structure::SnapshotTable, 0);
        reader.take(36, "the fields before it")?;
        reader.u32("length of extra data")
    }

    /// The fields of the entry in their order, without the padding: name, place within the entry, bytes, and what it
    /// says, in words.
    #[must_use]
    pub fn layout(&self) -> Vec<(&'static str, u64, u64, String)> {
        let bytes = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let (extra, id, name) = (bytes(self.extra_data.len()), bytes(self.id.len()), bytes(self.name.len()));
        let id_at = extra.saturating_add(40);
        let mut fields = alloc::vec![
            ("L1 table offset", 0, 8, format!("{:#x}", self.l1_table_offset)),
            ("L1 size", 8, 4, counted(self.l1_size.into(), "entry")),
            ("length of the ID", 12, 2, counted(id, "byte")),
            ("length of the name", 14, 2, counted(name, "byte")),
            ("date", 16, 4, format!("{} since 1970", counted(self.date_seconds.into(), "second"))),
            ("date, nanoseconds", 20, 4, format!("{} ns", self.date_nanoseconds)),
            ("VM clock", 24, 8, format!("{} ns", self.vm_clock_nanoseconds)),
            ("VM state size", 32, 4, counted(self.vm_state_size_32.into(), "byte")),
            ("length of extra data", 36, 4, counted(extra, "byte")),
            ("extra data", 40, extra, format!("VM state of {}", counted(self.vm_state_size(), "byte"))),
            ("ID", id_at, id, self.id.to_string_lossy().into_owned()),
            ("name", id_at.saturating_add(id), name, self.name.to_string_lossy().into_owned()),
        ];
        fields.retain(|(_, _, length, _)| *length > 0);
        fields
    }

    /// Appends the entry with its padding.
    ///
    /// # Errors
    /// When ID or name are longer than 65,535 bytes or the extra data longer than allowed; nothing is appended then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<()> {
        let long = |what: &str| {
            Error::new(ErrorKind::Limit(format!("{what} of a snapshot is too long")))
                .in_structure(Structure::SnapshotTable)
        };
        let id_length = u16::try_from(self.id.len()).map_err(|_| long("the ID"))?;
        let name_length = u16::try_from(self.name.len()).map_err(|_| long("the name"))?;
        let extra_length = u32::try_from(self.extra_data.len()).unwrap_or(u32::MAX);
        if extra_length > super::MAX_SNAPSHOT_EXTRA_DATA {
            return Err(long("the extra data"));
        }
        let start = out.len();
        out.extend(self.l1_table_offset.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(id_length.to_be_bytes());
        out.extend(name_length.to_be_bytes());
        out.extend(self.date_seconds.to_be_bytes());
        out.extend(self.date_nanoseconds.to_be_bytes());
        out.extend(self.vm_clock_nanoseconds.to_be_bytes());
        out.extend(self.vm_state_size_32.to_be_bytes());
        out.extend(extra_length.to_be_bytes());
        out.extend(&self.extra_data);
        out.extend(self.id.as_bytes());
        out.extend(self.name.as_bytes());
        let length = out.len().saturating_sub(start);
        out.resize(out.len().saturating_add(length.wrapping_neg() & 7), 0);
        Ok(())
    }

    /// Bytes of VM state; 0 without one.
    #[must_use]
    pub fn vm_state_size(&self) -> u64 {
        self.extra_field(0).unwrap_or_else(|| self.vm_state_size_32.into())
    }

    /// Bytes of the virtual disk when the snapshot was taken; `None` where it was the same as now.
    #[must_use]
    pub fn virtual_size(&self) -> Option<u64> {
        self.extra_field(8)
    }

    /// The instruction count of record/replay; `None` where it was off.
    #[must_use]
    pub fn icount(&self) -> Option<u64> {
        self.extra_field(16).filter(|&count| count != u64::MAX)
    }

    /// Extra data beyond what this version knows.
    #[must_use]
    pub fn unknown_extra_data(&self) -> &[u8] {
        self.extra_data.get(KNOWN_EXTRA_DATA..).unwrap_or_default()
    }

    /// The extra data that say this; `icount` of `None` is stored as "off".
    #[must_use]
    pub fn extra_data_for(vm_state_size: u64, virtual_size: u64, icount: Option<u64>) -> Vec<u8> {
        [vm_state_size, virtual_size, icount.unwrap_or(u64::MAX)].into_iter().flat_map(u64::to_be_bytes).collect()
    }

    fn extra_field(&self, at: usize) -> Option<u64> {
        let bytes = self.extra_data.get(at..at.checked_add(8)?)?;
        Reader::new(bytes, Structure::SnapshotTable, 0).u64("extra data").ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn hand_written(extra: &[u8], id: &[u8], name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 3];
        bytes.extend((id.len() as u16).to_be_bytes());
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend([0x60, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7]);
        bytes.extend((extra.len() as u32).to_be_bytes());
        bytes.extend(extra);
        bytes.extend(id);
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn hand_written_entries_survive_both_ways() {
        let extra = Snapshot::extra_data_for(1 << 40, 1 << 30, None);
        let mut with_more = extra.clone();
        with_more.extend(b"future");
        let mut bytes = hand_written(&extra, b"1", b"before the update");
        bytes.extend(hand_written(&with_more, b"2", b"b\xff"));
        bytes.extend(hand_written(&[], b"", b""));
        bytes.extend(hand_written(&[1, 2, 3], b"4", b"partial extra data"));
        let mut reader = Reader::new(&bytes, Structure::SnapshotTable, 0x50000);
        let all: Vec<_> = (0..4).map(|_| Snapshot::parse(&mut reader).unwrap()).collect();
        assert!(reader.rest().is_empty());
        assert_eq!((all[0].l1_table_offset, all[0].l1_size, all[0].date_seconds), (0x60000, 3, 0x6000_0000));
        assert_eq!((all[0].date_nanoseconds, all[0].vm_clock_nanoseconds), (5, 9));
        assert_eq!((all[0].vm_state_size(), all[0].virtual_size(), all[0].icount()), (1 << 40, Some(1 << 30), None));
        assert_eq!(all[1].unknown_extra_data(), b"future");
        assert_eq!((all[2].vm_state_size(), all[2].virtual_size()), (7, None));
        assert_eq!(all[0].name, "before the update");
        let mut out = Vec::new();
        all.iter().for_each(|snapshot| {
            let at = out.len();
            snapshot.emit(&mut out).unwrap();
            assert_eq!(Snapshot::entry_length(&out[at..]).unwrap(), (out.len() - at) as u64);
            let extra = Snapshot::extra_data_length(&out[at..]).unwrap();
            assert_eq!(extra as usize, snapshot.extra_data.len());
        });
        assert_eq!(out, bytes);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let bytes = hand_written(&[0; 24], b"1", b"name");
        for cut in [0, 7, 39, 41, 64, 68] {
            assert!(Snapshot::parse(&mut Reader::new(&bytes[..cut], Structure::SnapshotTable, 0)).is_err());
        }
        let mut much = bytes.clone();
        much[36..40].copy_from_slice(&1025u32.to_be_bytes());
        much.resize(4096, 0);
        let error = Snapshot::parse(&mut Reader::new(&much, Structure::SnapshotTable, 0)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit(_)));
        let snapshot = Snapshot::parse(&mut Reader::new(&bytes, Structure::SnapshotTable, 0)).unwrap();
        let long = Snapshot { name: Name::new(vec![b'x'; 65536]), ..snapshot };
        let mut out = Vec::new();
        assert!(long.emit(&mut out).is_err() && out.is_empty());
    }
}
