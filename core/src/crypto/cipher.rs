//! Ciphers, their modes and initialization vectors, as a LUKS header names them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

use cipher::KeyInit;

use super::HashAlgorithm;
use super::key::names;
use super::modes::{self, Blocks, MAX_BLOCK, SECTOR, Vector};
use crate::error::{Error, Result};

/// A block cipher with the length of its key, by QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherAlgorithm {
    /// AES with 128 bits.
    Aes128,
    /// AES with 192 bits.
    Aes192,
    /// AES with 256 bits, QEMU's default.
    Aes256,
    /// CAST5 with 128 bits; its blocks have 64.
    #[cfg(feature = "crypto")]
    Cast5,
    /// Serpent with 128 bits.
    #[cfg(feature = "crypto")]
    Serpent128,
    /// Serpent with 192 bits.
    #[cfg(feature = "crypto")]
    Serpent192,
    /// Serpent with 256 bits.
    #[cfg(feature = "crypto")]
    Serpent256,
    /// Twofish with 128 bits.
    #[cfg(feature = "crypto")]
    Twofish128,
    /// Twofish with 192 bits.
    #[cfg(feature = "crypto")]
    Twofish192,
    /// Twofish with 256 bits.
    #[cfg(feature = "crypto")]
    Twofish256,
    /// SM4, which has 128 bits. Few builds of QEMU have it.
    #[cfg(feature = "crypto")]
    Sm4,
}

impl CipherAlgorithm {
    /// All that this build has.
    pub const ALL: &'static [Self] = &[
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        #[cfg(feature = "crypto")]
        Self::Cast5,
        #[cfg(feature = "crypto")]
        Self::Serpent128,
        #[cfg(feature = "crypto")]
        Self::Serpent192,
        #[cfg(feature = "crypto")]
        Self::Serpent256,
        #[cfg(feature = "crypto")]
        Self::Twofish128,
        #[cfg(feature = "crypto")]
        Self::Twofish192,
        #[cfg(feature = "crypto")]
        Self::Twofish256,
        #[cfg(feature = "crypto")]
        Self::Sm4,
    ];

    /// The name in QEMU's options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            #[cfg(feature = "crypto")]
            Self::Cast5 => "cast5-128",
            #[cfg(feature = "crypto")]
            Self::Serpent128 => "serpent-128",
            #[cfg(feature = "crypto")]
            Self::Serpent192 => "serpent-192",
            #[cfg(feature = "crypto")]
            Self::Serpent256 => "serpent-256",
            #[cfg(feature = "crypto")]
            Self::Twofish128 => "twofish-128",
            #[cfg(feature = "crypto")]
            Self::Twofish192 => "twofish-192",
            #[cfg(feature = "crypto")]
            Self::Twofish256 => "twofish-256",
            #[cfg(feature = "crypto")]
            Self::Sm4 => "sm4",
        }
    }

    /// The cipher with a name.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name).ok_or_else(|| {
            let known = names(Self::ALL.iter().copied().map(Self::name));
            Error::unsupported(format!("the cipher '{name}'; there are {known}"))
        })
    }

    /// The name in a LUKS header, which tells nothing of the key.
    #[must_use]
    pub const fn family(self) -> &'static str {
        match self {
            Self::Aes128 | Self::Aes192 | Self::Aes256 => "aes",
            #[cfg(feature = "crypto")]
            Self::Cast5 => "cast5",
            #[cfg(feature = "crypto")]
            Self::Serpent128 | Self::Serpent192 | Self::Serpent256 => "serpent",
            #[cfg(feature = "crypto")]
            Self::Twofish128 | Self::Twofish192 | Self::Twofish256 => "twofish",
            #[cfg(feature = "crypto")]
            Self::Sm4 => "sm4",
        }
    }

    /// Bytes of the key.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Aes192 => 24,
            Self::Aes256 => 32,
            Self::Aes128 => 16,
            #[cfg(feature = "crypto")]
            Self::Serpent192 | Self::Twofish192 => 24,
            #[cfg(feature = "crypto")]
            Self::Serpent256 | Self::Twofish256 => 32,
            #[cfg(feature = "crypto")]
            Self::Cast5 | Self::Serpent128 | Self::Twofish128 | Self::Sm4 => 16,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            #[cfg(feature = "crypto")]
            Self::Cast5 => 8,
            _ => MAX_BLOCK,
        }
    }

    /// The cipher of a family with a key of so many bytes.
    fn of_family(family: &str, key_bytes: usize) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.family() == family && known.key_bytes() == key_bytes)
    }

    fn with_key(self, key: &[u8]) -> Result<Box<dyn Blocks>> {
        fn make<C: KeyInit + Blocks + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
            C::new_from_slice(key).ok().map(|cipher| -> Box<dyn Blocks> { Box::new(cipher) })
        }
        let made = match self {
            Self::Aes128 => make::<aes::Aes128>(key),
            Self::Aes192 => make::<aes::Aes192>(key),
            Self::Aes256 => make::<aes::Aes256>(key),
            #[cfg(feature = "crypto")]
            Self::Cast5 => make::<cast5::Cast5>(key),
            #[cfg(feature = "crypto")]
            Self::Serpent128 | Self::Serpent192 | Self::Serpent256 => make::<serpent::Serpent>(key),
            #[cfg(feature = "crypto")]
            Self::Twofish128 | Self::Twofish192 | Self::Twofish256 => make::<twofish::Twofish>(key),
            #[cfg(feature = "crypto")]
            Self::Sm4 => make::<sm4::Sm4>(key),
        };
        // Serpent and CAST5 would take other lengths too.
        made.filter(|_| key.len() == self.key_bytes())
            .ok_or_else(|| Error::invalid(format!("a key of {} bytes for {}", key.len(), self.name())))
    }
}

