//! `amend -o encrypt....`: the key slots of a LUKS image.

use std::time::Duration;

use qcowkit_core::crypto::{HashAlgorithm, KeySlots, Secret, SlotChange};
use qcowkit_core::format::LuksHeader;
use qcowkit_core::image::Image;

use crate::cli::args::SlotKeyArgs;
use crate::cli::failure::Failure;
use crate::cli::keys::{ask_new, named, plain};
use crate::cli::options::c_number;
use crate::cli::personality::Personality;
use crate::cli::secrets::Secrets;
use crate::file::FileStorage;
use crate::keys::{DEFAULT_ITER_TIME, SystemRandom, iterations_in};

/// What is to become of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SlotRequest {
    /// One more key.
    Add {
        /// The name of the key.
        new_secret: Option<String>,
        /// Which slot, instead of the first that is free.
        slot: Option<usize>,
        /// How long trying the key takes.
        iter_time: Duration,
    },
    /// Slots lose their key.
    Erase {
        /// The name of the key that the slots have.
        old_secret: Option<String>,
        /// Which slot.
        slot: Option<usize>,
    },
}

/// Where keys come from.
pub(super) struct SlotKeys<'a> {
    pub(super) args: &'a SlotKeyArgs,
    pub(super) secrets: &'a Secrets,
    pub(super) personality: Personality,
    /// The name of the image, to ask for a key.
    pub(super) image: &'a str,
}

impl SlotRequest {
    /// From the options, whose prefix `encrypt.` is gone.
    ///
    /// # Errors
    /// In QEMU's words.
    pub(super) fn parse(options: &[(String, String)], args: &SlotKeyArgs) -> Result<Self, String> {
        let text = |name: &str| options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let number = |name: &str| text(name).and_then(|text| c_number(&text));
        let slot = number("keyslot").map(|slot| usize::try_from(slot).unwrap_or(usize::MAX));
        let new_key = text("new-secret").is_some() || args.new_key_file.is_some() || args.new_key_env.is_some();
        let old_key = text("old-secret").is_some() || args.old_key_file.is_some() || args.old_key_env.is_some();
        match text("state").as_deref() {
            None => Err("Parameter 'state' is missing".into()),
            Some("active") if old_key => Err("'old-secret' must not be given when activating keyslots".into()),
            Some("active") => {
                let iter_time = Duration::from_millis(number("iter-time").unwrap_or(DEFAULT_ITER_TIME));
                Ok(Self::Add { new_secret: text("new-secret"), slot, iter_time })
            }
            Some("inactive") if new_key => Err("'new-secret' must not be given when erasing keyslots".into()),
            Some("inactive") if text("iter-time").is_some() => {
                Err("'iter-time' must not be given when erasing keyslots".into())
            }
            Some("inactive") => Ok(Self::Erase { old_secret: text("old-secret"), slot }),
            Some(other) => Err(format!("Parameter 'state' does not accept value '{other}'")),
        }
    }

    /// Changes the slots of an image that is open with one of its keys.
    ///
    /// # Errors
    /// In QEMU's words where it has some.
    pub(super) fn carry_out(
        &self,
        image: &mut Image<FileStorage>,
        keys: &SlotKeys<'_>,
        force: bool,
    ) -> Result<(), String> {
        let change = if force { SlotChange::Force } else { SlotChange::Careful };
        let most = image.options().max_key_iterations;
        match self {
            Self::Add { new_secret, slot, iter_time } => {
                let master = image.master_key().map_err(|error| plain(&error))?;
                let mut slots = image.key_slots().map_err(|error| plain(&error))?;
                let slot = free_slot(slots.header(), *slot, force)?;
                let secret = keys.new_key(new_secret.as_deref())?;
                let iterations = iterations(slots.header(), *iter_time)?;
                let added = slots.add(&master, &secret, Some(slot), iterations, change, &mut SystemRandom);
                added.map(drop).map_err(|error| plain(&error))
            }
            Self::Erase { old_secret, slot } => {
                let secret = keys.old_key(old_secret.as_deref())?;
                let mut slots = image.key_slots().map_err(|error| plain(&error))?;
                let erased = slots_to_erase(&slots, *slot, secret.as_ref(), most, force)?;
                slots.erase(&erased, change, &mut SystemRandom).map_err(|error| plain(&error))
            }
        }
    }
}

