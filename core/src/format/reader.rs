//! The one bounded cursor through which every structure is read.

use byteorder::{BigEndian, ByteOrder};

use crate::error::{Error, Result, Structure};

/// A cursor over the bytes of one structure; its errors name the field and the host offset.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    structure: Structure,
    host_offset: u64,
}

impl<'a> Reader<'a> {
    /// A cursor over `bytes`, which stand at `host_offset` in the file.
    #[must_use]
    pub fn new(bytes: &'a [u8], structure: Structure, host_offset: u64) -> Self {
        Self { rest: bytes, structure, host_offset }
    }

    /// The host offset of the next byte.
    #[must_use]
    pub fn host_offset(&self) -> u64 {
        self.host_offset
    }

    /// The bytes that are left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When fewer are left; the message names `field`.
    pub fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(Error::corrupt(self.structure, alloc::format!("{field} reaches beyond the structure"))
                .at_host(self.host_offset));
        };
        self.rest = rest;
        self.host_offset = self.host_offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(head)
    }

    /// The next byte.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8> {
        Ok(self.take(1, field)?.first().copied().unwrap_or_default())
    }

    /// The next two bytes, big-endian.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16> {
        Ok(BigEndian::read_u16(self.take(2, field)?))
    }

    /// The next four bytes, big-endian.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32> {
        Ok(BigEndian::read_u32(self.take(4, field)?))
    }

    /// The next eight bytes, big-endian.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64> {
        Ok(BigEndian::read_u64(self.take(8, field)?))
    }
}
