//! One suite for every store: what [`ReadStorage`] and [`Storage`] promise, checked through their calls alone.
//!
//! Each function takes a store and answers with the first promise that it breaks. Nothing here panics.
//!
//! ```
//! # #[cfg(feature = "conformance")] {
//! use qcowkit_core::storage::{MemoryStorage, conformance};
//!
//! conformance::check_all(|length| Ok(MemoryStorage::with_len(length))).unwrap();
//! # }
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{ReadStorage, Storage, StorageError, StorageErrorKind, StorageExtentKind, ZeroMode};

/// A broken promise, in words.
pub type Verdict = Result<(), String>;

/// Runs every part of the suite. `make` makes a store whose contents are `length` bytes that read as zeros; a store
/// that cannot grow gets 1 MiB and may be a device of just that size.
///
/// # Errors
/// The first broken promise.
pub fn check_all<S: Storage>(mut make: impl FnMut(u64) -> Result<S, StorageError>) -> Verdict {
    let mut fresh = |length| make(length).map_err(|error| format!("no store to check: {error}"));
    check_reading(&fresh(MODEL_BYTES)?)?;
    check_zeroing(&fresh(MODEL_BYTES)?)?;
    check_bounds(&fresh(MODEL_BYTES)?)?;
    for seed in 1..=4 {
        check_against_model(&fresh(MODEL_BYTES)?, seed, 120)?;
    }
    let growing = fresh(MODEL_BYTES)?;
    if growing.capabilities().grows { check_growth(&fresh(0)?) } else { check_fixed_length(&growing) }
}

/// Compares a store with what it should hold: length, contents in large and small reads, zeros past the end, and
/// extents that cover it and whose holes read as zeros.
///
/// # Errors
/// The first broken promise.
pub fn check_contents<S: ReadStorage + ?Sized>(store: &S, expected: &[u8]) -> Verdict {
    let length = to_u64(expected.len());
    demand(said("len", store.len())? == length, || format!("the length is not {length}"))?;
    // A little more than there is, over junk.
    let mut found = vec![0x5c; expected.len().saturating_add(1000)];
    said("read_at", store.read_at(0, &mut found))?;
    let (inside, outside) = found.split_at(expected.len());
    // Slices are compared at once, bytes one by one: that matters in unoptimised tests.
    if inside != expected {
        let at = inside.iter().zip(expected).position(|(a, b)| a != b).unwrap_or_default();
        return Err(format!("wrong byte at {at}: {:?} instead of {:?}", inside.get(at), expected.get(at)));
    }
    demand(all_zero(outside), || String::from("bytes past the end are not zeros"))?;
    let mut small = [0x5c; 7];
    for at in (0..expected.len()).step_by(4093) {
        said("read_at", store.read_at(to_u64(at), &mut small))?;
        let wanted = expected.iter().skip(at).copied().chain(core::iter::repeat(0));
        demand(small.iter().copied().eq(wanted.take(small.len())), || format!("a small read at {at} differs"))?;
    }
    check_extents(store, expected)
}

/// Walks the extents: they cover the store, are maximal, and holes read as zeros.
fn check_extents<S: ReadStorage + ?Sized>(store: &S, expected: &[u8]) -> Verdict {
    let length = to_u64(expected.len());
    let mut at = 0;
    let mut before = None;
    while at < length {
        let extent = said("next_extent", store.next_extent(at))?;
        demand(extent.length > 0, || format!("an empty extent at {at}, before the end"))?;
        let end = at.saturating_add(extent.length);
        demand(end <= length, || format!("the extent at {at} passes the end"))?;
        demand(before != Some(extent.kind), || format!("the extent before {at} was not maximal"))?;
        if extent.kind == StorageExtentKind::Hole {
            let holds = expected.get(to_usize(at)..to_usize(end)).is_some_and(all_zero);
            demand(holds, || format!("the hole at {at} holds data"))?;
        }
        if extent.length > 1 {
            let middle = at.saturating_add(extent.length / 2);
            let inner = said("next_extent", store.next_extent(middle))?;
            let agrees = inner.kind == extent.kind && middle.saturating_add(inner.length) == end;
            demand(agrees, || format!("asked in the middle, the extent at {at} is another"))?;
        }
        before = Some(extent.kind);
        at = end;
    }
    for offset in [length, length.saturating_add(12345), u64::MAX] {
        let extent = said("next_extent", store.next_extent(offset))?;
        let right = extent.kind == StorageExtentKind::Hole && extent.length == 0;
        demand(right, || format!("past the end, at {offset}, there is no empty hole"))?;
    }
    Ok(())
}

