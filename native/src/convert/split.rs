//! Where the zeros are in a buffer.

use std::ops::Range;

use qcowkit_core::zeros::is_zero;

/// How long a run of zeros has to be to count as one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    /// Runs begin and end at multiples of this, a power of two.
    block: u64,
    /// Bytes of the shortest run.
    shortest: u64,
}

impl Split {
    /// For a sparse size above 0; as QEMU, what is no power of two is checked in blocks of the next lower one.
    pub(super) fn new(sparse_size: u64) -> Self {
        let shortest = sparse_size.max(512);
        Self { block: 1 << shortest.ilog2(), shortest }
    }

    /// Calls `found` with the runs of a buffer in order, and whether they are zeros. `offset` is that of the buffer on
    /// the disk.
    pub(super) fn runs(&self, bytes: &[u8], offset: u64, mut found: impl FnMut(bool, Range<usize>)) {
        let shortest = usize::try_from(self.shortest).unwrap_or(usize::MAX).min(bytes.len());
        let mut data_start = 0;
        let mut zero_start = None;
        let mut at = 0;
        let mut end_run = |data_start: &mut usize, zeros: Range<usize>| {
            if zeros.len() >= shortest && !zeros.is_empty() {
                if *data_start < zeros.start {
                    found(false, *data_start..zeros.start);
                }
                *data_start = zeros.end;
                found(true, zeros);
            }
        };
        while at < bytes.len() {
            let into_block = (offset + at as u64) & (self.block - 1);
            let room = usize::try_from(self.block - into_block).unwrap_or(usize::MAX);
            let end = at.saturating_add(room).min(bytes.len());
            if is_zero(&bytes[at..end]) {
                zero_start.get_or_insert(at);
            } else if let Some(start) = zero_start.take() {
                end_run(&mut data_start, start..at);
            }
            at = end;
        }
        if let Some(start) = zero_start {
            end_run(&mut data_start, start..bytes.len());
        }
        if data_start < bytes.len() {
            found(false, data_start..bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(split: Split, bytes: &[u8], offset: u64) -> Vec<(bool, Range<usize>)> {
        let mut all = Vec::new();
        split.runs(bytes, offset, |zero, range| all.push((zero, range)));
        all
    }

    #[test]
    fn runs_of_whole_blocks() {
        let mut bytes = vec![0u8; 16384];
        assert_eq!(runs(Split::new(4096), &bytes, 0), [(true, 0..16384)]);
        bytes[5000] = 1;
        assert_eq!(runs(Split::new(4096), &bytes, 0), [(true, 0..4096), (false, 4096..8192), (true, 8192..16384)]);
        assert_eq!(runs(Split::new(512), &bytes, 0)[1], (false, 4608..5120));
        bytes[16383] = 1;
        assert_eq!(
            runs(Split::new(4096), &bytes, 1024),
            // What comes before the first whole block is too short.
            [(false, 0..7168), (true, 7168..15360), (false, 15360..16384)]
        );
        assert_eq!(runs(Split::new(4096), &[], 7), []);
    }

    #[test]
    fn short_runs_are_data() {
        let mut bytes = vec![0u8; 65536];
        bytes[0] = 1;
        bytes[20480] = 1;
        bytes[49152] = 1;
        // Blocks of 16 KiB: data, data, zero, data.
        assert_eq!(runs(Split::new(20000), &bytes, 0), [(false, 0..65536)]);
        assert_eq!(runs(Split::new(16384), &bytes, 0)[1], (true, 32768..49152));
        // A buffer shorter than the shortest run is zero as a whole, or not at all.
        assert_eq!(runs(Split::new(1 << 30), &[0; 4096], 0), [(true, 0..4096)]);
        assert_eq!(runs(Split::new(1 << 30), &bytes, 0), [(false, 0..65536)]);
    }
}
