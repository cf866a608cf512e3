//! Numbers and ranges in lines of text.

use alloc::format;
use alloc::string::String;

/// The end of the largest disk that the format can describe.
const MAX_DISK: u64 = 1 << 63;

/// A number of bytes or sectors, decimal.
pub(super) fn number(word: Option<&str>, what: &str) -> Result<u64, String> {
    let word = word.ok_or_else(|| format!("the {what} is missing"))?;
    word.parse().map_err(|_| format!("the {what} is no number: {word}"))
}

/// A size as `qemu-io` takes it: decimal or `0x`, with a suffix `k` to `E` in steps of 1024, or `b`.
pub(super) fn size(word: Option<&str>, what: &str) -> Result<u64, String> {
    let word = word.ok_or_else(|| format!("the {what} is missing"))?;
    let wrong = || format!("the {what} is no size: {word}");
    if let Some(digits) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).map_err(|_| wrong());
    }
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match word.get(digits.len()..).unwrap_or_default() {
        "" | "b" | "B" => 0u32,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(wrong()),
    };
    let unit = 1u64.checked_shl(shift).ok_or_else(wrong)?;
    // Fractions, as in 1.5G: exact, since the unit is a power of two and the digits few.
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut bytes = whole.checked_mul(unit).ok_or_else(wrong)?;
    if !fraction.is_empty() {
        let places = u32::try_from(fraction.len()).ok().filter(|&places| places <= 9).ok_or_else(wrong)?;
        let scale = 10u128.checked_pow(places).ok_or_else(wrong)?;
        let part: u64 = fraction.parse().map_err(|_| wrong())?;
        let part = u128::from(part).checked_mul(unit.into()).and_then(|product| product.checked_div(scale));
        bytes = part
            .and_then(|part| u64::try_from(part).ok())
            .and_then(|part| bytes.checked_add(part))
            .ok_or_else(wrong)?;
    }
    Ok(bytes)
}

/// A range that a disk can have; `None` when it is empty.
pub(super) fn range(offset: u64, length: u64) -> Result<Option<(u64, u64)>, String> {
    match offset.checked_add(length) {
        Some(end) if end <= MAX_DISK => Ok((length > 0).then_some((offset, length))),
        Some(_) | None => Err("the range lies beyond 2^63 bytes".into()),
    }
}
