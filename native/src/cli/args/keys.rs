use std::path::PathBuf;

use clap::Args;

/// Where keys of encrypted images come from. Never from the command line itself, which others can see and which stays
/// in histories.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyArgs {
    /// Key of encrypted images: the bytes of this file, a newline at its end included. Any number: all are tried on
    /// each layer
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Vec<PathBuf>,
    /// Key of encrypted images: the value of this environment variable. Any number
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) key_env: Vec<String>,
    /// The most iterations of a key derivation that an image may ask for [default: 100000000]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_key_iterations: Option<u32>,
    /// QEMU's way to give keys: secret,id=NAME,file=FILE, referred to by key-secret=NAME
    #[arg(long, value_name = "OBJECT")]
    pub(crate) object: Vec<String>,
}

/// The key of an image that is made, where another one is read.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TargetKeyArgs {
    /// Key of the new image: the bytes of this file
    #[arg(long, value_name = "FILE", conflicts_with = "target_key_env")]
    pub(crate) target_key_file: Option<PathBuf>,
    /// Key of the new image: the value of this environment variable
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) target_key_env: Option<String>,
}

/// Keys of slots that are changed.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SlotKeyArgs {
    /// With encrypt.state=active: the key to add is the bytes of this file
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_env")]
    pub(crate) new_key_file: Option<PathBuf>,
    /// With encrypt.state=active: the key to add is the value of this environment variable
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) new_key_env: Option<String>,
    /// With encrypt.state=inactive: erase the slots that the bytes of this file open
    #[arg(long, value_name = "FILE", conflicts_with = "old_key_env")]
    pub(crate) old_key_file: Option<PathBuf>,
    /// With encrypt.state=inactive: erase the slots that the value of this environment variable opens
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) old_key_env: Option<String>,
}
