use alloc::vec::Vec;

use super::*;
use crate::crypto::{CipherAlgorithm, CipherMode, KeySlots, MAX_KEY_ITERATIONS, SlotChange, VectorGenerator};
use crate::storage::{MemoryStorage, RecordingStorage, Storage, StorageEvent, epochs, replay};

const BASE: u64 = 0x3000;

/// Not random at all, but never the same twice.
fn noise() -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
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

fn format(spec: CipherSpec, hash: HashAlgorithm) -> LuksFormat {
    LuksFormat { spec, hash, slot_iterations: 5, master_key_iterations: 3 }
}

fn stored(volume: &NewVolume) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for (offset, bytes) in volume.parts() {
        storage.write_at(BASE + offset, &bytes).unwrap();
    }
    storage.set_len(BASE + volume.header_bytes()).unwrap();
    storage
}

fn header(storage: &MemoryStorage) -> LuksHeader {
    let mut bytes = [0; LuksHeader::LENGTH];
    storage.read_at(BASE, &mut bytes).unwrap();
    LuksHeader::parse(&bytes, BASE).unwrap()
}

fn open(storage: &MemoryStorage, length: u64, secret: &str) -> Result<Option<MasterKey>> {
    unlock(&header(storage), storage, (BASE, length), &Secret::from(secret), MAX_KEY_ITERATIONS)
}

#[test]
fn a_new_volume_opens_with_its_key_alone() {
    for hash in HashAlgorithm::ALL.iter().copied() {
        let spec = CipherSpec { algorithm: CipherAlgorithm::Serpent128, ..CipherSpec::default() };
        let volume = format(spec, hash).make(&Secret::from("right"), &mut noise()).unwrap();
        let storage = stored(&volume);
        let opened = open(&storage, volume.header_bytes(), "right").unwrap();
        assert_eq!(opened.as_ref(), Some(volume.master_key()), "{hash:?}");
        assert_eq!(open(&storage, volume.header_bytes(), "wrong").unwrap(), None);
        assert_eq!(open(&storage, volume.header_bytes(), "").unwrap(), None);
    }
}

#[test]
fn layout_and_limits_are_qemus() {
    let volume = format(CipherSpec::default(), HashAlgorithm::Sha256);
    // As in an image that QEMU made.
    assert_eq!(volume.header_bytes(), 2_068_480);
    let made = volume.make(&Secret::from("a"), &mut noise()).unwrap();
    let offsets: Vec<u64> = made.header.slots.iter().map(|slot| slot.key_offset).collect();
    assert_eq!(offsets[..3], [4096, 262_144, 520_192]);
    let uuid = made.header.uuid.as_str().unwrap();
    assert_eq!((uuid.len(), uuid.as_bytes()[14]), (36, b'4'));
    assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");

    let odd = CipherSpec { algorithm: CipherAlgorithm::Aes192, mode: CipherMode::Cbc, vectors: VectorGenerator::Plain };
    assert!(format(odd, HashAlgorithm::Sha1).validate().is_err());
    assert!(LuksFormat { slot_iterations: 0, ..volume }.validate().is_err());
    assert!(volume.make(&Secret::new([0xff].to_vec()), &mut noise()).is_err());
}

#[test]
fn hostile_headers_cost_nothing() {
    let volume = format(CipherSpec::default(), HashAlgorithm::Sha256).make(&Secret::from("a"), &mut noise()).unwrap();
    let storage = stored(&volume);
    let good = header(&storage);
    let length = volume.header_bytes();
    let try_with = |change: &dyn Fn(&mut LuksHeader)| {
        let mut header = good.clone();
        change(&mut header);
        unlock(&header, &storage, (BASE, length), &Secret::from("a"), 1000).unwrap_err()
    };
    let limit = |error: &Error| matches!(error.kind(), ErrorKind::Limit(_));
    assert!(limit(&try_with(&|header| header.slots[0].iterations = u32::MAX)));
    assert!(limit(&try_with(&|header| header.master_key_iterations = 1001)));
    for change in [
        &(|header: &mut LuksHeader| header.slots[0].iterations = 0) as &dyn Fn(&mut LuksHeader),
        &|header| header.master_key_iterations = 0,
        &|header| header.slots[0].stripes = u32::MAX,
        &|header| header.slots[0].stripes = 0,
        &|header| header.slots[0].key_offset = 0,
        &|header| header.slots[0].key_offset = u64::from(u32::MAX) * 512,
        &|header| header.slots[0].key_offset = length - 512,
    ] {
        assert!(matches!(try_with(change).kind(), ErrorKind::Corrupt(_)));
    }
    for change in [
        &(|header: &mut LuksHeader| header.key_bytes = u32::MAX) as &dyn Fn(&mut LuksHeader),
        &|header| header.key_bytes = 0,
        &|header| header.cipher = Name::from("rot13"),
        &|header| header.mode = Name::from("xts-random"),
        &|header| header.hash = Name::from("crc32"),
    ] {
        let error = try_with(change);
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
        assert_eq!(error.site().host_offset, Some(BASE));
    }
}

