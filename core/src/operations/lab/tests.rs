use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::image::{Image, OpenOptions, Preallocation};
use crate::metadata::AllocationPolicy;
use crate::storage::{MemoryStorage, ReadStorage};

fn churn() -> Trace {
    let churn =
        Churn { size: 512 << 20, operations: 6000, trim: Trim::Every(600), mark_every: 2000, ..Churn::default() };
    churn.trace().expect("good parameters")
}

const DISK: LabDisk = LabDisk::Empty { size: 512 << 20 };

fn configs() -> Vec<LabConfig> {
    let mut configs = LabConfig::three_policies().to_vec();
    configs.push(LabConfig { allocation: AllocationPolicy::FillHoles, ..LabConfig::unmap() });
    configs.push(LabConfig { allocation: AllocationPolicy::Near, ..LabConfig::unmap() });
    configs.push(LabConfig { extended_l2: true, ..LabConfig::unmap() });
    configs.push(LabConfig { cluster_size: 4096, ..LabConfig::no_unref() });
    configs.push(LabConfig { preallocation: Preallocation::Full, quarantine_bytes: 16 << 20, ..LabConfig::no_unref() });
    configs
}

/// The whole image counted anew is what was counted operation by operation, and the image is sound.
#[test]
fn counting_along_the_way_is_counting_at_the_end() {
    let trace = churn();
    for config in configs() {
        let mut replay = Replay::new(&DISK, &config).unwrap();
        replay.run(&trace, &LabOptions { samples: 5 }, &mut |_| {}).unwrap();
        let (run, storage) = replay.finish_with_storage().unwrap();
        let mut image = Image::open(storage, OpenOptions::default()).unwrap();
        let counted = super::census::Census::take(&mut image).unwrap().counts();
        let end = run.end;
        assert_eq!(
            (counted.live, counted.retained, counted.allocated, counted.fragmented, counted.runs),
            (end.live_bytes, end.retained_bytes, end.allocated_clusters, end.discontinuities, end.runs),
            "{}",
            config.describe()
        );
        assert!(end.live_bytes + end.retained_bytes + end.free_bytes <= end.file_length, "{}", config.describe());
        assert_eq!(run.samples.last(), Some(&end));
        assert_eq!(run.backups.len(), trace.operations.iter().filter(|o| matches!(o, Operation::Mark(_))).count() + 1);
        let gap_bytes: u64 = run.gaps.iter().map(|bucket| bucket.bytes).sum();
        assert_eq!(gap_bytes, end.free_bytes);
    }
}

#[test]
fn policies_differ_as_they_should() {
    let report =
        run_lab(&churn(), &DISK, &LabConfig::three_policies(), &LabOptions::default(), &mut |_, _| {}).unwrap();
    let [ignore, unmap, keep] = report.runs.as_slice() else { panic!("three runs") };
    assert_eq!((ignore.end.retained_bytes, unmap.end.retained_bytes), (0, 0));
    assert!(keep.end.retained_bytes > 0, "kept clusters");
    assert_eq!((ignore.end.host_discards, ignore.end.gaps), (0, 0), "nothing was given back");
    assert_eq!(unmap.end.live_bytes, keep.end.live_bytes, "the guest sees the same");
    assert!(ignore.end.live_bytes > unmap.end.live_bytes, "dead data stay live");
    assert!(unmap.end.free_bytes > keep.end.free_bytes);
    let backup = |run: &LabRun| run.backups.iter().map(|backup| backup.data_bytes).sum::<u64>();
    assert!(backup(ignore) > backup(unmap));
    assert_eq!(backup(unmap), backup(keep), "discarded clusters need no backup under either policy");
}

