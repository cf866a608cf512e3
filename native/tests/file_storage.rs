//! Files keep the promises of a storage, on every file system that can be had here.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use qcowkit::extents::{HostExtent, HostExtents, Pending};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::storage::{
    ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind, ZeroMode, conformance,
};

/// A new file in `folder`.
fn fresh(folder: &Path) -> FileStorage {
    let path = (0..).map(|number| folder.join(format!("disk{number}"))).find(|path| !path.exists()).unwrap();
    FileStorage::open(path, FileAccess::CreateNew).unwrap()
}

/// The whole suite, and what is particular to files, in one folder. File systems differ in what they cannot do.
fn check_folder(folder: &Path) {
    conformance::check_all(|length| {
        let disk = fresh(folder);
        disk.set_len(length)?;
        Ok(disk)
    })
    .unwrap();
    check_extents_against_scan(&fresh(folder));
    check_space(&fresh(folder));
}

/// Random writes and holes; then every extent, asked for at every block, agrees with one walk over the file.
fn check_extents_against_scan(disk: &FileStorage) {
    conformance::check_against_model(disk, 4711, 60).unwrap();
    let length = disk.len().unwrap();
    let mut at = 0;
    while at < length {
        let run = disk.next_extent(at).unwrap();
        for inside in (at..at + run.length).step_by(4096) {
            let rest = StorageExtent { kind: run.kind, length: at + run.length - inside };
            assert_eq!(disk.next_extent(inside).unwrap(), rest);
        }
        at += run.length;
    }
    // An extent that was asked for before a change is not the answer after it.
    disk.write_zeroes(0, 1 << 20, ZeroMode::MayUnmap).unwrap();
    let before = disk.next_extent(0).unwrap();
    disk.write_at(300_000, &[1; 4096]).unwrap();
    let after = disk.next_extent(0).unwrap();
    assert!(before.length > 300_000 && (after.length <= 300_000 || after.kind != StorageExtentKind::Hole));
}

/// Space comes and goes as the calls say, where the file system makes holes at all.
fn check_space(disk: &FileStorage) {
    let allocated = || {
        disk.barrier().unwrap();
        disk.allocated_bytes().unwrap()
    };
    if !disk.capabilities().holes_read_zero {
        return;
    }
    disk.write_at(0, &vec![7; 1 << 20]).unwrap();
    assert!(allocated() >= 1 << 20);
    disk.discard(256 << 10, 512 << 10).unwrap();
    assert!(allocated() <= 600 << 10, "a discard gives space back");
    assert_eq!(disk.next_extent(256 << 10).unwrap().kind, StorageExtentKind::Hole);
    disk.write_zeroes(0, 64 << 20, ZeroMode::MayUnmap).unwrap();
    assert_eq!(disk.len().unwrap(), 64 << 20);
    assert!(allocated() <= 64 << 10, "unmapped zeros take no space, also past the end");
    disk.write_zeroes(1 << 20, 1 << 20, ZeroMode::KeepAllocated).unwrap();
    assert!(allocated() >= 1 << 20, "kept zeros take space");
    match disk.allocate(4 << 20, 1 << 20) {
        Ok(()) => assert!(allocated() >= 2 << 20),
        Err(error) => assert_eq!(error.kind, StorageErrorKind::Unsupported),
    }
}

#[test]
fn on_the_file_system_of_temporary_files() {
    check_folder(tempfile::tempdir().unwrap().path());
}

#[test]
fn on_tmpfs() {
    match tempfile::tempdir_in("/dev/shm") {
        Ok(folder) => check_folder(folder.path()),
        Err(error) => println!("skipped: no /dev/shm ({error})"),
    }
}

/// A loop device over a file, and a file system mounted from it; both end with this value.
struct Loop {
    device: PathBuf,
    mounted: Option<PathBuf>,
    _folder: tempfile::TempDir,
}

