//! Guest data that are stored encrypted (section "Data encryption").
//!
//! The ways into it are never inlined, so that a build in parts can leave it out of the one that is always loaded.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::write::Piece;
use super::{Extent, Image, OpenOptions};
use crate::crypto::{EncryptionMethod, KeyRequest, SECTOR_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{HeaderArea, HostOffset};
use crate::storage::Storage;

#[cfg(feature = "crypto-aes")]
pub(super) use unlocked::DataCipher;
#[cfg(not(feature = "crypto-aes"))]
pub(super) use without::DataCipher;

/// Bytes that are encrypted and written as one, at most.
const STAGE_BYTES: usize = 1 << 20;

/// Whether guest data are encrypted, and whether there is a key.
#[derive(Debug, Clone)]
pub(super) enum Encryption {
    None,
    Locked(EncryptionMethod),
    /// Shared with those who only move bytes.
    Unlocked(Arc<DataCipher>),
}

impl Encryption {
    /// Tries the keys that the caller supplies. Without any, the image stays locked: for all that needs no guest data.
    pub(super) fn open<S: Storage>(
        header: &HeaderArea,
        storage: &S,
        options: &OpenOptions,
        depth: u32,
        identity: Option<&str>,
    ) -> Result<Self> {
        let Some(method) = EncryptionMethod::from_header(header.header.crypt_method) else { return Ok(Self::None) };
        let Some(keys) = &options.keys else { return Ok(Self::Locked(method)) };
        let mut request = KeyRequest { depth, identity, method, attempt: 0 };
        while let Some(secret) = keys.key(&request)? {
            let most = options.max_key_iterations;
            if let Some(cipher) = DataCipher::open(header, storage, method, &secret, most)? {
                return Ok(Self::Unlocked(Arc::new(cipher)));
            }
            request.attempt = request.attempt.saturating_add(1);
        }
        match request.attempt {
            0 => Ok(Self::Locked(method)),
            1 => Err(wrong_key("it opens none of the image's key slots")),
            _ => Err(wrong_key("none of them opens a key slot of the image")),
        }
    }
}

fn wrong_key(what: &str) -> Error {
    Error::new(ErrorKind::WrongKey(String::from(what)))
}

impl<S> Image<S> {
    /// What the guest data are encrypted with, if they are.
    pub fn encryption(&self) -> Option<EncryptionMethod> {
        EncryptionMethod::from_header(self.metadata.header().header.crypt_method)
    }

    /// Whether guest data can neither be read nor written for lack of a key.
    pub fn is_locked(&self) -> bool {
        matches!(self.encryption, Encryption::Locked(_))
    }

    pub(super) fn refuse_locked(&self) -> Result<()> {
        match &self.encryption {
            Encryption::None | Encryption::Unlocked(_) => Ok(()),
            Encryption::Locked(method) => Err(Error::new(ErrorKind::Encrypted(method.name().into()))),
        }
    }

    /// The cipher of guest data, if they are encrypted and unlocked.
    pub(super) fn cipher(&self) -> Option<&DataCipher> {
        match &self.encryption {
            Encryption::None | Encryption::Locked(_) => None,
            Encryption::Unlocked(cipher) => Some(cipher),
        }
    }
}

impl<S: Storage> Image<S> {
    /// Reads and decrypts guest bytes of this layer, where guest and host offset are at the same place of a sector.
    #[inline(never)]
    pub(super) fn read_encrypted(
        &self,
        cipher: &DataCipher,
        guest: u64,
        host: HostOffset,
        into: &mut [u8],
    ) -> Result<()> {
        let into_sector = host.get() & SECTOR_BYTES.saturating_sub(1);
        let head = SECTOR_BYTES.saturating_sub(into_sector) & SECTOR_BYTES.saturating_sub(1);
        let head_len = usize::try_from(head).unwrap_or(0).min(into.len());
        let (first, rest) = into.split_at_mut(head_len);
        self.read_in_sector(cipher, guest, host, first)?;
        let whole = rest.len() & !usize::try_from(SECTOR_BYTES.saturating_sub(1)).unwrap_or(0);
        let (middle, last) = rest.split_at_mut(whole);
        let (guest, host) = (guest.saturating_add(head), host.saturating_add(head));
        if !middle.is_empty() {
            self.data_storage().read_at(host.get(), middle)?;
            cipher.decrypt(guest, host, middle);
        }
        let whole = u64::try_from(whole).unwrap_or(0);
        self.read_in_sector(cipher, guest.saturating_add(whole), host.saturating_add(whole), last)
    }

    /// Reads a part of one sector.
    fn read_in_sector(&self, cipher: &DataCipher, guest: u64, host: HostOffset, into: &mut [u8]) -> Result<()> {
        if into.is_empty() {
            return Ok(());
        }
        let mut sector = vec![0u8; usize::try_from(SECTOR_BYTES).unwrap_or(0)];
        let skip = host.get() & SECTOR_BYTES.saturating_sub(1);
        let start = HostOffset::new(host.get().saturating_sub(skip));
        self.data_storage().read_at(start.get(), &mut sector)?;
        cipher.decrypt(guest.saturating_sub(skip), start, &mut sector);
        let from = usize::try_from(skip).unwrap_or(0);
        into.iter_mut().zip(sector.get(from..).unwrap_or(&[])).for_each(|(into, byte)| *into = *byte);
        Ok(())
    }

    /// Moves the bytes of one piece encrypted: data and fills, which together are whole sectors.
    #[inline(never)]
    pub(super) fn move_encrypted(&self, cipher: &DataCipher, piece: &Piece, data: &[u8]) -> Result<()> {
        let mut stage = Stage { image: self, cipher, guest: 0, host: HostOffset::default(), bytes: Vec::new() };
        let mut data_due = true;
        for fill in &piece.fills {
            if data_due && fill.guest_offset > piece.guest_offset {
                stage.add(piece.guest_offset, piece.host_offset, data)?;
                data_due = false;
            }
            stage.add(fill.guest_offset, fill.host_offset, &self.read_fill(fill)?)?;
        }
        if data_due {
            stage.add(piece.guest_offset, piece.host_offset, data)?;
        }
        stage.finish()
    }

    /// Writes zeros of the guest's.
    #[inline(never)]
    pub(super) fn write_encrypted_zeros(
        &self,
        cipher: &DataCipher,
        guest: u64,
        host: HostOffset,
        length: u64,
    ) -> Result<()> {
        let mut stage = Stage { image: self, cipher, guest, host, bytes: Vec::new() };
        let zeros = vec![0u8; STAGE_BYTES];
        let mut at = 0u64;
        while at < length {
            let left = usize::try_from(length.saturating_sub(at)).unwrap_or(usize::MAX);
            let part = zeros.get(..left).unwrap_or(&zeros);
            stage.add(guest.saturating_add(at), host.saturating_add(at), part)?;
            at = at.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        }
        stage.finish()
    }

    /// Whether an extent lies in a layer whose bytes on storage are not the guest's.
    pub(super) fn extent_is_encrypted(&self, extent: &Extent) -> bool {
        self.image_at_depth(extent.depth).is_some_and(|layer| layer.encryption().is_some())
    }
}

#[cfg(feature = "crypto-aes")]
impl<S: Storage> Image<S> {
    /// Takes the key of the image's own volume.
    pub(super) fn unlock_with(&mut self, master: crate::crypto::MasterKey) -> Result<()> {
        self.encryption = Encryption::Unlocked(Arc::new(DataCipher::of_volume(master)?));
        Ok(())
    }

    /// The key slots of the image's LUKS volume, to be changed. A barrier that fails poisons the image.
    ///
    /// # Errors
    /// The image is not encrypted with LUKS; otherwise as [`Image::write_at`].
    pub fn key_slots(&mut self) -> Result<crate::crypto::KeySlots<'_, S>> {
        self.begin_changing()?;
        let area = self.header().crypto_header();
        let area = area.ok_or_else(|| Error::unsupported("key slots of an image that is not encrypted with LUKS"))?;
        let slots = crate::crypto::KeySlots::read(&self.storage, area)?;
        Ok(slots.of_image(self.metadata.poison_mark()))
    }

    /// The key of the image's LUKS volume, which lets another password open it.
    ///
    /// # Errors
    /// The image is locked, or is not encrypted with LUKS.
    pub fn master_key(&self) -> Result<crate::crypto::MasterKey> {
        self.refuse_locked()?;
        let master = self.cipher().and_then(DataCipher::master_key);
        master.cloned().ok_or_else(|| Error::unsupported("the key of an image that is not encrypted with LUKS"))
    }
}

