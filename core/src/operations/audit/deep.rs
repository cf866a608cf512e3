//! What only the rest of the file can tell.

use alloc::format;
use alloc::vec::Vec;

use super::{Audit, AuditFinding, AuditKind, MANY_ITERATIONS, NamedFile};
use crate::error::{Result, Structure};
use crate::format::{HeaderArea, LuksHeader};
use crate::operations::check::{CheckReport, Severity, check};
use crate::operations::read_header;
use crate::storage::{ReadStorage, StorageExtentKind};

/// Findings of a check that are repeated in the audit; the counts say the rest.
const MAX_QUOTED: usize = 10;
/// How many times the bytes of the file its disk may hold before it counts as a bomb: deflate packs 1 to 1032 at best, and
/// no disk consists of that alone.
const MAX_EXPANSION: u64 = 1000;
/// Bytes of data (1 GiB) that harm nobody, from however small a file they come.
const HARMLESS_DATA: u64 = 1 << 30;
/// Bytes that are looked at in one go.
const PIECE: u64 = 1 << 20;

/// The price of trying a key. Whoever has the key still pays it: 2^32 rounds take an hour.
pub(super) fn judge_keys<S: ReadStorage + ?Sized>(storage: &S, start: &[u8], audit: &mut Audit) -> Result<()> {
    let Ok(area) = HeaderArea::parse(start) else { return Ok(()) };
    let Some((offset, length)) = area.crypto_header() else { return Ok(()) };
    let mut bytes = [0u8; LuksHeader::LENGTH];
    if area.header.crypt_method != 2 || length < u64::try_from(bytes.len()).unwrap_or(u64::MAX) {
        return Ok(());
    }
    storage.read_at(offset, &mut bytes)?;
    match LuksHeader::parse(&bytes, offset) {
        Err(error) => {
            let message = format!("it cannot be decrypted: {error}");
            audit.add(AuditFinding::danger(AuditKind::Encrypted, message).on(Structure::CryptoHeader).at(offset));
        }
        Ok(luks) => {
            let slots = luks.slots.iter().filter(|slot| slot.active).map(|slot| slot.iterations);
            let most = slots.chain([luks.master_key_iterations]).max().unwrap_or(0);
            if most > MANY_ITERATIONS {
                let message = format!("trying a key takes {most} rounds of its key derivation");
                audit.add(AuditFinding::danger(AuditKind::Encrypted, message).on(Structure::CryptoHeader).at(offset));
            }
        }
    }
    Ok(())
}

/// Every table, as a check sees them, and what lies behind the last cluster in use.
pub(super) fn judge<S: ReadStorage + ?Sized>(
    storage: &S,
    audit: &mut Audit,
    progress: &mut dyn FnMut(f64),
) -> Result<()> {
    let Ok(area) = read_header(storage) else { return Ok(()) };
    // What forbids a check forbids opening too, and is a finding already.
    let Ok(report) = check(storage, &area, progress) else { return Ok(()) };
    let serious = |severity| matches!(severity, Severity::Corruption | Severity::CheckError);
    let quoted = report.findings.iter().filter(|finding| serious(finding.severity)).take(MAX_QUOTED);
    for finding in quoted {
        let same = AuditFinding::danger(AuditKind::Metadata, finding.message.clone()).on(finding.structure);
        audit.add(match finding.host_offset {
            Some(offset) => same.at(offset),
            None => same,
        });
    }
    let (corruptions, errors) = (report.corruptions, report.check_errors);
    if corruptions > 0 || errors > 0 {
        let message = format!("a check finds {corruptions} errors, and {errors} things that it cannot check");
        audit.add(AuditFinding::danger(AuditKind::Metadata, message));
    }
    judge_expansion(&report, storage.len()?, audit);
    if report.leaks > 0 {
        let message = format!("{} clusters are marked as used and belong to nothing", report.leaks);
        audit.add(AuditFinding::note(AuditKind::Leaks, message));
    }
    if !report.incomplete {
        judge_trailing(storage, report.image_end_offset, audit)?;
    }
    Ok(())
}

/// Data out of next to nothing: clusters that are packed, or named, over and over. Whoever copies the disk writes them all.
fn judge_expansion(report: &CheckReport, file_length: u64, audit: &mut Audit) {
    let data = report.allocated_clusters.saturating_mul(audit.cluster_size.unwrap_or(0));
    let times = data.checked_div(file_length).unwrap_or(0);
    if data > HARMLESS_DATA && times > MAX_EXPANSION && !audit.references.iter().any(|r| r.role == NamedFile::DataFile)
    {
        let message = format!("its disk holds {data} bytes of data, {times} times the bytes of the file");
        audit.add(AuditFinding::danger(AuditKind::AbsurdSize, message).on(Structure::L2Table));
    }
}

/// Data behind the last cluster in use: no reader of the image sees them, and a copy of the file carries them along.
fn judge_trailing<S: ReadStorage + ?Sized>(storage: &S, end_of_use: u64, audit: &mut Audit) -> Result<()> {
    let length = storage.len()?;
    let mut bytes = Vec::new();
    let (mut at, mut count, mut first) = (end_of_use, 0u64, None);
    while at < length {
        let extent = storage.next_extent(at)?;
        let here = extent.length.clamp(1, length.saturating_sub(at));
        if extent.kind == StorageExtentKind::Hole {
            at = at.saturating_add(here);
            continue;
        }
        let here = here.min(PIECE);
        bytes.resize(usize::try_from(here).unwrap_or(0), 0);
        storage.read_at(at, &mut bytes)?;
        if let Some(position) = bytes.iter().position(|&byte| byte != 0) {
            first = first.or(Some(at.saturating_add(u64::try_from(position).unwrap_or(0))));
            let set = bytes.iter().filter(|&&byte| byte != 0).count();
            count = count.saturating_add(u64::try_from(set).unwrap_or(0));
        }
        at = at.saturating_add(here);
    }
    if let Some(first) = first {
        let message = format!("{count} bytes that are not zero lie behind the last cluster in use");
        audit.add(AuditFinding::caution(AuditKind::TrailingData, message).at(first));
    }
    Ok(())
}
