//! From arguments to what will be opened, and how: everything is checked before anything is opened.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::args::{BackingChoice, ImageArgs, KeyArgs, OpenArgs};
use super::failure::Failure;
use super::options::OptionList;
use super::personality::Personality;
use super::runtime;
use super::secrets::Secrets;
use super::terminal::tell;
use crate::disk::{Disk, LayerView};
use crate::file::FileStorage;
use crate::open::{self, BackingPolicy, OpenRequest, format_by_name};
use qcowkit_core::ErrorKind;
use qcowkit_core::crypto::{EncryptionMethod, Keyring, Secret};
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
    /// Keys for its layers.
    ring: Keyring,
    /// The keys that the arguments name, with what else they say of keys.
    keys: KeyArgs,
    /// Guest data are going to be read or written: without a key there is nothing to do.
    needs_data: bool,
    /// What layers are said to be encrypted with.
    methods: Vec<(u32, EncryptionMethod)>,
    /// Options that raw files do not have: how deep the layer lies, and the name.
    for_qcow2: Vec<(u32, String)>,
    /// The list of options that stood in place of a name.
    options_given: Option<String>,
    /// Others are opened with the same arguments: [`OpenArgs::one_data_file`] sees to the data file.
    one_of_several: bool,
}

impl Source {
    fn new(path: PathBuf, request: OpenRequest) -> Self {
        Self {
            path,
            request,
            ring: Keyring::new(),
            keys: KeyArgs::default(),
            needs_data: false,
            methods: Vec::new(),
            for_qcow2: Vec::new(),
            options_given: None,
            one_of_several: false,
        }
    }

    fn with_keys(mut self, keys: &KeyArgs) -> Result<Self, Failure> {
        self.ring = keys.ring()?;
        self.keys = keys.clone();
        self.keys.supply(&mut self.request.options, &self.ring, false);
        Ok(self)
    }

    /// Another file, with the same keys.
    #[must_use]
    pub(crate) fn for_file(&self, path: PathBuf, request: OpenRequest) -> Self {
        Self { path, request, ..self.clone() }
    }

    /// Opens it.
    ///
    /// # Errors
    /// In the words of the program that is spoken for.
    pub(crate) fn open(&self, personality: Personality) -> Result<Disk, Failure> {
        let disk = open::open(&self.path, &self.request).map_err(|error| {
            let failure = self.named(Failure::open(&error, personality), personality);
            match error.error.kind() {
                ErrorKind::WrongKey(_) if personality.is_own() => self.keys.hint(failure),
                _ => failure,
            }
        })?;
        self.check_options(&disk, personality)?;
        self.check_methods(&disk, personality)?;
        if !self.request.alone && (self.needs_data || !personality.is_own()) {
            // qcowkit itself lets everything be done that needs no key.
            self.refuse_locked(&disk, personality)?;
        }
        Ok(disk)
    }

    /// qemu-img names an image by the options that it was given.
    fn named(&self, failure: Failure, personality: Personality) -> Failure {
        match &self.options_given {
            Some(given) if personality == Personality::QemuImg => {
                let by_name = format!("Could not open '{}'", self.path.display());
                let message = failure.message.replacen(&by_name, &format!("Could not open '{given}'"), 1);
                Failure { message, ..failure }
            }
            _ => failure,
        }
    }

    /// The same for reading or writing guest data: keys that are missing are asked for, if there is a terminal.
    #[must_use]
    pub(crate) fn for_data(mut self, personality: Personality) -> Self {
        self.needs_data = true;
        self.with_prompt(personality)
    }

    /// The same with keys asked for that are missing, if there is a terminal.
    #[must_use]
    pub(crate) fn with_prompt(mut self, personality: Personality) -> Self {
        self.keys.supply(&mut self.request.options, &self.ring, personality.is_own());
        self
    }

    /// Adds a key for all layers.
    pub(crate) fn add_key(&mut self, secret: Secret) {
        self.ring = std::mem::take(&mut self.ring).with(secret);
        self.keys.supply(&mut self.request.options, &self.ring, false);
    }

