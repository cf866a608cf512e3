//! What a repair overwrites, kept so that it can be put back byte for byte.
//!
//! # The file
//! All numbers are big-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `qcowkit-undo`, three zeros, the version: 2 |
//! | 8 | length of the image before the repair |
//! | 8 | length after it |
//! | 8 | number of pieces |
//! | ... | the pieces: see below |
//! | 8 | checksum (FNV-1a, 64 bits) of everything before it |
//!
//! A piece is a sector of 512 bytes, or what the file has of it: offset (8), bytes (4), number of changes (4), the bytes as
//! they were, and the changes: each the place within the piece (4), bytes (4), and the bytes that the repair writes there.
//!
//! With the changes an image is recognised: each byte must be as it was, or as one of the changes makes it. So a repair that
//! was interrupted can be undone as well, whichever of its writes have reached the disk, and an image that was changed
//! since is refused. That holds byte by byte: of two writes to one sector the later may be there without the earlier.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::RepairPlan;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::Reader;
use crate::storage::{ReadStorage, Storage};

const MAGIC: &[u8; 16] = b"qcowkit-undo\0\0\0\x02";
const SECTOR: u64 = 512;

/// What a repair overwrites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoLog {
    length_before: u64,
    length_after: u64,
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    old: Vec<u8>,
    /// Where in the piece, and the bytes.
    changes: Vec<(usize, Vec<u8>)>,
}

impl Piece {
    /// Whether each byte is as it was or as a change made it.
    fn knows(&self, now: &[u8]) -> bool {
        let mut strange: Vec<bool> = now.iter().zip(&self.old).map(|(now, old)| now != old).collect();
        for (at, bytes) in &self.changes {
            let here = strange.iter_mut().zip(now).skip(*at);
            here.zip(bytes).for_each(|((strange, now), new)| *strange &= now != new);
        }
        !strange.contains(&true)
    }
}

impl UndoLog {
    /// Reads from `storage` what `plan` is going to overwrite.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn of<S: ReadStorage>(plan: &RepairPlan, storage: &S) -> Result<Self> {
        let mut pieces: BTreeMap<u64, Piece> = BTreeMap::new();
        for edit in plan.edits() {
            let mut at = edit.at;
            let mut rest = edit.bytes.as_slice();
            // What lies behind the old end goes with the length.
            while !rest.is_empty() && at < plan.length_before {
                let within = usize::try_from(at.checked_rem(SECTOR).unwrap_or(0)).unwrap_or(0);
                let sector = at.saturating_sub(u64::try_from(within).unwrap_or(0));
                let kept = usize::try_from(plan.length_before.saturating_sub(sector).min(SECTOR)).unwrap_or(0);
                let (part, others) = rest.split_at_checked(kept.saturating_sub(within)).unwrap_or((rest, &[]));
                let piece = match pieces.entry(sector) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => {
                        let mut old = vec![0u8; kept];
                        storage.read_at(sector, &mut old)?;
                        unknown.insert(Piece { old, changes: Vec::new() })
                    }
                };
                piece.changes.push((within, part.to_vec()));
                at = sector.saturating_add(SECTOR);
                rest = others;
            }
        }
        Ok(Self { length_before: plan.length_before, length_after: plan.length_after, pieces })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.length_before.to_be_bytes());
        out.extend(self.length_after.to_be_bytes());
        out.extend(u64::try_from(self.pieces.len()).unwrap_or(u64::MAX).to_be_bytes());
        for (at, piece) in &self.pieces {
            out.extend(at.to_be_bytes());
            out.extend(u32::try_from(piece.old.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(u32::try_from(piece.changes.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(&piece.old);
            for (within, bytes) in &piece.changes {
                out.extend(u32::try_from(*within).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(bytes);
            }
        }
        let sum = checksum(&out);
        out.extend(sum.to_be_bytes());
        out
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// Not one, of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(ErrorKind::InvalidArgument(format!("not an undo file: {what}")));
        let Some((body, sum)) = bytes.split_last_chunk::<8>() else { return Err(wrong("it is too short")) };
        let Some((magic, _)) = body.split_first_chunk::<16>() else { return Err(wrong("it is too short")) };
        if magic.get(..15) != MAGIC.get(..15) {
            return Err(wrong("it begins otherwise"));
        }
        if magic != MAGIC {
            return Err(Error::unsupported("an undo file of another version"));
        }
        if checksum(body) != u64::from_be_bytes(*sum) {
            return Err(wrong("its checksum is wrong"));
        }
        let reader = &mut Reader::new(body, Structure::Header, 0);
        reader.take(16, "magic")?;
        let (length_before, length_after) = (reader.u64("length before")?, reader.u64("length after")?);
        let count = reader.u64("number of pieces")?;
        let mut pieces = BTreeMap::new();
        for _ in 0..count {
            let at = reader.u64("offset")?;
            let length = number(reader, "bytes")?;
            let count = reader.u32("number of changes")?;
            let old = reader.take(length, "old bytes")?.to_vec();
            let mut changes = Vec::new();
            for _ in 0..count {
                let (within, length) = (number(reader, "place of a change")?, number(reader, "bytes of a change")?);
                changes.push((within, reader.take(length, "changed bytes")?.to_vec()));
            }
            pieces.insert(at, Piece { old, changes });
        }
        Ok(Self { length_before, length_after, pieces })
    }

    /// Puts back what was there, with the length that the file had. Can be done again after a cut.
    ///
    /// # Errors
    /// An image that is not the one that was repaired, or was changed since: nothing is written then. A storage that
    /// fails.
    pub fn restore<S: Storage>(&self, storage: &S) -> Result<()> {
        let length = storage.len()?;
        let refused = |what: &str| Err(Error::invalid(format!("the image is not as the repair left it: {what}")));
        if length < self.length_before.min(self.length_after) || length > self.length_before.max(self.length_after) {
            return refused("it has another length");
        }
        for (&at, piece) in &self.pieces {
            let mut now = vec![0u8; piece.old.len()];
            storage.read_at(at, &mut now)?;
            if !piece.knows(&now) {
                return refused(&format!("the bytes at host offset {at:#x} are others"));
            }
        }
        for (&at, piece) in &self.pieces {
            storage.write_at(at, &piece.old)?;
        }
        storage.barrier()?;
        if length != self.length_before && storage.capabilities().grows {
            storage.set_len(self.length_before)?;
            storage.barrier()?;
        }
        Ok(())
    }
}

/// FNV-1a with 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A number of 32 bits that is a place or a length here.
fn number(reader: &mut Reader<'_>, what: &'static str) -> Result<usize> {
    Ok(usize::try_from(reader.u32(what)?).unwrap_or(usize::MAX))
}
