//! The examples run, on images of their own and on one that is named.

use std::path::Path;
use std::process::Command;

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{Image, OpenOptions};
use qcowkit_core::operations::{check, read_header};
use qcowkit_examples::SampleImage;

fn run(program: &str, arguments: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_storage_of_ones_own() {
    let program = env!("CARGO_BIN_EXE_own_storage");
    let text = run(program, &[]);
    assert!(text.contains("a disk of 1048576 bytes") && text.contains("hello from a storage"), "{text}");
    let sample = SampleImage::new("test-own").unwrap();
    let text = run(program, &[sample.path()]);
    assert!(text.contains("a disk of 16777216 bytes") && text.contains("qqqq"), "{text}");
}

#[test]
fn the_largest_gaps() {
    let program = env!("CARGO_BIN_EXE_largest_gaps");
    let text = run(program, &[]);
    assert!(text.starts_with("2 gaps, 851968 bytes\n"), "{text}");
    let sizes: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(sizes, ["655360", "196608"], "{text}");
    let sample = SampleImage::new("test-gaps").unwrap();
    assert_eq!(run(program, &[sample.path()]), text);
}

#[test]
fn zeros_are_discarded_after_a_plan() {
    let program = env!("CARGO_BIN_EXE_discard_zeroes");
    let text = run(program, &[]);
    assert!(text.contains("discard 1048576 bytes of zeros in 1 ranges") && text.contains("done"), "{text}");
    let sample = SampleImage::new("test-zeroes").unwrap();
    let before = std::fs::read(sample.path()).unwrap();
    let text = run(program, &[sample.path()]);
    assert!(text.contains("nothing was changed"), "{text}");
    assert!(std::fs::read(sample.path()).unwrap() == before);
    run(program, &[Path::new("--yes"), sample.path()]);
    let storage = FileStorage::open(sample.path(), FileAccess::Read).unwrap();
    assert!(check(&storage, &read_header(&storage).unwrap(), &mut |_| ()).unwrap().is_clean());
    assert!(run(program, &[sample.path()]).contains("discard 0 bytes"));
    let mut image = Image::open(storage, OpenOptions::default().read_only()).unwrap();
    let mut byte = [1];
    image.read_at(4 << 20, &mut byte).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_sample_is_removed() {
    let path = SampleImage::new("test-removed").unwrap().path().to_path_buf();
    assert!(!path.exists());
}
