//! The way of one guest offset: every table entry on it, through the backing chain.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::tables::{L1EntryReport, L2EntryReport, l1_entry, l2_entry};
use super::{Inspector, Shown};
use crate::error::{Error, Result};
use crate::format::{GuestOffset, HostOffset, L2Kind, RawL2Entry};
use crate::image::LayerFormat;
use crate::storage::ReadStorage;

/// A layer of a backing chain.
#[derive(Clone, Copy)]
pub struct InspectedLayer<'a> {
    /// Its bytes.
    pub storage: &'a dyn ReadStorage,
    /// What they are.
    pub format: LayerFormat,
}

/// Where the way of a guest offset ends, in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", tag = "kind"))]
pub enum Resolution {
    /// The byte is in the file.
    Data {
        /// Where.
        host_offset: u64,
    },
    /// The byte is in the external data file.
    DataFile {
        /// Where.
        host_offset: u64,
    },
    /// The byte is in compressed data.
    Compressed {
        /// First byte of the compressed data.
        host_offset: u64,
        /// Their bytes, to the end of the last sector.
        length: u64,
        /// Position of the byte in the unpacked cluster.
        in_cluster: u64,
    },
    /// It reads as zero.
    Zero,
    /// This layer says nothing: the one below does, or it reads as zero without one.
    Unallocated,
    /// The layer is shorter: it reads as zero.
    BeyondEnd,
    /// An entry on the way is broken: reading fails here.
    Broken,
}

/// The way of a guest offset through one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LayerPath {
    /// 0 is the image itself.
    pub depth: u32,
    /// What the layer is.
    pub format: LayerFormat,
    /// Bytes of the layer's virtual disk.
    pub virtual_size: u64,
    /// The entries on the way; none in raw layers.
    pub entries: Option<GuestPath>,
    /// Where the way ends.
    pub resolution: Resolution,
}

/// The entries on the way of a guest offset in one qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GuestPath {
    /// The guest cluster.
    pub guest_cluster: u64,
    /// Position within it.
    pub in_cluster: u64,
    /// The L1 entry, and where it stands.
    pub l1_entry_offset: u64,
    /// The L1 entry.
    pub l1: Shown<L1EntryReport>,
    /// Refcount of the L2 table.
    pub l2_table_refcount: Option<Shown<u64>>,
    /// Where the L2 entry stands.
    pub l2_entry_offset: Option<u64>,
    /// The L2 entry.
    pub l2: Option<Shown<L2EntryReport>>,
    /// The subcluster within the cluster; with extended L2 entries.
    pub subcluster: Option<u32>,
    /// Refcount of the host cluster (the first, with compressed data); none in a data file.
    pub host_refcount: Option<Shown<u64>>,
}

