//! A whole L2 table at once, as runs of entries.

use super::{EntryFaults, Geometry, L2Entry, RawL2Entry};

/// Entries in a row that say the same: all unallocated, all zero, or mapped to host clusters in a row with the same
/// flags. A compressed entry, or one with faults, stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Run {
    /// Index of the first entry in the table.
    pub first: u64,
    /// Entries in the run, at least 1.
    pub count: u64,
    /// The first entry as it stands in the table.
    pub raw: RawL2Entry,
    /// What the first entry says, or would say without its faults; the host clusters of the others follow on.
    pub entry: L2Entry,
    /// What is wrong with the entry.
    pub faults: EntryFaults,
}

/// The runs of an L2 table, in its order; see [`l2_runs`].
#[derive(Debug, Clone)]
pub struct L2Runs<'a> {
    rest: &'a [u8],
    next: u64,
    geometry: Geometry,
}

/// Takes the bytes of an L2 table (or of its beginning) apart into runs. Never refuses: see [`L2Entry::examine`].
#[must_use]
pub fn l2_runs<'a>(table: &'a [u8], geometry: &Geometry) -> L2Runs<'a> {
    L2Runs { rest: table, next: 0, geometry: *geometry }
}

impl Iterator for L2Runs<'_> {
    type Item = L2Run;

    fn next(&mut self) -> Option<L2Run> {
        if self.geometry.extended_l2() { self.next_of::<16>() } else { self.next_of::<8>() }
    }
}

impl L2Runs<'_> {
    fn next_of<const WIDTH: usize>(&mut self) -> Option<L2Run> {
        let (entries, _) = self.rest.as_chunks::<WIDTH>();
        let (head, others) = entries.split_first()?;
        let raw = read(head);
        let (entry, faults) = L2Entry::examine(raw, &self.geometry);
        let more = match entry {
            L2Entry::Compressed(_) => 0,
            L2Entry::Plain { .. } if !faults.is_empty() => 0,
            L2Entry::Plain { host: None, .. } => others.iter().take_while(|&other| other == head).count(),
            L2Entry::Plain { host: Some(host), .. } => {
                // Beyond the last host cluster that an entry can name, the sum would run into other fields.
                let room = super::MAX_HOST_OFFSET.saturating_sub(host.offset.get());
                let room = room.wrapping_shr(self.geometry.cluster_bits()).saturating_sub(1);
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                count_following(
                    others.get(..room.min(others.len())).unwrap_or(others),
                    raw,
                    self.geometry.cluster_size(),
                )
            }
        };
        let count = more.saturating_add(1);
        self.rest = self.rest.get(count.saturating_mul(WIDTH)..).unwrap_or_default();
        let first = self.next;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.next = first.saturating_add(count);
        Some(L2Run { first, count, raw, entry, faults })
    }
}

/// How many entries go on where `raw` leads to, each one cluster further.
fn count_following<const WIDTH: usize>(entries: &[[u8; WIDTH]], raw: RawL2Entry, cluster_size: u64) -> usize {
    let mut expected = raw.descriptor;
    entries
        .iter()
        .take_while(|entry| {
            expected = expected.wrapping_add(cluster_size);
            let entry = read(entry);
            entry.descriptor == expected && entry.bitmap == raw.bitmap
        })
        .count()
}

fn read<const WIDTH: usize>(bytes: &[u8; WIDTH]) -> RawL2Entry {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |index: usize| words.get(index).map_or(0, |&word| u64::from_be_bytes(word));
    RawL2Entry { descriptor: word(0), bitmap: word(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{HostOffset, HostRef};
    use std::vec::Vec;

    const COPIED: u64 = 1 << 63;

    fn table(geometry: &Geometry, entries: &[(u64, u64)]) -> Vec<u8> {
        let words = entries.iter().flat_map(|&(descriptor, bitmap)| {
            let count = if geometry.extended_l2() { 2 } else { 1 };
            [descriptor, bitmap].into_iter().take(count)
        });
        words.flat_map(u64::to_be_bytes).collect()
    }

    fn shape(bytes: &[u8], geometry: &Geometry) -> Vec<(u64, u64)> {
        l2_runs(bytes, geometry).map(|run| (run.first, run.count)).collect()
    }

    #[test]
    fn entries_that_say_the_same_form_runs() {
        let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
        let entries = [
            (0, 0),
            (0, 0),
            (COPIED | 0x50000, 0),
            (COPIED | 0x60000, 0),
            (0x70000, 0),
            (0x80000, 0),
            (0xa0000, 0),
            (1, 0),
            (1, 0),
            (0x50001, 0),
            (0x60001, 0),
            (1 << 62 | 0x50000, 0),
            (1 << 62 | 0x50000, 0),
            (2, 0),
            (2, 0),
        ];
        let bytes = table(&geometry, &entries);
        let expected = [(0, 2), (2, 2), (4, 2), (6, 1), (7, 2), (9, 2), (11, 1), (12, 1), (13, 1), (14, 1)];
        assert_eq!(shape(&bytes, &geometry), expected);
        let run = l2_runs(&bytes, &geometry).nth(1).unwrap();
        let host = HostRef { offset: HostOffset::new(0x50000), copied: true };
        assert_eq!((run.entry, run.raw.descriptor), (L2Entry::normal(host, &geometry), COPIED | 0x50000));
        assert!(!l2_runs(&bytes, &geometry).last().unwrap().faults.is_empty());
    }

    #[test]
    fn runs_of_extended_entries_have_one_bitmap() {
        let geometry = Geometry::new(3, 16, 4, true, false, 1 << 30).unwrap();
        let entries = [(0x50000, 1), (0x60000, 1), (0x70000, 3), (0, 1 << 32), (0, 1 << 32), (0, 1), (0, 1)];
        assert_eq!(shape(&table(&geometry, &entries), &geometry), [(0, 2), (2, 1), (3, 2), (5, 1), (6, 1)]);
    }

    #[test]
    fn the_last_host_cluster_ends_a_run_and_a_torn_table_ends() {
        let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
        let last = 0x00ff_ffff_ffff_0000;
        let bytes = table(&geometry, &[(last - 0x10000, 0), (last, 0), (last + 0x10000, 0), (0, 0)]);
        assert_eq!(shape(&bytes, &geometry), [(0, 2), (2, 1), (3, 1)]);
        assert_eq!(shape(&bytes[..15], &geometry), [(0, 1)]);
        assert_eq!(shape(&[], &geometry), []);
    }
}
