//! Holes that are still to be made: free clusters whose bytes the host holds.
//!
//! A cluster that is soon taken again needs no hole, and a hole is dear: the host waits for its own journal. So holes
//! wait until the next flush, or until there are too many, and what was taken meanwhile is left out.

use alloc::collections::BTreeMap;

use crate::format::HostCluster;

/// Runs of clusters, by their first, never touching each other.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    runs: BTreeMap<u64, u64>,
    clusters: u64,
}

impl Holes {
    /// Clusters that wait.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Adds clusters that have become free.
    pub(crate) fn add(&mut self, first: HostCluster, count: u64) {
        if count == 0 {
            return;
        }
        self.remove(first, count);
        let (mut start, mut end) = (first.get(), first.get().saturating_add(count));
        self.clusters = self.clusters.saturating_add(count);
        if let Some((&before, &length)) = self.runs.range(..start).next_back()
            && before.saturating_add(length) == start
        {
            start = before;
        }
        if let Some(length) = self.runs.remove(&end) {
            end = end.saturating_add(length);
        }
        self.runs.insert(start, end.saturating_sub(start));
    }

    /// Takes clusters out, which serve again.
    pub(crate) fn remove(&mut self, first: HostCluster, count: u64) {
        let (start, end) = (first.get(), first.get().saturating_add(count));
        if count == 0 {
            return;
        }
        while let Some((&run, &length)) = self.runs.range(..end).next_back() {
            let run_end = run.saturating_add(length);
            if run_end <= start {
                return;
            }
            self.runs.remove(&run);
            if run < start {
                self.runs.insert(run, start.saturating_sub(run));
            }
            if run_end > end {
                self.runs.insert(end, run_end.saturating_sub(end));
            }
            let taken = run_end.min(end).saturating_sub(run.max(start));
            self.clusters = self.clusters.saturating_sub(taken);
        }
    }

    /// Takes all out, in the order of the file.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (HostCluster, u64)> + use<> {
        self.clusters = 0;
        core::mem::take(&mut self.runs).into_iter().map(|(first, count)| (HostCluster::new(first), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn as_a_set_of_clusters() {
        let mut holes = Holes::default();
        let mut set = alloc::collections::BTreeSet::new();
        let mut random = 7u64;
        for step in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (first, count) = ((random >> 33) % 300, (random >> 50) % 20);
            if random >> 62 == 0 || step % 2 == 0 {
                holes.add(HostCluster::new(first), count);
                set.extend(first..first + count);
            } else {
                holes.remove(HostCluster::new(first), count);
                set.retain(|cluster| !(first..first + count).contains(cluster));
            }
            assert_eq!(holes.clusters(), set.len() as u64);
            let runs: Vec<_> = holes.runs.iter().map(|(&first, &count)| (first, first + count)).collect();
            assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "{runs:?}");
        }
        let all: Vec<u64> = holes.take().flat_map(|(first, count)| first.get()..first.get() + count).collect();
        assert_eq!(all, set.into_iter().collect::<Vec<_>>());
        assert_eq!(holes.clusters(), 0);
    }
}
