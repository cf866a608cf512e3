//! QEMU's table of discards through the whole engine: 756 rows, each on an image that qemu-io prepared.
//!
//! What is expected is what the decisions are held to (`core/tests/discard_golden.rs`); here the entry, the refcount and
//! the bytes of the host cluster are looked up in the files afterwards.

mod common;
#[path = "../../core/tests/golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};

use common::{Folder, assert_same, check_clean, open, qemu_create, qemu_io, qemu_is_here, qemu_read, succeed};
use golden::{CLUSTER, Host, Outcome, Row, ours, rows};
use qcowkit::file::{FileAccess, FileStorage};
use qcowkit_core::format::{HostCluster, L2Entry, RawL2Entry};
use qcowkit_core::image::OpenOptions;
use qcowkit_core::metadata::Unref;
use qcowkit_core::storage::{ReadStorage, StorageExtentKind};

const SIZE: u64 = 1 << 20;
const UNIT: u64 = 0x10000;

/// An image in one of the states of the table.
struct Prepared {
    folder: Folder,
    guest: u64,
    shared: Option<Vec<u8>>,
}

impl Prepared {
    fn new(row: &Row<'_>) -> Self {
        let folder = Folder::new();
        let path = folder.path("image.qcow2");
        let data = folder.path("data");
        let option = match row.image {
            "v2" => "compat=0.10".to_owned(),
            "v3" => "compat=1.1".to_owned(),
            "v3-extl2" => "extended_l2=on".to_owned(),
            image if image.contains("raw") => format!("data_file={},data_file_raw=on", data.display()),
            _ => format!("data_file={}", data.display()),
        };
        let mut words = vec!["-o", option.as_str()];
        if row.backing {
            std::fs::write(folder.path("base"), vec![0xbb; SIZE as usize]).unwrap();
            words.extend(["-b", "base", "-F", "raw"]);
        }
        qemu_create(&path, &words, SIZE);
        let guest = if row.guest0() { 0 } else { CLUSTER };
        let write = format!("write -P 0xaa {guest} 64k");
        let zero = format!("write -z {guest} 64k");
        let commands = match row.cluster.strip_suffix("+shared").unwrap_or(row.cluster) {
            // qemu-img gives an image with a raw data file all its places at once.
            "UNALLOC" if row.before.starts_with("NORMAL") => vec![write],
            "UNALLOC" => vec![],
            "NORMAL" => vec![write],
            "ZALLOC" => vec![write, zero],
            "ZPLAIN" if row.image.contains("raw") => vec![format!("write -z -u {guest} 64k")],
            "ZPLAIN" => vec![zero],
            "COMPR" => vec![format!("write -c -P 0xaa {guest} 64k")],
            "PARTIAL" => vec![format!("write -P 0xaa {guest} 8k"), format!("write -z {} 8k", guest + 8192)],
            other => panic!("{other}"),
        };
        assert!(qemu_io(&path, "", &commands).iter().all(|&done| done));
        let shared = row.cluster.ends_with("+shared").then(|| {
            succeed("qemu-img", &["snapshot".as_ref(), "-c".as_ref(), "s".as_ref(), path.as_os_str()]);
            qemu_read(&path, Some("s"))
        });
        let prepared = Self { folder, guest, shared };
        std::fs::copy(prepared.image(), prepared.folder.path("image.saved")).unwrap();
        if data.exists() {
            std::fs::copy(data, prepared.folder.path("data.saved")).unwrap();
        }
        prepared
    }

    fn image(&self) -> PathBuf {
        self.folder.path("image.qcow2")
    }

    /// Where the guest data are.
    fn data(&self) -> PathBuf {
        let data = self.folder.path("data");
        if data.exists() { data } else { self.image() }
    }

    fn restore(&self) {
        for (saved, name) in [("image.saved", "image.qcow2"), ("data.saved", "data")] {
            if self.folder.path(saved).exists() {
                std::fs::copy(self.folder.path(saved), self.folder.path(name)).unwrap();
            }
        }
    }

    fn entry(&self, row: &Row<'_>) -> L2Entry {
        let file = std::fs::read(self.image()).unwrap();
        let word = |at: u64| {
            let bytes = file.get(at as usize..at as usize + 8);
            bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
        };
        let table = word(word(40)) & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            return L2Entry::UNALLOCATED;
        }
        let geometry = row.geometry();
        let at = table + self.guest / UNIT * geometry.l2_entry_size();
        let bitmap = if geometry.extended_l2() { word(at + 8) } else { 0 };
        L2Entry::decode(RawL2Entry { descriptor: word(at), bitmap }, &geometry).unwrap()
    }
}

