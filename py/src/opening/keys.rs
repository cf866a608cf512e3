//! Keys of encrypted images. They are kept in memory that is overwritten when it is dropped, and never printed.

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use qcowkit_core::Result;
use qcowkit_core::crypto::{KeyRequest, KeySource, Keyring, Secret};

use crate::calls;

/// What `key=` gives: one key for all layers, or a function that is asked.
///
/// # Errors
/// Neither text, bytes nor a function.
pub(crate) fn source_of(key: &Bound<'_, PyAny>) -> PyResult<Arc<dyn KeySource + Send + Sync>> {
    if key.is_callable() {
        return Ok(Arc::new(Asked(key.clone().unbind())));
    }
    Ok(Arc::new(Keyring::new().with(secret_of(key)?)))
}

/// A key: text in UTF-8, or bytes as they are.
///
/// # Errors
/// Another type.
pub(crate) fn secret_of(key: &Bound<'_, PyAny>) -> PyResult<Secret> {
    if let Ok(text) = key.extract::<&str>() {
        return Ok(Secret::from(text));
    }
    match key.cast::<PyBytes>() {
        Ok(bytes) => Ok(Secret::new(bytes.as_bytes().to_vec())),
        // Not the object itself: that may be a key.
        Err(_) => Err(PyTypeError::new_err(format!("a key is bytes or str, not {}", key.get_type().name()?))),
    }
}

/// A function of Python that is asked for keys.
struct Asked(Py<PyAny>);

impl KeySource for Asked {
    fn key(&self, request: &KeyRequest<'_>) -> Result<Option<Secret>> {
        Python::attach(|py| {
            let arguments = (request.depth, request.identity, request.method.name(), request.attempt);
            let answer = self.0.bind(py).call1(arguments)?;
            if answer.is_none() { Ok(None) } else { secret_of(&answer).map(Some) }
        })
        .map_err(|error: PyErr| Python::attach(|py| calls::raised(py, error, "get a key")).into())
    }
}
