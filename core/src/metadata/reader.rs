//! Tables read from storage, without reading holes.

use crate::error::Result;
use crate::storage::{ReadStorage, StorageError, StorageErrorKind, StorageExtentKind};

/// Reads shorter than this are cheaper than asking whether there is a hole.
const HOLE_QUERY_MINIMUM: usize = 32 << 10;
/// Offsets that no file reaches (QEMU's limit, 1 GiB below 2^63): reading there fails rather than giving zeros.
const MAX_FILE_OFFSET: u64 = 0x7fff_ffff_c000_0000;

/// How far before a table in a hole the begin of the hole is looked for at first.
const FIRST_STEP: u64 = 1 << 20;

/// Reads tables; remembers the extent that it met last.
#[derive(Debug)]
pub(crate) struct TableReader<'a, S: ?Sized> {
    storage: &'a S,
    file_length: u64,
    /// Start, end and kind of the extent that was asked for last.
    extent: (u64, u64, StorageExtentKind),
    /// How far before a hole's table the next question looks for its begin.
    step: u64,
}

impl<'a, S: ReadStorage + ?Sized> TableReader<'a, S> {
    pub(crate) fn new(storage: &'a S, file_length: u64) -> Self {
        Self { storage, file_length, extent: (0, 0, StorageExtentKind::Unknown), step: FIRST_STEP }
    }

    /// Fills `into`; past the end of the file with zeros. False means that all is zeros; `into` is untouched then.
    pub(crate) fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<bool> {
        let length = u64::try_from(into.len()).unwrap_or(u64::MAX);
        let Some(end) = offset.checked_add(length).filter(|&end| end <= MAX_FILE_OFFSET) else {
            return Err(StorageError::new(StorageErrorKind::OutOfBounds, "read").at(offset).into());
        };
        if offset >= self.file_length {
            return Ok(false);
        }
        if into.len() >= HOLE_QUERY_MINIMUM && self.is_hole(offset, end.min(self.file_length))? {
            return Ok(false);
        }
        self.storage.read_at(offset, into)?;
        Ok(true)
    }

    fn is_hole(&mut self, offset: u64, end: u64) -> Result<bool> {
        let (start, until, _) = self.extent;
        if !(start..until).contains(&offset) {
            let extent = self.storage.next_extent(offset)?;
            self.extent = (offset, offset.saturating_add(extent.length), extent.kind);
            self.look_before();
        }
        let (_, until, kind) = self.extent;
        Ok(kind == StorageExtentKind::Hole && end <= until)
    }

    /// A hole may begin far before the table that was asked for. Millions of tables can lie in one, in any order: each success
    /// doubles what is known of it.
    fn look_before(&mut self) {
        let (start, until, kind) = self.extent;
        if kind != StorageExtentKind::Hole || start == 0 {
            return;
        }
        let before = start.saturating_sub(self.step);
        let reaches = |length: u64| before.saturating_add(length) >= until;
        let wider = self.storage.next_extent(before).is_ok_and(|found| found.kind == kind && reaches(found.length));
        if wider {
            self.extent = (before, until, kind);
        }
        self.step = if wider { self.step.saturating_mul(2) } else { FIRST_STEP };
    }
}
