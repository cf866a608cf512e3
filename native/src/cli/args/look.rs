use std::ffi::OsString;

use clap::Args;

use super::{ImageArgs, OpenArgs, OutputArgs};

/// `info`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InfoArgs {
    /// Also show the backing file, and its backing file, and so on
    #[arg(short, long)]
    pub(crate) backing_chain: bool,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

/// `map`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MapArgs {
    /// Begin at this guest offset
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(crate) start_offset: Option<String>,
    /// End after this many bytes
    #[arg(short = 'l', long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub(crate) max_length: Option<String>,
    /// Of the disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) snapshot: Option<OsString>,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

/// `check`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    /// Print nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Cache mode; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// Repair what is found: leaks (lost space alone) or all
    #[arg(short, long, value_name = "WHAT", allow_hyphen_values = true)]
    pub(crate) repair: Option<String>,
    /// Show what a repair would do, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Keep what the repair overwrites in this new file, so that it can be undone
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) undo: Option<OsString>,
    /// Undo a repair, with the file that --undo made
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with_all = ["repair", "dry_run", "undo"])]
    pub(crate) apply_undo: Option<OsString>,
    /// With a repair: put the orphaned L2 table at a host offset back where it maps the disk from a guest offset on;
    /// any number
    #[arg(long, value_name = "HOST@GUEST", allow_hyphen_values = true, conflicts_with = "apply_undo")]
    pub(crate) relink: Vec<String>,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

/// `compare`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub(crate) progress: bool,
    /// Format of the first image, instead of looking
    #[arg(short = 'f', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) a_format: Option<String>,
    /// Format of the second image, instead of looking
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) b_format: Option<String>,
    /// Also compare the sizes, and what is allocated
    #[arg(short, long)]
    pub(crate) strict: bool,
    /// Cache mode; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// Take the first disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(long, visible_alias = "snapshot", value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) a_snapshot: Option<OsString>,
    /// The same for the second
    #[arg(long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) b_snapshot: Option<OsString>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The two images
    #[arg(value_names = ["FILE1", "FILE2"], num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}

/// `analyze`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AnalyzeArgs {
    /// Read the data, and find clusters that hold nothing but zeros
    #[arg(short = 'z', long)]
    pub(crate) scan_zeroes: bool,
    /// Tell how much of the free space is in gaps too small for requests of this size; any number [default: 4k to 2M]
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) request_size: Vec<String>,
    /// Do not ask the file system where it keeps the file
    #[arg(long)]
    pub(crate) no_extents: bool,
    #[command(flatten)]
    pub(crate) image: ImageArgs,
}

/// `inspect`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InspectArgs {
    /// What to print, any number: header, l1, l1:SNAPSHOT, l2:INDEX, l2:@OFFSET, refcount-table, refcount-block:INDEX,
    /// snapshots, bitmaps, bitmap-table:INDEX, all [default: header]
    #[arg(short, long, value_name = "STRUCTURE")]
    pub(crate) show: Vec<String>,
    /// Follow this guest offset through every table entry on its way, through the chain
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(crate) guest: Vec<String>,
    /// Tell what this host offset belongs to
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub(crate) host: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
