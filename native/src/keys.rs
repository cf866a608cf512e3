//! Keys of encrypted images: from files and the environment, with the system's random bytes, and as many iterations of
//! their derivation as fit a time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use qcowkit_core::crypto::{
    CipherSpec, HashAlgorithm, LuksFormat, MAX_KEY_ITERATIONS, NewVolume, RandomSource, Secret,
};
use qcowkit_core::{Error, ErrorKind, Result};

/// Longer files are not taken for keys.
const MAX_KEY_BYTES: u64 = 8 << 20;
/// A derivation is timed over at least this.
const TIMED: Duration = Duration::from_millis(20);
/// Milliseconds that trying a password takes on this machine, unless told otherwise (as QEMU).
pub const DEFAULT_ITER_TIME: u64 = 2000;

/// The key that a file holds, byte for byte: a newline at its end is a part of it.
///
/// # Errors
/// A file that cannot be read, or is longer than 8 MiB.
pub fn key_from_file(path: &Path) -> Result<Secret> {
    let failed = |error: std::io::Error| Error::invalid(format!("the key file '{}': {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    // At once in the right size: a vector that grows would leave parts of the key behind.
    let length = file.metadata().map_err(failed)?.len().min(MAX_KEY_BYTES);
    let mut bytes = Vec::with_capacity(length as usize + 1);
    file.take(MAX_KEY_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_KEY_BYTES {
        let what = format!("the key file '{}' is longer than {MAX_KEY_BYTES} bytes", path.display());
        return Err(ErrorKind::Limit(what).into());
    }
    Ok(Secret::new(bytes))
}

/// The key that an environment variable holds.
///
/// # Errors
/// There is no such variable.
pub fn key_from_environment(name: &str) -> Result<Secret> {
    let value = std::env::var_os(name).ok_or_else(|| {
        Error::invalid(format!("the environment variable '{name}', which should hold a key, is not set"))
    })?;
    Ok(Secret::new(OsStr::as_encoded_bytes(&value).to_vec()))
}

/// The system's generator of random bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl RandomSource for SystemRandom {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        getrandom::fill(bytes).map_err(|error| Error::unsupported(format!("random bytes from the system: {error}")))
    }
}

/// How many iterations of a derivation of `bytes` bytes this machine makes in `time`, on one processor. At least
/// 1000, as QEMU.
///
/// # Errors
/// More than images may ask for when they are opened.
pub fn iterations_in(hash: HashAlgorithm, bytes: usize, time: Duration) -> Result<u32> {
    let mut count = 1000u32;
    let mut elapsed = timed(hash, bytes, count)?;
    while elapsed < TIMED && count < MAX_KEY_ITERATIONS {
        count *= 2;
        elapsed = timed(hash, bytes, count)?;
    }
    // The machine may have been busy with something else: the fastest of several is nearest to what it can do.
    for _ in 0..2 {
        elapsed = elapsed.min(timed(hash, bytes, count)?);
    }
    let wanted = f64::from(count) * time.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
    if wanted > f64::from(MAX_KEY_ITERATIONS) {
        let what = format!("a time that is good for more than {MAX_KEY_ITERATIONS} iterations of a key derivation");
        return Err(ErrorKind::Limit(what).into());
    }
    Ok((wanted as u32).max(LuksFormat::MIN_ITERATIONS))
}

fn timed(hash: HashAlgorithm, bytes: usize, count: u32) -> Result<Duration> {
    let begun = Instant::now();
    hash.derive_key(b"password", &[7; 32], count, bytes)?;
    Ok(begun.elapsed())
}

/// What a new LUKS volume is like. The defaults are QEMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksOptions {
    /// The cipher, its mode, its vectors.
    pub spec: CipherSpec,
    /// The hash of the key derivation.
    pub hash: HashAlgorithm,
    /// How long trying a password takes on this machine.
    pub iter_time: Duration,
}

impl Default for LuksOptions {
    fn default() -> Self {
        Self {
            spec: CipherSpec::default(),
            hash: HashAlgorithm::Sha256,
            iter_time: Duration::from_millis(DEFAULT_ITER_TIME),
        }
    }
}

impl LuksOptions {
    /// Bytes of the encryption header of such a volume.
    #[must_use]
    pub fn header_bytes(&self) -> u64 {
        self.format(1, 1).header_bytes()
    }

    /// Checks everything that can be checked before time is spent.
    ///
    /// # Errors
    /// As [`LuksFormat::validate`]; no time.
    pub fn validate(&self) -> Result<()> {
        if self.iter_time.is_zero() {
            return Err(Error::invalid("iter-time must be greater than 0"));
        }
        self.format(1, 1).validate()
    }

    /// Makes a volume that `secret` opens. Takes a while: the derivation is timed, then carried out.
    ///
    /// # Errors
    /// As [`LuksFormat::make`] and [`iterations_in`].
    pub fn make(&self, secret: &Secret) -> Result<NewVolume> {
        self.validate()?;
        let slot = iterations_in(self.hash, self.spec.key_bytes(), self.iter_time)?;
        // As in QEMU, the digest takes an eighth of the time.
        let digest = iterations_in(self.hash, 20, self.iter_time / 8)?;
        self.format(slot, digest).make(secret, &mut SystemRandom)
    }

    fn format(&self, slot_iterations: u32, master_key_iterations: u32) -> LuksFormat {
        LuksFormat { spec: self.spec, hash: self.hash, slot_iterations, master_key_iterations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_are_taken_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"secret\n").unwrap();
        assert_eq!(key_from_file(&path).unwrap().as_bytes(), b"secret\n");
        File::create(&path).unwrap().set_len(MAX_KEY_BYTES + 1).unwrap();
        assert!(matches!(key_from_file(&path).unwrap_err().kind(), ErrorKind::Limit(_)));
        let missing = key_from_file(&folder.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("the key file"), "{missing}");
        assert!(key_from_environment("QCOWKIT_NO_SUCH_VARIABLE").unwrap_err().to_string().contains("is not set"));
    }

    #[test]
    fn random_bytes_differ_and_times_count() {
        let mut bytes = [[0u8; 32]; 2];
        bytes.iter_mut().for_each(|bytes| SystemRandom.fill(bytes).unwrap());
        assert_ne!(bytes[0], bytes[1]);
        assert_eq!(iterations_in(HashAlgorithm::Sha512, 64, Duration::from_nanos(1)).unwrap(), 1000);
        assert!(iterations_in(HashAlgorithm::Md5, 16, Duration::from_secs(1 << 30)).is_err());
        assert!(LuksOptions { iter_time: Duration::ZERO, ..LuksOptions::default() }.validate().is_err());
    }
}
