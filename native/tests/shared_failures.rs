//! One open image for many threads, and a storage that fails: the error reaches the call that met it, nobody waits for
//! ever, later calls work or say that the image does not, and nothing that was flushed is lost.
#![cfg(unix)]

use std::cell::Cell;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qcowkit::disk::{Disk, RawDisk};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::shared::{SharedDisk, SharedImage};
use qcowkit_core::image::{CreateOptions, Found, Image, LayerFormat, OpenOptions, Opener, Reference, Role};
use qcowkit_core::metadata::{DiscardPolicy, MetadataOptions, RetainedOp, Unref};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{
    Capabilities, FailingStorage, FailureRule, MemoryStorage, ReadStorage, Storage, StorageError, StorageExtent,
    ZeroMode,
};
use qcowkit_core::{Error, ErrorKind};
use qcowkit_trial::failures::{Struck, each_fault};
use qcowkit_trial::faulty::Expected;

const SIZE: usize = 64 << 10;
const CLUSTER: usize = 1024;

thread_local! {
    /// How often a call of this thread has failed.
    static FAILED: Cell<u64> = const { Cell::new(0) };
}

/// A file in memory whose calls may fail, for many threads; clones are the same.
#[derive(Clone)]
struct Faulty(Arc<Mutex<FailingStorage<MemoryStorage>>>);

impl Faulty {
    fn new(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(FailingStorage::new(MemoryStorage::from_bytes(bytes)))))
    }

    fn fail(&self, rule: FailureRule) {
        self.0.lock().unwrap().fail(rule);
    }

    fn heal(&self) {
        self.0.lock().unwrap().heal();
    }

    fn failures(&self) -> u64 {
        self.0.lock().unwrap().failures()
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().inner().to_vec().unwrap()
    }

    fn call<R>(&self, call: impl FnOnce(&FailingStorage<MemoryStorage>) -> R) -> R {
        let storage = self.0.lock().unwrap();
        let before = storage.failures();
        let done = call(&storage);
        FAILED.set(FAILED.get() + storage.failures() - before);
        done
    }
}

impl ReadStorage for Faulty {
    fn len(&self) -> Result<u64, StorageError> {
        self.call(ReadStorage::len)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.call(|storage| storage.read_at(offset, into))
    }
    fn capabilities(&self) -> Capabilities {
        self.call(ReadStorage::capabilities)
    }
    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        self.call(|storage| storage.next_extent(offset))
    }
}

impl Storage for Faulty {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.call(|storage| storage.write_at(offset, from))
    }
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), StorageError> {
        self.call(|storage| storage.write_zeroes(offset, length, mode))
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.call(|storage| storage.discard(offset, length))
    }
    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.call(|storage| storage.set_len(length))
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.call(|storage| storage.allocate(offset, length))
    }
    fn barrier(&self) -> Result<(), StorageError> {
        self.call(Storage::barrier)
    }
}

/// The file that is beside the image.
struct Beside(Faulty);

impl Opener<Faulty> for Beside {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<Faulty>> {
        let format = if reference.role == Role::DataFile { LayerFormat::Raw } else { LayerFormat::Qcow2 };
        Ok(Found { storage: self.0.clone(), format, identity: None })
    }
}

struct Case {
    name: &'static str,
    /// The image, and what is beside it.
    files: [Vec<u8>; 2],
    content: Vec<u8>,
    options: OpenOptions,
}

fn open(disks: &[Faulty; 2], options: &OpenOptions) -> qcowkit_core::Result<Image<Faulty>> {
    Image::open_with(disks[0].clone(), None, options.clone(), &mut Beside(disks[1].clone()))
}

