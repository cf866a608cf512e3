//! `seeds DIRECTORY`: writes what each target begins with into `DIRECTORY/TARGET/`.

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("a directory is missing"))?;
    for (target, seeds) in qcowkit_fuzz::seeds() {
        let folder = Path::new(&directory).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, bytes) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), bytes)?;
        }
    }
    Ok(())
}
