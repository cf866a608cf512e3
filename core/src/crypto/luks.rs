//! A LUKS volume: unlocking it with a password, and making a new one.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::modes::SECTOR;
use super::{CipherSpec, HashAlgorithm, Secret, SectorCipher, stripes};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{LuksHeader, LuksSlot, Name};
use crate::storage::ReadStorage;

/// Stripes of all key material that QEMU and cryptsetup make; QEMU opens no other.
pub(super) const STRIPES: u32 = 4000;
/// Key material begins at multiples of this.
const MATERIAL_ALIGNMENT: u64 = 4096;
/// Bytes of the digest of the master key.
const DIGEST: usize = 20;

/// Where random bytes come from. They become keys: nothing but the system's own generator is good enough.
pub trait RandomSource {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// When there are none.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()>;
}

impl<F: FnMut(&mut [u8]) -> Result<()>> RandomSource for F {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self(bytes)
    }
}

/// The key of a volume's data, which the key slots hold. It is overwritten when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey {
    pub(super) spec: CipherSpec,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl MasterKey {
    /// The cipher of the data.
    ///
    /// # Errors
    /// None, for a key that came out of a volume.
    pub fn cipher(&self) -> Result<SectorCipher> {
        self.spec.with_key(&self.key)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A header with what follows from its names.
pub(super) struct Volume<'a> {
    pub(super) header: &'a LuksHeader,
    pub(super) spec: CipherSpec,
    pub(super) hash: HashAlgorithm,
    pub(super) area: Area,
}

/// Where header and key material lie in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Looks for the key slot that `secret` opens, in the volume whose header and key material lie in the `length` bytes
/// from `offset` on. `None` when it opens none.
///
/// # Errors
/// Algorithms that are not known; more iterations than `max_iterations`; key material in impossible places; a storage
/// that fails.
pub fn unlock<S: ReadStorage + ?Sized>(
    header: &LuksHeader,
    storage: &S,
    (offset, length): (u64, u64),
    secret: &Secret,
    max_iterations: u32,
) -> Result<Option<MasterKey>> {
    let volume = Volume::new(header, Area { offset, length })?;
    for (index, slot) in header.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
        let found = volume.open_slot(slot, storage, secret, max_iterations);
        if let Some(master) = found.map_err(|error| volume.at_slot(error, index))? {
            return Ok(Some(master));
        }
    }
    Ok(None)
}

impl<'a> Volume<'a> {
    pub(super) fn new(header: &'a LuksHeader, area: Area) -> Result<Self> {
        let site = |error: Error| error.in_structure(Structure::CryptoHeader).at_host(area.offset);
        let text = |name: &Name| name.to_string_lossy().into_owned();
        let spec = CipherSpec::from_luks(&text(&header.cipher), &text(&header.mode), header.key_bytes).map_err(site)?;
        let hash = HashAlgorithm::from_name(&text(&header.hash)).map_err(site)?;
        Ok(Self { header, spec, hash, area })
    }

    pub(super) fn at_slot(&self, error: Error, index: usize) -> Error {
        let index = u64::try_from(index).unwrap_or(u64::MAX);
        error.in_structure(Structure::CryptoHeader).at_index(index).at_host(self.area.offset)
    }

    /// The master key, if `secret` opens this slot.
    pub(super) fn open_slot<S: ReadStorage + ?Sized>(
        &self,
        slot: &LuksSlot,
        storage: &S,
        secret: &Secret,
        max_iterations: u32,
    ) -> Result<Option<MasterKey>> {
        allowed(slot.iterations, max_iterations)?;
        allowed(self.header.master_key_iterations, max_iterations)?;
        let mut material = Zeroizing::new(vec![0u8; material_bytes(&self.spec)]);
        storage.read_at(self.material_offset(slot)?, &mut material)?;
        let slot_key = self.hash.derive_key(secret.as_bytes(), &slot.salt, slot.iterations, self.spec.key_bytes())?;
        self.spec.with_key(&slot_key)?.decrypt(0, &mut material);
        let used = split_bytes(&self.spec);
        let key = stripes::merge(self.hash, material.get(..used).unwrap_or(&[]), self.spec.key_bytes());
        let digest = self.digest(&key)?;
        let right = bool::from(digest.ct_eq(&self.header.master_key_digest));
        Ok(right.then_some(MasterKey { spec: self.spec, key }))
    }

