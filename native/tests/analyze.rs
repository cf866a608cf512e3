//! The space ledger of images that qemu-img made: it adds up, and says what QEMU says where QEMU says anything.

use std::path::Path;
use std::process::Command;

use qcowkit::analyze::{FileAnalyzeOptions, analyze_file};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::operations::analyze::{Analysis, SpaceClass};
use qcowkit_core::storage::ReadStorage;
use serde_json::Value;

const K: u64 = 1024;
const M: u64 = 1024 * K;
const CLUSTER: u64 = 64 * K;

fn qemu_is_missing() -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
        println!("skipped: qemu-img is missing");
    }
    missing
}

fn run(folder: &Path, line: &str) -> String {
    let mut words = line.split(' ');
    // `_` stands for a space within an argument.
    let arguments = words.clone().skip(1).map(|word| word.replace('_', " "));
    let arguments: Vec<String> =
        if line.starts_with("qemu-io") { arguments.collect() } else { words.clone().skip(1).map(Into::into).collect() };
    let output = Command::new(words.next().unwrap()).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn analyzed_with(folder: &Path, options: &FileAnalyzeOptions) -> Analysis {
    let file = FileStorage::open(folder.join("a.qcow2"), FileAccess::Read).unwrap();
    let data = folder.join("d.raw");
    let data = data.exists().then(|| FileStorage::open(data, FileAccess::Read).unwrap());
    let analysis = analyze_file(&file, data.as_ref(), options, &mut |_, _| {}).unwrap();
    let sum: u64 = analysis.ledger.classes.iter().map(|line| line.space.bytes).sum();
    assert_eq!(sum, file.len().unwrap());
    let held: u64 = analysis.ledger.classes.iter().map(|line| line.space.held).sum();
    // What the file system holds is what `du` says, but for its own tables and the tail of its last block.
    let allocated = file.allocated_bytes().unwrap();
    assert!(held <= allocated + 4 * K && allocated <= held + 64 * K, "{held} held, {allocated} allocated");
    assert_eq!((analysis.ledger.overlapping_bytes, analysis.faults), (0, 0));
    analysis
}

fn analyzed(folder: &Path) -> Analysis {
    analyzed_with(folder, &FileAnalyzeOptions::default())
}

fn image(commands: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    commands.iter().for_each(|command| drop(run(folder.path(), command)));
    folder
}

fn bytes(analysis: &Analysis, class: SpaceClass) -> u64 {
    analysis.ledger.of(class).bytes
}

#[test]
fn a_new_image_can_get_as_large_as_qemu_measures() {
    if qemu_is_missing() {
        return;
    }
    for options in [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=2M,refcount_bits=64",
        "extended_l2=on",
        "compat=0.10",
    ] {
        for size in ["64M", "10000001K", "1T"] {
            if options.contains("512") && size == "1T" {
                continue;
            }
            let folder = image(&[&format!("qemu-img create -f qcow2 -o {options} a.qcow2 {size}")]);
            let line = format!("qemu-img measure --output json -O qcow2 -o {options} --size {size}");
            let measured: Value = serde_json::from_str(&run(folder.path(), &line)).unwrap();
            let analysis = analyzed(folder.path());
            let measured = measured["fully-allocated"].as_u64().unwrap();
            assert_eq!(analysis.worst_case.fully_written, measured, "{options} {size}");
        }
    }
}

#[test]
fn snapshots_bitmaps_and_data() {
    if qemu_is_missing() {
        return;
    }
    let folder = image(&[
        "qemu-img create -f qcow2 a.qcow2 1G",
        "qemu-io -c write_-P_1_0_1M a.qcow2",
        "qemu-img snapshot -c one a.qcow2",
        "qemu-io -c write_-P_2_0_256k a.qcow2",
        "qemu-img bitmap --add a.qcow2 b",
        "qemu-io -c write_-P_3_2M_64k a.qcow2",
    ]);
    let analysis = analyzed(folder.path());
    assert_eq!(bytes(&analysis, SpaceClass::OnlyInSnapshots), 256 * K);
    assert_eq!(bytes(&analysis, SpaceClass::LiveData), M + 64 * K);
    // The table, the L1 table and the L2 table of the snapshot.
    assert_eq!(bytes(&analysis, SpaceClass::SnapshotMetadata), 3 * CLUSTER);
    // One table, one cluster of bits, and the directory, which may end the file.
    assert_eq!(bytes(&analysis, SpaceClass::BitmapMetadata).div_ceil(CLUSTER), 2);
    assert_eq!(bytes(&analysis, SpaceClass::BitmapData), CLUSTER);
    assert_eq!(bytes(&analysis, SpaceClass::Leaked), 0);
    // 16384 guest clusters, 2 L2 tables, header, L1, 2 of refcounts, 3 of bitmaps; 16 + 3 of the snapshot.
    assert_eq!(analysis.worst_case.fully_written_without_snapshots, (16384 + 2 + 4 + 3) * CLUSTER);
    assert_eq!(analysis.worst_case.fully_written, (16384 + 2 + 4 + 3 + 19) * CLUSTER);
    let used = |analysis: &Analysis| {
        let unused = bytes(analysis, SpaceClass::Free) + bytes(analysis, SpaceClass::BeyondLastUsed);
        (analysis.ledger.file_length - unused).div_ceil(CLUSTER)
    };
    run(folder.path(), "qemu-img snapshot -d one a.qcow2");
    let without = analyzed(folder.path());
    assert_eq!(bytes(&without, SpaceClass::OnlyInSnapshots) + bytes(&without, SpaceClass::SnapshotMetadata), 0);
    // What was promised is in use no more.
    assert_eq!(used(&analysis) - used(&without), 4 + 3);
}

#[test]
fn compressed_images_are_as_qemu_counts_them() {
    if qemu_is_missing() {
        return;
    }
    for kind in ["zlib", "zstd"] {
        let folder = image(&[
            "qemu-img create -f raw r.raw 8M",
            "qemu-io -f raw -c write_-P_7_0_3M r.raw",
            &format!("qemu-img convert -c -O qcow2 -o compression_type={kind} r.raw a.qcow2"),
        ]);
        let analysis = analyzed(folder.path());
        let check: Value = serde_json::from_str(&run(folder.path(), "qemu-img check --output json a.qcow2")).unwrap();
        assert_eq!(analysis.layout.compressed.clusters, check["compressed-clusters"].as_u64().unwrap());
        assert_eq!(analysis.layout.compressed.discontinuities, 0);
        let (data, slack) =
            (bytes(&analysis, SpaceClass::CompressedData), bytes(&analysis, SpaceClass::CompressedSlack));
        assert!(data > 0 && data + slack <= CLUSTER, "{data} {slack}");
        assert!(analysis.compressed_padding_at_most <= 511);
    }
}

#[test]
fn encryption_headers_data_files_and_subclusters() {
    if qemu_is_missing() {
        return;
    }
    let folder = image(&[
        "qemu-img create -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 a.qcow2 64M",
    ]);
    let analysis = analyzed_with(folder.path(), &FileAnalyzeOptions { scan_zeroes: true, ..Default::default() });
    assert!(bytes(&analysis, SpaceClass::EncryptionHeader) >= M);
    assert_eq!((bytes(&analysis, SpaceClass::Leaked), analysis.zero_filled), (0, None));

    let folder = image(&[
        "qemu-img create -f qcow2 -o data_file=d.raw a.qcow2 64M",
        "qemu-io -c write_-P_1_1M_2M -c write_-z_2M_1M a.qcow2",
    ]);
    let analysis = analyzed(folder.path());
    assert_eq!(bytes(&analysis, SpaceClass::LiveData), 0);
    let data = analysis.data_file.as_ref().unwrap();
    assert_eq!((data.of(SpaceClass::LiveData).bytes, data.of(SpaceClass::ZeroRetained).bytes), (M, M));
    assert_eq!(data.classes.iter().map(|line| line.space.bytes).sum::<u64>(), data.file_length);
    assert_eq!(analysis.worst_case.data_file, Some(64 * M));

    let folder = image(&[
        "qemu-img create -f qcow2 -o extended_l2=on a.qcow2 64M",
        "qemu-io -c write_-P_1_0_4k -c write_-P_0_1M_64k a.qcow2",
    ]);
    let analysis = analyzed_with(folder.path(), &FileAnalyzeOptions { scan_zeroes: true, ..Default::default() });
    assert_eq!(bytes(&analysis, SpaceClass::LiveData), 68 * K);
    assert_eq!(bytes(&analysis, SpaceClass::ZeroRetained), 60 * K);
    assert_eq!(analysis.zero_filled.unwrap().bytes, 64 * K);
}

#[test]
fn reserved_space_is_held_although_it_was_never_written() {
    if qemu_is_missing() {
        return;
    }
    let folder = image(&["qemu-img create -f qcow2 -o preallocation=falloc a.qcow2 16M"]);
    let analysis = analyzed(folder.path());
    let live = analysis.ledger.of(SpaceClass::LiveData);
    assert_eq!(live.bytes, 16 * M);
    match analysis.layout.host {
        // Without extents, unwritten space cannot be told from holes.
        None => println!("the file system does not tell its extents"),
        Some(host) => {
            assert_eq!(live.held, 16 * M);
            assert!(host.extents > 0 && host.unwritten_bytes >= 15 * M, "{host:?}");
        }
    }
}

#[test]
fn retained_clusters_and_leaks() {
    if qemu_is_missing() {
        return;
    }
    let folder = image(&["qemu-img create -f qcow2 a.qcow2 64M", "qemu-io -c write_-P_1_0_4M a.qcow2"]);
    let options = "driver=qcow2,discard=unmap,discard-no-unref=on,file.filename=a.qcow2,file.discard=unmap";
    run(folder.path(), &format!("qemu-io --image-opts -c discard_1M_1M -c write_-z_3M_512k {options}"));
    let analysis = analyzed(folder.path());
    let retained = analysis.ledger.of(SpaceClass::ZeroRetained);
    assert_eq!(retained.bytes, M + 512 * K);
    assert_eq!(bytes(&analysis, SpaceClass::LiveData), 2 * M + 512 * K);
    // The discard punched a hole, the write of zeros did not.
    assert_eq!(analysis.reclaim.discard_retained.host_bytes, 512 * K);
    assert_eq!(analysis.layout.guest_order.clusters, 64);
    assert_eq!(analysis.layout.guest_order.discontinuities, 0);
}
