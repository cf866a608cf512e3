//! What an incremental backup has to take: the four-state map of a disk against an earlier state of it.
//!
//! | state | since the earlier state | reads as |
//! |---|---|---|
//! | [`DeltaState::Clean`] | unchanged | data |
//! | [`DeltaState::DirtyData`] | changed | data: an increment holds it |
//! | [`DeltaState::DirtyZero`] | changed | zeros: an increment notes it, and holds nothing |
//! | [`DeltaState::CleanZero`] | unchanged | zeros |
//!
//! A dirty bitmap alone has two states: it marks a discard like a write, so a file that was deleted and trimmed looks like
//! new data. The mapping tells them apart: what was discarded reads as zeros. That is the whole trick, and it costs no
//! reading of data.
//!
//! The earlier state is known from a bitmap ([`delta_from_bitmap`]), from a layer below ([`delta_from_layer`]), from a
//! snapshot ([`delta_from_snapshot`]), or from another image ([`delta_from_image`]).

mod forecast;
mod sides;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use crate::error::{Error, Result};
use crate::image::{DirtyBits, Image};
use crate::storage::Storage;

use forecast::Counter;
pub use forecast::{Forecast, IncrementSize};
pub use sides::DeltaSide;
use sides::{BitmapPair, LayerPair, Pair, Piece, SidesPair};

/// Data are looked at in blocks of this many bytes.
pub const DELTA_BLOCK: u64 = 4096;
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// What a range is, against an earlier state of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum DeltaState {
    /// Unchanged, data.
    Clean,
    /// Changed, data.
    DirtyData,
    /// Changed, and reads as zeros.
    DirtyZero,
    /// Unchanged, reads as zeros.
    CleanZero,
}

impl DeltaState {
    /// The state's name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::DirtyData => "dirty_data",
            Self::DirtyZero => "dirty_zero",
            Self::CleanZero => "clean_zero",
        }
    }
}

/// A range of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeltaRange {
    /// First byte in the virtual disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub state: DeltaState,
}

/// Guest bytes in each state; together they are the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeltaTotals {
    /// Unchanged, data.
    pub clean: u64,
    /// Changed, data.
    pub dirty_data: u64,
    /// Changed, reads as zeros.
    pub dirty_zero: u64,
    /// Unchanged, reads as zeros.
    pub clean_zero: u64,
}

/// The four-state map of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DeltaReport {
    /// Bytes of the virtual disk.
    pub virtual_size: u64,
    /// Bytes of the disk in its earlier state, where that is known. What it lacks counts as zeros.
    pub old_virtual_size: Option<u64>,
    /// Guest bytes that one bit of the bitmap speaks for, where the map is from a bitmap.
    pub granularity: Option<u64>,
    /// Data were read, to find zeros among them, and what did not change after all.
    pub read: bool,
    /// Bytes in each state.
    pub totals: DeltaTotals,
    /// How large an increment is going to be.
    pub forecast: Forecast,
    /// The whole disk, in order; neighbours differ in state.
    pub ranges: Vec<DeltaRange>,
}

/// How a delta is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaOptions {
    /// Reads what has changed, to find zeros among it, and, where the earlier state can be read too, what is the same as
    /// before. [`delta_from_image`] reads in any case.
    pub read: bool,
    /// Bytes of a cluster of the increment, for its forecast: a power of two, 512 bytes to 2 MiB.
    pub cluster_size: u64,
}

impl Default for DeltaOptions {
    fn default() -> Self {
        Self { read: false, cluster_size: 64 << 10 }
    }
}

