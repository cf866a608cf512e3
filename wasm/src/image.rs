//! The handle of an open image: made, opened, told of, closed.

use std::rc::Rc;

use qcowkit_core::image::{Image, OpenOptions};
use qcowkit_core::operations::info::ImageInfo;
use qcowkit_core::operations::read_header;
use qcowkit_core::storage::{OverlayMark, ReadStorage};
use qcowkit_core::{Error, ErrorKind, Result};
use wasm_bindgen::prelude::*;

use crate::error::{self, outcome};
use crate::json;
use crate::open::{self, Files, Setup};
use crate::options::{Options, Thrown, bytes, number};
use crate::source::Base;
use crate::store::{Edits, Store, store};

/// What is behind the class `Image` of the TypeScript layer, which documents it.
#[wasm_bindgen]
pub struct RawImage {
    /// Empty once it is closed.
    open: Option<Open>,
}

/// An open image.
pub(crate) struct Open {
    pub(crate) edits: Rc<Edits>,
    pub(crate) setup: Setup,
    /// The disk; opened again when it is needed after the file was changed below it.
    disk: Option<Image<Store>>,
    /// Why it cannot be opened, found out once.
    problem: Option<Error>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) next_mark: u32,
}

/// A state of the edits.
pub(crate) struct Mark {
    pub(crate) number: u32,
    pub(crate) file: OverlayMark,
    /// Of the external data file, if there is one.
    pub(crate) data_file: Option<OverlayMark>,
}

impl Open {
    pub(crate) fn new(edits: Rc<Edits>, setup: Setup) -> Self {
        Self { edits, setup, disk: None, problem: None, marks: Vec::new(), next_mark: 1 }
    }

    /// The file as edited, with counters of its own.
    pub(crate) fn store(&self) -> Store {
        store(&self.edits)
    }

    /// Opens the disk, under other options than the image's perhaps.
    pub(crate) fn open_disk(&self, store: Store, options: OpenOptions) -> Result<Image<Store>> {
        self.open_disk_with(store, options, self.setup.files.clone())
    }

    /// As [`Open::open_disk`], with other files to go with it.
    pub(crate) fn open_disk_with(&self, store: Store, options: OpenOptions, mut files: Files) -> Result<Image<Store>> {
        let image = Image::open_with(store, self.setup.identity.clone(), options, &mut files)?;
        if image.virtual_size() >= json::MAX_EXACT {
            let size = image.virtual_size();
            let message = format!("the virtual disk has {size} bytes; JavaScript counts exactly below 2^53 only");
            return Err(Error::new(ErrorKind::Limit(message)));
        }
        Ok(image)
    }

    /// The disk.
    pub(crate) fn disk(&mut self) -> Result<&mut Image<Store>> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        if self.disk.is_none() {
            match self.open_disk(self.store(), self.setup.options.clone()) {
                Ok(disk) => self.disk = Some(disk),
                Err(why) => {
                    self.problem = Some(why.clone());
                    return Err(why);
                }
            }
        }
        match &mut self.disk {
            Some(disk) => Ok(disk),
            None => Err(Error::invalid("the disk is not open")),
        }
    }

    /// Writes everything to the file as edited, so that what looks at the file sees it. A file that cannot be opened as
    /// a disk is as it is.
    pub(crate) fn settle(&mut self) -> Result<()> {
        match &mut self.disk {
            Some(disk) => disk.finish(),
            None => Ok(()),
        }
    }

    /// The file is about to be changed below the disk, or was.
    pub(crate) fn leave_disk(&mut self) {
        self.disk = None;
        self.problem = None;
    }

    pub(crate) fn writable(&self) -> Result<()> {
        if self.setup.options.read_only { Err(ErrorKind::ReadOnly.into()) } else { Ok(()) }
    }
}

impl RawImage {
    pub(crate) fn of(open: Open) -> Self {
        Self { open: Some(open) }
    }

    pub(crate) fn open_ref(&self) -> Thrown<&Open> {
        self.open.as_ref().ok_or_else(|| error::closed("image"))
    }

    pub(crate) fn open_mut(&mut self) -> Thrown<&mut Open> {
        self.open.as_mut().ok_or_else(|| error::closed("image"))
    }

    /// Does something with the disk.
    pub(crate) fn with_disk<T>(&mut self, work: impl FnOnce(&mut Image<Store>) -> Result<T>) -> Thrown<T> {
        let open = self.open_mut()?;
        outcome(open.disk().and_then(work))
    }

    /// Does something with the file as edited.
    pub(crate) fn with_file<T>(&mut self, work: impl FnOnce(&dyn ReadStorage) -> Result<T>) -> Thrown<T> {
        let open = self.open_mut()?;
        outcome(open.settle().and_then(|()| work(&*open.edits)))
    }
}

#[wasm_bindgen]
impl RawImage {
    pub fn create(size: f64, options: &JsValue) -> Thrown<RawImage> {
        let size = bytes(size, "size")?;
        let mut given = Options::new(options)?;
        let setup = Setup::read(&mut given)?;
        let create = open::new_image(&mut given)?;
        given.finish()?;
        let edits = outcome(Edits::new(Base::empty(), setup.max_edit_bytes).map_err(Error::from))?;
        outcome(Image::create(store(&edits), size, &create).and_then(Image::close).map(drop))?;
        Self::begin(Open::new(edits, setup))
    }

    pub fn open(input: &JsValue, options: &JsValue) -> Thrown<RawImage> {
        let mut given = Options::new(options)?;
        let setup = Setup::read(&mut given)?;
        given.finish()?;
        let base = Base::of(input)?;
        let edits = outcome(Edits::new(base, setup.max_edit_bytes).map_err(Error::from))?;
        Self::begin(Open::new(edits, setup))
    }

    fn begin(mut open: Open) -> Thrown<RawImage> {
        match open.disk().map(drop) {
            Err(_) if open.setup.tolerant && !error::interrupted() => {}
            other => outcome(other)?,
        }
        Ok(Self::of(open))
    }

    pub fn virtual_size(&mut self) -> Thrown<f64> {
        Ok(self.open_mut()?.disk().map_or(0.0, |disk| number(disk.virtual_size())))
    }

    pub fn cluster_size(&mut self) -> Thrown<f64> {
        Ok(self.open_mut()?.disk().map_or(0.0, |disk| number(disk.geometry().cluster_size())))
    }

    pub fn file_length(&self) -> Thrown<f64> {
        outcome(self.open_ref()?.edits.len().map_err(Error::from)).map(number)
    }

    pub fn read_only(&self) -> Thrown<bool> {
        Ok(self.open_ref()?.setup.options.read_only)
    }

    pub fn problem(&mut self) -> Thrown<JsValue> {
        Ok(self.open_mut()?.disk().err().as_ref().map_or(JsValue::UNDEFINED, error::thrown))
    }

    pub fn edit_bytes(&self) -> Thrown<f64> {
        let open = self.open_ref()?;
        let data_file = open.setup.files.data_edits().map_or(0, |edits| edits.overlay().memory_bytes());
        Ok(number(open.edits.overlay().memory_bytes() + data_file))
    }

    pub fn closed(&self) -> bool {
        self.open.is_none()
    }

    pub fn info(&mut self) -> Thrown<String> {
        self.with_file(|store| Ok(json::text(&ImageInfo::read(&read_header(store)?, store)?)))
    }

    pub fn flush(&mut self) -> Thrown<()> {
        let open = self.open_mut()?;
        outcome(open.settle())
    }

    pub fn close(&mut self) {
        self.open = None;
    }
}
