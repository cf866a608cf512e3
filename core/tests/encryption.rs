//! Encrypted images: what is written comes back with the key, and with nothing else.
#![cfg(feature = "crypto")]

use std::sync::Arc;

use qcowkit_core::crypto::{
    CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, KeyRequest, KeySource, Keyring, LuksFormat, NewVolume,
    Secret, SlotChange, VectorGenerator,
};
use qcowkit_core::image::{
    Content, CreateOptions, Image, Layer, NewSnapshot, OpenOptions, Preallocation, SnapshotSelector,
};
use qcowkit_core::operations::check;
use qcowkit_core::storage::{MemoryStorage, ReadStorage, Storage};
use qcowkit_core::{Error, ErrorKind, Result};

const SIZE: u64 = 1 << 20;

/// Not random at all, but never the same twice.
fn noise(seed: u64) -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut state = seed * 2 + 0x9e37_79b9_7f4a_7c15;
    move |bytes: &mut [u8]| {
        for byte in bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
        Ok(())
    }
}

fn volume(spec: CipherSpec, secret: &str) -> Arc<NewVolume> {
    let format = LuksFormat { spec, hash: HashAlgorithm::Sha1, slot_iterations: 3, master_key_iterations: 3 };
    Arc::new(format.make(&Secret::from(secret), &mut noise(secret.len() as u64)).unwrap())
}

fn create(secret: &str) -> CreateOptions {
    CreateOptions { encryption: Some(volume(CipherSpec::default(), secret)), ..CreateOptions::default() }
}

fn with_key(secret: &str) -> OpenOptions {
    OpenOptions::default().with_key(Secret::from(secret))
}

fn read<S: Storage>(image: &mut Image<S>, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    image.read_at(offset, &mut bytes).unwrap();
    bytes
}

fn refused<T>(result: Result<T>) -> Error {
    result.err().expect("it should be refused")
}

#[test]
fn nothing_but_the_key_opens() {
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create("right")).unwrap();
    image.write_at(100, b"plain text").unwrap();
    let storage = image.close().unwrap();
    let bytes = storage.to_vec().unwrap();
    assert!(!bytes.windows(10).any(|window| window == b"plain text"));

    let mut image = Image::open(&storage, with_key("right").read_only()).unwrap();
    assert_eq!(read(&mut image, 99, 12), b"\0plain text\0");
    assert!(!image.is_locked());

    let wrong = refused(Image::open(&storage, with_key("wrong")));
    assert!(matches!(wrong.kind(), ErrorKind::WrongKey(_)), "{wrong}");

    // Without a key: metadata only.
    let mut image = Image::open(&storage, OpenOptions::default()).unwrap();
    assert!(image.is_locked());
    assert!(matches!(image.next_extent(0, SIZE).unwrap().content, Content::Data { .. }));
    for refusal in [image.read_at(0, &mut [0]), image.write_at(0, &[0])] {
        assert!(matches!(refused(refusal).kind(), ErrorKind::Encrypted(_)));
    }
    assert_eq!(read(&mut image, 0x20000, 4), [0; 4]);
    image.discard(0, SIZE).unwrap();
    image.preallocate(0, SIZE / 2, Preallocation::Metadata).unwrap();
    assert!(refused(image.preallocate(0, SIZE, Preallocation::Full)).to_string().contains("key"));
    assert_eq!(read(&mut image, 0, 10), [0; 10]);
    image.close().unwrap();
    let report = check(&storage, &qcowkit_core::image::read_header(&storage).unwrap(), &mut |_| {}).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    // The bytes on storage are the guest's for nobody.
    assert!(Image::open(&storage, with_key("right").read_only()).unwrap().data_at_depth(0).is_err());
}

