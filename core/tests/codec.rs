//! The pure-Rust codecs: what goes in comes out, and no bytes do harm.
#![cfg(all(feature = "zlib", feature = "zstd"))]

use proptest::prelude::*;
use qcowkit_core::ErrorKind;
use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType, Zlib};
use zlib_rs::{Deflate, DeflateFlush, Status};

const METHODS: [CompressionType; 2] = [CompressionType::Zlib, CompressionType::Zstd];

/// Bytes that look random but are the same in every run.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Noise that repeats after `period` bytes: only an encoder that looks back so far can pack it.
fn repeating(length: usize, period: usize, seed: u64) -> Vec<u8> {
    noise(period, seed).into_iter().cycle().take(length).collect()
}

/// Lines that resemble a log: what text compresses like.
fn text(length: usize) -> Vec<u8> {
    (0..)
        .flat_map(|n: u32| {
            format!("{:08x} unit {n} reached state {}\n", n.wrapping_mul(2_654_435_761), n % 7).into_bytes()
        })
        .take(length)
        .collect()
}

fn packed(method: CompressionType, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(BuiltinCodecs.compress(method, plain, &mut out).unwrap(), "{method}: {} bytes do not shrink", plain.len());
    assert!(out.len() < plain.len());
    out
}

fn unpacked(method: CompressionType, from: &[u8], length: usize) -> Result<Vec<u8>, ErrorKind> {
    let mut into = vec![0xa5; length];
    BuiltinCodecs.decompress(method, from, &mut into).map(|()| into).map_err(|error| error.kind().clone())
}

fn is_codec_error<T>(result: &Result<T, ErrorKind>) -> bool {
    matches!(result, Err(ErrorKind::Codec(_)))
}

#[test]
fn every_cluster_size_goes_both_ways_with_padding() {
    for method in METHODS {
        for bits in 9..=21 {
            let length = 1_usize << bits;
            for plain in [vec![0; length], text(length), repeating(length, 100, 7)] {
                let mut stream = packed(method, &plain);
                for padding in [0, 1, 3, 511, 512, 100_000] {
                    let end = stream.len();
                    stream.extend(noise(padding, 3));
                    assert_eq!(unpacked(method, &stream, length).unwrap(), plain, "{method} {length} +{padding}");
                    stream.truncate(end);
                }
            }
        }
    }
}

#[test]
fn what_does_not_shrink_is_refused_and_the_buffer_serves_again() {
    let mut out = Vec::new();
    for method in METHODS {
        for length in [512, 4096, 65536] {
            assert!(!BuiltinCodecs.compress(method, &noise(length, 1), &mut out).unwrap(), "{method} {length}");
            assert!(BuiltinCodecs.compress(method, &vec![9; length], &mut out).unwrap());
            assert_eq!(unpacked(method, &out, length).unwrap(), vec![9; length]);
        }
    }
    // Nothing is smaller than nothing.
    for method in METHODS {
        assert!(!BuiltinCodecs.compress(method, &[], &mut out).unwrap());
        assert!(!BuiltinCodecs.compress(method, &[1], &mut out).unwrap());
    }
}

#[test]
fn one_context_takes_many_clusters_that_do_not_shrink() {
    // zlib-rs 0.6.8 panics when its context is reset often enough with output left over.
    for (length, clusters) in [(4096usize, 100), (65536, 40), (2 << 20, 3)] {
        let mut zlib = Zlib::new();
        let mut out = Vec::new();
        for seed in 0..clusters {
            assert!(!zlib.compress(&noise(length, seed + 1), &mut out).unwrap());
        }
        assert!(zlib.compress(&text(length), &mut out).unwrap());
        let mut plain = vec![0; length];
        zlib.decompress(&out, &mut plain).unwrap();
        assert_eq!(plain, text(length));
    }
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    for method in METHODS {
        let plain = text(32768);
        let stream = packed(method, &plain);
        assert!(is_codec_error(&unpacked(method, &stream, 65536)), "{method}: short stream");
        assert!(is_codec_error(&unpacked(method, &[], 512)), "{method}: no stream");
        for cut in 0..stream.len() {
            match unpacked(method, &stream[..cut], plain.len()) {
                // The last bytes of a deflate stream may be nothing but its end mark.
                Ok(read) => assert!(method == CompressionType::Zlib && cut + 2 >= stream.len() && read == plain),
                error => assert!(is_codec_error(&error), "{method}: cut at {cut}"),
            }
        }
    }
}

#[test]
fn only_one_cluster_is_taken_from_a_longer_stream() {
    let plain = text(65536);
    // Deflate gives what is asked for and leaves the rest, as QEMU does; a zstd frame has to end with the cluster.
    let zlib = packed(CompressionType::Zlib, &plain);
    assert_eq!(unpacked(CompressionType::Zlib, &zlib, 4096).unwrap(), plain[..4096]);
    let zstd = packed(CompressionType::Zstd, &plain);
    assert!(is_codec_error(&unpacked(CompressionType::Zstd, &zstd, 4096)));
}

