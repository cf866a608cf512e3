//! The bytes of the file, field by field: for a view of bytes that shows what they mean, and for a tree of structures in
//! which a field leads to the next structure.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::entry_fields::{bitmap_table_field, l1_field, l2_field, refcount_table_field};
use super::{EntryRange, Inspector, MAX_INSPECTED_ENTRIES, Shown, TableReport, TableSource};
use crate::error::{Error, Result, Structure};
use crate::format::{BitmapEntry, Snapshot, counted, read_refcount};
use crate::operations::walk::L1Owner;
use crate::storage::ReadStorage;

/// A part of the file that is one structure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Region {
    /// What it is.
    pub structure: Structure,
    /// What to call it.
    pub name: String,
    /// Its first byte in the file.
    pub host_offset: u64,
    /// Bytes.
    pub length: u64,
    /// The guest byte that its beginning speaks for, or holds.
    pub guest_offset: Option<u64>,
    /// Its bytes can be shown field by field.
    pub has_fields: bool,
}

impl Region {
    pub(super) fn new(structure: Structure, name: impl Into<String>, host_offset: u64, length: u64) -> Self {
        let has_fields = !matches!(
            structure,
            Structure::DataCluster
                | Structure::CompressedCluster
                | Structure::BitmapData
                | Structure::CryptoHeader
                | Structure::DataFile
        );
        Self { structure, name: name.into(), host_offset, length, guest_offset: None, has_fields }
    }

    pub(super) fn of_guest(mut self, guest_offset: Option<u64>) -> Self {
        self.guest_offset = guest_offset;
        self
    }
}

/// Bytes of the file with one meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ByteField {
    /// The first of them in the file.
    pub host_offset: u64,
    /// How many.
    pub length: u64,
    /// The structure that they are a part of.
    pub structure: Structure,
    /// What the specification calls them, or their place in the table.
    pub name: String,
    /// The bytes as a number, where they are one.
    pub raw: Option<u64>,
    /// What they say, in words; empty where they say nothing more.
    pub meaning: String,
    /// What is wrong with them; empty where nothing is.
    pub fault: String,
    /// Where they lead, if that is within the file.
    pub target: Option<Region>,
}

/// Fields in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FieldList {
    /// The fields that lie, in whole or in part, in the bytes asked for.
    pub fields: Vec<ByteField>,
    /// Where to go on, in bytes of the file, if the list was cut.
    pub next: Option<u64>,
}

/// The bytes that are asked for.
#[derive(Clone, Copy)]
struct Window {
    offset: u64,
    end: u64,
    skip_empty: bool,
}

impl Window {
    fn touches(self, field: &ByteField) -> bool {
        field.host_offset < self.end && field.host_offset.saturating_add(field.length.max(1)) > self.offset
    }

    /// The entries, of `width` bytes each, of a table at `base` that lie here.
    fn entries(self, base: u64, width: u64) -> EntryRange {
        let first = self.offset.saturating_sub(base).checked_div(width).unwrap_or(0);
        let end = self.end.saturating_sub(base).div_ceil(width.max(1));
        EntryRange { first, count: end.saturating_sub(first), skip_empty: self.skip_empty }
    }
}

