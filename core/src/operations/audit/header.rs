//! What the first cluster says.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{
    Audit, AuditFinding, AuditKind, AuditOptions, AuditReference, LARGE_VIRTUAL_SIZE, NamedFile, Target, magic,
};
use crate::error::{ErrorKind, Structure};
use crate::format::{Extension, HeaderArea, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Name};
use crate::zeros::is_zero;

/// Bytes of a name, and kinds of extensions, that a message quotes.
const MAX_QUOTED: usize = 1023;
const MAX_KINDS: usize = 16;
/// The shortest entry of a snapshot table, in bytes.
const SNAPSHOT_ENTRY: u64 = 40;

/// Judges the first bytes of a file.
pub(super) fn judge(start: &[u8], options: &AuditOptions, audit: &mut Audit) {
    if audit.format != "qcow2" {
        let message = format!("it is not a qcow2 image but {}", audit.format);
        audit.add(AuditFinding::danger(AuditKind::NotQcow2, message).at(0));
        return;
    }
    let area = match HeaderArea::parse(start) {
        Ok(area) => area,
        Err(error) => {
            audit.add(AuditFinding::danger(AuditKind::DamagedHeader, format!("{error}")).on(Structure::Header));
            return;
        }
    };
    let header = &area.header;
    let possible = (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&header.cluster_bits);
    let cluster_size = possible.then(|| 1u64.wrapping_shl(header.cluster_bits));
    audit.version = Some(header.version);
    audit.virtual_size = Some(header.virtual_size);
    audit.cluster_size = cluster_size;
    audit.snapshots = Some(header.snapshot_count);
    judge_names(&area, audit);
    judge_features(&area, audit);
    judge_sizes(&area, options, audit);
    if let Some(cluster_size) = cluster_size {
        judge_places(&area, cluster_size, audit);
        let cluster = usize::try_from(cluster_size).unwrap_or(usize::MAX);
        magic::judge_start(start, cluster, audit);
        if area.damage.is_none() {
            judge_rest(&area, start.get(..cluster).unwrap_or(start), audit);
        }
    }
}

/// Backing file and data file. Whoever opens the image opens these too.
fn judge_names(area: &HeaderArea, audit: &mut Audit) {
    if let Some(name) = &area.backing_file {
        let target = Target::of(name);
        let message = format!("it names the backing file {}: {}", quoted(name), target.words());
        let kind = AuditKind::BackingFile;
        // Below its own directory is where an operator keeps a chain; still, it is another's file.
        let finding = match target {
            Target::Below => AuditFinding::caution(kind, message),
            _ => AuditFinding::danger(kind, message),
        };
        audit.add(finding.on(Structure::BackingFile).at(area.header.backing_file_offset));
        judge_backing_format(area.backing_format(), audit);
        let format = area.backing_format().cloned();
        audit.references.push(AuditReference { role: NamedFile::BackingFile, name: name.clone(), format, target });
    }
    // Some programs go by the extension, others by the bit: either is enough.
    let name = area.data_file().cloned();
    if area.header.incompatible.data_file() || name.is_some() {
        // Guest data are read from there, and written there: no place is harmless.
        let message = match &name {
            Some(name) => format!("it names the data file {}: {}", quoted(name), Target::of(name).words()),
            None => String::from("it keeps its data in a data file that it does not name"),
        };
        audit.add(AuditFinding::danger(AuditKind::DataFile, message).on(Structure::DataFile));
    }
    if let Some(name) = name {
        let target = Target::of(&name);
        audit.references.push(AuditReference { role: NamedFile::DataFile, name, format: None, target });
    }
}

fn judge_backing_format(format: Option<&Name>, audit: &mut Audit) {
    let message = match format {
        None => String::from(
            "the format of the backing file is not stated: whoever guesses it trusts the bytes of that file",
        ),
        Some(format) if *format == "qcow2" || *format == "raw" => return,
        Some(format) => format!("the format of the backing file is {}", quoted(format)),
    };
    audit.add(AuditFinding::caution(AuditKind::BackingFormat, message).on(Structure::BackingFile));
}

/// A name for a message: a header cluster has room for one of two million bytes.
fn quoted(name: &Name) -> String {
    let bytes = name.as_bytes();
    match bytes.get(..MAX_QUOTED) {
        Some(start) if bytes.len() > MAX_QUOTED => format!("{:?}... ({} bytes)", Name::new(start), bytes.len()),
        _ => format!("{name:?}"),
    }
}

