//! An image in use while one of its files fails: what each caller was told, what may be read meanwhile, and what is left.
//!
//! Beside the image stands, for every byte, what it may be: now, and on storage since the last flush that was answered
//! with success. An operation that fails leaves old or new bytes, one that is not flushed may be lost.

use std::collections::BTreeMap;
use std::rc::Rc;

use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{Image, NewSnapshot, OpenOptions, SnapshotSelector};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{FailingStorage, MemoryStorage};
use qcowkit_core::{Error, ErrorKind};

use super::failures::Struck;
use super::walk::walk;

/// A file whose calls may fail; clones are the same.
pub type Disk = Rc<FailingStorage<MemoryStorage>>;

/// How the files, of which the first is the image, are opened.
pub type Opens<'a> = dyn Fn(&[Disk], OpenOptions) -> qcowkit_core::Result<Image<Disk>> + 'a;

/// A change of an image that shows the same disk afterwards.
pub type Shape = fn(&mut Image<Disk>) -> qcowkit_core::Result<()>;

/// One operation. Ranges are offset and length; bytes that are written are below 64.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// Writes one byte, again and again.
    Write(usize, usize, u8),
    /// The same, compressed: whole clusters.
    Packed(usize, usize, u8),
    /// Writes zeros; whether clusters may be unmapped.
    Zeroes(usize, usize, bool),
    /// Discards whole clusters, which read as zeros afterwards.
    Discard(usize, usize),
    /// Makes the disk so large.
    Resize(usize),
    /// Reads the disk.
    Read,
    /// Takes a snapshot of this name.
    Take(u8),
    /// Deletes it.
    Delete(u8),
    /// Makes everything durable.
    Flush,
    /// Closes and opens again.
    Reopen,
    /// What leaves the disk as it is: its name, and what it does.
    Shape(&'static str, Shape),
}

/// What is done, and to what.
pub struct Session<'a> {
    /// The files before: the image, and those that it is opened with.
    pub files: Vec<Vec<u8>>,
    /// What the disk shows before.
    pub content: Vec<u8>,
    /// How the image is opened.
    pub options: OpenOptions,
    /// Opens it.
    pub open: &'a Opens<'a>,
    /// What is done.
    pub ops: &'a [Op],
    /// The file that shows the disk too, if there is one.
    pub raw_view: Option<usize>,
    /// What else must hold of the files that are left.
    pub judge: &'a dyn Fn(&[Disk]) -> Result<(), String>,
    /// How many of the files are those of the image itself: one that lies below may refuse to be written without it.
    pub own: usize,
}

/// For each byte the values that it may have, a bit for each.
#[derive(Debug, Clone)]
struct May {
    bytes: Vec<u64>,
    sizes: Vec<usize>,
}

impl May {
    fn be(content: &[u8]) -> Self {
        Self { bytes: content.iter().map(|&byte| 1 << byte).collect(), sizes: vec![content.len()] }
    }

    fn accepts(&self, got: &[u8]) -> Result<(), String> {
        if !self.sizes.contains(&got.len()) {
            return Err(format!("{} bytes, not one of {:?}", got.len(), self.sizes));
        }
        let wrong =
            got.iter().zip(self.bytes.iter().chain(std::iter::repeat(&1))).position(|(byte, may)| may >> byte & 1 == 0);
        match wrong {
            None => Ok(()),
            Some(at) => Err(format!("byte {at:#x} is {}, may be {:#b}", got[at], self.bytes.get(at).unwrap_or(&1))),
        }
    }
}

/// What the disk may show, now and after it is opened again.
#[derive(Debug, Clone)]
pub struct Expected {
    now: May,
    stored: May,
}

impl Expected {
    /// A disk that is on storage.
    #[must_use]
    pub fn new(content: &[u8]) -> Self {
        Self { now: May::be(content), stored: May::be(content) }
    }

    /// One byte was written to a range; where that failed, anywhere in it or nowhere.
    pub fn wrote(&mut self, from: usize, length: usize, byte: u8, failed: bool) {
        let value = 1u64 << byte;
        for at in from..from.saturating_add(length).min(self.now.bytes.len()) {
            self.now.bytes[at] = if failed { self.now.bytes[at] | value } else { value };
            self.stored.bytes[at] |= value;
        }
    }

    /// Everything is durable.
    pub fn flushed(&mut self) {
        self.stored = self.now.clone();
    }

    /// Judges what is read while the image is open.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn shows(&self, got: &[u8]) -> Result<(), String> {
        self.now.accepts(got)
    }

    /// Judges what is read when it is opened again.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn left(&self, got: &[u8]) -> Result<(), String> {
        self.stored.accepts(got)
    }

    fn resized(&mut self, size: usize, failed: bool) {
        let kept = size.min(self.now.bytes.len());
        if failed {
            self.wrote(kept, usize::MAX, 0, true);
            self.now.sizes.push(size);
            self.stored.sizes.push(size);
        } else {
            self.now.bytes.resize(size, 1);
            self.now.sizes = vec![size];
            self.flushed();
        }
    }
}

