//! Called by the name qemu-img, the program says what qemu-img says: output, messages and exit codes, byte for byte.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::program::{Said, said, words};
use common::{Folder, qemu_is_here, succeed};

fn qemu(folder: &Path, words: &[&str]) -> Said {
    said(Command::new("qemu-img").args(words), folder)
}

fn own(folder: &Path, words: &[&str]) -> Said {
    said(Command::new(env!("CARGO_BIN_EXE_qcowkit")).arg0("qemu-img").args(words), folder)
}

/// Both say the same in one folder, which neither of them changes.
fn same(folder: &Path, lines: &[&str]) {
    for line in lines {
        let words = words(line);
        assert_eq!(own(folder, &words), qemu(folder, &words), "qemu-img {line}");
    }
}

/// Images of every kind that `info`, `map` and the like are asked about.
fn gallery() -> Folder {
    let folder = Folder::new();
    let base = folder.path("");
    let img = |line: &str| {
        let done = qemu(&base, &words(line));
        assert_eq!(done.code, Some(0), "{line}: {}", done.err);
    };
    let io = |file: &str, commands: &[&str]| {
        let mut args = vec![];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        let done = said(Command::new("qemu-io").args(&args).arg(file), &base);
        assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    };
    fs::create_dir(base.join("sub")).unwrap();
    img("create -q -f qcow2 base.qcow2 1G");
    io("base.qcow2", &["write -P 1 0 1M", "write -z 2M 64k", "write 100M 4k"]);
    img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 1500M");
    io("top.qcow2", &["write 1M 64k", "write -z -u 64k 64k", "write 1200M 3k"]);
    img("create -q -f qcow2 -u -b ../base.qcow2 -F qcow2 sub/over.qcow2 1G");
    img("create -q -f qcow2 -u -b gone.qcow2 -F qcow2 sub/orphan.qcow2 1G");
    img("create -q -f qcow2 -u -b top.qcow2 -F qcow2 third.qcow2 2G");
    img("create -q -f qcow2 -o compat=0.10 v2.qcow2 1023");
    img("create -q -f qcow2 -o preallocation=metadata,cluster_size=4k,refcount_bits=8 pre.qcow2 40M");
    io("pre.qcow2", &["write 0 64k", "write 1M 512"]);
    img("create -q -f qcow2 -o extended_l2=on,cluster_size=32k,lazy_refcounts=on,compression_type=zstd ext.qcow2 10M");
    io("ext.qcow2", &["write 0 1k", "write -z 4k 2k", "write 100k 70k", "write -c 1M 64k"]);
    img("convert -c -O qcow2 base.qcow2 packed.qcow2");
    img("create -q -f qcow2 -o data_file=data.raw,data_file_raw=on data.qcow2 10M");
    img("create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 10M");
    img("create -q -f qcow2 -b base.qcow2 -F qcow2 shots.qcow2 64M");
    io("shots.qcow2", &["write 0 1M"]);
    img("snapshot -c first shots.qcow2");
    img("snapshot -c 'with spaces' shots.qcow2");
    img("bitmap --add --disable -g 128k shots.qcow2 map0");
    img("bitmap --add shots.qcow2 map1");
    img("create -q -f raw sparse.raw 10M");
    io("sparse.raw", &["write 1M 64k"]);
    fs::write(base.join("short.raw"), [b'q'; 100]).unwrap();
    fs::write(base.join("n\u{fc} \"q\\\u{1}\t\u{7f}\u{1f600}.raw"), [7; 5000]).unwrap();
    dirty(&base.join("top.qcow2"), &base.join("dirty.qcow2"), 1);
    dirty(&base.join("top.qcow2"), &base.join("corrupt.qcow2"), 2);
    folder
}

