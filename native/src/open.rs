//! Opening images by name: which file, which format, which locks, and what becomes of the names inside.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcowkit_core::format::{Name, format_by_magic};
use qcowkit_core::image::{Found, Image, LayerFormat, OpenOptions, Opener, Reference, Role};
use qcowkit_core::operations::repair::{RepairPlan, repair_dirty};
use qcowkit_core::storage::{ReadStorage, StorageError, StorageErrorKind};
use qcowkit_core::{Error, ErrorKind, Structure};

use crate::codec::NativeCodecs;
use crate::disk::{Disk, RawDisk};
use crate::file::{FileAccess, FileIdentity, FileStorage};
use crate::lock::LockRequest;

/// Which files that an image names may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackingPolicy {
    /// None.
    Deny,
    /// Those below the directory of the image that was asked for, if their format is stated.
    #[default]
    SameDirectory,
    /// All, and their format is probed where it is not stated: for images that are trusted.
    Follow,
}

/// How an image is opened.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The format; probed when it is not given.
    pub format: Option<LayerFormat>,
    /// Which named files may be opened.
    pub backing: BackingPolicy,
    /// The backing chain and the data file are not needed and are left out.
    pub alone: bool,
    /// The data file of the image itself, in place of the one that it names; named here, it may be opened.
    pub data_file: Option<PathBuf>,
    /// No locks are taken: to look at an image in use.
    pub force_share: bool,
    /// The options of a qcow2 image; `read_only` holds for all formats.
    pub options: OpenOptions,
    /// Is told of a dirty image that was repaired because it was opened for writing.
    pub repaired: fn(&Path, &RepairPlan),
}

