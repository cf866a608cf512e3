use alloc::string::ToString;
use alloc::vec::Vec;

use super::*;
use ::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockModeEncrypt, InnerIvInit, StreamCipher};

fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..count).map(|n| (n as u8).wrapping_mul(37) ^ seed ^ (n >> 8) as u8).collect()
}

fn specs() -> Vec<CipherSpec> {
    let mut specs = Vec::new();
    for algorithm in CipherAlgorithm::ALL.iter().copied() {
        for mode in CipherMode::ALL {
            let essiv = HashAlgorithm::ALL.iter().copied().map(VectorGenerator::Essiv);
            for vectors in [VectorGenerator::Plain, VectorGenerator::Plain64].into_iter().chain(essiv) {
                let spec = CipherSpec { algorithm, mode, vectors };
                if spec.validate().is_ok() {
                    specs.push(spec);
                }
            }
        }
    }
    specs
}

#[test]
fn everything_that_goes_together_comes_back_from_its_names() {
    let specs = specs();
    // MD5 for every family's 128 bits, SHA-256 and SM3 for 256; nothing of CAST5 in XTS.
    assert_eq!(specs.len(), 9 * 4 * (2 + 3) + (3 + 4) * (2 + 1));
    for spec in specs {
        let bytes = spec.key_bytes() as u32;
        let read = CipherSpec::from_luks(spec.algorithm.family(), &spec.luks_mode(), bytes).unwrap();
        assert_eq!(read, spec);
        assert!(CipherSpec::from_luks(spec.algorithm.family(), &spec.luks_mode(), bytes + 1).is_err());
    }
    for (cipher, mode, bytes) in
        [("aes", "xts", 16), ("aes", "cbc-essiv", 32), ("aes", "lrw-plain64", 32), ("des", "cbc-plain64", 8)]
    {
        assert!(CipherSpec::from_luks(cipher, mode, bytes).is_err(), "{cipher} {mode}");
    }
    assert_eq!(CipherSpec::from_luks("aes", "ecb", 16).unwrap().mode, CipherMode::Ecb);
}

#[test]
fn sectors_come_back_and_depend_on_key_and_number() {
    for spec in specs() {
        let key = bytes(spec.key_bytes(), 1);
        let cipher = spec.with_key(&key).unwrap();
        let plain = bytes(4 * SECTOR, 0);
        let mut secret = plain.clone();
        cipher.encrypt(u64::from(u32::MAX) - 1, &mut secret);
        assert_ne!(secret, plain, "{spec:?}");
        let mut second = plain[SECTOR..2 * SECTOR].to_vec();
        cipher.encrypt(u64::from(u32::MAX), &mut second);
        assert_eq!(second, secret[SECTOR..2 * SECTOR], "{spec:?}: sectors stand alone");
        let mut same = plain[..SECTOR].to_vec();
        cipher.encrypt(5, &mut same);
        assert_eq!(same == secret[..SECTOR], spec.mode == CipherMode::Ecb, "{spec:?}");
        cipher.decrypt(u64::from(u32::MAX) - 1, &mut secret);
        assert_eq!(secret, plain, "{spec:?}");
        assert!(spec.with_key(&key[1..]).is_err(), "{spec:?}");
    }
}

/// Vector 4 of IEEE 1619-2007, annex B: a whole sector of AES-128.
#[test]
fn xts_is_the_standards() {
    let spec = CipherSpec { algorithm: CipherAlgorithm::Aes128, ..CipherSpec::default() };
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let key = hex("2718281828459045235360287471352631415926535897932384626433832795");
    let mut sector: Vec<u8> = (0..512).map(|n| n as u8).collect();
    spec.with_key(&key).unwrap().encrypt(0, &mut sector);
    assert_eq!(sector[..32], hex("27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c")[..]);
}