/// Over a backing file, with packed clusters in both; with a data file; and keeping what is discarded.
fn cases() -> Vec<Case> {
    let metadata =
        MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, quarantine_bytes: 0, ..MetadataOptions::default() };
    let options = OpenOptions::default().with_metadata(metadata);
    let policy =
        DiscardPolicy { unref: Unref::RetainUnshared, retained_op: RetainedOp::ZeroRange, ..DiscardPolicy::default() };
    let create = CreateOptions { cluster_size: CLUSTER as u64, refcount_bits: 64, ..CreateOptions::default() };
    let mut below = Image::create(MemoryStorage::new(), SIZE as u64, &create).unwrap();
    below.write_at(3000, &[11; 20_000]).unwrap();
    below.write_compressed(40_960, &[12; 4096]).unwrap();
    let below = below.close().unwrap().to_vec().unwrap();
    let mut content = vec![0; SIZE];
    content[3000..23_000].fill(11);
    content[40_960..45_056].fill(12);
    let over = CreateOptions { backing_file: Some("below".into()), ..create.clone() };
    let over = CreateOptions { backing_format: Some("qcow2".into()), ..over };
    let memory = MemoryStorage::new();
    let mut top = Image::create_with(memory, SIZE as u64, &over, OpenOptions::default().metadata_only()).unwrap();
    top.write_compressed(8192, &[13; 2048]).unwrap();
    let top = top.close().unwrap().to_vec().unwrap();
    content[8192..10_240].fill(13);
    let beside = CreateOptions { data_file: Some("data".into()), refcount_bits: 16, ..create };
    let (disk, data) = (MemoryStorage::new(), MemoryStorage::new());
    let image = Image::create_with_data_file(&disk, &data, SIZE as u64, &beside, OpenOptions::default()).unwrap();
    image.close().unwrap();
    let split = [disk.to_vec().unwrap(), data.to_vec().unwrap()];
    vec![
        Case {
            name: "backing",
            files: [top.clone(), below.clone()],
            content: content.clone(),
            options: options.clone(),
        },
        Case { name: "retaining", files: [top, below], content, options: options.clone().with_policy(policy) },
        Case { name: "data file", files: split, content: vec![0; SIZE], options },
    ]
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Write(usize, usize, u8),
    Zeroes(usize, usize, bool),
    Discard(usize, usize),
    Read,
    Flush,
}

/// In the half of the disk that begins with 0.
const OPS: [Op; 11] = [
    Op::Write(100, 3000, 1),
    Op::Write(8300, 200, 2),
    Op::Flush,
    Op::Read,
    Op::Discard(2048, 2048),
    Op::Write(2100, 300, 3),
    Op::Zeroes(9000, 3000, true),
    Op::Zeroes(20_000, 100, false),
    Op::Write(12_288, 8192, 4),
    Op::Flush,
    Op::Write(500, 600, 5),
];

/// One user of the disk: what it believes of its half, and what it was told.
struct User {
    start: usize,
    expected: Expected,
    shaken: bool,
    poisoned: bool,
}

impl User {
    fn new(content: &[u8], start: usize, length: usize) -> Self {
        let expected = Expected::new(&content[start..start + length]);
        Self { start, expected, shaken: false, poisoned: false }
    }

    fn call(&mut self, image: &SharedImage<Faulty>, op: Op, length: usize) -> Result<(), Error> {
        let at = |offset: usize| (self.start + offset) as u64;
        match op {
            Op::Write(offset, length, byte) => image.write_at(at(offset), &vec![byte; length]),
            Op::Zeroes(offset, length, unmap) => image.write_zeroes(at(offset), length as u64, unmap),
            Op::Discard(offset, length) => image.discard(at(offset), length as u64),
            Op::Read => {
                let mut got = vec![0; length];
                image.read_at(at(0), &mut got)?;
                self.expected.shows(&got).unwrap_or_else(|why| panic!("what was read: {why}"));
                Ok(())
            }
            Op::Flush => image.flush(),
        }
    }

    /// `others`: the image may have been poisoned by somebody else.
    fn go(
        &mut self,
        image: &SharedImage<Faulty>,
        op: Op,
        length: usize,
        fault: &Struck,
        others: bool,
    ) -> Result<(), String> {
        let before = FAILED.get();
        let done = self.call(image, op, length);
        let struck = FAILED.get() > before;
        match op {
            Op::Write(offset, length, byte) => self.expected.wrote(offset, length, byte, done.is_err()),
            Op::Zeroes(offset, length, _) | Op::Discard(offset, length) => {
                self.expected.wrote(offset, length, 0, done.is_err());
            }
            Op::Flush if done.is_ok() => self.expected.flushed(),
            Op::Flush | Op::Read => {}
        }
        self.shaken |= struck;
        match &done {
            Err(error) if is_poisoned(error) && (self.shaken || others) => self.poisoned = true,
            Ok(()) if self.poisoned && !matches!(op, Op::Read) => return Err(format!("{op:?} on a poisoned image")),
            done => fault.answered(done, struck).map_err(|why| format!("{op:?}: {why}"))?,
        }
        Ok(())
    }
}