fn bytes_at(path: &Path, offset: u64) -> (Vec<u8>, bool) {
    let storage = FileStorage::open(path, FileAccess::Read).unwrap();
    let mut bytes = vec![0; UNIT as usize];
    storage.read_at(offset, &mut bytes).unwrap();
    let extent = storage.next_extent(offset).unwrap();
    let end = storage.len().unwrap().min(offset + UNIT);
    (bytes, extent.kind == StorageExtentKind::Hole && offset + extent.length >= end)
}

/// Compressed places differ from those of the table.
fn same_entry(found: L2Entry, expected: L2Entry) -> bool {
    matches!((found, expected), (L2Entry::Compressed(_), L2Entry::Compressed(_))) || found == expected
}

fn prove(row: &Row<'_>, all: &[Row<'_>], prepared: &Prepared, retained: Unref) {
    let name = format!("{} {retained:?}", row.name());
    let before = prepared.entry(row);
    assert!(same_entry(before, row.entry(row.before)), "{name}: prepared as {before:?}");
    let (old_bytes, _) = bytes_at(&prepared.data(), row.place());

    let options = OpenOptions::default().with_policy(row.context(retained).policy);
    let mut image = open(&prepared.image(), options);
    match row.op {
        "discard" => image.discard(prepared.guest, UNIT),
        "write_zeroes" => image.write_zeroes(prepared.guest, UNIT, false),
        "write_zeroes_unmap" => image.write_zeroes(prepared.guest, UNIT, true),
        other => panic!("{other}"),
    }
    .unwrap();
    image.flush().unwrap();
    let refcount = image.refcount(HostCluster::new(CLUSTER / UNIT)).unwrap();
    let mut seen = vec![0; UNIT as usize];
    image.read_at(prepared.guest, &mut seen).unwrap();
    image.close().unwrap();

    // Version 2 over a backing file: a discard has no way to say "zero"; the other two write zeros.
    let ignored = row.image == "v2" && row.backing && row.op == "discard";
    assert!(ignored || seen.iter().all(|&byte| byte == 0), "{name}: the guest reads something");
    let after = prepared.entry(row);
    let written = row.image == "v2" && row.backing && row.op != "discard";
    let (references, host) = if written {
        assert!(after.host().is_some_and(|host| host.copied), "{name}: {after:?}");
        assert_eq!(after.host() == before.host(), row.host_offset == "same", "{name}");
        let references = row.refcount.split_once("->").map(|(_, after)| after.parse().unwrap());
        let host = match row.host {
            "kept" => Some(Host::Kept),
            "zero-written" => Some(Host::Zeroed),
            _ => None,
        };
        (references, host)
    } else {
        let Outcome { entry, refcount, host } =
            ours(row, all, retained).map_or_else(|| row.outcome(), |(_, outcome)| outcome);
        assert!(same_entry(after, entry), "{name}: {after:?} instead of {entry:?}");
        (refcount, host)
    };
    if let Some(references) = references {
        assert_eq!(refcount, u64::from(references), "{name}: refcount");
    }
    let (bytes, hole) = bytes_at(&prepared.data(), row.place());
    match host {
        Some(Host::Kept) => assert!(bytes == old_bytes, "{name}: the host's bytes changed"),
        Some(Host::Discarded) => assert!(hole, "{name}: no hole"),
        Some(Host::Zeroed) => assert!(bytes.iter().all(|&byte| byte == 0), "{name}: bytes left"),
        None => {}
    }
    check_clean(&prepared.image(), &name);
    if let Some(shared) = &prepared.shared {
        assert_same(&qemu_read(&prepared.image(), Some("s")), shared, &format!("{name}: snapshot"));
    }
}

#[test]
fn every_row_holds_through_the_engine() {
    if !qemu_is_here() {
        return;
    }
    let rows = rows();
    let mut last: Option<((&str, bool, &str), Prepared)> = None;
    let mut proven = 0;
    for row in &rows {
        let state = (row.image, row.backing, row.cluster);
        let prepared = match &last {
            Some((kept, prepared)) if *kept == state => prepared,
            _ => &last.insert((state, Prepared::new(row))).1,
        };
        for retained in [Unref::RetainUnshared, Unref::RetainQemu] {
            if retained == Unref::RetainQemu && !row.no_unref {
                continue;
            }
            prepared.restore();
            prove(row, &rows, prepared, retained);
            proven += 1;
        }
    }
    assert!(proven > 1000, "{proven}");
}