/// Our modes over whole sectors against the crates that go block by block.
fn against_crates<C>(algorithm: CipherAlgorithm)
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + Clone + Send + Sync + 'static,
    C: ::cipher::BlockSizeUser<BlockSize = ::cipher::consts::U16>,
{
    let spec = |mode| CipherSpec { algorithm, mode, vectors: VectorGenerator::Plain64 };
    let number = 0x0123_4567_89ff_ffffu64;
    let vector = u128::from(number).to_le_bytes();
    let plain = bytes(SECTOR, 9);
    let ours = |mode| {
        let spec = spec(mode);
        let mut sector = plain.clone();
        spec.with_key(&bytes(spec.key_bytes(), 3)).unwrap().encrypt(number, &mut sector);
        sector
    };
    let key = bytes(algorithm.key_bytes(), 3);
    let cipher = C::new_from_slice(&key).unwrap();

    let mut blocks = plain.clone();
    for block in Array::slice_as_chunks_mut(&mut blocks).0 {
        cipher.encrypt_block(block);
    }
    assert_eq!(ours(CipherMode::Ecb), blocks);

    let mut chained = plain.clone();
    cbc::Encryptor::<C>::inner_iv_init(cipher.clone(), &Array(vector))
        .encrypt_blocks(Array::slice_as_chunks_mut(&mut chained).0);
    assert_eq!(ours(CipherMode::Cbc), chained);

    let mut stream = plain.clone();
    let core = ctr::CtrCore::<C, ctr::flavors::Ctr128BE>::inner_iv_init(cipher.clone(), &Array(vector));
    ::cipher::StreamCipherCoreWrapper::from_core(core).apply_keystream(&mut stream);
    assert_eq!(ours(CipherMode::Ctr), stream);

    let both = bytes(algorithm.key_bytes() * 2, 3);
    let (first, second) = both.split_at(algorithm.key_bytes());
    let xts = xts_mode::Xts128::new(C::new_from_slice(first).unwrap(), C::new_from_slice(second).unwrap());
    let mut sector = plain.clone();
    xts.encrypt_sector(&mut sector, Array(vector));
    assert_eq!(ours(CipherMode::Xts), sector);
}

use ::cipher::array::Array;

#[test]
fn modes_are_those_of_the_crates() {
    against_crates::<aes::Aes128>(CipherAlgorithm::Aes128);
    against_crates::<aes::Aes256>(CipherAlgorithm::Aes256);
    against_crates::<serpent::Serpent>(CipherAlgorithm::Serpent192);
    against_crates::<twofish::Twofish>(CipherAlgorithm::Twofish256);
    against_crates::<sm4::Sm4>(CipherAlgorithm::Sm4);
}

/// `dm-crypt`'s definition by hand: the number, encrypted under the hash of the key.
#[test]
fn essiv_encrypts_the_number() {
    let spec = CipherSpec {
        algorithm: CipherAlgorithm::Aes128,
        mode: CipherMode::Cbc,
        vectors: VectorGenerator::Essiv(HashAlgorithm::Sha256),
    };
    let key = bytes(16, 4);
    let mut sector = [0u8; SECTOR];
    spec.with_key(&key).unwrap().encrypt(77, &mut sector);
    let salt = aes::Aes256::new_from_slice(&HashAlgorithm::Sha256.digest(&[&key])).unwrap();
    let mut vector = Array(77u128.to_le_bytes());
    salt.encrypt_block(&mut vector);
    aes::Aes128::new_from_slice(&key).unwrap().encrypt_block(&mut vector);
    assert_eq!(sector[..16], vector[..]);
}

#[test]
fn names_that_are_not_known_are_told_with_those_that_are() {
    assert!(CipherAlgorithm::from_name("des").unwrap_err().to_string().contains("twofish-192"));
    assert!(CipherMode::from_name("gcm").unwrap_err().to_string().contains("ecb, cbc, ctr, xts"));
    for cipher in CipherAlgorithm::ALL.iter().copied() {
        assert_eq!(CipherAlgorithm::from_name(cipher.name()).unwrap(), cipher);
    }
    assert!(!alloc::format!("{:?}", CipherSpec::default().with_key(&[7; 64]).unwrap()).contains('7'));
}
