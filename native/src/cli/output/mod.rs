//! What verbs print, in qemu-img's words where it has the verb.

pub(crate) mod analysis;
pub(crate) mod check;
pub(crate) mod discard;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod table;
