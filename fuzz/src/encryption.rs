//! Encrypted images: headers, keys, and the bytes that a key makes readable.

use std::sync::{Arc, OnceLock};

use qcowkit_core::ErrorKind;
use qcowkit_core::crypto::{
    CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, Keyring, LuksFormat, Secret, SlotChange, VectorGenerator,
};
use qcowkit_core::format::LuksHeader;
use qcowkit_core::image::{Content, CreateOptions, Image, OpenOptions};
use qcowkit_core::operations::{check, read_header};
use qcowkit_core::storage::{MemoryStorage, OverlayStorage, ReadStorage, SliceStorage, Storage};

use super::bytes::Bytes;

const SIZE: u64 = 40 << 10;
const SECTOR: u64 = 512;
/// What fits the sound images, and what does not.
const KEYS: [&str; 2] = ["right", "wrong"];
/// Iterations that an image may ask for: what is looked for is no heat.
const MAX_ITERATIONS: u32 = 50;

/// LUKS headers, ciphers by name, images of any bytes with a key, sound ones with some damage, and ciphertext that was
/// changed: whoever has no key gets nothing, whoever has it gets his own bytes or an error.
pub fn encryption(data: &[u8]) {
    let choices = &mut Bytes(data);
    match choices.byte() % 8 {
        0 => header(choices.0),
        1 => cipher(choices),
        2 => {
            let image = MemoryStorage::from_bytes(choices.0);
            let _ = use_it(&image, KEYS[0]);
        }
        3 | 4 => ciphertext(choices),
        _ => volume(choices),
    }
}

/// A header is read, and written as it was read.
fn header(data: &[u8]) {
    let Ok(header) = LuksHeader::parse(data, 0) else { return };
    let again = LuksHeader::parse(&header.emit(), 0).unwrap();
    assert_eq!(header, again);
    let _ = (header.cipher_algorithm(), header.mode_and_vectors());
    let text = |name: &qcowkit_core::format::Name| name.to_string_lossy().into_owned();
    let _ = CipherSpec::from_luks(&text(&header.cipher), &text(&header.mode), header.key_bytes);
    let _ = HashAlgorithm::from_name(&text(&header.hash));
}

/// Any name of a cipher; what it encrypts it decrypts, and only whole sectors.
fn cipher(choices: &mut Bytes<'_>) {
    let key_bytes = choices.below(70) as u32;
    let (first, length) = (choices.below(u64::MAX), choices.below(1600) as usize);
    let spec = if choices.flag() {
        some_spec(choices)
    } else {
        let text = String::from_utf8_lossy(choices.0).into_owned();
        let Some((name, mode)) = text.split_once(' ') else { return };
        let Ok(spec) = CipherSpec::from_luks(name, mode, key_bytes) else { return };
        spec
    };
    let key: Vec<u8> = (0..spec.key_bytes()).map(|_| choices.byte()).collect();
    let Ok(sectors) = spec.with_key(&key) else { return };
    let plain: Vec<u8> = (0..length).map(|n| n as u8 ^ choices.byte()).collect();
    let mut bytes = plain.clone();
    sectors.encrypt(first, &mut bytes);
    let whole = length / SECTOR as usize * SECTOR as usize;
    assert!(bytes[whole..] == plain[whole..], "a part of a sector was encrypted");
    assert!(whole == 0 || bytes[..whole] != plain[..whole], "nothing was encrypted");
    sectors.decrypt(first, &mut bytes);
    assert!(bytes == plain, "decrypted, it is another");
}

fn some_spec(choices: &mut Bytes<'_>) -> CipherSpec {
    use CipherAlgorithm::{Aes128, Aes192, Aes256, Cast5, Serpent128, Serpent256, Sm4, Twofish128, Twofish256};
    let algorithm =
        choices.choose([Aes128, Aes192, Aes256, Cast5, Serpent128, Serpent256, Sm4, Twofish128, Twofish256]);
    let mode = choices.choose([CipherMode::Ecb, CipherMode::Cbc, CipherMode::Ctr, CipherMode::Xts]);
    let hash = choices.choose([HashAlgorithm::Md5, HashAlgorithm::Sha256, HashAlgorithm::Sha1, HashAlgorithm::Sm3]);
    let vectors = choices.choose([VectorGenerator::Plain, VectorGenerator::Plain64, VectorGenerator::Essiv(hash)]);
    CipherSpec { algorithm, mode, vectors }
}

