//! Random guest operations: as qemu-io commands, on an image through qcowkit, and on a model.

use std::path::PathBuf;

use qcowkit::file::FileStorage;
use qcowkit_core::image::{DirtyBits, Image};

use crate::common::{Folder, Rng};

/// What writes are filled with: a byte, or the bytes of a file over and over, so that misplaced data show.
pub(crate) struct Patterns {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Patterns {
    /// Random bytes (incompressible), and two that pack well.
    pub(crate) fn new(folder: &Folder, rng: &mut Rng) -> Self {
        let random = rng.bytes(70_001);
        let short = rng.bytes(997);
        let sparse = rng.bytes(5003).iter().map(|byte| byte & 3).collect();
        let files = [random, short, sparse].into_iter().enumerate().map(|(n, bytes): (usize, Vec<u8>)| {
            let path = folder.path(&format!("pattern{n}"));
            std::fs::write(&path, &bytes).unwrap();
            (path, bytes)
        });
        Self { files: files.collect() }
    }

    fn option(&self, fill: Fill) -> String {
        match fill {
            Fill::Byte(byte) => format!("-P {byte}"),
            Fill::File(n) => format!("-s {}", self.files[n].0.display()),
        }
    }

    pub(crate) fn bytes(&self, fill: Fill, length: u64) -> Vec<u8> {
        match fill {
            Fill::Byte(byte) => vec![byte; length as usize],
            Fill::File(n) => self.files[n].1.iter().copied().cycle().take(length as usize).collect(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    Byte(u8),
    File(usize),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Write { offset: u64, length: u64, fill: Fill },
    Compressed { offset: u64, length: u64, fill: Fill },
    Zero { offset: u64, length: u64, unmap: bool },
    Discard { offset: u64, length: u64 },
    Flush,
}

/// What operations depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk {
    pub(crate) size: u64,
    pub(crate) cluster: u64,
    /// Discards change nothing (version 2 over a backing file).
    pub(crate) no_discard: bool,
    pub(crate) may_compress: bool,
}

impl Operation {
    pub(crate) fn random(rng: &mut Rng, disk: &Disk) -> Self {
        let (offset, length) = range(rng, disk);
        let fill = if rng.one_in(3) { Fill::Byte(rng.below(4) as u8) } else { Fill::File(rng.below(3) as usize) };
        match rng.below(20) {
            0..=7 => Self::Write { offset, length, fill },
            8..=10 => Self::Zero { offset, length, unmap: rng.one_in(2) },
            11..=15 => Self::Discard { offset, length },
            16..=18 if disk.may_compress => {
                let offset = offset / disk.cluster * disk.cluster;
                Self::Compressed { offset, length: disk.cluster.min(disk.size - offset), fill }
            }
            19 => Self::Flush,
            _ => Self::Write { offset, length, fill },
        }
    }

    pub(crate) fn command(self, patterns: &Patterns) -> String {
        match self {
            Self::Write { offset, length, fill } => format!("write {} {offset} {length}", patterns.option(fill)),
            Self::Compressed { offset, length, fill } => {
                format!("write -c {} {offset} {length}", patterns.option(fill))
            }
            Self::Zero { offset, length, unmap: false } => format!("write -z {offset} {length}"),
            Self::Zero { offset, length, unmap: true } => format!("write -z -u {offset} {length}"),
            Self::Discard { offset, length } => format!("discard {offset} {length}"),
            Self::Flush => "flush".to_owned(),
        }
    }

    pub(crate) fn is_compressed(self) -> bool {
        matches!(self, Self::Compressed { .. })
    }

    /// Whether the bytes surely become smaller.
    pub(crate) fn packs(self) -> bool {
        matches!(self, Self::Compressed { fill: Fill::Byte(_) | Fill::File(2), .. })
    }

    pub(crate) fn apply(self, image: &mut Image<FileStorage>, patterns: &Patterns) -> qcowkit_core::Result<()> {
        match self {
            Self::Write { offset, length, fill } => image.write_at(offset, &patterns.bytes(fill, length)),
            Self::Compressed { offset, length, fill } => image.write_compressed(offset, &patterns.bytes(fill, length)),
            Self::Zero { offset, length, unmap } => image.write_zeroes(offset, length, unmap),
            Self::Discard { offset, length } => image.discard(offset, length),
            Self::Flush => image.flush(),
        }
    }

    /// What a bitmap records of it.
    pub(crate) fn mark(self, bits: &mut DirtyBits) {
        match self {
            Self::Write { offset, length, .. }
            | Self::Compressed { offset, length, .. }
            | Self::Zero { offset, length, .. }
            | Self::Discard { offset, length } => bits.set(offset, length),
            Self::Flush => {}
        }
    }

    pub(crate) fn apply_to_model(self, model: &mut [u8], disk: &Disk, patterns: &Patterns) {
        let range = |from: u64, to: u64| from as usize..to.max(from) as usize;
        match self {
            Self::Write { offset, length, fill } | Self::Compressed { offset, length, fill } => {
                model[range(offset, offset + length)].copy_from_slice(&patterns.bytes(fill, length));
            }
            Self::Zero { offset, length, .. } => model[range(offset, offset + length)].fill(0),
            Self::Discard { offset, length } => {
                let end = offset + length;
                let to = if end == disk.size { end } else { end / disk.cluster * disk.cluster };
                if !disk.no_discard {
                    model[range(offset.next_multiple_of(disk.cluster).min(disk.size), to)].fill(0);
                }
            }
            Self::Flush => {}
        }
    }
}

/// A range of the disk: aligned to clusters, to the page, to the sector or not at all; short, or many clusters.
fn range(rng: &mut Rng, disk: &Disk) -> (u64, u64) {
    let unit = rng.choose(&[disk.cluster, disk.cluster, 4096, 512, 1]).min(disk.size);
    // Some places are visited again and again.
    let within = if rng.one_in(2) { disk.size.min(disk.cluster * 6) } else { disk.size };
    let offset = rng.below(within) / unit * unit;
    let most = match rng.below(8) {
        0 => disk.cluster * 40,
        1..=2 => disk.cluster / 8,
        _ => disk.cluster * 4,
    };
    let length = (rng.below(most).next_multiple_of(unit)).clamp(1, disk.size - offset);
    let length = if rng.one_in(12) { disk.size - offset } else { length };
    (offset, length.clamp(1, 3 << 20).min(disk.size - offset))
}
