//! Options from JavaScript: plain objects, whose members are read by name. A member that nobody asked for is refused.

use js_sys::{Array, Function, Object, Reflect, Uint8Array};
use qcowkit_core::{Error, ErrorKind};
use wasm_bindgen::prelude::*;

use crate::error;
use crate::json::MAX_EXACT;

/// What binding functions return.
pub(crate) type Thrown<T> = Result<T, JsValue>;

// What a caller made can throw wherever it is looked at (a getter, a proxy, an iterator). An exception that nobody catches
// here would leave the functions of this module without their ends, and an image borrowed for ever.
#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_namespace = Object, js_name = keys)]
    fn keys_of(object: &JsValue) -> Result<Array, JsValue>;

    #[wasm_bindgen(catch, js_namespace = Array, js_name = isArray)]
    fn is_array(value: &JsValue) -> Result<bool, JsValue>;

    #[wasm_bindgen(catch, js_namespace = Array, js_name = from)]
    fn copy_of(list: &JsValue) -> Result<Array, JsValue>;

    /// An array that may be too large for its engine.
    #[wasm_bindgen(js_name = Uint8Array)]
    type Room;

    #[wasm_bindgen(catch, constructor, js_class = "Uint8Array")]
    fn new(length: f64) -> Result<Room, JsValue>;
}

/// An array of JavaScript's with room for so many bytes; what its engine throws if it has no such room.
pub(crate) fn array(length: u64) -> Thrown<Uint8Array> {
    Ok(Room::new(number(length))?.unchecked_into())
}

/// The items of an array, which `name` has to be.
pub(crate) fn items(list: &JsValue, name: &str) -> Thrown<Vec<JsValue>> {
    if !is_array(list)? {
        return Err(invalid(format!("{name} must be an array")));
    }
    Ok(copy_of(list)?.iter().collect())
}

/// A byte offset or length from JavaScript.
///
/// # Errors
/// `limit` from 2^53 on, `invalid_argument` for what is no integer from 0 up.
pub(crate) fn bytes(value: f64, what: &str) -> Thrown<u64> {
    // NaN is neither.
    if !(value >= 0.0 && value.fract() == 0.0) {
        return Err(invalid(format!("{what} must be an integer from 0 up, not {}", shown(value))));
    }
    if value >= MAX_EXACT as f64 {
        let message = format!("{what}: JavaScript's numbers are exact below 2^53 = 9007199254740992 only");
        return Err(error::thrown(&Error::new(ErrorKind::Limit(message))));
    }
    Ok(value as u64)
}

/// A number of the core as JavaScript's; exact below 2^53, as all are that were admitted.
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// The error for a wrong argument.
pub(crate) fn invalid(message: impl Into<String>) -> JsValue {
    error::thrown(&Error::invalid(message))
}

/// A number as JavaScript writes it: formatting floating point would cost 20 kB of the module.
fn shown(value: f64) -> String {
    js_sys::Number::from(value).to_string_with_radix(10).map_or_else(|_| String::new(), String::from)
}

/// The options of one call.
pub(crate) struct Options<'a> {
    /// `undefined` without any.
    object: &'a JsValue,
    asked: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// Of an argument that may be left out.
    pub(crate) fn new(object: &'a JsValue) -> Thrown<Self> {
        if !object.is_undefined() && !object.is_object() {
            return Err(invalid("options must be an object"));
        }
        Ok(Self { object, asked: Vec::new() })
    }

    /// A member; `None` where it is missing, undefined or null.
    pub(crate) fn value(&mut self, name: &'static str) -> Thrown<Option<JsValue>> {
        self.asked.push(name);
        if self.object.is_undefined() {
            return Ok(None);
        }
        let value = Reflect::get(self.object, &name.into())?;
        Ok(Some(value).filter(|value| !value.is_undefined() && !value.is_null()))
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Thrown<Option<bool>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| invalid(format!("{name} must be true or false")))
    }

    /// A number of bytes, or another integer from 0 up.
    pub(crate) fn number(&mut self, name: &'static str) -> Thrown<Option<u64>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        let value = value.as_f64().ok_or_else(|| invalid(format!("{name} must be a number")))?;
        bytes(value, name).map(Some)
    }

    pub(crate) fn small(&mut self, name: &'static str) -> Thrown<Option<u32>> {
        let Some(value) = self.number(name)? else { return Ok(None) };
        u32::try_from(value).map(Some).map_err(|_| invalid(format!("{name} must be below 2^32")))
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Thrown<Option<String>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        value.as_string().map(Some).ok_or_else(|| invalid(format!("{name} must be a string")))
    }

    pub(crate) fn function(&mut self, name: &'static str) -> Thrown<Option<Function>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        value.dyn_into().map(Some).map_err(|_| invalid(format!("{name} must be a function")))
    }

    /// Bytes, or a text as UTF-8.
    pub(crate) fn secret(&mut self, name: &'static str) -> Thrown<Option<Vec<u8>>> {
        let Some(value) = self.value(name)? else { return Ok(None) };
        match (value.as_string(), value.dyn_ref::<Uint8Array>()) {
            (Some(text), _) => Ok(Some(text.into_bytes())),
            (None, Some(bytes)) => Ok(Some(bytes.to_vec())),
            (None, None) => Err(invalid(format!("{name} must be a string or a Uint8Array"))),
        }
    }

    /// One of several words.
    pub(crate) fn choice<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Thrown<Option<T>> {
        let Some(word) = self.text(name)? else { return Ok(None) };
        let found = words.iter().find(|(known, _)| *known == word).map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
            invalid(format!("{name} must be one of {}, not '{word}'", known.join(", ")))
        })
    }

    /// Refuses members that nobody asked for.
    pub(crate) fn finish(self) -> Thrown<()> {
        if self.object.is_undefined() {
            return Ok(());
        }
        for key in keys_of(self.object)?.iter() {
            let key = key.as_string().unwrap_or_default();
            if !self.asked.contains(&key.as_str()) {
                return Err(invalid(format!("there is no option '{key}'; there are {}", self.asked.join(", "))));
            }
        }
        Ok(())
    }
}

/// Sets a member of an object that was just made: nothing can refuse it.
pub(crate) fn set(object: &Object, name: &str, value: &JsValue) {
    let _ = Reflect::set(object, &name.into(), value);
}