/// Told the bytes that are done, and all bytes.
pub type DeltaProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// What a bitmap marks, told apart by what the disk holds now.
///
/// # Examples
/// ```
/// use qcowkit_core::image::{CreateOptions, Image};
/// use qcowkit_core::operations::delta::{DeltaOptions, delta_from_bitmap};
/// use qcowkit_core::storage::MemoryStorage;
///
/// let mut image = Image::create(MemoryStorage::new(), 1 << 30, &CreateOptions::default())?;
/// image.write_at(0, &[1; 3 << 20])?;
/// image.add_bitmap("backup", None)?;
/// // A file of 3 MiB is deleted and trimmed, another of 64 KiB is written.
/// image.discard(0, 3 << 20)?;
/// image.write_at(8 << 20, &[2; 65536])?;
///
/// let bits = image.bitmap_bits("backup")?;
/// let delta = delta_from_bitmap(&mut image, &bits, &DeltaOptions::default(), &mut |_, _| ())?;
/// assert_eq!((delta.totals.dirty_data, delta.totals.dirty_zero), (65536, 3 << 20));
/// # Ok::<(), qcowkit_core::Error>(())
/// ```
///
/// # Errors
/// A bitmap for a disk of another size; what cannot be mapped, or read.
pub fn delta_from_bitmap(
    disk: &mut dyn DeltaSide,
    bits: &DirtyBits,
    options: &DeltaOptions,
    progress: DeltaProgress<'_>,
) -> Result<DeltaReport> {
    if bits.size() != disk.virtual_size() {
        return Err(Error::invalid("the bitmap is for a disk of another size"));
    }
    let granularity = Some(bits.granularity());
    let report = run(&mut BitmapPair { disk, bits }, options, progress)?;
    Ok(DeltaReport { granularity, ..report })
}

/// What the layers above the one at `depth` hold: an overlay, or several, against the disk below. Layers are counted from
/// the image down; the one right below it has depth 1.
///
/// # Errors
/// No layer of that depth; what cannot be mapped, or read.
pub fn delta_from_layer<S: Storage>(
    image: &mut Image<S>,
    depth: u32,
    options: &DeltaOptions,
    progress: DeltaProgress<'_>,
) -> Result<DeltaReport> {
    let old_size = sides::size_at_depth(image, depth)?;
    run(&mut LayerPair { image, depth, old_size }, options, progress)
}

/// What changed between two states of one image: two snapshots, or a snapshot and the disk as it is. Both are views of the
/// same file, over the same layers: what lies in the same place is the same.
///
/// # Errors
/// What cannot be mapped, or read.
pub fn delta_from_snapshot(
    old: &mut dyn DeltaSide,
    new: &mut dyn DeltaSide,
    options: &DeltaOptions,
    progress: DeltaProgress<'_>,
) -> Result<DeltaReport> {
    run(&mut SidesPair { old, new, one_file: true }, options, progress)
}

/// What differs between the contents of two images. Data are read, unless both are known to be zeros.
///
/// # Errors
/// What cannot be mapped, or read.
pub fn delta_from_image(
    old: &mut dyn DeltaSide,
    new: &mut dyn DeltaSide,
    options: &DeltaOptions,
    progress: DeltaProgress<'_>,
) -> Result<DeltaReport> {
    run(&mut SidesPair { old, new, one_file: false }, &DeltaOptions { read: true, ..*options }, progress)
}

fn run(pair: &mut dyn Pair, options: &DeltaOptions, progress: DeltaProgress<'_>) -> Result<DeltaReport> {
    if !options.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&options.cluster_size) {
        return Err(Error::invalid("the cluster size must be a power of two between 512 and 2048k"));
    }
    let size = pair.size();
    let mut map = Map {
        ranges: Vec::new(),
        totals: DeltaTotals::default(),
        marked: Counter::new(options.cluster_size),
        mapped: Counter::new(options.cluster_size),
        read: Counter::new(options.cluster_size),
    };
    let (mut now, mut before) = (Vec::new(), Vec::new());
    let mut at = 0u64;
    while at < size {
        let piece = pair.next(at, size.saturating_sub(at))?;
        let length = piece.length.clamp(1, size.saturating_sub(at));
        if piece.changed && options.read && (!piece.zero || pair.compares()) {
            // In parts, so that memory and the time between two calls of `progress` are bounded.
            let part = length.min(CHUNK.saturating_sub(at.checked_rem(CHUNK).unwrap_or(0)));
            map.look(pair, at, part, &piece, (&mut now, &mut before))?;
            at = at.saturating_add(part);
        } else {
            map.add(at, length, state(piece.changed, piece.zero), &piece);
            at = at.saturating_add(length);
        }
        progress(at, size);
    }
    Ok(DeltaReport {
        virtual_size: size,
        old_virtual_size: pair.old_size(),
        granularity: None,
        read: options.read,
        totals: map.totals,
        forecast: Forecast {
            cluster_size: options.cluster_size,
            all_dirty: map.marked.size(size),
            without_known_zeros: map.mapped.size(size),
            without_zeros_and_equal: options.read.then(|| map.read.size(size)),
        },
        ranges: map.ranges,
    })
}

