//! A trace on one image in memory.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::bits::Bits;
use super::census::Census;
use super::disk::{Kept, LabDisk, LabStorage, Memories};
use super::report::{Backup, GapBucket, LabReport, LabRun, Sample, TraceSummary};
use super::{LabConfig, Operation, Trace};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{GuestCluster, GuestOffset, L2Entry};
use crate::image::{DetectZeroes, Image};
use crate::metadata::AllocationPolicy;
use crate::storage::{CountingStorage, ReadStorage, Storage};

/// How often an image is looked at, unless told otherwise.
pub const DEFAULT_SAMPLES: u64 = 60;
/// Guest clusters of the largest disk (64 TiB in clusters of 64 KiB): the lab has two bits for each, an image can claim 2^52.
pub const MAX_LAB_CLUSTERS: u64 = 1 << 30;

/// An image in memory on which operations are replayed. Data are not stored: only where they would lie.
pub struct Replay {
    config: LabConfig,
    pub(super) image: Image<LabStorage>,
    memories: Memories,
    census: Census,
    /// Guest clusters changed since the last mark.
    dirty: Bits,
    operations: u64,
    samples: Vec<Sample>,
    backups: Vec<Backup>,
}

impl core::fmt::Debug for Replay {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Replay")
            .field("config", &self.config)
            .field("operations", &self.operations)
            .finish_non_exhaustive()
    }
}

impl Replay {
    /// Makes or opens the image.
    ///
    /// # Errors
    /// Options that do not go together, or an image that cannot be written.
    pub fn new(disk: &LabDisk, config: &LabConfig) -> Result<Self> {
        let mut config = config.clone();
        let (mut image, memories) = disk.open(&config)?;
        let geometry = *image.geometry();
        if geometry.guest_clusters() > MAX_LAB_CLUSTERS {
            let what =
                format!("a disk of {} clusters; the lab takes {MAX_LAB_CLUSTERS} at most", geometry.guest_clusters());
            return Err(Error::new(ErrorKind::Limit(what)));
        }
        config.cluster_size = geometry.cluster_size();
        config.extended_l2 = geometry.extended_l2();
        let census = Census::take(&mut image)?;
        image.storage().reset();
        let mut replay = Self {
            config,
            image,
            memories,
            census,
            dirty: Bits::new(geometry.guest_clusters()),
            operations: 0,
            samples: Vec::new(),
            backups: Vec::new(),
        };
        replay.sample()?;
        Ok(replay)
    }

    /// Does one operation.
    ///
    /// # Errors
    /// A range beyond the disk; an image that is corrupt, or that the format does not let grow any more.
    pub fn apply(&mut self, operation: &Operation) -> Result<()> {
        self.operations = self.operations.saturating_add(1);
        match operation {
            Operation::Flush => self.image.flush(),
            Operation::Mark(name) => self.backup(name),
            Operation::Write { offset, length, zeros } => {
                let detect = self.config.detect_zeroes;
                self.change(*offset, *length, |image| match (zeros, detect) {
                    (true, DetectZeroes::On | DetectZeroes::Unmap) => {
                        image.write_zeroes(*offset, *length, detect == DetectZeroes::Unmap)
                    }
                    (true, DetectZeroes::Off) | (false, _) => write_without_data(image, *offset, *length),
                })
            }
            Operation::WriteZeroes { offset, length, unmap } => {
                self.change(*offset, *length, |image| image.write_zeroes(*offset, *length, *unmap))
            }
            // A node with discard=ignore does not even mark the range as changed.
            Operation::Discard { .. } if !self.config.discard => Ok(()),
            Operation::Discard { offset, length } => {
                let as_qemu = self.config.allocation == AllocationPolicy::Qemu;
                self.change(*offset, *length, |image| match as_qemu {
                    true => discard_as_qemu(image, *offset, *length),
                    false => image.discard(*offset, *length),
                })
            }
        }
        .map_err(|error| match operation.range() {
            Some((offset, _)) if error.site().guest_offset.is_none() => error.at_guest(offset),
            Some(_) | None => error,
        })
    }

