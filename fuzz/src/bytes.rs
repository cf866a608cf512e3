//! Choices out of a fuzzer's bytes; when they run out, every choice is the first.

/// The bytes that are left.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number below `end`, of as many bytes as it takes.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let (mut number, mut most) = (0u64, 1u64);
        while most < end {
            number = number << 8 | u64::from(self.byte());
            most = most.saturating_mul(256);
        }
        number % end.max(1)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn choose<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        from[usize::from(self.byte()) % N]
    }
}
