//! What the tests against QEMU share: its programs, a folder for images, a generator of random numbers, an opener.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod program;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{Content, Found, Image, LayerFormat, OpenOptions, Opener, Reference, Role};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, ErrorKind};

/// Whether QEMU's programs are installed. Without them a test has nothing to run on and says so; in CI it fails.
pub(crate) fn qemu_is_here() -> bool {
    tool_is_here("qemu-img") && tool_is_here("qemu-io")
}

/// Whether a program can be started. A missing one fails the test in CI.
pub(crate) fn tool_is_here(program: &str) -> bool {
    let started = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if started.is_err() {
        assert!(std::env::var_os("CI").is_none(), "{program} is missing");
        println!("skipped: {program} is not installed");
    }
    started.is_ok()
}

/// A small generator: the same numbers for the same seed, everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give similar numbers.
        let mut rng = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03);
        (0..4).for_each(|_| {
            rng.next();
        });
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 24) as u8).collect()
    }
}

/// A folder that is gone after the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// In memory where the system has such a place: for tests that start programs by the hundred, of which each
    /// waits for the disk.
    pub(crate) fn in_memory() -> Self {
        tempfile::tempdir_in("/dev/shm").map_or_else(|_| Self::new(), Self)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// What a program said and how it ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a program to its end.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Ended {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) }
}

/// Runs a program that must succeed; gives its output.
pub(crate) fn succeed<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> String {
    let done = run(program, arguments);
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    assert!(done.code == 0, "{program} {arguments:?}\n{}{}", done.out, done.err);
    done.out
}

/// `qemu-img create` with the words of `options` before the path.
pub(crate) fn qemu_create(path: &Path, options: &[&str], size: u64) {
    let mut arguments: Vec<&OsStr> = vec!["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref()];
    arguments.extend(options.iter().map(|option| -> &OsStr { option.as_ref() }));
    let size = size.to_string();
    arguments.extend([path.as_os_str(), size.as_ref()]);
    succeed("qemu-img", &arguments);
}

/// The key of encrypted images.
pub(crate) const KEY: &str = "the key of the tests";

/// The same as an object of QEMU's, whose name is `key`.
pub(crate) fn key_object() -> String {
    format!("secret,id=key,data={KEY}")
}

fn is_encrypted(path: &Path) -> bool {
    let mut start = [0; 36];
    std::io::Read::read_exact(&mut std::fs::File::open(path).unwrap(), &mut start).unwrap();
    start.starts_with(b"QFI\xfb") && start[32..] != [0; 4]
}

/// How `qemu-img` opens an image: options, and the name. An encrypted one with [`KEY`].
pub(crate) fn qemu_source(path: &Path) -> (Vec<String>, String) {
    let shown = path.display().to_string();
    if is_encrypted(path) {
        let options = ["--object".to_owned(), key_object(), "--image-opts".to_owned()];
        (options.into(), format!("driver=qcow2,file.filename={shown},encrypt.key-secret=key"))
    } else {
        (vec!["-f".to_owned(), "qcow2".to_owned()], shown)
    }
}

/// The options for `--image-opts` of a qcow2 image with discards on; `more` begins with a comma or is empty.
pub(crate) fn image_options(path: &Path, more: &str) -> String {
    format!("driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,file.filename={}{more}", path.display())
}

/// Runs `qemu-io` with commands of which each answers; tells which of them succeeded.
pub(crate) fn qemu_io(path: &Path, more: &str, commands: &[String]) -> Vec<bool> {
    if commands.is_empty() {
        return Vec::new();
    }
    let mut arguments = vec!["--image-opts".to_owned()];
    let mut more = more.to_owned();
    if is_encrypted(path) {
        arguments.extend(["--object".to_owned(), key_object()]);
        more.push_str(",encrypt.key-secret=key");
    }
    for command in commands {
        arguments.extend(["-c".to_owned(), command.clone()]);
    }
    arguments.push(image_options(path, &more));
    let done = run("qemu-io", &arguments);
    let answers = done.out.lines().filter_map(|line| {
        let succeeded = line.starts_with("wrote ") || line.starts_with("discard ") && !line.contains("failed");
        let failed = line.contains("failed");
        (succeeded || failed).then_some(succeeded)
    });
    let answers: Vec<bool> = answers.collect();
    let asked = commands.iter().filter(|command| *command != "flush").count();
    assert!(answers.len() == asked, "{commands:?}\n{}{}", done.out, done.err);
    let mut answers = answers.into_iter();
    commands.iter().map(|command| command == "flush" || answers.next().unwrap()).collect()
}

/// The numbers of a clean `qemu-img check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CheckNumbers {
    pub(crate) total: u64,
    pub(crate) allocated: u64,
    pub(crate) compressed: u64,
    pub(crate) fragmented: u64,
    pub(crate) end: u64,
}

