//! The README is true: its commands run, in order, on the program that was built.
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::Command;

/// The commands of the `console` blocks of a Markdown text.
fn commands(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        match line.trim_start().strip_prefix("```") {
            Some("console") => inside = true,
            Some(_) => inside = false,
            None => found.extend(line.strip_prefix("$ ").filter(|_| inside)),
        }
    }
    found
}

#[test]
fn the_commands_of_the_readme_run() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let commands = commands(&text);
    assert!(commands.len() >= 10, "the README shows {} commands", commands.len());
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_qcowkit")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    for command in commands {
        let done = Command::new("sh").args(["-c", command]).current_dir(&folder).env("PATH", &path).output().unwrap();
        assert!(
            done.status.success(),
            "{command}\n{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        let verb = command.split_whitespace().nth(1).unwrap_or_default();
        let read_only = ["map", "analyze", "check", "inspect"].contains(&verb);
        assert!(!read_only || !done.stdout.is_empty(), "{command} printed nothing");
    }
}
