//! The same cuts of what QEMU writes: `qemu-io` on an image whose writes the block driver `blklogwrites` records.
//!
//! That driver writes a log in the format of the kernel's `dm-log-writes` (documented beside `dm-log-writes.rst`): a sector
//! that describes the log, and then for each request a sector that describes it, followed by its bytes. All numbers are
//! little-endian. Each command is waited for, so what the log holds then is what the command wrote, and a flush that came
//! back is a promise.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use qcowkit_core::image::{CreateOptions, OpenOptions};
use qcowkit_core::storage::{MemoryStorage, StorageEvent, ZeroMode, replay};

use super::Rng;
use super::cuts::check_cuts;
use super::outcome::Outcome;
use super::session::{Change, Flushed, SECTOR, Scenario, Session};

/// Bytes of the disk.
const SIZE: u64 = 400_384;
const PROMPT: &[u8] = b"qemu-io> ";
/// `rhswfsj`, as the kernel has it.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// A session of QEMU's, and judged states of it.
///
/// # Panics
/// Without `qemu-img` and a `qemu-io` with that driver; when QEMU fails, or leaves something else than what its log says.
#[must_use]
pub fn trial(seed: u64, budget: usize) -> Outcome {
    let folder = std::env::temp_dir().join(format!("qcowkit-trial-{}-{seed}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let recorded = record(seed, &folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let (scenario, session) = recorded.unwrap();
    check_cuts(&scenario, &session, seed, budget)
}

fn record(seed: u64, folder: &Path) -> io::Result<(Scenario, Session)> {
    let mut rng = Rng::new(seed);
    let scenario = scenario(seed);
    let image = folder.join("image.qcow2");
    let log = folder.join("log");
    create(&image, &scenario)?;
    File::create(&log)?;
    let base = std::fs::read(&image)?;
    let mut qemu = Qemu::start(&image, &log, &scenario)?;
    let mut session = Session { base, ..Session::default() };
    let mut model = vec![0u8; SIZE as usize];
    session.flushed.push(Flushed { events: 0, content: model.clone() });
    for step in 0..scenario.steps {
        one_step(&mut qemu, &mut session, &mut model, &scenario, &mut rng, step as u8 % 120 + 1)?;
    }
    qemu.end()?;
    qemu.read_log()?;
    session.events = std::mem::take(&mut qemu.events);
    let replayed = MemoryStorage::from_bytes(&session.base);
    replay(&session.events, &replayed).map_err(io::Error::other)?;
    same_bytes(&replayed.to_vec().map_err(io::Error::other)?, &std::fs::read(&image)?)?;
    Ok((scenario, session))
}

/// What QEMU left is what its log says; a file may be longer by zeros that nobody wrote.
fn same_bytes(replayed: &[u8], file: &[u8]) -> io::Result<()> {
    let common = replayed.len().min(file.len());
    let differs = replayed[..common].iter().zip(file).position(|(a, b)| a != b);
    let rest = replayed[common..].iter().chain(&file[common..]).any(|byte| *byte != 0);
    match differs {
        Some(at) => Err(io::Error::other(format!("the log says something else than the file at {at:#x}"))),
        None if rest => Err(io::Error::other("the log and the file have other lengths")),
        None => Ok(()),
    }
}

fn scenario(seed: u64) -> Scenario {
    let kinds = [(3, 16, false), (3, 64, false), (2, 16, false), (3, 16, true)];
    let (version, refcount_bits, extended_l2) = kinds[(seed % 4) as usize];
    let cluster_size = if extended_l2 { 16 << 10 } else { 512 << (seed / 4 % 3) };
    Scenario {
        name: "qemu",
        create: CreateOptions { version, cluster_size, refcount_bits, extended_l2, ..CreateOptions::default() },
        open: OpenOptions::default(),
        size: SIZE,
        backing: 0,
        snapshot: false,
        snapshots: false,
        resize: false,
        steps: 60,
        preallocated: 0,
    }
}

fn create(image: &Path, scenario: &Scenario) -> io::Result<()> {
    let CreateOptions { version, cluster_size, refcount_bits, extended_l2, .. } = scenario.create;
    let compat = if version < 3 { "0.10" } else { "1.1" };
    let mut options = format!("compat={compat},cluster_size={cluster_size}");
    if version > 2 {
        let extended = if extended_l2 { "on" } else { "off" };
        options.push_str(&format!(",refcount_bits={refcount_bits},extended_l2={extended}"));
    }
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-o", &options]).arg(image).arg(SIZE.to_string());
    if command.status()?.success() { Ok(()) } else { Err(io::Error::other("qemu-img create failed")) }
}

/// One command, and what it makes of the disk.
fn one_step(
    qemu: &mut Qemu,
    session: &mut Session,
    model: &mut [u8],
    scenario: &Scenario,
    rng: &mut Rng,
    stamp: u8,
) -> io::Result<()> {
    let cluster = scenario.create.cluster_size;
    let unit = [1, 512, cluster][rng.below(3) as usize];
    let offset = rng.below(SIZE) / unit * unit;
    let length = (rng.below(cluster * 4) + 1).next_multiple_of(unit).min(SIZE - offset);
    let (begun, whole) = (qemu.events.len(), offset / cluster * cluster);
    let (what, command, from, to, byte) = match rng.below(12) {
        0..=4 => ("write", format!("write -P {stamp} {offset} {length}"), offset, offset + length, stamp),
        5 => {
            let length = cluster.min(SIZE - whole);
            ("compressed write", format!("write -c -P {stamp} {whole} {length}"), whole, whole + length, stamp)
        }
        6 => {
            let unmap = if rng.one_in(2) { "-u " } else { "" };
            ("write zeroes", format!("write -z {unmap}{offset} {length}"), offset, offset + length, 0)
        }
        7..=9 => {
            let end = if offset + length == SIZE { SIZE } else { (offset + length) / cluster * cluster };
            let from = offset.next_multiple_of(cluster).min(SIZE);
            ("discard", format!("discard {offset} {length}"), from, end.max(from), 0)
        }
        _ => {
            qemu.run("flush")?;
            session.flushed.push(Flushed { events: qemu.events.len(), content: model.to_vec() });
            *session.operations.entry("flush").or_default() += 1;
            return Ok(());
        }
    };
    match qemu.run(&command) {
        // QEMU packs no cluster that has a place of its own already, and says so by this error.
        Err(error) if what == "compressed write" && error.to_string().contains("Input/output error") => return Ok(()),
        done => done?,
    }
    *session.operations.entry(what).or_default() += 1;
    model[from as usize..to as usize].fill(byte);
    for sector in from as usize / SECTOR..(to as usize).div_ceil(SECTOR) {
        let start = sector * SECTOR;
        session.changes.push(Change {
            events: begun,
            flushes: session.flushed.len(),
            sector,
            value: model[start..start + SECTOR].to_vec(),
            size: model.len(),
            partial: (from as usize) > start || (to as usize) < start + SECTOR,
        });
    }
    Ok(())
}

/// A `qemu-io` that waits for commands, and the events that its log has told so far.
struct Qemu {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    log: PathBuf,
    /// Bytes of the log that are read.
    read: u64,
    events: Vec<StorageEvent>,
}

impl Qemu {
    fn start(image: &Path, log: &Path, scenario: &Scenario) -> io::Result<Self> {
        // What nobody flushed is not on the disk; and no discard is held back.
        let no_unref = if scenario.create.version > 2 && scenario.create.cluster_size == 1024 { "on" } else { "off" };
        let options = format!(
            "driver=qcow2,discard=unmap,discard-no-unref={no_unref},cache.direct=off,\
             file.driver=blklogwrites,file.discard=unmap,\
             file.file.driver=file,file.file.discard=unmap,file.file.filename={},\
             file.log.driver=file,file.log.filename={},file.log-sector-size={SECTOR}",
            image.display(),
            log.display()
        );
        let mut command = Command::new("qemu-io");
        command.args(["-t", "writeback", "--image-opts", &options]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let mut qemu = Self { child, stdin, stdout, log: log.into(), read: SECTOR as u64, events: Vec::new() };
        qemu.wait_for_prompt()?;
        qemu.read_log()?;
        Ok(qemu)
    }

    /// Carries a command out, and reads what it wrote.
    fn run(&mut self, command: &str) -> io::Result<()> {
        writeln!(self.stdin, "{command}")?;
        self.stdin.flush()?;
        let answer = self.wait_for_prompt()?;
        if answer.contains("failed") || answer.contains("rror") {
            return Err(io::Error::other(format!("{command}: {answer}")));
        }
        self.read_log()
    }

    fn end(&mut self) -> io::Result<()> {
        // Closing stores what is held back; that is not what a cut meets.
        writeln!(self.stdin, "quit")?;
        self.stdin.flush()?;
        let status = self.child.wait()?;
        // 1 says that some command failed; each was looked at.
        if matches!(status.code(), Some(0 | 1)) {
            Ok(())
        } else {
            Err(io::Error::other(format!("qemu-io ended with {status}")))
        }
    }

    fn wait_for_prompt(&mut self) -> io::Result<String> {
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(PROMPT) {
            if self.stdout.read(&mut byte)? == 0 {
                let text = String::from_utf8_lossy(&answer).into_owned();
                return Err(io::Error::other(format!("qemu-io has ended: {text}")));
            }
            answer.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Reads the entries that are new. An entry is complete when its bytes are there.
    fn read_log(&mut self) -> io::Result<()> {
        let file = File::open(&self.log)?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok(());
        }
        let mut super_block = [0; 8];
        file.read_exact_at(&mut super_block, 0)?;
        if u64::from_le_bytes(super_block) != MAGIC {
            return Err(io::Error::other("no log of writes"));
        }
        while self.read + SECTOR as u64 <= length {
            let mut fields = [0; 32];
            file.read_exact_at(&mut fields, self.read)?;
            let field = |n: usize| u64::from_le_bytes(fields[n * 8..n * 8 + 8].try_into().unwrap_or_default());
            let (offset, bytes, flags) = (field(0) * SECTOR as u64, field(1) * SECTOR as u64, field(2));
            self.read += SECTOR as u64;
            if flags & DISCARD != 0 {
                self.events.push(StorageEvent::WriteZeroes { offset, length: bytes, mode: ZeroMode::MayUnmap });
            } else if bytes > 0 {
                let mut data = vec![0; bytes as usize];
                file.read_exact_at(&mut data, self.read)?;
                self.read += bytes;
                self.events.push(StorageEvent::Write { offset, data: data.into() });
            }
            if flags & FLUSH != 0 {
                self.events.push(StorageEvent::Barrier);
            }
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