fn is_poisoned(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Poisoned(_))
}

/// The image is used on, closed, opened again, and whole.
fn judge(
    case: &Case,
    disks: &[Faulty; 2],
    image: SharedImage<Faulty>,
    users: &mut [User],
    length: usize,
) -> Result<(), String> {
    let never = FailureRule::nth(qcowkit_core::storage::FailureScope::Any, u64::MAX);
    let healed = Struck { rule: never, told: true };
    let poisoned = users.iter().any(|user| user.poisoned);
    for user in &mut *users {
        for op in [Op::Write(30_000, 700, 9), Op::Read, Op::Flush] {
            user.go(&image, op, length, &healed, true).map_err(|why| format!("not usable: {why}"))?;
        }
    }
    match image.close() {
        Err(error) if is_poisoned(&error) => {}
        Ok(_) if poisoned => return Err("a poisoned image was closed as if nothing had happened".into()),
        done => drop(done.map_err(|error| format!("close: {error}"))?),
    }
    let bytes = MemoryStorage::from_bytes(&disks[0].bytes());
    let area = read_header(&bytes).map_err(|error| error.to_string())?;
    let report = check(&bytes, &area, &mut |_| ()).map_err(|error| error.to_string())?;
    if report.corruptions + report.check_errors > 0 {
        return Err(format!("{report:?}"));
    }
    let mut image = open(disks, &case.options.clone().read_only()).map_err(|error| error.to_string())?;
    for user in users {
        let mut got = vec![0; length];
        image.read_at(user.start as u64, &mut got).map_err(|error| error.to_string())?;
        user.expected.left(&got).map_err(|why| format!("opened again, {:#x}: {why}", user.start))?;
    }
    Ok(())
}

#[test]
fn every_call_of_one_thread_may_fail() {
    let mut cases_seen = 0;
    for case in cases() {
        for file in 0..2 {
            let reads_alone = file == 1 && case.name != "data file";
            let never: &[&str] = if reads_alone { &["write", "half a write", "flush", "no space"] } else { &[] };
            cases_seen += each_fault(never, |fault| {
                let disks = [Faulty::new(&case.files[0]), Faulty::new(&case.files[1])];
                let image = SharedImage::new(open(&disks, &case.options).unwrap());
                disks[file].fail(fault.rule.clone());
                let mut user = User::new(&case.content, 0, SIZE);
                let what = |why| format!("{}, file {file}: {why}", case.name);
                for op in OPS {
                    user.go(&image, op, SIZE, fault, false).map_err(what)?;
                }
                let struck = disks[file].failures() > 0;
                disks[file].heal();
                judge(&case, &disks, image, &mut [user], SIZE).map_err(what)?;
                Ok(struck)
            });
        }
    }
    println!("{cases_seen} failures");
    assert!(cases_seen > 300, "{cases_seen}");
}

