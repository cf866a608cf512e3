//! Another shape for an image that exists: what `qemu-img amend` changes.
//!
//! Each change leaves a sound image at every instant. Together they are made in the order in which one needs the other:
//! a newer version first, an older one last.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use super::Image;
use crate::error::{Error, Result, Structure};
use crate::format::{
    AutoclearFeatures, CompatibleFeatures, Extension, FeatureName, HeaderArea, HostOffset, IncompatibleFeatures,
    L1Entry, Name, Snapshot,
};
use crate::metadata::{Expansion, Quarantined, read_snapshots, visit_inactive_l1};
use crate::storage::Storage;

/// Steps of one stage, for the progress.
const STEPS: u64 = 1000;
/// The header of version 3, as QEMU writes it.
const V3_HEADER_LENGTH: u32 = 112;

/// What is to change; `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// Format version: 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: Option<u32>,
    /// Whether programs may postpone refcount updates. Version 3.
    pub lazy_refcounts: Option<bool>,
    /// Bits of a refcount: 1, 2, 4, 8, 16, 32 or 64. Version 3, except for 16.
    pub refcount_bits: Option<u32>,
    /// Bytes of the virtual disk; see [`Image::resize`].
    pub size: Option<u64>,
    /// The name of the data file, in an image that has one; empty for none in the image.
    pub data_file: Option<String>,
    /// `false`: the data file need not be a raw image of the disk any more. It cannot be switched on.
    pub data_file_raw: Option<bool>,
    /// Name and format of the backing file, put into the header as they are. An empty name for no backing file. What the
    /// guest sees changes with it unless the contents are equal.
    pub backing: Option<(String, Option<String>)>,
}

impl AmendOptions {
    /// Checks everything that can be checked in an image with this header, before anything is changed.
    ///
    /// # Errors
    /// What is out of range, does not go together, or is not possible in this image; in QEMU's words.
    pub fn validate(&self, area: &HeaderArea) -> Result<()> {
        let header = &area.header;
        let version = self.version.unwrap_or(header.version);
        let bits = self.refcount_bits.unwrap_or(1u32.checked_shl(header.refcount_order).unwrap_or(0));
        let raw = header.autoclear.data_file_raw();
        let upgrades = version > header.version;
        let wrong = [
            (!(2..=3).contains(&version), "format version must be 2 (compat=0.10) or 3 (compat=1.1)"),
            (!bits.is_power_of_two() || bits > 64, "Refcount width must be a power of two and may not exceed 64 bits"),
            (version < 3 && bits != 16 && self.refcount_bits.is_none(), "compat=0.10 requires refcount_bits=16"),
            (
                version < 3 && bits != 16,
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or \
                 greater)",
            ),
            (self.data_file_raw == Some(true) && !raw, "data-file-raw cannot be set on existing images"),
            (
                self.data_file.is_some() && !header.incompatible.data_file(),
                "data-file can only be set for images that use an external data file",
            ),
            (
                version < 3 && self.lazy_refcounts == Some(true),
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ),
            (self.size.is_some_and(|size| !size.is_multiple_of(512)), "The new size must be a multiple of 512"),
            (
                self.backing.as_ref().is_some_and(|(file, format)| file.is_empty() && format.is_some()),
                "Backing format cannot be used without backing file",
            ),
            (upgrades && header.version < 2, "the image has no known version"),
        ];
        if let Some((_, words)) = wrong.iter().find(|(wrong, _)| *wrong) {
            return Err(Error::invalid(*words));
        }
        if version < header.version { refuse_downgrade(area) } else { Ok(()) }
    }
}

/// What an image has that version 2 cannot say.
fn refuse_downgrade(area: &HeaderArea) -> Result<()> {
    let header = &area.header;
    if header.incompatible.data_file() {
        return Err(Error::unsupported("Cannot downgrade an image with a data file"));
    }
    let more = header.incompatible.without(IncompatibleFeatures::DIRTY);
    if !more.is_empty() {
        let what = alloc::format!("Cannot downgrade an image with incompatible features {:#x} set", more.bits());
        return Err(Error::unsupported(alloc::format!("{what} ({})", more.names(area.feature_names()).join(", "))));
    }
    if area.consistent_bitmaps().is_some() {
        let what = "Cannot downgrade an image with persistent bitmaps: compat=0.10 cannot keep them; remove them first";
        return Err(Error::unsupported(what));
    }
    Ok(())
}

