//! The codecs against each other, and against the compressed clusters of `qemu-img`, which are found by hand here.

use std::fs;
use std::path::Path;
use std::process::Command;

use qcowkit::codec::NativeCodecs;
use qcowkit_core::ErrorKind;
use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType};

const METHODS: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

fn both() -> [(&'static str, &'static dyn Codecs); 2] {
    [("builtin", &BuiltinCodecs), ("native", &NativeCodecs)]
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Half noise, half copies of it: shrinks by about a third.
fn stubborn(length: usize, seed: u64) -> Vec<u8> {
    let noise = noise(length, seed);
    noise
        .chunks(64)
        .enumerate()
        .flat_map(|(n, piece)| if n % 3 == 2 { &noise[..piece.len()] } else { piece })
        .copied()
        .collect()
}

/// Lines that resemble a log.
fn text(length: usize) -> Vec<u8> {
    (0..)
        .flat_map(|n: u32| {
            format!("{:08x} unit {n} reached state {}\n", n.wrapping_mul(2_654_435_761), n % 7).into_bytes()
        })
        .take(length)
        .collect()
}

fn qemu_img(arguments: &[&str]) -> Option<()> {
    let output = match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
            println!("skipped: qemu-img is missing");
            return None;
        }
        Err(error) => panic!("qemu-img: {error}"),
    };
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

/// Offset and length in bytes of each compressed cluster of an image, with its guest cluster.
fn compressed_clusters(image: &[u8]) -> Vec<(usize, usize, usize)> {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let bits = u32::from_be_bytes(image[20..24].try_into().unwrap());
    let (l1_entries, l1_table) = (u32::from_be_bytes(image[36..40].try_into().unwrap()) as usize, word(40) as usize);
    let per_table = 1 << (bits - 3);
    let shift = 62 - (bits - 8);
    let mut found = Vec::new();
    for l1_index in 0..l1_entries {
        let table = (word(l1_table + l1_index * 8) & 0x00ff_ffff_ffff_fe00) as usize;
        for l2_index in (0..per_table).take_while(|_| table != 0) {
            let entry = word(table + l2_index * 8);
            if entry >> 62 & 1 == 1 {
                let offset = (entry & ((1 << shift) - 1)) as usize;
                let sectors = ((entry & !(3 << 62)) >> shift) as usize + 1;
                found.push((l1_index * per_table + l2_index, offset, sectors * 512 - offset % 512));
            }
        }
    }
    found
}

fn compressed_image(folder: &Path, plain: &[u8], method: CompressionType, cluster_size: usize) -> Option<Vec<u8>> {
    let (raw, image) = (folder.join("plain.raw"), folder.join("image.qcow2"));
    fs::write(&raw, plain).unwrap();
    let options = format!("compression_type={method},cluster_size={cluster_size}");
    let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, raw, image])?;
    Some(fs::read(image).unwrap())
}

#[test]
fn clusters_that_qemu_packed_are_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    for method in METHODS {
        for cluster_size in [512, 4096, 65536, 2 << 20] {
            let plain = [text(1 << 20), stubborn(1 << 20, 1), vec![1; 1 << 20], text(1 << 20)].concat();
            let Some(image) = compressed_image(folder.path(), &plain, method, cluster_size) else { return };
            let clusters = compressed_clusters(&image);
            assert!(clusters.len() * cluster_size * 2 >= plain.len(), "{method} {cluster_size}: {}", clusters.len());
            for (name, codecs) in both() {
                for &(guest, offset, length) in &clusters {
                    // The last sector may lie beyond the end of the file.
                    let stream = &image[offset..image.len().min(offset + length)];
                    let mut into = vec![0xa5; cluster_size];
                    codecs.decompress(method, stream, &mut into).unwrap();
                    let expected = &plain[guest * cluster_size..(guest + 1) * cluster_size];
                    assert!(into == expected, "{name} {method}: cluster {guest} of {cluster_size} bytes");
                }
            }
        }
    }
}