/// Two threads in two halves of the disk. Which of them meets the failure is chance, and the other is not told of it:
/// unless the image is poisoned. A call that never comes back fails the test after a minute.
#[test]
fn a_call_of_two_threads_fails_and_neither_waits_for_ever() {
    let mut failures = 0;
    for case in cases() {
        let case = Arc::new(case);
        let mut round = 0u64;
        let file = usize::from(case.name == "data file");
        each_fault(&[], |fault| {
            round += 1;
            // Each third, and in each round others: a call that is not tried now is tried in another place.
            if !round.is_multiple_of(3) {
                return Ok(true);
            }
            let disks = [Faulty::new(&case.files[0]), Faulty::new(&case.files[1])];
            let image = Arc::new(SharedImage::new(open(&disks, &case.options).unwrap()));
            disks[file].fail(fault.rule.clone());
            let (send, receive) = channel();
            for start in [0, SIZE / 2] {
                let (image, case, fault, send) = (Arc::clone(&image), Arc::clone(&case), fault.clone(), send.clone());
                std::thread::spawn(move || {
                    let mut user = User::new(&case.content, start, SIZE / 2);
                    let done = OPS.iter().try_for_each(|&op| user.go(&image, op, SIZE / 2, &fault, true));
                    drop(image);
                    let _ = send.send(done.map(|()| user));
                });
            }
            drop(send);
            let mut users = Vec::new();
            for _ in 0..2 {
                let done = receive.recv_timeout(Duration::from_secs(60));
                users.push(done.map_err(|_| "a thread is stuck, or panicked".to_owned())??);
            }
            let struck = disks[file].failures() > 0;
            disks[file].heal();
            let image = Arc::into_inner(image).unwrap();
            judge(&case, &disks, image, &mut users, SIZE / 2).map_err(|why| format!("{}: {why}", case.name))?;
            failures += u64::from(struck);
            Ok(struck)
        });
    }
    println!("{failures} failures");
    assert!(failures > 100, "{failures}");
}

const LIMITED: &str = "QCOWKIT_TEST_LIMITED";
const PIECE: usize = 64 << 10;

/// A real file that must not grow any more, under a disk of either format: the shell's limit of a file's size stands for a
/// file system that is full. In a process of its own, whose limit it is.
#[test]
fn a_shared_disk_without_space_goes_on() {
    if let Some(folder) = std::env::var_os(LIMITED) {
        let folder = std::path::PathBuf::from(folder);
        for (path, format) in [(folder.join("qcow2"), LayerFormat::Qcow2), (folder.join("raw"), LayerFormat::Raw)] {
            fill_until_it_fails(&path, format);
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = FileStorage::open(folder.path().join("qcow2"), FileAccess::CreateNew).unwrap();
    Image::create(image, 4 << 20, &CreateOptions::default()).unwrap().close().unwrap();
    std::fs::File::create(folder.path().join("raw")).unwrap().set_len(4 << 20).unwrap();
    let name = "a_shared_disk_without_space_goes_on";
    let child = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(LIMITED, folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(told.matches("went on").count(), 2, "{told}");
}

fn shared_disk(path: &std::path::Path, format: LayerFormat, access: FileAccess) -> SharedDisk {
    let storage = FileStorage::open(path, access).unwrap();
    let read_only = OpenOptions::default().read_only();
    let options = if access == FileAccess::Write { OpenOptions::default() } else { read_only };
    SharedDisk::from(match format {
        LayerFormat::Qcow2 => Disk::Qcow2(Box::new(Image::open(storage, options).unwrap())),
        LayerFormat::Raw => Disk::Raw(RawDisk::new(storage, &options).unwrap()),
    })
}

fn fill_until_it_fails(path: &std::path::Path, format: LayerFormat) {
    let disk = shared_disk(path, format, FileAccess::Write);
    let offset = |n: usize| (n * PIECE) as u64;
    let failed = (0..64).find(|&n| disk.write_at(offset(n), &[n as u8 + 1; PIECE]).is_err());
    let failed = failed.expect("beyond the limit a write fails");
    assert!(failed > 4, "{failed}");
    disk.flush().unwrap();
    // What is given up makes room for what is written; what is in place needs none.
    disk.punch(0, 2 * PIECE as u64).unwrap();
    disk.flush().unwrap();
    disk.write_at(0, &[100; PIECE]).unwrap();
    disk.write_zeroes(offset(2), 1000, false).unwrap();
    disk.close().unwrap();
    let disk = shared_disk(path, format, FileAccess::Read);
    let mut bytes = vec![0; PIECE];
    for n in 0..failed {
        disk.read_at(offset(n), &mut bytes).unwrap();
        let (byte, from) = [(100, 0), (0, 0), (3, 1000)].get(n).copied().unwrap_or((n as u8 + 1, 0));
        assert!(bytes[from..].iter().all(|&found| found == byte), "{format:?}, piece {n}");
    }
    println!("{format:?} went on after {failed} pieces");
}
