//! Making new images.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use pyo3::exceptions::{PyFileExistsError, PyTypeError};
use pyo3::prelude::*;
use qcowkit::create::{NewFormat, NewImage};
use qcowkit::open::{OpenRequest, format_by_name, relative_to};
use qcowkit::options::create::ImageOptions;
use qcowkit::options::list::{OptionList, size as size_option};
use qcowkit_core::crypto::{NewVolume, Secret};
use qcowkit_core::format::{Name, format_by_magic};
use qcowkit_core::image::{CreateOptions, LayerFormat};
use qcowkit_core::storage::{ReadStorage, Storage};
use qcowkit_core::{Error, Structure};

use crate::image::Image;
use crate::opening::{Mode, OpenFailure, Opening, Source, StoreImage, secret_of};
use crate::storage::Store;
use crate::{calls, error};

/// Linux's, macOS's and Windows' number for a file that exists.
const EEXIST: i32 = 17;

/// A new image, as the options describe it.
pub(crate) struct Wanted {
    options: ImageOptions,
    key: Option<Secret>,
}

impl Wanted {
    /// Checks the options, one by one.
    pub(crate) fn new(
        py: Python<'_>,
        format: LayerFormat,
        options: Vec<(String, String)>,
        key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let refused = |why: String| error::raised(py, &Error::invalid(why), None);
        let options = ImageOptions::parse(format, &OptionList { entries: options }).map_err(refused)?;
        let key = key.map(secret_of).transpose()?;
        let encrypted = options.encryption().map_err(refused)?.is_some();
        match (encrypted, key.is_some()) {
            (true, false) => Err(refused("an encrypted image needs a key".into())),
            (false, true) => Err(refused("a key for an image that is not encrypted".into())),
            _ => Ok(Self { options, key }),
        }
    }

    /// The whole description, with a size in bytes. Takes a while where a key is derived.
    ///
    /// # Errors
    /// What does not go together.
    pub(crate) fn image(&self, size: u64) -> Result<NewImage, Error> {
        let new = self.options.new_image(size).map_err(Error::invalid)?;
        new.validate()?;
        let volume = match (self.options.encryption().map_err(Error::invalid)?, &self.key) {
            (Some(wanted), Some(key)) => Some(Arc::<NewVolume>::new(wanted.luks.make(key)?)),
            _ => None,
        };
        Ok(new.encrypted(volume))
    }

    /// The size of the backing file's disk, if there is to be one. It is opened, the files that it names are not.
    pub(crate) fn backing_size(&self, place: &Path) -> Result<Option<u64>, OpenFailure> {
        let Some(name) = self.options.text("backing_file") else { return Ok(None) };
        let in_structure = |error: Error| error.in_structure(Structure::BackingFile);
        let Some(format) = self.options.text("backing_fmt") else {
            return Err(in_structure(Error::invalid("a backing file needs its format: 'qcow2' or 'raw'")).into());
        };
        let format = Some(format_by_name(&format).map_err(in_structure)?);
        let path = relative_to(place, &Name::new(name.as_bytes())).map_err(in_structure)?;
        let request = OpenRequest { format, alone: true, ..OpenRequest::default() };
        match qcowkit::open::open(&path, &request) {
            Ok(disk) => Ok(Some(disk.virtual_size())),
            Err(failure) => Err(OpenFailure { error: failure.error, file: Some(failure.failed.into()) }),
        }
    }
}

/// Makes a new image and opens it for writing.
#[pyfunction]
#[pyo3(signature = (target, size, *, options, key, backing, settings, overwrite))]
pub(crate) fn create(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    size: Option<String>,
    options: Vec<(String, String)>,
    key: Option<&Bound<'_, PyAny>>,
    backing: &Bound<'_, PyAny>,
    settings: Vec<(String, String)>,
    overwrite: bool,
) -> PyResult<Image> {
    let refused = |why: Error| error::raised(py, &why, None);
    let opening = Opening::new(Mode::Write, backing, key, true, &settings)?.map_err(refused)?;
    let wanted = Wanted::new(py, LayerFormat::Qcow2, options, key)?;
    let size = size.map(|text| size_option("size", &text)).transpose().map_err(|why| refused(Error::invalid(why)))?;
    let source = Source::new(target, true)?;
    let name = source.name();
    if !overwrite && source.holds_something() {
        return Err(PyFileExistsError::new_err((EEXIST, "it exists: overwrite=True replaces it", name)));
    }
    Image::opened(py, name, opening, |opening| {
        let below = wanted.backing_size(source.path().unwrap_or(Path::new("")))?;
        let size = size.or(below).ok_or_else(|| Error::invalid("a new image needs a size"))?;
        let image = make(&wanted.image(size)?, &source, opening)?;
        match below {
            None => Ok(image),
            // With the layers below.
            Some(_) => opening.open(image.close()?, None),
        }
    })
}

fn make(new: &NewImage, source: &Source, opening: &Opening) -> Result<StoreImage, Error> {
    let NewFormat::Qcow2(options) = &new.format else { return Err(Error::unsupported("raw images")) };
    let open = opening.options.clone();
    let mut image = match source {
        Source::Bytes(_) => return Err(Error::invalid("bytes cannot be written: give a path or a file object")),
        Source::Path(path) => match new.create_files(path)? {
            (file, None) => StoreImage::create_with(Store::File(file), new.size, options, open)?,
            (file, Some(data)) => {
                StoreImage::create_with_data_file(Store::File(file), Store::File(data), new.size, options, open)?
            }
        },
        Source::Object(object, _) => {
            new.validate()?;
            if let CreateOptions { data_file: Some(_), .. } = options {
                return Err(
                    Error::unsupported("an external data file beside a file object").in_structure(Structure::DataFile)
                );
            }
            let store = Store::Object(Arc::clone(object));
            store.set_len(0)?;
            StoreImage::create_with(store, new.size, options, open)?
        }
    };
    image.flush()?;
    Ok(image)
}

/// Bytes, as QEMU spells sizes.
#[pyfunction]
pub(crate) fn parse_size(py: Python<'_>, text: &str) -> PyResult<u64> {
    size_option("size", text).map_err(|why| error::raised(py, &Error::invalid(why), None))
}

/// The format that the first bytes of a source show, and its length.
#[pyfunction]
pub(crate) fn format_of(py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<(&'static str, u64)> {
    let source = Source::new(source, false)?;
    let name = source.name();
    let look = || -> Result<(&'static str, u64), Error> {
        let store = source.open(Mode::Read, LayerFormat::Raw, false)?;
        let mut start = [0u8; 128];
        store.read_at(0, &mut start)?;
        Ok((format_by_magic(&start), store.len()?))
    };
    let looked = calls::run(py, 0, true, look, Result::is_err)?;
    looked.map_err(|why| error::raised(py, &why, name.as_deref()))
}

/// A path as an argument: targets that only files can be.
pub(crate) fn path_of(target: &Bound<'_, PyAny>) -> PyResult<std::path::PathBuf> {
    target.extract().map_err(|_| PyTypeError::new_err("the target is a path"))
}

/// What messages call a path.
pub(crate) fn name_of(path: &Path) -> Option<OsString> {
    Some(path.as_os_str().to_owned())
}
