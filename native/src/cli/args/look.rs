use clap::Args;

use super::{OpenArgs, OutputArgs};

/// `info`.
#[derive(Debug, Clone, Args)]
pub struct InfoArgs {
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub format: Option<String>,
    /// Also show the backing file, and its backing file, and so on
    #[arg(short, long)]
    pub backing_chain: bool,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}

/// `map`.
#[derive(Debug, Clone, Args)]
pub struct MapArgs {
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub format: Option<String>,
    /// Begin at this guest offset
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub start_offset: Option<String>,
    /// End after this many bytes
    #[arg(short = 'l', long, value_name = "LENGTH", allow_hyphen_values = true)]
    pub max_length: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}

/// `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub format: Option<String>,
    /// Cache mode; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<String>,
    /// Not supported yet: repair leaks, or all
    #[arg(short, long, value_name = "WHAT", allow_hyphen_values = true)]
    pub repair: Option<String>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}

/// `compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// Show progress
    #[arg(short, long)]
    pub progress: bool,
    /// Format of the first image, instead of looking
    #[arg(short = 'f', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub a_format: Option<String>,
    /// Format of the second image, instead of looking
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub b_format: Option<String>,
    /// Also compare the sizes, and what is allocated
    #[arg(short, long)]
    pub strict: bool,
    /// Cache mode; only writeback, the default, is supported
    #[arg(short = 'T', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<String>,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The two images
    #[arg(value_names = ["FILE1", "FILE2"], num_args = 0..)]
    pub files: Vec<String>,
}

/// `analyze`.
#[derive(Debug, Clone, Args)]
pub struct AnalyzeArgs {
    /// Do not ask the file system where it keeps the file
    #[arg(long)]
    pub no_extents: bool,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}

/// `inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// What to print: header, l1, l2, refcount-table, refcount-block, snapshots, bitmaps, all; for the tables with an
    /// index after a colon, as in l2:3 [default: header]
    #[arg(short, long, value_name = "STRUCTURE")]
    pub show: Vec<String>,
    /// Follow this guest offset through every table entry on its way, through the chain
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub guest: Vec<String>,
    /// Tell what this host offset belongs to
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub host: Vec<String>,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}
