//! Called by the name qemu-io, the program says and does what qemu-io says and does, apart from the time it takes.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Folder, Rng, qemu_is_here, succeed};

/// What a program printed on both streams, without times, and its exit code.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

/// Takes out what depends on the clock.
fn timeless(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = |line: &str| {
        if let (Some(at), true) = (line.find(" ops; "), line.ends_with(" ops/sec)")) {
            return format!("{} ops; TIME\n", &line[..at]);
        }
        // `-C`: bytes, operations, then time and rates.
        let fields: Vec<&str> = line.split(',').collect();
        match fields[..] {
            [bytes, "1", ..] if fields.len() == 5 => format!("{bytes},1,TIME\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn said(command: &mut Command, folder: &Path, input: &str) -> Said {
    let command = command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that ends early does not read it all.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    Said { out: timeless(&done.stdout), err: timeless(&done.stderr), code: done.status.code() }
}

fn qemu(folder: &Path, args: &[&str], input: &str) -> Said {
    said(Command::new("qemu-io").args(args), folder, input)
}

fn own(folder: &Path, args: &[&str], input: &str) -> Said {
    said(Command::new(env!("CARGO_BIN_EXE_qcowkit")).arg0("qemu-io").args(args), folder, input)
}

/// Two folders with equal images, one for each program.
struct Twins {
    folder: Folder,
}

impl Twins {
    fn new() -> Self {
        let twins = Self { folder: Folder::new() };
        for side in ["theirs", "ours"] {
            let place = twins.side(side);
            fs::create_dir(&place).unwrap();
            let io = |file: &str, commands: &[&str]| {
                let mut args = Vec::new();
                commands.iter().for_each(|command| args.extend(["-c", command]));
                args.push(file);
                assert_eq!(qemu(&place, &args, "").code, Some(0), "{commands:?}");
            };
            let create = |words: &str| {
                let done =
                    Command::new("qemu-img").args(words.split_whitespace()).current_dir(&place).status().unwrap();
                assert!(done.success(), "{words}");
            };
            create("create -q -f qcow2 base 64M");
            io("base", &["write -P 1 0 1M", "write -P 2 40M 100k"]);
            create("create -q -f qcow2 -b base -F qcow2 image 65M");
            io("image", &["write -P 5 64k 200k", "write -z 1M 64k", "write -zu 2M 1M"]);
            create("create -q -f raw raw 10M");
            fs::write(place.join("short"), [b'q'; 100]).unwrap();
        }
        twins
    }

    fn side(&self, name: &str) -> std::path::PathBuf {
        self.folder.path(name)
    }

    /// Runs both, and compares what they said and what the image holds then.
    fn same(&self, args: &[&str], input: &str) {
        let theirs = qemu(&self.side("theirs"), args, input);
        let ours = own(&self.side("ours"), args, input);
        for (own, other) in [(&ours.out, &theirs.out), (&ours.err, &theirs.err)] {
            for (number, (own, other)) in own.lines().zip(other.lines()).enumerate() {
                assert_eq!(own, other, "qemu-io {args:?}, line {number}");
            }
        }
        assert_eq!(ours, theirs, "qemu-io {args:?}");
    }

    fn compare(&self, image: &str) {
        let (theirs, ours) = (self.side("theirs").join(image), self.side("ours").join(image));
        succeed("qemu-img", &["compare".as_ref(), theirs.as_os_str(), ours.as_os_str()]);
        if image != "raw" {
            succeed("qemu-img", &["check".as_ref(), "-q".as_ref(), ours.as_os_str()]);
        }
    }
}

/// Commands that need no other; one a line.
const COMMANDS: &str = "
read -P 6 0 64k
read -P 1 0 64k
read -v 65500 100
read -vC 0 5
read -q -P 1 0 5
read -s 5 -l 5 0 1k
read -P 0 -s 5 -l 5 0 1k
read -P 0 -s 5000 -l 5 0 1k
read -P 0 -s 5 0 1k
read -P 0 -l 5 0 1k
read 65M 1k
read 66M 1k
read 9E 1
read 0 9E
read 0 3G
read 0 1k 2k
read -a 0 1k
read 0 -5
read 0 0
read  0  1k
read 1.5k 1k
read 0x10 0x10
read 010 1k
read 1s 1
read \"0\" 512
read 0 1k;read 0 2k
readv -v 0 16 16
readv 0
readv 0 2G 2G
readv 0 1.5G 1.5G
readv 100G 5
aio_read -P 0 0 1k 2k
aio_read 100G 1k
aio_read -i 0 5
write -5 3
write 0
write
write a b
write -P foo 0 1k
write -P 256 0 1k
write -P -1 0 1k
write -P 0x10 0 1k
write -P 010 0 1k
write 0 -- 5
write 0 -P
write -P
write -P 1
write -u 0 1k
write -n 0 1k
write -z -P 3 0 1k
write -s short -P 3 0 1k
write -b -z 0 512
write -cf 0 64k
write -zc 40M 64k
write -c 0 1000
write -c 3 512
write -c 512 512
write -c 30M 64k
write -c 31M 66048
write -c 32M 256k
write -s short 5M 1k
write -s missing 5M 1k
write -q 6M 1k
write -fC 6M 1k
write -rp 6M 3
write -zu 6M 1M
write -z 5 1M
write -z 0 3G
write 0 3G
write 100G 5
write 65M 0
write 9223372036854775807 5
writev 7M 3 5 9
writev -z 0 1
writev 100G 1
aio_write -P 3 7M 1k
aio_write -u 0 1
aio_write -z 0 1 2
aio_write -zu 8M 1M
aio_write 100G 1k
aio_write -i 0 5
aio_flush
aio_flush 1
discard 0 64k
discard -C 128k 64k
discard -q 192k 64k
discard 5 5
discard 65M 0
discard 100M 64k
discard 0 3G
discard 0 5 6
discard -P 1 0 5
discard -1 5
flush
flush 1
truncate
truncate x
truncate -m foo 66M
truncate -x 1
truncate -1
truncate -m full 66M
truncate 67M
length
length foo
alloc 0
alloc 64k 1M
alloc 0 100G
alloc 1 3
alloc 100G
alloc -1
alloc 0 1k 2k
map
map foo
info
info 1
sleep 1
sleep
sleep -1
sleep 1k
help nonsense
help a b
nonsense
#
w 9M 1k
r 9M 1k
d 9M 64k
l
f
i
a 9M
t 67M
q
open
open x
close
reopen -x
reopen a
reopen -r
";

#[test]
fn each_command_says_and_does_the_same() {
    if !qemu_is_here() {
        return;
    }
    let twins = Twins::new();
    for command in COMMANDS.lines().filter(|line| !line.is_empty()) {
        twins.same(&["-c", command, "image"], "");
    }
    twins.same(&["-c", "\tread 0\t1k", "image"], "");
    twins.compare("image");
}

#[test]
fn scripts_on_standard_input_have_a_prompt_and_end_with_the_worst_code() {
    if !qemu_is_here() {
        return;
    }
    let twins = Twins::new();
    // Requests that qemu-io leaves running (aio_) are told of after the next prompt; here they end with their command.
    let left_out =
        |line: &&str| matches!(*line, "q" | "close") || line.starts_with("reopen") || line.starts_with("aio_");
    let all: String = COMMANDS.lines().filter(|line| !left_out(line)).map(|line| format!("{line}\n")).collect();
    twins.same(&["image"], &all);
    for script in
        ["", "\n", "length", "length\nquit\nlength\n", "read 0 1k\n   read 1k 1k\n# x\n\nlength\n", "read -P 9 0 1\n"]
    {
        twins.same(&["image"], script);
    }
    twins.compare("image");
}

#[test]
fn options_of_the_program() {
    if !qemu_is_here() {
        return;
    }
    let twins = Twins::new();
    for args in [
        &["-c", "length"][..],
        &["-c", "length", "missing"],
        &["-r", "-c", "length", "image"],
        &["-f", "raw", "-c", "info", "-c", "map", "-c", "length", "-c", "alloc 0 1M", "raw"],
        &["-f", "raw", "-c", "write 1M 64k", "-c", "write -zu 1M 32k", "-c", "discard 1056k 4k", "raw"],
        &["-f", "raw", "-c", "truncate 12M", "-c", "length", "-c", "read -P 0xcd 1120k 1", "raw"],
        &["-c", "length", "raw"],
        &["-r", "-c", "length", "raw"],
        &["-U", "-r", "-c", "length", "image"],
        &["-d", "ignore", "-c", "discard 0 1M", "-c", "read -P 1 0 64k", "image"],
        &["-c", "open image", "-c", "length", "-c", "close", "-c", "length"],
        &["-c", "open -o driver=qcow2 image", "-c", "length", "-c", "reopen -r", "-c", "length"],
        &["-c", "read 0 1k", "-c", "quit", "-c", "nonsense", "image"],
        &["-c", "read 0 1k", "-c", "nonsense", "-c", "read 0 2k", "image"],
        &["--image-opts", "-c", "length", "driver=qcow2,discard=unmap,discard-no-unref=on,file.filename=image"],
        &["--image-opts", "-c", "read 0 5", "driver=raw,file.driver=file,file.filename=raw"],
        &["-t", "unsafe", "-c", "write 0 5", "-c", "flush", "image"],
        &["-t", "writethrough", "-c", "write 0 5", "image"],
    ] {
        twins.same(args, "");
    }
    twins.compare("image");
    twins.compare("raw");
}

#[test]
fn random_scripts_leave_the_same_disk() {
    if !qemu_is_here() {
        return;
    }
    let twins = Twins::new();
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut script = String::new();
        for _ in 0..400 {
            let unit = rng.choose(&[1, 512, 4096, 65536]);
            let (offset, length) = (rng.below((60 << 20) / unit) * unit, 1 + rng.below((300 << 10) / unit) * unit);
            let byte = rng.below(256);
            script += &match rng.below(10) {
                0..4 => format!("write -P {byte} {offset} {length}\n"),
                4 => format!("write -z {offset} {length}\n"),
                5 => format!("write -zu {offset} {length}\n"),
                6 | 7 => format!("discard {offset} {length}\n"),
                8 => format!("read -P {byte} {offset} {length}\n"),
                _ => format!("aio_write -P {byte} {offset} {length}\naio_flush\n"),
            };
        }
        let theirs = qemu(&twins.side("theirs"), &["image"], &script);
        let ours = own(&twins.side("ours"), &["image"], &script);
        assert_eq!(ours.code, theirs.code);
        let lines = |said: &Said| {
            let mut lines: Vec<String> = said.out.replace("qemu-io> ", "").lines().map(str::to_owned).collect();
            // Requests that qemu-io leaves running are told of when they end.
            lines.sort();
            lines
        };
        assert_eq!(lines(&ours), lines(&theirs), "seed {seed}");
        twins.compare("image");
    }
}