    /// Changes a range, and counts its entries out and in.
    fn change(
        &mut self,
        offset: u64,
        length: u64,
        change: impl FnOnce(&mut Image<LabStorage>) -> Result<()>,
    ) -> Result<()> {
        let geometry = *self.image.geometry();
        let first = geometry.guest_cluster(GuestOffset::new(offset)).get();
        let end = geometry.clusters_for(offset.saturating_add(length)).min(geometry.guest_clusters());
        self.census.leave(&mut self.image, first, end)?;
        let changed = change(&mut self.image);
        self.census.enter(&mut self.image, first, end)?;
        self.dirty.set_range(first, end, true);
        changed
    }

    /// The image as it is now.
    ///
    /// # Errors
    /// When the image is corrupt.
    pub fn now(&mut self) -> Result<Sample> {
        let gaps = self.gaps()?;
        let counts = self.census.counts();
        let kept = Kept::of(&self.image, &self.memories)?;
        let calls = self.image.storage().counts();
        let virtual_size = self.image.virtual_size().max(1);
        let ppm = u128::from(kept.length).saturating_mul(1_000_000).checked_div(virtual_size.into()).unwrap_or(0);
        Ok(Sample {
            operation: self.operations,
            file_length: kept.length,
            file_ppm: u64::try_from(ppm).unwrap_or(u64::MAX),
            host_bytes: kept.allocated,
            live_bytes: counts.live,
            retained_bytes: counts.retained,
            free_bytes: gaps.bytes,
            gaps: gaps.count,
            largest_gap: gaps.largest,
            allocated_clusters: counts.allocated,
            discontinuities: counts.fragmented,
            runs: counts.runs,
            metadata_writes: calls.write.calls,
            metadata_bytes: calls.write.bytes,
            barriers: calls.barrier.calls,
            host_discards: calls.discard.calls.saturating_add(kept.data_discards.calls),
            host_discarded_bytes: calls.discard.bytes.saturating_add(kept.data_discards.bytes),
        })
    }

    /// Remembers the image as it is now.
    ///
    /// # Errors
    /// As [`Replay::now`].
    pub fn sample(&mut self) -> Result<()> {
        let now = self.now()?;
        self.samples.push(now);
        Ok(())
    }

    /// Flushes, and gives what was found.
    ///
    /// # Errors
    /// As [`Replay::now`].
    pub fn finish(self) -> Result<LabRun> {
        self.finish_with_storage().map(|(run, _)| run)
    }

    /// As [`Replay::finish`], with the image's storage: its metadata are as they would be, its data are zeros.
    ///
    /// # Errors
    /// As [`Replay::now`].
    pub fn finish_with_storage(mut self) -> Result<(LabRun, LabStorage)> {
        self.image.flush()?;
        self.backup("end")?;
        let end = self.now()?;
        if self.samples.last() != Some(&end) {
            self.samples.push(end);
        }
        let peak_file_length = self.samples.iter().map(|sample| sample.file_length).max().unwrap_or(0);
        let gaps = self.gaps()?.buckets;
        let run =
            LabRun { config: self.config, samples: self.samples, end, peak_file_length, gaps, backups: self.backups };
        Ok((run, self.image.close()?))
    }

    fn backup(&mut self, name: &str) -> Result<()> {
        let geometry = *self.image.geometry();
        let mut backup = Backup {
            name: name.to_string(),
            operation: self.operations,
            data_bytes: 0,
            zero_bytes: 0,
            discarded_bytes: 0,
        };
        for cluster in self.dirty.drain() {
            let size = geometry.cluster_size();
            let (data, zero) = match self.image.entry(GuestCluster::new(cluster))? {
                L2Entry::Compressed(_) => (size, 0),
                L2Entry::Plain { host: None, .. } => (0, 0),
                L2Entry::Plain { host: Some(_), parts } => {
                    let data = u64::from(parts.allocated.count_ones()).saturating_mul(geometry.subcluster_size());
                    (data, size.saturating_sub(data))
                }
            };
            backup.data_bytes = backup.data_bytes.saturating_add(data);
            backup.zero_bytes = backup.zero_bytes.saturating_add(zero);
            let discarded = size.saturating_sub(data).saturating_sub(zero);
            backup.discarded_bytes = backup.discarded_bytes.saturating_add(discarded);
        }
        self.backups.push(backup);
        Ok(())
    }

