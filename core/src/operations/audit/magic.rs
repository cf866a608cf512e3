//! Bytes by which programs tell formats apart: a file can be two things at once, and two programs can see two disks.

use alloc::format;

use super::{Audit, AuditFinding, AuditKind};
use crate::error::Result;
use crate::storage::ReadStorage;

/// Bytes from the start that are looked at in any case: ISO 9660 shows itself at 32 KiB. (btrfs does at 64 KiB, which is
/// looked at where it belongs to the header cluster.)
pub(super) const REACH: usize = 40 << 10;

/// What a file that begins as a qcow2 image can be besides: disks, archives, and what a kernel mounts or assembles by
/// itself when it sees it on a loop device.
const BESIDES: [(usize, &[u8], &str); 18] = [
    (32, b"NXSB", "an APFS container"),
    (64, b"\x7f\x10\xda\xbe", "a VDI image"),
    (257, b"ustar", "a tar archive"),
    (510, b"\x55\xaa", "a disk with a boot sector"),
    (512, b"EFI PART", "a disk with a GPT partition table (sectors of 512 bytes)"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"H+\0\x04", "an HFS+ file system"),
    (1024, b"HX\0\x05", "an HFSX file system"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4096, b"EFI PART", "a disk with a GPT partition table (sectors of 4 KiB)"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (0x8001, b"BEA01", "a UDF file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
];

/// What can stand in the last sector: distance from the end, bytes, name.
const ENDINGS: [(usize, &[u8], &str); 4] = [
    (512, b"conectix", "a VHD image (its footer)"),
    (512, b"koly", "a DMG image (its trailer)"),
    (512, b"EFI PART", "a disk with a backup GPT partition table"),
    (22, b"PK\x05\x06", "a ZIP archive"),
];

/// Looks for other formats in the first `cluster` bytes, which hold nothing but the header, and behind them.
pub(super) fn judge_start(start: &[u8], cluster: usize, audit: &mut Audit) {
    for (at, magic, name) in BESIDES {
        if !stands_at(start, at, magic) {
            continue;
        }
        let message = format!("at byte {at} it also looks like {name}");
        let kind = AuditKind::OtherFormat;
        // Behind the header cluster may lie what a guest has written: a nested disk, say.
        let finding =
            if at < cluster { AuditFinding::danger(kind, message) } else { AuditFinding::caution(kind, message) };
        audit.add(finding.at(u64::try_from(at).unwrap_or(u64::MAX)));
    }
}

/// Looks for other formats in the last sector.
pub(super) fn judge_end<S: ReadStorage + ?Sized>(storage: &S, length: u64, audit: &mut Audit) -> Result<()> {
    const SECTOR: usize = 512;
    let Some(from) = length.checked_sub(512) else { return Ok(()) };
    let mut end = [0u8; SECTOR];
    storage.read_at(from, &mut end)?;
    for (distance, magic, name) in ENDINGS {
        let at = SECTOR.saturating_sub(distance);
        if stands_at(&end, at, magic) {
            let message = format!("by its last sector it also looks like {name}");
            let at = from.saturating_add(u64::try_from(at).unwrap_or(0));
            audit.add(AuditFinding::caution(AuditKind::OtherFormat, message).at(at));
        }
    }
    Ok(())
}

fn stands_at(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}
