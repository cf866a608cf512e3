//! Bytes and values: every structure of a qcow2 file, parsed and emitted. No I/O happens on this floor.
//!
//! Masks, shifts and field positions are known here alone (and each once); the floors above see enums and typed
//! offsets.

mod bitmap;
mod bits;
mod count;
mod entry;
mod extension;
mod fault;
mod features;
mod geometry;
mod header;
mod header_fields;
mod l2_table;
mod limits;
mod luks;
mod magic;
mod name;
mod offset;
mod reader;
mod refcount;
mod snapshot;
mod validate;

pub use bitmap::{BitmapEntry, BitmapFlags, BitmapTableEntry};
pub(crate) use count::counted;
pub use entry::{CompressedRange, HostRef, L1Entry, L2Entry, L2Kind, RawL2Entry, Subclusters};
pub use extension::{BitmapsExtension, Extension};
pub use fault::{EntryError, EntryFaults};
pub use features::{AutoclearFeatures, CompatibleFeatures, FeatureKind, FeatureName, IncompatibleFeatures};
pub use geometry::Geometry;
pub use header::{Header, HeaderArea, WriteObstacles};
pub use header_fields::HeaderField;
pub use l2_table::{L2Run, L2Runs, l2_runs};
pub use limits::*;
pub use luks::{LuksHeader, LuksSlot};
pub use magic::format_by_magic;
pub use name::Name;
pub use offset::{GuestCluster, GuestOffset, HostCluster, HostOffset};
pub use reader::Reader;
pub use refcount::{
    decode_refcount_table_entry, encode_refcount_table_entry, max_refcount, read_refcount, refcount_table_offset_bits,
    write_refcount,
};
pub use snapshot::Snapshot;
