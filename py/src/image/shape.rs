//! Other sizes, other shapes, other backing files.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use qcowkit::file::FileIdentity;
use qcowkit::open::{format_by_name, relative_to};
use qcowkit_core::format::Name;
use qcowkit_core::image::{AmendOptions, Layer, LayerFormat, NewBacking, Preallocation};
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, Result};

use super::{Image, Open};
use crate::calls::Progress;
use crate::opening::{Mode, OpenFailure, Opening, Source, StoreImage};
use crate::storage::Store;
use crate::{calls, convert, error};

#[pymethods]
impl Image {
    /// Sets the size of the disk, in bytes.
    fn resize(&self, py: Python<'_>, size: u64, preallocation: &str, shrink: bool) -> PyResult<()> {
        let mode = preallocation_of(preallocation).map_err(|why| self.raised(py, &why))?;
        self.refuse_views(py)?;
        self.change(py, |image| {
            let old = image.virtual_size();
            if size < old && mode != Preallocation::Off {
                return Err(Error::invalid("only what is added can be preallocated"));
            }
            if size < old && !shrink {
                return Err(Error::invalid(format!(
                    "the disk has {old} bytes: shrink=True says that what lies behind the new end may go"
                )));
            }
            image.resize_with(size, mode)?;
            image.finish()
        })
    }

    /// Changes the shape of the image.
    #[pyo3(signature = (*, version, lazy_refcounts, refcount_bits, data_file, data_file_raw, progress))]
    fn amend(
        &self,
        py: Python<'_>,
        version: Option<u32>,
        lazy_refcounts: Option<bool>,
        refcount_bits: Option<u32>,
        data_file: Option<String>,
        data_file_raw: Option<bool>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let options = AmendOptions {
            version,
            lazy_refcounts,
            refcount_bits,
            data_file,
            data_file_raw,
            ..AmendOptions::default()
        };
        self.refuse_views(py)?;
        let mut progress = Progress::new(progress);
        self.change(py, |image| {
            calls::checkpoint()?;
            // Not to be stopped midway: each of its changes is whole.
            image.amend(&options, &mut |done, total| {
                let _ = progress.tell(done, total);
            })?;
            image.finish()
        })
    }

    /// Puts the image on another backing file; nothing for none.
    #[pyo3(signature = (name, format, source, *, compress, contents, progress))]
    fn rebase<'py>(
        &self,
        py: Python<'py>,
        name: Option<String>,
        format: Option<String>,
        source: Option<&Bound<'_, PyAny>>,
        compress: bool,
        contents: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let name = name.unwrap_or_default();
        let kind = format.as_deref().map(format_by_name).transpose().map_err(|why| self.raised(py, &why))?;
        if !contents {
            self.change(py, |image| image.set_backing(&name, format.as_deref()))?;
            self.reopen(py)?;
            return Ok(py.None().into_bound(py));
        }
        let source = match (source, name.as_str()) {
            (Some(source), _) => Some(Source::new(source, false)?),
            (None, "") => None,
            (None, _) => {
                let place = self.path.as_deref().unwrap_or(Path::new(""));
                let path = relative_to(place, &Name::new(name.as_bytes())).map_err(|why| self.raised(py, &why))?;
                Some(Source::Path(path))
            }
        };
        let layer = source.map(|source| self.below(py, source, kind)).transpose()?;
        let mut progress = Progress::new(progress);
        let report = self.change(py, |image| {
            let shared_depth = layer.as_ref().and_then(|layer| shared_depth(image, layer));
            let new = NewBacking { name, format, layer, shared_depth };
            image.rebase(new, compress, &mut |done, total| progress.tell(done, total))
        })?;
        convert::report(py, &report)
    }

    /// Puts what the image holds into a layer `depth` layers below, and with `empty` drops it here.
    fn commit<'py>(
        &self,
        py: Python<'py>,
        depth: u32,
        empty: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.refuse_views(py)?;
        if self.opening.mode != Mode::Write {
            return Err(self.raised(py, &Error::invalid("a commit changes the backing file: open the image with 'r+'")));
        }
        let mut progress = Progress::new(progress);
        let committed = self.replaced(py, |opening, image| {
            if image.header().backing_file.is_none() {
                return Err((Error::invalid("the image has no backing file").into(), Some(Box::new(image))));
            }
            if depth == 0 || depth >= image.chain_length() {
                let layers = image.chain_length() - 1;
                let why = format!("there is no layer {depth} below the image: it was opened with {layers} below it");
                return Err((Error::invalid(why).into(), Some(Box::new(image))));
            }
            let store = image.close().map_err(|why| (why.into(), None))?;
            let mut image =
                opening.open_to_commit(store.clone(), depth).map_err(|why| (why, reopened(opening, store)))?;
            let done = commit(&mut image, depth, empty, &mut progress);
            // The base is locked for writing as long as it is open.
            let store = image.close().map_err(|why| (why.into(), None))?;
            let image = opening.open(store, None).map_err(|why| (why, None))?;
            match done {
                Ok(report) => Ok((image, report)),
                Err(why) => Err((why.into(), Some(Box::new(image)))),
            }
        })?;
        convert::report(py, &committed)
    }

    /// Which layer below the image has this path, or this name in the image above it; 0 for none.
    fn depth_of(&self, py: Python<'_>, base: PathBuf) -> PyResult<u32> {
        self.with(py, |image| Ok(depth_of(image, &base)))
    }
}

