//! How an image is opened: QEMU's run-time options under QEMU's names.

use alloc::sync::Arc;
use core::fmt;

use super::SnapshotSelector;
use crate::codec::{BuiltinCodecs, Codecs};
use crate::crypto::{KeySource, Keyring, MAX_KEY_ITERATIONS, Secret};
use crate::metadata::{DiscardPolicy, MetadataOptions, OverlapChecks};

/// What happens to writes that hold nothing but zeros (QEMU: `detect-zeroes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum DetectZeroes {
    /// They are written.
    #[default]
    Off,
    /// They become write-zeroes that keep their clusters.
    On,
    /// They become write-zeroes that may unmap.
    Unmap,
}

/// Options of an open image. The defaults are QEMU's with `discard=unmap`.
#[derive(Clone)]
pub struct OpenOptions {
    /// Writes are refused, and nothing is changed on storage.
    pub read_only: bool,
    /// Guest discards are carried out (QEMU: `discard=unmap`); otherwise they succeed and do nothing.
    pub discard: bool,
    /// What discards and write-zeroes do to a cluster.
    pub policy: DiscardPolicy,
    /// What happens to writes of zeros.
    pub detect_zeroes: DetectZeroes,
    /// Which metadata are kept from being overwritten by mistake (QEMU: `overlap-check`).
    pub overlap: OverlapChecks,
    /// Tables in memory and allocation.
    pub metadata: MetadataOptions,
    /// Packs and unpacks compressed clusters.
    pub codecs: Arc<dyn Codecs + Send + Sync>,
    /// Opens the image although its backing or data file was not found or is not allowed; reads that would need it
    /// fail. For `info`, `check` and the like.
    pub ignore_missing_files: bool,
    /// Where the keys of encrypted layers come from. Without it, encrypted images open for all that needs no guest data.
    pub keys: Option<Arc<dyn KeySource + Send + Sync>>,
    /// The most iterations of a key derivation that an image may ask for.
    pub max_key_iterations: u32,
    /// Opens the disk as it was when this internal snapshot was taken, with the size that it had then, read-only. Layers
    /// below are opened as they are.
    pub snapshot: Option<SnapshotSelector>,
    /// The backing layer this many layers down is opened for writing too, as [`super::Image::commit_into`] needs it.
    /// Layers between stay read-only.
    pub writable_backing: Option<u32>,
}

impl OpenOptions {
    /// The same, for reading alone.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, without need for the files that the image names.
    #[must_use]
    pub fn metadata_only(mut self) -> Self {
        self.ignore_missing_files = true;
        self
    }

    /// The same, for a view of a snapshot.
    #[must_use]
    pub fn of_snapshot(mut self, snapshot: SnapshotSelector) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// The same with a key, which is tried on every encrypted layer.
    #[must_use]
    pub fn with_key(mut self, secret: Secret) -> Self {
        self.keys = Some(Arc::new(Keyring::new().with(secret)));
        self
    }

    /// The same with another discard policy.
    #[must_use]
    pub fn with_policy(mut self, policy: DiscardPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The same with other metadata options.
    #[must_use]
    pub fn with_metadata(mut self, metadata: MetadataOptions) -> Self {
        self.metadata = metadata;
        self
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            discard: true,
            policy: DiscardPolicy::default(),
            detect_zeroes: DetectZeroes::Off,
            overlap: OverlapChecks::default(),
            metadata: MetadataOptions::default(),
            codecs: Arc::new(BuiltinCodecs),
            ignore_missing_files: false,
            keys: None,
            max_key_iterations: MAX_KEY_ITERATIONS,
            snapshot: None,
            writable_backing: None,
        }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("discard", &self.discard)
            .field("policy", &self.policy)
            .field("detect_zeroes", &self.detect_zeroes)
            .field("metadata", &self.metadata)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