#[test]
fn small_things_counted_by_hand() {
    let cluster = 65536;
    let write = |at: u64, count: u64| Operation::Write { offset: at * cluster, length: count * cluster, zeros: false };
    let discard = |at: u64| Operation::Discard { offset: at * cluster, length: cluster };
    let trace = Trace {
        operations: vec![write(0, 4), write(8, 2), Operation::Mark("one".into()), discard(1), write(1, 1), discard(9)],
        ignored: 0,
    };
    let run = |config: &LabConfig| {
        replay(&trace, &LabDisk::Empty { size: 1 << 30 }, config, &LabOptions::default(), &mut |_| {}).unwrap()
    };
    // Header, refcount table, refcount block, L1, L2, then 0 1 2 3 8 9; guest 1 goes back to the gap that it left.
    let unmap = run(&LabConfig::unmap());
    assert_eq!(unmap.end.file_length, 11 * cluster);
    assert_eq!((unmap.end.allocated_clusters, unmap.end.discontinuities, unmap.end.runs), (5, 0, 2));
    assert_eq!(unmap.end.live_bytes, 5 * cluster);
    assert_eq!((unmap.end.free_bytes, unmap.end.gaps), (0, 0), "what is free behind the last cluster is no gap");
    let keep = run(&LabConfig::no_unref());
    assert_eq!((keep.end.retained_bytes, keep.end.allocated_clusters), (cluster, 6));
    assert_eq!(keep.end.file_length, 11 * cluster);
    let [first, second] = keep.backups.as_slice() else { panic!("a mark and the end") };
    assert_eq!((first.name.as_str(), first.data_bytes), ("one", 6 * cluster));
    assert_eq!((second.data_bytes, second.zero_bytes, second.discarded_bytes), (cluster, cluster, 0));
    assert_eq!(unmap.backups[1].discarded_bytes, cluster);
    let ignore = run(&LabConfig::ignore());
    assert_eq!((ignore.end.allocated_clusters, ignore.backups[1].data_bytes), (6, cluster));
}

#[test]
fn a_replay_goes_on_where_an_image_ends() {
    let mut image = Image::create(MemoryStorage::new(), 64 << 20, &crate::image::CreateOptions::default()).unwrap();
    image.write_at(0, &vec![1; 10 << 20]).unwrap();
    image.discard(1 << 20, 1 << 20).unwrap();
    let storage = image.close().unwrap();
    let (length, allocated) = (storage.len().unwrap(), storage.allocated_bytes());
    let disk = LabDisk::Skeleton(Skeleton::of(&storage, None).unwrap());
    let mut replay = Replay::new(&disk, &LabConfig { cluster_size: 4096, ..LabConfig::unmap() }).unwrap();
    let start = replay.now().unwrap();
    assert_eq!((start.file_length, start.host_bytes), (length, allocated));
    assert_eq!((start.live_bytes, start.gaps, start.free_bytes), (9 << 20, 1, 1 << 20));
    replay.apply(&Operation::Discard { offset: 0, length: 64 << 20 }).unwrap();
    assert_eq!(replay.now().unwrap().live_bytes, 0);
    let run = replay.finish().unwrap();
    assert_eq!(run.config.cluster_size, 65536, "the image's own");
    assert_eq!((run.end.allocated_clusters, run.end.host_discards), (0, 2));
    assert_eq!(storage.len().unwrap(), length, "the image itself is as it was");
}

#[test]
fn what_does_not_fit_is_refused() {
    let trace = Trace { operations: vec![Operation::Discard { offset: 1 << 30, length: 512 }], ignored: 0 };
    assert!(fits(&trace, 1 << 30).is_err());
    let error =
        replay(&trace, &LabDisk::Empty { size: 1 << 30 }, &LabConfig::unmap(), &LabOptions::default(), &mut |_| {})
            .unwrap_err();
    assert_eq!((error.site().index, error.site().guest_offset), (Some(1), Some(1 << 30)));
    let config = LabConfig { cluster_size: 4096, extended_l2: true, ..LabConfig::unmap() };
    assert!(Replay::new(&DISK, &config).is_err());
}

/// QEMU issue 1621: with discard=unmap the free gaps become too small for the guest's requests, and the file grows beyond
/// the disk; discards that keep their clusters bound it.
#[test]
fn unmap_grows_the_file_beyond_the_disk_where_no_unref_does_not() {
    let size = 128 << 20;
    let churn = Churn {
        size,
        operations: 6000,
        fill_percent: 85,
        file_median: 512 << 10,
        file_sigma_percent: 150,
        file_max: 16 << 20,
        rewrite_percent: 0,
        request_max: 8 << 20,
        trim: Trim::Online,
        ..Churn::default()
    };
    let configs = LabConfig::three_policies();
    let disk = LabDisk::Empty { size };
    let report = run_lab(&churn.trace().unwrap(), &disk, &configs, &LabOptions::default(), &mut |_, _| {}).unwrap();
    let [ignore, unmap, keep] = report.runs.as_slice() else { panic!("three runs") };
    assert!(unmap.end.file_ppm > 1_200_000, "{}", unmap.end.file_ppm);
    assert!(keep.peak_file_length < size + size / 100 && ignore.peak_file_length < size + size / 100);
    assert!(unmap.end.discontinuities > 10 * keep.end.discontinuities.max(10));
    assert!(unmap.end.largest_gap < unmap.end.free_bytes / 4, "much is free, in small pieces");
    // The guest's own view, and what the host holds of it, are the same.
    assert_eq!(unmap.end.live_bytes, keep.end.live_bytes);
    assert!(unmap.end.host_bytes.abs_diff(keep.end.host_bytes) < size / 50);
    assert_eq!(advise(&report).best, "no-unref");
}

