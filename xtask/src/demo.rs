//! `cargo xtask demo`: the main job, on an image that it makes.
//!
//! First the lab: a virtual machine's work on an image, replayed in memory under three policies, with a page of plots. Then
//! the real thing, small: a guest writes a disk and deletes half of it in pieces. The same discards are then carried out
//! under three policies, each on a copy: what becomes of its space on the host, of its order and of its growth is shown
//! side by side, and every copy is checked and read back.

use std::path::Path;

use crate::run::{self, Failure};

/// A name for people and QEMU's run-time options.
const POLICIES: [(&str, &str); 3] = [
    ("discard=unmap", "discard=unmap"),
    ("discard-no-unref", "discard=unmap,discard-no-unref=on"),
    ("no-unref, no holes", "discard=unmap,discard-no-unref=on,pass-discard-request=off"),
];

const MIB: u64 = 1 << 20;

/// What one policy came to.
struct Outcome {
    policy: &'static str,
    /// Bytes that the host holds after the discards.
    on_host: Option<u64>,
    /// After the rewrite: places where the disk's order and the file's part, as `analyze` counts them.
    discontinuities: u64,
    /// How long the file can get, if no gap in it fits what is written.
    at_worst: u64,
}

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = arguments.first() {
        return Err(Failure::new(format!("unexpected argument {unknown}")));
    }
    run::heading("building the program");
    run::call(run::cargo("").args(["build", "-q", "-p", "qcowkit"]))?;
    let folder = run::target("demo")?;
    lab(&folder)?;
    let disk = folder.join("disk.qcow2");

    run::heading("a disk of 64 MiB, of which a guest writes 32");
    let _ = std::fs::remove_file(&disk);
    qcowkit(&["create", "-q", "-f", "qcow2"], &disk, &["64M"])?;
    qcowkit(&["io", "-c", "write -q -P 0x11 0 16M", "-c", "write -q -P 0x22 16M 16M"], &disk, &[])?;
    qcowkit(&["analyze"], &disk, &[])?;

    run::heading("the guest deletes every second MiB of the first 16: what would happen");
    let ranges: Vec<String> = (0..8).map(|at| format!("{}M+1M", 2 * at + 1)).collect();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    qcowkit(&["discard", "--dry-run"], &disk, &ranges)?;

    let mut outcomes = Vec::new();
    for (policy, options) in POLICIES {
        run::heading(&format!("the same discards, and a rewrite, under {policy}"));
        outcomes.push(carry_out(policy, options, &disk, &ranges)?);
    }
    run::heading("side by side");
    run::say(&format!("   {:<20}{:>14}{:>16}{:>20}", "", "on the host", "out of order", "file at worst"));
    outcomes.iter().for_each(show);
    run::say("   (on the host: after the discards; the rest: after the guest has written two of the pieces again)");
    run::say("\nEvery copy kept what was not discarded, reads zeros where it was, and is clean.");
    run::say("The images are in target/demo: try `qcowkit inspect --guest 1M`, `map` or `info` on them.");
    Ok(())
}

/// The discard lab: a made-up workload on an image that stays as it is, under three policies.
fn lab(folder: &Path) -> Result<(), Failure> {
    let (disk, trace, page) = (folder.join("vm.qcow2"), folder.join("vm.csv"), folder.join("vm.html"));
    run::heading("an image of 4 GiB, and what a virtual machine does to it: files made, rewritten, deleted");
    let _ = std::fs::remove_file(&disk);
    qcowkit(&["create", "-q", "-f", "qcow2"], &disk, &["4G"])?;
    let mut churn = run::command(run::program());
    churn.args("churn -s 4G -n 60000 --trim online --fill 85 --file-median 1M --file-sigma 150".split(' '));
    churn.args("--request-max 8M --rewrite 10 --mark-every 10000".split(' '));
    churn.stdout(std::fs::File::create(&trace)?);
    run::call(&mut churn)?;
    run::heading("the same work under three discard policies, replayed in memory");
    let mut replay = run::command(run::program());
    replay.args(["replay", "--advise", "-p", "ignore", "-p", "unmap", "-p", "no-unref", "--image"]).arg(&disk);
    run::call(replay.arg("--html").arg(&page).arg(&trace))?;
    run::say("The plots are in target/demo/vm.html; docs/discard-lab.md tells what they show.");
    Ok(())
}

/// Discards on a copy of the disk, proves that the rest is untouched and the image clean, then lets the guest write
/// again and looks where that went.
fn carry_out(policy: &'static str, options: &'static str, disk: &Path, ranges: &[&str]) -> Result<Outcome, Failure> {
    let copy = disk.with_file_name(format!("{}.qcow2", policy.replace(", ", "-").replace([' ', '='], "-")));
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(disk, &copy)?;
    qcowkit(&["discard", "-q", "-o", options], &copy, ranges)?;
    qcowkit(&["io", "-r", "-c", "read -q -P 0x11 0 1M", "-c", "read -q -P 0 1M 1M"], &copy, &[])?;
    let on_host = on_host(&copy);
    // Where the clusters were kept, the new data take their old places, in order.
    qcowkit(&["io", "-o", options, "-c", "write -q -P 0x33 5M 1M", "-c", "write -q -P 0x44 1M 1M"], &copy, &[])?;
    qcowkit(&["io", "-r", "-c", "read -q -P 0x33 5M 1M", "-c", "read -q -P 0x44 1M 1M"], &copy, &[])?;
    qcowkit(&["analyze"], &copy, &[])?;
    qcowkit(&["check"], &copy, &[])?;
    if run::find_program(&["qemu-img"]).is_some() {
        run::call(run::command("qemu-img").args(["check", "-f", "qcow2"]).arg(&copy))?;
    } else {
        run::say("   (no qemu-img here to check it too)");
    }
    let mut analyze = run::command(run::program());
    let report = run::ask(analyze.args(["analyze", "--output=json"]).arg(&copy)).unwrap_or_default();
    let number = |key| number(&report, key).ok_or_else(|| Failure::new(format!("analyze tells no {key}")));
    Ok(Outcome { policy, on_host, discontinuities: number("discontinuities")?, at_worst: number("without_reuse")? })
}

/// The first number under a key of a JSON text.
fn number(json: &str, key: &str) -> Option<u64> {
    let rest = json.split_once(&format!("\"{key}\":"))?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn show(outcome: &Outcome) {
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB as f64);
    let on_host = outcome.on_host.map_or_else(|| "not told".to_owned(), mebibytes);
    run::say(&format!(
        "   {:<20}{:>14}{:>16}{:>20}",
        outcome.policy,
        on_host,
        format!("{} times", outcome.discontinuities),
        mebibytes(outcome.at_worst)
    ));
}

/// Runs a verb of the program just built: words, the image, more words.
fn qcowkit(before: &[&str], image: &Path, after: &[&str]) -> Result<(), Failure> {
    run::call(run::command(run::program()).args(before).arg(image).args(after))
}

/// Bytes that a file takes on the host, where the system tells.
fn on_host(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).ok().map(|metadata| metadata.blocks() * 512)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_under_a_key_is_read() {
        let json = "{ \"a\": 12,\n \"b\": { \"a\": 3 } }";
        assert_eq!(number(json, "a"), Some(12));
        assert_eq!(number(json, "b"), None);
        assert_eq!(number(json, "c"), None);
    }
}