#[test]
fn clusters_that_we_packed_are_unpacked_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    for method in METHODS {
        for cluster_size in [4096, 65536, 2 << 20] {
            let guest_size = 4 << 20;
            let Some(original) = compressed_image(folder.path(), &stubborn(guest_size, 2), method, cluster_size) else {
                return;
            };
            for (name, codecs) in both() {
                // Clusters of text need less room than those they replace: the rest of the old stream is padding.
                let wanted = text(guest_size);
                let mut image = original.clone();
                let clusters = compressed_clusters(&image);
                assert_eq!(clusters.len(), guest_size / cluster_size);
                let mut packed = Vec::new();
                for (guest, offset, length) in clusters {
                    let plain = &wanted[guest * cluster_size..(guest + 1) * cluster_size];
                    assert!(codecs.compress(method, plain, &mut packed).unwrap());
                    assert!(packed.len() <= length, "{name} {method}: {} into {length}", packed.len());
                    image[offset..offset + packed.len()].copy_from_slice(&packed);
                }
                let (spliced, read_back) = (folder.path().join("spliced.qcow2"), folder.path().join("back.raw"));
                fs::write(&spliced, &image).unwrap();
                let paths = (spliced.to_str().unwrap(), read_back.to_str().unwrap());
                qemu_img(&["convert", "-f", "qcow2", "-O", "raw", paths.0, paths.1]).unwrap();
                assert!(fs::read(&read_back).unwrap() == wanted, "{name} {method} {cluster_size}");
            }
        }
    }
}

#[test]
fn each_reads_what_the_other_wrote() {
    for method in METHODS {
        for bits in 9..=21 {
            for plain in [text(1 << bits), stubborn(1 << bits, bits), vec![0; 1 << bits]] {
                for (writer, from) in both() {
                    let mut packed = Vec::new();
                    if !from.compress(method, &plain, &mut packed).unwrap() {
                        continue;
                    }
                    packed.extend(noise(700, 4));
                    for (reader, to) in both() {
                        let mut into = vec![0xa5; plain.len()];
                        to.decompress(method, &packed, &mut into).unwrap();
                        assert!(into == plain, "{method} {bits}: {writer} to {reader}");
                    }
                }
            }
        }
    }
}

#[test]
fn damage_and_bombs_are_errors() {
    let is_codec_error = |method, stream: &[u8], length| {
        let result = NativeCodecs.decompress(method, stream, &mut vec![0; length]);
        matches!(result.map_err(|error| error.kind().clone()), Err(ErrorKind::Codec(_)))
    };
    for method in METHODS {
        let plain = text(65536);
        let mut packed = Vec::new();
        assert!(NativeCodecs.compress(method, &plain, &mut packed).unwrap());
        assert!(is_codec_error(method, &packed, 65537), "{method}: short");
        assert!(is_codec_error(method, &[], 512), "{method}: empty");
        assert!(is_codec_error(method, &packed[..packed.len() / 2], 65536), "{method}: cut");
        assert!(!NativeCodecs.compress(method, &noise(65536, 1), &mut packed).unwrap());
        for seed in 0..2000 {
            let bytes = noise(300, seed);
            assert!(is_codec_error(method, &bytes, 65536), "{method}: noise {seed}");
        }
    }
    // Frames whose sizes are lies: a window of 64 MiB with 1 GiB of one byte, and a single segment of 2^63 bytes.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3];
    bomb.extend([0x02, 0x00, 0x10, b'x'].repeat(8192));
    bomb.extend([0x01, 0, 0]);
    assert!(is_codec_error(CompressionType::Zstd, &bomb, 65536));
    let huge = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x03, 0x00, 0x10, b'x'];
    assert!(is_codec_error(CompressionType::Zstd, &huge, 65536));
}

#[test]
fn threads_share_one_value() {
    let plain = text(65536);
    std::thread::scope(|scope| {
        for n in 0..4_usize {
            let plain = &plain;
            scope.spawn(move || {
                for round in 0..20 {
                    let method = METHODS[(n + round) % 2];
                    let (mut packed, mut into) = (Vec::new(), vec![0; plain.len()]);
                    assert!(NativeCodecs.compress(method, plain, &mut packed).unwrap());
                    NativeCodecs.decompress(method, &packed, &mut into).unwrap();
                    assert!(&into == plain);
                }
            });
        }
    });
}
