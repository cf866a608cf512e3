//! Image locks, against QEMU's own programs in both directions.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::lock::{LockError, LockOutcome, LockRequest, Permissions};
use qcowkit_core::ErrorKind;
use qcowkit_core::storage::{ReadStorage, Storage};

fn qemu_is_here() -> bool {
    let here = Command::new("qemu-io").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !here {
        println!("skipped: qemu-io is not installed");
    }
    here
}

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image made by qemu-img.
    fn image(&self, format: &str) -> PathBuf {
        let path = self.path(&format!("image.{format}"));
        let status = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&path).arg("1M").status();
        assert!(status.unwrap().success());
        path
    }
}

/// A qemu-io that holds an image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(options: &[&str], image: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // When it has answered it has opened the image.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("1 MiB"), "qemu-io did not open the image: {line:?}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// What qemu-io says when it opens an image: nothing if it can.
fn qemu_complaint(options: &[&str], image: &Path) -> String {
    let output = Command::new("qemu-io").args(options).args(["-c", "length"]).arg(image).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

fn conflict(path: &Path, permission: &'static str, shared: bool) -> Result<LockOutcome, LockError> {
    Err(LockError::Conflict { permission, shared, path: path.to_owned() })
}

const HELD: Result<LockOutcome, LockError> = Ok(LockOutcome::Held);

#[test]
fn while_qemu_writes_nobody_else_does() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    let holder = Holder::new(&["-f", "qcow2"], &image);
    assert_eq!(disk.lock(LockRequest::WRITE), conflict(&image, "write", false));
    assert_eq!(disk.lock(LockRequest::READ), conflict(&image, "write", true));
    // Looking without a lock is always possible.
    assert_eq!(disk.lock(LockRequest::NONE), HELD);
    // An attempt that failed has left nothing behind that would stop another.
    drop(holder);
    drop(Holder::new(&["-f", "qcow2"], &image));
    assert_eq!(disk.lock(LockRequest::WRITE), HELD);
}

/// A qemu-nbd that serves an image until it is dropped.
struct Server(Child);

impl Server {
    fn start(options: &[&str], image: &Path, socket: &Path) -> Result<Self, String> {
        let mut child = Command::new("qemu-nbd")
            .args(["-t", "-f", "qcow2", "-k"])
            .arg(socket)
            .args(options)
            .arg(image)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        loop {
            if let Some(ended) = child.try_wait().unwrap() {
                assert!(!ended.success());
                let mut words = String::new();
                std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
                return Err(words);
            }
            // It listens once it has opened the image.
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Ok(Self(child));
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_server_of_qemus_and_we_keep_each_other_out() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    let server = Server::start(&[], &image, &folder.path("1")).unwrap();
    assert_eq!(disk.lock(LockRequest::WRITE), conflict(&image, "write", false));
    assert_eq!(disk.lock(LockRequest::READ), conflict(&image, "write", true));
    drop(server);
    assert_eq!(disk.lock(LockRequest::WRITE), HELD);
    let refused = |options: &[&str], name: &str| Server::start(options, &image, &folder.path(name)).err().unwrap();
    assert!(refused(&[], "2").contains("Failed to get \"write\" lock"));
    assert!(refused(&["-r"], "3").contains("Failed to get shared \"write\" lock"));
    assert_eq!(disk.lock(LockRequest::READ), HELD);
    assert!(refused(&[], "4").contains("Failed to get \"write\" lock"));
    let server = Server::start(&["-r"], &image, &folder.path("5")).unwrap();
    assert_eq!(disk.lock(LockRequest::WRITE), conflict(&image, "write", false));
    drop(server);
}

#[test]
fn the_words_are_qemus() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    let _holder = Holder::new(&["-f", "qcow2"], &image);
    for (request, options) in
        [(LockRequest::WRITE, vec!["-f", "qcow2"]), (LockRequest::READ, vec!["-r", "-f", "qcow2"])]
    {
        let ours = disk.lock(request).unwrap_err();
        let theirs = qemu_complaint(&options, &image).trim_end().replace("lock\nIs", "lock. Is");
        assert!(theirs.ends_with(&ours.to_string()), "{theirs:?} does not end with {ours}");
        let error = qcowkit_core::Error::from(ours);
        assert!(matches!(error.kind(), ErrorKind::Locked(text) if theirs.ends_with(text)));
    }
}

#[test]
fn readers_share_and_keep_writers_out() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    let holder = Holder::new(&["-r", "-f", "qcow2"], &image);
    assert_eq!(disk.lock(LockRequest::READ), HELD);
    assert_eq!(disk.lock(LockRequest::WRITE), conflict(&image, "write", false));
    // The failed exchange has not cost us the lock for reading.
    drop(holder);
    assert!(qemu_complaint(&["-f", "qcow2"], &image).contains("Failed to get \"write\" lock"));
    assert_eq!(qemu_complaint(&["-r", "-f", "qcow2"], &image), "");
}

