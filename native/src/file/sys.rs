//! The system calls, each with an answer for systems and file systems that do not have it.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(super) use other::*;
#[cfg(unix)]
pub(super) use unix::*;

/// The answer to "where is the next data, or the next hole?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")), allow(dead_code))]
pub(super) enum Found {
    /// At this byte offset.
    At(u64),
    /// There is none up to the end.
    Nothing,
    /// The system or the file system cannot tell.
    CannotTell,
}
