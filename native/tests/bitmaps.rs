//! Dirty bitmaps beside QEMU: what is marked after the same operations, what each reads of the other's, the command
//! line, and images whose bitmaps QEMU cannot open.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Folder, Rng, check_clean, open, qemu_create, qemu_io, qemu_is_here, run, succeed, tool_is_here};
use qcowkit_core::image::OpenOptions;

fn ours(arguments: &[&str]) -> common::Ended {
    run(env!("CARGO_BIN_EXE_qcowkit"), arguments)
}

fn ours_succeed(arguments: &[&str]) -> String {
    let done = ours(arguments);
    assert!(done.code == 0, "{arguments:?}: {}{}", done.out, done.err);
    done.out
}

/// The ranges that a bitmap marks, as QEMU's NBD server exports it.
fn qemu_dirty(folder: &Folder, path: &Path, bitmap: &str) -> Vec<(u64, u64)> {
    // Without a file for its process number: the server before may hold that a moment longer than the socket.
    let socket = folder.path("nbd.sock");
    let started = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "--fork", "-B", bitmap, "-k"])
        .args([socket.as_os_str(), path.as_os_str()])
        .status()
        .unwrap();
    assert!(started.success());
    let source = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let text = succeed("qemu-img", &["map", "--output=json", "--image-opts", &source]);
    // The server ends with its only client.
    while socket.exists() {
        std::thread::yield_now();
    }
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut dirty: Vec<(u64, u64)> = Vec::new();
    for row in rows.iter().filter(|row| row["data"] == false) {
        let (start, length) = (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap());
        match dirty.last_mut() {
            Some(last) if last.1 == start => last.1 += length,
            _ => dirty.push((start, start + length)),
        }
    }
    dirty
}

fn our_dirty(path: &Path, bitmap: &str) -> Vec<(u64, u64)> {
    let image = open(path, OpenOptions::default().read_only());
    image.bitmap_bits(bitmap).unwrap().ranges().map(|range| (range.start, range.end)).collect()
}

/// Marks in a plain vector.
fn mark(plain: &mut [bool], granularity: u64, offset: u64, length: u64) {
    if length > 0 {
        plain[(offset / granularity) as usize..(offset + length).div_ceil(granularity) as usize].fill(true);
    }
}

