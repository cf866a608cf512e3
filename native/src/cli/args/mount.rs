use std::ffi::OsString;

use clap::Args;

use super::OpenArgs;

/// `mount`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MountArgs {
    /// Allow writes; discards and zeros are passed down as the options say
    #[arg(long)]
    pub(crate) rw: bool,
    /// Run-time options under QEMU's names: discard-no-unref=on, pass-discard-request=off, detect-zeroes=unmap, ...
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// What discards do: unmap (the default), or ignore
    #[arg(short, long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) discard: Option<String>,
    /// Show the disk as it was in this internal snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(crate) snapshot: Option<OsString>,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// Let other users look at the disk; needs user_allow_other in /etc/fuse.conf, unless root asks
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Name of the disk where it is mounted in a directory [default: that of the image, with the ending .raw]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<OsString>,
    /// Threads that answer the kernel [default: one for each processor, two to eight]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: Option<u16>,
    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: OsString,
    /// Where: a file, which the disk takes the place of until it is unmounted; or a directory, in which it is a file
    #[arg(value_name = "WHERE")]
    pub(crate) at: OsString,
}
