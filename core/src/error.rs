//! The one error of this crate: what happened, where, and what lay below it.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use crate::storage::StorageError;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// What went wrong. Each kind maps to one Python exception, one JavaScript code and one exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The storage below failed.
    #[error("{0}")]
    Storage(#[source] StorageError),
    /// The magic `QFI\xfb` is missing.
    #[error("not a qcow2 image: the magic number is missing")]
    NotQcow2,
    /// The image contradicts its specification or itself.
    #[error("corrupt image: {0}")]
    Corrupt(String),
    /// The image needs something that this version, or this call, does not support. The text names it.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The guest data is encrypted and no key was given; ciphertext is never returned as data.
    #[error("the image is encrypted ({0}) and no key was given")]
    Encrypted(String),
    /// None of the keys that were given opens the image.
    #[error("wrong key: {0}")]
    WrongKey(String),
    /// A file that the image names may not be opened by this caller.
    #[error("denied: {0}")]
    Denied(String),
    /// An argument of the call is wrong.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A guest range reaches beyond the end of the virtual disk.
    #[error("beyond the end of the virtual disk")]
    OutOfRange,
    /// A write was asked of an image that was opened read-only.
    #[error("the image is open read-only")]
    ReadOnly,
    /// Another process holds the image.
    #[error("{0}")]
    Locked(String),
    /// A table or field exceeds a named limit; the text names the limit.
    #[error("limit exceeded: {0}")]
    Limit(String),
    /// The storage or the format has no room left.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// Compressed data could not be unpacked or packed.
    #[error("compression: {0}")]
    Codec(String),
    /// An earlier failure left the state in memory unsure: only closing is possible now.
    #[error("the image is unusable after an earlier error: {0}")]
    Poisoned(String),
}

impl ErrorKind {
    /// Every code that [`ErrorKind::code`] gives.
    pub const CODES: [&'static str; 15] = [
        "storage",
        "not_qcow2",
        "corrupt",
        "unsupported",
        "encrypted",
        "wrong_key",
        "denied",
        "invalid_argument",
        "out_of_range",
        "read_only",
        "locked",
        "limit",
        "no_space",
        "codec",
        "poisoned",
    ];

    /// The kind's name for programs: the `code` of Python exceptions and JavaScript errors. It never changes.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Storage(_) => "storage",
            Self::NotQcow2 => "not_qcow2",
            Self::Corrupt(_) => "corrupt",
            Self::Unsupported(_) => "unsupported",
            Self::Encrypted(_) => "encrypted",
            Self::WrongKey(_) => "wrong_key",
            Self::Denied(_) => "denied",
            Self::InvalidArgument(_) => "invalid_argument",
            Self::OutOfRange => "out_of_range",
            Self::ReadOnly => "read_only",
            Self::Locked(_) => "locked",
            Self::Limit(_) => "limit",
            Self::NoSpace(_) => "no_space",
            Self::Codec(_) => "codec",
            Self::Poisoned(_) => "poisoned",
        }
    }
}

/// A structure of the format, as error messages, reports and JSON name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Structure {
    /// The header (section "Header").
    Header,
    /// A header extension (section "Header extensions").
    HeaderExtension,
    /// The active or a snapshot's L1 table.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// A host cluster with guest data.
    DataCluster,
    /// A compressed cluster.
    CompressedCluster,
    /// The snapshot table (section "Snapshots").
    SnapshotTable,
    /// The bitmap directory (section "Bitmap directory").
    BitmapDirectory,
    /// A bitmap table.
    BitmapTable,
    /// A cluster of bitmap data.
    BitmapData,
    /// The LUKS header (section "Full disk encryption header pointer").
    CryptoHeader,
    /// The name of the backing file.
    BackingFile,
    /// The external data file.
    DataFile,
}

impl Structure {
    /// Every structure.
    pub const ALL: [Self; 15] = [
        Self::Header,
        Self::HeaderExtension,
        Self::L1Table,
        Self::L2Table,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::DataCluster,
        Self::CompressedCluster,
        Self::SnapshotTable,
        Self::BitmapDirectory,
        Self::BitmapTable,
        Self::BitmapData,
        Self::CryptoHeader,
        Self::BackingFile,
        Self::DataFile,
    ];

    /// The structure's name for programs, the same as in JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::HeaderExtension => "header_extension",
            Self::L1Table => "l1_table",
            Self::L2Table => "l2_table",
            Self::RefcountTable => "refcount_table",
            Self::RefcountBlock => "refcount_block",
            Self::DataCluster => "data_cluster",
            Self::CompressedCluster => "compressed_cluster",
            Self::SnapshotTable => "snapshot_table",
            Self::BitmapDirectory => "bitmap_directory",
            Self::BitmapTable => "bitmap_table",
            Self::BitmapData => "bitmap_data",
            Self::CryptoHeader => "crypto_header",
            Self::BackingFile => "backing_file",
            Self::DataFile => "data_file",
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::HeaderExtension => "header extension",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::DataCluster => "data cluster",
            Self::CompressedCluster => "compressed cluster",
            Self::SnapshotTable => "snapshot table",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::BitmapData => "bitmap data",
            Self::CryptoHeader => "encryption header",
            Self::BackingFile => "backing file",
            Self::DataFile => "data file",
        })
    }
}

