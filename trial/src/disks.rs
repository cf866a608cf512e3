//! A disk in use: writes of all kinds, discards under each policy, snapshots that come and go, sizes that change.

use std::sync::Arc;

use qcowkit_core::crypto::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, LuksFormat, NewVolume, Secret};
use qcowkit_core::image::{CreateOptions, OpenOptions};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, RetainedOp, Unref};

use super::cuts::check_cuts;
use super::outcome::Outcome;
use super::session::{Scenario, record};

fn create(version: u32, cluster_size: u64, refcount_bits: u32, extended_l2: bool) -> CreateOptions {
    CreateOptions { version, cluster_size, refcount_bits, extended_l2, ..CreateOptions::default() }
}

fn open(unref: Unref, allocation: AllocationPolicy, quarantine_bytes: u64) -> OpenOptions {
    OpenOptions::default().with_policy(DiscardPolicy { unref, ..DiscardPolicy::default() }).with_metadata(
        MetadataOptions {
            allocation,
            quarantine_bytes,
            slice_bytes: 512,
            // Eight slices: commits also happen between flushes.
            cache_bytes: 8 * 512,
            ..MetadataOptions::default()
        },
    )
}

fn over_backing(create: CreateOptions) -> CreateOptions {
    CreateOptions { backing_file: Some("base".into()), backing_format: Some("raw".into()), ..create }
}

const UNREFS: [Unref; 3] = [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu];
const POLICIES: [(AllocationPolicy, u64); 3] =
    [(AllocationPolicy::Qemu, 0), (AllocationPolicy::FillHoles, 1 << 14), (AllocationPolicy::Near, u64::MAX)];

/// The scenario for a seed: small clusters, wide refcounts, so that tables grow soon.
///
/// # Panics
/// When there is none of this name.
#[must_use]
pub fn scenario(name: &'static str, seed: u64) -> Scenario {
    let unref = UNREFS[(seed % 3) as usize];
    let (allocation, quarantine) = POLICIES[(seed / 3 % 3) as usize];
    let mut open = open(unref, allocation, quarantine);
    open.policy.retained_op = [RetainedOp::Punch, RetainedOp::ZeroRange, RetainedOp::None][(seed / 9 % 3) as usize];
    open.metadata.pass_discard_other = seed.is_multiple_of(2);
    let plain = Scenario {
        name,
        create: create(3, 512, 64, false),
        open,
        // The larger one has more L2 slices than the cache: commits happen in the middle of operations.
        size: if seed.is_multiple_of(4) { 400_384 } else { 100_352 },
        backing: 0,
        snapshot: false,
        snapshots: false,
        resize: false,
        steps: 60,
        preallocated: 0,
    };
    match name {
        "growth" => plain,
        "narrow" => Scenario { create: create(3, 512, 1 << (seed / 5 % 6), false), ..plain },
        "version-2" => Scenario { create: create(2, 512, 16, false), ..plain },
        "backing" => Scenario { create: over_backing(create(3, 1024, 16, false)), backing: 70_001, ..plain },
        "backing-2" => Scenario { create: over_backing(create(2, 512, 16, false)), backing: 120_000, ..plain },
        "subclusters" => {
            let (create, backing) = if seed.is_multiple_of(2) {
                (create(3, 16 << 10, 16, true), 0)
            } else {
                (over_backing(create(3, 16 << 10, 64, true)), 250_000)
            };
            Scenario { create, size: 300_032, backing, ..plain }
        }
        "snapshot" => Scenario { create: create(3, 512, 32, false), snapshot: true, ..plain },
        "snapshot-backing" => {
            Scenario { create: over_backing(create(3, 1024, 8, false)), backing: 70_001, snapshot: true, ..plain }
        }
        "resize" => Scenario { create: create(3, 512 << (seed % 4), 16, false), resize: true, ..plain },
        "resize-backing" => {
            Scenario { create: over_backing(create(3, 4096, 16, false)), backing: 180_224, resize: true, ..plain }
        }
        "snapshots" => {
            let widths = [16, 2, 8, 64, 4, 32];
            let refcount_bits = widths[(seed % 6) as usize];
            Scenario { create: create(3, 512, refcount_bits, false), snapshots: true, size: 100_352, ..plain }
        }
        "snapshots-backing" => {
            let create = if seed.is_multiple_of(2) { create(3, 1024, 16, false) } else { create(2, 1024, 16, false) };
            Scenario { create: over_backing(create), backing: 70_001, snapshots: true, size: 100_352, ..plain }
        }
        "snapshots-subclusters" => {
            Scenario { create: create(3, 16 << 10, 16, true), snapshots: true, size: 300_032, ..plain }
        }
        "snapshots-resize" => {
            Scenario { create: create(3, 512 << (seed % 4), 16, false), snapshots: true, resize: true, ..plain }
        }
        "resize-snapshot" => {
            Scenario { create: create(3, 512 << (seed % 4), 16, false), snapshot: true, resize: true, ..plain }
        }
        "resize-subclusters" => {
            let create = create(3, 16 << 10, 16, true);
            let (create, backing) = if seed.is_multiple_of(2) { (create, 0) } else { (over_backing(create), 250_000) };
            Scenario { create, size: 300_032, backing, resize: true, ..plain }
        }
        "resize-2" => {
            Scenario { create: over_backing(create(2, 1024, 16, false)), backing: 80_000, resize: true, ..plain }
        }
        "encrypted" => {
            let create = CreateOptions { encryption: Some(volume()), ..create(3, 512 << (seed % 3), 16, false) };
            let open = plain.open.clone().with_key(Secret::from("key"));
            Scenario { create, open, resize: seed.is_multiple_of(2), ..plain }
        }
        // A cluster of 512 bytes holds the L1 table of 2 MiB: beyond that it moves.
        "l1-table" => Scenario { size: 1_900_032, resize: true, steps: 24, ..plain },
        "refcount-table" => Scenario { size: 3 << 20, preallocated: 1_950_000 / 512 * 512, steps: 80, ..plain },
        other => panic!("no scenario {other}"),
    }
}

/// A volume that opens fast: what is cut are the writes of the guest.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn volume() -> Arc<NewVolume> {
    let spec = CipherSpec { algorithm: CipherAlgorithm::Aes128, mode: CipherMode::Cbc, ..CipherSpec::default() };
    let format = LuksFormat { spec, hash: HashAlgorithm::Sha256, slot_iterations: 1, master_key_iterations: 1 };
    Arc::new(format.make(&Secret::from("key"), &mut noise(0)).unwrap())
}

/// What stands for random bytes.
pub fn noise(first: u8) -> impl FnMut(&mut [u8]) -> qcowkit_core::Result<()> {
    let mut next = first;
    move |bytes: &mut [u8]| {
        bytes.iter_mut().for_each(|byte| {
            next = next.wrapping_mul(29).wrapping_add(7);
            *byte = next;
        });
        Ok(())
    }
}

/// One session of a scenario, and judged states of it.
#[must_use]
pub fn trial(name: &'static str, seed: u64, budget: usize) -> Outcome {
    let scenario = scenario(name, seed);
    check_cuts(&scenario, &record(&scenario, seed), seed, budget)
}
