//! A storage of one's own: bytes in a `Vec`, thirty lines, and images live in it.
//!
//! `own_storage [IMAGE]` reads the start of an image that is held in memory as a whole.

use std::cell::RefCell;
use std::error::Error;

use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::storage::{
    Capabilities, ReadStorage, Storage, StorageError, StorageExtent, StorageExtentKind, ZeroMode,
};

struct Bytes(RefCell<Vec<u8>>);

impl ReadStorage for Bytes {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.0.borrow().len() as u64)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let bytes = self.0.borrow();
        // What lies past the end reads as zeros.
        let from = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        let (here, beyond) = into.split_at_mut(from.len().min(into.len()));
        here.copy_from_slice(&from[..here.len()]);
        beyond.fill(0);
        Ok(())
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    fn next_extent(&self, offset: u64) -> Result<StorageExtent, StorageError> {
        let length = self.len()?.saturating_sub(offset);
        let kind = if length == 0 { StorageExtentKind::Hole } else { StorageExtentKind::Unknown };
        Ok(StorageExtent { kind, length })
    }
}

impl Storage for Bytes {
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        self.set_len(self.len()?.max(offset + from.len() as u64))?;
        self.0.borrow_mut()[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64, _: ZeroMode) -> Result<(), StorageError> {
        self.write_at(offset, &vec![0; length as usize])
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), StorageError> {
        Ok(()) // Advice that may be ignored.
    }
    fn set_len(&self, length: u64) -> Result<(), StorageError> {
        self.0.borrow_mut().resize(length as usize, 0);
        Ok(())
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.set_len(self.len()?.max(offset + length))
    }
    fn barrier(&self) -> Result<(), StorageError> {
        Ok(()) // Memory is as durable as this program.
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let storage = match std::env::args_os().nth(1) {
        Some(path) => Bytes(RefCell::new(std::fs::read(path)?)),
        None => {
            let empty = Bytes(RefCell::new(Vec::new()));
            let mut image = Image::create(empty, 1 << 20, &CreateOptions::default())?;
            image.write_at(0, b"hello from a storage of my own")?;
            image.close()?
        }
    };
    let bytes = storage.len()?;
    let mut image = Image::open(storage, OpenOptions::default().read_only())?;
    let mut start = [0; 30];
    let length = start.len().min(usize::try_from(image.virtual_size())?);
    image.read_at(0, &mut start[..length])?;
    println!("{bytes} bytes hold a disk of {} bytes", image.virtual_size());
    println!("it begins with: {}", String::from_utf8_lossy(&start[..length]).escape_debug());
    Ok(())
}
