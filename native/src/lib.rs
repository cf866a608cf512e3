//! qcow2 images on real files.

pub mod codec;
