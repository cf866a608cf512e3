//! Encrypted images beside QEMU: each reads what the other wrote, in every combination that QEMU makes; keys from files,
//! the environment and QEMU's secret objects; key slots.
//!
//! `QCOWKIT_GRID=all` tries every hash with everything.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Ended, Folder, open, qemu_is_here, run, succeed};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::keys::SystemRandom;
use qcowkit_core::crypto::{
    CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, LuksFormat, Secret, VectorGenerator,
};
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};

const SECRET: &str = "secret,id=s,data=open sesame";
const SIZE: u64 = 1 << 20;

fn options() -> OpenOptions {
    OpenOptions::default().with_key(Secret::from("open sesame"))
}

fn node(path: &Path) -> String {
    format!("driver=qcow2,file.filename={},encrypt.key-secret=s", path.display())
}

/// `qemu-io` commands on an encrypted image; gives what went wrong.
fn qemu_io(path: &Path, commands: &[&str]) -> String {
    let node = node(path);
    let mut arguments = vec!["--object", SECRET, "--image-opts", &node];
    commands.iter().for_each(|command| arguments.extend(["-c", *command]));
    let done = run("qemu-io", &arguments);
    if done.code == 0 { done.out } else { format!("{}{}", done.out, done.err) }
}

/// What QEMU makes: all ciphers in all modes, with all vectors, and hashes in turn.
fn grid() -> Vec<LuksFormat> {
    let all = std::env::var("QCOWKIT_GRID").is_ok_and(|value| value == "all");
    let mut grid = Vec::new();
    for algorithm in CipherAlgorithm::ALL.iter().copied() {
        for mode in CipherMode::ALL {
            let essiv = HashAlgorithm::ALL.iter().copied().map(VectorGenerator::Essiv);
            let generators = [VectorGenerator::Plain, VectorGenerator::Plain64].into_iter().chain(essiv);
            let mut valid = Vec::new();
            for vectors in generators {
                let spec = CipherSpec { algorithm, mode, vectors };
                let hash = HashAlgorithm::ALL[(grid.len() + valid.len()) % HashAlgorithm::ALL.len()];
                let format = LuksFormat { spec, hash, slot_iterations: 1000, master_key_iterations: 1000 };
                if format.validate().is_ok() && algorithm != CipherAlgorithm::Sm4 {
                    valid.push(format);
                }
            }
            let turn = grid.len();
            if all {
                grid.extend(valid);
            } else if !valid.is_empty() {
                grid.push(valid[turn % valid.len()]);
            }
        }
    }
    grid
}

fn qemu_options(format: &LuksFormat) -> String {
    let LuksFormat { spec, hash, .. } = format;
    let vectors = match spec.vectors {
        VectorGenerator::Essiv(hash) => format!("essiv,encrypt.ivgen-hash-alg={}", hash.name()),
        other => other.name().to_owned(),
    };
    format!(
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,encrypt.cipher-alg={},encrypt.cipher-mode={},\
         encrypt.hash-alg={},encrypt.ivgen-alg={vectors}",
        spec.algorithm.name(),
        spec.mode.name(),
        hash.name(),
    )
}

#[test]
fn either_reads_what_the_other_wrote() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let formats = grid();
    // Every mode of every cipher, except where a key does not fill sectors, or blocks are too short.
    assert!(formats.len() >= 30, "{}", formats.len());
    let path = folder.path("image.qcow2");
    let shown = path.display().to_string();
    for (n, format) in formats.iter().enumerate() {
        let what = format!("{format:?}");
        // Each image that QEMU makes takes it a second, to find out how fast it derives keys.
        if n % 3 == 0 {
            let more = qemu_options(format);
            succeed("qemu-img", &["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", &more, &shown, "1M"]);
        } else {
            let storage = FileStorage::open(&path, FileAccess::Create).unwrap();
            let volume = format.make(&Secret::from("open sesame"), &mut SystemRandom).unwrap();
            let create = CreateOptions { encryption: Some(Arc::new(volume)), ..CreateOptions::default() };
            Image::create(storage, SIZE, &create).unwrap().close().unwrap();
        }
        assert_eq!(qemu_io(&path, &["write -q -P 17 1000 100000"]), "", "{what}");
        let mut image = open(&path, options());
        expect(&mut image, &[(0, 1000, 0), (1000, 100_000, 17), (101_000, 200_000, 0)], &what);
        image.write_at(99_999, &[19; 77_777]).unwrap();
        image.write_at(500_001, &[21; 99]).unwrap();
        image.close().unwrap();
        let reads = ["read -q -P 17 1000 98999", "read -q -P 19 99999 77777", "read -q -P 0 177776 100000"];
        check_by_qemu(&path, &reads, &what);
        check_by_qemu(
            &path,
            &["read -q -P 0 458752 41249", "read -q -P 21 500001 99", "read -q -P 0 500100 20000"],
            &what,
        );
    }
    println!("{} combinations", formats.len());
}

