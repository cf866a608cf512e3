//! Raw deflate through zlib-rs.

#[cfg(feature = "zlib")]
use alloc::vec::Vec;
use core::fmt;

#[cfg(feature = "zlib")]
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::failed;
use crate::error::Result;

/// The window of what is written: 2^12 bytes. Negative means raw deflate in zlib's convention.
#[cfg(feature = "zlib")]
const WRITE_WINDOW_BITS: i32 = -12;
/// The window of what is read is the largest there is: images from tools with a window of 32 KiB exist, and QEMU reads
/// them, because a decoder that has the whole output at hand never consults its window.
const READ_WINDOW_BITS: u8 = 15;
/// zlib's default level and the memory level that QEMU asks for.
#[cfg(feature = "zlib")]
const LEVEL: i32 = 6;
#[cfg(feature = "zlib")]
const MEMORY_LEVEL: i32 = 9;

/// Deflate contexts that are kept from one cluster to the next, for those who handle many on one thread.
#[derive(Default)]
pub struct Zlib {
    #[cfg(feature = "zlib")]
    deflate: Option<Deflate>,
    inflate: Option<Inflate>,
}

impl Zlib {
    /// Contexts that are made when first needed: about 50 KiB for reading, 300 KiB for writing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            #[cfg(feature = "zlib")]
            deflate: None,
            inflate: None,
        }
    }

    /// As [`Codecs::decompress`](super::Codecs::decompress).
    ///
    /// # Errors
    /// See there.
    pub fn decompress(&mut self, from: &[u8], into: &mut [u8]) -> Result<()> {
        let inflate = match &mut self.inflate {
            Some(inflate) => {
                inflate.reset(false);
                inflate
            }
            none => none.insert(Inflate::new(false, READ_WINDOW_BITS)),
        };
        let status = inflate
            .decompress(from, into, InflateFlush::Finish)
            .map_err(|error| failed(alloc::format!("deflate stream: {}", error.as_str())))?;
        // A stream that would go on after a full cluster is accepted, as QEMU does: only these bytes are asked for.
        let full = usize::try_from(inflate.total_out()).is_ok_and(|written| written == into.len());
        match status {
            _ if full => Ok(()),
            Status::StreamEnd => Err(failed("deflate stream: ends before the cluster is full")),
            Status::Ok | Status::BufError => Err(failed("deflate stream: cut off before the cluster is full")),
        }
    }

    /// As [`Codecs::compress`](super::Codecs::compress).
    ///
    /// # Errors
    /// See there.
    #[cfg(feature = "zlib")]
    pub fn compress(&mut self, from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let deflate = match &mut self.deflate {
            Some(deflate) => {
                deflate.reset();
                deflate
            }
            none => none.insert(Deflate::new_with_config(DeflateConfig {
                level: LEVEL,
                window_bits: WRITE_WINDOW_BITS,
                mem_level: MEMORY_LEVEL,
                ..DeflateConfig::default()
            })),
        };
        // One byte less than the input: what does not fit is not worth packing.
        out.resize(from.len().saturating_sub(1), 0);
        let status = deflate.compress(from, out, DeflateFlush::Finish);
        if let Ok(Status::StreamEnd) = status {
            out.truncate(usize::try_from(deflate.total_out()).unwrap_or(usize::MAX));
            return Ok(true);
        }
        // A context with output left over is not used again: `reset` of zlib-rs 0.6.8 forgets that output but not how
        // far it had been taken, until the room for it is too small and a later cluster panics.
        self.deflate = None;
        match status {
            Ok(_) => Ok(false),
            Err(error) => Err(failed(alloc::format!("deflate: {}", error.as_str()))),
        }
    }
}

impl fmt::Debug for Zlib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zlib").field("inflate", &self.inflate.is_some()).finish_non_exhaustive()
    }
}
