//! What is fuzzed: each function takes any bytes and must come back, without a panic, soon, and in bounded memory.
//!
//! The fuzzer's loop is in `targets/`; `core/tests/fuzz_corpus.rs` replays the corpus and every past crasher through the
//! same functions, so that what was once found stays found on every machine.

mod bytes;
mod damage;
mod encryption;
mod image;
mod model;
mod repair;
mod text;

pub use encryption::encryption;
pub use image::{abuse, check, inspect, read};
pub use model::operations;
pub use repair::repair;
pub use text::{codec, trace};

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 9] = [
    ("inspect", inspect),
    ("read", read),
    ("check", check),
    ("operations", operations),
    ("abuse", abuse),
    ("trace", trace),
    ("codec", codec),
    ("repair", repair),
    ("encryption", encryption),
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
    // Whole images, and damage by choice.
    let mut broken: Vec<Vec<u8>> = images.iter().map(|image| [&[0, 3][..], image].concat()).collect();
    broken.extend(
        (0..24u8).map(|n| [vec![1 | n & 14, n], (0..60u8).map(|m| m.wrapping_mul(n | 1) ^ n).collect()].concat()),
    );
    all.push(("repair", broken));
    all.push(("encryption", encryption::seeds()));
    all.push(("operations", (0..16u8).map(|n| (0..200u8).map(|m| m.wrapping_mul(n | 1) ^ n).collect()).collect()));
    all.push(("trace", text::traces()));
    all.push(("codec", text::packed()));
    all
}
