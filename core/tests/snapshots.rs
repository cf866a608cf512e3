//! Internal snapshots against vectors: random writes, zeroes, discards and packed clusters between snapshots that are
//! taken, applied and deleted; after each of these every snapshot shows what it showed when it was taken, no cluster is
//! leaked, and the COPIED flags are neither wrong nor missing.
//!
//! `QCOWKIT_SNAPSHOTS=20` runs twenty times as many sessions; `QCOWKIT_SEED=7` begins with another seed.

use qcowkit_core::ErrorKind;
use qcowkit_core::format::{HeaderArea, Name};
use qcowkit_core::image::{CreateOptions, Image, Layer, NewSnapshot, OpenOptions, SnapshotSelector};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, RetainedOp, Unref};
use qcowkit_core::operations::check;
use qcowkit_core::storage::MemoryStorage;
use qcowkit_trial::walk::walk;
use qcowkit_trial::{Rng, from_env};

struct Session {
    open: OpenOptions,
    create: CreateOptions,
    image: Option<Image<MemoryStorage>>,
    backing: Option<Vec<u8>>,
    disk: Vec<u8>,
    snapshots: Vec<(String, String, Vec<u8>)>,
    rng: Rng,
    stamp: u8,
    refused: u64,
}

fn with_layer(image: Image<MemoryStorage>, backing: Option<&[u8]>) -> Image<MemoryStorage> {
    match backing {
        None => image,
        Some(bytes) => {
            let layer = Layer::Raw { storage: MemoryStorage::from_bytes(bytes), length: bytes.len() as u64 };
            image.with_backing(layer)
        }
    }
}

fn read_all(image: &mut Image<MemoryStorage>) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(0, &mut bytes).unwrap();
    bytes
}

fn id(text: &str) -> SnapshotSelector {
    SnapshotSelector::Id(Name::from(text))
}

impl Session {
    fn new(create: &CreateOptions, open: &OpenOptions, size: u64, backing: Option<Vec<u8>>, seed: u64) -> Self {
        let storage = Image::create(MemoryStorage::new(), size, create).unwrap().close().unwrap();
        let image = Image::open(storage, open.clone().metadata_only()).unwrap();
        let mut disk = vec![0; size as usize];
        if let Some(bytes) = &backing {
            let shown = bytes.len().min(disk.len());
            disk[..shown].copy_from_slice(&bytes[..shown]);
        }
        Self {
            open: open.clone(),
            create: create.clone(),
            image: Some(with_layer(image, backing.as_deref())),
            backing,
            disk,
            snapshots: Vec::new(),
            rng: Rng::new(seed),
            stamp: 0,
            refused: 0,
        }
    }

    fn image(&mut self) -> &mut Image<MemoryStorage> {
        self.image.as_mut().unwrap()
    }

    fn range(&mut self) -> (usize, usize) {
        let (size, cluster) = (self.disk.len() as u64, self.create.cluster_size);
        let unit = [1, 512, cluster][self.rng.below(3) as usize];
        let most = if self.rng.one_in(16) { size } else { cluster * 4 };
        let offset = self.rng.below(size) / unit * unit;
        let length = (self.rng.below(most) + 1).next_multiple_of(unit).min(size - offset);
        (offset as usize, length as usize)
    }

    fn step(&mut self) {
        match self.rng.below(24) {
            0..=8 => self.write(),
            9..=10 => self.packed(),
            11..=12 => self.zeroes(),
            13..=15 => self.discard(),
            16..=19 => self.create(),
            20..=21 => self.delete(),
            22 => self.apply(),
            _ => self.reopen(),
        }
    }

    fn write(&mut self) {
        let (at, length) = self.range();
        self.stamp = self.stamp % 250 + 1;
        let stamp = self.stamp;
        self.disk[at..at + length].fill(stamp);
        self.image().write_at(at as u64, &vec![stamp; length]).unwrap();
    }

    fn packed(&mut self) {
        let (at, length) = self.range();
        let cluster = self.create.cluster_size as usize;
        let start = at / cluster * cluster;
        let end = (start + length.min(3 * cluster)).next_multiple_of(cluster).min(self.disk.len());
        let data: Vec<u8> = (0..end - start).map(|n| (n / 7 * 3 + at) as u8).collect();
        if self.create.refcount_bits == 1 {
            return;
        }
        self.image().write_compressed(start as u64, &data).unwrap();
        self.disk[start..end].copy_from_slice(&data);
    }

    fn zeroes(&mut self) {
        let (at, length) = self.range();
        let unmap = self.rng.one_in(2);
        self.image().write_zeroes(at as u64, length as u64, unmap).unwrap();
        self.disk[at..at + length].fill(0);
    }