impl SlotKeys<'_> {
    fn new_key(&self, name: Option<&str>) -> Result<Secret, String> {
        let given = named(self.args.new_key_file.as_deref(), self.args.new_key_env.as_deref());
        match (name, given.map_err(|failure| failure.message)?) {
            (Some(name), _) => self.secrets.find(name).cloned(),
            (None, Some(secret)) => Ok(secret),
            (None, None) if self.personality.is_own() => {
                let typed = ask_new(self.image).map_err(|failure: Failure| failure.message)?;
                typed.ok_or("the key to add is missing: --new-key-file or --new-key-env give it, or a terminal".into())
            }
            (None, None) => Err("'new-secret' is required to activate a keyslot".into()),
        }
    }

    fn old_key(&self, name: Option<&str>) -> Result<Option<Secret>, String> {
        let given = named(self.args.old_key_file.as_deref(), self.args.old_key_env.as_deref());
        match (name, given.map_err(|failure| failure.message)?) {
            (Some(name), _) => self.secrets.find(name).cloned().map(Some),
            (None, given) => Ok(given),
        }
    }
}

fn checked(header: &LuksHeader, slot: usize) -> Result<bool, String> {
    let slots = header.slots.len().saturating_sub(1);
    let found = header.slots.get(slot);
    found.map(|slot| slot.active).ok_or(format!("Invalid keyslot {slot} specified, must be between 0 and {slots}"))
}

fn free_slot(header: &LuksHeader, wanted: Option<usize>, force: bool) -> Result<usize, String> {
    match wanted {
        Some(slot) if checked(header, slot)? && !force => {
            Err(format!("Refusing to overwrite active keyslot {slot} - please erase it first"))
        }
        Some(slot) => Ok(slot),
        None => {
            let free = header.slots.iter().position(|slot| !slot.active);
            free.ok_or("Can't add a keyslot - all keyslots are in use".into())
        }
    }
}

fn iterations(header: &LuksHeader, time: Duration) -> Result<u32, String> {
    let hash = HashAlgorithm::from_name(&header.hash.to_string_lossy()).map_err(|error| plain(&error))?;
    if time.is_zero() {
        return Err("iter-time must be greater than 0".into());
    }
    iterations_in(hash, header.key_bytes as usize, time).map_err(|error| plain(&error))
}

fn slots_to_erase(
    slots: &KeySlots<'_, FileStorage>,
    wanted: Option<usize>,
    secret: Option<&Secret>,
    most: u32,
    force: bool,
) -> Result<Vec<usize>, String> {
    let header = slots.header();
    let active = header.slots.iter().filter(|slot| slot.active).count();
    let opened = match secret {
        Some(secret) => Some(slots.opened_by(secret, most).map_err(|error| plain(&error))?),
        None => None,
    };
    match (wanted, opened) {
        (None, None) => {
            Err("To erase keyslot(s), either explicit keyslot index or the password currently contained in \
                             them must be given"
                .into())
        }
        (None, Some(opened)) if opened.is_empty() => {
            Err("No keyslots match given (old) password for erase operation".into())
        }
        (None, Some(opened)) if opened.len() == active && !force => {
            Err("All the active keyslots match the (old) password that was given and erasing them will erase all the \
                 data in the image irreversibly - refusing operation"
                .into())
        }
        (None, Some(opened)) => Ok(opened),
        (Some(slot), opened) => {
            let in_use = checked(header, slot)?;
            if opened.is_some_and(|opened| !opened.contains(&slot)) {
                return Err(format!("Given keyslot {slot} doesn't contain the given old password for erase operation"));
            }
            if !in_use && !force {
                return Err(format!("Given keyslot {slot} is already erased (inactive) "));
            }
            if in_use && active == 1 && !force {
                return Err(format!(
                    "Attempt to erase the only active keyslot {slot} which will erase all the data in the image \
                     irreversibly - refusing operation"
                ));
            }
            Ok(vec![slot])
        }
    }
}
