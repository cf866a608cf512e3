//! Changing the key slots of a LUKS volume, so that a cut at any moment leaves a slot that worked before.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::luks::{Area, STRIPES, Volume, check_new_secret};
use super::{MasterKey, RandomSource, Secret};
use crate::error::{Error, ErrorKind, Result, Structure};
use crate::format::{LuksHeader, LuksSlot};
use crate::storage::Storage;

/// What may be done to key slots that would lose something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotChange {
    /// The last key is not erased, and a slot in use is not taken.
    #[default]
    Careful,
    /// Both happen, if asked for (QEMU: `--force`).
    Force,
}

/// The key slots of a volume on storage.
///
/// A slot is switched on when everything that it needs is durable, and its key material is overwritten when it is
/// durable that it is off. No other slot is touched, and the words that switch slots lie within a sector each. A slot in
/// use whose key is replaced (forced) is overwritten while a free slot has the new key, so that one of the two opens the
/// volume at every instant; where none is free, another slot is in use.
///
/// After a barrier that failed nothing is changed any more: what reached the disk is unknown, and the last key that
/// really opens the volume could be erased.
#[derive(Debug)]
pub struct KeySlots<'a, S> {
    storage: &'a S,
    area: Area,
    header: LuksHeader,
    /// Why nothing is changed any more.
    poisoned: Option<String>,
    /// The same of the image whose volume it is.
    image: Option<&'a mut Option<String>>,
}

impl<'a, S: Storage> KeySlots<'a, S> {
    /// Those of the volume whose header and key material lie in the `length` bytes from `offset` on.
    ///
    /// # Errors
    /// No LUKS header is there; a storage that fails.
    pub fn read(storage: &'a S, (offset, length): (u64, u64)) -> Result<Self> {
        let area = Area { offset, length };
        Ok(Self { storage, area, header: read_header(storage, area)?, poisoned: None, image: None })
    }

    /// A barrier that fails poisons the image too.
    pub(crate) fn of_image(self, poisoned: &'a mut Option<String>) -> Self {
        Self { image: Some(poisoned), ..self }
    }

