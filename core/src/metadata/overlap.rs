//! Which metadata are kept from being overwritten by mistake: QEMU's classes of overlap checks.

/// A set of classes (QEMU: `overlap-check` and `overlap-check.CLASS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlapChecks(u16);

impl OverlapChecks {
    /// Nothing is checked.
    pub const NONE: Self = Self(0);
    /// The header, with an encryption header.
    pub const MAIN_HEADER: Self = Self(1);
    /// The active L1 table.
    pub const ACTIVE_L1: Self = Self(1 << 1);
    /// The active L2 tables.
    pub const ACTIVE_L2: Self = Self(1 << 2);
    /// The refcount table.
    pub const REFCOUNT_TABLE: Self = Self(1 << 3);
    /// The refcount blocks.
    pub const REFCOUNT_BLOCK: Self = Self(1 << 4);
    /// The snapshot table.
    pub const SNAPSHOT_TABLE: Self = Self(1 << 5);
    /// The L1 tables of snapshots.
    pub const INACTIVE_L1: Self = Self(1 << 6);
    /// The L2 tables of snapshots: to know them, all L1 tables of snapshots are read.
    pub const INACTIVE_L2: Self = Self(1 << 7);
    /// The bitmap directory.
    pub const BITMAP_DIRECTORY: Self = Self(1 << 8);
    /// What stays in one place as long as the image is open.
    pub const CONSTANT: Self = Self::MAIN_HEADER
        .with(Self::ACTIVE_L1)
        .with(Self::REFCOUNT_TABLE)
        .with(Self::SNAPSHOT_TABLE)
        .with(Self::BITMAP_DIRECTORY);
    /// What is known without reading more: the default.
    pub const CACHED: Self = Self::CONSTANT.with(Self::ACTIVE_L2).with(Self::REFCOUNT_BLOCK).with(Self::INACTIVE_L1);
    /// Everything.
    pub const ALL: Self = Self::CACHED.with(Self::INACTIVE_L2);

    const NAMES: [(&'static str, Self); 9] = [
        ("main-header", Self::MAIN_HEADER),
        ("active-l1", Self::ACTIVE_L1),
        ("active-l2", Self::ACTIVE_L2),
        ("refcount-table", Self::REFCOUNT_TABLE),
        ("refcount-block", Self::REFCOUNT_BLOCK),
        ("snapshot-table", Self::SNAPSHOT_TABLE),
        ("inactive-l1", Self::INACTIVE_L1),
        ("inactive-l2", Self::INACTIVE_L2),
        ("bitmap-directory", Self::BITMAP_DIRECTORY),
    ];

    /// The set with QEMU's name: `none`, `constant`, `cached` or `all`.
    #[must_use]
    pub fn template(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::NONE),
            "constant" => Some(Self::CONSTANT),
            "cached" => Some(Self::CACHED),
            "all" => Some(Self::ALL),
            _ => None,
        }
    }

    /// The class with QEMU's name.
    #[must_use]
    pub fn class(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, class)| class)
    }

    /// The names of the classes in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |&(_, class)| self.contains(class)).map(|(name, _)| name)
    }

    /// Whether all classes of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The same with the classes of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The same without the classes of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl Default for OverlapChecks {
    fn default() -> Self {
        Self::CACHED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn templates_are_qemus() {
        let names = |name| OverlapChecks::template(name).unwrap().names().collect::<Vec<_>>();
        assert!(names("none").is_empty());
        let constant = ["main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"];
        assert_eq!(names("constant"), constant);
        assert_eq!(names("all").len(), 9);
        assert!(!names("cached").contains(&"inactive-l2") && names("cached").len() == 8);
        assert_eq!(OverlapChecks::default(), OverlapChecks::CACHED);
        for name in names("all") {
            assert!(OverlapChecks::ALL.contains(OverlapChecks::class(name).unwrap()));
        }
        assert!(OverlapChecks::class("data").is_none() && OverlapChecks::template("some").is_none());
    }
}
