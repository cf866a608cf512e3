//! Feature bits of the header and their names (sections "Header" and "Feature name table").

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::bits::bit_set;
use super::{Name, Reader};
use crate::error::Result;

macro_rules! features {
    ($(#[$doc:meta])* $name:ident, $kind:expr, { $($(#[$bit_doc:meta])* $constant:ident, $accessor:ident = $bit:literal, $text:literal;)* }) => {
        bit_set! {
            $(#[$doc])*
            $name(u64), { $($(#[$bit_doc])* $constant, $accessor = $bit;)* }
        }

        impl $name {
            /// The numbers of the bits that are set, ascending.
            pub fn bit_numbers(self) -> impl Iterator<Item = u8> {
                (0u8..64).filter(move |&bit| 1u64.checked_shl(u32::from(bit)).is_some_and(|mask| self.0 & mask != 0))
            }

            /// A name for each bit that is set: from the image's table, else the specification's, else the number.
            #[must_use]
            pub fn names(self, table: &[FeatureName]) -> Vec<String> {
                let own = |bit| match bit {
                    $($bit => Some($text),)*
                    _ => None,
                };
                self.bit_numbers()
                    .map(|bit| {
                        let named = table.iter().find(|feature| feature.kind == $kind.code() && feature.bit == bit);
                        match (named, own(bit)) {
                            (Some(feature), _) => feature.name.to_string(),
                            (None, Some(name)) => name.to_string(),
                            (None, None) => alloc::format!("unknown {} feature bit {bit}", $kind),
                        }
                    })
                    .collect()
            }

            /// What a feature name table says of these features, in QEMU's words.
            pub(super) fn standard_names() -> impl Iterator<Item = FeatureName> {
                [$(($bit, $text)),*].into_iter().map(|(bit, name)| FeatureName {
                    kind: $kind.code(),
                    bit,
                    name: Name::from(name),
                })
            }
        }
    };
}

features! {
    /// Incompatible features: with an unknown bit set, the image must not be opened.
    IncompatibleFeatures, FeatureKind::Incompatible, {
        /// Refcounts may be wrong: repair them before use.
        DIRTY, dirty = 0, "dirty bit";
        /// Any structure may be wrong: no writes except by repair.
        CORRUPT, corrupt = 1, "corrupt bit";
        /// Guest data lives in an external data file.
        DATA_FILE, data_file = 2, "external data file";
        /// The compression type is not the default.
        COMPRESSION_TYPE, compression_type = 3, "compression type";
        /// L2 entries are 128 bits wide, clusters have 32 subclusters.
        EXTENDED_L2, extended_l2 = 4, "extended L2 entries";
    }
}
features! {
    /// Compatible features: unknown bits may be ignored and are kept.
    CompatibleFeatures, FeatureKind::Compatible, {
        /// Refcounts may be updated late, with the dirty bit set meanwhile.
        LAZY_REFCOUNTS, lazy_refcounts = 0, "lazy refcounts";
    }
}
features! {
    /// Autoclear features: unknown bits are cleared before the first write.
    AutoclearFeatures, FeatureKind::Autoclear, {
        /// The bitmaps extension is consistent.
        BITMAPS, bitmaps = 0, "bitmaps";
        /// The external data file can be read alone, as a raw image.
        DATA_FILE_RAW, data_file_raw = 1, "raw external data";
    }
}

/// Which of the header's bit fields a feature belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum FeatureKind {
    /// Unknown bits forbid opening.
    Incompatible,
    /// Unknown bits may be ignored.
    Compatible,
    /// Unknown bits are cleared on writing.
    Autoclear,
}

impl FeatureKind {
    /// The number in the feature name table.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }

    /// The kind with this number; `None` for numbers that the specification does not name.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Incompatible),
            1 => Some(Self::Compatible),
            2 => Some(Self::Autoclear),
            _ => None,
        }
    }
}

impl fmt::Display for FeatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incompatible => "incompatible",
            Self::Compatible => "compatible",
            Self::Autoclear => "autoclear",
        })
    }
}

