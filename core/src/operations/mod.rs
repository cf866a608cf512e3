//! What is done with whole images.
//!
//! | module | what it does |
//! |---|---|
//! | [`audit`](mod@audit) | a verdict on an image from a stranger, before anything else touches it |
//! | [`check`](mod@check) | compares the references with the refcounts: what `qemu-img check` finds |
//! | [`measure`] | how large the file of a new image becomes |
//! | [`mod@delta`] | what an incremental backup has to take: the four-state map |
//! | [`info`] | what an image says of itself |
//! | [`lab`] | replays a workload under several policies and compares what became of the image |
//! | [`mod@partitions`] | the partition table of the guest disk |
//! | [`repair`] | plans what would make a broken image sound, and carries it out |
//! | [`status`] | what each part of a disk is, as QEMU tells it |
//! | [`mod@trim`] | discarding ranges, and telling what became of them |
//! | [`walk`](mod@walk) | visits every reference to a host range; the one walk that the others stand on |
//! | [`analyze`](mod@analyze) | where the space of an image went, and how it lies |
//! | [`inspect`] | every structure as it is, also of broken images |

pub mod analyze;
pub mod audit;
pub mod check;
pub mod delta;
pub mod info;
pub mod inspect;
pub mod lab;
pub mod measure;
pub mod partitions;
pub mod repair;
pub mod status;
mod tables;
pub mod trim;
pub mod walk;

pub use analyze::{Analysis, AnalyzeOptions, analyze};
pub use audit::{Audit, AuditOptions, audit, audit_start};
pub use check::{CheckReport, check};
pub use inspect::{Inspector, inspect_guest};
pub use partitions::{Partition, PartitionScheme, PartitionTable, partitions};
pub use repair::{RepairLevel, RepairOptions, RepairPlan};
pub use tables::read_bitmaps;
pub use walk::{Walk, walk};

pub use crate::image::read_header;
pub use crate::metadata::read_snapshots;
