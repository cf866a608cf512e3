//! `audit` as its users call it: on images that qemu-img made with the published attacks, and on a stream.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::{Folder, qemu_is_here};

fn audit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qcowkit")).arg("audit").args(args).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

#[test]
fn the_published_attacks_are_dangers_and_ordinary_images_are_not() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (plain, secret) = (folder.path("plain.qcow2"), folder.path("secret"));
    std::fs::write(&secret, [b's'; 4096]).unwrap();
    let (plain, secret) = (plain.to_str().unwrap(), secret.to_str().unwrap());
    qemu_img(&["create", "-f", "qcow2", plain, "64M"]);
    for args in [vec![plain], vec!["--deep", plain]] {
        let output = audit(&args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("safe"), "{output:?}");
    }
    // CVE-2024-32498: a data file; CVE-2024-4467: a json: name in its place.
    let json_name = format!("json:{{\"driver\":\"file\",\"filename\":\"{secret}\"}}");
    let file = folder.path("attack.qcow2");
    let file = file.to_str().unwrap();
    for (name, target) in [(secret, "absolute"), (json_name.as_str(), "json")] {
        qemu_img(&["create", "-f", "qcow2", "-o", &format!("data_file={}", folder.path("d").display()), file, "4096"]);
        rename_data_file(file, name);
        let output = audit(&["--output", "json", file]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let report = json(&output);
        assert_eq!(report["verdict"], "danger");
        assert_eq!(report["references"][0]["role"], "data_file");
        assert_eq!(report["references"][0]["target"], target, "{report}");
        assert_eq!(report["references"][0]["name"], name);
    }
    for (backing, code, target) in [(secret, 2, "absolute"), ("secret", 3, "below"), ("../secret", 2, "outside")] {
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, file, "1M"]);
        let output = audit(&["--output=json", file]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(json(&output)["references"][0]["target"], target);
    }
}

/// Puts another name in the place of the data file's, as an attacker would with a hex editor.
fn rename_data_file(file: &str, name: &str) {
    use qcowkit::file::{FileAccess, FileStorage};
    use qcowkit_core::format::Extension;
    use qcowkit_core::storage::Storage;
    let storage = FileStorage::open(file, FileAccess::Write).unwrap();
    let mut area = qcowkit_core::operations::read_header(&storage).unwrap();
    area.extensions.retain(|extension| !matches!(extension, Extension::DataFile(_)));
    area.extensions.push(Extension::DataFile(name.into()));
    storage.write_at(0, &area.emit().unwrap()).unwrap();
}

#[test]
fn a_stream_is_judged_without_reading_it_to_its_end() {
    let mut header = vec![0u8; 1 << 16];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let mut child = Command::new(env!("CARGO_BIN_EXE_qcowkit"))
        .args(["audit", "--output", "json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The writing end stays open: whoever waits for the end of the stream waits forever.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&header).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    drop(stdin);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["format"], &report["verdict"]), (&"qcow2".into(), &"danger".into()));
    assert!(report["file_length"].is_null());
}

#[test]
fn what_cannot_be_audited_ends_with_1() {
    let folder = Folder::new();
    let missing = folder.path("missing");
    assert_eq!(audit(&[missing.to_str().unwrap()]).status.code(), Some(1));
    assert_eq!(audit(&["--deep", "-"]).status.code(), Some(1));
    assert_eq!(audit(&[]).status.code(), Some(1));
    assert_eq!(audit(&["--max-size", "much", missing.to_str().unwrap()]).status.code(), Some(1));
    // Neither file nor disk.
    assert_eq!(audit(&["/dev/null"]).status.code(), Some(1));
}

#[test]
fn the_size_that_the_caller_allows_is_the_limit() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let file = folder.path("big.qcow2");
    let file = file.to_str().unwrap();
    qemu_img(&["create", "-f", "qcow2", file, "1T"]);
    assert_eq!(audit(&[file]).status.code(), Some(0));
    assert_eq!(audit(&["--max-size", "1T", file]).status.code(), Some(0));
    let output = audit(&["--max-size", "100G", file]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("107374182400 are allowed"), "{output:?}");
}

/// The promise is a millisecond for a verdict by the header alone, however large the image says it is, and whatever its
/// header cluster is full of; of a file, with opening it, and of the first bytes of a stream.
#[test]
fn a_verdict_by_the_header_alone_takes_less_than_a_millisecond() {
    use qcowkit::file::{FileAccess, FileStorage};
    use qcowkit_core::image::{CreateOptions, Image};
    use qcowkit_core::operations::audit::{AuditOptions, audit, audit_start};
    use qcowkit_core::storage::Storage;
    const TIMES: u32 = 200;
    let folder = Folder::in_memory();
    let options = AuditOptions { deep: false, ..AuditOptions::default() };
    for (size, cluster_size, full) in [
        (1u64 << 20, 512, false),
        (1 << 40, 65_536, false),
        (1 << 40, 65_536, true),
        (1 << 50, 2 << 20, false),
        (1 << 50, 2 << 20, true),
    ] {
        let path = folder.path("image");
        let storage = FileStorage::open(&path, FileAccess::Create).unwrap();
        let create = CreateOptions { cluster_size, ..CreateOptions::default() };
        Image::create(&storage, size, &create).unwrap().close().unwrap();
        if full {
            // Behind the header, its extensions, and the mark that ends them.
            storage.write_at(4096, &vec![0xff; cluster_size as usize - 4096]).unwrap();
        }
        // The fastest of many: on a busy machine the others tell how long somebody else computed.
        let fastest = |work: &dyn Fn()| {
            let times = (0..TIMES).map(|_| {
                let start = std::time::Instant::now();
                work();
                start.elapsed()
            });
            times.min().unwrap()
        };
        let of_file = fastest(&|| {
            let storage = FileStorage::open(&path, FileAccess::Read).unwrap();
            audit(&storage, &options, &mut |_| ()).unwrap();
        });
        let bytes = std::fs::read(&path).unwrap();
        let first = &bytes[..bytes.len().min(cluster_size as usize)];
        let of_stream = fastest(&|| drop(audit_start(std::hint::black_box(first), None, &options)));
        let filled = if full { "full" } else { "empty" };
        println!(
            "clusters of {cluster_size}, header cluster {filled}: {} us for the file, {} us for its first bytes",
            of_file.as_micros(),
            of_stream.as_micros()
        );
        // Clusters of 2 MiB are gone through byte by byte, which unoptimised code takes its time for.
        let most = if cfg!(debug_assertions) && cluster_size > 65_536 { 30 } else { 1 };
        assert!(of_file.max(of_stream) < std::time::Duration::from_millis(most), "{of_file:?} {of_stream:?}");
        std::fs::remove_file(&path).unwrap();
    }
}
