//! Hashes of a LUKS header: of the key derivation, of the anti-forensic stripes, of ESSIV.

use alloc::vec;
use alloc::vec::Vec;

use pbkdf2::hmac::digest::Digest as _;
use zeroize::Zeroizing;

use super::key::names;
use crate::error::{Error, Result};

/// A hash, by QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// MD5.
    #[cfg(feature = "crypto")]
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256, QEMU's default.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    #[cfg(feature = "crypto")]
    Ripemd160,
    /// SM3.
    #[cfg(feature = "crypto")]
    Sm3,
}

/// Runs `$body` with `$hash` standing for the type of the hash.
macro_rules! with_hash {
    ($algorithm:expr, $hash:ident => $body:expr) => {
        match $algorithm {
            #[cfg(feature = "crypto")]
            HashAlgorithm::Md5 => {
                type $hash = md5::Md5;
                $body
            }
            HashAlgorithm::Sha1 => {
                type $hash = sha1::Sha1;
                $body
            }
            HashAlgorithm::Sha224 => {
                type $hash = sha2::Sha224;
                $body
            }
            HashAlgorithm::Sha256 => {
                type $hash = sha2::Sha256;
                $body
            }
            HashAlgorithm::Sha384 => {
                type $hash = sha2::Sha384;
                $body
            }
            HashAlgorithm::Sha512 => {
                type $hash = sha2::Sha512;
                $body
            }
            #[cfg(feature = "crypto")]
            HashAlgorithm::Ripemd160 => {
                type $hash = ripemd::Ripemd160;
                $body
            }
            #[cfg(feature = "crypto")]
            HashAlgorithm::Sm3 => {
                type $hash = sm3::Sm3;
                $body
            }
        }
    };
}

impl HashAlgorithm {
    /// All that this build has.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "crypto")]
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        #[cfg(feature = "crypto")]
        Self::Ripemd160,
        #[cfg(feature = "crypto")]
        Self::Sm3,
    ];

    /// The name in a LUKS header and in QEMU's options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "crypto")]
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            #[cfg(feature = "crypto")]
            Self::Ripemd160 => "ripemd160",
            #[cfg(feature = "crypto")]
            Self::Sm3 => "sm3",
        }
    }

    /// The hash with a name.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name).ok_or_else(|| {
            let known = names(Self::ALL.iter().copied().map(Self::name));
            Error::unsupported(alloc::format!("the hash '{name}'; there are {known}"))
        })
    }

    /// Bytes of a digest.
    #[must_use]
    pub fn digest_bytes(self) -> usize {
        with_hash!(self, Hash => Hash::output_size())
    }

    /// The digest of parts, one behind the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        with_hash!(self, Hash => {
            let mut hash = Hash::new();
            parts.iter().for_each(|part| hash.update(part));
            Zeroizing::new(hash.finalize().to_vec())
        })
    }

    /// PBKDF2 with the HMAC of this hash (RFC 8018, section 5.2). The time it takes grows with `iterations` and, in
    /// steps of a digest, with `bytes`.
    ///
    /// # Errors
    /// No iterations.
    pub fn derive_key(self, secret: &[u8], salt: &[u8], iterations: u32, bytes: usize) -> Result<Zeroizing<Vec<u8>>> {
        if iterations == 0 {
            return Err(Error::invalid("a key derivation has at least one iteration"));
        }
        let mut key = Zeroizing::new(vec![0u8; bytes]);
        with_hash!(self, Hash => {
            pbkdf2::pbkdf2_hmac::<Hash>(secret, salt, iterations, &mut key)
        });
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> alloc::string::String {
        bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
    }

    /// RFC 6070 and RFC 7914, section 11; for RIPEMD-160 and SM3 the HMAC itself has its own vectors in their crates,
    /// so that one round of derivation is held against HMAC by hand.
    #[test]
    fn derivations_are_those_of_the_standards() {
        let derive = |hash: HashAlgorithm, secret: &str, salt: &str, iterations, bytes| {
            hex(&hash.derive_key(secret.as_bytes(), salt.as_bytes(), iterations, bytes).unwrap())
        };
        let sha1 = derive(HashAlgorithm::Sha1, "password", "salt", 4096, 20);
        assert_eq!(sha1, "4b007901b765489abead49d926f721d065a429c1");
        let long =
            derive(HashAlgorithm::Sha1, "passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, 25);
        assert_eq!(long, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
        assert_eq!(
            derive(HashAlgorithm::Sha256, "passwd", "salt", 1, 64),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
             49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
        );
        assert!(HashAlgorithm::Sha256.derive_key(b"a", b"b", 0, 20).is_err());
    }

    #[test]
    fn names_and_lengths() {
        let lengths = [16, 20, 28, 32, 48, 64, 20, 32];
        for (hash, length) in HashAlgorithm::ALL.iter().copied().zip(lengths) {
            assert_eq!(HashAlgorithm::from_name(hash.name()).unwrap(), hash);
            assert_eq!((hash.digest_bytes(), hash.digest(&[b"a", b"bc"]).len()), (length, length));
            assert_eq!(hash.digest(&[b"a", b"bc"]), hash.digest(&[b"abc"]));
        }
        assert_eq!(hex(&HashAlgorithm::Md5.digest(&[b"abc"])), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(&HashAlgorithm::Ripemd160.digest(&[b"abc"])), "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc");
        assert!(HashAlgorithm::from_name("whirlpool").unwrap_err().to_string().contains("ripemd160"));
    }

    use alloc::string::ToString;
}
