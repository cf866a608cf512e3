//! Clusters that somebody may be reading without a lock are neither punched nor reused.

use qcowkit_core::Result;
use qcowkit_core::image::{Content, CreateOptions, Extent, Image, OpenOptions, read_header};
use qcowkit_core::metadata::Epochs;
use qcowkit_core::operations::check::check;
use qcowkit_core::storage::MemoryStorage;

const CLUSTER: u64 = 1 << 16;

fn image() -> Image<MemoryStorage> {
    Image::create(MemoryStorage::new(), 64 << 20, &CreateOptions::default()).unwrap()
}

fn host_of(image: &mut Image<MemoryStorage>, guest: u64) -> (Extent, u64) {
    let extent = image.next_extent(guest, CLUSTER).unwrap();
    let Content::Data { host_offset } = extent.content else { panic!("{extent:?}") };
    (extent, host_offset.get())
}

fn read(image: &Image<MemoryStorage>, extent: &Extent) -> Vec<u8> {
    let mut bytes = vec![0; extent.length as usize];
    image.read_extent(extent, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_being_read_stays_until_the_reader_is_done() -> Result<()> {
    let mut image = image();
    image.write_at(0, &vec![1; CLUSTER as usize])?;
    image.write_at(CLUSTER, &vec![2; CLUSTER as usize])?;
    image.flush()?;
    let (extent, host) = host_of(&mut image, 0);
    // A reader has ticket 0, and everything from now on belongs to epoch 1.
    image.set_epochs(Epochs { current: 1, settled: 0 });
    image.discard(0, CLUSTER)?;
    image.flush()?;
    let cluster = image.geometry().host_cluster(qcowkit_core::format::HostOffset::new(host));
    assert_eq!(image.refcount(cluster)?, 1);
    assert_eq!(read(&image, &extent), vec![1; CLUSTER as usize], "neither punched");
    for n in 0..20 {
        image.write_at((10 + n) * CLUSTER, &vec![3; CLUSTER as usize])?;
        assert_ne!(host_of(&mut image, (10 + n) * CLUSTER).1, host, "nor reused");
    }
    image.flush()?;
    assert_eq!(read(&image, &extent), vec![1; CLUSTER as usize]);
    // What was released before the reader came is not held back.
    let (_, before) = host_of(&mut image, CLUSTER);
    image.set_epochs(Epochs { current: 2, settled: 2 });
    image.discard(CLUSTER, CLUSTER)?;
    image.flush()?;
    for host in [host, before] {
        let cluster = image.geometry().host_cluster(qcowkit_core::format::HostOffset::new(host));
        assert_eq!(image.refcount(cluster)?, 0);
    }
    assert_eq!(read(&image, &extent), vec![0; CLUSTER as usize], "punched now");
    image.write_at(40 * CLUSTER, &vec![4; CLUSTER as usize])?;
    assert_eq!(host_of(&mut image, 40 * CLUSTER).1, host, "and reused");
    let storage = image.close()?;
    let report = check(&storage, &read_header(&storage)?, &mut |_| ())?;
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    Ok(())
}

/// A long reader does not have every allocation commit for nothing.
#[test]
fn a_full_quarantine_that_is_held_costs_no_barriers() -> Result<()> {
    use qcowkit_core::metadata::MetadataOptions;
    use qcowkit_core::storage::CountingStorage;
    let options = MetadataOptions { quarantine_bytes: 0, ..MetadataOptions::default() };
    let made = Image::create(MemoryStorage::new(), 64 << 20, &CreateOptions::default())?.close()?;
    let mut image = Image::open(CountingStorage::new(made), OpenOptions::default().with_metadata(options))?;
    image.write_at(0, &vec![1; CLUSTER as usize])?;
    image.flush()?;
    image.set_epochs(Epochs { current: 1, settled: 0 });
    image.discard(0, CLUSTER)?;
    image.write_at(CLUSTER, &[1])?;
    image.storage().reset();
    for n in 2..100 {
        image.write_at(n * CLUSTER, &[1])?;
    }
    assert_eq!(image.storage().counts().barrier.calls, 0);
    image.set_epochs(Epochs { current: 2, settled: 2 });
    image.write_at(100 * CLUSTER, &[1])?;
    assert!(image.storage().counts().barrier.calls > 0);
    Ok(())
}
