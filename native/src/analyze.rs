//! Where the space of an image file went, with what the file system adds: extents, and space that it holds unwritten.

use qcowkit_core::Result;
use qcowkit_core::operations::analyze::{Analysis, AnalyzeOptions, HostExtent, HostLayout, REQUEST_SIZES, analyze};
use qcowkit_core::operations::read_header;
use qcowkit_core::storage::{ReadStorage, StorageError, StorageExtent, StorageExtentKind};

use crate::extents::{HostExtents, Pending};
use crate::file::FileStorage;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAnalyzeOptions {
    /// Read the live data that the host holds, and look for clusters that hold nothing but zeros.
    pub scan_zeroes: bool,
    /// Request sizes in bytes for which the free space is looked at.
    pub request_sizes: Vec<u64>,
    /// Ask the file system for its extents. Has data that wait in memory written out first.
    pub extents: bool,
}

impl Default for FileAnalyzeOptions {
    fn default() -> Self {
        Self { scan_zeroes: false, request_sizes: REQUEST_SIZES.to_vec(), extents: true }
    }
}

/// Analyzes an image file, and its external data file if it has one and it is given.
///
/// Where the file system tells its extents, space that is reserved but was never written counts as held; otherwise as
/// a hole, for that is what it reads as.
///
/// # Errors
/// As [`analyze`].
pub fn analyze_file(
    file: &FileStorage,
    data_file: Option<&FileStorage>,
    options: &FileAnalyzeOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Analysis> {
    let image = WithExtents::new(file, options.extents)?;
    let data = data_file.map(|file| WithExtents::new(file, options.extents)).transpose()?;
    let area = read_header(file)?;
    let core_options = AnalyzeOptions {
        scan_zeroes: options.scan_zeroes,
        request_sizes: &options.request_sizes,
        host_allocated: file.allocated_bytes().ok(),
        data_file: data.as_ref().map(|data| data as &dyn ReadStorage),
    };
    let mut analysis = analyze(&image, &area, &core_options, progress)?;
    analysis.layout.host = image.layout;
    Ok(analysis)
}

/// A file whose holes are those of its extents.
struct WithExtents<'a> {
    file: &'a FileStorage,
    /// Start and end of what the host holds, ascending and apart; `None` where the file system does not tell.
    held: Option<Vec<(u64, u64)>>,
    layout: Option<HostLayout>,
}

impl<'a> WithExtents<'a> {
    fn new(file: &'a FileStorage, wanted: bool) -> Result<Self> {
        let extents = if wanted { HostExtents::of(file, Pending::WriteOut)? } else { None };
        let Some(extents) = extents else { return Ok(Self { file, held: None, layout: None }) };
        let (mut held, mut failure) = (Vec::<(u64, u64)>::new(), None);
        let layout = HostLayout::of(extents.map_while(|extent| match extent {
            Ok(extent) => {
                let end = extent.offset.saturating_add(extent.length);
                match held.last_mut().filter(|run| run.1 >= extent.offset) {
                    Some(run) => run.1 = run.1.max(end),
                    None => held.push((extent.offset, end)),
                }
                Some(HostExtent {
                    offset: extent.offset,
                    length: extent.length,
                    physical_offset: extent.physical_offset,
                    unwritten: extent.unwritten,
                    shared: extent.shared,
                })
            }
            Err(error) => {
                failure = Some(error);
                None
            }
        }));
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(Self { file, held: Some(held), layout: Some(layout) }),
        }
    }
}

impl ReadStorage for WithExtents<'_> {
    qcowkit_core::forward_storage!(this => this.file; len, read_at, capabilities);

    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        let Some(held) = &self.held else { return self.file.next_extent(offset) };
        let length = self.len()?;
        let (kind, end) = match held.get(held.partition_point(|run| run.1 <= offset)) {
            Some(run) if run.0 <= offset => (StorageExtentKind::Data, run.1),
            Some(run) => (StorageExtentKind::Hole, run.0),
            None => (StorageExtentKind::Hole, length),
        };
        let kind = if offset >= length { StorageExtentKind::Hole } else { kind };
        Ok(StorageExtent { kind, length: end.min(length).saturating_sub(offset) })
    }
}
