//! Opening an image and the files that it names.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::encryption::Encryption;
use super::{Image, Layer, OpenOptions};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{Header, HeaderArea, MAX_CHAIN_DEPTH, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Name};
use crate::metadata::Metadata;
use crate::storage::{ReadStorage, Storage};

/// Why an image names another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The layer below.
    Backing,
    /// The external data file.
    DataFile,
}

/// A file that an image names. The name is untrusted input.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// What for.
    pub role: Role,
    /// The name as it stands in the image; empty for a data file that the image does not name.
    pub name: &'a Name,
    /// The format that the image claims for it, if it does (backing files).
    pub format: Option<&'a Name>,
    /// How deep the image that names it lies in the chain; 0 is the top.
    pub depth: u32,
    /// What [`Found::identity`] was for the image that names it, for names relative to its place.
    pub from: Option<&'a str>,
    /// The file is going to be written.
    pub writable: bool,
}

/// The format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum LayerFormat {
    /// Bytes of the disk, as they are.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl LayerFormat {
    /// The format that the first bytes show: qcow2 by its magic, else raw. Probing lets a guest that writes a qcow2
    /// header into a raw disk choose files to be opened; do it only when asked.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn probe(storage: &impl ReadStorage) -> Result<Self> {
        let mut magic = [0u8; 8];
        storage.read_at(0, &mut magic)?;
        Ok(match magic {
            [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2..=3] => Self::Qcow2,
            _ => Self::Raw,
        })
    }
}

/// What an opener found behind a name.
#[derive(Debug)]
pub struct Found<S> {
    /// The file.
    pub storage: S,
    /// Its format. For data files it does not matter.
    pub format: LayerFormat,
    /// What tells this file from every other (a canonical path, say): a chain that meets it twice is refused.
    pub identity: Option<String>,
}

/// Opens the files that images name: the caller's decision, never this crate's.
pub trait Opener<S> {
    /// Opens what `reference` names, or refuses.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when it may not be opened; any other when it cannot be.
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<S>>;
}

/// The opener that refuses everything: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowNone;

impl<S> Opener<S> for AllowNone {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<S>> {
        let (what, structure) = match reference.role {
            Role::Backing => ("backing file", Structure::BackingFile),
            Role::DataFile => ("data file", Structure::DataFile),
        };
        Err(Error::new(ErrorKind::Denied(format!("the image names the {what} '{}'", reference.name)))
            .in_structure(structure)
            .at_depth(reference.depth))
    }
}

impl<S: Storage> Image<S> {
    /// Opens an image. Files that it names are refused (see [`Image::open_with`]).
    ///
    /// # Errors
    /// Not a qcow2 image, a header that contradicts itself, features that are not known (named), limits exceeded, a
    /// named file, a storage that fails.
    pub fn open(storage: S, options: OpenOptions) -> Result<Self> {
        Self::open_with(storage, None, options, &mut AllowNone)
    }

    /// Opens an image with its backing chain and data file, which `opener` finds. `identity` is the image's own, as in
    /// [`Found::identity`].
    ///
    /// Backing files are opened read-only, except [`OpenOptions::writable_backing`]. A chain longer than 200 layers, or one that meets a file twice, is refused.
    /// With [`OpenOptions::ignore_missing_files`], what `opener` refuses is left out instead.
    ///
    /// # Errors
    /// As [`Image::open`]; what `opener` says.
    pub fn open_with(
        storage: S,
        identity: Option<String>,
        options: OpenOptions,
        opener: &mut dyn Opener<S>,
    ) -> Result<Self> {
        let mut seen: Vec<String> = Vec::new();
        let mut layers = vec![(Self::open_layer(storage, options.clone(), 0, identity.as_deref())?, identity)];
        let mut bottom = None;
        // From the top down, in a loop: a chain's depth must not be the stack's.
        while let Some((image, identity)) = layers.last_mut() {
            let depth = u32::try_from(seen.len()).unwrap_or(u32::MAX);
            seen.push(identity.clone().unwrap_or_default());
            image.open_data_file(identity.as_deref(), depth, opener)?;
            let Some(found) = image.find_backing(identity.as_deref(), depth, opener)? else { break };
            if found.identity.as_ref().is_some_and(|identity| seen.contains(identity)) {
                return Err(
                    Error::corrupt(Structure::BackingFile, "the backing chain leads back to itself").at_depth(depth)
                );
            }
            if depth.saturating_add(1) >= MAX_CHAIN_DEPTH {
                return Err(Error::new(ErrorKind::Limit(format!(
                    "backing chain longer than {MAX_CHAIN_DEPTH} layers"
                )))
                .in_structure(Structure::BackingFile)
                .at_depth(depth));
            }
            match found.format {
                LayerFormat::Raw => {
                    // As QEMU does, the disk is taken to end at a sector.
                    let length = found.storage.len()?.div_ceil(512).saturating_mul(512);
                    bottom = Some(Layer::Raw { storage: found.storage, length });
                    break;
                }
                LayerFormat::Qcow2 => {
                    let depth = depth.saturating_add(1);
                    let writable = options.writable_backing == Some(depth);
                    let below = if writable { options.clone() } else { options.clone().read_only() };
                    let below = OpenOptions { snapshot: None, ..below };
                    let identity = found.identity.as_deref();
                    let below =
                        Self::open_layer(found.storage, below, depth, identity).map_err(|e| e.at_depth(depth))?;
                    layers.push((below, found.identity));
                }
            }
        }
        Self::stack(layers, bottom)
    }

