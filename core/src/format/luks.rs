//! The LUKS header (version 1) of an encrypted image (section "Full disk encryption header pointer"), as far as it says
//! how things are encrypted. Keys are not handled here: see [`crate::crypto`].

use alloc::string::String;
use alloc::vec::Vec;

use super::{Name, Reader};
use crate::error::{Error, Result, Structure};

/// The header of a LUKS volume, version 1. Offsets count from its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksHeader {
    /// The cipher: `aes`, `serpent`, ...
    pub cipher: Name,
    /// Mode, and how initialization vectors are made: `xts-plain64`, `cbc-essiv:sha256`, ...
    pub mode: Name,
    /// The hash of the key derivation.
    pub hash: Name,
    /// First byte of the encrypted data.
    pub payload_offset: u64,
    /// Bytes of the master key.
    pub key_bytes: u32,
    /// Digest of the master key: tells a right one from a wrong one.
    pub master_key_digest: [u8; 20],
    /// Salt of that digest.
    pub master_key_salt: [u8; 32],
    /// Iterations of the digest of the master key.
    pub master_key_iterations: u32,
    /// The volume's UUID, in text.
    pub uuid: Name,
    /// The key slots, always eight.
    pub slots: Vec<LuksSlot>,
}

/// A key slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksSlot {
    /// It holds a key.
    pub active: bool,
    /// Iterations of the key derivation.
    pub iterations: u32,
    /// Salt of the key derivation.
    pub salt: [u8; 32],
    /// First byte of the key material.
    pub key_offset: u64,
    /// Anti-forensic stripes.
    pub stripes: u32,
}

impl LuksHeader {
    /// Bytes of the header.
    pub const LENGTH: usize = 592;

    /// Key slots of every header.
    pub const SLOTS: usize = 8;

    const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
    const SECTOR: u64 = 512;
    const FIRST_SLOT: u64 = 208;
    const SLOT_LENGTH: u64 = 48;

    /// Parses the header, whose first byte is at `host_offset` of the file.
    ///
    /// # Errors
    /// Too few bytes, another magic number, another version than 1.
    pub fn parse(bytes: &[u8], host_offset: u64) -> Result<Self> {
        let mut reader = Reader::new(bytes, Structure::CryptoHeader, host_offset);
        let wrong = |what: &str| Error::corrupt(Structure::CryptoHeader, what).at_host(host_offset);
        if reader.take(6, "magic")? != Self::MAGIC {
            return Err(wrong("the LUKS magic number is missing"));
        }
        if reader.u16("version")? != 1 {
            return Err(wrong("the LUKS header is not of version 1"));
        }
        let cipher = text(reader.take(32, "cipher name")?);
        let mode = text(reader.take(32, "cipher mode")?);
        let hash = text(reader.take(32, "hash")?);
        let payload_offset = u64::from(reader.u32("payload offset")?).saturating_mul(Self::SECTOR);
        let key_bytes = reader.u32("key bytes")?;
        let master_key_digest = array(reader.take(20, "digest of the master key")?);
        let master_key_salt = array(reader.take(32, "salt of the master key")?);
        let master_key_iterations = reader.u32("iterations of the master key")?;
        let uuid = text(reader.take(40, "UUID")?);
        let mut slots = Vec::new();
        for _ in 0..Self::SLOTS {
            let active = reader.u32("state of a key slot")? == LuksSlot::ACTIVE;
            let iterations = reader.u32("iterations of a key slot")?;
            let salt = array(reader.take(32, "salt of a key slot")?);
            let key_offset = u64::from(reader.u32("key material offset")?).saturating_mul(Self::SECTOR);
            slots.push(LuksSlot { active, iterations, salt, key_offset, stripes: reader.u32("stripes")? });
        }
        Ok(Self {
            cipher,
            mode,
            hash,
            payload_offset,
            key_bytes,
            master_key_digest,
            master_key_salt,
            master_key_iterations,
            uuid,
            slots,
        })
    }

    /// The bytes of the header. Names longer than their fields are cut; offsets are those of whole sectors.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LENGTH);
        let padded = |bytes: &mut Vec<u8>, name: &Name, length: usize| {
            let end = bytes.len().saturating_add(length);
            bytes.extend(name.as_bytes().iter().take(length));
            bytes.resize(end, 0);
        };
        bytes.extend(Self::MAGIC);
        bytes.extend(1u16.to_be_bytes());
        padded(&mut bytes, &self.cipher, 32);
        padded(&mut bytes, &self.mode, 32);
        padded(&mut bytes, &self.hash, 32);
        bytes.extend(sectors(self.payload_offset).to_be_bytes());
        bytes.extend(self.key_bytes.to_be_bytes());
        bytes.extend(self.master_key_digest);
        bytes.extend(self.master_key_salt);
        bytes.extend(self.master_key_iterations.to_be_bytes());
        padded(&mut bytes, &self.uuid, 40);
        self.slots.iter().take(Self::SLOTS).for_each(|slot| bytes.extend(slot.emit()));
        bytes.resize(Self::LENGTH, 0);
        bytes
    }

    /// Where the record of a key slot begins in the header.
    #[must_use]
    pub fn slot_offset(slot: usize) -> u64 {
        let slot = u64::try_from(slot).unwrap_or(u64::MAX);
        Self::FIRST_SLOT.saturating_add(slot.saturating_mul(Self::SLOT_LENGTH))
    }

    /// The cipher with the bits of its key, in QEMU's words: `aes-256`. In mode XTS the key is two keys.
    #[must_use]
    pub fn cipher_algorithm(&self) -> String {
        let name = self.cipher.to_string_lossy();
        let halves = if self.mode_and_vectors().0 == "xts" { 2 } else { 1 };
        let bits = self.key_bytes.saturating_mul(8).checked_div(halves).unwrap_or(0);
        match name.as_ref() {
            "aes" | "serpent" | "twofish" => alloc::format!("{name}-{bits}"),
            "cast5" => String::from("cast5-128"),
            _ => name.into_owned(),
        }
    }

    /// The mode, how initialization vectors are made, and the hash for that, if one is used.
    #[must_use]
    pub fn mode_and_vectors(&self) -> (String, String, Option<String>) {
        let text = self.mode.to_string_lossy();
        let (mode, vectors) = text.split_once('-').unwrap_or((text.as_ref(), ""));
        let (vectors, hash) = match vectors.split_once(':') {
            Some((vectors, hash)) => (vectors, Some(String::from(hash))),
            None => (vectors, None),
        };
        (String::from(mode), String::from(vectors), hash)
    }
}