/// Reads and writes of any alignment against a plain array, over every kind of cluster.
#[test]
fn every_alignment_comes_back() {
    let specs = [
        CipherSpec::default(),
        CipherSpec {
            algorithm: CipherAlgorithm::Cast5,
            mode: CipherMode::Cbc,
            vectors: VectorGenerator::Essiv(HashAlgorithm::Md5),
        },
    ];
    let shapes = [(3u32, 512u64, false), (3, 4096, false), (2, 1024, false), (3, 16 << 10, true)];
    for (n, (version, cluster_size, extended_l2)) in shapes.into_iter().enumerate() {
        let encryption = Some(volume(specs[n % 2], "k"));
        let options = CreateOptions { version, cluster_size, extended_l2, encryption, ..CreateOptions::default() };
        let mut image = Image::create(MemoryStorage::new(), SIZE, &options).unwrap();
        let mut model = vec![0u8; SIZE as usize];
        let mut random = noise(n as u64);
        let mut number = |end: u64| {
            let mut bytes = [0; 8];
            random(&mut bytes).unwrap();
            u64::from_le_bytes(bytes) % end
        };
        for step in 0..400u64 {
            let unit = [1, 512, cluster_size][number(3) as usize];
            let offset = number(SIZE) / unit * unit;
            let most = [20, 2000, 3 * cluster_size][number(3) as usize];
            let length = (number(most) + 1).next_multiple_of(unit).min(SIZE - offset);
            let range = offset as usize..(offset + length) as usize;
            match number(8) {
                0 => {
                    image.write_zeroes(offset, length, step % 2 == 0).unwrap();
                    model[range].fill(0);
                }
                1 => {
                    image.discard(offset / cluster_size * cluster_size, cluster_size).unwrap();
                    let start = (offset / cluster_size * cluster_size) as usize;
                    model[start..start + cluster_size as usize].fill(0);
                }
                2 => assert_eq!(read(&mut image, offset, length as usize), model[range]),
                _ => {
                    let byte = step as u8 | 1;
                    let data = vec![byte; length as usize];
                    let plan = image.prepare_write(offset, length).unwrap();
                    image.write_planned(&plan, &data).unwrap();
                    image.commit_write(plan).unwrap();
                    model[range].fill(byte);
                }
            }
            if step % 50 == 49 {
                let storage = image.close().unwrap();
                image = Image::open(storage, with_key("k")).unwrap();
                assert!(read(&mut image, 0, SIZE as usize) == model, "{options:?} step {step}");
            }
        }
    }
}

#[test]
fn each_layer_has_its_own_key() {
    let base = Image::create(MemoryStorage::new(), SIZE, &create("base key")).unwrap();
    let mut base = base;
    base.write_at(0, &[7; 100_000]).unwrap();
    let base = base.close().unwrap();
    let named =
        CreateOptions { backing_file: Some("base".into()), backing_format: Some("qcow2".into()), ..create("top") };
    let top = Image::create(MemoryStorage::new(), SIZE, &named).unwrap().close().unwrap();
    let open = |secret: &str| Image::open(&top, with_key(secret).metadata_only()).unwrap();
    let below = || Layer::Image(Box::new(Image::open(&base, with_key("base key").read_only()).unwrap()));
    let mut image = open("top").with_backing(below());
    assert_eq!(read(&mut image, 99_990, 20), [[7u8; 10], [0; 10]].concat());
    // Copied up under the other key, and from one sector to another.
    image.write_at(70_001, b"x").unwrap();
    image.close().unwrap();
    let mut image = open("top").with_backing(below());
    assert_eq!(read(&mut image, 70_000, 3), [7, b'x', 7]);
    assert_eq!(read(&mut image, 65_536, 34_464).iter().filter(|&&byte| byte == 7).count(), 34_463);
}

#[test]
fn keys_are_asked_for_until_one_fits() {
    struct Asked(std::sync::Mutex<Vec<(u32, u32)>>);
    impl KeySource for Asked {
        fn key(&self, request: &KeyRequest<'_>) -> Result<Option<Secret>> {
            self.0.lock().unwrap().push((request.depth, request.attempt));
            Ok(["no", "neither", "right"].get(request.attempt as usize).map(|text| Secret::from(*text)))
        }
    }
    let storage = Image::create(MemoryStorage::new(), SIZE, &create("right")).unwrap().close().unwrap();
    let asked = Arc::new(Asked(std::sync::Mutex::default()));
    let options = OpenOptions { keys: Some(asked.clone()), ..OpenOptions::default() };
    assert!(!Image::open(&storage, options.clone()).unwrap().is_locked());
    assert_eq!(*asked.0.lock().unwrap(), [(0, 0), (0, 1), (0, 2)]);
    let other = Image::create(MemoryStorage::new(), SIZE, &create("else")).unwrap().close().unwrap();
    assert!(matches!(refused(Image::open(&other, options)).kind(), ErrorKind::WrongKey(_)));
    // A ring without a key for this layer is as no ring.
    let ring = Keyring::new().with_layer(1, Secret::from("right"));
    let options = OpenOptions { keys: Some(Arc::new(ring)), ..OpenOptions::default() };
    assert!(Image::open(&storage, options).unwrap().is_locked());
}

#[test]
fn preallocated_clusters_read_as_zeros() {
    for version in [2, 3] {
        for extended_l2 in [false, true] {
            if version == 2 && extended_l2 {
                continue;
            }
            for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
                let options = CreateOptions { version, extended_l2, preallocation, ..create("k") };
                let mut image = Image::create(MemoryStorage::new(), SIZE, &options).unwrap();
                assert_eq!(read(&mut image, 0, SIZE as usize), vec![0; SIZE as usize], "{options:?}");
                image.write_at(700, &[5; 100]).unwrap();
                let mut image = Image::open(image.close().unwrap(), with_key("k")).unwrap();
                let mut expected = vec![0; SIZE as usize];
                expected[700..800].fill(5);
                assert_eq!(read(&mut image, 0, SIZE as usize), expected, "{options:?}");
            }
        }
    }
}

