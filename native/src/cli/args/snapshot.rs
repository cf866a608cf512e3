use std::ffi::OsString;

use clap::{ArgAction, Args};

use super::ImageArgs;

/// `snapshot`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotArgs {
    /// List the snapshots (the default)
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) list: u8,
    /// Take a snapshot with this name
    #[arg(short, long, value_name = "NAME", allow_hyphen_values = true)]
    pub(crate) create: Vec<OsString>,
    /// Make the disk what it was in this snapshot, by ID or name; what it is now is lost
    #[arg(short, long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) apply: Vec<OsString>,
    /// Delete this snapshot, by name (or by ID, if none has that name)
    #[arg(short, long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) delete: Vec<OsString>,
    /// Print nothing but what was asked for
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}
