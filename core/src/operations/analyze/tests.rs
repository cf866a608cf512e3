//! The ledger of images that the engine made, and of what is left of them after hostile hands.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::error::Structure;
use crate::format::{Geometry, Snapshot};
use crate::image::{CreateOptions, Image, OpenOptions, Preallocation};
use crate::metadata::{DiscardPolicy, Unref};
use crate::operations::read_header;
use crate::storage::{MemoryStorage, Storage};

const K: u64 = 1024;
const CLUSTER: u64 = 64 * K;

fn options() -> CreateOptions {
    CreateOptions::default()
}

fn create(size: u64, options: &CreateOptions) -> Image<MemoryStorage> {
    Image::create(MemoryStorage::new(), size, options).unwrap()
}

fn analyzed_with(storage: &MemoryStorage, options: &AnalyzeOptions<'_>) -> Analysis {
    let mut last = 0;
    let analysis = analyze(storage, &read_header(storage).unwrap(), options, &mut |done, total| {
        assert!(done >= last && done <= total, "progress goes from {last} to {done} of {total}");
        last = done;
    })
    .unwrap();
    assert_sums(&analysis.ledger, storage.len().unwrap());
    if options.data_file.is_none() {
        assert_clusters(storage, &analysis);
    }
    analysis
}

fn clusters_of(storage: &MemoryStorage, options: &ClusterOptions) -> Vec<ClusterRun> {
    let mut runs = Vec::new();
    let mut visit = |run| {
        runs.push(run);
        Ok(())
    };
    clusters(storage, &read_header(storage).unwrap(), options, &mut visit, &mut |_, _| {}).unwrap();
    runs
}

/// The host side tiles the file, agrees with the ledger in the classes that cover whole clusters, and is the same in
/// windows.
fn assert_clusters(storage: &MemoryStorage, analysis: &Analysis) {
    use SpaceClass::{CompressedData, CompressedSlack, LiveData, OnlyInSnapshots, ZeroRetained};
    let runs = clusters_of(storage, &ClusterOptions::default());
    let mut at = 0;
    for run in &runs {
        assert_eq!(run.host_offset, at, "{run:?}");
        assert!(run.length > 0, "{run:?}");
        at += run.length;
    }
    assert_eq!(at, analysis.ledger.file_length);
    for line in &analysis.ledger.classes {
        let of_parts = [LiveData, ZeroRetained, CompressedData, CompressedSlack, OnlyInSnapshots];
        if !of_parts.contains(&line.class) {
            let sum: u64 = runs.iter().filter(|run| run.class == line.class).map(|run| run.length).sum();
            assert_eq!(sum, line.space.bytes, "{:?}", line.class);
        }
    }
    if at / analysis.cluster_size > 1 << 16 {
        return;
    }
    let middle = (at / 2).next_multiple_of(analysis.cluster_size).min(at);
    let mut windows = clusters_of(storage, &ClusterOptions { range: 0..middle, ..ClusterOptions::default() });
    windows.extend(clusters_of(storage, &ClusterOptions { range: middle..u64::MAX, ..ClusterOptions::default() }));
    let cluster_by_cluster = |runs: &[ClusterRun]| {
        let each = |run: &ClusterRun| {
            let run = run.clone();
            let data = run.structure == Some(Structure::DataCluster);
            (0..run.length.div_ceil(analysis.cluster_size)).map(move |index| {
                let more = index * analysis.cluster_size;
                let guest = run.guest_offset.map(|guest| if data { guest + more } else { guest });
                (run.host_offset + more, run.class, run.structure, guest, run.refcount, run.references)
            })
        };
        runs.iter().flat_map(each).filter(|cluster| cluster.2 != Some(Structure::CompressedCluster)).collect::<Vec<_>>()
    };
    assert_eq!(cluster_by_cluster(&windows), cluster_by_cluster(&runs));
}

fn analyzed(storage: &MemoryStorage) -> Analysis {
    analyzed_with(storage, &AnalyzeOptions::default())
}

/// The law of the ledger.
fn assert_sums(ledger: &Ledger, file_length: u64) {
    assert_eq!(ledger.file_length, file_length);
    let mut total = SpaceBytes::default();
    for line in &ledger.classes {
        assert_eq!(line.space.bytes, line.space.held + line.space.holes + line.space.unknown, "{line:?}");
        total = total.plus(line.space);
    }
    assert_eq!(total, ledger.total);
    assert_eq!(total.bytes, file_length);
    assert_eq!(ledger.classes.iter().map(|line| line.class).collect::<Vec<_>>(), SpaceClass::ALL);
}

