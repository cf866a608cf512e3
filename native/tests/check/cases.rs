//! What is wrong with the images, one by one.

use crate::image::{COMPRESSED_FLAG, COPIED, Damaged};

type Case = (&'static str, fn(&mut Damaged));

/// The images and what is done to a copy of each.
pub(crate) const ALL: &[(&str, &[Case])] = &[
    ("plain", REFCOUNTS),
    ("plain", ENTRIES),
    ("plain", L1_ENTRIES),
    ("plain", COMPRESSED_ENTRIES),
    ("plain", REFCOUNT_TABLE),
    ("plain", HEADER),
    ("version 2", VERSION_2),
    ("two L2 tables", SOUND),
    ("many L2 tables", SOUND),
    ("preallocated", SOUND),
    ("zstd", SOUND),
    ("zeros", SOUND),
    ("1 bit", SOUND),
    ("64 bits", SOUND),
    ("extended", EXTENDED),
    ("data file", DATA_FILE),
    ("extended, data file", EXTENDED_DATA_FILE),
    ("snapshots", SNAPSHOTS),
    ("snapshots, version 2", SNAPSHOTS_VERSION_2),
    ("bitmaps", BITMAPS),
];

const SOUND: &[Case] = &[("sound", |_| ())];

const REFCOUNTS: &[Case] = &[
    ("sound", |_| ()),
    ("too high", |i| i.set_refcount(7, 2)),
    ("too low", |i| i.set_refcount(5, 0)),
    ("of the header", |i| i.set_refcount(0, 0)),
    ("of a block", |i| i.set_refcount(2, 7)),
    ("behind the end of the file", |i| i.set_refcount(100, 1)),
    ("far behind it", |i| i.set_refcount(20000, 3)),
];

const ENTRIES: &[Case] = &[
    ("COPIED clear", |i| i.put64(i.l2(0), 0x50000)),
    ("COPIED set, nothing mapped", |i| i.put64(i.l2(5), COPIED)),
    ("COPIED set, zero plain", |i| i.put64(i.l2(5), COPIED | 1)),
    ("reserved bit", |i| i.put64(i.l2(0), COPIED | 0x50002)),
    ("high reserved bit", |i| i.put64(i.l2(0), COPIED | 0x50000 | 1 << 56)),
    ("reserved bit, nothing mapped", |i| i.put64(i.l2(5), 2)),
    ("reserved bit, zero plain", |i| i.put64(i.l2(5), 3)),
    ("unaligned", |i| i.put64(i.l2(0), COPIED | 0x50200)),
    ("unaligned zero", |i| i.put64(i.l2(0), COPIED | 0x50201)),
    ("unaligned at the end", |i| i.put64(i.l2(4), COPIED | 0x80200)),
    ("zero allocated", |i| i.put64(i.l2(0), COPIED | 0x50001)),
    ("behind the end", |i| i.put64(i.l2(4), COPIED | 0x90000)),
    ("further behind", |i| i.put64(i.l2(4), COPIED | 0xa0000)),
    ("far behind", |i| i.put64(i.l2(4), COPIED | 0x80_000a_0000)),
    ("behind the end, with a refcount", |i| {
        i.put64(i.l2(4), COPIED | 0xa0000);
        i.set_refcount(10, 1);
    }),
    ("last place", |i| i.put64(i.l2(4), COPIED | 0x00ff_ffff_ffff_0000)),
    ("shared", |i| i.put64(i.l2(1), COPIED | 0x50000)),
    ("in an L2 table", |i| i.put64(i.l2(1), COPIED | 0x40000)),
    ("in the refcount block", |i| i.put64(i.l2(1), COPIED | 0x20000)),
    ("in the refcount table", |i| i.put64(i.l2(1), COPIED | 0x10000)),
    ("gone", |i| i.put64(i.l2(1), 0)),
    ("everything", |i| i.put64(i.l2(1), u64::MAX)),
    ("file cut in a cluster", |i| i.bytes.truncate(0x88000)),
    ("file cut in a sector", |i| i.bytes.truncate(0x88123)),
    ("file cut at a cluster", |i| i.bytes.truncate(0x80000)),
    ("file cut in the L2 table", |i| i.bytes.truncate(0x40010)),
    ("file longer", |i| i.put8(0x123456, 1)),
];

const L1_ENTRIES: &[Case] = &[
    ("reserved bit", |i| i.put64(i.l1(0), COPIED | 0x40001)),
    ("high reserved bit", |i| i.put64(i.l1(0), COPIED | 0x40000 | 1 << 60)),
    ("reserved bit alone", |i| i.put64(i.l1(0), COPIED | 1)),
    ("COPIED alone", |i| i.put64(i.l1(0), COPIED)),
    ("COPIED clear", |i| i.put64(i.l1(0), 0x40000)),
    ("unaligned", |i| i.put64(i.l1(0), COPIED | 0x40200)),
    ("behind the end", |i| i.put64(i.l1(0), COPIED | 0x90000)),
    ("further behind", |i| i.put64(i.l1(0), COPIED | 0xa0000)),
    ("a refcount block", |i| i.put64(i.l1(0), COPIED | 0x20000)),
    ("the L1 table", |i| i.put64(i.l1(0), COPIED | 0x30000)),
    ("gone", |i| i.put64(i.l1(0), 0)),
    ("the same twice", |i| {
        i.put32(36, 2);
        i.put64(i.l1(1), COPIED | 0x40000);
    }),
    ("twice, once without COPIED", |i| {
        i.put32(36, 3);
        i.put64(i.l1(1), 0x40000);
        i.put64(i.l1(2), 0x40000);
        i.set_refcount(4, 3);
    }),
];

const COMPRESSED_ENTRIES: &[Case] = &[
    ("sound", |i| i.put64(i.l2(0), COMPRESSED_FLAG | 0x50123 | 1 << 54)),
    ("between normal ones", |i| i.put64(i.l2(1), COMPRESSED_FLAG | 0x60123 | 1 << 54)),
    ("before normal ones", |i| {
        i.put64(i.l2(0), COMPRESSED_FLAG | 0x50123 | 1 << 54);
        i.put64(i.l2(2), COPIED | 0x80000);
        i.put64(i.l2(4), COPIED | 0x70000);
    }),
    ("COPIED", |i| i.put64(i.l2(0), COPIED | COMPRESSED_FLAG | 0x50123 | 1 << 54)),
    ("over the end", |i| i.put64(i.l2(4), COMPRESSED_FLAG | 0x80123 | 255 << 54)),
    ("last sector over the end", |i| i.put64(i.l2(4), COMPRESSED_FLAG | 0x8_ff23 | 255 << 54)),
    ("in two clusters", |i| i.put64(i.l2(1), COMPRESSED_FLAG | 0x5_ff23 | 5 << 54)),
    ("in the header", |i| i.put64(i.l2(0), COMPRESSED_FLAG)),
];

const REFCOUNT_TABLE: &[Case] = &[
    ("reserved bit", |i| i.put64(i.refcount_table(0), 0x20001)),
    ("unaligned", |i| i.put64(i.refcount_table(0), 0x20200)),
    ("behind the end", |i| i.put64(i.refcount_table(0), 0x90000)),
    ("behind all files", |i| i.put64(i.refcount_table(0), 0xff00_0000_0002_0000)),
    ("one block twice", |i| i.put64(i.refcount_table(1), 0x20000)),
    ("gone", |i| i.put64(i.refcount_table(0), 0)),
    ("second with reserved bit", |i| i.put64(i.refcount_table(1), 1)),
    ("second unaligned", |i| i.put64(i.refcount_table(1), 0x20200)),
    ("second in data", |i| i.put64(i.refcount_table(1), 0x50000)),
    ("two in data", |i| {
        i.put64(i.refcount_table(1), 0x50000);
        i.put64(i.refcount_table(2), 0x50000);
    }),
    ("second behind the end", |i| i.put64(i.refcount_table(1), 0x90000)),
    ("behind the end, which an unaligned cluster moved", |i| {
        i.put64(i.l2(4), COPIED | 0x80200);
        i.put64(i.refcount_table(1), 0x90000);
    }),
];

const HEADER: &[Case] = &[
    ("no refcount table", |i| i.put32(56, 0)),
    ("refcount table at 0", |i| i.put64(48, 0)),
    ("refcount table behind the end", |i| i.put64(48, 0x100000)),
    ("refcount table at the end", |i| i.put64(48, 0x90000)),
    ("largest refcount table", |i| i.put32(56, 128)),
    ("refcount table too large", |i| i.put32(56, 129)),
    ("L1 table at 0", |i| i.put64(40, 0)),
    ("L1 table behind the end", |i| i.put64(40, 0x100_0000)),
    ("L1 table at the end", |i| i.put64(40, 0x90000)),
    ("L1 table over the L2 table", |i| i.put32(36, 10_000)),
    ("virtual size 0", |i| i.put64(24, 0)),
    ("virtual size of a byte more", |i| i.put64(24, 0x100001)),
    ("virtual size of a sector less", |i| i.put64(24, 0xffe00)),
    ("refcounts of 8 bits", |i| i.put32(96, 3)),
    ("refcounts of 64 bits", |i| i.put32(96, 6)),
    ("refcounts of 1 bit", |i| i.put32(96, 0)),
    ("dirty", |i| i.put64(72, 1)),
    ("corrupt", |i| i.put64(72, 2)),
    ("extended L2 entries all at once", |i| i.put64(72, 16)),
    ("unknown feature", |i| i.put64(72, 1 << 40)),
];

const VERSION_2: &[Case] = &[
    ("sound", |_| ()),
    ("zero flag, mapped", |i| i.put64(i.l2(0), COPIED | 0x50001)),
    ("zero flag", |i| i.put64(i.l2(5), 1)),
];

const EXTENDED: &[Case] = &[
    ("sound", |_| ()),
    ("zero flag", |i| i.change(i.l2(0), |old| old | 1)),
    ("zero flag, nothing mapped", |i| i.put64(i.l2(5), 1)),
    ("allocated and zero", |i| i.put64(i.l2(0) + 8, 1 << 32 | 1)),
    ("that and reserved bit", |i| {
        i.change(i.l2(0), |old| old | 2);
        i.put64(i.l2(0) + 8, 1 << 32 | 1);
    }),
    ("that and unaligned", |i| {
        i.change(i.l2(0), |old| old | 0x200);
        i.put64(i.l2(0) + 8, 1 << 32 | 1);
    }),
    ("allocated, nothing mapped", |i| i.put64(i.l2(5) + 8, 1)),
    ("allocated and zero, nothing mapped", |i| i.put64(i.l2(5) + 8, 1 << 32 | 1)),
    ("compressed with bitmap", |i| {
        i.put64(i.l2(0), COMPRESSED_FLAG | 0x50123 | 1 << 54);
        i.put64(i.l2(0) + 8, 1);
    }),
    ("compressed, COPIED, with bitmap", |i| {
        i.put64(i.l2(0), COPIED | COMPRESSED_FLAG | 0x50123 | 1 << 54);
        i.put64(i.l2(0) + 8, 1);
    }),
    ("nothing allocated", |i| i.put64(i.l2(0) + 8, 0)),
    ("all zero", |i| i.put64(i.l2(0) + 8, 0xffff_ffff << 32)),
    ("COPIED clear", |i| i.change(i.l2(0), |old| old & !COPIED)),
];

const DATA_FILE: &[Case] = &[
    ("sound", |_| ()),
    ("elsewhere", |i| i.put64(i.l2(1), COPIED | 0x50000)),
    ("unaligned", |i| i.put64(i.l2(1), COPIED | 0x10200)),
    ("COPIED clear", |i| i.put64(i.l2(1), 0x10000)),
    ("COPIED clear at 0", |i| i.put64(i.l2(0), 0)),
    ("COPIED without offset", |i| i.put64(i.l2(3), COPIED)),
    ("zero without offset", |i| i.put64(i.l2(0), COPIED | 1)),
    ("compressed", |i| i.put64(i.l2(1), COMPRESSED_FLAG | 0x50123 | 1 << 54)),
    ("compressed, COPIED", |i| i.put64(i.l2(1), COPIED | COMPRESSED_FLAG | 0x50123 | 1 << 54)),
    ("far behind", |i| i.put64(i.l2(1), COPIED | 0x5000_0000)),
    ("snapshots", |i| {
        i.put32(60, 1);
        i.put64(64, 0x50000);
        i.put64(0x50010, 0);
        i.set_refcount(5, 1);
    }),
];

const EXTENDED_DATA_FILE: &[Case] = &[
    ("sound", |_| ()),
    ("compressed with bitmap", |i| {
        i.put64(i.l2(1), COMPRESSED_FLAG | 0x50123 | 1 << 54);
        i.put64(i.l2(1) + 8, 1);
    }),
    ("elsewhere, allocated and zero", |i| {
        i.put64(i.l2(1), COPIED | 0x50000);
        i.put64(i.l2(1) + 8, 1 << 32 | 1);
    }),
];

const SNAPSHOTS: &[Case] = &[
    ("sound", |_| ()),
    ("L1 table unaligned", |i| i.change(i.snapshots(), |old| old + 0x200)),
    ("L1 table empty", |i| i.put32(i.snapshots() + 8, 0)),
    ("L1 table longer", |i| i.put32(i.snapshots() + 8, 2)),
    ("L1 table too large", |i| i.put32(i.snapshots() + 8, (4 << 20) + 1)),
    ("largest L1 table", |i| i.put32(i.snapshots() + 8, 1000)),
    ("L1 table at 0", |i| i.put64(i.snapshots(), 0)),
    ("L1 table behind the end", |i| i.put64(i.snapshots(), 0x100_0000)),
    ("L1 table behind all files", |i| i.put64(i.snapshots(), COPIED)),
    ("the active L1 table", |i| i.put64(i.snapshots(), i.l1(0))),
    ("the active L2 table", |i| i.put64(i.get64(i.snapshots()), i.get64(i.l1(0)))),
    ("reserved bits", |i| {
        let l1 = i.get64(i.snapshots());
        let l2 = i.get64(l1) & 0x00ff_ffff_ffff_fe00;
        i.change(l2, |old| old | 2);
        i.change(l1, |old| old | 1);
    }),
    ("COPIED set", |i| {
        let l1 = i.get64(i.snapshots());
        let l2 = i.get64(l1) & 0x00ff_ffff_ffff_fe00;
        i.change(l2, |old| old | COPIED);
        i.change(l1, |old| old | COPIED);
    }),
    ("no extra data", |i| i.put32(i.snapshots() + 36, 0)),
    ("16 bytes of extra data", |i| i.put32(i.snapshots() + 36, 16)),
    ("1024 bytes of extra data", |i| i.put32(i.snapshots() + 36, 1024)),
    ("1025 bytes of extra data", |i| i.put32(i.snapshots() + 36, 1025)),
    ("long ID", |i| i.put16(i.snapshots() + 12, 65535)),
    ("none", |i| i.put32(60, 0)),
    ("one of two", |i| i.put32(60, 1)),
    ("three of two", |i| i.put32(60, 3)),
    ("as many as allowed", |i| i.put32(60, 65536)),
    ("one too many", |i| i.put32(60, 65537)),
    ("table unaligned", |i| i.change(64, |old| old + 0x200)),
    ("table behind the end", |i| i.put64(64, 0x1000_0000)),
    ("table at 0", |i| i.put64(64, 0)),
    ("table behind all files", |i| i.put64(64, 0x7fff_ffff_ffff_0000)),
];

const SNAPSHOTS_VERSION_2: &[Case] = &[
    ("sound", |_| ()),
    ("no extra data in the second", |i| i.put32(i.snapshots() + 64 + 36, 0)),
    ("8 bytes of extra data", |i| i.put32(i.snapshots() + 36, 8)),
];

const BITMAPS: &[Case] = &[
    ("sound", |_| ()),
    ("autoclear bit clear", |i| i.put64(88, 0)),
    ("directory unaligned", |i| i.change(i.bitmaps_extension() + 24, |old| old + 0x200)),
    ("directory behind the end", |i| i.put64(i.bitmaps_extension() + 24, 0x100_0000)),
    ("directory too short", |i| i.put64(i.bitmaps_extension() + 16, 32)),
    ("directory too long", |i| i.put64(i.bitmaps_extension() + 16, 0x10000)),
    ("one of two", |i| i.put32(i.bitmaps_extension() + 8, 1)),
    ("three of two", |i| i.put32(i.bitmaps_extension() + 8, 3)),
    ("none", |i| i.put32(i.bitmaps_extension() + 8, 0)),
    ("table unaligned", |i| i.change(i.bitmap_directory(), |old| old + 0x200)),
    ("table behind the end", |i| i.put64(i.bitmap_directory(), 0x1000_0000)),
    ("table at 0", |i| i.put64(i.bitmap_directory(), 0)),
    ("table far behind", |i| i.put64(i.bitmap_directory(), 1 << 60)),
    ("table behind all files", |i| i.put64(i.bitmap_directory(), COPIED)),
    ("table empty", |i| i.put32(i.bitmap_directory() + 8, 0)),
    ("table too large", |i| i.put32(i.bitmap_directory() + 8, 0x800_0001)),
    ("reserved flag", |i| i.put32(i.bitmap_directory() + 12, 8)),
    ("in use", |i| i.put32(i.bitmap_directory() + 12, 1)),
    ("unknown kind", |i| i.put8(i.bitmap_directory() + 16, 2)),
    ("granularity too fine", |i| i.put8(i.bitmap_directory() + 17, 8)),
    ("granularity too coarse", |i| i.put8(i.bitmap_directory() + 17, 32)),
    ("another granularity", |i| i.put8(i.bitmap_directory() + 17, 17)),
    ("no name", |i| i.put16(i.bitmap_directory() + 18, 0)),
    ("name too long", |i| i.put16(i.bitmap_directory() + 18, 1024)),
    ("two of one name", |i| i.put16(i.bitmap_directory() + 32 + 24, 0x6230)),
    ("extra data", |i| i.put32(i.bitmap_directory() + 20, 8)),
    ("all ones", |i| i.put64(i.bitmap_table(1), 1)),
    ("entry with reserved bit", |i| i.put64(i.bitmap_table(1), 2)),
    ("entry with bit 0", |i| i.change(i.bitmap_table(1), |old| old | 1)),
    ("entry unaligned", |i| i.change(i.bitmap_table(1), |old| old | 0x200)),
    ("entry behind the end", |i| i.put64(i.bitmap_table(1), 0x1000_0000)),
    ("entry shared", |i| i.put64(i.bitmap_table(1), 0x50000)),
];
