use std::ffi::OsString;

use clap::Args;

use super::{OpenArgs, OutputArgs};

/// `discard`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DiscardArgs {
    /// Change nothing; tell what would happen
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Run-time options under QEMU's names: discard-no-unref=on, pass-discard-request=off, ...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<OsString>,
    /// What to discard: OFFSET+LENGTH, any number; or OFFSET LENGTH; or '-' for a list of them on standard input, one a
    /// line; or 'all'
    #[arg(value_name = "RANGE")]
    pub(crate) ranges: Vec<String>,
}
