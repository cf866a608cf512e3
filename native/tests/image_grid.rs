//! A grid of images made by QEMU's programs, one feature each: every one reads right or is refused by name, and what
//! we write never breaks what we do not maintain.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{
    Folder, Rng, assert_same, assert_same_map, check_clean, open, our_map, qemu_create, qemu_io, qemu_is_here,
    qemu_map, qemu_read, read_all, run, succeed, try_open,
};
use qcowkit_core::ErrorKind;
use qcowkit_core::image::OpenOptions;
use qcowkit_core::metadata::{DiscardPolicy, Unref};

const SIZE: u64 = 5 << 20;

/// Data in several places: whole clusters, parts, zeros, discarded clusters.
fn filled(path: &Path, pattern: u8) -> Vec<u8> {
    let mut model = vec![0u8; SIZE as usize];
    let mut commands = Vec::new();
    for (n, (offset, length)) in
        [(0, 300_000), (1 << 20, 2 << 20), (3_333_333, 77), (SIZE - 1000, 1000)].iter().enumerate()
    {
        let byte = pattern.wrapping_add(n as u8);
        commands.push(format!("write -P {byte} {offset} {length}"));
        model[*offset as usize..(offset + length) as usize].fill(byte);
    }
    commands.push(format!("write -z {} {}", 2 << 20, 1 << 19));
    model[2 << 20..(2 << 20) + (1 << 19)].fill(0);
    assert!(qemu_io(path, "", &commands).iter().all(|&done| done));
    model
}

/// Reads, writes, discards and reads again; QEMU must find nothing and read the same.
fn works(path: &Path, mut model: Vec<u8>, what: &str) {
    let mut image = open(path, OpenOptions::default());
    assert_same(&read_all(&mut image), &model, what);
    assert_same_map(&our_map(&mut image), &qemu_map(path), false, what);
    let mut rng = Rng::new(7);
    for _ in 0..12 {
        let offset = rng.below(SIZE - 200_000);
        let length = 1 + rng.below(150_000) as usize;
        let bytes = rng.bytes(length);
        image.write_at(offset, &bytes).unwrap();
        model[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        let offset = rng.below(SIZE - 200_000);
        image.write_zeroes(offset, 100_000, rng.one_in(2)).unwrap();
        model[offset as usize..offset as usize + 100_000].fill(0);
    }
    assert_same(&read_all(&mut image), &model, what);
    image.close().unwrap();
    check_clean(path, what);
    assert_same(&qemu_read(path, None), &model, what);
    let mut image = open(path, OpenOptions::default().read_only());
    assert_same_map(&our_map(&mut image), &qemu_map(path), false, what);
}

#[test]
fn every_geometry_reads_and_writes() {
    if !qemu_is_here() {
        return;
    }
    let mut options: Vec<String> = (9..=21).map(|bits| format!("cluster_size={}", 1u64 << bits)).collect();
    options.extend((9..=21).step_by(3).map(|bits| format!("compat=0.10,cluster_size={}", 1u64 << bits)));
    options.extend((0..=6).map(|order| format!("refcount_bits={}", 1u64 << order)));
    options.extend((14..=21).map(|bits| format!("extended_l2=on,cluster_size={}", 1u64 << bits)));
    options.extend(["lazy_refcounts=on", "compression_type=zstd", "preallocation=metadata"].map(String::from));
    for option in options {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        qemu_create(&path, &["-o", &option], SIZE);
        let model = filled(&path, 0x31);
        works(&path, model, &option);
    }
}

#[test]
fn compressed_images_read_and_write() {
    if !qemu_is_here() {
        return;
    }
    for option in ["compression_type=zlib", "compression_type=zstd", "compression_type=zstd,extended_l2=on"] {
        let folder = Folder::new();
        let (plain, packed) = (folder.path("plain"), folder.path("packed"));
        qemu_create(&plain, &[], SIZE);
        let model = filled(&plain, 0x61);
        let arguments = ["convert", "-c", "-O", "qcow2", "-o", option].map(PathBuf::from);
        succeed("qemu-img", &[&arguments[..], &[plain, packed.clone()]].concat());
        works(&packed, model, option);
    }
}

#[test]
fn backing_files_show_where_nothing_is_written() {
    if !qemu_is_here() {
        return;
    }
    for (format, options) in [("raw", vec![]), ("qcow2", vec![]), ("qcow2", vec!["-o", "compat=0.10"])] {
        for overlay in ["compat=1.1", "compat=0.10", "extended_l2=on"] {
            for base_size in [SIZE, SIZE / 2 + 512, SIZE * 2] {
                let what = format!("{format} {options:?} of {base_size} under {overlay}");
                let folder = Folder::new();
                let (base, path) = (folder.path("base"), folder.path("image.qcow2"));
                let mut model = Rng::new(base_size).bytes(base_size as usize);
                model[1 << 20..2 << 20].fill(0);
                std::fs::write(&base, &model).unwrap();
                if format == "qcow2" {
                    let raw = folder.path("raw");
                    std::fs::rename(&base, &raw).unwrap();
                    let mut arguments = vec!["convert".into(), "-f".into(), "raw".into(), "-O".into(), "qcow2".into()];
                    arguments.extend(options.iter().map(|word| PathBuf::from(*word)));
                    arguments.extend([raw, base]);
                    succeed("qemu-img", &arguments);
                }
                qemu_create(&path, &["-b", "base", "-F", format, "-o", overlay], SIZE);
                model.resize(SIZE as usize, 0);
                works(&path, model, &what);
            }
        }
    }
}

fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn new_image(folder: &Folder, options: &[&str]) -> (PathBuf, Vec<u8>) {
    let path = folder.path("image.qcow2");
    qemu_create(&path, options, SIZE);
    let model = filled(&path, 0x41);
    (path, model)
}

/// A read works and a write is refused, and nothing is changed.
fn only_reads(path: &Path, model: &[u8], why: &str) {
    let before = std::fs::read(path).unwrap();
    let mut image = open(path, OpenOptions::default());
    assert_same(&read_all(&mut image), model, why);
    let error = image.write_at(0, b"no").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(text) if text.contains(why)), "{error}");
    assert!(image.discard(0, SIZE).is_err() && image.write_zeroes(0, SIZE, true).is_err());
    image.close().unwrap();
    assert!(std::fs::read(path).unwrap() == before, "{why}: the file changed");
}