/// Collects what lies side by side, and writes it encrypted.
struct Stage<'a, S> {
    image: &'a Image<S>,
    cipher: &'a DataCipher,
    guest: u64,
    host: HostOffset,
    bytes: Vec<u8>,
}

impl<S: Storage> Stage<'_, S> {
    fn add(&mut self, guest: u64, host: HostOffset, bytes: &[u8]) -> Result<()> {
        let staged = u64::try_from(self.bytes.len()).unwrap_or(0);
        if self.host.saturating_add(staged) != host {
            self.write(self.bytes.len())?;
        }
        if self.bytes.is_empty() {
            (self.guest, self.host) = (guest, host);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = STAGE_BYTES.saturating_sub(self.bytes.len()).max(1);
            let (part, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend_from_slice(part);
            rest = later;
            if self.bytes.len() >= STAGE_BYTES {
                self.write(STAGE_BYTES)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.write(self.bytes.len())
    }

    /// Writes the first `length` staged bytes.
    fn write(&mut self, length: usize) -> Result<()> {
        let Some(part) = self.bytes.get_mut(..length).filter(|part| !part.is_empty()) else { return Ok(()) };
        let written = u64::try_from(length).unwrap_or(0);
        let sector = SECTOR_BYTES.saturating_sub(1);
        if self.host.get() & sector != 0 || written & sector != 0 {
            debug_assert!(false, "a piece that is no whole sectors");
            return Err(Error::invalid("an encrypted write that is no whole sectors").at_guest(self.guest));
        }
        self.cipher.encrypt(self.guest, self.host, part);
        let target = self.image.data_storage();
        target.write_at(self.host.get(), part).map_err(|error| Error::from(error).at_guest(self.guest))?;
        self.bytes.drain(..length);
        self.guest = self.guest.saturating_add(written);
        self.host = self.host.saturating_add(written);
        Ok(())
    }
}

#[cfg(feature = "crypto-aes")]
mod unlocked {
    use super::{EncryptionMethod, Error, HeaderArea, HostOffset, Result, SECTOR_BYTES, Storage};
    use crate::crypto::{CipherSpec, MasterKey, Secret, SectorCipher, unlock};
    use crate::error::Structure;
    use crate::format::LuksHeader;

    /// The cipher of guest data with its key.
    #[derive(Debug)]
    pub(in crate::image) struct DataCipher {
        sectors: SectorCipher,
        /// Of a LUKS volume; needed to let another password open it.
        master: Option<MasterKey>,
    }

    impl DataCipher {
        /// Of a LUKS volume that is open.
        pub(in crate::image) fn of_volume(master: MasterKey) -> Result<Self> {
            Ok(Self { sectors: master.cipher()?, master: Some(master) })
        }

        /// The cipher, if `secret` is the right key. Of AES there is no telling.
        #[inline(never)]
        pub(super) fn open<S: Storage>(
            header: &HeaderArea,
            storage: &S,
            method: EncryptionMethod,
            secret: &Secret,
            max_iterations: u32,
        ) -> Result<Option<Self>> {
            match method {
                EncryptionMethod::Aes => {
                    let mut key = zeroize::Zeroizing::new([0u8; 16]);
                    key.iter_mut().zip(secret.as_bytes()).for_each(|(into, byte)| *into = *byte);
                    let sectors = CipherSpec::LEGACY_AES.with_key(key.as_slice())?;
                    Ok(Some(Self { sectors, master: None }))
                }
                EncryptionMethod::Luks => {
                    let missing = || Error::corrupt(Structure::CryptoHeader, "the encryption header is missing");
                    let area = header.crypto_header().ok_or_else(missing)?;
                    let mut bytes = [0u8; LuksHeader::LENGTH];
                    storage.read_at(area.0, &mut bytes)?;
                    let luks = LuksHeader::parse(&bytes, area.0)?;
                    unlock(&luks, storage, area, secret, max_iterations)?.map(Self::of_volume).transpose()
                }
            }
        }

        pub(in crate::image) fn master_key(&self) -> Option<&MasterKey> {
            self.master.as_ref()
        }

        pub(super) fn encrypt(&self, guest: u64, host: HostOffset, bytes: &mut [u8]) {
            self.sectors.encrypt(self.sector(guest, host), bytes);
        }

        pub(super) fn decrypt(&self, guest: u64, host: HostOffset, bytes: &mut [u8]) {
            self.sectors.decrypt(self.sector(guest, host), bytes);
        }

        /// Section "Data encryption": LUKS counts sectors of the file, AES those of the virtual disk.
        fn sector(&self, guest: u64, host: HostOffset) -> u64 {
            let offset = if self.master.is_some() { host.get() } else { guest };
            offset.checked_div(SECTOR_BYTES).unwrap_or(0)
        }
    }
}

#[cfg(not(feature = "crypto-aes"))]
mod without {
    use super::{EncryptionMethod, Error, HeaderArea, HostOffset, Result, Storage};
    use crate::crypto::Secret;

    /// There are no ciphers in this build.
    #[derive(Debug)]
    pub(in crate::image) enum DataCipher {}

    impl DataCipher {
        pub(super) fn open<S: Storage>(
            _: &HeaderArea,
            _: &S,
            method: EncryptionMethod,
            _: &Secret,
            _: u32,
        ) -> Result<Option<Self>> {
            Err(Error::unsupported(alloc::format!("{} encryption: left out of this build", method.name())))
        }

        pub(super) fn encrypt(&self, _: u64, _: HostOffset, _: &mut [u8]) {
            match *self {}
        }

        pub(super) fn decrypt(&self, _: u64, _: HostOffset, _: &mut [u8]) {
            match *self {}
        }
    }
}
