//! Key slots of a LUKS image on storage that fails: the error reaches the caller, and never is the owner locked out. One of
//! the old passphrase and the new one opens the image, whatever has failed, and what is not to open it does not. Power
//! cuts of adding and erasing are in `power_cuts.rs`.

use qcowkit_core::ErrorKind;
use qcowkit_core::crypto::{MasterKey, Secret, SlotChange};
use qcowkit_core::image::{CreateOptions, Image, OpenOptions};
use qcowkit_core::storage::{FailingStorage, MemoryStorage, RecordingStorage, Storage};
use qcowkit_trial::Rng;
use qcowkit_trial::cuts::each_cut;
use qcowkit_trial::disks::{noise, volume};
use qcowkit_trial::failures::each_fault;

const SIZE: u64 = 20 << 10;

fn with_key(password: &str) -> OpenOptions {
    OpenOptions::default().with_key(Secret::from(password))
}

fn create() -> CreateOptions {
    CreateOptions { cluster_size: 4096, encryption: Some(volume()), ..CreateOptions::default() }
}

/// An image with data that "key" opens, by its slot 0.
fn base() -> Vec<u8> {
    let mut image = Image::create_with(MemoryStorage::new(), SIZE, &create(), with_key("key")).unwrap();
    image.write_at(1000, &[7; 9000]).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

/// Whether a password opens the image, and shows what it should.
fn opens<S: Storage>(storage: &S, password: &str) -> Result<bool, String> {
    let mut image = match Image::open(storage, with_key(password).read_only()) {
        Ok(image) => image,
        Err(error) if matches!(error.kind(), ErrorKind::WrongKey(_)) => return Ok(false),
        Err(error) => return Err(format!("'{password}': {error}")),
    };
    let mut bytes = [0; 12_000];
    image.read_at(0, &mut bytes).map_err(|error| format!("'{password}': {error}"))?;
    let right = bytes.iter().enumerate().all(|(n, &byte)| byte == if (1000..10_000).contains(&n) { 7 } else { 0 });
    if right { Ok(true) } else { Err(format!("'{password}' opens another disk")) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add,
    /// Into slot 0, which "key" has.
    Replace,
    /// Of "key", where "second" is there too.
    Erase,
}

fn change<S: Storage>(image: &mut Image<S>, master: &MasterKey, change: Change) -> qcowkit_core::Result<()> {
    let mut slots = image.key_slots()?;
    let (random, secret) = (&mut noise(9), Secret::from("new"));
    match change {
        Change::Add => slots.add(master, &secret, None, 1, SlotChange::Careful, random).map(drop),
        Change::Replace => slots.add(master, &secret, Some(0), 1, SlotChange::Force, random).map(drop),
        Change::Erase => slots.erase(&[0], SlotChange::Careful, random),
    }
}

/// Those that must open the image, and those of which one must: after a change that is done, or failed.
fn must_open(
    change: Change,
    done: bool,
) -> (&'static [&'static str], &'static [&'static str], &'static [&'static str]) {
    match (change, done) {
        (Change::Add, true) => (&["key", "new"], &[], &[]),
        (Change::Add, false) => (&["key"], &[], &[]),
        (Change::Replace, true) => (&["new"], &[], &["key"]),
        (Change::Replace, false) => (&[], &["key", "new"], &[]),
        (Change::Erase, true) => (&["second"], &[], &["key"]),
        (Change::Erase, false) => (&["second"], &[], &[]),
    }
}

fn judge<S: Storage>(storage: &S, change: Change, done: bool) -> Result<(), String> {
    let (all, one, none) = must_open(change, done);
    for password in all {
        if !opens(storage, password)? {
            return Err(format!("'{password}' does not open it any more"));
        }
    }
    for password in none {
        if opens(storage, password)? {
            return Err(format!("'{password}' still opens it"));
        }
    }
    let mut found = one.is_empty();
    for password in one {
        found |= opens(storage, password)?;
    }
    if found { Ok(()) } else { Err("the owner is locked out".into()) }
}

fn with_second() -> Vec<u8> {
    let mut image = Image::open(MemoryStorage::from_bytes(&base()), with_key("key")).unwrap();
    let master = image.master_key().unwrap();
    let mut slots = image.key_slots().unwrap();
    slots.add(&master, &Secret::from("second"), None, 1, SlotChange::Careful, &mut noise(3)).unwrap();
    image.close().unwrap().to_vec().unwrap()
}

