//! Images with an external data file, one of whose two files fails: the error reaches the caller, nothing flushed is lost,
//! a raw data file shows what the guest sees, and the image goes on or says that it does not.

use std::rc::Rc;

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{
    AmendOptions, CreateOptions, Found, Image, LayerFormat, NewSnapshot, OpenOptions, Opener, Reference, Role,
};
use qcowkit_core::metadata::{DiscardPolicy, MetadataOptions, Pass, RetainedOp, Unref};
use qcowkit_core::operations::check;
use qcowkit_core::operations::repair::{RepairLevel, RepairOptions, apply, plan};
use qcowkit_core::storage::{FailingStorage, MemoryStorage, ReadStorage};
use qcowkit_trial::chains::commit_and_empty;
use qcowkit_trial::data_files;
use qcowkit_trial::failures::each_fault;
use qcowkit_trial::faulty::{Disk, Op, Session};

const SIZE: usize = 64 << 10;

const OPS: [Op; 14] = [
    Op::Write(100, 30_000, 1),
    Op::Write(40_000, 2000, 2),
    Op::Flush,
    Op::Write(20_480, 1024, 3),
    Op::Discard(16_384, 16_384),
    Op::Zeroes(700, 1500, true),
    Op::Zeroes(40_960, 512, false),
    Op::Flush,
    Op::Write(20_480, 512, 4),
    Op::Resize(SIZE + 40_960),
    Op::Write(61_440, 30_000, 5),
    Op::Reopen,
    Op::Read,
    Op::Resize(57_344),
];

fn options(unref: Unref, retained_op: RetainedOp, request: bool) -> OpenOptions {
    let policy = DiscardPolicy { unref, retained_op, pass: Pass { request, ..Pass::default() } };
    let metadata = MetadataOptions { slice_bytes: 512, cache_bytes: 8 * 512, ..MetadataOptions::default() };
    OpenOptions::default().with_policy(policy).with_metadata(metadata)
}

fn open(disks: &[Disk], options: OpenOptions) -> qcowkit_core::Result<Image<Disk>> {
    let mut opener = data_files::Give(Some(Rc::clone(&disks[1])));
    Image::open_with(Rc::clone(&disks[0]), None, options, &mut opener)
}

/// Both files of a new image, and its disk.
fn base(raw: bool, extended_l2: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    let create = CreateOptions {
        cluster_size: if extended_l2 { 16 << 10 } else { 1024 },
        extended_l2,
        data_file: Some("data".into()),
        data_file_raw: raw,
        ..CreateOptions::default()
    };
    let (disk, data) = (MemoryStorage::new(), MemoryStorage::new());
    let mut image = Image::create_with_data_file(&disk, &data, SIZE as u64, &create, OpenOptions::default()).unwrap();
    image.write_at(20_000, &[7; 10_000]).unwrap();
    image.write_zeroes(24_576, 2048, true).unwrap();
    image.close().unwrap();
    let mut content = vec![0; SIZE];
    content[20_000..30_000].fill(7);
    content[24_576..26_624].fill(0);
    (vec![disk.to_vec().unwrap(), data.to_vec().unwrap()], content)
}

#[test]
fn every_call_of_either_file_may_fail() {
    let policies = [
        (Unref::Always, RetainedOp::Punch, true, false),
        (Unref::RetainUnshared, RetainedOp::Punch, false, false),
        (Unref::RetainUnshared, RetainedOp::ZeroRange, true, true),
        (Unref::RetainQemu, RetainedOp::None, true, false),
    ];
    let mut cases = 0;
    for (unref, op, request, extended_l2) in policies {
        for raw in [false, true] {
            let (files, content) = base(raw, extended_l2);
            let session = Session {
                files,
                content,
                options: options(unref, op, request),
                open: &open,
                ops: &OPS,
                raw_view: raw.then_some(1),
                judge: &|_| Ok(()),
                own: 2,
            };
            for failing in 0..2 {
                cases += each_fault(&[], |fault| {
                    let what = |why| format!("{unref:?}, {op:?}, raw {raw}, file {failing}: {why}");
                    session.run(failing, fault).map_err(what)
                });
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 400, "{cases}");
}

/// The files by the names that the images have for them.
struct Named<'a>(&'a [Disk]);

impl Opener<Disk> for Named<'_> {
    fn open(&mut self, reference: &Reference<'_>) -> qcowkit_core::Result<Found<Disk>> {
        let (file, format) = match (reference.role, reference.depth) {
            (Role::DataFile, 0) => (1, LayerFormat::Raw),
            (Role::Backing, _) => (2, LayerFormat::Qcow2),
            (Role::DataFile, _) => (3, LayerFormat::Raw),
        };
        Ok(Found { storage: Rc::clone(&self.0[file]), format, identity: None })
    }
}

