//! The discard lab: what a workload does to an image under each policy.
//!
//! | step | what it does |
//! |---|---|
//! | [`Trace`] | what a guest did, from `qemu-io` scripts, fio iologs, blkparse text or CSV |
//! | [`Churn`] | a workload like a virtual machine's, made up from parameters and a seed |
//! | [`LabDisk`] | what the replay begins with: an empty disk of any size, or the metadata of an image |
//! | [`LabConfig`] | how the image is made and opened: policy, cluster size, preallocation, allocator |
//! | [`replay()`], [`run_lab`] | does the trace's operations and counts what becomes of the image |
//! | [`Picture`] | the file in the middle of a replay, for a map that moves |
//! | [`LabReport`] | the counts, as plain values |
//! | [`advise`] | which configuration they speak for |
//! | [`render`] | the report as text, CSV, SVG, HTML |
//!
//! No guest data are stored or read: the engine decides where they go, as for a real image, and the place is marked as
//! allocated. So the time goes with the operations and the memory with the metadata, not with the size of the disk, but for
//! two bits for each guest cluster ([`MAX_LAB_CLUSTERS`]).

mod advice;
mod bits;
mod census;
mod churn;
mod config;
mod disk;
mod guest;
mod picture;
mod random;
pub mod render;
mod replay;
mod report;
#[cfg(test)]
mod tests;
mod trace;

pub use advice::{Advice, Ranked, advise};
pub use churn::{Churn, Trim};
pub use config::LabConfig;
pub use disk::{LabDisk, LabStorage, Skeleton};
pub use picture::{MAX_PICTURE_CELLS, Picture};
pub use replay::{DEFAULT_SAMPLES, LabOptions, MAX_LAB_CLUSTERS, Replay, fits, replay, run_lab};
pub use report::{Backup, GapBucket, LabReport, LabRun, Sample, TraceSummary};
pub use trace::{MAX_TRACE_LINE, MAX_TRACE_OPERATIONS, Operation, Trace, TraceError, TraceFormat};
