//! Hostile images in the hands of the program: it ends soon, with a code and words, and nothing that an image says commands
//! the terminal.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::Folder;
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::format::{Extension, HeaderArea};
use qcowkit_core::image::{CreateOptions, Image, NewSnapshot, OpenOptions};
use qcowkit_core::storage::{ReadStorage, Storage};

fn qcowkit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qcowkit")).args(args).output().unwrap()
}

fn create(path: &Path, size: u64, cluster_size: u64) -> Image<FileStorage> {
    let options = CreateOptions { cluster_size, ..CreateOptions::default() };
    Image::create(FileStorage::open(path, FileAccess::CreateNew).unwrap(), size, &options).unwrap()
}

fn change_header(path: &Path, change: impl FnOnce(&mut HeaderArea)) {
    let storage = FileStorage::open(path, FileAccess::Write).unwrap();
    let mut area = qcowkit_core::operations::read_header(&storage).unwrap();
    change(&mut area);
    storage.write_at(0, &area.emit().unwrap()).unwrap();
}

#[test]
fn names_do_not_command_the_terminal() {
    let folder = Folder::new();
    let path = folder.path("odd.qcow2");
    let mut image = create(&path, 1 << 20, 65_536);
    image.create_snapshot(&NewSnapshot { name: "\x1b[2J\x07".into(), ..NewSnapshot::default() }).unwrap();
    image.add_bitmap("\x1b]0;pwned", None).unwrap();
    image.close().unwrap();
    change_header(&path, |area| {
        area.backing_file = Some("\u{9b}2J\x1b[8m".into());
        area.extensions.push(Extension::BackingFormat("raw".into()));
    });
    let file = path.to_str().unwrap();
    for args in [
        &["info", file][..],
        &["snapshot", file],
        &["bitmap", "--list", file],
        &["inspect", "-s", "all", file],
        &["audit", file],
        &["map", file],
        &["io", "-c", "read 0 512", file],
        &["convert", "-O", "raw", file, "never"],
        &["resize", file, "2M"],
    ] {
        let output = qcowkit(args);
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes);
            let commands = text.chars().any(|char| char.is_control() && char != '\n' && char != '\t');
            assert!(!commands, "{args:?}: {text:?}");
        }
    }
    let listed = String::from_utf8(qcowkit(&["snapshot", file]).stdout).unwrap();
    assert!(listed.contains("\\x1b[2J\\x07"), "{listed}");
    // For programs names are what they are.
    let json = qcowkit(&["info", "--output=json", file]).stdout;
    let info: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(info["snapshots"][0]["name"], "\x1b[2J\x07");
}

/// A line end in a name does not begin a line of the program's, so that a name can forge none.
#[test]
fn names_do_not_forge_lines() {
    let folder = Folder::new();
    let path = folder.path("odd.qcow2");
    let mut image = create(&path, 1 << 20, 65_536);
    image.create_snapshot(&NewSnapshot { name: "s\nFORGED".into(), ..NewSnapshot::default() }).unwrap();
    image.add_bitmap("b\r\nFORGED", None).unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    image.close().unwrap();
    std::fs::write(folder.path("base\nFORGED"), [b'p'; 4096]).unwrap();
    change_header(&path, |area| {
        area.backing_file = Some("base\nFORGED".into());
        area.extensions.push(Extension::BackingFormat("raw".into()));
    });
    let file = path.to_str().unwrap();
    for (args, escaped) in [
        (&["info", file][..], "base\\x0aFORGED"),
        (&["info", "--backing-chain", file], "base\\x0aFORGED"),
        (&["snapshot", file], "s\\x0aFORGED"),
        (&["bitmap", "--list", file], "b\\x0d\\x0aFORGED"),
        (&["map", file], ""),
        (&["inspect", "-s", "all", file], "FORGED"),
        (&["audit", file], "FORGED"),
        (&["io", "-r", "-c", "info", file], "FORGED"),
    ] {
        let output = qcowkit(args);
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{args:?}: {text}");
            assert!(!text.contains('\r'), "{args:?}: {text:?}");
        }
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(escaped), "{args:?}: {text}");
    }
    let json = qcowkit(&["info", "--output=json", file]).stdout;
    let info: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(info["backing-filename"], "base\nFORGED");
}

