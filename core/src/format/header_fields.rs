//! The header field by field, for people: name, place, bits, meaning. Whatever the values are.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Header;
use super::count::counted;

/// A field of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderField {
    /// The name in the specification.
    pub name: &'static str,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its value.
    pub raw: u64,
    /// What the value says, in words; empty where it says nothing more.
    pub meaning: String,
}

impl Header {
    /// Every field that the header has room for, in order (section "Header"). Feature bits are only numbers here; see
    /// their `names`.
    #[must_use]
    pub fn fields(&self) -> Vec<HeaderField> {
        let field =
            |name, offset, length, raw: u64, meaning: String| HeaderField { name, offset, length, raw, meaning };
        let mut fields = alloc::vec![
            field("magic", 0, 4, super::header::MAGIC.into(), "QFI\\xfb".into()),
            field("version", 4, 4, self.version.into(), version(self.version)),
            field("backing_file_offset", 8, 8, self.backing_file_offset, offset(self.backing_file_offset)),
            field("backing_file_size", 16, 4, self.backing_file_size.into(), bytes(self.backing_file_size.into())),
            field("cluster_bits", 20, 4, self.cluster_bits.into(), power(self.cluster_bits, "bytes")),
            field("size", 24, 8, self.virtual_size, bytes(self.virtual_size)),
            field("crypt_method", 32, 4, self.crypt_method.into(), encryption(self.crypt_method).to_string()),
            field("l1_size", 36, 4, self.l1_size.into(), counted(self.l1_size.into(), "entry")),
            field("l1_table_offset", 40, 8, self.l1_table_offset, offset(self.l1_table_offset)),
            field("refcount_table_offset", 48, 8, self.refcount_table_offset, offset(self.refcount_table_offset)),
            field(
                "refcount_table_clusters",
                56,
                4,
                self.refcount_table_clusters.into(),
                counted(self.refcount_table_clusters.into(), "cluster")
            ),
            field("nb_snapshots", 60, 4, self.snapshot_count.into(), counted(self.snapshot_count.into(), "snapshot")),
            field("snapshots_offset", 64, 8, self.snapshots_offset, offset(self.snapshots_offset)),
        ];
        if self.version < 3 {
            return fields;
        }
        let names = |names: Vec<String>| if names.is_empty() { "none".into() } else { names.join(", ") };
        fields.extend([
            field("incompatible_features", 72, 8, self.incompatible.bits(), names(self.incompatible.names(&[]))),
            field("compatible_features", 80, 8, self.compatible.bits(), names(self.compatible.names(&[]))),
            field("autoclear_features", 88, 8, self.autoclear.bits(), names(self.autoclear.names(&[]))),
            field("refcount_order", 96, 4, self.refcount_order.into(), power(self.refcount_order, "bits")),
            field("header_length", 100, 4, self.header_length.into(), bytes(self.header_length.into())),
        ]);
        if self.header_length > 104 {
            let kind = match self.compression_type {
                0 => "deflate (zlib)",
                1 => "zstd",
                _ => "unknown",
            };
            fields.push(field("compression_type", 104, 1, self.compression_type.into(), kind.into()));
        }
        fields
    }
}

fn version(version: u32) -> String {
    match version {
        2 => "compat 0.10".into(),
        3 => "compat 1.1".into(),
        _ => "unknown".into(),
    }
}

fn offset(at: u64) -> String {
    if at == 0 { "none".into() } else { format!("{at:#x}") }
}

fn bytes(count: u64) -> String {
    counted(count, "byte")
}

fn power(exponent: u32, unit: &str) -> String {
    1u64.checked_shl(exponent).map_or_else(|| "out of range".into(), |value| format!("{value} {unit}"))
}

fn encryption(method: u32) -> &'static str {
    match method {
        0 => "none",
        1 => "AES",
        2 => "LUKS",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets are those at which `emit` writes.
    #[test]
    fn every_field_is_where_its_bytes_are() {
        let mut header = Header::new(3, 16, 0x1122_3344_5566);
        header.backing_file_offset = 0x0102_0304;
        header.backing_file_size = 77;
        header.crypt_method = 2;
        header.l1_size = 0x8899;
        header.l1_table_offset = 0x30000;
        header.refcount_table_offset = 0x10000;
        header.refcount_table_clusters = 5;
        header.snapshot_count = 6;
        header.snapshots_offset = 0x70000;
        header.compression_type = 1;
        header.incompatible = super::super::IncompatibleFeatures::from_bits(0x8000_0000_0000_0009);
        let bytes = header.emit();
        let fields = header.fields();
        assert_eq!(fields.len(), 19);
        let mut end = 0;
        for field in &fields {
            assert_eq!(field.offset, end, "{}", field.name);
            end += field.length;
            let raw = &bytes[field.offset as usize..end as usize];
            let raw = raw.iter().fold(0u64, |sum, &byte| (sum << 8) | u64::from(byte));
            assert_eq!(raw, field.raw, "{}", field.name);
        }
        assert_eq!(Header::new(2, 16, 0).fields().len(), 13);
        assert!(fields[13].meaning.contains("unknown incompatible feature bit 63"), "{}", fields[13].meaning);
        header.cluster_bits = 99;
        assert_eq!(header.fields()[4].meaning, "out of range");
    }
}