#[test]
fn several_frames_and_skippable_frames_make_one_cluster() {
    let plain = text(65536);
    let mut stream = Vec::new();
    let empty = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0];
    let skippable = [0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    for part in plain.chunks(16384) {
        stream.extend(empty);
        stream.extend(skippable);
        stream.extend(packed(CompressionType::Zstd, part));
    }
    stream.extend([0xff; 300]);
    assert_eq!(unpacked(CompressionType::Zstd, &stream, plain.len()).unwrap(), plain);
    // A skippable frame that reaches beyond the input.
    assert!(is_codec_error(&unpacked(CompressionType::Zstd, &[0x53, 0x2a, 0x4d, 0x18, 255, 255, 255, 255, 0], 512)));
}

#[test]
fn bombs_are_stopped_at_one_cluster() {
    // A frame that asks for a window of 64 MiB and repeats one byte for 1 GiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3];
    for _ in 0..8192 {
        bomb.extend([0x02, 0x00, 0x10, b'x']);
    }
    bomb.extend([0x01, 0, 0]);
    assert!(is_codec_error(&unpacked(CompressionType::Zstd, &bomb, 65536)));
    // A single segment of 2^63 bytes.
    let huge = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x03, 0x00, 0x10, b'x'];
    assert!(is_codec_error(&unpacked(CompressionType::Zstd, &huge, 65536)));
    // As many empty frames as the longest compressed cluster can hold: 4 MiB of them are read and lead nowhere.
    let empties = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0].repeat((4 << 20) / 9);
    assert!(is_codec_error(&unpacked(CompressionType::Zstd, &empties, 65536)));
    // Deflate: 4 MiB of zeros into 64 KiB stops when these are full.
    let zeros = packed(CompressionType::Zlib, &vec![0; 4 << 20]);
    assert_eq!(unpacked(CompressionType::Zlib, &zeros, 65536).unwrap(), vec![0; 65536]);
}

/// Inflates by the letter of RFC 1951, and refuses distances beyond the window. zlib-rs does not: given window bits of
/// 12 it still looks back over 32 KiB.
fn inflate_strictly(stream: &[u8], length: usize, window: usize) -> Result<Vec<u8>, String> {
    let mut bits = Bits { bytes: stream, next: 0 };
    let mut plain = Vec::new();
    loop {
        let last = bits.take(1);
        match bits.take(2) {
            0 => {
                bits.next = bits.next.next_multiple_of(8);
                let count = bits.take(16);
                assert_eq!(bits.take(16), !count & 0xffff);
                (0..count).for_each(|_| plain.push(bits.take(8) as u8));
            }
            1 => {
                let literals: Vec<u8> =
                    [(144, 8), (112, 9), (24, 7), (8, 8)].iter().flat_map(|&(n, l)| vec![l; n]).collect();
                inflate_block(&mut bits, &mut plain, &literals, &[5; 30], window)?;
            }
            2 => {
                let (literals, distances) = code_lengths(&mut bits);
                inflate_block(&mut bits, &mut plain, &literals, &distances, window)?;
            }
            _ => return Err("reserved block type".into()),
        }
        if last == 1 {
            assert_eq!(plain.len(), length);
            return Ok(plain);
        }
    }
}

struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> usize {
        (0..count).fold(0, |value, place| {
            let bit = usize::from(self.bytes[self.next / 8] >> (self.next % 8)) & 1;
            self.next += 1;
            value | bit << place
        })
    }

    /// The next symbol of a canonical Huffman code.
    fn symbol(&mut self, lengths: &[u8]) -> usize {
        let (mut code, mut first, mut before) = (0, 0, 0);
        for width in 1..=15 {
            code = code << 1 | self.take(1);
            let count = lengths.iter().filter(|&&length| length == width).count();
            if code < first + count {
                let rank = code - first;
                return (0..lengths.len()).filter(|&symbol| lengths[symbol] == width).nth(rank).unwrap();
            }
            before += count;
            first = (first + count) << 1;
        }
        panic!("no such code among {before} symbols");
    }
}

fn code_lengths(bits: &mut Bits<'_>) -> (Vec<u8>, Vec<u8>) {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances, codes) = (bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4);
    let mut meta = [0; 19];
    ORDER[..codes].iter().for_each(|&place| meta[place] = bits.take(3) as u8);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (value, count) = match bits.symbol(&meta) {
            16 => (*lengths.last().unwrap(), 3 + bits.take(2)),
            17 => (0, 3 + bits.take(3)),
            18 => (0, 11 + bits.take(7)),
            length => (length as u8, 1),
        };
        lengths.extend(vec![value; count]);
    }
    let distances = lengths.split_off(literals);
    (lengths, distances)
}

