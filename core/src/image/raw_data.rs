//! Raw data files: the file and the guest show the same, also between a write and the next flush.
//!
//! A write goes into the file at once, and the guest finds it there only when its cluster is mapped. So clusters are
//! mapped first, durably, while the file still reads as zeros there: after a cut both views show the old bytes, or both
//! the new ones. This costs a commit for each step of the L2 tables in which something is unmapped, not for each
//! cluster.

use alloc::vec::Vec;

use super::Image;
use crate::error::{Error, Result};
use crate::format::{GuestCluster, HostOffset, HostRef, L2Entry, Subclusters};
use crate::storage::{Storage, ZeroMode};

impl<S: Storage> Image<S> {
    /// Maps the clusters of a raw data file from `first` on before they are written: at least `needed` of them, and
    /// where one of these is not mapped, all of `step`. The L2 table is writable.
    ///
    /// What the guest reads as zeros becomes zeros in the file first, so that a file that had drifted does not show.
    pub(super) fn map_raw_data(&mut self, first: GuestCluster, needed: u64, step: u64) -> Result<()> {
        let geometry = *self.geometry();
        if !geometry.data_file() || !self.header().header.autoclear.data_file_raw() {
            return Ok(());
        }
        if self.mapping_due {
            // An earlier attempt could not store what it had mapped.
            self.commit()?;
        }
        let full = Subclusters::all_allocated(&geometry);
        let mapped = |entry: L2Entry| matches!(entry, L2Entry::Plain { host: Some(_), parts } if parts == full);
        let found = self.metadata.visit(&self.storage, first, needed, |entry| entry.is_some_and(mapped))?;
        if found >= needed {
            return Ok(());
        }
        let step = step.min(geometry.guest_clusters().saturating_sub(first.get())).max(needed);
        let mut entries: Vec<L2Entry> = Vec::new();
        self.metadata.visit(&self.storage, first, step, |entry| {
            entries.push(entry.unwrap_or(L2Entry::UNALLOCATED));
            true
        })?;
        let mut zeros: Option<(u64, u64)> = None;
        for (cluster, &entry) in (first.get()..).zip(&entries) {
            let start = geometry.guest_start(GuestCluster::new(cluster)).get();
            let L2Entry::Plain { parts, .. } = entry else { continue };
            for part in 0..geometry.subclusters() {
                if parts.allocated & 1u32.wrapping_shl(part) != 0 {
                    continue;
                }
                let from = start.saturating_add(u64::from(part).saturating_mul(geometry.subcluster_size()));
                let to = from.saturating_add(geometry.subcluster_size());
                zeros = match zeros {
                    Some((begin, end)) if end == from => Some((begin, to)),
                    Some(run) => {
                        self.zero_raw_data(run)?;
                        Some((from, to))
                    }
                    None => Some((from, to)),
                };
            }
        }
        if let Some(run) = zeros {
            self.zero_raw_data(run)?;
        }
        self.mapping_due = true;
        for (cluster, &entry) in (first.get()..).zip(&entries) {
            if !mapped(entry) && matches!(entry, L2Entry::Plain { .. }) {
                let cluster = GuestCluster::new(cluster);
                let offset = HostOffset::new(geometry.guest_start(cluster).get());
                let entry = L2Entry::normal(HostRef { offset, copied: true }, &geometry);
                self.metadata.set_entry(&self.storage, cluster, entry)?;
            }
        }
        self.commit()
    }

    /// Zeros in the data file, which ends where the disk does.
    fn zero_raw_data(&mut self, (from, to): (u64, u64)) -> Result<()> {
        let length = to.min(self.virtual_size()).saturating_sub(from);
        self.note_data();
        let zeroed = self.data_at_depth(0)?.write_zeroes(from, length, ZeroMode::MayUnmap);
        zeroed.map_err(|error| Error::from(error).at_guest(from))
    }
}
