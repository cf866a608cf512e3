//! Errors of the core become JavaScript's `Error` with a `code` and a place.

use std::cell::RefCell;

use js_sys::Reflect;
use qcowkit_core::storage::StorageErrorKind;
use qcowkit_core::{Error, ErrorKind};
use wasm_bindgen::prelude::*;

use crate::json::MAX_EXACT;

thread_local! {
    /// What a source threw, until the error that it led to is thrown.
    static CAUSE: RefCell<Option<JsValue>> = const { RefCell::new(None) };
    /// What a progress function threw: it ends the call, and comes out of it as it is.
    static INTERRUPT: RefCell<Option<JsValue>> = const { RefCell::new(None) };
    /// What was thrown because a part of the module is not there: it comes out of the call that needed the part.
    static MISSING: RefCell<Option<JsValue>> = const { RefCell::new(None) };
}

/// Remembers what a source threw.
pub(crate) fn keep_cause(thrown: JsValue) {
    CAUSE.set(Some(thrown));
}

/// Ends the call that is under way: reads fail from now on, and [`outcome`] throws this.
pub(crate) fn interrupt(thrown: JsValue) {
    INTERRUPT.set(Some(thrown));
}

/// Remembers what was thrown instead of loading a part of the module: [`outcome`] throws this.
pub(crate) fn missing(thrown: JsValue) {
    MISSING.set(Some(thrown));
}

/// Whether the call is to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPT.with_borrow(Option::is_some)
}

/// The result of a call of the core as JavaScript gets it.
pub(crate) fn outcome<T>(result: Result<T, Error>) -> Result<T, JsValue> {
    // Either way a result would not be that of the call: it was not done to its end, or not with all that it needs.
    let missing = MISSING.take();
    if let Some(thrown) = INTERRUPT.take().or(missing) {
        CAUSE.set(None);
        return Err(thrown);
    }
    result.map_err(|why| thrown(&why))
}

/// The `Error` to throw for an error of the core.
pub(crate) fn thrown(error: &Error) -> JsValue {
    let site = error.site();
    let code = match error.kind() {
        // The storage that can be full here is this module's memory.
        ErrorKind::Storage(full) if full.kind == StorageErrorKind::NoSpace => "no_space",
        kind => kind.code(),
    };
    let made = named(code, &error.to_string());
    if let Some(structure) = site.structure {
        set(&made, "structure", &structure.code().into());
    }
    for (key, value) in [("host_offset", site.host_offset), ("guest_offset", site.guest_offset), ("index", site.index)]
    {
        if let Some(value) = value {
            set(&made, key, &number(value));
        }
    }
    if let Some(depth) = site.depth {
        set(&made, "depth", &depth.into());
    }
    if let (ErrorKind::Storage(_), Some(cause)) = (error.kind(), CAUSE.take()) {
        set(&made, "cause", &cause);
    }
    made.into()
}

/// The `Error` for the use of what is closed.
pub(crate) fn closed(what: &str) -> JsValue {
    named("closed", &format!("the {what} is closed")).into()
}

/// A number of the place: `number` where that is exact, which is below 2^53, and `bigint` beyond.
fn number(value: u64) -> JsValue {
    if value < MAX_EXACT { JsValue::from_f64(value as f64) } else { value.into() }
}

fn named(code: &str, message: &str) -> js_sys::Error {
    let made = js_sys::Error::new(message);
    made.set_name("QcowError");
    set(&made, "code", &code.into());
    made
}

/// Sets a property. That can fail on a frozen object only, and this one was just made.
fn set(object: &js_sys::Error, key: &str, value: &JsValue) {
    let _ = Reflect::set(object, &key.into(), value);
}