/// Nor on standard error, when such a name is a part of what went wrong.
#[test]
fn names_do_not_forge_messages() {
    let folder = Folder::new();
    let path = folder.path("odd.qcow2");
    let mut image = create(&path, 1 << 20, 65_536);
    image.add_bitmap("b\nFORGED", None).unwrap();
    image.close().unwrap();
    let other = folder.path("other.qcow2");
    create(&other, 1 << 20, 65_536).close().unwrap();
    let (file, other, to) = (path.to_str().unwrap(), other.to_str().unwrap(), folder.path("to"));
    let to = to.to_str().unwrap();
    let forged = |args: &[&str], code: i32| {
        let output = qcowkit(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains("\\x0aFORGED"), "{args:?}: {text}");
        assert!(!text.lines().any(|line| line.starts_with("FORGED")), "{args:?}: {text}");
    };
    let entry = bytes_at(&path, b"b\nFORGED") - 24;
    change_bytes(&path, entry + 15, |flags| flags | 1);
    forged(&["convert", "--bitmaps", "-O", "qcow2", file, to], 1);
    forged(&["convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", file, to], 0);
    change_bytes(&path, entry + 15, |flags| flags & !1);

    change_header(&path, |area| {
        area.backing_file = Some("gone\nFORGED".into());
        area.extensions.push(Extension::BackingFormat("raw".into()));
    });
    for args in [
        &["convert", "-O", "raw", file, to][..],
        &["map", file],
        &["resize", file, "2M"],
        &["commit", file],
        &["rebase", "-b", other, "-F", "qcow2", file],
        &["io", "-c", "length", file],
        &["measure", "-O", "qcow2", file],
        &["dd", &format!("if={file}"), &format!("of={to}")],
        &["amend", "-o", "lazy_refcounts=on", file],
        &["map", "--backing-files=deny", file],
    ] {
        forged(args, 1);
    }
    forged(&["compare", file, other], 2);
    forged(&["io", "-c", &format!("open {file}")], 1);
    let bitmap = bytes_at(&path, b"b\nFORGED") - 24;
    change_bytes(&path, bitmap, |_| 0xff);
    forged(&["check", "-r", "all", file], 0);
    // Line ends of ours are still there.
    let output = qcowkit(&["resize", "--shrink", other, "none"]);
    assert!(String::from_utf8_lossy(&output.stderr).lines().count() > 1, "{output:?}");
}

/// A repair that has to copy more than it may hold goes on by itself, in as much memory as its limit says: twice
/// `MAX_REPAIR_COPY_BYTES`, and what the program takes anyhow.
#[test]
fn a_repair_goes_on_in_bounded_memory() {
    const LARGE: u64 = 2 << 20;
    // 600 MiB of copies.
    const USES: usize = 300;
    let folder = Folder::new();
    let path = folder.path("many.qcow2");
    let options = CreateOptions { cluster_size: LARGE, refcount_bits: 1, ..CreateOptions::default() };
    let storage = FileStorage::open(&path, FileAccess::CreateNew).unwrap();
    let mut image = Image::create(storage, 1 << 30, &options).unwrap();
    let noise: Vec<u8> = (0..LARGE / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).collect();
    image.write_at(0, &noise).unwrap();
    let storage = image.close().unwrap();
    let number = |at| {
        let mut bytes = [0; 8];
        storage.read_at(at, &mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l2 = number(number(40)) & 0x00ff_ffff_ffff_fe00;
    storage.write_at(l2, &number(l2).to_be_bytes().repeat(USES)).unwrap();
    drop(storage);

    let length = std::fs::metadata(&path).unwrap().len();
    let command = |arguments: &str| {
        let script = format!("ulimit -v 750000; exec \"$0\" check -r all {arguments} \"$1\"");
        Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_qcowkit")]).arg(&path).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Where it may not go on, it says which limit that is, and what to do.
    let planned = command("--dry-run");
    assert!(text(&planned.stdout).contains("MAX_REPAIR_COPY_BYTES"), "{}", text(&planned.stdout));
    let undo = folder.path("undo");
    let once = command(&format!("--undo '{}'", undo.display()));
    assert_eq!(once.status.code(), Some(2), "{}", text(&once.stderr));
    assert!(text(&once.stderr).contains("MAX_REPAIR_COPY_BYTES"), "{}", text(&once.stderr));
    let back = qcowkit(&["check", "--apply-undo", undo.to_str().unwrap(), path.to_str().unwrap()]);
    assert!(back.status.success() && std::fs::metadata(&path).unwrap().len() == length, "{back:?}");

    let done = command("");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("No errors were found on the image."), "{}", text(&done.stdout));
    let grown = std::fs::metadata(&path).unwrap().len() - length;
    assert!(grown >= (USES as u64 - 1) * LARGE, "{grown}");
    let mut image =
        Image::open(FileStorage::open(&path, FileAccess::Read).unwrap(), OpenOptions::default().read_only()).unwrap();
    let mut bytes = vec![0; LARGE as usize];
    image.read_at((USES as u64 - 1) * LARGE, &mut bytes).unwrap();
    assert!(bytes == noise);
}

/// Where a name is: in the directory that was written last.
fn bytes_at(path: &Path, name: &[u8]) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let mut found = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(name));
    found.next_back().unwrap()
}

