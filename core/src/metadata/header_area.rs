//! Another header cluster: header, extensions and backing file name change together.
//!
//! Storage writes 512 bytes whole or not at all, so the first sector is the switch. What does not fit into it (the
//! table of feature names, long file names) must not be changed under the header that names it. So a header goes
//! between the old and the new one: it names features nowhere, and its backing file name lies where neither has bytes.
//! After a cut the image has the old header, the new one, or that.

use alloc::vec;
use alloc::vec::Vec;

use super::Metadata;
use crate::error::{Error, Result, Structure};
use crate::format::{Extension, HeaderArea, Name};
use crate::storage::Storage;

/// What storage writes whole or not at all.
const SECTOR: usize = 512;

/// One write; a barrier follows.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    at: usize,
    bytes: Vec<u8>,
}

impl Metadata {
    /// Replaces header, extensions and backing file name. Everything that waits for a commit is written before, since
    /// the new header may name it. Durable on return.
    ///
    /// Neither cluster size, width of entries and refcounts nor the place of guest data may differ.
    ///
    /// # Errors
    /// An area that is too long for a cluster or contradicts itself: nothing is changed then. A storage that fails: when
    /// it is unknown which header it holds, nothing more is written.
    pub(crate) fn replace_header(&mut self, storage: &impl Storage, area: &HeaderArea) -> Result<()> {
        self.flush(storage)?;
        let new = area.emit()?;
        let parsed = HeaderArea::parse(&new)?;
        let geometry = parsed.validate(Some(storage.len()?))?;
        let fixed =
            |g: &crate::format::Geometry| (g.cluster_bits(), g.refcount_order(), g.extended_l2(), g.data_file());
        if fixed(&geometry) != fixed(&self.geometry) {
            return Err(Error::invalid("a header of another geometry").in_structure(Structure::Header));
        }
        let mut old = vec![0u8; new.len()];
        storage.read_at(0, &mut old).map_err(|e| Error::from(e).in_structure(Structure::Header))?;
        let mut visible = false;
        for step in steps(&old, &new, area)? {
            visible |= step.at == 0;
            let at = u64::try_from(step.at).unwrap_or(u64::MAX);
            match storage.write_at(at, &step.bytes) {
                Ok(()) => self.unsynced = true,
                Err(error) if visible => return Err(self.poison(&error)),
                Err(error) => return Err(Error::from(error).in_structure(Structure::Header)),
            }
            self.barrier(storage)?;
        }
        self.header = parsed;
        self.geometry = geometry;
        self.header_dirty = false;
        Ok(())
    }
}

