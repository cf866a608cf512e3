//! Encryption of guest data: LUKS version 1, and QEMU's AES of old (section "Data encryption").
//!
//! Bytes are encrypted by the sector of 512 bytes. With LUKS the sector's number counts from the beginning of the file
//! that holds it, with AES from the beginning of the virtual disk.
//!
//! The ciphers and hashes are RustCrypto's. The modes around them (CBC, CTR, XTS) are written here, over whole sectors:
//! the crates that have them work block by block, which leaves most of the speed of AES instructions unused. Tests hold
//! the modes against those crates.
//!
//! What is absent on purpose: this module draws no random numbers and reads no clock. Random bytes come from the caller
//! ([`RandomSource`]), and so does the number of iterations of a key derivation.

mod key;

#[cfg(feature = "crypto-aes")]
mod cipher;
#[cfg(feature = "crypto-aes")]
mod hash;
#[cfg(feature = "crypto-aes")]
mod luks;
#[cfg(feature = "crypto-aes")]
mod modes;
#[cfg(feature = "crypto-aes")]
mod slots;
#[cfg(feature = "crypto-aes")]
mod stripes;

pub use key::{EncryptionMethod, KeyRequest, KeySource, Keyring, Secret};

#[cfg(feature = "crypto-aes")]
pub use cipher::{CipherAlgorithm, CipherMode, CipherSpec, SectorCipher, VectorGenerator};
#[cfg(feature = "crypto-aes")]
pub use hash::HashAlgorithm;
#[cfg(feature = "crypto-aes")]
pub use luks::{LuksFormat, MasterKey, NewVolume, RandomSource, unlock};
#[cfg(feature = "crypto-aes")]
pub use slots::{KeySlots, SlotChange};

/// Bytes that are encrypted as one.
pub const SECTOR_BYTES: u64 = 512;

/// The most iterations of one key derivation that are carried out unless the caller allows more: some minutes of work.
/// An image can ask for 2^32, just to keep whoever opens it busy.
pub const MAX_KEY_ITERATIONS: u32 = 100_000_000;
