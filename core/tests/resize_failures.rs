//! Changing the size on storage that fails: the error reaches the caller, the disk has its old or its new size, what lies
//! below both is there, and the image goes on or says that it does not. Power cuts are in `power_cuts.rs`.

use qcowkit_core::ErrorKind;
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions, Preallocation, SnapshotSelector};
use qcowkit_core::storage::{FailingStorage, MemoryStorage};
use qcowkit_trial::failures::{Struck, each_fault};
use qcowkit_trial::walk::walk;

const SIZE: usize = 200 << 10;

/// An image with clusters of 512 bytes, data, zeros, packed clusters, and a snapshot if asked; and its disk.
fn base(extended_l2: bool, snapshot: bool) -> (Vec<u8>, Vec<u8>) {
    let cluster_size = if extended_l2 { 16 << 10 } else { 512 };
    let create = CreateOptions { cluster_size, extended_l2, refcount_bits: 64, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), SIZE as u64, &create).unwrap();
    image.write_at(0, &[1; 30_000]).unwrap();
    image.write_compressed(32_768, &[2; 16_384]).unwrap();
    image.write_at(100_000, &[3; 60_000]).unwrap();
    if snapshot {
        image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    }
    image.write_at(120_000, &[4; 20_000]).unwrap();
    image.write_zeroes(140_000, 10_000, false).unwrap();
    let mut disk = vec![0; SIZE];
    image.read_at(0, &mut disk).unwrap();
    (image.close().unwrap().to_vec().unwrap(), disk)
}

/// What is below `kept` is as it was, what is above is as it was or zeros.
fn judge(bytes: &[u8], disk: &[u8], sizes: [usize; 2], snapshot: Option<&[u8]>) -> Result<(), String> {
    walk(bytes)?;
    let storage = MemoryStorage::from_bytes(bytes);
    let mut image = Image::open(&storage, OpenOptions::default().read_only()).map_err(|e| e.to_string())?;
    let size = image.virtual_size() as usize;
    if !sizes.contains(&size) {
        return Err(format!("the size is {size}"));
    }
    let mut got = vec![0; size];
    image.read_at(0, &mut got).map_err(|e| e.to_string())?;
    let kept = sizes[0].min(sizes[1]);
    let wrong = got.iter().enumerate().position(|(at, byte)| {
        let old = disk.get(at).copied().unwrap_or(0);
        *byte != old && (at < kept || *byte != 0)
    });
    if let Some(at) = wrong {
        return Err(format!("byte {at:#x} is {}", got[at]));
    }
    if let Some(expected) = snapshot {
        let options = OpenOptions::default().of_snapshot(SnapshotSelector::Name("s".into()));
        let mut view = Image::open(&storage, options).map_err(|e| format!("the snapshot: {e}"))?;
        let mut got = vec![0; view.virtual_size() as usize];
        view.read_at(0, &mut got).map_err(|e| format!("the snapshot: {e}"))?;
        if got != expected {
            return Err("the snapshot changed".into());
        }
    }
    Ok(())
}

struct Base {
    bytes: Vec<u8>,
    disk: Vec<u8>,
    snapshot: Option<Vec<u8>>,
}

/// One change of the size while a rule holds; whether it struck.
fn run(base: &Base, size: usize, mode: Preallocation, fault: &Struck) -> Result<bool, String> {
    let storage = MemoryStorage::from_bytes(&base.bytes);
    let mut image = Image::open(FailingStorage::new(&storage), OpenOptions::default()).unwrap();
    image.storage().fail(fault.rule.clone());
    let done = image.resize_with(size as u64, mode);
    let struck = image.storage().failures() > 0;
    image.storage().heal();
    fault.answered(&done, struck)?;
    let snapshot = base.snapshot.as_deref();
    judge(&storage.to_vec().unwrap(), &base.disk, [SIZE, size], snapshot)?;
    let poisoned = done.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Poisoned(_)));
    let kept = size.min(SIZE);
    if poisoned {
        if image.write_at(0, &[9]).is_ok() {
            return Err("a write on a poisoned image".into());
        }
    } else {
        // Usable, and what failed can be tried again.
        if done.is_err() && image.virtual_size() != size as u64 {
            image.resize_with(size as u64, mode).map_err(|error| format!("again: {error}"))?;
        }
        image.write_at(kept as u64 - 700, &[9; 700]).map_err(|error| format!("not usable: {error}"))?;
        image.flush().map_err(|error| format!("not usable: {error}"))?;
        drop(image);
        let mut disk = base.disk.clone();
        disk[kept - 700..kept].fill(9);
        judge(&storage.to_vec().unwrap(), &disk, [size, size], snapshot)?;
    }
    Ok(struck)
}

#[test]
fn every_call_of_a_resize_may_fail() {
    let mut cases = 0;
    for (extended, with_snapshot) in [(false, false), (false, true), (true, false)] {
        let (bytes, disk) = base(extended, with_snapshot);
        let snapshot = with_snapshot.then(|| {
            let options = OpenOptions::default().of_snapshot(SnapshotSelector::Name("s".into()));
            let mut view = Image::open(MemoryStorage::from_bytes(&bytes), options).unwrap();
            let mut content = vec![0; SIZE];
            view.read_at(0, &mut content).unwrap();
            content
        });
        let base = Base { bytes, disk, snapshot };
        let sizes = [
            (110 << 10, Preallocation::Off),
            (35 << 10, Preallocation::Off),
            // The L1 table grows out of its place, and refcounts.
            (8 << 20, Preallocation::Off),
            (300 << 10, Preallocation::Metadata),
            (260 << 10, Preallocation::Falloc),
            (260 << 10, Preallocation::Full),
        ];
        for (size, mode) in sizes {
            // Tables that are in memory are not read again; a disk that grows within its L1 table writes the header alone.
            cases += each_fault(&["read"], |fault| {
                run(&base, size, mode, fault).map_err(|why| format!("to {size}, {mode:?}, {with_snapshot}: {why}"))
            });
        }
    }
    println!("{cases} failures");
    assert!(cases > 300, "{cases}");
}