    /// Puts the layers on top of each other.
    fn stack(layers: Vec<(Self, Option<String>)>, bottom: Option<Layer<S>>) -> Result<Self> {
        let mut below = bottom;
        let mut top = None;
        for (mut image, _) in layers.into_iter().rev() {
            if let Some(upper) = top.take() {
                below = Some(Layer::Image(Box::new(upper)));
            }
            image.backing = below.take();
            top = Some(image);
        }
        top.ok_or_else(|| Error::invalid("no layer to open"))
    }

    /// Opens one layer: header, L1 table and refcount table.
    fn open_layer(storage: S, mut options: OpenOptions, depth: u32, identity: Option<&str>) -> Result<Self> {
        // A view is never written: its tables are not counted as the active ones.
        options.read_only |= options.snapshot.is_some();
        let header = read_header(&storage)?;
        let geometry = header.validate(Some(storage.len()?))?;
        let (header, geometry) = match &options.snapshot {
            None => (header, geometry),
            Some(selector) => super::snapshots::view(header, &geometry, selector, &storage)?,
        };
        let encryption = Encryption::open(&header, &storage, &options, depth, identity)?;
        let mut metadata = Metadata::load(&storage, header, geometry, options.metadata.clone())?;
        metadata.set_overlap_checks(options.overlap);
        Ok(Self {
            storage,
            metadata,
            backing: None,
            data_file: None,
            options,
            encryption,
            data_unsynced: false,
            mapping_due: false,
            writing: false,
            open_plans: 0,
            recorder: super::bitmaps::Recorder::default(),
            unpacked: None,
        })
    }

    fn open_data_file(&mut self, from: Option<&str>, depth: u32, opener: &mut dyn Opener<S>) -> Result<()> {
        if !self.geometry().data_file() {
            return Ok(());
        }
        let unnamed = Name::new([]);
        let name = self.header().data_file();
        let named = name.is_some();
        let name = name.unwrap_or(&unnamed);
        let writable = !self.options.read_only;
        let reference = Reference { role: Role::DataFile, name, format: None, depth, from, writable };
        match opener.open(&reference) {
            Ok(found) => self.data_file = Some(found.storage),
            Err(_) if self.options.ignore_missing_files => {}
            Err(_) if !named => {
                let error = Error::corrupt(Structure::DataFile, "the image does not name its data file");
                return Err(error.at_depth(depth));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn find_backing(&self, from: Option<&str>, depth: u32, opener: &mut dyn Opener<S>) -> Result<Option<Found<S>>> {
        let Some(name) = &self.header().backing_file else { return Ok(None) };
        let format = self.header().backing_format();
        let writable = self.options.writable_backing == Some(depth.saturating_add(1));
        let reference = Reference { role: Role::Backing, name, format, depth, from, writable };
        match opener.open(&reference) {
            Ok(found) => Ok(Some(found)),
            Err(_) if self.options.ignore_missing_files => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the image another layer below, in place of none: for callers that open chains by themselves.
    #[must_use]
    pub fn with_backing(mut self, layer: Layer<S>) -> Self {
        self.backing = Some(layer);
        self
    }
}

/// Reads the first cluster and parses what it holds, without judging it.
///
/// # Errors
/// Not a qcow2 image, a header cut short, a storage that fails.
pub fn read_header<S: ReadStorage + ?Sized>(storage: &S) -> Result<HeaderArea> {
    let length = storage.len()?;
    let mut start = vec![0u8; usize::try_from(length.min(512)).unwrap_or(512)];
    storage.read_at(0, &mut start)?;
    let bits = Header::parse(&start)?.cluster_bits.clamp(MIN_CLUSTER_BITS, MAX_CLUSTER_BITS);
    let cluster = length.min(1u64.wrapping_shl(bits));
    let mut bytes = vec![0u8; usize::try_from(cluster).unwrap_or(512)];
    storage.read_at(0, &mut bytes)?;
    HeaderArea::parse(&bytes)
}
