//! Options under QEMU's names and with QEMU's spellings, for every wrapping that takes them as words.
//!
//! | module | what it reads |
//! |---|---|
//! | [`list`] | `key=value,key=value` |
//! | [`mod@size`] | `64k`, `1.5G` |
//! | [`create`] | what a new image is like: `cluster_size=64k` |
//! | [`runtime`] | how an image is opened: `discard-no-unref=on` |

pub mod create;
pub mod list;
pub mod runtime;
pub mod size;
