//! Who claims which cluster of the file: sixteen bits a cluster, in pages that exist only where something is claimed.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::ledger::SpaceClass;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::operations::walk::Uses;

/// Clusters in one page.
const PAGE: u64 = 4096;
/// Clusters in one page, for slices.
const PAGE_LEN: usize = 4096;

/// Bytes of the largest map that an analysis makes: enough for every cluster of 32 TiB in clusters of 64 KiB, or for
/// far longer files of which little is used.
pub const MAX_ANALYSIS_MAP_BYTES: u64 = 1 << 30;

/// A set of claims on one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Claims(u16);

impl Claims {
    pub(super) const NONE: Self = Self(0);
    pub(super) const HEADER: Self = Self(1);
    pub(super) const L1: Self = Self(1 << 1);
    pub(super) const REFCOUNT_TABLE: Self = Self(1 << 2);
    pub(super) const REFCOUNT_BLOCK: Self = Self(1 << 3);
    pub(super) const L2: Self = Self(1 << 4);
    /// Snapshot table and the snapshots' L1 tables.
    pub(super) const SNAPSHOT: Self = Self(1 << 5);
    /// An L2 table under a snapshot's L1 table.
    pub(super) const SNAPSHOT_L2: Self = Self(1 << 6);
    pub(super) const BITMAP: Self = Self(1 << 7);
    pub(super) const BITMAP_DATA: Self = Self(1 << 8);
    pub(super) const ENCRYPTION: Self = Self(1 << 9);
    /// Mapped by the active L1 table, every part with data.
    pub(super) const LIVE: Self = Self(1 << 10);
    /// Mapped by the active L1 table, and only the parts in the mask hold data: none, unless there is a mask.
    pub(super) const MAPPED: Self = Self(1 << 11);
    pub(super) const COMPRESSED: Self = Self(1 << 12);
    pub(super) const SNAPSHOT_DATA: Self = Self(1 << 13);
    pub(super) const SNAPSHOT_COMPRESSED: Self = Self(1 << 14);
    /// The refcount is not zero.
    pub(super) const COUNTED: Self = Self(1 << 15);

    /// Claims that may meet on one cluster in a sound image; any two of different families contradict each other.
    const FAMILIES: [Self; 11] = [
        Self::HEADER,
        Self::L1,
        Self::REFCOUNT_TABLE,
        Self::REFCOUNT_BLOCK,
        Self(Self::L2.0 | Self::SNAPSHOT_L2.0),
        Self::SNAPSHOT,
        Self::BITMAP,
        Self::BITMAP_DATA,
        Self::ENCRYPTION,
        Self(Self::LIVE.0 | Self::MAPPED.0 | Self::SNAPSHOT_DATA.0),
        Self(Self::COMPRESSED.0 | Self::SNAPSHOT_COMPRESSED.0),
    ];

    /// What a cluster with this claim is, in the order of precedence. Whether compressed clusters and those that are
    /// mapped without being all data belong to several classes is decided byte by byte.
    pub(super) const CLASSES: [(Self, SpaceClass); 15] = [
        (Self::HEADER, SpaceClass::Header),
        (Self::L1, SpaceClass::L1Table),
        (Self::REFCOUNT_TABLE, SpaceClass::RefcountTable),
        (Self::REFCOUNT_BLOCK, SpaceClass::RefcountBlocks),
        (Self::L2, SpaceClass::L2Tables),
        (Self::SNAPSHOT, SpaceClass::SnapshotMetadata),
        (Self::SNAPSHOT_L2, SpaceClass::SnapshotMetadata),
        (Self::BITMAP, SpaceClass::BitmapMetadata),
        (Self::BITMAP_DATA, SpaceClass::BitmapData),
        (Self::ENCRYPTION, SpaceClass::EncryptionHeader),
        (Self::LIVE, SpaceClass::LiveData),
        (Self::COMPRESSED, SpaceClass::CompressedData),
        (Self::MAPPED, SpaceClass::ZeroRetained),
        (Self::SNAPSHOT_DATA, SpaceClass::OnlyInSnapshots),
        (Self::SNAPSHOT_COMPRESSED, SpaceClass::OnlyInSnapshots),
    ];

