//! Writing an image out: as it is, or its disk into a new image.

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::Path;

use pyo3::exceptions::PyFileExistsError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use qcowkit::convert::{ConvertError, ConvertOptions, ConvertReport, total_size};
use qcowkit::disk::Disk;
use qcowkit::file::{FileAccess, FileIdentity, FileStorage};
use qcowkit::lock::LockRequest;
use qcowkit::open::{OpenRequest, format_by_name};
use qcowkit_core::image::{LayerFormat, OpenOptions};
use qcowkit_core::storage::{ReadStorage, Storage, StorageExtentKind};
use qcowkit_core::zeros::is_zero;
use qcowkit_core::{Error, ErrorKind, Result, Structure};

use super::{Image, shape};
use crate::calls::{self, Progress};
use crate::create::{Wanted, name_of, path_of};
use crate::error;
use crate::opening::{Mode, Names, OpenFailure, StoreImage};
use crate::storage::Store;

/// Bytes that are copied at once.
const PIECE: u64 = 2 << 20;
/// Zeros of this many bytes are not written.
const SPARSE: usize = 4096;

#[pymethods]
impl Image {
    /// Writes the image file out as it is, edits included.
    fn save_as(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        overwrite: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let target = path_of(target)?;
        refuse_existing(&target, overwrite)?;
        let mut progress = Progress::new(progress);
        let saved = self.change(py, |image| {
            if image.header().data_file().is_some() || image.data_file().is_some() {
                let what = "saving an image that keeps its data in another file: convert() writes the disk into one";
                return Err(Error::unsupported(what).in_structure(Structure::DataFile));
            }
            let kept = self.keep_replaceable(image, &target);
            let _others = match kept {
                Ok(kept) => kept,
                Err(why) => return Ok(Err(why)),
            };
            image.finish()?;
            Ok(save(image.storage(), &target, &mut progress))
        })?;
        saved.map_err(|why| error::raised(py, &why, Some(target.as_os_str())))
    }

    /// Writes the disk into a new image.
    #[pyo3(signature = (
        target, *, format, options, key, compress, sparse_size, workers, rate, salvage, overwrite, more, progress
    ))]
    fn convert<'py>(
        &self,
        py: Python<'py>,
        target: &Bound<'py, PyAny>,
        format: &str,
        options: Vec<(String, String)>,
        key: Option<&Bound<'py, PyAny>>,
        compress: bool,
        sparse_size: u64,
        workers: usize,
        rate: u64,
        salvage: bool,
        overwrite: bool,
        more: Vec<PyRef<'py, Self>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let target = path_of(target)?;
        let format = format_by_name(format).map_err(|why| self.raised(py, &why))?;
        let wanted = Wanted::new(py, format, options, key)?;
        refuse_existing(&target, overwrite)?;
        let how = ConvertOptions {
            compress,
            sparse_size,
            workers,
            rate: NonZeroU64::new(rate),
            salvage,
            ..ConvertOptions::default()
        };
        check(&how, format).map_err(|why| self.raised(py, &why))?;
        let mut progress = Progress::new(progress);
        let more = more.iter().map(|other| other.behind(py, &target)).collect::<PyResult<Vec<_>>>()?;
        let converted = self.change(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            Ok(self.convert_image(image, more, &target, &wanted, how, &mut progress))
        })?;
        let report =
            converted.map_err(|why| error::raised(py, &why.error, why.file.as_deref().or(self.name.as_deref())))?;
        let told = PyDict::new(py);
        for (what, bytes) in [
            ("total_bytes", report.total_bytes),
            ("data_bytes", report.data_bytes),
            ("zero_bytes", report.zero_bytes),
            ("compressed_bytes", report.compressed_bytes),
            ("packed_bytes", report.packed_bytes),
        ] {
            told.set_item(what, bytes)?;
        }
        Ok(told)
    }
}

