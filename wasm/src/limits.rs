//! Limits of this module beyond those of the format. Whoever hits one is told its name.

use qcowkit_core::operations::lab::MAX_TRACE_OPERATIONS;
use qcowkit_core::{Error, ErrorKind};
use serde::Serialize;

use crate::json::{self, MAX_EXACT};
use crate::source::READ_AHEAD_BYTES;

/// Bytes that one `read` returns at most: they stand in the module's memory and in JavaScript's at once.
pub(crate) const MAX_READ_BYTES: u64 = 256 << 20;
/// Bytes that `save` returns at most: what one array can be everywhere.
pub(crate) const MAX_SAVE_BYTES: u64 = (1 << 31) - 1;
/// Rows that one call lists at most.
pub(crate) const MAX_ROWS: u64 = 1 << 20;

#[derive(Serialize)]
struct Limits {
    max_offset: u64,
    max_read_bytes: u64,
    max_save_bytes: u64,
    max_rows: u64,
    max_trace_operations: u64,
    read_ahead_bytes: u64,
}

/// The limits, for the TypeScript layer.
pub(crate) fn text() -> String {
    json::text(&Limits {
        max_offset: MAX_EXACT - 1,
        max_read_bytes: MAX_READ_BYTES,
        max_save_bytes: MAX_SAVE_BYTES,
        max_rows: MAX_ROWS,
        max_trace_operations: MAX_TRACE_OPERATIONS as u64,
        read_ahead_bytes: READ_AHEAD_BYTES,
    })
}

/// The error of a call that would exceed a limit.
pub(crate) fn limit(what: &str, name: &str, most: u64) -> Error {
    Error::new(ErrorKind::Limit(format!("{what} gives at most {most} ({name}); ask for a part")))
}