    /// What a reference to metadata claims; `None` for what L2 entries name, and for names in the header cluster.
    pub(super) fn of_metadata(target: Structure, uses: Uses) -> Option<Self> {
        let active = uses.active > 0;
        Some(match target {
            Structure::Header => Self::HEADER,
            Structure::CryptoHeader => Self::ENCRYPTION,
            Structure::L1Table if active => Self::L1,
            Structure::L1Table | Structure::SnapshotTable => Self::SNAPSHOT,
            Structure::L2Table => {
                let snapshots = if uses.snapshots > 0 { Self::SNAPSHOT_L2 } else { Self::NONE };
                if active { snapshots.with(Self::L2) } else { snapshots }
            }
            Structure::BitmapDirectory | Structure::BitmapTable => Self::BITMAP,
            Structure::BitmapData => Self::BITMAP_DATA,
            Structure::RefcountTable => Self::REFCOUNT_TABLE,
            Structure::RefcountBlock => Self::REFCOUNT_BLOCK,
            Structure::DataCluster
            | Structure::CompressedCluster
            | Structure::DataFile
            | Structure::HeaderExtension
            | Structure::BackingFile => return None,
        })
    }

    /// What an entry with a host cluster of its own claims; `active` is the claim of the active disk.
    pub(super) fn of_data(active: Self, uses: Uses) -> Self {
        let snapshots = if uses.snapshots > 0 { Self::SNAPSHOT_DATA } else { Self::NONE };
        if uses.active > 0 { snapshots.with(active) } else { snapshots }
    }

    /// What an entry with compressed data claims.
    pub(super) fn of_compressed(uses: Uses) -> Self {
        let snapshots = if uses.snapshots > 0 { Self::SNAPSHOT_COMPRESSED } else { Self::NONE };
        if uses.active > 0 { snapshots.with(Self::COMPRESSED) } else { snapshots }
    }

    /// The place of the first class that applies in the order of precedence; the last of all without a reference.
    pub(super) fn rank(self) -> usize {
        Self::CLASSES.iter().position(|(claim, _)| self.any(*claim)).unwrap_or(Self::CLASSES.len())
    }

    /// The first class that the claims put a cluster in; `None` without a reference.
    pub(super) fn class(self) -> Option<SpaceClass> {
        Self::CLASSES.get(self.rank()).map(|(_, class)| *class)
    }

    /// Whether any claim of `other` is among these.
    pub(super) const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The claims without the mark of a refcount.
    pub(super) const fn references(self) -> Self {
        Self(self.0 & !Self::COUNTED.0)
    }

    pub(super) const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether the claims contradict each other.
    pub(super) fn conflict(self) -> bool {
        Self::FAMILIES.iter().filter(|family| self.any(**family)).count() > 1
    }
}

/// One value for each cluster of the file, the default where nothing was set.
#[derive(Debug)]
pub(super) struct Paged<T> {
    clusters: u64,
    pages: Vec<Option<Box<[T]>>>,
    bytes_left: u64,
}

impl<T: Copy + Default + PartialEq> Paged<T> {
    /// A map of `clusters` clusters that takes no more than `bytes` bytes, its index included.
    pub(super) fn new(clusters: u64, bytes: u64) -> Result<Self> {
        let pages = clusters.div_ceil(PAGE);
        let index = pages.saturating_mul(16);
        let count = usize::try_from(pages).ok().filter(|_| index <= bytes).ok_or_else(too_large)?;
        let mut all = Vec::new();
        all.try_reserve_exact(count).map_err(|_| too_large())?;
        all.resize_with(count, || None);
        Ok(Self { clusters, pages: all, bytes_left: bytes.saturating_sub(index) })
    }

    /// The clusters of the file.
    pub(super) fn clusters(&self) -> u64 {
        self.clusters
    }

    pub(super) fn at(&self, cluster: u64) -> T {
        let (page, index) = place(cluster);
        match self.pages.get(page) {
            Some(Some(values)) => values.get(index).copied().unwrap_or_default(),
            Some(None) | None => T::default(),
        }
    }

    /// The value of a cluster to change, `None` beyond the end of the file.
    pub(super) fn at_mut(&mut self, cluster: u64) -> Result<Option<&mut T>> {
        if cluster >= self.clusters {
            return Ok(None);
        }
        let (page, index) = self.page_mut(cluster)?;
        Ok(page.get_mut(index))
    }

    /// The page of a cluster, made where there is none, and the cluster's place in it; an empty one beyond the end.
    fn page_mut(&mut self, cluster: u64) -> Result<(&mut [T], usize)> {
        let (page, index) = place(cluster);
        let Some(slot) = self.pages.get_mut(page) else { return Ok((&mut [], 0)) };
        if slot.is_none() {
            let bytes = PAGE.saturating_mul(u64::try_from(size_of::<T>()).unwrap_or(u64::MAX));
            self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(too_large)?;
        }
        let values = slot.get_or_insert_with(|| vec![T::default(); PAGE_LEN].into_boxed_slice());
        Ok((values, index))
    }

