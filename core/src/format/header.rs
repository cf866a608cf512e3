//! The header, and the whole header cluster: header, extensions, backing file name (sections "Header", "Additional
//! fields", "Header padding", "Header extensions").

use alloc::format;
use alloc::vec::Vec;

use super::{
    AutoclearFeatures, BitmapsExtension, CompatibleFeatures, Extension, FeatureName, IncompatibleFeatures,
    MAX_HEADER_EXTENSIONS, Name, Reader,
};
use crate::error::{Error, ErrorKind, Result, Structure};

pub(super) const MAGIC: u32 = 0x5146_49fb;
const V2_LENGTH: u32 = 72;
const V3_MINIMUM_LENGTH: u32 = 104;
/// What QEMU writes: up to the compression type, padded.
const V3_LENGTH: u32 = 112;
/// The refcount width of version 2: 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;

/// The fields of the header, as they stand in the file: nothing here is checked before [`HeaderArea::validate`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// First byte of the backing file name; 0 without one.
    pub backing_file_offset: u64,
    /// Bytes of the backing file name; at most 1023.
    pub backing_file_size: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// 0 for no encryption, 1 for AES, 2 for LUKS.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// First byte of the active L1 table.
    pub l1_table_offset: u64,
    /// First byte of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Snapshots in the snapshot table.
    pub snapshot_count: u32,
    /// First byte of the snapshot table.
    pub snapshots_offset: u64,
    /// Features that one must know to open the image; none in version 2.
    pub incompatible: IncompatibleFeatures,
    /// Features that one may ignore; none in version 2.
    pub compatible: CompatibleFeatures,
    /// Features to clear before writing, where they are not known; none in version 2.
    pub autoclear: AutoclearFeatures,
    /// log2 of the width of a refcount in bits, 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// Bytes of the header; 72 in version 2. [`Header::emit`] writes at least this many, more if the fields need it.
    pub header_length: u32,
    /// 0 for deflate ("zlib"), 1 for zstd; 0 where the header is too short to hold it.
    pub compression_type: u8,
    /// Header bytes from 105 on, which this version does not know, without the zeros at their end.
    pub unknown_fields: Vec<u8>,
}

impl Header {
    /// The header of a new image without tables: every count and offset is 0, refcounts have 16 bits.
    #[must_use]
    pub fn new(version: u32, cluster_bits: u32, virtual_size: u64) -> Self {
        Self {
            version,
            backing_file_offset: 0,
            backing_file_size: 0,
            cluster_bits,
            virtual_size,
            crypt_method: 0,
            l1_size: 0,
            l1_table_offset: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: IncompatibleFeatures::default(),
            compatible: CompatibleFeatures::default(),
            autoclear: AutoclearFeatures::default(),
            refcount_order: V2_REFCOUNT_ORDER,
            header_length: if version < 3 { V2_LENGTH } else { V3_LENGTH },
            compression_type: 0,
            unknown_fields: Vec::new(),
        }
    }

    /// Reads the fields. Values out of range pass: they can be shown, and [`HeaderArea::validate`] refuses them.
    ///
    /// # Errors
    /// [`ErrorKind::NotQcow2`] without the magic; [`ErrorKind::Corrupt`] when `bytes` are fewer than the fields need,
    /// or the header says that it is shorter than they are.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let reader = &mut Reader::new(bytes, Structure::Header, 0);
        if bytes.len() < 4 || reader.u32("magic")? != MAGIC {
            return Err(Error::new(ErrorKind::NotQcow2).in_structure(Structure::Header).at_host(0));
        }
        let version = reader.u32("version")?;
        let mut header = Self {
            backing_file_offset: reader.u64("backing file offset")?,
            backing_file_size: reader.u32("backing file size")?,
            cluster_bits: reader.u32("cluster bits")?,
            virtual_size: reader.u64("size")?,
            crypt_method: reader.u32("crypt method")?,
            l1_size: reader.u32("L1 size")?,
            l1_table_offset: reader.u64("L1 table offset")?,
            refcount_table_offset: reader.u64("refcount table offset")?,
            refcount_table_clusters: reader.u32("refcount table clusters")?,
            snapshot_count: reader.u32("snapshot count")?,
            snapshots_offset: reader.u64("snapshots offset")?,
            ..Self::new(version, 0, 0)
        };
        if version >= 3 {
            header.parse_version_3(reader)?;
        }
        Ok(header)
    }

    fn parse_version_3(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        self.incompatible = IncompatibleFeatures::from_bits(reader.u64("incompatible features")?);
        self.compatible = CompatibleFeatures::from_bits(reader.u64("compatible features")?);
        self.autoclear = AutoclearFeatures::from_bits(reader.u64("autoclear features")?);
        self.refcount_order = reader.u32("refcount order")?;
        self.header_length = reader.u32("header length")?;
        let Some(more) = self.header_length.checked_sub(V3_MINIMUM_LENGTH) else {
            return Err(Error::corrupt(Structure::Header, "the header is too short for version 3").at_host(100));
        };
        // A header that claims more than there is gets what there is; `validate` refuses it.
        let more = usize::try_from(more).unwrap_or(usize::MAX).min(reader.rest().len());
        let fields = &mut Reader::new(reader.take(more, "additional fields")?, Structure::Header, 104);
        self.compression_type = fields.u8("compression type").unwrap_or(0);
        let unknown = fields.rest();
        let length = unknown.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
        self.unknown_fields = unknown.get(..length).unwrap_or_default().to_vec();
        Ok(())
    }

    /// The bytes of the header alone, padded to a multiple of 8. The length field says their number.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend(self.backing_file_offset.to_be_bytes());
        out.extend(self.backing_file_size.to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.virtual_size.to_be_bytes());
        out.extend(self.crypt_method.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(self.l1_table_offset.to_be_bytes());
        out.extend(self.refcount_table_offset.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.snapshot_count.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        if self.version < 3 {
            return out;
        }
        out.extend(self.incompatible.bits().to_be_bytes());
        out.extend(self.compatible.bits().to_be_bytes());
        out.extend(self.autoclear.bits().to_be_bytes());
        out.extend(self.refcount_order.to_be_bytes());
        let length = self.emitted_length();
        out.extend(length.to_be_bytes());
        out.push(self.compression_type);
        out.extend(&self.unknown_fields);
        out.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        out
    }

    /// Bytes that [`Header::emit`] gives.
    #[must_use]
    pub fn emitted_length(&self) -> u32 {
        if self.version < 3 {
            return V2_LENGTH;
        }
        let known = if self.compression_type == 0 { V3_MINIMUM_LENGTH } else { V3_LENGTH };
        let unknown = match u32::try_from(self.unknown_fields.len()).unwrap_or(u32::MAX) {
            0 => 0,
            length => length.saturating_add(105),
        };
        // Never more than the largest cluster, whatever the field says: the header has to fit one.
        let said = self.header_length.min(1 << super::MAX_CLUSTER_BITS);
        known.max(unknown).max(said).saturating_add(7) & !7
    }
}

