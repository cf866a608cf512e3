//! The one definition of all options: the parser, help, completions and man pages come from it.

mod amend;
mod audit;
mod bitmap;
mod convert;
mod create;
mod delta;
mod discard;
mod io;
mod keys;
mod lab;
mod look;
mod measure;
#[cfg(all(feature = "fuse", target_os = "linux"))]
mod mount;
mod reshape;
mod snapshot;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use amend::AmendArgs;
pub(crate) use audit::AuditArgs;
pub(crate) use bitmap::{BitmapAction, BitmapArgs};
pub(crate) use convert::ConvertArgs;
pub(crate) use create::CreateArgs;
pub(crate) use delta::DeltaArgs;
pub(crate) use discard::DiscardArgs;
pub(crate) use io::IoArgs;
pub(crate) use keys::{KeyArgs, SlotKeyArgs, TargetKeyArgs};
pub(crate) use lab::{ChurnArgs, ReplayArgs, TraceOutput};
pub(crate) use look::{AnalyzeArgs, CheckArgs, CompareArgs, InfoArgs, InspectArgs, MapArgs};
pub(crate) use measure::MeasureArgs;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub(crate) use mount::MountArgs;
pub(crate) use reshape::{CommitArgs, DdArgs, RebaseArgs, ResizeArgs};
pub(crate) use snapshot::SnapshotArgs;

/// Opens, shapes and heals qcow2 disk images.
#[derive(Debug, Parser)]
#[command(name = "qcowkit", version, propagate_version = false, infer_long_args = true, disable_help_subcommand = true)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
Sizes and offsets take the suffixes k, M, G, T, P and E (powers of 1024), fractions such as 1.5G, and 0x.

Nothing that an image names is opened unless it is allowed: see --backing-files.

Called by the name qemu-img or qemu-io, this program stands in for that one.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a new image
    #[command(infer_long_args = true)]
    Create(CreateArgs),
    /// Change options of an image that exists: version, refcount width, size, names of files
    #[command(infer_long_args = true)]
    Amend(AmendArgs),
    /// Tell how large the file of a new image becomes
    #[command(infer_long_args = true)]
    Measure(MeasureArgs),
    /// Show what an image says of itself
    #[command(infer_long_args = true)]
    Info(InfoArgs),
    /// Show which parts of the disk hold data, and where
    #[command(infer_long_args = true)]
    Map(MapArgs),
    /// Find errors and lost space in the metadata
    #[command(infer_long_args = true)]
    Check(CheckArgs),
    /// Copy a disk into a new image, of another format or shape if asked
    #[command(infer_long_args = true)]
    Convert(ConvertArgs),
    /// Tell whether two disks have the same contents
    #[command(infer_long_args = true)]
    Compare(CompareArgs),
    /// Change the size of a disk
    #[command(infer_long_args = true)]
    Resize(ResizeArgs),
    /// Put what an image holds into its backing file, and empty it
    #[command(infer_long_args = true)]
    Commit(CommitArgs),
    /// Put an image on another backing file, or on none
    #[command(infer_long_args = true)]
    Rebase(RebaseArgs),
    /// Copy a part of a disk into a new image, by blocks
    #[command(infer_long_args = true)]
    Dd(DdArgs),
    /// Add, remove, change and list the dirty bitmaps that record which parts of the disk were written
    #[command(infer_long_args = true)]
    Bitmap(BitmapArgs),
    /// Tell what an incremental backup has to take: changed data, changed to zeros, as before; and how large it gets
    #[command(infer_long_args = true)]
    Delta(DeltaArgs),
    /// Read, write and discard by commands, in qemu-io's language
    #[command(infer_long_args = true)]
    Io(IoArgs),
    /// Discard ranges of the disk, under any policy, or show what that would do
    #[command(infer_long_args = true)]
    Discard(DiscardArgs),
    /// Tell where the space of an image went, and how it is laid out
    #[command(infer_long_args = true)]
    Analyze(AnalyzeArgs),
    /// Print structures of an image, also of a broken one
    #[command(infer_long_args = true)]
    Inspect(InspectArgs),
    /// Give a verdict on an image from a stranger, before anything else touches it
    #[command(infer_long_args = true)]
    Audit(AuditArgs),
    /// Replay a workload under several discard policies, in memory, and compare what becomes of the image
    #[command(infer_long_args = true)]
    Replay(ReplayArgs),
    /// Make up a workload like a virtual machine's, to be replayed
    #[command(infer_long_args = true)]
    Churn(ChurnArgs),
    /// List, take, apply and delete internal snapshots
    #[command(infer_long_args = true)]
    Snapshot(SnapshotArgs),
    /// Show the disk as a file of this machine, for loop devices and all else that reads files
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    #[command(infer_long_args = true)]
    Mount(MountArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory
    #[command(hide = true)]
    Manpages {
        /// The directory
        directory: PathBuf,
    },
}

impl Verb {
    /// The verb as it is typed.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Amend(_) => "amend",
            Self::Measure(_) => "measure",
            Self::Info(_) => "info",
            Self::Map(_) => "map",
            Self::Check(_) => "check",
            Self::Convert(_) => "convert",
            Self::Compare(_) => "compare",
            Self::Resize(_) => "resize",
            Self::Commit(_) => "commit",
            Self::Rebase(_) => "rebase",
            Self::Dd(_) => "dd",
            Self::Bitmap(_) => "bitmap",
            Self::Delta(_) => "delta",
            Self::Io(_) => "io",
            Self::Discard(_) => "discard",
            Self::Analyze(_) => "analyze",
            Self::Inspect(_) => "inspect",
            Self::Audit(_) => "audit",
            Self::Replay(_) => "replay",
            Self::Churn(_) => "churn",
            Self::Snapshot(_) => "snapshot",
            #[cfg(all(feature = "fuse", target_os = "linux"))]
            Self::Mount(_) => "mount",
            Self::Completions { .. } => "completions",
            Self::Manpages { .. } => "manpages",
        }
    }
}

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A person.
    #[default]
    Human,
    /// A program.
    Json,
}

/// `--output`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputArgs {
    /// For a person, or JSON for a program
    #[arg(long, value_name = "FORMAT", default_value = "human", hide_default_value = true)]
    pub(crate) output: OutputFormat,
}

/// Which files that an image names may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackingChoice {
    /// None
    Deny,
    /// Those below the directory of the image
    SameDir,
    /// All, as qemu-img does
    Follow,
}

/// What all verbs share that open images.
#[derive(Debug, Clone, Args)]
pub(crate) struct OpenArgs {
    /// Look at an image that is in use: take no locks
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// What verbs share that open images in order to change them: there is no way to do that without locks.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeArgs {
    /// Which backing and data files that an image names may be opened [default: same-dir; as qemu-img: follow]
    #[arg(long, value_name = "WHICH")]
    pub(crate) backing_files: Option<BackingChoice>,
    /// The data file of the image, instead of the one that it names
    #[arg(long, value_name = "FILE")]
    pub(crate) data_file: Option<PathBuf>,
    /// The file name is a list of options: driver=FORMAT,file.filename=NAME,encrypt.key-secret=NAME
    #[arg(long)]
    pub(crate) image_opts: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
}

impl ChangeArgs {
    /// The same as arguments of an opening, with locks.
    #[must_use]
    pub(crate) fn open(&self) -> OpenArgs {
        OpenArgs { force_share: false, change: self.clone() }
    }
}

/// What verbs share that look at one image, whatever its format.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArgs {
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}
