//! The files that images name: denied, allowed by a policy of paths, or asked for.

use std::ffi::OsString;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use qcowkit::open::{BackingPolicy, FileOpener, OpenRequest, format_by_name};
use qcowkit_core::image::{Found, LayerFormat, Opener, Reference, Role};
use qcowkit_core::{Error, ErrorKind, Structure};

use super::{Mode, Names, OpenFailure, Opening, Source, identity_of};
use crate::calls;
use crate::storage::Store;

/// Opens what images name, as far as [`Names`] allows.
pub(crate) struct StoreOpener<'a> {
    opening: &'a Opening,
    files: FileOpener,
    /// The image lies in a file, so that relative names have a place.
    placed: bool,
    /// Names of backing files from the top down, as the images have them.
    trail: Vec<String>,
}

impl<'a> StoreOpener<'a> {
    /// The opener for the chain of the image in `top`.
    ///
    /// # Errors
    /// When the system does not tell what the file is.
    pub(crate) fn new(opening: &'a Opening, top: &Store) -> Result<Self, Error> {
        let backing = match opening.names {
            Names::Deny | Names::Ask(_) => BackingPolicy::Deny,
            Names::Files(policy) => policy,
        };
        let request = OpenRequest { backing, force_share: !opening.lock, ..OpenRequest::default() };
        let file = top.file();
        let files = match &file {
            Some(file) => FileOpener::for_image(file, &request)?,
            None => FileOpener::new(std::path::Path::new(""), &request),
        };
        Ok(Self { opening, files, placed: file.is_some(), trail: Vec::new() })
    }

    /// The failure with the file that failed.
    pub(crate) fn blame(&self, error: Error) -> OpenFailure {
        let named = || {
            let above = error.site().depth?.checked_sub(1)?;
            self.trail.get(above as usize).map(OsString::from)
        };
        let file = self.files.failed(&error).map(OsString::from).or_else(named);
        OpenFailure { error, file }
    }

    /// Has a file that is going to be written, in scratch mode, edited in memory.
    fn edited(&self, found: Found<Store>, writable: bool) -> Result<Found<Store>, Error> {
        if writable && self.opening.mode == Mode::Scratch {
            return Ok(Found { storage: found.storage.scratch()?, ..found });
        }
        Ok(found)
    }

    fn ask(&self, function: &Py<PyAny>, reference: &Reference<'_>) -> Result<Found<Store>, Error> {
        let writable = reference.writable && self.opening.mode == Mode::Write;
        let asked = Python::attach(|py| answer(function.bind(py), reference, writable));
        let answered = asked.map_err(|error| Python::attach(|py| calls::raised(py, error, "open a named file")))?;
        let Some((source, format)) = answered else {
            return Err(Error::new(ErrorKind::Denied(format!("the function refused '{}'", reference.name))));
        };
        let format = match (format, reference.format, reference.role) {
            (Some(format), ..) => format_by_name(&format)?,
            (None, _, Role::DataFile) => LayerFormat::Raw,
            (None, Some(name), Role::Backing) => format_by_name(&name.to_string_lossy())?,
            (None, None, Role::Backing) => {
                return Err(Error::new(ErrorKind::Denied(format!(
                    "the image does not say which format its backing file '{}' has: the function may answer (source, \
                     'raw') or (source, 'qcow2')",
                    reference.name
                ))));
            }
        };
        let mode = if writable { Mode::Write } else { Mode::Read };
        let storage = source.open(mode, format, self.opening.lock)?;
        Ok(Found { identity: identity_of(&storage), storage, format })
    }
}

impl Opener<Store> for StoreOpener<'_> {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<Store>, Error> {
        let (what, structure) = match reference.role {
            Role::Backing => ("backing file", Structure::BackingFile),
            Role::DataFile => ("data file", Structure::DataFile),
        };
        if reference.role == Role::Backing {
            self.trail.push(reference.name.to_string());
        }
        let depth = reference.depth.saturating_add(u32::from(reference.role == Role::Backing));
        let found = match &self.opening.names {
            Names::Ask(function) => self.ask(function, reference),
            Names::Files(BackingPolicy::SameDirectory) if !self.placed => Err(Error::new(ErrorKind::Denied(format!(
                "the image names the {what} '{}', and it was not opened by a path, so that there is no directory to look in",
                reference.name
            )))),
            Names::Deny | Names::Files(_) => {
                let writable = reference.writable && self.opening.mode == Mode::Write;
                let found = self.files.open(&Reference { writable, ..*reference })?;
                Ok(Found { storage: Store::File(found.storage), format: found.format, identity: found.identity })
            }
        };
        let found = found.and_then(|found| self.edited(found, reference.writable));
        found.map_err(|error| error.in_structure(structure).at_depth(depth))
    }
}

/// Asks the function; a source, and the format if it says one.
fn answer(
    function: &Bound<'_, PyAny>,
    reference: &Reference<'_>,
    writable: bool,
) -> PyResult<Option<(Source, Option<String>)>> {
    let role = match reference.role {
        Role::Backing => "backing",
        Role::DataFile => "data-file",
    };
    let format = reference.format.map(ToString::to_string);
    let answer = function.call1((role, reference.name.to_string(), format, reference.depth, reference.from))?;
    if answer.is_none() {
        return Ok(None);
    }
    if let Ok(pair) = answer.cast::<PyTuple>() {
        let (source, format): (Bound<'_, PyAny>, String) = pair.extract()?;
        return Ok(Some((Source::new(&source, writable)?, Some(format))));
    }
    Ok(Some((Source::new(&answer, writable)?, None)))
}
