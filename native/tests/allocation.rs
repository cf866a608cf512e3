//! Allocation as QEMU's: the same operations lead to a file as long as QEMU's, with as many clusters in it.

mod common;

use std::path::Path;

use common::{Folder, Rng, check_clean, open, qemu_create, qemu_io, qemu_is_here, succeed};
use qcowkit_core::image::OpenOptions;
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Unref};

const SIZE: u64 = 256 << 20;

#[derive(Clone, Copy)]
enum Step {
    Write(u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
}

/// A workload by name: its steps in sessions, between which the image is closed (and snapshots may be made).
fn workload(name: &str) -> Vec<Vec<Step>> {
    let mut rng = Rng::new(42);
    let at = |rng: &mut Rng, unit: u64| rng.below(SIZE / unit) * unit;
    let session = |steps: usize, rng: &mut Rng| -> Vec<Step> {
        let one = |n: usize, rng: &mut Rng| match name {
            "sequential" => Step::Write(n as u64 * 300_000 % (SIZE - 300_000), 300_000),
            "random 4 KiB" => Step::Write(at(rng, 4096), 4096),
            "random mixed" | "random mixed, no-unref" => match rng.below(5) {
                0 => Step::Discard(at(rng, 1 << 20), 1 << 20),
                1 => Step::Zero(at(rng, 65_536), 1 + rng.below(65_536)),
                _ => {
                    let offset = at(rng, 512);
                    Step::Write(offset, (1 + rng.below(500_000)).min(SIZE - offset))
                }
            },
            "churn" => {
                let offset = rng.below(64) * (4 << 20);
                if n.is_multiple_of(2) {
                    Step::Write(offset, 4 << 20)
                } else {
                    Step::Discard(offset, rng.below(4 << 20))
                }
            }
            "snapshots" => Step::Write(at(rng, 4096).min(SIZE - 200_000), 1 + rng.below(200_000)),
            other => panic!("{other}"),
        };
        (0..steps).map(|n| one(n, rng)).collect()
    };
    (0..3).map(|_| session(120, &mut rng)).collect()
}

fn run_qemu(path: &Path, steps: &[Step], more: &str) {
    let commands: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::Write(offset, length) => format!("write -P 5 {offset} {length}"),
            Step::Zero(offset, length) => format!("write -z -u {offset} {length}"),
            Step::Discard(offset, length) => format!("discard {offset} {length}"),
        })
        .collect();
    assert!(qemu_io(path, more, &commands).iter().all(|&done| done));
}

fn run_us(path: &Path, steps: &[Step], unref: Unref) {
    let metadata =
        MetadataOptions { allocation: AllocationPolicy::Qemu, quarantine_bytes: 0, ..MetadataOptions::default() };
    let policy = DiscardPolicy { unref, ..DiscardPolicy::default() };
    let mut image = open(path, OpenOptions::default().with_metadata(metadata).with_policy(policy));
    for step in steps {
        match *step {
            Step::Write(offset, length) => image.write_at(offset, &vec![5; length as usize]),
            Step::Zero(offset, length) => image.write_zeroes(offset, length, true),
            Step::Discard(offset, length) => image.discard(offset, length),
        }
        .unwrap();
    }
    image.close().unwrap();
}

#[test]
fn files_grow_as_qemu_lets_them_grow() {
    if !qemu_is_here() {
        return;
    }
    for name in ["sequential", "random 4 KiB", "random mixed", "random mixed, no-unref", "churn", "snapshots"] {
        for options in ["cluster_size=65536", "cluster_size=4096", "extended_l2=on,cluster_size=131072"] {
            let folder = Folder::new();
            let (theirs, ours) = (folder.path("theirs"), folder.path("ours"));
            for path in [&theirs, &ours] {
                qemu_create(path, &["-o", options], SIZE);
            }
            let no_unref = name.ends_with("no-unref");
            let (more, unref) =
                if no_unref { (",discard-no-unref=on", Unref::RetainQemu) } else { ("", Unref::Always) };
            for (n, steps) in workload(name).iter().enumerate() {
                run_qemu(&theirs, steps, more);
                run_us(&ours, steps, unref);
                if name == "snapshots" {
                    for path in [&theirs, &ours] {
                        let tag = n.to_string();
                        succeed("qemu-img", &["snapshot".as_ref(), "-c".as_ref(), tag.as_ref(), path.as_os_str()]);
                    }
                }
            }
            let [a, b] = [&theirs, &ours].map(|path| check_clean(path, name));
            let length = |path: &Path| std::fs::metadata(path).unwrap().len();
            let (a_length, b_length) = (length(&theirs), length(&ours));
            println!(
                "{name}, {options}: length {a_length} and {b_length}, end {} and {}, fragmented {} and {} of {}",
                a.end, b.end, a.fragmented, b.fragmented, a.allocated
            );
            assert_eq!(a.allocated, b.allocated, "{name}, {options}");
            // Within 1 %. Clusters of 4 KiB under churn lie 10 % apart: QEMU puts a new refcount block where a run that
            // continues another meets the end of the last block, and makes L2 tables for discards that change
            // nothing; from there on, which gaps are large enough is a matter of chance.
            let percent = if (name, options) == ("churn", "cluster_size=4096") { 15 } else { 1 };
            assert!(
                a.end.abs_diff(b.end) * 100 <= a.end * percent,
                "{name}, {options}: QEMU's data end at {}, ours at {}",
                a.end,
                b.end
            );
        }
    }
}
