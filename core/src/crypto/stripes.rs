//! The anti-forensic stripes of LUKS: a key spread over so many bytes that losing any of them loses the key.

use alloc::vec;
use alloc::vec::Vec;

use zeroize::Zeroizing;

use super::HashAlgorithm;
use super::luks::RandomSource;
use crate::error::Result;

/// Spreads a key over `stripes` blocks of its length.
///
/// # Errors
/// When there are no random numbers.
pub(super) fn split(
    hash: HashAlgorithm,
    key: &[u8],
    stripes: u32,
    random: &mut dyn RandomSource,
) -> Result<Zeroizing<Vec<u8>>> {
    let count = usize::try_from(stripes).unwrap_or(0);
    let mut material = Zeroizing::new(vec![0u8; key.len().saturating_mul(count)]);
    let random_bytes = key.len().saturating_mul(count.saturating_sub(1));
    let (blocks, last) = material.split_at_mut(random_bytes.min(key.len().saturating_mul(count)));
    random.fill(blocks)?;
    let sum = diffused_sum(hash, blocks, key.len());
    for ((into, sum), key) in last.iter_mut().zip(sum.iter()).zip(key) {
        *into = sum ^ key;
    }
    Ok(material)
}

/// Puts the key together again.
pub(super) fn merge(hash: HashAlgorithm, material: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let (blocks, last) = material.split_at(material.len().saturating_sub(key_bytes));
    let mut key = diffused_sum(hash, blocks, key_bytes);
    for (into, last) in key.iter_mut().zip(last) {
        *into ^= last;
    }
    key
}

/// The blocks added up without carry, each sum hashed before the next is added.
fn diffused_sum(hash: HashAlgorithm, blocks: &[u8], key_bytes: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0u8; key_bytes]);
    for block in blocks.chunks_exact(key_bytes.max(1)) {
        for (into, byte) in sum.iter_mut().zip(block) {
            *into ^= byte;
        }
        diffuse(hash, &mut sum);
    }
    sum
}

/// Every digest's length of bytes becomes its own hash, with its number before it.
fn diffuse(hash: HashAlgorithm, bytes: &mut [u8]) {
    for (number, part) in (0u32..).zip(bytes.chunks_mut(hash.digest_bytes())) {
        let digest = hash.digest(&[&number.to_be_bytes(), part]);
        if let Some(digest) = digest.get(..part.len()) {
            part.copy_from_slice(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_comes_together_and_every_byte_matters() {
        let key: Vec<u8> = (0..48).collect();
        for hash in HashAlgorithm::ALL.iter().copied() {
            let mut state = 7u8;
            let material = split(hash, &key, 13, &mut |bytes: &mut [u8]| {
                bytes.iter_mut().for_each(|byte| {
                    state = state.wrapping_mul(5).wrapping_add(3);
                    *byte = state;
                });
                Ok(())
            })
            .unwrap();
            assert_eq!(material.len(), 13 * 48);
            assert_eq!(*merge(hash, &material, 48), key, "{hash:?}");
            for at in [0, 47, 300, 13 * 48 - 1] {
                let mut damaged = material.to_vec();
                damaged[at] ^= 1;
                assert_ne!(*merge(hash, &damaged, 48), key, "{hash:?} {at}");
            }
        }
    }
}
