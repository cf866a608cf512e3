//! `qcowkit io`: qemu-io's command language.

pub mod command;
pub mod parse;
mod spec;

pub use spec::help;
