//! Random numbers that are the same everywhere, without floating point.

/// SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

/// One in fixed point with 16 binary places.
const ONE: i64 = 1 << 16;

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, 0 when that is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()).saturating_mul(u128::from(bound));
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// True in `percent` of 100 cases.
    pub(super) fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < u64::from(percent)
    }

    /// A member of a list, and its position.
    pub(super) fn position<T>(&mut self, list: &[T]) -> Option<usize> {
        let count = u64::try_from(list.len()).unwrap_or(0);
        if count == 0 { None } else { usize::try_from(self.below(count)).ok() }
    }

    /// Nearly normal with mean 0 and standard deviation 1, in 16 binary places: the sum of twelve uniform numbers.
    fn normal(&mut self) -> i64 {
        let sum = (0..12).fold(0i64, |sum, _| sum.saturating_add(i64::try_from(self.next() >> 48).unwrap_or(0)));
        sum.saturating_sub(ONE.saturating_mul(6))
    }

    /// Log-normal: the median times e to the power of sigma times a normal number. `sigma_percent` is sigma times 100.
    pub(super) fn log_normal(&mut self, median: u64, sigma_percent: u32) -> u64 {
        /// log2(e) in 16 binary places.
        const LOG2_E: i64 = 94_548;
        let exponent = self.normal().saturating_mul(sigma_percent.into()) / 100;
        let exponent = i64::try_from(i128::from(exponent).saturating_mul(LOG2_E.into()) >> 16).unwrap_or(0);
        scale_by_power_of_two(median, exponent)
    }
}

/// `value` times 2 to the power of `exponent` (16 binary places).
fn scale_by_power_of_two(value: u64, exponent: i64) -> u64 {
    let (whole, fraction) = (exponent.div_euclid(ONE), exponent.rem_euclid(ONE));
    // 2^(k/16) in 16 binary places, and straight lines between: off by less than a tenth of a percent.
    const POWERS: [u64; 17] = [
        65_536, 68_438, 71_468, 74_632, 77_936, 81_386, 84_990, 88_752, 92_682, 96_785, 101_070, 105_545, 110_218,
        115_098, 120_194, 125_515, 131_072,
    ];
    let at = usize::try_from(fraction / 4096).unwrap_or(0);
    let within = u64::try_from(fraction % 4096).unwrap_or(0);
    let low = POWERS.get(at).copied().unwrap_or(65_536);
    let high = POWERS.get(at.saturating_add(1)).copied().unwrap_or(131_072);
    let factor = low.saturating_add(high.saturating_sub(low).saturating_mul(within) / 4096);
    let scaled = u128::from(value).saturating_mul(factor.into());
    let shift = 16i64.saturating_sub(whole);
    let shifted = match u32::try_from(shift.unsigned_abs()) {
        Ok(bits) if shift >= 0 => scaled.checked_shr(bits).unwrap_or(0),
        // At most 2^64 times 2^17: more than 46 further places would overflow.
        Ok(bits) if bits <= 46 => scaled.wrapping_shl(bits),
        _ => u128::MAX,
    };
    u64::try_from(shifted).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn powers_of_two() {
        assert_eq!(scale_by_power_of_two(1000, 0), 1000);
        assert_eq!(scale_by_power_of_two(1000, ONE), 2000);
        assert_eq!(scale_by_power_of_two(1000, -ONE), 500);
        assert_eq!(scale_by_power_of_two(1000, ONE / 2), 1414);
        assert_eq!(scale_by_power_of_two(1 << 20, -40 * ONE), 0);
        assert_eq!(scale_by_power_of_two(1 << 20, 60 * ONE), u64::MAX);
    }

    #[test]
    fn sizes_are_log_normal() {
        let mut random = Random::new(1);
        let mut sizes: Vec<u64> = (0..20_000).map(|_| random.log_normal(1_000_000, 200)).collect();
        sizes.sort_unstable();
        let middle = sizes[10_000];
        assert!((950_000..1_050_000).contains(&middle), "{middle}");
        // One standard deviation up is e^2 = 7.39 times the median: 15.87 % lie beyond it.
        let beyond = sizes.iter().filter(|&&size| size > 7_389_000).count();
        assert!((2_950..3_400).contains(&beyond), "{beyond}");
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert!((0..100).all(|_| a.next() == b.next()));
        assert!((0..1000).all(|_| a.below(10) < 10));
        assert_eq!((a.below(0), a.position::<u8>(&[])), (0, None));
    }
}
