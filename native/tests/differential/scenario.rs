//! Random images: every option that an image can have so far, and how it is opened.

use std::path::Path;
use std::sync::Arc;

use qcowkit::codec::NativeCodecs;
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit::keys::SystemRandom;
use qcowkit_core::codec::CompressionType;
use qcowkit_core::crypto::{CipherAlgorithm, CipherSpec, HashAlgorithm, LuksFormat, Secret};
use qcowkit_core::image::{CreateOptions, DetectZeroes, Image, OpenOptions, Preallocation};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Pass, Unref};

use crate::common::{Folder, KEY, Rng, key_object, qemu_create, qemu_io, succeed};
use crate::operations::{Disk, Operation, Patterns};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    None,
    Raw,
    Qcow2,
    Version2,
    /// A qcow2 image over another one.
    Chain,
}

/// An image and how it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) create: CreateOptions,
    pub(crate) size: u64,
    pub(crate) backing: Backing,
    pub(crate) backing_size: u64,
    /// An external data file; true: raw.
    pub(crate) data_file: Option<bool>,
    pub(crate) bitmap: bool,
    pub(crate) snapshots: bool,
    pub(crate) no_unref: bool,
    pub(crate) pass_request: bool,
    pub(crate) detect_zeroes: DetectZeroes,
    pub(crate) metadata: MetadataOptions,
    /// Our image is made by qcowkit, not by qemu-img.
    pub(crate) made_by_us: bool,
}