struct Model {
    disk: Expected,
    /// By name: what it shows, and whether it is certainly there.
    snapshots: BTreeMap<u8, (May, bool)>,
    /// What was wrong with what was read.
    misread: Option<String>,
}

impl Model {
    /// Whether there is what the operation is about: not where what should have made it has failed.
    fn allows(&self, image: &Image<Disk>, op: Op) -> bool {
        let size = self.disk.now.bytes.len().min(image.virtual_size() as usize);
        match op {
            Op::Write(at, length, _) | Op::Packed(at, length, _) => at + length <= size,
            Op::Zeroes(at, length, _) | Op::Discard(at, length) => at + length <= size,
            Op::Delete(name) => self.snapshots.contains_key(&name),
            Op::Resize(_) | Op::Read | Op::Take(_) | Op::Flush | Op::Reopen | Op::Shape(..) => true,
        }
    }

    fn apply(&mut self, image: &mut Image<Disk>, op: Op) -> Result<(), Error> {
        let done = match op {
            Op::Write(at, length, byte) => image.write_at(at as u64, &vec![byte; length]),
            Op::Packed(at, length, byte) => image.write_compressed(at as u64, &vec![byte; length]),
            Op::Zeroes(at, length, unmap) => image.write_zeroes(at as u64, length as u64, unmap),
            Op::Discard(at, length) => image.discard(at as u64, length as u64),
            Op::Resize(size) => image.resize(size as u64),
            Op::Read => read_all(image).map(|got| {
                self.misread = self.disk.shows(&got).err();
            }),
            Op::Take(name) => {
                let new = NewSnapshot { name: name.to_string().into(), ..NewSnapshot::default() };
                image.create_snapshot(&new).map(drop)
            }
            Op::Delete(name) => image.delete_snapshot(&named(name)),
            Op::Flush => image.flush(),
            Op::Shape(_, shape) => shape(image),
            Op::Reopen => unreachable!("done by the session"),
        };
        let failed = done.is_err();
        match op {
            Op::Write(at, length, byte) | Op::Packed(at, length, byte) => self.disk.wrote(at, length, byte, failed),
            Op::Zeroes(at, length, _) | Op::Discard(at, length) => self.disk.wrote(at, length, 0, failed),
            Op::Resize(size) => self.disk.resized(size, failed),
            Op::Take(name) => {
                self.snapshots.insert(name, (self.disk.now.clone(), !failed));
            }
            Op::Delete(name) if failed => drop(self.snapshots.get_mut(&name).map(|(_, certain)| *certain = false)),
            Op::Delete(name) => drop(self.snapshots.remove(&name)),
            Op::Read | Op::Flush | Op::Reopen | Op::Shape(..) => {}
        }
        if !failed && matches!(op, Op::Flush | Op::Take(_) | Op::Delete(_)) {
            self.disk.flushed();
        }
        done
    }
}

fn named(name: u8) -> SnapshotSelector {
    SnapshotSelector::Name(name.to_string().into())
}

fn read_all(image: &mut Image<Disk>) -> qcowkit_core::Result<Vec<u8>> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn is_poisoned(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Poisoned(_))
}

