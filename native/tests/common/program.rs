//! Command lines, of QEMU's program and of ours beside it: what they print, and how they end.

use std::path::Path;
use std::process::{Command, Stdio};

/// What a program printed on both streams, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: Option<i32>,
}

pub(crate) fn said(command: &mut Command, folder: &Path) -> Said {
    let done = command.current_dir(folder).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { out: text(&done.stdout), err: text(&done.stderr), code: done.status.code() }
}

/// A command line cut into words; a word in quotes keeps its spaces or is empty.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split('\'')
        .enumerate()
        .flat_map(|(n, part)| if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .collect()
}

/// `qemu-img`.
pub(crate) fn qemu(folder: &Path, line: &str) -> Said {
    said(Command::new("qemu-img").args(words(line)), folder)
}

/// Ours, called by the name of `qemu-img`.
#[cfg(all(feature = "cli", unix))]
pub(crate) fn stand_in(folder: &Path, line: &str) -> Said {
    use std::os::unix::process::CommandExt;
    said(Command::new(env!("CARGO_BIN_EXE_qcowkit")).arg0("qemu-img").args(words(line)), folder)
}

/// Ours, by its own name.
#[cfg(all(feature = "cli", unix))]
pub(crate) fn own(folder: &Path, line: &str) -> Said {
    said(Command::new(env!("CARGO_BIN_EXE_qcowkit")).args(words(line)), folder)
}