fn judge_features(area: &HeaderArea, audit: &mut Audit) {
    let header = &area.header;
    let unknown = header.incompatible.unknown();
    if !unknown.is_empty() {
        let names = unknown.names(area.feature_names());
        let message = format!("it needs features that are not known: {names:?}");
        audit.add(AuditFinding::danger(AuditKind::UnknownFeature, message).on(Structure::Header).at(72));
    }
    for (names, at) in [
        (header.compatible.unknown().names(area.feature_names()), 80),
        (header.autoclear.unknown().names(area.feature_names()), 88),
    ] {
        if !names.is_empty() {
            let message = format!("it has features that are not known and may be ignored: {names:?}");
            audit.add(AuditFinding::note(AuditKind::UnknownFeature, message).on(Structure::Header).at(at));
        }
    }
    let unknown = area.extensions.iter().filter(|extension| extension.kind_name().is_none()).map(Extension::kind);
    let kinds: Vec<String> = unknown.clone().take(MAX_KINDS).map(|kind| format!("{kind:#010x}")).collect();
    if !kinds.is_empty() {
        let more = unknown.count().saturating_sub(MAX_KINDS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("it has header extensions of kinds that are not known: {}{more}", kinds.join(", "));
        audit.add(AuditFinding::note(AuditKind::UnknownFeature, message).on(Structure::HeaderExtension));
    }
    if header.incompatible.dirty() {
        let message = "it is marked dirty: opening it for writing rebuilds its refcounts";
        audit.add(AuditFinding::caution(AuditKind::Dirty, message).on(Structure::Header).at(72));
    }
    if header.incompatible.corrupt() {
        let message = "it is marked corrupt";
        audit.add(AuditFinding::danger(AuditKind::Corrupt, message).on(Structure::Header).at(72));
    }
    match header.crypt_method {
        0 => {}
        2 => audit.add(AuditFinding::note(AuditKind::Encrypted, "its data are encrypted with LUKS").at(32)),
        1 => {
            let message = "its data are encrypted with the legacy method AES, which protects little";
            audit.add(AuditFinding::caution(AuditKind::Encrypted, message).at(32));
        }
        other => {
            let message = format!("its data are encrypted with the unknown method {other}");
            audit.add(AuditFinding::danger(AuditKind::Encrypted, message).at(32));
        }
    }
}

/// Sizes against their limits, and whatever else an opener refuses.
fn judge_sizes(area: &HeaderArea, options: &AuditOptions, audit: &mut Audit) {
    let size = area.header.virtual_size;
    let at = 24;
    match options.max_virtual_size {
        Some(most) if size > most => {
            let message = format!("its virtual disk has {size} bytes, {most} are allowed");
            audit.add(AuditFinding::danger(AuditKind::AbsurdSize, message).on(Structure::Header).at(at));
        }
        None if size > LARGE_VIRTUAL_SIZE => {
            let message = format!("its virtual disk has {size} bytes, more than 64 TiB");
            audit.add(AuditFinding::caution(AuditKind::AbsurdSize, message).on(Structure::Header).at(at));
        }
        Some(_) | None => {}
    }
    // Unknown features and unknown methods of encryption were named above.
    let judged = area.validate(audit.file_length).and_then(|geometry| area.usable_bitmaps(&geometry).map(drop));
    let Err(error) = judged else { return };
    let kind = match error.kind() {
        ErrorKind::Limit(_) => AuditKind::AbsurdSize,
        ErrorKind::Unsupported(_) if audit.verdict == super::Verdict::Danger => return,
        ErrorKind::Unsupported(_) => AuditKind::UnknownFeature,
        _ => AuditKind::DamagedHeader,
    };
    let structure = error.site().structure.unwrap_or(Structure::Header);
    let finding = AuditFinding::danger(kind, format!("it cannot be opened: {error}")).on(structure);
    audit.add(match error.site().host_offset {
        Some(offset) => finding.at(offset),
        None => finding,
    });
}

/// A structure whose place the header says: name, first byte, bytes.
type Place = (Structure, u64, u64);

/// Structures on each other, or beyond the file.
fn judge_places(area: &HeaderArea, cluster_size: u64, audit: &mut Audit) {
    let header = &area.header;
    let tables = u64::from(header.refcount_table_clusters).saturating_mul(cluster_size);
    let mut places: Vec<Place> = alloc::vec![
        (Structure::Header, 0, cluster_size),
        (Structure::L1Table, header.l1_table_offset, u64::from(header.l1_size).saturating_mul(8)),
        (Structure::RefcountTable, header.refcount_table_offset, tables),
    ];
    let snapshots = u64::from(header.snapshot_count).saturating_mul(SNAPSHOT_ENTRY);
    places.push((Structure::SnapshotTable, header.snapshots_offset, snapshots));
    if let Some(bitmaps) = area.consistent_bitmaps() {
        places.push((Structure::BitmapDirectory, bitmaps.directory_offset, bitmaps.directory_size));
    }
    if let Some((offset, length)) = area.crypto_header() {
        places.push((Structure::CryptoHeader, offset, length));
    }
    places.retain(|&(_, _, length)| length > 0);
    for (n, &(structure, offset, length)) in places.iter().enumerate() {
        if audit.file_length.is_some_and(|end| offset >= end) {
            let message = format!("the {structure} begins beyond the end of the file");
            audit.add(AuditFinding::danger(AuditKind::BeyondEndOfFile, message).on(structure).at(offset));
        }
        for &(other, other_offset, other_length) in places.iter().skip(n.saturating_add(1)) {
            let (end, other_end) = (offset.saturating_add(length), other_offset.saturating_add(other_length));
            if offset < other_end && other_offset < end {
                let message = format!("the {other} lies on the {structure}");
                let at = offset.max(other_offset);
                audit.add(AuditFinding::danger(AuditKind::Overlap, message).on(other).at(at));
            }
        }
    }
}

/// Bytes of the header cluster that neither header, extensions nor name account for. They are zeros in every image that
/// a known program has written.
fn judge_rest(area: &HeaderArea, cluster: &[u8], audit: &mut Audit) {
    let header = &area.header;
    let mut end = usize::try_from(header.header_length).unwrap_or(usize::MAX);
    for extension in &area.extensions {
        let padded = extension.data().len().saturating_add(7) & !7;
        end = end.saturating_add(padded).saturating_add(8);
    }
    let name_start = usize::try_from(header.backing_file_offset).unwrap_or(usize::MAX);
    let name_end = name_start.saturating_add(usize::try_from(header.backing_file_size).unwrap_or(usize::MAX));
    // The marker that ends the extensions counts 8 bytes, whose length field QEMU ignores.
    let end = end.saturating_add(8);
    let until_name = if name_start > 0 { name_start } else { usize::MAX };
    let (mut first, mut count) = (None, 0usize);
    for (from, until) in [(end, until_name), (name_end.max(end).max(until_name), usize::MAX)] {
        let part = cluster.get(from..until.min(cluster.len())).unwrap_or_default();
        let Some(at) = first_not_zero(part) else { continue };
        first = first.or(Some(from.saturating_add(at)));
        count = count.saturating_add(not_zero(part));
    }
    if let Some(first) = first {
        let message = format!("{count} bytes of the header cluster from byte {first} on belong to nothing");
        let at = u64::try_from(first).unwrap_or(u64::MAX);
        audit.add(AuditFinding::caution(AuditKind::HiddenData, message).on(Structure::Header).at(at));
    }
}

fn first_not_zero(bytes: &[u8]) -> Option<usize> {
    const CHUNK: usize = 4096;
    let (from, chunk) = (0usize..).step_by(CHUNK).zip(bytes.chunks(CHUNK)).find(|(_, chunk)| !is_zero(chunk))?;
    chunk.iter().position(|&byte| byte != 0).map(|at| from.saturating_add(at))
}

/// Bytes that are not zero. A cluster has up to two million: they are counted in rows that a compiler turns into wide
/// registers, of which each column fits a byte.
fn not_zero(bytes: &[u8]) -> usize {
    let row = |row: &[u8]| row.iter().fold(0u8, |count, &byte| count.wrapping_add(u8::from(byte != 0)));
    bytes.chunks(128).fold(0, |count, chunk| count.saturating_add(usize::from(row(chunk))))
}
