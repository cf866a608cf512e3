//! From arguments to what will be opened, and how: everything is checked before anything is opened.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::args::{BackingChoice, OpenArgs};
use super::failure::Failure;
use super::options::OptionList;
use super::personality::Personality;
use super::runtime;
use crate::disk::{Disk, LayerView};
use crate::file::FileStorage;
use crate::open::{self, BackingPolicy, OpenRequest, format_by_name};
use qcowkit_core::image::LayerFormat;
use qcowkit_core::operations::repair::RepairPlan;

/// What every verb works with.
pub(crate) struct Session<'a> {
    /// Whose part is played.
    pub(crate) personality: Personality,
    /// Standard output, buffered.
    pub(crate) out: &'a mut dyn Write,
}

/// An image that is going to be opened.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its name.
    pub(crate) path: PathBuf,
    /// How.
    pub(crate) request: OpenRequest,
}

impl Source {
    /// Opens it.
    ///
    /// # Errors
    /// In the words of the program that is spoken for.
    pub(crate) fn open(&self, personality: Personality) -> Result<Disk, Failure> {
        let disk = open::open(&self.path, &self.request).map_err(|error| Failure::open(&error, personality))?;
        if !personality.is_own() && !self.request.alone {
            // qcowkit itself lets everything be done that needs no key.
            self.refuse_encrypted(&disk, personality)?;
        }
        Ok(disk)
    }

    fn refuse_encrypted(&self, disk: &Disk, personality: Personality) -> Result<(), Failure> {
        for (depth, layer) in (0..).zip(disk.layers()) {
            let LayerView::Qcow2(image) = layer else { continue };
            if image.header().header.crypt_method != 0 {
                let error = qcowkit_core::ErrorKind::Encrypted("no key".into()).into();
                let failed = layer.file().path().into();
                let error = open::OpenError { image: self.path.clone(), failed, depth, error };
                return Err(Failure::open(&error, personality));
            }
        }
        Ok(())
    }

    /// Opens the file alone, with its locks; tells its format.
    ///
    /// # Errors
    /// In the words of the program that is spoken for.
    pub(crate) fn open_file(&self, personality: Personality) -> Result<(FileStorage, LayerFormat), Failure> {
        open::open_file(&self.path, &self.request).map_err(|error| Failure::open(&error, personality))
    }

    /// Something that makes the image impossible to open.
    pub(crate) fn failure(&self, error: qcowkit_core::Error, personality: Personality) -> Failure {
        let path = self.path.clone();
        Failure::open(&open::OpenError { image: path.clone(), failed: path, depth: 0, error }, personality)
    }

    /// The same as it was in an internal snapshot, if one is asked for.
    ///
    /// # Errors
    /// A list of parameters that is wrong.
    pub(crate) fn of_snapshot(mut self, snapshot: Option<&OsStr>) -> Result<Self, Failure> {
        if let Some(text) = snapshot {
            self.request.options.snapshot = Some(super::snapshot_param::parse(text)?);
        }
        Ok(self)
    }

    /// The same without the files that the image names.
    #[must_use]
    pub(crate) fn alone(mut self) -> Self {
        self.request.alone = true;
        self
    }
}

impl OpenArgs {
    /// Refuses what no verb supports.
    ///
    /// # Errors
    /// The option, by name.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        refuse_objects(&self.object)
    }

    /// How `file` will be opened.
    ///
    /// # Errors
    /// Options that are wrong or not supported.
    pub(crate) fn source(
        &self,
        personality: Personality,
        file: &OsStr,
        format: Option<&str>,
        writable: bool,
    ) -> Result<Source, Failure> {
        self.check()?;
        let mut request = OpenRequest {
            backing: self.backing_policy(personality),
            force_share: self.force_share,
            data_file: self.data_file.clone(),
            repaired: if personality.is_own() { tell_repair } else { tell_repair_as_qemu },
            ..OpenRequest::default()
        };
        request.options.read_only = !writable;
        if self.image_opts {
            if format.is_some() {
                return Err(Failure::usage("--image-opts and --format are mutually exclusive"));
            }
            return image_opts(file, request);
        }
        request.format = format.map(|name| known_format(name, file)).transpose()?;
        Ok(Source { path: file.into(), request })
    }

    /// Which files that an image names may be opened.
    #[must_use]
    pub(crate) fn backing_policy(&self, personality: Personality) -> BackingPolicy {
        match self.backing_files {
            Some(BackingChoice::Deny) => BackingPolicy::Deny,
            Some(BackingChoice::SameDir) => BackingPolicy::SameDirectory,
            Some(BackingChoice::Follow) => BackingPolicy::Follow,
            None if personality.is_own() => BackingPolicy::SameDirectory,
            None => BackingPolicy::Follow,
        }
    }
}

