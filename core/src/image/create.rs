//! Making a new image.

use alloc::string::String;
#[cfg(feature = "crypto-aes")]
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::{Image, OpenOptions};
use crate::codec::CompressionType;
#[cfg(feature = "crypto-aes")]
use crate::crypto::NewVolume;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{
    AutoclearFeatures, CompatibleFeatures, Extension, FeatureName, Geometry, Header, HeaderArea, HostOffset,
    IncompatibleFeatures, Name, encode_refcount_table_entry, write_refcount,
};
use crate::storage::{Storage, ZeroMode};

/// How much is reserved when an image is made or grown (QEMU: `preallocation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables and mapping; the data clusters are holes of the file.
    Metadata,
    /// Also the space of the data clusters, unwritten.
    Falloc,
    /// Also zeros written to it.
    Full,
}

/// What a new image is like. The defaults are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Format version: 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Bytes of a cluster: a power of two, 512 bytes to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
    pub refcount_bits: u32,
    /// Extended L2 entries: 32 subclusters in each cluster, of at least 512 bytes each. Version 3.
    pub extended_l2: bool,
    /// Lets programs postpone refcount updates, at the price of a repair after a crash. Version 3. qcowkit keeps
    /// refcounts exact all the same.
    pub lazy_refcounts: bool,
    /// How compressed clusters are packed. Anything but zlib needs version 3.
    pub compression: CompressionType,
    /// The name of the backing file, stored as it is given.
    pub backing_file: Option<String>,
    /// The format of the backing file.
    pub backing_format: Option<String>,
    /// The name of the external data file, stored as it is given: guest data go there. Version 3. See
    /// [`Image::create_with_data_file`].
    pub data_file: Option<String>,
    /// The data file stays valid as a raw image of the disk. Needs one, and no backing file.
    pub data_file_raw: bool,
    /// What is reserved.
    pub preallocation: Preallocation,
    /// The LUKS volume that guest data are encrypted with, if they are to be.
    #[cfg(feature = "crypto-aes")]
    pub encryption: Option<Arc<NewVolume>>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compression: CompressionType::Zlib,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            #[cfg(feature = "crypto-aes")]
            encryption: None,
        }
    }
}

/// Where the tables of a new image lie, in clusters: header, refcount table, refcount blocks, L1 table, encryption
/// header.
struct Plan {
    geometry: Geometry,
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
    encryption_header: u64,
}