    /// The header as it is on storage.
    #[must_use]
    pub fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// The slots that `secret` opens.
    ///
    /// # Errors
    /// As [`super::unlock`].
    pub fn opened_by(&self, secret: &Secret, max_iterations: u32) -> Result<Vec<usize>> {
        let volume = Volume::new(&self.header, self.area)?;
        let mut opened = Vec::new();
        for (index, slot) in self.header.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            let found = volume.open_slot(slot, self.storage, secret, max_iterations);
            if found.map_err(|error| volume.at_slot(error, index))?.is_some() {
                opened.push(index);
            }
        }
        Ok(opened)
    }

    /// Lets `secret` open the volume too, through the slot with the number `wanted`, or the first that is free. Gives
    /// the number. Durable on return.
    ///
    /// # Errors
    /// No free slot; a slot in use, unless forced; a secret that QEMU would not take; key material in impossible places;
    /// a storage that fails. What opened the volume still does then; of a slot whose key was to be replaced that may be
    /// the new key, perhaps in another slot that was free.
    pub fn add(
        &mut self,
        master: &MasterKey,
        secret: &Secret,
        wanted: Option<usize>,
        iterations: u32,
        change: SlotChange,
        random: &mut dyn RandomSource,
    ) -> Result<usize> {
        check_new_secret(secret)?;
        self.begin()?;
        let index =
            match wanted {
                Some(index) => index,
                None => self.header.slots.iter().position(|slot| !slot.active).ok_or_else(|| {
                    Error::new(ErrorKind::NoSpace("all key slots are in use: erase one first".into()))
                })?,
            };
        let old = *self.slot(index)?;
        if old.active && change == SlotChange::Careful {
            return Err(Error::invalid(format!("the key slot {index} is in use: erase it first")));
        }
        let spare = if old.active { self.spare() } else { None };
        if let Some(spare) = spare {
            self.fill(spare, master, secret, iterations, random)?;
        }
        self.fill(index, master, secret, iterations, random)?;
        if let Some(spare) = spare {
            self.clear(spare, random)?;
        }
        Ok(index)
    }

    /// Erases slots: none of them opens the volume any more, and their key material is overwritten. Durable on return.
    ///
    /// # Errors
    /// When no key would be left, unless forced; a storage that fails.
    pub fn erase(&mut self, slots: &[usize], change: SlotChange, random: &mut dyn RandomSource) -> Result<()> {
        for &index in slots {
            self.slot(index)?;
        }
        self.begin()?;
        let left = self.header.slots.iter().enumerate().filter(|(index, slot)| slot.active && !slots.contains(index));
        if left.count() == 0 && change == SlotChange::Careful {
            return Err(Error::invalid("that would erase the last key, and all data with it"));
        }
        for &index in slots {
            self.clear(index, random)?;
        }
        Ok(())
    }

    /// What must hold before a change: the header is as on storage, also after one that failed.
    fn begin(&mut self) -> Result<()> {
        if let Some(why) = &self.poisoned {
            return Err(ErrorKind::Poisoned(why.clone()).into());
        }
        self.header = read_header(self.storage, self.area)?;
        Ok(())
    }

    /// A slot that is off and can be switched on.
    fn spare(&self) -> Option<usize> {
        let volume = Volume::new(&self.header, self.area).ok()?;
        let usable = |(index, slot): &(usize, &LuksSlot)| {
            !slot.active && self.free_material(&volume, *index, &LuksSlot { stripes: STRIPES, ..**slot }).is_ok()
        };
        self.header.slots.iter().enumerate().find(usable).map(|(index, _)| index)
    }

    /// Puts a key into a slot and switches it on.
    fn fill(
        &mut self,
        index: usize,
        master: &MasterKey,
        secret: &Secret,
        iterations: u32,
        random: &mut dyn RandomSource,
    ) -> Result<()> {
        let mut slot = LuksSlot { active: false, iterations, stripes: STRIPES, ..*self.slot(index)? };
        random.fill(&mut slot.salt)?;
        let (material_offset, material) = {
            let volume = Volume::new(&self.header, self.area)?;
            let offset = self.free_material(&volume, index, &slot)?;
            (offset, volume.seal(master, secret, &slot.salt, iterations, random)?)
        };
        self.store_slot(index, slot)?;
        self.storage.write_at(material_offset, &material)?;
        self.barrier()?;
        self.store_state(index, true)
    }

    /// Switches a slot off and overwrites what it had.
    fn clear(&mut self, index: usize, random: &mut dyn RandomSource) -> Result<()> {
        self.store_state(index, false)?;
        self.wipe(index, random)?;
        let old = *self.slot(index)?;
        self.store_slot(index, LuksSlot { active: false, iterations: 0, salt: [0; 32], ..old })?;
        self.barrier()
    }

    fn barrier(&mut self) -> Result<()> {
        let Err(error) = self.storage.barrier() else { return Ok(()) };
        let why = format!("{error}");
        if let Some(image) = &mut self.image {
            **image = Some(why.clone());
        }
        self.poisoned = Some(why.clone());
        Err(ErrorKind::Poisoned(why).into())
    }

    fn slot(&self, index: usize) -> Result<&LuksSlot> {
        let most = LuksHeader::SLOTS.saturating_sub(1);
        self.header.slots.get(index).ok_or_else(|| Error::invalid(format!("key slots are numbered from 0 to {most}")))
    }

    /// Overwrites key material, if it is where it should be.
    fn wipe(&mut self, index: usize, random: &mut dyn RandomSource) -> Result<()> {
        let slot = *self.slot(index)?;
        let Ok(volume) = Volume::new(&self.header, self.area) else { return Ok(()) };
        let Ok(offset) = self.free_material(&volume, index, &slot) else { return Ok(()) };
        let stripes = usize::try_from(STRIPES).unwrap_or(0);
        let mut noise = vec![0u8; volume.spec.key_bytes().saturating_mul(stripes)];
        random.fill(&mut noise)?;
        self.storage.write_at(offset, &noise)?;
        self.barrier()
    }

    /// Where the key material of a slot lies, which must be its own.
    fn free_material(&self, volume: &Volume<'_>, index: usize, slot: &LuksSlot) -> Result<u64> {
        let offset = volume.material_offset(slot).map_err(|error| volume.at_slot(error, index))?;
        let bytes = u64::try_from(volume.spec.key_bytes()).unwrap_or(0).saturating_mul(u64::from(STRIPES));
        let shares = |other: &LuksSlot| {
            slot.key_offset < other.key_offset.saturating_add(bytes)
                && other.key_offset < slot.key_offset.saturating_add(bytes)
        };
        let others = self.header.slots.iter().enumerate().filter(|(other, _)| *other != index);
        if let Some((other, _)) = others.filter(|(_, other)| other.active).find(|(_, other)| shares(other)) {
            let what: String = format!("the key slots {index} and {other} share their key material");
            return Err(volume.at_slot(Error::corrupt(Structure::CryptoHeader, what), index));
        }
        Ok(offset)
    }

    /// Stores the record of a slot that is off.
    fn store_slot(&mut self, index: usize, slot: LuksSlot) -> Result<()> {
        self.storage.write_at(self.record_offset(index), &slot.emit())?;
        self.put(index, slot);
        Ok(())
    }

    /// Switches a slot on or off.
    fn store_state(&mut self, index: usize, active: bool) -> Result<()> {
        let slot = LuksSlot { active, ..*self.slot(index)? };
        self.storage.write_at(self.record_offset(index), &slot.emit_state())?;
        self.barrier()?;
        self.put(index, slot);
        Ok(())
    }

    fn put(&mut self, index: usize, slot: LuksSlot) {
        if let Some(place) = self.header.slots.get_mut(index) {
            *place = slot;
        }
    }

    fn record_offset(&self, index: usize) -> u64 {
        self.area.offset.saturating_add(LuksHeader::slot_offset(index))
    }
}

fn read_header(storage: &impl Storage, area: Area) -> Result<LuksHeader> {
    let mut bytes = [0u8; LuksHeader::LENGTH];
    storage.read_at(area.offset, &mut bytes)?;
    LuksHeader::parse(&bytes, area.offset)
}
