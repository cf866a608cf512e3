//! Completions and man pages, made from the definition that the parser uses.

use std::fs;
use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::failure::{Failure, Outcome};

/// Prints completions for a shell.
pub(crate) fn completions(shell: Shell, out: &mut dyn Write) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qcowkit", &mut text);
    out.write_all(&text)?;
    Ok(0)
}

/// Writes a man page for the program and one for each verb.
pub(crate) fn manpages(directory: &Path) -> Outcome {
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    Ok(0)
}
