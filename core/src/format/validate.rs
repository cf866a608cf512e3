//! From a header as it was read to a [`Geometry`] that arithmetic can rely on.

use alloc::format;
use alloc::string::String;

use super::{Extension, Geometry, Header, HeaderArea};
use crate::error::{Error, ErrorKind, Result, Structure};

const CRYPT_LUKS: u32 = 2;
const COMPRESSION_ZSTD: u8 = 1;
/// QEMU counts L1 entries in 31 bits.
const MAX_L1_ENTRIES: u64 = 0x7fff_ffff;

impl HeaderArea {
    /// Checks everything that QEMU checks when it opens an image, and gives the sizes that follow.
    ///
    /// The order matters: each check only computes with what the checks before it have bounded. Afterwards cluster
    /// bits, refcount order and virtual size are in range, every table is aligned, no longer than its limit in
    /// [`super`], and ends below 2^63. With `file_length` (bytes of the file) an encryption header beyond it is refused
    /// too; tables may lie beyond the end, they read as zeros, as with QEMU.
    ///
    /// Whether the image may be *written* is another question: see [`HeaderArea::write_obstacles`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what this version does not know (named from the image's feature name table),
    /// [`ErrorKind::Limit`] for what exceeds a limit, [`ErrorKind::Corrupt`] for contradictions.
    pub fn validate(&self, file_length: Option<u64>) -> Result<Geometry> {
        let geometry = self.validate_for_check(file_length)?;
        if self.header.refcount_table_clusters == 0 {
            return Err(corrupt(56, "the image does not contain a refcount table"));
        }
        self.validate_snapshot_table(&geometry)?;
        Ok(geometry)
    }

    /// As [`HeaderArea::validate`], but passes an image without refcount table and one whose snapshot table is wrong:
    /// a check reports these in its own way.
    ///
    /// # Errors
    /// As [`HeaderArea::validate`].
    pub fn validate_for_check(&self, file_length: Option<u64>) -> Result<Geometry> {
        let header = &self.header;
        if !(2..=3).contains(&header.version) {
            return Err(Error::unsupported(format!("qcow2 version {}", header.version)).in_structure(Structure::Header));
        }
        let bits = header.cluster_bits;
        if !(super::MIN_CLUSTER_BITS..=super::MAX_CLUSTER_BITS).contains(&bits) {
            return Err(Error::unsupported(format!("cluster size 2^{bits}"))
                .in_structure(Structure::Header)
                .at_host(20));
        }
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        self.validate_features()?;
        if header.refcount_order > 6 {
            return Err(corrupt(96, "refcounts wider than 64 bits"));
        }
        let geometry = self.geometry()?;
        self.validate_tables(&geometry)?;
        self.validate_encryption(&geometry, file_length)?;
        self.validate_extensions()?;
        Ok(geometry)
    }

    fn validate_features(&self) -> Result<()> {
        let header = &self.header;
        let unknown = header.incompatible.unknown();
        if !unknown.is_empty() {
            let names = unknown.names(self.feature_names()).join(", ");
            return Err(Error::unsupported(format!("qcow2 feature(s): {names}"))
                .in_structure(Structure::Header)
                .at_host(72));
        }
        if header.compression_type > COMPRESSION_ZSTD {
            let what = format!("compression type {}", header.compression_type);
            return Err(Error::unsupported(what).in_structure(Structure::Header).at_host(104));
        }
        match (header.compression_type, header.incompatible.compression_type()) {
            (0, true) => Err(corrupt(72, "the compression type bit must not be set with the default compression type")),
            (0, false) | (_, true) => Ok(()),
            (_, false) => Err(corrupt(72, "the compression type bit must be set with this compression type")),
        }?;
        if header.autoclear.data_file_raw() && !header.incompatible.data_file() {
            return Err(corrupt(88, "data_file_raw requires a data file"));
        }
        if header.incompatible.extended_l2() && header.cluster_bits < super::MIN_EXTENDED_L2_CLUSTER_BITS {
            let size = 1u64.wrapping_shl(header.cluster_bits) / 32;
            return Err(Error::unsupported(format!("subcluster size {size}")).in_structure(Structure::Header));
        }
        Ok(())
    }

    fn geometry(&self) -> Result<Geometry> {
        let Header { version, cluster_bits, refcount_order, virtual_size, incompatible, .. } = self.header;
        let (extended, data_file) = (incompatible.extended_l2(), incompatible.data_file());
        let geometry = Geometry::new(version, cluster_bits, refcount_order, extended, data_file, virtual_size);
        // Everything but the size was checked before.
        let geometry = geometry.ok_or_else(|| limit(24, "the image is too big".into()))?;
        if geometry.l1_entries() > MAX_L1_ENTRIES {
            return Err(limit(24, "the image is too big".into()));
        }
        Ok(geometry)
    }