/// `qemu-img check` must find nothing, leaks included.
pub(crate) fn check_clean(path: &Path, what: &str) -> CheckNumbers {
    let (options, name) = qemu_source(path);
    let words = [vec!["check".to_owned(), "--output=json".to_owned()], options, vec![name]].concat();
    let done = run("qemu-img", &words);
    assert!(done.code == 0, "{what}: qemu-img check ends with {}\n{}{}", done.code, done.out, done.err);
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let number = |name: &str| report[name].as_u64().unwrap_or(0);
    assert!(number("corruptions") + number("leaks") + number("check-errors") == 0, "{what}: {}", done.out);
    CheckNumbers {
        total: number("total-clusters"),
        allocated: number("allocated-clusters"),
        compressed: number("compressed-clusters"),
        fragmented: number("fragmented-clusters"),
        end: number("image-end-offset"),
    }
}

/// A row of a map without host offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MapRow {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) depth: u64,
    pub(crate) present: bool,
    pub(crate) zero: bool,
    pub(crate) data: bool,
    pub(crate) compressed: bool,
}

/// Neighbours that differ in nothing but the host offset become one row.
fn joined(rows: impl Iterator<Item = MapRow>) -> Vec<MapRow> {
    let mut joined: Vec<MapRow> = Vec::new();
    for row in rows {
        match joined.last_mut() {
            Some(last) if (MapRow { start: last.start, length: last.length, ..row }) == *last => {
                assert_eq!(last.start + last.length, row.start);
                last.length += row.length;
            }
            _ => joined.push(row),
        }
    }
    joined
}

/// `qemu-img map --output=json`. What is data and lies in a hole of the file (QEMU looks there when it takes the image
/// for preallocated) counts as data.
pub(crate) fn qemu_map(path: &Path) -> Vec<MapRow> {
    let (options, name) = qemu_source(path);
    let text = succeed("qemu-img", &[vec!["map".to_owned(), "--output=json".to_owned()], options, vec![name]].concat());
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    joined(rows.iter().map(|row| {
        let flag = |name: &str| row[name].as_bool().unwrap();
        MapRow {
            start: row["start"].as_u64().unwrap(),
            length: row["length"].as_u64().unwrap(),
            depth: row["depth"].as_u64().unwrap(),
            present: flag("present"),
            zero: flag("zero") && !flag("data"),
            data: flag("data"),
            compressed: row["compressed"].as_bool().unwrap_or(false),
        }
    }))
}

/// The same from [`Image::map`].
pub(crate) fn our_map<S: Storage>(image: &mut Image<S>) -> Vec<MapRow> {
    let extents = image.map(0, image.virtual_size()).unwrap();
    joined(extents.iter().map(|extent| {
        let (present, zero, data, compressed) = match extent.content {
            Content::Data { .. } => (true, false, true, false),
            Content::Zero { .. } => (true, true, false, false),
            Content::Compressed { .. } => (true, false, true, true),
            Content::Unallocated => (false, true, false, false),
        };
        let (start, length, depth) = (extent.guest_offset, extent.length, u64::from(extent.depth));
        MapRow { start, length, depth, present, zero, data, compressed }
    }))
}

