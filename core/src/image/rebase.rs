//! Another backing file under an image: `rebase`.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::{ControlFlow, Range};

use super::{Content, Image, Layer};
use crate::error::{Error, Result};
use crate::format::{HeaderArea, Name};
use crate::storage::{Storage, StorageExtentKind};
use crate::zeros::is_zero;

/// The most bytes that are compared at once, unless one cluster has more.
const PIECE_BYTES: u64 = 2 << 20;

/// What goes under an image.
#[derive(Debug)]
pub struct NewBacking<S> {
    /// The name of the backing file, as the image is to have it; empty for none.
    pub name: String,
    /// The format of the backing file.
    pub format: Option<String>,
    /// The backing file itself, with its chain; `None` when there is to be none.
    pub layer: Option<Layer<S>>,
    /// The layer of the present chain, by its depth, that is the same file as `layer`: what both show through it need not
    /// be compared.
    pub shared_depth: Option<u32>,
}

/// What a rebase copied into the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RebaseReport {
    /// Bytes that differed and were copied.
    pub data_bytes: u64,
    /// Bytes that differed and are zeros of the image's own now.
    pub zero_bytes: u64,
}

impl<S> NewBacking<S> {
    /// No backing file: all that shows through is copied.
    #[must_use]
    pub fn none() -> Self {
        Self { name: String::new(), format: None, layer: None, shared_depth: None }
    }
}