/// How a block cipher is used on a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherMode {
    /// Each block by itself: equal blocks show.
    Ecb,
    /// Chained blocks.
    Cbc,
    /// A stream of encrypted numbers: sectors that are written twice show how they differ.
    Ctr,
    /// QEMU's default. The key is two keys.
    Xts,
}

impl CipherMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ecb, Self::Cbc, Self::Ctr, Self::Xts];

    /// The name in a LUKS header and in QEMU's options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ecb => "ecb",
            Self::Cbc => "cbc",
            Self::Ctr => "ctr",
            Self::Xts => "xts",
        }
    }

    /// The mode with a name.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
            let known = names(Self::ALL.map(Self::name));
            Error::unsupported(format!("the cipher mode '{name}'; there are {known}"))
        })
    }
}

/// How the initialization vector of a sector comes from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VectorGenerator {
    /// Its lowest 32 bits: vectors repeat after 2 TiB.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with a hash of the key.
    Essiv(HashAlgorithm),
}

impl VectorGenerator {
    /// The name in a LUKS header and in QEMU's options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }
}

/// A cipher in a mode with its vectors: everything but the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    /// The block cipher.
    pub algorithm: CipherAlgorithm,
    /// How it is used.
    pub mode: CipherMode,
    /// Where vectors come from.
    pub vectors: VectorGenerator,
}

impl Default for CipherSpec {
    /// QEMU's: AES-256 in mode XTS with plain64 vectors.
    fn default() -> Self {
        Self { algorithm: CipherAlgorithm::Aes256, mode: CipherMode::Xts, vectors: VectorGenerator::Plain64 }
    }
}

impl CipherSpec {
    /// QEMU's AES of old.
    pub const LEGACY_AES: Self =
        Self { algorithm: CipherAlgorithm::Aes128, mode: CipherMode::Cbc, vectors: VectorGenerator::Plain64 };

    /// From the fields of a LUKS header: `aes`, `xts-plain64`, 64.
    ///
    /// # Errors
    /// Names that are not known, or that do not go together, or not with the length of the key.
    pub fn from_luks(cipher: &str, mode: &str, key_bytes: u32) -> Result<Self> {
        let (mode, vectors) = mode.split_once('-').unwrap_or((mode, "plain"));
        let mode = CipherMode::from_name(mode)?;
        let (vectors, hash) = vectors.split_once(':').map_or((vectors, None), |(vectors, hash)| (vectors, Some(hash)));
        let vectors = match (vectors, hash) {
            ("plain", _) => VectorGenerator::Plain,
            ("plain64", _) => VectorGenerator::Plain64,
            ("essiv", Some(hash)) => VectorGenerator::Essiv(HashAlgorithm::from_name(hash)?),
            ("essiv", None) => return Err(Error::unsupported("ESSIV vectors without a hash")),
            (other, _) => return Err(Error::unsupported(format!("initialization vectors by '{other}'"))),
        };
        let halves = if mode == CipherMode::Xts { 2 } else { 1 };
        let bytes = usize::try_from(key_bytes).ok().filter(|bytes| bytes.is_multiple_of(halves));
        let algorithm = bytes
            .and_then(|bytes| CipherAlgorithm::of_family(cipher, bytes.checked_div(halves)?))
            .ok_or_else(|| Error::unsupported(format!("the cipher '{cipher}' with a key of {key_bytes} bytes")))?;
        let spec = Self { algorithm, mode, vectors };
        spec.validate()?;
        Ok(spec)
    }

    /// The mode as a LUKS header has it.
    #[must_use]
    pub fn luks_mode(&self) -> String {
        let (mode, vectors) = (self.mode.name(), self.vectors.name());
        match self.vectors {
            VectorGenerator::Plain | VectorGenerator::Plain64 => format!("{mode}-{vectors}"),
            VectorGenerator::Essiv(hash) => format!("{mode}-{vectors}:{}", hash.name()),
        }
    }