/// LUKS images; they take QEMU a while.
fn add_luks(folder: &Folder) {
    for (name, more) in
        [("luks", ""), ("essiv", ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256")]
    {
        let options = format!("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10{more}");
        let line = format!("create -q --object secret,id=s,data=abc -f qcow2 -o {options} {name}.qcow2 10M");
        let done = qemu(&folder.path(""), &words(&line));
        assert_eq!(done.code, Some(0), "{}", done.err);
    }
}

/// A copy with incompatible feature bits.
fn dirty(from: &Path, to: &Path, bits: u8) {
    let mut bytes = fs::read(from).unwrap();
    bytes[79] = bits;
    fs::write(to, bytes).unwrap();
}

const GALLERY: [&str; 18] = [
    "base.qcow2",
    "top.qcow2",
    "third.qcow2",
    "sub/over.qcow2",
    "v2.qcow2",
    "pre.qcow2",
    "ext.qcow2",
    "packed.qcow2",
    "data.qcow2",
    "shots.qcow2",
    "sparse.raw",
    "short.raw",
    "dirty.qcow2",
    "corrupt.qcow2",
    "'n\u{fc} \"q\\\u{1}\t\u{7f}\u{1f600}.raw'",
    "missing",
    "sub",
    "sub/orphan.qcow2",
];

#[test]
fn info_and_map_of_every_kind_of_image() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    add_luks(&folder);
    for image in GALLERY.into_iter().chain(["aes.qcow2", "luks.qcow2", "essiv.qcow2"]) {
        for line in ["info", "info --output=json", "info --backing-chain", "info -b --out json"] {
            same(&folder.path(""), &[&format!("{line} {image}")]);
        }
    }
    for image in GALLERY {
        let ranges = ["", "--start-offset 64k --max-length=100k", "-s 2G", "-s 999k -l 1.5M", "-l 0"];
        for range in ranges {
            same(&folder.path(""), &[&format!("map {range} {image}"), &format!("map --output=json {range} {image}")]);
        }
    }
    same(
        &folder.path(""),
        &[
            "map aes.qcow2",
            "map --output=json luks.qcow2",
            "convert aes.qcow2 nothing",
            "compare aes.qcow2 base.qcow2",
            "info",
            "info base.qcow2 top.qcow2",
            "info -f qcow2 sparse.raw",
            "info -f raw base.qcow2",
            "info -f nonsense base.qcow2",
            "info --nonsense base.qcow2",
            "info -z base.qcow2",
            "info -f",
            "info -U base.qcow2",
            "map",
            "map -f raw base.qcow2",
            "nonsense",
            "",
            "--nonsense",
        ],
    );
}

#[test]
fn check_of_every_kind_of_image() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    // The exception: qemu-img does not check an image whose backing file is gone, although it needs none for that.
    for image in GALLERY.into_iter().filter(|image| !image.contains("orphan")) {
        for line in ["check", "check --output=json", "check -q"] {
            same(&folder.path(""), &[&format!("{line} {image}")]);
        }
    }
    same(
        &folder.path(""),
        &[
            "check",
            "check base.qcow2 top.qcow2",
            "check -f raw base.qcow2",
            "check -f x base.qcow2",
            "check -T x base.qcow2",
        ],
    );
}

