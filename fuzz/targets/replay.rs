//! `replay TARGET FILE...`: runs a target on inputs, without the fuzzer: to look at what crashed.

use std::io;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let target = qcowkit_fuzz::TARGETS.iter().find(|(target, _)| *target == name);
    let (_, run) = target.ok_or_else(|| io::Error::other(format!("no target '{name}'")))?;
    for file in arguments {
        println!("{file}");
        run(&std::fs::read(file)?);
    }
    Ok(())
}