/// Where it went wrong. Offsets are in bytes; what does not apply is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Site {
    /// The structure of the format.
    pub structure: Option<Structure>,
    /// Byte position in the image file or data file.
    pub host_offset: Option<u64>,
    /// Byte position in the virtual disk.
    pub guest_offset: Option<u64>,
    /// Index within the structure (entry number, field position, ...).
    pub index: Option<u64>,
    /// Distance from the top of the backing chain; 0 is the image itself.
    pub depth: Option<u32>,
}

/// What happened, where, and its cause.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    site: Site,
}

impl Error {
    /// An error without a place; see the `at_*` methods.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, site: Site::default() }))
    }

    /// A contradiction in the image.
    #[must_use]
    pub fn corrupt(structure: Structure, what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt(what.into())).in_structure(structure)
    }

    /// Something that is not supported; `what` names it.
    #[must_use]
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported(what.into()))
    }

    /// A wrong argument.
    #[must_use]
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument(what.into()))
    }

    /// What happened.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Where it happened.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    /// Adds the structure, unless a deeper floor has named one.
    #[must_use]
    pub fn in_structure(mut self, structure: Structure) -> Self {
        self.0.site.structure.get_or_insert(structure);
        self
    }

    /// Adds the host offset, unless a deeper floor has named one.
    #[must_use]
    pub fn at_host(mut self, offset: u64) -> Self {
        self.0.site.host_offset.get_or_insert(offset);
        self
    }

    /// Adds the guest offset, unless a deeper floor has named one.
    #[must_use]
    pub fn at_guest(mut self, offset: u64) -> Self {
        self.0.site.guest_offset.get_or_insert(offset);
        self
    }

    /// Adds the index, unless a deeper floor has named one.
    #[must_use]
    pub fn at_index(mut self, index: u64) -> Self {
        self.0.site.index.get_or_insert(index);
        self
    }

    /// Adds the depth in the backing chain, unless a deeper floor has named one.
    #[must_use]
    pub fn at_depth(mut self, depth: u32) -> Self {
        self.0.site.depth.get_or_insert(depth);
        self
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let offset = error.offset;
        let error = Self::new(ErrorKind::Storage(error));
        match offset {
            Some(offset) => error.at_host(offset),
            None => error,
        }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.kind)?;
        let site = &self.0.site;
        let mut separator = " (";
        let mut part = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            let done = write!(f, "{separator}{text}");
            separator = ", ";
            done
        };
        let mut any = false;
        if let Some(structure) = site.structure {
            any = true;
            part(f, format_args!("{structure}"))?;
        }
        if let Some(index) = site.index {
            any = true;
            part(f, format_args!("index {index}"))?;
        }
        if let Some(offset) = site.host_offset {
            any = true;
            part(f, format_args!("host offset {offset:#x}"))?;
        }
        if let Some(offset) = site.guest_offset {
            any = true;
            part(f, format_args!("guest offset {offset:#x}"))?;
        }
        if let Some(depth) = site.depth.filter(|&depth| depth > 0) {
            any = true;
            part(f, format_args!("backing depth {depth}"))?;
        }
        if any { f.write_str(")") } else { Ok(()) }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.0.kind).field("site", &self.0.site).finish()
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.0.kind {
            ErrorKind::Storage(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_of_its_own_that_is_listed() {
        let kinds = [
            ErrorKind::Storage(StorageError::new(crate::storage::StorageErrorKind::NoSpace, "write")),
            ErrorKind::NotQcow2,
            ErrorKind::Corrupt(String::new()),
            ErrorKind::Unsupported(String::new()),
            ErrorKind::Encrypted(String::new()),
            ErrorKind::WrongKey(String::new()),
            ErrorKind::Denied(String::new()),
            ErrorKind::InvalidArgument(String::new()),
            ErrorKind::OutOfRange,
            ErrorKind::ReadOnly,
            ErrorKind::Locked(String::new()),
            ErrorKind::Limit(String::new()),
            ErrorKind::NoSpace(String::new()),
            ErrorKind::Codec(String::new()),
            ErrorKind::Poisoned(String::new()),
        ];
        assert_eq!(kinds.map(|kind| kind.code()), ErrorKind::CODES);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_structure_has_the_same_name_in_json() {
        for structure in [Structure::L1Table, Structure::HeaderExtension, Structure::CryptoHeader] {
            let json = serde_json::to_value(structure).unwrap();
            assert_eq!(json, structure.code());
        }
    }
}
