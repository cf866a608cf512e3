//! Files that are shorter than their tables say, as after a copy that was interrupted: what is left is read rightly, what
//! is gone reads as zeros or fails, a check says so, and neither use nor repair makes it worse.

use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::operations::repair::apply;
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{MemoryStorage, Storage};
use qcowkit_trial::repairs::make_plan;

const SIZE: u64 = 200 << 10;
const STEP: u64 = 512;

fn image(cluster_size: u64, extended_l2: bool) -> Vec<u8> {
    let create = CreateOptions { cluster_size, extended_l2, ..CreateOptions::default() };
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create).unwrap();
    image.write_at(0, &[1; 9000]).unwrap();
    image.write_compressed(32_768, &[2; 16_384]).unwrap();
    image.write_at(70_000, &[3; 20_000]).unwrap();
    image.create_snapshot(&NewSnapshot { name: "s".into(), ..NewSnapshot::default() }).unwrap();
    image.write_at(1000, &[4; 3000]).unwrap();
    image.write_at(150_000, &[5; 10_000]).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

/// The disk by pieces of 512 bytes; `None` for what cannot be read. Nothing where it does not open.
fn pieces<S: Storage>(storage: S) -> Option<Vec<Option<Vec<u8>>>> {
    let mut image = Image::open(storage, OpenOptions::default().read_only()).ok()?;
    let piece = |n| {
        let mut bytes = vec![0; STEP as usize];
        image.read_at(n * STEP, &mut bytes).ok().map(|()| bytes)
    };
    Some((0..SIZE / STEP).map(piece).collect())
}

/// Pieces that are right in `now` and wrong or gone in `later`.
fn lost(whole: &[Option<Vec<u8>>], now: &[Option<Vec<u8>>], later: &[Option<Vec<u8>>], but: &[usize]) -> Option<usize> {
    (0..whole.len()).find(|&n| now[n] == whole[n] && later[n] != whole[n] && !but.contains(&n))
}

#[test]
fn a_short_file_shows_what_is_left_and_says_what_is_not() {
    let (mut opened, mut found) = (0, 0);
    for (cluster_size, extended) in [(512, false), (4096, false), (16 << 10, true)] {
        let bytes = image(cluster_size, extended);
        let whole = pieces(MemoryStorage::from_bytes(&bytes)).unwrap();
        // Within clusters, too.
        for length in (0..bytes.len()).step_by(cluster_size as usize / 2) {
            let short = MemoryStorage::from_bytes(&bytes[..length]);
            let what = format!("{length} of {} bytes, clusters of {cluster_size}", bytes.len());
            let Some(now) = pieces(&short) else { continue };
            opened += 1;
            let other = (0..whole.len()).find(|&n| now[n] != whole[n]);
            for n in 0..whole.len() {
                let (Some(now), Some(whole)) = (&now[n], &whole[n]) else { continue };
                let is_left = now.iter().zip(whole).all(|(now, whole)| *now == 0 || now == whole);
                assert!(is_left, "{what}: piece {n} is another");
            }
            let report = check(&short, &read_header(&short).unwrap(), &mut |_| ()).unwrap();
            let cut_inside = !(length as u64).is_multiple_of(cluster_size);
            // A cluster that is cut short is no error to a check, as it is none to QEMU: its end reads as zeros.
            assert!(other.is_none() || !report.is_clean() || cut_inside, "{what}: piece {other:?} and no finding");
            found += u64::from(!report.is_clean());
            let repaired = MemoryStorage::from_bytes(&bytes[..length]);
            if let Ok(plan) = make_plan(&repaired) {
                apply(&plan, &repaired, false).unwrap();
                let later = pieces(&repaired).unwrap_or_else(|| panic!("{what}: repaired, it does not open"));
                assert_eq!(lost(&whole, &now, &later, &[]), None, "{what}: repaired");
            }
            // Written on: refused, or nothing else changes.
            let written = 20_000 / STEP as usize..25_000 / STEP as usize;
            if let Ok(mut image) = Image::open(&short, OpenOptions::default()) {
                let done = image.write_at(written.start as u64 * STEP, &vec![9; written.len() * STEP as usize]);
                let closed = image.close();
                let later = pieces(&short).unwrap_or_else(|| panic!("{what}: written, it does not open"));
                let but: Vec<usize> = written.clone().collect();
                assert_eq!(lost(&whole, &now, &later, &but), None, "{what}: {done:?} {:?}", closed.err());
                if done.is_ok() && later[written.start].is_some() {
                    assert!(but.iter().all(|&n| later[n] == Some(vec![9; STEP as usize])), "{what}: {done:?}");
                }
            }
        }
    }
    println!("{opened} opened, {found} with findings");
    assert!(opened > 100 && found > 80, "{opened} opened, {found} with findings");
}
