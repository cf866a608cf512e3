//! The inputs of the benchmarks, the same on every machine: made from fixed seeds, kept under `target/bench`.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use crate::run::{self, Failure};

/// An input and how it is made.
pub(super) struct Fixture {
    pub(super) name: &'static str,
    make: fn(&Path) -> Result<(), Failure>,
}

/// In an order in which each can be made from those before it.
pub(super) const ALL: [Fixture; 7] = [
    Fixture { name: "data.raw", make: data },
    Fixture { name: "data.qcow2", make: |folder| image_of(folder, "data") },
    Fixture { name: "sparse.raw", make: sparse },
    Fixture { name: "sparse.qcow2", make: |folder| image_of(folder, "sparse") },
    Fixture { name: "huge.qcow2", make: huge },
    Fixture { name: "io.txt", make: operations },
    Fixture { name: "io.qcow2", make: after_operations },
];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// How many commands the script for `io` holds.
const OPERATIONS: u64 = 30_000;

/// The virtual disk that the script for `io` works on, in bytes.
const IO_DISK: u64 = 4 * GIB;

/// Makes a fixture unless it is there.
pub(super) fn provide(fixture: &Fixture, folder: &Path) -> Result<(), Failure> {
    if !folder.join(fixture.name).exists() {
        run::say(&format!("   making {}", fixture.name));
        (fixture.make)(folder)?;
    }
    Ok(())
}

/// 1 GiB without a zero cluster: blocks of noise and blocks of text in turn.
fn data(folder: &Path) -> Result<(), Failure> {
    write_whole(folder, "data.raw", |out| {
        let mut random = Random(1);
        for block in 0..GIB / (64 * KIB) {
            out.write_all(&random.block(block % 2 == 1))?;
        }
        Ok(())
    })
}

/// 64 GiB of which every 16 MiB hold 64 KiB of data; the rest are holes.
fn sparse(folder: &Path) -> Result<(), Failure> {
    write_whole(folder, "sparse.raw", |out| {
        let mut random = Random(2);
        for at in (0..64 * GIB).step_by(usize::try_from(16 * MIB).unwrap_or(usize::MAX)) {
            out.seek(SeekFrom::Start(at))?;
            out.write_all(&random.block(false))?;
        }
        out.flush()?;
        out.get_ref().set_len(64 * GIB)
    })
}

/// 1 TiB with every L2 table in place and no data.
fn huge(folder: &Path) -> Result<(), Failure> {
    let mut create = run::command("qemu-img");
    create.current_dir(folder).args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]);
    run::call(create.args(["huge.qcow2", "1T"]))
}

fn image_of(folder: &Path, name: &str) -> Result<(), Failure> {
    let mut convert = run::command("qemu-img");
    convert.current_dir(folder).args(["convert", "-f", "raw", "-O", "qcow2"]);
    run::call(convert.arg(format!("{name}.raw")).arg(format!("{name}.qcow2")))
}

/// Three writes of 4 to 64 KiB for every two discards of 64 KiB to 1 MiB, all over the disk.
fn operations(folder: &Path) -> Result<(), Failure> {
    write_whole(folder, "io.txt", |out| {
        let mut random = Random(3);
        for _ in 0..OPERATIONS {
            if random.below(5) < 3 {
                let length = (1 + random.below(16)) * 4 * KIB;
                let offset = random.below((IO_DISK - length) / (4 * KIB)) * 4 * KIB;
                let pattern = 1 + random.below(255);
                writeln!(out, "write -q -P {pattern:#x} {offset} {length}")?;
            } else {
                let length = (1 + random.below(16)) * 64 * KIB;
                let offset = random.below((IO_DISK - length) / (64 * KIB)) * 64 * KIB;
                writeln!(out, "discard -q {offset} {length}")?;
            }
        }
        Ok(())
    })
}

/// What the script makes of an empty disk, by QEMU's hand.
fn after_operations(folder: &Path) -> Result<(), Failure> {
    let partial = "io.qcow2.partial";
    let size = IO_DISK.to_string();
    run::call(run::command("qemu-img").current_dir(folder).args(["create", "-q", "-f", "qcow2", partial, &size]))?;
    let script = File::open(folder.join("io.txt"))?;
    let mut qemu_io = run::command("qemu-io");
    // It prints a prompt for every line.
    qemu_io.current_dir(folder).stdin(script).stdout(std::process::Stdio::null());
    run::call(qemu_io.args(["-f", "qcow2", "-d", "unmap", partial]))?;
    std::fs::rename(folder.join(partial), folder.join("io.qcow2"))?;
    Ok(())
}

/// Writes under another name first, so that what has the name is complete.
fn write_whole(
    folder: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let partial = folder.join(format!("{name}.partial"));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
    fill(&mut out)?;
    out.flush()?;
    std::fs::rename(&partial, folder.join(name))?;
    Ok(())
}

/// xorshift64*: enough to defeat compression, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// 64 KiB of noise, or of words that compress about as text does.
    fn block(&mut self, text: bool) -> Vec<u8> {
        const WORDS: [&str; 8] =
            ["cluster ", "refcount ", "of the ", "discard ", "image\n", "0x0000 ", "snapshot ", "and so on "];
        let length = usize::try_from(64 * KIB).unwrap_or(0);
        let mut block = Vec::with_capacity(length + 16);
        while block.len() < length {
            if text {
                let word = usize::try_from(self.below(8)).unwrap_or(0);
                block.extend_from_slice(WORDS[word].as_bytes());
            } else {
                block.extend_from_slice(&self.next().to_le_bytes());
            }
        }
        block.truncate(length);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_the_same_each_time() {
        assert_eq!(Random(1).block(false).len(), 65_536);
        assert_eq!(Random(1).block(true), Random(1).block(true));
        assert_ne!(Random(1).block(false), Random(2).block(false));
    }
}
