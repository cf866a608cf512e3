use std::ffi::OsString;

use clap::Args;

use super::OpenArgs;

/// `io`.
#[derive(Debug, Clone, Args)]
pub(crate) struct IoArgs {
    /// A command; any number, in order. Without any, commands are read from standard input, one a line
    #[arg(short, long = "cmd", value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Refuse writes
    #[arg(short, long)]
    pub(crate) read_only: bool,
    /// Run-time options under QEMU's names: discard-no-unref=on, detect-zeroes=unmap, l2-cache-size=1M, ...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// What discards do: unmap (the default), or ignore
    #[arg(short, long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) discard: Option<String>,
    /// Cache mode: writeback (the default), unsafe (flushes do nothing) or writethrough (every write is durable)
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) cache: Option<String>,
    /// Read the disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) internal_snapshot: Option<OsString>,
    /// Not supported yet: keep changes in memory
    #[arg(short, long)]
    pub(crate) snapshot: bool,
    /// Not supported: no host cache
    #[arg(short, long)]
    pub(crate) nocache: bool,
    /// Not supported: copy on read
    #[arg(short = 'C', long)]
    pub(crate) copy_on_read: bool,
    /// Not supported: misaligned buffers
    #[arg(short, long)]
    pub(crate) misalign: bool,
    /// Not supported: native AIO
    #[arg(short = 'k', long)]
    pub(crate) native_aio: bool,
    /// Not supported: AIO modes other than threads
    #[arg(short = 'i', long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) aio: Option<String>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}

impl IoArgs {
    /// The options as a program of their own.
    #[must_use]
    pub(crate) fn command_named(name: &'static str) -> clap::Command {
        let command = clap::Command::new(name)
            .about("Reads, writes and discards by commands, in qemu-io's language")
            .version(concat!("version 10.0.2 (qcowkit ", env!("CARGO_PKG_VERSION"), ")"))
            .disable_version_flag(true)
            .arg(
                clap::Arg::new("version")
                    .short('V')
                    .long("version")
                    .action(clap::ArgAction::Version)
                    .help("Print version"),
            )
            .infer_long_args(true);
        Self::augment_args(command)
    }
}