/// Random operations, compared with a plain vector after each; the same seed does the same.
///
/// # Errors
/// The first broken promise.
pub fn check_against_model<S: Storage + ?Sized>(store: &S, seed: u64, steps: u32) -> Verdict {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let grows = store.capabilities().grows;
    let mut model = vec![0; to_usize(said("len", store.len())?)];
    for step in 0..steps {
        let (offset, length) = random.range(grows);
        let end = offset.saturating_add(length);
        let fits = end <= to_u64(model.len());
        let what = random.below(if grows { 12 } else { 9 });
        let outcome = match what {
            0..=3 => {
                let bytes = random.bytes(length);
                fill(&mut model, offset, bytes.iter().copied());
                store.write_at(offset, &bytes)
            }
            4 | 5 => {
                fill(&mut model, offset, zeros(length));
                let mode = if what == 4 { ZeroMode::MayUnmap } else { ZeroMode::KeepAllocated };
                store.write_zeroes(offset, length, mode)
            }
            6 | 7 => discard_both(store, &mut model, offset, length),
            8 if fits => store.barrier(),
            9 => {
                model.resize(to_usize(offset), 0);
                store.set_len(offset)
            }
            _ => {
                let longer = model.len().max(to_usize(end));
                if length > 0 {
                    model.resize(longer, 0);
                }
                store.allocate(offset, length)
            }
        };
        match outcome {
            Ok(()) => {}
            // Reserving is the one thing that a store may be unable to do; then it must have changed nothing else.
            Err(error) if what >= 8 && error.kind == StorageErrorKind::Unsupported => {
                model.resize(to_usize(said("len", store.len())?), 0);
            }
            Err(error) => return Err(format!("step {step}: {error}")),
        }
        check_contents(store, &model).map_err(|broken| format!("seed {seed}, step {step}, call {what}: {broken}"))?;
    }
    Ok(())
}

fn check_reading<S: Storage + ?Sized>(store: &S) -> Verdict {
    let length = to_usize(said("len", store.len())?);
    let mut model = vec![0; length];
    check_contents(store, &model)?;
    for (offset, size) in [(0, 1), (4095, 2), (4096, 4096), (100_000, 70_001), (262_144, 65_536), (262_200, 3)] {
        let bytes: Vec<u8> = (0..=250_u8).cycle().take(to_usize(size)).collect();
        said("write_at", store.write_at(offset, &bytes))?;
        fill(&mut model, offset, bytes.into_iter());
        check_contents(store, &model)?;
    }
    said("write_at of nothing", store.write_at(5, &[]))?;
    said("barrier", store.barrier())?;
    check_contents(store, &model)?;
    let mut none = [];
    said("read_at of nothing", store.read_at(u64::MAX, &mut none))?;
    let mut far = [0x5c; 3];
    said("read_at far past the end", store.read_at(1 << 62, &mut far))?;
    demand(far == [0; 3], || String::from("far past the end there are no zeros"))
}

fn check_zeroing<S: Storage + ?Sized>(store: &S) -> Verdict {
    let length = to_usize(said("len", store.len())?);
    let mut model = vec![0x77; length];
    said("write_at", store.write_at(0, &model))?;
    check_contents(store, &model)?;
    for (mode, offset, size) in [
        (ZeroMode::MayUnmap, 65_536, 131_072),
        (ZeroMode::MayUnmap, 5, 10),
        (ZeroMode::MayUnmap, 4000, 200),
        (ZeroMode::KeepAllocated, 300_001, 50_000),
        (ZeroMode::KeepAllocated, 65_000, 9000),
        (ZeroMode::MayUnmap, 7, 0),
    ] {
        said("write_zeroes", store.write_zeroes(offset, size, mode))?;
        fill(&mut model, offset, zeros(size));
        check_contents(store, &model)?;
    }
    // Past the end it changes no length.
    for (offset, size) in [
        (500_000, 100_000),
        (700_001, 3),
        (1, 0),
        (to_u64(length).saturating_sub(10_000), 1 << 30),
        (to_u64(length).saturating_add(10_000), 4096),
    ] {
        said("discard", discard_both(store, &mut model, offset, size))?;
        check_contents(store, &model)?;
    }
    check_contents(store, &model)
}

/// Discards in the store and in the model. A store that does not promise zeros may keep or zero each byte.
fn discard_both<S: Storage + ?Sized>(
    store: &S,
    model: &mut Vec<u8>,
    offset: u64,
    length: u64,
) -> Result<(), StorageError> {
    store.discard(offset, length)?;
    let inside = offset.saturating_add(length).min(to_u64(model.len())).saturating_sub(offset);
    let mut found = vec![0; to_usize(inside)];
    if !store.capabilities().holes_read_zero {
        store.read_at(offset, &mut found)?;
        let before = model.iter().skip(to_usize(offset));
        // What is neither is left as it was in the model, where the comparison will find it.
        found.iter_mut().zip(before).for_each(|(byte, before)| *byte = if *byte == 0 { 0 } else { *before });
    }
    fill(model, offset, found.into_iter());
    Ok(())
}

