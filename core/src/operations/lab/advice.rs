//! What the numbers speak for.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::render::{Unit, backup_bytes};
use super::{LabReport, LabRun};
use crate::image::Preallocation;
use crate::metadata::AllocationPolicy;

/// A recommendation, and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Advice {
    /// The name of the configuration that comes out best; empty without runs.
    pub best: String,
    /// Why, one sentence each.
    pub reasons: Vec<String>,
    /// Every configuration with its score, best first. The score is a sum of ratios to the best of all runs, in parts
    /// per million: the longest file, the space on the host and the backups count in full, discontinuities and barriers
    /// a quarter each and no more than threefold, since they cost time and not space.
    pub ranking: Vec<Ranked>,
}

/// A configuration and its score.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Ranked {
    /// The configuration's name.
    pub name: String,
    /// Lower is better.
    pub score_ppm: u64,
}

/// A number that is better when it is lower; its weight in percent; the largest ratio that counts.
struct Criterion {
    read: fn(&LabRun) -> u64,
    weight: u64,
    most_ppm: u64,
    /// What is added to both sides of the ratio, so that 3 against 1 of something does not count as threefold.
    floor: fn(&LabReport) -> u64,
}

const CRITERIA: [Criterion; 5] = [
    Criterion { read: |run| run.peak_file_length, weight: 100, most_ppm: u64::MAX, floor: |_| 1 },
    Criterion { read: |run| run.end.host_bytes, weight: 100, most_ppm: u64::MAX, floor: |_| 1 },
    Criterion { read: backup_bytes, weight: 100, most_ppm: u64::MAX, floor: |report| report.virtual_size / 1000 },
    Criterion {
        read: |run| run.end.discontinuities,
        weight: 25,
        most_ppm: 3_000_000,
        floor: |report| report.trace.operations / 100,
    },
    Criterion {
        read: |run| run.end.barriers,
        weight: 25,
        most_ppm: 3_000_000,
        floor: |report| report.trace.operations / 100,
    },
];

/// Compares the runs of a report.
#[must_use]
pub fn advise(report: &LabReport) -> Advice {
    let mut order: Vec<(u64, &LabRun)> = report.runs.iter().map(|run| (score(report, run), run)).collect();
    order.sort_by_key(|(score, _)| *score);
    let ranking = order.iter().map(|(score_ppm, run)| Ranked { name: run.config.name.clone(), score_ppm: *score_ppm });
    let ranking = ranking.collect();
    let Some((_, best)) = order.first().copied() else {
        return Advice { best: String::new(), reasons: Vec::new(), ranking };
    };
    let mut reasons = Vec::new();
    for (dimension, value) in DIMENSIONS {
        let mine = value(best);
        // Of each other value, the run that came out best.
        let mut others: Vec<(String, &LabRun)> = Vec::new();
        for (_, run) in &order {
            let theirs = value(run);
            if theirs != mine && !others.iter().any(|(seen, _)| *seen == theirs) {
                others.push((theirs, run));
            }
        }
        if others.is_empty() {
            reasons.push(format!("{dimension} {mine}: nothing else was tried"));
        } else {
            let mut reason = format!("{dimension} {mine}: {}", numbers(best));
            for (theirs, run) in others {
                reason.push_str(&format!("; with {theirs} ({}): {}", run.config.name, numbers(run)));
            }
            reasons.push(reason);
        }
    }
    Advice { best: best.config.name.clone(), reasons, ranking }
}

/// What is decided, and how its value is called.
type Dimension = (&'static str, fn(&LabRun) -> String);

const DIMENSIONS: [Dimension; 4] = [
    ("policy", |run| run.config.policy_name().to_string()),
    ("preallocation", |run| {
        let word = match run.config.preallocation {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        };
        word.to_string()
    }),
    ("cluster size", |run| {
        let subclusters = if run.config.extended_l2 { " with subclusters" } else { "" };
        format!("{} KiB{subclusters}", run.config.cluster_size / 1024)
    }),
    ("allocator", |run| {
        match run.config.allocation {
            AllocationPolicy::Qemu => "qemu",
            AllocationPolicy::FillHoles => "fill-holes",
            AllocationPolicy::Near => "near",
        }
        .to_string()
    }),
];

fn numbers(run: &LabRun) -> String {
    format!(
        "file up to {}, {} on the host, backups of {}, {} discontinuities, {} barriers",
        Unit::Bytes.show(run.peak_file_length),
        Unit::Bytes.show(run.end.host_bytes),
        Unit::Bytes.show(backup_bytes(run)),
        run.end.discontinuities,
        run.end.barriers
    )
}

fn score(report: &LabReport, run: &LabRun) -> u64 {
    CRITERIA.iter().fold(0, |sum, criterion| {
        let floor = (criterion.floor)(report).max(1);
        let best = report.runs.iter().map(criterion.read).min().unwrap_or(0).saturating_add(floor);
        let mine = (criterion.read)(run).saturating_add(floor);
        let ratio = u128::from(mine).saturating_mul(1_000_000).checked_div(best.into()).unwrap_or(0);
        let ratio = u64::try_from(ratio).unwrap_or(u64::MAX).min(criterion.most_ppm);
        sum.saturating_add(ratio.saturating_mul(criterion.weight) / 100)
    })
}