    /// Sets an option of the open image, or of one below it as far as that is about keys.
    ///
    /// # Errors
    /// An option that does not exist, or is not supported; a value that it does not take.
    pub(crate) fn set(&mut self, key: &str, value: &str, secrets: &Secrets) -> Result<(), Failure> {
        let mut own = key;
        let mut depth = 0;
        while let Some(below) = own.strip_prefix("backing.") {
            (own, depth) = (below, depth + 1);
        }
        if !runtime::is_for_all_formats(own) {
            self.for_qcow2.push((depth, own.to_owned()));
        }
        match own {
            "encrypt.key-secret" => {
                let secret = secrets.find(value).map_err(Failure::new)?.clone();
                self.ring = std::mem::take(&mut self.ring).with_layer(depth, secret);
                self.keys.supply(&mut self.request.options, &self.ring, false);
                Ok(())
            }
            "encrypt.format" => {
                let method = match value {
                    "aes" => EncryptionMethod::Aes,
                    "luks" => EncryptionMethod::Luks,
                    _ => return Err(Failure::usage(format!("Parameter '{key}' does not accept value '{value}'"))),
                };
                self.methods.push((depth, method));
                Ok(())
            }
            _ => runtime::set(&mut self.request.options, key, value).map_err(Failure::usage),
        }
    }

    /// Options that the image, or the layer that they are for, cannot have are errors, as in QEMU.
    fn check_options(&self, disk: &Disk, personality: Personality) -> Result<(), Failure> {
        let layers = disk.layers();
        let refused = |depth: u32, what: String| {
            let failed = layers.get(depth as usize).map_or(self.path.as_path(), |layer| layer.file().path()).into();
            let error = qcowkit_core::Error::invalid(what);
            let error = open::OpenError { image: self.path.clone(), failed, depth, error };
            Err(self.named(Failure::open(&error, personality), personality))
        };
        for (depth, name) in &self.for_qcow2 {
            let above = layers.get((*depth as usize).saturating_sub(1));
            match (layers.get(*depth as usize), above) {
                (Some(LayerView::Qcow2(_)), _) => {}
                (Some(LayerView::Raw(..)), _) => {
                    return refused(*depth, format!("Block format 'raw' does not support the option '{name}'"));
                }
                // Not opened, but there.
                (None, Some(LayerView::Qcow2(image))) if image.header().backing_file.is_some() => {}
                (None, _) if personality.is_own() => {
                    let prefix = "backing.".repeat(*depth as usize);
                    return refused(0, format!("there is no backing file for the option '{prefix}{name}'"));
                }
                (None, _) => return refused(*depth, "Must specify either driver or file".into()),
            }
        }
        if self.request.data_file.is_some() && !self.one_of_several && !has_data_file(disk) {
            return refused(0, "'data-file' can only be set for images with an external data file".into());
        }
        Ok(())
    }

    fn check_methods(&self, disk: &Disk, personality: Personality) -> Result<(), Failure> {
        let layers = disk.layers();
        for (depth, said) in &self.methods {
            let Some(LayerView::Qcow2(image)) = layers.get(*depth as usize) else { continue };
            let name = |method: EncryptionMethod| method.name().to_ascii_lowercase();
            let what = match image.encryption() {
                Some(method) if method == *said => continue,
                Some(method) => format!(
                    "Header reported '{}' encryption format but options specify '{}'",
                    name(method),
                    name(*said)
                ),
                None => format!("No encryption in image header, but options specified format '{}'", name(*said)),
            };
            let failed = image.storage().path().into();
            let error = qcowkit_core::Error::invalid(what);
            let error = open::OpenError { image: self.path.clone(), failed, depth: *depth, error };
            return Err(self.named(Failure::open(&error, personality), personality));
        }
        Ok(())
    }