const fn state(changed: bool, zero: bool) -> DeltaState {
    match (changed, zero) {
        (false, false) => DeltaState::Clean,
        (true, false) => DeltaState::DirtyData,
        (true, true) => DeltaState::DirtyZero,
        (false, true) => DeltaState::CleanZero,
    }
}

/// The map while it grows.
struct Map {
    ranges: Vec<DeltaRange>,
    totals: DeltaTotals,
    /// Clusters of an increment that takes all that changed, whatever it is.
    marked: Counter,
    /// Of one that takes no data where the mapping says zeros.
    mapped: Counter,
    /// Of one that looks at the data.
    read: Counter,
}

impl Map {
    /// Adds a range; `piece` says what was known before data were looked at.
    fn add(&mut self, start: u64, length: u64, state: DeltaState, piece: &Piece) {
        let total = match state {
            DeltaState::Clean => &mut self.totals.clean,
            DeltaState::DirtyData => &mut self.totals.dirty_data,
            DeltaState::DirtyZero => &mut self.totals.dirty_zero,
            DeltaState::CleanZero => &mut self.totals.clean_zero,
        };
        *total = total.saturating_add(length);
        if piece.changed {
            self.marked.data(start, length);
            if piece.zero { self.mapped.zeros(start, length) } else { self.mapped.data(start, length) }
        }
        match state {
            DeltaState::DirtyData => self.read.data(start, length),
            DeltaState::DirtyZero => self.read.zeros(start, length),
            DeltaState::Clean | DeltaState::CleanZero => {}
        }
        match self.ranges.last_mut() {
            Some(last) if last.state == state => last.length = last.length.saturating_add(length),
            Some(_) | None => self.ranges.push(DeltaRange { start, length, state }),
        }
    }

    /// Reads a range that has changed, and what it was before if that can be read, block by block.
    fn look(
        &mut self,
        pair: &mut dyn Pair,
        start: u64,
        length: u64,
        piece: &Piece,
        (now, before): (&mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<()> {
        let bytes = usize::try_from(length).unwrap_or(0);
        now.clear();
        now.resize(bytes, 0);
        if !piece.zero {
            pair.read_new(start, now)?;
        }
        let compares = pair.compares();
        if compares {
            before.clear();
            before.resize(bytes, 0);
            pair.read_old(start, before)?;
        }
        let mut at = 0usize;
        while at < bytes {
            let here = start.saturating_add(u64::try_from(at).unwrap_or(0));
            // Blocks begin at multiples of their size in the disk.
            let rest = DELTA_BLOCK.saturating_sub(here.checked_rem(DELTA_BLOCK).unwrap_or(0));
            let end = at.saturating_add(usize::try_from(rest).unwrap_or(bytes)).min(bytes);
            let block = now.get(at..end).unwrap_or_default();
            let changed = !compares || before.get(at..end) != Some(block);
            let zero = block.iter().all(|&byte| byte == 0);
            self.add(here, u64::try_from(end.saturating_sub(at)).unwrap_or(0), state(changed, zero), piece);
            at = end;
        }
        Ok(())
    }
}

/// Fills what an old disk lacks with zeros; gives the part that it has.
fn within(old_size: u64, offset: u64, into: &mut [u8]) -> &mut [u8] {
    let has = usize::try_from(old_size.saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
    let (head, tail) = into.split_at_mut(has);
    tail.fill(0);
    head
}