/// What the first cluster holds: header, extensions and the name of the backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderArea {
    /// The header. Its backing file offset and size follow from `backing_file` when the area is emitted.
    pub header: Header,
    /// The extensions in their order.
    pub extensions: Vec<Extension>,
    /// The name of the backing file.
    pub backing_file: Option<Name>,
    /// What stopped the reading of extensions or name. [`HeaderArea::validate`] and [`HeaderArea::emit`] refuse then.
    pub damage: Option<Error>,
}

impl HeaderArea {
    /// An area without extensions and backing file.
    #[must_use]
    pub fn new(header: Header) -> Self {
        Self { header, extensions: Vec::new(), backing_file: None, damage: None }
    }

    /// Reads header, extensions and backing file name from the first bytes of the file: a cluster, or what there is
    /// (bytes beyond the first cluster are not looked at; the rest of a cluster cut short counts as zeros).
    ///
    /// Made for looking at broken images too: what is wrong behind a readable header goes to `damage`.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn parse(first_cluster: &[u8]) -> Result<Self> {
        let mut area = Self::new(Header::parse(first_cluster)?);
        let bits = area.header.cluster_bits;
        let size = if (super::MIN_CLUSTER_BITS..=super::MAX_CLUSTER_BITS).contains(&bits) {
            1usize.wrapping_shl(bits)
        } else {
            first_cluster.len()
        };
        let cluster = first_cluster.get(..size).unwrap_or(first_cluster);
        area.damage = area.parse_extensions(cluster, size).and_then(|()| area.parse_backing_file(cluster, size)).err();
        Ok(area)
    }

    fn parse_extensions(&mut self, cluster: &[u8], size: usize) -> Result<()> {
        let start = usize::try_from(self.header.header_length).unwrap_or(usize::MAX);
        if start > size {
            return Err(Error::corrupt(Structure::Header, "the header exceeds the cluster size").at_host(100));
        }
        let end = match usize::try_from(self.header.backing_file_offset).unwrap_or(usize::MAX) {
            0 => size,
            offset if offset > size => {
                return Err(Error::corrupt(Structure::Header, "invalid backing file offset").at_host(8));
            }
            offset => offset,
        };
        // Nothing lies between a header and a name that begins inside it; QEMU reads no extension then either.
        let area = cluster.get(start..end.min(cluster.len())).unwrap_or_default();
        let at = u64::from(self.header.header_length);
        let mut reader = Reader::new(area, Structure::HeaderExtension, at);
        while let Some(extension) = Extension::parse(&mut reader)? {
            if self.extensions.len() == MAX_HEADER_EXTENSIONS {
                let what = format!("the header has more than {MAX_HEADER_EXTENSIONS} extensions");
                return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::HeaderExtension));
            }
            self.extensions.push(extension);
        }
        Ok(())
    }

    fn parse_backing_file(&mut self, cluster: &[u8], size: usize) -> Result<()> {
        let offset = usize::try_from(self.header.backing_file_offset).unwrap_or(usize::MAX);
        let length = usize::try_from(self.header.backing_file_size).unwrap_or(usize::MAX);
        if offset == 0 {
            return Ok(());
        }
        if self.header.backing_file_size > super::MAX_BACKING_NAME || length > size.saturating_sub(offset) {
            return Err(Error::corrupt(Structure::BackingFile, "the backing file name is too long").at_host(16));
        }
        if length == 0 {
            return Ok(());
        }
        let Some(name) = offset.checked_add(length).and_then(|end| cluster.get(offset..end)) else {
            return Err(Error::corrupt(Structure::BackingFile, "the backing file name reaches beyond the file")
                .at_host(self.header.backing_file_offset));
        };
        self.backing_file = Some(Name::new(name));
        Ok(())
    }

    /// The whole header cluster: header, extensions, end marker, backing file name, zeros. Length of the header and
    /// place of the name are computed anew.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] when it does not fit one cluster or the name is longer than 1023 bytes;
    /// [`ErrorKind::InvalidArgument`] when the cluster size is out of range; `damage`, where there is some.
    pub fn emit(&self) -> Result<Vec<u8>> {
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        let bits = self.header.cluster_bits;
        if !(super::MIN_CLUSTER_BITS..=super::MAX_CLUSTER_BITS).contains(&bits) {
            return Err(Error::invalid(format!("cluster size 2^{bits} is out of range")));
        }
        let size = 1usize.wrapping_shl(bits);
        let mut header = Header { header_length: self.header.emitted_length(), ..self.header.clone() };
        let mut rest = Vec::new();
        self.extensions.iter().for_each(|extension| extension.emit(&mut rest));
        Extension::emit_end(&mut rest);
        let name_at = u64::from(header.header_length).saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX));
        let name = self.backing_file.as_ref().map_or(&[][..], Name::as_bytes);
        header.backing_file_size = u32::try_from(name.len()).unwrap_or(u32::MAX);
        header.backing_file_offset = if name.is_empty() { 0 } else { name_at };
        if header.backing_file_size > super::MAX_BACKING_NAME {
            return Err(Error::new(ErrorKind::Limit(format!(
                "the backing file name is longer than {} bytes",
                super::MAX_BACKING_NAME
            ))));
        }
        let mut out = header.emit();
        out.extend(rest);
        out.extend(name);
        if out.len() > size {
            return Err(Error::new(ErrorKind::Limit(format!(
                "header, extensions and backing file name need {} bytes, a cluster has {size}",
                out.len()
            )))
            .in_structure(Structure::Header));
        }
        out.resize(size, 0);
        Ok(out)
    }

    /// The image's own names of feature bits; empty without a table.
    #[must_use]
    pub fn feature_names(&self) -> &[FeatureName] {
        self.find(|extension| match extension {
            Extension::FeatureNames(table) => Some(table.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
    }

    /// The format of the backing file, if the image says it.
    #[must_use]
    pub fn backing_format(&self) -> Option<&Name> {
        self.find(|extension| match extension {
            Extension::BackingFormat(name) => Some(name),
            _ => None,
        })
    }

    /// Puts another backing file in place of the one that is named, with its format.
    pub fn set_backing(&mut self, name: Option<Name>, format: Option<Name>) {
        self.extensions.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        if let Some(format) = format {
            self.extensions.insert(0, Extension::BackingFormat(format));
        }
        self.backing_file = name;
    }

    /// The name of the external data file, if the image says it.
    #[must_use]
    pub fn data_file(&self) -> Option<&Name> {
        self.find(|extension| match extension {
            Extension::DataFile(name) => Some(name),
            _ => None,
        })
    }

    /// The bitmaps extension, consistent or not; see [`HeaderArea::consistent_bitmaps`].
    #[must_use]
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        self.find(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(*bitmaps),
            _ => None,
        })
    }

    /// The bitmaps extension, if its autoclear bit says that it is consistent.
    #[must_use]
    pub fn consistent_bitmaps(&self) -> Option<BitmapsExtension> {
        self.bitmaps().filter(|_| self.header.autoclear.bitmaps())
    }

    /// Offset and length of the encryption header, if there is one.
    #[must_use]
    pub fn crypto_header(&self) -> Option<(u64, u64)> {
        self.find(|extension| match extension {
            Extension::CryptoHeader { offset, length } => Some((*offset, *length)),
            _ => None,
        })
    }

    /// What forbids writing to the image as it is.
    #[must_use]
    pub fn write_obstacles(&self) -> WriteObstacles {
        WriteObstacles { corrupt: self.header.incompatible.corrupt(), dirty: self.header.incompatible.dirty() }
    }

    /// The last extension that fits: QEMU lets a later one of a kind replace an earlier one.
    fn find<'a, T>(&'a self, pick: impl Fn(&'a Extension) -> Option<T>) -> Option<T> {
        self.extensions.iter().rev().find_map(pick)
    }
}

/// What forbids writing; see [`HeaderArea::write_obstacles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteObstacles {
    /// The corrupt bit is set: only repair may write.
    pub corrupt: bool,
    /// The dirty bit is set: refcounts must be rebuilt first.
    pub dirty: bool,
}

impl WriteObstacles {
    /// Whether anything forbids writing.
    #[must_use]
    pub fn any(self) -> bool {
        self.corrupt || self.dirty
    }
}
