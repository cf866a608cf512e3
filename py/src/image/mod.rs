//! The handle of an open image. Its methods stand in files by subject.

mod ahead;
mod bitmaps;
mod bytes;
mod keys;
mod look;
mod save;
mod shape;
mod snapshots;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qcowkit::shared::SharedImage;
use qcowkit_core::format::Name;
use qcowkit_core::image::{Layer, LayerFormat, SnapshotSelector};
use qcowkit_core::{Error, ErrorKind, Result};

use crate::opening::{Mode, OpenFailure, Opening, Source, StoreImage, refuse_read_only};
use crate::storage::Store;
use crate::{calls, error, opening};
use ahead::Ahead;

/// An open image; empty once it is closed.
///
/// Guest bytes are read and written by many threads at once ([`SharedImage`]: its own lock is held to decide where bytes
/// are and where they go, not while they move). Everything else has the image alone: `state` is locked for reading by the
/// former and for writing by the latter.
#[pyclass(frozen, module = "qcowkit._qcowkit")]
pub(crate) struct Image {
    /// What messages call it; nothing for bytes.
    name: Option<OsString>,
    path: Option<PathBuf>,
    opening: Arc<Opening>,
    state: RwLock<Option<Open>>,
    /// Views of snapshots count themselves by their clones of this.
    views: Arc<()>,
    /// What was read before it is asked for.
    ahead: Ahead,
}

pub(super) struct Open {
    image: SharedImage<Store>,
    /// All layers lie in what may be read by threads that Python knows nothing of.
    together: bool,
    /// So they do, and nothing changes them meanwhile.
    still: bool,
    /// A view is counted by the image that it is a view of, as long as it is open.
    _view_of: Option<Arc<()>>,
}

impl Open {
    fn new(image: StoreImage) -> Self {
        let mut open = Self { image: SharedImage::new(image), together: false, still: false, _view_of: None };
        let _ = open.alone(|_| Ok(()));
        open
    }

    /// Fills memory with bytes of the guest.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if self.together { self.image.read_at_together(offset, into) } else { self.image.read_at(offset, into) }
    }

    fn alone<T>(&mut self, does: impl FnOnce(&mut StoreImage) -> Result<T>) -> Result<T> {
        self.image.alone(|image| {
            let done = does(image);
            self.together = all_storages(image, Store::is_readable_together);
            self.still = self.together && image.options().read_only && all_storages(image, Store::is_still);
            done
        })
    }
}

/// Whether something is true of each storage that guest bytes come from.
fn all_storages(image: &StoreImage, is: impl Fn(&Store) -> bool) -> bool {
    let mut image = image;
    loop {
        if !is(image.storage()) || image.data_file().is_some_and(|file| !is(file)) {
            return false;
        }
        match image.backing() {
            None => return true,
            Some(Layer::Image(below)) => image = below,
            Some(Layer::Raw { storage, .. }) => return is(storage),
        }
    }
}

/// Whether a layer of the chain, as far as it was opened, is encrypted.
fn any_encrypted(image: &StoreImage) -> bool {
    let mut layer = Some(image);
    while let Some(image) = layer {
        if image.encryption().is_some() {
            return true;
        }
        layer = image.backing().and_then(Layer::image);
    }
    false
}

#[pymethods]
impl Image {
    /// Opens an image.
    #[new]
    #[pyo3(signature = (source, mode="r", *, backing, key=None, lock=true, snapshot=None, options=Vec::new()))]
    fn new(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        mode: &str,
        backing: &Bound<'_, PyAny>,
        key: Option<&Bound<'_, PyAny>>,
        lock: bool,
        snapshot: Option<String>,
        options: Vec<(String, String)>,
    ) -> PyResult<Self> {
        let refused = |why: Error| error::raised(py, &why, None);
        let mode = Mode::parse(mode).map_err(refused)?;
        let opening = Opening::new(mode, backing, key, lock, &options)?.map_err(refused)?;
        if mode != Mode::Read && snapshot.is_some() {
            return Err(refused(Error::invalid("a snapshot is only read: mode 'r'")));
        }
        // A function is asked where a layer needs a key; a key that no layer needs is a mistake.
        let needs_a_use = key.is_some_and(|key| !key.is_callable());
        let source = Source::new(source, mode == Mode::Write)?;
        let name = source.name();
        let selector = snapshot.map(|text| SnapshotSelector::IdOrName(Name::new(text.into_bytes())));
        Self::opened(py, name, opening, |opening| {
            let store = source.open(opening.mode, LayerFormat::Qcow2, opening.lock)?;
            if opening.mode == Mode::Write {
                refuse_read_only(&store)?;
            }
            let image = opening.open(opening.stored(store)?, selector)?;
            if needs_a_use && !any_encrypted(&image) {
                return Err(Error::invalid("a key was given, and nothing that was opened is encrypted").into());
            }
            Ok(image)
        })
    }