/// Opens what an image names when it lies beside it.
pub(crate) struct Beside(pub(crate) PathBuf);

impl Opener<FileStorage> for Beside {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<FileStorage>> {
        let name = reference.name.to_string();
        let path = self.0.join(name.strip_prefix("file:").unwrap_or(&name));
        let access = if reference.writable { FileAccess::Write } else { FileAccess::Read };
        let storage = FileStorage::open(&path, access)?;
        let format = match reference.format.map(ToString::to_string).as_deref() {
            Some("qcow2") => LayerFormat::Qcow2,
            Some("raw") => LayerFormat::Raw,
            None if reference.role == Role::DataFile => LayerFormat::Raw,
            other => return Err(Error::new(ErrorKind::Denied(format!("{name}: format {other:?}")))),
        };
        Ok(Found { storage, format, identity: Some(path.display().to_string()) })
    }
}

/// Opens an image and what lies beside it.
pub(crate) fn try_open(path: &Path, options: OpenOptions) -> qcowkit_core::Result<Image<FileStorage>> {
    let access = if options.read_only { FileAccess::Read } else { FileAccess::Write };
    let storage = FileStorage::open(path, access)?;
    let mut opener = Beside(path.parent().unwrap().to_owned());
    Image::open_with(storage, Some(path.display().to_string()), options, &mut opener)
}

/// As [`try_open`]; it must succeed.
pub(crate) fn open(path: &Path, options: OpenOptions) -> Image<FileStorage> {
    try_open(path, options).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The whole virtual disk.
pub(crate) fn read_all<S: Storage>(image: &mut Image<S>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The virtual disk as `qemu-img convert` gives it; with a snapshot's name, that snapshot's disk.
pub(crate) fn qemu_read(path: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = path.with_extension("converted");
    let (options, name) = qemu_source(path);
    let mut words = [vec!["convert".to_owned()], options, vec!["-O".to_owned(), "raw".to_owned()]].concat();
    if let Some(snapshot) = snapshot {
        words.extend(["-l".to_owned(), format!("snapshot.name={snapshot}")]);
    }
    words.extend([name, raw.display().to_string()]);
    succeed("qemu-img", &words);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

/// Fails at the first byte that differs.
pub(crate) fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if found != expected {
        let first = found.iter().zip(expected).position(|(a, b)| a != b).unwrap();
        let count = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: {count} bytes differ, the first at {first:#x}: {:#x} instead of {:#x}",
            found[first], expected[first]
        );
    }
}

/// Bytes that the file system holds for a file.
pub(crate) fn allocated_bytes(path: &Path) -> u64 {
    let storage = FileStorage::open(path, FileAccess::Read).unwrap();
    storage.file().sync_all().unwrap();
    storage.allocated_bytes().unwrap()
}

/// Fails at the first place where two maps differ. With `may_copy` the second may hold data where the first does not.
pub(crate) fn assert_same_map(found: &[MapRow], expected: &[MapRow], may_copy: bool, what: &str) {
    let (mut left, mut right) = (found.iter(), expected.iter());
    let (mut a, mut b) = (left.next(), right.next());
    while let (Some(one), Some(two)) = (a, b) {
        let same = MapRow { start: one.start, length: one.length, ..*two } == *one;
        let copied = may_copy && two.data && two.depth == 0 && (one.depth > 0 || !one.data);
        assert!(same || copied, "{what}: {one:#?}\ninstead of {two:#?}");
        let (end_one, end_two) = (one.start + one.length, two.start + two.length);
        a = if end_one <= end_two { left.next() } else { a };
        b = if end_two <= end_one { right.next() } else { b };
    }
    assert!(a.is_none() && b.is_none(), "{what}: the maps differ in length");
}
