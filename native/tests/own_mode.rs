//! What is qcowkit's own on the command line: safe defaults, clear errors, its own verbs.
#![cfg(all(feature = "cli", unix))]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::lock::LockRequest;
use tempfile::TempDir;

/// What a program printed on both streams, and its exit code.
#[derive(Debug)]
struct Said {
    out: String,
    err: String,
    code: i32,
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_qcowkit"))
}

fn run_with(folder: &Path, line: &str, input: &str) -> Said {
    let mut child = program()
        .args(line.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends early does not read it all.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { out: text(done.stdout), err: text(done.stderr), code: done.status.code().unwrap_or(-1) }
}

fn run(folder: &Path, line: &str) -> Said {
    run_with(folder, line, "")
}

fn good(folder: &Path, line: &str) -> String {
    let said = run(folder, line);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{line}");
    said.out
}

/// Fails with exit code 1 (or another) and one line that has all of `parts`.
fn bad(folder: &Path, line: &str, code: i32, parts: &[&str]) {
    let said = run(folder, line);
    assert_eq!(said.code, code, "{line}: {}", said.err);
    for part in parts {
        assert!(said.err.contains(part), "{line}: {:?} lacks {part:?}", said.err);
    }
}

/// A folder with `vm/top.qcow2` on `vm/base.qcow2`, and `vm/out.qcow2` on `secret.raw` outside of it.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("vm")).unwrap();
    fs::write(path.join("secret.raw"), [b's'; 4096]).unwrap();
    good(path, "create -q -f qcow2 vm/base.qcow2 1M");
    good(path, "create -q -f qcow2 -b base.qcow2 -F qcow2 vm/top.qcow2");
    good(path, "create -q -f qcow2 -b ../secret.raw -F raw vm/out.qcow2");
    folder
}

#[test]
fn what_an_image_names_is_opened_below_its_own_directory_alone() {
    let folder = folder();
    let path = folder.path();
    good(path, "map vm/top.qcow2");
    good(path, "map --backing-files=follow vm/out.qcow2");
    bad(
        path,
        "map vm/out.qcow2",
        1,
        &[
            "qcowkit: vm/../secret.raw: denied",
            "not below its own directory",
            "in the chain of vm/out.qcow2",
            "--backing-files=follow",
        ],
    );
    bad(path, "map --backing-files=deny vm/top.qcow2", 1, &["denied", "'vm/base.qcow2'", "--backing-files=follow"]);
    // A link is where it leads.
    std::os::unix::fs::symlink("../secret.raw", path.join("vm/link.raw")).unwrap();
    good(path, "create -q -f qcow2 -u -b link.raw -F raw vm/linked.qcow2 1M");
    bad(path, "map vm/linked.qcow2", 1, &["not below its own directory"]);
    // A reader of the bytes must not see them either.
    bad(path, "convert vm/out.qcow2 copy.raw", 1, &["denied"]);
    assert!(!path.join("copy.raw").exists());
    bad(path, "io -c length vm/out.qcow2", 1, &["denied"]);
    bad(path, "compare vm/out.qcow2 vm/top.qcow2", 2, &["denied"]);
    bad(path, "info --backing-chain vm/out.qcow2", 1, &["denied"]);
    // What needs no backing file opens none.
    for verb in ["info", "check -q", "inspect", "analyze"] {
        assert_eq!(run(path, &format!("{verb} vm/out.qcow2")).code, 0, "{verb}");
    }
}

