//! qcow2 images on real files.

pub mod codec;
pub mod error;
pub mod extents;
pub mod file;
pub mod lock;
