//! Random operations on an image whose storage is recorded, with the guest's contents beside it.

use std::collections::BTreeMap;

use qcowkit_core::ErrorKind;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{CreateOptions, Image, Layer, NewSnapshot, OpenOptions, Preallocation, SnapshotSelector};
use qcowkit_core::storage::{MemoryStorage, RecordingStorage, StorageEvent};

use super::Rng;
use super::snapshot::{make_snapshot, view_of_snapshot};

/// Bytes that a disk writes or does not write.
pub const SECTOR: usize = 512;

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// How the image is made.
    pub create: CreateOptions,
    /// How it is opened.
    pub open: OpenOptions,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Bytes of a raw backing file, 0 for none.
    pub backing: u64,
    /// The image has a snapshot from the beginning.
    pub snapshot: bool,
    /// Snapshots are taken, applied and deleted.
    pub snapshots: bool,
    /// The disk grows and shrinks.
    pub resize: bool,
    /// Operations.
    pub steps: u64,
    /// Bytes of the virtual disk that are mapped from the beginning.
    pub preallocated: u64,
}

/// The contents that a completed flush promised.
pub struct Flushed {
    /// Events that had happened when it returned.
    pub events: usize,
    /// Of the disk.
    pub content: Vec<u8>,
}

/// What one operation may have changed.
pub struct Change {
    /// Events that had happened when it began.
    pub events: usize,
    /// Number of flushes that had completed.
    pub flushes: usize,
    /// Which sector of the disk.
    pub sector: usize,
    /// What it holds afterwards.
    pub value: Vec<u8>,
    /// The virtual size afterwards.
    pub size: usize,
    /// Less than the sector was written: its bytes may be mixed with those of other partial writes.
    pub partial: bool,
}

/// A snapshot that was there for a while. Its name is its index.
pub struct Taken {
    /// Of the disk when it was taken.
    pub content: Vec<u8>,
    /// Events that had happened when it began to be taken, and when it was there.
    pub created: (usize, usize),
    /// The same for its deletion.
    pub deleted: Option<(usize, usize)>,
}

/// A snapshot that was applied: the disk is the old or the new until it is done.
pub struct Applied {
    /// Events that had happened when that began, and when it was done.
    pub events: (usize, usize),
    /// Of the disk afterwards.
    pub content: Vec<u8>,
}

/// What was recorded.
#[derive(Default)]
pub struct Session {
    /// Snapshots that came and went.
    pub taken: Vec<Taken>,
    /// Snapshots that were applied.
    pub applied: Vec<Applied>,
    /// The file before.
    pub base: Vec<u8>,
    /// The backing file.
    pub backing: Option<Vec<u8>>,
    /// What the snapshot shows, at all times.
    pub snapshot: Option<Vec<u8>>,
    /// What happened to the file.
    pub events: Vec<StorageEvent>,
    /// What is promised, in order.
    pub flushed: Vec<Flushed>,
    /// What may be there besides.
    pub changes: Vec<Change>,
    /// What was done, by name.
    pub operations: BTreeMap<&'static str, u64>,
}

type Disk = RecordingStorage<MemoryStorage>;

struct Recorder<'a> {
    scenario: &'a Scenario,
    image: Option<Image<Disk>>,
    model: Vec<u8>,
    rng: Rng,
    backing: Option<Vec<u8>>,
    flushed: Vec<Flushed>,
    changes: Vec<Change>,
    taken: Vec<Taken>,
    applied: Vec<Applied>,
    operations: BTreeMap<&'static str, u64>,
    /// Where the L1 table and the refcount table are.
    places: Option<(u64, u64)>,
    stamp: u8,
}

/// Opens an image over its raw backing bytes.
///
/// # Errors
/// As [`Image::open`].
pub fn open_over<S: qcowkit_core::storage::Storage>(
    storage: S,
    open: &OpenOptions,
    backing: Option<(S, u64)>,
) -> qcowkit_core::Result<Image<S>> {
    let image = Image::open(storage, open.clone().metadata_only())?;
    Ok(match backing {
        Some((storage, length)) => image.with_backing(Layer::Raw { storage, length }),
        None => image,
    })
}