#[test]
fn a_backing_format_is_not_guessed_unless_the_image_is_trusted() {
    let folder = folder();
    let path = folder.path();
    // The format extension becomes one that nobody knows.
    let place = path.join("vm/top.qcow2");
    let mut bytes = fs::read(&place).unwrap();
    let at = bytes.windows(4).position(|four| four == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    fs::write(&place, bytes).unwrap();
    bad(path, "map vm/top.qcow2", 1, &["does not say which format", "--backing-files=follow"]);
    good(path, "map --backing-files=follow vm/top.qcow2");
}

#[test]
fn exit_codes() {
    let folder = folder();
    let path = folder.path();
    for (line, code) in [
        ("info", 1),
        ("info --nonsense x", 1),
        ("nonsense", 1),
        ("check", 1),
        ("check --nonsense x", 1),
        ("check -f raw secret.raw", 63),
        // 1 would say that they differ.
        ("compare vm/top.qcow2", 2),
        ("compare --nonsense x y", 2),
        ("compare missing missing", 2),
        ("compare vm/top.qcow2 vm/base.qcow2", 0),
        ("compare secret.raw vm/base.qcow2", 1),
        ("--help", 0),
        ("create --help", 0),
        ("--version", 0),
    ] {
        assert_eq!(run(path, line).code, code, "{line}");
    }
}

#[test]
fn what_is_not_supported_is_said_and_nothing_is_touched() {
    let folder = folder();
    let path = folder.path();
    let before = fs::read(path.join("vm/base.qcow2")).unwrap();
    for (line, part) in [
        ("create -f qcow2 -o data_file_raw=on vm/base.qcow2 1M", "data-file-raw requires data-file"),
        ("create -f qcow2 -o encryption=on vm/base.qcow2 1M", "none are made; encrypt.format=luks"),
        ("create -f qcow2 -o cluster_size=3 vm/base.qcow2 1M", "Cluster size must be a power of two"),
        ("create -f qcow2 vm/base.qcow2 9E", "image size"),
        ("create --object secret,id=x -f qcow2 vm/base.qcow2 1M", "Must provide"),
        ("convert -l snap secret.raw vm/base.qcow2", "internal snapshots of a raw file"),
        ("convert --bitmaps secret.raw vm/base.qcow2", "Source lacks bitmap support"),
        ("convert -t none secret.raw vm/base.qcow2", "'none' is not supported"),
        ("convert -O qcow2 -o size=5M secret.raw vm/base.qcow2", "size"),
        ("convert -O vmdk secret.raw vm/base.qcow2", "vmdk"),
        ("check -r some vm/base.qcow2", "'leaks' or 'all'"),
        ("check --undo x vm/base.qcow2", "-r all"),
        ("check -r all --relink 5 vm/base.qcow2", "HOST@GUEST"),
        ("io -s -c length vm/base.qcow2", "-s (snapshot mode) is not supported"),
        ("io -n -c length vm/base.qcow2", "-n (no host cache) is not supported"),
        ("io -o overlap-check=some -c length vm/base.qcow2", "none, constant, cached, all"),
        ("io -o nonsense=1 -c length vm/base.qcow2", "Invalid parameter 'nonsense'"),
        ("info nbd://host/x", "the protocol 'nbd'"),
        ("info json:{}", "'json:'"),
        ("discard vm/base.qcow2 5M+1", "beyond the end of the virtual disk (guest offset 0x500000)"),
        ("discard vm/base.qcow2", "no ranges"),
        ("discard vm/base.qcow2 5", "'5' lacks a length"),
        ("discard vm/base.qcow2 x+1", "'x' is not a size"),
        ("discard -U vm/base.qcow2 all", "--dry-run"),
    ] {
        bad(path, line, 1, &["qcowkit: ", part]);
    }
    assert_eq!(fs::read(path.join("vm/base.qcow2")).unwrap(), before);
}

#[test]
fn an_image_in_use_is_left_alone() {
    let folder = folder();
    let path = folder.path();
    let file = FileStorage::open(path.join("vm/base.qcow2"), FileAccess::Write).unwrap();
    file.lock(LockRequest::WRITE).unwrap();
    let before = fs::read(path.join("vm/base.qcow2")).unwrap();
    for line in [
        "create -f qcow2 vm/base.qcow2 1M",
        "convert -O qcow2 secret.raw vm/base.qcow2",
        "io -c length vm/base.qcow2",
        "discard vm/base.qcow2 all",
        "info vm/base.qcow2",
        "map vm/top.qcow2",
    ] {
        bad(path, line, 1, &["lock", "Is another process using the image"]);
    }
    assert_eq!(fs::read(path.join("vm/base.qcow2")).unwrap(), before);
    good(path, "info -U vm/base.qcow2");
    good(path, "map -U vm/top.qcow2");
    good(path, "discard -U --dry-run vm/base.qcow2 all");
}

#[test]
fn scripts_may_have_comments_and_tabs_and_no_prompt_answers_them() {
    let folder = folder();
    let path = folder.path();
    let script = "# a comment\n\n\twrite -q -P 7 \t 0 64k\n  read -q -P 7 0 64k\nlength\n";
    let said = run_with(path, "io vm/base.qcow2", script);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "1 MiB\n", ""));
    let said = run_with(path, "io vm/base.qcow2", "read -P 8 0 1k\nread 5M 1k\nnonsense\nlength\n");
    assert_eq!(said.code, 1);
    assert!(said.out.contains("Pattern verification failed at offset 0, 1024 bytes"), "{}", said.out);
    assert!(
        said.out.contains("read failed: beyond the end of the virtual disk (guest offset 0x500000)"),
        "{}",
        said.out
    );
    assert!(said.out.ends_with("1 MiB\n"), "{}", said.out);
    assert_eq!(said.err, "command \"nonsense\" not found\n");
    let broken = run_with(path, "io vm/base.qcow2", "write -b 0 512\nwrite -zn 0 512\nbreak a b\n");
    assert_eq!(broken.code, 1);
    assert_eq!(broken.err.matches("not supported by qcowkit").count(), 3, "{}", broken.err);
}