#[test]
fn dirty_and_corrupt_images_are_read_but_not_written() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (path, model) = new_image(&folder, &[]);
    poke(&path, 79, &[1]);
    only_reads(&path, &model, "marked dirty");
    poke(&path, 79, &[2]);
    only_reads(&path, &model, "marked corrupt");
}

#[test]
fn an_image_left_by_a_killed_qemu_is_read_but_not_written() {
    use std::io::{BufRead, BufReader, Write};
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (path, mut model) = new_image(&folder, &["-o", "lazy_refcounts=on"]);
    let mut child = Command::new("qemu-io").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // One by one: commands that arrive together wait for the next.
    for (command, answer) in [("write -P 9 4000000 100000", Some("ops;")), ("flush", None), ("length", Some("5 MiB"))] {
        std::thread::sleep(std::time::Duration::from_millis(500));
        writeln!(child.stdin.as_mut().unwrap(), "{command}").unwrap();
        if let Some(answer) = answer {
            assert!(lines.any(|line| line.unwrap().contains(answer)));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    model[4_000_000..4_100_000].fill(9);
    only_reads(&path, &model, "marked dirty");
}

#[test]
fn unknown_incompatible_bits_are_refused_by_name() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (path, _) = new_image(&folder, &[]);
    poke(&path, 72, &[0x40]);
    let error = try_open(&path, OpenOptions::default().read_only()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(text) if text.contains("62")), "{error}");
}

#[test]
fn unknown_compatible_bits_and_extensions_survive_and_unknown_autoclear_bits_go() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let (path, model) = new_image(&folder, &[]);
    poke(&path, 80, &[0x20]);
    poke(&path, 88, &[0x08]);
    // An unknown extension in front of all others: they are found by walking over it.
    let header = std::fs::read(&path).unwrap()[..4096].to_vec();
    let length = u32::from_be_bytes(header[100..104].try_into().unwrap()) as usize;
    let mut moved = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 5];
    moved.extend(b"hello\0\0\0");
    moved.extend(&header[length..4096 - 64]);
    poke(&path, length as u64, &moved);
    let before = std::fs::read(&path).unwrap()[..65_536].to_vec();

    let mut image = open(&path, OpenOptions::default());
    assert_same(&read_all(&mut image), &model, "unknown bits");
    image.flush().unwrap();
    assert!(std::fs::read(&path).unwrap()[..65_536] == before[..], "reading changed the header");
    image.write_at(0, b"first").unwrap();
    image.close().unwrap();
    let mut expected = before;
    expected[88] = 0;
    assert!(std::fs::read(&path).unwrap()[..65_536] == expected[..], "more than the autoclear bit changed");
    check_clean(&path, "unknown bits");
}