fn check_by_qemu(path: &Path, commands: &[&str], what: &str) {
    assert_eq!(qemu_io(path, commands), "", "{what}");
    let done = run("qemu-img", &["check", "-q", "--object", SECRET, "--image-opts", &node(path)]);
    assert_eq!(done.code, 0, "{what}: {}{}", done.out, done.err);
}

fn expect(image: &mut Image<FileStorage>, parts: &[(u64, usize, u8)], what: &str) {
    for &(offset, length, byte) in parts {
        let mut bytes = vec![!byte; length];
        image.read_at(offset, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&found| found == byte), "{what}: {length} bytes at {offset}");
    }
}

#[test]
fn aes_of_old_is_read_and_written() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("aes.qcow2");
    let shown = path.display().to_string();
    let more = "encrypt.format=aes,encrypt.key-secret=s";
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", more, &shown, "1M"]);
    assert_eq!(qemu_io(&path, &["write -q -P 17 70000 1000", "write -q -P 18 512 512"]), "");
    let mut image = open(&path, options());
    expect(&mut image, &[(0, 512, 0), (512, 512, 18), (70_000, 1000, 17), (71_000, 1000, 0)], "AES");
    image.write_at(69_999, &[5; 3]).unwrap();
    image.close().unwrap();
    check_by_qemu(&path, &["read -q -P 5 69999 3", "read -q -P 17 70002 998", "read -q -P 0 65536 4463"], "AES");
}

/// The program under a name.
fn program(name: &str, folder: &Folder, words: &[&str]) -> Ended {
    let program = folder.path(name);
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_qcowkit"), &program).unwrap();
    }
    let done = Command::new(&program)
        .args(words)
        .current_dir(folder.path("."))
        .env("QCOWKIT_TEST_KEY", "from the environment")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) }
}

fn ours(folder: &Folder, line: &str) -> Ended {
    program("qcowkit", folder, &line.split(' ').collect::<Vec<_>>())
}

fn works(folder: &Folder, line: &str) -> String {
    let done = ours(folder, line);
    assert_eq!(done.code, 0, "{line}\n{}{}", done.out, done.err);
    done.out
}

fn fails(folder: &Folder, line: &str, words: &str) {
    let done = ours(folder, line);
    assert!(done.code != 0 && done.err.contains(words), "{line}\n{} {}{}", done.code, done.out, done.err);
}

#[test]
fn keys_come_from_files_and_the_environment() {
    let folder = Folder::new();
    std::fs::write(folder.path("key"), "first").unwrap();
    std::fs::write(folder.path("line"), "first\n").unwrap();
    let luks = "-o encrypt.format=luks,encrypt.iter-time=5";
    works(&folder, &format!("create -q -f qcow2 {luks} --key-file key a.qcow2 4M"));
    let write = program("qcowkit", &folder, &["io", "--key-file", "key", "-c", "write -q -P 9 1000 100000", "a.qcow2"]);
    assert_eq!((write.code, write.err.as_str()), (0, ""));
    works(
        &folder,
        &format!("convert {luks} -O qcow2 --key-file key --target-key-env QCOWKIT_TEST_KEY a.qcow2 b.qcow2"),
    );
    assert_eq!(
        works(&folder, "compare --key-file key --key-env QCOWKIT_TEST_KEY a.qcow2 b.qcow2"),
        "Images are identical.\n"
    );
    works(&folder, "convert -O raw --key-env QCOWKIT_TEST_KEY b.qcow2 b.raw");
    let raw = std::fs::read(folder.path("b.raw")).unwrap();
    assert!(raw[..1000].iter().all(|&byte| byte == 0) && raw[1000..101_000].iter().all(|&byte| byte == 9));
    assert!(raw[101_000..].iter().all(|&byte| byte == 0));

    // Metadata need no key.
    for verb in ["info", "map", "check", "analyze", "map --output=json", "inspect", "info --output=json"] {
        works(&folder, &format!("{verb} a.qcow2"));
    }
    // What needs one says how to give it, and leaves the target alone.
    fails(&folder, "convert -O raw a.qcow2 never.raw", "--key-file or --key-env give it");
    assert!(!folder.path("never.raw").exists());
    fails(&folder, "convert -O raw --key-env QCOWKIT_TEST_KEY a.qcow2 never.raw", "wrong key");
    fails(&folder, "convert -O raw --key-file line a.qcow2 never.raw", "ends with a newline");
    fails(&folder, "convert -O raw --key-env QCOWKIT_NO_SUCH a.qcow2 never.raw", "is not set");
    fails(&folder, "convert -O raw --key-file none a.qcow2 never.raw", "key file 'none'");
    fails(&folder, "compare --max-key-iterations 5 --key-file key a.qcow2 b.qcow2", "--max-key-iterations allows more");
    fails(&folder, "create --object secret,id=s,data=x -f qcow2 c.qcow2 1M", "--key-file");
    fails(&folder, &format!("create -f qcow2 {luks} c.qcow2 1M"), "--key-file");
    fails(&folder, "create -f qcow2 --key-file key c.qcow2 1M", "not encrypted");
    fails(&folder, "create -f qcow2 -o encrypt.format=aes --key-file key c.qcow2 1M", "none are made");
    fails(&folder, "create -f qcow2 -o encrypt.format=luks,encrypt.cipher-alg=des --key-file key c.qcow2 1M", "'des'");
    fails(&folder, "create -f qcow2 -o encrypt.cipher-alg=aes-128 --key-file key c.qcow2 1M", "is missing");
    assert!(!folder.path("c.qcow2").exists());

    slots(&folder);
}

