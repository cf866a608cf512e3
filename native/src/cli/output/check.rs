//! `check` as qemu-img prints it: findings on standard error, then the summary.

use std::ffi::OsStr;
use std::io::{self, Write};

use qcowkit_core::Structure;
use qcowkit_core::operations::CheckReport;
use qcowkit_core::operations::check::{Finding, FindingKind, Severity};
use qcowkit_core::operations::repair::{
    CheckSummary, OrphanedTable, RepairAction, RepairFinding, RepairPlan, RepairState,
};

use super::super::json::Json;
use super::super::personality::Personality;
use super::super::terminal::{Plain, one_line};

/// What is wrong, one line each: as qemu-img words it where it has the line, else in ours.
pub(crate) fn findings(report: &CheckReport, personality: Personality, out: &mut dyn Write) -> io::Result<()> {
    if report.findings.is_empty() {
        return Ok(());
    }
    out.flush()?;
    let mut err = io::BufWriter::new(Plain::new(io::stderr().lock(), personality.is_own()));
    if personality.is_own() {
        report.findings.iter().try_for_each(|finding| own_line(finding, &mut err))?;
    } else {
        // qemu-img looks at the flags last.
        let copied = |finding: &&Finding| finding.kind == FindingKind::CopiedFlag;
        let (flags, others): (Vec<_>, Vec<_>) = report.findings.iter().partition(copied);
        others.into_iter().chain(flags).try_for_each(|finding| qemu_lines(finding, &mut err))?;
    }
    if report.findings_omitted > 0 {
        writeln!(err, "... and {} more findings", report.findings_omitted)?;
    }
    err.flush()
}

fn own_line(finding: &Finding, err: &mut dyn Write) -> io::Result<()> {
    let word = match finding.severity {
        Severity::Corruption => "corruption",
        Severity::Leak => "leak",
        Severity::CheckError => "not checked",
        Severity::Warning => "warning",
    };
    write!(err, "{word}: {}", one_line(&finding.message, true))?;
    let mut separator = " (";
    for (name, offset) in [("host offset", finding.host_offset), ("guest offset", finding.guest_offset)] {
        if let Some(offset) = offset {
            write!(err, "{separator}{name} {offset:#x}")?;
            separator = ", ";
        }
    }
    writeln!(err, "{}", if separator == " (" { "" } else { ")" })
}

fn qemu_lines(finding: &Finding, err: &mut dyn Write) -> io::Result<()> {
    let (Some(index), Some(actual)) = (finding.index, finding.actual) else { return plain(finding, err) };
    let recorded = finding.recorded.unwrap_or(0);
    match (finding.kind, finding.structure) {
        (FindingKind::RefcountTooHigh | FindingKind::RefcountTooLow, _) => {
            let word = if finding.kind == FindingKind::RefcountTooHigh { "Leaked" } else { "ERROR" };
            for cluster in index..index.saturating_add(finding.count) {
                writeln!(err, "{word} cluster {cluster} refcount={recorded} reference={actual}")?;
            }
            Ok(())
        }
        (FindingKind::CopiedFlag, Structure::L1Table) => {
            writeln!(err, "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={recorded:x} refcount={actual}")
        }
        (FindingKind::CopiedFlag, _) => {
            writeln!(err, "ERROR OFLAG_COPIED data cluster: l2_entry={recorded:x} refcount={actual}")
        }
        _ => plain(finding, err),
    }
}

fn plain(finding: &Finding, err: &mut dyn Write) -> io::Result<()> {
    match finding.severity {
        Severity::Warning => writeln!(err, "Warning: {}", finding.message),
        Severity::Corruption | Severity::Leak | Severity::CheckError => writeln!(err, "ERROR: {}", finding.message),
    }
}

/// The summary.
pub(crate) fn human(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    if report.is_clean() {
        writeln!(out, "No errors were found on the image.")?;
    }
    if report.corruptions > 0 {
        writeln!(
            out,
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            report.corruptions
        )?;
    }
    if report.leaks > 0 {
        writeln!(
            out,
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.",
            report.leaks
        )?;
    }
    if report.check_errors > 0 {
        writeln!(out, "\n{} internal errors have occurred during the check.", report.check_errors)?;
    }
    let (all, allocated) = (report.total_clusters, report.allocated_clusters);
    if all > 0 && allocated > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        writeln!(
            out,
            "{allocated}/{all} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, all),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        )?;
    }
    if report.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", report.image_end_offset)?;
    }
    Ok(())
}