/// The classes that have bytes, in clusters.
fn in_clusters(ledger: &Ledger, cluster: u64) -> Vec<(SpaceClass, u64)> {
    let lines = ledger.classes.iter().filter(|line| line.space.bytes > 0);
    lines.map(|line| (line.class, line.space.bytes / cluster)).collect()
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 24) as u8
    };
    (0..length).map(|_| step(&mut state)).collect()
}

#[test]
fn a_new_image_has_metadata_alone() {
    use SpaceClass::{Header, L1Table, RefcountBlocks, RefcountTable};
    let storage = create(1 << 30, &options()).close().unwrap();
    let analysis = analyzed(&storage);
    let expected = [(Header, 1), (L1Table, 1), (RefcountTable, 1), (RefcountBlocks, 1)];
    // The last cluster of a new image may be cut short.
    let lines = analysis.ledger.classes.iter().filter(|line| line.space.bytes > 0);
    let lines: Vec<_> = lines.map(|line| (line.class, line.space.bytes.div_ceil(CLUSTER))).collect();
    assert_eq!(lines, expected);
    assert_eq!(analysis.faults, 0);
    // 16384 data clusters, 2 L2 tables, header, refcount table and block, L1 table.
    assert_eq!(analysis.worst_case.fully_written, (16384 + 2 + 4) * CLUSTER);
    assert_eq!(analysis.worst_case.fully_written_without_snapshots, analysis.worst_case.fully_written);
    assert!(analysis.worst_case.without_reuse >= analysis.worst_case.fully_written);
}

#[test]
fn data_free_leaked_and_retained_space() {
    use SpaceClass::{Free, Header, L1Table, L2Tables, Leaked, LiveData, RefcountBlocks, RefcountTable, ZeroRetained};
    let policy = DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() };
    let mut image = create(1 << 30, &options());
    image.write_at(0, &vec![1; 20 * CLUSTER as usize]).unwrap();
    image.discard(4 * CLUSTER, 3 * CLUSTER).unwrap();
    image.discard(9 * CLUSTER, CLUSTER).unwrap();
    let mut image = Image::open(image.close().unwrap(), OpenOptions::default().with_policy(policy)).unwrap();
    image.discard(12 * CLUSTER, 2 * CLUSTER).unwrap();
    let storage = image.close().unwrap();
    // A leak: the last guest cluster is unmapped behind the engine's back.
    let before = analyzed(&storage);
    assert_eq!(before.ledger.of(Leaked).bytes, 0);
    let l2 = l2_offset(&storage);
    storage.write_at(l2 + 8 * 19, &[0; 8]).unwrap();
    let analysis = analyzed(&storage);
    let expected = [
        (Header, 1),
        (L1Table, 1),
        (RefcountTable, 1),
        (RefcountBlocks, 1),
        (L2Tables, 1),
        (LiveData, 13),
        (ZeroRetained, 2),
        (Leaked, 1),
        (Free, 4),
    ];
    assert_eq!(in_clusters(&analysis.ledger, CLUSTER), expected);
    let order = analysis.layout.guest_order;
    assert_eq!((order.clusters, order.discontinuities, order.backward), (15, 2, 0));
    assert_eq!((order.runs.count, order.runs.min, order.runs.max), (3, 2 * CLUSTER, 9 * CLUSTER));
    assert_eq!(order.runs.mean, 5 * CLUSTER);
    let gaps = &analysis.layout.free;
    assert_eq!((gaps.gaps.count, gaps.gaps.bytes, gaps.gaps.max), (2, 4 * CLUSTER, 3 * CLUSTER));
    let buckets: Vec<_> = gaps.histogram.iter().map(|bucket| (bucket.from, bucket.count, bucket.bytes)).collect();
    assert_eq!(buckets, [(CLUSTER, 1, CLUSTER), (2 * CLUSTER, 1, 3 * CLUSTER)]);
    assert_eq!(gaps.largest.iter().map(|gap| gap.length / CLUSTER).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(gaps.largest[1].host_offset - gaps.largest[0].host_offset, 5 * CLUSTER);
    let share = |size| gaps.too_small_for.iter().find(|share| share.request_size == size).unwrap().ppm;
    assert_eq!((share(64 * K), share(256 * K), share(2048 * K)), (0, 1_000_000, 1_000_000));
    // Discarded clusters are holes already: nothing more is to be had from them.
    assert_eq!(analysis.reclaim.punch_free.host_bytes, 0);
    assert_eq!(analysis.reclaim.discard_retained.host_bytes, 0);
    assert_eq!(analysis.reclaim.repair_leaks.host_bytes, CLUSTER);
    assert_eq!(analysis.reclaim.compact.file_length, 18 * CLUSTER);
    assert_eq!(analysis.reclaim.compact.gain.file_bytes, storage.len().unwrap() - 18 * CLUSTER);
}

