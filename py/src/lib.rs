//! The extension module `qcowkit._qcowkit`: converts, calls, converts back.
//!
//! It is private: people import the facade `qcowkit` (in `py/python/qcowkit`), which holds the exceptions, the
//! documentation and whatever is easier said in Python. Nothing here knows what a qcow2 file means.
//!
//! | module | what it does |
//! |---|---|
//! | `image` | the handle of an open image; its methods stand in several files, by subject |
//! | `opening` | from arguments of Python to an open image: source, keys, files that it names |
//! | `create` | making new images |
//! | `storage` | one kind of storage for all sources: files, bytes, Python's file objects, edits in memory |
//! | `calls` | what a call hears while it works: Ctrl-C, progress, exceptions of Python objects that it calls |
//! | `reports` | reports and tables of images, and of files that need not be images |
//! | `lab` | traces, and their replay under policies |
//! | `table` | columns in memory, lent to other libraries by Arrow's interface and the buffer protocol |
//! | `fresh` | `bytes` that are filled where they lie |
//! | `convert` | reports as Python's own objects |
//! | `error` | errors of the core as exceptions |
//!
//! # How a method is written
//! `#[pymethods]` blocks of one class may stand in many files (PyO3's feature `multiple-pymethods`). A method takes the
//! interpreter and goes through one of three doors, which give up the GIL, take the lock, map errors and hear Ctrl-C:
//!
//! - `image::Image::share` reads and writes guest bytes; many threads at once.
//! - `image::Image::with` has the image alone to look at it. Ctrl-C ends it at the next read of the storage.
//! - `image::Image::change` has the image alone to change it. Ctrl-C is heard at `calls::checkpoint` only, which
//!   is called between two changes, so that each of them is whole.
//!
//! None of the closures holds the GIL. Whoever needs Python in between goes through `calls`.

// What Python calls has as many arguments as Python gives it.
#![allow(clippy::too_many_arguments)]

mod calls;
mod convert;
mod create;
mod error;
mod fresh;
mod image;
mod lab;
mod opening;
mod reports;
mod storage;
mod table;

use pyo3::prelude::*;

// Free-threaded interpreters keep their GIL off: all state is behind locks.
#[pymodule(gil_used = false)]
mod _qcowkit {
    use pyo3::prelude::*;
    use qcowkit_core::ErrorKind;

    #[pymodule_export]
    use super::create::{create, format_of, parse_size};
    #[pymodule_export]
    use super::image::Image;
    #[pymodule_export]
    use super::lab::{Trace, replay};
    #[pymodule_export]
    use super::reports::{RepairPlan, apply_repair, audit, check, measure, plan_repair, ranges_of_table, undo_repair};
    #[pymodule_export]
    use super::table::{Column, Table, table_of};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("ERROR_CODES", ErrorKind::CODES.to_vec())
    }
}