    /// The cluster after the last whose value is not the default; 0 where there is none.
    pub(super) fn used_end(&self) -> u64 {
        let mut page = u64::try_from(self.pages.len()).unwrap_or(u64::MAX);
        for values in self.pages.iter().rev() {
            page = page.saturating_sub(1);
            let last = values.as_ref().and_then(|values| values.iter().rposition(|value| *value != T::default()));
            if let Some(last) = last.and_then(|last| u64::try_from(last).ok()) {
                return page.saturating_mul(PAGE).saturating_add(last).saturating_add(1);
            }
        }
        0
    }

    /// The longest run of one value that begins at `start`: the value and the number of clusters, 0 at the end.
    pub(super) fn run(&self, start: u64) -> (T, u64) {
        let value = self.at(start);
        let mut end = start;
        while end < self.clusters {
            let (page, index) = place(end);
            let in_page = PAGE.saturating_sub(end % PAGE).min(self.clusters.saturating_sub(end));
            let same = match self.pages.get(page) {
                Some(Some(values)) => {
                    let rest = values.get(index..).unwrap_or_default();
                    let same = rest.iter().position(|other| *other != value).unwrap_or(rest.len());
                    u64::try_from(same).unwrap_or(0).min(in_page)
                }
                Some(None) | None if value == T::default() => in_page,
                Some(None) | None => 0,
            };
            end = end.saturating_add(same);
            if same < in_page {
                break;
            }
        }
        (value, end.saturating_sub(start))
    }
}

impl Paged<Claims> {
    /// Adds claims to clusters in a row. Gives the number of those that lie beyond the end of the file.
    pub(super) fn claim(&mut self, first: u64, count: u64, claims: Claims) -> Result<u64> {
        let end = first.saturating_add(count);
        let inside = end.min(self.clusters);
        let mut at = first;
        while at < inside {
            let stop = inside.min((at / PAGE).saturating_add(1).saturating_mul(PAGE));
            let (page, index) = self.page_mut(at)?;
            let length = usize::try_from(stop.saturating_sub(at)).unwrap_or(PAGE_LEN);
            for held in page.iter_mut().skip(index).take(length) {
                *held = held.with(claims);
            }
            at = stop;
        }
        Ok(end.saturating_sub(first.max(inside)))
    }
}

fn place(cluster: u64) -> (usize, usize) {
    (usize::try_from(cluster / PAGE).unwrap_or(usize::MAX), usize::try_from(cluster % PAGE).unwrap_or(usize::MAX))
}

fn too_large() -> Error {
    Error::new(ErrorKind::Limit(format!(
        "the analysis needs a map of more than {} MiB: too many clusters are in use",
        MAX_ANALYSIS_MAP_BYTES >> 20
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cross_pages_and_skip_what_does_not_exist() {
        let mut map: Paged<Claims> = Paged::new(5 * PAGE + 7, 1 << 20).unwrap();
        assert_eq!(map.used_end(), 0);
        assert_eq!(map.claim(PAGE - 1, 3, Claims::LIVE).unwrap(), 0);
        assert_eq!(map.claim(5 * PAGE + 7, 4, Claims::LIVE).unwrap(), 4);
        assert_eq!(map.run(0), (Claims::NONE, PAGE - 1));
        assert_eq!(map.run(PAGE - 1), (Claims::LIVE, 3));
        assert_eq!(map.run(PAGE + 2), (Claims::NONE, 4 * PAGE + 5));
        assert_eq!(map.run(5 * PAGE + 7), (Claims::NONE, 0));
        assert_eq!(map.used_end(), PAGE + 2);
        assert_eq!(map.claim(5 * PAGE + 6, 4, Claims::LIVE).unwrap(), 3);
        assert_eq!(map.used_end(), 5 * PAGE + 7);
        assert_eq!(map.claim(u64::MAX, 1, Claims::LIVE).unwrap(), 0);
    }

    #[test]
    fn a_map_that_would_take_too_much_is_refused_by_name() {
        let error = Paged::<Claims>::new(u64::MAX, MAX_ANALYSIS_MAP_BYTES).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit(_)));
        let mut map: Paged<Claims> = Paged::new(10 * PAGE, 160 + 8192).unwrap();
        assert!(map.claim(0, 2, Claims::LIVE).is_ok());
        assert!(map.claim(PAGE, 1, Claims::LIVE).is_err());
    }

    #[test]
    fn only_claims_of_different_families_conflict() {
        let shared = Claims::LIVE.with(Claims::SNAPSHOT_DATA).with(Claims::MAPPED).with(Claims::COUNTED);
        assert!(!shared.conflict());
        assert!(!Claims::L2.with(Claims::SNAPSHOT_L2).conflict());
        assert!(!Claims::COMPRESSED.with(Claims::SNAPSHOT_COMPRESSED).conflict());
        assert!(Claims::LIVE.with(Claims::COMPRESSED).conflict());
        assert!(Claims::L2.with(Claims::LIVE).conflict());
        assert!(!Claims::NONE.conflict());
    }
}