/// What a repair does, one line each.
pub(crate) fn repairs(
    planned: &RepairPlan,
    dry_run: bool,
    personality: Personality,
    out: &mut dyn Write,
) -> io::Result<()> {
    out.flush()?;
    let mut err = io::BufWriter::new(Plain::new(io::stderr().lock(), personality.is_own()));
    for finding in &planned.findings {
        let word = match finding.action {
            RepairAction::None => "cannot repair",
            _ if dry_run => "would repair",
            _ if personality.is_own() => "repairing",
            _ => "Repairing",
        };
        writeln!(err, "{word}: {}", one_line(&repair_line(finding), personality.is_own()))?;
    }
    if planned.findings_omitted > 0 {
        writeln!(err, "... and {} more findings", planned.findings_omitted)?;
    }
    if personality.is_own() {
        orphans(&planned.orphans, &mut err)?;
    }
    err.flush()
}

fn repair_line(finding: &RepairFinding) -> String {
    let mut place = Vec::new();
    let range = |name: &str, offset: u64, length: u64| match length {
        0 => format!("{name} offset {offset:#x}"),
        length => format!("{name} {offset:#x}..{:#x}", offset.saturating_add(length)),
    };
    if let Some(offset) = finding.host_offset {
        place.push(range("host", offset, finding.host_length));
    }
    if let Some(offset) = finding.guest_offset {
        place.push(range("guest", offset, finding.guest_length));
    }
    if !finding.owner.is_empty() {
        place.push(finding.owner.clone());
    }
    format!("{} ({}): {}", finding.message, place.join(", "), finding.action.words())
}

/// L2 tables that nothing leads to.
pub(crate) fn orphans(orphans: &[OrphanedTable], out: &mut dyn Write) -> io::Result<()> {
    for orphan in orphans {
        let guess = match orphan.likely_guest_offset {
            Some(offset) => format!("most likely of guest offset {offset:#x}"),
            None if orphan.possible_guest_offsets.is_empty() => "no part of the disk lacks a table".to_owned(),
            None => {
                let places = orphan.possible_guest_offsets.iter().map(|offset| format!("{offset:#x}"));
                format!("possibly of guest offset {}", places.collect::<Vec<_>>().join(", "))
            }
        };
        writeln!(
            out,
            "orphaned L2 table at host offset {:#x}: {} entries, {} lead to leaked clusters, score {}; {guess} \
             (-r all --relink HOST@GUEST puts it back; another repair frees it)",
            orphan.host_offset, orphan.entries, orphan.leaked_clusters, orphan.score
        )?;
    }
    Ok(())
}

/// What qemu-img says after a repair.
pub(crate) fn repaired(planned: &RepairPlan, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...",
        planned.leaks_fixed(),
        planned.corruptions_fixed()
    )
}

/// What a repair would come to.
pub(crate) fn prospect(planned: &RepairPlan, out: &mut dyn Write) -> io::Result<()> {
    if planned.is_empty() {
        return writeln!(out, "Nothing to repair.");
    }
    writeln!(
        out,
        "A repair would fix {} leaked clusters and {} corruptions, and write {} bytes of metadata.",
        planned.leaks_fixed(),
        planned.corruptions_fixed(),
        planned.bytes_to_write
    )?;
    let after = &planned.after;
    if after.is_clean() {
        writeln!(out, "No errors would be left.")
    } else {
        let (errors, leaks) = (after.corruptions + after.check_errors, after.leaks);
        writeln!(out, "{errors} errors and {leaks} leaked clusters would be left.")?;
        match planned.limit() {
            Some(limit) => writeln!(out, "This plan ends at a limit: {limit}. The repair goes on with what is left."),
            None => Ok(()),
        }
    }
}

/// qemu-img's members, which it leaves out where they are 0; in our own mode all of the report as well, under `qcowkit`.
pub(crate) fn json(
    report: &CheckReport,
    planned: Option<(&RepairPlan, RepairState)>,
    orphans: &[OrphanedTable],
    file: &OsStr,
    personality: Personality,
) -> io::Result<Json> {
    let name = file.to_string_lossy();
    let summary = CheckSummary::new(&name, report, orphans, planned);
    Json::of(&if personality.is_own() { summary } else { summary.as_qemu() })
}
