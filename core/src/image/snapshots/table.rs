//! What the snapshot table says next: decisions without I/O.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{Geometry, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Name, Snapshot};

/// Extra data that entries of version 3 must have: VM state size and virtual size.
const VERSION_3_EXTRA_DATA: usize = 16;

/// A snapshot to be taken. The time comes from the caller: nothing here reads a clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewSnapshot {
    /// Its name; several may have the same. The ID is chosen: one more than the highest number there is.
    pub name: Name,
    /// When it is taken, in seconds since 1970.
    pub date_seconds: u32,
    /// The part of a second of that time, in nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest has been running, in nanoseconds; 0 for a disk that is not in use.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of VM state that lie beyond the end of the disk; 0 for the disk alone.
    pub vm_state_size: u64,
    /// The instruction count of record/replay; `None` where it is off.
    pub icount: Option<u64>,
}

/// Which snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotSelector {
    /// The first with this ID; if there is none, the first with this name. What `qemu-img snapshot -a` and
    /// `qemu-img convert -l` take.
    IdOrName(Name),
    /// The first with this ID.
    Id(Name),
    /// The first with this name.
    Name(Name),
    /// The first that has both: `snapshot.id=...,snapshot.name=...`.
    IdAndName {
        /// The ID.
        id: Name,
        /// The name.
        name: Name,
    },
}

impl SnapshotSelector {
    /// Where the selected snapshot stands among these.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when it is not there.
    pub fn position(&self, snapshots: &[Snapshot]) -> Result<usize> {
        let by = |test: &dyn Fn(&Snapshot) -> bool| snapshots.iter().position(test);
        let found = match self {
            Self::IdOrName(text) => by(&|s| s.id == *text).or_else(|| by(&|s| s.name == *text)),
            Self::Id(id) => by(&|s| s.id == *id),
            Self::Name(name) => by(&|s| s.name == *name),
            Self::IdAndName { id, name } => by(&|s| s.id == *id && s.name == *name),
        };
        found.ok_or_else(|| {
            Error::invalid(format!("there is no snapshot {self}")).in_structure(Structure::SnapshotTable)
        })
    }

    /// The selected snapshot.
    ///
    /// # Errors
    /// As [`SnapshotSelector::position`].
    pub fn find_in(&self, mut snapshots: Vec<Snapshot>) -> Result<Snapshot> {
        let position = self.position(&snapshots)?;
        Ok(snapshots.swap_remove(position))
    }
}

impl core::fmt::Display for SnapshotSelector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::IdOrName(text) => write!(f, "'{text}'"),
            Self::Id(id) => write!(f, "with the ID '{id}'"),
            Self::Name(name) => write!(f, "named '{name}'"),
            Self::IdAndName { id, name } => write!(f, "with the ID '{id}' and the name '{name}'"),
        }
    }
}

/// The entry of a new snapshot, whose L1 table has no place yet.
pub(super) fn entry(new: &NewSnapshot, others: &[Snapshot], l1_size: usize, virtual_size: u64) -> Result<Snapshot> {
    if u32::try_from(others.len()).unwrap_or(u32::MAX) >= MAX_SNAPSHOTS {
        let what = format!("the image has {MAX_SNAPSHOTS} snapshots, which is as many as there can be");
        return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::SnapshotTable));
    }
    Ok(Snapshot {
        l1_table_offset: 0,
        l1_size: u32::try_from(l1_size).unwrap_or(u32::MAX),
        date_seconds: new.date_seconds,
        date_nanoseconds: new.date_nanoseconds,
        vm_clock_nanoseconds: new.vm_clock_nanoseconds,
        // For readers that know no extra data; the size that counts is there.
        vm_state_size_32: u32::try_from(new.vm_state_size).unwrap_or(0),
        extra_data: Snapshot::extra_data_for(new.vm_state_size, virtual_size, new.icount),
        id: Name::from(next_id(others).to_string()),
        name: new.name.clone(),
    })
}