#[test]
fn space_beyond_the_end_is_cut_off_and_leftovers_of_the_host_are_told() {
    let mut image = create(1 << 20, &options());
    image.write_at(0, &[1; 100]).unwrap();
    let storage = image.close().unwrap();
    let end = storage.len().unwrap().next_multiple_of(CLUSTER);
    storage.write_at(end + 3 * CLUSTER, &[7; 1000]).unwrap();
    let told = AnalyzeOptions { host_allocated: Some(1 << 20), ..AnalyzeOptions::default() };
    let analysis = analyzed_with(&storage, &told);
    let beyond = analysis.ledger.of(SpaceClass::BeyondLastUsed);
    assert_eq!(beyond.bytes, 3 * CLUSTER + 1000);
    assert_eq!(beyond.held, 1000);
    assert_eq!(analysis.reclaim.truncate_end.file_bytes, beyond.bytes);
    assert_eq!(analysis.ledger.held_outside_file, Some((1 << 20) - analysis.ledger.total.held));
}

#[test]
fn zeros_are_found_when_asked_for() {
    let mut image = create(1 << 30, &options());
    image.write_at(0, &vec![0; 3 * CLUSTER as usize]).unwrap();
    image.write_at(3 * CLUSTER, &vec![1; 50 * CLUSTER as usize]).unwrap();
    image.write_at(60 * CLUSTER, &vec![0; CLUSTER as usize]).unwrap();
    let storage = image.close().unwrap();
    assert_eq!(analyzed(&storage).zero_filled, None);
    let analysis = analyzed_with(&storage, &AnalyzeOptions { scan_zeroes: true, ..AnalyzeOptions::default() });
    let zeros = analysis.zero_filled.unwrap();
    assert_eq!((zeros.bytes, zeros.held), (4 * CLUSTER, 4 * CLUSTER));
    assert_eq!(analysis.reclaim.zero_filled.unwrap().host_bytes, 4 * CLUSTER);
}

#[test]
fn compressed_clusters_are_streams_and_slack() {
    let mut image = create(1 << 20, &options());
    for cluster in 0..3u64 {
        let mut data = noise(CLUSTER as usize, cluster + 1);
        data[20_000..].fill(0);
        image.write_compressed(cluster * CLUSTER, &data).unwrap();
    }
    let storage = image.close().unwrap();
    let analysis = analyzed(&storage);
    let compressed = analysis.layout.compressed;
    assert_eq!((compressed.clusters, compressed.discontinuities), (3, 0));
    let (data, slack) =
        (analysis.ledger.of(SpaceClass::CompressedData).bytes, analysis.ledger.of(SpaceClass::CompressedSlack).bytes);
    assert!((60_000..63_000).contains(&data), "{data}");
    assert!(slack <= CLUSTER && data + slack <= CLUSTER, "{data} {slack}");
    assert_eq!(analysis.ledger.of(SpaceClass::LiveData).bytes, 0);
    assert_eq!(analysis.layout.guest_order.clusters, 0);
    assert!(analysis.compressed_padding_at_most >= 1);
}

#[test]
fn subclusters_without_data_are_retained() {
    let mut image = create(1 << 20, &CreateOptions { extended_l2: true, ..options() });
    image.write_at(0, &vec![1; 4096]).unwrap();
    image.write_at(CLUSTER, &vec![1; CLUSTER as usize]).unwrap();
    let storage = image.close().unwrap();
    let analysis = analyzed(&storage);
    assert_eq!(analysis.ledger.of(SpaceClass::LiveData).bytes, 4096 + CLUSTER);
    assert_eq!(analysis.ledger.of(SpaceClass::ZeroRetained).bytes, CLUSTER - 4096);
}

