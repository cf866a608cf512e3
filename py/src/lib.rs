//! The extension module `qcowkit._qcowkit`: converts, calls, converts back.
//!
//! It is private: people import the facade `qcowkit` (in `py/python/qcowkit`), which holds the exceptions, the
//! documentation and whatever is easier said in Python. Nothing here knows what a qcow2 file means.

mod convert;
mod error;
mod image;

use pyo3::prelude::*;

#[pymodule]
mod _qcowkit {
    use pyo3::prelude::*;
    use qcowkit_core::ErrorKind;

    #[pymodule_export]
    use super::image::Image;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("ERROR_CODES", ErrorKind::CODES.to_vec())
    }
}