/// Key slots by `amend`.
fn slots(folder: &Folder) {
    std::fs::write(folder.path("second"), "second").unwrap();
    let add = "amend --key-file key -o encrypt.state=active,encrypt.iter-time=5";
    works(folder, &format!("{add} --new-key-file second a.qcow2"));
    works(folder, &format!("{add},encrypt.keyslot=6 --new-key-env QCOWKIT_TEST_KEY a.qcow2"));
    fails(folder, &format!("{add},encrypt.keyslot=6 --new-key-file second a.qcow2"), "Refusing to overwrite");
    fails(folder, &format!("{add},encrypt.keyslot=8 --new-key-file second a.qcow2"), "must be between 0 and 7");
    fails(folder, &format!("{add} a.qcow2"), "--new-key-file");
    fails(folder, "amend --key-file line -o encrypt.state=active --new-key-file second a.qcow2", "wrong key");
    fails(folder, "amend -o encrypt.state=active --new-key-file second a.qcow2", "no key was given");
    for key in ["--key-file key", "--key-file second", "--key-env QCOWKIT_TEST_KEY"] {
        works(folder, &format!("compare {key} a.qcow2 b.raw -F raw"));
    }
    let erase = "amend --key-file key -o encrypt.state=inactive";
    works(folder, &format!("{erase} --old-key-file second a.qcow2"));
    works(folder, &format!("{erase},encrypt.keyslot=6 a.qcow2"));
    fails(folder, "compare --key-file second a.qcow2 b.raw -F raw", "wrong key");
    fails(folder, &format!("{erase},encrypt.keyslot=0 a.qcow2"), "only active keyslot 0");
    fails(folder, &format!("{erase} --old-key-file key a.qcow2"), "refusing operation");
    fails(folder, &format!("{erase} --old-key-file second a.qcow2"), "No keyslots match");
    fails(folder, &format!("{erase} a.qcow2"), "must be given");
    works(folder, "compare --key-file key a.qcow2 b.raw -F raw");
    works(folder, &format!("{erase},encrypt.keyslot=0 --force a.qcow2"));
    fails(folder, "compare --key-file key a.qcow2 b.raw -F raw", "wrong key");
}