impl CreateOptions {
    /// Checks the options together with a size; gives the geometry. Nothing is written.
    ///
    /// # Errors
    /// What is out of range, or does not go together, by name.
    pub fn validate(&self, size: u64) -> Result<Geometry> {
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return Err(Error::invalid("cluster size must be a power of two between 512 and 2048k"));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(Error::invalid("refcount width must be a power of two and may not exceed 64 bits"));
        }
        if !(2..=3).contains(&self.version) {
            return Err(Error::invalid("format version must be 2 (compat=0.10) or 3 (compat=1.1)"));
        }
        if self.version < 3 {
            let needs = [
                (self.refcount_bits != 16, "refcount widths other than 16 bits"),
                (self.lazy_refcounts, "lazy refcounts"),
                (self.extended_l2, "extended L2 entries"),
                (self.compression != CompressionType::Zlib, "compression types other than zlib"),
                (self.data_file.is_some(), "external data files"),
            ];
            if let Some((_, what)) = needs.iter().find(|(wanted, _)| *wanted) {
                return Err(Error::invalid(alloc::format!("{what} need compat=1.1 or later")));
            }
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(Error::invalid("data-file-raw requires data-file"));
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(Error::invalid("Backing file and data-file-raw cannot be used at the same time"));
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return Err(Error::invalid("extended L2 entries need clusters of at least 16 KiB"));
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return Err(Error::invalid("a backing format without a backing file"));
        }
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(Error::invalid("a backing file and preallocation go together with extended L2 entries only"));
        }
        let (bits, order) = (self.cluster_size.trailing_zeros(), self.refcount_bits.trailing_zeros());
        let geometry = Geometry::new(self.version, bits, order, self.extended_l2, self.data_file.is_some(), size)
            .ok_or_else(|| Error::invalid("the virtual size is beyond what the format holds"))?;
        if geometry.l1_entries().saturating_mul(8) > crate::format::MAX_L1_BYTES {
            return Err(Error::invalid(
                "the image is too large for its cluster size: its L1 table would exceed 32 MiB",
            ));
        }
        Ok(geometry)
    }

    /// Bytes of the encryption header, if there is to be one.
    fn encryption_header_bytes(&self) -> Option<u64> {
        #[cfg(feature = "crypto-aes")]
        return self.encryption.as_ref().map(|volume| volume.header_bytes());
        #[cfg(not(feature = "crypto-aes"))]
        None
    }

    fn header(&self, plan: &Plan) -> HeaderArea {
        let geometry = &plan.geometry;
        let mut header = Header::new(self.version, geometry.cluster_bits(), geometry.virtual_size());
        header.refcount_order = geometry.refcount_order();
        let cluster = |n: u64| n.saturating_mul(geometry.cluster_size());
        header.refcount_table_offset = cluster(1);
        header.refcount_table_clusters = u32::try_from(plan.refcount_table).unwrap_or(u32::MAX);
        // A disk of no bytes has no table.
        header.l1_table_offset = if plan.l1 == 0 { 0 } else { cluster(plan.l1_start()) };
        header.l1_size = u32::try_from(geometry.l1_entries()).unwrap_or(u32::MAX);
        header.compression_type = self.compression.to_u8();
        for (wanted, feature) in [
            (self.extended_l2, IncompatibleFeatures::EXTENDED_L2),
            (self.compression != CompressionType::Zlib, IncompatibleFeatures::COMPRESSION_TYPE),
            (self.data_file.is_some(), IncompatibleFeatures::DATA_FILE),
        ] {
            if wanted {
                header.incompatible = header.incompatible.with(feature);
            }
        }
        if self.lazy_refcounts {
            header.compatible = header.compatible.with(CompatibleFeatures::LAZY_REFCOUNTS);
        }
        if self.data_file_raw {
            header.autoclear = header.autoclear.with(AutoclearFeatures::DATA_FILE_RAW);
        }
        let mut area = HeaderArea::new(header);
        if let Some(name) = &self.data_file {
            area.extensions.push(Extension::DataFile(Name::from(name.as_str())));
        }
        if let Some(format) = &self.backing_format {
            area.extensions.push(Extension::BackingFormat(Name::from(format.as_str())));
        }
        if let Some(length) = self.encryption_header_bytes() {
            header_area_is_encrypted(&mut area, cluster(plan.encryption_start()), length);
        }
        if self.version >= 3 && geometry.cluster_size() >= 1024 {
            // Names for the features, so that a program that lacks one can say which. Too long for 512-byte clusters.
            area.extensions.push(Extension::FeatureNames(FeatureName::standard_table()));
        }
        area.backing_file = self.backing_file.as_deref().map(Name::from);
        area
    }
}

impl Plan {
    fn new(geometry: Geometry, encryption_header_bytes: u64) -> Self {
        let l1 = geometry.clusters_for(geometry.l1_entries().saturating_mul(8));
        let encryption_header = geometry.clusters_for(encryption_header_bytes);
        let mut plan = Self { geometry, refcount_table: 1, refcount_blocks: 1, l1, encryption_header };
        // Blocks and table count themselves, so they may need another round; each only grows.
        loop {
            let blocks = plan.clusters().div_ceil(geometry.refcount_block_entries());
            let table = geometry.clusters_for(blocks.saturating_mul(8));
            if (blocks, table) == (plan.refcount_blocks, plan.refcount_table) {
                return plan;
            }
            plan.refcount_blocks = blocks.max(plan.refcount_blocks);
            plan.refcount_table = table.max(plan.refcount_table);
            if blocks < plan.refcount_blocks || table < plan.refcount_table {
                return plan;
            }
        }
    }