impl Image {
    /// Refuses to put another file in the place of one that is in use: by others, as a lock tells that is kept until it is
    /// done, or by this image. Only what scratch mode lies over may be replaced by what became of it: its lock is held.
    fn keep_replaceable(&self, image: &StoreImage, target: &Path) -> Result<Option<FileStorage>> {
        if target.metadata().is_ok_and(|there| !there.is_file()) {
            // As root, a device would be gone, for all programs of the machine.
            return Err(Error::invalid("only a file is replaced, no folder, device or pipe"));
        }
        let Ok(there) = FileStorage::open(target, FileAccess::Read) else { return Ok(None) };
        let identity = there.identity()?;
        if identity.is_some_and(|identity| shape::identities(image).contains(&identity)) {
            let own = image.storage().file().map(|file| file.identity()).transpose()?.flatten();
            if self.opening.mode != Mode::Scratch || own != identity {
                return Err(Error::invalid("the target is a file of this image"));
            }
            if self.opening.lock {
                return Ok(None);
            }
        }
        there.lock(LockRequest::WRITE)?;
        Ok(Some(there))
    }

    /// The disk as one that is copied behind another.
    fn behind(&self, py: Python<'_>, target: &Path) -> PyResult<Disk> {
        let disk = self.change(py, |image| {
            if !image.is_read_only() {
                image.flush()?;
            }
            refuse_own(image, target)?;
            refuse_locked(image)?;
            Ok(self.as_disk(image))
        })?;
        let disk = disk.map_err(|why| error::raised(py, &why.error, why.file.as_deref().or(self.name.as_deref())))?;
        disk.ok_or_else(|| self.raised(py, &Error::unsupported("several sources of which one is no plain file")))
    }

    fn convert_image(
        &self,
        image: &mut StoreImage,
        more: Vec<Disk>,
        target: &Path,
        wanted: &Wanted,
        mut how: ConvertOptions,
        progress: &mut Progress,
    ) -> Result<ConvertReport, OpenFailure> {
        refuse_own(image, target)?;
        refuse_locked(image)?;
        let there = target.exists();
        let in_target = |error: Error| OpenFailure { error, file: name_of(target) };
        let open = OpenOptions { codecs: self.opening.options.codecs.clone(), ..OpenOptions::default() };
        how.backing = wanted.backing_size(target)?.is_some();
        let source = self.as_disk(image)?;
        let mut sources: Vec<Disk> = Vec::new();
        let size = match source {
            Some(source) => {
                sources.push(source);
                sources.extend(more);
                total_size(&sources)?
            }
            None if !more.is_empty() || how.backing => {
                let what =
                    "several sources, or a backing file, with a source that is no plain file: save_as() it first";
                return Err(Error::unsupported(what).into());
            }
            None => image.virtual_size(),
        };
        let new = wanted.image(size).map_err(in_target)?;
        let mut disk = new.create(target, open).map_err(in_target)?;
        let done = match sources.is_empty() {
            false => {
                qcowkit::convert::convert(&mut sources, &mut disk, &how, &mut |done, total| progress.tell(done, total))
                    .map_err(|why| match why {
                        ConvertError::Write { .. } | ConvertError::Flush(_) => in_target(failure(&why)),
                        ConvertError::Read { source, .. } => {
                            let file = sources.get(source).map(|source| source.path().as_os_str().to_owned());
                            OpenFailure { error: failure(&why), file }
                        }
                        _ => failure(&why).into(),
                    })
            }
            true => copied(image, &mut disk, &how, progress).map_err(OpenFailure::from),
        };
        if done.is_err() && !there {
            // Half an image is none. What became of it is not what the caller has to know.
            drop(disk);
            let _ = std::fs::remove_file(target);
        }
        done
    }

    /// The same disk for native threads, where all of it lies in files as it is.
    fn as_disk(&self, image: &StoreImage) -> Result<Option<Disk>, OpenFailure> {
        let (Store::File(file), Names::Files(_) | Names::Deny) = (image.storage(), &self.opening.names) else {
            return Ok(None);
        };
        let (backing, alone) = match self.opening.names {
            Names::Files(policy) => (policy, false),
            Names::Deny | Names::Ask(_) => (qcowkit::open::BackingPolicy::Deny, true),
        };
        let request = OpenRequest {
            format: Some(LayerFormat::Qcow2),
            backing,
            alone,
            // The image itself holds the locks.
            force_share: true,
            options: OpenOptions { writable_backing: None, ..image.options().clone().read_only() },
            ..OpenRequest::default()
        };
        match qcowkit::open::open(file.path(), &request) {
            Ok(disk) => Ok(Some(disk)),
            Err(failed) => Err(OpenFailure { error: failed.error, file: Some(failed.failed.into()) }),
        }
    }
}