/// Says that a dirty image was repaired because it is going to be written.
#[expect(clippy::print_stderr, reason = "the image was changed before anything was asked of it")]
fn tell_repair(path: &Path, plan: &RepairPlan) {
    eprintln!(
        "qcowkit: {}: the image was not closed properly: repaired {} refcounts and entries that were too low or wrong, \
         and {} leaked clusters",
        path.display(),
        plan.corruptions_fixed(),
        plan.leaks_fixed()
    );
}

#[expect(clippy::print_stderr, reason = "as QEMU does")]
fn tell_repair_as_qemu(_: &Path, plan: &RepairPlan) {
    for finding in &plan.findings {
        eprintln!("Repairing {finding}");
    }
}

/// A backing file that the arguments name themselves, without the files that it names in turn.
pub(crate) fn source_of_backing(path: PathBuf, request: OpenRequest) -> Source {
    Source { path, request }.alone()
}

/// Refuses `--object`.
///
/// # Errors
/// When one was given.
pub(crate) fn refuse_objects(objects: &[String]) -> Result<(), Failure> {
    match objects.first() {
        None => Ok(()),
        Some(_) => Err(Failure::usage("--object is not supported: encrypted images cannot be unlocked yet")),
    }
}

/// Refuses options that are known but not supported yet.
///
/// # Errors
/// The first that was given.
pub(crate) fn refuse(options: &[(bool, &str)]) -> Result<(), Failure> {
    match options.iter().find(|(given, _)| *given) {
        None => Ok(()),
        Some((_, name)) => Err(Failure::usage(format!("{name} is not supported"))),
    }
}

/// Checks a cache mode that changes nothing but speed in QEMU: only the default is there.
///
/// # Errors
/// Another mode.
pub(crate) fn only_writeback(mode: Option<&str>, what: &str) -> Result<(), Failure> {
    match mode {
        None | Some("writeback" | "unsafe") => Ok(()),
        Some("none" | "off" | "directsync" | "writethrough") => {
            Err(Failure::new(format!("the {what} cache mode '{}' is not supported", mode.unwrap_or_default())))
        }
        Some(other) => Err(Failure::new(format!("Invalid {what} cache option: {other}"))),
    }
}

/// Checks the cache mode of a file that is written: whether it is flushed to the disk.
///
/// # Errors
/// A mode that is not supported, or none.
pub(crate) fn target_cache(mode: Option<&str>) -> Result<bool, Failure> {
    match mode {
        None | Some("writeback" | "writethrough") => Ok(true),
        Some("unsafe") => Ok(false),
        Some(mode @ ("none" | "off" | "directsync")) => {
            Err(Failure::new(format!("the cache mode '{mode}' is not supported")))
        }
        Some(other) => Err(Failure::new(format!("Invalid cache option: {other}"))),
    }
}

/// The one file of a verb.
///
/// # Errors
/// None, or more than one.
pub(crate) fn one_file(files: &[OsString]) -> Result<&OsStr, Failure> {
    match files {
        [file] => Ok(file),
        _ => Err(Failure::usage("Expecting one image file name")),
    }
}

/// A size or offset among the arguments.
///
/// # Errors
/// When it is none.
pub(crate) fn size_argument(text: &str, what: &str) -> Result<u64, Failure> {
    super::size::parse(text).map_err(|_| Failure::new(format!("Invalid {what} specified: '{text}'.")))
}

fn known_format(name: &str, file: &OsStr) -> Result<LayerFormat, Failure> {
    format_by_name(name)
        .map_err(|_| Failure::new(format!("Could not open '{}': Unknown driver '{name}'", file.display())))
}

/// `driver=qcow2,file.filename=NAME,key=value,...`
fn image_opts(text: &OsStr, mut request: OpenRequest) -> Result<Source, Failure> {
    let Some(text) = text.to_str() else { return Err(Failure::usage("--image-opts with a name that is not UTF-8")) };
    let list = OptionList::parse(&[text]).map_err(|error| Failure::usage(error.to_string()))?;
    let mut path = None;
    for (key, value) in &list.entries {
        match key.as_str() {
            "driver" => request.format = Some(known_format(value, OsStr::new(text))?),
            "file.filename" | "filename" => path = Some(PathBuf::from(value)),
            "data-file.filename" | "data-file.file.filename" => request.data_file = Some(PathBuf::from(value)),
            "data-file.driver" | "data-file.file.driver"
                if matches!(value.as_str(), "file" | "raw" | "host_device") => {}
            "file.driver" if value == "file" || value == "host_device" => {}
            // Passes discards on to the file, which is what the image's own option decides here.
            "file.discard" => {
                let passes = runtime::discard_mode(value).map_err(Failure::usage)?;
                request.options.policy.pass.request &= passes;
            }
            "force-share" => {
                request.force_share |= super::options::boolean(key, value).map_err(Failure::usage)?;
            }
            _ => runtime::set(&mut request.options, key, value).map_err(Failure::usage)?,
        }
    }
    let path = path.ok_or_else(|| Failure::usage("--image-opts needs file.filename=NAME"))?;
    Ok(Source { path, request })
}