/// Adds a snapshot by hand: the active L1 and L2 tables as they are, every refcount raised. COPIED flags are left, the
/// ledger does not look at them.
fn with_snapshot(storage: &MemoryStorage) {
    let area = read_header(storage).unwrap();
    let header = &area.header;
    let mut l1 = vec![0; header.l1_size as usize * 8];
    storage.read_at(header.l1_table_offset, &mut l1).unwrap();
    let end = storage.len().unwrap().next_multiple_of(CLUSTER);
    storage.write_at(end, &l1).unwrap();
    let mut table = Vec::new();
    Snapshot {
        l1_table_offset: end,
        l1_size: header.l1_size,
        date_seconds: 0,
        date_nanoseconds: 0,
        vm_clock_nanoseconds: 0,
        vm_state_size_32: 0,
        extra_data: Snapshot::extra_data_for(0, header.virtual_size, None),
        id: "1".into(),
        name: "one".into(),
    }
    .emit(&mut table)
    .unwrap();
    storage.write_at(end + CLUSTER, &table).unwrap();
    storage.set_len(end + 2 * CLUSTER).unwrap();
    storage.write_at(60, &1u32.to_be_bytes()).unwrap();
    storage.write_at(64, &(end + CLUSTER).to_be_bytes()).unwrap();
    let mut table = [0; 8];
    storage.read_at(header.refcount_table_offset, &mut table).unwrap();
    let block = u64::from_be_bytes(table);
    let clusters = storage.len().unwrap() / CLUSTER;
    for cluster in 0..clusters {
        let fixed = cluster < 4 || cluster >= clusters - 2;
        let count: u16 = if fixed { 1 } else { 2 };
        storage.write_at(block + 2 * cluster, &count.to_be_bytes()).unwrap();
    }
    // COPIED must go, or the engine would write in place.
    let clear = |at: u64| {
        let mut entry = [0; 8];
        storage.read_at(at, &mut entry).unwrap();
        storage.write_at(at, &(u64::from_be_bytes(entry) & !(1 << 63)).to_be_bytes()).unwrap();
        u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00
    };
    for at in [header.l1_table_offset, end] {
        let l2 = clear(at);
        (0..CLUSTER / 8).for_each(|index| {
            clear(l2 + 8 * index);
        });
    }
}

#[test]
fn what_only_snapshots_use() {
    use SpaceClass::{L2Tables, LiveData, OnlyInSnapshots, SnapshotMetadata};
    let mut image = create(1 << 28, &options());
    image.write_at(0, &vec![1; 10 * CLUSTER as usize]).unwrap();
    let storage = image.close().unwrap();
    with_snapshot(&storage);
    let analysis = analyzed(&storage);
    assert_eq!(analysis.ledger.of(SnapshotMetadata).bytes, 2 * CLUSTER);
    assert_eq!((analysis.ledger.of(LiveData).bytes, analysis.ledger.of(OnlyInSnapshots).bytes), (10 * CLUSTER, 0));
    let mut image = Image::open(storage, OpenOptions::default()).unwrap();
    image.write_at(0, &vec![2; 3 * CLUSTER as usize]).unwrap();
    image.discard(5 * CLUSTER, CLUSTER).unwrap();
    let storage = image.close().unwrap();
    let analysis = analyzed(&storage);
    assert_eq!(analysis.ledger.overlapping_bytes, 0);
    assert_eq!(analysis.ledger.referenced_but_free_bytes, 0);
    // Three overwritten, one discarded; the L2 table was copied.
    assert_eq!(analysis.ledger.of(OnlyInSnapshots).bytes, 4 * CLUSTER);
    assert_eq!(analysis.ledger.of(LiveData).bytes, 9 * CLUSTER);
    assert_eq!(analysis.ledger.of(SnapshotMetadata).bytes, 3 * CLUSTER);
    assert_eq!(analysis.ledger.of(L2Tables).bytes, CLUSTER);
    assert_eq!(
        analysis.reclaim.drop_snapshots.host_bytes,
        analysis.ledger.of(OnlyInSnapshots).held + analysis.ledger.of(SnapshotMetadata).held
    );
    let worst = analysis.worst_case;
    // 4096 guest clusters, 1 L2 table, header, L1 table, refcounts; and the snapshot's 10 clusters, tables and L2.
    assert_eq!(worst.fully_written_without_snapshots, (4096 + 1 + 4) * CLUSTER);
    assert_eq!(worst.fully_written, (4096 + 1 + 4 + 10 + 3) * CLUSTER);
}