impl Default for OpenRequest {
    /// Read-only, with the fast codecs, and locks.
    fn default() -> Self {
        let options = OpenOptions { codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
        Self {
            format: None,
            backing: BackingPolicy::default(),
            alone: false,
            data_file: None,
            force_share: false,
            options: options.read_only(),
            repaired: |_, _| (),
        }
    }
}

/// Why an image was not opened: which file of its chain, and what is wrong with that.
#[derive(Debug, Clone)]
pub struct OpenError {
    /// The image that was asked for.
    pub image: PathBuf,
    /// The file that failed: the image itself, or one of its chain.
    pub failed: PathBuf,
    /// How deep in the chain it lies; 0 is the image itself.
    pub depth: u32,
    /// What is wrong.
    pub error: Error,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.failed.display(), self.error)?;
        if self.failed != self.image {
            write!(f, " (in the chain of {})", self.image.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Opens an image, its locks, and its chain as far as the request allows. A dirty image that is opened for writing is
/// repaired first, as QEMU does; [`OpenRequest::repaired`] is told.
///
/// # Errors
/// Which file of the chain failed, and why.
pub fn open(path: impl AsRef<Path>, request: &OpenRequest) -> Result<Disk, OpenError> {
    let path = path.as_ref();
    let mut request = request.clone();
    request.options.read_only |= request.options.snapshot.is_some();
    let request = &request;
    let top = |error: Error| OpenError { image: path.into(), failed: path.into(), depth: 0, error };
    let (storage, format) = open_file(path, request)?;
    let file = storage.path().to_owned();
    match format {
        LayerFormat::Raw if request.options.snapshot.is_some() => {
            let error = Error::unsupported("internal snapshots of a raw file");
            Err(top(error.in_structure(Structure::SnapshotTable)))
        }
        LayerFormat::Raw => RawDisk::new(storage, &request.options).map(Disk::Raw).map_err(top),
        LayerFormat::Qcow2 => {
            if !request.options.read_only
                && let Some(plan) = repair_dirty(&storage).map_err(top)?
            {
                (request.repaired)(path, &plan);
            }
            let mut opener = FileOpener::for_image(&storage, request).map_err(top)?;
            let identity = Some(file.display().to_string());
            let mut options = request.options.clone();
            options.ignore_missing_files |= request.alone;
            let opened = Image::open_with(storage, identity, options, &mut opener);
            opened.map(|image| Disk::Qcow2(Box::new(image))).map_err(|error| match opener.failed(&error) {
                Some(failed) => {
                    let depth = error.site().depth.unwrap_or(0);
                    OpenError { image: path.into(), failed: failed.to_owned(), depth, error }
                }
                None => top(error),
            })
        }
    }
}

/// Opens the file of an image and takes its locks, without looking further than its first bytes.
///
/// # Errors
/// The file cannot be opened or is locked.
pub fn open_file(path: &Path, request: &OpenRequest) -> Result<(FileStorage, LayerFormat), OpenError> {
    let top = |error: Error| OpenError { image: path.into(), failed: path.into(), depth: 0, error };
    let read_only = request.options.read_only;
    let file = local_path(path.as_os_str().as_encoded_bytes()).map_err(top)?;
    let access = if read_only { FileAccess::Read } else { FileAccess::Write };
    let storage = FileStorage::open(&file, access).map_err(|error| top(error.into()))?;
    let format = match request.format {
        Some(format) => format,
        None => probe(&storage).map_err(top)?,
    };
    if !request.force_share {
        storage.lock(lock_request(format, !read_only)).map_err(|error| top(error.into()))?;
    }
    Ok((storage, format))
}

/// The locks that QEMU takes for a file of this format.
#[must_use]
pub fn lock_request(format: LayerFormat, writable: bool) -> LockRequest {
    match (format, writable) {
        (LayerFormat::Qcow2, false) => LockRequest::READ,
        (LayerFormat::Qcow2, true) => LockRequest::WRITE,
        (LayerFormat::Raw, false) => LockRequest::READ_RAW,
        (LayerFormat::Raw, true) => LockRequest::WRITE_RAW,
    }
}

/// Tells qcow2 from raw, and refuses what is plainly another format: taking that for raw bytes would be a surprise.
///
/// # Errors
/// Another format, by name; a storage that fails.
pub fn probe(storage: &FileStorage) -> Result<LayerFormat, Error> {
    let mut start = [0u8; 128];
    storage.read_at(0, &mut start)?;
    match format_by_magic(&start) {
        "qcow2" | "raw" => {}
        other => {
            let name = if other == "qcow" { "qcow (version 1)" } else { other };
            let what = format!("the format {name}; its bytes as they are can be had with -f raw");
            return Err(Error::unsupported(what));
        }
    }
    LayerFormat::probe(storage)
}

/// The file that a name stands for: protocols other than `file:` are refused.
///
/// # Errors
/// A name with another protocol, a `json:` description, an empty name.
pub fn local_path(name: &[u8]) -> Result<PathBuf, Error> {
    if name.is_empty() {
        return Err(Error::invalid("an empty file name"));
    }
    if let Some(rest) = name.strip_prefix(b"file:") {
        return Ok(to_path(rest));
    }
    let path = to_path(name);
    match protocol(name) {
        Some("json") => Err(Error::unsupported("names that are 'json:' descriptions")),
        // A file may be called so all the same.
        Some(protocol) if !path.exists() => Err(Error::unsupported(format!("the protocol '{protocol}'"))),
        _ => Ok(path),
    }
}

/// What stands before a colon that comes before any slash.
pub(crate) fn protocol(name: &[u8]) -> Option<&str> {
    let end = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    (name[end] == b':' && end > 0).then(|| std::str::from_utf8(&name[..end]).ok()).flatten()
}

#[cfg(unix)]
fn to_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

/// A name that an image carries as seen from the place of that image: `sub/o.qcow2` and `../a` give `sub/../a`.
///
/// # Errors
/// As [`local_path`].
pub fn relative_to(image: &Path, name: &Name) -> Result<PathBuf, Error> {
    if name.as_bytes().is_empty() {
        return Err(Error::invalid("an empty file name"));
    }
    let plain = name.as_bytes().strip_prefix(b"file:").unwrap_or(name.as_bytes());
    let named = to_path(plain);
    let full = match image.parent() {
        Some(folder) if named.is_relative() && folder != Path::new("") => folder.join(&named),
        _ => named,
    };
    match protocol(plain) {
        Some("json") => Err(Error::unsupported("names that are 'json:' descriptions")),
        Some(protocol) if !full.exists() => Err(Error::unsupported(format!("the protocol '{protocol}'"))),
        _ => Ok(full),
    }
}

/// The file that a name stands for in the current directory, where QEMU looks for data files, if there is one.
fn from_here(name: &Name) -> Option<PathBuf> {
    local_path(name.as_bytes()).ok().filter(|path| path.exists())
}

/// The format that a name of QEMU's stands for.
///
/// # Errors
/// A format that is not supported.
pub fn format_by_name(name: &str) -> Result<LayerFormat, Error> {
    match name {
        "raw" => Ok(LayerFormat::Raw),
        "qcow2" => Ok(LayerFormat::Qcow2),
        _ => Err(Error::unsupported(format!("the format '{name}'"))),
    }
}

/// Decides which files that an image names may be opened.
#[derive(Debug, Clone)]
pub struct Gate {
    policy: BackingPolicy,
    /// The directories of the image that was asked for, with links resolved: of its name, and of its file.
    folders: Vec<PathBuf>,
}

impl Gate {
    /// The gate for the chain of the image `top`.
    #[must_use]
    pub fn new(policy: BackingPolicy, top: &Path) -> Self {
        let parent = top.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let by_name = parent.canonicalize().ok();
        let by_file = top.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
        Self { policy, folders: by_name.into_iter().chain(by_file).collect() }
    }

    /// Whether `path` may be opened; `what` says in the message what it is.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`]; or, where the place of the file matters and it cannot be found, that.
    pub fn admit(&self, path: &Path, what: &str) -> Result<(), Error> {
        let denied = |why: String| Err(Error::new(ErrorKind::Denied(why)));
        match self.policy {
            BackingPolicy::Follow => Ok(()),
            BackingPolicy::Deny => denied(format!("the image names the {what} '{}'", path.display())),
            BackingPolicy::SameDirectory => {
                let real = path
                    .canonicalize()
                    .map_err(|error| Error::from(crate::error::storage_error(&error, "open", None)))?;
                self.admit_place(&real, path, what)
            }
        }
    }

    /// Opens `path` if that is allowed. It is decided twice: by the name, so that nothing else is touched, and by where the
    /// file is that was opened, since the name may have come to stand for another one in between.
    ///
    /// # Errors
    /// As [`Gate::admit`] and [`FileStorage::open`].
    pub fn open(&self, path: &Path, access: FileAccess, what: &str) -> Result<FileStorage, Error> {
        self.open_after(path, access, what, || ())
    }

    /// As [`Gate::open`]; `between` runs after the first decision.
    fn open_after(
        &self,
        path: &Path,
        access: FileAccess,
        what: &str,
        between: impl FnOnce(),
    ) -> Result<FileStorage, Error> {
        self.admit(path, what)?;
        between();
        let storage = FileStorage::open(path, access)?;
        if self.policy == BackingPolicy::SameDirectory {
            self.admit_place(&storage.real_path()?, path, what)?;
        }
        Ok(storage)
    }

    /// Whether a file at this place, which has no links in it, may be opened.
    fn admit_place(&self, real: &Path, path: &Path, what: &str) -> Result<(), Error> {
        if self.folders.iter().any(|folder| real.starts_with(folder)) {
            return Ok(());
        }
        let why = format!("the image names the {what} '{}', which is not below its own directory", path.display());
        Err(Error::new(ErrorKind::Denied(why)))
    }
}

/// Opens what images name, as far as a [`BackingPolicy`] allows it.
#[derive(Debug)]
pub struct FileOpener {
    gate: Gate,
    alone: bool,
    data_file: Option<PathBuf>,
    force_share: bool,
    seen: BTreeSet<FileIdentity>,
    /// The backing files from the top down, also those that failed.
    trail: Vec<PathBuf>,
}

impl FileOpener {
    /// The opener for the chain of the image `top`.
    #[must_use]
    pub fn new(top: &Path, request: &OpenRequest) -> Self {
        Self {
            gate: Gate::new(request.backing, top),
            alone: request.alone,
            data_file: request.data_file.clone(),
            force_share: request.force_share,
            seen: BTreeSet::new(),
            trail: Vec::new(),
        }
    }

    /// The opener for the chain of an image that is open already, so that a chain that leads back to it is found.
    ///
    /// # Errors
    /// When the system does not tell what the file is.
    pub fn for_image(top: &FileStorage, request: &OpenRequest) -> Result<Self, Error> {
        let mut opener = Self::new(top.path(), request);
        opener.remember(top)?;
        Ok(opener)
    }

    /// The file that failed, by the depth that the error tells: what fails in a chain fails in the file opened last.
    #[must_use]
    pub fn failed(&self, error: &Error) -> Option<&Path> {
        let above = error.site().depth?.checked_sub(1)?;
        self.trail.get(above as usize).map(PathBuf::as_path)
    }

    /// Notes a file; false if it was met before.
    fn remember(&mut self, storage: &FileStorage) -> Result<bool, Error> {
        Ok(storage.identity()?.is_none_or(|identity| self.seen.insert(identity)))
    }

    fn backing_format(&self, reference: &Reference<'_>, storage: &FileStorage) -> Result<LayerFormat, Error> {
        match reference.format {
            Some(name) => format_by_name(&name.to_string_lossy()),
            None if self.gate.policy == BackingPolicy::Follow => probe(storage),
            None => Err(Error::new(ErrorKind::Denied(format!(
                "the image does not say which format its backing file '{}' has",
                reference.name
            )))),
        }
    }

    fn try_open(&mut self, reference: &Reference<'_>, path: &Path, what: &str) -> Result<Found<FileStorage>, Error> {
        let given = reference.role == Role::DataFile && reference.depth == 0 && self.data_file.is_some();
        let access = if reference.writable { FileAccess::Write } else { FileAccess::Read };
        let storage = if given { FileStorage::open(path, access)? } else { self.gate.open(path, access, what)? };
        if !self.remember(&storage)? {
            return Err(Error::corrupt(Structure::BackingFile, "the chain leads back to a file it already has"));
        }
        let format = match reference.role {
            Role::Backing => self.backing_format(reference, &storage)?,
            Role::DataFile => LayerFormat::Raw,
        };
        if !self.force_share {
            storage.lock(lock_request(format, reference.writable))?;
        }
        Ok(Found { storage, format, identity: Some(path.display().to_string()) })
    }
}

impl Opener<FileStorage> for FileOpener {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<FileStorage>, Error> {
        if self.alone {
            return Err(Error::new(ErrorKind::Denied("not needed".into())));
        }
        let (what, structure) = match reference.role {
            Role::Backing => ("backing file", Structure::BackingFile),
            Role::DataFile => ("data file", Structure::DataFile),
        };
        let image = PathBuf::from(reference.from.unwrap_or_default());
        let path = match (&self.data_file, reference) {
            (Some(path), Reference { role: Role::DataFile, depth: 0, .. }) => path.clone(),
            _ => {
                let beside = relative_to(&image, reference.name).map_err(|error| error.in_structure(structure))?;
                match reference.role {
                    Role::DataFile if !beside.exists() => from_here(reference.name).unwrap_or(beside),
                    Role::DataFile | Role::Backing => beside,
                }
            }
        };
        if reference.role == Role::Backing {
            self.trail.push(path.clone());
        }
        let depth = reference.depth.saturating_add(u32::from(reference.role == Role::Backing));
        self.try_open(reference, &path, what).map_err(|error| error.in_structure(structure).at_depth(depth))
    }
}

/// Whether an error is that of opening a file, with the system's words for it.
#[must_use]
pub fn system_words(error: &Error) -> Option<String> {
    match error.kind() {
        ErrorKind::Storage(StorageError { kind, operation: "open", .. }) => Some(match kind {
            StorageErrorKind::Os { message, .. } | StorageErrorKind::Other(message) => message.clone(),
            StorageErrorKind::ReadOnly => "Read-only file system".into(),
            StorageErrorKind::NoSpace => "No space left on device".into(),
            StorageErrorKind::OutOfBounds => "File too large".into(),
            _ => "Operation not supported".into(),
        }),
        _ => None,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A name that was fit to be opened, and stands for something else when it is.
    #[test]
    fn what_a_name_stands_for_is_decided_on_the_open_file() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(elsewhere.path().join("secret"), "secret").unwrap();
        fs::write(folder.path().join("inside"), "inside").unwrap();
        let fifo = elsewhere.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let link = folder.path().join("link");
        let lead_to = |target: &Path| {
            let _ = fs::remove_file(&link);
            symlink(target, &link).unwrap();
        };
        let gate = Gate::new(BackingPolicy::SameDirectory, &folder.path().join("image"));
        for (swapped, denied) in [("secret", true), ("fifo", false)] {
            lead_to(Path::new("inside"));
            let between = || lead_to(&elsewhere.path().join(swapped));
            let error = gate.open_after(&link, FileAccess::Read, "backing file", between).unwrap_err();
            assert_eq!(matches!(error.kind(), ErrorKind::Denied(_)), denied, "{swapped}: {error}");
        }
        // Also where a folder on the way is what changes.
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/secret"), "inside").unwrap();
        lead_to(Path::new("sub"));
        let named = link.join("secret");
        let error = gate.open_after(&named, FileAccess::Read, "data file", || lead_to(elsewhere.path())).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Denied(_)), "{error}");

        // Links that stay inside go on being followed, and so does what was opened when its name is gone.
        lead_to(Path::new("inside"));
        let storage = gate.open(&link, FileAccess::Read, "backing file").unwrap();
        assert_eq!(storage.real_path().unwrap(), folder.path().canonicalize().unwrap().join("inside"));
        let between = || lead_to(Path::new("sub/secret"));
        gate.open_after(&link, FileAccess::Read, "backing file", between).unwrap();
    }
}
