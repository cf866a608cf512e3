//! The fast codecs: deflate with contexts that are kept, libdeflate for reading it, and the reference implementation of
//! zstd.

use std::cell::RefCell;

use qcowkit_core::Result;
use qcowkit_core::codec::{Codecs, CompressionType, Zlib};

/// Codecs for many clusters on many threads: each thread keeps its own contexts, so calls share nothing.
///
/// Levels are those that `qemu-img convert -c` uses: 6 for zlib, 3 for zstd. Without the feature `zstd`, zstd falls
/// back to the pure-Rust codec, whose output is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NativeCodecs;

thread_local! {
    static ZLIB: RefCell<Zlib> = const { RefCell::new(Zlib::new()) };
}

impl Codecs for NativeCodecs {
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()> {
        match method {
            CompressionType::Zlib => inflate(from, into),
            #[cfg(feature = "zstd")]
            CompressionType::Zstd => reference::decompress(from, into),
            other => qcowkit_core::codec::BuiltinCodecs.decompress(other, from, into),
        }
    }

    fn compress(&self, method: CompressionType, from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        match method {
            CompressionType::Zlib => ZLIB.with_borrow_mut(|zlib| zlib.compress(from, out)),
            #[cfg(feature = "zstd")]
            CompressionType::Zstd => reference::compress(from, out),
            other => qcowkit_core::codec::BuiltinCodecs.compress(other, from, out),
        }
    }
}

/// Unpacks a deflate stream.
///
/// What libdeflate does not take goes to the decoder of the core, which says what is wrong, and knows the streams that
/// QEMU accepts though they do not end where the cluster is full.
fn inflate(from: &[u8], into: &mut [u8]) -> Result<()> {
    #[cfg(feature = "libdeflate")]
    if fast::inflate(from, into) {
        return Ok(());
    }
    ZLIB.with_borrow_mut(|zlib| zlib.decompress(from, into))
}

/// deflate through libdeflate.
#[cfg(feature = "libdeflate")]
mod fast {
    use std::cell::RefCell;

    use libdeflater::Decompressor;

    thread_local! {
        // Kept per thread: its tables take 11 KiB.
        static DECODER: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    }

    /// Whether the stream gave exactly as many bytes as there is room for; `into` is unspecified if not.
    pub(super) fn inflate(from: &[u8], into: &mut [u8]) -> bool {
        DECODER.with_borrow_mut(|slot| {
            let decoder = slot.get_or_insert_with(Decompressor::new);
            decoder.deflate_decompress(from, into).is_ok_and(|written| written == into.len())
        })
    }
}

/// zstd through the C library.
#[cfg(feature = "zstd")]
mod reference {
    use std::cell::RefCell;

    use qcowkit_core::{Error, ErrorKind, Result};
    use zstd::zstd_safe::{self, CCtx, DCtx};

    thread_local! {
        // Kept per thread: an encoder's tables take longer to allocate than a cluster to pack.
        static ENCODER: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
        static DECODER: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn decompress(mut from: &[u8], into: &mut [u8]) -> Result<()> {
        DECODER.with_borrow_mut(|slot| {
            let decoder = kept(slot, DCtx::try_create)?;
            let mut rest = into;
            while !rest.is_empty() {
                // One call per frame into a fixed target: no window is allocated, whatever the frame claims to need,
                // and the padding after the frame stays out of it.
                let length = zstd_safe::find_frame_compressed_size(from).map_err(damaged)?;
                let (frame, after) = from
                    .split_at_checked(length)
                    .ok_or_else(|| Error::new(ErrorKind::Codec("zstd stream: cut off".into())))?;
                let written = decoder.decompress(&mut *rest, frame).map_err(damaged)?;
                rest = rest.get_mut(written..).unwrap_or_default();
                from = after;
            }
            Ok(())
        })
    }

    pub(super) fn compress(from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        ENCODER.with_borrow_mut(|slot| {
            let encoder = kept(slot, CCtx::try_create)?;
            out.clear();
            out.reserve(zstd_safe::compress_bound(from.len()));
            let length = encoder
                .compress2(out, from)
                .map_err(|code| Error::new(ErrorKind::Codec(format!("zstd: {}", zstd_safe::get_error_name(code)))))?;
            Ok(length < from.len())
        })
    }

    fn kept<T>(slot: &mut Option<T>, create: impl FnOnce() -> Option<T>) -> Result<&mut T> {
        if slot.is_none() {
            *slot = create();
        }
        slot.as_mut().ok_or_else(|| Error::new(ErrorKind::Codec("zstd: out of memory".into())))
    }

    fn damaged(code: usize) -> Error {
        Error::new(ErrorKind::Codec(format!("zstd stream: {}", zstd_safe::get_error_name(code))))
    }
}