    /// Bytes of the key, of both keys in mode XTS.
    #[must_use]
    pub const fn key_bytes(&self) -> usize {
        match self.mode {
            CipherMode::Xts => self.algorithm.key_bytes().saturating_mul(2),
            CipherMode::Ecb | CipherMode::Cbc | CipherMode::Ctr => self.algorithm.key_bytes(),
        }
    }

    /// Whether all of this goes together.
    ///
    /// # Errors
    /// XTS with short blocks; ESSIV with a hash that no cipher of the family has a key for.
    pub fn validate(&self) -> Result<()> {
        if self.mode == CipherMode::Xts && self.algorithm.block_bytes() != MAX_BLOCK {
            return Err(Error::unsupported(format!("the cipher {} in mode xts", self.algorithm.name())));
        }
        match self.vectors {
            VectorGenerator::Essiv(hash) => self.essiv_cipher(hash).map(drop),
            VectorGenerator::Plain | VectorGenerator::Plain64 => Ok(()),
        }
    }

    fn essiv_cipher(&self, hash: HashAlgorithm) -> Result<CipherAlgorithm> {
        let family = self.algorithm.family();
        CipherAlgorithm::of_family(family, hash.digest_bytes()).ok_or_else(|| {
            let bytes = hash.digest_bytes();
            Error::unsupported(format!("ESSIV with {}: there is no {family} with a key of {bytes} bytes", hash.name()))
        })
    }

    /// The cipher with its key, ready for sectors.
    ///
    /// # Errors
    /// As [`CipherSpec::validate`]; a key of another length.
    pub fn with_key(&self, key: &[u8]) -> Result<SectorCipher> {
        self.validate()?;
        let (data_key, tweak_key) = match self.mode {
            CipherMode::Xts => key.split_at_checked(self.algorithm.key_bytes()).unwrap_or((key, &[])),
            CipherMode::Ecb | CipherMode::Cbc | CipherMode::Ctr => (key, &[][..]),
        };
        let vectors = match self.vectors {
            VectorGenerator::Plain => Vectors::Plain,
            VectorGenerator::Plain64 => Vectors::Plain64,
            VectorGenerator::Essiv(hash) => Vectors::Essiv(self.essiv_cipher(hash)?.with_key(&hash.digest(&[key]))?),
        };
        let data = self.algorithm.with_key(data_key)?;
        let mode = match self.mode {
            CipherMode::Ecb => Mode::Ecb,
            CipherMode::Cbc => Mode::Cbc,
            CipherMode::Ctr => Mode::Ctr,
            CipherMode::Xts => Mode::Xts(self.algorithm.with_key(tweak_key)?),
        };
        Ok(SectorCipher { spec: *self, data, mode, vectors })
    }
}

/// A cipher with its key: encrypts and decrypts whole sectors. Many threads may use it at once.
pub struct SectorCipher {
    spec: CipherSpec,
    data: Box<dyn Blocks>,
    mode: Mode,
    vectors: Vectors,
}

enum Mode {
    Ecb,
    Cbc,
    Ctr,
    Xts(Box<dyn Blocks>),
}

enum Vectors {
    Plain,
    Plain64,
    Essiv(Box<dyn Blocks>),
}

impl SectorCipher {
    /// Encrypts sectors of 512 bytes, of which the first has the number `first`. What is left over behind the last
    /// whole sector stays as it is.
    pub fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        self.each(first, bytes, true);
    }

    /// Undoes [`SectorCipher::encrypt`].
    pub fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        self.each(first, bytes, false);
    }

    fn each(&self, first: u64, bytes: &mut [u8], encrypt: bool) {
        let block = self.spec.algorithm.block_bytes();
        let data = self.data.as_ref();
        for (number, sector) in (0u64..).zip(bytes.chunks_exact_mut(SECTOR)) {
            let number = first.wrapping_add(number);
            match (&self.mode, encrypt) {
                (Mode::Ecb, true) => data.encrypt(sector),
                (Mode::Ecb, false) => data.decrypt(sector),
                (Mode::Cbc, true) => modes::cbc_encrypt(data, block, &self.vector(number), sector),
                (Mode::Cbc, false) => modes::cbc_decrypt(data, block, &self.vector(number), sector),
                (Mode::Ctr, _) => modes::ctr(data, block, &self.vector(number), sector),
                (Mode::Xts(tweaks), _) => modes::xts(data, tweaks.as_ref(), &self.vector(number), sector, encrypt),
            }
        }
    }

    /// The vector of a sector: its number, lowest byte first, padded with zeros.
    fn vector(&self, sector: u64) -> Vector {
        match &self.vectors {
            Vectors::Plain => u128::from(sector & u64::from(u32::MAX)).to_le_bytes(),
            Vectors::Plain64 => u128::from(sector).to_le_bytes(),
            Vectors::Essiv(cipher) => {
                let mut vector = u128::from(sector).to_le_bytes();
                if let Some(block) = vector.get_mut(..self.spec.algorithm.block_bytes()) {
                    cipher.encrypt(block);
                }
                vector
            }
        }
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher").field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "cipher_tests.rs"]
mod tests;