impl Image {
    /// Opens what goes below the image, with the files that it names as far as they may be.
    fn below(&self, py: Python<'_>, source: Source, kind: Option<LayerFormat>) -> PyResult<Layer<Store>> {
        let name = source.name();
        let Some(kind) = kind else {
            return Err(self.raised(py, &Error::invalid("a backing file needs its format: 'qcow2' or 'raw'")));
        };
        let open = || -> Result<Layer<Store>, OpenFailure> {
            let store = source.open(Mode::Read, kind, self.opening.lock)?;
            match kind {
                LayerFormat::Raw => {
                    let length = store.len().map_err(Error::from)?.next_multiple_of(512);
                    Ok(Layer::Raw { storage: store, length })
                }
                LayerFormat::Qcow2 => Ok(Layer::Image(Box::new(
                    self.opening.open_layer(store, self.opening.options.clone().read_only())?,
                ))),
            }
        };
        let opened = calls::run(py, 0, true, open, Result::is_err)?;
        opened.map_err(|failure| raised_for(py, &failure, name.as_deref()))
    }

    /// Opens the image anew, so that it has the layers that it names now.
    fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        self.replaced(py, |opening, image| {
            let store = image.close().map_err(|why| (why.into(), None))?;
            opening.open(store, None).map(|image| (image, ())).map_err(|why| (why, None))
        })
    }

    /// Has the image alone, to give another in its place. With an error that gives none, the handle is closed.
    fn replaced<T: Send>(
        &self,
        py: Python<'_>,
        does: impl FnOnce(&Opening, StoreImage) -> Result<(StoreImage, T), (OpenFailure, Option<Box<StoreImage>>)> + Send,
    ) -> PyResult<T> {
        let replace = || {
            let mut state = self.having();
            let open = state.take()?;
            let done = match open.image.into_image() {
                Ok(image) => does(&self.opening, image),
                Err(why) => Err((why.into(), None)),
            };
            let (image, done) = match done {
                Ok((image, done)) => (Some(image), Ok(done)),
                Err((why, image)) => (image.map(|image| *image), Err(why)),
            };
            *state = image.map(|image| Open { _view_of: open._view_of, ..Open::new(image) });
            Some(done)
        };
        match calls::run(py, self.address(), false, replace, |done| matches!(done, Some(Err(_))))? {
            None => self.unless_closed(py, None),
            Some(done) => done.map_err(|failure| raised_for(py, &failure, self.name.as_deref())),
        }
    }
}

fn raised_for(py: Python<'_>, failure: &OpenFailure, name: Option<&std::ffi::OsStr>) -> PyErr {
    error::raised(py, &failure.error, failure.file.as_deref().or(name))
}

fn reopened(opening: &Opening, store: Store) -> Option<Box<StoreImage>> {
    opening.open(store, None).ok().map(Box::new)
}

fn commit(
    image: &mut StoreImage,
    depth: u32,
    empty: bool,
    progress: &mut Progress,
) -> Result<qcowkit_core::image::CommitReport> {
    if empty {
        // Before the base changes: an image that cannot be emptied is refused.
        image.prepare_writing()?;
    }
    let report = image.commit_into(depth, &mut |done, total| progress.tell(done, total))?;
    if empty {
        // Not after Ctrl-C, which leaves a part in the image alone.
        calls::checkpoint()?;
        image.empty()?;
    }
    Ok(report)
}

/// The words that QEMU has for preallocation.
///
/// # Errors
/// Another word.
fn preallocation_of(text: &str) -> Result<Preallocation> {
    match text {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        _ => Err(Error::invalid(format!("preallocation is 'off', 'metadata', 'falloc' or 'full', not '{text}'"))),
    }
}

/// The files of the layers below the top, as far as they are files.
fn files_below(image: &StoreImage) -> Vec<(Store, LayerFormat)> {
    let mut files = Vec::new();
    let mut below = image.backing();
    while let Some(layer) = below {
        let (store, format) = match layer {
            Layer::Image(image) => (image.storage(), LayerFormat::Qcow2),
            Layer::Raw { storage, .. } => (storage, LayerFormat::Raw),
        };
        files.push((store.clone(), format));
        below = layer.image().and_then(StoreImage::backing);
    }
    files
}

fn identity(store: &Store) -> Option<FileIdentity> {
    store.file().and_then(|file| file.identity().ok().flatten())
}

/// The layer of the present chain that is the same file, taken for the same format, as a new one.
fn shared_depth(image: &StoreImage, new: &Layer<Store>) -> Option<u32> {
    let (store, format) = match new {
        Layer::Image(image) => (image.storage(), LayerFormat::Qcow2),
        Layer::Raw { storage, .. } => (storage, LayerFormat::Raw),
    };
    let wanted = identity(store)?;
    let found =
        files_below(image).into_iter().position(|(store, kind)| kind == format && identity(&store) == Some(wanted));
    found.and_then(|at| u32::try_from(at + 1).ok())
}

fn depth_of(image: &StoreImage, base: &Path) -> u32 {
    let wanted = base.canonicalize().ok();
    let files = files_below(image);
    let found = files.iter().enumerate().position(|(at, (store, _))| {
        let above = image.image_at_depth(u32::try_from(at).unwrap_or(u32::MAX));
        let named = above.and_then(|above| above.header().backing_file.as_ref());
        let path = store.file().map(|file| file.path().to_owned());
        named.is_some_and(|name| name.as_bytes() == base.as_os_str().as_encoded_bytes())
            || path.as_deref() == Some(base)
            || (wanted.is_some() && path.and_then(|path| path.canonicalize().ok()) == wanted)
    });
    found.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(0)
}

/// Names of files that an image must not be written over: its own, and those of its chain.
pub(super) fn identities(image: &StoreImage) -> Vec<FileIdentity> {
    let mut stores = vec![image.storage().clone()];
    stores.extend(image.data_file().cloned());
    stores.extend(files_below(image).into_iter().map(|(store, _)| store));
    stores.iter().filter_map(identity).collect()
}