/// The disk of an image on any storage, copied by one thread.
fn copied(
    image: &mut StoreImage,
    disk: &mut Disk,
    how: &ConvertOptions,
    progress: &mut Progress,
) -> Result<ConvertReport> {
    if how.salvage || how.rate.is_some() || how.sparse_size == 0 {
        let what = "salvage, rate and a sparse_size of 0 with an image that is no plain file: save_as() it first";
        return Err(Error::unsupported(what));
    }
    let mut tell = |done, total| progress.tell(done, total);
    let report = qcowkit::blocks::copy_image(image, disk, how.compress, how.sparse_size, &mut tell)?;
    disk.finish()?;
    report.ok_or_else(|| Error::invalid("stopped"))
}

fn refuse_locked(image: &StoreImage) -> Result<()> {
    match image.is_locked() {
        true => Err(ErrorKind::Encrypted("the source".into()).into()),
        false => Ok(()),
    }
}

fn failure(why: &ConvertError) -> Error {
    why.error().cloned().unwrap_or_else(|| Error::invalid(why.to_string()))
}

/// What can be refused before anything is made.
fn check(how: &ConvertOptions, format: LayerFormat) -> Result<()> {
    if how.compress && format == LayerFormat::Raw {
        return Err(Error::unsupported("compression in a raw file"));
    }
    if !(1..=16).contains(&how.workers) {
        return Err(Error::invalid("the number of workers is 1 to 16"));
    }
    if !how.sparse_size.is_multiple_of(512) || how.sparse_size > 16 << 20 {
        return Err(Error::invalid("sparse_size is a multiple of 512, at most 16 MiB; 0 writes zeros as data"));
    }
    Ok(())
}

fn refuse_existing(target: &Path, overwrite: bool) -> PyResult<()> {
    if !overwrite && target.metadata().is_ok_and(|there| there.is_file() && there.len() > 0) {
        let words = "it exists: overwrite=True replaces it";
        return Err(PyFileExistsError::new_err((17, words, target.as_os_str().to_owned())));
    }
    Ok(())
}

/// Refuses a target that the image, or its chain, lies in: making it anew would destroy what is to be copied.
fn refuse_own(image: &StoreImage, target: &Path) -> Result<()> {
    let Ok(there) = FileStorage::open(target, FileAccess::Read) else { return Ok(()) };
    let identity: Option<FileIdentity> = there.identity()?;
    if identity.is_some_and(|identity| shape::identities(image).contains(&identity)) {
        return Err(Error::invalid("the target is a file of the source"));
    }
    Ok(())
}

/// Writes beside the target, and puts it in its place when it is complete.
fn save(store: &Store, target: &Path, progress: &mut Progress) -> Result<()> {
    let mut beside = target.as_os_str().to_owned();
    beside.push(format!(".{}.partial", std::process::id()));
    let beside = Path::new(&beside);
    let written = FileStorage::open(beside, FileAccess::CreateNew)
        .map_err(Error::from)
        .and_then(|file| copy(store, &file, progress));
    let put = written.and_then(|()| {
        if let Ok(there) = target.metadata() {
            std::fs::set_permissions(beside, there.permissions()).map_err(renamed)?;
        }
        std::fs::rename(beside, target).map_err(renamed)
    });
    if put.is_err() {
        let _ = std::fs::remove_file(beside);
    }
    put
}

fn renamed(error: std::io::Error) -> Error {
    qcowkit::error::storage_error(&error, "rename", None).into()
}

fn copy(store: &Store, file: &FileStorage, progress: &mut Progress) -> Result<()> {
    let length = store.len()?;
    file.set_len(length)?;
    let mut buffer = vec![0u8; PIECE as usize];
    let mut at = 0;
    while at < length {
        let extent = store.next_extent(at)?;
        let here = extent.length.min(length - at).max(1);
        if extent.kind == StorageExtentKind::Hole {
            at += here;
            continue;
        }
        if let ControlFlow::Break(()) = progress.tell(at, length) {
            calls::checkpoint()?;
        }
        let piece = &mut buffer[..here.min(PIECE) as usize];
        store.read_at(at, piece)?;
        for (number, part) in piece.chunks(SPARSE).enumerate().filter(|(_, part)| !is_zero(part)) {
            file.write_at(at + (number * SPARSE) as u64, part)?;
        }
        at += piece.len() as u64;
    }
    file.barrier()?;
    let _ = progress.tell(length, length);
    calls::checkpoint()
}