#[test]
fn while_we_write_qemu_does_not() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    assert_eq!(disk.lock(LockRequest::WRITE), HELD);
    assert!(qemu_complaint(&["-f", "qcow2"], &image).contains("Failed to get \"write\" lock"));
    assert!(qemu_complaint(&["-r", "-f", "qcow2"], &image).contains("Failed to get shared \"write\" lock"));
    assert_eq!(qemu_complaint(&["-r", "-U", "-f", "qcow2"], &image), "");
    // Down to reading, then nothing, then up again.
    assert_eq!(disk.lock(LockRequest::READ), HELD);
    assert_eq!(qemu_complaint(&["-r", "-f", "qcow2"], &image), "");
    assert!(!qemu_complaint(&["-f", "qcow2"], &image).is_empty());
    assert_eq!(disk.lock(LockRequest::NONE), HELD);
    assert_eq!(qemu_complaint(&["-f", "qcow2"], &image), "");
    assert_eq!(disk.lock(LockRequest::WRITE), HELD);
    drop(disk);
    assert_eq!(qemu_complaint(&["-f", "qcow2"], &image), "");
}

#[test]
fn the_locks_are_the_same_bytes() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("qcow2");
    for (options, access, request) in [
        (&["-f", "qcow2"][..], FileAccess::Write, LockRequest::WRITE),
        (&["-r", "-f", "qcow2"][..], FileAccess::Read, LockRequest::READ),
    ] {
        let holder = Holder::new(options, &image);
        let theirs = locked_bytes(holder.0.id(), &image);
        drop(holder);
        let disk = FileStorage::open(&image, access).unwrap();
        disk.lock(request).unwrap();
        assert_eq!(locked_bytes(std::process::id(), &image), theirs);
        assert!(!theirs.is_empty());
    }
}

/// The locks on the opened image, as the kernel lists them: kind and bytes.
fn locked_bytes(process: u32, image: &Path) -> Vec<String> {
    let image = image.canonicalize().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        let entry = entry.unwrap();
        if fs::read_link(entry.path()).is_ok_and(|target| target == image) {
            let name = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{name}")).unwrap();
            for lock in info.lines().filter(|line| line.starts_with("lock:")) {
                let words: Vec<_> = lock.split_whitespace().collect();
                found.push(format!("{} {}-{}", words[4], words[7], words[8]));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn raw_disks_may_be_shared() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("raw");
    let disk = FileStorage::open(&image, FileAccess::Write).unwrap();
    assert_eq!(disk.lock(LockRequest::WRITE_RAW), HELD);
    let other = FileStorage::open(&image, FileAccess::Write).unwrap();
    assert_eq!(other.lock(LockRequest::READ_RAW), HELD);
    assert_eq!(other.lock(LockRequest::WRITE_RAW), HELD);
    assert_eq!(other.lock(LockRequest::READ), conflict(&image, "write", true));
}

#[test]
fn two_openings_in_one_process_exclude_each_other() {
    let folder = Folder::new();
    let path = folder.path("disk");
    let first = FileStorage::open(&path, FileAccess::CreateNew).unwrap();
    let second = FileStorage::open(&path, FileAccess::Write).unwrap();
    if first.lock(LockRequest::WRITE).unwrap() == LockOutcome::Unsupported {
        println!("skipped: this file system has no such locks");
        return;
    }
    assert_eq!(second.lock(LockRequest::WRITE), conflict(&path, "write", false));
    let resize = LockRequest { uses: Permissions::RESIZE, excludes: Permissions::NONE };
    assert_eq!(second.lock(resize), conflict(&path, "resize", false));
    drop(first);
    assert_eq!(second.lock(LockRequest::WRITE), HELD);
    second.set_len(4096).unwrap();
    assert_eq!(second.len().unwrap(), 4096);
}
