//! Zstandard through ruzstd.

#[cfg(feature = "zstd")]
use alloc::vec::Vec;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
#[cfg(feature = "zstd")]
use ruzstd::encoding::{self, CompressionLevel};
use ruzstd::io::Read;

use super::failed;
use crate::error::Result;

/// As [`Codecs::decompress`](super::Codecs::decompress): frames one after the other until the cluster is full.
///
/// A frame has to end where the cluster ends, as QEMU demands.
pub(super) fn decompress(mut from: &[u8], into: &mut [u8]) -> Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        // A new decoder per frame: one that is used again allocates the window that the frame claims to need (up to
        // 128 MiB), where a new one grows with its output. Clusters of more than one frame are curiosities.
        let mut decoder = FrameDecoder::new();
        match decoder.init(&mut from) {
            Ok(()) => {
                let written = decode_frame(&mut decoder, &mut from, rest)?;
                rest = rest.get_mut(written..).unwrap_or_default();
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                from = usize::try_from(length)
                    .ok()
                    .and_then(|length| from.get(length..))
                    .ok_or_else(|| failed("zstd stream: cut off in a skippable frame"))?;
            }
            Err(error) => return Err(damaged(&error)),
        }
    }
    Ok(())
}

/// Decodes the rest of one frame, whose header has been read; returns how many bytes it gave.
fn decode_frame(decoder: &mut FrameDecoder, from: &mut &[u8], into: &mut [u8]) -> Result<usize> {
    let too_large = || failed("zstd stream: holds more than one cluster");
    // The decoder stops after the block that goes beyond this, so its memory is bounded whatever the frame claims.
    let limit = BlockDecodingStrategy::UptoBytes(into.len().saturating_add(1));
    let finished = decoder.decode_blocks(&mut *from, limit).map_err(|error| damaged(&error))?;
    if !finished || decoder.can_collect() > into.len() {
        return Err(too_large());
    }
    let mut written = 0_usize;
    while decoder.can_collect() > 0 {
        let target = into.get_mut(written..).unwrap_or_default();
        match decoder.read(target).map_err(|_| too_large())? {
            0 => return Err(too_large()),
            some => written = written.saturating_add(some),
        }
    }
    Ok(written)
}

/// As [`Codecs::compress`](super::Codecs::compress). The encoder has one level that packs.
#[cfg(feature = "zstd")]
pub(super) fn compress(from: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    encoding::compress(from, &mut *out, CompressionLevel::Fastest);
    out.len() < from.len()
}

fn damaged(error: &FrameDecoderError) -> crate::Error {
    failed(alloc::format!("zstd stream: {error}"))
}