#[test]
fn slots_are_added_and_erased() {
    let volume = format(CipherSpec::default(), HashAlgorithm::Sha1).make(&Secret::from("one"), &mut noise()).unwrap();
    let (storage, length) = (stored(&volume), volume.header_bytes());
    let mut random = noise();
    let mut slots = KeySlots::read(&storage, (BASE, length)).unwrap();
    let master = volume.master_key();
    for n in 1..8 {
        let secret = Secret::from(alloc::format!("key {n}").as_str());
        assert_eq!(slots.add(master, &secret, None, 3, SlotChange::Careful, &mut random).unwrap(), n);
    }
    let more = slots.add(master, &Secret::from("more"), None, 3, SlotChange::Careful, &mut random).unwrap_err();
    assert!(matches!(more.kind(), ErrorKind::NoSpace(_)));
    assert!(slots.add(master, &Secret::from("more"), Some(3), 3, SlotChange::Careful, &mut random).is_err());
    assert!(slots.add(master, &Secret::from("more"), Some(8), 3, SlotChange::Force, &mut random).is_err());
    assert_eq!(slots.add(master, &Secret::from("more"), Some(3), 3, SlotChange::Force, &mut random).unwrap(), 3);
    assert_eq!(slots.opened_by(&Secret::from("more"), 100).unwrap(), [3]);
    for (secret, fits) in [("one", true), ("key 3", false), ("key 6", true), ("more", true)] {
        assert_eq!(open(&storage, length, secret).unwrap().as_ref() == Some(master), fits, "{secret}");
    }

    slots.erase(&[0, 1, 2, 4, 5, 7], SlotChange::Careful, &mut random).unwrap();
    assert_eq!(*slots.header(), header(&storage));
    assert_eq!(open(&storage, length, "one").unwrap(), None);
    assert!(slots.erase(&[3, 6], SlotChange::Careful, &mut random).is_err());
    assert!(slots.erase(&[9], SlotChange::Force, &mut random).is_err());
    assert!(open(&storage, length, "key 6").unwrap().is_some());
    slots.erase(&[3, 6], SlotChange::Force, &mut random).unwrap();
    assert_eq!(open(&storage, length, "key 6").unwrap(), None);
}

/// Every prefix of the writes, and every choice of those since the last barrier, sector by sector.
#[test]
fn a_cut_leaves_the_slots_that_worked() {
    let volume = format(CipherSpec::default(), HashAlgorithm::Md5).make(&Secret::from("old"), &mut noise()).unwrap();
    let (base, length) = (stored(&volume), volume.header_bytes());
    let bytes = base.to_vec().unwrap();
    // Slot 6 is the one whose record crosses a sector.
    for slot in [1, 6] {
        let recording = RecordingStorage::new(MemoryStorage::from_bytes(&bytes));
        let mut slots = KeySlots::read(&recording, (BASE, length)).unwrap();
        let mut random = noise();
        slots.add(volume.master_key(), &Secret::from("new"), Some(slot), 3, SlotChange::Careful, &mut random).unwrap();
        let added = recording.event_count();
        slots.erase(&[0], SlotChange::Careful, &mut random).unwrap();
        let events = recording.events();
        for epoch in epochs(&events) {
            for choice in 0..12u64 {
                let storage = MemoryStorage::from_bytes(&bytes);
                replay(&events[..epoch.start], &storage).unwrap();
                survivors(&events[epoch.clone()], choice).iter().for_each(|event| event.apply(&storage).unwrap());
                let old = open(&storage, length, "old").unwrap();
                let new = open(&storage, length, "new").unwrap();
                let what = alloc::format!("slot {slot}, epoch {epoch:?} of {}, choice {choice}", events.len());
                assert!(old.is_some() || epoch.start >= added, "{what}: the old key is lost before its erasure");
                assert!(new.is_some() || epoch.start < added, "{what}: the new key is lost");
                assert_eq!(KeySlots::read(&storage, (BASE, length)).unwrap().header().slots.len(), 8);
            }
        }
    }
}

/// Some of the sectors that the events of an epoch write.
fn survivors(events: &[StorageEvent], choice: u64) -> Vec<StorageEvent> {
    let mut state = choice;
    let mut keep = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 62 != 0
    };
    let torn = events.iter().filter(|event| **event != StorageEvent::Barrier).flat_map(|event| event.torn(512));
    torn.filter(|_| choice == 0 || keep()).collect()
}
