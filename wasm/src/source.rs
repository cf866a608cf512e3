//! Where images come from: bytes, or JavaScript's `ByteSource` behind a read-ahead cache.

use std::cell::RefCell;
use std::rc::Rc;

use qcowkit_core::storage::{
    Capabilities, ReadStorage, SliceStorage, StorageError, StorageErrorKind, StorageExtent, StorageExtentKind,
};
use wasm_bindgen::prelude::*;

use crate::error;
use crate::memory::zeros;
use crate::options::{Thrown, bytes, invalid};

#[wasm_bindgen]
extern "C" {
    /// The interface `ByteSource` of the TypeScript layer.
    #[derive(Clone, Debug)]
    pub(crate) type ByteSource;

    #[wasm_bindgen(method, getter, structural, catch)]
    fn size(this: &ByteSource) -> Result<JsValue, JsValue>;

    #[wasm_bindgen(method, getter, structural, catch)]
    fn cached(this: &ByteSource) -> Result<JsValue, JsValue>;

    /// `into` is a view of this module's memory: no copy on this side.
    #[wasm_bindgen(method, structural, catch, js_name = readAt)]
    fn read_at(this: &ByteSource, offset: f64, into: &mut [u8]) -> Result<JsValue, JsValue>;
}

/// Bytes of one piece of the cache, and the most that are read ahead at once.
const PIECE_BYTES: u64 = 64 << 10;
/// Pieces that the cache holds: 4 MiB.
const PIECES: usize = 64;
/// Pieces that one call reads, where the reads before went the same way: 1 MiB.
const AHEAD: u64 = 16;

/// The most bytes that the cache of one source holds.
pub(crate) const READ_AHEAD_BYTES: u64 = PIECE_BYTES * PIECES as u64;

/// What an image was opened on. Never written.
#[derive(Debug)]
pub(crate) enum Base {
    /// Bytes, copied.
    Bytes(SliceStorage<Vec<u8>>),
    /// A source.
    Source(Source),
}

impl Base {
    /// Nothing: what a new image is made on.
    pub(crate) fn empty() -> Rc<Self> {
        Rc::new(Self::Bytes(SliceStorage::new(Vec::new())))
    }

    /// A `Uint8Array` or a `ByteSource`.
    pub(crate) fn of(input: &JsValue) -> Thrown<Rc<Self>> {
        if let Some(array) = input.dyn_ref::<js_sys::Uint8Array>() {
            let mut copy = error::outcome(zeros(array.length().into()))?;
            array.copy_to(&mut copy);
            return Ok(Rc::new(Self::Bytes(SliceStorage::new(copy))));
        }
        if !input.is_object() {
            return Err(invalid("an image comes from a Uint8Array, an ArrayBuffer or a ByteSource"));
        }
        let source: ByteSource = input.clone().unchecked_into();
        let size = source.size()?.as_f64().ok_or_else(|| invalid("size of the ByteSource must be a number"))?;
        let size = bytes(size, "size of the ByteSource")?;
        let cached = source.cached()?.as_bool().unwrap_or(true);
        Ok(Rc::new(Self::Source(Source { source, size, cached, cache: RefCell::default() })))
    }
}

impl ReadStorage for Base {
    fn len(&self) -> Result<u64, StorageError> {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Source(source) => Ok(source.size),
        }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        if error::interrupted() {
            return Err(StorageError::new(StorageErrorKind::Other("the call was ended".into()), "read").at(offset));
        }
        match self {
            Self::Bytes(bytes) => bytes.read_at(offset, into),
            Self::Source(source) => source.read(offset, into),
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: true, grows: true, ..Capabilities::default() }
    }

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        match self {
            Self::Bytes(bytes) => bytes.next_extent(offset),
            // Neither a File nor a URL tells where its holes are.
            Self::Source(source) => {
                let length = source.size.saturating_sub(offset);
                let kind = if length > 0 { StorageExtentKind::Unknown } else { StorageExtentKind::Hole };
                Ok(StorageExtent { kind, length })
            }
        }
    }
}

/// A source with its cache.
#[derive(Debug)]
pub(crate) struct Source {
    source: ByteSource,
    size: u64,
    cached: bool,
    cache: RefCell<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Number of the piece, its bytes, and when it was used last; a handful, so that looking through them is quick.
    pieces: Vec<(u64, Vec<u8>, u64)>,
    clock: u64,
    /// The piece that the next one of a run of reads would be.
    expected: u64,
}

impl Source {
    /// Past the end there are zeros.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let inside = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
        let (into, beyond) = into.split_at_mut(inside);
        beyond.fill(0);
        // Long reads are as good without.
        if !self.cached || into.len() as u64 >= AHEAD * PIECE_BYTES {
            return self.fetch(offset, into);
        }
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let piece = at / PIECE_BYTES;
            let skip = (at % PIECE_BYTES) as usize;
            let length = rest.len().min(PIECE_BYTES as usize - skip);
            let (part, after) = rest.split_at_mut(length);
            self.with_piece(piece, |bytes| part.copy_from_slice(&bytes[skip..skip + length]))?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    /// Hands out a piece, which is read if it is not there: alone, or with those behind it where reads go upwards.
    fn with_piece(&self, piece: u64, hand_out: impl FnOnce(&[u8])) -> Result<(), StorageError> {
        let known = {
            let cache = &mut *self.cache.borrow_mut();
            cache.clock += 1;
            let found = cache.pieces.iter_mut().find(|(number, ..)| *number == piece);
            found.map(|found| found.2 = cache.clock).is_some()
        };
        if !known {
            let ahead = if self.cache.borrow().expected == piece { AHEAD } else { 1 };
            let end = ((piece + ahead) * PIECE_BYTES).min(self.size);
            let start = piece * PIECE_BYTES;
            let mut bytes = vec![0; (end - start) as usize];
            self.fetch(start, &mut bytes)?;
            let mut cache = self.cache.borrow_mut();
            for (number, part) in (piece..).zip(bytes.chunks(PIECE_BYTES as usize)) {
                cache.keep(number, part);
            }
            cache.expected = piece + ahead;
        }
        let cache = self.cache.borrow();
        let found = cache.pieces.iter().find(|(number, ..)| *number == piece);
        hand_out(found.map_or(&[][..], |(_, bytes, _)| bytes));
        Ok(())
    }

    /// Asks JavaScript. The range lies within the source.
    fn fetch(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        if into.is_empty() {
            return Ok(());
        }
        let failed = |what: &str| StorageError::new(StorageErrorKind::Other(what.into()), "read").at(offset);
        match self.source.read_at(offset as f64, into) {
            Err(thrown) => {
                error::keep_cause(thrown);
                Err(failed("the source failed"))
            }
            Ok(read) if read.as_f64() == Some(into.len() as f64) => Ok(()),
            Ok(read) if read.as_f64().is_some() => Err(failed("the source gave fewer bytes than it has")),
            Ok(_) => Err(failed("readAt of the source did not tell how many bytes it read")),
        }
    }
}

impl Cache {
    fn keep(&mut self, number: u64, bytes: &[u8]) {
        if self.pieces.iter().any(|(known, ..)| *known == number) {
            return;
        }
        if self.pieces.len() >= PIECES {
            let oldest = self.pieces.iter().enumerate().min_by_key(|(_, (.., used))| *used).map(|(at, _)| at);
            self.pieces.swap_remove(oldest.unwrap_or(0));
        }
        self.pieces.push((number, bytes.to_vec(), self.clock));
    }
}
