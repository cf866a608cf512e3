//! Images that QEMU made, and a way to write any of their fields wrong on purpose.
//!
//! It reads and writes bytes at offsets by itself: a test that took the core's word for where a field stands could not
//! tell when the core is wrong.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

/// A sound image: options of `qemu-img create`, size, and what is done to it then.
pub(crate) struct Base {
    pub(crate) name: &'static str,
    options: &'static str,
    size: &'static str,
    /// Lines for `qemu-io -c`; those that begin with `qemu-img` are commands, with `F` for the image.
    commands: &'static [&'static str],
}

const DATA: &[&str] = &["write 0 64k", "write 64k 64k", "write 128k 64k", "write 256k 64k"];
const HOLES: &[&str] = &["write 0 64k", "write 128k 300k", "write 900k 10k"];
const SNAPSHOTS: &[&str] = &[
    "write 0 64k",
    "write 64k 64k",
    "qemu-img snapshot -c s1 F",
    "write 128k 64k",
    "write 0 64k",
    "qemu-img snapshot -c s2 F",
];
const MANY: &[&str] = &[
    "write 0 64k",
    "write 128k 300k",
    "write 900k 10k",
    "qemu-img snapshot -c s1 F",
    "write 64k 100k",
    "write 0 3k",
    "qemu-img snapshot -c s2 F",
    "write 700k 64k",
];
const BITMAPS: &[&str] = &[
    "write 0 64k",
    "qemu-img bitmap --add -f qcow2 F b0",
    "qemu-img bitmap --add -g 512 -f qcow2 F b1",
    "write 0 64k",
    "write 128k 64k",
];
const COMPRESSED: &[&str] = &["write -c 0 64k", "write -c 128k 128k", "write 300k 100k"];
const ZEROS: &[&str] = &["write 0 64k", "write 128k 300k", "write -z 130k 40k", "write 8k 2k"];

const fn base(
    name: &'static str,
    options: &'static str,
    size: &'static str,
    commands: &'static [&'static str],
) -> Base {
    Base { name, options, size, commands }
}

pub(crate) const BASES: [Base; 23] = [
    base("plain", "cluster_size=64k", "1M", DATA),
    base("version 2", "compat=0.10", "1M", DATA),
    base(
        "two L2 tables",
        "cluster_size=64k",
        "2G",
        &["write 0 64k", "write 1G 64k", "write 64k 64k", "write 1088M 64k"],
    ),
    base("extended", "extended_l2=on", "1M", DATA),
    base("data file", "data_file=D", "1M", DATA),
    base("extended, data file", "data_file=D,extended_l2=on", "1M", DATA),
    base("snapshots", "cluster_size=64k", "1M", SNAPSHOTS),
    base("snapshots, version 2", "compat=0.10", "1M", SNAPSHOTS),
    base("bitmaps", "cluster_size=64k", "512M", BITMAPS),
    base("bitmaps, 4 KiB", "cluster_size=4k", "16M", BITMAPS),
    base("compressed", "cluster_size=64k", "1M", COMPRESSED),
    base("zstd", "compression_type=zstd", "1M", COMPRESSED),
    base("512 bytes", "cluster_size=512", "1M", MANY),
    base("4 KiB", "cluster_size=4k", "1M", MANY),
    base("1 bit", "refcount_bits=1,cluster_size=4k", "1M", HOLES),
    base("2 bits", "refcount_bits=2,cluster_size=4k", "1M", MANY),
    base("8 bits", "refcount_bits=8,cluster_size=4k", "1M", MANY),
    base("32 bits", "refcount_bits=32,cluster_size=4k", "1M", MANY),
    base("64 bits", "refcount_bits=64,cluster_size=4k", "1M", MANY),
    base("extended, 16 KiB", "extended_l2=on,cluster_size=16k", "1M", ZEROS),
    base("many L2 tables", "cluster_size=512", "32M", &["write 0 64k", "write 10M 64k", "write 31M 10k"]),
    base("preallocated", "cluster_size=512,preallocation=metadata", "2M", &[]),
    base("zeros", "lazy_refcounts=on", "1M", &["write 0 256k", "write -z 64k 64k", "write -zu 128k 64k"]),
];

/// A folder with the images made so far.
pub(crate) struct Bases {
    folder: tempfile::TempDir,
    made: HashMap<&'static str, Vec<u8>>,
}

