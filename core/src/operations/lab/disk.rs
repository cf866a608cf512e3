//! The disks of the lab: empty, or the skeleton of an image, with its metadata and without its data.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::LabConfig;
use super::replay::counting;
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::image::{Found, Image, LayerFormat, Opener, Reference, Role, read_header};
use crate::metadata::{read_l1, refuse_repeats};
use crate::operations::walk::{Fault, HostReference, Visitor, walk};
use crate::storage::{CallCount, CountingStorage, MemoryStorage, ReadStorage, Storage, StorageExtentKind};

/// Where the lab keeps an image: memory, behind the type that other images in memory can have too, so that the code for
/// them is there once.
pub type LabStorage = CountingStorage<Rc<dyn Storage>>;

/// What a replay begins with.
#[derive(Debug, Clone)]
pub enum LabDisk {
    /// A new image, made as the configuration says.
    Empty {
        /// Bytes of the virtual disk.
        size: u64,
    },
    /// An image that exists, without its data.
    Skeleton(Skeleton),
}

/// The metadata of an image, and which parts of its file the host has allocated.
#[derive(Debug, Clone)]
pub struct Skeleton {
    storage: MemoryStorage,
    virtual_size: u64,
    data_file: Option<MemoryStorage>,
}

impl Skeleton {
    /// Copies the metadata of an image. Its data are not read, its backing file is not needed; of an external data file,
    /// `data_file` tells which parts are allocated.
    ///
    /// # Errors
    /// An image that is broken: faults in its tables would make the replay worthless. A storage that fails.
    pub fn of<S: ReadStorage + ?Sized>(storage: &S, data_file: Option<&dyn ReadStorage>) -> Result<Self> {
        let area = read_header(storage)?;
        let geometry = area.validate(Some(storage.len()?))?;
        // Each reference to a table is a copy of it, and an image that opens has few tables twice.
        refuse_repeats(&read_l1(storage, area.header.l1_table_offset, area.header.l1_size)?, &geometry)?;
        let memory = allocated_parts(storage)?;
        let mut copy = Copy { from: storage, to: &memory };
        copy.range(0, geometry.cluster_size())?;
        walk(storage, &area, &mut copy)?;
        let data_file = match (geometry.data_file(), data_file) {
            (false, _) => None,
            (true, Some(data_file)) => Some(allocated_parts(data_file)?),
            (true, None) => Some(MemoryStorage::with_len(geometry.virtual_size())),
        };
        Ok(Self { storage: memory, virtual_size: geometry.virtual_size(), data_file })
    }

    /// Bytes of the virtual disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }
}

/// A store in which the same parts are allocated.
fn allocated_parts<S: ReadStorage + ?Sized>(from: &S) -> Result<MemoryStorage> {
    let length = from.len()?;
    let memory = MemoryStorage::with_len(length);
    let mut at = 0;
    while at < length {
        let extent = from.next_extent(at)?;
        if extent.kind != StorageExtentKind::Hole {
            memory.allocate(at, extent.length.min(length.saturating_sub(at)))?;
        }
        at = at.saturating_add(extent.length.max(1));
    }
    Ok(memory)
}

/// Copies what the walk meets, except data.
struct Copy<'a, S: ?Sized> {
    from: &'a S,
    to: &'a MemoryStorage,
}

impl<S: ReadStorage + ?Sized> Copy<'_, S> {
    fn range(&self, offset: u64, length: u64) -> Result<()> {
        const PIECE: u64 = 1 << 20;
        let end = offset.saturating_add(length).min(self.from.len()?);
        let mut buffer = Vec::new();
        let mut at = offset;
        while at < end {
            let extent = self.from.next_extent(at)?;
            if extent.kind == StorageExtentKind::Hole {
                // The copy reads as zeros there already, and a table can be said to lie in terabytes of nothing.
                at = at.saturating_add(extent.length.max(1));
                continue;
            }
            let here = extent.length.max(1).min(end.saturating_sub(at)).min(PIECE);
            let piece = usize::try_from(here).unwrap_or(0);
            // Made where something is read: millions of tables can lie in one hole.
            buffer.resize(piece.max(buffer.len()), 0u8);
            let Some(bytes) = buffer.get_mut(..piece) else { break };
            self.from.read_at(at, bytes)?;
            // The copy reads as zeros where nothing is written: what is a hole stays one.
            for (number, page) in (0u64..).zip(bytes.chunks(4096)) {
                if page.iter().any(|&byte| byte != 0) {
                    self.to.write_at(at.saturating_add(number.saturating_mul(4096)), page)?;
                }
            }
            at = at.saturating_add(here);
        }
        Ok(())
    }
}