    fn digest(&self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let (salt, iterations) = (&self.header.master_key_salt, self.header.master_key_iterations);
        self.hash.derive_key(key, salt, iterations, DIGEST)
    }

    /// Where the key material of a slot begins in the file.
    pub(super) fn material_offset(&self, slot: &LuksSlot) -> Result<u64> {
        let wrong = |what: String| Err(Error::corrupt(Structure::CryptoHeader, what).at_host(self.area.offset));
        if slot.stripes != STRIPES {
            return wrong(format!("key material with {} stripes instead of {STRIPES}", slot.stripes));
        }
        let bytes = u64::try_from(material_bytes(&self.spec)).unwrap_or(u64::MAX);
        let header_end = u64::try_from(LuksHeader::LENGTH).unwrap_or(u64::MAX);
        let inside = slot.key_offset >= header_end
            && slot.key_offset.checked_add(bytes).is_some_and(|end| end <= self.area.length);
        if !inside {
            return wrong(format!("key material at {:#x} lies beyond the encryption header", slot.key_offset));
        }
        Ok(self.area.offset.saturating_add(slot.key_offset))
    }

    /// Encrypted key material that `secret` opens.
    pub(super) fn seal(
        &self,
        master: &MasterKey,
        secret: &Secret,
        salt: &[u8],
        iterations: u32,
        random: &mut dyn RandomSource,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let slot_key = self.hash.derive_key(secret.as_bytes(), salt, iterations, self.spec.key_bytes())?;
        let mut material = stripes::split(self.hash, &master.key, STRIPES, random)?;
        material.resize(material_bytes(&self.spec), 0);
        self.spec.with_key(&slot_key)?.encrypt(0, &mut material);
        Ok(material)
    }
}

fn allowed(iterations: u32, most: u32) -> Result<()> {
    if iterations > most {
        let what = format!("a key derivation of {iterations} iterations, at most {most} are allowed");
        return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::CryptoHeader));
    }
    if iterations == 0 {
        return Err(Error::corrupt(Structure::CryptoHeader, "a key derivation without iterations"));
    }
    Ok(())
}

/// Bytes of a key in stripes.
fn split_bytes(spec: &CipherSpec) -> usize {
    spec.key_bytes().saturating_mul(usize::try_from(STRIPES).unwrap_or(0))
}

/// The same in whole sectors.
fn material_bytes(spec: &CipherSpec) -> usize {
    split_bytes(spec).next_multiple_of(SECTOR)
}

/// What a new volume is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksFormat {
    /// The cipher, its mode, its vectors.
    pub spec: CipherSpec,
    /// The hash of the key derivation.
    pub hash: HashAlgorithm,
    /// Iterations of the key derivation: the more, the longer each guess of a password takes.
    pub slot_iterations: u32,
    /// Iterations of the digest of the master key.
    pub master_key_iterations: u32,
}

impl LuksFormat {
    /// The fewest iterations that QEMU takes.
    pub const MIN_ITERATIONS: u32 = 1000;

    /// Whether QEMU could make it.
    ///
    /// # Errors
    /// Algorithms that do not go together; keys whose material does not fill whole sectors (QEMU fails on them); no
    /// iterations.
    pub fn validate(&self) -> Result<()> {
        self.spec.validate()?;
        if split_bytes(&self.spec) != material_bytes(&self.spec) {
            let (cipher, mode) = (self.spec.algorithm.name(), self.spec.mode.name());
            return Err(Error::unsupported(format!(
                "the cipher {cipher} in mode {mode}: QEMU cannot open it; mode xts works"
            )));
        }
        if self.slot_iterations == 0 || self.master_key_iterations == 0 {
            return Err(Error::invalid("a key derivation has at least one iteration"));
        }
        Ok(())
    }

