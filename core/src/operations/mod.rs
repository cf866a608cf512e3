//! The floor of what is done with whole images.

pub mod info;
mod tables;

pub use tables::{read_bitmaps, read_snapshots};