#[test]
fn overlaps_belong_to_the_first_and_are_told() {
    let mut image = create(1 << 28, &options());
    image.write_at(0, &vec![1; 4 * CLUSTER as usize]).unwrap();
    let storage = image.close().unwrap();
    let l2 = l2_offset(&storage);
    // A guest cluster in the L2 table itself, another beyond the end of the file, one in a free cluster.
    let end = storage.len().unwrap();
    storage.set_len(end + CLUSTER).unwrap();
    for (index, target) in [(1, l2), (2, 1 << 40), (3, end)] {
        storage.write_at(l2 + 8 * index, &((1u64 << 63) | target).to_be_bytes()).unwrap();
    }
    let analysis = analyzed(&storage);
    let ledger = &analysis.ledger;
    assert_eq!(ledger.overlapping_bytes, CLUSTER);
    let claimed_by = vec![SpaceClass::L2Tables, SpaceClass::LiveData];
    assert_eq!(ledger.overlaps, [Overlap { host_offset: l2, length: CLUSTER, claimed_by }]);
    assert_eq!(ledger.of(SpaceClass::L2Tables).bytes, CLUSTER);
    assert_eq!(ledger.references_beyond_end, 1);
    assert_eq!(ledger.referenced_but_free_bytes, CLUSTER);
    assert_eq!(ledger.of(SpaceClass::Leaked).bytes, 3 * CLUSTER);
}

#[test]
fn a_terabyte_with_preallocated_metadata_is_quick_and_small() {
    let create_options = CreateOptions { preallocation: Preallocation::Metadata, ..options() };
    let storage = create(1 << 40, &create_options).close().unwrap();
    let analysis = analyzed(&storage);
    let live = analysis.ledger.of(SpaceClass::LiveData);
    assert_eq!((live.bytes, live.held), (1 << 40, 0));
    // Only the L2 tables lie in between.
    assert!(analysis.layout.guest_order.discontinuities <= 2 * 2048, "{:?}", analysis.layout.guest_order);
    assert_eq!(analysis.worst_case.fully_written, storage.len().unwrap().next_multiple_of(CLUSTER));
}

/// Random images of every geometry, and then random bytes in their metadata.
#[test]
fn the_sums_hold_for_random_images_and_for_broken_ones() {
    let (mut broken, mut with_faults) = (0, 0);
    for seed in 0..42u64 {
        let bits = 9 + seed % 8;
        let extended = bits >= 14 && seed % 2 == 0;
        let create_options = CreateOptions {
            cluster_size: 1 << bits,
            refcount_bits: 1 << (seed % 7),
            extended_l2: extended,
            ..options()
        };
        let storage = random_image(seed, &create_options);
        let analysis = analyzed_with(&storage, &AnalyzeOptions { scan_zeroes: seed % 3 == 0, ..Default::default() });
        assert_eq!(analysis.faults, 0, "seed {seed}");
        assert_eq!(analysis.ledger.overlapping_bytes, 0, "seed {seed}");
        assert_eq!(analysis.ledger.of(SpaceClass::Leaked).bytes, 0, "seed {seed}");
        let gaps = &analysis.layout.free.gaps;
        // The last cluster may be cut short, gaps are whole.
        assert_eq!(gaps.bytes, analysis.ledger.of(SpaceClass::Free).bytes, "seed {seed}");
        for round in 0..10 {
            let storage = storage.clone();
            break_something(&storage, create_options.cluster_size, seed * 100 + round);
            let Ok(area) = read_header(&storage) else { continue };
            let options = AnalyzeOptions { scan_zeroes: round % 4 == 0, ..Default::default() };
            if let Ok(analysis) = analyze(&storage, &area, &options, &mut |_, _| {}) {
                assert_sums(&analysis.ledger, storage.len().unwrap());
                broken += 1;
                with_faults += u32::from(analysis.faults > 0 || analysis.ledger.overlapping_bytes > 0);
            }
        }
    }
    // Enough of them were broken, and still analyzed, to mean something.
    assert!(broken > 100 && with_faults > 20, "{broken} {with_faults}");
}

