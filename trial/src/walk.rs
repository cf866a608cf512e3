//! A walk over the tables of an image that shares no code with the crate: its own masks, its own arithmetic.

use std::collections::{BTreeMap, BTreeSet};

/// The fields of the header that the walk needs.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Base-2 logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Entries of the L1 table.
    pub l1_size: u64,
    /// Where it begins.
    pub l1_offset: u64,
    /// Where the refcount table begins.
    pub refcount_table: u64,
    /// Its length in clusters.
    pub refcount_table_clusters: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Where their table begins.
    pub snapshots_offset: u64,
    /// Extended L2 entries.
    pub extended: bool,
    /// Base-2 logarithm of the bits of a refcount.
    pub refcount_order: u32,
}

impl Fields {
    /// Those of an image.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let version = be32(bytes, 4);
        Self {
            cluster_bits: be32(bytes, 20) as u32,
            size: be64(bytes, 24),
            l1_size: be32(bytes, 36),
            l1_offset: be64(bytes, 40),
            refcount_table: be64(bytes, 48),
            refcount_table_clusters: be32(bytes, 56),
            snapshots: be32(bytes, 60),
            snapshots_offset: be64(bytes, 64),
            extended: version >= 3 && be64(bytes, 72) & 0x10 != 0,
            refcount_order: if version >= 3 { be32(bytes, 96) as u32 } else { 4 },
        }
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Refcounts in one block.
    #[must_use]
    pub fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }
}

/// The COPIED flag of an entry.
pub const COPIED: u64 = 1 << 63;
/// The flag of a compressed cluster.
pub const COMPRESSED: u64 = 1 << 62;
/// The bits of an offset in an entry.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Big-endian, zero beyond the end.
#[must_use]
pub fn be64(bytes: &[u8], at: u64) -> u64 {
    (0..8).fold(0, |value, n| value << 8 | u64::from(bytes.get((at + n) as usize).copied().unwrap_or(0)))
}

/// The same, with four bytes.
#[must_use]
pub fn be32(bytes: &[u8], at: u64) -> u64 {
    be64(bytes, at) >> 32
}

/// The host bytes of a compressed entry.
#[must_use]
pub fn compressed_range(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let shift = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << shift) - 1);
    let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
    (offset, (offset & !511) + sectors * 512)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Header,
    Table,
    L2,
    Data,
    Packed,
}

/// How the words begin for a COPIED flag whose cluster has another refcount than 1.
pub const STALE_COPIED: &str = "COPIED is set for cluster";

/// References counted and refcounts recorded, by host cluster.
#[derive(Debug, Default)]
pub struct Walk {
    /// By host cluster.
    pub references: BTreeMap<u64, u64>,
    /// By host cluster, those above 0.
    pub recorded: BTreeMap<u64, u64>,
}

impl Walk {
    /// Clusters of the first `clusters` whose refcount is too high.
    #[must_use]
    pub fn leaks(&self, clusters: u64) -> u64 {
        let references = |cluster| self.references.get(&cluster).copied().unwrap_or(0);
        self.recorded.range(..clusters).filter(|&(&cluster, &n)| n > references(cluster)).count() as u64
    }

    /// Everything that breaks a promise; leaks do not.
    fn judge(&self, copied: &[u64]) -> Result<(), String> {
        for (cluster, references) in &self.references {
            let recorded = self.recorded.get(cluster).copied().unwrap_or(0);
            if recorded < *references {
                return Err(format!("cluster {cluster:#x} has {references} references and refcount {recorded}"));
            }
        }
        for cluster in copied {
            let recorded = self.recorded.get(cluster).copied().unwrap_or(0);
            if recorded != 1 {
                let references = self.references.get(cluster).copied().unwrap_or(0);
                return Err(format!(
                    "{STALE_COPIED} {cluster:#x} with refcount {recorded} and {references} references"
                ));
            }
        }
        Ok(())
    }
}

struct Walker<'a> {
    bytes: &'a [u8],
    fields: Fields,
    walk: Walk,
    kinds: BTreeMap<u64, Kind>,
    copied: Vec<u64>,
}

/// Walks an image and judges it: refcounts that are too low, wrong COPIED flags, clusters that serve two purposes, and
/// guest clusters that share a host cluster are errors. Leaks are not.
///
/// # Errors
/// The first of these that is met.
pub fn walk(bytes: &[u8]) -> Result<Walk, String> {
    let fields = Fields::read(bytes);
    let mut walker = Walker { bytes, fields, walk: Walk::default(), kinds: BTreeMap::new(), copied: Vec::new() };
    walker.run()?;
    let Walker { walk, copied, .. } = walker;
    walk.judge(&copied)?;
    Ok(walk)
}