fn check_bounds<S: Storage + ?Sized>(store: &S) -> Verdict {
    let before = said("len", store.len())?;
    refused("write_at past 2^64", store.write_at(u64::MAX, &[1, 2]))?;
    refused("write_zeroes past 2^64", store.write_zeroes(u64::MAX, 2, ZeroMode::MayUnmap))?;
    refused("allocate past 2^64", store.allocate(u64::MAX, 2))?;
    refused("set_len to 2^64 - 1", store.set_len(u64::MAX))?;
    demand(said("len", store.len())? == before, || String::from("a refused call changed the length"))
}

fn check_growth<S: Storage + ?Sized>(store: &S) -> Verdict {
    let mut model = vec![];
    check_contents(store, &model)?;
    demand(said("is_empty", store.is_empty())?, || String::from("an empty store says it is not"))?;
    said("write_at past the end", store.write_at(10_000, b"abc"))?;
    fill(&mut model, 10_000, b"abc".iter().copied());
    check_contents(store, &model)?;
    said("set_len", store.set_len(10_001))?;
    said("set_len", store.set_len(20_000))?;
    model.truncate(10_001);
    model.resize(20_000, 0);
    check_contents(store, &model)?;
    said("write_zeroes past the end", store.write_zeroes(19_000, 11_000, ZeroMode::MayUnmap))?;
    model.resize(30_000, 0);
    check_contents(store, &model)?;
    said("write_zeroes past the end", store.write_zeroes(39_000, 1000, ZeroMode::KeepAllocated))?;
    model.resize(40_000, 0);
    check_contents(store, &model)?;
    said("write_zeroes of nothing", store.write_zeroes(90_000, 0, ZeroMode::MayUnmap))?;
    said("allocate of nothing", store.allocate(90_000, 0))?;
    said("write_at of nothing", store.write_at(90_000, &[]))?;
    said("discard", store.discard(50_000, 1000))?;
    check_contents(store, &model)?;
    said("set_len", store.set_len(0))?;
    said("set_len", store.set_len(5000))?;
    check_contents(store, &[0; 5000])
}

fn check_fixed_length<S: Storage + ?Sized>(store: &S) -> Verdict {
    let length = said("len", store.len())?;
    said("write_at up to the end", store.write_at(length.saturating_sub(3), b"end"))?;
    refused("write_at over the end", store.write_at(length.saturating_sub(2), b"end"))?;
    refused("write_zeroes over the end", store.write_zeroes(length, 1, ZeroMode::MayUnmap))?;
    refused("set_len to less", store.set_len(length.saturating_sub(1)))?;
    refused("set_len to more", store.set_len(length.saturating_add(1)))?;
    said("set_len to the same", store.set_len(length))?;
    demand(said("len", store.len())? == length, || String::from("the length of a device changed"))
}

/// The length of the stores that random operations work on: 1 MiB.
const MODEL_BYTES: u64 = 1 << 20;

/// A xorshift generator: reproducible, and no dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// Offset and length: aligned or not, short or long; past the end only when the store grows.
    fn range(&mut self, grows: bool) -> (u64, u64) {
        let unit = [1, 512, 4096, 65_536].get(to_usize(self.below(4))).copied().unwrap_or(1);
        let align = |value: u64| value.saturating_sub(value.checked_rem(unit).unwrap_or(0));
        let limit = if grows { MODEL_BYTES.saturating_add(100_000) } else { MODEL_BYTES };
        let offset = align(self.below(limit));
        let longest = if self.below(4) == 0 { 300_000 } else { 5000 };
        let length = align(self.below(longest).saturating_add(unit));
        (offset, length.min(limit.saturating_sub(offset)))
    }

    /// Random bytes, or one byte many times.
    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let uniform = self.below(3) == 0;
        let first = self.next().to_le_bytes()[0];
        (0..length).map(|_| if uniform { first } else { self.next().to_le_bytes()[2] }).collect()
    }
}

fn demand(holds: bool, broken: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(broken()) }
}

fn said<T>(call: &str, answer: Result<T, StorageError>) -> Result<T, String> {
    answer.map_err(|error| format!("{call}: {error}"))
}

fn refused(call: &str, answer: Result<(), StorageError>) -> Verdict {
    demand(answer.is_err(), || format!("{call} was not refused"))
}

fn fill(model: &mut Vec<u8>, offset: u64, bytes: impl ExactSizeIterator<Item = u8>) {
    let start = to_usize(offset);
    let end = start.saturating_add(bytes.len());
    if bytes.len() == 0 {
        return;
    }
    if model.len() < end {
        model.resize(end, 0);
    }
    model.iter_mut().skip(start).zip(bytes).for_each(|(old, new)| *old = new);
}

fn zeros(length: u64) -> impl ExactSizeIterator<Item = u8> {
    core::iter::repeat_n(0, to_usize(length))
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(512).all(|chunk| [0; 512].starts_with(chunk))
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn to_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
