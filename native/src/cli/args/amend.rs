use std::ffi::OsString;

use clap::Args;

use super::{ChangeArgs, SlotKeyArgs};

/// `amend`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AmendArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// What to change, key=value,...; '-o help' lists the options
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Cache mode of the image: writeback (the default) flushes at the end, unsafe leaves the disk's cache alone
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// Also what can lose data: another backing file in the header, whatever it holds; erasing the last key
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) slot_keys: SlotKeyArgs,
    #[command(flatten)]
    pub(crate) open: ChangeArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