impl LuksSlot {
    const ACTIVE: u32 = 0x00ac_71f3;
    const INACTIVE: u32 = 0x0000_dead;

    /// The bytes of the record.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = self.emit_state().to_vec();
        bytes.extend(self.iterations.to_be_bytes());
        bytes.extend(self.salt);
        bytes.extend(sectors(self.key_offset).to_be_bytes());
        bytes.extend(self.stripes.to_be_bytes());
        bytes
    }

    /// The first bytes of the record, which say whether it holds a key.
    #[must_use]
    pub fn emit_state(&self) -> [u8; 4] {
        if self.active { Self::ACTIVE.to_be_bytes() } else { Self::INACTIVE.to_be_bytes() }
    }
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes.checked_div(LuksHeader::SECTOR).unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Bytes whose number the reader has seen to.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

/// The bytes before the first zero.
fn text(bytes: &[u8]) -> Name {
    Name::new(bytes.split(|byte| *byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str, length: usize) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(length, 0);
        bytes
    }

    fn header(mode: &str, key_bytes: u32) -> Vec<u8> {
        let mut bytes = b"LUKS\xba\xbe\0\x01".to_vec();
        bytes.extend(field("aes", 32));
        bytes.extend(field(mode, 32));
        bytes.extend(field("sha256", 32));
        bytes.extend(4040u32.to_be_bytes());
        bytes.extend(key_bytes.to_be_bytes());
        bytes.extend([1; 52]);
        bytes.extend(1000u32.to_be_bytes());
        bytes.extend(field("aa42eb22-f609-4d92-85af-8dfef6041df6", 40));
        for slot in 0..8u32 {
            bytes.extend(if slot == 1 { 0x00ac_71f3u32 } else { 0xdead }.to_be_bytes());
            bytes.extend((slot * 10).to_be_bytes());
            bytes.extend([2; 32]);
            bytes.extend((8 + slot).to_be_bytes());
            bytes.extend(4000u32.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn every_field_has_its_place() {
        let bytes = header("xts-plain64", 64);
        assert_eq!(bytes.len(), LuksHeader::LENGTH);
        let luks = LuksHeader::parse(&bytes, 0x30000).unwrap();
        assert_eq!((luks.payload_offset, luks.master_key_iterations), (4040 * 512, 1000));
        assert_eq!(luks.uuid.as_str(), Some("aa42eb22-f609-4d92-85af-8dfef6041df6"));
        assert_eq!(luks.cipher_algorithm(), "aes-256");
        assert_eq!(luks.mode_and_vectors(), ("xts".into(), "plain64".into(), None));
        assert_eq!(luks.slots.len(), 8);
        let slot = LuksSlot { active: true, iterations: 10, salt: [2; 32], key_offset: 9 * 512, stripes: 4000 };
        assert_eq!(luks.slots[1], slot);
        assert_eq!((luks.master_key_digest, luks.master_key_salt), ([1; 20], [1; 32]));
        assert_eq!(luks.emit(), bytes);
        assert_eq!(bytes[LuksHeader::slot_offset(1) as usize..][..48], slot.emit());
        assert!(!luks.slots[7].active);
        let old = LuksHeader::parse(&header("cbc-essiv:sha256", 32), 0).unwrap();
        assert_eq!(old.cipher_algorithm(), "aes-256");
        assert_eq!(old.mode_and_vectors(), ("cbc".into(), "essiv".into(), Some("sha256".into())));
    }

    #[test]
    fn what_is_no_luks_header_is_refused() {
        let good = header("xts-plain64", 64);
        for length in 0..good.len() {
            assert!(LuksHeader::parse(&good[..length], 0).is_err(), "{length}");
        }
        for (index, value) in [(0, 0), (5, 0), (7, 2)] {
            let mut bytes = good.clone();
            bytes[index] = value;
            let error = LuksHeader::parse(&bytes, 7).unwrap_err();
            assert_eq!(error.site().structure, Some(Structure::CryptoHeader));
            assert_eq!(error.site().host_offset, Some(7));
        }
    }
}
