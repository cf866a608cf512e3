//! Edits: states to go back to, and ways to save them.

use js_sys::Uint8Array;
use qcowkit_core::storage::ReadStorage;
use qcowkit_core::{Error, ErrorKind};
use wasm_bindgen::prelude::*;

use crate::error::outcome;
use crate::image::{Mark, RawImage};
use crate::json;
use crate::limits::{MAX_ROWS, MAX_SAVE_BYTES, limit};
use crate::options::{Thrown, array, invalid};
use crate::store::Edits;

/// Bytes that are copied at once while saving.
const PIECE: usize = 1 << 20;

#[wasm_bindgen]
impl RawImage {
    pub fn checkpoint(&mut self) -> Thrown<u32> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let number = open.next_mark;
        open.next_mark += 1;
        let data_file = open.setup.files.data_edits().map(|edits| edits.overlay().mark());
        open.marks.push(Mark { number, file: open.edits.overlay().mark(), data_file });
        Ok(number)
    }

    pub fn rollback(&mut self, checkpoint: u32) -> Thrown<()> {
        let open = self.open_mut()?;
        // What the disk has not written yet belongs to the state that is left.
        if open.marks.iter().any(|mark| mark.number == checkpoint) {
            open.leave_disk();
        }
        let mark = open.marks.iter().find(|mark| mark.number == checkpoint);
        let mark = mark.ok_or_else(|| invalid(format!("there is no checkpoint {checkpoint}")))?;
        open.edits.overlay().restore(&mark.file);
        match (open.setup.files.data_edits(), &mark.data_file) {
            (Some(edits), Some(mark)) => edits.overlay().restore(mark),
            // It was found later, when there were no edits of it.
            (Some(edits), None) => outcome(edits.clear().map_err(Error::from))?,
            (None, _) => {}
        }
        Ok(())
    }

    pub fn drop_checkpoint(&mut self, checkpoint: u32) -> Thrown<()> {
        let open = self.open_mut()?;
        open.marks.retain(|mark| mark.number != checkpoint);
        Ok(())
    }

    pub fn save(&mut self) -> Thrown<Uint8Array> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        whole(&open.edits)
    }

    pub fn save_data_file(&mut self) -> Thrown<Uint8Array> {
        let open = self.open_mut()?;
        outcome(open.settle())?;
        let edits = open.setup.files.data_edits();
        let edits = edits.ok_or_else(|| invalid("the image has no external data file, or it was not found"))?;
        whole(&edits)
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

/// All bytes of a file as edited.
fn whole(edits: &Edits) -> Thrown<Uint8Array> {
    let length = outcome(edits.len().map_err(Error::from))?;
    if length > MAX_SAVE_BYTES {
        let message = format!("the file has {length} bytes, save gives at most {MAX_SAVE_BYTES} (max_save_bytes)");
        return outcome(Err(Error::new(ErrorKind::Limit(message))));
    }
    // The bytes stand in JavaScript's memory alone.
    let saved = array(length)?;
    let mut piece = vec![0; PIECE.min(length as usize)];
    let mut at = 0;
    while at < length {
        let here = PIECE.min((length - at) as usize);
        let piece = &mut piece[..here];
        outcome(edits.read_at(at, piece).map_err(Error::from))?;
        saved.subarray(at as u32, at as u32 + here as u32).copy_from(piece);
        at += here as u64;
    }
    Ok(saved)
}
