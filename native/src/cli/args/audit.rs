use std::ffi::OsString;

use clap::Args;

use super::OutputArgs;

/// `audit`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0 safe, 1 could not be audited, 2 danger (do not open it as it is), 3 caution (look first).

Nothing that the image names is opened, and without --deep no lock is taken.")]
pub(crate) struct AuditArgs {
    /// Go through every table, and look behind the last cluster in use
    #[arg(long)]
    pub(crate) deep: bool,
    /// Call a virtual disk larger than this a danger [default: caution from 64T on]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) max_size: Option<String>,
    /// With --deep: look at an image that is in use, take no locks
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// The image, or - for the first bytes of a stream on standard input
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