/// An entry of the feature name table: 48 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FeatureName {
    /// Number of the bit field; see [`FeatureKind::from_code`]. Kept as a number, since others may come.
    pub kind: u8,
    /// Number of the bit, 0 to 63.
    pub bit: u8,
    /// Its name, at most 46 bytes, without the zeros that fill it up.
    pub name: Name,
}

impl FeatureName {
    /// Bytes of an entry.
    pub const LENGTH: usize = 48;
    const NAME_LENGTH: usize = 46;

    /// The table that QEMU writes: every feature that this version knows.
    #[must_use]
    pub fn standard_table() -> Vec<Self> {
        IncompatibleFeatures::standard_names()
            .chain(CompatibleFeatures::standard_names())
            .chain(AutoclearFeatures::standard_names())
            .collect()
    }

    /// Reads one entry.
    ///
    /// # Errors
    /// When fewer than 48 bytes are left.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self> {
        let kind = reader.u8("feature type")?;
        let bit = reader.u8("feature bit")?;
        let padded = reader.take(Self::NAME_LENGTH, "feature name")?;
        let length = padded.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
        Ok(Self { kind, bit, name: Name::new(padded.get(..length).unwrap_or_default()) })
    }

    /// Appends the entry; a name longer than 46 bytes is cut.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend([self.kind, self.bit]);
        let bytes = self.name.as_bytes().iter().copied();
        out.extend(bytes.chain(core::iter::repeat(0)).take(Self::NAME_LENGTH));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Structure;
    use std::vec;

    #[test]
    fn unknown_bits_are_kept_and_told_apart() {
        let bits = IncompatibleFeatures::from_bits((1 << 63) | (1 << 5) | 0b1_0001);
        assert!(bits.dirty() && bits.extended_l2() && !bits.corrupt());
        assert_eq!(bits.unknown().bits(), (1 << 63) | (1 << 5));
        assert_eq!(bits.without(IncompatibleFeatures::DIRTY).with(IncompatibleFeatures::DIRTY), bits);
        assert_eq!(bits.bit_numbers().collect::<Vec<_>>(), vec![0, 4, 5, 63]);
        assert_eq!(CompatibleFeatures::from_bits(3).unknown().bits(), 2);
        assert_eq!(AutoclearFeatures::from_bits(7).unknown().bits(), 4);
    }

    #[test]
    fn the_image_names_its_bits() {
        let table = [FeatureName { kind: 0, bit: 5, name: "moon phase".into() }];
        let bits = IncompatibleFeatures::from_bits(0b110_0001);
        assert_eq!(bits.names(&table), ["dirty bit", "moon phase", "unknown incompatible feature bit 6"]);
        // The same bit of another field is another feature.
        assert_eq!(CompatibleFeatures::from_bits(1 << 5).names(&table), ["unknown compatible feature bit 5"]);
    }

    #[test]
    fn table_entries_survive_both_ways() {
        let mut bytes = vec![2u8, 7];
        bytes.extend(b"caf\xe9 \0 inner");
        bytes.resize(48, 0);
        bytes.extend([0, 63]);
        bytes.extend([b'x'; 46]);
        let mut reader = Reader::new(&bytes, Structure::HeaderExtension, 0);
        let mut out = Vec::new();
        for _ in 0..2 {
            FeatureName::parse(&mut reader).unwrap().emit(&mut out);
        }
        assert_eq!(out, bytes);
        assert!(FeatureName::parse(&mut reader).is_err());
    }

    #[test]
    fn the_standard_table_is_qemus() {
        let table = FeatureName::standard_table();
        let names: Vec<_> = table.iter().map(|f| (f.kind, f.bit, f.name.to_string())).collect();
        let expected = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        assert_eq!(names, expected.map(|(kind, bit, name)| (kind, bit, name.to_string())));
    }
}