fn marked(plain: &[bool], granularity: u64, size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (n, _) in (0u64..).zip(plain).filter(|(_, dirty)| **dirty) {
        let (start, end) = (n * granularity, ((n + 1) * granularity).min(size));
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

#[test]
fn both_mark_the_same_and_read_what_the_other_marked() {
    if !qemu_is_here() || !tool_is_here("qemu-nbd") {
        return;
    }
    for seed in 0..8u64 {
        let (folder, mut rng) = (Folder::new(), Rng::new(seed ^ 0xb17));
        let cluster = 512u64 << (2 * rng.below(5));
        let size = (rng.below(400) + 20) * cluster.max(4096) + rng.choose(&[0, 512]);
        let granularity = rng.choose(&[512u64, 4096, 65536, 1 << 20]);
        let path = folder.path("turn.qcow2");
        qemu_create(&path, &["-o", &format!("cluster_size={cluster}")], size);
        let name = path.display().to_string();
        let by_us = ["bitmap", "--add", "-g", &granularity.to_string(), &name, "b0"];
        if seed % 2 == 0 {
            ours_succeed(&by_us)
        } else {
            succeed("qemu-img", &by_us)
        };
        let mut plain = vec![false; size.div_ceil(granularity) as usize];
        for turn in 0..4 {
            let operations: Vec<(u64, u64, u64)> = (0..8)
                .map(|_| {
                    let offset = rng.below(size);
                    let most = if rng.one_in(6) { size } else { cluster * 3 };
                    (offset, (rng.below(most) + 1).min(size - offset), rng.below(4))
                })
                .map(|(offset, length, kind)| {
                    // qemu-io's discards and writes end at sectors.
                    let start = offset / 512 * 512;
                    (start, (offset + length).next_multiple_of(512).min(size) - start, kind)
                })
                .collect();
            if turn % 2 == 0 {
                let mut image = open(&path, OpenOptions::default());
                for &(offset, length, kind) in &operations {
                    match kind {
                        0 => image.discard(offset, length).unwrap(),
                        1 => image.write_zeroes(offset, length, true).unwrap(),
                        _ => image.write_at(offset, &vec![7; length as usize]).unwrap(),
                    }
                }
                image.close().unwrap();
            } else {
                let commands: Vec<String> = operations
                    .iter()
                    .map(|&(offset, length, kind)| match kind {
                        0 => format!("discard {offset} {length}"),
                        1 => format!("write -z -u {offset} {length}"),
                        _ => format!("write -P 9 {offset} {length}"),
                    })
                    .collect();
                assert!(qemu_io(&path, "", &commands).into_iter().all(|done| done));
            }
            operations.iter().for_each(|&(offset, length, _)| mark(&mut plain, granularity, offset, length));
            let expected = marked(&plain, granularity, size);
            let when = format!("seed {seed}, turn {turn}, clusters {cluster}, granularity {granularity}");
            assert_eq!(our_dirty(&path, "b0"), expected, "{when}, read by us");
            assert_eq!(qemu_dirty(&folder, &path, "b0"), expected, "{when}, read by QEMU");
            check_clean(&path, &when);
        }
    }
}

#[test]
fn every_change_of_a_bitmap_is_qemus() {
    if !qemu_is_here() || !tool_is_here("qemu-nbd") {
        return;
    }
    let folder = Folder::new();
    let (a, b) = (folder.path("qemu.qcow2"), folder.path("ours.qcow2"));
    for path in [&a, &b] {
        qemu_create(path, &[], 64 << 20);
    }
    let steps: &[&[&str]] = &[
        &["--add", "FILE", "b0"],
        &["--add", "-g", "4k", "--disable", "FILE", "b1"],
        &["--add", "-g", "2G", "FILE", "coarse"],
        &["--enable", "FILE", "b1"],
        &["--merge", "b0", "FILE", "b1"],
        &["--clear", "FILE", "b0"],
        &["--merge", "b1", "--merge", "coarse", "--disable", "FILE", "b0"],
        &["--add", "--merge", "b1", "FILE", "b2"],
        &["--remove", "FILE", "coarse"],
        &["--clear", "--merge", "b2", "--enable", "FILE", "b0"],
    ];
    for (n, step) in steps.iter().enumerate() {
        for (program, path) in [("qemu-img", &a), (env!("CARGO_BIN_EXE_qcowkit"), &b)] {
            let file = path.display().to_string();
            let words: Vec<&str> = std::iter::once("bitmap")
                .chain(step.iter().map(|word| if *word == "FILE" { file.as_str() } else { word }))
                .collect();
            succeed(program, &words);
            qemu_io(path, "", &[format!("write -P 1 {} 70000", n << 21), format!("discard {} 1M", n << 20)]);
            check_clean(path, &format!("step {n}"));
        }
        let bitmaps = |path: &Path| {
            let text = succeed("qemu-img", &["info", "--output=json", &path.display().to_string()]);
            let info: serde_json::Value = serde_json::from_str(&text).unwrap();
            info["format-specific"]["data"]["bitmaps"].clone()
        };
        assert_eq!(bitmaps(&a), bitmaps(&b), "step {n}");
        for bitmap in bitmaps(&a).as_array().unwrap() {
            let name = bitmap["name"].as_str().unwrap();
            assert_eq!(our_dirty(&b, name), our_dirty(&a, name), "step {n}, {name}");
            assert_eq!(qemu_dirty(&folder, &b, name), our_dirty(&b, name), "step {n}, {name}");
        }
    }
}

#[test]
fn convert_copies_bitmaps() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (from, to) = (folder.path("from.qcow2"), folder.path("to.qcow2"));
    qemu_create(&from, &[], 32 << 20);
    let (from_name, to_name) = (from.display().to_string(), to.display().to_string());
    ours_succeed(&["bitmap", "--add", &from_name, "on"]);
    ours_succeed(&["bitmap", "--add", "-g", "8k", &from_name, "off"]);
    qemu_io(&from, "", &["write 1M 100k".into(), "discard 4M 1M".into()]);
    ours_succeed(&["bitmap", "--disable", &from_name, "off"]);
    qemu_io(&from, "", &["write 9M 100k".into()]);
    ours_succeed(&["convert", "-O", "qcow2", "--bitmaps", &from_name, &to_name]);
    check_clean(&to, "converted");
    for name in ["on", "off"] {
        assert_eq!(our_dirty(&to, name), our_dirty(&from, name));
    }
    let enabled: Vec<bool> =
        open(&to, OpenOptions::default().read_only()).bitmaps().unwrap().iter().map(|b| b.enabled).collect();
    assert_eq!(enabled, [true, false]);
    // One that was not saved.
    let mut image = open(&from, OpenOptions::default());
    image.write_at(0, &[1]).unwrap();
    image.flush().unwrap();
    drop(image);
    let refused = ours(&["convert", "-O", "qcow2", "--bitmaps", &from_name, &to_name]);
    assert!(refused.code == 1 && refused.err.contains("Cannot copy inconsistent bitmap 'on'"), "{}", refused.err);
    let skipped = ours(&["convert", "-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", &from_name, &to_name]);
    assert!(skipped.code == 0 && skipped.err.contains("Skipping inconsistent bitmap 'on'"), "{}", skipped.err);
    assert_eq!(open(&to, OpenOptions::default().read_only()).bitmaps().unwrap().len(), 1);
}

/// QEMU's issue 2909: an image with a broken bitmap directory can neither be opened nor repaired by QEMU.
#[test]
fn one_command_takes_out_what_keeps_qemu_from_opening_the_image() {
    if !qemu_is_here() {
        return;
    }
    type Damage = fn(&mut Vec<u8>, usize, usize);
    let damages: [(&str, Damage); 14] = [
        ("three bitmaps of two", |bytes, extension, _| bytes[extension + 11] = 3),
        ("no bitmaps", |bytes, extension, _| bytes[extension + 11] = 0),
        ("directory unaligned", |bytes, extension, _| bytes[extension + 30] = 2),
        ("directory too long", |bytes, extension, _| bytes[extension + 22] = 9),
        ("directory beyond the file", |bytes, extension, _| bytes[extension + 27] = 1),
        ("directory zeroed", |bytes, _, at| bytes[at..at + 64].fill(0)),
        ("directory overwritten", |bytes, _, at| bytes[at..at + 64].fill(0xa5)),
        ("name too long", |bytes, _, at| bytes[at + 18] = 4),
        ("reserved flag", |bytes, _, at| bytes[at + 12] = 1),
        ("unknown kind", |bytes, _, at| bytes[at + 16] = 7),
        ("granularity", |bytes, _, at| bytes[at + 17] = 60),
        ("table unaligned", |bytes, _, at| bytes[at + 6] |= 2),
        ("table too long", |bytes, _, at| bytes[at + 11] = 2),
        ("table entry", |bytes, _, at| {
            let table = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            bytes[table + 7] |= 0x80;
        }),
    ];
    let folder = Folder::new();
    let path = folder.path("broken.qcow2");
    let name = path.display().to_string();
    for (what, damage) in damages {
        qemu_create(&path, &[], 32 << 20);
        succeed("qemu-img", &["bitmap", "--add", &name, "b0"]);
        succeed("qemu-img", &["bitmap", "--add", &name, "b1"]);
        qemu_io(&path, "", &["write -P 5 1M 64k".into()]);
        let mut bytes = std::fs::read(&path).unwrap();
        let extension = bytes.windows(4).position(|w| w == [0x23, 0x85, 0x28, 0x75]).unwrap();
        let at = u64::from_be_bytes(bytes[extension + 24..extension + 32].try_into().unwrap()) as usize;
        damage(&mut bytes, extension, at);
        std::fs::write(&path, &bytes).unwrap();
        let refused = run("qemu-img", &["check", "-r", "all", &name]);
        assert!(refused.code != 0, "{what}: QEMU repairs it");
        // It is told of, and in nobody's way.
        let checked = ours(&["check", &name]);
        assert!(checked.code != 0, "{what}: {}{}", checked.out, checked.err);
        ours_succeed(&["info", &name]);
        let listed = ours_succeed(&["bitmap", "--list", "--output", "json", &name]);
        assert!(listed.contains("problem"), "{what}: {listed}");
        ours_succeed(&["io", "-c", "read -P 5 1M 64k", &name]);
        let told = ours(&["bitmap", "--remove-broken", "-n", &name]);
        assert!(told.code == 3 && std::fs::read(&path).unwrap() == bytes, "{what}: {}{}", told.out, told.err);
        ours_succeed(&["bitmap", "--remove-broken", &name]);
        let checked = run("qemu-img", &["check", "--output=json", &name]);
        let report: serde_json::Value = serde_json::from_str(&checked.out).unwrap_or_default();
        let none = |field: &str| report[field].as_u64().unwrap_or(0) == 0;
        assert!(report.is_object() && none("corruptions") && none("check-errors"), "{what}: {}", checked.out);
        succeed("qemu-img", &["check", "-q", "-r", "all", &name]);
        succeed("qemu-io", &["-c", "read -P 5 1M 64k", &name]);
        succeed("qemu-img", &["bitmap", "--add", &name, "new"]);
        check_clean(&path, what);
    }
}

/// What users report, through the program: 3 GiB deleted and trimmed (here 48 MiB), little written.
#[test]
fn the_increment_after_a_trim_is_small() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("disk.qcow2");
    let name = path.display().to_string();
    qemu_create(&path, &[], 256 << 20);
    qemu_io(&path, "", &["write -P 7 0 48M".into()]);
    ours_succeed(&["bitmap", "--add", &name, "backup"]);
    // The guest's session is QEMU's.
    qemu_io(&path, "", &["discard 0 48M".into(), "write -P 8 100M 1M".into()]);
    let text = ours_succeed(&["delta", "--bitmap", "backup", "--output", "json", &name]);
    let delta: serde_json::Value = serde_json::from_str(&text).unwrap();
    let total = |name: &str| delta["totals"][name].as_u64().unwrap();
    assert_eq!((total("dirty_data"), total("dirty_zero")), (1 << 20, 48 << 20));
    assert_eq!((total("clean"), total("clean_zero")), (0, 207 << 20));
    let ranges = delta["ranges"].as_array().unwrap();
    assert_eq!(ranges[0], serde_json::json!({"start": 0, "length": 48 << 20, "state": "dirty_zero"}));
    assert_eq!(delta["forecast"]["without_known_zeros"]["raw_bytes"], 1 << 20);
    let text = ours_succeed(&["delta", "--bitmap", "backup", &name]);
    assert!(text.contains("104857600") && text.contains("dirty_data"), "{text}");
    for wrong in [vec!["delta", &name], vec!["delta", "--bitmap", "none", &name], vec!["delta", "--base", &name]] {
        assert_eq!(ours(&wrong).code, 1, "{wrong:?}");
    }
}