impl Loop {
    /// A device of `megabytes`, if this process may make one.
    fn new(megabytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()])?;
        Some(Self { device: device.trim().into(), mounted: None, _folder: folder })
    }

    fn mount(mut self, kind: &str) -> Option<(Self, PathBuf)> {
        run(&format!("mkfs.{kind}"), &[self.device.to_str()?])?;
        let point = self._folder.path().join("mounted");
        fs::create_dir(&point).unwrap();
        run("mount", &[self.device.to_str()?, point.to_str()?])?;
        self.mounted = Some(point.clone());
        Some((self, point))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(point) = &self.mounted {
            run("umount", &[point.to_str().unwrap()]);
        }
        run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

/// Runs a program; its output if it is there and succeeds.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn on_a_mounted(kind: &str, megabytes: u64) {
    match Loop::new(megabytes).and_then(|device| device.mount(kind)) {
        Some((_device, point)) => check_folder(&point),
        None => println!("skipped: {kind} needs root, a loop device and mkfs.{kind}"),
    }
}

#[test]
fn on_ext4() {
    on_a_mounted("ext4", 256);
}

#[test]
fn on_xfs() {
    on_a_mounted("xfs", 400);
}

#[test]
fn on_btrfs() {
    on_a_mounted("btrfs", 400);
}

#[test]
fn on_ext2_which_cannot_reserve() {
    // Without extents there is neither ZERO_RANGE nor a reservation.
    on_a_mounted("ext2", 256);
}

#[test]
fn on_a_block_device() {
    let Some(device) = Loop::new(1) else {
        println!("skipped: a block device needs root and a loop device");
        return;
    };
    let open = || FileStorage::open(&device.device, FileAccess::Write);
    let disk = open().unwrap();
    assert!(disk.capabilities().block_device && !disk.capabilities().grows);
    assert_eq!(disk.len().unwrap(), 1 << 20);
    assert_eq!(disk.identity().unwrap(), open().unwrap().identity().unwrap());
    conformance::check_all(|length| {
        let disk = open()?;
        disk.write_zeroes(0, length, ZeroMode::MayUnmap)?;
        Ok(disk)
    })
    .unwrap();
}

#[test]
fn no_space_is_said_so() {
    let Some((_device, point)) = Loop::new(16).and_then(|device| device.mount("ext4")) else {
        println!("skipped: a small file system needs root, a loop device and mkfs.ext4");
        return;
    };
    let disk = fresh(&point);
    let mut offset = 0;
    let error = loop {
        match disk.write_at(offset, &vec![1; 1 << 20]) {
            Ok(()) => offset += 1 << 20,
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind, error.offset), (StorageErrorKind::NoSpace, Some(offset)));
    assert_eq!(disk.allocate(0, 64 << 20).unwrap_err().kind, StorageErrorKind::NoSpace);
}

#[test]
fn what_is_not_a_disk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, words) in [
        (pipe.as_path(), "is neither a regular file nor a block device"),
        (Path::new("/dev/null"), "is neither a regular file nor a block device"),
    ] {
        for access in [FileAccess::Read, FileAccess::Write, FileAccess::Create] {
            let error = FileStorage::open(path, access).unwrap_err();
            assert_eq!(error, StorageError::new(StorageErrorKind::Other(words.into()), "open"));
        }
    }
    for access in [FileAccess::Read, FileAccess::Write, FileAccess::Create] {
        // The number is the system's, so that callers who know numbers can tell a directory from all else.
        let error = FileStorage::open(folder.path(), access).unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Os { code: 21, message: "is a directory".into() });
    }
    let missing = FileStorage::open(folder.path().join("missing"), FileAccess::Write).unwrap_err();
    assert_eq!(missing.to_string(), "cannot open: No such file or directory");
}