impl Scenario {
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let version = if rng.one_in(5) { 2 } else { 3 };
        let cluster_size = 512u64 << rng.below(13);
        let extended_l2 = version == 3 && cluster_size >= 16 << 10 && rng.one_in(3);
        let clusters = (32 << 20 >> cluster_size.trailing_zeros()).clamp(6, 400u64);
        let size = ((1 + rng.below(clusters)) * cluster_size + rng.choose(&[0, 0, 512, cluster_size / 2]))
            .next_multiple_of(512);
        let data_file = (version == 3 && rng.one_in(8)).then(|| rng.one_in(2));
        let backing = match data_file {
            Some(true) => Backing::None,
            _ => rng.choose(&[
                Backing::None,
                Backing::None,
                Backing::Raw,
                Backing::Qcow2,
                Backing::Version2,
                Backing::Chain,
            ]),
        };
        let prealloc = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
        let preallocation = match backing {
            Backing::None if rng.one_in(4) => rng.choose(&prealloc),
            _ if extended_l2 && data_file.is_none() && rng.one_in(4) => rng.choose(&prealloc),
            _ => Preallocation::Off,
        };
        let compression = if version == 3 && rng.one_in(3) { CompressionType::Zstd } else { CompressionType::Zlib };
        let create = CreateOptions {
            version,
            cluster_size,
            refcount_bits: if version == 3 { 1 << rng.below(7) } else { 16 },
            extended_l2,
            lazy_refcounts: version == 3 && rng.one_in(5),
            compression,
            backing_file: (backing != Backing::None).then(|| "base".to_owned()),
            data_file: None,
            data_file_raw: false,
            backing_format: (backing != Backing::None)
                .then(|| if backing == Backing::Raw { "raw" } else { "qcow2" }.to_owned()),
            preallocation,
            encryption: None,
        };
        let backing_size = rng.choose(&[size / 2, size, size * 3 / 2]).next_multiple_of(512).max(512);
        let slice = 512u64 << rng.below(13);
        let cache = rng.choose(&[0, 8 << 10, 32 << 20]);
        let other = [AllocationPolicy::Qemu, AllocationPolicy::FillHoles, AllocationPolicy::Near];
        // Half of the images are laid out as QEMU lays them out.
        let (allocation, quarantine_bytes) = if rng.one_in(2) {
            (AllocationPolicy::Qemu, 0)
        } else {
            (rng.choose(&other), rng.choose(&[0, 1 << 20, 64 << 20]))
        };
        let metadata = MetadataOptions {
            slice_bytes: slice.min(cluster_size),
            cache_bytes: cache,
            allocation,
            quarantine_bytes,
            pass_discard_other: rng.one_in(2),
        };
        let detect = [DetectZeroes::Off, DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap];
        let made = Self {
            seed,
            size,
            backing,
            backing_size,
            data_file,
            bitmap: version == 3 && rng.one_in(6),
            // One bit cannot count a second user.
            snapshots: data_file.is_none() && create.refcount_bits > 1 && rng.one_in(3),
            no_unref: version == 3 && rng.one_in(3),
            pass_request: !rng.one_in(4),
            detect_zeroes: rng.choose(&detect),
            metadata,
            made_by_us: data_file.is_none() && rng.one_in(2),
            create,
        };
        // Without a random number, so that the other seeds stay what they are.
        if seed % 4 == 1 && !made.bitmap { made.encrypted() } else { made }
    }

    /// The same with LUKS. What QEMU preallocates reads as garbage then.
    fn encrypted(mut self) -> Self {
        let spec = CipherSpec { algorithm: CipherAlgorithm::Aes128, ..CipherSpec::default() };
        let hash = HashAlgorithm::Sha256;
        let format = LuksFormat { spec, hash, slot_iterations: 1000, master_key_iterations: 1000 };
        self.create.encryption = Some(Arc::new(format.make(&Secret::from(KEY), &mut SystemRandom).unwrap()));
        self.create.preallocation = Preallocation::Off;
        self
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk {
            size: self.size,
            cluster: self.create.cluster_size,
            no_discard: self.create.version == 2 && self.backing != Backing::None,
            // Where few users can be counted, clusters full of compressed data could not be shared with snapshots.
            may_compress: self.data_file.is_none()
                && self.create.encryption.is_none()
                && (!self.snapshots || self.create.refcount_bits >= 16),
        }
    }

    /// Whether what the host holds can be compared: the same clusters are reused at the same time (a cluster that is
    /// given back without a hole keeps its space until then), holes are as large as the file system can make them, and
    /// QEMU does not punch what snapshots share.
    pub(crate) fn comparable_space(&self) -> bool {
        self.metadata.allocation == AllocationPolicy::Qemu
            && self.metadata.quarantine_bytes == 0
            && self.create.cluster_size >= 4096
            && !(self.no_unref && self.snapshots)
    }

    /// Makes the layers below, named `base` and `bottom`; gives what the disk reads at first.
    pub(crate) fn make_backing(&self, folder: &Folder, patterns: &Patterns, rng: &mut Rng) -> Vec<u8> {
        let mut model = vec![0u8; self.backing_size as usize];
        let base = folder.path("base");
        let fill = |path: &Path, disk: Disk, model: &mut Vec<u8>, rng: &mut Rng| {
            let mut operations: Vec<Operation> = (0..14).map(|_| Operation::random(rng, &disk)).collect();
            // Only in new clusters, and last: see `Trial::through_qemu`.
            operations.sort_by_key(|operation| operation.is_compressed());
            let commands: Vec<String> = operations.iter().map(|operation| operation.command(patterns)).collect();
            for (operation, done) in operations.iter().zip(qemu_io(path, "", &commands)) {
                if done {
                    operation.apply_to_model(model, &disk, patterns);
                }
            }
        };
        let disk = |no_discard| Disk { size: self.backing_size, cluster: 65_536, no_discard, may_compress: true };
        match self.backing {
            Backing::None => {}
            Backing::Raw => {
                let third = model.len() / 3;
                model[..third].copy_from_slice(&rng.bytes(third));
                model[third * 2..third * 2 + third / 2].fill(7);
                std::fs::write(&base, &model).unwrap();
                // Holes where the zeros are.
                succeed("fallocate", &["-d".as_ref(), base.as_os_str()]);
            }
            Backing::Qcow2 => {
                qemu_create(&base, &["-o", "cluster_size=65536"], self.backing_size);
                fill(&base, disk(false), &mut model, rng);
            }
            Backing::Version2 => {
                qemu_create(&base, &["-o", "compat=0.10,cluster_size=65536"], self.backing_size);
                fill(&base, disk(false), &mut model, rng);
            }
            Backing::Chain => {
                let bottom = folder.path("bottom");
                qemu_create(&bottom, &["-o", "cluster_size=65536,extended_l2=on"], self.backing_size);
                fill(&bottom, disk(false), &mut model, rng);
                qemu_create(&base, &["-o", "cluster_size=65536", "-b", "bottom", "-F", "qcow2"], self.backing_size);
                fill(&base, disk(false), &mut model, rng);
            }
        }
        model.resize(self.size as usize, 0);
        model
    }

    /// Makes an image, by qemu-img or by us.
    pub(crate) fn make(&self, path: &Path, by_us: bool) {
        if by_us {
            let storage = FileStorage::open(path, FileAccess::CreateNew).unwrap();
            Image::create(storage, self.size, &self.create).unwrap().close().unwrap();
        } else {
            let options = self.qemu_options(path);
            let mut words = vec!["-o", &options];
            if let (Some(file), Some(format)) = (&self.create.backing_file, &self.create.backing_format) {
                words.extend(["-b", file, "-F", format]);
            }
            let object = key_object();
            if self.create.encryption.is_some() {
                words.extend(["--object", &object]);
            }
            qemu_create(path, &words, self.size);
        }
        if self.bitmap {
            let arguments = ["bitmap".as_ref(), "--add".as_ref(), path.as_os_str(), "b0".as_ref()];
            succeed("qemu-img", &arguments);
        }
    }

    fn qemu_options(&self, path: &Path) -> String {
        let create = &self.create;
        let mut options = format!("cluster_size={}", create.cluster_size);
        let preallocation = match create.preallocation {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        };
        options.push_str(&format!(",preallocation={preallocation}"));
        if create.encryption.is_some() {
            options
                .push_str(",encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1,encrypt.cipher-alg=aes-128");
        }
        if create.version == 2 {
            options.push_str(",compat=0.10");
            return options;
        }
        let on = |flag| if flag { "on" } else { "off" };
        let zstd = if create.compression == CompressionType::Zstd { "zstd" } else { "zlib" };
        options.push_str(&format!(
            ",refcount_bits={},extended_l2={},lazy_refcounts={},compression_type={zstd}",
            create.refcount_bits,
            on(create.extended_l2),
            on(create.lazy_refcounts)
        ));
        if let Some(raw) = self.data_file {
            let name = path.with_extension("data");
            let _ = std::fs::remove_file(&name);
            options.push_str(&format!(",data_file={},data_file_raw={}", name.display(), on(raw)));
        }
        options
    }

    /// The run-time options for QEMU.
    pub(crate) fn qemu_run_options(&self, path: &Path) -> String {
        let on = |flag| if flag { "on" } else { "off" };
        let detect = match self.detect_zeroes {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        };
        let no_unref = if self.no_unref { ",discard-no-unref=on" } else { "" };
        let data_file = match self.data_file {
            None => String::new(),
            Some(_) => {
                let name = path.with_extension("data");
                format!(",data-file.driver=file,data-file.discard=unmap,data-file.filename={}", name.display())
            }
        };
        format!("{no_unref},pass-discard-request={},detect-zeroes={detect}{data_file}", on(self.pass_request))
    }

    /// The same for us. `as_qemu` keeps what QEMU keeps, also where it is shared.
    pub(crate) fn our_options(&self, as_qemu: bool) -> OpenOptions {
        let retained = if as_qemu { Unref::RetainQemu } else { Unref::RetainUnshared };
        let mut options = OpenOptions::default().with_metadata(self.metadata.clone()).with_policy(DiscardPolicy {
            unref: if self.no_unref { retained } else { Unref::Always },
            pass: Pass { request: self.pass_request, ..Pass::default() },
            ..DiscardPolicy::default()
        });
        options = options.with_key(Secret::from(KEY));
        options.detect_zeroes = self.detect_zeroes;
        if self.seed.is_multiple_of(2) {
            options.codecs = std::sync::Arc::new(NativeCodecs);
        }
        options
    }
}
