//! Options of an open image, under QEMU's names: `discard-no-unref=on`, `l2-cache-size=1M`, ...

use qcowkit_core::image::{DetectZeroes, OpenOptions};
use qcowkit_core::metadata::{AllocationPolicy, OverlapChecks, RetainedOp, Unref};

use super::list::{boolean, size};

/// Sets one option.
///
/// # Errors
/// An option that does not exist, or is not supported; a value that it does not take.
pub fn set(options: &mut OpenOptions, key: &str, value: &str) -> Result<(), String> {
    let wrong = || Err(format!("Parameter '{key}' does not accept value '{value}'"));
    match key {
        "read-only" => options.read_only = boolean(key, value)?,
        "discard" => options.discard = discard_mode(value)?,
        "detect-zeroes" => {
            options.detect_zeroes = match value {
                "off" => DetectZeroes::Off,
                "on" => DetectZeroes::On,
                "unmap" => DetectZeroes::Unmap,
                _ => return wrong(),
            }
        }
        "discard-no-unref" => {
            options.policy.unref = if boolean(key, value)? { Unref::RetainUnshared } else { Unref::Always };
        }
        "pass-discard-request" => options.policy.pass.request = boolean(key, value)?,
        "pass-discard-snapshot" => options.policy.pass.snapshot = boolean(key, value)?,
        "pass-discard-other" => {
            let pass = boolean(key, value)?;
            options.policy.pass.other = pass;
            options.metadata.pass_discard_other = pass;
        }
        "l2-cache-size" | "cache-size" => options.metadata.cache_bytes = size(key, value)?,
        "l2-cache-entry-size" => {
            let bytes = size(key, value)?;
            if !bytes.is_power_of_two() || bytes < 512 {
                return Err(format!("'{key}' must be a power of two of at least 512 bytes"));
            }
            options.metadata.slice_bytes = bytes;
        }
        "overlap-check" | "overlap-check.template" => {
            options.overlap = OverlapChecks::template(value).ok_or_else(|| {
                format!(
                    "Unsupported value '{value}' for qcow2 option 'overlap-check'. Allowed are any of the following: \
                     none, constant, cached, all"
                )
            })?;
        }
        _ if key.starts_with("overlap-check.") => {
            let class = key.strip_prefix("overlap-check.").and_then(OverlapChecks::class);
            let class = class.ok_or_else(|| format!("Invalid parameter '{key}'"))?;
            let checks = options.overlap;
            options.overlap = if boolean(key, value)? { checks.with(class) } else { checks.without(class) };
        }
        // Refcounts are kept exact, which an image with lazy refcounts allows.
        "lazy-refcounts" => drop(boolean(key, value)?),
        _ => return set_own(options, key, value),
    }
    Ok(())
}

/// Whether images of each format have an option; the others are of qcow2 alone.
#[must_use]
pub fn is_for_all_formats(key: &str) -> bool {
    matches!(key, "read-only" | "discard" | "detect-zeroes")
}

/// The options that QEMU does not have.
fn set_own(options: &mut OpenOptions, key: &str, value: &str) -> Result<(), String> {
    let wrong = || Err(format!("Parameter '{key}' does not accept value '{value}'"));
    match key {
        "allocation" => {
            options.metadata.allocation = match value {
                "qemu" => AllocationPolicy::Qemu,
                "fill-holes" => AllocationPolicy::FillHoles,
                "near" => AllocationPolicy::Near,
                _ => return wrong(),
            }
        }
        "unref" => {
            options.policy.unref = match value {
                "always" => Unref::Always,
                "retain-unshared" => Unref::RetainUnshared,
                "retain-qemu" => Unref::RetainQemu,
                _ => return wrong(),
            }
        }
        "retained-op" => {
            options.policy.retained_op = match value {
                "punch" => RetainedOp::Punch,
                "zero-range" => RetainedOp::ZeroRange,
                "none" => RetainedOp::None,
                _ => return wrong(),
            }
        }
        "quarantine" => options.metadata.quarantine_bytes = size(key, value)?,
        "refcount-cache-size" | "cache-clean-interval" => {
            return Err(format!("the run-time option '{key}' is not supported by qcowkit"));
        }
        _ => return Err(format!("Invalid parameter '{key}'")),
    }
    Ok(())
}