#[test]
fn policies_of_discards_reach_the_image() {
    let folder = folder();
    let path = folder.path();
    for (options, kept) in [("", false), ("-o discard-no-unref=on", true), ("-o unref=retain-unshared", true)] {
        good(path, "create -q -f qcow2 d.qcow2 1M");
        let said = run_with(path, &format!("io {options} d.qcow2"), "write -q 0 128k\ndiscard -q 0 64k\n");
        assert_eq!(said.code, 0, "{}", said.err);
        let map = good(path, "map --output=json d.qcow2");
        let first = map.lines().next().unwrap();
        assert!(first.contains("\"zero\": true"), "{map}");
        assert_eq!(first.contains("\"offset\""), kept, "{options}: {map}");
    }
    run_with(path, "io -d ignore d.qcow2", "discard -q 64k 64k\n");
    assert!(good(path, "map d.qcow2").contains("0x10000         0x10000"));
}

#[test]
fn discard_tells_what_it_would_do_and_then_does_it() {
    let folder = folder();
    let path = folder.path();
    run_with(path, "io vm/base.qcow2", "write -q 0 512k\n");
    let before = fs::read(path.join("vm/base.qcow2")).unwrap();
    let shown = good(path, "discard --dry-run vm/base.qcow2 64k+128k 256k 64k");
    assert!(shown.contains("would discard 2 ranges, 192 KiB in all"), "{shown}");
    assert!(shown.contains("holes would be punched in the file: 192 KiB"), "{shown}");
    assert_eq!(fs::read(path.join("vm/base.qcow2")).unwrap(), before);

    let json = good(path, "discard --dry-run --output=json vm/base.qcow2 64k+128k 256k 64k");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["dry_run"], true);
    assert_eq!((&report["before"]["data"], &report["after"]["zero"]), (&196_608.into(), &196_608.into()));

    let said = run_with(path, "discard vm/base.qcow2 -", "64k+128k # first\n\n256k, 64k\n");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.contains("discarded 2 ranges, 192 KiB in all"), "{}", said.out);
    let map = good(path, "map vm/base.qcow2");
    assert_eq!(map.lines().count(), 4, "{map}");

    let said = run_with(path, "discard vm/base.qcow2 -", "1k+1k\n2k+\n");
    assert_eq!(said.code, 1);
    assert!(said.err.contains("standard input, line 2"), "{}", said.err);

    // Space kept by a policy is given back by another.
    run_with(path, "io -o discard-no-unref=on vm/base.qcow2", "write -q 0 512k\ndiscard -q 0 512k\n");
    let shown = good(path, "discard vm/base.qcow2 all");
    assert!(shown.lines().any(|line| line.contains("zero, space kept") && line.trim_end().ends_with('-')), "{shown}");
    assert!(good(path, "check vm/base.qcow2").starts_with("No errors"));
}

#[test]
fn reports_are_json() {
    let folder = folder();
    let path = folder.path();
    for line in ["info", "info --backing-chain", "map", "check", "analyze", "inspect --show all"] {
        let text = good(path, &format!("{line} --output=json vm/top.qcow2"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(value.is_object() || value.is_array(), "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let folder = folder();
    let mut child = program()
        .args(["io", "-c", "read -v 0 1M", "vm/base.qcow2"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
}

#[test]
fn completions_and_man_pages_come_from_the_same_definitions() {
    let folder = folder();
    let path = folder.path();
    let verbs = ["create", "info", "map", "check", "convert", "compare", "io", "discard", "analyze", "inspect"];
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let text = good(path, &format!("completions {shell}"));
        for verb in verbs {
            assert!(text.contains(verb), "{shell}: {verb}");
        }
        assert!(text.contains("backing-files"), "{shell}");
    }
    good(path, "manpages man");
    for verb in verbs {
        let page = fs::read_to_string(path.join(format!("man/qcowkit-{verb}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS"), "{verb}");
    }
    assert!(fs::read_to_string(path.join("man/qcowkit.1")).unwrap().contains("SYNOPSIS"));
}

#[test]
fn progress_is_on_standard_error_when_asked_for() {
    let folder = folder();
    let said = run(folder.path(), "convert -p -O qcow2 secret.raw copy.qcow2");
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    assert!(run(folder.path(), "compare secret.raw copy.qcow2").out.contains("identical"));
}
