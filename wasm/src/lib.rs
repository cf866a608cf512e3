//! qcowkit for JavaScript: converts, calls, converts back. Nothing here knows what a qcow2 file means.

mod error;
mod image;

use wasm_bindgen::prelude::*;

pub use image::Image;

/// The version of the package.
#[wasm_bindgen]
#[must_use]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Every `code` that an error of the format can have.
#[wasm_bindgen(js_name = errorCodes)]
#[must_use]
pub fn error_codes() -> Vec<String> {
    qcowkit_core::ErrorKind::CODES.iter().map(|&code| code.to_owned()).collect()
}
