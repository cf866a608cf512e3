//! Disks that this kernel uses: mounted by FUSE, on a loop device, with file systems of its own.
#![cfg(all(feature = "fuse", target_os = "linux"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{CheckNumbers, Ended, Folder, check_clean, qemu_create, qemu_is_here, succeed, tool_is_here};

/// Large enough for XFS.
const SIZE: u64 = 400 << 20;

/// What all scripts begin with. They run in a mount namespace of their own, whose mounts end with it; loop devices and
/// processes are seen to here, however the script ends.
const PRELUDE: &str = r#"
set -e
cd "$FOLDER"
pid=; loop=
clean_up() {
    umount point 2>/dev/null || umount -l point 2>/dev/null || true
    [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
    [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true
}
trap clean_up EXIT
mkdir -p point; touch disk
# Mounts image.qcow2 with these options, and waits until it is there.
start() {
    # What the one before said must not be taken for this one's word.
    : > said
    "$QCOWKIT" mount "$@" > said 2> complained & pid=$!
    until grep -q 'is mounted' said; do
        kill -0 "$pid" || { cat complained >&2; exit 9; }
        sleep 0.02
    done
}
# Waits until the program has ended, which must succeed.
ended() { wait "$pid"; pid=; }
attach() { loop=$(losetup -f --show "$@"); }
release() { losetup -d "$loop"; loop=; }
# Fills a directory with files of random bytes, "$2" of them of 1 MiB each.
fill() {
    mkdir -p "$1"; n=0
    while [ $n -lt "$2" ]; do head -c 1048576 /dev/urandom > "$1/$n"; n=$((n + 1)); done
    (cd "$1" && sha256sum ./* > sums)
}
# Writes the guest's file system out, and nobody else's: a mount of others that hangs would hold up "sync" for ever.
settle() { ! mountpoint -q point || sync -f point; }
measure() { settle; sync -f "$FOLDER"; echo "$1 $(stat -c '%s %b' image.qcow2)"; }
"#;

/// Runs a script; `None`, and says so, where mounting is not allowed.
fn script(folder: &Folder, text: &str, environment: &[(&str, &str)]) -> Option<Ended> {
    let refused = |why: &str| {
        assert!(std::env::var_os("CI").is_none(), "cannot mount: {why}");
        println!("skipped: {why}");
        None
    };
    if !qemu_is_here() || !tool_is_here("losetup") || !tool_is_here("unshare") {
        return None;
    }
    if succeed("id", &["-u"]).trim() != "0" {
        return refused("loop devices and mounts are root's");
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return refused("there is no /dev/fuse or no /dev/loop-control");
    }
    let done = Command::new("unshare")
        .args(["-m", "sh", "-c", &format!("{PRELUDE}{text}")])
        .env("FOLDER", folder.path("."))
        .env("QCOWKIT", env!("CARGO_BIN_EXE_qcowkit"))
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let ended = Ended {
        code: done.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    };
    if ended.err.contains("unshare failed") || ended.err.contains("failed to set up loop device") {
        return refused(ended.err.trim());
    }
    assert!(ended.code == 0, "{text}\nends with {}\n{}{}", ended.code, ended.out, ended.err);
    Some(ended)
}

fn image(folder: &Folder, words: &[&str]) -> PathBuf {
    let path = folder.path("image.qcow2");
    let _ = std::fs::remove_file(&path);
    qemu_create(&path, words, SIZE);
    path
}

/// File length and bytes on the host, at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    length: u64,
    held: u64,
}

fn space(out: &str, when: &str) -> Space {
    let line = out.lines().find(|line| line.starts_with(when)).unwrap();
    let numbers: Vec<u64> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
    Space { length: numbers[0], held: numbers[1] * 512 }
}

struct Run {
    full: Space,
    trimmed: Space,
    again: Space,
    check: CheckNumbers,
}

const WORK: &str = r#"
start --rw $OPTIONS image.qcow2 disk
attach disk
$MKFS "$loop" > /dev/null 2>&1
mount -o discard "$loop" point
fill point/kept 8; fill point/gone 24; measure full
# Some file systems free space in the background: unmounted, they are done.
rm -r point/gone; umount point; mount -o discard "$loop" point; fstrim point; measure trimmed
fill point/again 24; measure again
for dir in kept again; do (cd "point/$dir" && sha256sum --quiet -c sums); done
umount point; release
kill -TERM "$pid"; ended
mount | grep -q "$FOLDER/disk" && exit 8 || true
"#;

/// A file system of the kernel's on an image: filled, emptied with discards, filled again. Then QEMU's check, that of
/// the file system, and the contents, through QEMU.
fn work(mkfs: &str, fsck: &[&str], options: &str, words: &[&str]) -> Option<Run> {
    let tool = mkfs.split(' ').next().unwrap();
    if !tool_is_here(tool) {
        return None;
    }
    let folder = Folder::new();
    let path = image(&folder, words);
    let what = format!("{tool} {options} {words:?}");
    let done = script(&folder, WORK, &[("MKFS", mkfs), ("OPTIONS", options)])?;
    let check = check_clean(&path, &what);
    let raw = folder.path("raw");
    let arguments = ["convert", "-f", "qcow2", "-O", "raw"].map(std::ffi::OsStr::new);
    succeed("qemu-img", &[&arguments[..], &[path.as_os_str(), raw.as_os_str()]].concat());
    let (program, arguments) = fsck.split_first().unwrap();
    let arguments: Vec<&std::ffi::OsStr> =
        arguments.iter().map(std::ffi::OsStr::new).chain([raw.as_os_str()]).collect();
    succeed(program, &arguments);
    let verify = r#"attach raw; mount "$loop" point
        for dir in kept again; do (cd "point/$dir" && sha256sum --quiet -c sums); done; test ! -e point/gone"#;
    script(&folder, verify, &[])?;
    let run = Run {
        full: space(&done.out, "full"),
        trimmed: space(&done.out, "trimmed"),
        again: space(&done.out, "again"),
        check,
    };
    println!(
        "{tool} {options:40} full {:>5.1} / {:>5.1} MiB, trimmed {:>5.1} / {:>5.1}, again {:>5.1} / {:>5.1}; {} clusters, {} fragmented",
        mebibytes(run.full.length),
        mebibytes(run.full.held),
        mebibytes(run.trimmed.length),
        mebibytes(run.trimmed.held),
        mebibytes(run.again.length),
        mebibytes(run.again.held),
        run.check.allocated,
        run.check.fragmented,
    );
    Some(run)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The deleted files, less what the file system and whole clusters keep.
const GIVEN_BACK: u64 = 20 << 20;

const EXT4: (&str, &[&str]) = ("mkfs.ext4 -q -F", &["e2fsck", "-f", "-n"]);

#[test]
fn ext4_under_each_discard_policy() {
    let case = |options, words: &[&str]| work(EXT4.0, EXT4.1, options, words);
    let Some(unref) = case("", &[]) else { return };
    let Some(kept) = case("-o discard-no-unref=on", &[]) else { return };
    let Some(zeroed) = case("-o discard-no-unref=on,retained-op=zero-range", &[]) else { return };
    let Some(quiet) = case("-o pass-discard-request=off", &[]) else { return };
    let Some(ignored) = case("--discard ignore", &[]) else { return };

    // The space goes back to the host whether the place is given up or kept.
    for run in [&unref, &kept] {
        assert!(run.trimmed.held + GIVEN_BACK < run.full.held, "{:?} {:?}", run.full, run.trimmed);
    }
    // What is zeroed in place stays allocated, and so does what is not passed down.
    for run in [&zeroed, &quiet, &ignored] {
        assert!(run.trimmed.held + (4 << 20) > run.full.held, "{:?} {:?}", run.full, run.trimmed);
    }
    // Places that were given up are used again, wherever in the disk the new files are: the file stays as long as it was.
    for run in [&unref, &quiet] {
        assert!(run.again.length < run.full.length + (4 << 20), "{:?} {:?}", run.full, run.again);
    }
    // Places that are kept wait for a write to the same part of the disk. So the file may grow; what it takes on the
    // host does not.
    assert!(kept.again.length >= unref.again.length);
    assert!(kept.again.held < unref.again.held + (4 << 20), "{:?} {:?}", unref.again, kept.again);
    for run in [&kept, &ignored] {
        assert!(run.check.allocated > unref.check.allocated + 300, "{:?} {:?}", run.check, unref.check);
    }
}

#[test]
fn ext4_in_subclusters_and_in_version_2() {
    for words in [&["-o", "extended_l2=on,cluster_size=128k"][..], &["-o", "compat=0.10,cluster_size=16k"]] {
        let Some(run) = work(EXT4.0, EXT4.1, "", words) else { return };
        assert!(run.trimmed.held + GIVEN_BACK < run.full.held, "{:?} {:?}", run.full, run.trimmed);
    }
}

#[test]
fn xfs_and_btrfs() {
    for (mkfs, fsck, options) in [
        ("mkfs.xfs -q -f", &["xfs_repair", "-n", "-f"][..], ""),
        ("mkfs.btrfs -q -f", &["btrfs", "check", "--readonly"], "-o discard-no-unref=on"),
    ] {
        let Some(run) = work(mkfs, fsck, options, &[]) else { return };
        assert!(run.trimmed.held + GIVEN_BACK < run.full.held, "{mkfs}: {:?} {:?}", run.full, run.trimmed);
    }
}

/// A signal while the disk has users: the mount point is free at once, the users are served to their end.
#[test]
fn a_signal_waits_for_a_loop_device() {
    let folder = Folder::new();
    let path = if qemu_is_here() { image(&folder, &[]) } else { return };
    let text = r#"
        start --rw image.qcow2 disk
        attach disk
        mkfs.ext4 -q -F "$loop"; mount "$loop" point; fill point/before 2
        kill -INT "$pid"
        until grep -q 'still in use' complained; do sleep 0.02; done
        test ! -s disk
        fill point/after 2; settle
        for dir in before after; do (cd "point/$dir" && sha256sum --quiet -c sums); done
        umount point; release; ended
    "#;
    if script(&folder, text, &[]).is_some() {
        check_clean(&path, "after SIGINT in use");
    }
}

/// A second signal cuts the users off in the middle of their writes: the program ends, and the image is as after a close.
#[test]
fn a_second_signal_ends_it_while_it_is_written() {
    let folder = Folder::new();
    let path = if qemu_is_here() { image(&folder, &[]) } else { return };
    for signal in ["TERM", "INT"] {
        let text = r#"
            start --rw image.qcow2 disk
            attach --direct-io=on disk
            # Round and round, until it is cut off.
            (while dd if=/dev/urandom of="$loop" bs=256k count=800 oflag=direct; do :; done) > /dev/null 2>&1 & writer=$!
            until [ "$(stat -c %b image.qcow2)" -gt 8000 ]; do sleep 0.02; done
            kill -$SIGNAL "$pid"
            until grep -q 'still in use' complained; do sleep 0.02; done
            kill -0 "$writer"
            kill -$SIGNAL "$pid"
            code=0; wait "$pid" || code=$?; pid=
            test "$code" = 1
            grep -q 'ended while it was in use' complained
            wait "$writer" || true
            release
            test ! -s disk
        "#;
        if script(&folder, text, &[("SIGNAL", signal)]).is_none() {
            return;
        }
        check_clean(&path, signal);
    }
}

/// Another program cuts the image file to nothing, which no lock prevents: users hear of errors, not of zeros, and the file
/// stays as it was left.
#[test]
fn the_image_file_is_cut_to_nothing() {
    let folder = Folder::new();
    if !qemu_is_here() {
        return;
    }
    image(&folder, &[]);
    let text = r#"
        qemu-io -f qcow2 -c 'write -P 5 0 8M' image.qcow2 > /dev/null
        start --rw image.qcow2 disk
        cmp -n 1048576 disk image.qcow2 > /dev/null || true
        : > image.qcow2
        ! dd if=disk of=/dev/null bs=4k count=1 2> words; grep -q 'Input/output error' words
        for n in 1 2 3 4 5 6 7 8; do
            ! dd if=/dev/urandom of=disk bs=4k seek=20 count=1 conv=notrunc 2> words; grep -q 'Input/output error' words
            ! dd if=/dev/urandom of=disk bs=4k seek=50000 count=1 conv=notrunc 2> words
        done
        ! fallocate -p -o 0 -l 1M disk 2> words
        test ! -s image.qcow2
        kill -TERM "$pid"; code=0; wait "$pid" || code=$?; pid=
        test "$code" = 1
        test ! -s image.qcow2
        grep -q 'another program has made the file shorter' complained
        # The same is not told over and over.
        test "$(uniq complained | wc -l)" = "$(wc -l < complained)"
    "#;
    script(&folder, text, &[]);
}

/// Killed without warning: what was synced is there, and the image has leaks at most.
#[test]
fn killed_while_it_is_written() {
    let folder = Folder::new();
    let path = if qemu_is_here() { image(&folder, &[]) } else { return };
    for policy in ["", "-o discard-no-unref=on"] {
        let text = r#"
            start --rw $OPTIONS image.qcow2 disk
            attach disk
            mkfs.ext4 -q -F "$loop"; mount -o discard "$loop" point
            fill point/gone 8; fill point/synced 8; rm -r point/gone; settle; fstrim point; settle
            (fill point/later 64 2> /dev/null) & filler=$!
            sleep 0.1
            kill -9 "$pid"; wait "$pid" || true; pid=
            wait "$filler" || true
            umount -f point 2> /dev/null || umount -l point || true
            release
            # The mount point is left behind; whoever mounts again is told what to do.
            ! "$QCOWKIT" mount image.qcow2 disk 2> words; grep -q "'umount -l disk'" words
            umount -l disk
            code=0; qemu-img check -q -f qcow2 image.qcow2 || code=$?
            test "$code" = 0 -o "$code" = 3
            qemu-img check -q -r leaks image.qcow2 > /dev/null || test $? = 3
            start --rw image.qcow2 disk
            attach disk
            e2fsck -p -f "$loop" > fsck || test $? = 1
            mount "$loop" point; (cd point/synced && sha256sum --quiet -c sums)
            umount point; release; umount disk; ended
        "#;
        if script(&folder, text, &[("OPTIONS", policy)]).is_none() {
            return;
        }
        check_clean(&path, "after SIGKILL and what followed");
        image(&folder, &[]);
    }
}

/// Without `--rw` nothing can change; in a directory the disk has a name; holes are told; others are kept out.
#[test]
fn looking_at_disks_and_locks() {
    let folder = Folder::new();
    let path = if qemu_is_here() { image(&folder, &[]) } else { return };
    let text = r#"
        qemu-io -f qcow2 -c 'write -P 5 1M 1M' -c 'write -P 6 300M 64k' image.qcow2 > /dev/null
        qemu-img snapshot -c first image.qcow2
        qemu-io -f qcow2 -c 'write -P 7 1M 64k' image.qcow2 > /dev/null
        qemu-img convert -f qcow2 -O raw image.qcow2 expected
        before=$(sha256sum < image.qcow2)
        mkdir directory

        start image.qcow2 directory
        grep -q "read-only at $PWD/directory/image.raw" said
        test "$(ls directory)" = image.raw
        cmp directory/image.raw expected
        # As sparse as it is: read by SEEK_DATA.
        cp --sparse=auto directory/image.raw copy; cmp copy expected
        test "$(stat -c %b copy)" -lt 8000
        ! printf x 2> /dev/null > directory/image.raw
        ! printf x 2> /dev/null > directory/other
        ! dd if=/dev/zero of=directory/image.raw bs=512 count=1 conv=notrunc 2> /dev/null
        ! fallocate -p -o 1M -l 1M directory/image.raw 2> /dev/null
        # Readers share.
        qemu-io -r -f qcow2 -c 'read 0 512' image.qcow2 > /dev/null
        ! qemu-io -f qcow2 -c 'read 0 512' image.qcow2 > /dev/null 2> words
        grep -q 'Failed to get "write" lock' words
        attach -r directory/image.raw; cmp -n 2097152 "$loop" expected; release
        umount directory; ended

        start --snapshot first image.qcow2 disk
        cmp -n 65536 -i 1048576 disk expected && exit 7
        cmp -n 65536 -i 1114112 disk expected
        if command -v fusermount3 > /dev/null; then fusermount3 -u disk; else umount disk; fi; ended
        test "$before" = "$(sha256sum < image.qcow2)"

        start --rw --name guest image.qcow2 directory
        ! "$QCOWKIT" mount image.qcow2 disk 2> words; grep -q lock words
        ! qemu-io -r -f qcow2 -c 'read 0 512' image.qcow2 > /dev/null 2>&1
        ! "$QCOWKIT" mount --rw --snapshot first image.qcow2 disk 2> /dev/null
        # Sizes stay; what does not fit is not written; what is written to is written to.
        ! truncate -s 1M directory/guest 2> /dev/null
        ! dd if=/dev/zero of=directory/guest bs=512 seek=819200 count=1 conv=notrunc 2> words
        grep -q 'No space left' words
        printf hello | dd of=directory/guest bs=1 seek=1234567 conv=notrunc,fsync 2> /dev/null
        fallocate -p -o 1M -l 4096 directory/guest
        fallocate -z -n -o 300M -l 1000 directory/guest
        ! fallocate -l 1M directory/guest 2> /dev/null
        printf hello | dd of=expected bs=1 seek=1234567 conv=notrunc 2> /dev/null
        fallocate -p -o 1M -l 4096 expected; fallocate -z -n -o 300M -l 1000 expected
        cmp directory/guest expected
        kill -HUP "$pid"; ended
        qemu-img compare -q -f qcow2 -F raw image.qcow2 expected
    "#;
    if script(&folder, text, &[]).is_some() {
        check_clean(&path, "after a look and some writes");
    }
}

/// Many requests at the same time, from processes of their own.
#[test]
fn requests_side_by_side() {
    let folder = Folder::new();
    let path = if qemu_is_here() { image(&folder, &["-o", "cluster_size=4k"]) } else { return };
    let text = r#"
        start --rw --threads 4 image.qcow2 disk
        head -c 16M /dev/urandom > source
        # Each writes every fourth piece, of a size that lets all of them meet in each cluster.
        jobs=
        for job in 0 1 2 3; do
            (n=$job; while [ $n -lt 4096 ]; do
                dd if=source of=disk bs=1536 skip=$n seek=$n count=1 conv=notrunc 2> /dev/null
                n=$((n + 4))
                [ $((n % 512)) -ge 4 ] || dd if=disk of=/dev/null bs=1536 skip=$n count=64 2> /dev/null
            done) & jobs="$jobs $!"
        done
        for job in $jobs; do wait $job; done
        cmp -n 6291456 disk source
        umount disk; ended
    "#;
    if script(&folder, text, &[]).is_some() {
        check_clean(&path, "after requests side by side");
    }
}
