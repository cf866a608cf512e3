//! The one place where the operating system's errors become the core's.

use std::io;

use qcowkit_core::storage::{StorageError, StorageErrorKind};

/// Translates a failure of `operation` (a verb, as in [`StorageError`]), at a byte offset where there is one.
#[must_use]
pub fn storage_error(error: &io::Error, operation: &'static str, offset: Option<u64>) -> StorageError {
    let error = StorageError::new(kind(error), operation);
    match offset {
        Some(offset) => error.at(offset),
        None => error,
    }
}

fn kind(error: &io::Error) -> StorageErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageErrorKind::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => StorageErrorKind::ReadOnly,
        io::ErrorKind::FileTooLarge => StorageErrorKind::OutOfBounds,
        io::ErrorKind::Unsupported => StorageErrorKind::Unsupported,
        _ => match error.raw_os_error() {
            Some(code) => StorageErrorKind::Os { code, message: system_words(error, code) },
            None => StorageErrorKind::Other(error.to_string()),
        },
    }
}

/// The system's own words, as `strerror` has them and QEMU prints them.
fn system_words(error: &io::Error, code: i32) -> String {
    let text = error.to_string();
    match text.strip_suffix(&format!(" (os error {code})")) {
        Some(words) => words.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_apart_from_the_words() {
        let error = std::fs::File::open("/nonexistent/file").unwrap_err();
        let error = storage_error(&error, "open", None);
        assert_eq!(error.kind, StorageErrorKind::Os { code: 2, message: "No such file or directory".into() });
        assert_eq!(error.to_string(), "cannot open: No such file or directory");
    }

    #[test]
    fn kinds_that_callers_act_on() {
        for (kind, expected) in [
            (io::ErrorKind::StorageFull, StorageErrorKind::NoSpace),
            (io::ErrorKind::QuotaExceeded, StorageErrorKind::NoSpace),
            (io::ErrorKind::ReadOnlyFilesystem, StorageErrorKind::ReadOnly),
            (io::ErrorKind::FileTooLarge, StorageErrorKind::OutOfBounds),
            (io::ErrorKind::Unsupported, StorageErrorKind::Unsupported),
        ] {
            let error = storage_error(&kind.into(), "write", Some(7));
            assert_eq!((error.kind, error.offset), (expected, Some(7)));
        }
    }
}
