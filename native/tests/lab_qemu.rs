//! The lab's replays against QEMU itself: the same traces through `qemu-io`, then the file's length, the allocated
//! clusters and the fragmentation that `qemu-img check` reports.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use qcowkit_core::image::{DetectZeroes, Preallocation};
use qcowkit_core::metadata::Unref;
use qcowkit_core::operations::lab::{
    Churn, LabConfig, LabDisk, LabOptions, LabRun, Operation, Trace, TraceFormat, Trim, replay,
};
use serde_json::Value;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// How far a number may be from QEMU's, in parts per million of it.
const TOLERANCE_PPM: u64 = 10_000;

fn churn(size: u64, operations: u64, seed: u64, trim: Trim) -> Trace {
    let churn = Churn {
        size,
        operations,
        seed,
        trim,
        file_median: size / 4096,
        file_max: size / 16,
        flush_every: 50,
        mark_every: 0,
        ..Churn::default()
    };
    churn.trace().unwrap()
}

/// Writes and discards all over the disk, aligned to 4 KiB.
fn scattered(size: u64, operations: u64, largest: u64) -> Trace {
    let mut state = size ^ operations;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut trace = Trace::default();
    for _ in 0..operations {
        let length = (1 + below(largest / (4 * KIB))) * 4 * KIB;
        let offset = below((size - length) / (4 * KIB)) * 4 * KIB;
        trace.operations.push(match below(10) {
            0..5 => Operation::Write { offset, length, zeros: below(8) == 0 },
            5..9 => Operation::Discard { offset, length: length * 2 },
            _ => Operation::WriteZeroes { offset, length, unmap: below(2) == 0 },
        });
    }
    for operation in &mut trace.operations {
        if let Operation::Discard { offset, length } = operation {
            *length = (*length).min(size - *offset);
        }
    }
    trace
}

/// What QEMU reached.
struct Theirs {
    length: u64,
    allocated: u64,
    fragmented: u64,
    used_end: u64,
}

fn qemu_replay(folder: &Path, trace: &Trace, size: u64, config: &LabConfig) -> Theirs {
    let mut options = format!("cluster_size={}", config.cluster_size);
    if config.extended_l2 {
        options += ",extended_l2=on";
    }
    if config.preallocation == Preallocation::Metadata {
        options += ",preallocation=metadata";
    }
    let size = size.to_string();
    run(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "a.qcow2", &size]);
    let mut script = String::new();
    trace.write(TraceFormat::QemuIo, &mut script).unwrap();
    writeln!(script, "quit").unwrap();
    std::fs::write(folder.join("script"), script).unwrap();
    let mut node = String::from("driver=qcow2,file.driver=file,file.filename=a.qcow2,file.locking=off");
    let _ = write!(node, ",discard={}", if config.discard { "unmap" } else { "ignore" });
    if config.policy.unref != Unref::Always {
        node += ",discard-no-unref=on";
    }
    match config.detect_zeroes {
        DetectZeroes::Off => {}
        DetectZeroes::On => node += ",detect-zeroes=on",
        DetectZeroes::Unmap => node += ",detect-zeroes=unmap",
    }
    let output = Command::new("qemu-io")
        .args(["--image-opts", "-t", "unsafe", &node])
        .current_dir(folder)
        .stdin(std::fs::File::open(folder.join("script")).unwrap())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let check: Value = serde_json::from_str(&run(folder, "qemu-img", &["check", "--output=json", "a.qcow2"])).unwrap();
    let number = |key: &str| check.get(key).and_then(Value::as_u64).unwrap_or(0);
    assert_eq!((number("leaks"), number("corruptions")), (0, 0));
    Theirs {
        length: std::fs::metadata(folder.join("a.qcow2")).unwrap().len(),
        allocated: number("allocated-clusters"),
        fragmented: number("fragmented-clusters"),
        used_end: number("image-end-offset"),
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether `ours` is near `theirs`: within the tolerance, or within `slack`.
fn near(ours: u64, theirs: u64, slack: u64) -> bool {
    ours.abs_diff(theirs) <= slack.max(theirs * TOLERANCE_PPM / 1_000_000)
}

fn compare(name: &str, trace: &Trace, size: u64, config: &LabConfig) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let ours: LabRun =
        replay(trace, &LabDisk::Empty { size }, config, &LabOptions { samples: 1 }, &mut |_| {}).unwrap();
    let theirs = qemu_replay(folder.path(), trace, size, config);
    let line = format!(
        "{name}, {}: length {} (QEMU {}, in use to {}), allocated {} ({}), fragmented {} ({})",
        config.describe(),
        ours.end.file_length,
        theirs.length,
        theirs.used_end,
        ours.end.allocated_clusters,
        theirs.allocated,
        ours.end.discontinuities,
        theirs.fragmented
    );
    println!("{line}");
    if name.starts_with("online") && config.policy_name() == "unmap" {
        assert!(theirs.length > size + size / 10, "QEMU's file grows beyond the disk: {line}");
    }
    let close = near(ours.end.file_length, theirs.length, config.cluster_size)
        && near(ours.end.allocated_clusters, theirs.allocated, 0)
        && near(ours.end.discontinuities, theirs.fragmented, 0);
    if close { Ok(()) } else { Err(line) }
}

#[test]
fn a_replay_ends_where_qemu_ends() {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "qemu-io is missing");
        println!("skipped: qemu-io is missing");
        return;
    }
    let (unmap, keep) = (LabConfig::unmap(), LabConfig::no_unref());
    let small = |config: &LabConfig| LabConfig { cluster_size: 4 * KIB, ..config.clone() };
    let sub = |config: &LabConfig| LabConfig { extended_l2: true, ..config.clone() };
    let reserved = |config: &LabConfig| LabConfig { preallocation: Preallocation::Metadata, ..config.clone() };
    let detect = |config: &LabConfig| LabConfig { detect_zeroes: DetectZeroes::Unmap, ..config.clone() };
    let mut wrong = Vec::new();
    let fstrim = churn(256 * MIB, 8000, 1, Trim::Every(1000));
    // QEMU issue 1621.
    let growing = Churn {
        size: 128 * MIB,
        operations: 3000,
        fill_percent: 85,
        file_median: 512 * KIB,
        file_sigma_percent: 150,
        file_max: 16 * MIB,
        rewrite_percent: 0,
        request_max: 8 * MIB,
        trim: Trim::Online,
        ..Churn::default()
    };
    let growing = growing.trace().unwrap();
    let scattered_large = scattered(256 * GIB, 1000, 256 * KIB);
    let scattered_small = scattered(128 * MIB, 3000, 512 * KIB);
    for config in [LabConfig::ignore(), unmap.clone(), keep.clone(), sub(&unmap), sub(&keep), reserved(&keep)] {
        wrong.extend(compare("fstrim, 256 MiB", &fstrim, 256 * MIB, &config).err());
    }
    for config in [&unmap, &keep] {
        wrong.extend(compare("online discard, 128 MiB", &growing, 128 * MIB, config).err());
        wrong.extend(compare("scattered, 256 GiB", &scattered_large, 256 * GIB, config).err());
        wrong.extend(compare("scattered, 128 MiB", &scattered_small, 128 * MIB, config).err());
        wrong.extend(compare("scattered, 128 MiB", &scattered_small, 128 * MIB, &small(config)).err());
        wrong.extend(compare("scattered, 128 MiB", &scattered_small, 128 * MIB, &detect(config)).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
