//! The discard lab: what a workload does to an image under each policy.
//!
//! | step | what it does |
//! |---|---|
//! | [`Trace`] | what a guest did, from `qemu-io` scripts, fio iologs, blkparse text or CSV |

mod trace;

pub use trace::{MAX_TRACE_LINE, MAX_TRACE_OPERATIONS, Operation, Trace, TraceError, TraceFormat};