    fn discard(&mut self) {
        let (at, length) = self.range();
        self.image().discard(at as u64, length as u64).unwrap();
        if self.create.version < 3 && self.backing.is_some() {
            return;
        }
        let cluster = self.create.cluster_size as usize;
        let end = if at + length == self.disk.len() { at + length } else { (at + length) / cluster * cluster };
        let start = at.next_multiple_of(cluster);
        if start < end {
            self.disk[start..end].fill(0);
        }
    }

    fn create(&mut self) {
        if self.snapshots.len() > 5 {
            return;
        }
        let number = self.rng.below(100);
        let name = format!("s{number}");
        let new = NewSnapshot { name: name.as_str().into(), date_seconds: 5, ..NewSnapshot::default() };
        match self.image().create_snapshot(&new) {
            Ok(made) => {
                let content = self.disk.clone();
                self.snapshots.push((made.id.to_string_lossy().into_owned(), name, content));
            }
            Err(error) => {
                // Narrow refcounts hold few references; nothing changed then.
                assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}");
                assert!(self.create.refcount_bits <= 8, "{error}");
                self.refused += 1;
                self.image().flush().unwrap();
            }
        }
        self.look();
    }

    fn delete(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let at = self.rng.below(self.snapshots.len() as u64) as usize;
        let (snapshot, _, _) = self.snapshots.remove(at);
        self.image().delete_snapshot(&id(&snapshot)).unwrap();
        self.look();
    }

    fn apply(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let at = self.rng.below(self.snapshots.len() as u64) as usize;
        let (snapshot, _, content) = self.snapshots[at].clone();
        match self.image().apply_snapshot(&id(&snapshot)) {
            Ok(()) => self.disk = content,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Limit(_)), "{error}");
                self.image().flush().unwrap();
            }
        }
        self.look();
    }

    fn reopen(&mut self) {
        let storage = self.image.take().unwrap().close().unwrap();
        let image = Image::open(storage, self.open.clone().metadata_only()).unwrap();
        self.image = Some(with_layer(image, self.backing.as_deref()));
    }

    /// Everything is durable, so that a copy of the storage must be right.
    fn look(&mut self) {
        assert!(read_all(self.image()) == self.disk.clone(), "the disk differs");
        let bytes = self.image().storage().to_vec().unwrap();
        let walked = walk(&bytes).unwrap();
        assert_eq!(walked.leaks(u64::MAX), 0);
        let area = HeaderArea::parse(&bytes).unwrap();
        let report = check(&MemoryStorage::from_bytes(&bytes), &area, &mut |_| ()).unwrap();
        assert!(report.is_clean() && report.warnings == 0, "{report:?}");
        let listed: Vec<(String, String)> = self
            .image()
            .snapshots()
            .unwrap()
            .iter()
            .map(|s| (s.id.to_string_lossy().into_owned(), s.name.to_string_lossy().into_owned()))
            .collect();
        let expected: Vec<_> = self.snapshots.iter().map(|(id, name, _)| (id.clone(), name.clone())).collect();
        assert_eq!(listed, expected);
        for (number, _, content) in &self.snapshots {
            let options = self.open.clone().metadata_only().of_snapshot(id(number));
            let view = Image::open(MemoryStorage::from_bytes(&bytes), options).unwrap();
            let mut view = with_layer(view, self.backing.as_deref());
            assert!(view.is_read_only());
            assert!(read_all(&mut view) == *content, "snapshot {number} differs");
        }
    }
}

fn options(seed: u64) -> OpenOptions {
    let unref = [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu][(seed % 3) as usize];
    let retained_op = [RetainedOp::Punch, RetainedOp::ZeroRange, RetainedOp::None][(seed / 3 % 3) as usize];
    let policy = DiscardPolicy { unref, retained_op, ..DiscardPolicy::default() };
    let allocation =
        [AllocationPolicy::Qemu, AllocationPolicy::FillHoles, AllocationPolicy::Near][(seed / 2 % 3) as usize];
    OpenOptions::default().with_policy(policy).with_metadata(MetadataOptions {
        allocation,
        quarantine_bytes: [0, 1 << 14, u64::MAX][(seed % 3) as usize],
        slice_bytes: 512,
        cache_bytes: 8 * 512,
        pass_discard_other: seed.is_multiple_of(2),
    })
}

fn run(create: &CreateOptions, size: u64, backing: u64, sessions: u64) {
    let first = from_env("QCOWKIT_SEED", 1);
    for seed in first..first + sessions * from_env("QCOWKIT_SNAPSHOTS", 1) {
        let bytes = (backing > 0).then(|| (0..backing).map(|n| (n / 100) as u8 | 0x80).collect());
        let mut session = Session::new(create, &options(seed), size, bytes, seed);
        for _ in 0..120 {
            session.step();
        }
        session.reopen();
        session.look();
        if create.refcount_bits <= 2 {
            assert!(session.refused > 0);
        }
        while !session.snapshots.is_empty() {
            session.delete();
        }
        assert_eq!(session.image().header().header.snapshots_offset, 0);
    }
}

