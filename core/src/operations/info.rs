//! What an image says of itself: the facts of `qemu-img info`, without what only a file system knows.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::tables::read_bitmaps;
use crate::error::{ErrorKind, Result};
use crate::format::{BitmapEntry, BitmapFlags, HeaderArea, LuksHeader, LuksSlot, Snapshot};
use crate::metadata::read_snapshots;
use crate::storage::ReadStorage;

/// What an image says of itself. In JSON the names and the shape are those of `qemu-img info --output=json`; the name of
/// the file, its size on disk and the like are added by whoever knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct ImageInfo {
    /// Always "qcow2".
    pub format: &'static str,
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The dirty bit: refcounts must be rebuilt before use.
    pub dirty_flag: bool,
    /// Guest data are encrypted.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "core::ops::Not::not"))]
    pub encrypted: bool,
    /// The name of the backing file as it stands in the image.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub backing_filename: Option<String>,
    /// The format of the backing file, if the image says it.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub backing_filename_format: Option<String>,
    /// The internal snapshots.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub snapshots: Vec<SnapshotInfo>,
    /// What only qcow2 images have.
    pub format_specific: FormatSpecific,
}

/// The envelope that QEMU puts around what one format has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FormatSpecific {
    /// Always "qcow2".
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: &'static str,
    /// The facts.
    pub data: Qcow2Info,
}

/// What only qcow2 images have. Fields of version 3 are `None` for version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct Qcow2Info {
    /// The version in QEMU's words: "0.10" is version 2, "1.1" is version 3.
    pub compat: &'static str,
    /// "zlib" or "zstd".
    pub compression_type: String,
    /// Width of a refcount in bits.
    pub refcount_bits: u64,
    /// Whether refcounts may be updated late.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub lazy_refcounts: Option<bool>,
    /// The corrupt bit: nothing but repair may write.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub corrupt: Option<bool>,
    /// Whether clusters have subclusters.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub extended_l2: Option<bool>,
    /// The name of the external data file.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub data_file: Option<String>,
    /// Whether the external data file can be read alone.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub data_file_raw: Option<bool>,
    /// How guest data are encrypted.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub encrypt: Option<EncryptInfo>,
    /// The persistent bitmaps, if they are consistent.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub bitmaps: Vec<BitmapInfo>,
    /// Why the persistent bitmaps cannot be read, though the image says that they are consistent. (QEMU does not open
    /// such an image.)
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub bitmaps_problem: Option<String>,
}

/// How guest data are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EncryptInfo {
    /// "aes" or "luks".
    pub format: &'static str,
    /// What the LUKS header says, if there is one that can be read.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub luks: Option<LuksInfo>,
}

/// What a LUKS header says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct LuksInfo {
    /// The cipher with the bits of its key, as in "aes-256".
    pub cipher_alg: String,
    /// Its mode, as in "xts".
    pub cipher_mode: String,
    /// How initialization vectors are made, as in "plain64".
    pub ivgen_alg: String,
    /// The hash for that, if one is used.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub ivgen_hash_alg: Option<String>,
    /// The hash of the key derivation.
    pub hash_alg: String,
    /// Always false: the header is in the image.
    pub detached_header: bool,
    /// The volume's UUID.
    pub uuid: String,
    /// First byte of the data, as the header counts: nothing stands there in a qcow2 image.
    pub payload_offset: u64,
    /// Iterations of the digest of the master key.
    pub master_key_iters: u32,
    /// The key slots.
    pub slots: Vec<LuksSlotInfo>,
}

/// A key slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct LuksSlotInfo {
    /// It holds a key.
    pub active: bool,
    /// First byte of the key material, counted from the LUKS header.
    pub key_offset: u64,
    /// Iterations of the key derivation; of active slots.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub iters: Option<u32>,
    /// Anti-forensic stripes; of active slots.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub stripes: Option<u32>,
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// The ID, unique within the image.
    pub id: String,
    /// The name.
    pub name: String,
    /// Bytes of saved machine state; 0 without one.
    pub vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// The rest of that time, in nanoseconds.
    pub date_nsec: u32,
    /// The machine's clock, in whole seconds.
    pub vm_clock_sec: u64,
    /// The rest of it, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The instruction count, if one was recorded.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub icount: Option<u64>,
}

/// An internal snapshot in a list of them: the members of `qemu-img info`, and the size of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub struct SnapshotListing {
    /// What the table says.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: SnapshotInfo,
    /// Bytes of the disk when it was taken.
    pub disk_size: u64,
}

/// A persistent bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BitmapInfo {
    /// The name.
    pub name: String,
    /// Guest bytes that one bit speaks for; 0 where the image says something impossible.
    pub granularity: u64,
    /// "in-use": it may be stale; "auto": it records guest writes.
    pub flags: Vec<&'static str>,
}