#[test]
fn every_call_of_a_change_may_fail_and_the_owner_is_not_locked_out() {
    let mut cases = 0;
    for which in [Change::Add, Change::Replace, Change::Erase] {
        let bytes = if which == Change::Erase { with_second() } else { base() };
        cases += each_fault(&[], |fault| {
            let storage = MemoryStorage::from_bytes(&bytes);
            let mut image = Image::open(FailingStorage::new(&storage), with_key("key")).unwrap();
            let master = image.master_key().unwrap();
            image.storage().fail(fault.rule.clone());
            let done = change(&mut image, &master, which);
            let struck = image.storage().failures() > 0;
            image.storage().heal();
            fault.answered(&done, struck)?;
            judge(&storage, which, done.is_ok()).map_err(|why| format!("{which:?}: {why}"))?;
            let poisoned = done.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Poisoned(_)));
            if done.is_err() {
                // Done again, or nothing more is written: else the last key that works could go.
                match change(&mut image, &master, which) {
                    Ok(()) if !poisoned => judge(&storage, which, true).map_err(|why| format!("again: {why}"))?,
                    Err(error) if poisoned && matches!(error.kind(), ErrorKind::Poisoned(_)) => {
                        if image.write_at(0, &[1]).is_ok() {
                            return Err("a write on a poisoned image".into());
                        }
                    }
                    again => return Err(format!("{which:?}, poisoned {poisoned}: again: {again:?}")),
                }
            }
            drop(image);
            judge(&storage, which, done.is_ok()).map_err(|why| format!("{which:?}, at the end: {why}"))?;
            Ok(struck)
        });
    }
    println!("{cases} failures");
    assert!(cases > 60, "{cases}");
}

/// A key that is replaced is in another slot until its own can be trusted, also when the power goes.
#[test]
fn a_cut_while_the_only_key_is_replaced_does_not_lock_the_owner_out() {
    let bytes = base();
    let mut image = Image::open(RecordingStorage::new(MemoryStorage::from_bytes(&bytes)), with_key("key")).unwrap();
    let master = image.master_key().unwrap();
    change(&mut image, &master, Change::Replace).unwrap();
    let active: Vec<bool> = image.key_slots().unwrap().header().slots.iter().map(|slot| slot.active).collect();
    assert_eq!(active, [true, false, false, false, false, false, false, false]);
    let events = image.storage().events();
    let mut states = 0;
    each_cut(&bytes, &events, 300, &mut Rng::new(4), |state, at, plan| {
        states += 1;
        judge(state, Change::Replace, false).unwrap_or_else(|why| panic!("after {at} events, {plan:?}: {why}"));
    });
    assert!(states > 100, "{states}");
}

/// One that keeps its slots does not go on from what it believed before a failure.
#[test]
fn slots_are_read_anew_before_each_change() {
    let storage = FailingStorage::new(MemoryStorage::from_bytes(&with_second()));
    let mut image = Image::open(&storage, with_key("key")).unwrap();
    let mut slots = image.key_slots().unwrap();
    // Somebody else has switched the second key off meanwhile.
    let mut other = Image::open(&storage, with_key("key")).unwrap();
    other.key_slots().unwrap().erase(&[1], SlotChange::Careful, &mut noise(1)).unwrap();
    let error = slots.erase(&[0], SlotChange::Careful, &mut noise(2)).unwrap_err();
    assert!(error.to_string().contains("the last key"), "{error}");
}

#[test]
fn every_call_of_creating_and_opening_may_fail() {
    let bytes = base();
    let cases = each_fault(&[], |fault| {
        let storage = FailingStorage::new(MemoryStorage::new());
        storage.fail(fault.rule.clone());
        // A new image is read by its first write.
        let done = Image::create_with(&storage, SIZE, &create(), with_key("key")).and_then(|mut image| {
            image.write_at(1000, &[7; 9000])?;
            image.close()
        });
        let struck = storage.failures() > 0;
        fault.answered(&done.map(drop), struck)?;
        storage.heal();
        let mut image = Image::create_with(&storage, SIZE, &create(), with_key("key")).map_err(|e| e.to_string())?;
        image.write_at(1000, &[7; 9000]).map_err(|error| error.to_string())?;
        image.close().map_err(|error| error.to_string())?;
        if opens(&storage, "key")? && !opens(&storage, "other")? { Ok(struck) } else { Err("made anew".into()) }
    });
    assert!(cases > 30, "{cases}");
    // A read that fails is no wrong key.
    let nothing_written = &["write", "half a write", "flush", "no space"];
    let cases = each_fault(nothing_written, |fault| {
        let storage = FailingStorage::new(MemoryStorage::from_bytes(&bytes));
        storage.fail(fault.rule.clone());
        let opened = opens(&storage, "key");
        let struck = storage.failures() > 0;
        match opened {
            Ok(false) => Err("the right key was called wrong".into()),
            opened => fault.answered(&opened, struck).map(|()| struck),
        }
    });
    assert!(cases > 6, "{cases}");
}
