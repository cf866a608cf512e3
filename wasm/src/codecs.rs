//! Compressed clusters are read here, and not written: packing would cost a third of the module's bytes.

use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType};
use qcowkit_core::{Error, Result};

/// The codecs of the core, without those that pack.
#[derive(Debug)]
pub(crate) struct ReadingCodecs;

impl Codecs for ReadingCodecs {
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()> {
        BuiltinCodecs.decompress(method, from, into)
    }

    fn compress(&self, _: CompressionType, _: &[u8], _: &mut Vec<u8>) -> Result<bool> {
        Err(Error::unsupported("writing compressed clusters in the browser"))
    }
}
