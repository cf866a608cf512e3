use std::ffi::OsString;

use clap::Args;

use super::{OpenArgs, TargetKeyArgs};

/// `convert`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConvertArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the source images, instead of looking
    #[arg(short = 'f', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) source_format: Option<String>,
    /// Format of the new image: raw or qcow2 [default: raw, as qemu-img]
    #[arg(short = 'O', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) target_format: Option<String>,
    /// Options of the new image's format, key=value,...; '-o help' lists them
    #[arg(short, long = "target-options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Compress the new image
    #[arg(short, long)]
    pub(crate) compress: bool,
    /// Make the new image an overlay on this backing file: what the source leaves to its own backing file is left out
    #[arg(short = 'B', long = "backing", value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) backing: Option<String>,
    /// Format of that backing file
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) backing_format: Option<String>,
    /// Write into the target as it is, instead of making it
    #[arg(short, long)]
    pub(crate) no_create: bool,
    /// With -n: the target is known to read as zeros
    #[arg(long)]
    pub(crate) target_is_zero: bool,
    /// Zeros of at least this many bytes become holes; 0 for none, so that all is allocated [default: 4k]
    #[arg(short = 'S', long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) sparse_size: Option<String>,
    /// Threads and requests at once, 1 to 16 [default: 8]
    #[arg(short = 'm', long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) parallel: Option<String>,
    /// Write in the order in which reads finish
    #[arg(short = 'W', long)]
    pub(crate) oob_writes: bool,
    /// Cache mode of the source; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) source_cache: Option<String>,
    /// Cache mode of the target: unsafe (the default) leaves the disk's cache alone, writeback flushes at the end
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) target_cache: Option<String>,
    /// Copy the disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, visible_alias = "snapshot", value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) source_snapshot: Option<OsString>,
    /// Write no more data than this in a second; 0 for no limit
    #[arg(short = 'r', long, value_name = "RATE", allow_hyphen_values = true)]
    pub(crate) rate: Option<String>,
    /// Let the system copy data where it can, sharing blocks where the file system does; zeros are not looked for
    #[arg(short = 'C', long)]
    pub(crate) copy_range_offloading: bool,
    /// Go on after read errors: what cannot be read becomes zeros
    #[arg(long)]
    pub(crate) salvage: bool,
    /// Copy the dirty bitmaps too
    #[arg(long)]
    pub(crate) bitmaps: bool,
    /// With --bitmaps: leave out those that cannot be used
    #[arg(long)]
    pub(crate) skip_broken_bitmaps: bool,
    /// With -n: TARGET is a list of options, as driver=qcow2,file.filename=NAME, instead of a name
    #[arg(long)]
    pub(crate) target_image_opts: bool,
    /// The same as --image-opts: SOURCE is a list of options
    #[arg(long)]
    pub(crate) source_image_opts: bool,
    #[command(flatten)]
    pub(crate) target_keys: TargetKeyArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The source images, one behind the other, and the target
    #[arg(value_names = ["SOURCE", "TARGET"], num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
