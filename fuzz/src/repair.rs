//! Repairs of any bytes, and of images with some damage.

use std::collections::BTreeMap;

use qcowkit_core::Structure;
use qcowkit_core::image::{Content, Image, OpenOptions, SnapshotSelector};
use qcowkit_core::operations::repair::{RepairLevel, RepairOptions, RepairPlan, UndoLog, apply, find_orphans, plan};
use qcowkit_core::operations::walk::{Fault, HostReference, Visitor, walk};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{FailingStorage, FailureRule, FailureScope, MemoryStorage};

use super::bytes::Bytes;
use super::damage::damaged;

/// Extents that a reader looks at, and bytes of each.
const MAX_EXTENTS: usize = 200;
const MAX_READ: u64 = 4096;
/// Clusters of one range that are looked at: the images are small.
const MAX_CLUSTERS: u64 = 1 << 12;
/// Memory that a repaired image may take beyond its bytes: refcount structures that are written anew.
const MAX_GROWTH: u64 = 48 << 20;

/// A plan changes nothing; carried out, it leaves what it promises, and nothing to do for another; what could be read
/// can be read; stopped half-way it can be undone, and done again.
pub fn repair(data: &[u8]) {
    let choices = &mut Bytes(data);
    let how = choices.byte();
    let stop = u64::from(choices.byte()) + 1;
    let image = if how & 1 == 0 { choices.0.to_vec() } else { damaged(choices) };
    let level = if how & 4 == 0 { RepairLevel::All } else { RepairLevel::Leaks };
    mend(&image, level, stop, how & 2 != 0);
    if how & 8 != 0 {
        let _ = find_orphans(&MemoryStorage::from_bytes(&image));
    }
}

fn mend(image: &[u8], level: RepairLevel, stop: u64, punch: bool) {
    let storage = MemoryStorage::from_bytes(image);
    let Ok(planned) = plan(&storage, level, &RepairOptions::default(), &mut |_| ()) else { return };
    assert!(storage.to_vec().unwrap() == image, "a plan changed the image");
    let undo = UndoLog::of(&planned, &storage).unwrap();
    assert_eq!(UndoLog::from_bytes(&undo.to_bytes()), Ok(undo.clone()));
    // Where a table lies on data, or on another table, one of the two cannot be saved, and nobody knows which.
    let double_use = two_uses(&storage);
    let before = readable(&storage);
    interrupted(image, &planned, &undo, stop);
    apply(&planned, &storage, punch).unwrap();
    assert!(storage.memory_bytes() < image.len() as u64 + MAX_GROWTH, "{} bytes kept", storage.memory_bytes());
    let area = read_header(&storage).unwrap();
    let report = check(&storage, &area, &mut |_| ()).unwrap();
    let counts =
        |report: &qcowkit_core::operations::check::CheckReport| (report.corruptions, report.leaks, report.check_errors);
    assert_eq!(
        counts(&report),
        counts(&planned.after),
        "{level:?}: another result than the plan promised: {:#?}",
        planned.findings
    );
    let after = readable(&storage);
    finished(&storage, &planned);
    if double_use || planned.findings_omitted > 0 {
        return;
    }
    for (owner, offset, bytes) in before {
        let now = after.iter().find(|(other, at, _)| (*other, *at) == (owner, offset));
        // Other extents: it is read by itself.
        let now = now.map(|(.., now)| now.clone()).filter(|now| now.len() >= bytes.len());
        let now = now.or_else(|| read_one(&storage, owner, offset, bytes.len()));
        let differs = now.as_ref().map(|now| now.iter().zip(&bytes).position(|(now, before)| now != before));
        assert!(
            differs == Some(None),
            "{level:?}: guest offset {offset:#x} of {owner:?} could be read before; byte {differs:x?}: {:#?}",
            planned.findings
        );
    }
}

/// Another repair finds nothing to do, or refuses what is not sound.
fn finished(storage: &MemoryStorage, first: &RepairPlan) {
    let sound = read_header(storage).and_then(|area| check(storage, &area, &mut |_| ())).unwrap().is_clean();
    match plan(storage, first.level, &RepairOptions::default(), &mut |_| ()) {
        Ok(next) => {
            let (found, before) = (&next.findings, &first.findings);
            assert!(next.is_empty(), "another repair finds work: {found:#?}, after {before:#?}");
        }
        Err(error) => assert!(!sound, "a clean image cannot be repaired: {error}"),
    }
}

