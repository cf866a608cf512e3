//! Sizes as QEMU reads and prints them: powers of 1024, suffixes `k M G T P E`, fractions such as `1.5G`.

/// Why a text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    /// Not a number, or something follows it.
    NotANumber,
    /// More than 2^64 - 1 bytes, or negative.
    OutOfRange,
}

/// Reads a size: decimal with an optional fraction and suffix (`b k K m M g G t T p P e E`), or hexadecimal without.
///
/// # Errors
/// When the text is something else, a fraction of a byte, or beyond 64 bits.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n']);
    if let Some(rest) = text.strip_prefix('-') {
        return Err(if rest.starts_with(|c: char| c.is_ascii_digit()) {
            SizeError::OutOfRange
        } else {
            SizeError::NotANumber
        });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SizeError::NotANumber);
        }
        return u64::from_str_radix(hex, 16).map_err(|_| SizeError::OutOfRange);
    }
    parse_decimal(text)
}

fn parse_decimal(text: &str) -> Result<u64, SizeError> {
    let whole_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(whole_len);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(after.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::NotANumber);
    }
    let unit = unit(suffix)?;
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| SizeError::OutOfRange)?,
    };
    let part = if fraction.bytes().all(|b| b == b'0') {
        0
    } else if unit == 1 {
        return Err(SizeError::NotANumber);
    } else {
        let value: f64 = format!("0.{fraction}").parse().map_err(|_| SizeError::NotANumber)?;
        // A power of two times a double is exact; the fraction of a byte is dropped.
        (value * unit as f64) as u64
    };
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or(SizeError::OutOfRange)
}

fn unit(suffix: &str) -> Result<u64, SizeError> {
    Ok(match suffix {
        "" | "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1 << 60,
        _ => return Err(SizeError::NotANumber),
    })
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size as `qemu-img info` prints it: three significant digits, `1.5 GiB`; from 1000 on the next unit (`0.977 MiB`).
#[must_use]
pub fn human(bytes: u64) -> String {
    let mut index = 0;
    let mut value = bytes as f64;
    while value >= 1000.0 && index + 1 < UNITS.len() {
        value /= 1024.0;
        index += 1;
    }
    format!("{} {}", three_digits(value), UNITS[index])
}

/// C's `%.3g`, which QEMU uses: 999.7 comes out as `1e+03`.
fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, text)| text.parse().ok()).unwrap_or(0);
    if exponent >= 3 {
        let mantissa = scientific.split('e').next().unwrap_or_default();
        return format!("{}e+{exponent:02}", trim_zeros(mantissa));
    }
    let decimals = usize::try_from(2 - exponent).unwrap_or(0);
    trim_zeros(&format!("{value:.decimals$}")).to_owned()
}

fn trim_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

/// A size as `qemu-io` prints it: `64 KiB`, `1.062 MiB`, `32 bytes`, `52.175654 bytes`. `value` is in bytes.
pub fn write_io_size(into: &mut impl std::io::Write, value: f64) -> std::io::Result<()> {
    const SCALES: [(f64, &str); 6] = [
        ((1u64 << 60) as f64, "EiB"),
        ((1u64 << 50) as f64, "PiB"),
        ((1u64 << 40) as f64, "TiB"),
        ((1u64 << 30) as f64, "GiB"),
        ((1u64 << 20) as f64, "MiB"),
        (1024.0, "KiB"),
    ];
    let (scale, name, decimals) =
        SCALES.iter().find(|(scale, _)| value >= *scale).map_or((1.0, "bytes", 6), |&(scale, name)| (scale, name, 3));
    let scaled = value / scale;
    let power = 10f64.powi(decimals as i32);
    // Whole numbers have no decimals, also those that only printing makes whole.
    if (scaled * power).round() % power == 0.0 {
        write!(into, "{} {name}", scaled.round() as u64)
    } else {
        write!(into, "{scaled:.decimals$} {name}")
    }
}

/// [`write_io_size`] of something measured: faster, and not exact to the last digit.
pub fn write_io_rate(into: &mut impl std::io::Write, value: f64) -> std::io::Result<()> {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if !(1.0..1e15).contains(&scaled) {
        return write_io_size(into, value);
    }
    write_decimals::<1000>(into, scaled)?;
    write!(into, " {}", UNITS[unit])
}

/// A number with as many decimals as `UNIT` has zeros.
pub fn write_decimals<const UNIT: u64>(into: &mut impl std::io::Write, value: f64) -> std::io::Result<()> {
    let parts = (value * UNIT as f64).round() as u64;
    let width = UNIT.ilog10() as usize;
    write!(into, "{}.{:0width$}", parts / UNIT, parts % UNIT)
}

/// [`write_io_size`] as a string.
#[must_use]
pub fn io_size(bytes: u64) -> String {
    let mut text = Vec::new();
    // Writing to a vector does not fail.
    let _ = write_io_size(&mut text, bytes as f64);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        let good = [
            ("1k", 1024),
            ("1K", 1024),
            ("1b", 1),
            ("1.5k", 1536),
            ("0x10", 16),
            ("1.0000001k", 1024),
            (".5k", 512),
            (" 1k", 1024),
            ("+1k", 1024),
            ("0.1k", 102),
            ("1.1k", 1126),
            ("7.9999E", 9_223_256_744_704_315_136),
            ("8388607T", 9_223_370_937_343_148_032),
            ("010", 10),
            ("15E", 15 << 60),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["0x10k", "0.5", "1.5", "1e3", "", "k", "1kb", "1KiB", "1k ", "0x1.8k", "1,5k", ".", "-", "0x"] {
            assert_eq!(parse(text), Err(SizeError::NotANumber), "{text}");
        }
        for text in ["-1", "16E", "99999999999999999999", "0x10000000000000000"] {
            assert_eq!(parse(text), Err(SizeError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn info_sizes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1536, "1.5 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_047_552, "0.999 MiB"),
            (1_234_944, "1.18 MiB"),
            (1_073_217_536, "1 GiB"),
            (123_457_024, "118 MiB"),
            (12_345_856, "11.8 MiB"),
            (10_000_000_000, "9.31 GiB"),
            (3 << 60, "3 EiB"),
            (1_023_488, "1e+03 KiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn io_sizes_have_three_decimals() {
        let cases = [
            (0, "0 bytes"),
            (512, "512 bytes"),
            (1536, "1.500 KiB"),
            (1_024_000, "1000 KiB"),
            (1_114_112, "1.062 MiB"),
            (1_073_217_536, "1023.500 MiB"),
            (12_345_856, "11.774 MiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(io_size(bytes), text);
        }
        let mut text = Vec::new();
        write_io_size(&mut text, 399.916_231).unwrap();
        assert_eq!(text, b"399.916231 bytes");
        for (value, rate) in [(2048.0, "2.000 KiB"), (3.5e9, "3.260 GiB"), (0.5, "0.500000 bytes"), (0.0, "0 bytes")] {
            let mut text = Vec::new();
            write_io_rate(&mut text, value).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), rate);
        }
    }
}
