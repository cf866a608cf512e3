//! A map told in long runs says what a map told cluster by cluster says.

use qcowkit_core::Error;
use qcowkit_core::image::{Content, CreateOptions, Extent, Image, OpenOptions};
use qcowkit_core::storage::MemoryStorage;

const DISK: u64 = 24 << 20;

/// What an extent says of one byte of it.
fn at(extent: &Extent, offset: u64) -> (u32, Option<u64>, &'static str) {
    let skip = offset - extent.guest_offset;
    match extent.content {
        Content::Data { host_offset } => (extent.depth, Some(host_offset.get() + skip), "data"),
        Content::Zero { host_offset } => (extent.depth, host_offset.map(|host| host.get() + skip), "zero"),
        Content::Compressed { range, .. } => (extent.depth, Some(range.offset.get()), "compressed"),
        Content::Unallocated => (extent.depth, None, "unallocated"),
    }
}

fn check(options: &CreateOptions, seed: u64) {
    let mut image = Image::create(MemoryStorage::new(), DISK, options).unwrap();
    let mut state = seed;
    let mut random = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % bound
    };
    for _ in 0..60 {
        let length = (1 + random(40)) * 16384;
        let offset = random((DISK - length) / 512) * 512;
        match random(4) {
            0 | 1 => image.write_at(offset, &vec![7; usize::try_from(length).unwrap()]).unwrap(),
            2 => image.discard(offset, length).unwrap(),
            _ => image.write_zeroes(offset, length, random(2) == 0).unwrap(),
        }
    }
    let mut image = Image::open(image.close().unwrap(), OpenOptions::default().read_only()).unwrap();
    visited(&mut image);
    let step = image.geometry().subcluster_size();
    let extents = image.map(0, DISK).unwrap();
    assert!(extents.len() > 10);
    let mut end = 0;
    for extent in extents {
        assert_eq!(extent.guest_offset, end);
        end += extent.length;
        for offset in (extent.guest_offset..end).step_by(usize::try_from(step).unwrap()) {
            let small = image.next_extent(offset, step.min(end - offset)).unwrap();
            assert_eq!(at(&small, offset), at(&extent, offset), "guest offset {offset:#x}");
        }
    }
    assert_eq!(end, DISK);
}

/// One walk gives the extents that are asked for one by one, of any range, and breaks off where it is told.
fn visited(image: &mut Image<MemoryStorage>) {
    for (offset, length) in [(0, DISK), (1 << 20, 5 << 20), (4608, 1536), (DISK - 512, 512), (77, 0)] {
        for chain in [true, false] {
            let mut one_by_one = Vec::new();
            let mut at = offset;
            while at < offset + length {
                let extent = image.next_extent(at, offset + length - at).unwrap();
                at += extent.length;
                one_by_one.push(extent);
            }
            let mut walked = Vec::new();
            let visit = |extent| {
                walked.push(extent);
                Ok(())
            };
            image.visit_extents(offset, length, chain, visit).unwrap();
            assert_eq!(walked, one_by_one);
        }
    }
    let mut seen = 0;
    let stopped = image.visit_extents(0, DISK, true, |_| {
        seen += 1;
        if seen < 3 { Ok(()) } else { Err(Error::invalid("enough")) }
    });
    assert_eq!((seen, stopped.is_err()), (3, true));
    assert!(image.visit_extents(0, DISK + 1, true, |_| Ok(())).is_err());
}

#[test]
fn long_runs_are_runs_of_equal_clusters() {
    for seed in 0..4 {
        for cluster_size in [512, 4096, 65536] {
            check(&CreateOptions { cluster_size, ..CreateOptions::default() }, seed);
        }
        check(&CreateOptions { extended_l2: true, ..CreateOptions::default() }, seed);
    }
}
