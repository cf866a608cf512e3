//! Parts of the module that are loaded when they are needed (`xtask/bindgen` splits it).
//!
//! Most are needed by a call as such, and are loaded before any of it runs. Ciphers and codecs are needed in the midst of a
//! call: there a part that cannot be loaded is an error like any other, and comes out of the call as JavaScript's own.

use std::sync::Arc;

use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType};
use qcowkit_core::crypto::{KeyRequest, KeySource, Keyring, Secret};
use qcowkit_core::image::OpenOptions;
use qcowkit_core::{Error, Result};
use wasm_bindgen::prelude::*;

use crate::error;

#[wasm_bindgen(raw_module = "./qcowkit_parts.js")]
extern "C" {
    /// Loads a part by its name, unless it is there.
    #[wasm_bindgen(catch)]
    fn need(part: &str) -> std::result::Result<(), JsValue>;
}

fn have(part: &str) -> Result<()> {
    need(part).map_err(|thrown| {
        error::missing(thrown);
        Error::unsupported(format!("the part '{part}' of the module is not loaded"))
    })
}

/// Has what may turn out to be needed loaded then.
pub(crate) fn on_demand(options: &mut OpenOptions, key: Option<Secret>) {
    options.codecs = Arc::new(OnDemand);
    options.keys = key.map(|key| Arc::new(Keys(Keyring::new().with(key))) as Arc<dyn KeySource + Send + Sync>);
}

struct OnDemand;

impl Codecs for OnDemand {
    fn decompress(&self, method: CompressionType, from: &[u8], into: &mut [u8]) -> Result<()> {
        have("codecs")?;
        BuiltinCodecs.decompress(method, from, into)
    }

    fn compress(&self, method: CompressionType, from: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        have("codecs")?;
        BuiltinCodecs.compress(method, from, out)
    }
}

/// Nothing of an image is deciphered before a key was asked for.
struct Keys(Keyring);

impl KeySource for Keys {
    fn key(&self, request: &KeyRequest<'_>) -> Result<Option<Secret>> {
        have("crypto")?;
        self.0.key(request)
    }
}