impl Session<'_> {
    /// Does everything while calls of one file fail; whether that struck.
    ///
    /// # Errors
    /// A failure that was kept from the caller, or made up; an image that is neither usable nor says that it is not;
    /// what was flushed and is lost; what is left and is not sound.
    pub fn run(&self, file: usize, fault: &Struck) -> Result<bool, String> {
        let disks: Vec<Disk> =
            self.files.iter().map(|bytes| Rc::new(FailingStorage::new(MemoryStorage::from_bytes(bytes)))).collect();
        let failing = &disks[file];
        let disk = Expected::new(&self.content);
        let mut model = Model { disk, snapshots: BTreeMap::new(), misread: None };
        let mut image = (self.open)(&disks, self.options.clone()).map_err(|error| format!("does not open: {error}"))?;
        failing.fail(fault.rule.clone());
        // The second: an operation failed, and what was done to undo it may have failed for good.
        let (mut poisoned, mut shaken) = (false, false);
        for (n, &op) in self.ops.iter().enumerate() {
            let before = failing.failures();
            if matches!(op, Op::Reopen) {
                image = self.reopen((image, poisoned, shaken), &disks, failing, fault, &mut model)?;
                (poisoned, shaken) = (false, false);
                continue;
            }
            if !model.allows(&image, op) {
                continue;
            }
            let uncertain = matches!(op, Op::Delete(name) if !model.snapshots[&name].1);
            let done = model.apply(&mut image, op);
            let struck = failing.failures() > before;
            if let Some(why) = model.misread.take() {
                return Err(format!("{op:?} {n}: {why}"));
            }
            match &done {
                Err(error) if is_poisoned(error) && (struck || shaken) => poisoned = file < self.own,
                Err(error) if uncertain && matches!(error.kind(), ErrorKind::InvalidArgument(_)) => {}
                Ok(()) if poisoned && !matches!(op, Op::Read) => return Err(format!("{op:?} on a poisoned image")),
                done => fault.answered(done, struck).map_err(|why| format!("{op:?}: {why}"))?,
            }
            shaken |= struck;
        }
        let struck = failing.failures() > 0;
        failing.heal();
        // Usable: what could not be written before is written now. Or it says that it is not.
        for op in [Op::Write(0, 700, 62), Op::Read, Op::Flush] {
            match model.apply(&mut image, op) {
                Err(error) if is_poisoned(&error) && shaken => {}
                Ok(()) if poisoned && !matches!(op, Op::Read) => return Err(format!("{op:?} on a poisoned image")),
                done => done.map_err(|error| format!("not usable: {op:?}: {error}"))?,
            }
            if let Some(why) = model.misread.take() {
                return Err(format!("used on, it reads wrong: {why}"));
            }
        }
        drop(image);
        self.judge(&disks, &mut model)?;
        Ok(struck)
    }

    /// Closes and opens again. Where opening fails, it is tried again on files that do not fail any more.
    fn reopen(
        &self,
        (image, poisoned, shaken): (Image<Disk>, bool, bool),
        disks: &[Disk],
        failing: &Disk,
        fault: &Struck,
        model: &mut Model,
    ) -> Result<Image<Disk>, String> {
        let before = failing.failures();
        let closed = image.close();
        let struck = failing.failures() > before;
        match &closed {
            Ok(_) if poisoned => return Err("a poisoned image was closed as if nothing had happened".into()),
            Ok(_) => {
                fault.answered(&closed, struck).map_err(|why| format!("close: {why}"))?;
                model.disk.flushed();
            }
            Err(error) if (poisoned || shaken) && is_poisoned(error) => {}
            Err(_) => fault.answered(&closed, struck).map_err(|why| format!("close: {why}"))?,
        }
        // What was not flushed shows or does not.
        model.disk.now = model.disk.stored.clone();
        let before = failing.failures();
        let opened = (self.open)(disks, self.options.clone());
        fault.answered(&opened, failing.failures() > before).map_err(|why| format!("open: {why}"))?;
        match opened {
            Ok(image) => Ok(image),
            Err(_) => {
                failing.heal();
                (self.open)(disks, self.options.clone()).map_err(|error| format!("does not open again: {error}"))
            }
        }
    }

    /// Judges what is left, and that it can be used on.
    fn judge(&self, disks: &[Disk], model: &mut Model) -> Result<(), String> {
        sound(&disks[0])?;
        (self.judge)(disks)?;
        let mut image =
            (self.open)(disks, self.options.clone()).map_err(|error| format!("does not open again: {error}"))?;
        let got = read_all(&mut image).map_err(|error| format!("cannot be read: {error}"))?;
        model.disk.left(&got)?;
        if let Some(file) = self.raw_view {
            let view = disks[file].inner().to_vec().map_err(|error| error.to_string())?;
            let shown = got.iter().zip(view.iter().chain(std::iter::repeat(&0)));
            if let Some(at) = shown.clone().position(|(guest, file)| guest != file) {
                return Err(format!("byte {at:#x} of the raw file is not the disk's {}", got[at]));
            }
        }
        let names = image.snapshots().map_err(|error| format!("snapshots: {error}"))?;
        let names: Vec<String> = names.iter().map(|snapshot| snapshot.name.to_string()).collect();
        for (name, (shows, certain)) in &model.snapshots {
            if !names.contains(&name.to_string()) {
                if *certain {
                    return Err(format!("the snapshot {name} is gone"));
                }
                continue;
            }
            let view = (self.open)(disks, self.options.clone().read_only().of_snapshot(named(*name)));
            let got = view.and_then(|mut view| read_all(&mut view)).map_err(|e| format!("snapshot {name}: {e}"))?;
            shows.accepts(&got).map_err(|why| format!("snapshot {name}: {why}"))?;
        }
        image.write_at(1000, &[61; 3000]).map_err(|error| format!("cannot be used on: {error}"))?;
        image.close().map_err(|error| format!("cannot be used on: {error}"))?;
        sound(&disks[0])
    }
}

/// No corruption in the file.
fn sound(disk: &Disk) -> Result<(), String> {
    let bytes = disk.inner().to_vec().map_err(|error| error.to_string())?;
    let area = HeaderArea::parse(&bytes).map_err(|error| error.to_string())?;
    if !area.header.incompatible.data_file() {
        return walk(&bytes).map(drop);
    }
    let report = check(disk.inner(), &area, &mut |_| ()).map_err(|error| error.to_string())?;
    match report.corruptions + report.check_errors {
        0 => Ok(()),
        _ => Err(format!("{report:?}")),
    }
}
