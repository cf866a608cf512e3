//! Header extensions (section "Header extensions" and those that follow it).

use alloc::vec::Vec;

use super::{FeatureName, MAX_FEATURE_NAMES, Name, Reader};
use crate::error::{Result, Structure};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// One header extension.
///
/// What cannot be told in the fields of its kind (a wrong length, reserved bytes that are set) is kept as
/// [`Extension::Unknown`] with that kind, so that emitting what was parsed always gives the same data again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Extension {
    /// The format of the backing file, such as `qcow2` or `raw`.
    BackingFormat(Name),
    /// Names of features (section "Feature name table").
    FeatureNames(Vec<FeatureName>),
    /// Where the bitmap directory is (section "Bitmaps extension").
    Bitmaps(BitmapsExtension),
    /// The name of the external data file.
    DataFile(Name),
    /// Where the encryption header is (section "Full disk encryption header pointer").
    CryptoHeader {
        /// First byte.
        offset: u64,
        /// Bytes of the header; the clusters it occupies are its own.
        length: u64,
    },
    /// Any other, or one whose data do not fit its kind.
    Unknown {
        /// The number of the kind.
        kind: u32,
        /// Its data, without padding.
        data: Vec<u8>,
    },
}

/// The data of the bitmaps extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BitmapsExtension {
    /// Bitmaps in the image.
    pub nb_bitmaps: u32,
    /// Bytes of the bitmap directory.
    pub directory_size: u64,
    /// First byte of the bitmap directory.
    pub directory_offset: u64,
}

impl Extension {
    /// Reads the next extension and its padding; `None` at the end marker, or where fewer than 8 bytes are left.
    ///
    /// # Errors
    /// When the data reach beyond the area.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        if reader.rest().len() < 8 {
            return Ok(None);
        }
        let kind = reader.u32("header extension type")?;
        let length = usize::try_from(reader.u32("header extension length")?).unwrap_or(usize::MAX);
        if kind == END {
            return Ok(None);
        }
        let data = reader.take(length, "header extension data")?;
        // The last extension before the backing file name need not be padded in full.
        let padding = padding(length).min(reader.rest().len());
        reader.take(padding, "header extension padding")?;
        Ok(Some(Self::from_data(kind, data)))
    }

    /// The extension of this kind with these data.
    #[must_use]
    pub fn from_data(kind: u32, data: &[u8]) -> Self {
        let typed = match kind {
            BACKING_FORMAT => Some(Self::BackingFormat(Name::new(data))),
            DATA_FILE => Some(Self::DataFile(Name::new(data))),
            FEATURE_NAMES => parse_feature_names(data),
            BITMAPS => parse_bitmaps(data),
            CRYPTO_HEADER => parse_crypto_header(data),
            _ => None,
        };
        typed.unwrap_or_else(|| Self::Unknown { kind, data: data.to_vec() })
    }

    /// Appends kind, length, data and padding.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let data = self.data();
        out.extend(self.kind().to_be_bytes());
        // Nothing longer than a cluster is ever emitted: see `HeaderArea::emit`.
        out.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        let padded = data.len().saturating_add(padding(data.len()));
        out.extend(data.into_iter().chain(core::iter::repeat(0)).take(padded));
    }

    /// Appends the marker that ends the extensions.
    pub fn emit_end(out: &mut Vec<u8>) {
        out.extend([0; 8]);
    }

    /// The number of the kind.
    #[must_use]
    pub fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::DataFile(_) => DATA_FILE,
            Self::CryptoHeader { .. } => CRYPTO_HEADER,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// What the specification calls the kind; `None` for kinds that it does not name.
    #[must_use]
    pub fn kind_name(&self) -> Option<&'static str> {
        match self.kind() {
            BACKING_FORMAT => Some("backing file format"),
            FEATURE_NAMES => Some("feature name table"),
            BITMAPS => Some("bitmaps"),
            DATA_FILE => Some("external data file name"),
            CRYPTO_HEADER => Some("full disk encryption header pointer"),
            _ => None,
        }
    }

    /// Whether it is of a known kind but its data do not fit that kind.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Unknown { .. }) && self.kind_name().is_some()
    }

    pub(super) fn is_feature_names(&self) -> bool {
        self.kind() == FEATURE_NAMES
    }

    /// Whether it is of the kind that names the bitmap directory, well formed or not.
    #[must_use]
    pub fn is_bitmaps(&self) -> bool {
        self.kind() == BITMAPS
    }

    /// The data without padding.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::BackingFormat(name) | Self::DataFile(name) => out.extend(name.as_bytes()),
            Self::FeatureNames(table) => table.iter().for_each(|feature| feature.emit(&mut out)),
            Self::Bitmaps(bitmaps) => {
                out.extend(bitmaps.nb_bitmaps.to_be_bytes());
                out.extend([0; 4]);
                out.extend(bitmaps.directory_size.to_be_bytes());
                out.extend(bitmaps.directory_offset.to_be_bytes());
            }
            Self::CryptoHeader { offset, length } => {
                out.extend(offset.to_be_bytes());
                out.extend(length.to_be_bytes());
            }
            Self::Unknown { data, .. } => out.extend(data),
        }
        out
    }
}