/// One more than the highest ID that is, or begins with, a number.
fn next_id(snapshots: &[Snapshot]) -> u64 {
    let number = |id: &Name| {
        let digits = id.as_bytes().iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0u64, |value, digit| value.saturating_mul(10).saturating_add(u64::from(digit.wrapping_sub(b'0'))))
    };
    snapshots.iter().map(|snapshot| number(&snapshot.id)).max().unwrap_or(0).saturating_add(1)
}

/// The bytes of a table. In version 3, entries that lack the extra data that it demands get them: a missing disk size
/// means the present one. Unknown extra data stay.
pub(super) fn emit(snapshots: &[Snapshot], geometry: &Geometry) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for snapshot in snapshots {
        if geometry.version() >= 3 && snapshot.extra_data.len() < VERSION_3_EXTRA_DATA {
            let size = snapshot.virtual_size().unwrap_or(geometry.virtual_size());
            let extra_data = Snapshot::extra_data_for(snapshot.vm_state_size(), size, snapshot.icount());
            Snapshot { extra_data, ..snapshot.clone() }.emit(&mut bytes)?;
        } else {
            snapshot.emit(&mut bytes)?;
        }
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_SNAPSHOT_TABLE_BYTES {
            let what = format!("a snapshot table larger than {MAX_SNAPSHOT_TABLE_BYTES} bytes");
            return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::SnapshotTable));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Reader;

    fn named(id: &str, name: &str) -> Snapshot {
        let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
        Snapshot { id: id.into(), ..entry(&new, &[], 1, 512).unwrap() }
    }

    #[test]
    fn ids_go_before_names_and_the_first_counts() {
        let all = [named("1", "2"), named("2", "a"), named("3", "a"), named("x", "")];
        let position = |selector: SnapshotSelector| selector.position(&all).ok();
        assert_eq!(position(SnapshotSelector::IdOrName("2".into())), Some(1));
        assert_eq!(position(SnapshotSelector::IdOrName("a".into())), Some(1));
        assert_eq!(position(SnapshotSelector::IdOrName("".into())), Some(3));
        assert_eq!(position(SnapshotSelector::Name("2".into())), Some(0));
        assert_eq!(position(SnapshotSelector::Id("a".into())), None);
        assert_eq!(position(SnapshotSelector::IdAndName { id: "3".into(), name: "a".into() }), Some(2));
        assert_eq!(position(SnapshotSelector::IdAndName { id: "1".into(), name: "a".into() }), None);
    }

    #[test]
    fn a_new_id_is_higher_than_all_there_are() {
        let id = |ids: &[&str]| next_id(&ids.iter().map(|id| named(id, "n")).collect::<Vec<_>>());
        assert_eq!(id(&[]), 1);
        assert_eq!(id(&["1", "7", "3"]), 8);
        assert_eq!(id(&["x", "", "2y"]), 3);
        assert_eq!(id(&["99999999999999999999999"]), u64::MAX);
    }

    #[test]
    fn tables_of_version_3_are_completed_and_unknown_data_stay() {
        let bare = Snapshot { extra_data: Vec::new(), vm_state_size_32: 7, ..named("1", "bare") };
        let mut extra = Snapshot::extra_data_for(1, 2, Some(3));
        extra.extend(b"future");
        let full = Snapshot { extra_data: extra, ..named("2", "full") };
        for version in [2, 3] {
            let geometry = Geometry::new(version, 16, 4, false, false, 1 << 20).unwrap();
            let bytes = emit(&[bare.clone(), full.clone()], &geometry).unwrap();
            let mut reader = Reader::new(&bytes, Structure::SnapshotTable, 0);
            let read = [Snapshot::parse(&mut reader).unwrap(), Snapshot::parse(&mut reader).unwrap()];
            assert!(reader.rest().is_empty());
            assert_eq!(read[1], full);
            let expected = if version == 2 { None } else { Some(1 << 20) };
            assert_eq!((read[0].vm_state_size(), read[0].virtual_size(), read[0].icount()), (7, expected, None));
        }
    }
}
