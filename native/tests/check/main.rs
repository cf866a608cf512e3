//! The check beside `qemu-img check`, on images broken in every way that this file knows: the same numbers.
//!
//! `image.rs` makes images with QEMU and writes any of their fields wrong; `cases.rs` is the list of what is wrong with
//! them, one by one; `random.rs` breaks them by chance.

mod cases;
mod image;
mod overlap;
mod random;
mod repair;

use std::path::Path;
use std::process::Command;

use image::{Bases, Damaged};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::Result;
use qcowkit_core::operations::{CheckReport, check, read_header};
use serde_json::Value;

/// What QEMU said: its numbers, or why it did not check.
enum Verdict {
    Numbers(Value),
    Refusal(String),
}

#[test]
fn every_damage_counts_as_in_qemu() {
    let Some(mut bases) = Bases::new() else { return };
    let mut wrong = Vec::new();
    let mut count = 0;
    for (base, cases) in cases::ALL {
        for (name, damage) in *cases {
            let mut image = bases.image(base);
            damage(&mut image);
            count += 1;
            if let Some(difference) = difference(&mut bases, &image) {
                wrong.push(format!("{base}, {name}: {difference}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} cases differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{count} damaged images");
}

/// `QCOWKIT_CHECK_ROUNDS` makes it longer, `QCOWKIT_CHECK_SEED` makes it another.
#[test]
fn damage_by_chance_counts_as_in_qemu() {
    let Some(mut bases) = Bases::new() else { return };
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = variable("QCOWKIT_CHECK_ROUNDS").unwrap_or(200);
    let seed = variable("QCOWKIT_CHECK_SEED").unwrap_or(2026);
    let mut chance = random::Chance::new(seed);
    let mut wrong = Vec::new();
    for round in 0..rounds {
        let base = chance.pick(&image::BASES.map(|base| base.name));
        let mut image = bases.image(base);
        for _ in 0..chance.pick(&[1, 1, 1, 2, 3, 5]) {
            random::damage(&mut image, &mut chance);
        }
        if let Some(difference) = difference(&mut bases, &image) {
            wrong.push(format!("seed {seed}, round {round}, {base}: {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {rounds} rounds differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn an_encrypted_image_is_checked_without_its_key() {
    let Some(bases) = Bases::new() else { return };
    let secret = ["--object", "secret,id=s,data=abc"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    let path = bases.path("luks.qcow2");
    let shown = path.display();
    bases.run(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], &secret[..], &["-o", options, &shown.to_string(), "1M"]].concat(),
    );
    let node = format!("driver=qcow2,file.filename={shown},encrypt.key-secret=s");
    bases.run("qemu-io", &[&secret[..], &["--image-opts", "-c", "write 0 100k", &node]].concat());
    let output = Command::new("qemu-img")
        .args(["check", "--output=json"])
        .args(secret)
        .args(["--image-opts", &node])
        .output()
        .unwrap();
    let numbers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = ours(&path).unwrap();
    assert_eq!(numbers_that_differ(&numbers, &report), None);
    assert!(report.is_clean());
}

/// How QEMU's verdict on the image and ours differ.
fn difference(bases: &mut Bases, image: &Damaged) -> Option<String> {
    let path = bases.path("damaged.qcow2");
    std::fs::write(&path, &image.bytes).unwrap();
    let ours = ours(&path);
    match (theirs(&path), ours) {
        (Verdict::Numbers(theirs), Ok(ours)) => {
            let numbers = numbers_that_differ(&theirs, &ours)?;
            let findings: Vec<_> = ours.findings.iter().take(10).map(ToString::to_string).collect();
            Some(format!("{numbers}; ours: {findings:#?}"))
        }
        (Verdict::Numbers(theirs), Err(error)) => Some(format!("refused with '{error}', theirs: {theirs}")),
        // Without key or data file QEMU cannot; here neither is needed to look at the structures.
        (Verdict::Refusal(text), _) if text.contains("encrypt") || text.contains("data-file") => None,
        (Verdict::Refusal(text), Ok(ours)) if ours.check_errors == 0 => Some(format!("QEMU refuses: {text}")),
        (Verdict::Refusal(_), Ok(_) | Err(_)) => None,
    }
}

fn ours(path: &Path) -> Result<CheckReport> {
    let storage = FileStorage::open(path, FileAccess::Read)?;
    check(&storage, &read_header(&storage)?, &mut |_| ())
}

fn theirs(path: &Path) -> Verdict {
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2", "--output=json"]).arg(path).output().unwrap();
    match serde_json::from_slice(&output.stdout) {
        Ok(numbers) => Verdict::Numbers(numbers),
        Err(_) => Verdict::Refusal(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn numbers_that_differ(theirs: &Value, ours: &CheckReport) -> Option<String> {
    let numbers = [
        ("corruptions", ours.corruptions),
        ("leaks", ours.leaks),
        ("check-errors", ours.check_errors),
        ("image-end-offset", ours.image_end_offset),
        ("total-clusters", ours.total_clusters),
        ("allocated-clusters", ours.allocated_clusters),
        ("fragmented-clusters", ours.fragmented_clusters),
        ("compressed-clusters", ours.compressed_clusters),
    ];
    let wrong: Vec<_> = numbers
        .into_iter()
        .map(|(key, ours)| (key, theirs.get(key).and_then(Value::as_u64).unwrap_or(0), ours))
        .filter(|(_, theirs, ours)| theirs != ours)
        .map(|(key, theirs, ours)| format!("{key}: QEMU {theirs}, ours {ours}"))
        .collect();
    (!wrong.is_empty()).then(|| wrong.join(", "))
}