#[test]
fn growth_shows_zeros() {
    for preallocation in [Preallocation::Off, Preallocation::Metadata, Preallocation::Full] {
        let mut image = Image::create(MemoryStorage::new(), 70_144, &create("k")).unwrap();
        image.write_at(0, &[1; 70_144]).unwrap();
        image.resize_with(SIZE, preallocation).unwrap();
        let mut expected = vec![0; SIZE as usize];
        expected[..70_144].fill(1);
        assert!(read(&mut image, 0, SIZE as usize) == expected, "{preallocation:?}");
        image.resize(70_144 - 512).unwrap();
        image.resize(SIZE).unwrap();
        expected[70_144 - 512..].fill(0);
        assert!(read(&mut image, 0, SIZE as usize) == expected, "{preallocation:?}");
    }
}

#[test]
fn passwords_come_and_go() {
    let storage = Image::create(MemoryStorage::new(), SIZE, &create("first")).unwrap().close().unwrap();
    let mut image = Image::open(storage, with_key("first")).unwrap();
    let master = image.master_key().unwrap();
    let mut random = noise(9);
    let mut slots = image.key_slots().unwrap();
    slots.add(&master, &Secret::from("second"), None, 3, SlotChange::Careful, &mut random).unwrap();
    slots.erase(&[0], SlotChange::Careful, &mut random).unwrap();
    image.write_at(0, b"data").unwrap();
    let storage = image.close().unwrap();
    assert!(matches!(refused(Image::open(&storage, with_key("first"))).kind(), ErrorKind::WrongKey(_)));
    assert_eq!(read(&mut Image::open(&storage, with_key("second")).unwrap(), 0, 4), b"data");

    let locked = Image::open(&storage, OpenOptions::default()).unwrap();
    assert!(matches!(refused(locked.master_key()).kind(), ErrorKind::Encrypted(_)));
    let mut plain = Image::create(MemoryStorage::new(), SIZE, &CreateOptions::default()).unwrap();
    assert!(refused(plain.key_slots().map(drop)).to_string().contains("not encrypted"));
}

#[test]
fn what_would_not_be_encrypted_is_refused() {
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create("k")).unwrap();
    let packed = refused(image.write_compressed(0, &[0x55; 65_536]));
    assert!(packed.to_string().contains("not be encrypted"), "{packed}");
    assert!(format!("{image:?} {:?}", image.options()).len() < 2000);
    // A file cut short, so that key material is missing, is told from a wrong key.
    let storage = image.close().unwrap();
    storage.set_len(0x40000 + 1000).unwrap();
    assert!(matches!(Image::open(&storage, with_key("k")).unwrap_err().kind(), ErrorKind::Corrupt(_)));
    assert!(storage.len().unwrap() > 0);
}

#[test]
fn snapshots_need_the_key_for_their_data_alone() {
    let mut image = Image::create(MemoryStorage::new(), SIZE, &create("right")).unwrap();
    image.write_at(100, b"before").unwrap();
    let storage = image.close().unwrap();
    let new = NewSnapshot { name: "s".into(), ..NewSnapshot::default() };
    let selector = SnapshotSelector::Name("s".into());
    Image::open(&storage, OpenOptions::default()).unwrap().create_snapshot(&new).unwrap();
    let mut image = Image::open(&storage, with_key("right")).unwrap();
    image.write_at(100, b"after!").unwrap();
    image.flush().unwrap();
    drop(image);

    let mut view = Image::open(&storage, with_key("right").of_snapshot(selector.clone())).unwrap();
    assert_eq!(read(&mut view, 100, 6), b"before");
    let mut view = Image::open(&storage, OpenOptions::default().of_snapshot(selector.clone())).unwrap();
    assert!(matches!(refused(view.read_at(100, &mut [0; 6])).kind(), ErrorKind::Encrypted(_)));

    Image::open(&storage, OpenOptions::default()).unwrap().apply_snapshot(&selector).unwrap();
    Image::open(&storage, OpenOptions::default()).unwrap().delete_snapshot(&selector).unwrap();
    assert_eq!(read(&mut Image::open(&storage, with_key("right")).unwrap(), 100, 6), b"before");
    let area = qcowkit_core::operations::read_header(&storage).unwrap();
    assert!(check(&storage, &area, &mut |_| ()).unwrap().is_clean());
}
