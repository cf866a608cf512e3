use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{OpenArgs, OutputArgs};

/// `replay`.
#[derive(Debug, Clone, Args)]
#[command(after_help = REPLAY_HELP)]
pub(crate) struct ReplayArgs {
    /// A policy to replay under, and more options after commas; any number [default: ignore, unmap and no-unref]
    #[arg(short, long, value_name = "POLICY[,OPTIONS]")]
    pub(crate) policy: Vec<String>,
    /// Options for all policies: cluster_size=128k, extended_l2=on, preallocation=metadata, allocator=near, ...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Bytes of an empty disk [default: as large as the trace needs]
    #[arg(short, long, value_name = "SIZE", conflicts_with = "image")]
    pub(crate) size: Option<String>,
    /// Begin with this image, which stays as it is
    #[arg(short, long, value_name = "FILE")]
    pub(crate) image: Option<OsString>,
    /// Format of the trace, instead of looking: qemu-io, fio, blkparse, csv
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// How often to look at the image along the trace
    #[arg(long, value_name = "NUMBER", default_value_t = 60)]
    pub(crate) samples: u64,
    /// Say which policy, preallocation, cluster size and allocator the numbers speak for; without --policy, try more
    #[arg(short, long)]
    pub(crate) advise: bool,
    /// Write one page with plots
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write every sample as a line of CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a plot of each number into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The trace; '-' for standard input
    #[arg(value_name = "TRACE")]
    pub(crate) trace: Option<OsString>,
}

const REPLAY_HELP: &str = "\
Policies: ignore (discard=ignore), unmap (discard=unmap), no-unref (discard=unmap,discard-no-unref=on).

Options, under QEMU's names where it has them: cluster_size=SIZE, extended_l2=on, preallocation=off|metadata|falloc|full,
detect-zeroes=off|on|unmap, pass-discard-request=on|off, pass-discard-snapshot=on|off, pass-discard-other=on|off; and
allocator=qemu|fill-holes|near, quarantine=SIZE (0 reuses space as early as QEMU does), name=TEXT.

No guest data are stored: a disk of terabytes is replayed in memory.";

/// `churn`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChurnArgs {
    /// Bytes of the disk
    #[arg(short, long, value_name = "SIZE", default_value = "64G")]
    pub(crate) size: String,
    /// How many operations to make
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 200_000)]
    pub(crate) operations: u64,
    /// Where the random numbers begin: the same parameters give the same trace
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How full the file system is kept, in percent; the disk is filled to that first
    #[arg(long, value_name = "PERCENT", default_value_t = 90)]
    pub(crate) fill: u32,
    /// Median size of a file
    #[arg(long, value_name = "SIZE", default_value = "256k")]
    pub(crate) file_median: String,
    /// Spread of the sizes: sigma of their logarithm, times 100
    #[arg(long, value_name = "NUMBER", default_value_t = 200)]
    pub(crate) file_sigma: u32,
    /// Largest file
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub(crate) file_max: String,
    /// Of 100 steps, how many rewrite a part of a file in place
    #[arg(long, value_name = "PERCENT", default_value_t = 30)]
    pub(crate) rewrite: u32,
    /// Of 100 files, how many hold nothing but zeros
    #[arg(long, value_name = "PERCENT", default_value_t = 2)]
    pub(crate) zeros: u32,
    /// The guest's block
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    pub(crate) block: String,
    /// Longest request for a write
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    pub(crate) request_max: String,
    /// When discards are sent: never, online (when a file is deleted), or fstrim after each so many operations
    #[arg(long, value_name = "WHEN", default_value = "20000")]
    pub(crate) trim: String,
    /// Shorter free runs are not trimmed
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) trim_min: String,
    /// A flush after each so many operations; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) flush_every: u64,
    /// A mark (for an incremental backup) after each so many operations; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = 50_000)]
    pub(crate) mark_every: u64,
    /// Format of the trace
    #[arg(short, long, value_name = "FORMAT", default_value = "csv")]
    pub(crate) format: TraceOutput,
}

/// Formats that traces are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceOutput {
    /// With marks
    Csv,
    /// For qemu-io and for `qcowkit io`; without marks
    QemuIo,
}
