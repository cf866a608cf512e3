//! Bytes and values: every structure of a qcow2 file, parsed and emitted. No I/O happens on this floor.
//!
//! Masks, shifts and field positions are known here alone (and each once); the floors above see enums and typed
//! offsets.

mod entry;
mod geometry;
mod limits;
mod offset;
mod reader;
mod refcount;

pub use entry::{CompressedRange, EntryError, HostRef, L1Entry, L2Entry, L2Kind, RawL2Entry, Subclusters};
pub use geometry::Geometry;
pub use limits::*;
pub use offset::{GuestCluster, GuestOffset, HostCluster, HostOffset};
pub use reader::Reader;
pub use refcount::{max_refcount, read_refcount, write_refcount};
