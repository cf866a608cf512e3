//! `convert` and `compare` against QEMU's own: same contents, same status of every byte, clean images.
#![cfg(target_os = "linux")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use qcowkit::codec::NativeCodecs;
use qcowkit::compare::{CompareError, Comparison, compare};
use qcowkit::convert::{ConvertError, ConvertOptions, ConvertReport, TargetState, convert, total_size};
use qcowkit::disk::Disk;
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::open::{BackingPolicy, OpenRequest, open};
use qcowkit_core::codec::CompressionType;
use qcowkit_core::image::{CreateOptions, Image, LayerFormat, OpenOptions, Preallocation};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// `None`, said aloud, where QEMU is not installed.
    fn new() -> Option<Self> {
        for tool in ["qemu-img", "qemu-io"] {
            if Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err() {
                println!("skipped: {tool} is not installed");
                return None;
            }
        }
        Some(Self { folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `qemu-img` in the folder; gives what it says.
    fn qemu_img(&self, line: &str) -> String {
        let output = self.run("qemu-img", line);
        assert!(output.status.success(), "qemu-img {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, tool: &str, line: &str) -> Output {
        Command::new(tool).args(line.split_whitespace()).current_dir(self.folder.path()).output().unwrap()
    }

    fn qemu_io(&self, format: &str, image: &str, commands: &[String]) {
        let mut call = Command::new("qemu-io");
        call.current_dir(self.folder.path()).args(["-f", format]);
        for command in commands {
            call.args(["-c", command]);
        }
        let output = call.arg(image).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Fills an image with runs of data, zeros as data, and zeros without data, all of odd lengths.
    fn scatter(&self, format: &str, image: &str, size: u64, seed: u64) {
        let mut random = Random(seed);
        let commands: Vec<String> = (0..60)
            .map(|_| {
                let offset = random.below(size / 512) * 512;
                let most = if random.below(4) == 0 { size } else { 128 * KIB };
                let length = ((random.below(most / 512) + 1) * 512).min(size - offset).min(MIB);
                match random.below(6) {
                    0 => format!("write -z {offset} {length}"),
                    1 => format!("write -z -u {offset} {length}"),
                    2 => format!("write -P 0 {offset} {length}"),
                    _ => format!("write -P {} {offset} {length}", random.below(255) + 1),
                }
            })
            .collect();
        self.qemu_io(format, image, &commands);
    }

    fn disk(&self, name: &str, format: LayerFormat) -> Disk {
        open(self.path(name), &request(format, true)).unwrap()
    }

    /// A new target, opened with its chain.
    fn target(&self, name: &str, size: u64, format: LayerFormat, options: &CreateOptions) -> Disk {
        let storage = FileStorage::open(self.path(name), FileAccess::Create).unwrap();
        match format {
            LayerFormat::Raw => Disk::create_raw(storage, size, Preallocation::Off).unwrap(),
            LayerFormat::Qcow2 => {
                Image::create(storage, size, options).unwrap().close().unwrap();
                open(self.path(name), &request(format, false)).unwrap()
            }
        }
    }

    /// Converts with qcowkit.
    fn convert(&self, from: (&str, LayerFormat), to: &str, format: LayerFormat, how: &How) -> ConvertReport {
        let mut sources = [self.disk(from.0, from.1)];
        let mut target = self.target(to, total_size(&sources).unwrap(), format, &how.create);
        let mut last = 0;
        let report = convert(&mut sources, &mut target, &how.options, &mut |done, total| {
            assert!(last <= done && done <= total);
            last = done;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(last, sources[0].virtual_size());
        report
    }

    fn assert_same(&self, a: &str, b: &str) {
        let output = self.run("qemu-img", &format!("compare {a} {b}"));
        assert!(output.status.success(), "{a} {b}: {}", String::from_utf8_lossy(&output.stdout));
    }

    fn assert_clean(&self, image: &str) {
        let output = self.run("qemu-img", &format!("check -f qcow2 {image}"));
        assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// What each byte is: start, end, depth, and the flags that `qemu-img map` knows.
    fn map(&self, format: &str, image: &str) -> Vec<(u64, u64, String)> {
        let json = self.qemu_img(&format!("map --output=json -f {format} {image}"));
        let list: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        let mut runs: Vec<(u64, u64, String)> = Vec::new();
        for extent in list {
            let (start, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
            // QEMU looks for holes in data where it takes the image for one with preallocated metadata; which it guesses
            // from the space that the file takes at the moment.
            let zero = extent["zero"] == true && extent["data"] == false;
            let status = format!(
                "depth {} present {} zero {zero} data {} compressed {}",
                extent["depth"], extent["present"], extent["data"], extent["compressed"]
            );
            match runs.last_mut() {
                Some(last) if last.2 == status => last.1 = start + length,
                _ => runs.push((start, start + length, status)),
            }
        }
        runs
    }
}

fn request(format: LayerFormat, read_only: bool) -> OpenRequest {
    let options = OpenOptions { read_only, codecs: Arc::new(NativeCodecs), ..OpenOptions::default() };
    OpenRequest { format: Some(format), backing: BackingPolicy::Follow, options, ..OpenRequest::default() }
}

/// How a target is made and filled.
#[derive(Default, Clone)]
struct How {
    create: CreateOptions,
    options: ConvertOptions,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

const QCOW2: LayerFormat = LayerFormat::Qcow2;
const RAW: LayerFormat = LayerFormat::Raw;

fn quiet(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn every_cluster_size_both_ways() {
    let Some(lab) = Lab::new() else { return };
    // Sizes that end within a cluster, a block and a window.
    for (seed, size) in [(1, 9 * MIB + 512), (2, 3 * MIB + 70 * KIB), (3, 11 * KIB)] {
        lab.qemu_img(&format!("create -f raw source.raw {size}"));
        lab.scatter("raw", "source.raw", size, seed);
        for bits in 9..=21 {
            let create = CreateOptions { cluster_size: 1 << bits, ..CreateOptions::default() };
            let how = How { create, ..How::default() };
            lab.convert(("source.raw", RAW), "ours.qcow2", QCOW2, &how);
            lab.qemu_img(&format!("convert -f raw -O qcow2 -o cluster_size={} source.raw theirs.qcow2", 1 << bits));
            lab.assert_clean("ours.qcow2");
            lab.assert_same("source.raw", "ours.qcow2");
            assert_eq!(lab.map("qcow2", "ours.qcow2"), lab.map("qcow2", "theirs.qcow2"), "{size} {bits}");

            lab.convert(("theirs.qcow2", QCOW2), "ours.raw", RAW, &How::default());
            assert_eq!(std::fs::read(lab.path("ours.raw")).unwrap(), std::fs::read(lab.path("source.raw")).unwrap());
        }
    }
}

#[test]
fn from_each_kind_of_cluster() {
    let Some(lab) = Lab::new() else { return };
    let size = 8 * MIB + 1536;
    for (seed, make) in [(1, ""), (2, "-o cluster_size=512"), (3, "-o extended_l2=on"), (4, "-o compat=0.10")] {
        lab.qemu_img(&format!("create -f qcow2 {make} source.qcow2 {size}"));
        lab.scatter("qcow2", "source.qcow2", size, seed);
        for (target, create) in [
            ("", CreateOptions::default()),
            ("-o cluster_size=4k", CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::default() }),
            ("-o extended_l2=on", CreateOptions { extended_l2: true, ..CreateOptions::default() }),
            ("-o compat=0.10", CreateOptions { version: 2, ..CreateOptions::default() }),
        ] {
            let how = How { create, ..How::default() };
            lab.convert(("source.qcow2", QCOW2), "ours.qcow2", QCOW2, &how);
            lab.qemu_img(&format!("convert -O qcow2 {target} source.qcow2 theirs.qcow2"));
            lab.assert_clean("ours.qcow2");
            lab.assert_same("source.qcow2", "ours.qcow2");
            assert_eq!(lab.map("qcow2", "ours.qcow2"), lab.map("qcow2", "theirs.qcow2"), "{make} {target}");
        }
        lab.convert(("source.qcow2", QCOW2), "ours.raw", RAW, &How::default());
        lab.qemu_img("convert -O raw source.qcow2 theirs.raw");
        assert_eq!(std::fs::read(lab.path("ours.raw")).unwrap(), std::fs::read(lab.path("theirs.raw")).unwrap());
        assert!(blocks(&lab.path("ours.raw")) <= blocks(&lab.path("theirs.raw")));
    }
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks()
}

#[test]
fn packed_clusters() {
    let Some(lab) = Lab::new() else { return };
    let size = 5 * MIB + 12 * KIB;
    lab.qemu_img(&format!("create -f raw source.raw {size}"));
    lab.scatter("raw", "source.raw", size, 7);
    // Some clusters that do not shrink.
    let mut random = Random(3);
    let noise: Vec<u8> = (0..300 * KIB).map(|_| random.below(256) as u8).collect();
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(lab.path("source.raw")).unwrap(),
        &noise,
        MIB + 4096,
    )
    .unwrap();
    for (method, name) in [(CompressionType::Zlib, "zlib"), (CompressionType::Zstd, "zstd")] {
        for (cluster_size, extended_l2) in [(4 * KIB, false), (64 * KIB, false), (64 * KIB, true), (2 * MIB, false)] {
            let create = CreateOptions { compression: method, cluster_size, extended_l2, ..CreateOptions::default() };
            let how = How { create, options: ConvertOptions { compress: true, ..ConvertOptions::default() } };
            let report = lab.convert(("source.raw", RAW), "ours.qcow2", QCOW2, &how);
            assert!(report.packed_bytes > 0 && report.packed_bytes < report.compressed_bytes, "{report:?}");
            assert!(report.compressed_bytes <= report.data_bytes);
            let extended = if extended_l2 { "on" } else { "off" };
            lab.qemu_img(&format!(
                "convert -c -O qcow2 -o compression_type={name},cluster_size={cluster_size},extended_l2={extended} \
                 source.raw theirs.qcow2"
            ));
            lab.assert_clean("ours.qcow2");
            lab.assert_same("source.raw", "ours.qcow2");
            assert_eq!(lab.map("qcow2", "ours.qcow2"), lab.map("qcow2", "theirs.qcow2"), "{name} {cluster_size}");
            lab.convert(("theirs.qcow2", QCOW2), "back.raw", RAW, &How::default());
            assert_eq!(std::fs::read(lab.path("back.raw")).unwrap(), std::fs::read(lab.path("source.raw")).unwrap());
        }
    }
}

#[test]
fn equal_disks_and_others() {
    let Some(lab) = Lab::new() else { return };
    lab.qemu_img("create -f qcow2 a.qcow2 3M");
    lab.scatter("qcow2", "a.qcow2", 2 * MIB, 5);
    lab.qemu_img("convert -O raw a.qcow2 a.raw");
    lab.qemu_img("convert -c -O qcow2 a.qcow2 packed.qcow2");
    lab.qemu_img("create -f qcow2 -b a.qcow2 -F qcow2 longer.qcow2 5M");
    lab.qemu_img("create -f qcow2 -b a.qcow2 -F qcow2 zeros.qcow2 5M");
    lab.qemu_io("qcow2", "zeros.qcow2", &["write -P 0 4M 64k".into()]);
    lab.qemu_img("create -f qcow2 -b a.qcow2 -F qcow2 tail.qcow2 5M");
    lab.qemu_io("qcow2", "tail.qcow2", &["write -P 1 4300000 10".into()]);
    lab.qemu_img("create -f qcow2 -b a.qcow2 -F qcow2 near.qcow2");
    lab.qemu_io("qcow2", "near.qcow2", &["write -P 1 3000700 10".into(), "write -P 1 3100000 10".into()]);
    let names = ["a.qcow2", "a.raw", "packed.qcow2", "longer.qcow2", "zeros.qcow2", "tail.qcow2", "near.qcow2"];
    for one in names {
        for two in names {
            let format = |name: &str| if name.ends_with("raw") { RAW } else { QCOW2 };
            let (mut a, mut b) = (lab.disk(one, format(one)), lab.disk(two, format(two)));
            let sizes_differ = a.virtual_size() != b.virtual_size();
            let mut last = 0;
            let found = compare(&mut a, &mut b, false, &mut |done, _| {
                last = done;
                ControlFlow::Continue(())
            })
            .unwrap();
            let output = lab.run("qemu-img", &format!("compare {one} {two}"));
            let theirs = String::from_utf8(output.stdout).unwrap();
            let ours = match found {
                Comparison::Identical => {
                    assert_eq!(last, a.virtual_size().max(b.virtual_size()));
                    "Images are identical.".to_owned()
                }
                Comparison::Content { offset } => format!("Content mismatch at offset {offset}!"),
                other => panic!("{other:?}"),
            };
            assert_eq!(theirs.lines().last(), Some(ours.as_str()), "{one} {two}");
            assert_eq!(output.status.code(), Some(i32::from(found != Comparison::Identical)));

            let strict = compare(&mut a, &mut b, true, &mut quiet).unwrap();
            let theirs = lab.run("qemu-img", &format!("compare -s {one} {two}"));
            assert_eq!(strict == Comparison::Identical, theirs.status.success(), "{one} {two} {strict:?}");
            assert_eq!(strict == Comparison::Size, sizes_differ);
        }
    }
    let (mut a, mut b) = (lab.disk("a.qcow2", QCOW2), lab.disk("a.raw", RAW));
    let stopped = compare(&mut a, &mut b, false, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(CompareError::Cancelled)));
}

#[test]
fn refusals_write_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.qemu_img("create -f raw source.raw 1M");
    lab.qemu_img("create -f raw small.raw 512k");
    lab.qemu_img("create -f qcow2 -b source.raw -F raw overlay.qcow2");
    let refused = |target: &str, format, options: ConvertOptions| {
        let before = std::fs::read(lab.path(target)).unwrap();
        let mut sources = [lab.disk("source.raw", RAW)];
        let mut target_disk = open(lab.path(target), &request(format, false)).unwrap();
        let error = convert(&mut sources, &mut target_disk, &options, &mut quiet).unwrap_err();
        assert_eq!(std::fs::read(lab.path(target)).unwrap(), before);
        error
    };
    let options = ConvertOptions::default;
    assert!(matches!(
        refused("small.raw", RAW, options()),
        ConvertError::TargetTooSmall { target: 524_288, sources: 1_048_576 }
    ));
    let packed = ConvertOptions { compress: true, ..options() };
    for refusal in [
        refused("overlay.qcow2", QCOW2, ConvertOptions { target: TargetState::Zeroed, ..options() }),
        refused("overlay.qcow2", QCOW2, ConvertOptions { out_of_order: true, ..packed.clone() }),
        refused("overlay.qcow2", QCOW2, ConvertOptions { workers: 0, ..options() }),
    ] {
        assert!(matches!(refusal, ConvertError::Refused(_)), "{refusal:?}");
    }
    std::fs::copy(lab.path("source.raw"), lab.path("other.raw")).unwrap();
    assert!(matches!(refused("other.raw", RAW, packed), ConvertError::Refused(_)));
    let backing = ConvertOptions { backing: true, ..options() };
    assert!(matches!(refused("other.raw", RAW, backing), ConvertError::Refused(_)));
}

#[test]
fn overlays_get_what_the_top_layer_has() {
    let Some(lab) = Lab::new() else { return };
    // Backing files shorter than the source, of the same length, and longer.
    for (seed, base_size) in [(1, 3 * MIB + 5 * KIB), (2, 6 * MIB), (3, 7 * MIB)] {
        lab.qemu_img(&format!("create -f qcow2 base.qcow2 {base_size}"));
        lab.scatter("qcow2", "base.qcow2", base_size, seed + 10);
        // The larger clusters of the target are filled from both layers.
        let cluster_size = if seed == 2 { "4k" } else { "64k" };
        lab.qemu_img(&format!("create -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size={cluster_size} source.qcow2 6M"));
        lab.scatter("qcow2", "source.qcow2", 6 * MIB, seed);
        for (compress, sparse_size) in [(false, 4096), (true, 4096), (false, 0)] {
            let create = CreateOptions {
                backing_file: Some("base.qcow2".into()),
                backing_format: Some("qcow2".into()),
                ..CreateOptions::default()
            };
            let options = ConvertOptions { compress, sparse_size, backing: true, ..ConvertOptions::default() };
            lab.convert(("source.qcow2", QCOW2), "ours.qcow2", QCOW2, &How { create, options });
            let flags = format!("{} -S {sparse_size}", if compress { "-c" } else { "" });
            lab.qemu_img(&format!("convert {flags} -O qcow2 -B base.qcow2 -F qcow2 source.qcow2 theirs.qcow2"));
            lab.assert_clean("ours.qcow2");
            lab.assert_same("source.qcow2", "ours.qcow2");
            if cluster_size == "64k" {
                // Else a cluster of zeros out of both layers may be data in one and zero in the other.
                assert_eq!(lab.map("qcow2", "ours.qcow2"), lab.map("qcow2", "theirs.qcow2"), "{seed} {flags}");
            }
        }
    }
}

#[test]
fn into_images_that_exist() {
    let Some(lab) = Lab::new() else { return };
    let size = 5 * MIB + 3 * KIB;
    lab.qemu_img(&format!("create -f qcow2 source.qcow2 {size}"));
    lab.scatter("qcow2", "source.qcow2", size, 21);
    lab.qemu_img("create -f raw base.raw 6M");
    lab.qemu_io("raw", "base.raw", &["write -P 77 0 6M".into()]);
    for (number, make) in [
        "-f qcow2",
        "-f qcow2 -o cluster_size=2M",
        "-f qcow2 -o extended_l2=on",
        "-f qcow2 -b base.raw -F raw",
        "-f raw",
    ]
    .into_iter()
    .enumerate()
    {
        let format = if make == "-f raw" { RAW } else { QCOW2 };
        let name = if format == RAW { "raw" } else { "qcow2" };
        lab.qemu_img(&format!("create {make} ours 8M"));
        lab.scatter(name, "ours", 8 * MIB, 31 + number as u64);
        std::fs::copy(lab.path("ours"), lab.path("theirs")).unwrap();
        for out_of_order in [false, true] {
            let options = ConvertOptions { target: TargetState::Existing, out_of_order, ..ConvertOptions::default() };
            let mut sources = [lab.disk("source.qcow2", QCOW2)];
            let mut target = open(lab.path("ours"), &request(format, false)).unwrap();
            let report = convert(&mut sources, &mut target, &options, &mut quiet).unwrap();
            assert_eq!(report.data_bytes + report.zero_bytes, report.total_bytes);
        }
        lab.qemu_img(&format!("convert -n -O {name} source.qcow2 theirs"));
        if format == QCOW2 {
            lab.assert_clean("ours");
        }
        let output = lab.run("qemu-img", &format!("compare -f {name} -F {name} ours theirs"));
        assert!(output.status.success(), "{make}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn several_sources_and_an_end_on_request() {
    let Some(lab) = Lab::new() else { return };
    lab.qemu_img("create -f qcow2 a.qcow2 8389120");
    lab.scatter("qcow2", "a.qcow2", 8_389_120, 1);
    lab.qemu_img("create -f raw b.raw 3M");
    lab.scatter("raw", "b.raw", 3 * MIB, 2);
    let sources = || [lab.disk("a.qcow2", QCOW2), lab.disk("b.raw", RAW), lab.disk("a.qcow2", QCOW2)];
    let size = total_size(&sources()).unwrap();
    for workers in [1, 16] {
        let mut target = lab.target("ours.qcow2", size, QCOW2, &CreateOptions::default());
        let options = ConvertOptions { workers, ..ConvertOptions::default() };
        convert(&mut sources(), &mut target, &options, &mut quiet).unwrap();
        drop(target);
        lab.qemu_img("convert -O qcow2 a.qcow2 b.raw a.qcow2 theirs.qcow2");
        lab.assert_clean("ours.qcow2");
        lab.assert_same("ours.qcow2", "theirs.qcow2");
        assert_eq!(lab.map("qcow2", "ours.qcow2"), lab.map("qcow2", "theirs.qcow2"));
    }
    let mut target = lab.target("part.qcow2", size, QCOW2, &CreateOptions::default());
    let stopped = convert(&mut sources(), &mut target, &ConvertOptions::default(), &mut |done, _| {
        if done > 4 * MIB { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ConvertError::Cancelled)));
    drop(target);
    lab.assert_clean("part.qcow2");
}