fn create(version: u32, cluster_size: u64, refcount_bits: u32, extended_l2: bool) -> CreateOptions {
    CreateOptions { version, cluster_size, refcount_bits, extended_l2, ..CreateOptions::default() }
}

fn over(create: CreateOptions) -> CreateOptions {
    CreateOptions { backing_file: Some("base".into()), backing_format: Some("raw".into()), ..create }
}

#[test]
fn many_tables() {
    run(&create(3, 512, 16, false), 200_192, 0, 9);
}

#[test]
fn narrow_refcounts() {
    for bits in [1, 2, 4, 8] {
        run(&create(3, 1024, bits, false), 100_352, 0, 6);
    }
}

#[test]
fn wide_refcounts() {
    run(&create(3, 4096, 64, false), 300_032, 0, 6);
}

#[test]
fn version_2() {
    run(&create(2, 512, 16, false), 100_352, 0, 6);
    run(&over(create(2, 1024, 16, false)), 100_352, 70_001, 6);
}

#[test]
fn over_a_backing_file() {
    run(&over(create(3, 1024, 16, false)), 100_352, 70_001, 6);
}

#[test]
fn subclusters() {
    run(&create(3, 16 << 10, 16, true), 600_064, 0, 6);
    run(&over(create(3, 16 << 10, 32, true)), 600_064, 250_000, 3);
}

/// Extra data that a later version wrote, beside snapshots that come and go.
#[test]
fn unknown_extra_data_and_vm_state_sizes_survive() {
    let storage = Image::create(MemoryStorage::new(), 1 << 20, &create(3, 512, 16, false)).unwrap().close().unwrap();
    let mut image = Image::open(storage, OpenOptions::default()).unwrap();
    let taken = |name: &str, size| NewSnapshot { name: name.into(), vm_state_size: size, ..NewSnapshot::default() };
    image.write_at(0, &[1; 5000]).unwrap();
    image.create_snapshot(&taken("UNKNOWN7old", 5 << 30)).unwrap();
    let at = image.header().header.snapshots_offset as usize;
    let mut bytes = image.close().unwrap().to_vec().unwrap();
    // Eight bytes of ID and name become extra data, so that the entry keeps its length.
    bytes[at + 12..at + 16].copy_from_slice(&[0, 1, 0, 3]);
    bytes[at + 36..at + 40].copy_from_slice(&32u32.to_be_bytes());
    let mut image = Image::open(MemoryStorage::from_bytes(&bytes), OpenOptions::default()).unwrap();
    let old = image.snapshots().unwrap().remove(0);
    assert_eq!((old.unknown_extra_data(), &old.id, &old.name), (&b"1UNKNOWN"[..], &"7".into(), &"old".into()));
    assert_eq!(image.create_snapshot(&taken("new", 0)).unwrap().id, "8");
    image.write_at(0, &[2; 5000]).unwrap();
    image.apply_snapshot(&id("8")).unwrap();
    image.delete_snapshot(&id("8")).unwrap();
    let kept = image.snapshots().unwrap();
    assert_eq!(kept, [old]);
    assert_eq!((kept[0].vm_state_size(), kept[0].virtual_size()), (5 << 30, Some(1 << 20)));
    image.apply_snapshot(&id("7")).unwrap();
    let mut byte = [0];
    image.read_at(4999, &mut byte).unwrap();
    assert_eq!(byte, [1]);
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let storage = Image::create(MemoryStorage::new(), 1 << 20, &create(3, 512, 16, false)).unwrap().close().unwrap();
    let mut image = Image::open(storage, OpenOptions::default()).unwrap();
    image.write_at(0, &[1; 5000]).unwrap();
    image.create_snapshot(&NewSnapshot::default()).unwrap();
    let plan = image.prepare_write(0, 512).unwrap();
    let refused = [
        image.create_snapshot(&NewSnapshot::default()).map(drop),
        image.apply_snapshot(&id("1")),
        image.delete_snapshot(&id("1")),
    ];
    assert!(refused.iter().all(|done| done.as_ref().is_err_and(|e| e.to_string().contains("planned write"))));
    image.abort_write(plan).unwrap();
    image.flush().unwrap();
    let before = image.storage().to_vec().unwrap();
    let long = NewSnapshot { name: Name::new(vec![b'x'; 70_000]), ..NewSnapshot::default() };
    assert!(image.create_snapshot(&long).is_err());
    assert!(image.apply_snapshot(&id("2")).is_err());
    assert!(image.delete_snapshot(&id("2")).is_err());
    assert!(image.storage().to_vec().unwrap() == before);
    let options = OpenOptions::default().of_snapshot(id("1"));
    let mut view = Image::open(image.close().unwrap(), options).unwrap();
    assert!(view.write_at(0, &[1]).is_err() && view.delete_snapshot(&id("1")).is_err());
    assert!(Image::open(MemoryStorage::from_bytes(&before), OpenOptions::default().of_snapshot(id("2"))).is_err());
}