impl ImageInfo {
    /// Reads what is not in the header already: the snapshot table and the bitmap directory.
    ///
    /// # Errors
    /// When the snapshot table cannot be read, or the storage fails. A broken bitmap directory is told, not refused.
    pub fn read(area: &HeaderArea, storage: &(impl ReadStorage + ?Sized)) -> Result<Self> {
        let header = &area.header;
        let bitmaps = match read_bitmaps(area, storage) {
            Err(error) if matches!(error.kind(), ErrorKind::Storage(_)) => return Err(error),
            told => told,
        };
        Ok(Self {
            format: "qcow2",
            virtual_size: header.virtual_size,
            cluster_size: 1u64.checked_shl(header.cluster_bits).unwrap_or(0),
            dirty_flag: header.incompatible.dirty(),
            encrypted: header.crypt_method != 0,
            backing_filename: area.backing_file.as_ref().map(ToString::to_string),
            backing_filename_format: area.backing_format().map(ToString::to_string),
            snapshots: read_snapshots(header, storage)?.iter().map(SnapshotInfo::new).collect(),
            format_specific: FormatSpecific {
                kind: "qcow2",
                data: Qcow2Info::new(area, bitmaps, read_luks(area, storage)),
            },
        })
    }
}

impl Qcow2Info {
    fn new(area: &HeaderArea, bitmaps: Result<Vec<BitmapEntry>>, luks: Option<LuksInfo>) -> Self {
        let header = &area.header;
        let since_3 = |value: bool| (header.version >= 3).then_some(value);
        Self {
            compat: if header.version >= 3 { "1.1" } else { "0.10" },
            compression_type: match header.compression_type {
                0 => "zlib".to_string(),
                1 => "zstd".to_string(),
                other => other.to_string(),
            },
            refcount_bits: 1u64.checked_shl(header.refcount_order).unwrap_or(0),
            lazy_refcounts: since_3(header.compatible.lazy_refcounts()),
            corrupt: since_3(header.incompatible.corrupt()),
            extended_l2: since_3(header.incompatible.extended_l2()),
            data_file: area.data_file().map(ToString::to_string),
            data_file_raw: header.incompatible.data_file().then_some(header.autoclear.data_file_raw()),
            encrypt: match header.crypt_method {
                0 => None,
                1 => Some(EncryptInfo { format: "aes", luks: None }),
                _ => Some(EncryptInfo { format: "luks", luks }),
            },
            bitmaps_problem: bitmaps.as_ref().err().map(ToString::to_string),
            bitmaps: bitmaps.unwrap_or_default().iter().map(BitmapInfo::new).collect(),
        }
    }
}

/// The LUKS header; nothing where there is none that makes sense.
fn read_luks(area: &HeaderArea, storage: &(impl ReadStorage + ?Sized)) -> Option<LuksInfo> {
    let (offset, length) = area.crypto_header()?;
    let mut bytes = [0u8; LuksHeader::LENGTH];
    if length < u64::try_from(bytes.len()).ok()? {
        return None;
    }
    storage.read_at(offset, &mut bytes).ok()?;
    LuksHeader::parse(&bytes, offset).ok().map(|luks| LuksInfo::new(&luks))
}

impl LuksInfo {
    fn new(luks: &LuksHeader) -> Self {
        let (cipher_mode, ivgen_alg, ivgen_hash_alg) = luks.mode_and_vectors();
        let slot = |slot: &LuksSlot| LuksSlotInfo {
            active: slot.active,
            key_offset: slot.key_offset,
            iters: slot.active.then_some(slot.iterations),
            stripes: slot.active.then_some(slot.stripes),
        };
        Self {
            cipher_alg: luks.cipher_algorithm(),
            cipher_mode,
            // As QEMU, which writes one down also where it is not used.
            ivgen_hash_alg: ivgen_hash_alg.filter(|_| ivgen_alg == "essiv"),
            ivgen_alg,
            hash_alg: luks.hash.to_string(),
            detached_header: false,
            uuid: luks.uuid.to_string(),
            payload_offset: luks.payload_offset,
            master_key_iters: luks.master_key_iterations,
            slots: luks.slots.iter().map(slot).collect(),
        }
    }
}

impl SnapshotListing {
    /// What an entry of the snapshot table says. Old entries tell no size: their disk is as large as today's, which
    /// has `virtual_size` bytes.
    #[must_use]
    pub fn new(snapshot: &Snapshot, virtual_size: u64) -> Self {
        Self { info: SnapshotInfo::new(snapshot), disk_size: snapshot.virtual_size().unwrap_or(virtual_size) }
    }
}

impl SnapshotInfo {
    /// What an entry of the snapshot table says.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        const NANOSECONDS: u64 = 1_000_000_000;
        let clock = snapshot.vm_clock_nanoseconds;
        Self {
            id: snapshot.id.to_string(),
            name: snapshot.name.to_string(),
            vm_state_size: snapshot.vm_state_size(),
            date_sec: snapshot.date_seconds,
            date_nsec: snapshot.date_nanoseconds,
            vm_clock_sec: clock.checked_div(NANOSECONDS).unwrap_or(0),
            vm_clock_nsec: clock.checked_rem(NANOSECONDS).unwrap_or(0),
            icount: snapshot.icount(),
        }
    }
}

impl BitmapInfo {
    fn new(entry: &BitmapEntry) -> Self {
        let flags = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
        Self {
            name: entry.name.to_string(),
            granularity: entry.granularity().unwrap_or(0),
            flags: flags.into_iter().filter(|(flag, _)| entry.flags.contains(*flag)).map(|(_, name)| name).collect(),
        }
    }
}
