//! What types of partitions are called. Those that guests of today have; others are told by number.

use gpt_disk_types::{GptPartitionType, Guid, guid};

/// The name of a type in a master boot record.
pub(super) fn mbr(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0E => "FAT16",
        0x05 | 0x0F | 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x0B | 0x0C => "FAT32",
        0x27 => "Windows recovery",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8E => "Linux LVM",
        0xA5 => "FreeBSD",
        0xA6 => "OpenBSD",
        0xA9 => "NetBSD",
        0xAF => "HFS or HFS+",
        0xBF => "Solaris",
        0xEE => "GPT protective",
        0xEF => "EFI system",
        0xFD => "Linux RAID",
        _ => return None,
    })
}

/// The name of a type in a GPT: those of the UEFI specification, of Microsoft, and of the UAPI group's "Discoverable
/// Partitions Specification".
pub(super) fn gpt(kind: Guid) -> Option<&'static str> {
    GPT.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name)
}

const GPT: [(Guid, &str); 19] = [
    (GptPartitionType::EFI_SYSTEM.0, "EFI system"),
    (GptPartitionType::LEGACY_MBR.0, "MBR partition scheme"),
    (GptPartitionType::BASIC_DATA.0, "Microsoft basic data"),
    (GptPartitionType::CHROME_OS_KERNEL.0, "ChromeOS kernel"),
    (GptPartitionType::CHROME_OS_ROOT_FS.0, "ChromeOS root"),
    (guid!("21686148-6449-6e6f-744e-656564454649"), "BIOS boot"),
    (guid!("0fc63daf-8483-4772-8e79-3d69d8477de4"), "Linux file system"),
    (guid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"), "Linux root (x86-64)"),
    (guid!("b921b045-1df0-41c3-af44-4c6f280d3fae"), "Linux root (64-bit ARM)"),
    (guid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915"), "Linux home"),
    (guid!("bc13c2ff-59e6-4262-a352-b275fd6f7172"), "Linux extended boot"),
    (guid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"), "Linux swap"),
    (guid!("e6d6d379-f507-44c2-a23c-238f2a3df928"), "Linux LVM"),
    (guid!("a19d880f-05fc-4d3b-a006-743f0f84911e"), "Linux RAID"),
    (guid!("ca7d7ccb-63ed-4c53-861c-1742536059cc"), "Linux LUKS"),
    (guid!("e3c9e316-0b5c-4db8-817d-f92df00215ae"), "Microsoft reserved"),
    (guid!("de94bba4-06d1-4d40-a16a-bfd50179d6ac"), "Windows recovery"),
    (guid!("516e7cb4-6ecf-11d6-8ff8-00022d09712b"), "FreeBSD data"),
    (guid!("48465300-0000-11aa-aa11-00306543ecac"), "Apple HFS+"),
];
