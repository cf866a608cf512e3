use std::ffi::OsString;

use clap::Args;

use super::ImageArgs;

/// `measure`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MeasureArgs {
    /// Format of the new image: raw or qcow2 [default: raw, as qemu-img]
    #[arg(short = 'O', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) target_format: Option<String>,
    /// Options of the new image's format, key=value,...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Of a new, empty disk of this size, instead of a file
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// Of the disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) snapshot: Option<OsString>,
    /// Count what keeps its place although it reads as zeros, in the backing file or, without one, in the image itself:
    /// the size after a commit into a backing file with discard-no-unref=on
    #[arg(long)]
    pub(crate) discard_no_unref: bool,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}