impl Walker<'_> {
    /// The clusters that the extension for the encryption header names.
    fn encryption_header(&mut self) -> Result<(), String> {
        let mut at = if be32(self.bytes, 4) >= 3 { be32(self.bytes, 100) } else { 72 };
        while be32(self.bytes, at) != 0 && at < self.fields.cluster() {
            if be32(self.bytes, at) == 0x0537_be77 {
                self.add(be64(self.bytes, at + 8), be64(self.bytes, at + 16), Kind::Table)?;
            }
            at += 8 + be32(self.bytes, at + 4).next_multiple_of(8);
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        let fields = self.fields.clone();
        self.add(0, fields.cluster(), Kind::Header)?;
        let table_bytes = fields.refcount_table_clusters * fields.cluster();
        self.add(fields.refcount_table, table_bytes, Kind::Table)?;
        for index in 0..table_bytes / 8 {
            let block = be64(self.bytes, fields.refcount_table + index * 8);
            if block != 0 {
                self.add(self.aligned(block, "refcount block")?, fields.cluster(), Kind::Table)?;
                self.block(index, block);
            }
        }
        self.encryption_header()?;
        self.l1(fields.l1_offset, fields.l1_size, true)?;
        let mut at = fields.snapshots_offset;
        for _ in 0..fields.snapshots {
            self.l1(be64(self.bytes, at), be32(self.bytes, at + 8), false)?;
            let names = be64(self.bytes, at + 8) & 0xffff;
            let id_length = be64(self.bytes, at + 8) >> 16 & 0xffff;
            at = (at + 40 + be32(self.bytes, at + 36) + id_length + names).next_multiple_of(8);
        }
        self.add(fields.snapshots_offset, at - fields.snapshots_offset, Kind::Table)
    }

    fn aligned(&self, offset: u64, what: &str) -> Result<u64, String> {
        if offset.is_multiple_of(self.fields.cluster()) { Ok(offset) } else { Err(format!("{what} at {offset:#x}")) }
    }

    fn add(&mut self, offset: u64, length: u64, kind: Kind) -> Result<(), String> {
        if length == 0 {
            return Ok(());
        }
        for cluster in offset / self.fields.cluster()..=(offset + length - 1) / self.fields.cluster() {
            *self.walk.references.entry(cluster).or_default() += 1;
            let known = *self.kinds.entry(cluster).or_insert(kind);
            if known != kind {
                return Err(format!("cluster {cluster:#x} is both {known:?} and {kind:?}"));
            }
        }
        Ok(())
    }

    fn block(&mut self, index: u64, offset: u64) {
        let (order, per_block) = (self.fields.refcount_order, self.fields.per_block());
        for n in 0..per_block {
            let value = if order >= 3 {
                let width = 1u64 << (order - 3);
                (0..width).fold(0, |value, byte| {
                    value << 8 | u64::from(self.bytes.get((offset + n * width + byte) as usize).copied().unwrap_or(0))
                })
            } else {
                let bits = 1u64 << order;
                let byte = self.bytes.get((offset + n * bits / 8) as usize).copied().unwrap_or(0);
                u64::from(byte) >> (n * bits % 8) & ((1 << bits) - 1)
            };
            if value > 0 {
                self.walk.recorded.insert(index * per_block + n, value);
            }
        }
    }

    fn l1(&mut self, offset: u64, entries: u64, active: bool) -> Result<(), String> {
        let mut hosts = BTreeSet::new();
        self.add(offset, entries * 8, Kind::Table)?;
        for index in 0..entries {
            let entry = be64(self.bytes, offset + index * 8);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            self.add(self.aligned(table, "L2 table")?, self.fields.cluster(), Kind::L2)?;
            if active && entry & COPIED != 0 {
                self.copied.push(table >> self.fields.cluster_bits);
            }
            if !hosts.insert(table) {
                return Err(format!("two L1 entries share the L2 table {table:#x}"));
            }
            for n in 0..self.fields.cluster() / self.fields.entry_bytes() {
                let entry = be64(self.bytes, table + n * self.fields.entry_bytes());
                self.l2_entry(entry, active, &mut hosts).map_err(|e| format!("L1 {index}, L2 {n}: {e}"))?;
            }
        }
        Ok(())
    }

    fn l2_entry(&mut self, entry: u64, active: bool, hosts: &mut BTreeSet<u64>) -> Result<(), String> {
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 {
                return Err("a compressed cluster with COPIED".into());
            }
            let (start, end) = compressed_range(entry, self.fields.cluster_bits);
            return self.add(start, end - start, Kind::Packed);
        }
        let host = entry & OFFSET;
        if host == 0 {
            return Ok(());
        }
        self.add(self.aligned(host, "data cluster")?, self.fields.cluster(), Kind::Data)?;
        if active && entry & COPIED != 0 {
            self.copied.push(host >> self.fields.cluster_bits);
        }
        if hosts.insert(host) { Ok(()) } else { Err(format!("two guest clusters share {host:#x}")) }
    }
}
