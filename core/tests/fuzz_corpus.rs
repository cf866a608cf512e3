//! Replays the fuzzer's corpus, its seeds and every past crasher through the functions that are fuzzed: what was once
//! found stays found, without a fuzzer, on every machine and with 32 bits too.

use std::path::Path;

#[allow(dead_code, unreachable_pub, reason = "the library of another crate, which shows more")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzzed;

/// The files of a folder, by name; none where there is no folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
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
    for (target, run) in fuzzed::TARGETS {
        let of_target = seeds.iter().filter(|(name, _)| *name == target).flat_map(|(_, inputs)| inputs);
        let mut inputs: Vec<_> = of_target.map(|bytes| ("a seed".to_owned(), bytes.clone())).collect();
        assert!(!inputs.is_empty(), "{target} has no seeds");
        for kind in ["corpus", "crashers"] {
            inputs.extend(files(&root.join(kind).join(target)));
        }
        println!("{target}: {} inputs", inputs.len());
        for (name, bytes) in inputs {
            // Its name is what a panic leaves behind.
            println!("{target} {name}");
            run(&bytes);
        }
    }
}