impl Bases {
    /// `None`, and said aloud, where QEMU is missing.
    pub(crate) fn new() -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
            println!("skipped: qemu-img is missing");
            return None;
        }
        Some(Self { folder: tempfile::tempdir().unwrap(), made: HashMap::new() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of the image with this name.
    pub(crate) fn image(&mut self, name: &str) -> Damaged {
        let base = BASES.iter().find(|base| base.name == name).unwrap_or_else(|| panic!("no image {name}"));
        if !self.made.contains_key(base.name) {
            let bytes = self.make(base);
            self.made.insert(base.name, bytes);
        }
        Damaged::new(self.made[base.name].clone())
    }

    fn make(&self, base: &Base) -> Vec<u8> {
        let path = self.path("base.qcow2").display().to_string();
        let data_file = self.path(&format!("{}.raw", base.name.replace(", ", "-"))).display().to_string();
        let options = base.options.replace('D', &data_file);
        self.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &path, base.size]);
        for line in base.commands {
            match line.strip_prefix("qemu-img ") {
                Some(command) => {
                    let words: Vec<_> = command.split(' ').map(|word| if word == "F" { &path } else { word }).collect();
                    self.run("qemu-img", &words);
                }
                None => self.run("qemu-io", &["-f", "qcow2", "-c", line, &path]),
            }
        }
        std::fs::read(path).unwrap()
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED_FLAG: u64 = 1 << 62;

/// The bytes of an image, to be changed anywhere. Past the end they read as zeros and grow when written.
pub(crate) struct Damaged {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cluster_bits: u32,
}

impl Damaged {
    fn new(bytes: Vec<u8>) -> Self {
        let mut image = Self { bytes, cluster_bits: 0 };
        image.cluster_bits = image.get32(20);
        image
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = usize::try_from(at).ok().and_then(|at| self.bytes.get(at + index)).copied().unwrap_or(0);
        }
        bytes
    }

    pub(crate) fn get32(&self, at: u64) -> u32 {
        u32::from_be_bytes(self.get(at))
    }

    pub(crate) fn get64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.get(at))
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put8(&mut self, at: u64, value: u8) {
        self.put(at, &[value]);
    }

    pub(crate) fn put16(&mut self, at: u64, value: u16) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    /// Replaces the eight bytes by what `change` makes of them.
    pub(crate) fn change(&mut self, at: u64, change: impl FnOnce(u64) -> u64) {
        self.put64(at, change(self.get64(at)));
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn version(&self) -> u32 {
        self.get32(4)
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn l1_size(&self) -> u64 {
        self.get32(36).into()
    }

    /// Where the L1 entry with this index stands.
    pub(crate) fn l1(&self, index: u64) -> u64 {
        self.get64(40) + 8 * index
    }

    pub(crate) fn l2_entry_size(&self) -> u64 {
        if self.version() > 2 && self.get64(72) & 16 != 0 { 16 } else { 8 }
    }

    /// Where the L2 entry of this guest cluster stands.
    pub(crate) fn l2(&self, guest_cluster: u64) -> u64 {
        let entries = self.cluster_size() / self.l2_entry_size();
        let table = self.get64(self.l1(guest_cluster / entries)) & 0x00ff_ffff_ffff_fe00;
        table + guest_cluster % entries * self.l2_entry_size()
    }

    /// Where the refcount table entry with this index stands.
    pub(crate) fn refcount_table(&self, index: u64) -> u64 {
        self.get64(48) + 8 * index
    }

    /// Writes a refcount of 16 bits that is in the first block.
    pub(crate) fn set_refcount(&mut self, cluster: u64, refcount: u16) {
        let block = self.get64(self.refcount_table(0));
        self.put16(block + 2 * cluster, refcount);
    }

    /// Where the snapshot table stands.
    pub(crate) fn snapshots(&self) -> u64 {
        self.get64(64)
    }

    /// Where the bitmaps extension stands (its kind).
    pub(crate) fn bitmaps_extension(&self) -> u64 {
        let mut at = 112;
        while self.get32(at) != 0x2385_2875 {
            assert_ne!(self.get32(at), 0, "no bitmaps extension");
            at += 8 + u64::from(self.get32(at + 4)).next_multiple_of(8);
        }
        at
    }

    /// Where the bitmap directory stands.
    pub(crate) fn bitmap_directory(&self) -> u64 {
        self.get64(self.bitmaps_extension() + 24)
    }

    /// Where the table of a bitmap stands; both names of the images have two bytes, so entries have 32.
    pub(crate) fn bitmap_table(&self, index: u64) -> u64 {
        self.get64(self.bitmap_directory() + 32 * index)
    }
}