#[test]
fn encrypted_images_are_never_read_as_data() {
    if !qemu_is_here() {
        return;
    }
    for (format, more) in [("luks", ",encrypt.iter-time=10"), ("aes", "")] {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        let options = format!("encrypt.format={format},encrypt.key-secret=s{more}");
        let arguments = ["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", &options];
        let mut arguments = arguments.map(PathBuf::from).to_vec();
        arguments.extend([path.clone(), SIZE.to_string().into()]);
        succeed("qemu-img", &arguments);
        let mut image = open(&path, OpenOptions::default());
        let error = image.write_at(0, b"plain").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Encrypted(name) if name.eq_ignore_ascii_case(format)), "{error}");
        image.close().unwrap();
        if format == "luks" {
            let node =
                format!("driver=qcow2,file.filename={},encrypt.format={format},encrypt.key-secret=s", path.display());
            let write = ["--object", "secret,id=s,data=abc", "--image-opts", "-c", "write -P 7 0 64k", &node];
            assert!(succeed("qemu-io", &write).contains("wrote 65536"));
            let error = open(&path, OpenOptions::default().read_only()).read_at(0, &mut [0; 16]).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Encrypted(_)), "{error}");
        }
    }
}

#[test]
fn external_data_files_read_and_write() {
    if !qemu_is_here() {
        return;
    }
    for raw in ["off", "on"] {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        let data = folder.path("data");
        qemu_create(&path, &["-o", &format!("data_file={},data_file_raw={raw}", data.display())], SIZE);
        let model = filled(&path, 0x51);
        works(&path, model, &format!("data_file_raw={raw}"));
        if raw == "on" {
            let mut image = open(&path, OpenOptions::default());
            image.discard(0, 1 << 20).unwrap();
            let seen = read_all(&mut image);
            image.close().unwrap();
            assert_same(&std::fs::read(&data).unwrap(), &seen, "the raw data file by itself");
        }
        std::fs::remove_file(&data).unwrap();
        assert!(try_open(&path, OpenOptions::default().read_only()).is_err());
    }
}

#[test]
fn bitmaps_are_marked_before_the_first_change() {
    if !qemu_is_here() {
        return;
    }
    for disabled in [false, true] {
        let folder = Folder::new();
        let (path, model) = new_image(&folder, &[]);
        let mut arguments = ["bitmap", "--add"].map(PathBuf::from).to_vec();
        arguments.extend(disabled.then(|| "--disable".into()));
        arguments.extend([path.clone(), "b0".into()]);
        succeed("qemu-img", &arguments);
        let info = || run("qemu-img", &["info".as_ref(), "--output=json".as_ref(), path.as_os_str()]).out;
        let in_use = |text: &str| text.contains("in-use");
        let mut image = open(&path, OpenOptions::default());
        assert_same(&read_all(&mut image), &model, "bitmap");
        image.flush().unwrap();
        assert!(!in_use(&info()), "reading changes no bitmap");
        image.write_at(100, b"x").unwrap();
        // What is switched off tells of a time before our write and stays true.
        assert_eq!(in_use(&info()), !disabled, "{}", info());
        image.close().unwrap();
        assert!(!in_use(&info()), "stored again: {}", info());
        check_clean(&path, "bitmap");
    }
}

#[test]
fn snapshots_keep_their_data_whatever_we_do() {
    if !qemu_is_here() {
        return;
    }
    for unref in [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu] {
        for options in ["compat=1.1", "compat=0.10", "extended_l2=on", "refcount_bits=2"] {
            let folder = Folder::new();
            let (path, model) = new_image(&folder, &["-o", options]);
            succeed("qemu-img", &["snapshot".as_ref(), "-c".as_ref(), "before".as_ref(), path.as_os_str()]);
            let policy = DiscardPolicy { unref, ..DiscardPolicy::default() };
            let mut image = open(&path, OpenOptions::default().with_policy(policy));
            let mut now = model.clone();
            image.discard(0, 1 << 20).unwrap();
            now[..1 << 20].fill(0);
            image.write_zeroes(3 << 19, 1 << 20, true).unwrap();
            now[3 << 19..(3 << 19) + (1 << 20)].fill(0);
            image.write_at(1_234_567, &[3; 100_000]).unwrap();
            now[1_234_567..1_334_567].fill(3);
            image.close().unwrap();
            let what = format!("{options}, {unref:?}");
            check_clean(&path, &what);
            assert_same(&qemu_read(&path, None), &now, &what);
            assert_same(&qemu_read(&path, Some("before")), &model, &what);
        }
    }
}
