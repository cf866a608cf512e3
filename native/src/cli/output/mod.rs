//! What verbs print, in qemu-img's words where it has the verb.

pub(crate) mod check;
pub(crate) mod info;
