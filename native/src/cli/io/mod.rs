//! `qcowkit io`: qemu-io's command language.

pub(crate) mod command;
pub(crate) mod exec;
pub(crate) mod parse;
mod report;
mod spec;

pub(crate) use spec::help;