impl<S: Storage> Image<S> {
    /// Puts the image on another backing file, without a change of what the guest sees: clusters (subclusters, with
    /// extended L2 entries) that the image leaves to its backing file and that the new one shows differently are copied
    /// into the image first, with `compress` packed where the whole cluster is copied. Durable on return; after a cut
    /// before that, the image is on the old backing file or on the new one and shows the same.
    ///
    /// Internal snapshots are not looked at: what they leave to the backing file changes with it.
    ///
    /// `progress` is told how many bytes of the disk are compared, of how many, and can stop it; the image then keeps its
    /// backing file.
    ///
    /// # Errors
    /// A name that is too long or has no room, `layer` without `name` or the reverse: nothing is changed then. Otherwise
    /// as [`Image::read_at`] and [`Image::write_at`]; the image then keeps its backing file.
    ///
    /// # Examples
    /// ```
    /// use std::ops::ControlFlow;
    /// use qcowkit_core::image::{CreateOptions, Image, Layer, NewBacking};
    /// use qcowkit_core::storage::MemoryStorage;
    ///
    /// let mut base = Image::create(MemoryStorage::new(), 1 << 20, &CreateOptions::default())?;
    /// base.write_at(0, b"base")?;
    /// let options = CreateOptions {
    ///     backing_file: Some("base.qcow2".into()),
    ///     backing_format: Some("qcow2".into()),
    ///     ..CreateOptions::default()
    /// };
    /// let overlay = Image::create(MemoryStorage::new(), 1 << 20, &options)?;
    /// let mut overlay = overlay.with_backing(Layer::Image(Box::new(base)));
    ///
    /// let report = overlay.rebase(NewBacking::none(), false, &mut |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(report.data_bytes, 1 << 16);
    /// assert!(overlay.backing().is_none() && overlay.header().backing_file.is_none());
    /// let mut bytes = [0; 4];
    /// overlay.read_at(0, &mut bytes)?;
    /// assert_eq!(&bytes, b"base");
    /// # Ok::<(), qcowkit_core::Error>(())
    /// ```
    pub fn rebase(
        &mut self,
        mut new: NewBacking<S>,
        compress: bool,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<RebaseReport> {
        if new.name.is_empty() != new.layer.is_none() {
            return Err(Error::invalid("a backing file has both a name and contents"));
        }
        if compress && self.geometry().data_file() {
            return Err(Error::unsupported("compressed clusters in an image with an external data file"));
        }
        let area = self.area_with_backing(&new.name, new.format.as_deref())?;
        if self.header().backing_file.is_some() && self.backing.is_none() {
            return Err(Error::invalid("the present backing file was not opened, so nothing can be compared with it"));
        }
        self.begin_writing()?;
        let mut report = RebaseReport::default();
        let stopped = self.copy_differences(&mut new, compress, &mut report, progress)?;
        // Durable before the new backing file shows.
        self.flush()?;
        if stopped {
            self.finish()?;
            return Ok(report);
        }
        self.metadata.replace_header(&self.storage, &area)?;
        self.backing = new.layer;
        self.unpacked = None;
        self.finish()?;
        Ok(report)
    }

    /// Writes another name of the backing file into the header, and its format; an empty name for no backing file.
    /// Nothing is compared: for a backing file that moved. The image forgets the layers below, so that it should be opened
    /// anew. Durable on return.
    ///
    /// # Errors
    /// A name that is too long or has no room (nothing is changed then); otherwise as [`Image::write_at`].
    pub fn set_backing(&mut self, name: &str, format: Option<&str>) -> Result<()> {
        let area = self.area_with_backing(name, format)?;
        self.begin_writing()?;
        self.metadata.replace_header(&self.storage, &area)?;
        self.backing = None;
        self.unpacked = None;
        self.finish()
    }

    /// The header with another backing file, if it has room for it.
    fn area_with_backing(&self, name: &str, format: Option<&str>) -> Result<HeaderArea> {
        let mut area = self.header().clone();
        if !name.is_empty() && area.header.autoclear.data_file_raw() {
            return Err(Error::invalid("an image with a raw data file cannot have a backing file"));
        }
        let named = (!name.is_empty()).then(|| Name::from(name));
        area.set_backing(named.clone(), format.map(Name::from).filter(|_| named.is_some()));
        area.emit()?;
        Ok(area)
    }

    /// Copies what the new layer shows differently. True if `progress` stopped it.
    fn copy_differences(
        &mut self,
        new: &mut NewBacking<S>,
        compress: bool,
        report: &mut RebaseReport,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<bool> {
        let size = self.virtual_size();
        let cluster = self.geometry().cluster_size();
        let mut at = 0;
        let mut buffers = (Vec::new(), Vec::new());
        while at < size {
            if progress(at, size).is_break() {
                return Ok(true);
            }
            let local = self.next_local_extent(at, size.saturating_sub(at))?;
            let end = at.saturating_add(local.length.max(1)).min(size);
            if local.content != Content::Unallocated {
                at = end;
                continue;
            }
            // In pieces, so that progress is seen; they end with a cluster.
            while at < end {
                if progress(at, size).is_break() {
                    return Ok(true);
                }
                let equal = self.known_equal(new, at..end)?;
                if equal > at {
                    at = equal;
                    continue;
                }
                let stop = at.saturating_add(PIECE_BYTES.max(cluster));
                let stop = stop.saturating_sub(stop.checked_rem(cluster).unwrap_or(0)).min(end);
                self.copy_piece(new, at..stop, compress, &mut buffers, report)?;
                at = stop;
            }
        }
        let _ = progress(size, size);
        Ok(false)
    }

    /// How far, in clusters, old and new backing file show the same without a look at their data.
    fn known_equal(&mut self, new: &mut NewBacking<S>, range: Range<u64>) -> Result<u64> {
        let cluster = self.geometry().cluster_size();
        let mut at = range.start;
        while at < range.end {
            let left = range.end.saturating_sub(at);
            let old = self.next_extent(at, left)?;
            let old = self.without_holes(old);
            if new.shared_depth.is_some_and(|depth| old.depth >= depth) {
                at = at.saturating_add(old.length.max(1));
                continue;
            }
            if !old.is_zero() {
                break;
            }
            let (zero, length) = new_extent(new.layer.as_mut(), at, old.length)?;
            if !zero {
                break;
            }
            at = at.saturating_add(length.max(1));
        }
        let whole = at.saturating_sub(at.checked_rem(cluster).unwrap_or(0));
        Ok(if at >= range.end { range.end } else { whole.max(range.start) })
    }

    /// Compares a range that this layer leaves to its backing file, and copies the units that differ.
    fn copy_piece(
        &mut self,
        new: &mut NewBacking<S>,
        range: Range<u64>,
        compress: bool,
        (old_bytes, new_bytes): &mut (Vec<u8>, Vec<u8>),
        report: &mut RebaseReport,
    ) -> Result<()> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        for buffer in [&mut *old_bytes, &mut *new_bytes] {
            buffer.clear();
            buffer.resize(length, 0);
        }
        self.read_at(range.start, old_bytes)?;
        read_new(new.layer.as_mut(), range.start, new_bytes)?;
        let unit = if compress { self.geometry().cluster_size() } else { self.geometry().subcluster_size() };
        // Neighbours that are alike go out in one write.
        let mut group: Option<(Range<u64>, bool)> = None;
        let mut at = range.start;
        while at < range.end {
            let next = at.saturating_sub(at.checked_rem(unit).unwrap_or(0)).saturating_add(unit).min(range.end);
            let old = part(old_bytes, range.start, at..next);
            let different = (old != part(new_bytes, range.start, at..next)).then(|| is_zero(old));
            match (&mut group, different) {
                (Some((run, zero)), Some(now)) if *zero == now => run.end = next,
                (_, different) => {
                    if let Some((run, zero)) = group.take() {
                        self.copy_group(&run, zero, compress, part(old_bytes, range.start, run.clone()), report)?;
                    }
                    group = different.map(|zero| (at..next, zero));
                }
            }
            at = next;
        }
        match group {
            Some((run, zero)) => {
                self.copy_group(&run, zero, compress, part(old_bytes, range.start, run.clone()), report)
            }
            None => Ok(()),
        }
    }

    fn copy_group(
        &mut self,
        run: &Range<u64>,
        zero: bool,
        compress: bool,
        bytes: &[u8],
        report: &mut RebaseReport,
    ) -> Result<()> {
        let length = run.end.saturating_sub(run.start);
        let geometry = self.geometry();
        // Version 2 has no other zeros over a backing file than written ones, and one that has no backing file yet would
        // leave them unallocated.
        if zero && geometry.version() >= 3 {
            report.zero_bytes = report.zero_bytes.saturating_add(length);
            return self.write_zeroes(run.start, length, true);
        }
        report.data_bytes = report.data_bytes.saturating_add(length);
        if !compress {
            return self.write_data(run.start, bytes);
        }
        // Only whole clusters can be packed: with subclusters, the image may have parts of those at the ends.
        let (from, to) = (geometry.align_up(run.start).min(run.end), geometry.align_down(run.end));
        let to = if run.end == self.virtual_size() { run.end } else { to };
        let middle = from..to.max(from);
        self.write_data(run.start, part(bytes, run.start, run.start..middle.start))?;
        self.write_compressed(middle.start, part(bytes, run.start, middle.clone()))?;
        self.write_data(middle.end, part(bytes, run.start, middle.end..run.end))
    }
}

impl<S> From<Image<S>> for Layer<S> {
    fn from(image: Image<S>) -> Self {
        Self::Image(Box::new(image))
    }
}

/// The bytes of `range` in a buffer that begins at `start`.
fn part(bytes: &[u8], start: u64, range: Range<u64>) -> &[u8] {
    let index = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
    bytes.get(index(range.start)..index(range.end)).unwrap_or_default()
}

/// Whether the new backing file is known to show zeros at `offset`, and how far that holds.
fn new_extent<S: Storage>(layer: Option<&mut Layer<S>>, offset: u64, length: u64) -> Result<(bool, u64)> {
    let Some(layer) = layer else { return Ok((true, length)) };
    let size = layer.virtual_size();
    if offset >= size {
        return Ok((true, length));
    }
    let length = length.min(size.saturating_sub(offset));
    match layer {
        Layer::Image(image) => {
            let extent = image.next_extent(offset, length)?;
            let extent = image.without_holes(extent);
            Ok((extent.is_zero(), extent.length))
        }
        Layer::Raw { storage, .. } => {
            let found = storage.next_extent(offset)?;
            let length = if found.length == 0 { length } else { found.length.min(length) };
            Ok((found.kind == StorageExtentKind::Hole, length))
        }
    }
}

/// What the new backing file shows; zeros beyond its end.
fn read_new<S: Storage>(layer: Option<&mut Layer<S>>, offset: u64, into: &mut [u8]) -> Result<()> {
    let Some(layer) = layer else { return Ok(()) };
    let inside = usize::try_from(layer.virtual_size().saturating_sub(offset)).unwrap_or(usize::MAX).min(into.len());
    let (shown, _) = into.split_at_mut(inside);
    if shown.is_empty() {
        return Ok(());
    }
    match layer {
        Layer::Image(image) => image.read_at(offset, shown),
        Layer::Raw { storage, .. } => Ok(storage.read_at(offset, shown)?),
    }
}