    /// The free clusters in front of the last one in use.
    fn gaps(&mut self) -> Result<Gaps> {
        let geometry = *self.image.geometry();
        let end = geometry.clusters_for(self.image.storage().len()?);
        let mut gaps = Gaps::default();
        let mut behind = 0u64;
        self.image.visit_host_runs(end, |_, count, free| {
            if free {
                behind = count;
            } else if behind > 0 {
                gaps.add(core::mem::take(&mut behind).saturating_mul(geometry.cluster_size()));
            }
        })?;
        Ok(gaps)
    }
}

/// Free gaps, summed up.
#[derive(Default)]
struct Gaps {
    count: u64,
    bytes: u64,
    largest: u64,
    buckets: Vec<GapBucket>,
}

impl Gaps {
    fn add(&mut self, bytes: u64) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.largest = self.largest.max(bytes);
        let from = 1u64.wrapping_shl(bytes.checked_ilog2().unwrap_or(0));
        let at = self.buckets.binary_search_by_key(&from, |bucket| bucket.from).unwrap_or_else(|at| {
            self.buckets.insert(at, GapBucket { from, count: 0, bytes: 0 });
            at
        });
        if let Some(bucket) = self.buckets.get_mut(at) {
            bucket.count = bucket.count.saturating_add(1);
            bucket.bytes = bucket.bytes.saturating_add(bytes);
        }
    }
}

/// A write as the image does it, except that no bytes move: the space that they would take is allocated.
fn write_without_data(image: &mut Image<LabStorage>, offset: u64, length: u64) -> Result<()> {
    let plan = image.prepare_write(offset, length)?;
    for (host, length) in plan.host_ranges() {
        image.guest_storage().inner().allocate(host.get(), length)?;
    }
    image.commit_write(plan)
}

/// A discard table by table, each of which QEMU makes first, also where there is nothing to discard. qcowkit itself does
/// not; but the file would come out shorter than QEMU's.
fn discard_as_qemu(image: &mut Image<LabStorage>, offset: u64, length: u64) -> Result<()> {
    let geometry = *image.geometry();
    let end = offset.saturating_add(length);
    let first = geometry.clusters_for(offset);
    let last = if end >= geometry.virtual_size() { geometry.clusters_for(end) } else { end >> geometry.cluster_bits() };
    if first >= last
        || end > geometry.virtual_size()
        || (geometry.version() < 3 && image.header().backing_file.is_some())
    {
        return image.discard(offset, length);
    }
    let mut cluster = first;
    while cluster < last {
        let table = geometry.l1_index(GuestCluster::new(cluster));
        let next = geometry.cluster_at(table.saturating_add(1), 0).get().min(last).max(cluster.saturating_add(1));
        image.make_table(GuestCluster::new(cluster))?;
        let start = geometry.guest_start(GuestCluster::new(cluster)).get();
        let stop = geometry.guest_start(GuestCluster::new(next)).get().min(geometry.virtual_size());
        image.discard(start, stop.saturating_sub(start))?;
        cluster = next;
    }
    Ok(())
}

/// How a lab is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabOptions {
    /// How many samples are taken along the trace, evenly; besides them, the beginning and the end are sampled.
    pub samples: u64,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { samples: DEFAULT_SAMPLES }
    }
}

