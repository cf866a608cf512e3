//! Locks on bytes of an open file (Linux).
//!
//! The only unsafe code is the call of `fcntl`, which no safe crate in use offers with these commands.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{LockError, LockOutcome, LockRequest, Permissions};
use crate::error::storage_error;
use crate::file::FileStorage;

/// "I use permission n" is byte 100 + n.
const USES_BASE: i64 = 100;
/// "Nobody else may use permission n" is byte 200 + n.
const EXCLUDES_BASE: i64 = 200;

/// Takes the locks of `new`, looks for conflicts, and gives up those of `old`; or, on a conflict, those of `new`.
pub(super) fn exchange(storage: &FileStorage, old: LockRequest, new: LockRequest) -> Result<LockOutcome, LockError> {
    let file = storage.file();
    match take(storage, new).and_then(|()| look(storage, new)) {
        Ok(()) => {
            release(file, old, new);
            Ok(LockOutcome::Held)
        }
        Err(Refusal::Unsupported) => Ok(LockOutcome::Unsupported),
        Err(Refusal::Error(error)) => {
            release(file, new, old);
            Err(error)
        }
    }
}

enum Refusal {
    Unsupported,
    Error(LockError),
}

fn take(storage: &FileStorage, request: LockRequest) -> Result<(), Refusal> {
    for (byte, permission, shared) in bytes(request) {
        set(storage.file(), libc::F_RDLCK, byte).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => conflict(storage, permission, shared),
            Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => Refusal::Unsupported,
            _ => Refusal::Error(LockError::Storage(storage_error(&error, "lock", None))),
        })?;
    }
    Ok(())
}

/// Looks whether anybody excludes what is used, or uses what is excluded.
fn look(storage: &FileStorage, request: LockRequest) -> Result<(), Refusal> {
    let opposite = LockRequest { uses: request.excludes, excludes: request.uses };
    // Permissions that are used are looked for first, as QEMU does, so that its message is the same.
    let (used, excluded): (Vec<_>, Vec<_>) = bytes(opposite).partition(|(byte, ..)| *byte >= EXCLUDES_BASE);
    for (byte, permission, excludes) in used.into_iter().chain(excluded) {
        match held_by_another(storage.file(), byte) {
            Ok(false) => {}
            Ok(true) => return Err(conflict(storage, permission, !excludes)),
            Err(error) => return Err(Refusal::Error(LockError::Storage(storage_error(&error, "lock", None)))),
        }
    }
    Ok(())
}

/// Gives up what `given_up` has and `kept` has not. A failure is of no consequence: closing the file does the same.
fn release(file: &File, given_up: LockRequest, kept: LockRequest) {
    for (byte, ..) in bytes(given_up) {
        if bytes(kept).all(|(other, ..)| other != byte) {
            let _ = set(file, libc::F_UNLCK, byte);
        }
    }
}

fn conflict(storage: &FileStorage, permission: &'static str, shared: bool) -> Refusal {
    Refusal::Error(LockError::Conflict { permission, shared, path: storage.path().to_owned() })
}

/// The bytes of a request: which, the permission's name, and whether it is one that excludes.
fn bytes(request: LockRequest) -> impl Iterator<Item = (i64, &'static str, bool)> {
    let side = |permissions: Permissions, base: i64| {
        permissions.bits().map(move |(bit, name)| (base + i64::from(bit), name, base == EXCLUDES_BASE))
    };
    side(request.uses, USES_BASE).chain(side(request.excludes, EXCLUDES_BASE))
}

fn set(file: &File, kind: libc::c_int, byte: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut one_byte(kind, byte))
}

/// Whether another opening of the file holds a lock on the byte.
fn held_by_another(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, byte);
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

// The types of the constants and fields differ between architectures.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion, clippy::cast_possible_truncation)]
fn one_byte(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: `flock` is a plain C struct of integers, for which all zeros is a value. (It is not built field by
    // field since some architectures have padding fields.)
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte as libc::off_t;
    lock.l_len = 1;
    lock
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open while `file` is borrowed; both commands take a pointer to a `flock`, which
        // the kernel reads and, for F_OFD_GETLK, writes during the call only; `lock` is valid and exclusively
        // borrowed for it. Locks have no effect on memory.
        let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if answer != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