#[test]
fn access_is_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    FileStorage::open(&path, FileAccess::Create).unwrap().write_at(0, b"kept").unwrap();
    assert!(FileStorage::open(&path, FileAccess::CreateNew).is_err());
    assert_eq!(FileStorage::open(&path, FileAccess::Create).unwrap().len().unwrap(), 4);

    let disk = FileStorage::open(&path, FileAccess::Read).unwrap();
    assert!(disk.capabilities().read_only);
    for refused in [
        disk.write_at(0, b"x"),
        disk.write_zeroes(0, 1, ZeroMode::MayUnmap),
        disk.discard(0, 1),
        disk.discard(100, 1),
        disk.set_len(0),
        disk.allocate(0, 1),
    ] {
        assert_eq!(refused.unwrap_err().kind, StorageErrorKind::ReadOnly);
    }
    disk.barrier().unwrap();
    conformance::check_contents(&disk, b"kept").unwrap();
}

#[test]
fn opening_to_write_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, [1; 100]).unwrap();
    let times = || {
        let metadata = fs::metadata(&path).unwrap();
        (metadata.mtime_nsec(), metadata.ctime_nsec())
    };
    let before = times();
    FileStorage::open(&path, FileAccess::Write).unwrap().barrier().unwrap();
    assert_eq!(times(), before);
}

#[test]
fn names_of_one_file_have_one_identity() {
    let folder = tempfile::tempdir().unwrap();
    let [path, link, other] = ["disk", "link", "other"].map(|name| folder.path().join(name));
    fs::write(&path, []).unwrap();
    fs::write(&other, []).unwrap();
    symlink(&path, &link).unwrap();
    let identity = |path| FileStorage::open(path, FileAccess::Read).unwrap().identity().unwrap().unwrap();
    assert_eq!(identity(&path), identity(&link));
    assert_ne!(identity(&path), identity(&other));
}

#[test]
fn holes_made_by_others_are_seen_and_data_is_never_hidden() {
    let disk = fresh(tempfile::tempdir().unwrap().path());
    disk.set_len(1 << 20).unwrap();
    if disk.next_extent(0).unwrap().kind != StorageExtentKind::Hole {
        println!("skipped: this file system does not tell holes");
        return;
    }
    // Not through the storage: it cannot know.
    disk.file().write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(disk.next_extent(0).unwrap().kind, StorageExtentKind::Data);
}

#[test]
fn threads_that_grow_a_file_lose_nothing() {
    let disk = fresh(tempfile::tempdir().unwrap().path());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..200 {
                    let at = (round * 4 + thread) * 8192;
                    disk.write_at(at, &[7; 4096]).unwrap();
                    disk.write_zeroes(at + 4096, 4096, ZeroMode::MayUnmap).unwrap();
                    disk.next_extent(at / 2).unwrap();
                }
            });
        }
    });
    let expected: Vec<u8> = [[7; 4096], [0; 4096]].concat().repeat(800);
    conformance::check_contents(&disk, &expected).unwrap();
}

fn host_extents(disk: &FileStorage) -> Option<Vec<HostExtent>> {
    Some(HostExtents::of(disk, Pending::WriteOut).unwrap()?.collect::<Result<_, _>>().unwrap())
}

#[test]
fn host_extents_cover_what_is_allocated() {
    let disk = fresh(tempfile::tempdir().unwrap().path());
    // More extents than one call of the kernel gives.
    for index in 0..700_u64 {
        disk.write_at(index << 14, &[1; 4096]).unwrap();
    }
    let Some(extents) = host_extents(&disk) else {
        println!("skipped: this file system does not tell extents");
        return;
    };
    assert_eq!(extents.len(), 700);
    for (index, extent) in (0..).zip(&extents) {
        assert_eq!((extent.offset, extent.length), (index << 14, 4096));
        assert!(extent.physical_offset.is_some_and(|at| at > 0) && !extent.unwritten && !extent.delayed);
    }
    disk.set_len(0).unwrap();
    assert_eq!(host_extents(&disk).unwrap(), []);
    if disk.allocate(0, 65_536).is_ok() {
        let extents = host_extents(&disk).unwrap();
        assert!(!extents.is_empty() && extents.iter().all(|extent| extent.unwritten));
    }
}

#[test]
fn host_extents_are_unknown_on_tmpfs() {
    if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
        assert!(host_extents(&fresh(folder.path())).is_none());
    }
}