/// Carries a session out.
///
/// # Panics
/// When the image does something else than the model.
#[must_use]
pub fn record(scenario: &Scenario, seed: u64) -> Session {
    let mut rng = Rng::new(seed);
    let backing = (scenario.backing > 0).then(|| (0..scenario.backing).map(|n| (n / 64) as u8 | 0x80).collect());
    let mut model: Vec<u8> = vec![0; scenario.size as usize];
    if let Some(bytes) = &backing {
        let bytes: &Vec<u8> = bytes;
        let shown = bytes.len().min(model.len());
        model[..shown].copy_from_slice(&bytes[..shown]);
    }
    let mut image = Image::create(MemoryStorage::new(), scenario.size, &scenario.create).unwrap();
    if scenario.preallocated > 0 {
        image.preallocate(0, scenario.preallocated, Preallocation::Metadata).unwrap();
    }
    let mut base = image.close().unwrap().to_vec().unwrap();
    let mut snapshot = None;
    if scenario.snapshot {
        (base, model) = with_snapshot(scenario, base, model, backing.as_deref(), &mut rng);
        snapshot = Some(model.clone());
        super::walk::walk(&base).unwrap();
        assert!(view_of_snapshot(&base).is_some());
    }
    let mut recorder = Recorder::new(scenario, model, rng, backing);
    let events = recorder.run(&base);
    let Recorder { backing, flushed, changes, taken, applied, operations, .. } = recorder;
    Session { base, backing, snapshot, events, flushed, changes, taken, applied, operations }
}

/// Some contents, then a snapshot of them.
fn with_snapshot(
    scenario: &Scenario,
    base: Vec<u8>,
    model: Vec<u8>,
    backing: Option<&[u8]>,
    rng: &mut Rng,
) -> (Vec<u8>, Vec<u8>) {
    for room in 0..20 {
        let mut recorder = Recorder::new(scenario, model.clone(), rng.clone(), backing.map(<[u8]>::to_vec));
        recorder.open(RecordingStorage::new(MemoryStorage::from_bytes(&base)));
        for _ in 0..10 + room {
            recorder.write();
            recorder.packed();
        }
        let mut bytes = recorder.image.take().unwrap().close().unwrap().into_parts().0.to_vec().unwrap();
        *rng = recorder.rng;
        if make_snapshot(&mut bytes) {
            return (bytes, recorder.model);
        }
    }
    panic!("no room for a snapshot");
}

impl<'a> Recorder<'a> {
    fn new(scenario: &'a Scenario, model: Vec<u8>, rng: Rng, backing: Option<Vec<u8>>) -> Self {
        Self {
            scenario,
            image: None,
            model,
            rng,
            backing,
            flushed: Vec::new(),
            changes: Vec::new(),
            taken: Vec::new(),
            applied: Vec::new(),
            operations: BTreeMap::new(),
            places: None,
            stamp: 0,
        }
    }

    fn run(&mut self, base: &[u8]) -> Vec<StorageEvent> {
        self.open(RecordingStorage::new(MemoryStorage::from_bytes(base)));
        self.flushed.push(Flushed { events: 0, content: self.model.clone() });
        for _ in 0..self.scenario.steps {
            self.step();
            self.watch_tables();
            assert!(self.flushed.last().unwrap().events <= self.events());
        }
        // Half of the sessions end without a flush.
        if self.rng.one_in(2) {
            self.flush();
        }
        self.image.take().unwrap().storage().events()
    }

    fn did(&mut self, what: &'static str) {
        *self.operations.entry(what).or_default() += 1;
    }

    /// Notes when the tables that the header names have moved.
    fn watch_tables(&mut self) {
        let header = self.header().header;
        let places = (header.l1_table_offset, header.refcount_table_offset);
        let before = self.places.replace(places).unwrap_or(places);
        if before.0 != places.0 {
            self.did("L1 table moved");
        }
        if before.1 != places.1 {
            self.did("refcount table moved");
        }
    }

    fn open(&mut self, disk: Disk) {
        let backing = self
            .backing
            .as_ref()
            .map(|bytes| (RecordingStorage::new(MemoryStorage::from_bytes(bytes)), bytes.len() as u64));
        self.image = Some(open_over(disk, &self.scenario.open, backing).unwrap());
    }

    fn image(&mut self) -> &mut Image<Disk> {
        self.image.as_mut().unwrap()
    }

    fn events(&self) -> usize {
        self.image.as_ref().unwrap().storage().event_count()
    }

    fn header(&mut self) -> HeaderArea {
        self.image().header().clone()
    }

    fn step(&mut self) {
        if self.scenario.snapshots && self.rng.one_in(5) {
            return match self.rng.below(5) {
                0..=1 => self.take(),
                2 => self.apply(),
                _ => self.delete(),
            };
        }
        match self.rng.below(32) {
            0..=9 => self.write(),
            10..=12 => self.packed(),
            13..=15 => self.zeroes(),
            16..=21 => self.discard(),
            22..=24 => self.planned(),
            25..=26 => self.resize(),
            27 => self.preallocate(),
            28..=30 => self.flush(),
            _ => self.reopen(),
        }
    }

