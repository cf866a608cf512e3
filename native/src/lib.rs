//! qcow2 images on real files: what `qcowkit-core` leaves to the system it runs on.
//!
//! | module | what it holds |
//! |---|---|
//! | [`mod@file`] | files and block devices as storage |
//! | [`open`] | opening images by name, with the files they name as far as they may be opened |
//! | [`create`] | making new images by name |
//! | [`disk`] | a guest disk of either format |
//! | `mount` | a guest disk as a file of this machine, with the feature `fuse`, on Linux |
//! | [`shared`] | an open image for many threads |
//! | [`status`] | what each part of a disk is, as QEMU tells it |
//! | [`mod@convert`] | copying a disk into another image |
//! | [`blocks`] | copying a part of a disk |
//! | [`mod@commit`] | putting what an image holds into a layer below |
//! | [`mod@compare`] | whether two disks hold the same |
//! | [`bitmaps`] | copying dirty bitmaps into another image |
//! | `helpers` | threads that lend a hand with long reads |
//! | [`lock`] | image locks, shared with QEMU |
//! | [`extents`] | where the file system keeps a file |
//! | [`analyze`] | where the space of an image file went |
//! | [`codec`] | compression by the reference libraries |
//! | [`info`] | what an image in a file says of itself |
//! | [`options`] | options under QEMU's names |
//! | `cli` | the program `qcowkit`, with the feature `cli` |
//! | [`error`] | the system's errors as the core's |
//!
//! What the bytes of an image mean is known in `qcowkit-core` alone. Unsafe code is in three files, each with its
//! proof: `lock/ofd.rs` (`fcntl`), `extents/fiemap.rs` (`ioctl`) and `helpers/mod.rs` (threads that borrow).

pub mod analyze;
pub mod bitmaps;
pub mod blocks;
#[cfg(feature = "cli")]
pub mod cli;
pub mod codec;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod create;
pub mod disk;
pub mod error;
pub mod extents;
pub mod file;
mod helpers;
pub mod info;
pub mod keys;
pub mod lock;
pub mod measure;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod mount;
pub mod open;
pub mod options;
pub mod shared;
pub mod status;
/// Discarding ranges of an image, and telling what became of them.
pub use qcowkit_core::operations::trim;

/// The README's examples compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