fn inflate_block(
    bits: &mut Bits<'_>,
    plain: &mut Vec<u8>,
    literals: &[u8],
    distances: &[u8],
    window: usize,
) -> Result<(), String> {
    loop {
        let symbol = bits.symbol(literals);
        if symbol < 256 {
            plain.push(symbol as u8);
        } else if symbol == 256 {
            return Ok(());
        } else {
            let rank = symbol - 257;
            let length = match rank {
                28 => 258,
                0..8 => rank + 3,
                _ => ((4 + rank % 4) << (rank / 4 - 1)) + 3 + bits.take(rank / 4 - 1),
            };
            let rank = bits.symbol(distances);
            let distance = match rank {
                0..4 => rank + 1,
                _ => ((2 + rank % 2) << (rank / 2 - 1)) + 1 + bits.take(rank / 2 - 1),
            };
            if distance > window {
                return Err(format!("distance {distance}"));
            }
            (0..length).for_each(|_| plain.push(plain[plain.len() - distance]));
        }
    }
}

#[test]
fn deflate_keeps_to_a_window_of_4_kib() {
    for period in [3000, 4000, 4095, 4096, 4097, 5000, 8192, 20000, 32768] {
        let mut plain = repeating(100_000, period, period as u64);
        plain.extend(text(100_000));
        let stream = packed(CompressionType::Zlib, &plain);
        assert_eq!(inflate_strictly(&stream, plain.len(), 4096).unwrap(), plain, "period {period}");
    }
}

#[test]
fn streams_with_a_window_of_32_kib_are_read_all_the_same() {
    let plain = repeating(65536, 20000, 5);
    let mut deflate = Deflate::new(6, false, 15);
    let mut stream = vec![0; 65536];
    assert_eq!(deflate.compress(&plain, &mut stream, DeflateFlush::Finish), Ok(Status::StreamEnd));
    stream.truncate(usize::try_from(deflate.total_out()).unwrap());
    assert!(inflate_strictly(&stream, plain.len(), 4096).is_err(), "the stream does not use the large window");
    assert_eq!(inflate_strictly(&stream, plain.len(), 32768).unwrap(), plain);
    assert_eq!(unpacked(CompressionType::Zlib, &stream, plain.len()).unwrap(), plain);
}

/// Clusters of runs, copies and noise: what encoders have branches for.
fn cluster() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1..5000_usize).prop_map(|(byte, length)| vec![byte; length]),
        (any::<u64>(), 1..3000_usize).prop_map(|(seed, length)| noise(length, seed)),
        (1..600_usize, 1..5000_usize, 0..4_u64).prop_map(|(period, length, seed)| repeating(length, period, seed)),
        (1..3000_usize).prop_map(text),
    ];
    (prop::collection::vec(piece, 1..12), 9..16_u32).prop_map(|(pieces, bits)| {
        let mut plain: Vec<u8> = pieces.concat();
        plain.resize(1 << bits, 0);
        plain
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn all_clusters_go_both_ways(plain in cluster()) {
        for method in METHODS {
            let mut out = Vec::new();
            if BuiltinCodecs.compress(method, &plain, &mut out).unwrap() {
                prop_assert!(out.len() < plain.len());
                prop_assert_eq!(&unpacked(method, &out, plain.len()).unwrap(), &plain);
                if method == CompressionType::Zlib {
                    prop_assert_eq!(&inflate_strictly(&out, plain.len(), 4096).unwrap(), &plain);
                }
            }
        }
    }

    #[test]
    fn kept_contexts_give_what_new_ones_give(clusters in prop::collection::vec(cluster(), 1..6)) {
        let mut kept = Zlib::new();
        for plain in clusters {
            let (mut old, mut new) = (Vec::new(), Vec::new());
            let shrinks = kept.compress(&plain, &mut old).unwrap();
            prop_assert_eq!(shrinks, Zlib::new().compress(&plain, &mut new).unwrap());
            if shrinks {
                prop_assert_eq!(&old, &new);
                // A failure in between leaves nothing behind.
                prop_assert!(kept.decompress(&old[..old.len() / 2], &mut vec![0; plain.len()]).is_err());
                let mut into = vec![0; plain.len()];
                kept.decompress(&old, &mut into).unwrap();
                prop_assert_eq!(into, plain);
            }
        }
    }

    #[test]
    fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), length in 1..8192_usize) {
        for method in METHODS {
            let result = unpacked(method, &bytes, length);
            prop_assert!(result.is_ok() || is_codec_error(&result));
        }
        // Past the magic number, into the frame header.
        bytes.splice(0..0, [0x28, 0xb5, 0x2f, 0xfd]);
        let result = unpacked(CompressionType::Zstd, &bytes, length);
        prop_assert!(result.is_ok() || is_codec_error(&result));
    }

    #[test]
    fn damaged_streams_do_no_harm(plain in cluster(), damage in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..6)) {
        for method in METHODS {
            let mut stream = Vec::new();
            if !BuiltinCodecs.compress(method, &plain, &mut stream).unwrap() {
                continue;
            }
            for (place, bit) in &damage {
                let place = place.index(stream.len());
                stream[place] ^= 1 << bit;
            }
            let result = unpacked(method, &stream, plain.len());
            prop_assert!(result.is_ok() || is_codec_error(&result));
        }
    }
}
