//! The key slots of a LUKS image.

use std::time::Duration;

use pyo3::prelude::*;
use qcowkit::keys::{SystemRandom, iterations_in};
use qcowkit_core::Error;
use qcowkit_core::crypto::{HashAlgorithm, SlotChange};

use super::Image;
use crate::opening::secret_of;

#[pymethods]
impl Image {
    /// Which slots have a key.
    fn key_slots(&self, py: Python<'_>) -> PyResult<Vec<bool>> {
        self.change(py, |image| Ok(image.key_slots()?.header().slots.iter().map(|slot| slot.active).collect()))
    }

    /// Lets another key open the image; gives the number of its slot.
    fn add_key(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        slot: Option<usize>,
        iter_time_ms: u64,
    ) -> PyResult<usize> {
        let secret = secret_of(key)?;
        self.change(py, |image| {
            let master = image.master_key()?;
            let mut slots = image.key_slots()?;
            let hash = HashAlgorithm::from_name(&slots.header().hash.to_string_lossy())?;
            if iter_time_ms == 0 {
                return Err(Error::invalid("the time that trying a key takes is greater than 0"));
            }
            let bytes = slots.header().key_bytes as usize;
            let iterations = iterations_in(hash, bytes, Duration::from_millis(iter_time_ms))?;
            slots.add(&master, &secret, slot, iterations, SlotChange::Careful, &mut SystemRandom)
        })
    }

    /// Takes a key out of the slots that have it, or out of one slot; gives the numbers of the slots.
    fn erase_key(&self, py: Python<'_>, key: Option<&Bound<'_, PyAny>>, slot: Option<usize>) -> PyResult<Vec<usize>> {
        let secret = key.map(secret_of).transpose()?;
        self.change(py, |image| {
            let most = image.options().max_key_iterations;
            let mut slots = image.key_slots()?;
            let erased = match (&secret, slot) {
                (Some(secret), None) => slots.opened_by(secret, most)?,
                (None, Some(slot)) => vec![slot],
                (Some(_), Some(_)) | (None, None) => return Err(Error::invalid("either a key or a slot")),
            };
            if erased.is_empty() {
                return Err(Error::invalid("no slot has this key"));
            }
            slots.erase(&erased, SlotChange::Careful, &mut SystemRandom)?;
            Ok(erased)
        })
    }
}
