//! A real file system, made and filled by the kernel, through qcow2 in both directions.
#![cfg(target_os = "linux")]

mod common;

use std::path::Path;

use common::{Folder, Rng, assert_same, check_clean, open, qemu_is_here, read_all, run, succeed, tool_is_here};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};

const SIZE: u64 = 64 << 20;

/// Mounts the raw disk in a mount namespace of its own and runs a script there, with the mount point as `$1`. False
/// where this is not allowed.
fn in_mounted(disk: &Path, at: &Path, script: &str) -> bool {
    std::fs::create_dir_all(at).unwrap();
    let whole = format!("set -e; mount -o loop \"$0\" \"$1\"; {script}; sync; umount \"$1\"");
    let arguments = ["-m", "sh", "-c", &whole, &disk.display().to_string(), &at.display().to_string()];
    let done = run("unshare", &arguments);
    if done.code == 0 {
        return true;
    }
    let refused =
        ["Operation not permitted", "ermission denied", "failed to setup loop", "must be superuser", "not found"];
    assert!(refused.iter().any(|words| done.err.contains(words)), "{}{}", done.out, done.err);
    assert!(std::env::var_os("CI").is_none(), "cannot mount: {}", done.err);
    println!("skipped: cannot mount here: {}", done.err.trim());
    false
}

fn fsck(disk: &Path) {
    succeed("e2fsck", &["-f".as_ref(), "-n".as_ref(), disk.as_os_str()]);
}

/// Files of all sizes, some deleted again with their blocks discarded; sums of what stays.
const FILL: &str = "cd \"$1\"; mkdir -p a/b/c; i=0; while [ $i -lt 120 ]; do \
    head -c $((i * i * 40 + 1)) /dev/urandom > a/b/file$i; i=$((i + 1)); done; \
    truncate -s 5M a/sparse; printf end >> a/sparse; ln -s b/file3 a/link; rm a/b/file*7; \
    find . -type f ! -path './sums' -exec sha256sum {} + > ../sums.$$; cat ../sums.$$ > sums; rm ../sums.$$; sync; \
    fstrim \"$1\" || true; cd /";

const VERIFY: &str = "cd \"$1\"; sha256sum --quiet -c sums; cd /";

#[test]
fn ext4_goes_through_qcow2_in_both_directions() {
    if !qemu_is_here() || !tool_is_here("mkfs.ext4") || !tool_is_here("unshare") {
        return;
    }
    let folder = Folder::new();
    let (disk, mount) = (folder.path("disk"), folder.path("mount"));
    std::fs::File::create(&disk).unwrap().set_len(SIZE).unwrap();
    succeed("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), disk.as_os_str()]);
    if !in_mounted(&disk, &mount, FILL) {
        return;
    }
    fsck(&disk);
    let bytes = std::fs::read(&disk).unwrap();

    // Converted by QEMU, read by us.
    for words in [&["-c"][..], &["-o", "extended_l2=on"], &["-o", "compat=0.10,cluster_size=4k"]] {
        let image = folder.path("converted.qcow2");
        let (from, to) = (disk.display().to_string(), image.display().to_string());
        let arguments = [&["convert", "-f", "raw", "-O", "qcow2"], words, &[&from, &to]].concat();
        succeed("qemu-img", &arguments);
        let mut image = open(&image, OpenOptions::default().read_only());
        let read = read_all(&mut image);
        assert_same(&read, &bytes, &format!("{words:?}"));
        let back = folder.path("back");
        std::fs::write(&back, &read).unwrap();
        fsck(&back);
    }

    // Written by us in pieces and in disorder, converted by QEMU, mounted by the kernel.
    for extended_l2 in [false, true] {
        let path = folder.path("written.qcow2");
        let _ = std::fs::remove_file(&path);
        let storage = FileStorage::open(&path, FileAccess::CreateNew).unwrap();
        let options = CreateOptions { extended_l2, ..CreateOptions::default() };
        let mut image = Image::create(storage, SIZE, &options).unwrap();
        let mut pieces: Vec<u64> = (0..SIZE / 12_288 + 1).map(|n| n * 12_288).collect();
        let mut rng = Rng::new(11);
        for n in (1..pieces.len()).rev() {
            pieces.swap(n, rng.below(n as u64 + 1) as usize);
        }
        for start in pieces {
            let piece = &bytes[start as usize..bytes.len().min(start as usize + 12_288)];
            if piece.iter().any(|&byte| byte != 0) {
                image.write_at(start, piece).unwrap();
            }
        }
        image.close().unwrap();
        check_clean(&path, "written");
        let raw = folder.path("raw");
        let (from, to) = (path.display().to_string(), raw.display().to_string());
        succeed("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &from, &to]);
        assert_same(&std::fs::read(&raw).unwrap(), &bytes, "converted back");
        fsck(&raw);
        assert!(in_mounted(&raw, &mount, VERIFY));
    }
}
