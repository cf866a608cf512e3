use std::ffi::OsString;

use clap::Args;

use super::KeyArgs;

/// `create`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CreateArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Format of the new image: raw or qcow2 [default: raw, as qemu-img]
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Options of the format, key=value,...; '-o help' lists them
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// The image is to be an overlay on this backing file
    #[arg(short, long = "backing", value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) backing_format: Option<String>,
    /// Do not open the backing file: it need not exist; the size must be given
    #[arg(short = 'u', long)]
    pub(crate) backing_unsafe: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    /// The file to make (its old contents are lost), and the size of the disk unless the backing file gives it
    #[arg(value_names = ["FILE", "SIZE"], num_args = 0..)]
    pub(crate) operands: Vec<OsString>,
}