/// The writes from one header cluster to another, in order.
fn steps(old: &[u8], new: &[u8], area: &HeaderArea) -> Result<Vec<Step>> {
    let used = |bytes: &[u8]| bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
    let sectors = |length: usize| length.div_ceil(SECTOR).saturating_mul(SECTOR).min(new.len());
    let end = sectors(used(old).max(used(new)));
    let step = |at: usize, bytes: &[u8]| Step { at, bytes: bytes.to_vec() };
    let head = step(0, new.get(..SECTOR).unwrap_or(new));
    let rest = step(SECTOR, new.get(SECTOR..end).unwrap_or_default());
    if old.get(SECTOR..) == new.get(SECTOR..) {
        return Ok(vec![head]);
    }
    if used(new) <= SECTOR {
        // What the old header named behind the first sector is only cleared away.
        return Ok(vec![head, rest]);
    }
    let mut between = area.clone();
    between.extensions.retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
    let whole = between.emit()?;
    if used(&whole) <= SECTOR {
        return Ok(vec![step(0, whole.get(..SECTOR).unwrap_or(&whole)), rest, head]);
    }
    let name = between.backing_file.take().unwrap_or_else(|| Name::new([]));
    let mut nameless = between.emit()?;
    let fits = used(&nameless).saturating_add(8) <= SECTOR && end.saturating_add(name.len()) <= new.len();
    if name.is_empty() || !fits {
        // Nothing shorter can be said; as with QEMU, a cut in this one write may leave half of it.
        return Ok(vec![step(0, new.get(..end).unwrap_or(new))]);
    }
    between.header.backing_file_offset = u64::try_from(end).unwrap_or(u64::MAX);
    between.header.backing_file_size = u32::try_from(name.len()).unwrap_or(u32::MAX);
    between.header.header_length = between.header.emitted_length();
    let fields = between.header.emit();
    if let Some(start) = nameless.get_mut(..fields.len()) {
        start.copy_from_slice(&fields);
    }
    let clear = vec![0u8; name.len()];
    Ok(vec![
        step(end, name.as_bytes()),
        step(0, nameless.get(..SECTOR).unwrap_or(&nameless)),
        rest,
        head,
        step(end, &clear),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{FeatureName, Header};

    fn area(version: u32, backing: usize, data_file: usize, names: bool) -> HeaderArea {
        let mut area = HeaderArea::new(Header { l1_size: 1, ..Header::new(version, 16, 1 << 20) });
        area.header.refcount_table_offset = 0x10000;
        area.header.refcount_table_clusters = 1;
        if backing > 0 {
            area.extensions.push(Extension::BackingFormat(Name::from("qcow2")));
        }
        if names {
            area.extensions.push(Extension::FeatureNames(FeatureName::standard_table()));
        }
        if data_file > 0 {
            area.extensions.push(Extension::DataFile(Name::new(vec![b'd'; data_file])));
        }
        area.backing_file = (backing > 0).then(|| Name::new(vec![b'b'.wrapping_add((backing % 7) as u8); backing]));
        area
    }

    /// What a reader takes from a header cluster, whatever features are named.
    fn meaning(cluster: &[u8]) -> (u32, Option<Name>, Option<Name>, Option<Name>) {
        let area = HeaderArea::parse(cluster).unwrap();
        assert_eq!(area.damage, None);
        area.validate(None).unwrap();
        let (format, data_file) = (area.backing_format().cloned(), area.data_file().cloned());
        (area.header.version, area.backing_file, format, data_file)
    }

    #[test]
    fn every_state_on_the_way_is_the_old_header_or_the_new_one() {
        let mut all = Vec::new();
        for version in [2, 3] {
            for backing in [0, 7, 300, 1023] {
                for (data_file, names) in [(0, false), (0, true), (9, true), (200, true)] {
                    if version == 3 || (data_file == 0 && !names) {
                        all.push(area(version, backing, data_file, names));
                    }
                }
            }
        }
        let mut between = 0;
        for from in &all {
            for to in &all {
                let (old, new) = (from.emit().unwrap(), to.emit().unwrap());
                let mut cluster = old.clone();
                let steps = steps(&old, &new, to).unwrap();
                between += usize::from(steps.len() > 2);
                for step in steps {
                    let before = cluster.clone();
                    // Any subset of the sectors of one write may be there.
                    for kept in 0..1u32 << step.bytes.len().div_ceil(SECTOR).min(6) {
                        cluster.copy_from_slice(&before);
                        for (n, part) in step.bytes.chunks(SECTOR).enumerate() {
                            if kept & 1 << n != 0 {
                                let at = step.at + n * SECTOR;
                                cluster[at..at + part.len()].copy_from_slice(part);
                            }
                        }
                        let seen = meaning(&cluster);
                        assert!(seen == meaning(&old) || seen == meaning(&new), "{from:?} to {to:?}: {seen:?}");
                    }
                    cluster.copy_from_slice(&before);
                    cluster[step.at..step.at + step.bytes.len()].copy_from_slice(&step.bytes);
                }
                assert!(cluster == new, "{from:?} to {to:?}");
            }
        }
        assert!(between > 100, "{between}");
    }
}