impl<S: ReadStorage + ?Sized> Visitor for Copy<'_, S> {
    fn reference(&mut self, reference: &HostReference) -> Result<()> {
        match reference.target {
            Structure::DataCluster | Structure::CompressedCluster | Structure::DataFile | Structure::BitmapData => {
                Ok(())
            }
            _ => self.range(reference.host_offset, reference.length.saturating_mul(reference.count)),
        }
    }

    fn fault(&mut self, fault: &Fault) -> Result<()> {
        Err(Error::invalid("the image is broken: check it before it is replayed on").at_host(fault.host_offset))
    }
}

impl LabDisk {
    /// Bytes of the virtual disk.
    ///
    /// # Errors
    /// A size that is too large.
    pub fn virtual_size(&self) -> Result<u64> {
        match self {
            Self::Empty { size } => {
                size.checked_next_multiple_of(512).ok_or_else(|| Error::invalid("the virtual size is too large"))
            }
            Self::Skeleton(skeleton) => Ok(skeleton.virtual_size),
        }
    }

    /// An image to replay on, a copy of its own.
    pub(super) fn open(&self, config: &LabConfig) -> Result<(Image<LabStorage>, Memories)> {
        match self {
            Self::Empty { size } => {
                let main = Rc::new(MemoryStorage::new());
                let (create, open) = (config.create_options(), config.open_options());
                let image = Image::create_with(counting(&main), *size, &create, open)?;
                Ok((image, Memories { main, data: None }))
            }
            Self::Skeleton(skeleton) => {
                let main = Rc::new(skeleton.storage.clone());
                let mut below = Below { skeleton, data: None };
                let image = Image::open_with(counting(&main), None, config.open_options(), &mut below)?;
                Ok((image, Memories { main, data: below.data }))
            }
        }
    }
}

/// What lies below a skeleton: a data file, and an empty disk for whatever the backing file is.
struct Below<'a> {
    skeleton: &'a Skeleton,
    data: Option<Rc<MemoryStorage>>,
}

/// The memory behind an image and its data file, which tells what is allocated.
pub(super) struct Memories {
    main: Rc<MemoryStorage>,
    data: Option<Rc<MemoryStorage>>,
}

impl Opener<LabStorage> for Below<'_> {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<LabStorage>> {
        let storage = match (reference.role, &self.skeleton.data_file) {
            (Role::Backing, _) => Rc::new(MemoryStorage::with_len(self.skeleton.virtual_size)),
            (Role::DataFile, Some(data_file)) => Rc::clone(self.data.insert(Rc::new(data_file.clone()))),
            (Role::DataFile, None) => {
                return Err(Error::new(ErrorKind::Denied("there is no data file".into())));
            }
        };
        Ok(Found { storage: counting(&storage), format: LayerFormat::Raw, identity: None })
    }
}

/// Length and allocated bytes of an image file and its data file together.
pub(super) struct Kept {
    pub(super) length: u64,
    pub(super) allocated: u64,
    pub(super) data_discards: CallCount,
}

impl Kept {
    pub(super) fn of(image: &Image<LabStorage>, memories: &Memories) -> Result<Self> {
        let main = image.storage();
        let data = image.data_file();
        let data_length = data.map_or(Ok(0), |data| data.len())?;
        let data_allocated = memories.data.as_ref().map_or(0, |data| data.allocated_bytes());
        Ok(Self {
            length: main.len()?.saturating_add(data_length),
            allocated: memories.main.allocated_bytes().saturating_add(data_allocated),
            data_discards: data.map_or(CallCount::default(), |data| data.counts().discard),
        })
    }
}