impl<S: Storage> Image<S> {
    /// Changes the image as `options` say. `progress` is told how much is done, of how much. Durable on return.
    ///
    /// A change that fails leaves the changes before it in place.
    ///
    /// # Errors
    /// As [`AmendOptions::validate`]; snapshots that version 2 cannot describe; otherwise as [`Image::write_at`] and
    /// [`Image::resize`].
    pub fn amend(&mut self, options: &AmendOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        options.validate(self.header())?;
        let (old, new) = (self.geometry().version(), options.version.unwrap_or(self.geometry().version()));
        if new < old {
            self.refuse_snapshots_for_version_2(options.size)?;
        }
        let bits = options.refcount_bits.filter(|bits| bits.trailing_zeros() != self.geometry().refcount_order());
        if let Some(bits) = bits {
            self.metadata.refuse_refcounts_beyond(&self.storage, bits.trailing_zeros())?;
        }
        self.begin_writing()?;
        let stages = u64::from(bits.is_some()).saturating_add(u64::from(new < old)).max(1);
        let mut finished = 0u64;
        let mut stage = |finished: u64, done: u64, total: u64| {
            let part = done.saturating_mul(STEPS).checked_div(total).unwrap_or(STEPS);
            progress(finished.saturating_mul(STEPS).saturating_add(part), stages.saturating_mul(STEPS));
        };
        stage(finished, 0, 1);
        if new > old {
            self.upgrade()?;
        }
        if let Some(bits) = bits {
            let order = bits.trailing_zeros();
            self.flush()?;
            let mut told = |done, total| stage(finished, done, total);
            self.metadata.change_refcount_width(&self.storage, order, &mut told)?;
            finished = finished.saturating_add(1);
        }
        self.amend_header(options)?;
        if let Some(lazy) = options.lazy_refcounts
            && lazy != self.header().header.compatible.lazy_refcounts()
        {
            let header = &mut self.metadata.header_mut().header;
            let feature = CompatibleFeatures::LAZY_REFCOUNTS;
            header.compatible = if lazy { header.compatible.with(feature) } else { header.compatible.without(feature) };
        }
        if let Some(size) = options.size.filter(|&size| size != self.virtual_size()) {
            self.resize(size)?;
        }
        if new < old {
            self.downgrade(&mut |done, total| stage(finished, done, total))?;
        }
        self.finish()?;
        stage(stages.saturating_sub(1), 1, 1);
        Ok(())
    }

    /// Names of files, and what the data file is.
    fn amend_header(&mut self, options: &AmendOptions) -> Result<()> {
        let mut area = self.header().clone();
        if options.data_file_raw == Some(false) {
            area.header.autoclear = area.header.autoclear.without(AutoclearFeatures::DATA_FILE_RAW);
        }
        if let Some(name) = &options.data_file {
            area.extensions.retain(|extension| !matches!(extension, Extension::DataFile(_)));
            if !name.is_empty() {
                area.extensions.insert(0, Extension::DataFile(Name::from(name.as_str())));
            }
        }
        if let Some((name, format)) = &options.backing {
            area.set_backing((!name.is_empty()).then(|| Name::from(name.as_str())), format.as_deref().map(Name::from));
        }
        if &area == self.header() { Ok(()) } else { self.metadata.replace_header(&self.storage, &area) }
    }

    /// From version 2 to version 3.
    fn upgrade(&mut self) -> Result<()> {
        self.complete_snapshots()?;
        let mut area = self.header().clone();
        area.header.version = 3;
        area.header.header_length = V3_HEADER_LENGTH;
        let named = area.extensions.iter().any(|extension| matches!(extension, Extension::FeatureNames(_)));
        if !named && self.geometry().cluster_size() >= 1024 {
            area.extensions.push(Extension::FeatureNames(FeatureName::standard_table()));
        }
        self.metadata.replace_header(&self.storage, &area)
    }

