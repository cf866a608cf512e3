//! What is fuzzed: each function takes any bytes and must come back, without a panic, soon, and in bounded memory.
//!
//! The fuzzer's loop is in `targets/`; `core/tests/fuzz_corpus.rs` replays the corpus and every past crasher through the
//! same functions, so that what was once found stays found on every machine.

mod bytes;
mod image;
mod model;
mod text;

pub use image::{abuse, check, inspect, read};
pub use model::operations;
pub use text::{codec, trace};

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("inspect", inspect),
    ("read", read),
    ("check", check),
    ("operations", operations),
    ("abuse", abuse),
    ("trace", trace),
    ("codec", codec),
];

/// Inputs to begin with, by target: sound images of several kinds, traces, packed clusters.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let images = image::sound();
    let mut all: Vec<(&str, Vec<Vec<u8>>)> =
        ["inspect", "read", "check"].into_iter().map(|target| (target, images.clone())).collect();
    // A few bytes of operations in front of an image.
    let abused =
        images.iter().map(|image| [&[16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16][..], image].concat());
    all.push(("abuse", abused.collect()));
    all.push(("operations", (0..16u8).map(|n| (0..200u8).map(|m| m.wrapping_mul(n | 1) ^ n).collect()).collect()));
    all.push(("trace", text::traces()));
    all.push(("codec", text::packed()));
    all
}
