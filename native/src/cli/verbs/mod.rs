//! The verbs, each thin: a checked plan, a call, output.

pub(crate) mod amend;
pub(crate) mod analyze;
pub(crate) mod audit;
pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod convert;
mod convert_bitmaps;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod delta;
pub(crate) mod discard;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod io;
mod key_slots;
pub(crate) mod lab;
pub(crate) mod map;
pub(crate) mod measure;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub(crate) mod mount;
pub(crate) mod rebase;
pub(crate) mod resize;
pub(crate) mod snapshot;

use std::io::Write;

use qcowkit_core::image::{Image, Preallocation};
use serde::Serialize;

use super::failure::Failure;
use super::personality::Personality;
use super::plan::Source;
use crate::disk::Disk;
use crate::file::FileStorage;

/// Prints a report of our own as JSON: the same names and units as in Python and JavaScript.
pub(crate) fn print_json(out: &mut dyn Write, report: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

/// The value of `--preallocation`.
///
/// # Errors
/// Another word.
pub(crate) fn preallocation_mode(word: Option<&str>) -> Result<Preallocation, Failure> {
    match word {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(Failure::new(format!("Invalid preallocation mode '{other}'"))),
    }
}

/// Tells that a file is going to be written as raw although nobody said that it is.
///
/// # Errors
/// When standard error cannot be written.
pub(crate) fn warn_of_guess(source: &Source, disk: &Disk, personality: Personality) -> Result<(), Failure> {
    if source.request.format.is_some() || disk.image().is_some() {
        return Ok(());
    }
    let name = source.path.display();
    let text = match personality {
        Personality::Own => format!("qcowkit: {name}: taken for raw by its first bytes; -f raw says so\n"),
        Personality::QemuImg | Personality::QemuIo => format!(
            "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
             restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.\n"
        ),
    };
    Ok(std::io::stderr().lock().write_all(text.as_bytes())?)
}

/// Whether the files that a verb changes are to be durable, in the order that keeps them whole at every instant.
///
/// # Errors
/// Modes that are not supported, or unknown.
pub(crate) fn durable(mode: Option<&str>, what: &str) -> Result<bool, Failure> {
    match mode {
        None | Some("writeback" | "writethrough") => Ok(true),
        Some("unsafe") => Ok(false),
        Some(mode @ ("none" | "off" | "directsync")) => {
            Err(Failure::new(format!("the {what} mode '{mode}' is not supported")))
        }
        Some(other) => Err(Failure::new(format!("Invalid {what} option: {other}"))),
    }
}

/// The image and data files of some layers of a chain.
pub(crate) fn written_files<'a>(
    image: &'a Image<FileStorage>,
    depths: &[u32],
) -> impl Iterator<Item = &'a FileStorage> + use<'a> {
    let files: Vec<&FileStorage> = depths
        .iter()
        .flat_map(|&depth| {
            let layer = image.image_at_depth(depth).map(|layer| layer.storage());
            layer.into_iter().chain(image.data_at_depth(depth).ok())
        })
        .collect();
    files.into_iter()
}