    /// Bytes of the header with all key material: what the header extension says.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        let slots = u64::try_from(LuksHeader::SLOTS).unwrap_or(0);
        MATERIAL_ALIGNMENT.saturating_add(slots.saturating_mul(self.material_step()))
    }

    fn material_step(&self) -> u64 {
        let bytes = u64::try_from(material_bytes(&self.spec)).unwrap_or(u64::MAX);
        bytes.checked_next_multiple_of(MATERIAL_ALIGNMENT).unwrap_or(u64::MAX)
    }

    /// Makes a volume with a new master key, which `secret` opens.
    ///
    /// # Errors
    /// As [`LuksFormat::validate`]; a secret that QEMU would not take; no random numbers.
    pub fn make(&self, secret: &Secret, random: &mut dyn RandomSource) -> Result<NewVolume> {
        self.validate()?;
        check_new_secret(secret)?;
        let mut key = Zeroizing::new(vec![0u8; self.spec.key_bytes()]);
        random.fill(&mut key)?;
        let master = MasterKey { spec: self.spec, key };
        let mut header = self.empty_header(random)?;
        header.master_key_digest = {
            let (salt, iterations) = (header.master_key_salt, header.master_key_iterations);
            let digest = self.hash.derive_key(&master.key, &salt, iterations, DIGEST)?;
            digest.as_slice().try_into().unwrap_or([0; DIGEST])
        };
        let mut salt = [0u8; 32];
        random.fill(&mut salt)?;
        let area = Area { offset: 0, length: self.header_bytes() };
        let material = Volume::new(&header, area)?.seal(&master, secret, &salt, self.slot_iterations, random)?;
        if let Some(slot) = header.slots.first_mut() {
            (slot.active, slot.iterations, slot.salt) = (true, self.slot_iterations, salt);
        }
        Ok(NewVolume { format: *self, header, material: material.to_vec(), master })
    }

    fn empty_header(&self, random: &mut dyn RandomSource) -> Result<LuksHeader> {
        let mut master_key_salt = [0u8; 32];
        random.fill(&mut master_key_salt)?;
        let mut key_offset = MATERIAL_ALIGNMENT;
        let mut slots = Vec::new();
        for _ in 0..LuksHeader::SLOTS {
            slots.push(LuksSlot { active: false, iterations: 0, salt: [0; 32], key_offset, stripes: STRIPES });
            key_offset = key_offset.saturating_add(self.material_step());
        }
        Ok(LuksHeader {
            cipher: Name::from(self.spec.algorithm.family()),
            mode: Name::from(self.spec.luks_mode().as_str()),
            hash: Name::from(self.hash.name()),
            payload_offset: self.header_bytes(),
            key_bytes: u32::try_from(self.spec.key_bytes()).unwrap_or(u32::MAX),
            master_key_digest: [0; DIGEST],
            master_key_salt,
            master_key_iterations: self.master_key_iterations,
            uuid: Name::from(random_uuid(random)?.as_str()),
            slots,
        })
    }
}

/// Refuses a new password that QEMU could not be given.
pub(super) fn check_new_secret(secret: &Secret) -> Result<()> {
    if secret.is_text() {
        return Ok(());
    }
    Err(Error::invalid("a new key must be text in UTF-8 without zero bytes, or QEMU could not open the image"))
}

/// A UUID of version 4 (RFC 9562).
fn random_uuid(random: &mut dyn RandomSource) -> Result<String> {
    let mut bytes = [0u8; 16];
    random.fill(&mut bytes)?;
    let number = u128::from_be_bytes(bytes);
    let marked = number & !(0xf000 << 64 | 0xc000 << 48) | 0x4000 << 64 | 0x8000 << 48;
    let hex = format!("{marked:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    Ok(parts.join("-"))
}

/// A volume that is going to be a part of a new image.
#[derive(Clone, PartialEq, Eq)]
pub struct NewVolume {
    format: LuksFormat,
    header: LuksHeader,
    /// Of the first key slot, encrypted.
    material: Vec<u8>,
    master: MasterKey,
}

impl fmt::Debug for NewVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewVolume").field("format", &self.format).finish_non_exhaustive()
    }
}

impl NewVolume {
    /// Bytes of the header with all key material.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        self.format.header_bytes()
    }

    /// The key of the data.
    #[must_use]
    pub fn master_key(&self) -> &MasterKey {
        &self.master
    }

    /// What is written, by offset from the beginning of the header; all else is zero.
    #[must_use]
    pub fn parts(&self) -> [(u64, Vec<u8>); 2] {
        let material = self.header.slots.first().map_or(0, |slot| slot.key_offset);
        [(0, self.header.emit()), (material, self.material.clone())]
    }
}

#[cfg(test)]
#[path = "luks_tests.rs"]
mod tests;
