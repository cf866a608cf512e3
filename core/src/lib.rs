//! qcow2 disk images, understood in one place, without `std`.
//!
//! The floors of this crate, each knowing only those below it:
//!
//! | floor | what it holds |
//! |---|---|
//! | [`operations`] | info, check, analyze, inspect: what is done with whole images |
//! | `image` | the guest's view: open, create, map, read, write, write zeroes, discard, flush |
//! | `metadata` | tables in memory, allocation, the decision of what a discard does, the order of commits |
//! | `format` | bytes and values: header, extensions, entries, refcounts. No I/O |
//! | [`crypto`] | encryption of guest data: ciphers, LUKS volumes, key slots |
//! | [`codec`] | compression of clusters: the trait, and pure-Rust codecs |
//! | [`storage`] | the traits that carry bytes, the in-memory store, and wrappers around any store |
//!
//! [`error`] and [`zeros`] (finding zeros in buffers) stand beside them.
//!
//! What is absent on purpose: this crate never opens a path, starts no thread, takes no lock and reads no clock.
//! Names that an image carries (backing and data files) are handed to an `image::Opener` that the caller supplies.
//!
//! Section names in the documentation are those of QEMU's `docs/interop/qcow2.rst`.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod codec;
pub mod crypto;
pub mod error;
pub mod format;
pub mod image;
pub mod metadata;
pub mod operations;
pub mod storage;
pub mod zeros;

pub use error::{Error, ErrorKind, Result, Site, Structure};