/// The same words in, the same out: ours under QEMU's name, and QEMU.
#[test]
fn the_stand_in_takes_qemus_words() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("a.qcow2");
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=5";
    let made =
        program("qemu-img", &folder, &["create", "-f", "qcow2", "--object", SECRET, "-o", luks, "a.qcow2", "1M"]);
    assert_eq!(made.code, 0, "{}", made.err);
    check_by_qemu(&path, &["write -q -P 3 0 64k"], "made by the stand-in");
    let (node, wrong) = (node(&path), "secret,id=s,data=wrong");
    let shown = path.display().to_string();
    let unknown = node.replace("key-secret=s", "key-secret=t");
    let two = ["--object", SECRET, "--object", "secret,id=n,data=new"];
    let more = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=5";
    let amend = |options: &'static str| [&["amend"], &two[..], &["--image-opts", &node, "-o", options]].concat();
    let lines: Vec<Vec<&str>> = vec![
        vec!["map", "--output=json", "--object", SECRET, "--image-opts", &node],
        vec!["map", "--output=json", "--object", wrong, "--image-opts", &node],
        vec!["map", "--output=json", "--object", SECRET, "--image-opts", &unknown],
        vec!["map", "--output=json", &shown],
        vec!["compare", "--object", SECRET, "--image-opts", &node, &node],
        vec!["create", "-f", "qcow2", "-o", "encrypt.format=luks", "b.qcow2", "1M"],
        vec!["create", "-f", "qcow2", "-o", "encrypt.cipher-alg=aes-128", "b.qcow2", "1M"],
        vec!["measure", "-O", "qcow2", "--object", SECRET, "-o", luks, "--size", "1G"],
        vec!["convert", "-c", "-O", "qcow2", "--object", SECRET, "-o", luks, "--image-opts", &node, "c.qcow2"],
        amend("encrypt.new-secret=n"),
        amend(more),
        amend("encrypt.state=active"),
        amend("encrypt.state=active,encrypt.new-secret=n,encrypt.old-secret=s"),
        amend("encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=0"),
        amend("encrypt.state=inactive,encrypt.old-secret=n,encrypt.keyslot=0"),
        amend("encrypt.state=inactive,encrypt.keyslot=4"),
        amend("encrypt.state=inactive,encrypt.old-secret=n"),
        amend("encrypt.state=inactive,encrypt.old-secret=s"),
        vec!["map", "--output=json", "--object", SECRET, "--image-opts", &node],
    ];
    let before = std::fs::read(&path).unwrap();
    let told = [true, false].map(|qemu| {
        std::fs::write(&path, &before).unwrap();
        lines.iter().map(|line| say(&folder, line, qemu)).collect::<Vec<_>>()
    });
    for (ours, qemu) in told[1].iter().zip(&told[0]) {
        assert_eq!(ours, qemu);
    }
}

/// A line, and what QEMU's program or the stand-in says to it.
fn say(folder: &Folder, line: &[&str], qemu: bool) -> (String, i32, String, String) {
    let done = match qemu {
        true => {
            let done = Command::new("qemu-img").args(line).current_dir(folder.path(".")).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ended { code: done.status.code().unwrap_or(-1), out: text(&done.stdout), err: text(&done.stderr) }
        }
        false => program("qemu-img", folder, line),
    };
    (line.join(" "), done.code, done.out, done.err)
}

/// Options that an image cannot have are refused, as QEMU does; a key that nothing needs is not one of them.
#[test]
fn options_that_an_image_cannot_have_are_refused() {
    if !qemu_is_here() {
        return;
    }
    let folder = Folder::new();
    for line in [
        &["create", "-q", "-f", "qcow2", "p.qcow2", "1M"][..],
        &["create", "-q", "-f", "raw", "p.raw", "1M"],
        &["create", "-q", "-f", "qcow2", "-b", "p.raw", "-F", "raw", "over.qcow2"],
    ] {
        assert_eq!(say(&folder, line, true).1, 0, "{line:?}");
    }
    std::fs::write(folder.path("key"), "open sesame").unwrap();
    for (options, code) in [
        ("driver=qcow2,file.filename=p.qcow2,encrypt.key-secret=s", 0),
        ("driver=qcow2,file.filename=p.qcow2,encrypt.format=luks,encrypt.key-secret=s", 1),
        ("driver=qcow2,file.filename=p.qcow2,backing.encrypt.key-secret=s", 1),
        ("driver=qcow2,file.filename=p.qcow2,data-file.driver=file,data-file.filename=p.raw", 1),
        ("driver=qcow2,file.filename=over.qcow2,backing.encrypt.key-secret=s", 1),
        ("driver=raw,file.filename=p.raw,encrypt.key-secret=s", 1),
        ("driver=raw,file.filename=p.raw,discard-no-unref=on", 1),
        ("file.filename=p.raw,l2-cache-size=1M", 1),
        ("driver=raw,file.filename=p.raw,overlap-check.main-header=on", 1),
        ("driver=raw,file.filename=p.raw,discard=unmap,detect-zeroes=on,read-only=on", 0),
    ] {
        let line = ["map", "--output=json", "--object", "secret,id=s,file=key", "--image-opts", options];
        let ours = say(&folder, &line, false);
        assert_eq!(ours, say(&folder, &line, true));
        assert_eq!(ours.1, code, "{options}");
        let own = program("qcowkit", &folder, &line);
        assert_eq!((own.code, own.err.is_empty()), (code, code == 0), "{options}: {}", own.err);
    }
    // A mount and the language of qemu-io take the same lists.
    let refused =
        program("qcowkit", &folder, &["io", "-f", "raw", "-o", "discard-no-unref=on", "-c", "length", "p.raw"]);
    assert!(refused.code == 1 && refused.err.contains("'discard-no-unref'"), "{}", refused.err);
}
