//! Finding zeros in buffers, fast.

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // The first bytes decide for most data.
    let (head, tail) = bytes.split_at(bytes.len().min(32));
    if head.iter().any(|&byte| byte != 0) {
        return false;
    }
    let mut chunks = tail.chunks_exact(256);
    // Folding a whole chunk lets the compiler use wide registers.
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |all, &byte| all | byte) == 0)
        && chunks.remainder().iter().all(|&byte| byte == 0)
}

/// Whether all bytes are `byte`.
#[must_use]
pub fn is_filled(bytes: &[u8], byte: u8) -> bool {
    match bytes.split_first() {
        None => true,
        Some((&first, rest)) => {
            first == byte && {
                let mut chunks = rest.chunks_exact(256);
                chunks.by_ref().all(|chunk| chunk.iter().fold(0, |all, &other| all | (other ^ byte)) == 0)
                    && chunks.remainder().iter().all(|&other| other == byte)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_counts() {
        for length in [0usize, 1, 31, 32, 33, 255, 256, 257, 600] {
            let mut bytes = alloc::vec![0; length];
            assert!(is_zero(&bytes) && is_filled(&bytes, 0));
            for index in 0..length {
                bytes[index] = 1;
                assert!(!is_zero(&bytes) && !is_filled(&bytes, 0), "{length} {index}");
                bytes[index] = 0;
            }
        }
        assert!(is_filled(&[7; 1000], 7) && !is_filled(&[7; 1000], 6));
    }
}
