//! What a repair overwrites, kept so that it can be put back byte for byte.
//!
//! # The file
//! All numbers are big-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `qcowkit-undo`, three zeros, the version: 1 |
//! | 8 | length of the image before the repair |
//! | 8 | length after it |
//! | 8 | number of pieces |
//! | ... | the pieces: see below |
//! | 8 | checksum (FNV-1a, 64 bits) of everything before it |
//!
//! A piece is a part of a sector of 512 bytes: offset (8), bytes (4), number of states (4), the checksum of each state
//! that the repair gives it (8 each), and the bytes as they were.
//!
//! With the states an image is recognised: each piece must be as it was, or as the repair made it in one of its steps.
//! So a repair that was interrupted can be undone as well, and an image that was changed since is refused.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::RepairPlan;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::Reader;
use crate::storage::{ReadStorage, Storage};

const MAGIC: &[u8; 16] = b"qcowkit-undo\0\0\0\x01";
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
    states: Vec<u64>,
}

impl UndoLog {
    /// Reads from `storage` what `plan` is going to overwrite.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn of<S: ReadStorage>(plan: &RepairPlan, storage: &S) -> Result<Self> {
        let mut pieces: BTreeMap<u64, Piece> = BTreeMap::new();
        let mut now: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for edit in &plan.edits {
            let end = edit.at.saturating_add(u64::try_from(edit.bytes.len()).unwrap_or(u64::MAX));
            let mut at = edit.at;
            let mut rest = edit.bytes.as_slice();
            while at < end {
                let sector = at.saturating_sub(at.checked_rem(SECTOR).unwrap_or(0));
                let within = usize::try_from(at.saturating_sub(sector)).unwrap_or(0);
                let here = rest.len().min(512usize.saturating_sub(within));
                let (part, others) = rest.split_at_checked(here).unwrap_or((rest, &[]));
                // What lies behind the old end goes with the length.
                let kept = usize::try_from(plan.length_before.saturating_sub(sector).min(SECTOR)).unwrap_or(0);
                if kept > 0 {
                    let piece = match pieces.entry(sector) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(unknown) => {
                            let mut old = vec![0u8; kept];
                            storage.read_at(sector, &mut old)?;
                            now.insert(sector, old.clone());
                            unknown.insert(Piece { old, states: Vec::new() })
                        }
                    };
                    if let Some(now) = now.get_mut(&sector) {
                        now.iter_mut().skip(within).zip(part).for_each(|(byte, new)| *byte = *new);
                        piece.states.push(checksum(now));
                    }
                }
                at = at.saturating_add(u64::try_from(here).unwrap_or(1));
                rest = others;
            }
        }
        for piece in pieces.values_mut() {
            piece.states.sort_unstable();
            piece.states.dedup();
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
            out.extend(u32::try_from(piece.states.len()).unwrap_or(u32::MAX).to_be_bytes());
            piece.states.iter().for_each(|state| out.extend(state.to_be_bytes()));
            out.extend(&piece.old);
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
            let length = usize::try_from(reader.u32("bytes")?).unwrap_or(usize::MAX);
            let states = reader.u32("number of states")?;
            let states = (0..states).map(|_| reader.u64("state")).collect::<Result<Vec<u64>>>()?;
            let old = reader.take(length, "old bytes")?.to_vec();
            pieces.insert(at, Piece { old, states });
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
            if now != piece.old && piece.states.binary_search(&checksum(&now)).is_err() {
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