fn random_image(seed: u64, create_options: &CreateOptions) -> MemoryStorage {
    let size = create_options.cluster_size * 300 + 512 * (seed % 5);
    let mut image = create(size, create_options);
    let bytes = noise(400, seed + 7);
    for step in bytes.as_chunks::<4>().0 {
        let at = u64::from(step[0]) * create_options.cluster_size + u64::from(step[1]) * 16;
        let length = (u64::from(step[2]) * 97).min(size.saturating_sub(at));
        match step[3] % 5 {
            0 | 1 => image.write_at(at, &vec![step[3]; length as usize]).unwrap(),
            2 => image.discard(at, (length * 8).min(size - at)).unwrap(),
            3 => image.write_zeroes(at, length, step[3] > 100).unwrap(),
            _ => {
                let cluster = u64::from(step[0]) * create_options.cluster_size;
                image.write_compressed(cluster, &vec![step[1]; create_options.cluster_size as usize]).unwrap();
            }
        }
    }
    image.close().unwrap()
}

/// Overwrites a few bytes, mostly of the metadata.
fn break_something(storage: &MemoryStorage, cluster: u64, seed: u64) {
    let bytes = noise(100, seed + 99);
    let length = storage.len().unwrap();
    for (index, change) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let number = u64::from_be_bytes(*change);
        // Behind the header: refcounts, L1 table and the first L2 tables; now and then anywhere.
        let at = if index % 4 == 0 { number % length } else { cluster + number % (7 * cluster).min(length - cluster) };
        storage.write_at(at & !7, &change[..1 + usize::from(change[0] % 8)]).unwrap();
    }
    if seed.is_multiple_of(4) {
        storage.write_at(24 + u64::from(bytes[30] % 80), &bytes[31..32]).unwrap();
    }
    if seed.is_multiple_of(3) {
        storage.set_len(length - length / (2 + seed % 7)).unwrap();
    }
}

#[test]
fn refcounts_are_counted_to_the_last_cluster() {
    // A block that counts itself: one more data cluster needs a second block.
    let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
    let entries = geometry.refcount_block_entries();
    assert_eq!(super::gains::with_refcounts(&geometry, entries - 2, 0, 0), entries);
    assert_eq!(super::gains::with_refcounts(&geometry, entries - 1, 0, 0), entries + 2);
}

/// Where the first L2 table is.
fn l2_offset(storage: &MemoryStorage) -> u64 {
    let mut entry = [0; 8];
    storage.read_at(read_header(storage).unwrap().header.l1_table_offset, &mut entry).unwrap();
    u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00
}

#[test]
fn the_host_side_tells_owner_guest_offset_and_refcount() {
    let mut image = create(1 << 30, &options());
    image.write_at(5 * CLUSTER, &noise(3 * CLUSTER as usize, 1)).unwrap();
    image.write_at(9 * CLUSTER, &noise(CLUSTER as usize, 2)).unwrap();
    image.create_snapshot(&crate::image::NewSnapshot::default()).unwrap();
    image.write_at(6 * CLUSTER, &noise(CLUSTER as usize, 3)).unwrap();
    let storage = image.close().unwrap();
    let runs = clusters_of(&storage, &ClusterOptions::default());
    let data: Vec<_> = runs
        .iter()
        .filter(|run| run.structure == Some(Structure::DataCluster))
        .map(|run| {
            let guest = run.guest_offset.unwrap() / CLUSTER;
            (guest, run.length / CLUSTER, run.refcount, run.references, run.active, run.in_snapshots)
        })
        .collect();
    let mut sorted = data.clone();
    sorted.sort_unstable();
    let expected = [
        (5, 1, Some(2), 2, true, true),
        (6, 1, Some(1), 1, false, true),
        (6, 1, Some(1), 1, true, false),
        (7, 1, Some(2), 2, true, true),
        (9, 1, Some(2), 2, true, true),
    ];
    assert_eq!(sorted, expected, "{data:?}");
    let tables: Vec<_> = runs.iter().filter(|run| run.structure == Some(Structure::L2Table)).collect();
    assert!(tables.iter().all(|run| run.guest_offset == Some(0) && run.refcount == Some(1)), "{tables:?}");
    assert_eq!(tables.iter().map(|run| run.class).collect::<Vec<_>>().len(), 2);
}