/// Zero bytes after `length` bytes up to the next multiple of 8.
fn padding(length: usize) -> usize {
    length.wrapping_neg() & 7
}

fn parse_feature_names(data: &[u8]) -> Option<Extension> {
    let mut reader = Reader::new(data, Structure::HeaderExtension, 0);
    let mut table = Vec::new();
    while !reader.rest().is_empty() {
        if table.len() == MAX_FEATURE_NAMES {
            return None;
        }
        table.push(FeatureName::parse(&mut reader).ok()?);
    }
    Some(Extension::FeatureNames(table))
}

fn parse_bitmaps(data: &[u8]) -> Option<Extension> {
    let mut reader = Reader::new(data, Structure::HeaderExtension, 0);
    let nb_bitmaps = reader.u32("bitmap count").ok()?;
    let reserved = reader.u32("reserved").ok()?;
    let directory_size = reader.u64("bitmap directory size").ok()?;
    let directory_offset = reader.u64("bitmap directory offset").ok()?;
    let whole = reserved == 0 && reader.rest().is_empty();
    whole.then_some(Extension::Bitmaps(BitmapsExtension { nb_bitmaps, directory_size, directory_offset }))
}

fn parse_crypto_header(data: &[u8]) -> Option<Extension> {
    let mut reader = Reader::new(data, Structure::HeaderExtension, 0);
    let offset = reader.u64("encryption header offset").ok()?;
    let length = reader.u64("encryption header length").ok()?;
    reader.rest().is_empty().then_some(Extension::CryptoHeader { offset, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn parse_all(bytes: &[u8]) -> Result<Vec<Extension>> {
        let mut reader = Reader::new(bytes, Structure::HeaderExtension, 112);
        let mut all = Vec::new();
        while let Some(extension) = Extension::parse(&mut reader)? {
            all.push(extension);
        }
        Ok(all)
    }

    #[test]
    fn hand_written_extensions_survive_both_ways_in_order() {
        let mut bytes = Vec::new();
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        put(0x1234_5678, b"mystery");
        put(BACKING_FORMAT, b"raw");
        put(DATA_FILE, b"d\xffta");
        put(FEATURE_NAMES, &[0; 96]);
        put(FEATURE_NAMES, &[0; 50]);
        put(BITMAPS, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 5, 0, 0]);
        put(BITMAPS, &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 5, 0, 0]);
        put(CRYPTO_HEADER, &[0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x50]);
        put(CRYPTO_HEADER, &[0; 8]);
        Extension::emit_end(&mut bytes);
        let all = parse_all(&bytes).unwrap();
        assert_eq!(all[0], Extension::Unknown { kind: 0x1234_5678, data: b"mystery".to_vec() });
        assert_eq!(all[1], Extension::BackingFormat("raw".into()));
        assert_eq!(
            all[5],
            Extension::Bitmaps(BitmapsExtension { nb_bitmaps: 2, directory_size: 64, directory_offset: 0x50000 })
        );
        assert_eq!(all[7], Extension::CryptoHeader { offset: 0x40000, length: 592 });
        let malformed: Vec<_> = all.iter().map(Extension::is_malformed).collect();
        assert_eq!(malformed, vec![false, false, false, false, true, false, true, false, true]);
        let mut out = Vec::new();
        all.iter().for_each(|extension| extension.emit(&mut out));
        Extension::emit_end(&mut out);
        assert_eq!(out, bytes);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let mut bytes = 0x1234_5678u32.to_be_bytes().to_vec();
        for length in [9u32, 0x7fff_ffff, u32::MAX] {
            bytes.truncate(4);
            bytes.extend(length.to_be_bytes());
            bytes.extend([0; 8]);
            assert!(parse_all(&bytes).is_err());
        }
    }

    #[test]
    fn an_area_without_end_marker_ends() {
        assert_eq!(parse_all(&[]).unwrap(), vec![]);
        assert_eq!(parse_all(&[1, 2, 3]).unwrap(), vec![]);
        let mut bytes = Vec::new();
        Extension::BackingFormat("raw".into()).emit(&mut bytes);
        bytes.truncate(11);
        assert_eq!(parse_all(&bytes).unwrap(), vec![Extension::BackingFormat("raw".into())]);
    }
}