    fn l1_start(&self) -> u64 {
        self.refcount_table.saturating_add(self.refcount_blocks).saturating_add(1)
    }

    fn encryption_start(&self) -> u64 {
        self.l1_start().saturating_add(self.l1)
    }

    fn clusters(&self) -> u64 {
        self.encryption_start().saturating_add(self.encryption_header)
    }

    /// Writes the encryption header with the key material of its first slot; the other slots are holes.
    #[cfg(feature = "crypto-aes")]
    fn write_volume(&self, storage: &impl Storage, volume: &NewVolume) -> Result<()> {
        let size = self.geometry.cluster_size();
        let offset = self.encryption_start().saturating_mul(size);
        storage.write_zeroes(offset, self.encryption_header.saturating_mul(size), ZeroMode::MayUnmap)?;
        for (at, bytes) in volume.parts() {
            storage.write_at(offset.saturating_add(at), &bytes)?;
        }
        Ok(())
    }

    /// Writes the tables: nothing refers to them until the header is there.
    fn write_tables(&self, storage: &impl Storage) -> Result<()> {
        let geometry = &self.geometry;
        let size = geometry.cluster_size();
        let cluster_bytes =
            |clusters: u64| vec![0u8; usize::try_from(clusters).unwrap_or(0).saturating_mul(geometry.cluster_len())];
        let mut blocks = cluster_bytes(self.refcount_blocks);
        for cluster in 0..self.clusters() {
            // Blocks lie side by side, so that the index runs through all of them.
            let _ = write_refcount(&mut blocks, cluster, geometry.refcount_order(), 1);
        }
        let mut table: Vec<u8> = (0..self.refcount_blocks)
            .map(|n| self.refcount_table.saturating_add(1).saturating_add(n).saturating_mul(size))
            .flat_map(|offset| encode_refcount_table_entry(Some(HostOffset::new(offset))).to_be_bytes())
            .collect();
        table.resize(cluster_bytes(self.refcount_table).len(), 0);
        write_table(storage, size, &table)?;
        write_table(storage, self.refcount_table.saturating_add(1).saturating_mul(size), &blocks)?;
        // A hole reads as an empty table; what is never filled takes no space.
        let l1_offset = self.l1_start().saturating_mul(size);
        let l1_length = self.l1.saturating_mul(size);
        storage.write_zeroes(l1_offset, l1_length, ZeroMode::MayUnmap)?;
        Ok(())
    }
}

/// Says that guest data are encrypted by the LUKS volume whose header is at `offset`.
fn header_area_is_encrypted(area: &mut HeaderArea, offset: u64, length: u64) {
    area.header.crypt_method = 2;
    area.extensions.push(Extension::CryptoHeader { offset, length });
}

/// Gives a data file its length. A device keeps what it holds, unless it has to read as the disk does.
fn empty_data_file(data: &impl Storage, size: u64, raw: bool) -> Result<()> {
    let file = |error| Error::from(error).in_structure(Structure::DataFile);
    if data.capabilities().grows {
        data.set_len(0).and_then(|()| data.set_len(size)).map_err(file)?;
    } else if data.len().map_err(file)? < size {
        return Err(Error::new(ErrorKind::NoSpace("the device is too small for the data file".into()))
            .in_structure(Structure::DataFile));
    } else if raw {
        data.write_zeroes(0, size, ZeroMode::MayUnmap).map_err(file)?;
    }
    data.barrier().map_err(file)
}

