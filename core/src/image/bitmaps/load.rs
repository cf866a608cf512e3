//! Reading the directory, tables and data of bitmaps.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BigEndian, ByteOrder};

use super::MAX_BITMAP_MEMORY;
use super::bits::{ClusterBits, DirtyBits};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{BitmapEntry, BitmapTableEntry, Geometry, HeaderArea, Name};
use crate::image::Image;
use crate::storage::{ReadStorage, Storage};

/// The bitmap directory (section "Bitmap directory"), if the image has one that is consistent; otherwise nothing.
///
/// # Errors
/// A directory that cannot be where the header says, or is larger than the file; an entry that does not parse; a storage
/// that fails.
pub(crate) fn read_directory(
    area: &HeaderArea,
    geometry: &Geometry,
    storage: &(impl ReadStorage + ?Sized),
) -> Result<Vec<BitmapEntry>> {
    let Some(bitmaps) = area.usable_bitmaps(geometry)? else { return Ok(Vec::new()) };
    let at = |error: Error| error.in_structure(Structure::BitmapDirectory).at_host(bitmaps.directory_offset);
    let end = bitmaps.directory_offset.saturating_add(bitmaps.directory_size);
    if end > storage.len()? {
        let what = format!("{} bytes of it reach beyond the end of the file", bitmaps.directory_size);
        return Err(at(Error::corrupt(Structure::BitmapDirectory, what)));
    }
    let mut bytes = vec![0u8; usize::try_from(bitmaps.directory_size).unwrap_or(0)];
    storage.read_at(bitmaps.directory_offset, &mut bytes).map_err(|error| at(error.into()))?;
    BitmapEntry::parse_directory(&bytes, bitmaps.nb_bitmaps, bitmaps.directory_offset)
}

impl<S: Storage> Image<S> {
    /// The bits of a bitmap on storage.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] or the like for a bitmap that cannot be used, because it breaks the rules, is in use, or
    /// shares its name with another.
    pub(super) fn load_bits(&self, entries: &[BitmapEntry], index: usize) -> Result<DirtyBits> {
        let Some(entry) = entries.get(index) else { return Err(Error::invalid("no such bitmap")) };
        let unique = entries.iter().filter(|other| other.name == entry.name).count() == 1;
        self.load_entry(entry, index, unique)
    }

    /// The same for callers that go through all bitmaps, and know from [`unique_names`] which names are unique: a
    /// directory has up to 65,535 entries, and not each can be compared with each.
    pub(super) fn load_entry(&self, entry: &BitmapEntry, index: usize, unique: bool) -> Result<DirtyBits> {
        let geometry = self.geometry();
        let broken = |what: &str| Err(Error::corrupt(Structure::BitmapDirectory, what).at_index(position(index)));
        if let Some(what) = entry.what_is_wrong(geometry) {
            return broken(what);
        }
        if !unique {
            return broken("two bitmaps of one name");
        }
        if entry.flags.in_use() {
            return broken("it is marked as in use: it was not saved, or another program is changing it");
        }
        let mut bits = DirtyBits::new(geometry.virtual_size(), entry.granularity_bits);
        let cluster_size = geometry.cluster_size();
        for (n, content) in (0u64..).zip(self.bitmap_table(entry)?) {
            let content = match content {
                BitmapTableEntry::AllZeros => continue,
                BitmapTableEntry::AllOnes => ClusterBits::Ones,
                BitmapTableEntry::Cluster(host) => {
                    let mut bytes = vec![0u8; geometry.cluster_len()];
                    let site = |error: Error| error.in_structure(Structure::BitmapData).at_host(host.get());
                    if host.get().saturating_add(cluster_size) > geometry.align_up(self.storage.len()?) {
                        return Err(site(Error::corrupt(Structure::BitmapData, "its data lie beyond the file")));
                    }
                    self.storage.read_at(host.get(), &mut bytes).map_err(|error| site(error.into()))?;
                    ClusterBits::Bytes(bytes)
                }
            };
            bits.load_cluster(n, cluster_size, &content);
            if bits.memory() > MAX_BITMAP_MEMORY {
                let what = format!("the bits of one bitmap need more than {MAX_BITMAP_MEMORY} bytes of memory");
                return Err(Error::new(ErrorKind::Limit(what)).in_structure(Structure::BitmapData));
            }
        }
        Ok(bits)
    }

    /// The table of a bitmap whose entry is sound.
    pub(super) fn bitmap_table(&self, entry: &BitmapEntry) -> Result<Vec<BitmapTableEntry>> {
        let bytes = u64::from(entry.table_entries).saturating_mul(8);
        let site = |error: Error| error.in_structure(Structure::BitmapTable).at_host(entry.table_offset);
        // Beyond the end of a file that was cut short everything would read as clean.
        if entry.table_offset.saturating_add(bytes) > self.storage.len()? {
            return Err(site(Error::corrupt(Structure::BitmapTable, "its table reaches beyond the end of the file")));
        }
        let mut raw = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
        self.storage.read_at(entry.table_offset, &mut raw).map_err(|error| site(error.into()))?;
        let decode = |(n, bytes): (u64, &[u8; 8])| {
            BitmapTableEntry::decode(BigEndian::read_u64(bytes), self.geometry())
                .map_err(|error| Error::corrupt(Structure::BitmapTable, format!("{error}")).at_index(n))
        };
        (0..).zip(raw.as_chunks::<8>().0).map(decode).collect()
    }
}

/// For each entry, whether no other has its name.
pub(super) fn unique_names(entries: &[BitmapEntry]) -> Vec<bool> {
    let mut counts: BTreeMap<&Name, usize> = BTreeMap::new();
    for entry in entries {
        let count = counts.entry(&entry.name).or_default();
        *count = count.saturating_add(1);
    }
    entries.iter().map(|entry| counts.get(&entry.name) == Some(&1)).collect()
}

fn position(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}
