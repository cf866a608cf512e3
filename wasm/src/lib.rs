//! qcowkit for JavaScript: converts, calls, converts back. Nothing here knows what a qcow2 file means.
//!
//! What is exported is private to the TypeScript layer in `wasm/js`, which documents it; that is the package's API.
#![allow(missing_docs, reason = "the documentation is that of the TypeScript layer")]

mod edits;
mod error;
mod guest;
mod image;
mod json;
mod lab;
mod limits;
mod look;
mod memory;
mod open;
mod options;
mod parts;
mod snapshots;
mod source;
mod store;

use wasm_bindgen::prelude::*;

/// The version of the package.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// The limits of the module.
#[wasm_bindgen]
pub fn limits() -> String {
    limits::text()
}

/// Every `code` that an error can have.
#[wasm_bindgen(js_name = errorCodes)]
pub fn error_codes() -> Vec<String> {
    qcowkit_core::ErrorKind::CODES.iter().chain(&["closed", "not_loaded"]).map(|&code| code.to_owned()).collect()
}
