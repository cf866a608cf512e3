//! The header and what follows it in its cluster.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Inspector, Shown};
use crate::error::Result;
use crate::format::{Extension, FeatureKind, HeaderArea, HeaderField, counted};
use crate::storage::ReadStorage;

/// The header, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderReport {
    /// Bytes of the file.
    pub file_length: u64,
    /// Every field.
    pub fields: Vec<HeaderField>,
    /// The feature bits that are set.
    pub features: Vec<FeatureBit>,
    /// Bytes of the header from 105 on that this version does not know, without zeros at the end.
    pub unknown_fields: Vec<u8>,
    /// The extensions, as far as they can be read.
    pub extensions: Vec<ExtensionReport>,
    /// The name of the backing file.
    pub backing_file: Option<String>,
    /// Its format, if the image says it.
    pub backing_format: Option<String>,
    /// The name of the external data file.
    pub data_file: Option<String>,
    /// What stopped the reading of extensions or names.
    pub damage: Option<String>,
    /// Why this image cannot be opened, if it cannot.
    pub refusal: Option<String>,
}

/// A feature bit that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FeatureBit {
    /// Which field it is in.
    pub kind: FeatureKind,
    /// Its number.
    pub bit: u8,
    /// The name that the image's own table gives it, else that of the specification.
    pub name: String,
    /// This version knows it.
    pub known: bool,
}

/// A header extension.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ExtensionReport {
    /// Where it begins in the file.
    pub offset: u64,
    /// The number of the kind.
    pub kind: u32,
    /// What the specification calls it.
    pub name: Option<&'static str>,
    /// Bytes of its data.
    pub length: u64,
    /// What it says, in words.
    pub meaning: String,
    /// Its kind is known, but its data do not fit it.
    pub malformed: bool,
    /// The data as they stand, where they are not understood.
    pub data: Vec<u8>,
}

impl<S: ReadStorage + ?Sized> Inspector<'_, S> {
    /// The header, extensions and names.
    #[must_use]
    pub fn header(&self) -> Shown<HeaderReport> {
        self.header_report().into()
    }

    fn header_report(&self) -> Result<HeaderReport> {
        let area = self.header_area()?;
        Ok(HeaderReport {
            file_length: self.file_length,
            fields: area.header.fields(),
            features: features(area),
            unknown_fields: area.header.unknown_fields.clone(),
            extensions: extensions(area),
            backing_file: area.backing_file.as_ref().map(ToString::to_string),
            backing_format: area.backing_format().map(ToString::to_string),
            data_file: area.data_file().map(ToString::to_string),
            damage: area.damage.as_ref().map(ToString::to_string),
            refusal: area.validate(Some(self.file_length)).err().map(|error| error.to_string()),
        })
    }
}

fn features(area: &HeaderArea) -> Vec<FeatureBit> {
    let (header, table) = (&area.header, area.feature_names());
    let (incompatible, compatible, autoclear) = (header.incompatible, header.compatible, header.autoclear);
    let fields = [
        (FeatureKind::Incompatible, incompatible.bits(), incompatible.unknown().bits(), incompatible.names(table)),
        (FeatureKind::Compatible, compatible.bits(), compatible.unknown().bits(), compatible.names(table)),
        (FeatureKind::Autoclear, autoclear.bits(), autoclear.unknown().bits(), autoclear.names(table)),
    ];
    let mut all = Vec::new();
    for (kind, bits, unknown, names) in fields {
        let set = |bits: u64, bit: u8| bits & 1u64.wrapping_shl(bit.into()) != 0;
        let numbers = (0u8..64).filter(|&bit| set(bits, bit));
        all.extend(numbers.zip(names).map(|(bit, name)| FeatureBit { kind, bit, name, known: !set(unknown, bit) }));
    }
    all
}

pub(super) fn extensions(area: &HeaderArea) -> Vec<ExtensionReport> {
    let mut offset = u64::from(area.header.header_length);
    let report = |extension: &Extension| {
        let mut padded = Vec::new();
        extension.emit(&mut padded);
        let start = offset;
        offset = offset.saturating_add(u64::try_from(padded.len()).unwrap_or(u64::MAX));
        let data = extension.data();
        ExtensionReport {
            offset: start,
            kind: extension.kind(),
            name: extension.kind_name(),
            length: u64::try_from(data.len()).unwrap_or(u64::MAX),
            meaning: meaning(extension),
            malformed: extension.is_malformed(),
            data: if matches!(extension, Extension::Unknown { .. }) { data } else { Vec::new() },
        }
    };
    area.extensions.iter().map(report).collect()
}

fn meaning(extension: &Extension) -> String {
    match extension {
        Extension::BackingFormat(name) | Extension::DataFile(name) => name.to_string(),
        Extension::FeatureNames(table) => counted(u64::try_from(table.len()).unwrap_or(u64::MAX), "name"),
        Extension::Bitmaps(bitmaps) => format!(
            "{}, directory of {} at {:#x}",
            counted(bitmaps.nb_bitmaps.into(), "bitmap"),
            counted(bitmaps.directory_size, "byte"),
            bitmaps.directory_offset
        ),
        Extension::CryptoHeader { offset, length } => format!("{length} bytes at {offset:#x}"),
        Extension::Unknown { .. } => String::new(),
    }
}