/// Writes a table where it was never written before: of a file that was just cut, the zeros at its end are there.
fn write_table(storage: &impl Storage, offset: u64, bytes: &[u8]) -> Result<()> {
    let used = match bytes.iter().rposition(|&byte| byte != 0) {
        Some(last) if storage.capabilities().grows => last.saturating_add(1),
        None if storage.capabilities().grows => 0,
        Some(_) | None => bytes.len(),
    };
    storage.write_at(offset, bytes.get(..used).unwrap_or(bytes))?;
    Ok(())
}

impl<S: Storage> Image<S> {
    /// Makes a new image of `size` bytes (rounded up to 512) on `storage`, whose old contents are lost, and opens it.
    /// Durable on return. The backing file, if one is named, is not opened.
    ///
    /// # Errors
    /// Options that are out of range or do not go together (nothing is written then); a storage that fails or is too
    /// small; options with a data file (see [`Image::create_with_data_file`]).
    pub fn create(storage: S, size: u64, options: &CreateOptions) -> Result<Self> {
        Self::create_with(storage, size, options, OpenOptions::default())
    }

    /// As [`Image::create`], opened with other options than the defaults.
    ///
    /// # Errors
    /// As [`Image::create`].
    pub fn create_with(storage: S, size: u64, options: &CreateOptions, open: OpenOptions) -> Result<Self> {
        if options.data_file.is_some() {
            return Err(Error::invalid("the image needs its data file to be made"));
        }
        Self::create_on(storage, None, size, options, open)
    }

    /// Makes a new image whose guest data are in `data`, of which the old contents are lost, too. The name in the
    /// options is what the image says; it is not looked at.
    ///
    /// A raw data file is mapped from the start, as QEMU does, so that tables change no more.
    ///
    /// # Errors
    /// As [`Image::create`]; options without a data file.
    pub fn create_with_data_file(
        storage: S,
        data: S,
        size: u64,
        options: &CreateOptions,
        open: OpenOptions,
    ) -> Result<Self> {
        if options.data_file.is_none() {
            return Err(Error::invalid("the options name no data file"));
        }
        Self::create_on(storage, Some(data), size, options, open)
    }

    fn create_on(storage: S, data: Option<S>, size: u64, options: &CreateOptions, open: OpenOptions) -> Result<Self> {
        let size = size.checked_next_multiple_of(512).ok_or_else(|| Error::invalid("the virtual size is too large"))?;
        let plan = Plan::new(options.validate(size)?, options.encryption_header_bytes().unwrap_or(0));
        let header = options.header(&plan).emit()?;
        let needed = plan.clusters().saturating_mul(plan.geometry.cluster_size());
        if storage.capabilities().grows {
            storage.set_len(0)?;
        } else if storage.len()? < needed {
            return Err(crate::ErrorKind::NoSpace("the storage is too small for an empty image".into()).into());
        } else {
            storage.discard(0, storage.len()?)?;
        }
        if let Some(data) = &data {
            empty_data_file(data, size, options.data_file_raw)?;
        }
        plan.write_tables(&storage)?;
        #[cfg(feature = "crypto-aes")]
        if let Some(volume) = &options.encryption {
            plan.write_volume(&storage, volume)?;
        }
        storage.barrier()?;
        write_table(&storage, 0, &header)?;
        storage.barrier()?;
        let OpenOptions { ignore_missing_files, keys, .. } = open.clone();
        // The key is at hand: nothing has to be derived.
        let mut image = Self::open(storage, OpenOptions { keys: None, ..open.metadata_only() })?;
        (image.options.ignore_missing_files, image.options.keys) = (ignore_missing_files, keys);
        image.data_file = data;
        #[cfg(feature = "crypto-aes")]
        if let Some(volume) = &options.encryption {
            image.unlock_with(volume.master_key().clone())?;
        }
        let preallocation = match options.preallocation {
            Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
            asked => asked,
        };
        if preallocation != Preallocation::Off {
            image.preallocate(0, size, preallocation)?;
        }
        Ok(image)
    }
}
