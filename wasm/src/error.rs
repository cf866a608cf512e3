//! Errors of the core become JavaScript's `Error` with a `code` and a place.

use js_sys::Reflect;
use qcowkit_core::Error;
use wasm_bindgen::prelude::*;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** What went wrong; the names are the same in Rust and Python. */
export type ErrorCode =
  | "storage" | "not_qcow2" | "corrupt" | "unsupported" | "encrypted" | "wrong_key" | "denied"
  | "invalid_argument" | "out_of_range" | "read_only" | "locked" | "limit" | "no_space" | "codec" | "poisoned" | "closed";

/** What is thrown: an `Error` that says what and where. What does not apply is undefined. */
export interface QcowError extends Error {
  readonly name: "QcowError";
  readonly code: ErrorCode;
  /** The structure of the format, such as "l1_table". */
  readonly structure?: string;
  /** Byte position in the image file; a bigint from 2^53 on, which only broken images reach. */
  readonly host_offset?: number | bigint;
  /** Byte position in the virtual disk; likewise. */
  readonly guest_offset?: number | bigint;
  /** The entry within the structure; likewise. */
  readonly index?: number | bigint;
  /** Distance from the top of the backing chain. */
  readonly depth?: number;
}
"#;

/// The `Error` to throw for an error of the core.
pub(crate) fn thrown(error: &Error) -> JsValue {
    let site = error.site();
    let made = named(error.kind().code(), &error.to_string());
    if let Some(structure) = site.structure {
        set(&made, "structure", structure.code().into());
    }
    for (key, value) in [("host_offset", site.host_offset), ("guest_offset", site.guest_offset), ("index", site.index)]
    {
        if let Some(value) = value {
            set(&made, key, number(value));
        }
    }
    if let Some(depth) = site.depth {
        set(&made, "depth", depth.into());
    }
    made.into()
}

/// The `Error` for the use of an image after `close()`.
pub(crate) fn closed() -> JsValue {
    named("closed", "the image is closed").into()
}

/// The `Error` for a number that JavaScript cannot hold.
pub(crate) fn limit(message: &str) -> JsValue {
    named("limit", message).into()
}

/// A number of the place: `number` where that is exact, which is below 2^53, and `bigint` beyond.
#[expect(clippy::cast_precision_loss, reason = "below 2^53 every integer is exact")]
fn number(value: u64) -> JsValue {
    if value < 1 << f64::MANTISSA_DIGITS { JsValue::from_f64(value as f64) } else { value.into() }
}

fn named(code: &str, message: &str) -> js_sys::Error {
    let made = js_sys::Error::new(message);
    made.set_name("QcowError");
    set(&made, "code", code.into());
    made
}

/// Sets a property. That can fail on a frozen object only, and this one was just made.
fn set(object: &js_sys::Error, key: &str, value: JsValue) {
    let _ = Reflect::set(object, &key.into(), &value);
}
