use std::ffi::OsString;

use clap::Args;

use super::{OpenArgs, OutputArgs};

/// `delta`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeltaArgs {
    /// What has changed since this bitmap was made or cleared
    #[arg(short, long, value_name = "NAME", allow_hyphen_values = true)]
    pub(crate) bitmap: Option<String>,
    /// What has changed since this internal snapshot was taken
    #[arg(long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) from_snapshot: Option<OsString>,
    /// With --from-snapshot: up to this snapshot, instead of the disk as it is
    #[arg(long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) to_snapshot: Option<OsString>,
    /// What the image holds above a layer of its chain: 1 is its backing file, 2 the one below that
    #[arg(long, value_name = "DEPTH", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub(crate) base: Option<u32>,
    /// Read what has changed, to leave out zeros and what is the same as before
    #[arg(short, long)]
    pub(crate) read: bool,
    /// Cluster size of the qcow2 increment in the forecast [default: 64k]
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) cluster_size: Option<String>,
    /// Only the totals and the forecast, no ranges
    #[arg(short, long)]
    pub(crate) summary: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the image (of the older one, where two are compared), instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Format of the newer image, instead of looking
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) new_format: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image; or two, the older one first, whose contents are compared
    #[arg(value_names = ["FILE", "NEWER"], num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
