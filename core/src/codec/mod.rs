//! Compression of clusters: which methods the format knows, and how bytes get in and out of them.
//!
//! The format leaves two traps that most wrappers of codecs fall into. Bytes follow the stream, because the stored
//! length counts 512-byte sectors: a decoder takes what it needs and ignores the rest. And deflate streams have to keep
//! to a window of 4 KiB, since readers may open them with 12 window bits as QEMU does.
//!
//! Everything else speaks to [`Codecs`], so that `native` brings faster ones and users can plug in their own;
//! [`BuiltinCodecs`] are pure Rust and work everywhere.

use alloc::string::String;
use alloc::vec::Vec;
use core::{fmt, str};

use crate::error::{Error, ErrorKind, Result};

#[cfg(feature = "inflate")]
mod zlib;
#[cfg(feature = "unzstd")]
mod zstd;

#[cfg(feature = "inflate")]
pub use zlib::Zlib;

/// The compression method of an image: the header field `compression_type` (section "Header", byte 104).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum CompressionType {
    /// Raw deflate without header or checksum, in a window of 4 KiB.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl CompressionType {
    /// The method behind a value of the header field.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for values that the specification does not define.
    pub fn from_u8(value: u8) -> Result<Self> {
        match value {
            0 => Ok(Self::Zlib),
            1 => Ok(Self::Zstd),
            other => Err(Error::unsupported(alloc::format!("compression type {other}"))),
        }
    }

    /// The value of the header field.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }

    /// The name that `qemu-img` uses in options and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for CompressionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl str::FromStr for CompressionType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Zlib, Self::Zstd].into_iter().find(|known| known.name() == name).ok_or_else(|| {
            Error::invalid(alloc::format!("'{name}' is not a compression type; there are zlib and zstd"))
        })
    }
}

/// What packs and unpacks clusters.
///
/// ```
/// # #[cfg(feature = "zlib")] {
/// use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType};
///
/// let cluster = vec![7; 65536];
/// let mut packed = Vec::new();
/// assert!(BuiltinCodecs.compress(CompressionType::Zlib, &cluster, &mut packed)?);
///
/// packed.resize(packed.len().next_multiple_of(512), 0xff);
/// let mut unpacked = vec![0; 65536];
/// BuiltinCodecs.decompress(CompressionType::Zlib, &packed, &mut unpacked)?;
/// assert_eq!(unpacked, cluster);
/// # }
/// # Ok::<(), qcowkit_core::Error>(())
/// ```
///
/// Calls do not depend on each other, so one value may serve many threads.
///
/// A method that an implementation does not have is [`ErrorKind::Unsupported`]; everything else that goes wrong is
/// [`ErrorKind::Codec`]. No bytes make a call panic, and memory stays within a small multiple of the cluster size.
pub trait Codecs {
    /// Unpacks into exactly `into.len()` bytes, one cluster. What follows the stream in `from` is padding.
    ///
    /// # Errors
    /// The stream is damaged, or ends before the cluster is full. `into` then holds anything.
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()>;

    /// Packs one cluster into `out`, whose former contents are lost (its memory is used again).
    ///
    /// `Ok(false)`: the result would not be smaller than `from`; store the cluster plainly. `out` then holds anything.
    ///
    /// # Errors
    /// The encoder failed for a reason other than data that does not shrink.
    fn compress(&self, method: CompressionType, from: &[u8], out: &mut Vec<u8>) -> Result<bool>;
}

impl<C: Codecs + ?Sized> Codecs for &C {
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()> {
        (**self).decompress(method, from, into)
    }

    fn compress(&self, method: CompressionType, from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        (**self).compress(method, from, out)
    }
}

/// The pure-Rust codecs: zlib-rs behind the feature `zlib`, ruzstd behind `zstd`; for reading alone,
/// behind `inflate` and `unzstd`.
///
/// Deflate is on a par with C. The zstd encoder is fast to start but its output is about a third larger than that of
/// the reference encoder; its decoder does not look at frame checksums (QEMU writes none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BuiltinCodecs;

impl Codecs for BuiltinCodecs {
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()> {
        match method {
            #[cfg(feature = "inflate")]
            CompressionType::Zlib => Zlib::new().decompress(from, into),
            #[cfg(feature = "unzstd")]
            CompressionType::Zstd => zstd::decompress(from, into),
            #[cfg(not(all(feature = "inflate", feature = "unzstd")))]
            other => {
                let _ = (from, into);
                Err(not_built_in(other))
            }
        }
    }

    fn compress(&self, method: CompressionType, from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        match method {
            #[cfg(feature = "zlib")]
            CompressionType::Zlib => Zlib::new().compress(from, out),
            #[cfg(feature = "zstd")]
            CompressionType::Zstd => Ok(zstd::compress(from, out)),
            #[cfg(not(all(feature = "zlib", feature = "zstd")))]
            other => {
                let _ = (from, out);
                Err(not_built_in(other))
            }
        }
    }
}

#[cfg(not(all(feature = "zlib", feature = "zstd")))]
fn not_built_in(method: CompressionType) -> Error {
    Error::unsupported(alloc::format!(
        "{method} compression is left out of this build: it reads compressed clusters and writes plain ones; a full build \
         such as the command line compresses (qcowkit convert -c)"
    ))
}

#[cfg_attr(not(any(feature = "inflate", feature = "unzstd")), expect(dead_code, reason = "no codec can fail"))]
fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Codec(what.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn header_values_and_names_go_both_ways() {
        for (value, method, name) in [(0, CompressionType::Zlib, "zlib"), (1, CompressionType::Zstd, "zstd")] {
            assert_eq!(CompressionType::from_u8(value).unwrap(), method);
            assert_eq!(method.to_u8(), value);
            assert_eq!(method.to_string(), name);
            assert_eq!(name.parse::<CompressionType>().unwrap(), method);
            #[cfg(feature = "serde")]
            assert_eq!(serde_json::to_string(&method).unwrap(), alloc::format!("\"{name}\""));
        }
        assert!(matches!(CompressionType::from_u8(2).unwrap_err().kind(), ErrorKind::Unsupported(_)));
        assert!(matches!("lz4".parse::<CompressionType>().unwrap_err().kind(), ErrorKind::InvalidArgument(_)));
    }
}