    fn refuse_locked(&self, disk: &Disk, personality: Personality) -> Result<(), Failure> {
        for (depth, layer) in (0..).zip(disk.layers()) {
            let LayerView::Qcow2(image) = layer else { continue };
            if let Some(method) = image.encryption().filter(|_| image.is_locked()) {
                let error = ErrorKind::Encrypted(method.name().into()).into();
                let failed = layer.file().path().into();
                let error = open::OpenError { image: self.path.clone(), failed, depth, error };
                return Err(self.named(Failure::open(&error, personality), personality));
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

    /// The same as one of several images, of which one may have the data file that the arguments name.
    #[must_use]
    pub(crate) fn one_of_several(mut self) -> Self {
        self.one_of_several = self.options_given.is_none();
        self
    }

    /// The same without the files that the image names.
    #[must_use]
    pub(crate) fn alone(mut self) -> Self {
        self.request.alone = true;
        // What the image says of itself needs no key.
        self.request.options.keys = None;
        self
    }
}

impl ImageArgs {
    /// The one image that is meant, and how it is opened.
    ///
    /// # Errors
    /// No image or several; names and options that make no sense.
    pub(crate) fn source(&self, personality: Personality, writable: bool) -> Result<Source, Failure> {
        self.open.source(personality, one_file(&self.files)?, self.format.as_deref(), writable)
    }
}

impl OpenArgs {
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
        let secrets = self.change.keys.secrets(personality)?;
        let mut request = OpenRequest {
            backing: self.backing_policy(personality),
            force_share: self.force_share,
            data_file: self.change.data_file.clone(),
            repaired: if personality.is_own() { tell_repair } else { tell_repair_as_qemu },
            ..OpenRequest::default()
        };
        request.options.read_only = !writable;
        if self.change.image_opts {
            if format.is_some() {
                return Err(Failure::usage("--image-opts and --format are mutually exclusive"));
            }
            let source = Source::new(PathBuf::new(), request).with_keys(&self.change.keys)?;
            return image_opts(file, source, &secrets).map_err(|failure| match personality {
                Personality::QemuImg if failure.message.starts_with("No secret with id") => {
                    Failure::new(format!("Could not open '{}': {}", file.display(), failure.message))
                }
                _ => failure,
            });
        }
        request.format = format.map(|name| known_format(name, file)).transpose()?;
        Source::new(file.into(), request).with_keys(&self.change.keys)
    }

    /// Sees to it that the data file which the arguments name is that of one of these images.
    ///
    /// # Errors
    /// None of them, or more than one, has a data file.
    pub(crate) fn one_data_file<'d>(&self, disks: impl IntoIterator<Item = &'d Disk>) -> Result<(), Failure> {
        if self.change.data_file.is_none() || self.change.image_opts {
            return Ok(());
        }
        match disks.into_iter().filter(|disk| has_data_file(disk)).count() {
            1 => Ok(()),
            0 => Err(Failure::new("--data-file can only be given for images with an external data file")),
            _ => Err(Failure::new("--data-file names the file of one image: name those of several by --image-opts")),
        }
    }

    /// The same without a data file, for another image than that whose it is.
    #[must_use]
    pub(crate) fn without_data_file(&self) -> Self {
        let mut other = self.clone();
        other.change.data_file = None;
        other
    }

    /// Which files that an image names may be opened.
    #[must_use]
    pub(crate) fn backing_policy(&self, personality: Personality) -> BackingPolicy {
        match self.change.backing_files {
            Some(BackingChoice::Deny) => BackingPolicy::Deny,
            Some(BackingChoice::SameDir) => BackingPolicy::SameDirectory,
            Some(BackingChoice::Follow) => BackingPolicy::Follow,
            None if personality.is_own() => BackingPolicy::SameDirectory,
            None => BackingPolicy::Follow,
        }
    }
}

fn has_data_file(disk: &Disk) -> bool {
    disk.image().is_some_and(|image| image.geometry().data_file())
}

/// Says that a dirty image was repaired because it is going to be written.
fn tell_repair(path: &Path, plan: &RepairPlan) {
    let text = format!(
        "qcowkit: {}: the image was not closed properly: repaired {} refcounts and entries that were too low or wrong, \
         and {} leaked clusters",
        path.display(),
        plan.corruptions_fixed(),
        plan.leaks_fixed()
    );
    tell(&text, true);
}

fn tell_repair_as_qemu(_: &Path, plan: &RepairPlan) {
    for finding in &plan.findings {
        tell(&format!("Repairing {finding}"), false);
    }
}

/// A backing file that the arguments name themselves, without the files that it names in turn.
pub(crate) fn source_of_backing(path: PathBuf, request: OpenRequest) -> Source {
    Source::new(path, request).alone()
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
fn image_opts(text: &OsStr, mut source: Source, secrets: &Secrets) -> Result<Source, Failure> {
    let Some(text) = text.to_str() else { return Err(Failure::usage("--image-opts with a name that is not UTF-8")) };
    let list = OptionList::parse(&[text]).map_err(|error| Failure::usage(error.to_string()))?;
    let mut path = None;
    for (key, value) in &list.entries {
        match key.as_str() {
            "driver" => source.request.format = Some(known_format(value, OsStr::new(text))?),
            "file.filename" | "filename" => path = Some(PathBuf::from(value)),
            "data-file.filename" | "data-file.file.filename" => source.request.data_file = Some(PathBuf::from(value)),
            "data-file.driver" | "data-file.file.driver"
                if matches!(value.as_str(), "file" | "raw" | "host_device") => {}
            "file.driver" if value == "file" || value == "host_device" => {}
            // Passes discards on to the file, which is what the image's own option decides here.
            "file.discard" => {
                let passes = runtime::discard_mode(value).map_err(Failure::usage)?;
                source.request.options.policy.pass.request &= passes;
            }
            "force-share" => {
                source.request.force_share |= super::options::boolean(key, value).map_err(Failure::usage)?;
            }
            _ => source.set(key, value, secrets)?,
        }
    }
    source.options_given = Some(text.to_owned());
    source.path = path.ok_or_else(|| Failure::usage("--image-opts needs file.filename=NAME"))?;
    Ok(source)
}