/// Bytes of a sector whose ciphertext changed are others; all else is as it was, and nobody says that anything is wrong.
fn ciphertext(choices: &mut Bytes<'_>) {
    let sound = some_sound(choices);
    let storage = OverlayStorage::new(SliceStorage::new(sound.bytes.as_slice())).unwrap();
    let offset = choices.below(SIZE);
    let mut image = Image::open(&storage, options("right")).unwrap();
    let extent = image.next_extent(offset, 1).unwrap();
    let Content::Data { host_offset } = extent.content else { return };
    let mut byte = [0];
    storage.read_at(host_offset.get(), &mut byte).unwrap();
    storage.write_at(host_offset.get(), &[byte[0] ^ (choices.byte() | 1)]).unwrap();
    let mut got = vec![0; SIZE as usize];
    image.read_at(0, &mut got).unwrap();
    let sector = (offset / SECTOR * SECTOR) as usize..((offset / SECTOR + 1) * SECTOR) as usize;
    assert!(got[sector.clone()] != sound.content[sector.clone()], "the sector did not change");
    got[sector.clone()].copy_from_slice(&sound.content[sector.clone()]);
    assert!(got == sound.content, "another sector changed");
    // A part of the sector is written: what was written is there, and the rest of the disk.
    let length = choices.below(SIZE - offset) + 1;
    image.write_at(offset, &vec![0x5a; length as usize]).unwrap();
    image.flush().unwrap();
    let mut expected = sound.content.clone();
    expected[offset as usize..(offset + length) as usize].fill(0x5a);
    image.read_at(0, &mut got).unwrap();
    got[sector.clone()].copy_from_slice(&expected[sector.clone()]);
    assert!(got == expected, "written, it is another");
}

/// A sound image with some bytes changed in the headers and the first key's material.
fn volume(choices: &mut Bytes<'_>) {
    let sound = some_sound(choices);
    let storage = OverlayStorage::new(SliceStorage::new(sound.bytes.as_slice())).unwrap();
    let places = [0, sound.crypto_header, sound.crypto_header + 208, sound.crypto_header + 4096];
    let mut changed = false;
    for _ in 0..choices.below(5) {
        let place = choices.choose(places);
        let at = place + choices.below(if place == 0 { 256 } else { 400 });
        let mut old = [0];
        storage.read_at(at, &mut old).unwrap();
        let new = [choices.byte()];
        storage.write_at(at, &new).unwrap();
        changed |= new != old;
    }
    let key = choices.choose(KEYS);
    if !changed && sound.luks {
        let opened = Image::open(&storage, options(key)).map(drop);
        assert_eq!(opened.is_ok(), key == "right", "{opened:?}");
        if let Err(error) = opened {
            assert!(matches!(error.kind(), ErrorKind::WrongKey(_)), "{error}");
        }
    }
    let got = use_it(&storage, key);
    if let (false, Some(got)) = (changed, got) {
        assert_eq!(got == sound.content, key == "right");
    }
    slots(&storage, choices);
}

/// Opens with a key and looks, reads and writes; gives what it read at first, if there was a key that fits.
fn use_it<S: Storage>(storage: &S, key: &str) -> Option<Vec<u8>> {
    let locked = OpenOptions::default().read_only().metadata_only();
    if let Ok(mut image) = Image::open(storage, locked) {
        let _ = image.map(0, SIZE);
        let readable = image.read_at(0, &mut [0; 2000]).is_ok();
        assert!(!readable || !image.is_locked() || !holds_data(&mut image), "data without a key");
    }
    if let Ok(area) = read_header(storage) {
        let _ = check(storage, &area, &mut |_| ());
    }
    let mut image = Image::open(storage, options(key)).ok()?;
    let mut bytes = vec![0; image.virtual_size().min(SIZE) as usize];
    let read = image.read_at(0, &mut bytes);
    if image.write_at(700, &[9; 1000]).is_ok() && !image.is_locked() {
        let mut again = [0; 1000];
        if image.read_at(700, &mut again).is_ok() {
            assert_eq!(again, [9; 1000], "not what was written");
        }
    }
    let _ = image.write_zeroes(3000, 2000, true);
    let _ = image.flush();
    (read.is_ok() && !image.is_locked()).then_some(bytes)
}

fn holds_data<S: Storage>(image: &mut Image<S>) -> bool {
    let holds = |content| matches!(content, Content::Data { .. } | Content::Compressed { .. });
    image.map(0, 2000.min(image.virtual_size())).is_ok_and(|all| all.iter().any(|extent| holds(extent.content)))
}

