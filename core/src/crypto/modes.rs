//! Modes of block ciphers over one sector. A mode hands the cipher as many blocks at a time as it can, so that the
//! cipher's parallel instructions are used.

use cipher::array::Array;
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt};

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;

/// Bytes of the longest block.
pub(super) const MAX_BLOCK: usize = 16;

/// An initialization vector; a cipher with shorter blocks uses the first bytes.
pub(super) type Vector = [u8; MAX_BLOCK];

/// A block cipher with its key, for any number of whole blocks.
pub(super) trait Blocks: Send + Sync {
    /// Encrypts each block by itself.
    fn encrypt(&self, bytes: &mut [u8]);
    /// Decrypts each block by itself.
    fn decrypt(&self, bytes: &mut [u8]);
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Blocks for C {
    fn encrypt(&self, bytes: &mut [u8]) {
        self.encrypt_blocks(Array::slice_as_chunks_mut(bytes).0);
    }

    fn decrypt(&self, bytes: &mut [u8]) {
        self.decrypt_blocks(Array::slice_as_chunks_mut(bytes).0);
    }
}

/// CBC: each block is mixed with the encrypted one before it.
pub(super) fn cbc_encrypt(cipher: &dyn Blocks, block: usize, vector: &Vector, sector: &mut [u8]) {
    let mut before = *vector;
    for bytes in sector.chunks_exact_mut(block) {
        xor(bytes, &before);
        cipher.encrypt(bytes);
        before.iter_mut().zip(bytes.iter()).for_each(|(into, byte)| *into = *byte);
    }
}

/// Undoes [`cbc_encrypt`].
pub(super) fn cbc_decrypt(cipher: &dyn Blocks, block: usize, vector: &Vector, sector: &mut [u8]) {
    let mut encrypted = [0u8; SECTOR];
    encrypted.iter_mut().zip(sector.iter()).for_each(|(into, byte)| *into = *byte);
    cipher.decrypt(sector);
    let mut before = vector.get(..block).unwrap_or(vector);
    for (bytes, encrypted) in sector.chunks_exact_mut(block).zip(encrypted.chunks_exact(block)) {
        xor(bytes, before);
        before = encrypted;
    }
}

/// CTR: the bytes are mixed with encrypted numbers that count up from the vector, highest byte first. Undoes itself.
pub(super) fn ctr(cipher: &dyn Blocks, block: usize, vector: &Vector, sector: &mut [u8]) {
    let mut stream = [0u8; SECTOR];
    let mut number = *vector;
    let number = number.get_mut(..block).unwrap_or_default();
    for bytes in stream.chunks_exact_mut(block) {
        bytes.copy_from_slice(number);
        for byte in number.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
    cipher.encrypt(&mut stream);
    xor(sector, &stream);
}

/// XTS (IEEE 1619) of whole blocks: each is mixed, before and after, with a tweak that doubles from block to block.
pub(super) fn xts(cipher: &dyn Blocks, tweaks: &dyn Blocks, vector: &Vector, sector: &mut [u8], encrypt: bool) {
    let mut first = *vector;
    tweaks.encrypt(&mut first);
    let mut tweak = u128::from_le_bytes(first);
    let mut mask = [0u8; SECTOR];
    for bytes in mask.chunks_exact_mut(MAX_BLOCK) {
        bytes.copy_from_slice(&tweak.to_le_bytes());
        let carry = if tweak.leading_zeros() == 0 { 0x87 } else { 0 };
        tweak = tweak.wrapping_shl(1) ^ carry;
    }
    xor(sector, &mask);
    if encrypt {
        cipher.encrypt(sector);
    } else {
        cipher.decrypt(sector);
    }
    xor(sector, &mask);
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    bytes.iter_mut().zip(with).for_each(|(into, byte)| *into ^= byte);
}
