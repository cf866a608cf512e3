//! What can be wrong with a table entry.

/// Why an entry has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EntryError {
    /// Reserved bits are set.
    #[error("reserved bits are set")]
    ReservedBits,
    /// The host offset is not a multiple of the cluster size.
    #[error("the host offset is not aligned to a cluster")]
    Unaligned,
    /// The zero flag in an image of version 2.
    #[error("the zero flag is set in an image of version 2")]
    ZeroInVersion2,
    /// A subcluster is marked both allocated and zero.
    #[error("a subcluster is marked both allocated and zero")]
    SubclusterConflict,
    /// Subclusters are marked allocated, but there is no host cluster.
    #[error("subclusters are allocated without a host cluster")]
    SubclusterWithoutCluster,
    /// A compressed cluster in an image with an external data file.
    #[error("a compressed cluster in an image with an external data file")]
    CompressedInDataFile,
    /// With an external data file, the host offset must equal the guest offset.
    #[error("the offset in the data file differs from the guest offset")]
    DataFileOffset,
    /// A compressed cluster with the COPIED flag. Readable all the same: only [`super::L2Entry::examine`] tells it.
    #[error("a compressed cluster has the COPIED flag")]
    CompressedCopied,
    /// A compressed cluster with a subcluster bitmap. Readable all the same: only [`super::L2Entry::examine`] tells it.
    #[error("a compressed cluster has a subcluster bitmap")]
    CompressedBitmap,
    /// Bit 0 in an extended entry. Only [`super::L2Entry::examine`] tells it apart from other reserved bits.
    #[error("the zero flag is set in an extended L2 entry")]
    ZeroInExtended,
}

/// A set of [`EntryError`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EntryFaults(u16);

impl EntryFaults {
    const ALL: [EntryError; 10] = [
        EntryError::ReservedBits,
        EntryError::Unaligned,
        EntryError::ZeroInVersion2,
        EntryError::SubclusterConflict,
        EntryError::SubclusterWithoutCluster,
        EntryError::CompressedInDataFile,
        EntryError::DataFileOffset,
        EntryError::CompressedCopied,
        EntryError::CompressedBitmap,
        EntryError::ZeroInExtended,
    ];

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it has this one.
    #[must_use]
    pub fn contains(self, fault: EntryError) -> bool {
        self.0 & fault.mask() != 0
    }

    /// Those that it has.
    pub fn iter(self) -> impl Iterator<Item = EntryError> {
        Self::ALL.into_iter().filter(move |&fault| self.contains(fault))
    }

    /// The same with one more.
    #[must_use]
    pub fn with(self, fault: EntryError) -> Self {
        Self(self.0 | fault.mask())
    }

    pub(super) fn add_if(&mut self, condition: bool, fault: EntryError) {
        if condition {
            self.0 |= fault.mask();
        }
    }
}

impl EntryError {
    fn mask(self) -> u16 {
        let position = EntryFaults::ALL.iter().position(|&fault| fault == self).unwrap_or(15);
        1u16.wrapping_shl(u32::try_from(position).unwrap_or(15))
    }
}