fn change_bytes(path: &Path, at: usize, change: impl Fn(u8) -> u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] = change(bytes[at]);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_name_that_is_a_link_to_elsewhere_is_a_danger() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let secret = elsewhere.path("secret");
    std::fs::write(&secret, [b's'; 4096]).unwrap();
    std::os::unix::fs::symlink(&secret, folder.path("base")).unwrap();
    std::fs::write(folder.path("plain"), [b'p'; 4096]).unwrap();
    let path = folder.path("image.qcow2");
    create(&path, 4096, 65_536).close().unwrap();
    for (name, code, target) in [("base", 2, "outside"), ("plain", 3, "below"), ("missing", 3, "below")] {
        change_header(&path, |area| {
            area.backing_file = Some(name.into());
            area.extensions.retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
            area.extensions.push(Extension::BackingFormat("raw".into()));
        });
        let output = qcowkit(&["audit", "--output=json", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["references"][0]["target"], target, "{name}: {report}");
    }
    // And the other verbs do not follow it.
    change_header(&path, |area| area.backing_file = Some("base".into()));
    let refused = qcowkit(&["io", "-c", "read 0 512", path.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not below its own directory"), "{refused:?}");
}

/// Disks of exabytes of nothing, from files of a few clusters: each verb ends by itself.
#[test]
fn disks_that_claim_exabytes_are_told_or_refused_soon() {
    let folder = Folder::new();
    let (path, other) = (folder.path("huge.qcow2"), folder.path("small.raw"));
    create(&path, 1 << 61, 2 << 20).close().unwrap();
    std::fs::write(&other, [0; 4096]).unwrap();
    let (file, other) = (path.to_str().unwrap(), other.to_str().unwrap());
    let trace = folder.path("trace");
    std::fs::write(&trace, "write 0 64k\n").unwrap();
    let identical = qcowkit(&["compare", "-f", "qcow2", "-F", "raw", file, other]);
    assert_eq!(identical.status.code(), Some(0), "{identical:?}");
    for args in
        [&["map", file][..], &["measure", "-O", "qcow2", file], &["check", file], &["discard", "-n", file, "all"]]
    {
        let output = qcowkit(args);
        assert!(output.status.code().is_some_and(|code| code <= 1), "{args:?}: {output:?}");
    }
    let replay = qcowkit(&["replay", "--image", file, trace.to_str().unwrap()]);
    assert_eq!(replay.status.code(), Some(1), "{replay:?}");
    assert!(String::from_utf8_lossy(&replay.stderr).contains("the lab takes 1073741824 at most"), "{replay:?}");
}

/// A limit of the shell's on the size of files is an error, not the end by a signal.
#[cfg(all(feature = "fuse", target_os = "linux"))]
#[test]
fn a_file_that_may_not_grow_is_an_error() {
    let folder = Folder::new();
    let path = folder.path("image.qcow2");
    create(&path, 64 << 20, 65_536).close().unwrap();
    let script =
        format!("ulimit -f 1024; exec '{}' io -c 'write 0 4M' '{}'", env!("CARGO_BIN_EXE_qcowkit"), path.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let image = Image::open(FileStorage::open(&path, FileAccess::Read).unwrap(), OpenOptions::default().read_only());
    image.unwrap();
    assert_ne!(qcowkit(&["check", path.to_str().unwrap()]).status.code(), Some(2));
}

/// A file of half a terabyte of holes, in which the L1 table says that a quarter of a million L2 tables lie: none of them is
/// read, by no verb. (`core/tests/terabytes_of_holes.rs` counts.)
#[test]
fn tables_in_half_a_terabyte_of_holes_cost_little() {
    const CLUSTER: u64 = 2 << 20;
    const TABLES: u64 = 1 << 18;
    let folder = Folder::new();
    let (path, copy) = (folder.path("sparse.qcow2"), folder.path("copy.qcow2"));
    create(&path, TABLES * (CLUSTER / 8 * CLUSTER), CLUSTER).close().unwrap();
    let storage = FileStorage::open(&path, FileAccess::Write).unwrap();
    let l1 = qcowkit_core::operations::read_header(&storage).unwrap().header.l1_table_offset;
    let first = storage.len().unwrap();
    let table: Vec<u8> = (0..TABLES).flat_map(|n| ((first + n * CLUSTER) | (1 << 63)).to_be_bytes()).collect();
    storage.write_at(l1, &table).unwrap();
    storage.set_len(first + TABLES * CLUSTER).unwrap();
    drop(storage);
    let (file, copy) = (path.to_str().unwrap(), copy.to_str().unwrap());
    for args in [
        &["check", "-r", "all", file][..],
        &["check", file],
        &["audit", "--deep", file],
        &["map", "--output=json", file],
        &["measure", "-O", "qcow2", "-o", "cluster_size=2M", file],
        &["compare", file, file],
        &["convert", "-O", "qcow2", "-o", "cluster_size=2M", file, copy],
        &["discard", "-n", file, "all"],
        &["analyze", file],
        &["snapshot", "-c", "s", file],
        &["snapshot", "-d", "s", file],
        &["amend", "-o", "refcount_bits=32", file],
        &["amend", "-o", "refcount_bits=16", file],
        &["amend", "-o", "compat=0.10", file],
        &["discard", file, "all"],
        &["resize", "--shrink", file, "1M"],
        &["check", file],
    ] {
        let output = qcowkit(args);
        let expected = if args[0] == "audit" { 3 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{args:?}: {output:?}");
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 64 << 20);
}