    /// From version 3 to version 2.
    fn downgrade(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let (mut active, mut inactive) = (BTreeSet::new(), BTreeSet::new());
        self.metadata.collect_tables(self.metadata.active_l1(), &mut active)?;
        self.collect_inactive_tables(&mut inactive)?;
        // The active ones first: what they let go is a snapshot's alone then, and needs no COPIED flag.
        let tables: Vec<u64> = active.iter().chain(inactive.difference(&active)).copied().collect();
        let expansion = Expansion {
            has_backing: self.header().backing_file.is_some(),
            encrypted: self.header().header.crypt_method != 0,
        };
        let total = u64::try_from(tables.len()).unwrap_or(u64::MAX);
        for (done, &table) in (0u64..).zip(&tables) {
            progress(done, total);
            self.metadata.expand_zero_entries(
                &self.storage,
                HostOffset::new(table),
                active.contains(&table),
                expansion,
            )?;
        }
        self.unpacked = None;
        let mut area = self.header().clone();
        area.header.version = 2;
        area.header.incompatible = IncompatibleFeatures::default();
        area.header.compatible = CompatibleFeatures::default();
        area.header.autoclear = AutoclearFeatures::default();
        area.header.header_length = 72;
        area.header.unknown_fields.clear();
        area.extensions.retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
        self.metadata.replace_header(&self.storage, &area)
    }

    fn refuse_snapshots_for_version_2(&self, size: Option<u64>) -> Result<()> {
        let size = size.unwrap_or(self.virtual_size());
        let fits = |snapshot: &Snapshot| {
            u32::try_from(snapshot.vm_state_size()).is_ok() && snapshot.virtual_size().is_none_or(|old| old == size)
        };
        if self.snapshot_entries()?.iter().all(fits) {
            return Ok(());
        }
        Err(Error::unsupported("Internal snapshots prevent downgrade of image"))
    }

    /// Gives every snapshot the extra data that version 3 asks for.
    fn complete_snapshots(&mut self) -> Result<()> {
        const NEEDED: usize = 16;
        let mut snapshots = self.snapshot_entries()?;
        if snapshots.iter().all(|snapshot| snapshot.extra_data.len() >= NEEDED) {
            return Ok(());
        }
        let size = self.virtual_size();
        let mut old = Vec::new();
        let mut new = Vec::new();
        for snapshot in &mut snapshots {
            snapshot.emit(&mut old)?;
            if snapshot.extra_data.len() < NEEDED {
                let state = snapshot.vm_state_size();
                snapshot.extra_data = Snapshot::extra_data_for(state, snapshot.virtual_size().unwrap_or(size), None);
                // The instruction count came later; without it, the entry says nothing of it.
                snapshot.extra_data.truncate(NEEDED);
            }
            snapshot.emit(&mut new)?;
        }
        let geometry = *self.geometry();
        let clusters = |bytes: &[u8]| geometry.clusters_for(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let run = self.metadata.allocate_exact(&self.storage, clusters(&new))?;
        let offset = geometry.host_start(run.first);
        let place = HostOffset::new(self.header().header.snapshots_offset);
        let released = Quarantined { first: geometry.host_cluster(place), count: clusters(&old), pass: false };
        let written = self.storage.write_at(offset.get(), &new).map_err(Error::from);
        self.metadata.note_write();
        let made = written.and_then(|()| self.metadata.release(&self.storage, released));
        if let Err(error) = made {
            self.metadata.undo_allocation(&self.storage, run)?;
            return Err(error.in_structure(Structure::SnapshotTable));
        }
        self.metadata.header_mut().header.snapshots_offset = offset.get();
        self.commit()
    }

    fn snapshot_entries(&self) -> Result<Vec<Snapshot>> {
        read_snapshots(&self.header().header, &self.storage)
    }

    /// The L2 tables that snapshots lead to, added to `tables`.
    fn collect_inactive_tables(&self, tables: &mut BTreeSet<u64>) -> Result<()> {
        let geometry = self.geometry();
        let snapshots = self.snapshot_entries()?;
        if let Some(snapshot) = snapshots.iter().find(|snapshot| !geometry.is_aligned(snapshot.l1_table_offset)) {
            let what = alloc::format!("the L1 table of snapshot '{}' is invalid", snapshot.name);
            return Err(Error::corrupt(Structure::L1Table, what).at_host(snapshot.l1_table_offset));
        }
        visit_inactive_l1(&snapshots, geometry, &self.storage, &mut |place, raw| {
            let entry = L1Entry::decode(raw, geometry)
                .map_err(|e| Error::corrupt(Structure::L1Table, alloc::format!("{e}")).at_host(place))?;
            tables.extend(entry.table().map(|table| table.offset.get()));
            Ok(())
        })
    }
}