/// Replays a trace under one configuration. `progress` is called now and then with the operations done.
///
/// # Errors
/// As [`Replay::new`] and [`Replay::apply`], with the number of the operation.
pub fn replay(
    trace: &Trace,
    disk: &LabDisk,
    config: &LabConfig,
    options: &LabOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<LabRun> {
    let mut replay = Replay::new(disk, config)?;
    replay.run(trace, options, progress)?;
    replay.finish()
}

impl Replay {
    /// Does all operations of a trace, with samples along the way.
    ///
    /// # Errors
    /// As [`Replay::apply`], with the number of the operation.
    pub fn run(&mut self, trace: &Trace, options: &LabOptions, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut go_on = |done| {
            progress(done);
            true
        };
        self.run_while(trace, options, &mut go_on).map(drop)
    }

    /// As [`Replay::run`], until `go_on` says no; gives whether all operations were done.
    ///
    /// # Errors
    /// As [`Replay::run`].
    pub fn run_while(
        &mut self,
        trace: &Trace,
        options: &LabOptions,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        const PROGRESS: u64 = 4096;
        let total = u64::try_from(trace.operations.len()).unwrap_or(u64::MAX);
        let step = total.div_ceil(options.samples.max(1)).max(1);
        for (number, operation) in (1u64..).zip(&trace.operations) {
            self.apply(operation).map_err(|error| match error.site().index {
                // The number says where to look; the text of the error says what.
                None => error.at_index(number),
                Some(_) => error,
            })?;
            if number.is_multiple_of(step) && number < total {
                self.sample()?;
            }
            if number.is_multiple_of(PROGRESS) && !go_on(number) {
                return Ok(false);
            }
        }
        Ok(go_on(total))
    }
}

/// Replays a trace under several configurations, one after the other.
///
/// # Errors
/// As [`replay`].
pub fn run_lab(
    trace: &Trace,
    disk: &LabDisk,
    configs: &[LabConfig],
    options: &LabOptions,
    progress: &mut dyn FnMut(&LabConfig, u64),
) -> Result<LabReport> {
    let mut runs = Vec::with_capacity(configs.len());
    for config in configs {
        runs.push(replay(trace, disk, config, options, &mut |done| progress(config, done))?);
    }
    Ok(LabReport { trace: TraceSummary::of(trace), virtual_size: disk.virtual_size()?, runs, advice: None })
}

impl TraceSummary {
    /// Counts what a trace holds.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let mut summary = Self { ignored: trace.ignored, ..Self::default() };
        summary.operations = u64::try_from(trace.operations.len()).unwrap_or(u64::MAX);
        for operation in &trace.operations {
            let (count, bytes) = match operation {
                Operation::Write { length, .. } => {
                    summary.written_bytes = summary.written_bytes.saturating_add(*length);
                    (&mut summary.writes, 0)
                }
                Operation::Discard { length, .. } => (&mut summary.discards, *length),
                Operation::WriteZeroes { .. } => (&mut summary.write_zeroes, 0),
                Operation::Flush => (&mut summary.flushes, 0),
                Operation::Mark(_) => (&mut summary.marks, 0),
            };
            *count = count.saturating_add(1);
            summary.discarded_bytes = summary.discarded_bytes.saturating_add(bytes);
        }
        summary
    }

    /// The same with a name for titles.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

/// Refuses a trace that does not fit the disk before anything is done.
///
/// # Errors
/// When the trace reaches beyond the end.
pub fn fits(trace: &Trace, virtual_size: u64) -> Result<()> {
    let end = trace.end();
    if end > virtual_size {
        return Err(Error::invalid(format!(
            "the trace reaches to byte {end}, beyond the disk of {virtual_size} bytes"
        )));
    }
    Ok(())
}

/// The store of the lab.
pub(super) fn counting(memory: &Rc<crate::storage::MemoryStorage>) -> LabStorage {
    let memory: Rc<dyn Storage> = Rc::<crate::storage::MemoryStorage>::clone(memory);
    CountingStorage::new(memory)
}
