//! Replays the fuzzer's corpus, its seeds and every past crasher through the functions that are fuzzed: what was once
//! found stays found, without a fuzzer, on every machine and with 32 bits too.

use std::path::Path;

#[allow(dead_code, unreachable_pub, reason = "the library of another crate, which shows more")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzzed;

/// What is kept for each target: how many inputs of the corpus at least, and how many past crashers there are. A corpus
/// that is merged anew may be a little smaller; one that is missing, or not found, is an error.
const KEPT: [(&str, usize, usize); 9] = [
    ("inspect", 120, 0),
    ("read", 150, 0),
    ("check", 100, 0),
    ("operations", 150, 0),
    ("abuse", 150, 0),
    ("codec", 150, 0),
    ("encryption", 150, 0),
    ("trace", 150, 1),
    ("repair", 150, 4),
];

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), std::fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn seeds_corpus_and_past_crashers_do_no_harm() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let seeds = fuzzed::seeds();
    assert_eq!(fuzzed::TARGETS.len(), KEPT.len());
    for (target, run) in fuzzed::TARGETS {
        let of_target = seeds.iter().filter(|(name, _)| *name == target).flat_map(|(_, inputs)| inputs);
        let mut inputs: Vec<_> = of_target.map(|bytes| ("a seed".to_owned(), bytes.clone())).collect();
        assert!(!inputs.is_empty(), "{target} has no seeds");
        let kept = KEPT.iter().find(|(name, ..)| *name == target);
        let &(_, least, past) = kept.unwrap_or_else(|| panic!("nothing is said of {target}"));
        let corpus = files(&root.join("corpus").join(target));
        assert!(corpus.len() >= least, "{target}: a corpus of {}, at least {least} are kept", corpus.len());
        inputs.extend(corpus);
        let crashers = root.join("crashers").join(target);
        let crashers = if past > 0 || crashers.exists() { files(&crashers) } else { Vec::new() };
        assert_eq!(crashers.len(), past, "{target}: past crashers");
        inputs.extend(crashers);
        println!("{target}: {} inputs", inputs.len());
        for (name, bytes) in inputs {
            // Its name is what a panic leaves behind.
            println!("{target} {name}");
            run(&bytes);
        }
    }
}
