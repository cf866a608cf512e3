//! `check`, `analyze` and `inspect` as their users call them, beside qemu-img where that has the verb.
#![cfg(all(feature = "cli", unix))]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{CreateOptions, Image};
use qcowkit_core::storage::Storage;

fn run(name: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qcowkit")).arg0(name).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An image with 128 KiB of data: L2 table in cluster 4, data from cluster 5 on, one refcount block in cluster 2.
fn image(path: &Path) {
    let disk = FileStorage::open(path, FileAccess::CreateNew).unwrap();
    let mut image = Image::create(disk, 1 << 20, &CreateOptions::default()).unwrap();
    image.write_at(0, &[7; 128 << 10]).unwrap();
    // Room for clusters that leak: what lies beyond the end of the file is not looked at, by QEMU neither.
    image.close().unwrap().set_len(32 << 16).unwrap();
}

/// Sets the refcount of one cluster.
fn set_refcount(path: &Path, cluster: u64, value: u16) {
    let disk = FileStorage::open(path, FileAccess::Write).unwrap();
    disk.write_at(0x20000 + cluster * 2, &value.to_be_bytes()).unwrap();
}

#[test]
fn check_says_what_qemu_img_says_and_ends_with_its_code() {
    let folder = tempfile::tempdir().unwrap();
    let with_qemu = Command::new("qemu-img").arg("--version").output().is_ok();
    if !with_qemu {
        assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
        println!("skipped: qemu-img is missing; only the exit codes are checked");
    }
    for (name, damage, code) in [
        ("clean", &[][..], 0),
        ("leak", &[(20, 1)][..], 3),
        ("low", &[(5, 0)][..], 2),
        ("both", &[(5, 0), (20, 1), (21, 3)][..], 2),
    ] {
        let path = folder.path().join(name);
        image(&path);
        damage.iter().for_each(|&(cluster, value)| set_refcount(&path, cluster, value));
        let file = path.to_str().unwrap();
        for output in ["human", "json"] {
            let args = ["check", "--output", output, file];
            let own = run("qemu-img", &args);
            assert_eq!(own.status.code(), Some(code), "{name}: {}", text(&own.stderr));
            if with_qemu {
                let qemu = Command::new("qemu-img").args(args).output().unwrap();
                assert_eq!(text(&own.stdout), text(&qemu.stdout), "{name}");
                assert_eq!(own.status.code(), qemu.status.code(), "{name}");
            }
        }
        assert_eq!(run("qcowkit", &["check", "-q", file]).status.code(), Some(code));
        let own: serde_json::Value =
            serde_json::from_slice(&run("qcowkit", &["check", "--output=json", file]).stdout).unwrap();
        assert_eq!(own["qcowkit"]["findings"].as_array().unwrap().is_empty(), code == 0, "{name}");
    }
    let raw = folder.path().join("raw");
    std::fs::write(&raw, [0; 512]).unwrap();
    assert_eq!(run("qcowkit", &["check", "-f", "raw", raw.to_str().unwrap()]).status.code(), Some(63));
    assert_eq!(run("qcowkit", &["check", "/nowhere/at/all"]).status.code(), Some(1));
}

#[test]
fn analyze_adds_up_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    let file = path.to_str().unwrap();
    let done = run("qcowkit", &["analyze", "--output=json", file]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let classes = report["ledger"]["classes"].as_array().unwrap();
    let sum: u64 = classes.iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, std::fs::metadata(&path).unwrap().len());
    let human = text(&run("qcowkit", &["analyze", file]).stdout);
    assert!(human.contains("live data") && human.contains("131072"), "{human}");
}

#[test]
fn inspect_follows_offsets_and_survives_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    let file = path.to_str().unwrap();
    let shown = run("qcowkit", &["inspect", "--guest", "64k", "--host", "0x50000", "--show", "all,l2:0", file]);
    let shown = text(&shown.stdout);
    for part in ["refcount_order", "host offset 0x60000", "data cluster at 0x50000", "0x8000000000050000"] {
        assert!(shown.contains(part), "no '{part}' in\n{shown}");
    }
    for (name, bytes) in [
        ("empty", vec![]),
        ("noise", (0..=255).cycle().take(70_000).collect()),
        ("cut", {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(100);
            bytes
        }),
    ] {
        let broken = folder.path().join(name);
        std::fs::write(&broken, bytes).unwrap();
        let done = run("qcowkit", &["inspect", "--show=all", "--guest=0", "--host=0", broken.to_str().unwrap()]);
        assert_eq!(done.status.code(), Some(0), "{name}: {}", text(&done.stderr));
        assert!(text(&done.stdout).contains("cannot be read"), "{name}: {}", text(&done.stdout));
    }
    assert_eq!(run("qcowkit", &["inspect", "--show=nothing", file]).status.code(), Some(1));
}

/// A name of a backing file can be written without anybody looking, so that chains can lead back to where they began.
#[test]
fn chains_that_loop_end_in_words() {
    for length in 1..4usize {
        let folder = tempfile::tempdir().unwrap();
        let path = |n: usize| folder.path().join(format!("{}.qcow2", n % length)).to_str().unwrap().to_owned();
        for n in 0..length {
            let storage = FileStorage::open(Path::new(&path(n)), FileAccess::CreateNew).unwrap();
            Image::create(storage, 1 << 20, &CreateOptions::default()).unwrap().close().unwrap();
        }
        for n in 0..length {
            let named = run("qcowkit", &["rebase", "-u", "-F", "qcow2", "-b", &path(n + 1), &path(n)]);
            assert!(named.status.success(), "{}", text(&named.stderr));
        }
        let (first, raw) = (path(0), format!("{}/raw", folder.path().display()));
        let verbs: [&[&str]; 6] = [
            &["info", "--backing-chain", &first],
            &["map", &first],
            &["convert", "-O", "raw", &first, &raw],
            &["compare", &first, &first],
            &["io", "-c", "read 0 4096", &first],
            &["commit", &first],
        ];
        for verb in verbs {
            let ended = run("qcowkit", verb);
            let words = text(&ended.stderr);
            assert!(!ended.status.success(), "{verb:?}");
            assert!(words.contains("leads back") || words.contains("infinite loop"), "{verb:?}: {words}");
        }
        // Who does not follow the chain is not held up by it.
        for verb in ["check", "info"] {
            assert!(run("qcowkit", &[verb, &first]).status.success());
        }
    }
}