    /// The name that the image was opened by, if it lies in a file.
    #[getter]
    fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// What messages call the image.
    #[getter]
    fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// "r", "r+" or "scratch".
    #[getter]
    fn mode(&self) -> &'static str {
        self.opening.mode.name()
    }

    /// Whether the image is closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| self.sharing().is_none())
    }

    /// The view of a snapshot, read-only. Neither may the image delete the snapshot while the view is open, nor change its
    /// shape.
    fn view(&self, py: Python<'_>, snapshot: String) -> PyResult<Self> {
        let selector = SnapshotSelector::IdOrName(Name::new(snapshot.into_bytes()));
        let store = self.change(py, |image| {
            image.flush()?;
            Ok(image.storage().clone())
        })?;
        let opening = Opening {
            mode: Mode::Read,
            names: match &self.opening.names {
                opening::Names::Deny => opening::Names::Deny,
                opening::Names::Files(policy) => opening::Names::Files(*policy),
                opening::Names::Ask(function) => opening::Names::Ask(function.clone_ref(py)),
            },
            lock: self.opening.lock,
            options: self.opening.options.clone().read_only(),
        };
        let mut view = Self::opened(py, self.name.clone(), opening, |opening| opening.open(store, Some(selector)))?;
        if let Some(open) = view.state.get_mut().unwrap_or_else(PoisonError::into_inner) {
            open._view_of = Some(Arc::clone(&self.views));
        }
        Ok(view)
    }

    /// Closes the image; again is allowed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.ahead.forget();
        let close = || self.having().take().map_or(Ok(()), |open| open.image.close().map(drop));
        let closed = calls::run(py, self.address(), false, close, Result::is_err)?;
        closed.map_err(|why| self.raised(py, &why))
    }
}

impl Image {
    /// Opens an image without the GIL, and makes its handle.
    pub(crate) fn opened(
        py: Python<'_>,
        name: Option<OsString>,
        opening: Opening,
        open: impl FnOnce(&Opening) -> Result<StoreImage, OpenFailure> + Send,
    ) -> PyResult<Self> {
        let reading = opening.mode != Mode::Write;
        let image = calls::run(py, 0, reading, || open(&opening), Result::is_err)?;
        let image = image.map_err(|failure| {
            let name = failure.file.as_deref().or(name.as_deref());
            error::raised(py, &failure.error, name)
        })?;
        Ok(Self {
            name,
            path: opening::path_of(image.storage()),
            opening: Arc::new(opening),
            state: RwLock::new(Some(Open::new(image))),
            views: Arc::new(()),
            ahead: Ahead::default(),
        })
    }

    /// Reads or writes guest bytes, beside other threads that do. With `reading`, Ctrl-C ends it at the next read.
    pub(crate) fn share<T: Send>(
        &self,
        py: Python<'_>,
        reading: bool,
        does: impl FnOnce(&SharedImage<Store>) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.share_open(py, reading, |open| does(&open.image))
    }

    /// As [`Image::share`], also of how it is read.
    pub(super) fn share_open<T: Send>(
        &self,
        py: Python<'_>,
        reading: bool,
        does: impl FnOnce(&Open) -> Result<T> + Send,
    ) -> PyResult<T> {
        let shared = || self.sharing().as_ref().map(does);
        let done = calls::run(py, self.address(), reading, shared, |done| matches!(done, Some(Err(_))))?;
        self.unless_closed(py, done)
    }

    /// Refuses a range that reaches beyond the end of the disk, or a closed image.
    ///
    /// # Errors
    /// It does.
    pub(super) fn refuse_beyond(&self, py: Python<'_>, offset: u64, length: u64) -> PyResult<()> {
        // Mostly nobody has the image alone: then there is nothing to give up the GIL for.
        let within = match self.state.try_read() {
            Ok(state) => state.as_ref().map(|open| bytes::in_range(&open.image, offset, length)),
            Err(_) => return self.share(py, true, |image| bytes::in_range(image, offset, length)),
        };
        self.unless_closed(py, within)
    }

    /// Has the image alone, to look at it. Ctrl-C ends it at the next read of the storage.
    pub(crate) fn with<T: Send>(
        &self,
        py: Python<'_>,
        does: impl FnOnce(&mut StoreImage) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.alone(py, true, does)
    }

    /// Has the image alone, to change it. Ctrl-C is heard at [`calls::checkpoint`] and by [`calls::Progress`] alone.
    pub(crate) fn change<T: Send>(
        &self,
        py: Python<'_>,
        does: impl FnOnce(&mut StoreImage) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.alone(py, false, does)
    }

    fn alone<T: Send>(
        &self,
        py: Python<'_>,
        reading: bool,
        does: impl FnOnce(&mut StoreImage) -> Result<T> + Send,
    ) -> PyResult<T> {
        let alone = || self.having().as_mut().map(|open| open.alone(does));
        let done = calls::run(py, self.address(), reading, alone, |done| matches!(done, Some(Err(_))))?;
        self.unless_closed(py, done)
    }

    /// What messages and reports call the image.
    pub(crate) fn called(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// Refuses what would take away from under views of snapshots what they show.
    ///
    /// # Errors
    /// There is one.
    pub(crate) fn refuse_views(&self, py: Python<'_>) -> PyResult<()> {
        if Arc::strong_count(&self.views) > 1 {
            let why = ErrorKind::Locked("a view of a snapshot of this image is open: close it first".into());
            return Err(self.raised(py, &why.into()));
        }
        Ok(())
    }

    /// The exception for an error of this image.
    pub(crate) fn raised(&self, py: Python<'_>, why: &Error) -> PyErr {
        error::raised(py, why, self.name.as_deref())
    }

    fn unless_closed<T>(&self, py: Python<'_>, done: Option<Result<T>>) -> PyResult<T> {
        match done {
            None => Err(PyValueError::new_err("the image is closed")),
            Some(result) => result.map_err(|why| self.raised(py, &why)),
        }
    }

    /// What tells calls of this handle from calls of others.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// A thread that panicked while it held the lock left the image as unsure as any failure: the image knows itself.
    fn sharing(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn having(&self) -> RwLockWriteGuard<'_, Option<Open>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