/// Passwords come and go in whatever the headers say now.
fn slots<S: Storage>(storage: &S, choices: &mut Bytes<'_>) {
    let Ok(mut image) = Image::open(storage, options("right")) else { return };
    let Ok(master) = image.master_key() else { return };
    let mut next = choices.byte();
    let mut random = move |bytes: &mut [u8]| {
        bytes.iter_mut().for_each(|byte| {
            next = next.wrapping_mul(29).wrapping_add(7);
            *byte = next;
        });
        Ok(())
    };
    let wanted = [None, Some(choices.below(9) as usize)][usize::from(choices.flag())];
    let change = choices.choose([SlotChange::Careful, SlotChange::Force]);
    let Ok(mut slots) = image.key_slots() else { return };
    let added = slots.add(&master, &Secret::from("another"), wanted, 2, change, &mut random);
    if added.is_ok() {
        let opened = slots.opened_by(&Secret::from("another"), MAX_ITERATIONS);
        assert!(opened.is_err() || opened.is_ok_and(|slots| !slots.is_empty()), "the new key opens nothing");
    }
    if choices.flag() {
        let _ = slots.erase(&[choices.below(8) as usize], change, &mut random);
    }
}

fn options(key: &str) -> OpenOptions {
    OpenOptions {
        // A second key, so that one that does not fit is followed by another.
        keys: Some(Arc::new(Keyring::new().with(Secret::from(key)))),
        max_key_iterations: MAX_ITERATIONS,
        ..OpenOptions::default().metadata_only()
    }
}

/// An image that is right.
struct Sound {
    bytes: Vec<u8>,
    content: Vec<u8>,
    luks: bool,
    /// Where the LUKS header begins; 0 for AES.
    crypto_header: u64,
}

fn some_sound(choices: &mut Bytes<'_>) -> &'static Sound {
    static SOUND: OnceLock<Vec<Sound>> = OnceLock::new();
    let all = SOUND.get_or_init(sound);
    &all[choices.below(all.len() as u64) as usize]
}

fn sound() -> Vec<Sound> {
    let spec = |algorithm, mode, vectors| CipherSpec { algorithm, mode, vectors };
    let essiv = VectorGenerator::Essiv(HashAlgorithm::Sha256);
    let kinds = [
        (Some(spec(CipherAlgorithm::Aes128, CipherMode::Xts, VectorGenerator::Plain64)), 512, 3, false),
        (Some(spec(CipherAlgorithm::Aes128, CipherMode::Cbc, VectorGenerator::Plain64)), 1024, 2, false),
        (Some(spec(CipherAlgorithm::Aes256, CipherMode::Cbc, essiv)), 16 << 10, 3, true),
        (Some(spec(CipherAlgorithm::Cast5, CipherMode::Cbc, VectorGenerator::Plain64)), 4096, 3, false),
        (None, 512, 2, false),
        (None, 4096, 3, false),
    ];
    kinds
        .into_iter()
        .map(|(spec, cluster_size, version, extended_l2)| {
            let encryption = spec.map(|spec| {
                let format =
                    LuksFormat { spec, hash: HashAlgorithm::Sha256, slot_iterations: 2, master_key_iterations: 2 };
                let mut next = 3u8;
                let mut random = |bytes: &mut [u8]| {
                    bytes.iter_mut().for_each(|byte| {
                        next = next.wrapping_mul(29).wrapping_add(7);
                        *byte = next;
                    });
                    Ok(())
                };
                Arc::new(format.make(&Secret::from("right"), &mut random).unwrap())
            });
            let luks = encryption.is_some();
            let create = CreateOptions { cluster_size, version, extended_l2, encryption, ..CreateOptions::default() };
            let storage = Image::create(MemoryStorage::new(), SIZE, &create).unwrap().close().unwrap();
            if !luks {
                // The old method; nobody makes it any more.
                storage.write_at(32, &1u32.to_be_bytes()).unwrap();
            }
            let mut image = Image::open(&storage, options("right")).unwrap();
            image.write_at(300, &[1; 5000]).unwrap();
            image.write_at(20_000, &[2; 9000]).unwrap();
            let mut content = vec![0; SIZE as usize];
            image.read_at(0, &mut content).unwrap();
            let crypto_header = image.header().crypto_header().map_or(0, |(offset, _)| offset);
            image.close().unwrap();
            Sound { bytes: storage.to_vec().unwrap(), content, luks, crypto_header }
        })
        .collect()
}

/// Inputs to begin with: a header, a cipher, and a script of each kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let luks = &sound()[0];
    let at = luks.crypto_header as usize;
    let mut all = vec![
        [&[0], &luks.bytes[at..at + LuksHeader::LENGTH]].concat(),
        [&[1, 32, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0][..], b"aes cbc-essiv:sha256"].concat(),
        [&[1, 64, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0][..], b"serpent xts-plain64"].concat(),
        [&[1][..], &(0..120).collect::<Vec<u8>>()].concat(),
        [&[2], &luks.bytes[..(40 << 10)]].concat(),
    ];
    for kind in 3..8u8 {
        all.extend(
            (0..6u8)
                .map(|n| [&[kind, n][..], &(0..40u8).map(|m| m.wrapping_mul(n * 2 + 1)).collect::<Vec<u8>>()].concat()),
        );
    }
    all
}
