//! Writing compressed clusters.

use alloc::vec::Vec;

use super::{DetectZeroes, Image};
use crate::codec::CompressionType;
use crate::error::{Error, Result};
use crate::format::{GuestOffset, L2Entry};
use crate::storage::Storage;
use crate::zeros::is_zero;

impl<S: Storage> Image<S> {
    /// Writes whole clusters compressed, each stored plainly where that is not larger. With `detect_zeroes`, a write of
    /// nothing but zeros becomes a write-zeroes.
    ///
    /// # Errors
    /// A range that does not begin and end at a cluster (or end at the end of the disk); otherwise as
    /// [`Image::write_at`]. Images with an external data file cannot hold compressed clusters.
    pub fn write_compressed(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        let end = self.guest_range(offset, u64::try_from(from.len()).unwrap_or(u64::MAX))?;
        let aligned_end = self.geometry().is_aligned(end) || end == self.virtual_size();
        if !self.geometry().is_aligned(offset) || !aligned_end {
            return Err(Error::invalid("compressed writes cover whole clusters"));
        }
        self.begin_writing()?;
        self.mark_dirty(offset, end.saturating_sub(offset));
        if self.options.detect_zeroes != DetectZeroes::Off && is_zero(from) {
            return self.write_zeroes(
                offset,
                end.saturating_sub(offset),
                self.options.detect_zeroes == DetectZeroes::Unmap,
            );
        }
        let cluster_len = self.geometry().cluster_len();
        let mut at = offset;
        for cluster in from.chunks(cluster_len) {
            match self.pack(cluster)? {
                Some(packed) => self.write_packed(at, &packed)?,
                None => self.write_data(at, cluster)?,
            }
            at = at.saturating_add(u64::try_from(cluster_len).unwrap_or(0));
        }
        Ok(())
    }

    /// Packs one cluster, padded with zeros if shorter; `None` when packing does not make it smaller. Changes nothing:
    /// many threads may pack while one writes.
    ///
    /// # Errors
    /// When the codec is not in this build, or fails.
    pub fn pack(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let method = CompressionType::from_u8(self.header().header.compression_type)?;
        let mut padded = Vec::new();
        let whole = if cluster.len() < self.geometry().cluster_len() {
            padded.extend_from_slice(cluster);
            padded.resize(self.geometry().cluster_len(), 0);
            padded.as_slice()
        } else {
            cluster
        };
        let mut packed = Vec::new();
        Ok(self.options.codecs.compress(method, whole, &mut packed)?.then_some(packed))
    }

    /// Stores one cluster that [`Image::pack`] packed.
    ///
    /// # Errors
    /// As [`Image::write_compressed`]; also when `packed` is longer than a cluster.
    pub fn write_packed(&mut self, offset: u64, packed: &[u8]) -> Result<()> {
        self.guest_range(offset, 1)?;
        self.begin_writing()?;
        if self.geometry().data_file() {
            return Err(Error::unsupported("compressed clusters in an image with an external data file"));
        }
        if self.encryption().is_some() {
            return Err(Error::unsupported("compressed clusters in an encrypted image: they would not be encrypted"));
        }
        let length = u64::try_from(packed.len()).unwrap_or(u64::MAX);
        if !self.geometry().is_aligned(offset) || packed.is_empty() || length > self.geometry().cluster_size() {
            return Err(Error::invalid("a packed cluster begins at a cluster and is not longer than one"));
        }
        self.mark_dirty(offset, self.geometry().cluster_size());
        let cluster = self.geometry().guest_cluster(GuestOffset::new(offset));
        self.metadata.writable_table(&self.storage, self.geometry().l1_index(cluster))?;
        let old = self.metadata.entry(&self.storage, cluster)?;
        let range = self.metadata.allocate_compressed(&self.storage, length)?;
        if let Err(error) = self.storage.write_at(range.offset.get(), packed) {
            self.metadata.undo_compressed(&self.storage, range)?;
            return Err(Error::from(error).at_guest(offset));
        }
        self.note_data();
        self.replace_entry(cluster, old, L2Entry::Compressed(range))?;
        if self.metadata.wants_commit() {
            self.commit()?;
        }
        Ok(())
    }
}