    fn validate_tables(&self, geometry: &Geometry) -> Result<()> {
        let header = &self.header;
        let refcount_bytes = u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size());
        let refcounts = Table { name: "refcount table", limit: super::MAX_REFCOUNT_TABLE_BYTES, field: 48 };
        refcounts.validate(geometry, header.refcount_table_offset, refcount_bytes)?;
        let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
        let l1 = Table { name: "active L1 table", limit: super::MAX_L1_BYTES, field: 40 };
        l1.validate(geometry, header.l1_table_offset, l1_bytes)?;
        if u64::from(header.l1_size) < geometry.l1_entries() {
            return Err(corrupt(36, "the L1 table is too small for the virtual size"));
        }
        Ok(())
    }

    fn validate_snapshot_table(&self, geometry: &Geometry) -> Result<()> {
        let (count, offset) = (self.header.snapshot_count, self.header.snapshots_offset);
        if count > super::MAX_SNAPSHOTS {
            return Err(limit(60, format!("{count} snapshots, at most {} are allowed", super::MAX_SNAPSHOTS)));
        }
        // Entries have at least 40 bytes; how long they really are is known when they are read.
        let table = Table { name: "snapshot table", limit: super::MAX_SNAPSHOT_TABLE_BYTES, field: 64 };
        table.validate(geometry, offset, u64::from(count).saturating_mul(40))
    }

    fn validate_encryption(&self, geometry: &Geometry, file_length: Option<u64>) -> Result<()> {
        let method = self.header.crypt_method;
        if method > CRYPT_LUKS {
            return Err(Error::unsupported(format!("encryption method {method}"))
                .in_structure(Structure::Header)
                .at_host(32));
        }
        let Some((offset, length)) = self.crypto_header() else {
            if method == CRYPT_LUKS {
                return Err(corrupt(32, "the encryption header is missing"));
            }
            return Ok(());
        };
        let wrong = |what: String| Error::corrupt(Structure::CryptoHeader, what).at_host(offset);
        if method != CRYPT_LUKS {
            return Err(wrong("an encryption header is only expected with LUKS".into()));
        }
        if !geometry.is_aligned(offset) {
            return Err(wrong(format!("the offset is not a multiple of the cluster size {}", geometry.cluster_size())));
        }
        let Some(end) = offset.checked_add(length).filter(|&end| end <= super::MAX_VIRTUAL_SIZE) else {
            return Err(wrong(format!("its length {length} is impossible")));
        };
        // The last cluster may be cut short, but not be missing.
        if file_length.is_some_and(|file| geometry.align_down(end.saturating_sub(1)) > file) {
            return Err(wrong(format!("its {length} bytes reach beyond the end of the file")));
        }
        Ok(())
    }

    fn validate_extensions(&self) -> Result<()> {
        for extension in &self.extensions {
            match extension {
                Extension::BackingFormat(name) if name.len() >= 16 => {
                    return Err(extension_error(format!(
                        "the backing format name has {} bytes, at most 15 are allowed",
                        name.len()
                    )));
                }
                // A feature name table with a rest is no danger; QEMU reads what there is.
                // Neither are bitmaps, which are not needed to read or write the disk: see `usable_bitmaps`.
                Extension::Unknown { .. }
                    if extension.is_malformed() && !extension.is_feature_names() && !extension.is_bitmaps() =>
                {
                    let name = extension.kind_name().unwrap_or_default();
                    return Err(extension_error(format!("the data of the extension \"{name}\" are malformed")));
                }
                Extension::BackingFormat(_)
                | Extension::FeatureNames(_)
                | Extension::Bitmaps(_)
                | Extension::DataFile(_)
                | Extension::CryptoHeader { .. }
                | Extension::Unknown { .. } => {}
            }
        }
        Ok(())
    }

    /// The bitmaps extension, if its autoclear bit says that it is consistent, and checked: the directory is aligned and
    /// within the limits. Without its autoclear bit the extension means nothing, so nothing is asked of it.
    ///
    /// What is wrong here makes QEMU refuse the image. It does no harm to the guest's data, so [`HeaderArea::validate`]
    /// passes it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Limit`]: a directory that cannot be.
    pub fn usable_bitmaps(&self, geometry: &Geometry) -> Result<Option<super::BitmapsExtension>> {
        if self.header.autoclear.bitmaps()
            && self.extensions.iter().any(|extension| extension.is_bitmaps() && extension.is_malformed())
        {
            return Err(extension_error("the data of the extension \"bitmaps\" are malformed".into()));
        }
        let Some(bitmaps) = self.consistent_bitmaps() else { return Ok(None) };
        if bitmaps.nb_bitmaps == 0 {
            return Err(extension_error("a bitmaps extension without bitmaps".into()));
        }
        if bitmaps.nb_bitmaps > super::MAX_BITMAPS {
            let what = format!("{} bitmaps, at most {} are allowed", bitmaps.nb_bitmaps, super::MAX_BITMAPS);
            return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::HeaderExtension));
        }
        let directory = Table { name: "bitmap directory", limit: super::MAX_BITMAP_DIRECTORY_BYTES, field: 0 };
        directory.validate(geometry, bitmaps.directory_offset, bitmaps.directory_size)?;
        Ok(Some(bitmaps))
    }
}

/// A table that must be aligned, no longer than a limit, and end where signed offsets end.
struct Table {
    name: &'static str,
    limit: u64,
    /// Where the header says its offset; 0 for extensions.
    field: u64,
}

impl Table {
    fn validate(&self, geometry: &Geometry, offset: u64, bytes: u64) -> Result<()> {
        if bytes > self.limit {
            return Err(limit(
                self.field,
                format!("the {} has {bytes} bytes, at most {} are allowed", self.name, self.limit),
            ));
        }
        let end = offset.checked_add(bytes).filter(|&end| end <= super::MAX_VIRTUAL_SIZE);
        if end.is_none() || !geometry.is_aligned(offset) {
            return Err(corrupt(self.field, format!("the {}'s offset {offset:#x} is invalid", self.name)));
        }
        Ok(())
    }
}

fn corrupt(field: u64, what: impl Into<String>) -> Error {
    Error::corrupt(Structure::Header, what).at_host(field)
}

fn limit(field: u64, what: String) -> Error {
    Error::new(ErrorKind::Limit(what)).in_structure(Structure::Header).at_host(field)
}

fn extension_error(what: String) -> Error {
    Error::corrupt(Structure::HeaderExtension, what)
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
