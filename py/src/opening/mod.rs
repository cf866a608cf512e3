//! From arguments of Python to an open image: what it lies in, how it is opened, and the files that it names.

mod keys;
mod names;
mod source;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use qcowkit::codec::NativeCodecs;
use qcowkit::open::BackingPolicy;
use qcowkit::options::runtime;
use qcowkit_core::image::{OpenOptions, SnapshotSelector};
use qcowkit_core::operations::repair::repair_dirty;
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, Structure};

use crate::storage::Store;

pub(crate) use keys::secret_of;
pub(crate) use names::StoreOpener;
pub(crate) use source::{Source, exact_bytes};

/// An open image of any source.
pub(crate) type StoreImage = qcowkit_core::image::Image<Store>;

/// What may be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Looking.
    Read,
    /// Changing it.
    Write,
    /// Changing it in memory.
    Scratch,
}

impl Mode {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "r" => Ok(Self::Read),
            "r+" => Ok(Self::Write),
            "scratch" => Ok(Self::Scratch),
            _ => Err(Error::invalid(format!("the mode is 'r', 'r+' or 'scratch', not '{text}'"))),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Write => "r+",
            Self::Scratch => "scratch",
        }
    }
}

/// Which files that an image names may be opened.
pub(crate) enum Names {
    /// None; what needs them fails when it is asked for.
    Deny,
    /// Those that a policy of paths allows.
    Files(BackingPolicy),
    /// Those that a function of Python gives.
    Ask(Py<PyAny>),
}

/// How an image is opened, all but its source.
pub(crate) struct Opening {
    pub(crate) mode: Mode,
    pub(crate) names: Names,
    pub(crate) lock: bool,
    pub(crate) options: OpenOptions,
}

/// Why an image was not opened, and the file that failed.
pub(crate) struct OpenFailure {
    pub(crate) error: Error,
    /// The file of the chain that failed, if it is not the image.
    pub(crate) file: Option<OsString>,
}

impl From<Error> for OpenFailure {
    fn from(error: Error) -> Self {
        Self { error, file: None }
    }
}

impl Opening {
    /// Checks the arguments; nothing is opened yet.
    pub(crate) fn new(
        mode: Mode,
        backing: &Bound<'_, PyAny>,
        key: Option<&Bound<'_, PyAny>>,
        lock: bool,
        settings: &[(String, String)],
    ) -> PyResult<Result<Self, Error>> {
        let names = match names_of(backing)? {
            Ok(names) => names,
            Err(error) => return Ok(Err(error)),
        };
        let keys = key.map(keys::source_of).transpose()?;
        Ok(Self::checked(mode, names, lock, settings).map(|mut opening| {
            opening.options.keys = keys;
            opening
        }))
    }

    fn checked(mode: Mode, names: Names, lock: bool, settings: &[(String, String)]) -> Result<Self, Error> {
        if !lock && mode == Mode::Write {
            return Err(Error::invalid(
                "an image that is written must be locked: lock=False goes with 'r' and 'scratch'",
            ));
        }
        let mut options = OpenOptions { codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
        for (key, value) in settings {
            if key == "read-only" {
                return Err(Error::invalid("whether an image is written is said by its mode"));
            }
            runtime::set(&mut options, key, value).map_err(Error::invalid)?;
        }
        options.read_only = mode == Mode::Read;
        options.ignore_missing_files = matches!(names, Names::Deny);
        Ok(Self { mode, names, lock, options })
    }

    /// Opens an image, with the files that it names as far as they may be.
    ///
    /// # Errors
    /// Which file failed, and why.
    pub(crate) fn open(&self, store: Store, snapshot: Option<SnapshotSelector>) -> Result<StoreImage, OpenFailure> {
        let mut options = self.options.clone();
        options.read_only |= snapshot.is_some();
        options.snapshot = snapshot;
        if !options.read_only {
            repair_dirty(&store)?;
        }
        self.open_layer(store, options)
    }

    /// Opens an image for what it holds to be put into the layer `depth` layers down, which is opened for writing too.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub(crate) fn open_to_commit(&self, store: Store, depth: u32) -> Result<StoreImage, OpenFailure> {
        self.open_layer(store, OpenOptions { writable_backing: Some(depth), ..self.options.clone() })
    }

    /// Opens an image with other options, as it is.
    ///
    /// # Errors
    /// As [`Opening::open`].
    pub(crate) fn open_layer(&self, store: Store, options: OpenOptions) -> Result<StoreImage, OpenFailure> {
        let mut opener = StoreOpener::new(self, &store)?;
        let identity = identity_of(&store);
        StoreImage::open_with(store, identity, options, &mut opener).map_err(|error| opener.blame(error))
    }

    /// What a source holds as a storage for an image in this mode.
    ///
    /// # Errors
    /// When the source cannot tell its length.
    pub(crate) fn stored(&self, store: Store) -> Result<Store, Error> {
        match self.mode {
            Mode::Read | Mode::Write => Ok(store),
            Mode::Scratch => Ok(store.scratch()?),
        }
    }
}

/// A name that no other source has, and that relative names begin from.
pub(crate) fn identity_of(store: &Store) -> Option<String> {
    match store {
        Store::File(file) => Some(file.path().display().to_string()),
        Store::Object(object) => Some(object.identity()),
        Store::Bytes(_) => None,
        Store::Scratch(_) => {
            let overlay = store.overlay()?;
            identity_of(overlay.base())
        }
    }
}

fn names_of(backing: &Bound<'_, PyAny>) -> PyResult<Result<Names, Error>> {
    if backing.is_callable() {
        return Ok(Ok(Names::Ask(backing.clone().unbind())));
    }
    let word: String = backing
        .extract()
        .map_err(|_| pyo3::exceptions::PyTypeError::new_err("backing is 'deny', 'same-dir', 'follow' or a function"))?;
    Ok(match word.as_str() {
        "deny" => Ok(Names::Deny),
        "same-dir" => Ok(Names::Files(BackingPolicy::SameDirectory)),
        "follow" => Ok(Names::Files(BackingPolicy::Follow)),
        _ => Err(Error::invalid(format!("backing is 'deny', 'same-dir', 'follow' or a function, not '{word}'"))
            .in_structure(Structure::BackingFile)),
    })
}

/// Whether changes of this storage are possible at all, asked before anything else is done.
pub(crate) fn refuse_read_only(store: &Store) -> Result<(), Error> {
    use qcowkit_core::storage::ReadStorage;
    match store.capabilities().read_only {
        true => Err(Error::invalid(
            "bytes cannot be changed in place: mode 'scratch' edits them in memory, and save_as() writes them out",
        )),
        false => Ok(()),
    }
}

/// Paths as people gave them, for the handle.
pub(crate) fn path_of(store: &Store) -> Option<PathBuf> {
    store.file().map(|file| file.path().to_owned())
}

const _: fn() = || {
    fn assert<T: Storage + Clone + Send + Sync>() {}
    assert::<Store>();
};
