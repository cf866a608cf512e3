//! Keys as callers give them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use zeroize::Zeroizing;

use crate::error::Result;

/// What guest data are encrypted with (section "Header", `crypt_method`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum EncryptionMethod {
    /// QEMU's AES of old: the password is the key, and nothing tells a wrong one.
    Aes,
    /// LUKS version 1.
    Luks,
}

impl EncryptionMethod {
    /// The method behind the header field; `None` for no encryption.
    #[must_use]
    pub const fn from_header(crypt_method: u32) -> Option<Self> {
        match crypt_method {
            0 => None,
            1 => Some(Self::Aes),
            _ => Some(Self::Luks),
        }
    }

    /// The name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes => "AES",
            Self::Luks => "LUKS",
        }
    }
}

/// A password, or the bytes of a key file. It is overwritten when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes bytes as they are: a newline at the end is a part of the key.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether QEMU can take it: it takes text in UTF-8 without zero bytes.
    #[must_use]
    pub fn is_text(&self) -> bool {
        core::str::from_utf8(&self.0).is_ok() && !self.0.contains(&0)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Which key is asked for.
#[derive(Debug, Clone, Copy)]
pub struct KeyRequest<'a> {
    /// How deep in the backing chain the image lies; 0 is the top.
    pub depth: u32,
    /// The identity of the image, as [`crate::image::Found::identity`].
    pub identity: Option<&'a str>,
    /// What the image is encrypted with.
    pub method: EncryptionMethod,
    /// How many keys did not fit before this one.
    pub attempt: u32,
}

/// Supplies the keys of a chain, when an image turns out to be encrypted.
pub trait KeySource {
    /// The next key to try; `None` when there is none, or no more.
    ///
    /// # Errors
    /// When a key should be there but cannot be had.
    fn key(&self, request: &KeyRequest<'_>) -> Result<Option<Secret>>;
}

/// Keys at hand: each layer of a chain is tried with the keys that are for it, in order.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<(Option<u32>, Secret)>,
}

impl Keyring {
    /// No keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key for every layer.
    #[must_use]
    pub fn with(mut self, secret: Secret) -> Self {
        self.keys.push((None, secret));
        self
    }

    /// Adds a key for the layer `depth` layers down.
    #[must_use]
    pub fn with_layer(mut self, depth: u32, secret: Secret) -> Self {
        self.keys.push((Some(depth), secret));
        self
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl KeySource for Keyring {
    fn key(&self, request: &KeyRequest<'_>) -> Result<Option<Secret>> {
        let mut fitting = self.keys.iter().filter(|(depth, _)| depth.is_none_or(|depth| depth == request.depth));
        let number = usize::try_from(request.attempt).unwrap_or(usize::MAX);
        Ok(fitting.nth(number).map(|(_, secret)| secret.clone()))
    }
}

/// A short list of names for messages.
#[cfg_attr(not(feature = "crypto-aes"), allow(dead_code, reason = "what lists names is left out"))]
pub(super) fn names(names: impl IntoIterator<Item = &'static str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let keyring = Keyring::new().with(Secret::from("hunter2"));
        assert!(!alloc::format!("{keyring:?}").contains("hunter"));
        assert!(Secret::from("grün").is_text());
        assert!(!Secret::new([0xff].to_vec()).is_text() && !Secret::from("a\0").is_text());
    }

    #[test]
    fn a_ring_gives_each_layer_its_keys_in_order() {
        let ring = Keyring::new().with(Secret::from("all")).with_layer(1, Secret::from("base"));
        let key = |depth, attempt| {
            let request = KeyRequest { depth, identity: None, method: EncryptionMethod::Luks, attempt };
            ring.key(&request).unwrap().map(|secret| secret.as_bytes().to_vec())
        };
        assert_eq!((key(0, 0), key(0, 1)), (Some(b"all".to_vec()), None));
        assert_eq!((key(1, 1), key(1, 2)), (Some(b"base".to_vec()), None));
    }
}