/// What discards and writes of zeros do, in the words that [`set`] takes.
#[must_use]
pub fn policy_words(options: &OpenOptions) -> Vec<(&'static str, &'static str)> {
    let on = |on: bool| if on { "on" } else { "off" };
    let (pass, unref) = (options.policy.pass, options.policy.unref);
    let mut words = vec![
        ("discard", if options.discard { "unmap" } else { "ignore" }),
        ("discard-no-unref", on(unref != Unref::Always)),
        ("pass-discard-request", on(pass.request)),
        ("pass-discard-snapshot", on(pass.snapshot)),
        ("pass-discard-other", on(pass.other)),
        (
            "detect-zeroes",
            match options.detect_zeroes {
                DetectZeroes::Off => "off",
                DetectZeroes::On => "on",
                DetectZeroes::Unmap => "unmap",
            },
        ),
        (
            "allocation",
            match options.metadata.allocation {
                AllocationPolicy::Qemu => "qemu",
                AllocationPolicy::FillHoles => "fill-holes",
                AllocationPolicy::Near => "near",
            },
        ),
        (
            "retained-op",
            match options.policy.retained_op {
                RetainedOp::Punch => "punch",
                RetainedOp::ZeroRange => "zero-range",
                RetainedOp::None => "none",
            },
        ),
    ];
    if unref == Unref::RetainQemu {
        words.push(("unref", "retain-qemu"));
    }
    words
}

/// `unmap` or `ignore`, with QEMU's other words for them.
///
/// # Errors
/// Another word.
pub fn discard_mode(value: &str) -> Result<bool, String> {
    match value {
        "unmap" | "on" => Ok(true),
        "ignore" | "off" => Ok(false),
        _ => Err(format!("Invalid discard option: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_their_place() {
        let mut options = OpenOptions::default();
        for (key, value) in [
            ("discard-no-unref", "on"),
            ("pass-discard-request", "off"),
            ("pass-discard-other", "on"),
            ("detect-zeroes", "unmap"),
            ("discard", "ignore"),
            ("l2-cache-size", "1M"),
            ("l2-cache-entry-size", "4k"),
            ("allocation", "near"),
            ("overlap-check", "constant"),
            ("overlap-check.inactive-l2", "on"),
            ("overlap-check.main-header", "off"),
        ] {
            assert_eq!(set(&mut options, key, value), Ok(()), "{key}");
        }
        assert_eq!(options.policy.unref, Unref::RetainUnshared);
        assert!(!options.policy.pass.request && options.policy.pass.other && options.metadata.pass_discard_other);
        assert_eq!((options.detect_zeroes, options.discard), (DetectZeroes::Unmap, false));
        assert_eq!((options.metadata.cache_bytes, options.metadata.slice_bytes), (1 << 20, 4096));
        assert_eq!(options.metadata.allocation, AllocationPolicy::Near);
        let checks = OverlapChecks::CONSTANT.with(OverlapChecks::INACTIVE_L2).without(OverlapChecks::MAIN_HEADER);
        assert_eq!(options.overlap, checks);
    }

    #[test]
    fn the_words_of_a_policy_make_it_again() {
        for unref in ["always", "retain-unshared", "retain-qemu"] {
            let mut options = OpenOptions::default();
            for (key, value) in [
                ("unref", unref),
                ("discard", "ignore"),
                ("pass-discard-request", "off"),
                ("pass-discard-other", "on"),
                ("detect-zeroes", "on"),
                ("allocation", "fill-holes"),
                ("retained-op", "zero-range"),
            ] {
                assert_eq!(set(&mut options, key, value), Ok(()), "{key}");
            }
            let mut again = OpenOptions::default();
            for (key, value) in policy_words(&options) {
                assert_eq!(set(&mut again, key, value), Ok(()), "{key}");
            }
            assert_eq!((again.policy, again.discard), (options.policy, options.discard));
            assert_eq!(again.detect_zeroes, options.detect_zeroes);
            assert_eq!(again.metadata.allocation, options.metadata.allocation);
            assert_eq!(again.metadata.pass_discard_other, options.metadata.pass_discard_other);
        }
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let mut options = OpenOptions::default();
        for (key, value) in [
            ("foo", "1"),
            ("overlap-check", "some"),
            ("overlap-check.data", "on"),
            ("overlap-check.inactive-l2", "maybe"),
            ("discard", "maybe"),
            ("l2-cache-entry-size", "1000"),
            ("detect-zeroes", "1"),
            ("discard-no-unref", "1"),
        ] {
            assert!(set(&mut options, key, value).is_err(), "{key}={value}");
        }
    }
}