#[test]
fn compare_in_all_its_outcomes() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    for (name, size) in [("a", 1 << 20), ("c", 2 << 20)] {
        fs::File::create(folder.path(name)).unwrap().set_len(size).unwrap();
    }
    let mut bytes = vec![0; 1 << 20];
    bytes[70_000] = 1;
    fs::write(folder.path("b"), &bytes).unwrap();
    bytes.resize(2 << 20, 0);
    fs::write(folder.path("d"), &bytes).unwrap();
    bytes[70_000] = 0;
    bytes[1_600_000] = 1;
    fs::write(folder.path("e"), &bytes).unwrap();
    let raw = "-f raw -F raw";
    let mut lines = Vec::new();
    for pair in ["a a", "a b", "a c", "a d", "a e", "e a", "b d", "a missing", "missing a", "d e"] {
        for more in ["", "-s", "-q", "-p"] {
            // Progress within differs: it depends on how much is read at once.
            if more != "-p" || pair == "a a" {
                lines.push(format!("compare {more} {raw} {pair}"));
            }
        }
    }
    for line in [
        "compare a",
        "compare a b c",
        "compare -f qcow2 a b",
        "compare -F qcow2 a b",
        "compare -f x a b",
        "compare -T x a b",
        "compare --nonsense a b",
        "compare base.qcow2 packed.qcow2",
        "compare -s base.qcow2 packed.qcow2",
        "compare base.qcow2 top.qcow2",
        "compare -s base.qcow2 base.qcow2",
        "compare short.raw a",
        "compare sub a",
    ] {
        lines.push(line.to_owned());
    }
    same(&folder.path(""), &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Command lines of `create`, `NEW` for the new image: those that fail, and those that make something.
const CREATE: &str = "
    create -f raw NEW 1k
    create NEW 1.5k
    create NEW 0x10
    create NEW 0x10k
    create NEW 0.5
    create NEW 1e3
    create NEW ''
    create NEW 1kb
    create NEW -1
    create NEW ' 1k'
    create NEW +1k
    create NEW 8E
    create NEW 0.1k
    create -f qcow2 NEW 1M
    create -q -f qcow2 NEW 1M
    create -f qcow2 NEW 1023
    create -f qcow2 NEW 0
    create -f qcow2 NEW 64T
    create -f qcow2 NEW
    create -f qcow2 NEW 1 2
    create -f nonsense NEW 1M
    create -f qcow2 --nonsense NEW 1M
    create -f qcow2 /nonexistent/NEW 1M
    create -f qcow2 sub 1M
    create
    create -f
    create -f qcow2 -b base.qcow2 -F qcow2 NEW
    create -f qcow2 -b base.qcow2 -F qcow2 NEW 512
    create -f qcow2 -b base.qcow2 -F raw NEW
    create -f qcow2 -b base.qcow2 NEW
    create -f qcow2 -b base.qcow2 -F nonsense NEW
    create -f qcow2 -b gone -F qcow2 NEW
    create -f qcow2 -b gone -F qcow2 NEW 1M
    create -f qcow2 -u -b gone -F qcow2 NEW 1M
    create -f qcow2 -u -b gone NEW 1M
    create -f qcow2 -u -b gone -F qcow2 NEW
    create -f qcow2 -u -b a,b -F raw NEW 1M
    create -f qcow2 -b NEW -F qcow2 NEW
    create -f qcow2 -b '' -F qcow2 NEW 1M
    create -f qcow2 -F qcow2 NEW 1M
    create -f raw -b base.qcow2 NEW
    create -f raw -F qcow2 NEW 1M
    create -f qcow2 -b over.qcow2 -F qcow2 sub/NEW
    create -f qcow2 -b base.qcow2 -F qcow2 -o backing_file=gone,backing_fmt=raw NEW
    create -f qcow2 -o size=1M,backing_file=base.qcow2,backing_fmt=qcow2 NEW
    create -f qcow2 -o size=1.5M NEW
    create -f qcow2 -o size=2M NEW 1M
    create -f qcow2 -o size=-1 NEW
    create -f qcow2 -o size=16E NEW
    create -f qcow2 -o cluster_size=4k -o lazy_refcounts=on NEW 1M
    create -f raw -o preallocation=full NEW 1M
    create -f raw -o preallocation=falloc NEW 1M
    create -f raw -o preallocation=metadata NEW 1M
    create -f raw -o cluster_size=4k NEW 1M
    create -f qcow2 -o help
    create -f qcow2 -o help NEW
    create -f raw -o help
    create -f raw -o help NEW
";

/// Option lists of `create -f qcow2 -o LIST NEW 1M`.
const LISTS: &str = "
    cluster_size= cluster_size=64K cluster_size=64kb cluster_size=1 cluster_size=4M cluster_size=-1 cluster_size
    cluster_size=x cluster_size=512 cluster_size=2M lazy_refcounts=1 lazy_refcounts=true lazy_refcounts=yes
    lazy_refcounts nolazy_refcounts refcount_bits=a refcount_bits=128 refcount_bits=0x10 refcount_bits=3
    refcount_bits=1 refcount_bits=64 compression_type=x compression_type=zstd preallocation=x compat=v3 compat=v2
    compat=3 lazy_refcounts=on,compat=0.10 refcount_bits=8,compat=0.10 compression_type=zstd,compat=0.10
    extended_l2=on,compat=0.10 extended_l2=on extended_l2=on,cluster_size=4k backing_file=base.qcow2
    backing_fmt=qcow2 ,, x=1,,2 cluster_size=64k,,cluster_size=4k cluster_size=64k,cluster_size=4k refcount_bits=1,
    ,refcount_bits=1 =5 preallocation=metadata,extended_l2=on
    preallocation=metadata,backing_file=base.qcow2,backing_fmt=qcow2 lazy_refcounts=on,lazy_refcounts=off
    preallocation=full preallocation=falloc preallocation=metadata
    preallocation=metadata,cluster_size=512,refcount_bits=64 lazy_refcounts=on,preallocation=full help
    compat=1.1,backing_file=base.qcow2,backing_fmt=qcow2,preallocation=off,nocow=off
";

#[test]
fn create_says_the_same_and_makes_the_same() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    let base = folder.path("");
    let lists = LISTS.split_whitespace().map(|list| format!("create -f qcow2 -o {list} NEW 1M"));
    let lines = CREATE.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
    for line in lines.chain(lists) {
        let line = line.replace("NEW", "made.img");
        let place = base.join(if line.contains("sub/made") { "sub/made.img" } else { "made.img" });
        let mut made = Vec::new();
        for program in [qemu, own] {
            let _ = fs::remove_file(&place);
            let said = program(&base, &words(&line));
            // What the image is; how much space it takes on the host may be less.
            if said.code != Some(0) {
                made.push((said, Vec::new()));
                continue;
            }
            let facts = qemu(&base, &["info", "--output=json", "-U", place.to_str().unwrap()]).out;
            let facts: Vec<String> = facts
                .lines()
                .filter(|line| {
                    // The length of the file may be less too.
                    let of_the_file = line.contains("virtual-size") && line.starts_with("        ");
                    !(of_the_file || line.contains("actual-size"))
                })
                .map(str::to_owned)
                .collect();
            let is_qcow2 = facts.iter().any(|line| line.trim() == "\"format\": \"qcow2\",");
            if is_qcow2 && !line.contains("-u ") {
                succeed("qemu-img", &["check".as_ref(), "-q".as_ref(), place.as_os_str()]);
            }
            made.push((said, facts));
        }
        assert_eq!(made[1], made[0], "qemu-img {line}");
    }
}