    /// A range of the disk: often small, sometimes long, aligned or not.
    fn range(&mut self) -> (u64, u64) {
        let (size, cluster) = (self.model.len() as u64, self.scenario.create.cluster_size);
        if size == 0 {
            return (0, 0);
        }
        let most = match self.rng.below(24) {
            0 => size,
            1..=4 => cluster * 40,
            _ => cluster * 3,
        };
        let unit = [1, 512, cluster][self.rng.below(3) as usize];
        let offset = self.rng.below(size) / unit * unit;
        let length = (self.rng.below(most) + 1).next_multiple_of(unit);
        (offset, length.min(size - offset))
    }

    /// The model has changed in a range by an operation that began at `events`.
    fn changed(&mut self, events: usize, from: u64, to: u64) {
        let (from, to) = (from as usize, to as usize);
        if from >= to {
            return;
        }
        let size = self.image().virtual_size() as usize;
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let start = sector * SECTOR;
            let end = start + SECTOR;
            let mut value = self.model.get(start..end.min(self.model.len())).unwrap_or(&[]).to_vec();
            value.resize(SECTOR, 0);
            let partial = from > start || to < end;
            let flushes = self.flushed.len();
            self.changes.push(Change { events, flushes, sector, value, size, partial });
        }
    }

    fn stamp(&mut self) -> u8 {
        self.stamp = self.stamp % 120 + 1;
        self.stamp
    }

    fn write(&mut self) {
        self.did("write");
        let ((offset, length), stamp) = (self.range(), self.stamp());
        let events = self.events();
        self.model[offset as usize..(offset + length) as usize].fill(stamp);
        let data = vec![stamp; length as usize];
        self.image().write_at(offset, &data).unwrap();
        self.changed(events, offset, offset + length);
    }

    fn packed(&mut self) {
        if self.scenario.create.refcount_bits == 1 || self.scenario.create.encryption.is_some() {
            return self.write();
        }
        let (offset, length) = self.range();
        self.did("compressed write");
        let (cluster, size) = (self.scenario.create.cluster_size, self.model.len() as u64);
        let start = offset / cluster * cluster;
        let end = (start + length.min(3 * cluster)).next_multiple_of(cluster).min(size);
        let (stamp, events) = (self.stamp(), self.events());
        let noise = self.rng.below(6);
        let mut data = vec![stamp; (end - start) as usize];
        // Some noise, so that packed clusters have many lengths.
        for byte in data.iter_mut().take((noise * cluster / 8) as usize) {
            *byte = self.rng.next() as u8;
        }
        self.image().write_compressed(start, &data).unwrap();
        self.model[start as usize..end as usize].copy_from_slice(&data);
        self.changed(events, start, end);
    }

    fn zeroes(&mut self) {
        self.did("write zeroes");
        let (offset, length) = self.range();
        let (events, unmap) = (self.events(), self.rng.one_in(2));
        self.image().write_zeroes(offset, length, unmap).unwrap();
        self.model[offset as usize..(offset + length) as usize].fill(0);
        self.changed(events, offset, offset + length);
    }

    fn discard(&mut self) {
        self.did("discard");
        let (offset, length) = self.range();
        let (cluster, size) = (self.scenario.create.cluster_size, self.model.len() as u64);
        let events = self.events();
        self.image().discard(offset, length).unwrap();
        if self.scenario.create.version < 3 && self.backing.is_some() {
            return;
        }
        let from = offset.next_multiple_of(cluster);
        let to = if offset + length == size { size } else { (offset + length) / cluster * cluster };
        if from < to {
            self.model[from as usize..to as usize].fill(0);
            self.changed(events, from, to);
        }
    }

    /// Two writes whose steps are taken apart, and a third that is given up.
    fn planned(&mut self) {
        let half = self.model.len() as u64 / 2;
        let ((a, a_length), (b, b_length)) = (self.range(), self.range());
        let cluster = self.scenario.create.cluster_size;
        if a_length == 0 || b_length == 0 || half < cluster {
            return;
        }
        let a = a.min(half / cluster * cluster);
        let a_length = a_length.min((half / cluster * cluster).saturating_sub(a)).max(1);
        let b = b.max((half / cluster + 1) * cluster).min(self.model.len() as u64 - 1);
        let b_length = b_length.min(self.model.len() as u64 - b);
        if a + a_length > b / cluster * cluster {
            return;
        }
        self.did("planned writes");
        let (events, stamp) = (self.events(), self.stamp());
        let plan_a = self.image().prepare_write(a, a_length).unwrap();
        let plan_b = self.image().prepare_write(b, b_length).unwrap();
        if self.rng.one_in(4) {
            self.flush();
        }
        self.image().write_planned(&plan_a, &vec![stamp; a_length as usize]).unwrap();
        self.image().write_planned(&plan_b, &vec![stamp; b_length as usize]).unwrap();
        if self.rng.one_in(4) {
            // In place or not: until the commit, both old and new bytes are right.
            self.model[a as usize..(a + a_length) as usize].fill(stamp);
            self.changed(events, a, a + a_length);
            self.image().commit_write(plan_a).unwrap();
            self.model[b as usize..(b + b_length) as usize].fill(stamp);
            self.changed(events, b, b + b_length);
            self.image().commit_write(plan_b).unwrap();
            return;
        }
        self.image().commit_write(plan_b).unwrap();
        self.image().commit_write(plan_a).unwrap();
        for (from, length) in [(a, a_length), (b, b_length)] {
            self.model[from as usize..(from + length) as usize].fill(stamp);
            self.changed(events, from, from + length);
        }
        let (offset, length) = self.range();
        let given_up = self.image().prepare_write(offset, length).unwrap();
        self.image().abort_write(given_up).unwrap();
    }

    fn resize(&mut self) {
        if !self.scenario.resize || self.header().header.snapshot_count > 0 && self.scenario.create.version < 3 {
            return;
        }
        let old = self.model.len() as u64;
        let size = (self.rng.below(self.scenario.size * 2) + 1).next_multiple_of(512);
        self.did(if size < old { "shrink" } else { "grow" });
        let events = self.events();
        if let (true, Some(backing)) = (size < old, self.backing.clone()) {
            // Of what is cut off, the backing file may show for a while.
            let shown = backing.get(size as usize..).unwrap_or(&[]);
            let kept = self.model.clone();
            let end = self.model.len().min(size as usize + shown.len());
            self.model[size as usize..end].copy_from_slice(&shown[..end - size as usize]);
            self.model[end..].fill(0);
            self.changed(events, size, old);
            self.model = kept;
        }
        let mode = match self.rng.below(6) {
            1 => Preallocation::Metadata,
            2 => Preallocation::Falloc,
            3 => Preallocation::Full,
            _ => Preallocation::Off,
        };
        let mode = if size < old { Preallocation::Off } else { mode };
        self.image().resize_with(size, mode).unwrap();
        self.model.resize(size as usize, 0);
        self.changed(events, old.min(size), old.max(size));
        self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
    }

    fn preallocate(&mut self) {
        if self.backing.is_some() && !self.scenario.create.extended_l2 {
            return;
        }
        let (offset, length) = self.range();
        let mode = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full][self.rng.below(3) as usize];
        self.did("preallocate");
        self.image().preallocate(offset, length, mode).unwrap();
        self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
    }

    fn present(&mut self) -> Option<usize> {
        let present: Vec<usize> = (0..self.taken.len()).filter(|&n| self.taken[n].deleted.is_none()).collect();
        let count = present.len() as u64;
        (count > 0).then(|| present[self.rng.below(count) as usize])
    }

    fn take(&mut self) {
        if self.taken.iter().filter(|taken| taken.deleted.is_none()).count() > 3 {
            return self.delete();
        }
        let (events, name) = (self.events(), self.taken.len().to_string());
        let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
        match self.image().create_snapshot(&new) {
            Ok(_) => {
                self.did("snapshot taken");
                let created = (events, self.events());
                self.taken.push(Taken { content: self.model.clone(), created, deleted: None });
                self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}"),
        }
    }

    fn apply(&mut self) {
        let Some(n) = self.present() else { return };
        let events = self.events();
        match self.image().apply_snapshot(&SnapshotSelector::Name(n.to_string().into())) {
            Ok(()) => {
                self.did("snapshot applied");
                self.model = self.taken[n].content.clone();
                self.applied.push(Applied { events: (events, self.events()), content: self.model.clone() });
                self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
            }
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}"),
        }
    }

    fn delete(&mut self) {
        let Some(n) = self.present() else { return };
        let events = self.events();
        self.image().delete_snapshot(&SnapshotSelector::Name(n.to_string().into())).unwrap();
        self.did("snapshot deleted");
        self.taken[n].deleted = Some((events, self.events()));
        self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
    }

    fn flush(&mut self) {
        self.did("flush");
        self.image().flush().unwrap();
        self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
    }

    fn reopen(&mut self) {
        self.did("close and open");
        let disk = self.image.take().unwrap().close().unwrap();
        self.open(disk);
        self.flushed.push(Flushed { events: self.events(), content: self.model.clone() });
        let mut bytes = vec![0; self.model.len()];
        self.image().read_at(0, &mut bytes).unwrap();
        assert!(bytes == self.model, "contents differ after reopening");
    }
}