/// Follows a guest offset through a chain, top first, as far as the layers are given and needed.
#[must_use]
pub fn inspect_guest(layers: &[InspectedLayer<'_>], offset: u64) -> Vec<Shown<LayerPath>> {
    let mut paths = Vec::new();
    for (depth, layer) in (0u32..).zip(layers) {
        let path: Shown<LayerPath> = layer_path(depth, layer, offset).into();
        let goes_on = path.value().is_some_and(|path| path.resolution == Resolution::Unallocated);
        paths.push(path);
        if !goes_on {
            break;
        }
    }
    paths
}

fn layer_path(depth: u32, layer: &InspectedLayer<'_>, offset: u64) -> Result<LayerPath> {
    let LayerFormat::Qcow2 = layer.format else {
        let virtual_size = layer.storage.len()?;
        let inside = offset < virtual_size;
        let resolution = if inside { Resolution::Data { host_offset: offset } } else { Resolution::BeyondEnd };
        return Ok(LayerPath { depth, format: layer.format, virtual_size, entries: None, resolution });
    };
    let inspector = Inspector::new(layer.storage);
    let virtual_size = inspector.geometry().map_err(|error| error.at_depth(depth))?.virtual_size();
    let path = inspector.guest_path(offset)?;
    let resolution = if offset < virtual_size { path.resolution(&inspector, offset) } else { Resolution::BeyondEnd };
    Ok(LayerPath { depth, format: layer.format, virtual_size, entries: Some(path), resolution })
}

impl<S: ReadStorage + ?Sized> Inspector<'_, S> {
    /// Every table entry on the way of a guest offset in this image. Offsets beyond the virtual size are followed too,
    /// as far as the L1 table goes: the state of a VM is there.
    #[must_use]
    pub fn guest(&self, offset: u64) -> Shown<GuestPath> {
        self.guest_path(offset).into()
    }

    pub(super) fn guest_path(&self, offset: u64) -> Result<GuestPath> {
        let geometry = *self.geometry()?;
        let header = &self.header_area()?.header;
        let cluster = geometry.guest_cluster(GuestOffset::new(offset));
        let (l1_index, l2_index) = (geometry.l1_index(cluster), geometry.l2_index(cluster));
        let l1_entry_offset = header.l1_table_offset.saturating_add(l1_index.saturating_mul(8));
        let subcluster = geometry.in_cluster(offset).checked_div(geometry.subcluster_size()).unwrap_or(0);
        let mut path = GuestPath {
            guest_cluster: cluster.get(),
            in_cluster: geometry.in_cluster(offset),
            l1_entry_offset,
            l1: Shown::Error(alloc::format!("the L1 table has {} entries, not {l1_index}", header.l1_size)),
            l2_table_refcount: None,
            l2_entry_offset: None,
            l2: None,
            subcluster: u32::try_from(subcluster).ok().filter(|_| geometry.extended_l2()),
            host_refcount: None,
        };
        if l1_index >= header.l1_size.into() {
            return Ok(path);
        }
        path.l1 = self.word(l1_entry_offset).map(|raw| l1_entry(l1_index, raw, &geometry)).into();
        let Some(table) = path.l1.value().and_then(|entry| entry.l2_offset) else { return Ok(path) };
        path.l2_table_refcount = Some(self.refcount_of(table).into());
        let at = table.saturating_add(l2_index.saturating_mul(geometry.l2_entry_size()));
        path.l2_entry_offset = Some(at);
        let entry = self.raw_l2(at).map(|raw| l2_entry(l1_index, l2_index, raw, &geometry));
        path.l2 = Some(entry.into());
        let host = path.l2.as_ref().and_then(Shown::value).and_then(|entry| entry.host_offset);
        path.host_refcount = host.filter(|_| !geometry.data_file()).map(|host| self.refcount_of(host).into());
        Ok(path)
    }

    fn raw_l2(&self, at: u64) -> Result<RawL2Entry> {
        let bitmap = if self.geometry()?.extended_l2() { self.word(at.saturating_add(8))? } else { 0 };
        Ok(RawL2Entry { descriptor: self.word(at)?, bitmap })
    }

    /// The refcount of the cluster that holds a byte of the file.
    pub(super) fn refcount_of(&self, offset: u64) -> Result<u64> {
        use crate::format::{decode_refcount_table_entry, read_refcount};
        let geometry = *self.geometry()?;
        let header = &self.header_area()?.header;
        let cluster = geometry.host_cluster(HostOffset::new(offset));
        let (table_index, index) = (geometry.refcount_table_index(cluster), geometry.refcount_block_index(cluster));
        let bytes = u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size());
        if table_index >= bytes / 8 {
            return Ok(0);
        }
        let raw = self.word(header.refcount_table_offset.saturating_add(table_index.saturating_mul(8)))?;
        let structure = crate::error::Structure::RefcountTable;
        let block = decode_refcount_table_entry(raw, &geometry)
            .map_err(|error| Error::corrupt(structure, error.to_string()).at_index(table_index))?;
        let Some(block) = block else { return Ok(0) };
        // The eight bytes that hold it, whatever its width.
        let per_word_bits = 6u32.saturating_sub(geometry.refcount_order());
        let word = index.wrapping_shr(per_word_bits);
        let in_word = index & 1u64.wrapping_shl(per_word_bits).wrapping_sub(1);
        let bytes = self.word(block.get().saturating_add(word.saturating_mul(8)))?.to_be_bytes();
        Ok(read_refcount(&bytes, in_word, geometry.refcount_order()).unwrap_or(0))
    }
}

impl GuestPath {
    /// Where the way ends, as reading sees it.
    fn resolution<S: ReadStorage + ?Sized>(&self, inspector: &Inspector<'_, S>, offset: u64) -> Resolution {
        let broken = |faults: &[String]| !faults.is_empty();
        let Some(l1) = self.l1.value().filter(|entry| !broken(&entry.faults)) else { return Resolution::Broken };
        if l1.l2_offset.is_none() {
            return Resolution::Unallocated;
        }
        let Some(l2) = self.l2.as_ref().and_then(Shown::value) else { return Resolution::Broken };
        let Ok(geometry) = inspector.geometry() else { return Resolution::Broken };
        let raw = RawL2Entry { descriptor: l2.raw, bitmap: l2.raw_bitmap.unwrap_or(0) };
        if crate::format::L2Entry::decode(raw, geometry).is_err() {
            return Resolution::Broken;
        }
        let at = |host: u64| host.saturating_add(geometry.in_cluster(offset));
        let data = |host: Option<u64>| match host {
            Some(host) if geometry.data_file() => Resolution::DataFile { host_offset: at(host) },
            Some(host) => Resolution::Data { host_offset: at(host) },
            None => Resolution::Broken,
        };
        match (l2.kind, l2.host_offset) {
            (L2Kind::Compressed, Some(host_offset)) => Resolution::Compressed {
                host_offset,
                length: l2.compressed_length.unwrap_or(0),
                in_cluster: geometry.in_cluster(offset),
            },
            (L2Kind::Compressed, None) => Resolution::Broken,
            (L2Kind::ZeroPlain | L2Kind::ZeroAllocated, _) => Resolution::Zero,
            (L2Kind::Unallocated, _) => Resolution::Unallocated,
            (L2Kind::Normal, host) => data(host),
            (L2Kind::Mixed, host) => {
                let set = |mask: Option<u32>| {
                    mask.unwrap_or(0).checked_shr(self.subcluster.unwrap_or(0)).unwrap_or(0) & 1 == 1
                };
                match (set(l2.allocated), set(l2.zero)) {
                    (true, _) => data(host),
                    (false, true) => Resolution::Zero,
                    (false, false) => Resolution::Unallocated,
                }
            }
        }
    }
}