/// The price of keeping clusters: a disk that is emptied and filled elsewhere needs the space twice.
#[test]
fn no_unref_keeps_what_unmap_would_have_given_back() {
    let half = 512 << 20;
    let operations = vec![
        Operation::Write { offset: 0, length: half, zeros: false },
        Operation::Discard { offset: 0, length: half },
        Operation::Write { offset: half, length: half, zeros: false },
    ];
    let quiet = crate::metadata::Pass { request: false, ..crate::metadata::Pass::default() };
    let mut silent = LabConfig { name: "no-unref, nothing passed on".into(), ..LabConfig::no_unref() };
    silent.policy.pass = quiet;
    let configs = [LabConfig::unmap(), LabConfig::no_unref(), silent];
    let disk = LabDisk::Empty { size: 2 * half };
    let trace = Trace { operations, ignored: 0 };
    let report = run_lab(&trace, &disk, &configs, &LabOptions::default(), &mut |_, _| {}).unwrap();
    let [unmap, keep, silent] = report.runs.as_slice() else { panic!("three runs") };
    assert_eq!((unmap.end.retained_bytes, keep.end.retained_bytes), (0, half));
    assert!(unmap.end.file_length < half + half / 100 && keep.end.file_length > 2 * half);
    // Holes give the space back to the host, but not the length; without them not even that.
    assert!(keep.end.host_bytes < half + half / 100 && silent.end.host_bytes > 2 * half);
    assert_eq!(advise(&report).best, "unmap");
}

/// The cells of a picture, added up, are the sums of the sample.
#[test]
fn a_picture_shows_what_the_sample_counts() {
    // More than one L2 table.
    let size = 1300 << 20;
    let trace = Churn { size, operations: 6000, trim: Trim::Every(600), ..Churn::default() }.trace().unwrap();
    let disk = LabDisk::Empty { size };
    for config in [LabConfig::ignore(), LabConfig::unmap(), LabConfig::no_unref()] {
        let mut replay = Replay::new(&disk, &config).unwrap();
        replay.run(&trace, &LabOptions { samples: 1 }, &mut |_| {}).unwrap();
        let now = replay.now().unwrap();
        // A cell is a cluster, so that shares are all or nothing.
        let picture = replay.picture(MAX_PICTURE_CELLS, 1).unwrap();
        assert_eq!((picture.cell_bytes, picture.file_length), (65536, now.file_length));
        // The sample's free bytes are those before the last cluster in use.
        let used = 1 + picture.host.iter().rposition(|cell| cell[3] < 255).unwrap();
        let bytes = |kind: usize| 65536 * picture.host[..used].iter().filter(|cell| cell[kind] == 255).count() as u64;
        let all = [bytes(0), bytes(1), bytes(3)];
        assert_eq!(all, [now.live_bytes, now.retained_bytes, now.free_bytes], "{}", config.describe());
        assert!(picture.host.iter().all(|cell| cell.iter().map(|&share| u32::from(share)).sum::<u32>() == 255));
        let guest = |kind: usize| 65536 * picture.guest.iter().filter(|cell| cell[kind] == 255).count() as u64;
        assert_eq!([guest(0), guest(1)], [now.live_bytes, now.retained_bytes], "{}", config.describe());
        // Larger cells say the same, up to rounding.
        assert!(now.live_bytes > 600 << 20, "more than the first table maps");
        let coarse = replay.picture(128, 16 << 20).unwrap();
        let free: u64 = coarse.host.iter().map(|cell| u64::from(cell[3]) * (16 << 20) / 255).sum();
        let behind = 65536 * (picture.host.len() - used) as u64;
        assert!(free.abs_diff(now.free_bytes + behind) <= 128 * (16 << 20) / 255, "{}", config.describe());
        assert!(replay.picture(MAX_PICTURE_CELLS + 1, 1).is_err() && replay.picture(1, 0).is_err());
    }
}
