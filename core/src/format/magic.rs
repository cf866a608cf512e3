//! The bytes by which the formats of disk images are told apart.

/// What stands at the beginning of an image: position, bytes, QEMU's name of the format. The first that fits counts.
const FORMATS: [(usize, &[u8], &str); 12] = [
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
];

/// The format that the first bytes of a file show (128 are enough), by QEMU's name; "raw" where they show none.
///
/// Showing is not being: whoever can write to a raw disk can make it show any format.
#[must_use]
pub fn format_by_magic(start: &[u8]) -> &'static str {
    let shown = FORMATS.iter().find(|(at, magic, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    shown.map_or("raw", |(_, _, name)| name)
}
