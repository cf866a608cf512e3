//! Image locks, the same as QEMU's, so that a running virtual machine and qcowkit keep out of each other's way.
//!
//! A program that uses an image takes shared locks on single bytes of the file: byte 100 + n says "I use permission
//! n", byte 200 + n says "nobody else may use permission n". Having taken them it looks whether anybody holds the
//! opposite byte, and gives up if so. The bytes need not exist. The locks belong to the open file, so two openings
//! within one process exclude each other too, and they end when the file is closed.
//!
//! Locks are advice: they bind those who ask. Who wants to look at an image in use (`-U`, force-share) takes none.

#[cfg(target_os = "linux")]
mod ofd;

use std::fmt;
use std::path::PathBuf;

use qcowkit_core::storage::StorageError;
use qcowkit_core::{Error, ErrorKind};

use crate::file::FileStorage;

/// Permissions in the sense of QEMU's block layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u8);

impl Permissions {
    /// None.
    pub const NONE: Self = Self(0);
    /// What is read is one consistent state.
    pub const CONSISTENT_READ: Self = Self(1);
    /// The contents may be changed.
    pub const WRITE: Self = Self(1 << 1);
    /// The length may be changed.
    pub const RESIZE: Self = Self(1 << 3);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bit numbers, and QEMU's names.
    #[cfg(target_os = "linux")]
    fn bits(self) -> impl Iterator<Item = (u8, &'static str)> {
        const NAMES: [(u8, &str); 4] = [(0, "consistent read"), (1, "write"), (2, "write unchanged"), (3, "resize")];
        NAMES.into_iter().filter(move |(bit, _)| self.0 >> bit & 1 == 1)
    }
}

/// What a program does with a file, and what it cannot bear others to do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LockRequest {
    /// What it does.
    pub uses: Permissions,
    /// What nobody else may do.
    pub excludes: Permissions,
}

impl LockRequest {
    /// Nothing: takes no lock and excludes nobody.
    pub const NONE: Self = Self { uses: Permissions::NONE, excludes: Permissions::NONE };
    /// Reading a file with metadata, such as qcow2: nobody may write it.
    pub const READ: Self =
        Self { uses: Permissions::CONSISTENT_READ, excludes: Permissions::WRITE.and(Permissions::RESIZE) };
    /// Writing a file with metadata.
    pub const WRITE: Self = Self {
        uses: Permissions::CONSISTENT_READ.and(Permissions::WRITE).and(Permissions::RESIZE),
        excludes: Permissions::WRITE.and(Permissions::RESIZE),
    };
    /// Reading a raw file, which others may write as they do with a shared disk.
    pub const READ_RAW: Self = Self { uses: Permissions::CONSISTENT_READ, excludes: Permissions::RESIZE };
    /// Writing a raw file, which others may write too.
    pub const WRITE_RAW: Self =
        Self { uses: Permissions::CONSISTENT_READ.and(Permissions::WRITE), excludes: Permissions::RESIZE };
}

/// Whether the locks are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOutcome {
    /// They are.
    Held,
    /// The system or the file system has no such locks. QEMU goes on without them then.
    Unsupported,
}

/// Why there is no lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockError {
    /// Another opening of the file stands against it.
    Conflict {
        /// QEMU's name of the permission.
        permission: &'static str,
        /// The other uses what was to be excluded; otherwise it excludes what was to be used.
        shared: bool,
        /// The file.
        path: PathBuf,
    },
    /// The system failed.
    Storage(StorageError),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { permission, shared, path } => {
                let shared = if *shared { "shared " } else { "" };
                let path = path.display();
                write!(f, "Failed to get {shared}\"{permission}\" lock. Is another process using the image [{path}]?")
            }
            Self::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Conflict { .. } => None,
            Self::Storage(error) => Some(error),
        }
    }
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Conflict { .. } => Self::new(ErrorKind::Locked(error.to_string())),
            LockError::Storage(error) => error.into(),
        }
    }
}

impl FileStorage {
    /// Takes the locks of `request` in place of those held so far; [`LockRequest::NONE`] gives all up. They are held
    /// until the file is closed. When this fails, those held before are held still.
    ///
    /// # Errors
    /// [`LockError::Conflict`] when another opening of the file stands against it.
    pub fn lock(&self, request: LockRequest) -> Result<LockOutcome, LockError> {
        let mut held = self.held_locks();
        let outcome = self.exchange(*held, request)?;
        if outcome == LockOutcome::Held {
            *held = request;
            let excludes_writers = request.excludes.and(Permissions::WRITE) == request.excludes;
            self.set_exclusive(excludes_writers);
        }
        Ok(outcome)
    }

    #[cfg(target_os = "linux")]
    fn exchange(&self, old: LockRequest, new: LockRequest) -> Result<LockOutcome, LockError> {
        ofd::exchange(self, old, new)
    }

    #[cfg(not(target_os = "linux"))]
    fn exchange(&self, _old: LockRequest, _new: LockRequest) -> Result<LockOutcome, LockError> {
        Ok(LockOutcome::Unsupported)
    }
}
