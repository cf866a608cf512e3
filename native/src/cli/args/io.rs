use clap::Args;

use super::OpenArgs;

/// `io`.
#[derive(Debug, Clone, Args)]
pub struct IoArgs {
    /// A command; any number, in order. Without any, commands are read from standard input, one a line
    #[arg(short, long = "cmd", value_name = "COMMAND", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub format: Option<String>,
    /// Refuse writes
    #[arg(short, long)]
    pub read_only: bool,
    /// Run-time options under QEMU's names: discard-no-unref=on, detect-zeroes=unmap, l2-cache-size=1M, ...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// What discards do: unmap, or ignore [default: unmap; as qemu-io: ignore]
    #[arg(short, long, value_name = "MODE", allow_hyphen_values = true)]
    pub discard: Option<String>,
    /// Cache mode: writeback (the default), unsafe (flushes do nothing) or writethrough (every write is durable)
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<String>,
    /// Not supported yet: keep changes in memory
    #[arg(short, long)]
    pub snapshot: bool,
    /// Not supported: no host cache
    #[arg(short, long)]
    pub nocache: bool,
    /// Not supported: copy on read
    #[arg(short = 'C', long)]
    pub copy_on_read: bool,
    /// Not supported: misaligned buffers
    #[arg(short, long)]
    pub misalign: bool,
    /// Not supported: native AIO
    #[arg(short = 'k', long)]
    pub native_aio: bool,
    /// Not supported: AIO modes other than threads
    #[arg(short = 'i', long, value_name = "MODE", allow_hyphen_values = true)]
    pub aio: Option<String>,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The image
    #[arg(value_name = "FILE", num_args = 0..)]
    pub files: Vec<String>,
}