/// Command lines of `convert`, `NEW` for the target.
const CONVERT: &str = "
    convert -f qcow2 -O qcow2 base.qcow2 NEW
    convert base.qcow2 NEW
    convert top.qcow2 NEW
    convert -O qcow2 third.qcow2 NEW
    convert -c -O qcow2 top.qcow2 NEW
    convert -c -W -O qcow2 -o compression_type=zstd,cluster_size=4k packed.qcow2 NEW
    convert -O qcow2 -o extended_l2=on ext.qcow2 NEW
    convert -B base.qcow2 -F qcow2 -O qcow2 top.qcow2 NEW
    convert -c -B base.qcow2 -F qcow2 -O qcow2 top.qcow2 NEW
    convert -S 0 -O qcow2 pre.qcow2 NEW
    convert -S 64k sparse.raw NEW
    convert -m 4 -W -O qcow2 base.qcow2 NEW
    convert -O qcow2 -o preallocation=metadata short.raw NEW
    convert -O qcow2 short.raw sparse.raw v2.qcow2 NEW
    convert short.raw sparse.raw NEW
    convert -O qcow2 data.qcow2 NEW
    convert -O qcow2 -o size=5M sparse.raw NEW
    convert -O qcow2 shots.qcow2 NEW
    convert --image-opts driver=qcow2,file.filename=base.qcow2 NEW
    convert -q -p sparse.raw NEW
    convert base.qcow2
    convert
    convert -O nonsense base.qcow2 NEW
    convert missing NEW
    convert -n base.qcow2 missing
    convert -n base.qcow2 short.raw
    convert -c -O raw sparse.raw NEW
    convert -S 1 sparse.raw NEW
    convert -S nonsense sparse.raw NEW
    convert -S 17M sparse.raw NEW
    convert -m 0 sparse.raw NEW
    convert -m 17 sparse.raw NEW
    convert -m nonsense sparse.raw NEW
    convert -B base.qcow2 -O qcow2 sparse.raw NEW
    convert -B base.qcow2 -F qcow2 -O raw sparse.raw NEW
    convert -O qcow2 -o x=1 sparse.raw NEW
    convert -O qcow2 -o cluster_size=3 sparse.raw NEW
    convert -n -o cluster_size=4k -O qcow2 sparse.raw NEW
    convert -c -o preallocation=metadata -O qcow2 sparse.raw NEW
    convert --target-is-zero sparse.raw NEW
    convert -t nonsense sparse.raw NEW
    convert -o help
    convert -O qcow2 -o help NEW
";

#[test]
fn convert_says_the_same_and_makes_the_same() {
    if !qemu_is_here() {
        return;
    }
    let folder = gallery();
    let base = folder.path("");
    let place = base.join("made.img");
    let before = base.join("before.img");
    for line in CONVERT.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = line.replace("NEW", "made.img");
        let _ = fs::remove_file(&place);
        let theirs = qemu(&base, &words(&line));
        let _ = fs::remove_file(&before);
        let made = place.exists();
        if made {
            fs::rename(&place, &before).unwrap();
        }
        assert_eq!(own(&base, &words(&line)), theirs, "qemu-img {line}");
        if made && theirs.code == Some(0) {
            assert_eq!(qemu(&base, &["compare", "-s", "before.img", "before.img"]).code, Some(0));
            let same = qemu(&base, &["compare", "before.img", "made.img"]);
            assert_eq!(same.code, Some(0), "qemu-img {line}: {}{}", same.out, same.err);
            // 63: a raw file, which cannot be checked.
            let checked = qemu(&base, &["check", "made.img"]);
            assert!(matches!(checked.code, Some(0 | 63)), "qemu-img {line}: {}{}", checked.out, checked.err);
        }
    }
}

#[test]
fn the_version_is_that_of_the_program_it_stands_in_for() {
    let folder = Folder::new();
    let version = own(&folder.path(""), &["--version"]);
    assert!(version.out.starts_with("qemu-img version "), "{}", version.out);
    assert!(version.out.contains("qcowkit"), "{}", version.out);
}