impl<S: ReadStorage + ?Sized> Inspector<'_, S> {
    /// The structures that the header leads to, in the order in which to look at them.
    #[must_use]
    pub fn regions(&self) -> Shown<Vec<Region>> {
        self.region_list().into()
    }

    fn region_list(&self) -> Result<Vec<Region>> {
        let area = self.header_area()?;
        let header = &area.header;
        let cluster = self.geometry().map_or(0, |geometry| geometry.cluster_size());
        let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
        let refcount_bytes = u64::from(header.refcount_table_clusters).saturating_mul(cluster);
        let mut all = alloc::vec![
            Region::new(Structure::Header, "Header", 0, cluster.max(header.header_length.into()).min(self.file_length)),
            Region::new(Structure::L1Table, "Active L1 table", header.l1_table_offset, l1_bytes).of_guest(Some(0)),
            Region::new(Structure::RefcountTable, "Refcount table", header.refcount_table_offset, refcount_bytes),
        ];
        if header.snapshot_count > 0 {
            let name = format!("Snapshot table, {}", counted(header.snapshot_count.into(), "snapshot"));
            let entries = self.snapshot_entries().unwrap_or_default();
            let length = entries.iter().map(snapshot_length).fold(0, u64::saturating_add);
            all.push(Region::new(Structure::SnapshotTable, name, header.snapshots_offset, length));
        }
        if let Some(bitmaps) = area.consistent_bitmaps() {
            let name = format!("Bitmap directory, {}", counted(bitmaps.nb_bitmaps.into(), "bitmap"));
            let (offset, length) = (bitmaps.directory_offset, bitmaps.directory_size);
            all.push(Region::new(Structure::BitmapDirectory, name, offset, length));
        }
        if let Some((offset, length)) = area.crypto_header() {
            all.push(Region::new(Structure::CryptoHeader, "Encryption header", offset, length));
        }
        all.retain(|region| region.host_offset < self.file_length);
        for region in &mut all {
            region.length = region.length.min(self.file_length.saturating_sub(region.host_offset));
        }
        Ok(all)
    }

    /// The bytes of `offset .. offset + length` as fields of this structure: what is stored there is taken for it,
    /// whatever the image says of the place. `skip_empty` leaves out entries of tables that are 0. At most about
    /// [`MAX_INSPECTED_ENTRIES`] are listed. Bytes of guest data have no fields.
    #[must_use]
    pub fn fields(&self, structure: Structure, offset: u64, length: u64, skip_empty: bool) -> Shown<FieldList> {
        let window = Window { offset, end: offset.saturating_add(length), skip_empty };
        match structure {
            Structure::Header | Structure::HeaderExtension | Structure::BackingFile => self.header_fields(window),
            Structure::L1Table => self.l1_fields(window),
            Structure::L2Table => self.l2_fields(window),
            Structure::RefcountTable => self.refcount_table_fields(window),
            Structure::RefcountBlock => self.refcount_fields(window),
            Structure::SnapshotTable => self.snapshot_fields(window),
            Structure::BitmapDirectory => self.directory_fields(window),
            Structure::BitmapTable => self.bitmap_table_fields(window),
            Structure::DataCluster
            | Structure::CompressedCluster
            | Structure::BitmapData
            | Structure::CryptoHeader
            | Structure::DataFile => Ok(FieldList::default()),
        }
        .into()
    }

    fn header_fields(&self, window: Window) -> Result<FieldList> {
        let area = self.header_area()?;
        let field = |structure, offset, length, name: String, meaning| plain(structure, offset, length, name, meaning);
        let mut fields = Vec::new();
        for known in area.header.fields() {
            let target = self.header_target(known.name);
            let made = field(Structure::Header, known.offset, known.length, known.name.into(), known.meaning);
            fields.push(ByteField { target, raw: Some(known.raw), ..made });
        }
        let unknown = u64::try_from(area.header.unknown_fields.len()).unwrap_or(0);
        if unknown > 0 {
            fields.push(field(Structure::Header, 105, unknown, "unknown fields".into(), String::new()));
        }
        for extension in super::header::extensions(area) {
            let name = extension.name.map_or_else(|| format!("extension {:#x}", extension.kind), ToString::to_string);
            let length = extension.length.saturating_add(8 + 7) & !7;
            let mut made = field(Structure::HeaderExtension, extension.offset, length, name, extension.meaning);
            if extension.malformed {
                made.fault = "its data do not fit its kind".into();
            }
            fields.push(made);
        }
        if let Some(name) = &area.backing_file {
            let (at, length) = (area.header.backing_file_offset, area.header.backing_file_size.into());
            fields.push(field(Structure::BackingFile, at, length, "backing file name".into(), name.to_string()));
        }
        if let (Some(damage), Some(last)) = (&area.damage, fields.last_mut()) {
            last.fault = damage.to_string();
        }
        fields.retain(|field| window.touches(field));
        Ok(FieldList { fields, next: None })
    }

    /// The structure that a field of the header leads to.
    fn header_target(&self, field: &str) -> Option<Region> {
        let structure = match field {
            "l1_table_offset" => Structure::L1Table,
            "refcount_table_offset" => Structure::RefcountTable,
            "snapshots_offset" => Structure::SnapshotTable,
            _ => return None,
        };
        self.region_list().ok()?.into_iter().find(|region| region.structure == structure)
    }

    /// The L1 table that a byte of the file belongs to: whose it is, and its first byte.
    fn l1_at(&self, offset: u64) -> Result<(L1Owner, u64)> {
        let within =
            |start: u64, entries: u64| offset >= start && offset < start.saturating_add(entries.saturating_mul(8));
        let (active, entries) = self.l1_place(L1Owner::Active)?;
        if within(active, entries) {
            return Ok((L1Owner::Active, active));
        }
        let snapshots = self.snapshot_entries()?;
        let found = (0u32..).zip(&snapshots).find(|(_, entry)| within(entry.l1_table_offset, entry.l1_size.into()));
        let none = || Error::invalid(format!("no L1 table lies at byte {offset}"));
        found.map(|(index, entry)| (L1Owner::Snapshot(index), entry.l1_table_offset)).ok_or_else(none)
    }

    fn l1_fields(&self, window: Window) -> Result<FieldList> {
        let (owner, base) = self.l1_at(window.offset)?;
        let geometry = *self.geometry()?;
        let table = self.l1_report(owner, window.entries(base, 8))?;
        Ok(listed(&table, 8, |entry, at| l1_field(entry, at, &geometry, self.file_length)))
    }

    fn l2_fields(&self, window: Window) -> Result<FieldList> {
        let geometry = *self.geometry()?;
        let (base, width) = (geometry.align_down(window.offset), geometry.l2_entry_size());
        // Which entry of the active L1 table names it tells what its entries speak for.
        let named = self.l1_report(L1Owner::Active, EntryRange::default()).ok();
        let named = named.and_then(|table| table.entries.into_iter().find(|entry| entry.l2_offset == Some(base)));
        let range = window.entries(base, width);
        let table = match &named {
            Some(entry) => self.l2_report(TableSource::L1 { owner: L1Owner::Active, index: entry.index }, range)?,
            None => self.l2_report(TableSource::Host(base), range)?,
        };
        let file_length = self.file_length;
        Ok(listed(&table, width, |entry, at| l2_field(entry, at, named.is_some(), &geometry, file_length)))
    }

    fn refcount_table_fields(&self, window: Window) -> Result<FieldList> {
        let base = self.header_area()?.header.refcount_table_offset;
        let geometry = *self.geometry()?;
        let table = self.refcount_table_report(window.entries(base, 8))?;
        Ok(listed(&table, 8, |entry, at| refcount_table_field(entry, at, &geometry, self.file_length)))
    }

    fn refcount_fields(&self, window: Window) -> Result<FieldList> {
        let geometry = *self.geometry()?;
        let base = geometry.align_down(window.offset);
        let table = self.refcount_table_report(EntryRange::default())?;
        let owner = table.entries.iter().find(|entry| entry.block_offset == Some(base));
        let mut block = alloc::vec![0u8; geometry.cluster_len()];
        self.reader().read(base, &mut block)?;
        // Refcounts of a byte and wider stand alone; narrower ones share a byte, which is one field then.
        let order = geometry.refcount_order();
        let (width, in_field) =
            if order >= 3 { (1u64.wrapping_shl(order.saturating_sub(3)), 1) } else { (1, 8u64.wrapping_shr(order)) };
        let range = window.entries(base, width);
        let last = range.first.saturating_add(range.count.min(MAX_INSPECTED_ENTRIES));
        let last = last.min(geometry.cluster_size().checked_div(width).unwrap_or(0));
        let mut list = FieldList::default();
        for at in range.first..last {
            let first = at.saturating_mul(in_field);
            let counts: Vec<u64> = (first..first.saturating_add(in_field))
                .map(|index| read_refcount(&block, index, order).unwrap_or(0))
                .collect();
            if window.skip_empty && counts.iter().all(|&count| count == 0) {
                continue;
            }
            let texts: Vec<String> = counts.iter().map(ToString::to_string).collect();
            let covers =
                owner.map(|entry| entry.host_offset.saturating_add(first.saturating_mul(geometry.cluster_size())));
            let of = covers.map_or_else(String::new, |offset| format!(" of the cluster at {offset:#x}"));
            let offset = base.saturating_add(at.saturating_mul(width));
            let meaning = format!("refcount {}{of}", texts.join(" "));
            list.fields.push(plain(Structure::RefcountBlock, offset, width, format!("[{first}]"), meaning));
        }
        list.next =
            (last < range.first.saturating_add(range.count)).then(|| base.saturating_add(last.saturating_mul(width)));
        list.next = list.next.filter(|&next| next < window.end && next < base.saturating_add(geometry.cluster_size()));
        Ok(list)
    }

    fn snapshot_fields(&self, window: Window) -> Result<FieldList> {
        let mut at = self.header_area()?.header.snapshots_offset;
        let mut list = FieldList::default();
        for (index, entry) in self.snapshot_entries()?.iter().enumerate() {
            let name = |field: &str| format!("snapshot {index}: {field}");
            for (field, offset, length, meaning) in entry.layout() {
                let mut made = plain(Structure::SnapshotTable, at.saturating_add(offset), length, name(field), meaning);
                if offset == 0 {
                    let bytes = u64::from(entry.l1_size).saturating_mul(8);
                    let title = format!("L1 table of snapshot \"{}\"", entry.name);
                    made.target = self.inside(Region::new(Structure::L1Table, title, entry.l1_table_offset, bytes));
                }
                list.fields.push(made);
            }
            at = at.saturating_add(snapshot_length(entry));
        }
        list.fields.retain(|field| window.touches(field));
        Ok(list)
    }

    fn directory_fields(&self, window: Window) -> Result<FieldList> {
        let directory = self.header_area()?.consistent_bitmaps();
        let mut at = directory.map_or(0, |bitmaps| bitmaps.directory_offset);
        let mut list = FieldList::default();
        for (index, entry) in self.bitmap_entries()?.iter().enumerate() {
            let name = |field: &str| format!("bitmap {index}: {field}");
            for (field, offset, length, meaning) in entry.layout() {
                let offset = at.saturating_add(offset);
                let mut made = plain(Structure::BitmapDirectory, offset, length, name(field), meaning);
                if offset == at {
                    made.target = self.inside(bitmap_table_of(entry));
                }
                list.fields.push(made);
            }
            at = at.saturating_add(entry.emitted_length());
        }
        list.fields.retain(|field| window.touches(field));
        Ok(list)
    }

    fn bitmap_table_fields(&self, window: Window) -> Result<FieldList> {
        let geometry = *self.geometry()?;
        let entries = self.bitmap_entries()?;
        let within = |entry: &BitmapEntry| {
            let table = bitmap_table_of(entry);
            window.offset >= table.host_offset && window.offset < table.host_offset.saturating_add(table.length)
        };
        let found = (0u64..).zip(&entries).find(|(_, entry)| within(entry));
        let none = || Error::invalid(format!("no bitmap table lies at byte {}", window.offset));
        let (index, entry) = found.ok_or_else(none)?;
        let table = self.bitmap_table_report(index, window.entries(entry.table_offset, 8))?;
        Ok(listed(&table, 8, |entry, at| bitmap_table_field(entry, at, &geometry, self.file_length)))
    }

    /// The region, if it begins within the file; cut to the file.
    fn inside(&self, region: Region) -> Option<Region> {
        super::entry_fields::inside(region, self.file_length)
    }
}

fn bitmap_table_of(entry: &BitmapEntry) -> Region {
    let title = format!("table of bitmap \"{}\"", entry.name);
    Region::new(Structure::BitmapTable, title, entry.table_offset, u64::from(entry.table_entries).saturating_mul(8))
}

/// Bytes of an entry of the snapshot table with its padding.
fn snapshot_length(entry: &Snapshot) -> u64 {
    let end = entry.layout().into_iter().map(|(_, offset, length, _)| offset.saturating_add(length)).max();
    end.unwrap_or(0).saturating_add(7) & !7
}

fn plain(structure: Structure, offset: u64, length: u64, name: String, meaning: String) -> ByteField {
    ByteField { host_offset: offset, length, structure, name, raw: None, meaning, fault: String::new(), target: None }
}

/// A field for each entry that a table lists.
fn listed<T>(
    table: &TableReport<T>,
    width: u64,
    mut field: impl FnMut(&T, &dyn Fn(u64) -> u64) -> ByteField,
) -> FieldList {
    let at = |index: u64| table.host_offset.saturating_add(index.saturating_mul(width));
    let fields = table.entries.iter().map(|entry| field(entry, &at)).collect();
    FieldList { fields, next: table.next.map(at) }
}
