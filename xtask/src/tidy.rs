//! House rules that no compiler holds: each is one check over the files that git knows.

use crate::run::{self, Failure};
use crate::tally::Tally;
use crate::test::Report;

/// A rule: its name, and what it complains about in one file.
type Rule = (&'static str, fn(path: &str, text: &str) -> Vec<String>);

const RULES: [Rule; 4] = [
    ("no source file over 600 lines", long_files),
    ("no path of one machine", machine_paths),
    ("no download address in npm's lock file", download_addresses),
    ("the README names the two commands", readme_commands),
];

/// Longer than this, a file holds more than one idea.
const LINES: usize = 600;

/// The two commands that a fresh machine needs.
const COMMANDS: [&str; 2] = ["cargo xtask demo", "cargo xtask test"];

/// Holds every tracked file against every rule.
pub(crate) fn test(report: &mut Report) -> Result<(), Failure> {
    let Some(listing) = run::ask(run::command("git").args(["ls-files", "-z"])) else {
        report.skip("tidy: this is not a git work tree");
        return Ok(());
    };
    let mut files = Vec::new();
    for path in listing.split('\0').filter(|path| !path.is_empty()) {
        // Files that are no text have no lines to complain about; a deleted one is gone.
        if let Ok(text) = std::fs::read_to_string(run::root().join(path)) {
            files.push((path, text));
        }
    }
    for (name, rule) in RULES {
        let complaints: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
        for complaint in &complaints {
            run::complain(&format!("   {complaint}"));
        }
        report.add(&format!("tidy: {name}"), Tally::of(complaints.is_empty()));
    }
    Ok(())
}

fn long_files(path: &str, text: &str) -> Vec<String> {
    let source = [".rs", ".py", ".ts", ".js", ".mjs"].iter().any(|ending| path.ends_with(ending));
    let lines = text.lines().count();
    if source && lines > LINES { vec![format!("{path}: {lines} lines")] } else { Vec::new() }
}

fn machine_paths(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not break its own rule.
    let homes = ["root", "home", "work", "farm", "Users"].map(|home| format!("/{home}/"));
    let starts = |line: &str, home: &String| {
        line.match_indices(home.as_str()).any(|(at, _)| {
            let before = line.get(..at).and_then(|text| text.chars().next_back());
            !before.is_some_and(|c| c.is_alphanumeric() || "_.-*}~".contains(c))
        })
    };
    let guilty = |line: &&str| homes.iter().any(|home| starts(line, home));
    text.lines().filter(guilty).map(|line| format!("{path}: {}", line.trim())).collect()
}

fn download_addresses(path: &str, text: &str) -> Vec<String> {
    let guilty = path.ends_with("package-lock.json") && text.contains("\"resolved\": \"http");
    if guilty { vec![format!("{path} holds addresses: see wasm/.npmrc")] } else { Vec::new() }
}

fn readme_commands(path: &str, text: &str) -> Vec<String> {
    let lacking = |command: &&&str| path == "README.md" && !text.lines().any(|line| line.trim() == **command);
    COMMANDS.iter().filter(lacking).map(|command| format!("README.md has no line '{command}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_source_is_named_and_a_long_text_is_not() {
        let text = "x\n".repeat(LINES + 1);
        assert_eq!(long_files("a.rs", &text).len(), 1);
        assert!(long_files("a.md", &text).is_empty());
        assert!(long_files("a.rs", &"x\n".repeat(LINES)).is_empty());
    }

    #[test]
    fn a_path_of_a_machine_is_found_and_a_relative_one_is_not() {
        let home = format!("see /{}/someone/notes", "home");
        assert_eq!(machine_paths("a.md", &home).len(), 1);
        let relative = format!("see docs/{}/notes", "work");
        assert!(machine_paths("a.md", &relative).is_empty());
    }

    #[test]
    fn the_readme_must_show_both_commands_on_lines_of_their_own() {
        assert_eq!(readme_commands("README.md", "cargo xtask demo\n").len(), 1);
        assert!(readme_commands("README.md", "    cargo xtask demo\ncargo xtask test\n").is_empty());
        assert!(readme_commands("docs/other.md", "").is_empty());
    }

    #[test]
    fn an_address_in_the_lock_file_is_found() {
        assert_eq!(download_addresses("wasm/package-lock.json", "\"resolved\": \"https://x\"").len(), 1);
        assert!(download_addresses("wasm/package-lock.json", "\"integrity\": \"x\"").is_empty());
    }
}
