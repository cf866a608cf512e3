//! qcowkit for JavaScript: converts, calls, converts back. Nothing here knows what a qcow2 file means.

use wasm_bindgen::prelude::*;

/// The version of the package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