/// Two images, each with a data file, one over the other.
fn open_over(disks: &[Disk], options: OpenOptions) -> qcowkit_core::Result<Image<Disk>> {
    Image::open_with(Rc::clone(&disks[0]), None, options, &mut Named(disks))
}

#[test]
fn every_call_of_a_commit_may_fail() {
    const OPS: [Op; 4] = [
        Op::Shape("commit", commit_and_empty),
        Op::Write(2000, 3000, 8),
        Op::Flush,
        Op::Shape("commit again", commit_and_empty),
    ];
    let mut cases = 0;
    for raw_base in [false, true] {
        let (mut below, mut content) = base(raw_base, false);
        let create = CreateOptions {
            cluster_size: 512,
            data_file: Some("data".into()),
            backing_file: Some("base".into()),
            backing_format: Some("qcow2".into()),
            ..CreateOptions::default()
        };
        let (disk, data) = (MemoryStorage::new(), MemoryStorage::new());
        let open = OpenOptions::default().metadata_only();
        let mut top = Image::create_with_data_file(&disk, &data, SIZE as u64, &create, open).unwrap();
        top.write_at(5120, &[9; 20_480]).unwrap();
        top.write_zeroes(26_624, 1024, true).unwrap();
        top.close().unwrap();
        content[5120..25_600].fill(9);
        content[26_624..27_648].fill(0);
        let mut files = vec![disk.to_vec().unwrap(), data.to_vec().unwrap()];
        files.append(&mut below);
        let mut options = options(Unref::Always, RetainedOp::Punch, true);
        options.writable_backing = Some(1);
        let judge = |disks: &[Disk]| if raw_base { both_show_the_same(&disks[2..]) } else { Ok(()) };
        let (open, judge, ops) = (&open_over, &judge, &OPS);
        let session = Session { files, content, options, open, ops, raw_view: None, judge, own: 2 };
        for failing in 0..4 {
            // Tables that are in memory are not read again; of the top's data file nothing is written anew, and the
            // base's data are not read.
            let never: &[&str] = if failing == 3 { &["read"] } else { &[] };
            cases += each_fault(never, |fault| {
                session.run(failing, fault).map_err(|why| format!("raw {raw_base}, file {failing}: {why}"))
            });
        }
    }
    println!("{cases} failures");
    assert!(cases > 200, "{cases}");
}

/// An image and its raw data file.
fn both_show_the_same(disks: &[Disk]) -> Result<(), String> {
    let mut image = open(disks, OpenOptions::default().read_only()).map_err(|error| error.to_string())?;
    let mut got = vec![0; SIZE];
    image.read_at(0, &mut got).map_err(|error| error.to_string())?;
    let file = data_files::bytes_of(disks[1].inner(), SIZE);
    match got.iter().zip(&file).position(|(guest, file)| guest != file) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at:#x} of the base's raw file is another")),
    }
}

#[test]
fn every_call_of_an_amendment_may_fail() {
    fn amend(image: &mut Image<Disk>, change: impl FnOnce(&mut AmendOptions)) -> qcowkit_core::Result<()> {
        let mut options = AmendOptions::default();
        change(&mut options);
        image.amend(&options, &mut |_, _| ())
    }
    const OPS: [Op; 4] = [
        Op::Write(20_480, 1024, 3),
        Op::Shape("other refcounts", |image| amend(image, |o| o.refcount_bits = Some(64))),
        Op::Shape("another name", |image| amend(image, |o| o.data_file = Some("d".repeat(300)))),
        Op::Shape("not raw", |image| {
            let raw = image.header().header.autoclear.data_file_raw();
            amend(image, |o| o.data_file_raw = raw.then_some(false))
        }),
    ];
    let mut cases = 0;
    for raw in [false, true] {
        let (files, content) = base(raw, false);
        let options = options(Unref::Always, RetainedOp::Punch, true);
        let session = Session {
            files,
            content,
            options,
            open: &open,
            ops: &OPS,
            raw_view: raw.then_some(1),
            judge: &|_| Ok(()),
            own: 2,
        };
        for failing in 0..2 {
            // The data file is not read, and only the write needs it.
            let never: &[&str] = if failing == 1 { &["read"] } else { &[] };
            cases += each_fault(never, |fault| {
                session.run(failing, fault).map_err(|why| format!("raw {raw}, file {failing}: {why}"))
            });
        }
    }
    println!("{cases} failures");
    assert!(cases > 80, "{cases}");
}

