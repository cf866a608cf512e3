//! An image that is open, opened once more over the same storage.

use qcowkit_core::image::{Found, Image, Layer, LayerFormat, OpenOptions, Opener, Reference, Role};
use qcowkit_core::storage::Storage;
use qcowkit_core::{Error, ErrorKind, Result};

use crate::storage::Store;

/// The files of a chain that is open, to be found again by their depth.
pub(super) struct Chain {
    layers: Vec<ChainLayer>,
}

struct ChainLayer {
    store: Store,
    format: LayerFormat,
    data_file: Option<Store>,
}

impl Chain {
    /// Of an image and what lies below it.
    pub(super) fn of(image: &Image<Store>) -> Self {
        let mut layers = Vec::new();
        let mut image = image;
        loop {
            let data_file = image.data_file().cloned();
            layers.push(ChainLayer { store: image.storage().clone(), format: LayerFormat::Qcow2, data_file });
            match image.backing() {
                None => return Self { layers },
                Some(Layer::Image(below)) => image = below,
                Some(Layer::Raw { storage, .. }) => {
                    let (store, format) = (storage.clone(), LayerFormat::Raw);
                    layers.push(ChainLayer { store, format, data_file: None });
                    return Self { layers };
                }
            }
        }
    }

    fn find(&self, reference: &Reference<'_>) -> Result<(Store, LayerFormat)> {
        let missing = || Error::new(ErrorKind::Denied("it was not opened with the image".into()));
        let depth = reference.depth as usize;
        match reference.role {
            Role::Backing => {
                let layer = self.layers.get(depth + 1).ok_or_else(missing)?;
                Ok((layer.store.clone(), layer.format))
            }
            Role::DataFile => {
                let data_file = self.layers.get(depth).and_then(|layer| layer.data_file.clone());
                Ok((data_file.ok_or_else(missing)?, LayerFormat::Raw))
            }
        }
    }

    /// Opens the image once more, each file of the chain as `wrap` makes it.
    ///
    /// # Errors
    /// As [`Image::open_with`]; what `wrap` returns.
    pub(super) fn open<S: Storage>(&self, options: OpenOptions, wrap: impl Fn(Store) -> Result<S>) -> Result<Image<S>> {
        let top = self.layers.first().ok_or_else(|| Error::invalid("an image has a layer"))?;
        let storage = wrap(top.store.clone())?;
        Image::open_with(storage, None, options, &mut Wrapped { chain: self, wrap })
    }
}

struct Wrapped<'a, F> {
    chain: &'a Chain,
    wrap: F,
}

impl<S, F: Fn(Store) -> Result<S>> Opener<S> for Wrapped<'_, F> {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<S>> {
        let (store, format) = self.chain.find(reference)?;
        Ok(Found { storage: (self.wrap)(store)?, format, identity: None })
    }
}
