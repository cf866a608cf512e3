//! The walk over images that the engine made and that this file then breaks.

use std::vec::Vec;

use super::*;
use crate::format::HostCluster;
use crate::image::{CreateOptions, Image, read_header};
use crate::storage::{MemoryStorage, Storage};

const CLUSTER: u64 = 65536;

#[derive(Default)]
struct Collector {
    references: Vec<HostReference>,
    faults: Vec<Fault>,
    tables: Vec<L2Table>,
    entries: u64,
    progress: Vec<(u64, u64)>,
}

impl Visitor for Collector {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        self.references.push(*reference);
        Ok(())
    }

    fn fault(&mut self, fault: &Fault) -> Result<()> {
        self.faults.push(fault.clone());
        Ok(())
    }

    fn l2_table(&mut self, table: &L2Table) -> Result<()> {
        self.tables.push(*table);
        Ok(())
    }

    fn l2_run(&mut self, _: &L2Table, run: &L2Run) -> Result<()> {
        self.entries += run.count;
        Ok(())
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<()> {
        self.progress.push((done, total));
        Ok(())
    }
}

impl Collector {
    fn of(&self, target: Structure) -> Vec<&HostReference> {
        self.references.iter().filter(|reference| reference.target == target).collect()
    }
}

fn collect(storage: &MemoryStorage) -> Collector {
    let mut collector = Collector::default();
    walk(storage, &read_header(storage).unwrap(), &mut collector).unwrap();
    collector
}

/// Data at guest cluster 0, 1, 2 and in the second L2 table.
fn image() -> MemoryStorage {
    let mut image = Image::create(MemoryStorage::new(), 2 << 30, &CreateOptions::default()).unwrap();
    image.write_at(0, &[1; 3 * 65536]).unwrap();
    image.write_at(1 << 30, &[2; 65536]).unwrap();
    image.close().unwrap()
}

fn active_l1(storage: &MemoryStorage) -> u64 {
    read_header(storage).unwrap().header.l1_table_offset
}

fn put(storage: &MemoryStorage, at: u64, value: u64) {
    storage.write_at(at, &value.to_be_bytes()).unwrap();
}

fn peek(storage: &MemoryStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_at(at, &mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn every_cluster_of_a_sound_image_is_referred_to_as_often_as_its_refcount_says() {
    let storage = image();
    let collector = collect(&storage);
    assert_eq!(collector.faults, []);
    let clusters = storage.len().unwrap().div_ceil(CLUSTER);
    let mut counts = std::vec![0u64; clusters as usize];
    for reference in &collector.references {
        let first = reference.host_offset / CLUSTER;
        let length = reference.length * reference.count;
        let last = (reference.host_offset + length - 1) / CLUSTER;
        (first..=last).for_each(|cluster| counts[cluster as usize] += reference.uses.total());
    }
    let area = read_header(&storage).unwrap();
    let walk = Walk::new(&storage, &area).unwrap();
    let table = walk.refcount_table().unwrap();
    for (cluster, &count) in (0..).zip(&counts) {
        assert_eq!(table.refcount(&storage, HostCluster::new(cluster)).unwrap(), count, "cluster {cluster}");
    }
    assert_eq!(collector.tables.iter().map(|table| table.l1_index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(collector.entries, 2 * 8192);
    assert_eq!(collector.progress.last(), Some(&(2, 2)));
    let data = collector.of(Structure::DataCluster);
    assert_eq!(data.iter().map(|run| run.count).collect::<Vec<_>>(), [3, 1]);
    let Source::L2(slot) = data[1].source else { panic!("{:?}", data[1]) };
    assert_eq!(slot.table.guest_offset(slot.index, walk.geometry()), 1 << 30);
}

#[test]
fn a_table_that_many_entries_name_is_walked_through_once() {
    let storage = image();
    let l1 = active_l1(&storage);
    put(&storage, l1 + 8, peek(&storage, l1));
    let collector = collect(&storage);
    assert_eq!(collector.tables.len(), 2);
    assert_eq!(collector.tables[0].uses, Uses { active: 2, snapshots: 0 });
    assert_eq!(collector.of(Structure::DataCluster)[0].uses.total(), 2);
    assert_eq!(collector.of(Structure::L2Table).len(), 3);
}

#[test]
fn faults_are_shown_and_the_walk_goes_on() {
    let storage = image();
    let l1 = active_l1(&storage);
    let l2 = peek(&storage, l1) & !(1 << 63);
    put(&storage, l2 + 8, peek(&storage, l2 + 8) | 2);
    put(&storage, l2 + 16, peek(&storage, l2 + 16) | 0x200);
    put(&storage, l1 + 16, peek(&storage, l1 + 16) | 1);
    let collector = collect(&storage);
    let kinds: Vec<_> = collector.faults.iter().map(|fault| fault.kind.clone()).collect();
    let expected = [EntryError::ReservedBits, EntryError::ReservedBits, EntryError::Unaligned].map(FaultKind::Entry);
    assert_eq!(kinds, expected);
    assert_eq!(collector.of(Structure::DataCluster).len(), 4);
}

#[test]
fn snapshots_that_share_a_table_cost_one_visit() {
    let storage = image();
    let l1 = active_l1(&storage);
    let end = storage.len().unwrap().next_multiple_of(CLUSTER);
    let mut table = Vec::new();
    for index in 0..1000u32 {
        crate::format::Snapshot {
            l1_table_offset: l1,
            l1_size: 4,
            date_seconds: 0,
            date_nanoseconds: 0,
            vm_clock_nanoseconds: 0,
            vm_state_size_32: 0,
            extra_data: crate::format::Snapshot::extra_data_for(0, 2 << 30, None),
            id: std::format!("{index}").into(),
            name: std::format!("snapshot {index}").into(),
        }
        .emit(&mut table)
        .unwrap();
    }
    storage.write_at(end, &table).unwrap();
    storage.write_at(60, &1000u32.to_be_bytes()).unwrap();
    put(&storage, 64, end);
    let area = read_header(&storage).unwrap();
    let (snapshots, length) = crate::metadata::read_snapshot_table(&area.header, &storage).unwrap();
    assert_eq!((snapshots.len(), length), (1000, table.len() as u64));
    assert_eq!(snapshots[999].name, "snapshot 999");
    let collector = collect(&storage);
    assert_eq!(collector.faults, []);
    assert_eq!(collector.tables.len(), 2);
    assert!(collector.tables.iter().all(|table| table.uses == Uses { active: 1, snapshots: 1000 }));
    let tables = collector.of(Structure::SnapshotTable);
    assert_eq!((tables[0].host_offset, tables[0].length), (end, table.len() as u64));
    let l1_tables = collector.of(Structure::L1Table);
    assert_eq!(l1_tables.iter().map(|table| table.uses.total()).collect::<Vec<_>>(), [1, 1000]);
}

#[test]
fn a_snapshot_table_that_cannot_be_followed_hides_references() {
    let storage = image();
    storage.write_at(60, &70_000u32.to_be_bytes()).unwrap();
    put(&storage, 64, 0x10000);
    let collector = collect(&storage);
    assert_eq!(collector.faults.len(), 1);
    assert!(collector.faults[0].kind.hides_references());
}
