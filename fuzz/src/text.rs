//! Traces and packed clusters.

use std::fmt;

use qcowkit_core::codec::{BuiltinCodecs, Codecs, CompressionType};
use qcowkit_core::operations::lab::{Trace, TraceFormat};

const CLUSTER: usize = 4096;
/// Bytes of a text that is written.
const MAX_TEXT: usize = 16 << 20;

/// Every parser of traces; what is written is read back as it was.
pub fn trace(data: &[u8]) {
    let _ = TraceFormat::detect(data);
    for (_, format) in TraceFormat::NAMES {
        let Ok(trace) = Trace::parse(data, format) else { continue };
        for format in [TraceFormat::QemuIo, TraceFormat::Csv] {
            let mut text = Paper(String::new());
            // A name of a mark can have what a script cannot say, and a line can discard more than fits on paper.
            if trace.write(format, &mut text).is_ok()
                && let Ok(again) = Trace::parse(text.0.as_bytes(), format)
                && format == TraceFormat::Csv
            {
                assert_eq!(trace.operations.len(), again.operations.len(), "{}", text.0);
            }
        }
    }
}

/// Text that ends somewhere.
struct Paper(String);

impl fmt::Write for Paper {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        if self.0.len() < MAX_TEXT { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Both decoders on anything; both encoders, read back.
pub fn codec(data: &[u8]) {
    let mut cluster = vec![0u8; CLUSTER];
    for method in [CompressionType::Zlib, CompressionType::Zstd] {
        let _ = BuiltinCodecs.decompress(method, data, &mut cluster);
        let mut plain = data.to_vec();
        plain.resize(CLUSTER, 0);
        let mut packed = Vec::new();
        if BuiltinCodecs.compress(method, &plain, &mut packed).unwrap() {
            assert!(packed.len() < CLUSTER);
            packed.resize(packed.len().next_multiple_of(512), 0xff);
            BuiltinCodecs.decompress(method, &packed, &mut cluster).unwrap();
            assert!(cluster == plain, "another cluster");
        }
    }
}

pub(crate) fn traces() -> Vec<Vec<u8>> {
    let texts = [
        "write 0 4k\nwrite -z -u 64k 64k\ndiscard 1M 64k\nflush\naio_write 3 5\n",
        "operation,offset,length,detail\nwrite,0,4096,\nwrite_zeroes,65536,65536,unmap\nmark,,,monday\ndiscard,0,512,\n",
        "fio version 2 iolog\n/dev/vda add\n/dev/vda open\n/dev/vda write 0 4096\n/dev/vda trim 4096 4096\n/dev/vda sync 0 0\n",
        "fio version 3 iolog\n0 f add\n1 f open\n2 f write 0 4096\n3 f trim 0 4096\n",
        "  8,0    1        1     0.000000000  1234  Q  WS 2048 + 8 [fio]\n  8,0    1        2     0.000001000  1234  Q   D 4096 + 128 [fstrim]\n",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) fn packed() -> Vec<Vec<u8>> {
    let cluster: Vec<u8> = (0..CLUSTER).map(|n| (n / 100) as u8).collect();
    let mut all = vec![cluster.clone()];
    for method in [CompressionType::Zlib, CompressionType::Zstd] {
        let mut packed = Vec::new();
        BuiltinCodecs.compress(method, &cluster, &mut packed).unwrap();
        all.push(packed);
    }
    all
}
