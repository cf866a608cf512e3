use std::ffi::OsString;

use clap::Args;

use super::{ChangeArgs, OpenArgs};

/// `resize`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ResizeArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Reserve what is new: off, metadata, falloc or full [default: off]
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) preallocation: Option<String>,
    /// Allow the disk to become smaller: what lies beyond the new end is lost
    #[arg(long)]
    pub(crate) shrink: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// The image, and its new size, or +SIZE or -SIZE by which it grows or shrinks
    #[arg(value_names = ["FILE", "SIZE"], num_args = 0.., allow_hyphen_values = true)]
    pub(crate) operands: Vec<OsString>,
}

/// `commit`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommitArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Cache mode: writeback (the default) makes all durable in order, unsafe leaves that to the system
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// The image of the chain that gets everything, instead of the one below; those between are of no use afterwards.
    /// As with -d, the image is not emptied
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) base: Option<OsString>,
    /// Do not empty the image afterwards: it is going to be dropped
    #[arg(short, long)]
    pub(crate) drop: bool,
    /// Copy at most so many bytes a second
    #[arg(short, long, value_name = "RATE", allow_hyphen_values = true)]
    pub(crate) rate: Option<String>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}

/// `rebase`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RebaseArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Cache mode: writeback (the default) makes all durable in order, unsafe leaves that to the system
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// The new backing file, by the name that the image is to have for it; '' for none
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) backing: Option<String>,
    /// Format of the new backing file
    #[arg(short = 'F', short_alias = 'B', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) backing_format: Option<String>,
    /// Cache mode of the backing files; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) backing_cache: Option<String>,
    /// Only change the name in the image: for backing files that moved. No file is opened or compared
    #[arg(short = 'u', long)]
    pub(crate) backing_unsafe: bool,
    /// Compress what is copied into the image
    #[arg(short, long)]
    pub(crate) compress: bool,
    /// Take no locks on the backing files
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}

/// `dd`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DdArgs {
    /// Format of the input, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Format of the output: raw or qcow2 [default: raw, as qemu-img]
    #[arg(short = 'O', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) output_format: Option<String>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// bs=SIZE: bytes of a block [default: 512]; count=N: end before block N of the input (skipped blocks count, as for
    /// qemu-img); skip=N: begin at block N; if=FILE: the input; of=FILE: the output, which is made anew
    #[arg(value_name = "OPERAND", num_args = 0..)]
    pub(crate) operands: Vec<OsString>,
}
