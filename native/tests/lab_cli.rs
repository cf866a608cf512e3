//! `qcowkit churn` and `qcowkit replay` as programs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn qcowkit(folder: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_qcowkit"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_churn_is_replayed_and_reported_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let churn = ["churn", "-s", "256M", "-n", "3000", "--trim", "online", "--mark-every", "1000"];
    let trace = text(qcowkit(folder, &churn, b""));
    assert_eq!(trace, text(qcowkit(folder, &churn, b"")), "the same parameters give the same trace");
    assert!(trace.starts_with("operation,offset,length,detail\n"));

    let files = ["--html", "a.html", "--csv", "a.csv", "--svg", "plots", "--samples", "10"];
    let human = text(qcowkit(folder, &[&["replay", "-s", "256M", "-"], files.as_slice()].concat(), trace.as_bytes()));
    for word in ["ignore", "unmap", "no-unref", "discontinuities", "of the disk"] {
        assert!(human.contains(word), "{human}");
    }
    assert!(std::fs::read_to_string(folder.join("a.html")).unwrap().contains("</html>"));
    assert!(std::fs::read_to_string(folder.join("a.csv")).unwrap().lines().count() > 30);
    assert!(std::fs::read_to_string(folder.join("plots/file_ppm.svg")).unwrap().starts_with("<svg"));

    std::fs::write(folder.join("t.csv"), &trace).unwrap();
    let json = text(qcowkit(
        folder,
        &[
            "replay",
            "--output=json",
            "-a",
            "-o",
            "cluster_size=128k",
            "-p",
            "unmap",
            "-p",
            "no-unref,allocator=near,name=n",
            "t.csv",
        ],
        b"",
    ));
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["runs"][1]["config"]["name"], "n");
    assert_eq!(report["runs"][0]["config"]["cluster_size"], 131_072);
    assert_eq!(report["runs"][1]["config"]["allocation"], "near");
    assert!(report["runs"][0]["end"]["file_length"].as_u64().unwrap() > 0);
    assert!(report["advice"]["reasons"].as_array().is_some_and(|reasons| reasons.len() == 4));
    assert!(report["trace"]["marks"].as_u64().unwrap() > 1);

    let script = text(qcowkit(folder, &[churn.as_slice(), &["--format", "qemu-io"]].concat(), b""));
    let again =
        text(qcowkit(folder, &["replay", "--output=json", "-p", "unmap", "-s", "256M", "-"], script.as_bytes()));
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["trace"]["writes"], report["trace"]["writes"]);
}

#[test]
fn an_image_is_replayed_on_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    text(qcowkit(folder, &["create", "-q", "-f", "qcow2", "a.qcow2", "64M"], b""));
    text(qcowkit(folder, &["io", "-c", "write -q 0 8M", "a.qcow2"], b""));
    let before = std::fs::read(folder.join("a.qcow2")).unwrap();
    let json = text(qcowkit(
        folder,
        &["replay", "--output=json", "-p", "unmap", "--image", "a.qcow2", "-"],
        b"discard 0 4M\nwrite 32M 1M\n",
    ));
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["runs"][0]["samples"][0]["live_bytes"], 8 << 20);
    assert_eq!(report["runs"][0]["end"]["live_bytes"], 5 << 20);
    assert_eq!(before, std::fs::read(folder.join("a.qcow2")).unwrap());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (args, input, words) in [
        (vec!["replay", "-"], "write 0 64k\nwrite x 1\n", "line 2"),
        (vec!["replay", "-p", "zap", "-"], "", "Unknown policy 'zap'"),
        (vec!["replay", "-p", "unmap,allocator=best", "-"], "", "allocator"),
        (vec!["replay", "-o", "colour=red", "-"], "", "Unknown option 'colour'"),
        (vec!["replay", "-o", "cluster_size=1000", "-"], "write 0 1M", "cluster size"),
        (vec!["replay", "-s", "1M", "-"], "write 1M 512", "beyond the disk"),
        (vec!["replay", "missing.csv"], "", "missing.csv"),
        (vec!["replay", "-f", "pcap", "-"], "", "Unknown trace format"),
        (vec!["replay"], "", "one trace"),
        (vec!["churn", "--fill", "100"], "", "fill"),
        (vec!["churn", "--trim", "sometimes"], "", "--trim"),
    ] {
        let said = refused(qcowkit(folder, &args, input.as_bytes()));
        assert!(said.contains(words), "{args:?}: {said}");
    }
}
