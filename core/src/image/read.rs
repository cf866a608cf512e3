//! Reading guest bytes.

use alloc::vec;

use super::{Content, Extent, Image, Layer, Unpacked};
use crate::codec::CompressionType;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::CompressedRange;
use crate::storage::Storage;

impl<S: Storage> Image<S> {
    /// Fills `into` with the guest's bytes from `offset`.
    ///
    /// # Errors
    /// A range beyond the virtual disk; corrupt entries or compressed data on the way; a storage that fails; encrypted
    /// data. `into` is then unspecified.
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let length = u64::try_from(into.len()).unwrap_or(u64::MAX);
        self.guest_range(offset, length)?;
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let extent = self.next_extent(at, u64::try_from(rest.len()).unwrap_or(u64::MAX))?;
            let taken = usize::try_from(extent.length).unwrap_or(usize::MAX).min(rest.len());
            let (head, tail) = rest.split_at_mut(taken);
            match extent.content {
                Content::Compressed { range, skip } => self.read_packed(&extent, range, skip, head)?,
                Content::Data { .. } | Content::Zero { .. } | Content::Unallocated => {
                    self.read_extent(&extent, head)?
                }
            }
            at = at.saturating_add(extent.length);
            rest = tail;
        }
        Ok(())
    }

    /// Fills `into` with the bytes of an extent that [`Image::next_extent`] gave, from its first byte on. Moves bytes
    /// only: other threads may do the same, as long as nobody changes the range meanwhile.
    ///
    /// # Errors
    /// As [`Image::read_at`]; also when `into` is longer than the extent.
    pub fn read_extent(&self, extent: &Extent, into: &mut [u8]) -> Result<()> {
        if u64::try_from(into.len()).unwrap_or(u64::MAX) > extent.length {
            return Err(Error::invalid("the buffer is longer than the extent"));
        }
        match extent.content {
            Content::Zero { .. } | Content::Unallocated => {
                into.fill(0);
                Ok(())
            }
            Content::Data { host_offset } => {
                let site = |e: Error| e.at_guest(extent.guest_offset).at_depth(extent.depth);
                let layer = self.image_at_depth(extent.depth);
                if let Some((layer, cipher)) = layer.and_then(|layer| Some((layer, layer.cipher()?))) {
                    layer.refuse_missing_data_file()?;
                    return layer.read_encrypted(cipher, extent.guest_offset, host_offset, into).map_err(site);
                }
                let source = self.data_at_depth(extent.depth)?;
                source.read_at(host_offset.get(), into).map_err(|e| site(e.into()))
            }
            Content::Compressed { range, skip: 0 } if self.is_cluster_at_depth(extent.depth, into.len()) => {
                self.unpack_into(extent, range, into)
            }
            Content::Compressed { range, skip } => {
                let cluster = self.unpack(extent, range)?;
                copy_from(&cluster, skip, into);
                Ok(())
            }
        }
    }

    /// Reads from a compressed cluster, keeping it unpacked for the next read.
    fn read_packed(&mut self, extent: &Extent, range: CompressedRange, skip: u64, into: &mut [u8]) -> Result<()> {
        let (depth, host_offset) = (extent.depth, range.offset.get());
        if let Some(kept) = &self.unpacked
            && kept.depth == depth
            && kept.host_offset == host_offset
        {
            copy_from(&kept.bytes, skip, into);
            return Ok(());
        }
        let bytes = self.unpack(extent, range)?;
        copy_from(&bytes, skip, into);
        self.unpacked = Some(Unpacked { depth, host_offset, bytes });
        Ok(())
    }

    /// Whether `length` is that of a cluster in the layer `depth` layers down.
    fn is_cluster_at_depth(&self, depth: u32, length: usize) -> bool {
        self.image_at_depth(depth).is_some_and(|layer| layer.geometry().cluster_len() == length)
    }

    pub(super) fn unpack(&self, extent: &Extent, range: CompressedRange) -> Result<alloc::vec::Vec<u8>> {
        let layer = self.image_at_depth(extent.depth).ok_or_else(|| Error::invalid("no such layer"))?;
        let mut cluster = vec![0u8; layer.geometry().cluster_len()];
        self.unpack_into(extent, range, &mut cluster)?;
        Ok(cluster)
    }

    /// As [`Image::unpack`], into a place that is exactly as long as a cluster.
    fn unpack_into(&self, extent: &Extent, range: CompressedRange, into: &mut [u8]) -> Result<()> {
        let layer = self.image_at_depth(extent.depth).ok_or_else(|| Error::invalid("no such layer"))?;
        layer.refuse_locked()?;
        let mut packed = vec![0u8; usize::try_from(range.length).unwrap_or(0)];
        let site = |e: Error| {
            e.in_structure(Structure::CompressedCluster)
                .at_host(range.offset.get())
                .at_guest(extent.guest_offset)
                .at_depth(extent.depth)
        };
        layer.storage.read_at(range.offset.get(), &mut packed).map_err(|e| site(Error::from(e)))?;
        let method = CompressionType::from_u8(layer.header().header.compression_type)?;
        layer.options.codecs.decompress(method, &packed, into).map_err(site)
    }

    /// The image `depth` layers down, unless that layer is raw.
    pub fn image_at_depth(&self, depth: u32) -> Option<&Self> {
        match depth.checked_sub(1) {
            None => Some(self),
            Some(below) => match self.backing.as_ref()? {
                Layer::Image(image) => image.image_at_depth(below),
                Layer::Raw { .. } => None,
            },
        }
    }

    /// As [`Image::image_at_depth`], for calls that fill caches.
    pub fn image_at_depth_mut(&mut self, depth: u32) -> Option<&mut Self> {
        match depth.checked_sub(1) {
            None => Some(self),
            Some(below) => match self.backing.as_mut()? {
                Layer::Image(image) => image.image_at_depth_mut(below),
                Layer::Raw { .. } => None,
            },
        }
    }

    /// Where the guest data of the layer `depth` layers down are stored: its image file, data file or raw file.
    ///
    /// # Errors
    /// When the data are encrypted, with or without a key at hand: their bytes are not the guest's. When there is no such
    /// layer.
    pub fn data_at_depth(&self, depth: u32) -> Result<&S> {
        match (depth.checked_sub(1), &self.backing) {
            (None, _) => {
                if let Some(method) = self.encryption() {
                    return Err(Error::new(ErrorKind::Encrypted(method.name().into())));
                }
                self.refuse_missing_data_file()?;
                Ok(self.data_storage())
            }
            (Some(below), Some(Layer::Image(image))) => image.data_at_depth(below),
            (Some(0), Some(Layer::Raw { storage, .. })) => Ok(storage),
            (Some(_), _) => Err(Error::invalid("no such layer")),
        }
    }

    /// Fails when guest data of the layer `depth` layers down cannot be had: no key, no data file.
    pub(super) fn refuse_unreadable(&self, depth: u32) -> Result<()> {
        match self.image_at_depth(depth) {
            None => self.data_at_depth(depth).map(drop),
            Some(image) => image.refuse_locked().and_then(|()| image.refuse_missing_data_file()),
        }
    }

    /// Fails when guest data of this layer are in a data file that was left out.
    pub(super) fn refuse_missing_data_file(&self) -> Result<()> {
        if self.geometry().data_file() && self.data_file.is_none() {
            return Err(Error::new(ErrorKind::Denied("the external data file was not opened".into()))
                .in_structure(Structure::DataFile));
        }
        Ok(())
    }
}

/// Copies `into.len()` bytes from position `skip`; what the cluster does not have is zero.
fn copy_from(cluster: &[u8], skip: u64, into: &mut [u8]) {
    let from = usize::try_from(skip).ok().and_then(|skip| cluster.get(skip..)).unwrap_or(&[]);
    let (copied, missing) = into.split_at_mut(from.len().min(into.len()));
    if let Some(source) = from.get(..copied.len()) {
        copied.copy_from_slice(source);
    }
    missing.fill(0);
}
