//! A guest disk as a file of this machine's file system, by FUSE.
//!
//! The kernel asks for reads, writes, zeros and discards of one file; several threads answer on a
//! [`SharedDisk`]. Mounting is done without libfuse: by the system call where that is
//! allowed, else by `fusermount3`.

mod filesystem;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL};
use qcowkit_core::{Error, Result};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::shared::SharedDisk;
use filesystem::{Export, Place};

/// How a disk is mounted.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The mount point, which exists: a file, which the disk takes the place of; or a directory, in which the disk is
    /// the one file.
    pub at: PathBuf,
    /// The name of the disk in a directory.
    pub name: OsString,
    /// What the list of mounts tells as the source.
    pub source: String,
    /// Writes are allowed. The disk must then be open for writing.
    pub writable: bool,
    /// Other users may look too (and only the owner may write); needs `user_allow_other` in `/etc/fuse.conf` unless
    /// root asks.
    pub allow_other: bool,
    /// Threads that answer the kernel; at least one.
    pub threads: usize,
}

/// What came of [`Mount::detach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detached {
    /// Nobody uses the disk any more.
    Done,
    /// The mount point is free, but the disk has users, such as a loop device, for whom it stays until they are done.
    InUse,
}

/// The disk behind a mount, until it is closed.
type Slot = Arc<RwLock<Option<SharedDisk>>>;

/// A mounted disk.
///
/// Dropping it leaves the mount as it is: end it with [`Mount::detach`] and [`Mount::finish`], or with
/// [`Mount::abort`].
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    file: PathBuf,
    disk: Slot,
    session: JoinHandle<io::Result<()>>,
}

impl Mount {
    /// Mounts a disk. `failed` is told of what the kernel's users hear as no more than an error number; `ended` is
    /// called once nobody uses the mount any more, whoever unmounted it.
    ///
    /// # Errors
    /// What the system says; the disk has been closed then.
    pub fn new(
        disk: impl Into<SharedDisk>,
        request: &MountRequest,
        failed: impl Fn(&Error) + Send + Sync + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let at = request.at.canonicalize()?;
        let metadata = at.metadata()?;
        let (place, file) = if metadata.is_dir() {
            (Place::In(request.name.clone()), at.join(&request.name))
        } else if metadata.is_file() {
            (Place::Root, at.clone())
        } else {
            return Err(io::Error::other("is neither a file nor a directory"));
        };
        let disk = disk.into();
        let size = disk.virtual_size();
        let disk: Slot = Arc::new(RwLock::new(Some(disk)));
        let export = Export::new(Arc::clone(&disk), size, place, request, Box::new(failed));
        let session = Session::new(export, &at, &config(request))?;
        let session = std::thread::Builder::new().name("mount".into()).spawn(move || {
            let over = session.run();
            ended();
            over
        })?;
        Ok(Self { at, file, disk, session })
    }

    /// Where the disk is.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Unmounts. A disk that is in use is gone from the mount point and serves those who have it open until they are
    /// done; what they wrote so far is made durable at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn detach(&self) -> io::Result<Detached> {
        match unmount(&self.at, UnmountFlags::empty()) {
            Ok(()) => Ok(Detached::Done),
            // Somebody was faster.
            Err(Errno::INVAL) => Ok(Detached::Done),
            Err(Errno::BUSY) => {
                unmount(&self.at, UnmountFlags::DETACH)?;
                self.flush();
                Ok(Detached::InUse)
            }
            Err(Errno::PERM) => {
                if helper(&["-u"], &self.at)? {
                    return Ok(Detached::Done);
                }
                if !helper(&["-u", "-z"], &self.at)? {
                    return Err(io::Error::other("fusermount3 cannot unmount it"));
                }
                self.flush();
                Ok(Detached::InUse)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A user's flush will tell him when this one has failed, and so will closing.
    fn flush(&self) {
        if let Some(disk) = self.disk.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = disk.flush();
        }
    }

    /// Waits until nobody uses the mount any more, and closes the disk.
    ///
    /// # Errors
    /// When the disk cannot be flushed, or the kernel could not be heard.
    pub fn finish(self) -> Result<()> {
        let over = self.session.join();
        close(&self.disk)?;
        match over {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::invalid(format!("the kernel's requests: {error}"))),
            Err(_) => Err(Error::invalid("a thread that answered the kernel has panicked")),
        }
    }

    /// Closes the disk at once, once the requests that are being answered are done. All later ones fail.
    ///
    /// # Errors
    /// When the disk cannot be flushed.
    pub fn abort(self) -> Result<()> {
        close(&self.disk)
    }
}

fn close(disk: &Slot) -> Result<()> {
    match disk.write().unwrap_or_else(PoisonError::into_inner).take() {
        Some(disk) => disk.close(),
        None => Ok(()),
    }
}

fn config(request: &MountRequest) -> Config {
    // Commas would begin another option.
    let source = request.source.replace([',', '\\'], "_");
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        MountOption::Subtype("qcowkit".into()),
        MountOption::DefaultPermissions,
        MountOption::NoExec,
        MountOption::NoAtime,
        if request.writable { MountOption::RW } else { MountOption::RO },
    ];
    config.acl = if request.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(request.threads.max(1));
    config.clone_fd = request.threads > 1;
    config
}

/// Runs the program that may unmount what a user has mounted; whether it did.
fn helper(options: &[&str], at: &Path) -> io::Result<bool> {
    for program in ["fusermount3", "fusermount"] {
        let arguments = options.iter().map(OsStr::new).chain(["--".as_ref(), at.as_os_str()]);
        match Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) => return Ok(status.success()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root may unmount it without fusermount3"))
}
