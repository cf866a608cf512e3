//! Stamps: a step of the set-up whose inputs have not changed since it last succeeded is not done again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::run::{self, Failure};

/// The state of one step: a hash of its inputs, compared with the one kept under `target/stamps`.
pub(crate) struct Stamp {
    file: PathBuf,
    hash: String,
    /// What the step makes; the stamp is worth nothing without it.
    product: PathBuf,
}

impl Stamp {
    /// A stamp over files and folders (relative to the root, folders with all that is in them) and over
    /// facts that are no files, such as a compiler's version.
    pub(crate) fn new(name: &str, inputs: &[&str], facts: &[&str], product: PathBuf) -> Result<Self, Failure> {
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        for input in inputs {
            hash_path(&run::root().join(input), &mut hasher)?;
        }
        let file = run::target("stamps")?.join(name);
        Ok(Self { file, hash: format!("{:016x}", hasher.finish()), product })
    }

    /// Whether the step can be left out.
    pub(crate) fn is_current(&self) -> bool {
        self.product.exists() && std::fs::read_to_string(&self.file).is_ok_and(|kept| kept == self.hash)
    }

    /// Does the step unless it is current, and remembers it.
    pub(crate) fn step(&self, does: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        if self.is_current() {
            return Ok(());
        }
        // A step that dies half way must not look done.
        let _ = std::fs::remove_file(&self.file);
        does()?;
        std::fs::write(&self.file, &self.hash)?;
        Ok(())
    }
}

/// Folders that hold what is made, not what is written.
const MADE: [&str; 6] = ["target", "node_modules", "pkg", "dist", "__pycache__", ".git"];

fn hash_path(path: &Path, hasher: &mut DefaultHasher) -> Result<(), Failure> {
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            if !MADE.iter().any(|made| entry.file_name() == *made) {
                entry.file_name().hash(hasher);
                hash_path(&entry.path(), hasher)?;
            }
        }
    } else {
        std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?.hash(hasher);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_runs_once_for_the_same_inputs_and_again_for_others() {
        let product = run::target("stamps").map(|folder| folder.join("test-product")).ok().unwrap_or_default();
        let _ = std::fs::remove_file(&product);
        let runs = std::cell::Cell::new(0);
        let step = |fact: &str| {
            let stamp = Stamp::new("test-step", &["xtask/Cargo.toml"], &[fact], product.clone())?;
            stamp.step(|| {
                runs.set(runs.get() + 1);
                Ok(std::fs::write(&product, "made")?)
            })
        };
        assert!(step("one").is_ok() && step("one").is_ok());
        assert_eq!(runs.get(), 1);
        assert!(step("two").is_ok());
        assert_eq!(runs.get(), 2);
        let _ = std::fs::remove_file(&product);
        assert!(step("two").is_ok());
        assert_eq!(runs.get(), 3);
    }

    #[test]
    fn a_failed_step_is_not_remembered() {
        let stamp = Stamp::new("test-failed", &[], &["x"], run::root());
        let stamp = stamp.ok().filter(|stamp| stamp.step(|| Err(Failure::new("no"))).is_err());
        assert!(stamp.is_some_and(|stamp| !stamp.is_current()));
    }
}
