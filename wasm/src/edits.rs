//! Edits: states to go back to, and ways to save them.

use js_sys::Uint8Array;
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, ErrorKind};
use wasm_bindgen::prelude::*;

use crate::error::outcome;
use crate::image::RawImage;
use crate::json;
use crate::limits::{MAX_ROWS, MAX_SAVE_BYTES, limit};
use crate::options::{Thrown, invalid};

/// Bytes that are copied at once while saving.
const PIECE: usize = 1 << 20;

#[wasm_bindgen]
impl RawImage {
    pub fn checkpoint(&mut self) -> Thrown<u32> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let number = open.next_mark;
        open.next_mark += 1;
        open.marks.push((number, open.edits.overlay().mark()));
        Ok(number)
    }

    pub fn rollback(&mut self, checkpoint: u32) -> Thrown<()> {
        let open = self.open_mut()?;
        let found = open.marks.iter().find(|(number, _)| *number == checkpoint).map(|(_, mark)| mark.clone());
        let mark = found.ok_or_else(|| invalid(format!("there is no checkpoint {checkpoint}")))?;
        // What the disk has not written yet belongs to the state that is left.
        open.leave_disk();
        open.edits.overlay().restore(&mark);
        Ok(())
    }

    pub fn drop_checkpoint(&mut self, checkpoint: u32) -> Thrown<()> {
        let open = self.open_mut()?;
        open.marks.retain(|(number, _)| *number != checkpoint);
        Ok(())
    }

    pub fn save(&mut self) -> Thrown<Uint8Array> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let length = outcome(open.edits.len().map_err(Error::from))?;
        if length > MAX_SAVE_BYTES {
            let message = format!("the file has {length} bytes, save gives at most {MAX_SAVE_BYTES} (max_save_bytes)");
            return outcome(Err(Error::new(ErrorKind::Limit(message))));
        }
        // The bytes stand in JavaScript's memory alone.
        let saved = Uint8Array::new_with_length(length as u32);
        let mut piece = vec![0; PIECE.min(length as usize)];
        let mut at = 0;
        while at < length {
            let here = PIECE.min((length - at) as usize);
            let piece = &mut piece[..here];
            outcome(open.edits.read_at(at, piece).map_err(Error::from))?;
            saved.subarray(at as u32, at as u32 + here as u32).copy_from(piece);
            at += here as u64;
        }
        Ok(saved)
    }

    pub fn parts(&mut self) -> Thrown<String> {
        self.listed(false)
    }

    pub fn patch(&mut self) -> Thrown<String> {
        self.listed(true)
    }

    fn listed(&mut self, edits_alone: bool) -> Thrown<String> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let overlay = open.edits.overlay();
        let parts = if edits_alone { overlay.patch() } else { overlay.parts() };
        let parts = outcome(parts.map_err(Error::from))?;
        if parts.len() as u64 > MAX_ROWS {
            return outcome(Err(limit("one list of parts", "max_rows", MAX_ROWS)));
        }
        Ok(json::text(&parts))
    }
}
