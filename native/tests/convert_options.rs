//! `qcowkit convert` with the options that change how bytes travel, beside `qemu-img convert`.
#![cfg(target_os = "linux")]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// `None`, said aloud, where QEMU is not installed.
    fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: qemu-img is not installed");
            return None;
        }
        Some(Self { folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, line: &str) -> Output {
        Command::new(program).args(line.split_whitespace()).current_dir(self.folder.path()).output().unwrap()
    }

    fn ours(&self, line: &str) -> Output {
        self.run(env!("CARGO_BIN_EXE_qcowkit"), line)
    }

    fn good(&self, program: &str, line: &str) {
        let output = self.run(program, line);
        assert!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn convert(&self, line: &str) {
        self.good(env!("CARGO_BIN_EXE_qcowkit"), &format!("convert {line}"));
    }

    /// 9 MiB of which some are data, some zeros written as data, some nothing.
    fn source(&self, format: &str, name: &str) {
        self.good("qemu-img", &format!("create -q -f {format} {name} 9438208"));
        let mut call = Command::new("qemu-io");
        call.args(["-f", format, name]).current_dir(self.folder.path()).stdout(Stdio::null());
        for command in [
            "write -P 1 0 1M",
            "write -P 2 1536k 700k",
            "write -P 0 1600k 128k",
            "write -P 3 4198912 512",
            "write -z 5M 1M",
            "write -P 4 6M 3M",
            "write -P 5 9437184 1024",
        ] {
            call.args(["-c", command]);
        }
        assert!(call.status().unwrap().success());
    }

    fn assert_same(&self, a: (&str, &str), b: (&str, &str)) {
        self.good("qemu-img", &format!("compare -f {} -F {} {} {}", a.0, b.0, a.1, b.1));
        for (format, name) in [a, b] {
            if format == "qcow2" {
                self.good("qemu-img", &format!("check -q -f qcow2 {name}"));
            }
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_the_system_copies_is_the_same() {
    let Some(lab) = Lab::new() else { return };
    lab.source("raw", "a.raw");
    lab.source("qcow2", "a.qcow2");
    lab.good("qemu-img", "convert -c -O qcow2 a.raw packed.qcow2");
    lab.good("qemu-img", "create -q -f qcow2 -b packed.qcow2 -F qcow2 over.qcow2");
    let mut top = Command::new("qemu-io");
    top.args(["-f", "qcow2", "over.qcow2", "-c", "write -P 9 3M 200k"]).current_dir(lab.folder.path());
    assert!(top.stdout(Stdio::null()).status().unwrap().success());
    for (from, name) in [("raw", "a.raw"), ("qcow2", "a.qcow2"), ("qcow2", "packed.qcow2"), ("qcow2", "over.qcow2")] {
        for (to, options) in [
            ("raw", ""),
            ("qcow2", ""),
            ("qcow2", "-o cluster_size=2M"),
            ("qcow2", "-o extended_l2=on"),
            ("qcow2", "-o data_file=out.data,data_file_raw=on"),
        ] {
            for more in ["", "-W", "-m 1"] {
                let _ = std::fs::remove_file(lab.path("out"));
                let _ = std::fs::remove_file(lab.path("out.data"));
                lab.convert(&format!("-C {more} -f {from} -O {to} {options} {name} out"));
                lab.assert_same((from, name), (to, "out"));
            }
        }
    }
    // Into something that holds other data, and copies some of them along.
    for make in ["-f raw", "-f qcow2", "-f qcow2 -o cluster_size=2M", "-f qcow2 -b a.raw -F raw"] {
        let format = if make == "-f raw" { "raw" } else { "qcow2" };
        lab.good("qemu-img", &format!("create -q {make} there 12M"));
        let mut fill = Command::new("qemu-io");
        fill.args(["-f", format, "there", "-c", "write -P 77 0 12M"]).current_dir(lab.folder.path());
        assert!(fill.stdout(Stdio::null()).status().unwrap().success());
        std::fs::copy(lab.path("there"), lab.path("theirs")).unwrap();
        lab.convert(&format!("-C -n -f qcow2 -O {format} a.qcow2 there"));
        lab.good("qemu-img", &format!("convert -n -f qcow2 -O {format} a.qcow2 theirs"));
        lab.assert_same((format, "there"), (format, "theirs"));
    }
}

#[test]
fn a_rate_is_kept() {
    let Some(lab) = Lab::new() else { return };
    lab.source("raw", "a.raw");
    // More than 4 MiB of data; the other way round nothing can be said, machines being as slow as they like.
    let start = Instant::now();
    lab.convert("-r 16M -f raw -O qcow2 a.raw out");
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    lab.assert_same(("raw", "a.raw"), ("qcow2", "out"));
    lab.convert("-r 0 -f raw -O raw a.raw out");
    lab.assert_same(("raw", "a.raw"), ("raw", "out"));
    let refused = lab.ours("convert -r much a.raw out2");
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("Invalid rate limit specified: 'much'."), "{}", stderr(&refused));
    assert!(!lab.path("out2").exists());
}

#[test]
fn what_cannot_be_read_becomes_zeros() {
    let Some(lab) = Lab::new() else { return };
    lab.source("raw", "a.raw");
    lab.good("qemu-img", "convert -c -f raw -O qcow2 a.raw packed.qcow2");
    lab.good("qemu-img", "convert -f raw -O qcow2 a.raw plain.qcow2");
    // The entries of the first L2 table, at 256 KiB: one packed cluster becomes noise, one entry is nonsense.
    let packed = std::fs::OpenOptions::new().read(true).write(true).open(lab.path("packed.qcow2")).unwrap();
    let mut entry = [0; 8];
    packed.read_exact_at(&mut entry, 262_144).unwrap();
    let place = u64::from_be_bytes(entry) & ((1 << 54) - 1);
    packed.write_all_at(&[0xff; 16], place).unwrap();
    let plain = std::fs::OpenOptions::new().write(true).open(lab.path("plain.qcow2")).unwrap();
    plain.write_all_at(&(1u64 << 63 | 0x5_0200).to_be_bytes(), 262_144 + 24 * 8).unwrap();
    for name in ["packed.qcow2", "plain.qcow2"] {
        let failed = lab.ours(&format!("convert -f qcow2 -O raw {name} ours"));
        assert_eq!(failed.status.code(), Some(1), "{name}");
        let output = lab.ours(&format!("convert --salvage -f qcow2 -O raw {name} ours"));
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(&format!("warning: {name}: error while reading")), "{}", stderr(&output));
        lab.good("qemu-img", &format!("convert -q --salvage -f qcow2 -O raw {name} theirs"));
        lab.assert_same(("raw", "ours"), ("raw", "theirs"));
        let silent = lab.ours(&format!("convert -q --salvage -f qcow2 -O raw {name} ours"));
        assert!(silent.status.success() && silent.stderr.is_empty(), "{}", stderr(&silent));
    }
}

#[test]
fn sources_and_targets_by_options() {
    let Some(lab) = Lab::new() else { return };
    lab.source("raw", "a.raw");
    lab.good("qemu-img", "create -q -f qcow2 there 10M");
    lab.convert("--image-opts -O qcow2 driver=raw,file.filename=a.raw out");
    lab.assert_same(("raw", "a.raw"), ("qcow2", "out"));
    lab.convert("-n --source-image-opts -O qcow2 driver=qcow2,file.filename=out there");
    lab.assert_same(("raw", "a.raw"), ("qcow2", "there"));
    lab.good("qemu-img", "create -q -f qcow2 other 10M");
    lab.convert("-n --target-image-opts -f raw a.raw driver=qcow2,file.driver=file,file.filename=other");
    lab.assert_same(("raw", "a.raw"), ("qcow2", "other"));
}

#[test]
fn refused_in_the_words_of_qemu_img() {
    let Some(lab) = Lab::new() else { return };
    lab.source("raw", "a.raw");
    for options in [
        "-C -S 4k",
        "-C -c -O qcow2",
        "-C --salvage",
        "-r foo",
        "--target-image-opts",
        "-t bogus",
        "-T bogus",
        "--image-opts -f raw",
    ] {
        let (ours, theirs) = (
            lab.ours(&format!("convert {options} a.raw out")),
            lab.run("qemu-img", &format!("convert {options} a.raw out2")),
        );
        assert_eq!(theirs.status.code(), Some(1), "{options}");
        assert_eq!(ours.status.code().map(|code| code > 0), Some(true), "{options}");
        let words = stderr(&theirs).replace("qemu-img: ", "");
        assert!(stderr(&ours).contains(words.trim()), "{options}: {} / {words}", stderr(&ours));
        assert!(!lab.path("out").exists(), "{options}");
    }
}