#[test]
fn every_call_of_a_repair_may_fail() {
    let mut cases = 0;
    for raw in [false, true] {
        let (files, content) = base(raw, false);
        let area = HeaderArea::parse(&files[0]).unwrap();
        let word = |bytes: &[u8], at: u64| u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap());
        let mut bytes = files[0].clone();
        // The refcounts of the tables are gone, others are there for nothing, and a flag is missing.
        let block = word(&bytes, area.header.refcount_table_offset) as usize;
        bytes[block + 2..block + 10].fill(0);
        bytes.resize(bytes.len().next_multiple_of(1024) + 3072, 0);
        let last = block + bytes.len() / 1024 * 2;
        bytes[last - 6..last].fill(1);
        let l1 = area.header.l1_table_offset as usize;
        bytes[l1] &= 0x7f;
        let make_plan = |storage: &dyn ReadStorage| {
            plan(&storage, RepairLevel::All, &RepairOptions::default(), &mut |_| ()).map_err(|error| error.to_string())
        };
        let plan = make_plan(&MemoryStorage::from_bytes(&bytes)).unwrap();
        assert!(plan.corruptions_fixed() > 0 && plan.leaks_fixed() > 0);
        cases += each_fault(&["read"], |fault| {
            let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
            storage.fail(fault.rule.clone());
            let done = apply(&plan, &storage, true);
            let struck = storage.failures() > 0;
            fault.answered(&done, struck)?;
            storage.heal();
            apply(&make_plan(&storage)?, &storage, true).map_err(|error| error.to_string())?;
            let disks: Vec<Disk> =
                [storage.inner().to_vec().unwrap(), files[1].clone()].iter().map(|bytes| failing(bytes)).collect();
            let report = check(disks[0].inner(), &area, &mut |_| ()).map_err(|error| error.to_string())?;
            if report.corruptions + report.check_errors + report.leaks > 0 {
                return Err(format!("raw {raw}: {report:?}"));
            }
            let mut image = open(&disks, OpenOptions::default()).map_err(|error| error.to_string())?;
            let mut got = vec![0; SIZE];
            image.read_at(0, &mut got).map_err(|error| error.to_string())?;
            if got == content { Ok(struck) } else { Err(format!("raw {raw}: the disk is another")) }
        });
    }
    println!("{cases} failures");
    assert!(cases > 20, "{cases}");
}

fn failing(bytes: &[u8]) -> Disk {
    Rc::new(FailingStorage::new(MemoryStorage::from_bytes(bytes)))
}

/// A data file that is too short, as after a copy that was interrupted: what is left is read, what is gone is zeros or an
/// error, and what is written then is there.
#[test]
fn a_short_data_file_shows_what_is_left() {
    let (files, content) = base(false, false);
    for length in (0..files[1].len()).step_by(4096 - 512) {
        let disks = [failing(&files[0]), failing(&files[1][..length])];
        let mut image = open(&disks, OpenOptions::default()).unwrap();
        let mut got = vec![0; SIZE];
        if image.read_at(0, &mut got).is_ok() {
            let is_left =
                got.iter().zip(&content).enumerate().all(|(at, (now, was))| now == was || *now == 0 && at >= length);
            assert!(is_left, "{length} bytes");
        }
        image.write_at(10_000, &[1; 40_000]).unwrap();
        image.close().unwrap();
        let mut image = open(&disks, OpenOptions::default().read_only()).unwrap();
        image.read_at(0, &mut got).unwrap();
        assert!(got[10_000..50_000].iter().all(|&byte| byte == 1), "{length} bytes");
    }
}

/// Snapshots would not keep the data: refused before anything is read or written that could fail.
#[test]
fn snapshots_are_refused() {
    let (files, _) = base(false, false);
    let disks: Vec<Disk> = files.iter().map(|bytes| failing(bytes)).collect();
    let mut image = open(&disks, OpenOptions::default()).unwrap();
    let error = image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap_err();
    assert!(error.to_string().contains("data file"), "{error}");
    drop(image);
    assert!(disks.iter().zip(&files).all(|(disk, bytes)| disk.inner().to_vec().unwrap() == *bytes));
}
