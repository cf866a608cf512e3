//! Counting: what each test runner's closing lines say, added up.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };

    /// A check that either holds or not.
    pub(crate) fn of(holds: bool) -> Self {
        if holds { Self::PASSED } else { Self::FAILED }
    }

    /// The tally of a runner's output. A runner that failed without counting a failure (it did not
    /// compile, or was killed) counts as one; so does one that ran nothing.
    pub(crate) fn read(lines: &[String], success: bool, runner: fn(&str) -> Option<Self>) -> Self {
        let mut sum = Self::default();
        for tally in lines.iter().filter_map(|line| runner(line)) {
            sum += tally;
        }
        if sum.failed == 0 && (!success || sum == Self::default()) {
            sum.failed = 1;
        }
        sum
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; ...`
pub(crate) fn cargo(line: &str) -> Option<Tally> {
    let counts = line.trim().strip_prefix("test result:")?;
    Some(Tally {
        passed: before(counts, "passed")?,
        failed: before(counts, "failed")?,
        skipped: before(counts, "ignored").unwrap_or(0),
    })
}

/// Tests that passed because they had nothing to run on. They say so themselves, in a line `skipped: why`; it is seen
/// where cargo's `--show-output` prints what passing tests printed, below `---- NAME stdout ----`.
pub(crate) fn skipped_inside(lines: &[String]) -> u64 {
    let mut counted = false;
    let mut skipped = 0;
    for line in lines {
        if line.starts_with("---- ") {
            counted = false;
        } else if line.starts_with("skipped: ") && !counted {
            counted = true;
            skipped += 1;
        }
    }
    skipped
}

/// `2 failed, 10 passed, 1 skipped in 0.12s`, with or without the bar of equals signs around it.
pub(crate) fn pytest(line: &str) -> Option<Tally> {
    let line = line.trim_matches(['=', ' ']);
    let (counts, time) = line.rsplit_once(" in ")?;
    if !time.contains('s') || !counts.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let of = |word| before(counts, word).unwrap_or(0);
    let tally = Tally {
        passed: of("passed") + of("xfailed"),
        failed: of("failed") + of("error") + of("errors") + of("xpassed"),
        skipped: of("skipped"),
    };
    (tally != Tally::default()).then_some(tally)
}

/// Node's test runner: `# pass 3` (TAP) or `i pass 3` with an information sign, one line a count.
pub(crate) fn node(line: &str) -> Option<Tally> {
    let mut words = line.trim().trim_start_matches(['#', '\u{2139}', ' ']).split(' ');
    let (word, count) = (words.next()?, words.next()?.parse().ok()?);
    if words.next().is_some() || !line.starts_with(['#', '\u{2139}']) {
        return None;
    }
    match word {
        "pass" => Some(Tally { passed: count, ..Tally::default() }),
        "fail" | "cancelled" => Some(Tally { failed: count, ..Tally::default() }),
        "skipped" | "todo" => Some(Tally { skipped: count, ..Tally::default() }),
        _ => None,
    }
}

/// The number in front of a word: 3 in `ok. 3 passed; 0 failed`.
fn before(text: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = text.split([' ', ';', ',']).filter(|part| !part.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally { passed, failed, skipped })
    }

    #[test]
    fn cargo_closing_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(cargo(line), counts(12, 3, 1));
        assert_eq!(cargo("running 3 tests"), None);
    }

    #[test]
    fn a_test_that_says_so_twice_is_skipped_once() {
        let lines =
            ["---- a stdout ----", "skipped: no x", "skipped: no x", "---- b stdout ----", "skipped: no y", "ok"];
        assert_eq!(skipped_inside(&lines.map(str::to_owned)), 2);
    }

    #[test]
    fn pytest_closing_lines_are_counted() {
        assert_eq!(pytest("===== 2 failed, 10 passed, 1 skipped in 0.12s ====="), counts(10, 2, 1));
        assert_eq!(pytest("1 passed, 2 errors in 61.00s (0:01:01)"), counts(1, 2, 0));
        assert_eq!(pytest("installed 3 packages in 2s"), None);
        assert_eq!(pytest("no tests ran in 0.01s"), None);
    }

    #[test]
    fn node_closing_lines_are_counted() {
        assert_eq!(node("# pass 4"), counts(4, 0, 0));
        assert_eq!(node("\u{2139} fail 2"), counts(0, 2, 0));
        assert_eq!(node("# duration_ms 12.5"), None);
        assert_eq!(node("pass 4"), None);
    }

    #[test]
    fn a_runner_that_dies_or_runs_nothing_is_a_failure() {
        let none: [String; 0] = [];
        assert_eq!(Tally::read(&none, true, cargo), Tally::FAILED);
        let good = ["test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured".to_owned()];
        assert_eq!(Tally::read(&good, true, cargo).failed, 0);
        assert_eq!(Tally::read(&good, false, cargo), Tally { passed: 2, failed: 1, skipped: 0 });
    }

    #[test]
    fn the_closing_line_names_skips_only_if_there_are_any() {
        assert_eq!(Tally::PASSED.to_string(), "1 passed, 0 failed");
        assert_eq!(Tally::SKIPPED.to_string(), "0 passed, 0 failed, 1 skipped");
    }
}