/// Whether two structures, or a structure and guest data, lie in one cluster.
fn two_uses(storage: &MemoryStorage) -> bool {
    let Ok(area) = read_header(storage) else { return true };
    let Ok(geometry) = area.validate_for_check(None) else { return true };
    let mut uses = Uses { cluster: geometry.cluster_size(), by_cluster: BTreeMap::new(), twice: false };
    uses.take(0, 1, Structure::Header);
    // What the walk cannot follow it does not show.
    uses.take(area.header.snapshots_offset, u64::from(area.header.snapshot_count > 0), Structure::SnapshotTable);
    if let Some(bitmaps) = area.bitmaps() {
        uses.take(bitmaps.directory_offset, 1, Structure::BitmapDirectory);
    }
    walk(storage, &area, &mut uses).is_err() || uses.twice
}

/// What is in each cluster.
struct Uses {
    cluster: u64,
    by_cluster: BTreeMap<u64, Structure>,
    twice: bool,
}

impl Uses {
    fn take(&mut self, offset: u64, length: u64, what: Structure) {
        let first = offset / self.cluster;
        let last = offset.saturating_add(length.saturating_sub(1)) / self.cluster;
        for cluster in first..=last.min(first.saturating_add(MAX_CLUSTERS)) {
            if length > 0 && *self.by_cluster.entry(cluster).or_insert(what) != what {
                self.twice = true;
            }
        }
    }
}

impl Visitor for Uses {
    fn reference(&mut self, reference: &HostReference) -> qcowkit_core::Result<()> {
        let all = reference.length.saturating_add((reference.count - 1).saturating_mul(self.cluster));
        if reference.target != Structure::DataFile {
            self.take(reference.host_offset, all, reference.target);
        }
        Ok(())
    }

    /// What cannot be followed may lie anywhere.
    fn fault(&mut self, fault: &Fault) -> qcowkit_core::Result<()> {
        self.twice |= fault.kind.hides_references();
        Ok(())
    }
}

/// The `stop`th write of a repair fails: the undo log brings the image back, and another repair is possible.
fn interrupted(image: &[u8], planned: &RepairPlan, undo: &UndoLog, stop: u64) {
    let storage = FailingStorage::new(MemoryStorage::from_bytes(image));
    storage.fail(FailureRule::nth(FailureScope::WriteSide, stop).half_written());
    let done = apply(planned, &storage, false);
    assert_eq!(done.is_err(), storage.failures() > 0);
    let half = storage.into_inner();
    if done.is_err() {
        let again = plan(&half, planned.level, &RepairOptions::default(), &mut |_| ());
        assert!(again.is_ok() || !planned.after.is_clean(), "interrupted, and beyond repair: {:?}", again.err());
    }
    undo.restore(&half).unwrap_or_else(|error| panic!("it cannot be undone: {error}"));
    assert!(half.to_vec().unwrap() == image, "undone, it is another");
}

type Readable = (Option<u32>, u64, Vec<u8>);

/// What the disk and its first snapshot hold where they can be read, by guest offset.
fn readable(storage: &MemoryStorage) -> Vec<Readable> {
    let mut all = Vec::new();
    for owner in [None, Some(0)] {
        let Some(mut image) = view(storage, owner) else { continue };
        let size = image.virtual_size();
        let mut at = 0;
        for _ in 0..MAX_EXTENTS {
            if at >= size {
                break;
            }
            let Ok(extent) = image.next_extent(at, size - at) else {
                // What a missing backing file would hold is passed over as a whole.
                let cluster = image.geometry().cluster_size();
                let passed = image.next_local_extent(at, size - at).map_or(cluster, |extent| extent.length);
                at = at.saturating_add(passed);
                continue;
            };
            let holds =
                matches!(extent.content, Content::Data { .. } | Content::Compressed { .. } | Content::Zero { .. });
            let mut bytes = vec![0; extent.length.min(MAX_READ) as usize];
            if holds && image.read_at(at, &mut bytes).is_ok() {
                all.push((owner, at, bytes));
            }
            at = at.saturating_add(extent.length);
        }
    }
    all
}

fn read_one(storage: &MemoryStorage, owner: Option<u32>, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    view(storage, owner)?.read_at(offset, &mut bytes).ok()?;
    Some(bytes)
}

/// The disk, or a snapshot of it by its place in the table.
fn view(storage: &MemoryStorage, owner: Option<u32>) -> Option<Image<&MemoryStorage>> {
    let mut options = OpenOptions::default().read_only().metadata_only();
    if let Some(index) = owner {
        let image = Image::open(storage, options.clone()).ok()?;
        let id = image.snapshots().ok()?.get(index as usize)?.id.clone();
        options = options.of_snapshot(SnapshotSelector::Id(id));
    }
    Image::open(storage, options).ok()
}
